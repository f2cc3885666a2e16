"""The records of revisions, when the API server does not let us at them, and when it does."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

import pytest
import yaml

from cluster.controlplane import ApiRequest, ControlPlane
from cluster.installation import BASE, SERVICE_ACCOUNT, Install, Installation, Replica
from cluster.namespaces import (
    Namespace,
    NewNamespace,
    Object,
    admission_review,
    deployment,
    eventually,
    images,
    job,
    patched,
    pod,
    record,
    stateful_set,
)
from cluster.registries import Registries
from cluster.unrecorded import (
    REVISION,
    UNRECORDED,
    Mark,
    annotation,
    digests,
    idle_deployment,
    our_events,
    pod_of,
    replica_set_of,
    scale,
)
from tagpin.settings import Settings

HOLD = "tagpin.test/hold"
APPS, TAGPIN = "apis/apps/v1", "apis/tagpin.dev/v1alpha1"


@pytest.fixture(scope="module")
def installation(control_plane: ControlPlane, registries: Registries) -> Iterator[Installation]:
    """Two replicas that remember a tag for next to no time, and a record for a second.

    Their rights are too small at times, and they say so.
    """
    ages = {"freshness": "10ms", "cacheTTL": "10ms", "recordTTL": "1s"}
    with Installation(control_plane, settings=registries.settings | ages, replicas=2) as running:
        # While its cache fills, lists of a kind that is new are refused (429).
        eventually(lambda: control_plane.get(f"/{TAGPIN}/imagepins")[0] == 200, bool)
        yield running
        running.stop()
        assert "Traceback" not in running.log_text()


@pytest.fixture(scope="module")
def orphaned(
    installation: Installation, new_namespace: NewNamespace, registries: Registries
) -> tuple[Namespace, Object]:
    """A namespace whose Deployment was deleted, and the record that was there before.

    The garbage collector looks for new kinds every 30 seconds only, so this is made early.
    """
    namespace = new_namespace("pin")
    app = registries.public.push("orphaned/app:1")
    namespace.create(deployment("web", {"app": app.text}))
    (found,) = eventually(namespace.image_pins, bool)
    identity = {
        key: found["spec"]["workload"][key] for key in ("apiVersion", "kind", "name", "uid")
    }
    assert identity["uid"] == namespace.get("deployments/web", APPS)["metadata"]["uid"]
    assert found["metadata"]["ownerReferences"] == [identity]
    namespace.kubectl("delete", "deployment/web", "--timeout=30s")
    return namespace, found


def asked(control_plane: ControlPlane, namespace: Namespace, since: int) -> list[tuple[str, str]]:
    """What tagpin asked of the API about a namespace: verb and resource, in order."""
    requests = control_plane.requests_of(SERVICE_ACCOUNT, since=since)
    return [(each.verb, each.resource) for each in requests if each.namespace == namespace.name]


def writes(control_plane: ControlPlane, namespace: Namespace) -> list[ApiRequest]:
    """What tagpin ever tried to change in a namespace."""
    requests = control_plane.requests_of(SERVICE_ACCOUNT)
    return [
        each
        for each in requests
        if each.namespace == namespace.name and each.verb not in ("get", "list", "watch")
    ]


@pytest.fixture(scope="class")
def usual(install: Install) -> Iterator[Installation]:
    """One replica as it is shipped."""
    with install() as running:
        yield running


@pytest.mark.usefixtures("usual")
class TestAsItIsShipped:
    @pytest.mark.parametrize(
        ("make", "workload", "proof"),
        [
            (deployment, "deployment/web", [("get", "replicasets")]),
            (
                stateful_set,
                "statefulset/web",
                [("get", "controllerrevisions"), ("get", "statefulsets")],
            ),
        ],
    )
    def test_the_first_pod_costs_four_or_five_requests_and_the_others_none(
        self,
        control_plane: ControlPlane,
        new_namespace: NewNamespace,
        registries: Registries,
        *,
        make: Callable[..., Object],
        workload: str,
        proof: list[tuple[str, str]],
    ) -> None:
        namespace = new_namespace("pin")
        repository = f"asked/{workload}"
        app = registries.public.push(f"{repository}:1")
        mark = control_plane.audit_mark()

        namespace.create(make("web", {"app": app.text}))
        namespace.wait_for_rollout(workload)

        first = asked(control_plane, namespace, mark)
        assert sorted(first[: len(proof)]) == proof
        assert first[len(proof) :] == [
            ("get", "imagepins"),
            ("get", "serviceaccounts"),  # which may name pull secrets
            ("create", "imagepins"),
        ]
        assert registries.public.questions(repository) == ["1"]

        mark = control_plane.audit_mark()
        namespace.kubectl("scale", workload, "--replicas=3")
        namespace.wait_for_rollout(workload)

        assert asked(control_plane, namespace, mark) == []
        assert registries.public.questions(repository) == ["1"]
        assert [images(each) for each in namespace.pods("app=web")] == [{"app": app.pinned}] * 3

    def test_a_job_is_asked_for_once(
        self, control_plane: ControlPlane, new_namespace: NewNamespace, registries: Registries
    ) -> None:
        namespace = new_namespace("pin")
        app = registries.public.push("asked/job:1")
        mark = control_plane.audit_mark()
        namespace.create(job("once", {"app": app.text}, completions=2))
        namespace.kubectl("wait", "job/once", "--for=condition=complete", "--timeout=60s")
        assert asked(control_plane, namespace, mark) == [
            ("get", "jobs"),
            ("get", "imagepins"),
            ("get", "serviceaccounts"),
            ("create", "imagepins"),
        ]

    def test_a_dry_run_answers_the_same_and_writes_nothing(
        self,
        usual: Installation,
        control_plane: ControlPlane,
        new_namespace: NewNamespace,
        registries: Registries,
    ) -> None:
        namespace, store = new_namespace("pin"), registries.public
        app, side = store.push("dry/app:1"), store.push("dry/side:1")
        owner = idle_deployment(namespace, "web", {"app": app.text})
        (replica,) = usual.replicas

        bare = namespace.apply(pod("bare", {"app": app.text}), flags=("--dry-run=server", "-ojson"))
        tried = review(replica, namespace, pod_of(owner), dry_run=True)

        assert images(json.loads(bare.output)) == images(tried) == {"app": app.pinned}
        assert namespace.image_pins() == []
        assert writes(control_plane, namespace) == []

        scale(namespace, "web", 1)
        (before,) = namespace.image_pins()
        assert before["metadata"]["name"] == annotation(tried, REVISION)
        both = pod_of(owner, {"app": app.text, "side": side.text})
        tried = review(replica, namespace, both, dry_run=True)
        assert images(tried) == {"app": app.pinned, "side": side.pinned}
        assert namespace.image_pins() == [before]
        assert [each.verb for each in writes(control_plane, namespace)] == ["create"]

    def test_audit_writes_nothing(
        self,
        control_plane: ControlPlane,
        new_namespace: NewNamespace,
        registries: Registries,
    ) -> None:
        namespace = new_namespace("audit")
        app = registries.public.push("audit/app:1")
        namespace.create(deployment("web", {"app": app.text}, replicas=2))
        namespace.wait_for_rollout("deployment/web")
        for each in namespace.pods("app=web"):
            assert images(each) == {"app": app.text}
            assert record(each)["app"]["digest"] == app.digest
            assert annotation(each, REVISION) is None
        assert namespace.image_pins() == []
        assert writes(control_plane, namespace) == []

    def test_of_a_pod_that_is_refused_nothing_is_recorded(
        self,
        control_plane: ControlPlane,
        new_namespace: NewNamespace,
        registries: Registries,
    ) -> None:
        namespace = new_namespace("enforce")
        app = registries.public.push("refused/app:1")
        missing = f"{registries.public.host}/refused/app:9"
        namespace.create(deployment("web", {"app": app.text, "bad": missing}))

        assert f"{missing} does not exist (not_found)" in refusal(namespace, "web")

        assert namespace.pods("app=web") == []
        assert namespace.image_pins() == []
        written = {each.resource for each in writes(control_plane, namespace)}
        assert written <= {"events"}


def review(
    replica: Replica, namespace: Namespace, made: Object, *, path: str = "/pin", **options: Any
) -> Object:
    """A pod as one replica lets it in, asked as by the controller manager."""
    return patched(made, replica.review(path, admission_review(namespace.name, made, **options)))


def refusal(namespace: Namespace, name: str) -> str:
    """Why a Deployment gets no pod."""
    condition: Object = eventually(
        lambda: next(
            (
                each
                for each in replica_set_of(namespace, name)["status"].get("conditions", [])
                if each["type"] == "ReplicaFailure"
            ),
            {},
        ),
        bool,
    )
    return str(condition["message"])


@contextmanager
def without(control_plane: ControlPlane, *verbs: str) -> Iterator[None]:
    """Take rights on records away from tagpin's account for as long as a context lasts."""
    found = json.loads(control_plane.kubectl("get", "clusterrole", "tagpin", "-o", "json").stdout)
    fewer = deepcopy(found["rules"])
    for rule in fewer:
        if "imagepins" in rule["resources"]:
            rule["verbs"] = [verb for verb in rule["verbs"] if verb not in verbs]
    assert fewer != found["rules"]
    allow(control_plane, fewer, dict.fromkeys(verbs, "no"))
    try:
        yield
    finally:
        allow(control_plane, found["rules"], dict.fromkeys(verbs, "yes"))


def allow(control_plane: ControlPlane, rules: list[Object], expected: Mapping[str, str]) -> None:
    patch = json.dumps({"rules": rules})
    control_plane.kubectl("patch", "clusterrole", "tagpin", "--type=merge", "-p", patch)
    for verb, answer in expected.items():
        question = ("auth", "can-i", verb, "imagepins.tagpin.dev", "--as", SERVICE_ACCOUNT)
        eventually(
            lambda question=question: control_plane.kubectl(*question, check=False).stdout.strip(),  # type: ignore[misc]
            lambda said, answer=answer: said == answer,  # type: ignore[misc]
        )


@pytest.mark.usefixtures("orphaned")
class TestARecordThatSomebodyDeletes:
    def test_all_replicas_forget_it_when_their_memory_is_old(
        self,
        installation: Installation,
        new_namespace: NewNamespace,
        registries: Registries,
    ) -> None:
        namespace, store = new_namespace("pin"), registries.public
        app = store.push("deleted/app:1")
        namespace.create(deployment("web", {"app": app.text}))
        namespace.wait_for_rollout("deployment/web")
        scale(namespace, "web", 0)
        owner = eventually(
            lambda: replica_set_of(namespace, "web"), lambda found: found["status"]["replicas"] == 0
        )
        moved = store.push("deleted/app:1", "moved")
        for replica in installation.replicas:
            assert images(review(replica, namespace, pod_of(owner), dry_run=True)) == {
                "app": app.pinned
            }

        namespace.kubectl("delete", "imagepins", "--all")

        for replica in installation.replicas:
            eventually(
                lambda replica=replica: review(replica, namespace, pod_of(owner), dry_run=True),  # type: ignore[misc]
                lambda told: images(told) == {"app": moved.pinned},
                seconds=10,
            )
        (new,) = scale(namespace, "web", 1)
        assert images(new) == {"app": moved.pinned}
        (found,) = namespace.image_pins()
        assert digests(found) == {app.text: moved.digest}

    def test_as_it_is_shipped_that_takes_a_minute_at_most(self) -> None:
        assert Settings().record_ttl <= 60
        configuration = yaml.safe_load((BASE / "configmap.yaml").read_text())
        assert not any("recordTTL" in text for text in configuration["data"].values())

    def test_while_pods_of_the_revision_run_their_digest_is_recorded_again(
        self,
        installation: Installation,
        new_namespace: NewNamespace,
        registries: Registries,
    ) -> None:
        namespace, store = new_namespace("pin"), registries.public
        app = store.push("deleted/running:1")
        namespace.create(deployment("web", {"app": app.text}))
        namespace.wait_for_rollout("deployment/web")
        store.push("deleted/running:1", "moved")
        namespace.kubectl("delete", "imagepins", "--all")
        owner = replica_set_of(namespace, "web")

        eventually(
            lambda: [review(each, namespace, pod_of(owner)) for each in installation.replicas],
            lambda _: bool(namespace.image_pins()),
            seconds=10,
        )

        (found,) = namespace.image_pins()
        (entry,) = found["spec"]["images"]
        assert entry == {"reference": app.text, "digest": app.digest, "source": "siblings"}


class TestALedgerThatCannotBeRead:
    def test_a_new_revision_runs_as_written_and_everybody_is_told(
        self,
        installation: Installation,
        control_plane: ControlPlane,
        new_namespace: NewNamespace,
        registries: Registries,
    ) -> None:
        namespace = new_namespace("pin")
        app = registries.public.push("unread/pin:1")
        counted = 'tagpin_images_unpinned_total{mode="pin",reason="ledger"}'
        before = installation.counts()
        mark = Mark.now(namespace, control_plane, installation)
        with without(control_plane, "get"):
            namespace.create(deployment("web", {"app": app.text}))
            namespace.wait_for_rollout("deployment/web")

        (running,) = namespace.pods("app=web")
        assert images(running) == {"app": app.text}
        assert record(running) == {"app": {"image": app.text, "reason": "ledger"}}
        assert namespace.image_pins() == []
        assert registries.public.questions("unread/pin") == []
        (told,) = namespace.events(
            "ReplicaSet", replica_set_of(namespace, "web")["metadata"]["name"]
        )
        assert f"{app.text} has no digest, since the ledger is unreadable: cannot read" in told
        assert told.endswith("(ledger): it runs as written, unpinned")
        (line,) = mark.decisions()
        assert (line["level"], line["pins"]["app"]["reason"]) == ("warning", "ledger")
        (said,) = mark.audit_annotations()
        assert json.loads(said["pin.tagpin.dev/pins"]) == record(running)
        assert (installation.counts() - before)[counted] == 1

        # The next pod is pinned, and recorded.
        new = next(each for each in scale(namespace, "web", 2) if images(each) != images(running))
        assert images(new) == {"app": app.pinned}
        assert [digests(each) for each in namespace.image_pins()] == [{app.text: app.digest}]

    def test_a_new_revision_is_refused_in_enforce(
        self,
        installation: Installation,
        control_plane: ControlPlane,
        new_namespace: NewNamespace,
        registries: Registries,
    ) -> None:
        namespace = new_namespace("enforce")
        app = registries.public.push("unread/enforce:1")
        with without(control_plane, "get"):
            namespace.create(deployment("web", {"app": app.text}))
            told = refusal(namespace, "web")
            assert namespace.pods("app=web") == []
        assert "1 image cannot be pinned" in told
        assert "since the ledger is unreadable" in told
        assert "(ledger)" in told

    def test_a_record_that_is_in_memory_still_serves(
        self,
        installation: Installation,
        control_plane: ControlPlane,
        new_namespace: NewNamespace,
        registries: Registries,
    ) -> None:
        namespace, store = new_namespace("enforce"), registries.public
        app = store.push("unread/known:1")
        namespace.create(deployment("web", {"app": app.text}))
        namespace.wait_for_rollout("deployment/web")
        store.push("unread/known:1", "moved")
        owner = replica_set_of(namespace, "web")
        (found,) = namespace.image_pins()

        def serves(replica: Replica) -> bool:
            told = review(replica, namespace, pod_of(owner), path="/enforce", dry_run=True)
            return images(told) == {"app": app.pinned}

        assert all(map(serves, installation.replicas))
        with without(control_plane, "get"):
            mark = control_plane.audit_mark()

            def refused() -> list[int]:
                """The answers to attempts to read the record, by one replica and the other."""
                assert all(map(serves, installation.replicas))
                asked = control_plane.requests_of(SERVICE_ACCOUNT, resource="imagepins", since=mark)
                return [each.code for each in asked if each.namespace == namespace.name]

            answers = eventually(refused, lambda codes: len(codes) >= 4)
            assert set(answers) == {403}
            pods = scale(namespace, "web", 3)
        assert [images(each) for each in pods] == [{"app": app.pinned}] * 3
        assert namespace.image_pins() == [found]
        assert our_events(namespace) == []


class TestALedgerThatCannotBeWritten:
    @pytest.mark.parametrize("hurdle", ["right", "quota"])
    def test_pods_are_pinned_and_once_it_can_what_they_run_is_recorded(
        self,
        installation: Installation,
        control_plane: ControlPlane,
        new_namespace: NewNamespace,
        registries: Registries,
        hurdle: str,
    ) -> None:
        namespace, store = new_namespace("pin"), registries.public
        app = store.push(f"unwritten/{hurdle}:1")
        mark = Mark.now(namespace, control_plane, installation)
        with without(control_plane, "create") if hurdle == "right" else no_room_in(namespace):
            namespace.create(deployment("web", {"app": app.text}))
            namespace.wait_for_rollout("deployment/web")

            (running,) = namespace.pods("app=web")
            assert images(running) == {"app": app.pinned}
            assert record(running)["app"]["source"] == "registry"
            assert annotation(running, REVISION) is None
            mark.assert_told(running, "web", "cannot write ImagePin", "orbidden", "imagepins")
            assert namespace.image_pins() == []
            store.push(f"unwritten/{hurdle}:1", "moved")

            first, second = scale(namespace, "web", 2)
            assert images(first) == images(second) == {"app": app.pinned}
            assert mark.counted_since() == 2
            assert namespace.image_pins() == []

        *_, new = scale(namespace, "web", 3)

        assert images(new) == {"app": app.pinned}
        assert record(new)["app"]["source"] == "siblings"
        assert annotation(new, UNRECORDED) is None
        (found,) = namespace.image_pins()
        assert digests(found) == {app.text: app.digest}
        assert annotation(new, REVISION) == found["metadata"]["name"]
        assert mark.counted_since() == 2

    def test_a_container_that_is_added_is_told_of_and_the_record_stands(
        self,
        installation: Installation,
        control_plane: ControlPlane,
        new_namespace: NewNamespace,
        registries: Registries,
    ) -> None:
        namespace, store = new_namespace("pin"), registries.public
        app, side = store.push("unwritten/app:1"), store.push("unwritten/side:1")
        namespace.create(deployment("web", {"app": app.text}))
        namespace.wait_for_rollout("deployment/web")
        (before,) = namespace.image_pins()
        made = pod_of(replica_set_of(namespace, "web"), {"app": app.text, "side": side.text})
        mark = Mark.now(namespace, control_plane, installation)
        with without(control_plane, "update"):
            told = review(installation.replicas[0], namespace, made)
            assert namespace.image_pins() == [before]
        assert images(told) == {"app": app.pinned, "side": side.pinned}
        assert record(told)["app"]["source"] == "ledger"
        assert annotation(told, REVISION) == before["metadata"]["name"]
        said = annotation(told, UNRECORDED)
        assert said is not None
        assert "cannot write ImagePin" in said
        assert namespace.events("Deployment", "web", reason="ImageNotRecorded") == [
            f"{said}: the next pod may get another digest"
        ]
        assert mark.counted_since() == 1

        told = review(installation.replicas[1], namespace, made)
        assert annotation(told, UNRECORDED) is None
        (found,) = namespace.image_pins()
        assert digests(found) == {app.text: app.digest, side.text: side.digest}


@contextmanager
def no_room_in(namespace: Namespace) -> Iterator[None]:
    """A quota of no record at all, for as long as a context lasts."""
    count = "count/imagepins.tagpin.dev"
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none"},
        "spec": {"hard": {count: "0"}},
    }
    namespace.create(quota)
    eventually(
        lambda: namespace.get("resourcequotas/none"),
        lambda found: found.get("status", {}).get("hard") == {count: "0"},
    )
    try:
        yield
    finally:
        namespace.kubectl("delete", "resourcequota/none")


class Going(NamedTuple):
    """Two namespaces that are being deleted."""

    late: Namespace
    owner: Object
    """A ReplicaSet in one of them, which is held."""
    late_mark: Mark
    busy: Namespace
    """Where pods are made."""
    busy_mark: Mark


@pytest.fixture(scope="class")
def going(
    installation: Installation,
    control_plane: ControlPlane,
    new_namespace: NewNamespace,
    registries: Registries,
) -> Going:
    late, busy = new_namespace("pin"), new_namespace("enforce")
    app = registries.public.push("going/app:1")
    owner = idle_deployment(late, "web", {"app": app.text})
    hold(late, owner, HOLD)
    names = ("web", "api", "db")
    busy.create(*(deployment(name, {"app": app.text}) for name in names))
    eventually(busy.image_pins, lambda found: len(found) == len(names))
    marks = [Mark.now(each, control_plane, installation) for each in (late, busy)]
    busy.kubectl("scale", *(f"deployment/{name}" for name in names), "--replicas=8")
    control_plane.kubectl("delete", "namespace", late.name, busy.name, "--wait=false")
    return Going(late, owner, marks[0], busy, marks[1])


class TestANamespaceThatIsGoingAway:
    def test_what_it_does_not_take_is_no_fault_of_anybody(
        self, installation: Installation, going: Going
    ) -> None:
        """A pod that was let in a moment before."""
        made = pod_of(going.owner)
        told = review(installation.replicas[0], going.late, made)
        assert record(told)["app"]["source"] in ("registry", "cache")
        assert images(told) == {"app": f"{images(made)['app']}@{record(told)['app']['digest']}"}
        assert "is being terminated" in (annotation(told, UNRECORDED) or "")
        going.late_mark.assert_nobody_told()

    def test_it_goes_with_its_records_while_pods_are_still_made(
        self, control_plane: ControlPlane, going: Going
    ) -> None:
        hold(going.late, going.owner)
        names = [f"namespace/{each.name}" for each in (going.late, going.busy)]
        control_plane.kubectl("wait", "--for=delete", *names, "--timeout=60s")
        assert {line["level"] for line in going.busy_mark.decisions()} <= {"info"}
        assert going.busy_mark.counted_since() == 0


def test_a_record_goes_with_its_workload(orphaned: tuple[Namespace, Object]) -> None:
    namespace, found = orphaned
    assert "finalizers" not in found["metadata"]
    eventually(namespace.image_pins, lambda now: now == [], seconds=60)


def hold(namespace: Namespace, owner: Object, *finalizers: str) -> None:
    """Keep a ReplicaSet from going away; without finalizers, no longer."""
    patch = json.dumps({"metadata": {"finalizers": list(finalizers)}})
    name = owner["metadata"]["name"]
    namespace.kubectl("patch", "replicaset", name, "--type=merge", "-p", patch)
