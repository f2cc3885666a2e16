"""Events on workloads, written into a real API server."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cluster.controlplane import ControlPlane
from fakes.clock import FakeClock
from tagpin.cluster.api import connect, disconnect
from tagpin.cluster.events import (
    MAX_NOTE,
    MAX_PER_NAMESPACE,
    MAX_WAITING,
    QUIET,
    EventRecorder,
    Fate,
)
from tagpin.policy import Mode
from tagpin.verdict import Admission, Result, Verdict

NUMBERS = itertools.count()
OWNER = {
    "apiVersion": "apps/v1",
    "kind": "ReplicaSet",
    "name": "web-1",
    "uid": "d77bbbd2-0dfa-422d-ad58-922ab0807afb",
    "controller": True,
}


def admission(namespace: str, *, dry_run: bool = False) -> Admission:
    pod = {"metadata": {"generateName": "web-1-", "ownerReferences": [OWNER]}}
    return Admission(
        mode=Mode.PIN, operation="CREATE", namespace=namespace, pod=pod, dry_run=dry_run
    )


def verdict(*notices: str) -> Verdict:
    return Verdict(Result.UNPINNED, notices=notices)


class Recording:
    """A recorder at work, and what has become of its Events."""

    recorder: EventRecorder

    def __init__(self, control_plane: ControlPlane, namespace: str, clock: FakeClock) -> None:
        self.namespace = namespace
        self.clock = clock
        self.fates = Counter[Fate]()
        self._control_plane = control_plane

    def observe(self, fate: Fate) -> None:
        self.fates[fate] += 1

    def record(self, verdict: Verdict, *, dry_run: bool = False) -> None:
        self.recorder.record(admission(self.namespace, dry_run=dry_run), verdict, 0)

    def events(self) -> list[dict[str, Any]]:
        answer = self._control_plane.kubectl("get", "events", "-n", self.namespace, "-o", "json")
        items: list[dict[str, Any]] = json.loads(answer.stdout)["items"]
        return items

    async def until(self, count: int) -> list[dict[str, Any]]:
        async with asyncio.timeout(10):
            while len(events := await asyncio.to_thread(self.events)) < count:  # noqa: ASYNC110 - it is told by polling
                await asyncio.sleep(0.05)
        return events


@asynccontextmanager
async def at_work(control_plane: ControlPlane, namespace: str) -> AsyncIterator[Recording]:
    clock = FakeClock()
    recording = Recording(control_plane, namespace, clock)
    client = await connect(control_plane.admin)
    recording.recorder = EventRecorder(
        client, instance="tagpin-test", observe=recording.observe, clock=clock
    )
    writing = asyncio.create_task(recording.recorder.run())
    try:
        yield recording
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await disconnect(client)


@pytest.fixture
async def recording(control_plane: ControlPlane) -> AsyncIterator[Recording]:
    namespace = f"events-{next(NUMBERS)}"
    control_plane.kubectl("create", "namespace", namespace)
    async with at_work(control_plane, namespace) as recording:
        yield recording
    control_plane.kubectl("delete", "namespace", namespace, "--wait=false")


async def test_a_notice_becomes_a_warning_on_the_pods_controller(recording: Recording) -> None:
    recording.record(verdict("app:1 does not exist"))

    (event,) = await recording.until(1)
    assert (event["type"], event["reason"]) == ("Warning", "ImageNotPinned")
    assert event["message"] == "app:1 does not exist"
    assert event["involvedObject"] == {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": "web-1",
        "uid": OWNER["uid"],
        "namespace": recording.namespace,
    }
    assert event["source"] == {"component": "tagpin", "host": "tagpin-test"}


async def test_the_same_notice_is_not_repeated_until_it_is_old(recording: Recording) -> None:
    for _ in range(3):
        recording.record(verdict("app:1 does not exist"))
    recording.record(verdict("app:2 does not exist"))
    assert len(await recording.until(2)) == 2

    recording.clock.advance(QUIET + 1)
    recording.record(verdict("app:1 does not exist"))

    messages = [event["message"] for event in await recording.until(3)]
    assert sorted(messages) == ["app:1 does not exist"] * 2 + ["app:2 does not exist"]


async def test_one_namespace_cannot_flood_the_api(recording: Recording) -> None:
    for number in range(MAX_PER_NAMESPACE + 20):
        recording.record(verdict(f"app:{number} does not exist"))

    assert len(await recording.until(MAX_PER_NAMESPACE)) == MAX_PER_NAMESPACE
    assert recording.fates == {Fate.WRITTEN: MAX_PER_NAMESPACE, Fate.LIMITED: 20}


async def test_a_dry_run_writes_nothing(recording: Recording) -> None:
    recording.record(verdict("a dry run"), dry_run=True)
    recording.record(verdict("the real thing"))

    (event,) = await recording.until(1)
    assert event["message"] == "the real thing"


async def test_an_event_that_cannot_be_written_holds_up_no_other(recording: Recording) -> None:
    recording.recorder.record(admission("a-namespace-that-is-gone"), verdict("lost"), 0)
    recording.record(verdict("x" * 2 * MAX_NOTE))

    (event,) = await recording.until(1)
    assert len(event["message"]) == MAX_NOTE
    assert recording.fates == {Fate.GONE: 1, Fate.WRITTEN: 1}


async def test_of_events_that_wait_too_many_are_not_written(recording: Recording) -> None:
    """A namespace may have a hundred at once, so it takes several."""
    for number in range(MAX_WAITING + 20):
        namespace = f"{recording.namespace}-{number // MAX_PER_NAMESPACE}"
        recording.recorder.record(admission(namespace), verdict(f"app:{number}"), 0)

    assert recording.fates == {Fate.CROWDED: 20}


async def test_an_event_that_the_api_refuses_is_counted_as_that(
    control_plane: ControlPlane, recording: Recording
) -> None:
    stranger = await connect(control_plane.kubeconfig("nobody"))
    recorder = EventRecorder(stranger, instance="tagpin-test", observe=recording.observe)
    writing = asyncio.create_task(recorder.run())

    recorder.record(admission(recording.namespace), verdict("app:1 does not exist"), 0)

    async with asyncio.timeout(10):
        while not recording.fates:  # noqa: ASYNC110 - it is told by a counter
            await asyncio.sleep(0.02)
    assert recording.fates == {Fate.FAILED: 1}
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await disconnect(stranger)
