"""The layout of the repository, where a slip would only show in somebody's cluster."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "operator" / "tagpin"
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DEPENDENCIES: list[str] = PROJECT["project"]["dependencies"]
DEV: list[str] = PROJECT["dependency-groups"]["dev"]


def pinned(lock: Path) -> dict[str, str]:
    """What a lock file names: each requirement, and the lines that belong to it."""
    text = re.sub(r"^\s*#.*\n?", "", lock.read_text(encoding="utf-8"), flags=re.MULTILINE)
    blocks = re.split(r"\n(?=\S)", text.strip())
    return {block.split("==")[0]: block for block in blocks}


def test_the_source_root_is_no_package() -> None:
    # It would shadow the standard library's `operator`, and `python -m` would die at import.
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert {path.name for path in (ROOT / "operator").iterdir() if path.name != "__pycache__"} == {
        "tagpin"
    }


def test_no_module_has_the_name_of_one_of_the_standard_library() -> None:
    # `kopf run some/file.py` puts that file's folder first on sys.path.
    names = {path.stem for path in PACKAGE.rglob("*.py")} | {
        path.name for path in PACKAGE.rglob("*") if (path / "__init__.py").exists()
    }

    assert names & (sys.stdlib_module_names - {"__init__", "__main__"}) == set()


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()


def test_there_are_lock_files_for_running_and_for_developing() -> None:
    assert {lock.name for lock in LOCKS} >= {"runtime.txt", "dev.txt"}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_file_names_neither_a_host_nor_a_place_on_a_machine(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")

    assert re.findall(r".*(?:https?:|file:|://|(?:^|[\s=@])~?/).*", text, re.MULTILINE) == []
    assert re.findall(r"^-(?!-hash).*", text, re.MULTILINE) == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_file_fixes_every_version_with_hashes(lock: Path) -> None:
    packages = pinned(lock)

    assert packages
    for block in packages.values():
        assert re.match(r"[a-z0-9-]+(\[[a-z,-]+\])?==[^ ]+", block), block.splitlines()[0]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block.splitlines()[0]


def test_what_runs_is_tested_in_the_same_versions() -> None:
    version = re.compile(r"==(\S+)")
    runtime, dev = (
        {name: version.findall(block)[0] for name, block in pinned(lock).items()}
        for lock in (ROOT / "requirements" / "runtime.txt", ROOT / "requirements" / "dev.txt")
    )

    assert runtime.items() <= dev.items()


@pytest.mark.parametrize("dependency", DEPENDENCIES)
def test_a_dependency_has_a_lower_bound_and_no_other(dependency: str) -> None:
    requirement = Requirement(dependency)
    operators = sorted(bound.operator for bound in requirement.specifier)

    # Private names of kopf are imported: only versions that were tested will do.
    assert operators == (["<", ">="] if requirement.name == "kopf" else [">="])


@pytest.mark.parametrize("dependency", DEV)
def test_a_development_tool_has_at_most_a_lower_bound(dependency: str) -> None:
    assert {bound.operator for bound in Requirement(dependency).specifier} <= {">="}


@pytest.mark.parametrize("dependency", DEPENDENCIES)
def test_every_dependency_is_locked(dependency: str) -> None:
    names = {name.partition("[")[0] for name in pinned(ROOT / "requirements" / "runtime.txt")}

    assert Requirement(dependency).name.lower() in names


def test_what_serves_loads_hardly_any_of_the_kubernetes_clients_models() -> None:
    """They are hundreds of modules, 30 MiB in each replica and half of the time of its start.

    One import of `CoreV1Api` brings them all; `tagpin.cluster.objects` does without.
    """
    program = "import sys, tagpin.app.serve; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}

    loaded = subprocess.check_output(
        [sys.executable, "-c", program], env=environment, text=True
    ).split()

    assert "kubernetes.aio.client.api.core_v1_api" not in loaded
    models = [name for name in loaded if name.startswith("kubernetes.aio.client.models.")]
    assert 0 < len(models) <= 30
