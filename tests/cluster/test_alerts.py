"""Each alert fires when it should, and not before: promtool says so.

A row has series, in promtool's notation, with which an alert fires, and others that are like them
but for what matters. What promtool must find then is the alert's text as people will read it.
https://prometheus.io/docs/prometheus/latest/configuration/unit_testing_rules/
"""

import itertools
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.programs import executable
from cluster.requirement import require_programs
from monitoring import ALERTS, RULES

LONG = 135
"""Minutes for which the series go on."""
DAYS = 86400

Series = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Row:
    """With `fires`, the alert fires at the minute `at`, and not at `too_early`."""

    fires: Series
    """Series → values: a number that stays, or `+1` for a counter that grows each minute."""
    spares: tuple[Series, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    value: str = ""
    """As the text has it."""
    at: int = 120
    too_early: int = 0


def unpinned(mode: str, reason: str) -> str:
    return f'tagpin_images_unpinned_total{{mode="{mode}",reason="{reason}"}}'


def calls(metric: str, name: str, **labels: str) -> str:
    more = "".join(f',{label}="{value}"' for label, value in labels.items())
    return f'apiserver_admission_webhook_{metric}{{name="{name}"{more}}}'


def waits(name: str, seconds: float) -> Series:
    """A hundred calls a minute, two of which take longer than so many seconds."""
    metric = "admission_duration_seconds_bucket"
    return {
        calls(metric, name, le=le): "+98" if le != "+Inf" and float(le) <= seconds else "+100"
        for le in ("0.1", "0.5", "1", "2.5", "10", "+Inf")
    }


def answers(registry: str, **codes: str) -> Series:
    metric = "tagpin_registry_requests_total"
    return {
        f'{metric}{{registry="{registry}",method="HEAD",code="{code.removeprefix("_")}"}}': growth
        for code, growth in codes.items()
    }


def asked(code: str) -> str:
    labels = f'verb="get",resource="secrets",code="{code}"'
    return f"tagpin_kubernetes_requests_total{{{labels}}}"


def on(metric: str, pod: str = "a") -> str:
    return f'{metric}{{pod="{pod}"}}'


EXPIRY = on("tagpin_certificate_expiry_timestamp_seconds")
CA_EXPIRY = on("tagpin_ca_certificate_expiry_timestamp_seconds")
MEMORY, LIMIT = on("process_resident_memory_bytes"), on("tagpin_memory_limit_bytes")
ENFORCE = "enforce.tagpin.dev"

ROWS: dict[str, Row] = {
    "TagpinDown": Row(
        {on("tagpin_ready"): "0"},
        ({on("tagpin_ready"): "1", on("tagpin_ready", "b"): "0"},),
        at=2,
        too_early=1,
    ),
    "TagpinNotRedundant": Row(
        {on("tagpin_ready"): "1", on("tagpin_ready", "b"): "0"},
        ({on("tagpin_ready"): "1", on("tagpin_ready", "b"): "1"},),
        at=15,
        too_early=14,
    ),
    "TagpinCallsFail": Row(
        {calls("rejection_count", ENFORCE, error_type="calling_webhook_error"): "+1"},
        (
            {calls("rejection_count", ENFORCE, error_type="no_error"): "+1"},
            {calls("rejection_count", "a.example.com", error_type="calling_webhook_error"): "+1"},
        ),
        {"name": ENFORCE},
        "5",
        too_early=2,
    ),
    "TagpinFailsOpen": Row(
        {calls("fail_open_count", "pin.tagpin.dev"): "+1"},
        ({calls("fail_open_count", "pin.tagpin.dev.example.com"): "+1"},),
        {"name": "pin.tagpin.dev"},
        "5",
        too_early=2,
    ),
    "TagpinSlow": Row(
        waits(ENFORCE, 2.5), (waits(ENFORCE, 0.5),), {"name": ENFORCE}, "6.3", too_early=5
    ),
    "TagpinRefusesPods": Row(
        {unpinned("enforce", "timeout"): "+1"},
        ({unpinned("enforce", "not_found"): "+1", unpinned("pin", "timeout"): "+1"},),
        {"reason": "timeout"},
        "5",
        too_early=5,
    ),
    "TagpinLeavesPodsUnpinned": Row(
        {unpinned("pin", "tls"): "+1"},
        ({unpinned("pin", "unauthorized"): "+1", unpinned("audit", "tls"): "+1"},),
        {"reason": "tls"},
        "15",
        too_early=5,
    ),
    "TagpinFaults": Row(
        {'tagpin_faults_total{mode="pin"}': "+1"},
        ({'tagpin_faults_total{mode="pin"}': "3"},),
        {"mode": "pin"},
        "15",
    ),
    "TagpinLate": Row(
        {'tagpin_admissions_late_total{mode="enforce",cause="crowded"}': "+1"},
        ({'tagpin_admissions_late_total{mode="enforce",cause="crowded"}': "3"},),
        {"mode": "enforce", "cause": "crowded"},
        "10",
        too_early=5,
    ),
    "TagpinCertificateExpires": Row(
        {EXPIRY: f"{2 * 3600 + 13 * DAYS}"},
        ({EXPIRY: f"{2 * 3600 + 15 * DAYS}"}, {EXPIRY: "0"}),
        {},
        "13d 0h 0m 0s",
        too_early=59,
    ),
    "TagpinCAExpires": Row(
        {CA_EXPIRY: f"{2 * 3600 + 29 * DAYS}"},
        ({CA_EXPIRY: f"{3 * 3600 + 30 * DAYS}"}, {CA_EXPIRY: "0"}),
        {},
        "29d 0h 0m 0s",
        too_early=59,
    ),
    "TagpinCABundleStale": Row(
        {on("tagpin_ca_bundle_is_current"): "0"},
        ({on("tagpin_ca_bundle_is_current"): "1"},),
        {"pod": "a"},
        at=10,
        too_early=9,
    ),
    "TagpinKubernetesCallsFail": Row(
        {asked("429"): "+1"},
        ({asked("404"): "+9", asked("timeout"): "+0.5"},),
        {"resource": "secrets", "code": "429"},
        "10",
        too_early=5,
    ),
    "TagpinRegistryFails": Row(
        answers("docker.io", _429="+1", _200="+2"),
        (answers("docker.io", _429="+1", _404="+4"), answers("other", unreachable="+1")),
        {"registry": "docker.io"},
        "33.33%",
        too_early=10,
    ),
    "TagpinCircuitsOpen": Row(
        {on("tagpin_registry_circuits_open"): "2"},
        ({on("tagpin_registry_circuits_open"): "0"},),
        {},
        "2",
        at=15,
        too_early=14,
    ),
    "TagpinCredentialsFail": Row(
        {'tagpin_credentials_failed_total{provider="ecr"}': "+1"},
        ({'tagpin_credentials_failed_total{provider="ecr"}': "3"},),
        {"provider": "ecr"},
        "15",
        too_early=10,
    ),
    "TagpinFileBroken": Row(
        {on("tagpin_client_ca_file_broken"): "1"},
        ({on("tagpin_client_ca_file_broken"): "0", on("tagpin_credentials_file_broken"): "0"},),
        {"pod": "a"},
        at=10,
        too_early=9,
    ),
    "TagpinPodsUnrecorded": Row(
        {'tagpin_pods_unrecorded_total{mode="pin"}': "+1"},
        ({'tagpin_pods_unrecorded_total{mode="pin"}': "3"},),
        {"mode": "pin"},
        "15",
        too_early=5,
    ),
    "TagpinPodsUnproven": Row(
        {
            'tagpin_pods_unproven_total{mode="pin"}': "+3",
            'tagpin_admissions_total{mode="pin"}': "+4",
        },
        (
            {
                'tagpin_pods_unproven_total{mode="pin"}': "+1",
                'tagpin_admissions_total{mode="pin"}': "+4",
            },
            {
                'tagpin_pods_unproven_total{mode="pin"}': "+0.1",
                'tagpin_admissions_total{mode="pin"}': "+0.1",
            },
        ),
        {},
        "75%",
        too_early=15,
    ),
    "TagpinEventsDropped": Row(
        {'tagpin_events_total{result="failed"}': "+1"},
        (
            {'tagpin_events_total{result="limited"}': "+9"},
            {'tagpin_events_total{result="failed"}': "+0.5"},
        ),
        {"result": "failed"},
        "15",
        too_early=15,
    ),
    "TagpinNoLeader": Row(
        {on("tagpin_leader"): "0", on("tagpin_leader", "b"): "0"},
        ({on("tagpin_leader"): "0", on("tagpin_leader", "b"): "1"},),
        at=15,
        too_early=14,
    ),
    "TagpinPruningFails": Row(
        {on("tagpin_prunings_failed_total"): "+0.1"},
        ({on("tagpin_prunings_failed_total"): "+0.05"},),
        {},
        "6",
        too_early=15,
    ),
    "TagpinMemory": Row(
        {MEMORY: "90", LIMIT: "100"},
        ({MEMORY: "80", LIMIT: "100"}, {MEMORY: "90", LIMIT: "1e15"}),
        {"pod": "a"},
        "90%",
        at=15,
        too_early=14,
    ),
    "TagpinStrangers": Row(
        {'tagpin_refused_requests_total{code="400"}': "+9"},
        ({'tagpin_refused_requests_total{code="400"}': "+5"},),
        {"code": "400"},
        "135",
        too_early=5,
    ),
}


def text(template: str, row: Row) -> str:
    """What people read."""
    told = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda match: row.labels[match[1]], template)
    return re.sub(r"\{\{ \$value[^}]*\}\}", row.value, told)


def case(name: str, series: Series, *expected: tuple[int, bool]) -> dict[str, Any]:
    """That an alert fires, or does not, at a minute."""
    row, rule = ROWS[name], ALERTS[name]
    alert = {
        "exp_labels": {**rule["labels"], **row.labels},
        "exp_annotations": {
            key: text(template, row) for key, template in rule["annotations"].items()
        },
    }
    return {
        "name": name,
        "interval": "1m",
        "input_series": [
            {
                "series": each,
                "values": f"0{growth}x{LONG}" if growth.startswith("+") else f"{growth}x{LONG}",
            }
            for each, growth in series.items()
        ],
        "alert_rule_test": [
            {
                "alertname": name,
                "eval_time": f"{minute}m",
                "exp_alerts": [alert] if fires else [],
            }
            for minute, fires in expected
        ],
    }


def promtool(folder: Path, *cases: dict[str, Any], rules: Any = None) -> tuple[bool, str]:
    """Whether all of them are as expected, and what promtool says.

    To each case belong the rules of its name, or `rules`: all of them for all would take minutes.
    """
    require_programs("promtool")
    files: list[Path] = []
    for number, each in enumerate(cases):
        own = rules or {"groups": [{"name": "tagpin", "rules": [ALERTS[each["name"]]]}]}
        (folder / f"rules-{number}.yaml").write_text(yaml.safe_dump(own))
        tests = {"rule_files": [f"rules-{number}.yaml"], "evaluation_interval": "1m"}
        files.append(folder / f"tests-{number}.yaml")
        files[-1].write_text(yaml.safe_dump(tests | {"tests": [each]}))
    done = subprocess.run(
        [executable("promtool"), "test", "rules", *files],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_nothing_amiss_in_the_rules(tmp_path: Path) -> None:
    require_programs("promtool")
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(RULES))
    flags = ("--lint=all", "--lint-fatal")
    command: list[str | Path] = [executable("promtool"), "check", "rules", *flags, file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_a_row_for_every_alert() -> None:
    assert ROWS.keys() == ALERTS.keys()


def test_every_alert_fires_and_says_what_is_the_matter(tmp_path: Path) -> None:
    cases = [
        case(name, row.fires, (row.too_early, False), (row.at, True)) for name, row in ROWS.items()
    ]
    succeeded, output = promtool(tmp_path, *cases)
    assert succeeded, output


def test_no_alert_fires_for_what_is_only_like_it(tmp_path: Path) -> None:
    cases = [
        case(name, series, *((minute, False) for minute in range(0, LONG, 15)))
        for name, row in ROWS.items()
        for series in row.spares
    ]
    succeeded, output = promtool(tmp_path, *cases)
    assert succeeded, output


def test_where_all_is_well_nothing_fires(tmp_path: Path) -> None:
    well: dict[str, str] = {
        on("tagpin_ready"): "1",
        on("tagpin_ready", "b"): "1",
        on("tagpin_leader"): "1",
        EXPIRY: f"{80 * DAYS}",
        CA_EXPIRY: f"{3000 * DAYS}",
        on("tagpin_ca_bundle_is_current"): "1",
        MEMORY: "150",
        LIMIT: "512",
        unpinned("enforce", "not_found"): "+1",
        asked("2xx"): "+100",
        'tagpin_admissions_total{mode="pin"}': "+30",
        **answers("docker.io", _200="+9", _404="+1"),
        **waits(ENFORCE, 0.1),
    }
    nothing = case("TagpinDown", well)
    nothing["alert_rule_test"] = [
        {"alertname": name, "eval_time": f"{minute}m", "exp_alerts": []}
        for name in ALERTS
        for minute in range(0, LONG, 15)
    ]
    succeeded, output = promtool(tmp_path, nothing, rules=RULES)
    assert succeeded, output


@pytest.mark.parametrize("name", ["TagpinSlow"])
def test_promtool_sees_an_alert_that_does_not_fire(tmp_path: Path, name: str) -> None:
    """Or the tests above would say nothing."""
    (spared,) = itertools.islice(ROWS[name].spares, 1)
    assert not promtool(tmp_path, case(name, spared, (120, True)))[0]
    assert not promtool(tmp_path, case(name, ROWS[name].fires, (120, False)))[0]
