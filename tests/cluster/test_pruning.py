"""Pruning and the election of who does it, on a real API server with tagpin's own rights.

No pods run here: workloads have no replicas, which makes revisions all the same.
"""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio.client import ApiClient

from cluster.controlplane import PROGRAMS, ControlPlane
from cluster.namespaces import (
    Namespace,
    cron_job,
    daemon_set,
    deployment,
    eventually,
    stateful_set,
)
from cluster.requirement import require_programs
from tagpin.cluster.api import connect, disconnect
from tagpin.cluster.election import Election
from tagpin.cluster.pruning import Pruner
from tagpin.imagepin import ImagePin
from tagpin.pins import Pin, Source
from tagpin.reference import Digest
from tagpin.revision import Revision
from tagpin.workload import Owner

MANIFESTS = Path(__file__).parents[2] / "manifests"
SYSTEM = "tagpin-system"
ACCOUNT = f"system:serviceaccount:{SYSTEM}:tagpin"
SHORT = 2.0
PIN = Pin("web:1", Digest.parse(f"sha256:{'0' * 64}"), Source.SIBLINGS)

Object = dict[str, Any]


class Shop(Namespace):
    """A namespace with workloads, and the records that tagpin would have made of them."""

    def record(self, name: str, owner: Object, kind: str, revision: str, template: str) -> str:
        """A record called `name`: of those made within a second, the last name is the newest."""
        metadata = owner["metadata"]
        workload = Owner(owner["apiVersion"], owner["kind"], metadata["name"], metadata["uid"])
        made = ImagePin(
            Revision(self.name, workload, kind, revision, template), {PIN.image: PIN}
        ).to_object()
        made["metadata"]["name"] = name
        self.create(made)
        return name

    @property
    def records(self) -> set[str]:
        return {each["metadata"]["name"] for each in self.image_pins()}

    def workload(self) -> Object:
        """A stored Deployment, since the records of one that never was would be collected."""
        made = deployment("web", {"web": "web:1"}, replicas=0)
        self.apply(made)
        return self.stored(made)

    def stored(self, workload: Object) -> Object:
        plural = f"{workload['kind'].lower()}s"
        return self.get(
            f"{plural}/{workload['metadata']['name']}", f"apis/{workload['apiVersion']}"
        )

    def replica_sets(self) -> dict[str, str]:
        """Template hash → name."""
        found = self.find("replicasets", "apis/apps/v1")
        return {
            each["metadata"]["labels"]["pod-template-hash"]: each["metadata"]["name"]
            for each in found
        }

    def roll_out(self, made: Object, count: int) -> list[tuple[str, str]]:
        """Apply a Deployment with as many templates; (hash, name) of each one's ReplicaSet."""
        revisions: list[tuple[str, str]] = []
        for number in range(count):
            made["spec"]["template"]["metadata"]["annotations"] = {"version": str(number)}
            self.apply(made)
            (new,) = eventually(lambda: self.replica_sets().keys() - dict(revisions), bool)
            revisions.append((new, self.replica_sets()[new]))
        return revisions


class Cluster:
    """A control plane with tagpin's manifests, where nobody runs but the tests."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self.control_plane = control_plane
        self.kubectl = control_plane.kubectl
        self._numbers = itertools.count(1)
        self.kubectl("apply", "-k", str(MANIFESTS / "crd"))
        self.kubectl("apply", "-k", str(MANIFESTS / "base"))
        established = ("--for=condition=established", "--timeout=30s")
        self.kubectl("wait", "crd/imagepins.tagpin.dev", *established)
        self.kubeconfig = control_plane.kubeconfig_for_token(control_plane.token(SYSTEM, "tagpin"))

    def new_shop(self) -> Shop:
        return Shop(self.control_plane, f"shop-{next(self._numbers)}", {})

    def lease(self) -> Mapping[str, Any]:
        path = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/tagpin"
        spec: Mapping[str, Any] = json.loads(self.control_plane.get(path)[1]).get("spec", {})
        return spec


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A control plane of its own: pruning is about the records of a whole cluster."""
    require_programs(*PROGRAMS)
    with ControlPlane(scheduler=False, nodes=0) as control_plane:
        yield Cluster(control_plane)


@pytest.fixture
def shop(cluster: Cluster) -> Iterator[Shop]:
    made = cluster.new_shop()
    yield made
    made.kubectl("delete", "imagepins", "--all")


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[ApiClient]:
    connected = await connect(cluster.kubeconfig)
    yield connected
    await disconnect(connected)


def pruner(client: ApiClient, **options: Any) -> Pruner:
    """One for which all records are old."""
    return Pruner(client, clock=lambda: datetime.now(UTC) + timedelta(hours=1), **options)


class TestPruning:
    async def test_a_deployment_keeps_its_newest_and_those_of_its_history(
        self, shop: Shop, client: ApiClient
    ) -> None:
        made = deployment("web", {"web": "web:1"}, replicas=0, revisionHistoryLimit=2)
        revisions = shop.roll_out(made, 5)
        owner = shop.stored(made)
        names = [
            shop.record(f"{number}-{name}", owner, "ReplicaSet", name, template)
            for number, (template, name) in enumerate(revisions)
        ]
        eventually(shop.replica_sets, lambda found: len(found) == 3)
        assert await pruner(client, keep=1).prune() == 2
        assert shop.records == set(names[2:])

        await pruner(client, keep=4).prune()
        assert shop.records == set(names[2:])

    async def test_a_young_record_stays(self, shop: Shop, client: ApiClient) -> None:
        owner = shop.workload()
        shop.record("a", owner, "CloneSet", "gone-1", "1")
        shop.record("b", owner, "CloneSet", "gone-2", "2")
        assert await Pruner(client, keep=1).prune() == 0

    @pytest.mark.parametrize("make", [stateful_set, daemon_set])
    async def test_a_revision_in_the_history_of_a_controller_is_in_use(
        self, make: Callable[..., Object], shop: Shop, client: ApiClient
    ) -> None:
        made = make("db", {"db": "db:1"})
        if made["kind"] == "StatefulSet":
            made["spec"]["replicas"] = 0
        shop.apply(made)
        (history,) = eventually(lambda: shop.find("controllerrevisions", "apis/apps/v1"), bool)
        name = history["metadata"]["name"]
        template = name if made["kind"] == "StatefulSet" else name.removeprefix("db-")
        owner = shop.stored(made)
        shop.record("1-used", owner, "ControllerRevision", name, template)
        shop.record("2-gone", owner, "ControllerRevision", "db-gone", "gone")
        shop.record("3-new", owner, "ControllerRevision", "db-new", "new")
        assert await pruner(client, keep=1).prune() == 1
        assert shop.records == {"1-used", "3-new"}

    async def test_the_last_jobs_of_a_cron_job_stay(self, shop: Shop, client: ApiClient) -> None:
        made = cron_job("nightly", {"app": "app:1"})
        shop.apply(made)
        shop.kubectl("create", "job", "nightly-1", "--from=cronjob/nightly")
        ran = shop.get("jobs/nightly-1", "apis/batch/v1")
        owner = shop.stored(made)
        shop.record("1-used", owner, "Job", "nightly-1", ran["metadata"]["uid"])
        shop.record("2-other-run", owner, "Job", "nightly-1", "uid-of-an-earlier-one")
        shop.record("3-gone", owner, "Job", "nightly-0", "gone")
        shop.record("4-new", owner, "Job", "nightly-0", "new")
        assert await pruner(client, keep=1).prune() == 2
        assert shop.records == {"1-used", "4-new"}

    async def test_the_list_is_read_in_pages(
        self, cluster: Cluster, shop: Shop, client: ApiClient
    ) -> None:
        owner = shop.workload()
        for number in range(7):
            shop.record(f"r-{number}", owner, "CloneSet", f"web-{number}", str(number))
        mark = cluster.control_plane.audit_mark()
        seen: list[int] = []
        assert await pruner(client, keep=2, page=2, seen=seen.append).prune() == 5
        assert (shop.records, seen) == ({"r-5", "r-6"}, [7])
        asked = cluster.control_plane.requests_of(ACCOUNT, resource="imagepins", since=mark)
        assert [each.verb for each in asked] == ["list"] * 4 + ["delete"] * 5

    async def test_a_record_that_changed_since_it_was_listed_stays(
        self, shop: Shop, client: ApiClient
    ) -> None:
        owner = shop.workload()
        shop.record("a", owner, "CloneSet", "web-1", "1")
        shop.record("b", owner, "CloneSet", "web-2", "2")
        shop.record("c", owner, "CloneSet", "web-3", "3")
        shop.record("d", owner, "CloneSet", "web-4", "4")

        def meanwhile(_: int) -> None:
            """After the list, and before the first record is deleted."""
            another = {"reference": "sidecar:1", "digest": str(PIN.digest), "source": "siblings"}
            patch = [{"op": "add", "path": "/spec/images/-", "value": another}]
            shop.kubectl("patch", "imagepin", "a", "--type=json", "-p", json.dumps(patch))
            shop.kubectl("delete", "imagepin", "b", "c")
            shop.record("b", owner, "CloneSet", "web-2", "2")

        assert await pruner(client, keep=1, seen=meanwhile).prune() == 0
        assert shop.records == {"a", "b", "d"}


class TestOrphans:
    """On the control plane of all tests: a new one takes half a minute to collect new kinds."""

    async def test_a_replica_set_that_another_deployment_adopts_keeps_its_record(
        self, control_plane: ControlPlane
    ) -> None:
        control_plane.kubectl("apply", "-k", str(MANIFESTS / "crd"))
        established = ("--for=condition=established", "--timeout=30s")
        control_plane.kubectl("wait", "crd/imagepins.tagpin.dev", *established)
        shop = Shop(control_plane, "orphans", {})
        made = deployment("web", {"web": "web:1"}, replicas=0)
        ((template, name),) = shop.roll_out(made, 1)
        before = shop.stored(made)
        absent = before | {"metadata": {"name": "web", "uid": "of-no-deployment"}}
        shop.record("collected", absent, "ReplicaSet", name, template)
        eventually(lambda: "collected" in shop.records, lambda found: not found, seconds=60)
        shop.record("used", before, "ReplicaSet", name, template)
        shop.record("gone", before, "ReplicaSet", "web-gone", "gone")

        shop.kubectl("delete", "deployment", "web", "--cascade=orphan")
        shop.apply(made)
        eventually(
            lambda: shop.get(f"replicasets/{name}", "apis/apps/v1"),
            lambda found: bool(found["metadata"].get("ownerReferences")),
        )
        assert before["metadata"]["uid"] != shop.stored(made)["metadata"]["uid"]
        assert not any(each["metadata"].get("ownerReferences") for each in shop.image_pins())
        client = await connect(control_plane.admin)
        await pruner(client, keep=1000).prune()
        await disconnect(client)
        assert shop.records == {"used"}


class Replica:
    """One that stands for election, and when it was at work (in the loop's time)."""

    def __init__(self, client: ApiClient, name: str) -> None:
        self.client = client
        self.terms: list[tuple[float, float]] = []
        self.is_at_work = False
        self._election = Election(
            client, lead=self._lead, identity=name, namespace=SYSTEM, lease_duration=SHORT
        )

    async def _lead(self) -> None:
        time = asyncio.get_running_loop().time
        began, self.is_at_work = time(), True
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)  # what is under way comes to an end
            self.is_at_work = False
            self.terms.append((began, time()))

    def stand(self) -> None:
        self._task = asyncio.create_task(self._election.run())

    async def stop(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


@pytest.fixture
async def replicas(cluster: Cluster) -> AsyncIterator[tuple[Replica, Replica]]:
    """Two, and the Lease as it is right after installation; the first one leads."""
    lease = str(MANIFESTS / "base" / "lease.yaml")
    cluster.kubectl("delete", "-f", lease, "--ignore-not-found")
    cluster.kubectl("apply", "-f", lease)
    pair = (
        Replica(await connect(cluster.kubeconfig), "first"),
        Replica(await connect(cluster.kubeconfig), "second"),
    )
    pair[0].stand()
    await until(lambda: pair[0].is_at_work)
    pair[1].stand()
    yield pair
    for each in pair:
        await each.stop()
        await disconnect(each.client)


async def until(is_so: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not is_so():  # noqa: ASYNC110 - nothing signals what is waited for
            await asyncio.sleep(0.01)


class TestElection:
    async def test_the_second_waits_until_the_first_stops(
        self, cluster: Cluster, replicas: tuple[Replica, Replica]
    ) -> None:
        first, second = replicas
        await asyncio.sleep(SHORT * 1.2)
        assert (first.is_at_work, second.is_at_work) == (True, False)
        assert cluster.lease()["holderIdentity"] == "first"

        await first.stop()
        await until(lambda: second.is_at_work, SHORT / 2)
        assert cluster.lease()["holderIdentity"] == "second"

    async def test_the_first_stops_before_the_second_takes_over(
        self, replicas: tuple[Replica, Replica]
    ) -> None:
        first, second = replicas
        await first.client.close()  # what is asked from now on fails
        await until(lambda: second.is_at_work)
        await second.stop()
        assert not first.is_at_work
        assert first.terms[0][1] + 0.3 < second.terms[0][0], "no margin"

    async def test_without_its_lease_nobody_works_and_it_is_told_why(
        self,
        cluster: Cluster,
        replicas: tuple[Replica, Replica],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        first, second = replicas
        lease = str(MANIFESTS / "base" / "lease.yaml")
        await asyncio.to_thread(cluster.kubectl, "delete", "-f", lease)
        await until(lambda: not first.is_at_work and not second.is_at_work)
        told = [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]
        missing = "Lease tagpin-system/tagpin is missing: apply tagpin's manifests again"
        assert [line.partition(" (")[0] for line in told] == [missing] * 2

        await asyncio.to_thread(cluster.kubectl, "apply", "-f", lease)
        await until(lambda: first.is_at_work or second.is_at_work)
