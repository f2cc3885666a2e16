"""What a tool sees that compares the cluster with what stands in git: docs/gitops.md."""

import json
from collections.abc import Iterator, Sequence
from functools import partial

import pytest
import yaml

from cluster.controlplane import ControlPlane
from cluster.installation import BASE, CRD, SYSTEM, Install, Installation
from cluster.namespaces import (
    Namespace,
    NewNamespace,
    Object,
    cron_job,
    daemon_set,
    deployment,
    eventually,
    images,
    job,
    pod,
    record,
    stateful_set,
)
from cluster.registries import Registries

CLIENT_SIDE: Sequence[str] = ()
SERVER_SIDE = ("--server-side", "--force-conflicts")
"""As Flux does always, and Argo CD where it is told to."""
WORKLOADS = ("deployment/web", "statefulset/db", "daemonset/agent")


@pytest.fixture(scope="module")
def installation(install: Install) -> Iterator[Installation]:
    with install() as running:
        yield running


@pytest.fixture(scope="module")
def shop(installation: Installation, new_namespace: NewNamespace) -> Namespace:
    return new_namespace("enforce")


@pytest.fixture(scope="module")
def manifests(shop: Namespace, registries: Registries) -> list[Object]:
    """They are applied, run, and their tag has moved since."""
    app = registries.public.push("gitops/app:1")
    of_app = {"app": app.text}
    written = [
        deployment("web", of_app, replicas=2),
        stateful_set("db", of_app),
        daemon_set("agent", of_app),
        cron_job("nightly", of_app),
        job("once", of_app),
        pod("bare", of_app),
    ]
    shop.apply(*written)
    shop.kubectl("create", "job", "nightly-1", "--from=cronjob/nightly")
    for each in WORKLOADS:
        shop.wait_for_rollout(each)
    for each in ("nightly-1", "once"):
        eventually(partial(shop.pods, f"job-name={each}"), bool)
    registries.public.push("gitops/app:1", "moved")
    made = [each for name in ("web", "db", "agent") for each in shop.pods(f"app={name}")]
    assert {images(each)["app"] for each in made} == {app.pinned}
    return written


@pytest.mark.parametrize("how", [CLIENT_SIDE, SERVER_SIDE], ids=["client side", "server side"])
def test_manifests_of_workloads_show_no_difference(
    shop: Namespace, manifests: list[Object], how: Sequence[str]
) -> None:
    shop.apply(*manifests, flags=how)  # whoever changes the way to apply becomes another manager
    assert differences(shop, manifests, how) == []


@pytest.mark.parametrize("how", [CLIENT_SIDE, SERVER_SIDE], ids=["client side", "server side"])
def test_a_dry_run_on_the_server_leaves_manifests_as_they_are_written(
    shop: Namespace, manifests: list[Object], how: Sequence[str]
) -> None:
    workloads = [each for each in manifests if each["kind"] != "Pod"]
    answer = shop.apply(*workloads, flags=("--dry-run=server", "-o", "json", *how))
    for returned in json.loads(answer.output)["items"]:
        (written,) = [each for each in workloads if each["kind"] == returned["kind"]]
        assert (
            template_of(returned)["spec"]["containers"][0]["image"]
            == (template_of(written)["spec"]["containers"][0]["image"])
        )


def test_manifests_that_are_applied_again_change_nothing(
    shop: Namespace, manifests: list[Object]
) -> None:
    for how in (CLIENT_SIDE, SERVER_SIDE, SERVER_SIDE):
        shop.apply(*manifests, flags=how)
    before = versions(shop)
    shop.apply(*manifests, flags=SERVER_SIDE)
    assert versions(shop) == before


def test_records_belong_to_their_workloads_and_to_no_application(
    shop: Namespace, manifests: list[Object]
) -> None:
    pins = shop.image_pins()
    owners = {each["metadata"]["ownerReferences"][0]["kind"] for each in pins}
    assert owners == {"Deployment", "StatefulSet", "DaemonSet", "CronJob", "Job"}
    assert not any("labels" in each["metadata"] for each in pins)


def test_a_digest_that_stands_in_git_is_left_byte_for_byte(
    shop: Namespace, registries: Registries
) -> None:
    robot = registries.public.push("gitops/robot:1")
    written = deployment("robot", {"app": robot.pinned})
    shop.apply(written, flags=SERVER_SIDE)
    shop.wait_for_rollout("deployment/robot")
    (made,) = shop.pods("app=robot")
    assert images(made) == {"app": robot.pinned}
    assert record(made)["app"]["source"] == "given"
    assert registries.public.questions("gitops/robot") == []
    assert differences(shop, [written], SERVER_SIDE) == []


@pytest.mark.parametrize("how", [CLIENT_SIDE, SERVER_SIDE], ids=["client side", "server side"])
def test_tagpins_own_manifests_show_no_difference_once_it_has_written_its_part(
    installation: Installation, control_plane: ControlPlane, how: Sequence[str]
) -> None:
    """Last: from here on the webhooks lead to the Service, where nobody is."""
    installation.stop()
    control_plane.kubectl("apply", "-k", str(CRD))
    control_plane.kubectl("apply", "-k", str(BASE))
    configuration = ("mutatingwebhookconfiguration", "tagpin")
    stored = json.loads(control_plane.kubectl("get", *configuration, "-o", "json").stdout)
    assert all(each["clientConfig"]["caBundle"] for each in stored["webhooks"])
    secret = control_plane.kubectl("get", "secret/tagpin-tls", "-n", SYSTEM, "-o", "json").stdout
    assert json.loads(secret)["data"]
    for folder in (CRD, BASE):
        control_plane.kubectl("apply", "-k", str(folder), *how)
        done = control_plane.kubectl("diff", "-k", str(folder), *how, check=False)
        assert changed(done.stdout) == [], done.stdout


def differences(namespace: Namespace, manifests: Sequence[Object], how: Sequence[str]) -> list[str]:
    """The lines that `kubectl diff` shows, which asks the webhooks too."""
    text = yaml.safe_dump_all(manifests)
    return changed(namespace.kubectl("diff", "-f", "-", *how, input=text, check=False).output)


def changed(diff: str) -> list[str]:
    """The lines that differ, but for kubectl's own note of what it applied."""
    return [
        line
        for line in diff.splitlines()
        if line.startswith(("+", "-"))
        and not line.startswith(("+++", "---"))
        and not line.lstrip("+- ").startswith("{")
    ]


def template_of(workload: Object) -> Object:
    spec: Object = workload["spec"]
    return (spec["jobTemplate"]["spec"] if "jobTemplate" in spec else spec)["template"]  # type: ignore[no-any-return]


def versions(namespace: Namespace) -> dict[str, str]:
    """What is applied, and what would tell of a change."""
    columns = "custom-columns=:.metadata.generation,:.spec..image"
    applied = [*WORKLOADS, "cronjob/nightly", "pod/bare"]
    return {
        each: namespace.kubectl("get", each, "-o", columns, "--no-headers").output
        for each in applied
    }
