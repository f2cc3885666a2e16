"""The ledger's edge against an API server that keeps objects, and misbehaves when it is told to."""

import asyncio
import contextlib
import copy
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from fakes.clock import FakeClock
from tagpin.cache import Use
from tagpin.certificates import issue_ca, to_pem
from tagpin.cluster.api import MAX_TOLD, disconnect
from tagpin.cluster.ledger import (
    HELD,
    MAX_LIST,
    MAX_SIBLINGS,
    MAX_TRIES,
    MISMATCH,
    ClusterLedger,
    Write,
)
from tagpin.errors import Reason, Unproven, Unrecorded, Unresolvable
from tagpin.imagepin import MAX_PINS, ImagePin
from tagpin.pins import Pin, Source
from tagpin.reference import Digest, Reference
from tagpin.revision import Claim, Proof, Revision, claim, kinds
from tagpin.siblings import running_digests
from tagpin.workload import Owner, images

Object = dict[str, Any]
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Nobody speaks TLS here, and the system's authorities take longer to load than a test.
CA = to_pem(issue_ca(datetime.now(UTC)).chain).decode()

TTL = 60.0
ROOM = 5.0
"""Seconds that a call is given where time is not the point."""

ONES, TWOS = (Digest.parse(f"sha256:{digit * 64}") for digit in "12")
NOW = datetime(2026, 11, 24, 9, 29, 10, tzinfo=UTC)
WEB = Pin("web:1", ONES, Source.REGISTRY, NOW)
SIDECAR = Pin("sidecar:1", TWOS, Source.CACHE, NOW)

REPLICA_SETS = "/apis/apps/v1/namespaces/shop/replicasets"
IMAGE_PINS = "/apis/tagpin.dev/v1alpha1/namespaces/shop/imagepins"
PODS = "/api/v1/namespaces/shop/pods"
DEPLOYMENT = Owner("apps/v1", "Deployment", "web", "uid-of-web")
REVISION = Revision("shop", DEPLOYMENT, "ReplicaSet", "web-abc", "abc")
RECORD = f"{IMAGE_PINS}/{REVISION.record_name}"


class FakeApi:
    """Keeps objects by their path. What `faults` has for "GET imagepins" answers first."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.faults: dict[str, Iterator[Answer]] = {}
        self.asked: list[str] = []
        """Such as "GET imagepins", one by one."""
        self.queries: list[dict[str, str]] = []
        self.bodies: list[Object] = []
        self.client: ApiClient
        self._versions = itertools.count(1)
        self._passing: Callable[[], object] = lambda: None

    def fail(self, what: str, *answers: Answer, forever: bool = False) -> None:
        """Answer such requests so: in turn, or the first one again and again."""
        self.faults[what] = itertools.repeat(answers[0]) if forever else iter(answers)

    def takes(self, clock: FakeClock, seconds: float) -> None:
        """Take so long for every answer."""
        self._passing = lambda: clock.advance(seconds)

    def mend(self) -> None:
        self.faults.clear()

    def store(self, path: str, made: Object) -> None:
        """Keep an object as an API server does."""
        made = copy.deepcopy(made)
        made["metadata"]["resourceVersion"] = str(next(self._versions))
        made["metadata"].setdefault("name", path.rpartition("/")[2])
        self.objects[path] = made

    def store_record(self, *pins: Pin, revision: Revision = REVISION) -> None:
        record = ImagePin(revision, {pin.image: pin for pin in pins})
        self.store(f"{IMAGE_PINS}/{revision.record_name}", record.to_object())

    @property
    def recorded(self) -> dict[str, str]:
        """Reference → digest, as it is stored."""
        images = self.objects[RECORD]["spec"]["images"]
        return {each["reference"]: each["digest"] for each in images}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        parts = request.path.split("/")
        plural = parts[parts.index("namespaces") + 2]
        what = f"{request.method} {plural}"
        self.asked.append(what)
        self._passing()
        self.queries.append(dict(request.query))
        if request.can_read_body:
            self.bodies.append(await request.json())
        if (fault := next(self.faults.get(what, iter(())), None)) is not None:
            return await fault(request)
        return self.really(request, is_list=parts[-1] == plural)

    def really(self, request: web.Request, *, is_list: bool) -> web.Response:
        """Answer as an API server that is well."""
        path, name = request.path, request.path.rpartition("/")[2]
        if request.method == "POST":
            made = self.bodies[-1]
            name = made["metadata"]["name"]
            path = f"{path}/{name}"
            if path in self.objects:
                return status(409, f'"{name}" already exists', name)
            self.store(path, made)
            return web.json_response(self.objects[path], status=201)
        if is_list:
            inside = (made for at, made in self.objects.items() if at.rpartition("/")[0] == path)
            return web.json_response({"items": list(inside)})
        if path not in self.objects:
            return status(404, f'"{name}" not found', name)
        if request.method == "PUT":
            made, before = self.bodies[-1], self.objects[path]
            if made["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"]:
                return status(409, "the object has been modified", name)
            self.store(path, made)
        return web.json_response(self.objects[path])


def status(code: int, message: str, name: str = "", *, cause: str = "") -> web.Response:
    """A Status, as the API server refuses."""
    details: Object = {"name": name} if name else {}
    if cause:
        details["causes"] = [{"reason": cause, "message": message, "field": "metadata.namespace"}]
    body = {"kind": "Status", "code": code, "message": message, "details": details}
    return web.json_response(body, status=code)


def refusing(code: int, message: str = "no", name: str = "", *, cause: str = "") -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return status(code, message, name, cause=cause)

    return answer


def saying(text: str, code: int = 200, kind: str = "application/json") -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(text=text, status=code, content_type=kind)

    return answer


async def silence(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def hang_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


NO_SUCH_KIND = saying("404 page not found\n", 404, "text/plain")
UNREADABLE = {
    "forbidden": refusing(403),
    "unauthorized": refusing(401),
    "too many requests": refusing(429),
    "internal error": refusing(500),
    "a proxy that finds nobody": saying("<html>", 502, "text/html"),
    "a proxy's own page": saying("<html>", 200, "text/html"),
    "no such kind": NO_SUCH_KIND,
    "nothing, but not what": refusing(404),
    "nothing, but of another name": refusing(404, "no", "other"),
    "broken JSON": saying('{"metadata": '),
    "no object": saying("[1]"),
    "no text": saying(""),
    "null": saying("null"),
    "hung up": hang_up,
}
unreadable = pytest.mark.parametrize("answer", UNREADABLE.values(), ids=UNREADABLE.keys())


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    api = FakeApi()
    app = web.Application(client_max_size=1 << 24)
    app.router.add_route("*", "/{path:.*}", api.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    # One connection: whoever does not give it back is found out.
    api.client = ApiClient(
        Configuration(host=f"http://{host}:{port}", connection_pool_maxsize=1, ca_cert_data=CA)
    )
    api.store(f"{REPLICA_SETS}/web-abc", replica_set())
    yield api
    await api.client.close()
    await runner.cleanup()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def reads() -> list[Use]:
    return []


@pytest.fixture
def writes() -> list[Write]:
    return []


@pytest.fixture
async def ledger(
    api: FakeApi, clock: FakeClock, reads: list[Use], writes: list[Write]
) -> AsyncIterator[ClusterLedger]:
    ledger = ClusterLedger(
        api.client,
        record_ttl=TTL,
        size=3,
        clock=clock,
        observe_read=reads.append,
        observe_write=writes.append,
    )
    yield ledger
    await ledger.close()


def replica_set(**status: int) -> Object:
    owner = DEPLOYMENT.to_reference() | {"controller": True}
    return {
        "metadata": {
            "uid": "uid-of-web-abc",
            "labels": {"pod-template-hash": "abc"},
            "creationTimestamp": "2026-11-24T09:00:00Z",
            "ownerReferences": [owner],
        },
        "status": status,
    }


def pod(owner: str = "web-abc", uid: str = "uid-of-web-abc", **more: Any) -> Object:
    reference = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": uid}
    metadata = {
        "labels": {"pod-template-hash": "abc"},
        "ownerReferences": [reference | {"controller": True}],
    }
    return {"metadata": metadata, "spec": {"containers": []}, "status": {}, **more}


def claimed(of: Object | None = None) -> Claim:
    user = "system:serviceaccount:kube-system:replicaset-controller"
    made = claim(of or pod(), namespace="shop", user=user, known=kinds())
    assert made is not None
    return made


CLAIM = claimed()


async def record_of(ledger: ClusterLedger) -> dict[str, Pin] | None:
    """The pins that a look-up finds; None where there is no record."""
    record = (await ledger.look_up(CLAIM, within=ROOM)).record
    return None if record is None else dict(record.pins)


class TestLookingUp:
    async def test_the_first_pod_of_a_revision_costs_three_calls_and_the_others_none(
        self, api: FakeApi, ledger: ClusterLedger, clock: FakeClock
    ) -> None:
        entry = await ledger.look_up(CLAIM, within=ROOM)
        assert (entry.revision, entry.record, entry.has_pods) == (REVISION, None, False)
        assert entry.created == datetime(2026, 11, 24, 9, tzinfo=UTC)
        await ledger.write(REVISION, [WEB], within=ROOM)
        assert api.asked == ["GET replicasets", "GET imagepins", "POST imagepins"]

        for _ in range(10):
            clock.advance(1)
            assert await record_of(ledger) == {"web:1": WEB}
        assert len(api.asked) == 3

    async def test_how_old_a_revision_of_an_opted_in_kind_is_nobody_knows(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        opted_in = replace(CLAIM, kind=replace(CLAIM.kind, proof=Proof.REQUESTER))

        assert (await ledger.look_up(opted_in, within=ROOM)).created is None

    async def test_a_record_is_read_again_when_its_time_is_over(
        self, api: FakeApi, ledger: ClusterLedger, clock: FakeClock
    ) -> None:
        api.store_record(WEB)
        assert await record_of(ledger) == {"web:1": WEB}
        api.store_record(WEB, SIDECAR)
        clock.advance(TTL)
        assert await record_of(ledger) == {"web:1": WEB}
        clock.advance(1)
        assert await record_of(ledger) == {"web:1": WEB, "sidecar:1": SIDECAR}
        assert api.asked.count("GET imagepins") == 2

    async def test_a_deleted_record_is_forgotten_as_soon_as_it_is_read(
        self, api: FakeApi, ledger: ClusterLedger, clock: FakeClock
    ) -> None:
        api.store_record(WEB)
        await record_of(ledger)
        del api.objects[RECORD]
        clock.advance(TTL + 1)
        assert await record_of(ledger) is None
        api.fail("GET imagepins", refusing(500), forever=True)
        with pytest.raises(Unresolvable):
            await record_of(ledger)

    async def test_that_there_is_no_record_is_never_remembered(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        assert await record_of(ledger) is None
        api.store_record(WEB)
        assert await record_of(ledger) == {"web:1": WEB}

    async def test_pods_that_came_meanwhile_are_seen(
        self, api: FakeApi, ledger: ClusterLedger, clock: FakeClock
    ) -> None:
        assert not (await ledger.look_up(CLAIM, within=ROOM)).has_pods
        api.store(f"{REPLICA_SETS}/web-abc", replica_set(replicas=2))
        clock.advance(0.1)
        assert (await ledger.look_up(CLAIM, within=ROOM)).has_pods

    async def test_so_are_those_of_a_revision_that_is_recorded(
        self, api: FakeApi, ledger: ClusterLedger, clock: FakeClock
    ) -> None:
        """One of them may run, as written, an image that is not in the record."""
        assert not (await ledger.look_up(CLAIM, within=ROOM)).has_pods
        await ledger.write(REVISION, [WEB], within=ROOM)
        api.store(f"{REPLICA_SETS}/web-abc", replica_set(replicas=1))
        clock.advance(10)
        assert (await ledger.look_up(CLAIM, within=ROOM)).has_pods

    async def test_whether_there_are_pods_is_never_guessed(
        self, api: FakeApi, ledger: ClusterLedger, clock: FakeClock
    ) -> None:
        await ledger.look_up(CLAIM, within=ROOM)
        clock.advance(0.1)
        api.fail("GET replicasets", refusing(500))
        with pytest.raises(Unresolvable):
            await ledger.look_up(CLAIM, within=ROOM)

    async def test_a_replica_set_that_is_adopted_has_the_record_of_its_new_workload(
        self, api: FakeApi, ledger: ClusterLedger, clock: FakeClock
    ) -> None:
        await ledger.look_up(CLAIM, within=ROOM)
        adopted, new = replica_set(), Owner("apps/v1", "Deployment", "new", "uid-of-new")
        adopted["metadata"]["ownerReferences"] = [new.to_reference() | {"controller": True}]
        api.store(f"{REPLICA_SETS}/web-abc", adopted)
        revision = Revision("shop", new, "ReplicaSet", "web-abc", "abc")
        api.store_record(SIDECAR, revision=revision)
        clock.advance(0.1)

        entry = await ledger.look_up(CLAIM, within=ROOM)

        assert entry.revision == revision
        assert entry.record is not None
        assert entry.record.pins == {"sidecar:1": SIDECAR}

    @unreadable
    @pytest.mark.parametrize("what", ["replicasets", "imagepins"])
    async def test_what_cannot_be_read_is_never_taken_for_absent(
        self, api: FakeApi, ledger: ClusterLedger, what: str, answer: Answer
    ) -> None:
        api.fail(f"GET {what}", answer, forever=True)
        with pytest.raises(Unresolvable) as got:
            await ledger.look_up(CLAIM, within=ROOM)
        assert got.value.reason is Reason.LEDGER
        api.mend()
        assert await record_of(ledger) is None  # the error is not held, nor the connection

    @unreadable
    @pytest.mark.parametrize("what", ["replicasets", "imagepins"])
    async def test_a_known_record_serves_until_it_can_be_read(
        self, api: FakeApi, ledger: ClusterLedger, clock: FakeClock, what: str, answer: Answer
    ) -> None:
        api.store_record(WEB)
        await record_of(ledger)
        clock.advance(TTL + 1)
        api.fail(f"GET {what}", answer, forever=True)
        assert await record_of(ledger) == {"web:1": WEB}

        api.mend()
        api.store_record(WEB, SIDECAR)
        assert await record_of(ledger) == {"web:1": WEB, "sidecar:1": SIDECAR}

    async def test_an_owner_is_read_again_though_its_record_was_written_since(
        self, api: FakeApi, ledger: ClusterLedger, clock: FakeClock
    ) -> None:
        await ledger.write(REVISION, [WEB], within=ROOM)
        await record_of(ledger)
        clock.advance(TTL / 2)
        await ledger.write(REVISION, [SIDECAR], within=ROOM)
        clock.advance(TTL / 2 + 1)
        api.asked.clear()

        assert ledger.recent(CLAIM) is None
        assert await record_of(ledger) == {"web:1": WEB, "sidecar:1": SIDECAR}
        assert api.asked == ["GET replicasets"]

    async def test_how_records_are_read_is_told(
        self, api: FakeApi, ledger: ClusterLedger, clock: FakeClock, reads: list[Use]
    ) -> None:
        await record_of(ledger)
        api.store_record(WEB)
        for _ in range(2):
            await record_of(ledger)
        clock.advance(TTL + 1)
        api.fail("GET replicasets", refusing(500))
        await record_of(ledger)
        assert reads == [Use.MISS, Use.MISS, Use.HIT, Use.STALE]

    async def test_a_record_that_is_none_is_unreadable(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        api.store(RECORD, {"metadata": {"namespace": "shop"}, "spec": {}})
        with pytest.raises(Unresolvable, match="an ImagePin cannot be read"):
            await ledger.look_up(CLAIM, within=ROOM)

    async def test_where_records_are_not_defined_the_message_says_what_to_do(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        api.fail("GET imagepins", NO_SUCH_KIND)
        with pytest.raises(Unresolvable) as got:
            await ledger.look_up(CLAIM, within=ROOM)
        assert str(got.value) == (
            f"cannot read ImagePin shop/{REVISION.record_name}: Not Found; "
            "is the CRD imagepins.tagpin.dev installed (manifests/crd)?"
        )

    async def test_a_refusal_is_not_repeated_without_end(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        api.fail("GET imagepins", refusing(403, "no! " * 10_000))
        with pytest.raises(Unresolvable, match="no! no!") as got:
            await ledger.look_up(CLAIM, within=ROOM)
        assert len(str(got.value)) < MAX_TOLD + 100

    async def test_nobody_there(self, clock: FakeClock) -> None:
        client = ApiClient(Configuration(host="http://127.0.0.1:9"))
        with pytest.raises(Unresolvable, match="Cannot connect"):
            await ClusterLedger(client, clock=clock).look_up(CLAIM, within=ROOM)
        await disconnect(client)

    async def test_an_owner_that_does_not_exist_bears_nothing_out(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        del api.objects[f"{REPLICA_SETS}/web-abc"]
        with pytest.raises(Unproven, match="there is no web-abc among the replicasets"):
            await ledger.look_up(CLAIM, within=ROOM)

    async def test_an_owner_without_a_time_of_creation_is_unreadable(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        del api.objects[f"{REPLICA_SETS}/web-abc"]["metadata"]["creationTimestamp"]
        with pytest.raises(Unresolvable, match="web-abc has no time of creation"):
            await ledger.look_up(CLAIM, within=ROOM)

    async def test_a_claim_that_did_not_hold_is_looked_into_again_after_a_moment(
        self, api: FakeApi, ledger: ClusterLedger, clock: FakeClock
    ) -> None:
        forged = claimed(pod(uid="another"))
        for _ in range(3):
            with pytest.raises(Unproven):
                await ledger.look_up(forged, within=ROOM)
        assert api.asked == ["GET replicasets"]

        clock.advance(MISMATCH)
        api.objects[f"{REPLICA_SETS}/web-abc"]["metadata"]["uid"] = "another"
        assert (await ledger.look_up(forged, within=ROOM)).revision == REVISION

    async def test_a_claim_that_holds_no_more_is_forgotten(
        self, api: FakeApi, ledger: ClusterLedger, clock: FakeClock
    ) -> None:
        api.store_record(WEB)
        await record_of(ledger)
        owner = api.objects.pop(f"{REPLICA_SETS}/web-abc")
        clock.advance(TTL + 1)
        with pytest.raises(Unproven):
            await ledger.look_up(CLAIM, within=ROOM)
        clock.advance(MISMATCH)
        api.objects[f"{REPLICA_SETS}/web-abc"] = owner
        api.fail("GET replicasets", refusing(500))
        with pytest.raises(Unresolvable):
            await ledger.look_up(CLAIM, within=ROOM)

    @pytest.mark.parametrize("name", ["..", "a/b", "../../nodes", "UPPER", "a?b", "a%2fb", "a\n"])
    async def test_a_name_that_could_lead_elsewhere_is_never_asked_for(
        self, api: FakeApi, ledger: ClusterLedger, name: str
    ) -> None:
        with pytest.raises(Unproven):
            await ledger.look_up(claimed(pod(name)), within=ROOM)
        assert api.asked == []

    async def test_the_longest_name_is_asked_for_as_it_is(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        name = f"{'web.' * 60}web-1234567"
        api.store(f"{REPLICA_SETS}/{name}", replica_set())
        entry = await ledger.look_up(claimed(pod(name)), within=ROOM)
        await ledger.write(entry.revision, [WEB], within=ROOM)
        assert f"{IMAGE_PINS}/{entry.revision.record_name}" in api.objects

    async def test_what_is_remembered_is_bounded(self, api: FakeApi, ledger: ClusterLedger) -> None:
        claims = []
        for number in range(4):  # one more than there is room for
            made = pod(f"web-{number}")
            api.store(f"{REPLICA_SETS}/web-{number}", replica_set())
            claims.append(claimed(made))
            revision = Revision("shop", DEPLOYMENT, "ReplicaSet", f"web-{number}", "abc")
            api.store_record(WEB, revision=revision)
            await ledger.look_up(claims[-1], within=ROOM)
        await ledger.look_up(claims[-1], within=ROOM)
        assert len(api.asked) == 8
        await ledger.look_up(claims[0], within=ROOM)
        assert api.asked[8:] == ["GET replicasets", "GET imagepins"]


class Gate:
    """Holds requests back until it is opened, and then lets them have `answer`."""

    def __init__(self, api: FakeApi) -> None:
        self.arrived, self._opened = asyncio.Event(), asyncio.Event()
        self._api = api

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.arrived.set()
        await self._opened.wait()
        return self._api.really(request, is_list=False)

    def open(self) -> None:
        self._opened.set()


async def look_up_often(ledger: ClusterLedger, times: int = 20) -> None:
    await asyncio.gather(*(ledger.look_up(CLAIM, within=ROOM) for _ in range(times)))


class TestManyAtOnce:
    async def test_equal_look_ups_share_one_call_each(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        await look_up_often(ledger)
        assert api.asked == ["GET replicasets", "GET imagepins"]

    async def test_they_do_so_as_well_where_nothing_gets_recorded(self, api: FakeApi) -> None:
        # The real clock: between any two calls time passes.
        ledger = ClusterLedger(api.client)
        await look_up_often(ledger)
        await look_up_often(ledger)
        assert sorted(api.asked[2:]) == ["GET imagepins", "GET replicasets"]
        await ledger.close()

    async def test_a_caller_that_leaves_takes_nothing_from_the_others(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        gate = Gate(api)
        api.fail("GET replicasets", gate)
        leaving, staying = (
            asyncio.create_task(ledger.look_up(CLAIM, within=ROOM)) for _ in range(2)
        )
        await gate.arrived.wait()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        gate.open()
        assert (await staying).revision == REVISION
        assert api.asked.count("GET replicasets") == 1

    async def test_closing_ends_what_is_under_way(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        gate = Gate(api)
        api.fail("GET replicasets", gate)
        looking = asyncio.create_task(ledger.look_up(CLAIM, within=ROOM))
        await gate.arrived.wait()
        await ledger.close()
        with pytest.raises(asyncio.CancelledError):
            await looking


class TestTime:
    """`within` is held whatever the API server does."""

    @pytest.fixture(autouse=True)
    def bounded(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        assert time.monotonic() - began < 2

    @pytest.mark.parametrize("what", ["replicasets", "imagepins"])
    async def test_in_looking_up(self, api: FakeApi, ledger: ClusterLedger, what: str) -> None:
        api.fail(f"GET {what}", silence)
        with pytest.raises(Unresolvable, match="did not answer in time") as got:
            await ledger.look_up(CLAIM, within=0.05)
        assert got.value.reason is Reason.LEDGER

    @pytest.mark.parametrize("what", ["replicasets", "imagepins"])
    async def test_in_looking_up_what_is_known(
        self, api: FakeApi, ledger: ClusterLedger, clock: FakeClock, what: str
    ) -> None:
        api.store_record(WEB)
        await record_of(ledger)
        clock.advance(TTL + 1)
        api.fail(f"GET {what}", silence)
        entry = await ledger.look_up(CLAIM, within=0.05)
        assert entry.record is not None
        assert entry.record.pins == {"web:1": WEB}

    async def test_in_reading_siblings(self, api: FakeApi, ledger: ClusterLedger) -> None:
        api.fail("GET pods", silence)
        with pytest.raises(Unresolvable, match="did not answer in time"):
            await ledger.siblings(CLAIM, within=0.05)

    async def test_in_reading_the_history(self, api: FakeApi, ledger: ClusterLedger) -> None:
        api.fail("GET imagepins", silence)
        with pytest.raises(Unresolvable, match="did not answer in time"):
            await ledger.history(REVISION, within=0.05)

    async def test_in_writing(self, api: FakeApi, ledger: ClusterLedger) -> None:
        api.fail("POST imagepins", silence)
        with pytest.raises(Unrecorded, match="it took too long") as got:
            await ledger.write(REVISION, [WEB], within=0.05)
        assert got.value.is_fault

    async def test_in_reading_what_another_replica_wrote(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        api.store_record(WEB)
        api.fail("GET imagepins", silence)
        with pytest.raises(Unresolvable, match="it took too long"):
            await ledger.write(REVISION, [WEB], within=0.05)


def running(image: str, image_id: str = "", *, name: str = "web", **spec: Any) -> Object:
    """A sibling whose container runs `image`."""
    statuses = [{"name": name, "imageID": image_id, "ready": True}]
    containers = [{"name": name, "image": image, "env": [{"name": "LARGE", "value": "x"}]}]
    made = pod(spec={"containers": containers, **spec}, status={"containerStatuses": statuses})
    made["metadata"]["annotations"] = {"large": "x"}
    return made


class TestSiblings:
    async def test_they_are_asked_for_by_label_and_told_by_their_controller(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        alone = running("alone:1")
        del alone["metadata"]["ownerReferences"]
        api.store(f"{PODS}/mine", running(f"web:1@{ONES}"))
        api.store(f"{PODS}/alone", alone)
        api.store(f"{PODS}/theirs", running("theirs:1") | {"metadata": pod(uid="x")["metadata"]})

        siblings = await ledger.siblings(CLAIM, within=ROOM)

        assert [place.text for each in siblings for place in images(each)] == [f"web:1@{ONES}"]
        assert api.queries == [
            {"labelSelector": "pod-template-hash=abc", "limit": str(MAX_SIBLINGS)}
        ]

    async def test_what_is_held_of_them_is_small_and_says_what_they_run(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        made = running(
            "web:1",
            f"docker.io/library/web@{ONES}",
            initContainers=[{"name": "init", "image": f"init:1@{TWOS}", "env": []}],
            ephemeralContainers=[{"name": "debug", "image": f"debug:1@{TWOS}"}],
            volumes=[
                {"name": "model", "image": {"reference": f"model:1@{TWOS}"}},
                {"name": "config", "configMap": {"name": "large"}},
            ],
        )
        made["status"]["initContainerStatuses"] = [
            {"name": "init", "imageID": f"docker.io/library/init@{TWOS}"}
        ]
        api.store(f"{PODS}/mine", made)

        siblings = await ledger.siblings(CLAIM, within=ROOM)

        assert "x" not in json.dumps(siblings).replace("sidecar", "").replace("index", "")
        assert images(siblings[0]) == images(made)
        for image in images(made):
            ref = Reference.parse(image.text.partition("@")[0])
            assert running_digests(siblings, image, ref) == running_digests([made], image, ref)
        assert siblings[0]["status"]["initContainerStatuses"] == [
            {"name": "init", "imageID": f"docker.io/library/init@{TWOS}"}
        ]

    async def test_a_list_is_held_for_seconds(
        self, api: FakeApi, ledger: ClusterLedger, clock: FakeClock
    ) -> None:
        assert await ledger.siblings(CLAIM, within=ROOM) == []
        api.store(f"{PODS}/mine", running("web:1"))
        clock.advance(HELD - 0.1)
        assert await ledger.siblings(CLAIM, within=ROOM) == []
        clock.advance(0.2)
        assert len(await ledger.siblings(CLAIM, within=ROOM)) == 1

    @unreadable
    async def test_a_list_that_cannot_be_read_is_not_empty(
        self, api: FakeApi, ledger: ClusterLedger, answer: Answer
    ) -> None:
        api.fail("GET pods", answer, forever=True)
        with pytest.raises(Unresolvable) as got:
            await ledger.siblings(CLAIM, within=ROOM)
        assert got.value.reason is Reason.LEDGER
        api.mend()
        assert await ledger.siblings(CLAIM, within=ROOM) == []

    @pytest.mark.parametrize(
        "items",
        [None, {}, [1], [{**pod(), "spec": []}], [{**pod(), "status": {"x": 1}} | {"spec": 1}]],
    )
    async def test_a_list_of_another_shape_is_unreadable(
        self, api: FakeApi, ledger: ClusterLedger, items: Any
    ) -> None:
        api.fail("GET pods", saying(json.dumps({"items": items})))
        with pytest.raises(Unresolvable):
            await ledger.siblings(CLAIM, within=ROOM)

    async def test_a_list_is_not_read_without_end(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        sent = 0

        async def endless(request: web.Request) -> web.StreamResponse:
            nonlocal sent
            response = web.StreamResponse()
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):
                while sent < 10 * MAX_LIST:
                    await response.write(b" " * (1 << 20))
                    sent += 1 << 20
            return response

        api.fail("GET pods", endless)
        with pytest.raises(Unresolvable, match=f"more than {MAX_LIST} bytes"):
            await ledger.siblings(CLAIM, within=ROOM)
        assert await ledger.siblings(CLAIM, within=ROOM) == []
        assert sent < 3 * MAX_LIST


class TestHistory:
    async def test_only_records_of_the_workload_count(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        later = Revision("shop", DEPLOYMENT, "ReplicaSet", "web-def", "def")
        other = Revision(
            "shop", Owner("apps/v1", "Deployment", "db", "x"), "ReplicaSet", "db-1", "1"
        )
        for revision in (REVISION, later, other):
            api.store_record(WEB, revision=revision)

        records = await ledger.history(REVISION, within=ROOM)

        assert {record.revision for record in records} == {REVISION, later}
        assert api.queries[-1]["fieldSelector"] == "spec.workload.uid=uid-of-web"

    async def test_an_odd_uid_stays_one_value_of_the_selector(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        owner = Owner("apps/v1", "Deployment", "web", r"a,spec.workload.uid!=\b")
        revision = Revision("shop", owner, "ReplicaSet", "web-abc", "abc")
        assert await ledger.history(revision, within=ROOM) == []
        assert api.queries[-1]["fieldSelector"] == (r"spec.workload.uid=a\,spec.workload.uid!\=\\b")

    async def test_a_list_is_held_for_seconds(
        self, api: FakeApi, ledger: ClusterLedger, clock: FakeClock
    ) -> None:
        assert await ledger.history(REVISION, within=ROOM) == []
        api.store_record(WEB)
        clock.advance(HELD - 0.1)
        assert await ledger.history(REVISION, within=ROOM) == []
        clock.advance(0.2)
        assert len(await ledger.history(REVISION, within=ROOM)) == 1

    @unreadable
    async def test_a_list_that_cannot_be_read_is_not_empty(
        self, api: FakeApi, ledger: ClusterLedger, answer: Answer
    ) -> None:
        api.fail("GET imagepins", answer, forever=True)
        with pytest.raises(Unresolvable) as got:
            await ledger.history(REVISION, within=ROOM)
        assert got.value.reason is Reason.LEDGER
        api.mend()
        assert await ledger.history(REVISION, within=ROOM) == []

    async def test_where_records_are_not_defined_the_message_says_what_to_do(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        api.fail("GET imagepins", NO_SUCH_KIND)
        with pytest.raises(Unresolvable, match=r"Deployment/web.*is the CRD imagepins"):
            await ledger.history(REVISION, within=ROOM)


async def written(ledger: ClusterLedger, *pins: Pin) -> dict[str, str]:
    """What a write says is recorded: reference → digest."""
    record = await ledger.write(REVISION, pins, within=ROOM)
    return {pin.image: str(pin.digest) for pin in record.pins.values()}


def another(pin: Pin, digest: Digest = TWOS) -> Pin:
    return Pin(pin.image, digest, Source.REGISTRY, NOW)


class TestWriting:
    async def test_a_new_record_is_one_call(
        self, api: FakeApi, ledger: ClusterLedger, writes: list[Write]
    ) -> None:
        assert await written(ledger, WEB) == {"web:1": str(ONES)}
        assert api.asked == ["POST imagepins"]
        assert api.bodies == [ImagePin(REVISION, {"web:1": WEB}).to_object()]
        assert writes == [Write.CREATED]

    async def test_a_new_record_that_many_want_at_once_is_one_call(
        self, api: FakeApi, ledger: ClusterLedger, clock: FakeClock
    ) -> None:
        api.takes(clock, 0.1)
        answers = await asyncio.gather(*(written(ledger, WEB) for _ in range(20)))
        assert answers == [{"web:1": str(ONES)}] * 20
        assert api.asked == ["POST imagepins"]

    async def test_what_the_first_one_did_not_record_the_next_one_appends(
        self, api: FakeApi, ledger: ClusterLedger, clock: FakeClock
    ) -> None:
        api.takes(clock, 0.1)
        first, second = await asyncio.gather(written(ledger, WEB), written(ledger, SIDECAR))
        assert list(first) == ["web:1"]
        assert list(second) == ["web:1", "sidecar:1"]
        assert api.asked == ["POST imagepins", "GET imagepins", "PUT imagepins"]

    async def test_what_the_first_one_recorded_stands_for_all(
        self, api: FakeApi, ledger: ClusterLedger, clock: FakeClock
    ) -> None:
        """A tag that moves between two questions must not be two digests of one revision."""
        api.takes(clock, 0.1)
        answers = await asyncio.gather(written(ledger, WEB), written(ledger, another(WEB)))
        assert list(answers) == [{"web:1": str(ONES)}] * 2

    async def test_who_waits_in_line_writes_what_the_first_one_could_not(
        self, api: FakeApi, ledger: ClusterLedger, clock: FakeClock
    ) -> None:
        api.takes(clock, 0.1)
        api.fail("POST imagepins", refusing(403))
        first, second = await asyncio.gather(
            written(ledger, WEB), written(ledger, WEB), return_exceptions=True
        )
        assert isinstance(first, Unrecorded)
        assert second == {"web:1": str(ONES)}

    async def test_who_waits_in_line_for_too_long_is_told_so(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        api.fail("POST imagepins", silence)
        slow = asyncio.create_task(written(ledger, WEB))
        await asyncio.sleep(0)  # it is first in line
        with pytest.raises(Unrecorded, match="it took too long"):
            await ledger.write(REVISION, [WEB], within=0.05)
        slow.cancel()
        await asyncio.wait([slow])

    async def test_an_append_keeps_what_only_a_newer_version_knows(
        self, api: FakeApi, ledger: ClusterLedger, writes: list[Write]
    ) -> None:
        api.store_record(WEB)
        stored = api.objects[RECORD]
        stored["metadata"]["labels"] = {"team": "a"}
        stored["spec"]["signed"] = {"by": "ann"}
        stored["spec"]["images"][0]["platform"] = "linux/arm64"
        before = copy.deepcopy(stored)
        await record_of(ledger)

        assert await written(ledger, SIDECAR) == {"web:1": str(ONES), "sidecar:1": str(TWOS)}

        (sent,) = api.bodies
        added = sent["spec"]["images"].pop()
        assert (added["reference"], added["digest"]) == ("sidecar:1", str(TWOS))
        assert sent == before  # its resourceVersion too
        assert writes == [Write.APPENDED]

    async def test_what_another_replica_recorded_stands(
        self, api: FakeApi, ledger: ClusterLedger, writes: list[Write]
    ) -> None:
        api.store_record(another(WEB))
        assert await written(ledger, WEB) == {"web:1": str(TWOS)}
        assert api.asked == ["POST imagepins", "GET imagepins"]
        assert writes == [Write.CONFLICT]

    async def test_what_it_did_not_record_is_appended(
        self, api: FakeApi, ledger: ClusterLedger, writes: list[Write]
    ) -> None:
        api.store_record(another(WEB))
        expected = {"web:1": str(TWOS), "sidecar:1": str(TWOS)}
        assert await written(ledger, WEB, SIDECAR) == expected == api.recorded
        assert api.asked == ["POST imagepins", "GET imagepins", "PUT imagepins"]
        assert writes == [Write.CONFLICT, Write.APPENDED]

    async def test_what_is_written_serves_without_being_read(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        await ledger.look_up(CLAIM, within=ROOM)
        api.store_record(another(WEB))
        await written(ledger, WEB)
        asked = len(api.asked)
        assert await record_of(ledger) == {"web:1": another(WEB)}
        assert len(api.asked) == asked

    async def test_a_record_that_changed_meanwhile_is_read_and_appended_to(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        api.store_record(WEB)
        await record_of(ledger)

        async def overtaken(request: web.Request) -> web.StreamResponse:
            api.store_record(WEB, another(SIDECAR, ONES))
            return api.really(request, is_list=False)

        api.fail("PUT imagepins", overtaken)
        third = Pin("third:1", TWOS, Source.REGISTRY, NOW)
        expected = {"web:1": str(ONES), "sidecar:1": str(ONES), "third:1": str(TWOS)}
        assert await written(ledger, SIDECAR, third) == expected == api.recorded

    async def test_the_attempts_to_append_are_bounded(
        self, api: FakeApi, ledger: ClusterLedger, writes: list[Write]
    ) -> None:
        api.store_record(WEB)
        await record_of(ledger)
        api.fail("PUT imagepins", refusing(409), forever=True)
        with pytest.raises(Unrecorded) as got:
            await ledger.write(REVISION, [SIDECAR], within=ROOM)
        assert got.value.is_fault
        assert api.asked.count("PUT imagepins") == MAX_TRIES
        assert writes == [*[Write.CONFLICT] * MAX_TRIES, Write.FAILED]

    async def test_the_last_conflict_is_looked_into_as_well(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        """Quotas are counted with a conflict too, where nobody has recorded anything."""
        api.fail("POST imagepins", *[refusing(409)] * (MAX_TRIES - 1))
        assert await written(ledger, WEB) == api.recorded

    @unreadable
    async def test_an_answer_of_others_that_cannot_be_read_leaves_none(
        self, api: FakeApi, ledger: ClusterLedger, writes: list[Write], answer: Answer
    ) -> None:
        api.store_record(another(WEB))
        api.fail("GET imagepins", answer, forever=True)
        with pytest.raises(Unresolvable) as got:
            await ledger.write(REVISION, [WEB], within=ROOM)
        assert got.value.reason is Reason.LEDGER
        assert writes == [Write.CONFLICT, Write.FAILED]

    async def test_an_answer_of_others_that_is_no_record_leaves_none(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        api.store(RECORD, {"metadata": {"namespace": "shop"}, "spec": {}})
        with pytest.raises(Unresolvable, match="an ImagePin cannot be read"):
            await ledger.write(REVISION, [WEB], within=ROOM)

    async def test_nor_does_one_that_was_a_record_before(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        await written(ledger, WEB)
        api.store(RECORD, {"metadata": {"namespace": "shop"}, "spec": {}})
        with pytest.raises(Unresolvable, match="an ImagePin cannot be read"):
            await ledger.write(REVISION, [SIDECAR], within=ROOM)

    async def test_another_digest_than_the_recorded_one_is_never_let_through(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        api.store_record(another(WEB))
        api.fail("PUT imagepins", refusing(500))
        with pytest.raises(Unresolvable):
            await ledger.write(REVISION, [WEB, SIDECAR], within=ROOM)

    async def test_nor_where_only_memory_knows_what_is_recorded(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        await written(ledger, WEB)
        api.fail("GET imagepins", refusing(500), forever=True)
        with pytest.raises(Unresolvable):
            await ledger.write(REVISION, [another(WEB)], within=ROOM)
        with pytest.raises(Unrecorded):
            await ledger.write(REVISION, [SIDECAR], within=ROOM)

    async def test_what_nobody_recorded_may_stay_unrecorded(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        api.store_record(WEB)
        api.fail("PUT imagepins", refusing(500))
        with pytest.raises(Unrecorded):
            await ledger.write(REVISION, [WEB, SIDECAR], within=ROOM)

    @unreadable
    async def test_a_write_that_fails_is_told(
        self, api: FakeApi, ledger: ClusterLedger, writes: list[Write], answer: Answer
    ) -> None:
        api.fail("POST imagepins", answer)
        with pytest.raises(Unrecorded, match="cannot write ImagePin shop/web-abc-") as got:
            await ledger.write(REVISION, [WEB], within=ROOM)
        assert got.value.is_fault
        assert writes == [Write.FAILED]
        assert await record_of(ledger) is None

    @pytest.mark.parametrize(
        "answer",
        [
            refusing(403, "is being terminated", "x", cause="NamespaceTerminating"),
            refusing(404, 'namespaces "shop" not found', "shop"),
        ],
    )
    async def test_that_the_namespace_is_going_is_no_fault(
        self, api: FakeApi, ledger: ClusterLedger, writes: list[Write], answer: Answer
    ) -> None:
        api.fail("POST imagepins", answer)
        with pytest.raises(Unrecorded) as got:
            await ledger.write(REVISION, [WEB], within=ROOM)
        assert not got.value.is_fault
        assert writes == []

    async def test_where_records_are_not_defined_the_message_says_what_to_do(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        api.fail("POST imagepins", NO_SUCH_KIND)
        with pytest.raises(Unrecorded, match=r"Not Found; is the CRD imagepins\.tagpin\.dev"):
            await ledger.write(REVISION, [WEB], within=ROOM)

    async def test_a_record_deleted_before_an_append_is_made_anew(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        api.store_record(WEB)
        await record_of(ledger)

        async def deleted(request: web.Request) -> web.StreamResponse:
            del api.objects[RECORD]
            return api.really(request, is_list=False)

        api.fail("PUT imagepins", deleted)
        assert await written(ledger, SIDECAR) == {"sidecar:1": str(TWOS)} == api.recorded

    async def test_a_record_deleted_since_it_was_read_is_made_anew(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        api.store_record(WEB)
        await record_of(ledger)
        del api.objects[RECORD]
        assert await written(ledger, SIDECAR) == {"sidecar:1": str(TWOS)} == api.recorded

    async def test_a_write_that_fails_remembers_that_the_record_was_deleted(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        await written(ledger, WEB)
        del api.objects[RECORD]
        api.fail("POST imagepins", refusing(500))
        with pytest.raises(Unrecorded):
            await ledger.write(REVISION, [SIDECAR], within=ROOM)
        assert await record_of(ledger) is None

    async def test_a_write_that_was_done_all_the_same_is_found_by_the_next_pod(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        async def done_in_silence(request: web.Request) -> web.StreamResponse:
            api.really(request, is_list=False)
            return await silence(request)

        api.fail("POST imagepins", done_in_silence)
        with pytest.raises(Unrecorded):
            await ledger.write(REVISION, [WEB], within=0.1)
        assert await record_of(ledger) == {"web:1": WEB}
        assert await written(ledger, another(WEB)) == {"web:1": str(ONES)}

    @pytest.mark.parametrize("status", [500, 503])
    async def test_what_another_replica_recorded_stands_though_our_write_was_not_answered(
        self, api: FakeApi, ledger: ClusterLedger, status: int
    ) -> None:
        async def overtaken(request: web.Request) -> web.StreamResponse:
            api.store_record(another(WEB))
            return await refusing(status)(request)

        api.fail("POST imagepins", overtaken)
        assert await written(ledger, WEB) == {"web:1": str(TWOS)} == api.recorded

    async def test_a_write_that_is_refused_is_not_looked_after(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        api.fail("POST imagepins", refusing(403))
        with pytest.raises(Unrecorded):
            await ledger.write(REVISION, [WEB], within=ROOM)
        assert api.asked == ["POST imagepins"]

    async def test_a_record_of_another_revision_is_left_alone(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        api.store_record(another(WEB))
        api.objects[RECORD]["spec"]["workload"]["uid"] = "another"
        record = await ledger.write(REVISION, [WEB, SIDECAR], within=ROOM)
        assert not record.is_of(REVISION)
        assert dict(record.pins) == {"web:1": another(WEB)}
        assert "PUT imagepins" not in api.asked

    async def test_what_finds_no_room_is_left_out(
        self, api: FakeApi, ledger: ClusterLedger
    ) -> None:
        many = [Pin(f"web:{number}", ONES, Source.REGISTRY, NOW) for number in range(MAX_PINS + 1)]
        long = Pin("x" * 513, ONES, Source.REGISTRY, NOW)
        assert list(await written(ledger, long, *many)) == [pin.image for pin in many[:-1]]
        assert list(api.recorded) == [pin.image for pin in many[:-1]]

    async def test_a_record_of_nothing_is_none(self, api: FakeApi, ledger: ClusterLedger) -> None:
        assert await written(ledger, Pin("x" * 513, ONES, Source.REGISTRY, NOW)) == {}
        assert api.asked == []
        assert await record_of(ledger) is None
