"""Which of several replicas is at work, against an API server that has one Lease."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Self

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from tagpin.cluster.election import Election
from tagpin.errors import TagpinError

SHORT = 2.0
"""Seconds of the shortest Lease that can be."""
REPLICA = "X-Replica"


class LeaseApi:
    """An API server that knows one Lease; each replica's requests can be disturbed."""

    def __init__(self) -> None:
        self.exists = True
        self.spec: dict[str, Any] = {}
        self.writes: list[dict[str, Any]] = []
        self.disturbances: dict[str, Callable[[], Awaitable[web.Response]]] = {}
        self._version = 1
        self._port = 0
        self._clients: list[ApiClient] = []

    async def __aenter__(self) -> Self:
        app = web.Application()
        path = "/apis/coordination.k8s.io/v1/namespaces/tagpin-system/leases/tagpin"
        app.router.add_get(path, self._get)
        app.router.add_put(path, self._put)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            await client.close()
        await self._runner.cleanup()

    def client(self, replica: str) -> ApiClient:
        client = ApiClient(Configuration(host=f"http://127.0.0.1:{self._port}"))
        client.set_default_header(REPLICA, replica)
        self._clients.append(client)
        return client

    @property
    def holder(self) -> str | None:
        return self.spec.get("holderIdentity")

    def write(self, **spec: Any) -> None:
        self._version += 1
        self.spec = spec
        self.writes.append(spec)

    async def _get(self, request: web.Request) -> web.Response:
        if disturbance := self.disturbances.get(request.headers[REPLICA]):
            return await disturbance()
        if not self.exists:
            return _status(404, "no such Lease", name="tagpin")
        metadata = {"name": "tagpin", "resourceVersion": str(self._version)}
        return web.json_response({"metadata": metadata, "spec": self.spec})

    async def _put(self, request: web.Request) -> web.Response:
        if disturbance := self.disturbances.get(request.headers[REPLICA]):
            return await disturbance()
        body = await request.json()
        if body["metadata"]["resourceVersion"] != str(self._version):
            return _status(409, "somebody was faster")
        if not all("." in body["spec"].get(key, ".") for key in ("acquireTime", "renewTime")):
            return _status(400, "cannot be handled as a Lease")  # as the real one does
        self.write(**body["spec"])
        return web.json_response(body)


def _status(code: int, message: str, **details: str) -> web.Response:
    body = {"kind": "Status", "code": code, "message": message, "details": details}
    return web.json_response(body, status=code)


async def silence() -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError


class Replica:
    """One that stands for election, and when it was at work (in the loop's time)."""

    def __init__(self, api: LeaseApi, name: str, *, lease: float = SHORT) -> None:
        self.terms: list[tuple[float, float]] = []
        self.fails_with: Exception | None = None
        self.ends = False
        self._began: float | None = None
        self.election = Election(
            api.client(name), lead=self._lead, identity=name, lease_duration=lease, longest_wait=0.1
        )

    async def _lead(self) -> None:
        loop = asyncio.get_running_loop()
        assert self.election.is_leader
        self._began = loop.time()
        try:
            if self.fails_with:
                raise self.fails_with
            while not self.ends:  # noqa: ASYNC110 - nothing signals what is waited for
                await asyncio.sleep(0.01)
        finally:
            await asyncio.sleep(0.05)  # what is under way comes to an end
            self.terms.append((self._began, loop.time()))
            self._began = None

    @property
    def is_at_work(self) -> bool:
        return self._began is not None

    @property
    def count(self) -> int:
        """How often it has begun to work."""
        return len(self.terms) + self.is_at_work


@contextlib.asynccontextmanager
async def standing(replica: Replica) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(replica.election.run())
    try:
        yield task
        assert not task.done() or task.cancelled()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(is_so: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not is_so():  # noqa: ASYNC110 - nothing signals what is waited for
            await asyncio.sleep(0.005)


@pytest.fixture
async def api() -> AsyncIterator[LeaseApi]:
    async with LeaseApi() as running:
        yield running


def told(caplog: pytest.LogCaptureFixture, level: int = logging.ERROR) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


class TestLeading:
    async def test_an_empty_lease_is_taken_at_once(self, api: LeaseApi) -> None:
        replica = Replica(api, "a")
        async with standing(replica):
            await until(lambda: replica.is_at_work, 1)
            assert replica.election.is_leader
            assert (api.holder, api.spec["leaseDurationSeconds"]) == ("a", 2)

    async def test_a_replica_that_was_started_again_goes_on_with_its_lease(
        self, api: LeaseApi, caplog: pytest.LogCaptureFixture
    ) -> None:
        began = "2026-11-24T12:00:00.000000Z"
        api.write(holderIdentity="a", leaseDurationSeconds=2, acquireTime=began, renewTime=began)
        replica = Replica(api, "a")
        async with standing(replica):
            await until(lambda: replica.is_at_work, 1)
            assert api.spec["acquireTime"].startswith("2026-11-24T12:00:00.")
            assert api.spec["renewTime"] > began
        assert told(caplog) == []

    async def test_one_works_for_as_long_as_it_is_there_and_then_the_other(
        self, api: LeaseApi
    ) -> None:
        first, second = Replica(api, "a"), Replica(api, "b")
        async with standing(first) as task:
            await until(lambda: first.is_at_work, 1)
            async with standing(second):
                await asyncio.sleep(SHORT * 1.2)
                assert (first.count, len(first.terms), second.count) == (1, 0, 0)

                task.cancel()
                # The Lease is given back, so that nobody waits for its end.
                await until(lambda: second.is_at_work, SHORT / 2)
        assert first.terms[0][1] < second.terms[0][0]
        assert not first.election.is_leader

    async def test_one_that_is_cut_off_stops_before_the_other_begins(
        self, api: LeaseApi, caplog: pytest.LogCaptureFixture
    ) -> None:
        first, second = Replica(api, "a"), Replica(api, "b")
        async with standing(first), standing(second):
            await until(lambda: first.is_at_work or second.is_at_work, 1)
            if second.is_at_work:
                first, second = second, first
            renewals = len(api.writes)
            await until(lambda: len(api.writes) > renewals)
            api.disturbances[api.holder or ""] = silence

            await until(lambda: second.is_at_work, SHORT + 2)
            assert not first.is_at_work
        stopped, began = first.terms[0][1], second.terms[0][0]
        assert stopped + 0.3 < began, "no margin"
        assert any("was not renewed for 1.3 s" in line for line in told(caplog, logging.WARNING))

    async def test_a_call_that_gets_no_answer_is_made_again_in_time(self, api: LeaseApi) -> None:
        replica = Replica(api, "a")

        async def silence_once() -> web.Response:
            api.disturbances.clear()
            return await silence()

        async with standing(replica):
            await until(lambda: replica.is_at_work, 1)
            api.disturbances["a"] = silence_once
            await until(lambda: not api.disturbances)
            before = len(api.writes)
            await until(lambda: len(api.writes) > before)
            assert replica.terms == []

    async def test_a_lease_that_somebody_else_has_is_not_worked_under(
        self, api: LeaseApi, caplog: pytest.LogCaptureFixture
    ) -> None:
        replica = Replica(api, "a")
        async with standing(replica):
            await until(lambda: replica.is_at_work, 1)
            api.write(**api.spec | {"holderIdentity": "b"})
            await until(lambda: not replica.is_at_work, SHORT / 3)
        assert api.holder == "b"
        assert told(caplog, logging.WARNING) == ["Lease tagpin-system/tagpin has been taken by b"]


class TestWork:
    async def test_work_that_fails_is_begun_again(
        self, api: LeaseApi, caplog: pytest.LogCaptureFixture
    ) -> None:
        replica = Replica(api, "a")
        replica.fails_with = TagpinError("boom")
        async with standing(replica):
            await until(lambda: len(told(caplog)) == 2)
            assert api.holder is None, "another replica might do better"
            replica.fails_with = None
            await until(lambda: replica.is_at_work)
        assert set(told(caplog)) == {"the work of the leader failed, and is tried again"}
        assert "boom" in caplog.text

    async def test_work_that_ends_is_begun_again(
        self, api: LeaseApi, caplog: pytest.LogCaptureFixture
    ) -> None:
        replica = Replica(api, "a")
        replica.ends = True
        async with standing(replica):
            await until(lambda: replica.count == 2)
        assert told(caplog) == []

    @pytest.mark.parametrize("disturbed", [False, True])
    async def test_a_replica_that_stops_waits_for_its_work(
        self, disturbed: bool, api: LeaseApi
    ) -> None:
        before = asyncio.all_tasks()
        replica = Replica(api, "a")
        async with standing(replica) as task:
            await until(lambda: replica.is_at_work, 1)
            if disturbed:
                api.disturbances["a"] = lambda: asyncio.sleep(0, _status(500, "no more"))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(replica.terms) == 1, "it was left behind"
            assert api.holder == ("a" if disturbed else None)
        assert {each for each in asyncio.all_tasks() - before if _is_ours(each)} == set()

    async def test_the_lease_of_another_is_not_given_back(self, api: LeaseApi) -> None:
        replica = Replica(api, "a")
        async with standing(replica):
            await until(lambda: replica.is_at_work, 1)
            api.write(**api.spec | {"holderIdentity": "b"})
        assert api.holder == "b"


def _is_ours(task: "asyncio.Task[Any]") -> bool:
    return "tagpin" in str(task.get_coro()) or "Replica" in str(task.get_coro())


async def nonsense() -> web.Response:
    return web.json_response(None)


async def forbidden() -> web.Response:
    return _status(403, "leases is forbidden", name="tagpin")


async def away() -> web.Response:
    return _status(503, "come back later")


async def missing() -> web.Response:
    return _status(404, "not found", name="tagpin")


class TestTroubles:
    @pytest.mark.parametrize(
        ("disturbance", "message"),
        [
            (missing, "Lease tagpin-system/tagpin is missing: apply tagpin's manifests"),
            (forbidden, "leases is forbidden: apply tagpin's manifests"),
            (away, "cannot hold Lease tagpin-system/tagpin: come back later"),
            (nonsense, "cannot hold Lease tagpin-system/tagpin: AttributeError("),
        ],
    )
    async def test_they_are_told_once_and_waited_out(
        self,
        disturbance: Callable[[], Awaitable[web.Response]],
        message: str,
        api: LeaseApi,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO)
        requests = 0

        async def counted() -> web.Response:
            nonlocal requests
            requests += 1
            return await disturbance()

        replica = Replica(api, "a")
        api.disturbances["a"] = counted
        async with standing(replica):
            await until(lambda: requests == 3)
            assert not replica.election.is_leader
            api.disturbances.clear()
            await until(lambda: replica.is_at_work)
        (told_once,) = told(caplog)
        assert message in told_once
        assert f"solved: {told_once}" in told(caplog, logging.INFO)

    async def test_one_that_begins_later_does_not_create_the_lease(
        self, api: LeaseApi, caplog: pytest.LogCaptureFixture
    ) -> None:
        api.exists = False
        replica = Replica(api, "a")
        async with standing(replica):
            await until(lambda: bool(told(caplog)))
            assert api.writes == []
            api.exists = True
            await until(lambda: replica.is_at_work)

    async def test_a_shorter_lease_is_refused(self, api: LeaseApi) -> None:
        with pytest.raises(ValueError, match="renewDeadline must be greater"):
            Replica(api, "a", lease=SHORT / 2)
