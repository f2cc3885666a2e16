"""The alerts and the dashboard of manifests/components/monitoring, and what their queries name."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

COMPONENT = Path(__file__).parents[1] / "manifests" / "components" / "monitoring"
RULES: dict[str, Any] = yaml.safe_load((COMPONENT / "prometheusrule.yaml").read_text())["spec"]
DASHBOARD: dict[str, Any] = json.loads((COMPONENT / "dashboard.json").read_text())
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]
}
TARGET = frozenset({"pod", "namespace", "job", "instance"})
"""Labels that Prometheus adds to whatever it scrapes from a pod."""

_STRING = r'"[^"]*"'
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\{((?:[^}\"]|" + _STRING + r")*)\}")
_MATCHER = re.compile(r"(\w+)\s*(=~|!~|!=|=)\s*\"([^\"]*)\"")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_NAME = re.compile(r"\b([a-zA-Z_:][\w:]*)\b(?!\s*\()")
_WORDS = {"and", "or", "unless", "by", "without", "on", "offset", "bool"}
_UNITS = re.compile(r"\[[^]]*\]|\b[\d.]+[a-z]*\b")


@dataclass(frozen=True, slots=True)
class Matcher:
    """One condition of a selector."""

    label: str
    operator: str
    value: str

    def holds(self, labels: dict[str, str]) -> bool:
        """Whether labels fulfil it, as Prometheus sees it: a missing label is empty."""
        found = labels.get(self.label, "")
        same = (
            bool(re.fullmatch(self.value, found)) if "~" in self.operator else found == self.value
        )
        return same is not self.operator.startswith("!")

    @property
    def named(self) -> list[str]:
        """The values, or patterns, that it names one by one."""
        return self.value.split("|") if "~" in self.operator else [self.value]


@dataclass(frozen=True, slots=True)
class Series:
    """A metric with its labels: one that was scraped."""

    metric: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Selector:
    """What a query reads."""

    metric: str
    matchers: tuple[Matcher, ...] = ()

    def reads(self, scraped: Iterable[Series]) -> list[Series]:
        """Those of the series that it would get."""
        return [
            each
            for each in scraped
            if each.metric == self.metric
            and all(matcher.holds(each.labels) for matcher in self.matchers)
        ]


def expressions() -> dict[str, str]:
    """Every query, by the alert or the panel that it is of."""
    found = {name: rule["expr"] for name, rule in ALERTS.items()}
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            found[f"{panel['title']} {target['refId']}"] = target["expr"].replace(
                "$__rate_interval", "5m"
            )
    return found


def selectors(expression: str) -> Iterator[Selector]:
    """What a query reads, metric by metric."""
    for match in _SELECTOR.finditer(expression):
        matchers = _MATCHER.findall(match[2])
        yield Selector(match[1], tuple(Matcher(*each) for each in matchers))
    rest = _SELECTOR.sub("", expression)
    rest = _UNITS.sub("", _GROUPING.sub("", rest))
    for name in _NAME.findall(rest):
        if name not in _WORDS:
            yield Selector(name)


def grouped_by(expression: str) -> set[str]:
    """The labels that a query keeps or joins by; `le` is of histograms only."""
    groups = (match[1].split(",") for match in _GROUPING.finditer(expression))
    return {label.strip() for group in groups for label in group} - {"le", ""}


def scraped(text: str) -> list[Series]:
    """The series of an exposition.

    The parser calls every counter `…_total`, those of the API server too, which are not.
    """
    names = set(re.findall(r"^([a-zA-Z_:][\w:]*)", text, re.MULTILINE))
    return [
        Series(
            sample.name if sample.name in names else sample.name.removesuffix("_total"),
            dict(sample.labels),
            sample.value,
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


def flaws(expression: str, there_is: Iterable[Series]) -> Iterator[str]:
    """What a query names that is not there: metrics, labels, and values of labels."""
    everything = list(there_is)
    labels = set[str]()
    for selector in selectors(expression):
        of_metric = [each for each in everything if each.metric == selector.metric]
        if not of_metric:
            yield f"no metric {selector.metric}"
            continue
        for matcher in selector.matchers:
            values = {each.labels.get(matcher.label) for each in of_metric} - {None}
            if not values:
                yield f"{selector.metric} has no label {matcher.label}"
                continue
            for pattern in matcher.named:
                if not any(re.fullmatch(pattern, str(value)) for value in values):
                    yield f"{selector.metric}: no {matcher.label} is {pattern}"
        labels |= {label for each in of_metric for label in each.labels}
    for label in grouped_by(expression) - labels - TARGET:
        yield f"no label {label}"
