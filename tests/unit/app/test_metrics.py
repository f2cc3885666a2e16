"""What /metrics tells, and that its labels stay few."""

import asyncio
import math
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tagpin.app.metrics import Metrics, memory_limit
from tagpin.cache import Use
from tagpin.cluster.calls import Call
from tagpin.cluster.events import Fate
from tagpin.cluster.ledger import Write
from tagpin.errors import Reason
from tagpin.pins import Failure, Pin, Source
from tagpin.policy import Mode
from tagpin.reference import Digest
from tagpin.registry.manifest import Oddity
from tagpin.registry.transport import Exchange
from tagpin.revision import Revision
from tagpin.verdict import Admission, Result, Standing, Verdict
from tagpin.workload import Owner

ADMISSION = Admission(mode=Mode.PIN, operation="CREATE", namespace="shop", pod={})
DIGEST = Digest.parse("sha256:" + "1" * 64)


def test_a_decision_is_counted_by_mode_result_source_and_reason() -> None:
    metrics = Metrics()
    pins: dict[str, Pin | Failure] = {
        "app": Pin("app:1", DIGEST, Source.CACHE),
        "old": Failure("old:1", Reason.NOT_FOUND),
    }

    metrics.observe_admission(ADMISSION, Verdict(Result.UNPINNED, pins), 0.002)

    text = metrics.exposition().decode()
    assert 'tagpin_admissions_total{mode="pin",result="unpinned"} 1.0' in text
    assert 'tagpin_images_pinned_total{mode="pin",source="cache"} 1.0' in text
    assert 'tagpin_images_unpinned_total{mode="pin",reason="not_found"} 1.0' in text
    assert 'tagpin_admission_duration_seconds_bucket{le="0.0025",mode="pin"} 1.0' in text


def test_made_up_registries_share_one_label() -> None:
    metrics = Metrics(["corp.test:5000"])

    for name in ("docker.io", "corp.test:5000", *(f"r{number}.test" for number in range(50))):
        metrics.observe_registry(Exchange(name, "HEAD", "200", 0.01))

    text = metrics.exposition().decode()
    counted = re.findall(r'tagpin_registry_requests_total\{.*registry="(.*)"\} (.*)', text)
    assert dict(counted) == {"docker.io": "1.0", "corp.test:5000": "1.0", "other": "50.0"}


def test_what_registries_get_wrong_is_counted_by_registry() -> None:
    metrics = Metrics()

    for name in ("quay.io", "made.up.test", "made.up.too.test"):
        metrics.observe_oddity(name, Oddity.DIGEST_MISMATCH)

    text = metrics.exposition().decode()
    counted = re.findall(r'oddities_total\{oddity="digest_mismatch",registry="(.*)"\} (.*)', text)
    assert dict(counted) == {"quay.io": "1.0", "other": "2.0"}


def test_the_ledger_is_counted_by_how_it_was_read_and_what_became_of_writes() -> None:
    metrics = Metrics()

    for use in (Use.HIT, Use.HIT, Use.MISS):
        metrics.observe_ledger_read(use)
    for result in (*Write, Write.CONFLICT):
        metrics.observe_ledger_write(result)

    text = metrics.exposition().decode()
    reads = re.findall(r'tagpin_ledger_reads_total\{use="(.*)"\} (.*)', text)
    writes = re.findall(r'tagpin_ledger_writes_total\{result="(.*)"\} (.*)', text)
    assert dict(reads) == {"hit": "2.0", "miss": "1.0", "shared": "0.0"}
    assert dict(writes) == {
        "created": "1.0",
        "appended": "1.0",
        "conflict": "2.0",
        "failed": "1.0",
    }


WEB = Owner("apps/v1", "Deployment", "web", "uid-web")
REVISION = Revision("shop", WEB, "ReplicaSet", "web-5d4f", "5d4f")


@pytest.mark.parametrize(
    ("standing", "counted"),
    [
        (Standing(REVISION, unrecorded="the quota is used up", is_fault=True), True),
        (Standing(REVISION, is_recorded=True, unrecorded="no room", is_fault=True), True),
        (Standing(REVISION, unrecorded="the namespace is going away"), False),
        (Standing(unrecorded="the ReplicaSet is another one"), False),
        (Standing(REVISION, is_recorded=True), False),
        (Standing(), False),
    ],
)
def test_a_pod_that_should_be_recorded_and_is_not_is_counted(
    standing: Standing, *, counted: bool
) -> None:
    """What is nobody's fault needs no alert."""
    metrics = Metrics()

    for mode in (Mode.PIN, Mode.ENFORCE, Mode.ENFORCE):
        admission = replace(ADMISSION, mode=mode)
        metrics.observe_admission(admission, Verdict(Result.PINNED, standing=standing), 0.002)

    text = metrics.exposition().decode()
    assert ('tagpin_pods_unrecorded_total{mode="pin"} 1.0' in text) is counted
    assert ('tagpin_pods_unrecorded_total{mode="enforce"} 2.0' in text) is counted


def test_a_pod_that_may_not_speak_for_its_revision_is_counted() -> None:
    metrics = Metrics()
    unproven = Standing(unrecorded="the pods of a ReplicaSet are not created by 'ann'")

    going_away = Standing(REVISION, unrecorded="the namespace is going away")
    for standing in (unproven, going_away, Standing()):
        metrics.observe_admission(ADMISSION, Verdict(Result.PINNED, standing=standing), 0.002)

    counted = f'tagpin_pods_unproven_total{{mode="{ADMISSION.mode.value}"}} 1.0'
    assert counted in metrics.exposition().decode()


@pytest.mark.parametrize("mode", Mode)
def test_what_may_be_counted_is_there_from_the_start(mode: Mode) -> None:
    """Prometheus sees no increase in a series that begins at one."""
    text = Metrics().exposition().decode()

    for reason in Reason:
        assert f'tagpin_images_unpinned_total{{mode="{mode}",reason="{reason}"}} 0.0' in text
    for source in Source:
        assert f'tagpin_images_pinned_total{{mode="{mode}",source="{source}"}} 0.0' in text
    for result in Result:
        assert f'tagpin_admissions_total{{mode="{mode}",result="{result}"}} 0.0' in text
    for name in ("faults", "pods_unrecorded", "pods_unproven"):
        assert f'tagpin_{name}_total{{mode="{mode}"}} 0.0' in text
    for fate in Fate:
        assert f'tagpin_events_total{{result="{fate}"}} 0.0' in text


def test_faults_of_our_own_are_counted_apart_from_refusals() -> None:
    metrics = Metrics()
    faults = (ZeroDivisionError(), KeyError())

    metrics.observe_admission(ADMISSION, Verdict(Result.BROKEN, faults=faults), 0.002)
    metrics.observe_admission(ADMISSION, Verdict(Result.REFUSED), 0.002)

    assert 'tagpin_faults_total{mode="pin"} 2.0' in metrics.exposition().decode()


def test_what_is_asked_of_kubernetes_and_what_becomes_of_events_is_counted() -> None:
    metrics = Metrics()

    metrics.observe_call(Call("get", "secrets", "timeout", 4.0))
    metrics.observe_event(Fate.CROWDED)

    text = metrics.exposition().decode()
    asked = 'tagpin_kubernetes_requests_total{code="timeout",resource="secrets",verb="get"} 1.0'
    assert asked in text
    assert 'tagpin_kubernetes_request_duration_seconds_bucket{le="5.0",verb="get"} 1.0' in text
    assert 'tagpin_kubernetes_request_duration_seconds_bucket{le="2.5",verb="get"} 0.0' in text
    assert 'tagpin_events_total{result="crowded"} 1.0' in text


async def test_the_process_is_measured_too() -> None:
    metrics = Metrics(memory_limit=512 * 2**20)

    text = metrics.exposition().decode()

    assert float(value(text, "tagpin_tasks")) == len(asyncio.all_tasks())
    assert float(value(text, "tagpin_memory_limit_bytes")) == 512 * 2**20
    assert float(value(text, "process_resident_memory_bytes")) > 2**20
    assert float(value(text, "process_open_fds")) > 0


async def test_an_event_loop_that_is_held_up_is_told_of() -> None:
    metrics = Metrics()
    measuring = asyncio.create_task(metrics.measure_delay(period=0.01))
    await asyncio.sleep(0.005)

    time.sleep(0.3)  # noqa: ASYNC251 - what a blocking call does

    await asyncio.sleep(0.05)
    measuring.cancel()
    text = metrics.exposition().decode()
    count, short = (
        float(value(text, f"tagpin_event_loop_delay_seconds_{which}"))
        for which in ("count", 'bucket{le="0.25"}')
    )
    assert count - short == 1


@pytest.mark.parametrize(
    ("content", "limit"), [("536870912\n", 2**29), ("max\n", math.inf), (None, math.inf)]
)
def test_the_memory_limit_is_the_containers(
    tmp_path: Path, content: str | None, limit: float
) -> None:
    file = tmp_path / "memory.max"
    if content is not None:
        file.write_text(content)

    assert memory_limit(file) == limit


def value(text: str, series: str) -> str:
    (found,) = [line for line in text.splitlines() if line.startswith(f"{series} ")]
    return found.rpartition(" ")[2]
