"""ImagePins themselves: what keeps them, what forgets them, and what people see of them.

A docstring of a test is the row of the table in docs/revisions.md that it bears out.
"""

import shlex

from cluster.controlplane import ControlPlane
from cluster.installation import BASE, Installation
from cluster.namespaces import Namespace, deployment
from cluster.registries import Registries
from cluster.revisions.pages import COMMANDS, PIN, REVISION
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


def test_the_commands_of_the_page_do_what_it_says(shop: Namespace, tag: Tag) -> None:
    shop.create(deployment("web", {"app": tag.text}))
    (pod,) = running(shop, "web", 1)
    pin = pin_of(shop, pod)
    names = {
        PIN: pin["metadata"]["name"],
        REVISION: pin["spec"]["revision"]["name"],
        "NAME": pod["metadata"]["name"],
    }

    new = tag.move()

    answers = []
    for command in COMMANDS:
        words = [names.get(word, word) for word in shlex.split(command)]
        answers.append(shop.kubectl(*words[1:]).output)

    listed, described, wide, recorded, unrecorded, *_ = answers
    assert listed.split()[:6] == ["NAME", "KIND", "WORKLOAD", "REVISION", "FIRST", "IMAGE"]
    assert listed.split()[7:11] == [names[PIN], "Deployment", "web", names[REVISION]]
    assert tag.old.digest in described
    assert tag.old.digest in wide
    assert (recorded, unrecorded) == (names[PIN], "")
    assert apps(running(shop, "web", 3, besides=[pod])) == {new.pinned}
    assert pin_of(shop, pod) == {}


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
