"""Alerts, dashboard and the page about them: what can be seen without a running tagpin."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from monitoring import ALERTS, COMPONENT, DASHBOARD, TARGET, expressions, grouped_by, selectors
from tagpin.app.metrics import Metrics

ROOT = Path(__file__).parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
DEPLOYMENT = yaml.safe_load((ROOT / "manifests" / "base" / "deployment.yaml").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
GRAPHS = [panel for panel in PANELS if panel["type"] != "row"]
UNITS = {"short", "none", "s", "bytes", "ops", "reqps", "cps"}


def exported() -> dict[str, set[str]]:
    """Every metric that the process exports, with its labels."""
    registry: CollectorRegistry = Metrics()._registry
    found = {}
    for collector, names in registry._collector_to_names.items():
        labels = set(getattr(collector, "_labelnames", ()))
        if own := getattr(collector, "_name", ""):
            total = f"{own}_total"
            found[total if total in names else own] = labels
    for family in registry.collect():
        if family.name.startswith("process_"):
            found[f"{family.name}_total" if family.type == "counter" else family.name] = set()
    return found


def documented() -> dict[str, set[str]]:
    """The table of metrics: name → labels."""
    row = r"^\| `((?:tagpin|process)_\w+)` \|([^|]*)\| [^|]+ \|$"
    rows = re.findall(row, OPERATIONS, re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


def used() -> set[str]:
    """The metrics that alerts and dashboard read; a histogram by its own name."""
    names = {selector.metric for text in expressions().values() for selector in selectors(text)}
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


# The page


def test_every_metric_is_documented_with_its_labels() -> None:
    assert documented() == exported()


def test_every_metric_can_be_seen_somewhere() -> None:
    plain = {"process_start_time_seconds", "process_max_fds", "process_virtual_memory_bytes"}
    assert set(exported()) - used() == plain


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_has_a_section_that_says_what_to_type(name: str) -> None:
    _, _, after = OPERATIONS.partition(f"\n### {name}\n")
    section = after.partition("\n### ")[0].partition("\n## ")[0]

    assert "```console\n$ " in section
    assert ALERTS[name]["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"


def test_no_section_is_of_an_alert_that_there_is_not() -> None:
    assert set(re.findall(r"^### (Tagpin\w+)$", OPERATIONS, re.MULTILINE)) == set(ALERTS)


# Alerts


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_bad_it_is_what_happens_and_what_to_type(name: str) -> None:
    rule = ALERTS[name]

    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert "kubectl " in rule["annotations"]["description"]
    assert not rule["annotations"]["summary"].endswith(".")


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_tells_only_of_labels_that_it_keeps(name: str) -> None:
    rule = ALERTS[name]
    told = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["description"]))

    assert told <= grouped_by(rule["expr"]) | TARGET
    if "by (" in rule["expr"]:
        assert told <= grouped_by(rule["expr"])


# The dashboard


def test_the_dashboard_reaches_grafana_under_a_name_of_its_own() -> None:
    component = yaml.safe_load((COMPONENT / "kustomization.yaml").read_text())
    (made,) = component["configMapGenerator"]

    assert made["files"] == ["tagpin.json=dashboard.json"]
    assert made["options"]["labels"]["grafana_dashboard"] == "1"
    assert DASHBOARD["uid"] == DASHBOARD["title"] == "tagpin"


def test_panels_have_ids_and_titles_of_their_own() -> None:
    for key in ("id", "title"):
        values = [panel[key] for panel in PANELS]
        assert len(set(values)) == len(values)


def test_a_title_is_a_question() -> None:
    assert all(panel["title"].endswith("?") for panel in PANELS)


def cells(panel: dict[str, Any]) -> Iterator[tuple[int, int]]:
    place = panel["gridPos"]
    assert place["x"] + place["w"] <= 24
    xs, ys = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
    yield from itertools.product(xs, ys)


def test_no_panel_covers_another_and_none_leaves_a_gap() -> None:
    covered = [cell for panel in PANELS for cell in cells(panel)]

    assert len(set(covered)) == len(covered)
    assert len(covered) == 24 * (1 + max(y for _, y in covered))


@pytest.mark.parametrize("panel", GRAPHS, ids=[panel["title"] for panel in GRAPHS])
def test_a_panel_has_a_unit_an_explanation_and_the_data_source_that_is_chosen(
    panel: dict[str, Any],
) -> None:
    (variable,) = DASHBOARD["templating"]["list"]
    chosen = {"type": variable["query"], "uid": f"${{{variable['name']}}}"}

    assert variable["type"] == "datasource"
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["datasource"] == chosen
    assert [each["refId"] for each in panel["targets"]] == ["A", "B", "C"][: len(panel["targets"])]
    for target in panel["targets"]:
        assert target["datasource"] == chosen
        kept = grouped_by(target["expr"]) | TARGET
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept


# What is scraped


def test_every_replica_is_scraped_ready_or_not() -> None:
    monitor = yaml.safe_load((COMPONENT / "podmonitor.yaml").read_text())
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    pod = DEPLOYMENT["spec"]["template"]

    assert monitor["metadata"]["namespace"] == DEPLOYMENT["metadata"]["namespace"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    (container,) = pod["spec"]["containers"]
    assert endpoint["port"] in {port["name"] for port in container["ports"]}
    assert endpoint["path"] == "/metrics"
