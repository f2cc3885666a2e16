"""One suite of what the core relies on, held with the fake ledger and with a real API server."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Protocol, TypeVar

import pytest
import pytest_asyncio
from kubernetes.aio.client import ApiClient, CoreV1Api, CustomObjectsApi

from cluster.controlplane import PROGRAMS, ControlPlane
from cluster.installation import BASE, CRD
from cluster.namespaces import (
    Namespace,
    controller_reference,
    cron_job,
    daemon_set,
    deployment,
    job,
    replica_set,
    stateful_set,
)
from cluster.namespaces import pod as any_pod
from cluster.requirement import require_programs
from fakes.ledger import FakeLedger
from tagpin import workload
from tagpin.cluster.api import asking, connect, disconnect
from tagpin.cluster.ledger import ClusterLedger
from tagpin.errors import ClusterError, Unproven, Unrecorded
from tagpin.imagepin import GROUP, MAX_PINS, MAX_REFERENCE, PLURAL, VERSION, ImagePin
from tagpin.ledger import Ledger
from tagpin.pins import Pin, Source
from tagpin.reference import Digest
from tagpin.revision import HASH_LABELS, Claim, Revision, claim, kinds
from tagpin.workload import Owner, Pod

# One event loop, since connecting and disconnecting take longer than most tests.
pytestmark = pytest.mark.asyncio(loop_scope="module")

Object = dict[str, Any]
T = TypeVar("T")

ONES, TWOS = (Digest.parse(f"sha256:{digit * 64}") for digit in "12")
NOW = datetime(2026, 11, 24, 9, 29, 10, tzinfo=UTC)
WEB = Pin("web:1", ONES, Source.REGISTRY, NOW)
SIDECAR = Pin("sidecar:1", TWOS, Source.SIBLINGS)
IMAGES = {"web": "web:1"}

KINDS = ("Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job", "CronJob")
"""Of workloads: what a revision is one of."""

WITHIN = 10.0


@dataclass(frozen=True, slots=True)
class Running:
    """A workload, and the first pod that its controller made of it."""

    workload: Object
    pod: Object

    @property
    def claim(self) -> Claim:
        return claimed(self.pod, self.pod["metadata"]["namespace"])


class Backend(Protocol):
    """A ledger, and the cluster that it is of."""

    @property
    def ledger(self) -> Ledger: ...

    def replica(self) -> Ledger:
        """Another one, that has read nothing yet."""
        ...

    async def run(self, kind: str, name: str = "") -> Running:
        """Start a workload with one pod."""
        ...

    async def add_pods(self, *pods: Object) -> None:
        """Create pods that no controller asks for."""
        ...

    async def store(self, name: str, record: ImagePin) -> None:
        """Write a record under any name, as somebody with the right to do so."""
        ...


def claimed(pod: Pod, namespace: str) -> Claim:
    user = "system:serviceaccount:kube-system:any-controller"
    made = claim(pod, namespace=namespace, user=user, known=kinds())
    assert made is not None
    return made


# The fake


@dataclass
class Fake:
    ledger: FakeLedger = field(default_factory=lambda: FakeLedger(objects={}))
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def replica(self) -> Ledger:
        return replace(self.ledger)  # with the same records

    async def run(self, kind: str, name: str = "") -> Running:
        name = name or f"{kind.lower()}-{next(self._numbers)}"
        api_version = "batch/v1" if "Job" in kind else "apps/v1"
        top = owner = _stored(api_version, kind, name)
        if kind in {"Deployment", "CronJob"}:
            below = "ReplicaSet" if kind == "Deployment" else "Job"
            owner = _stored(api_version, below, f"{name}-5d4f")
            owner["metadata"]["ownerReferences"] = [controller_reference(top)]
        labels = {"app": name}
        match owner["kind"]:
            case "ReplicaSet":
                labels[HASH_LABELS[0]] = "5d4f"
                owner["metadata"]["labels"] = labels
            case "StatefulSet" | "DaemonSet":
                history = _stored("apps/v1", "ControllerRevision", f"{name}-5d4f")
                history["metadata"]["ownerReferences"] = [controller_reference(owner)]
                labels[HASH_LABELS[2]] = "5d4f" if kind == "DaemonSet" else f"{name}-5d4f"
                self._add("controllerrevisions", history)
            case _:
                labels["batch.kubernetes.io/controller-uid"] = owner["metadata"]["uid"]
        owner["status"] = {"currentNumberScheduled" if kind == "DaemonSet" else "active": 1}
        self._add(f"{owner['kind'].lower()}s", owner)
        pod = any_pod(f"{name}-pod", IMAGES, labels=labels)
        pod["metadata"]["namespace"] = "shop"
        pod["metadata"]["ownerReferences"] = [controller_reference(owner)]
        await self.add_pods(pod)
        return Running(top, pod)

    async def add_pods(self, *pods: Object) -> None:
        self.ledger.pods = (*self.ledger.pods, *pods)

    async def store(self, name: str, record: ImagePin) -> None:
        self.ledger.records[name] = record

    def _add(self, plural: str, made: Object) -> None:
        assert self.ledger.objects is not None
        self.ledger.objects[plural, made["metadata"]["name"]] = made


def _stored(api_version: str, kind: str, name: str) -> Object:
    moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    metadata = {"name": name, "uid": f"uid-of-{kind}-{name}", "creationTimestamp": moment}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}


# The real one


class Real:
    """ClusterLedgers with the rights that tagpin has, and an administrator who runs workloads."""

    def __init__(self, namespace: Namespace, client: ApiClient, admin: ApiClient) -> None:
        self.ledger: Ledger = ClusterLedger(client)
        self._namespace = namespace
        self._client = client
        self._core, self._objects = CoreV1Api(admin), CustomObjectsApi(admin)

    def replica(self) -> Ledger:
        return ClusterLedger(self._client)

    async def run(self, kind: str, name: str = "") -> Running:
        name = name or f"{kind.lower()}-{next(NUMBERS)}"
        match kind:
            case "Deployment":
                made = await self._create(deployment(name, IMAGES))
            case "ReplicaSet":
                made = await self._create(replica_set(name, IMAGES, labels={HASH_LABELS[0]: name}))
            case "StatefulSet":
                made = await self._create(stateful_set(name, IMAGES))
            case "DaemonSet":
                made = await self._create(daemon_set(name, IMAGES))
            case "Job":
                made = await self._create(job(name, IMAGES))
            case _:
                made = await self._create(cron_job(name, IMAGES))
                run = job(f"{name}-1", IMAGES)
                run["metadata"]["ownerReferences"] = [controller_reference(made)]
                await self._create(run)
                name = f"{name}-1"
        (pod, *_) = await eventually(lambda: self._namespace.pods(f"app={name}"), bool)
        return Running(made, pod)

    async def add_pods(self, *pods: Object) -> None:
        for pod in pods:
            body: Any = pod
            await self._core.create_namespaced_pod(self._namespace.name, body)

    async def store(self, name: str, record: ImagePin) -> None:
        made = record.to_object()
        made["metadata"] = {"name": name}
        await self._create(made)

    async def _create(self, made: Object) -> Object:
        group, _, version = made["apiVersion"].partition("/")
        where = (group, version, self._namespace.name, f"{made['kind'].lower()}s")
        created: Any = await self._objects.create_namespaced_custom_object(*where, made)
        return dict(created)


NUMBERS = count(1)
"""All workloads are in one namespace."""


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """Without scheduler and kubelets: here pods need not run."""
    require_programs(*PROGRAMS)
    with ControlPlane(scheduler=False, nodes=0) as running:
        running.add_node("node")  # for DaemonSets
        running.kubectl("apply", "-k", str(CRD))
        running.kubectl("apply", "-f", str(BASE / "clusterrole.yaml"))
        binding = ("create", "clusterrolebinding", "ledger", "--clusterrole=tagpin")
        running.kubectl(*binding, "--user=ledger")
        established = ("--for=condition=established", "--timeout=30s")
        running.kubectl("wait", f"crd/{PLURAL}.{GROUP}", *established)
        yield running


@pytest.fixture(scope="session")
def shop(control_plane: ControlPlane) -> Namespace:
    return Namespace(control_plane, "shop")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(control_plane: ControlPlane) -> AsyncIterator[ApiClient]:
    """With the rights of tagpin."""
    client = await connect(control_plane.kubeconfig("ledger"))
    yield client
    await disconnect(client)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def admin(control_plane: ControlPlane) -> AsyncIterator[ApiClient]:
    client = await connect(control_plane.admin)
    yield client
    await disconnect(client)


@pytest.fixture
def real(shop: Namespace, client: ApiClient, admin: ApiClient) -> Real:
    return Real(shop, client, admin)


@pytest.fixture(params=["fake", "real"])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "fake":
        return Fake()
    real: Real = request.getfixturevalue("real")
    return real


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


async def eventually(read: Callable[[], T], holds: Callable[[T], bool]) -> T:
    """Read until it holds, and return what was read last; the event loop goes on meanwhile."""
    deadline = time.monotonic() + 20
    while not holds(found := read()):
        assert time.monotonic() < deadline, f"still {found!r}"
        await asyncio.sleep(0.05)
    return found


async def look_up(backend: Backend, of: Claim) -> Revision:
    return (await backend.replica().look_up(of, within=WITHIN)).revision


async def recorded(backend: Backend, of: Claim) -> Mapping[str, Pin] | None:
    """What a replica finds that has read nothing yet."""
    record = (await backend.replica().look_up(of, within=WITHIN)).record
    return None if record is None else dict(record.pins)


async def write(backend: Backend, revision: Revision, *pins: Pin) -> Mapping[str, Pin]:
    return dict((await backend.ledger.write(revision, pins, within=WITHIN)).pins)


def by_image(*pins: Pin) -> dict[str, Pin]:
    return {pin.image: pin for pin in pins}


class TestClaims:
    async def test_a_pod_that_its_controller_made_speaks_for_its_revision(
        self, backend: Backend, kind: str
    ) -> None:
        running = await backend.run(kind)

        entry = await backend.ledger.look_up(running.claim, within=WITHIN)

        found = running.workload
        top = Owner(found["apiVersion"], kind, *(found["metadata"][key] for key in ("name", "uid")))
        assert entry.revision.workload == top
        assert entry.revision.namespace == running.claim.namespace
        assert entry.revision.hash == running.claim.hash
        assert entry.revision.name.startswith(top.name)
        assert entry.record is None
        assert entry.created is not None
        assert abs(datetime.now(UTC) - entry.created) < timedelta(minutes=1)

    async def test_pods_of_a_revision_are_counted_sooner_or_later(
        self, backend: Backend, kind: str
    ) -> None:
        of = (await backend.run(kind)).claim
        async with asyncio.timeout(20):
            while not (await backend.ledger.look_up(of, within=WITHIN)).has_pods:  # noqa: ASYNC110 - nothing signals it
                await asyncio.sleep(0.05)

    async def test_a_uid_of_another_owner_proves_nothing(self, backend: Backend, kind: str) -> None:
        of = (await backend.run(kind)).claim
        with pytest.raises(Unproven):
            await look_up(backend, replace(of, owner=replace(of.owner, uid="another")))

    async def test_nor_does_an_owner_that_does_not_exist(self, backend: Backend, kind: str) -> None:
        of = (await backend.run(kind)).claim
        with pytest.raises(Unproven):
            await look_up(backend, replace(of, owner=replace(of.owner, name="absent")))

    @pytest.mark.parametrize("kind", [each for each in KINDS if "Job" not in each])
    async def test_nor_does_a_hash_that_the_owner_does_not_know(
        self, backend: Backend, kind: str
    ) -> None:
        of = (await backend.run(kind)).claim
        with pytest.raises(Unproven):
            await look_up(backend, replace(of, hash="5d4f5d4f5"))

    @pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet"])
    async def test_nor_does_a_controller_revision_of_another_owner(
        self, backend: Backend, kind: str
    ) -> None:
        mine = (await backend.run(kind)).claim
        # Their names begin alike, and ControllerRevisions are found by name.
        theirs = (await backend.run(kind, f"{mine.owner.name}-x")).claim
        borrowed = replace(mine, hash=str(theirs.history).removeprefix(f"{mine.owner.name}-"))
        assert borrowed.history == theirs.history
        with pytest.raises(Unproven):
            await look_up(backend, borrowed)
        assert (await look_up(backend, theirs)).name == theirs.history


class TestRecords:
    async def test_a_record_is_found_by_every_replica(self, backend: Backend, kind: str) -> None:
        of = (await backend.run(kind)).claim
        assert await recorded(backend, of) is None
        written = await write(backend, await look_up(backend, of), WEB, SIDECAR)
        assert written == by_image(WEB, SIDECAR)
        assert await recorded(backend, of) == written

    async def test_a_second_write_adds_what_is_new(self, backend: Backend) -> None:
        of = (await backend.run("Deployment")).claim
        revision = await look_up(backend, of)
        await write(backend, revision, WEB)
        assert await write(backend, revision, SIDECAR) == by_image(WEB, SIDECAR)
        assert await recorded(backend, of) == by_image(WEB, SIDECAR)

    async def test_what_is_recorded_never_changes(self, backend: Backend) -> None:
        of = (await backend.run("Deployment")).claim
        revision = await look_up(backend, of)
        await backend.replica().write(revision, [WEB], within=WITHIN)
        moved = replace(WEB, digest=TWOS, resolved_at=NOW + timedelta(hours=1))
        for _ in range(2):
            assert await write(backend, revision, moved) == by_image(WEB)
        assert await write(backend, revision, moved, SIDECAR) == by_image(WEB, SIDECAR)
        assert await recorded(backend, of) == by_image(WEB, SIDECAR)

    async def test_every_field_of_a_pin_is_recorded(self, backend: Backend) -> None:
        of = (await backend.run("Deployment")).claim
        long = Digest.parse(f"sha512:{'a' * 128}")
        pins = [
            Pin("cached:1", ONES, Source.CACHE, NOW),
            Pin("stale:1", long, Source.STALE, NOW),
            Pin("mixed:1", TWOS, Source.REGISTRY, NOW, mixed=True),
        ]
        assert await write(backend, await look_up(backend, of), *pins) == by_image(*pins)
        assert await recorded(backend, of) == by_image(*pins)

    async def test_what_finds_no_room_is_left_out(self, backend: Backend) -> None:
        of = (await backend.run("Deployment")).claim
        revision = await look_up(backend, of)
        fits, too_long = (
            replace(WEB, image="x" * length) for length in (MAX_REFERENCE, MAX_REFERENCE + 1)
        )
        many = [replace(WEB, image=f"web:{number}") for number in range(MAX_PINS)]
        expected = by_image(fits, *many[:-1])
        assert await write(backend, revision, too_long, fits, *many) == expected
        assert await write(backend, revision, SIDECAR) == expected
        assert await recorded(backend, of) == expected

    async def test_a_record_of_nothing_is_none(self, backend: Backend) -> None:
        of = (await backend.run("Deployment")).claim
        too_long = replace(WEB, image="x" * (MAX_REFERENCE + 1))
        assert await write(backend, await look_up(backend, of), too_long) == {}
        assert await recorded(backend, of) is None

    async def test_a_record_of_another_revision_is_returned_as_it_is(
        self, backend: Backend
    ) -> None:
        of = (await backend.run("Deployment")).claim
        revision = await look_up(backend, of)
        other = replace(revision, hash="another")
        await backend.store(revision.record_name, ImagePin(other, by_image(SIDECAR)))

        record = await backend.ledger.write(revision, [WEB], within=WITHIN)

        assert record == ImagePin(other, by_image(SIDECAR))
        entry = await backend.replica().look_up(of, within=WITHIN)
        assert entry.record == record

    async def test_the_history_is_the_workloads_own(self, backend: Backend) -> None:
        mine = await look_up(backend, (await backend.run("Deployment")).claim)
        other = await look_up(backend, (await backend.run("Deployment")).claim)
        assert await backend.replica().history(mine, within=WITHIN) == []
        before = replace(mine, name=f"{mine.name}x", hash="another")
        for revision in (mine, before, other):
            await write(backend, revision, WEB)
        records = await backend.replica().history(mine, within=WITHIN)
        assert {record.revision for record in records} == {mine, before}
        assert all(record.pins == by_image(WEB) for record in records)


class TestSiblings:
    async def test_they_are_the_pods_of_the_owner(self, backend: Backend, kind: str) -> None:
        running = await backend.run(kind)
        siblings = await backend.ledger.siblings(running.claim, within=WITHIN)
        assert [workload.images(each) for each in siblings] == [workload.images(running.pod)]

    async def test_equal_labels_make_no_sibling(self, backend: Backend) -> None:
        mine, other = (await backend.run("Deployment"), await backend.run("Deployment"))
        labels = {HASH_LABELS[0]: mine.claim.hash}
        alone, theirs = (
            any_pod(f"{mine.claim.owner.name}-{name}", {"web": "evil:1"}, labels=labels)
            for name in ("alone", "theirs")
        )
        # A Deployment's own controller looks after ReplicaSets alone, so it leaves the pod be.
        theirs["metadata"]["ownerReferences"] = [controller_reference(other.workload)]
        await backend.add_pods(alone, theirs)

        siblings = await backend.ledger.siblings(mine.claim, within=WITHIN)

        assert [workload.images(each) for each in siblings] == [workload.images(mine.pod)]


# What only the real one has


def revision_in(namespace: str, uid: str = "uid") -> Revision:
    owner = Owner("apps/v1", "Deployment", "web", uid)
    return Revision(namespace, owner, "ReplicaSet", "web-1", "1")


class TestTheApiServer:
    async def test_many_writers_end_with_one_answer(self, real: Real) -> None:
        of = (await real.run("Deployment")).claim
        revision = await look_up(real, of)
        pins = [replace(WEB, digest=Digest.parse(f"sha256:{n:064}")) for n in range(8)]
        own = [replace(WEB, image=f"own:{n}") for n in range(4)]
        answers = await asyncio.gather(
            *(real.replica().write(revision, [pin], within=WITHIN) for pin in pins),
            *(real.replica().write(revision, [pin], within=WITHIN) for pin in own),
        )
        stored = await recorded(real, of)
        assert stored is not None
        assert all(answer.pins.items() <= stored.items() for answer in answers)
        assert stored.keys() == {"web:1"} | {pin.image for pin in own}

    async def test_a_namespace_that_is_going_away(
        self, control_plane: ControlPlane, real: Real
    ) -> None:
        going = Namespace(control_plane, "going")
        held = {"name": "held", "finalizers": ["tests.tagpin.dev/held"]}
        going.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": held})
        control_plane.kubectl("delete", "namespace", "going", "--wait=false")
        with pytest.raises(Unrecorded, match="it is being terminated") as got:
            await write(real, revision_in("going"), WEB)
        assert not got.value.is_fault

    async def test_a_namespace_that_has_gone(self, real: Real) -> None:
        with pytest.raises(Unrecorded, match='namespaces "gone" not found') as got:
            await write(real, revision_in("gone"), WEB)
        assert not got.value.is_fault

    async def test_a_quota_that_is_used_up(self, control_plane: ControlPlane, real: Real) -> None:
        full = Namespace(control_plane, "full")
        full.kubectl("create", "quota", "none", f"--hard=count/{PLURAL}.{GROUP}=0")

        async def write_until_refused() -> None:  # a quota counts after a moment
            for uid in range(1000):
                await write(real, revision_in("full", f"uid-{uid}"), WEB)

        with pytest.raises(Unrecorded, match="quota: none") as got:
            await write_until_refused()
        assert got.value.is_fault

    async def test_an_odd_uid_finds_its_own_records_and_no_others(self, real: Real) -> None:
        odd, other = (revision_in("shop", uid) for uid in (r"a,metadata.name!=\\b=c", "plain"))
        for revision in (odd, other):
            await real.store(revision.record_name, ImagePin(revision, by_image(WEB)))
        (record,) = await real.ledger.history(odd, within=WITHIN)
        assert record.revision == odd

    @pytest.mark.parametrize(
        ("group", "version", "plural"),
        [(f"absent.{GROUP}", VERSION, PLURAL), (GROUP, "v9", PLURAL), (GROUP, VERSION, "absent")],
    )
    async def test_what_is_not_installed_is_told_from_what_does_not_exist(
        self, real: Real, admin: ApiClient, group: str, version: str, plural: str
    ) -> None:
        objects, where = CustomObjectsApi(admin), (group, version, "shop", plural)
        for ask in (
            lambda: objects.get_namespaced_custom_object(*where, "x"),
            lambda: objects.create_namespaced_custom_object(*where, {"metadata": {"name": "x"}}),
            lambda: objects.list_namespaced_custom_object(*where),
        ):
            error = await refusal(ask)
            assert (error.status, error.subject) == (404, "")
        installed = (GROUP, VERSION, "shop", PLURAL, "x")
        absent = await refusal(lambda: objects.get_namespaced_custom_object(*installed))
        assert absent.is_absence_of("x")


async def refusal(ask: Callable[[], Awaitable[object]]) -> ClusterError:
    with pytest.raises(ClusterError) as got:
        async with asking("ask"):
            await ask()
    return got.value
