"""What must be true of the Dockerfile. Whether its steps work: tests/cluster/test_dockerfile.py."""

import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """The instructions in order: their names, and what follows with continued lines joined."""
    lines = [
        line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (name, rest)
        for name, _, rest in (line.partition(" ") for line in joined.split("\n"))
        if name
    ]


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage, FROM included."""
    found: list[list[tuple[str, str]]] = []
    for name, rest in instructions():
        if name == "FROM":
            found.append([])
        found[-1].append((name, rest))
    return found


BUILD, FINAL = stages()


def only(stage: list[tuple[str, str]], name: str) -> str:
    (found,) = [rest for each, rest in stage if each == name]
    return found


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


def test_both_stages_start_from_one_image_by_its_digest() -> None:
    bases = [only(stage, "FROM").partition(" AS ")[0] for stage in (BUILD, FINAL)]
    assert bases[0] == bases[1]
    assert re.fullmatch(r"python:3\.13-slim@sha256:[0-9a-f]{64}", bases[0])
    label = only(FINAL, "LABEL")
    name, _, digest = bases[0].partition("@")
    assert f'base.name="docker.io/library/{name}"' in label
    assert f'base.digest="{digest}"' in label


def test_it_runs_as_a_numbered_user_without_rights() -> None:
    # runAsNonRoot can only be checked by a kubelet if the user is a number.
    assert only(FINAL, "USER") == "65532:65532"
    last_change = [name for name, _ in FINAL].index("USER")
    assert not {"RUN", "COPY", "ADD"} & {name for name, _ in FINAL[last_change:]}


def test_it_starts_tagpin_without_a_shell() -> None:
    assert only(FINAL, "ENTRYPOINT") == '["tagpin"]'
    assert only(FINAL, "CMD") == '["serve"]'


def test_the_final_stage_only_copies_the_virtual_environment() -> None:
    assert not {"RUN", "ADD"} & {name for name, _ in FINAL}
    assert only(FINAL, "COPY") == "--from=build /opt/tagpin /opt/tagpin"
    assert "PYTHONDONTWRITEBYTECODE=1" in only(FINAL, "ENV")


def test_whatever_is_installed_has_a_hash_or_was_built_here() -> None:
    steps = [step for name, rest in BUILD if name == "RUN" for step in rest.split("&&")]
    installing = [step.split() for step in steps if "-m pip " in step]
    assert len(installing) == 4
    for words in installing:
        assert "--require-hashes" in words or {"--no-index", "--no-deps"} <= {*words}, words


@pytest.mark.parametrize("lock", ["build", "runtime"])
def test_lock_files_name_no_host(lock: str) -> None:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    assert "://" not in text
    assert "--index-url" not in text
    assert re.findall(r"^(\S+)==", text, re.MULTILINE)


def test_the_build_backend_is_locked() -> None:
    assert re.search(
        r"^hatchling==", (ROOT / "requirements" / "build.txt").read_text(), re.MULTILINE
    )


def test_the_build_context_holds_what_is_copied_and_nothing_else() -> None:
    copied = {source for name, rest in BUILD if name == "COPY" for source in rest.split()[:-1]}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in ignored if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)
