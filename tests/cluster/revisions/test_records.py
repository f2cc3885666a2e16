"""ImagePins themselves: what keeps them, what forgets them, and what people see of them.

A docstring of a test is the row of the table in docs/revisions.md that it bears out.
"""

from collections.abc import Iterator

import pytest

from cluster.controlplane import ControlPlane
from cluster.installation import BASE, Install, Installation
from cluster.namespaces import Namespace, deployment
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
)


@pytest.fixture(scope="module")
def installation(install: Install) -> Iterator[Installation]:
    """One that remembers nothing for long."""
    with install(recordTTL="10ms", freshness="10ms") as running:
        yield running


def test_a_record_that_is_forgotten_is_made_again_from_the_pods_that_run(
    shop: Namespace, tag: Tag
) -> None:
    """an ImagePin is deleted, while pods of the revision run"""
    shop.create(deployment("web", {"app": tag.text}, replicas=2))
    pods = running(shop, "web", 2)
    new = tag.move()

    shop.kubectl("delete", "imagepin", pin_of(shop, pods[0])["metadata"]["name"])
    pod = renewed(shop, "web", pods[0], 2)
    assert (app(pod), source(pod)) == (tag.old.pinned, "siblings")
    assert digests(pin_of(shop, pod)) == {tag.text: tag.old.digest}

    shop.kubectl("rollout", "restart", "deployment/web")
    assert apps(running(shop, "web", 2, besides=[*pods, pod])) == {new.pinned}


def test_a_record_that_is_forgotten_while_no_pod_runs_is_made_anew(
    shop: Namespace, tag: Tag
) -> None:
    """an ImagePin is deleted, while no pod of the revision runs"""
    shop.create(deployment("web", {"app": tag.text}))
    (old,) = running(shop, "web", 1)
    new = tag.move()

    shop.kubectl("scale", "deployment/web", "--replicas=0")
    (owner,) = old["metadata"]["ownerReferences"]
    idle = ("--for=jsonpath={.status.replicas}=0", "--timeout=30s")
    shop.kubectl("wait", f"replicaset/{owner['name']}", *idle)
    shop.kubectl("delete", "imagepin", pin_of(shop, old)["metadata"]["name"])
    shop.kubectl("scale", "deployment/web", "--replicas=1")

    (pod,) = running(shop, "web", 1)
    assert app(pod) == new.pinned
    assert digests(pin_of(shop, pod)) == {tag.text: new.digest}


def test_what_people_see_of_a_restart(shop: Namespace, tag: Tag) -> None:
    shop.create(deployment("web", {"app": tag.text}, replicas=2))
    old = running(shop, "web", 2)
    new = tag.move()
    shop.kubectl("rollout", "restart", "deployment/web")
    (pod, _) = running(shop, "web", 2, besides=old)

    listed = shop.kubectl("get", "imagepins").output
    told = shop.kubectl("describe", "imagepin", pin_of(shop, pod)["metadata"]["name"]).output

    print(listed, told, sep="\n")
    header, *lines = listed.splitlines()
    assert header.split() == ["NAME", "KIND", "WORKLOAD", "REVISION", "FIRST", "IMAGE", "AGE"]
    owners = {each["metadata"]["ownerReferences"][0]["name"] for each in (old[0], pod)}
    assert {tuple(line.split()[1:5]) for line in lines} == {
        ("Deployment", "web", owner, tag.text) for owner in owners
    }
    assert new.digest in told


def test_records_outlive_tagpin(
    installation: Installation,
    control_plane: ControlPlane,
    shop: Namespace,
    tag: Tag,
    registries: Registries,
) -> None:
    """tagpin is uninstalled (`kubectl delete -k manifests/base`), and installed again"""
    shop.create(deployment("web", {"app": tag.text}))
    (first,) = running(shop, "web", 1)
    (before,) = shop.image_pins()
    tag.move()

    installation.stop()
    control_plane.kubectl("delete", "-k", str(BASE), "--timeout=60s")
    assert shop.image_pins() == [before]
    installation.apply()
    installation.start()

    with registries.public.away():
        second = renewed(shop, "web", first, 1)
        assert (app(second), source(second)) == (tag.old.pinned, "ledger")
        shop.kubectl("rollout", "restart", "deployment/web")
        (third,) = running(shop, "web", 1, besides=[second])
    assert (app(third), source(third)) == (tag.old.pinned, "stale")
    assert tag.questions == 1
