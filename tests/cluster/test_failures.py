"""What each mode does with a pod when something else is down: rows of docs/failures.md."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.controlplane import ControlPlane
from cluster.installation import SERVICE_ACCOUNT, SYSTEM, Installation, Replica, kustomized
from cluster.namespaces import (
    Namespace,
    NewNamespace,
    deployment,
    eventually,
    images,
    pod,
    record,
)
from cluster.pages import Shell, commands
from cluster.programs import ProgramError
from cluster.registries import Registries
from conftest import Figure
from fakes.faults import Fault, answering, hanging
from fakes.registry import FakeRegistry
from stages.played import LoopThread

MODES = ("audit", "pin", "enforce")
NOBODY = "registry.invalid"
"""No name server knows it: RFC 2606."""
REPOSITORY = "outages/app"
OUTAGES: Mapping[str, tuple[Fault, str, str]] = {
    "is down": (answering(503), "/manifests/", "unreachable"),
    "is slow": (hanging(), "/manifests/", "timeout"),
    "has had enough": (answering(429, {"Retry-After": "50"}), "/manifests/", "rate_limited"),
    "has lost its token server": (answering(503), "/token", "unreachable"),
}
"""What is wrong with a registry, with what of it, and the reason that pods then carry."""


@pytest.fixture(scope="module")
def faulty() -> Iterator[Mapping[str, FakeRegistry]]:
    """A registry for each outage, and nothing wrong with any yet."""
    with LoopThread() as loop:
        made = {name: FakeRegistry(tokens=True) for name in OUTAGES}
        for each in made.values():
            loop.run(each.start())
            each.push_image(REPOSITORY, "known", b"known")
            each.push_image(REPOSITORY, "new", b"new")
        yield made
        for each in made.values():
            loop.run(each.stop())


@pytest.fixture(scope="module")
def installation(
    control_plane: ControlPlane, registries: Registries, faulty: Mapping[str, FakeRegistry]
) -> Iterator[Installation]:
    """One that waits for registries for a second only. Its rights are too small at times."""
    plain = {"http": True, "credentialsOverHttp": True}  # tokens are credentials as well
    hosts = [NOBODY, *(each.host for each in faulty.values())]
    known = [*registries.settings["registries"], *({"host": each} | plain for each in hosts)]
    settings = {"registries": known, "budget": "1s", "freshness": "10ms", "recordTTL": "1s"}
    with Installation(control_plane, settings=registries.settings | settings) as running:
        eventually(lambda: control_plane.get("/apis/tagpin.dev/v1alpha1/imagepins")[0] == 200, bool)
        yield running
        running.stop()
        assert "Traceback" not in running.log_text()


@pytest.mark.parametrize("outage", OUTAGES)
def test_a_registry_that_fails_costs_a_new_tag_what_the_mode_says(
    installation: Installation,
    new_namespace: NewNamespace,
    faulty: Mapping[str, FakeRegistry],
    outage: str,
) -> None:
    registry = faulty[outage]
    fault, path, reason = OUTAGES[outage]
    known, new = (f"{registry.host}/{REPOSITORY}:{tag}" for tag in ("known", "new"))
    there = {mode: new_namespace(mode) for mode in MODES}
    there["enforce"].create(pod("before", {"app": known}))
    pinned = images(there["enforce"].pod("before"))["app"]
    assert pinned.startswith(f"{known}@sha256:")

    registry.fault(fault, path=path)
    if path == "/token":
        registry.revoke_tokens()

    answers = admitted(there, new)
    assert answers["enforce"].endswith(f"({reason})")
    assert [images(there[mode].pod("web"))["app"] for mode in ("audit", "pin")] == [new, new]
    for mode in ("audit", "pin"):
        assert f"({reason})" in answers[mode]
        assert record(there[mode].pod("web"))["app"] == {"image": new, "reason": reason}
    for mode in ("pin", "enforce"):
        there[mode].create(pod("known", {"app": known}))
        assert images(there[mode].pod("known"))["app"] == pinned
        assert record(there[mode].pod("known"))["app"]["source"] == "stale"


def test_a_registry_whose_name_is_unknown_is_unreachable(
    installation: Installation, new_namespace: NewNamespace
) -> None:
    there = {mode: new_namespace(mode) for mode in MODES}
    answers = admitted(there, f"{NOBODY}/app:1")
    assert all("(unreachable)" in each for each in answers.values()), answers
    assert there["enforce"].pod("web") == {}
    assert images(there["pin"].pod("web")) == {"app": f"{NOBODY}/app:1"}


def test_what_would_fail_is_seen_by_the_commands_of_modes(
    installation: Installation,
    control_plane: ControlPlane,
    new_namespace: NewNamespace,
    tmp_path: Path,
) -> None:
    """Those of kubectl that need no more than an API server."""
    namespace = new_namespace("audit")
    namespace.create(pod("web", {"app": f"{NOBODY}/app:1"}))
    shell = Shell(control_plane, tmp_path, root=tmp_path)
    events, annotations, metrics, audit_log = commands("modes.md", "See what would fail")
    assert ("get --raw" in metrics, audit_log.startswith("jq ")) == (True, True)

    told = eventually(lambda: shell.run(events), lambda said: namespace.name in said)
    assert "(unreachable)" in next(line for line in told.splitlines() if namespace.name in line)
    assert '"reason":"unreachable"' in shell.run(annotations, shop=namespace.name)

    for section in ("Audit first", "Going to `pin`", "Going to `enforce`"):
        for command in commands("modes.md", section):
            shell.run(command, shop=namespace.name)
    label = "{.metadata.labels.tagpin\\.dev/mode}"
    now = namespace.kubectl("get", f"namespace/{namespace.name}", "-o", f"jsonpath={label}").output
    assert now == "enforce"


def test_with_a_wrong_setting_new_replicas_do_not_start_and_the_old_go_on(
    installation: Installation,
    control_plane: ControlPlane,
    new_namespace: NewNamespace,
    registries: Registries,
) -> None:
    objects = kustomized(control_plane)
    (container,) = of_kind(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    files = of_kind(objects, "ConfigMap")["data"] | {"config.yaml": "logLevl: info"}
    new = Replica(control_plane, "tagpin-wrong", container=container, configuration=files)
    try:
        new.launch()
        with pytest.raises(ProgramError, match="logLevl: unknown key; the nearest known one"):
            new.wait_until_in_service()
    finally:
        new.close()
    namespace = new_namespace("enforce")
    app = registries.public.push("failures/setting:1")
    namespace.create(pod("web", {"app": app.text}))
    assert images(namespace.pod("web")) == {"app": app.pinned}


def test_replica_sets_are_as_many_as_without_tagpin(
    installation: Installation,
    new_namespace: NewNamespace,
    registries: Registries,
    figure: Figure,
) -> None:
    ours, plain = new_namespace(), new_namespace()
    app = registries.public.push("failures/replicasets:1")
    both = (ours, plain)
    for each in both:
        each.create(deployment("web", {"app": app.text}))
        each.wait_for_rollout("deployment/web")

    # tagpin comes to what runs already.
    ours.kubectl("label", f"namespace/{ours.name}", "tagpin.dev/mode=pin")
    for each in both:
        each.kubectl("scale", "deployment/web", "--replicas=3")
        each.wait_for_rollout("deployment/web")
    roll_out(both, "restarted")
    # It is gone in the middle of one: some pods are pinned, and the others are not.
    begin_roll_out(both, "killed")
    installation.replicas[0].kill()
    for each in both:
        each.wait_for_rollout("deployment/web")
    installation.start()
    # The tag moves in the middle of one.
    begin_roll_out(both, "moved")
    registries.public.push("failures/replicasets:1", "moved")
    for each in both:
        each.wait_for_rollout("deployment/web")
        each.kubectl("rollout", "undo", "deployment/web")
        each.wait_for_rollout("deployment/web")

    made = [len(each.find("replicasets", "apis/apps/v1")) for each in both]
    figure("ReplicaSets after a restart, a kill, a moved tag and undo, with and without", made)
    assert made == [4, 4]
    for each in both:
        web = each.get("deployments/web", "apis/apps/v1")
        assert "collisionCount" not in web["status"]
        assert web["spec"]["template"]["spec"]["containers"][0]["image"] == app.text
    generations = {
        each.get("deployments/web", "apis/apps/v1")["metadata"]["generation"] for each in both
    }
    assert len(generations) == 1


def test_without_its_configuration_enforce_takes_no_tag_and_pin_any(
    installation: Installation,
    control_plane: ControlPlane,
    new_namespace: NewNamespace,
    registries: Registries,
) -> None:
    app = registries.public.push("failures/configuration:1")
    there = {mode: new_namespace(mode) for mode in MODES}
    control_plane.kubectl("delete", "mutatingwebhookconfiguration/tagpin")
    try:
        refused = eventually(
            lambda: there["enforce"].create(pod("web", {"app": app.text}), check=False).error,
            lambda said: "tagpin-require-digest" in said,
        )
        assert f'1 image has no digest: container "app": {app.text}' in refused
        there["enforce"].create(pod("pinned", {"app": app.pinned}))
        for mode in ("audit", "pin"):
            there[mode].create(pod("web", {"app": app.text}))
            assert images(there[mode].pod("web")) == {"app": app.text}
    finally:
        installation.apply()
        installation.replicas[0].wait_until_in_service()


def test_without_its_policy_or_settings_the_webhook_goes_on(
    installation: Installation,
    control_plane: ControlPlane,
    new_namespace: NewNamespace,
    registries: Registries,
) -> None:
    app = registries.public.push("failures/policy:1")
    namespace = new_namespace("enforce")
    try:
        for gone in ("validatingadmissionpolicybinding/tagpin-require-digest", "configmap/tagpin"):
            control_plane.kubectl("delete", "-n", SYSTEM, gone)
            name = gone.partition("/")[0]
            namespace.create(pod(name, {"app": app.text}))
            assert images(namespace.pod(name)) == {"app": app.pinned}
            assert not namespace.create(
                pod("bad", {"app": f"{app.text}-none"}), check=False
            ).succeeded
            installation.apply()
    finally:
        installation.apply()


@pytest.fixture(scope="module")
def powerless(
    control_plane: ControlPlane,
    installation: Installation,
    new_namespace: NewNamespace,
    registries: Registries,
) -> Iterator[tuple[Mapping[str, Namespace], str]]:
    """Somebody deletes the ClusterRoleBinding, to the end of this file.

    In `pin` and `enforce` a Deployment `known` runs the image already.
    """
    there = {mode: new_namespace(mode) for mode in MODES}
    app = registries.public.push("failures/rights:1").text
    for mode in ("pin", "enforce"):
        there[mode].create(deployment("known", {"app": app}))
        there[mode].wait_for_rollout("deployment/known")
    control_plane.kubectl("delete", "clusterrolebinding/tagpin")
    eventually(lambda: may_read_secrets(control_plane), lambda answer: answer == "no")
    yield there, app
    installation.apply()
    eventually(lambda: may_read_secrets(control_plane), lambda answer: answer == "yes")


def test_without_rights_a_recorded_revision_goes_on(
    powerless: tuple[Mapping[str, Namespace], str],
) -> None:
    there, _ = powerless
    for mode in ("pin", "enforce"):
        there[mode].kubectl("scale", "deployment/known", "--replicas=3")
        there[mode].wait_for_rollout("deployment/known")
        pods = there[mode].pods("app=known")
        assert len({images(each)["app"] for each in pods}) == 1
        assert all("@sha256:" in images(each)["app"] for each in pods)


def test_without_rights_a_new_revision_is_as_written_or_refused(
    powerless: tuple[Mapping[str, Namespace], str],
) -> None:
    there, app = powerless
    for mode in MODES:
        there[mode].create(deployment("new", {"app": app}))
    (made,) = eventually(lambda: there["pin"].pods("app=new"), bool)
    assert images(made) == {"app": app}
    assert record(made) == {"app": {"image": app, "reason": "ledger"}}
    refused = eventually(lambda: failures(there["enforce"], "new"), bool)
    assert all("(ledger)" in each for each in refused)
    assert there["enforce"].pods("app=new") == []
    (audited,) = eventually(lambda: there["audit"].pods("app=new"), bool)
    assert images(audited) == {"app": app}


def admitted(there: Mapping[str, Namespace], image: str) -> dict[str, str]:
    """Mode → what whoever creates a pod `web` of an image is told; only `enforce` refuses it."""
    told = {}
    for mode, namespace in there.items():
        answer = namespace.create(pod("web", {"app": image}), check=False)
        assert answer.succeeded == (mode != "enforce"), answer
        told[mode] = " ".join(answer.warnings) if answer.succeeded else answer.error
    return told


def failures(namespace: Namespace, name: str) -> list[str]:
    """Why a Deployment gets no pods, as its ReplicaSets say."""
    return [
        condition["message"]
        for each in namespace.find("replicasets", "apis/apps/v1")
        if each["metadata"]["name"].startswith(f"{name}-")
        for condition in each["status"].get("conditions", [])
        if condition["type"] == "ReplicaFailure"
    ]


def may_read_secrets(control_plane: ControlPlane) -> str:
    question = ("auth", "can-i", "get", "secrets", "-n", "default", "--as", SERVICE_ACCOUNT)
    return control_plane.kubectl(*question, check=False).stdout.strip()


def of_kind(objects: list[Any], kind: str) -> Any:
    (found,) = [each for each in objects if each["kind"] == kind]
    return found


def begin_roll_out(namespaces: tuple[Namespace, ...], why: str) -> None:
    """Change the template of the Deployments `web`, which is all that a restart does."""
    patch = json.dumps({"spec": {"template": {"metadata": {"annotations": {"why": why}}}}})
    for each in namespaces:
        each.kubectl("patch", "deployment/web", "-p", patch)


def roll_out(namespaces: tuple[Namespace, ...], why: str) -> None:
    begin_roll_out(namespaces, why)
    for each in namespaces:
        each.wait_for_rollout("deployment/web")
