"""Who can write or read the record of a revision: its controller, and nobody who claims to be it.

Every attack is tried on a tag that has moved, so that whoever read a record would show it.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from cluster.admission.injector import CONTAINER, Injector
from cluster.controlplane import ControlPlane
from cluster.installation import SERVICE_ACCOUNT, Install, Installation
from cluster.namespaces import (
    PINS,
    Namespace,
    NewNamespace,
    Object,
    admission_review,
    controller_reference,
    deployment,
    eventually,
    images,
    job,
    patched,
    pod,
    record,
    stateful_set,
)
from cluster.registries import Pushed, Registries
from cluster.unrecorded import (
    REVISION,
    UNRECORDED,
    Mark,
    annotation,
    digests,
    idle_deployment,
    pod_of,
    replica_set_of,
    scale,
)
from tagpin.revision import Revision
from tagpin.workload import Owner

LIE = f"sha256:{'0' * 64}"
NOBODY = "00000000-0000-4000-8000-000000000000"
HASH = "pod-template-hash"
HOLD = "tagpin.test/hold"


@pytest.fixture(scope="module")
def installation(install: Install) -> Iterator[Installation]:
    """It remembers a tag for next to no time, so that pods get what a tag names by now."""
    with install(freshness="10ms", cacheTTL="10ms") as running:
        yield running


@pytest.fixture(scope="module")
def jane(control_plane: ControlPlane) -> Path:
    """Somebody who may edit what is in the namespaces that `hire` names."""
    return control_plane.kubeconfig("jane")


def hire(namespace: Namespace) -> Namespace:
    """Let jane do what people do: write pods and workloads."""
    namespace.kubectl("create", "rolebinding", "jane", "--clusterrole=edit", "--user=jane")
    return namespace


@dataclass(frozen=True, slots=True)
class Victim:
    """A workload with a pod and a record, and what its tag names by now."""

    owner: Object
    """The pod's controller."""
    app: Pushed
    moved: Pushed
    labels: Mapping[str, str]
    """Of its pod."""

    @property
    def reference(self) -> Object:
        """What its pods say, but what only those may say who may hold up the deletion."""
        reference = controller_reference(self.owner)
        del reference["blockOwnerDeletion"]
        return reference


@dataclass(frozen=True, slots=True)
class Town:
    """A namespace, and what runs there."""

    namespace: Namespace
    victims: Mapping[str, Victim]


@pytest.fixture(scope="module")
def town(installation: Installation, new_namespace: NewNamespace, registries: Registries) -> Town:
    namespace = hire(new_namespace("pin"))
    store = registries.public
    apps = {
        kind: store.push(f"town/{kind.lower()}:1") for kind in ("ReplicaSet", "StatefulSet", "Job")
    }
    namespace.create(
        deployment("web", {"app": apps["ReplicaSet"].text}),
        stateful_set("db", {"app": apps["StatefulSet"].text}),
        job("once", {"app": apps["Job"].text}),
    )
    eventually(namespace.image_pins, lambda found: len(found) == 3)
    owners = {
        "ReplicaSet": replica_set_of(namespace, "web"),
        "StatefulSet": namespace.get("statefulsets/db", "apis/apps/v1"),
        "Job": namespace.get("jobs/once", "apis/batch/v1"),
    }
    victims = {}
    for kind, selector in (
        ("ReplicaSet", "app=web"),
        ("StatefulSet", "app=db"),
        ("Job", "app=once"),
    ):
        (running,) = namespace.pods(selector)
        assert images(running) == {"app": apps[kind].pinned}
        moved = store.push(f"town/{kind.lower()}:1", "moved")
        assert moved.digest != apps[kind].digest
        victims[kind] = Victim(owners[kind], apps[kind], moved, running["metadata"]["labels"])
    return Town(namespace, victims)


class TestAPlainUser:
    """With rights on pods and workloads of the namespace, and on nothing else."""

    @pytest.fixture
    def attack(self, town: Town, jane: Path) -> Iterator[Callable[..., Object]]:
        """Creates a pod as jane; what is recorded must be the same before and after."""
        before = town.namespace.image_pins()

        def create(victim: Victim, reference: Object, labels: Mapping[str, str]) -> Object:
            made = pod("", {"app": victim.app.text}, labels=labels)
            made["metadata"] |= {
                "name": None,
                "generateName": "attack-",
                "ownerReferences": [reference],
            }
            answer = town.namespace.create(made, flags=("-o", "json"), kubeconfig=jane)
            created: Object = json.loads(answer.output)
            assert images(created) == {"app": victim.moved.pinned}
            assert record(created)["app"]["source"] in ("registry", "cache")
            assert annotation(created, REVISION) is None
            return created

        yield create
        assert town.namespace.image_pins() == before

    @pytest.mark.parametrize(
        ("changes", "labels", "why"),
        [
            pytest.param(
                {"apiVersion": "example.com/v1", "kind": "Widget", "uid": NOBODY},
                {},
                None,
                id="made up",
            ),
            pytest.param(
                {"apiVersion": "example.com/v1", "kind": "Widget", "uid": NOBODY},
                {HASH: "abc"},
                "'Widget (example.com/v1)' is not among the kinds whose revisions are recorded",
                id="made up, with a hash",
            ),
            pytest.param(
                {"name": "none", "uid": NOBODY}, {}, None, id="no such ReplicaSet, and no hash"
            ),
            pytest.param(
                {"uid": NOBODY},
                None,
                "the pods of a ReplicaSet are not created by 'jane'",
                id="the right name and a wrong uid",
            ),
            pytest.param(
                {"apiVersion": "apps/v1beta1"},
                None,
                "'ReplicaSet (apps/v1beta1)' is not among the kinds whose revisions are recorded",
                id="a wrong version",
            ),
            pytest.param(
                {"apiVersion": "apps.example.com/v1"},
                None,
                "'ReplicaSet (apps.example.com/v1)' is not among the kinds whose revisions are "
                "recorded",
                id="a wrong group",
            ),
            pytest.param(
                {},
                {HASH: "abc"},
                "the pods of a ReplicaSet are not created by 'jane'",
                id="the right reference and a made-up hash",
            ),
        ],
    )
    def test_a_reference_that_is_wrong_is_of_no_use(
        self,
        town: Town,
        attack: Callable[..., Object],
        changes: Object,
        labels: Mapping[str, str] | None,
        why: str | None,
    ) -> None:
        victim = town.victims["ReplicaSet"]
        mine = victim.labels if labels is None else labels
        created = attack(victim, victim.reference | changes, mine)
        assert annotation(created, UNRECORDED) == why

    @pytest.mark.parametrize("kind", ["ReplicaSet", "StatefulSet", "Job"])
    def test_nor_is_the_real_reference_and_label(
        self,
        town: Town,
        attack: Callable[..., Object],
        installation: Installation,
        control_plane: ControlPlane,
        kind: str,
    ) -> None:
        victim = town.victims[kind]
        mark = Mark.now(town.namespace, control_plane, installation)

        created = attack(victim, victim.reference, victim.labels)

        why = f"the pods of a {kind} are not created by 'jane'"
        assert annotation(created, UNRECORDED) == why
        (mine,) = [line for line in mark.decisions() if line["pod"] == "attack-"]
        assert (mine["unrecorded"], mine["level"]) == (why, "info")
        said = [each.get("pin.tagpin.dev/unrecorded") for each in mark.audit_annotations()]
        assert why in said
        assert mark.counted_since() == 0  # nobody has to act
        asked = control_plane.requests_of(SERVICE_ACCOUNT, resource="imagepins", since=mark.audited)
        assert [each for each in asked if each.namespace == town.namespace.name] == []

    @pytest.mark.parametrize("verb", ["create", "update", "patch", "delete", "deletecollection"])
    def test_records_are_not_theirs_to_write(self, town: Town, jane: Path, verb: str) -> None:
        question = ("auth", "can-i", verb, "imagepins.tagpin.dev")
        assert town.namespace.kubectl(*question, kubeconfig=jane, check=False).output == "no\n"

    def test_records_are_theirs_to_read_and_a_try_to_write_is_refused(
        self, town: Town, jane: Path
    ) -> None:
        before = town.namespace.image_pins()
        name = before[0]["metadata"]["name"]
        forged = before[0] | {"apiVersion": "tagpin.dev/v1alpha1", "kind": "ImagePin"}
        forged["metadata"] = {"name": "forged"}
        patch = json.dumps({"spec": {"images": []}})

        def attempt(*arguments: str, **options: Any) -> bool:
            answer = town.namespace.kubectl(*arguments, kubeconfig=jane, check=False, **options)
            return "forbidden" in answer.error.lower() and not answer.succeeded

        assert attempt("create", "-f", "-", input=json.dumps(forged))
        assert attempt("patch", "imagepin", name, "--type=merge", "-p", patch)
        assert attempt(
            "patch", "imagepin", name, "--subresource=status", "--type=merge", "-p", "{}"
        )
        assert attempt("delete", "imagepin", name)
        assert attempt("delete", "imagepins", "--all")
        assert town.namespace.kubectl("get", "imagepin", name, kubeconfig=jane).succeeded
        assert town.namespace.image_pins() == before


class TestAnAuthorOfTemplates:
    """Their annotations come with every pod that the controller makes of a template."""

    def forged(self, app: Pushed, digest: str, source: str) -> dict[str, str]:
        entry = {
            "image": app.text,
            "digest": digest,
            "source": source,
            "resolvedAt": "2020-01-01T00:00:00Z",
        }
        return {
            PINS: json.dumps({"app": entry}),
            REVISION: "another-1",
            UNRECORDED: "nothing to see here",
        }

    def create(
        self, namespace: Namespace, jane: Path, image: str, annotations: dict[str, str], **more: str
    ) -> Object:
        made = deployment("web", {"app": image, **more})
        made["spec"]["template"]["metadata"]["annotations"] = annotations
        namespace.create(made, kubeconfig=jane)
        namespace.wait_for_rollout("deployment/web")
        (running,) = namespace.pods("app=web")
        return running

    @pytest.mark.parametrize("source", ["registry", "ledger", "siblings"])
    def test_what_they_say_about_a_tag_is_replaced(
        self,
        installation: Installation,
        new_namespace: NewNamespace,
        registries: Registries,
        jane: Path,
        source: str,
    ) -> None:
        namespace = hire(new_namespace("pin"))
        app = registries.public.push(f"template/{source}:1")

        running = self.create(namespace, jane, app.text, self.forged(app, LIE, source))

        (found,) = namespace.image_pins()
        assert digests(found) == {app.text: app.digest}
        assert images(running) == {"app": app.pinned}
        assert record(running)["app"]["digest"] == app.digest
        assert annotation(running, REVISION) == found["metadata"]["name"]
        assert annotation(running, UNRECORDED) is None

    def test_a_digest_that_they_chose_is_theirs_and_not_recorded(
        self,
        installation: Installation,
        new_namespace: NewNamespace,
        registries: Registries,
        jane: Path,
    ) -> None:
        """Not even one that its tag named once, and that the cache knows."""
        namespace = hire(new_namespace("enforce"))
        app, side = (registries.public.push(f"template/{name}:1") for name in ("app", "side"))
        namespace.create(pod("known", {"app": app.text}))
        given = f"{app.text}@{LIE}"

        running = self.create(
            namespace,
            jane,
            given,
            self.forged(app, LIE, "registry"),
            side=side.text,
            old=app.pinned,
        )

        (found,) = namespace.image_pins()
        assert digests(found) == {side.text: side.digest}
        assert images(running) == {"app": given, "side": side.pinned, "old": app.pinned}
        assert {name: entry["source"] for name, entry in record(running).items()} == {
            "app": "given",
            "side": "registry",
            "old": "given",
        }
        assert annotation(running, REVISION) == found["metadata"]["name"]
        assert annotation(running, UNRECORDED) is None


class TestAForgedReview:
    """Whoever reaches the port can post one, and say that it comes from the controller manager."""

    @pytest.fixture
    def send(self, installation: Installation) -> Callable[..., Object]:
        (replica,) = installation.replicas

        def post(namespace: str, made: Object, *, path: str = "/pin", **options: Any) -> Object:
            """The pod as it would be admitted."""
            return patched(made, replica.review(path, admission_review(namespace, made, **options)))

        return post

    @pytest.mark.parametrize("path", ["/pin", "/enforce", "/audit"])
    def test_it_points_no_record_at_a_digest_that_the_registry_did_not_give(
        self,
        new_namespace: NewNamespace,
        registries: Registries,
        send: Callable[..., Object],
        path: str,
    ) -> None:
        namespace = new_namespace("pin")
        store = registries.public
        old, other = store.push("review/app:1"), store.push("review/other:1", path)
        # The cache knows what the tag named before the revision; whole seconds are compared.
        known = send(namespace.name, pod("tell", {"app": old.text}))
        resolved_at = datetime.fromisoformat(record(known)["app"]["resolvedAt"]).timestamp()
        eventually(lambda: time.time() > resolved_at + 1, bool)
        owner = idle_deployment(namespace, "web", {"app": old.text})
        app = store.push("review/app:1", f"moved {path}")

        for digest in (LIE, other.digest, old.digest, app.digest):
            for claimed in (old.text, other.text, f"{old.text}@{digest}"):
                for source in ("registry", "cache", "ledger", "siblings", "stale", "given"):
                    entry = {"image": claimed, "digest": digest, "source": source}
                    told = pod_of(owner, {"app": f"{old.text}@{digest}"})
                    told["metadata"]["annotations"] |= {
                        PINS: json.dumps({"app": entry | {"resolvedAt": "2026-01-01T00:00:00Z"}}),
                        REVISION: "web-1",
                    }
                    assert images(send(namespace.name, told, path=path)) == images(told)
        assert namespace.image_pins() == []

        # Lies about a tag leave no trace: what is recorded is what the registry says.
        told = pod_of(owner, {"app": old.text, "other": other.text})
        lies = {
            name: {"image": each, "digest": LIE, "source": "ledger"}
            for name, each in images(told).items()
        }
        told["metadata"]["annotations"][PINS] = json.dumps(lies)
        send(namespace.name, told, path=path)
        recorded = [digests(each) for each in namespace.image_pins()]
        truth = {app.text: app.digest, other.text: other.digest}
        assert recorded == ([] if path == "/audit" else [truth])

    def test_it_gives_no_revision_the_digest_of_the_one_before(
        self,
        new_namespace: NewNamespace,
        registries: Registries,
        send: Callable[..., Object],
    ) -> None:
        """As the next revision would have it for an hour if the registry were down."""
        namespace, store = new_namespace("pin"), registries.public
        app = store.push("review/stale:1")
        namespace.create(deployment("web", {"app": app.text}))
        namespace.wait_for_rollout("deployment/web")
        old = replica_set_of(namespace, "web")
        (before,) = namespace.image_pins()
        (entry,) = before["spec"]["images"]
        store.push("review/stale:1", "moved")
        namespace.kubectl("scale", "deployment/web", "--replicas=0")
        patch = {"spec": {"template": {"metadata": {"annotations": {"restarted": "now"}}}}}
        # Whole seconds are compared.
        eventually(lambda: time.time() > created(old) + 2, bool)
        namespace.kubectl("patch", "deployment/web", "-p", json.dumps(patch))
        name = eventually(
            lambda: (
                {
                    each["metadata"]["name"]
                    for each in namespace.find("replicasets?labelSelector=app=web", "apis/apps/v1")
                }
                - {old["metadata"]["name"]}
            ),
            bool,
        ).pop()
        new = namespace.get(f"replicasets/{name}", "apis/apps/v1")

        for source in ("stale", "registry", "cache"):
            told = pod_of(new, {"app": app.pinned})
            claimed = {"image": app.text, "digest": app.digest, "source": source}
            told["metadata"]["annotations"][PINS] = json.dumps(
                {"app": claimed | {"resolvedAt": entry["resolvedAt"]}}
            )
            send(namespace.name, told)
        assert namespace.image_pins() == [before]

    def test_an_update_writes_no_record(
        self,
        new_namespace: NewNamespace,
        registries: Registries,
        send: Callable[..., Object],
    ) -> None:
        namespace = new_namespace("pin")
        app = registries.public.push("review/update:1")
        owner = idle_deployment(namespace, "web", {"app": app.text})
        new = pod_of(owner)
        old = pod_of(owner, {"app": f"{app.text}@{LIE}"})
        entry = {"image": app.text, "digest": LIE, "source": "registry"}
        old["metadata"]["annotations"][PINS] = json.dumps({"app": entry})
        send(namespace.name, new, old=old)
        send(namespace.name, new, old=pod_of(owner, {"app": "registry.test/x:1"}))
        assert namespace.image_pins() == []

    @pytest.mark.parametrize(
        "user",
        [
            "jane",
            "system:serviceaccount:shop:replicaset-controller",
            "system:serviceaccount:kube-system-2:replicaset-controller",
            "system:serviceaccount:kube-system",
            "system:kube-controller-manager-2",
            "System:Kube-Controller-Manager",
            "system:*",
            "",
        ],
    )
    def test_whoever_is_nearly_the_controller_manager_is_not(
        self, town: Town, send: Callable[..., Object], user: str
    ) -> None:
        victim = town.victims["ReplicaSet"]
        before = town.namespace.image_pins()
        requester = {"username": user, "groups": ["system:masters", "system:nodes"]}
        told = send(town.namespace.name, pod_of(victim.owner), user=requester)
        assert (
            annotation(told, UNRECORDED) == f"the pods of a ReplicaSet are not created by {user!r}"
        )
        assert images(told) == {"app": victim.moved.pinned}
        assert town.namespace.image_pins() == before

    @pytest.mark.parametrize(
        ("kind", "reference", "labels", "why"),
        [
            ("ReplicaSet", {"uid": NOBODY}, {}, "is another one"),
            ("ReplicaSet", {"name": "none"}, {}, "there is no none among the replicasets"),
            ("ReplicaSet", {}, {HASH: "abc"}, "of ReplicaSet web"),
            ("ReplicaSet", {"kind": "DaemonSet"}, {"controller-revision-hash": "1"}, "there is no"),
            ("StatefulSet", {"uid": NOBODY}, {}, "is another one"),
            ("StatefulSet", {}, {"controller-revision-hash": "abc"}, "there is no db-abc among"),
            ("Job", {"uid": NOBODY}, {}, "is another one"),
            ("Job", {"name": "web"}, {}, "there is no web among the jobs"),
        ],
    )
    def test_a_claim_that_the_owner_does_not_bear_out_is_of_no_use(
        self,
        town: Town,
        send: Callable[..., Object],
        *,
        kind: str,
        reference: Object,
        labels: Mapping[str, str],
        why: str,
    ) -> None:
        victim = town.victims[kind]
        before = town.namespace.image_pins()
        made = pod("", {"app": victim.app.text}, labels={**victim.labels, **labels})
        made["metadata"]["ownerReferences"] = [victim.reference | reference]
        told = send(town.namespace.name, made)
        assert why in (annotation(told, UNRECORDED) or "")
        assert images(told) == {"app": victim.moved.pinned}
        assert town.namespace.image_pins() == before

    def test_the_history_of_another_workload_is_of_no_use(
        self, town: Town, send: Callable[..., Object]
    ) -> None:
        """A StatefulSet's pods are labelled with the name of a ControllerRevision."""
        victim = town.victims["StatefulSet"]
        name = victim.labels["controller-revision-hash"]
        town.namespace.create(stateful_set("d", {"app": victim.app.text}, replicas=0))
        other = eventually(
            lambda: town.namespace.get("statefulsets/d", "apis/apps/v1"),
            lambda found: found["status"].get("observedGeneration"),
        )
        before = town.namespace.image_pins()
        # Of "d" it would be "d-…", and a prefix of its own is not put before "d-…".
        copied = town.namespace.get(f"controllerrevisions/{name}", "apis/apps/v1")
        copied["metadata"] = {
            "name": "d-stolen",
            "ownerReferences": copied["metadata"]["ownerReferences"],
        }
        town.namespace.create(copied)
        for stolen in ("stolen", "d-stolen"):
            made = pod("", {"app": victim.app.text}, labels={"controller-revision-hash": stolen})
            made["metadata"]["ownerReferences"] = [controller_reference(other)]
            told = send(town.namespace.name, made)
            assert (
                annotation(told, UNRECORDED)
                == "ControllerRevision d-stolen is not of StatefulSet d"
            )
        assert town.namespace.image_pins() == before

    @pytest.mark.parametrize(
        ("namespace", "name", "label"),
        [
            (None, "../../../../api/v1/secrets", None),
            (None, "web/../web", None),
            (None, "..", None),
            (None, "web?watch=true", None),
            (None, "web%2f..", None),
            (None, "WEB", None),
            (None, "web\n", None),
            (None, "w" * 254, None),
            (None, "", None),
            (None, None, "a,app=web"),
            (None, None, "a b"),
            (None, None, "../x"),
            (None, None, "!a"),
            (None, None, "a" * 64),
            (None, None, "a\n"),
            ("../kube-system", None, None),
            ("a/replicasets/b", None, None),
            ("", None, None),
        ],
    )
    def test_no_name_leads_a_request_elsewhere(
        self,
        town: Town,
        control_plane: ControlPlane,
        send: Callable[..., Object],
        *,
        namespace: str | None,
        name: str | None,
        label: str | None,
    ) -> None:
        victim = town.victims["ReplicaSet"]
        made = pod_of(victim.owner)
        if name is not None:
            made["metadata"]["ownerReferences"][0]["name"] = name
        if label is not None:
            made["metadata"]["labels"][HASH] = label
        before = control_plane.kubectl("get", "imagepins", "-A", "-o", "json").stdout
        mark = control_plane.audit_mark()

        where = town.namespace.name if namespace is None else namespace
        told = send(where, made)

        assert annotation(told, UNRECORDED) == (
            "the pod names its ReplicaSet by what is no name in Kubernetes"
        )
        asked = control_plane.requests_of(SERVICE_ACCOUNT, since=mark)
        theirs = ("replicasets", "imagepins", "pods", "controllerrevisions")
        assert [each for each in asked if each.resource in theirs] == []
        assert control_plane.kubectl("get", "imagepins", "-A", "-o", "json").stdout == before

    def test_the_first_controller_counts_and_other_owners_do_not(
        self, town: Town, send: Callable[..., Object]
    ) -> None:
        victim = town.victims["ReplicaSet"]
        made = pod_of(victim.owner)
        (real,) = made["metadata"]["ownerReferences"]
        made["metadata"]["ownerReferences"] = [
            real | {"controller": False},
            real | {"controller": "true"},
            real | {"uid": NOBODY},
            real,
        ]
        told = send(town.namespace.name, made)
        assert "is another one" in (annotation(told, UNRECORDED) or "")
        assert images(told) == {"app": victim.moved.pinned}

    def test_a_record_that_it_fills_leaves_pods_pinned_and_says_so(
        self,
        installation: Installation,
        control_plane: ControlPlane,
        new_namespace: NewNamespace,
        registries: Registries,
        send: Callable[..., Object],
    ) -> None:
        namespace, store = new_namespace("pin"), registries.public
        app = store.push("full/app:1")
        junk = [store.push(f"full/junk:{number}") for number in range(60)]
        owner = idle_deployment(namespace, "web", {"app": app.text})
        mark = Mark.now(namespace, control_plane, installation)

        told = send(
            namespace.name, pod_of(owner, {f"c{n}": each.text for n, each in enumerate(junk)})
        )

        (full,) = namespace.image_pins()
        assert digests(full) == {each.text: each.digest for each in junk[:50]}
        assert images(told) == {f"c{n}": each.pinned for n, each in enumerate(junk)}
        assert mark.counted_since() == 1

        mark = Mark.now(namespace, control_plane, installation)
        (running,) = scale(namespace, "web", 1)
        assert images(running) == {"app": app.pinned}
        mark.assert_told(running, "web", "has no room (it takes 50 images", f"for {app.text}")
        assert namespace.image_pins() == [full]


def created(found: Object) -> float:
    """When an object was created, in Unix time."""
    return datetime.fromisoformat(found["metadata"]["creationTimestamp"]).timestamp()


class TestAForgedRecord:
    def test_one_of_another_workload_under_our_name_is_not_used(
        self,
        installation: Installation,
        control_plane: ControlPlane,
        new_namespace: NewNamespace,
        registries: Registries,
    ) -> None:
        namespace = new_namespace("pin")
        app = registries.public.push("name/app:1")
        owner = idle_deployment(namespace, "web", {"app": app.text})
        name = record_name(namespace, owner)
        forged = {
            "apiVersion": "tagpin.dev/v1alpha1",
            "kind": "ImagePin",
            "metadata": {"name": name},
            "spec": {
                "workload": {
                    "apiVersion": "apps/v1",
                    "kind": "Deployment",
                    "name": "web",
                    "uid": NOBODY,
                },
                "revision": {
                    "kind": "ReplicaSet",
                    "name": owner["metadata"]["name"],
                    "hash": owner["metadata"]["labels"][HASH],
                },
                "images": [{"reference": app.text, "digest": LIE, "source": "registry"}],
            },
        }
        namespace.create(forged)
        before = namespace.image_pins()
        mark = Mark.now(namespace, control_plane, installation)

        (running,) = scale(namespace, "web", 1)

        assert images(running) == {"app": app.pinned}
        assert record(running)["app"]["source"] == "registry"
        assert annotation(running, REVISION) is None
        mark.assert_told(running, "web", f"ImagePin {name} is of another revision")
        assert namespace.image_pins() == before


def record_name(namespace: Namespace, replica_set: Object) -> str:
    """The name that the record of a Deployment's ReplicaSet has."""
    (reference,) = replica_set["metadata"]["ownerReferences"]
    name, labels = replica_set["metadata"]["name"], replica_set["metadata"]["labels"]
    workload = Owner.from_reference(reference)
    return Revision(namespace.name, workload, "ReplicaSet", name, labels[HASH]).record_name


class TestForgedSiblings:
    """Pods of a revision that nobody has recorded say what it runs."""

    def test_one_that_disagrees_has_the_tag_resolved_anew(
        self,
        installation: Installation,
        control_plane: ControlPlane,
        new_namespace: NewNamespace,
        registries: Registries,
        jane: Path,
    ) -> None:
        namespace, store = hire(new_namespace()), registries.public
        old, other = store.push("siblings/app:1"), store.push("siblings/app:2")
        namespace.create(deployment("web", {"app": old.text}))
        namespace.wait_for_rollout("deployment/web")
        (running,) = namespace.pods("app=web")
        assert images(running) == {"app": old.text}
        namespace.report_image_ids(
            running["metadata"]["name"], {"app": f"{store.host}/siblings/app@{old.digest}"}
        )
        app = store.push("siblings/app:1", "moved")
        forge_sibling(namespace, jane, f"{old.text}@{other.digest}")
        opt_in(namespace)

        _, new = scale_to_two(namespace)

        assert images(new) == {"app": app.pinned}
        assert record(new)["app"] | {"mixed": True} == record(new)["app"]
        (found,) = namespace.image_pins()
        (entry,) = found["spec"]["images"]
        assert (entry["digest"], entry["mixed"]) == (app.digest, True)
        (told,) = namespace.events("Deployment", "web")
        assert "run" in told
        assert "with different digests; it was resolved anew" in told


def forge_sibling(namespace: Namespace, jane: Path, image: str) -> None:
    """A pod of jane's that is like one of the ReplicaSet's, and stays when that deletes it."""
    owner = replica_set_of(namespace, "web")
    made = pod_of(owner, {"app": image})
    del made["metadata"]["ownerReferences"][0]["blockOwnerDeletion"]
    made["metadata"]["finalizers"] = [HOLD]
    made["spec"]["schedulingGates"] = [{"name": HOLD}]
    namespace.create(made, kubeconfig=jane)
    eventually(
        lambda: [each for each in namespace.pods("app=web") if is_going(each)],
        lambda found: len(found) == 1,
    )


def is_going(pod: Object) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def opt_in(namespace: Namespace) -> None:
    """Have the namespace's pods pinned from now on."""
    namespace.kubectl("label", "namespace", namespace.name, "tagpin.dev/mode=pin")

    def is_pinned() -> bool:
        tried = pod("probe", {"app": "registry.test/unknown:1"})
        answer = namespace.create(tried, flags=("--dry-run=server", "-o", "json"))
        return record(json.loads(answer.output)) is not None

    eventually(is_pinned, bool)


def scale_to_two(namespace: Namespace) -> tuple[Object, Object]:
    namespace.kubectl("scale", "deployment/web", "--replicas=2")
    first, second = eventually(
        lambda: [each for each in namespace.pods("app=web") if not is_going(each)],
        lambda found: len(found) == 2,
    )
    return (second, first) if record(first) else (first, second)


class TestAnInjectedContainer:
    def test_it_is_added_to_the_record_and_the_first_answer_stands(
        self,
        installation: Installation,
        control_plane: ControlPlane,
        new_namespace: NewNamespace,
        registries: Registries,
    ) -> None:
        namespace, store = new_namespace("pin"), registries.public
        app, proxy = store.push("injected/app:1"), store.push("injected/proxy:1")
        with Injector(control_plane, namespace, proxy.text):
            mark = Mark.now(namespace, control_plane, installation)
            namespace.create(deployment("web", {"app": app.text}))
            namespace.wait_for_rollout("deployment/web")

            (running,) = namespace.pods("app=web")
            assert images(running) == {"app": app.pinned, CONTAINER: proxy.pinned}
            (found,) = namespace.image_pins()
            assert digests(found) == {app.text: app.digest, proxy.text: proxy.digest}
            name = found["metadata"]["name"]
            assert annotation(running, REVISION) == name
            assert record(running)["app"]["source"] == "registry"
            (said,) = mark.audit_annotations()
            first = json.loads(said.pop("pin.tagpin.dev/pins"))
            second = json.loads(said.pop("pin.tagpin.dev/reinvoked-pins"))
            assert list(first) == ["app"]
            assert second == first | {CONTAINER: second[CONTAINER]} == record(running)
            assert said == {
                f"pin.tagpin.dev/{prefix}{key}": value
                for prefix in ("", "reinvoked-")
                for key, value in (("mode", "pin"), ("result", "pinned"), ("revision", name))
            }
            mark.assert_nobody_told()

            # Both are what later pods get, though both tags have moved.
            store.push("injected/app:1", "moved")
            store.push("injected/proxy:1", "moved")
            for each in scale(namespace, "web", 2):
                assert images(each) == {"app": app.pinned, CONTAINER: proxy.pinned}
            assert namespace.image_pins() == [found]
