"""What an Event says, and on whom, as an API server receives it."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from tagpin.cluster.api import disconnect
from tagpin.cluster.events import EventRecorder
from tagpin.policy import Mode
from tagpin.revision import Revision
from tagpin.verdict import Admission, Result, Standing, Verdict
from tagpin.workload import Owner

WEB = Owner("apps/v1", "Deployment", "web", "uid-web")
REPLICA_SET = Owner("apps/v1", "ReplicaSet", "web-5d4f", "uid-rs")
REVISION = Revision("shop", WEB, "ReplicaSet", "web-5d4f", "5d4f")
POD: dict[str, Any] = {
    "metadata": {
        "name": "web-5d4f-x",
        "ownerReferences": [{**REPLICA_SET.to_reference(), "controller": True}],
    }
}
FAULT = Standing(REVISION, unrecorded="the quota is used up", is_fault=True)


class Api:
    """An API server that takes Events, and the recorder that writes them."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[Any] = asyncio.Queue()
        self.recorder: EventRecorder

    async def take(self, request: web.Request) -> web.Response:
        event = await request.json()
        await self.received.put(event)
        return web.json_response(event, status=201)

    def record(self, verdict: Verdict, pod: Any = POD, **fields: Any) -> None:
        admission = Admission(
            mode=Mode.PIN, operation="CREATE", namespace="shop", pod=pod, **fields
        )
        self.recorder.record(admission, verdict, 0)

    async def next(self) -> Any:
        async with asyncio.timeout(5):
            return await self.received.get()


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    api, app = Api(), web.Application()
    app.router.add_post("/api/v1/namespaces/shop/events", api.take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    client = ApiClient(Configuration(host=f"http://{host}:{port}"))
    api.recorder = EventRecorder(client, instance="tagpin-test")
    writing = asyncio.create_task(api.recorder.run())
    try:
        yield api
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await disconnect(client)
        await runner.cleanup()


def involved(owner: Owner) -> dict[str, str]:
    return {**owner.to_reference(), "namespace": "shop"}


@pytest.mark.parametrize("recorded", [True, False])
async def test_a_notice_is_told_of_the_revisions_workload(api: Api, *, recorded: bool) -> None:
    """People look at the Deployment, not at its ReplicaSets."""
    standing = Standing(REVISION, is_recorded=recorded)

    api.record(Verdict(Result.UNPINNED, notices=("app:1 does not exist",), standing=standing))

    event = await api.next()
    assert (event["type"], event["reason"]) == ("Warning", "ImageNotPinned")
    assert event["involvedObject"] == involved(WEB)


@pytest.mark.parametrize("standing", [Standing(), Standing(unrecorded="it is another one")])
async def test_without_a_proven_revision_it_is_told_of_the_pods_controller(
    api: Api, standing: Standing
) -> None:
    """Nobody has checked what is above it."""
    api.record(Verdict(Result.UNPINNED, notices=("app:1 does not exist",), standing=standing))

    assert (await api.next())["involvedObject"] == involved(REPLICA_SET)


async def test_without_a_controller_it_is_told_of_the_pod(api: Api) -> None:
    pod = {"metadata": {"name": "alone"}}

    api.record(Verdict(Result.UNPINNED, notices=("app:1 does not exist",)), pod)

    assert (await api.next())["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": "alone",
        "namespace": "shop",
    }


async def test_a_pin_that_could_not_be_recorded_is_a_warning_of_its_own(api: Api) -> None:
    api.record(Verdict(Result.UNPINNED, notices=("app:1 does not exist",), standing=FAULT))

    first, second = await api.next(), await api.next()

    assert first["reason"] == "ImageNotPinned"
    assert (second["type"], second["reason"]) == ("Warning", "ImageNotRecorded")
    assert second["message"] == "the quota is used up: the next pod may get another digest"
    assert second["involvedObject"] == involved(WEB)


@pytest.mark.parametrize(
    ("standing", "dry_run"),
    [
        (Standing(REVISION, unrecorded="the namespace is going away"), False),
        (Standing(unrecorded="it is another one"), False),
        (Standing(REVISION, is_recorded=True), False),
        (FAULT, True),
    ],
)
async def test_what_is_nobodys_fault_and_what_is_only_tried_is_not_told(
    api: Api, standing: Standing, *, dry_run: bool
) -> None:
    api.record(Verdict(Result.PINNED, standing=standing), dry_run=dry_run)
    api.record(Verdict(Result.UNPINNED, notices=("the first that is told",)))

    assert (await api.next())["message"] == "the first that is told"


async def test_a_workload_whose_pods_cannot_be_recorded_is_told_once(api: Api) -> None:
    for _ in range(3):
        api.record(Verdict(Result.PINNED, standing=FAULT))
    api.record(Verdict(Result.UNPINNED, notices=("the second that is told",)))

    assert (await api.next())["reason"] == "ImageNotRecorded"
    assert (await api.next())["message"] == "the second that is told"


async def test_an_event_tells_its_time_in_whole_seconds_as_the_api_does(api: Api) -> None:
    before = datetime.now(UTC).replace(microsecond=0)

    api.record(Verdict(Result.UNPINNED, notices=("app:1 does not exist",)))

    event = await api.next()
    assert event["firstTimestamp"] == event["lastTimestamp"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", event["firstTimestamp"])
    assert before <= datetime.fromisoformat(event["firstTimestamp"]) <= datetime.now(UTC)


async def test_an_event_says_who_tells_it(api: Api) -> None:
    api.record(Verdict(Result.UNPINNED, notices=("app:1 does not exist",)))

    event = await api.next()
    assert event["metadata"] == {"generateName": "tagpin-", "namespace": "shop"}
    assert event["source"] == {"component": "tagpin", "host": "tagpin-test"}
    assert event["reportingComponent"] == "tagpin.dev/webhook"
    assert (event["reportingInstance"], event["count"]) == ("tagpin-test", 1)
