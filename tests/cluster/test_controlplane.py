"""The control plane does what the other tests rely on."""

import json

from cluster.controlplane import ControlPlane


def test_a_deployment_rolls_out(control_plane: ControlPlane) -> None:
    control_plane.kubectl("create", "deployment", "web", "--image=registry.test/web:1")
    control_plane.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    pods = json.loads(control_plane.kubectl("get", "pods", "-l", "app=web", "-o", "json").stdout)
    assert [pod["status"]["phase"] for pod in pods["items"]] == ["Running"]


def test_a_job_completes(control_plane: ControlPlane) -> None:
    control_plane.kubectl("create", "job", "once", "--image=registry.test/once:1")
    control_plane.kubectl("wait", "job/once", "--for=condition=complete", "--timeout=60s")


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
