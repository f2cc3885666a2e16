"""Rounds of pruning, against an API server that pages, refuses and changes its mind."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from tagpin.cluster.pruning import ATTEMPTS, Pruner
from tagpin.errors import ClusterError

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
GROUP = "/apis/tagpin.dev/v1alpha1"

Object = dict[str, Any]
Answer = Callable[[], web.Response]


def status(code: int, message: str, **details: Any) -> web.Response:
    body = {"kind": "Status", "code": code, "message": message, "details": details}
    return web.json_response(body, status=code)


class RecordApi:
    """An API server with ImagePins and what stands for revisions, all in namespace `shop`.

    `answers` take the place of its own, by method and last part of the path; those of a list
    are used up, one by one.
    """

    def __init__(self) -> None:
        self.records: dict[str, Object] = {}
        self.objects: dict[tuple[str, str], Object] = {}
        self.answers: dict[str, Answer | list[Answer]] = {}
        self.requests: list[str] = []
        self.before_delete: Callable[[], None] = lambda: None

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._answer])
        app.router.add_get(f"{GROUP}/imagepins", self._list)
        app.router.add_delete(f"{GROUP}/namespaces/shop/imagepins/{{name}}", self._delete)
        app.router.add_get("/apis/{group}/v1/namespaces/shop/{plural}/{name}", self._get)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.client = ApiClient(
            Configuration(host=f"http://127.0.0.1:{self._runner.addresses[0][1]}")
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        await self._runner.cleanup()

    def add(
        self,
        name: str,
        *,
        age: float = 60,
        kind: str = "ReplicaSet",
        in_use: bool = False,
        left_behind: bool = False,
    ) -> None:
        """A record, so many minutes old, of a revision of the same name."""
        owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "u"}
        created = NOW - timedelta(minutes=age)
        self.records[name] = {
            "metadata": {
                "namespace": "shop",
                "name": name,
                "uid": f"uid-of-{name}",
                "resourceVersion": f"version-of-{name}",
                "creationTimestamp": created.isoformat().replace("+00:00", "Z"),
                "ownerReferences": [] if left_behind else [owner],
            },
            "spec": {
                "workload": owner,
                "revision": {"kind": kind, "name": name, "hash": name},
                "images": [],
            },
        }
        if in_use:
            plural = f"{kind.lower()}s"
            metadata = {"name": name, "uid": name, "labels": {"pod-template-hash": name}}
            self.objects[plural, name] = {"kind": kind, "metadata": metadata}

    @web.middleware
    async def _answer(self, request: web.Request, handler: Any) -> web.StreamResponse:
        key = f"{request.method} {request.path.rpartition('/')[2]}"
        self.requests.append(key)
        answer = self.answers.get(key)
        if isinstance(answer, list):
            answer = answer.pop(0) if answer else None
        response: web.StreamResponse = answer() if answer else await handler(request)
        return response

    async def _list(self, request: web.Request) -> web.Response:
        names = sorted(self.records)
        start = int(request.query.get("continue", 0))
        end = start + int(request.query["limit"])
        metadata = {"continue": str(end)} if end < len(names) else {}
        items = [self.records[name] for name in names[start:end]]
        return web.json_response({"items": items, "metadata": metadata})

    async def _get(self, request: web.Request) -> web.Response:
        group, plural, name = (request.match_info[key] for key in ("group", "plural", "name"))
        assert group == ("batch" if plural == "jobs" else "apps")
        if found := self.objects.get((plural, name)):
            return web.json_response(found)
        return status(404, f'{plural} "{name}" not found', name=name, kind=plural)

    async def _delete(self, request: web.Request) -> web.Response:
        self.before_delete()
        name = request.match_info["name"]
        found = self.records.get(name)
        if found is None:
            return status(404, "not found", name=name)
        body = await request.json()
        wanted, has = body["preconditions"], found["metadata"]
        if (wanted["uid"], wanted["resourceVersion"]) != (has["uid"], has["resourceVersion"]):
            return status(409, "the precondition is not met", name=name)
        del self.records[name]
        return status(200, "deleted")


@pytest.fixture
async def api() -> AsyncIterator[RecordApi]:
    async with RecordApi() as running:
        yield running


class Watched(Pruner):
    """One that keeps the last, and what it says about itself."""

    def __init__(self, api: RecordApi, *, keep: int = 1, page: int = 100) -> None:
        self.seen: list[int] = []
        self.pruned = 0
        self.failed = 0
        super().__init__(
            api.client,
            keep=keep,
            interval=0.05,
            page=page,
            seen=self.seen.append,
            pruned=self._count_pruned,
            failed=self._count_failed,
            clock=lambda: NOW,
        )

    def _count_pruned(self) -> None:
        self.pruned += 1

    def _count_failed(self) -> None:
        self.failed += 1


class TestRound:
    @pytest.mark.parametrize("kind", ["ReplicaSet", "ControllerRevision", "Job"])
    async def test_what_is_neither_new_nor_in_use_goes(self, kind: str, api: RecordApi) -> None:
        api.add("old", age=90, kind=kind)
        api.add("used", age=80, kind=kind, in_use=True)
        api.add("new", age=70, kind=kind)
        api.add("left", kind=kind, left_behind=True)
        api.add("left-used", kind=kind, left_behind=True, in_use=True)
        pruner = Watched(api)
        assert await pruner.prune() == 2
        assert set(api.records) == {"used", "new", "left-used"}
        assert (pruner.seen, pruner.pruned, pruner.failed) == ([5], 2, 0)

    async def test_for_the_newest_nobody_is_asked(self, api: RecordApi) -> None:
        for number in range(4):
            api.add(f"web-{number}", age=60 - number)
        await Watched(api, keep=4).prune()
        assert api.requests == ["GET imagepins"]

    async def test_an_opted_in_kind_goes_by_number(self, api: RecordApi) -> None:
        for number in range(4):
            api.add(f"web-{number}", age=60 - number, kind="CloneSet")
        await Watched(api, keep=3).prune()
        assert set(api.records) == {"web-1", "web-2", "web-3"}

    async def test_the_list_is_read_to_its_end(self, api: RecordApi) -> None:
        for number in range(7):
            api.add(f"web-{number}", age=60 - number)
        pruner = Watched(api, page=3)
        await pruner.prune()
        assert api.requests[:3] == ["GET imagepins"] * 3
        assert (set(api.records), pruner.seen) == ({"web-6"}, [7])

    async def test_a_list_that_says_nothing_of_its_end_has_ended(self, api: RecordApi) -> None:
        body = {"items": [], "metadata": {"continue": None}}
        api.answers["GET imagepins"] = lambda: web.json_response(body)
        async with asyncio.timeout(5):
            assert await Watched(api).prune() == 0

    async def test_a_list_whose_pages_are_gone_is_begun_again(self, api: RecordApi) -> None:
        for number in range(4):
            api.add(f"web-{number}", age=60 - number)
        expired = lambda: status(410, "the continue parameter is too old")  # noqa: E731
        whole: Any = None
        api.answers["GET imagepins"] = [whole, expired]
        pruner = Watched(api, page=3)
        await pruner.prune()
        assert (set(api.records), pruner.seen) == ({"web-3"}, [4])

    async def test_a_list_that_is_never_complete_deletes_nothing(self, api: RecordApi) -> None:
        api.add("a", left_behind=True)
        api.answers["GET imagepins"] = lambda: status(410, "too old")
        with pytest.raises(ClusterError, match="cannot list ImagePins: too old"):
            await Watched(api).prune()
        assert api.requests == ["GET imagepins"] * ATTEMPTS

    async def test_what_is_no_record_is_seen_and_kept(self, api: RecordApi) -> None:
        api.add("a", left_behind=True)
        api.add("b", left_behind=True)
        del api.records["b"]["spec"]["revision"]
        pruner = Watched(api)
        assert await pruner.prune() == 1
        assert (set(api.records), pruner.seen) == ({"b"}, [2])


class TestDoubt:
    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (lambda: status(404, "page not found"), "page not found"),
            (lambda: status(404, "no such namespace", name="shop"), "no such namespace"),
            (lambda: status(500, "etcd is slow"), "etcd is slow"),
            (lambda: status(429, "not now"), "not now"),
            (lambda: web.Response(text="<html>"), "no object"),
            (lambda: web.json_response({}), "None .unnamed. was not asked for"),
            (lambda: web.json_response([7]), "no object"),
        ],
    )
    async def test_what_cannot_be_read_is_kept_and_ends_the_round(
        self, answer: Answer, message: str, api: RecordApi
    ) -> None:
        api.add("a", left_behind=True, age=60)
        api.add("b", left_behind=True, age=50)
        api.answers["GET a"] = answer
        with pytest.raises(ClusterError, match=message):
            await Watched(api).prune()
        assert set(api.records) == {"a", "b"}

    async def test_a_right_that_is_missing_holds_up_nothing_else(self, api: RecordApi) -> None:
        api.add("a", left_behind=True, age=60)
        api.add("b", left_behind=True, age=50)
        api.answers["GET a"] = lambda: status(403, "replicasets is forbidden")
        pruner = Watched(api)
        with pytest.raises(ClusterError, match="replicasets is forbidden"):
            await pruner.prune()
        assert (set(api.records), pruner.pruned) == ({"a"}, 1)

    @pytest.mark.parametrize("answer", [web.json_response, lambda: web.Response(text="<html>")])
    async def test_a_list_that_is_none_is_an_error(self, answer: Answer, api: RecordApi) -> None:
        api.answers["GET imagepins"] = answer
        with pytest.raises(ClusterError, match="cannot list ImagePins"):
            await Watched(api).prune()

    @pytest.mark.parametrize("field", ["uid", "resourceVersion"])
    async def test_a_record_that_changed_meanwhile_stays(self, field: str, api: RecordApi) -> None:
        api.add("a", left_behind=True)

        def change() -> None:
            api.records["a"]["metadata"][field] = "other"

        api.before_delete = change
        pruner = Watched(api)
        assert await pruner.prune() == 0
        assert (set(api.records), pruner.pruned) == ({"a"}, 0)

    async def test_a_record_that_is_gone_already_is_no_error(self, api: RecordApi) -> None:
        api.add("a", left_behind=True)
        api.before_delete = api.records.clear
        pruner = Watched(api)
        assert await pruner.prune() == 0
        assert pruner.pruned == 0

    async def test_a_refused_delete_ends_the_round(self, api: RecordApi) -> None:
        api.add("a", left_behind=True)
        api.answers["DELETE a"] = lambda: status(500, "etcd is slow")
        with pytest.raises(ClusterError, match="cannot delete ImagePin shop/a: etcd is slow"):
            await Watched(api).prune()


class TestRounds:
    async def test_they_go_on_whatever_fails(
        self, api: RecordApi, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        api.add("a", left_behind=True)
        api.answers["GET imagepins"] = [lambda: status(503, "come back later")] * 2
        pruner = Watched(api)
        running = asyncio.create_task(pruner.run())
        async with asyncio.timeout(5):
            while len(pruner.seen) < 2:  # noqa: ASYNC110 - nothing signals what is waited for
                await asyncio.sleep(0.005)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (pruner.failed, pruner.pruned) == (2, 1)
        assert pruner.seen == [1, 0, 0], "the next leader counts them"
        failure = "not all ImagePins could be pruned: cannot list ImagePins: come back later"
        told = [(record.levelname, record.getMessage()) for record in caplog.records]
        assert told[:2] == [("WARNING", failure)] * 2
        (round_that_deleted,) = told[2:]
        assert round_that_deleted[1].startswith("pruned 1 ImagePins in ")

    async def test_what_was_deleted_is_told_where_the_round_fails(
        self, api: RecordApi, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "tagpin")
        api.add("a", left_behind=True, age=60)
        api.add("b", left_behind=True, age=50)
        api.answers["GET b"] = lambda: status(500, "etcd is slow")
        with pytest.raises(ClusterError):
            await Watched(api).prune()
        told = [record.getMessage() for record in caplog.records if record.name.startswith("tag")]
        assert told[0] == "pruned ImagePin shop/a"
        assert told[1].startswith("pruned 1 ImagePins in ")
