"""Which digest the pods of a Deployment run, whatever becomes of the tag.

A docstring of a test is the row of the table in docs/revisions.md that it bears out.
"""

import json
from collections.abc import Iterator

import pytest

from cluster.admission.injector import CONTAINER, Injector
from cluster.controlplane import ControlPlane
from cluster.installation import Install, Installation
from cluster.namespaces import Namespace, NewNamespace, Object, deployment, eventually, images
from cluster.registries import Registries
from cluster.revisions.workloads import (
    Tag,
    app,
    apps,
    digests,
    pin_of,
    renewed,
    running,
    source,
    uid,
    workload,
)

CHANGE = {"enableServiceLinks": False}
"""A change of the template that has nothing to do with its images."""


@pytest.fixture(scope="module")
def installation(install: Install) -> Iterator[Installation]:
    """tagpin as it is shipped."""
    with install() as running:
        yield running


def web(tag: Tag, replicas: int = 1, **options: object) -> Object:
    return deployment("web", {"app": tag.text}, replicas=replicas, **options)


def test_the_first_pod_asks_and_the_others_take_what_it_recorded(shop: Namespace, tag: Tag) -> None:
    """first roll-out"""
    shop.create(web(tag, replicas=3))

    pods = running(shop, "web", 3)

    assert apps(pods) == {tag.old.pinned}
    assert sorted(map(source, pods)) == ["ledger", "ledger", "registry"]
    assert tag.questions == 1
    (pin,) = shop.image_pins()
    assert {json.dumps(pin_of(shop, pod)) for pod in pods} == {json.dumps(pin)}
    assert digests(pin) == {tag.text: tag.old.digest}
    made = shop.get("deployments/web", "apis/apps/v1")
    assert workload(pin) == ("Deployment", uid(made))
    (owner,) = pin["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == workload(pin)


def test_the_second_pod_runs_what_the_first_does(shop: Namespace, tag: Tag) -> None:
    """the tag moves meanwhile"""
    shop.create(web(tag))
    running(shop, "web", 1)
    tag.move()
    shop.kubectl("scale", "deployment/web", "--replicas=2")
    pods = running(shop, "web", 2)
    assert apps(pods) == {tag.old.pinned}
    assert sorted(map(source, pods)) == ["ledger", "registry"]
    assert tag.questions == 1


def test_fifty_pods_run_one_digest_while_the_registry_is_down(
    shop: Namespace, tag: Tag, registries: Registries
) -> None:
    """a pod is deleted, evicted or rescheduled; the workload is scaled"""
    shop.create(web(tag))
    (first,) = running(shop, "web", 1)
    tag.move()

    with registries.public.away():
        assert app(renewed(shop, "web", first, 1)) == tag.old.pinned
        shop.kubectl("scale", "deployment/web", "--replicas=50")
        pods = running(shop, "web", 50)

    assert apps(pods) == {tag.old.pinned}
    assert set(map(source, pods)) == {"ledger"}
    assert tag.questions == 1
    assert len(shop.image_pins()) == 1


def test_a_restart_gets_the_new_build_and_a_way_back(
    shop: Namespace, tag: Tag, registries: Registries
) -> None:
    """`kubectl rollout restart`"""
    shop.create(web(tag, replicas=2))
    old = running(shop, "web", 2)
    new = tag.move()

    shop.kubectl("rollout", "restart", "deployment/web")

    pods = running(shop, "web", 2, besides=old)
    assert apps(pods) == {new.pinned}
    assert digests(pin_of(shop, pods[0])) == {tag.text: new.digest}
    assert digests(pin_of(shop, old[0])) == {tag.text: tag.old.digest}
    assert tag.questions == 2


def test_an_undone_restart_runs_the_very_bytes_from_before(
    shop: Namespace, tag: Tag, registries: Registries
) -> None:
    """`kubectl rollout undo`"""
    shop.create(web(tag, replicas=2))
    old = running(shop, "web", 2)
    tag.move()
    shop.kubectl("rollout", "restart", "deployment/web")
    new = running(shop, "web", 2, besides=old)

    with registries.public.away():
        shop.kubectl("rollout", "undo", "deployment/web")
        assert apps(running(shop, "web", 2, besides=new)) == {tag.old.pinned}

    assert tag.questions == 2


def test_while_two_revisions_run_each_keeps_its_own(shop: Namespace, tag: Tag) -> None:
    """the tag moves meanwhile"""
    both = {"maxSurge": 1, "maxUnavailable": 0}
    never = {"minReadySeconds": 3600, "progressDeadlineSeconds": 7200}
    shop.create(web(tag, replicas=2, strategy={"rollingUpdate": both}, **never))
    old = running(shop, "web", 2)
    new = tag.move()
    shop.kubectl("rollout", "restart", "deployment/web")
    (latest,) = [pod for pod in running(shop, "web", 3) if uid(pod) not in map(uid, old)]
    tag.move()

    assert app(renewed(shop, "web", old[0], 3)) == tag.old.pinned
    assert app(renewed(shop, "web", latest, 3)) == new.pinned


def test_a_manifest_that_is_applied_again_changes_nothing(shop: Namespace, tag: Tag) -> None:
    """the same manifest is applied again"""
    shop.apply(web(tag))
    (first,) = running(shop, "web", 1)
    tag.move()

    shop.apply(web(tag))

    assert uid(running(shop, "web", 1)[0]) == uid(first)
    assert app(renewed(shop, "web", first, 1)) == tag.old.pinned


def test_a_template_that_is_changed_back_brings_the_old_build_back(
    shop: Namespace, tag: Tag, registries: Registries
) -> None:
    """the template is changed, and changed back"""
    shop.apply(web(tag))
    first = running(shop, "web", 1)
    new = tag.move()
    shop.apply(web(tag, pod_spec=CHANGE))
    second = running(shop, "web", 1, besides=first)
    assert apps(second) == {new.pinned}

    with registries.public.away():
        shop.apply(web(tag))
        third = running(shop, "web", 1, besides=second)
        assert apps(third) == {tag.old.pinned}

    shop.kubectl("rollout", "restart", "deployment/web")
    assert apps(running(shop, "web", 1, besides=third)) == {new.pinned}


def test_the_record_outlives_the_replica_set(
    shop: Namespace, tag: Tag, registries: Registries
) -> None:
    """an old template is applied again, and its ReplicaSet is gone (`revisionHistoryLimit: 0`)"""
    shop.apply(web(tag, revisionHistoryLimit=0))
    first = running(shop, "web", 1)
    tag.move()
    shop.apply(web(tag, revisionHistoryLimit=0, pod_spec=CHANGE))
    second = running(shop, "web", 1, besides=first)
    eventually(lambda: shop.find("replicasets", "apis/apps/v1"), lambda found: len(found) == 1)

    with registries.public.away():
        shop.apply(web(tag, revisionHistoryLimit=0))
        assert apps(running(shop, "web", 1, besides=second)) == {tag.old.pinned}


def test_a_deployment_of_the_same_name_is_another_one(shop: Namespace, tag: Tag) -> None:
    """the workload is deleted, and created under the same name"""
    shop.create(web(tag))
    first = running(shop, "web", 1)
    new = tag.move()

    shop.kubectl("delete", "deployment/web")
    shop.create(web(tag))

    (pod,) = running(shop, "web", 1, besides=first)
    assert app(pod) == new.pinned
    made = shop.get("deployments/web", "apis/apps/v1")
    assert workload(pin_of(shop, pod)) == ("Deployment", uid(made))


def test_a_restart_that_is_taken_back_brings_the_old_build_back(shop: Namespace, tag: Tag) -> None:
    """a restart, and a GitOps tool that takes its annotation away"""
    shop.create(web(tag))
    first = running(shop, "web", 1)
    new = tag.move()
    shop.kubectl("rollout", "restart", "deployment/web")
    second = running(shop, "web", 1, besides=first)
    assert apps(second) == {new.pinned}

    annotate(shop, "kubectl.kubernetes.io/restartedAt", None)
    third = running(shop, "web", 1, besides=second)
    assert apps(third) == {tag.old.pinned}

    annotate(shop, "example.com/build", "2")  # in Git
    assert apps(running(shop, "web", 1, besides=third)) == {new.pinned}


def annotate(namespace: Namespace, key: str, value: str | None) -> None:
    template = {"metadata": {"annotations": {key: value}}}
    patch = json.dumps({"spec": {"template": template}})
    namespace.kubectl("patch", "deployment/web", "-p", patch)


def test_a_sidecar_is_added_to_the_record(
    shop: Namespace, tag: Tag, registries: Registries, control_plane: ControlPlane
) -> None:
    """another webhook injects a sidecar from some pod on"""
    proxy = Tag(registries.public, "revisions/proxy")
    shop.create(web(tag))
    running(shop, "web", 1)

    with Injector(control_plane, shop, proxy.text):
        shop.kubectl("scale", "deployment/web", "--replicas=2")
        running(shop, "web", 2)
        tag.move()
        proxy.move()
        with registries.public.away():
            shop.kubectl("scale", "deployment/web", "--replicas=4")
            pods = running(shop, "web", 4)

    assert apps(pods) == {tag.old.pinned}
    injected = [found[CONTAINER] for found in map(images, pods) if CONTAINER in found]
    assert injected == [proxy.old.pinned] * 3
    (pin,) = shop.image_pins()
    assert digests(pin) == {tag.text: tag.old.digest, proxy.text: proxy.old.digest}


def test_a_new_revision_takes_the_last_known_digest_while_the_registry_is_down(
    shop: Namespace, tag: Tag, registries: Registries
) -> None:
    """the registry is down"""
    shop.create(web(tag))
    first = running(shop, "web", 1)

    with registries.public.away():
        shop.kubectl("rollout", "restart", "deployment/web")
        (pod,) = running(shop, "web", 1, besides=first)

    assert (app(pod), source(pod)) == (tag.old.pinned, "stale")
    (entry,) = pin_of(shop, pod)["spec"]["images"]
    assert (entry["digest"], entry["source"]) == (tag.old.digest, "stale")
    assert any("is down" in told for told in shop.events("Deployment", "web"))


def test_a_tag_that_nobody_knows_waits_for_the_registry(
    shop: Namespace, tag: Tag, registries: Registries
) -> None:
    """the registry is down"""
    with registries.public.away():
        shop.create(web(tag))
        (told,) = shop.events("Deployment", "web")
        assert "(unreachable)" in told
        assert shop.image_pins() == []

    assert apps(running(shop, "web", 1)) == {tag.old.pinned}


def test_a_build_that_was_pushed_for_a_roll_out_is_not_missed(
    installation: Installation, new_namespace: NewNamespace, registries: Registries
) -> None:
    """a build is pushed right before the roll-out"""
    shop = new_namespace("enforce")
    for attempt in range(10):
        tag = Tag(registries.public, f"revisions/pushed-{attempt}")
        first_pod(shop, deployment(f"a-{attempt}", {"app": tag.text}))
        new = tag.move()
        pod = first_pod(shop, deployment(f"b-{attempt}", {"app": tag.text}))
        assert app(pod) == new.pinned


def first_pod(namespace: Namespace, workload: Object) -> Object:
    """Create a workload, and return its pod as soon as it is admitted."""
    namespace.create(workload)
    name = workload["metadata"]["name"]
    (pod,) = eventually(lambda: namespace.pods(f"app={name}"), bool)
    return pod
