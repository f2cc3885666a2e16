"""What the documentation lists is what there is."""

import ast
import dataclasses
import itertools
import re
from pathlib import Path

import pytest
import yaml

from tagpin.app.metrics import Metrics
from tagpin.app.wiring import _registry
from tagpin.errors import Reason
from tagpin.pins import Source
from tagpin.registry.places import Places
from tagpin.settings import CredentialProgram, Mirror, Registry, Settings, WorkloadKind
from tagpin.verdict import Result

ROOT = Path(__file__).parents[2]
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
RECORDS = (ROOT / "docs" / "records.md").read_text()
REVISIONS = (ROOT / "docs" / "revisions.md").read_text()
REGISTRIES = (ROOT / "docs" / "registries.md").read_text()


def camel_case(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.upper() if word == "ttl" else word.capitalize() for word in rest)


def defaults() -> dict[str, str]:
    """Key → default, of the table in docs/configuration.md."""
    rows = re.findall(r"^\| `(\w+)` \| `?([^|`]+)`? \|", CONFIGURATION, re.MULTILINE)
    return dict(rows)


def rows(page: str, head: str) -> list[list[str]]:
    """The cells of the table below a head, row by row."""
    _, _, table = page.partition(f"{head}\n")
    lines = itertools.takewhile(lambda line: line.startswith("|"), table.splitlines()[1:])
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_setting_is_documented_with_its_default() -> None:
    documented = {}
    for key, text in defaults().items():
        spoken = {"all": "", "none": "", "from the environment": "", "[]": ()}
        documented[key] = spoken.get(text, text)
    # Reading the documented text must give the default.
    settings = Settings.from_mapping(
        {key: list(value) if value == () else value for key, value in documented.items()}
    )

    assert set(documented) == {camel_case(item.name) for item in dataclasses.fields(Settings)}
    assert settings == Settings()


@pytest.mark.parametrize(
    "item",
    [
        item.name
        for kind in (Registry, Mirror, CredentialProgram, WorkloadKind)
        for item in dataclasses.fields(kind)
    ],
)
def test_every_key_of_a_record_is_shown(item: str) -> None:
    assert f"{camel_case(item)}:" in CONFIGURATION


EXAMPLES = [
    block
    for page in (CONFIGURATION, REGISTRIES, RECORDS, REVISIONS)
    for block in re.findall(r"^```yaml\n(.+?)^```", page, re.MULTILINE | re.DOTALL)
    if "\nkind:" not in block  # an object of Kubernetes
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_settings(example: str) -> None:
    settings = Settings.from_mapping(yaml.safe_load(example))

    # The files of examples are nowhere.
    Places(_registry(dataclasses.replace(each, ca_file="")) for each in settings.registries)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) > 4


def test_the_examples_in_the_configmap_are_settings() -> None:
    manifest = yaml.safe_load((ROOT / "manifests" / "base" / "configmap.yaml").read_text())
    config = manifest["data"]["config.yaml"]

    opened = re.sub(r"^#(?=\w|  )", "", config, flags=re.MULTILINE)  # prose begins with "# "

    assert len(yaml.safe_load(config)) < len(yaml.safe_load(opened))
    assert Settings.from_mapping(yaml.safe_load(opened))


@pytest.mark.parametrize("page", [REGISTRIES, REVISIONS, RECORDS, CONFIGURATION])
def test_metrics_that_are_named_exist(page: str) -> None:
    there_is = set(re.findall(r"^# TYPE (\w+)", Metrics().exposition().decode(), re.MULTILINE))

    assert set(re.findall(r"\b(tagpin_\w+)", page)) <= there_is


@pytest.mark.parametrize("reason", sorted(Reason))
def test_every_reason_has_a_remedy(reason: Reason) -> None:
    assert re.search(rf"^\| `{reason}` \| .+ \| .+ \|$", RECORDS, re.MULTILINE)


@pytest.mark.parametrize("source", sorted(set(Source) - {Source.LEDGER, Source.SIBLINGS}))
def test_every_source_is_explained(source: Source) -> None:
    assert re.search(rf"^\| `{source}` \| .+ \|$", RECORDS, re.MULTILINE)


@pytest.mark.parametrize("result", sorted(set(Result) - {Result.BROKEN}))
def test_every_result_of_the_audit_log_is_named(result: Result) -> None:
    assert f"`{result}`" in RECORDS


def test_every_event_in_the_life_of_a_revision_is_tried_on_a_cluster() -> None:
    """The docstring of a test there is the event that it tries."""
    events = {event for event, _ in rows(REVISIONS, "| event | the pods run |")}
    tried = {
        ast.get_docstring(node)
        for file in (ROOT / "tests" / "cluster" / "revisions").rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert events == tried - {None}


def test_every_known_registry_is_tried() -> None:
    head = "| Registry | What is special | What tagpin does | Test | Seen with |"
    there_is = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    registries = rows(REGISTRIES, head)
    assert len(registries) > 15
    for registry, special, what_tagpin_does, tests, seen_with in registries:
        named = set(re.findall(r"`(\w+)`", tests))
        assert named, registry
        assert named <= there_is, registry
        assert special, registry
        assert what_tagpin_does, registry
        assert re.match("a fake|the real program", seen_with), registry


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda p: p.name
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target
