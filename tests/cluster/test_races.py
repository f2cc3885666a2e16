"""Two replicas that know nothing of each other, and a tag that moves all the time."""

import base64
import http.client
import json
import signal
import ssl
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http import HTTPStatus

import pytest

from cluster.controlplane import ControlPlane
from cluster.images import MANIFEST, digest
from cluster.installation import SERVICE_ACCOUNT, Install, Installation, Replica
from cluster.namespaces import (
    Namespace,
    NewNamespace,
    Object,
    admission_review,
    controller_reference,
    deployment,
    eventually,
    images,
    patched,
    pod,
    record,
    replica_set,
)
from cluster.programs import LOOPBACK
from cluster.registries import Registries, Store

JSON = "application/json"
REVISIONS = 200
FEWEST_CONFLICTS = 50
"""Below that, the replicas hardly raced."""
FEWEST_DIFFERENCES = 5
"""Revisions for which the two replicas got different answers of the registry."""
ROLL_OUTS = 5
RESTARTED = "kubectl.kubernetes.io/restartedAt"
PODS = 1000
HANDFUL = 20
"""Requests to the API for a roll-out of any size: six, where none is repeated."""

# Pods that no scheduler and no kwok spends time on.
NOBODYS = {"schedulerName": "nobody"}
PERIOD = 0.002
"""Seconds between two pushes of a tag that moves."""


@pytest.fixture(scope="module")
def installation(install: Install) -> Iterator[Installation]:
    """Two replicas with the settings of the manifests."""
    with install(replicas=2) as running:
        yield running


class Connection:
    """A connection that is kept, as the API server keeps those to a webhook."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._connection = (
            http.client.HTTPSConnection(LOOPBACK, port, timeout=60, context=tls)
            if tls
            else http.client.HTTPConnection(LOOPBACK, port, timeout=60)
        )

    def get(self, path: str, accept: str = JSON) -> bytes:
        """The body that is found there."""
        return self._send("GET", path, None, {"Accept": accept})

    def post(self, path: str, sent: Object) -> Object:
        """What is answered to an object."""
        body = self._send("POST", path, json.dumps(sent).encode(), {"Content-Type": JSON})
        answered: Object = json.loads(body)
        return answered

    def put(self, path: str, body: bytes, kind: str) -> None:
        """Leave something there."""
        self._send("PUT", path, body, {"Content-Type": kind})

    def close(self) -> None:
        self._connection.close()

    def _send(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> bytes:
        self._connection.request(method, path, body, dict(headers))
        response = self._connection.getresponse()
        answer = response.read()
        assert response.status in (HTTPStatus.OK, HTTPStatus.CREATED), answer
        return answer


class MovingTag:
    """An image whose tag names a new build every few milliseconds."""

    def __init__(self, store: Store, image: str) -> None:
        first = store.push(image)
        self.text = first.text
        self.builds = [first.digest]
        """In the order in which the tag named them; what it names now may not be here yet."""
        repository, _, tag = image.partition(":")
        self._path = f"/v2/{repository}/manifests/{tag}"
        self._connection = Connection(int(store.host.rpartition(":")[2]))
        self._manifest = json.loads(self._connection.get(self._path, MANIFEST))

    def push(self) -> None:
        """Push another build: the same layers, and a manifest that says its number."""
        annotations = {"build": f"{len(self.builds)}"}
        body = json.dumps(self._manifest | {"annotations": annotations}).encode()
        self._connection.put(self._path, body, MANIFEST)
        self.builds.append(digest(body))

    def close(self) -> None:
        self._connection.close()


@contextmanager
def moving(store: Store, image: str) -> Iterator[MovingTag]:
    """An image that is pushed again and again, in a thread; what failed there fails here."""
    tag = MovingTag(store, image)
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(PERIOD):
            tag.push()

    with closing(tag), ThreadPoolExecutor(1) as pool:
        pushing = pool.submit(go_on)
        try:
            yield tag
        finally:
            over.set()
        pushing.result()


@dataclass(frozen=True, slots=True)
class Race:
    """The first pods of a revision, each sent to another replica at the same moment."""

    owner: Object
    build: int
    """The newest build of which it was certain, when the revision came to be, that it is there."""
    pods: Sequence[Object]
    """As they were admitted."""

    @property
    def revision(self) -> str:
        """The name of its ReplicaSet."""
        return str(self.owner["metadata"]["name"])

    @property
    def images(self) -> list[str]:
        return [images(each)["app"] for each in self.pods]

    @property
    def sources(self) -> list[str]:
        return [source(each) for each in self.pods]

    @property
    def record(self) -> str:
        """The name of its record, as all pods say it."""
        (name,) = {each["metadata"]["annotations"]["tagpin.dev/revision"] for each in self.pods}
        return str(name)


class Races:
    """How races are run in a namespace in `enforce`."""

    def __init__(
        self, control_plane: ControlPlane, namespace: Namespace, replicas: Sequence[Replica]
    ) -> None:
        self._namespace = namespace.name
        issued = control_plane.authority.issue("admin", groups=["system:masters"])
        tls = ssl.create_default_context(cafile=control_plane.ca_file)
        tls.load_cert_chain(issued.certificate, issued.key)
        self._api = Connection(int(control_plane.url.rpartition(":")[2]), tls)
        configuration = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/tagpin"
        (bundle,) = {
            each["clientConfig"]["caBundle"]
            for each in json.loads(self._api.get(configuration))["webhooks"]
        }
        trusting = ssl.create_default_context(cadata=base64.b64decode(bundle).decode())
        self._replicas = [Connection(each.port, trusting) for each in replicas]
        self._line = threading.Barrier(len(replicas), timeout=60)
        self._pool = ThreadPoolExecutor(len(replicas))

    def close(self) -> None:
        self._pool.shutdown()
        for each in (self._api, *self._replicas):
            each.close()

    def run(self, number: int, tag: MovingTag) -> Race:
        """Make a revision, and send its first pods, each to another replica."""
        build = len(tag.builds) - 1
        owner = self.new_revision(f"{number:x}c4b9d", tag.text)
        everybody = range(len(self._replicas))
        pods = self._pool.map(lambda each: self.admit(owner, each, at_once=True), everybody)
        return Race(owner, build, list(pods))

    def new_revision(self, template_hash: str, image: str) -> Object:
        """A ReplicaSet as a Deployment's controller would label it."""
        labels = {"pod-template-hash": template_hash}
        made = replica_set(f"web-{template_hash}", {"app": image}, labels=labels, replicas=0)
        return self._api.post(f"/apis/apps/v1/namespaces/{self._namespace}/replicasets", made)

    def admit(
        self, owner: Object, replica: int, *, at_once: bool = False, dry_run: bool = False
    ) -> Object:
        """Another pod of a revision, as the replica of that number would have it stored.

        `at_once`: as soon as all replicas have one to admit.
        """
        written = self._pod(owner)
        review = admission_review(self._namespace, written, dry_run=dry_run)
        if at_once:
            self._line.wait()
        answered = self._replicas[replica].post("/enforce?timeout=30s", review)
        assert answered["response"]["allowed"], answered
        return patched(written, answered)

    def _pod(self, owner: Object) -> Object:
        """A pod of the ReplicaSet as its controller writes it."""
        name, template = owner["metadata"]["name"], owner["spec"]["template"]
        written = pod("", {}, labels=template["metadata"]["labels"])
        written["metadata"] |= {
            "generateName": f"{name}-",
            "ownerReferences": [controller_reference(owner)],
        }
        return written | {"spec": template["spec"]}


def test_no_revision_gets_two_digests_when_its_first_pods_reach_both_replicas_at_once(
    control_plane: ControlPlane,
    installation: Installation,
    new_namespace: NewNamespace,
    registries: Registries,
) -> None:
    namespace = new_namespace("enforce")
    mark = control_plane.audit_mark()
    with closing(Races(control_plane, namespace, installation.replicas)) as field:
        with moving(registries.public, "races/first:1") as tag:
            races = [field.run(number, tag) for number in range(REVISIONS)]
        later = [field.admit(race.owner, number % 2) for number, race in enumerate(races)]

    pinned = {revision: f"{tag.text}@{known}" for revision, known in recorded(namespace).items()}
    assert {race.revision: set(race.images) for race in races} == {
        revision: {image} for revision, image in pinned.items()
    }
    assert [images(each)["app"] for each in later] == [pinned[race.revision] for race in races]
    assert {source(each) for each in later} == {"ledger"}
    # A digest that nobody pushed would be a KeyError.
    numbers = {f"{tag.text}@{build}": number for number, build in enumerate(tag.builds)}
    older = [race.revision for race in races if numbers[pinned[race.revision]] < race.build]
    assert not older, "builds from before the revision"

    # Whether that was tested at all: both replicas asked, and only one could write.
    asked = control_plane.requests_of(SERVICE_ACCOUNT, resource="imagepins", since=mark)
    conflicts = Counter(
        each.name
        for each in asked
        if each.namespace == namespace.name and each.code == HTTPStatus.CONFLICT
    )
    assert conflicts.total() >= FEWEST_CONFLICTS
    # Who comes second takes what is recorded, which is told only where it is another digest.
    differed = [race for race in races if conflicts[race.record] and "ledger" in race.sources]
    assert len(differed) >= FEWEST_DIFFERENCES
    assert len(set(pinned.values())) >= REVISIONS // 2


def test_what_one_replica_has_recorded_the_other_finds_although_it_found_nothing_before(
    control_plane: ControlPlane,
    installation: Installation,
    new_namespace: NewNamespace,
    registries: Registries,
) -> None:
    namespace, store = new_namespace("enforce"), registries.public
    tag = MovingTag(store, "races/nothing:1")
    with (
        closing(tag),
        closing(Races(control_plane, namespace, installation.replicas)) as field,
    ):
        owner = field.new_revision("1", tag.text)
        first = images(field.admit(owner, 0, dry_run=True))
        assert recorded(namespace) == {}
        tag.push()
        assert images(field.admit(owner, 1)) != first
        tag.push()
        asked = store.questions("races/nothing")
        found = field.admit(owner, 0, dry_run=True)

    (known,) = recorded(namespace).values()
    assert images(found) == {"app": f"{tag.text}@{known}"}
    assert source(found) == "ledger"
    assert store.questions("races/nothing") == asked


def test_every_roll_out_through_the_service_runs_one_build(
    installation: Installation, new_namespace: NewNamespace, registries: Registries
) -> None:
    namespace = new_namespace("enforce")
    before = [admissions(each) for each in installation.replicas]
    at_once = {"rollingUpdate": {"maxSurge": "100%", "maxUnavailable": 0}}
    found: dict[str, set[str]] = {}
    oldest = []
    with moving(registries.public, "races/service:1") as tag:
        for number in range(ROLL_OUTS):
            oldest.append(len(tag.builds) - 1)
            web = deployment("web", {"app": tag.text}, replicas=12, strategy=at_once)
            # What `kubectl rollout restart` writes, which it does once a second at most.
            web["spec"]["template"]["metadata"]["annotations"] = {RESTARTED: f"{number}"}
            namespace.apply(web)
            namespace.wait_for_rollout("deployment/web")
            found = running(namespace) | found  # as it was when all of it was there

    pinned = {revision: f"{tag.text}@{known}" for revision, known in recorded(namespace).items()}
    assert found == {revision: {image} for revision, image in pinned.items()}
    numbers = {f"{tag.text}@{build}": number for number, build in enumerate(tag.builds)}
    built = sorted(numbers[image] for image in pinned.values())
    assert len(set(built)) == ROLL_OUTS
    assert all(number >= least for number, least in zip(built, oldest, strict=True))
    after = [admissions(each) for each in installation.replicas]
    assert all(new > old for new, old in zip(after, before, strict=True)), "one did it all"


def test_a_thousand_pods_cost_one_question_and_a_handful_of_requests(
    control_plane: ControlPlane,
    installation: Installation,
    new_namespace: NewNamespace,
    registries: Registries,
) -> None:
    namespace = new_namespace("enforce")
    app = registries.public.push("races/thousand:1")
    before = [admissions(each) for each in installation.replicas]
    mark = control_plane.audit_mark()

    namespace.create(deployment("web", {"app": app.text}, replicas=PODS, pod_spec=NOBODYS))
    eventually(lambda: created(namespace), lambda count: count == PODS, seconds=100)

    assert {images(each)["app"] for each in namespace.pods("app=web")} == {app.pinned}
    after = [admissions(each) for each in installation.replicas]
    served = [new - old for new, old in zip(after, before, strict=True)]
    assert sum(served) >= PODS
    assert all(served), "one did it all"
    # Controllers begin with one pod: its digest is recorded before the other replica has any.
    assert registries.public.questions("races/thousand") == ["1"]
    asked = control_plane.requests_of(SERVICE_ACCOUNT, since=mark)
    assert len([each for each in asked if each.namespace == namespace.name]) <= HANDFUL

    # Or they would be in the way of other tests; one by one, it would take as long again.
    namespace.kubectl("delete", "deployments,replicasets", "--all")
    namespace.kubectl("delete", "--raw", f"/api/v1/namespaces/{namespace.name}/pods")


def test_when_a_replica_is_killed_the_other_goes_on_with_its_digest(
    control_plane: ControlPlane,
    installation: Installation,
    new_namespace: NewNamespace,
    registries: Registries,
) -> None:
    namespace = new_namespace("enforce")
    before = {each: (records_made(each), admissions(each)) for each in installation.replicas}

    def is_author(replica: Replica) -> bool:
        """Whether the record is its work, and others of the pods, too."""
        made, admitted = before[replica]
        return records_made(replica) > made and admissions(replica) >= admitted + 10

    with moving(registries.public, "races/killed:1") as tag:
        namespace.create(deployment("web", {"app": tag.text}, replicas=300, pod_spec=NOBODYS))
        author = eventually(lambda: next(filter(is_author, before), None), bool)
        assert author is not None
        author.signal(signal.SIGKILL)
        until_then = len(namespace.pods("app=web"))
        eventually(lambda: created(namespace), lambda count: count == 300, seconds=100)
    author.stop()
    author.start()

    assert 10 <= until_then < 300, "that was not in the middle"
    (known,) = recorded(namespace).values()
    assert {images(each)["app"] for each in namespace.pods("app=web")} == {f"{tag.text}@{known}"}


def recorded(namespace: Namespace) -> dict[str, str]:
    """Revision → the digest of its only image, as the records of a namespace say."""
    found = [each["spec"] for each in namespace.image_pins()]
    known = {each["revision"]["name"]: each["images"] for each in found}
    assert len(known) == len(found), "a revision has two records"
    assert {len(each) for each in known.values()} <= {1}
    return {revision: each[0]["digest"] for revision, each in known.items()}


def running(namespace: Namespace) -> dict[str, set[str]]:
    """Revision → what its pods run."""
    found: dict[str, set[str]] = {}
    for each in namespace.pods("app=web"):
        (owner,) = each["metadata"]["ownerReferences"]
        found.setdefault(owner["name"], set()).add(images(each)["app"])
    return found


def created(namespace: Namespace) -> int:
    """How many pods of its Deployment there are."""
    return int(namespace.get("deployments/web", "apis/apps/v1")["status"].get("replicas", 0))


def source(admitted: Object) -> str:
    """Where the digest of a pod's only image came from."""
    return str(record(admitted)["app"]["source"])


def admissions(replica: Replica) -> int:
    """How many pods a replica has pinned."""
    return replica.counts()['tagpin_admissions_total{mode="enforce",result="pinned"}']


def records_made(replica: Replica) -> int:
    """How many records a replica has created."""
    _, text = replica.get("/metrics")
    series = 'tagpin_ledger_writes_total{result="created"} '
    values = [line.removeprefix(series) for line in text.splitlines() if line.startswith(series)]
    return int(sum(map(float, values)))
