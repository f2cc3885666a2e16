"""Revisions that run already when tagpin first sees them: their pods say what they run.

A docstring of a test is the row of the table in docs/revisions.md that it bears out.
"""

import json

import pytest

from cluster.controlplane import ControlPlane
from cluster.installation import Installation
from cluster.namespaces import (
    Namespace,
    NewNamespace,
    Object,
    deployment,
    eventually,
    pod,
    stateful_set,
)
from cluster.registries import Registries
from cluster.revisions.workloads import (
    Tag,
    app,
    apps,
    pin_of,
    renewed,
    running,
    source,
    uid,
    workload,
)

CHANGE = {"enableServiceLinks": False}
OTHER = f"registry.test/other@sha256:{'0' * 64}"


@pytest.fixture
def shop(installation: Installation, new_namespace: NewNamespace) -> Namespace:
    """Where nothing is pinned so far."""
    return new_namespace()


def repository(tag: Tag) -> str:
    return tag.text.removesuffix(":1")


def start(namespace: Namespace, tag: Tag, *reported: str) -> list[Object]:
    """Run a Deployment with a pod more than `reported`, the imageIDs of the others."""
    namespace.create(deployment("web", {"app": tag.text}, replicas=len(reported) + 1))
    pods = running(namespace, "web", len(reported) + 1)
    for each, image_id in zip(pods, reported, strict=False):
        namespace.report_image_ids(each["metadata"]["name"], {"app": image_id})
    return pods


def opt_in(control_plane: ControlPlane, namespace: Namespace, tag: Tag) -> None:
    """Label the namespace, and return when that has an effect."""
    control_plane.kubectl("label", "namespace", namespace.name, "tagpin.dev/mode=enforce")
    probe = json.dumps(pod("probe", {"app": tag.text}))

    def probed() -> str:
        flags = ("--dry-run=server", "-o", "json")
        return app(json.loads(namespace.kubectl("create", "-f", "-", *flags, input=probe).output))

    eventually(probed, lambda image: "@" in image)


def test_a_workload_that_is_opted_in_later_goes_on_with_what_it_runs(
    control_plane: ControlPlane, shop: Namespace, tag: Tag
) -> None:
    """a namespace is labelled while its workloads run, and their tags have moved"""
    *_, last = start(shop, tag, f"{repository(tag)}@{tag.old.digest}")
    tag.move()
    opt_in(control_plane, shop, tag)

    new = renewed(shop, "web", last, 2)

    assert (app(new), source(new)) == (tag.old.pinned, "siblings")
    assert apps(running(shop, "web", 2)) == {tag.old.pinned, tag.text}
    (entry,) = pin_of(shop, new)["spec"]["images"]
    assert entry == {"reference": tag.text, "digest": tag.old.digest, "source": "siblings"}
    after = renewed(shop, "web", new, 2)
    assert (app(after), source(after)) == (tag.old.pinned, "ledger")


def test_pods_of_one_revision_that_run_several_builds_are_told_of(
    control_plane: ControlPlane, shop: Namespace, tag: Tag
) -> None:
    """the pods of a revision that was never recorded run several builds"""
    newer = tag.move()
    *_, last = start(shop, tag, *(f"{repository(tag)}@{each.digest}" for each in (tag.old, newer)))
    newest = tag.move()
    opt_in(control_plane, shop, tag)

    new = renewed(shop, "web", last, 3)

    assert app(new) == newest.pinned
    (entry,) = pin_of(shop, new)["spec"]["images"]
    assert (entry["digest"], entry["mixed"]) == (newest.digest, True)
    (told,) = shop.events("Deployment", "web")
    assert "different digests; it was resolved anew" in told


@pytest.mark.parametrize(
    "reported",
    [
        pytest.param(OTHER, id="of another repository"),
        pytest.param(f"sha256:{'0' * 64}", id="without a repository"),
        pytest.param("", id="none"),
    ],
)
def test_an_image_id_that_says_nothing_about_the_tag_does_not_count(
    control_plane: ControlPlane, shop: Namespace, tag: Tag, reported: str
) -> None:
    """no pod of a revision that was never recorded says what it runs"""
    *_, last = start(shop, tag, reported)
    new = tag.move()
    opt_in(control_plane, shop, tag)

    made = renewed(shop, "web", last, 2)

    assert app(made) == new.pinned
    (entry,) = pin_of(shop, made)["spec"]["images"]
    assert "mixed" not in entry


def test_a_pod_that_was_not_pinned_speaks_for_those_that_come_later(
    installation: Installation, new_namespace: NewNamespace, tag: Tag, registries: Registries
) -> None:
    """in `pin`, the first pod could not be pinned"""
    shop = new_namespace("pin")
    with registries.public.away():
        shop.create(deployment("web", {"app": tag.text}))
        (first,) = running(shop, "web", 1)
    assert (app(first), shop.image_pins()) == (tag.text, [])
    shop.report_image_ids(first["metadata"]["name"], {"app": f"{repository(tag)}@{tag.old.digest}"})
    tag.move()

    shop.kubectl("scale", "deployment/web", "--replicas=2")

    assert apps(running(shop, "web", 2)) == {tag.text, tag.old.pinned}
    assert tag.questions == 0


def test_pods_that_are_orphaned_and_adopted_go_on_with_what_runs(
    installation: Installation, new_namespace: NewNamespace, tag: Tag
) -> None:
    """the workload is deleted with `--cascade=orphan`, and created again"""
    shop = new_namespace("enforce")
    shop.apply(deployment("web", {"app": tag.text}, replicas=2))
    earlier = running(shop, "web", 2)
    current = tag.move()
    web = deployment("web", {"app": tag.text}, replicas=2, pod_spec=CHANGE)
    shop.apply(web)
    pods = running(shop, "web", 2, besides=earlier)
    latest = tag.move()

    shop.kubectl("delete", "deployment/web", "--cascade=orphan")
    orphan = renewed(shop, "web", pods[0], 2)
    assert (app(orphan), source(orphan)) == (current.pinned, "siblings")
    assert workload(pin_of(shop, orphan))[0] == "ReplicaSet"

    shop.create(web)
    adopter = shop.get("deployments/web", "apis/apps/v1")
    eventually(lambda: owners(shop, "replicasets"), lambda found: found == {uid(adopter)})
    adopted = renewed(shop, "web", orphan, 2)
    assert (app(adopted), source(adopted)) == (current.pinned, "siblings")
    assert workload(pin_of(shop, adopted)) == ("Deployment", uid(adopter))

    # The earlier revision has no pods that could say what they run.
    shop.kubectl("rollout", "undo", "deployment/web")
    assert apps(running(shop, "web", 2, besides=[*pods, orphan, adopted])) == {latest.pinned}


def test_a_stateful_set_that_is_made_again_goes_on_with_what_runs(
    installation: Installation, new_namespace: NewNamespace, tag: Tag
) -> None:
    """the workload is deleted with `--cascade=orphan`, and created again"""
    shop = new_namespace("enforce")
    db = stateful_set("db", {"app": tag.text}, replicas=2)
    shop.create(db)
    pods = running(shop, "db", 2)
    tag.move()

    shop.kubectl("delete", "statefulset/db", "--cascade=orphan")
    shop.create(db)
    eventually(lambda: shop.get("statefulsets/db", "apis/apps/v1")["status"].get("replicas"), bool)

    new = renewed(shop, "db", pods[1], 2)
    assert (app(new), source(new)) == (tag.old.pinned, "siblings")
    made = shop.get("statefulsets/db", "apis/apps/v1")
    assert workload(pin_of(shop, new)) == ("StatefulSet", uid(made))


def owners(namespace: Namespace, plural: str) -> set[str]:
    """The uids of what the objects of a kind belong to."""
    return {
        owner["uid"]
        for each in namespace.find(plural, "apis/apps/v1")
        for owner in each["metadata"].get("ownerReferences", [{"uid": ""}])
    }
