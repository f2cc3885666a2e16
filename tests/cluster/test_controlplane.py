"""The control plane does what the other tests rely on."""

import json

import pytest

from cluster.controlplane import ApiRequest, ControlPlane
from cluster.namespaces import (
    NewNamespace,
    Object,
    cron_job,
    daemon_set,
    deployment,
    eventually,
    images,
    job,
    pod,
    replica_set,
    stateful_set,
)

IMAGE = "registry.test/app:1"
NEWER = "registry.test/app:2"


def test_a_deployment_rolls_out(control_plane: ControlPlane) -> None:
    control_plane.kubectl("create", "deployment", "web", "--image=registry.test/web:1")
    control_plane.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    pods = json.loads(control_plane.kubectl("get", "pods", "-l", "app=web", "-o", "json").stdout)
    assert [pod["status"]["phase"] for pod in pods["items"]] == ["Running"]


def test_a_job_completes(control_plane: ControlPlane) -> None:
    control_plane.kubectl("create", "job", "once", "--image=registry.test/once:1")
    control_plane.kubectl("wait", "job/once", "--for=condition=complete", "--timeout=60s")


@pytest.mark.parametrize(
    "workload",
    [
        pytest.param(deployment("web", {"app": IMAGE}, replicas=2), id="Deployment"),
        pytest.param(stateful_set("web", {"app": IMAGE}, replicas=2), id="StatefulSet, in order"),
        pytest.param(
            stateful_set("web", {"app": IMAGE}, replicas=2, podManagementPolicy="Parallel"),
            id="StatefulSet, at once",
        ),
        pytest.param(daemon_set("web", {"app": IMAGE}), id="DaemonSet"),
    ],
)
def test_workloads_roll_out_and_back(new_namespace: NewNamespace, workload: Object) -> None:
    namespace = new_namespace()
    name = f"{workload['kind'].lower()}/web"

    def running() -> set[str]:
        namespace.wait_for_rollout(name)
        # Old pods may still be on their way out when the rollout is done.
        pods = eventually(
            lambda: namespace.pods("app=web"),
            lambda found: len({revision(pod) for pod in found}) == 1,
        )
        return {images(pod)["app"] for pod in pods}

    namespace.create(workload)
    assert running() == {IMAGE}
    namespace.kubectl("set", "image", name, f"app={NEWER}")
    assert running() == {NEWER}
    before = {pod["metadata"]["uid"] for pod in namespace.pods("app=web")}
    namespace.kubectl("rollout", "restart", name)
    assert running() == {NEWER}
    assert before.isdisjoint(pod["metadata"]["uid"] for pod in namespace.pods("app=web"))
    namespace.kubectl("rollout", "undo", name, "--to-revision=1")
    assert running() == {IMAGE}


def revision(pod: Object) -> str:
    labels = pod["metadata"]["labels"]
    return str(labels.get("pod-template-hash") or labels["controller-revision-hash"])


def test_a_replica_set_belongs_to_the_owner_that_it_is_given(new_namespace: NewNamespace) -> None:
    namespace = new_namespace()
    namespace.kubectl("create", "configmap", "rollout")
    owner = namespace.get("configmaps/rollout")
    labels = {"rollouts-pod-template-hash": "abc"}
    namespace.create(replica_set("web-abc", {"app": IMAGE}, labels=labels, owner=owner))

    (pod,) = eventually(lambda: namespace.pods("rollouts-pod-template-hash=abc"), bool)

    assert pod["metadata"]["ownerReferences"][0]["name"] == "web-abc"
    namespace.kubectl("delete", "configmap", "rollout")
    eventually(lambda: namespace.find("replicasets", "apis/apps/v1"), lambda found: not found)


def test_a_new_node_gets_a_pod_of_a_daemon_set(
    control_plane: ControlPlane, new_namespace: NewNamespace
) -> None:
    namespace = new_namespace()
    namespace.create(daemon_set("agent", {"app": IMAGE}))
    namespace.wait_for_rollout("daemonset/agent")

    control_plane.add_node("node-new")
    try:
        four = eventually(lambda: nodes(namespace.pods("app=agent")), lambda on: len(on) == 4)
    finally:
        control_plane.remove_node("node-new")

    assert "node-new" in four
    eventually(lambda: nodes(namespace.pods("app=agent")), lambda on: on == four - {"node-new"})


def nodes(running: list[Object]) -> set[str]:
    return {pod["spec"]["nodeName"] for pod in running if pod["status"]["phase"] == "Running"}


def test_the_pods_of_a_job_come_one_after_the_other(new_namespace: NewNamespace) -> None:
    namespace = new_namespace()
    namespace.create(job("twice", {"app": IMAGE}, completions=2))
    namespace.kubectl("wait", "job/twice", "--for=condition=complete", "--timeout=60s")
    assert len(namespace.pods("app=twice")) == 2


def test_a_cron_job_runs_by_hand(new_namespace: NewNamespace) -> None:
    namespace = new_namespace()
    namespace.create(cron_job("nightly", {"app": IMAGE}))
    namespace.kubectl("create", "job", "nightly-1", "--from=cronjob/nightly")
    namespace.kubectl("wait", "job/nightly-1", "--for=condition=complete", "--timeout=60s")
    (made,) = namespace.find("jobs", "apis/batch/v1")
    assert made["metadata"]["ownerReferences"][0]["name"] == "nightly"


def test_an_image_id_that_is_reported_stays(new_namespace: NewNamespace) -> None:
    namespace = new_namespace()
    namespace.create(pod("web", {"app": IMAGE, "side": IMAGE}, init={"setup": IMAGE}))
    namespace.kubectl("wait", "pod/web", "--for=condition=ready", "--timeout=60s")
    assert image_ids(namespace.pod("web")) == {"app": "", "side": "", "setup": ""}
    app, setup = (f"registry.test/app@sha256:{digit * 64}" for digit in "ab")

    namespace.report_image_ids("web", {"app": app, "setup": setup})
    namespace.kubectl("label", "pod/web", "team=shop")  # kwok looks at the pod again,
    namespace.create(pod("later", {"app": IMAGE}))  # and has done so when it has seen a later one
    namespace.kubectl("wait", "pod/later", "--for=condition=ready", "--timeout=60s")

    found = namespace.pod("web")
    assert image_ids(found) == {"app": app, "side": "", "setup": setup}
    assert found["status"]["phase"] == "Running"


def image_ids(pod: Object) -> dict[str, str]:
    status = pod["status"]
    statuses = [*status["containerStatuses"], *status["initContainerStatuses"]]
    return {each["name"]: each["imageID"] for each in statuses}


def test_kubectl_debug_adds_an_ephemeral_container(control_plane: ControlPlane) -> None:
    control_plane.kubectl("run", "sick", "--image=registry.test/sick:1")
    control_plane.kubectl("wait", "pod/sick", "--for=condition=ready", "--timeout=60s")
    control_plane.kubectl(
        "debug", "sick", "--image=registry.test/tools:1", "--container=doctor", "--profile=general"
    )
    pod = json.loads(control_plane.kubectl("get", "pod", "sick", "-o", "json").stdout)
    (added,) = pod["spec"]["ephemeralContainers"]
    assert added["image"] == "registry.test/tools:1"


def test_the_audit_log_names_who_did_what(control_plane: ControlPlane) -> None:
    control_plane.kubectl("create", "configmap", "seen")
    (event,) = [
        event
        for event in control_plane.audit_events()
        if event["verb"] == "create" and event.get("objectRef", {}).get("name") == "seen"
    ]
    assert event["user"]["username"] == "admin"
    assert event["responseStatus"]["code"] == 201


def test_the_audit_log_can_be_read_from_a_mark_on(control_plane: ControlPlane) -> None:
    control_plane.kubectl("create", "configmap", "before")
    mark = control_plane.audit_mark()
    control_plane.kubectl("create", "configmap", "after")

    names = [each.get("objectRef", {}).get("name") for each in control_plane.audit_events(mark)]

    assert "after" in names
    assert "before" not in names
    assert control_plane.audit_events()[0] not in control_plane.audit_events(mark)


def test_what_a_user_asked_for_is_counted(
    control_plane: ControlPlane, new_namespace: NewNamespace
) -> None:
    namespace = new_namespace()
    config = control_plane.kubeconfig("auditor", ["system:masters"])
    mark = control_plane.audit_mark()
    for arguments in (
        ["create", "configmap", "one"],
        ["get", "configmap", "two"],
        ["get", "configmaps", "--watch", "--request-timeout=1s"],
    ):
        namespace.kubectl(*arguments, kubeconfig=config, check=False)

    assert control_plane.requests_of("auditor", resource="configmaps", since=mark) == [
        ApiRequest("create", "configmaps", namespace.name, "one", 201),
        ApiRequest("get", "configmaps", namespace.name, "two", 404),
        ApiRequest("list", "configmaps", namespace.name, "", 200),
        ApiRequest("watch", "configmaps", namespace.name, "", 200),
    ]
    assert control_plane.requests_of("auditor", resource="secrets", since=mark) == []


def test_an_ordinary_user_may_do_what_was_granted(control_plane: ControlPlane) -> None:
    refused = control_plane.kubectl("get", "pods", user="jane", check=False)
    assert "Forbidden" in refused.stderr
    control_plane.kubectl("create", "rolebinding", "jane", "--clusterrole=view", "--user=jane")
    control_plane.kubectl("get", "pods", user="jane")


def test_a_token_speaks_for_its_service_account(control_plane: ControlPlane) -> None:
    control_plane.kubectl("create", "serviceaccount", "robot")
    config = control_plane.kubeconfig_for_token(control_plane.token("default", "robot"))
    answer = control_plane.kubectl("auth", "whoami", "-o", "json", kubeconfig=config)
    username = json.loads(answer.stdout)["status"]["userInfo"]["username"]
    assert username == "system:serviceaccount:default:robot"


def test_two_control_planes_run_side_by_side(control_plane: ControlPlane) -> None:
    with ControlPlane(scheduler=False, nodes=0) as other:
        assert other.url != control_plane.url
        other.kubectl("create", "namespace", "elsewhere")
        refused = control_plane.kubectl("get", "namespace", "elsewhere", check=False)
        assert "NotFound" in refused.stderr
    assert control_plane.get("/readyz")[0] == 200
