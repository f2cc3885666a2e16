"""What the documentation lists is what there is."""

import ast
import dataclasses
import itertools
import re
import shlex
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
PAGES = {page.name: page.read_text() for page in sorted(ROOT.glob("docs/*.md"))}


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


def there_are() -> set[str]:
    """The names of all test functions, methods too."""
    return {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }


def test_every_setting_is_documented_with_its_default() -> None:
    documented = {}
    for key, text in defaults().items():
        spoken = {"all": "", "none": "", "from the environment": "", "[]": ()}
        documented[key] = spoken.get(text, text)
    # Reading the documented text must give the default.
    settings = Settings.from_mapping(
        {key: list(value) if value == () else value for key, value in documented.items()}
    )

    keys = {camel_case(item.name) for item in dataclasses.fields(Settings)}
    assert set(documented) == keys - {"exempt"}  # it has a file of its own
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
    if not re.search("^(kind|data):", block, re.MULTILINE)  # an object of Kubernetes
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


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
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
    there_is = there_are()
    registries = rows(REGISTRIES, head)
    assert len(registries) > 15
    for registry, special, what_tagpin_does, tests, seen_with in registries:
        named = set(re.findall(r"`(\w+)`", tests))
        assert named, registry
        assert named <= there_is, registry
        assert special, registry
        assert what_tagpin_does, registry
        assert re.match("a fake|the real program", seen_with), registry


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_every_test_that_a_page_names_exists(page: str) -> None:
    named = set(re.findall(r"\b(test_\w+)(?!\.py|\w)", page))

    assert named - there_are() == set()


FAILURES = "| what is down | audit | pin | enforce | how you notice | what to do | test |"
THREATS = "| who | wants | what stops it | test | what remains |"
OUTAGES = "| what went wrong, where | how it came about | here | test, or why there is none |"
PRACTICES = "| Kubernetes says | here | test, or why there is none |"
COSTS = "| | questions to the registry | requests to the API server | test |"
DRIFT = "| what a tool does | what it sees | test |"


@pytest.mark.parametrize(
    ("page", "head", "at_least"),
    [
        ("failures.md", FAILURES, 40),
        ("threat-model.md", THREATS, 20),
        ("good-practices.md", OUTAGES, 28),
        ("good-practices.md", PRACTICES, 20),
        ("gitops.md", DRIFT, 6),
        ("performance.md", COSTS, 7),
    ],
)
def test_every_row_of_a_table_is_whole_and_names_a_test(
    page: str, head: str, at_least: int
) -> None:
    columns = head.count("|") - 1
    column = next(n for n, title in enumerate(head.split(" | ")) if title.startswith("test"))
    found = rows(PAGES[page], head)

    assert len(found) >= at_least
    for cells in found:
        assert len(cells) == columns, cells
        assert all(cells), cells
        assert "`test_" in cells[column] or cells[0] in UNTRIED, cells


UNTRIED = {"try it in a staging cluster, and with the next version"}
"""What only whoever runs a cluster can do."""


PROGRAMS = {"argocd", "aws", "flux", "gcloud", "helm", "jq", "kubectl", "oc", "tagpin"}
"""What somebody who runs a cluster has at hand."""


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_commands_are_words_that_a_shell_takes(page: str) -> None:
    shown = re.findall(r"^\$ (.+(?:(?<=[|\\])\n.+)*)$", page, re.MULTILINE)

    for command in shown:
        words = shlex.split(command, comments=True)  # ValueError: a quotation without an end
        assert words[0] in PROGRAMS


def test_no_page_stands_alone() -> None:
    """Another one, or the README, leads to it."""
    everything = {"README.md": (ROOT / "README.md").read_text(), **PAGES}
    led_to = {
        target.rpartition("/")[2]
        for name, text in everything.items()
        for target in re.findall(r"\]\(([\w./-]+\.md)(?:#[^)]*)?\)", text)
        if target != name
    }
    assert set(PAGES) - led_to == set()


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda p: p.name
)
def test_links_lead_somewhere(page: Path) -> None:
    for target, heading in re.findall(
        r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)", page.read_text()
    ):
        led_to = page.parent / target if target else page
        assert led_to.exists(), target
        assert not heading or heading in headings(led_to), f"{target}#{heading}"


def headings(page: Path) -> set[str]:
    """As links name them: https://github.com/github/cmark-gfm has the rule in its own words."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in found}
