"""The steps of the Dockerfile work: run here, in a virtual environment, without an engine."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def imitate(dockerfile: str, root: Path) -> None:
    """Do what the first stage says, with `root` for the root folder and this Python for python."""
    first_stage, _, _ = dockerfile.partition("\nFROM python:3.13-slim@")[2].partition("\nFROM ")
    without_comments = re.sub(r"^\s*#.*\n", "", first_stage, flags=re.MULTILINE)
    folder = root
    environment = {name: value for name, value in os.environ.items() if "PYTHON" not in name}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    for line in re.sub(r"\\\n\s*", "", without_comments).splitlines()[1:]:
        name, _, rest = line.partition(" ")
        match name:
            case "ENV":
                environment |= dict(pair.split("=", 1) for pair in rest.split())
                environment.pop("PIP_NO_CACHE_DIR")  # an engine caches layers; we, downloads
            case "WORKDIR":
                folder = root / rest.lstrip("/")
                folder.mkdir(parents=True)
            case "COPY":
                *sources, target = rest.split()
                for source in sources:
                    copy(ROOT / source, folder / target)
            case "RUN":
                command = re.sub(r"(?<!\S)/(opt|dist)\b", rf"{root}/\1", rest)
                subprocess.run(["sh", "-ec", command], cwd=folder, env=environment, check=True)
            case "":
                pass
            case _:
                pytest.fail(f"the test cannot imitate {line}")


def copy(source: Path, target: Path) -> None:
    """Copy as COPY does: a folder's content, or a file into a folder."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


@pytest.mark.timeout(300)  # the packages may have to be downloaded
def test_what_the_build_stage_installs_starts(tmp_path: Path) -> None:
    imitate((ROOT / "Dockerfile").read_text(), tmp_path)

    # As in the final stage: nothing but the virtual environment is left.
    shutil.rmtree(tmp_path / "src")
    shutil.rmtree(tmp_path / "opt" / "build")
    programs = tmp_path / "opt" / "tagpin" / "bin"
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}

    def tagpin(*arguments: str) -> str:
        return subprocess.run(
            ["tagpin", *arguments],
            cwd=tmp_path,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    assert re.fullmatch(r"tagpin, version \d+\.\d+\.\d+\S*\n", tagpin("--version"))
    assert "--config" in tagpin("serve", "--help")
    assert not list(programs.glob("pip*"))
    licences = list((tmp_path / "opt" / "tagpin" / "lib").rglob("tagpin-*.dist-info/**/LICENSE"))
    assert len(licences) == 1
    sources = list((tmp_path / "opt" / "tagpin" / "lib").rglob("tagpin/**/*.py"))
    assert len(sources) > 10
    for source in sources:
        assert list((source.parent / "__pycache__").glob(f"{source.stem}.*.pyc")), source
