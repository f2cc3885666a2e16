"""One line per decision, in JSON or for people."""

import json
import logging
from typing import Any

import pytest

from fakes.clock import FakeClock
from tagpin.app.logs import MAX_ALIKE, PERIOD, Bounded, JsonLines, Text, log_decision
from tagpin.errors import Reason
from tagpin.pins import Failure
from tagpin.policy import Mode
from tagpin.revision import Revision
from tagpin.verdict import Admission, Result, Standing, Verdict
from tagpin.workload import Owner

POD: dict[str, Any] = {
    "metadata": {
        "generateName": "web-1-",
        "labels": {"pod-template-hash": "1"},
        "ownerReferences": [
            {
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "name": "web-1",
                "uid": "u",
                "controller": True,
            }
        ],
    }
}
ADMISSION = Admission(
    mode=Mode.ENFORCE, operation="CREATE", namespace="shop", pod=POD, dry_run=True
)
REFUSED = Verdict(
    Result.REFUSED, {"app": Failure("a:1", Reason.TLS, "a.test has no valid certificate")}
)


WEB = Owner("apps/v1", "Deployment", "web", "uid-web")
REVISION = Revision("shop", WEB, "ReplicaSet", "web-1", "1")


def record(
    caplog: pytest.LogCaptureFixture, verdict: Verdict = REFUSED, admission: Admission = ADMISSION
) -> logging.LogRecord:
    with caplog.at_level(logging.INFO, logger="tagpin.decisions"):
        log_decision(admission, verdict, 0.0123)
    (only,) = caplog.records
    return only


def test_a_decision_is_one_line_of_json(caplog: pytest.LogCaptureFixture) -> None:
    line = JsonLines().format(record(caplog))

    assert "\n" not in line
    fields = json.loads(line)
    assert fields.pop("time").endswith("+00:00")
    assert fields == {
        "level": "warning",
        "logger": "tagpin.decisions",
        "message": "pod refused",
        "mode": "enforce",
        "operation": "create",
        "namespace": "shop",
        "pod": "web-1-",
        "workload": "ReplicaSet/web-1",
        "result": "refused",
        "dry_run": True,
        "pins": {"app": {"image": "a:1", "reason": "tls"}},
        "failures": {"app": "a.test has no valid certificate"},
        "milliseconds": 12.3,
    }


@pytest.mark.parametrize(
    ("standing", "level", "told"),
    [
        (
            Standing(REVISION, is_recorded=True),
            "info",
            {"workload": "Deployment/web", "revision": REVISION.record_name},
        ),
        (
            Standing(REVISION, unrecorded="the quota is used up", is_fault=True),
            "warning",
            {
                "workload": "Deployment/web",
                "revision": REVISION.record_name,
                "unrecorded": "the quota is used up",
            },
        ),
        (
            Standing(REVISION, unrecorded="the namespace is going away"),
            "info",
            {
                "workload": "Deployment/web",
                "revision": REVISION.record_name,
                "unrecorded": "the namespace is going away",
            },
        ),
        (
            Standing(unrecorded="the ReplicaSet is another one"),
            "info",
            {"workload": "ReplicaSet/web-1", "unrecorded": "the ReplicaSet is another one"},
        ),
        (Standing(), "info", {"workload": "ReplicaSet/web-1"}),
    ],
    ids=["recorded", "a fault", "going away", "unproven", "no revision"],
)
def test_a_line_says_how_the_pod_stands_to_the_ledger(
    caplog: pytest.LogCaptureFixture, standing: Standing, level: str, told: dict[str, str]
) -> None:
    verdict = Verdict(Result.PINNED, standing=standing)

    fields = json.loads(JsonLines().format(record(caplog, verdict)))

    assert fields["level"] == level
    about = ("workload", "revision", "unrecorded")
    assert {key: value for key, value in fields.items() if key in about} == told


def test_a_pod_of_nobody_has_no_workload(caplog: pytest.LogCaptureFixture) -> None:
    admission = Admission(mode=Mode.PIN, operation="CREATE", namespace="shop", pod={})

    fields = json.loads(JsonLines().format(record(caplog, Verdict(Result.PINNED), admission)))

    assert not {"workload", "revision", "unrecorded", "dry_run"} & set(fields)


def test_a_person_reads_the_same_on_one_line(caplog: pytest.LogCaptureFixture) -> None:
    line = Text().format(record(caplog))

    assert "WARNING pod refused" in line
    assert "namespace='shop'" in line
    assert "\n" not in line


def test_a_pod_of_many_long_images_is_no_long_line(caplog: pytest.LogCaptureFixture) -> None:
    pins = {f"c{number}": Failure("x" * 10_000, Reason.TLS, "no TLS") for number in range(1000)}
    with caplog.at_level(logging.INFO, logger="tagpin.decisions"):
        log_decision(ADMISSION, Verdict(Result.REFUSED, pins), 0)

    line = JsonLines().format(caplog.records[0])

    assert len(line) < 50_000
    assert json.loads(line)["more_pins"] == 950


def test_names_that_nobody_has_checked_make_no_long_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    long = "x" * 100_000
    owner = {"kind": long, "name": long, "controller": True}
    admission = Admission(
        mode=Mode.PIN,
        operation="CREATE",
        namespace=long,
        pod={"metadata": {"name": long, "ownerReferences": [owner]}},
    )
    verdict = Verdict(Result.UNPINNED, {long: Failure("a:1", Reason.TLS, "no TLS")})

    assert len(JsonLines().format(record(caplog, verdict, admission))) < 3000


def test_a_traceback_stays_with_its_line() -> None:
    error = ZeroDivisionError("a fault")
    info = (type(error), error, None)
    failed = logging.LogRecord("tagpin", logging.ERROR, "f.py", 1, "a decision failed", None, info)

    assert "ZeroDivisionError: a fault" in json.loads(JsonLines().format(failed))["traceback"]
    assert "ZeroDivisionError: a fault" in Text().format(failed)


def written(bounded: Bounded, *lines: int, level: int = logging.WARNING) -> list[Any]:
    """What is written of a warning from each of these lines of the code: its `left_out`."""
    records = [
        logging.LogRecord("tagpin.x", level, "x.py", line, "x", None, None) for line in lines
    ]
    return [getattr(each, "left_out", 0) for each in records if bounded.filter(each)]


def test_a_place_that_warns_without_end_does_not_fill_the_log() -> None:
    clock = FakeClock()
    bounded = Bounded(clock)

    assert written(bounded, *[1] * 1000) == [0] * MAX_ALIKE
    assert written(bounded, 2) == [0]

    clock.advance(PERIOD)
    assert written(bounded, 1, 1) == [1000 - MAX_ALIKE, 0]


@pytest.mark.parametrize(
    ("level", "count"),
    [(logging.ERROR, MAX_ALIKE), (logging.INFO, MAX_ALIKE), (logging.DEBUG, 1000)],
)
def test_only_what_is_said_at_debug_is_not_bounded(level: int, count: int) -> None:
    assert len(written(Bounded(), *[1] * 1000, level=level)) == count


def test_every_decision_has_its_line_however_many_there_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bounded = Bounded(FakeClock())
    caplog.handler.addFilter(bounded)
    with caplog.at_level(logging.INFO, logger="tagpin.decisions"):
        for _ in range(MAX_ALIKE + 50):
            log_decision(ADMISSION, REFUSED, 0.01)
    caplog.handler.removeFilter(bounded)

    assert [each.levelname for each in caplog.records] == ["WARNING"] * (MAX_ALIKE + 50)
