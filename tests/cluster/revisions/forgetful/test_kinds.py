"""What a revision is for each kind of controller, and which pods have none.

A docstring of a test is the row of the table in docs/revisions.md that it bears out.
"""

import pytest

from cluster.controlplane import ControlPlane
from cluster.installation import Installation
from cluster.namespaces import (
    Namespace,
    NewNamespace,
    Object,
    controller_reference,
    cron_job,
    daemon_set,
    deployment,
    eventually,
    job,
    pod,
    replica_set,
    stateful_set,
)
from cluster.registries import Registries
from cluster.revisions.workloads import (
    ALL_NODES,
    Tag,
    annotations,
    app,
    apps,
    definition,
    digests,
    pin_of,
    renewed,
    running,
    source,
    uid,
    workload,
)

REVISION, UNRECORDED = "tagpin.dev/revision", "tagpin.dev/unrecorded"
HELD = {"schedulingGates": [{"name": "tagpin.test/hold"}]}
APPS, BATCH = "apis/apps/v1", "apis/batch/v1"


@pytest.fixture(scope="module", autouse=True)
def flaky(
    installation: Installation, new_namespace: NewNamespace, registries: Registries
) -> tuple[Namespace, Tag]:
    """A Job whose first pod has failed, on a tag that has moved since. It takes 10 s to go on."""
    namespace, tag = new_namespace("enforce"), Tag(registries.public, "revisions/flaky")
    namespace.create(job("flaky", {"app": tag.text}, pod_spec=HELD, backoffLimit=1))
    (first,) = eventually(lambda: namespace.pods("app=flaky"), bool)
    tag.move()
    namespace.fail_pod(first["metadata"]["name"])
    return namespace, tag


def named(pods: list[Object]) -> dict[str, str]:
    """Pod → what its container `app` runs."""
    return {each["metadata"]["name"]: app(each) for each in pods}


def test_a_stateful_set_runs_two_builds_where_its_partition_says_so(
    shop: Namespace, tag: Tag, registries: Registries
) -> None:
    """a StatefulSet with a partition"""
    rolling = {"updateStrategy": {"rollingUpdate": {"partition": 1}}}
    shop.create(stateful_set("db", {"app": tag.text}, replicas=2, **rolling))
    db_0, db_1 = sorted(running(shop, "db", 2), key=lambda each: str(each["metadata"]["name"]))
    new = tag.move()

    shop.kubectl("rollout", "restart", "statefulset/db")
    pods = running(shop, "db", 2, besides=[db_1])
    assert named(pods) == {"db-0": tag.old.pinned, "db-1": new.pinned}

    with registries.public.away():
        assert app(renewed(shop, "db", db_0, 2)) == tag.old.pinned
        (db_1,) = [each for each in pods if each["metadata"]["name"] == "db-1"]
        assert app(renewed(shop, "db", db_1, 2)) == new.pinned
    assert [workload(pin)[0] for pin in shop.image_pins()] == ["StatefulSet"] * 2


def test_a_stateful_set_is_undone_by_its_controller_revision(
    shop: Namespace, tag: Tag, registries: Registries
) -> None:
    """`kubectl rollout undo`"""
    shop.create(stateful_set("db", {"app": tag.text}, replicas=2))
    old = running(shop, "db", 2)
    moved = tag.move()
    shop.kubectl("rollout", "restart", "statefulset/db")
    new = running(shop, "db", 2, besides=old)
    assert apps(new) == {moved.pinned}

    with registries.public.away():
        shop.kubectl("rollout", "undo", "statefulset/db")
        pods = running(shop, "db", 2, besides=new)

    assert apps(pods) == {tag.old.pinned}
    assert pin_of(shop, pods[0])["spec"]["revision"]["kind"] == "ControllerRevision"


def test_a_daemon_set_runs_one_build_on_old_and_new_nodes(
    shop: Namespace, tag: Tag, registries: Registries, control_plane: ControlPlane
) -> None:
    """a DaemonSet gets a new node"""
    shop.create(daemon_set("agent", {"app": tag.text}))
    running(shop, "agent", ALL_NODES)
    tag.move()

    with registries.public.away():
        control_plane.add_node("node-late")
        try:
            pods = running(shop, "agent", ALL_NODES + 1)
        finally:
            control_plane.remove_node("node-late")

    assert apps(pods) == {tag.old.pinned}
    assert tag.questions == 1


def test_a_daemon_set_that_is_restarted_gets_the_new_build(shop: Namespace, tag: Tag) -> None:
    """`kubectl rollout restart`"""
    shop.create(daemon_set("agent", {"app": tag.text}))
    old = running(shop, "agent", ALL_NODES)
    new = tag.move()
    shop.kubectl("rollout", "restart", "daemonset/agent")
    assert apps(running(shop, "agent", ALL_NODES, besides=old)) == {new.pinned}


def test_the_next_job_of_a_cron_job_gets_the_new_build(shop: Namespace, tag: Tag) -> None:
    """a CronJob's next Job"""
    shop.create(cron_job("nightly", {"app": tag.text}))

    def run(name: str) -> Object:
        shop.kubectl("create", "job", name, "--from=cronjob/nightly")
        (made,) = eventually(lambda: shop.pods(f"batch.kubernetes.io/job-name={name}"), bool)
        return made

    first = run("nightly-1")
    new = tag.move()
    second = run("nightly-2")

    assert (app(first), app(second)) == (tag.old.pinned, new.pinned)
    nightly = ("CronJob", uid(shop.get("cronjobs/nightly", BATCH)))
    assert [workload(pin) for pin in shop.image_pins()] == [nightly] * 2


def test_a_job_that_is_created_again_gets_the_new_build(shop: Namespace, tag: Tag) -> None:
    """the workload is deleted, and created under the same name"""
    once = job("once", {"app": tag.text}, pod_spec=HELD)
    shop.create(once)
    eventually(lambda: shop.pods("app=once"), bool)
    new = tag.move()
    shop.kubectl("delete", "job/once", "--cascade=foreground")
    shop.create(once)
    (again,) = eventually(lambda: shop.pods("app=once"), bool)
    assert app(again) == new.pinned


def test_a_replica_set_of_an_argo_rollout_has_a_revision_of_the_rollout(
    control_plane: ControlPlane, shop: Namespace, tag: Tag, registries: Registries
) -> None:
    api_version, template_hash = "argoproj.io/v1alpha1", "5d4f8c"
    with definition(control_plane, api_version, "Rollout", "rollouts"):
        shop.create({"metadata": {"name": "web"}, "apiVersion": api_version, "kind": "Rollout"})
        rollout = shop.get("rollouts/web", f"apis/{api_version}")
        labels = {"rollouts-pod-template-hash": template_hash}
        name = f"web-{template_hash}"
        shop.create(replica_set(name, {"app": tag.text}, labels=labels, owner=rollout))
        running(shop, name, 1)
        tag.move()
        with registries.public.away():
            shop.kubectl("scale", f"replicaset/{name}", "--replicas=3")
            pods = running(shop, name, 3)

    assert apps(pods) == {tag.old.pinned}
    (pin,) = shop.image_pins()
    assert pin["spec"]["workload"] == {
        "apiVersion": api_version,
        "kind": "Rollout",
        "name": "web",
        "uid": uid(rollout),
    }
    revision = {"kind": "ReplicaSet", "name": name, "hash": template_hash}
    assert pin["spec"]["revision"] == revision


def test_a_pod_without_a_controller_is_its_own_revision(shop: Namespace, tag: Tag) -> None:
    """a pod without a controller is deleted, and applied again"""
    shop.apply(pod("web", {"app": tag.text}))
    new = tag.move()
    shop.apply(pod("web", {"app": tag.text}))
    assert app(shop.pod("web")) == tag.old.pinned

    shop.kubectl("delete", "pod/web", "--wait=true")
    shop.apply(pod("web", {"app": tag.text}))

    assert app(shop.pod("web")) == new.pinned
    assert not {REVISION, UNRECORDED} & set(annotations(shop.pod("web")))
    assert shop.image_pins() == []


def test_the_pods_of_a_replication_controller_are_resolved_one_by_one(
    shop: Namespace, tag: Tag
) -> None:
    """a ReplicationController creates a pod"""
    template = replica_set("old", {"app": tag.text})["spec"]["template"]
    spec = {"selector": {"app": "old"}, "replicas": 1, "template": template}
    metadata = {"name": "old"}
    shop.create(
        {"apiVersion": "v1", "kind": "ReplicationController", "metadata": metadata, "spec": spec}
    )
    (first,) = running(shop, "old", 1)
    assert app(first) == tag.old.pinned
    new = tag.move()
    assert app(renewed(shop, "old", first, 1)) == new.pinned
    assert not {REVISION, UNRECORDED} & set(annotations(first))
    assert shop.image_pins() == []


def test_a_pod_that_someone_else_creates_does_not_speak_for_a_revision(
    shop: Namespace, tag: Tag
) -> None:
    """somebody creates a pod with the labels and the owner of another"""
    shop.create(deployment("web", {"app": tag.text}))
    (true,) = running(shop, "web", 1)
    new = tag.move()
    owner = shop.get(f"replicasets/{true['metadata']['ownerReferences'][0]['name']}", APPS)
    forged = pod("forged", {"app": tag.text}, labels=true["metadata"]["labels"])
    forged["metadata"]["ownerReferences"] = [controller_reference(owner)]
    forged["metadata"]["labels"]["app"] = "another"  # or the ReplicaSet would remove it

    shop.create(forged)

    found = shop.pod("forged")
    assert annotations(found)[UNRECORDED] == "the pods of a ReplicaSet are not created by 'admin'"
    assert (app(found), source(found)) == (new.pinned, "registry")
    assert digests(pin_of(shop, true)) == {tag.text: tag.old.digest}


def test_a_job_that_tries_again_runs_the_same_build(flaky: tuple[Namespace, Tag]) -> None:
    """a Job tries again"""
    namespace, tag = flaky
    pods = eventually(
        lambda: namespace.pods("app=flaky"), lambda found: len(found) == 2, seconds=60
    )
    assert apps(pods) == {tag.old.pinned}
    assert sorted(map(source, pods)) == ["ledger", "registry"]
    assert tag.questions == 1
    (pin,) = namespace.image_pins()
    made = namespace.get("jobs/flaky", BATCH)
    assert (workload(pin), pin["spec"]["revision"]["hash"]) == (("Job", uid(made)), uid(made))
