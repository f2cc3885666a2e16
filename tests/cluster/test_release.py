"""The chart as a release on a real API server: installed, upgraded, rolled back, uninstalled."""

import json
import re
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.controlplane import PROGRAMS, ControlPlane
from cluster.helm import CHART, Helm, HelmError, Key, Object
from cluster.images import Pusher
from cluster.installation import BASE, CRD, SYSTEM, Replica
from cluster.namespaces import Namespace, deployment, images
from cluster.programs import Distribution
from cluster.registries import Store
from cluster.requirement import require_programs

DEPLOYMENT = Key("Deployment", "tagpin")
WEBHOOKS = Key("MutatingWebhookConfiguration", "tagpin")
IMAGE_PINS = Key("CustomResourceDefinition", "imagepins.tagpin.dev")
KEPT = {IMAGE_PINS, Key("ClusterRole", "tagpin-view"), Key("Secret", "tagpin-tls")}


def definition(kind: str, plural: str) -> Object:
    """A kind of cert-manager, of which only the name is needed."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": anything},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.cert-manager.io"},
        "spec": {
            "group": "cert-manager.io",
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural},
            "versions": [version],
        },
    }


CERT_MANAGER = [definition("Certificate", "certificates"), definition("Issuer", "issuers")]


class Release:
    """The release `tagpin` in a control plane of its own, with one replica that runs."""

    def __init__(self, control_plane: ControlPlane, store: Store, folder: Path) -> None:
        self.control_plane = control_plane
        self.store = store
        self.helm = Helm(folder, kubeconfig=control_plane.admin)
        self.values: Object = {
            "settings": {"registries": [{"host": store.host, "http": True}]},
        }
        rendered = self.helm.template(values=self.values)
        (container,) = rendered[DEPLOYMENT]["spec"]["template"]["spec"]["containers"]
        self.replica = Replica(
            control_plane,
            "tagpin-test-1",
            container=container,
            configuration=rendered[Key("ConfigMap", "tagpin")]["data"],
        )
        self.flags = ("-n", SYSTEM, *self.helm.send_webhooks_to(self.replica.port))
        self._numbers = count(1)

    def install(self, *flags: str) -> None:
        self.helm("install", "tagpin", str(CHART), *self.flags, *flags, values=self.values)

    def upgrade(self, *flags: str, chart: Path = CHART) -> None:
        self.helm("upgrade", "tagpin", str(chart), *self.flags, *flags, values=self.values)

    def rollback(self, *flags: str) -> None:
        self.helm("rollback", "tagpin", "-n", SYSTEM, *flags)

    def uninstall(self) -> None:
        self.helm("uninstall", "tagpin", "-n", SYSTEM)

    def new_namespace(self, mode: str) -> Namespace:
        return Namespace(
            self.control_plane, f"shop-{next(self._numbers)}", {"tagpin.dev/mode": mode}
        )

    def get(self, key: Key) -> Any:
        found = self.control_plane.kubectl("get", *key, "-n", SYSTEM, "-o", "json")
        return json.loads(found.stdout)

    def is_there(self, key: Key) -> bool:
        flags = ("-n", SYSTEM, "--ignore-not-found", "-o", "name")
        return bool(self.control_plane.kubectl("get", *key, *flags).stdout)

    def records(self) -> list[str]:
        """The UIDs of all ImagePins."""
        uids = ("-o", "jsonpath={.items[*].metadata.uid}")
        return self.control_plane.kubectl("get", "imagepins", "-A", *uids).stdout.split()

    def written_by_tagpin(self) -> dict[str, Any]:
        """What tagpin writes into objects of the release, as it is now."""
        webhooks = self.get(WEBHOOKS)["webhooks"]
        return {
            "certificate": self.get(Key("Secret", "tagpin-tls")).get("data"),
            "authorities": [each["clientConfig"].get("caBundle") for each in webhooks],
            "lease": self.get(Key("Lease", "tagpin")).get("spec"),
        }


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """Installed as docs/install.md says. The tests go through its life, in their order."""
    require_programs("helm", "registry", *PROGRAMS)
    with ControlPlane(nodes=2) as control_plane, Distribution() as registry:
        store = Store(registry, Pusher(registry.url))
        release = Release(control_plane, store, tmp_path_factory.mktemp("helm"))
        try:
            release.install("--create-namespace", "--wait")
            release.replica.start()
            yield release
        finally:
            release.replica.close()


def test_pods_are_pinned_by_what_was_installed(release: Release) -> None:
    namespace = release.new_namespace("enforce")
    app = release.store.push("release/app:1")
    namespace.create(deployment("web", {"app": app.text}, replicas=2))
    namespace.wait_for_rollout("deployment/web")
    assert [images(each) for each in namespace.pods("app=web")] == [{"app": app.pinned}] * 2
    assert release.records()


def test_the_namespace_gets_the_labels_of_the_base_by_the_command_of_the_notes(
    release: Release,
) -> None:
    notes = release.helm("get", "notes", "tagpin", "-n", SYSTEM)
    (command,) = re.findall(r"^ *kubectl (label --overwrite namespace .+)", notes, re.MULTILINE)
    before, levels, value = re.split(r"[{}]", command)

    release.control_plane.kubectl(
        *before.split()[:-1], *(f"{before.split()[-1]}{each}{value}" for each in levels.split(","))
    )

    meant = yaml.safe_load((BASE / "namespace.yaml").read_text())["metadata"]["labels"]
    found = release.get(Key("Namespace", SYSTEM))["metadata"]["labels"]
    level = "pod-security.kubernetes.io/"
    assert {key: value for key, value in found.items() if key.startswith(level)} == {
        key: value for key, value in meant.items() if key.startswith(level)
    }


def test_what_tagpin_wrote_survives_upgrades_and_rollbacks(release: Release) -> None:
    release.replica.stop()  # it would repair what helm resets
    before = release.written_by_tagpin()
    assert before["certificate"].keys() >= {"tls.crt", "tls.key"}
    assert all(before["authorities"])
    assert before["lease"]

    # The second is what helm did before its version 4.
    for how in ("--server-side=true", "--server-side=false"):
        release.upgrade(how, "--set", "replicaCount=3,webhook.timeoutSeconds=4")
        assert release.get(DEPLOYMENT)["spec"]["replicas"] == 3
        assert release.written_by_tagpin() == before

        release.rollback(how)
        assert release.get(DEPLOYMENT)["spec"]["replicas"] == 2
        assert release.written_by_tagpin() == before


def test_a_change_to_cert_manager_and_back_leaves_the_certificate_in_place(
    release: Release,
) -> None:
    """What would be a gap without a certificate, until somebody writes the next."""
    release.control_plane.kubectl("create", "-f", "-", input=yaml.safe_dump_all(CERT_MANAGER))
    for each in CERT_MANAGER:
        name = f"crd/{each['metadata']['name']}"
        release.control_plane.kubectl("wait", name, "--for=condition=established")
    before = release.written_by_tagpin()

    release.upgrade("--set", "certManager.enabled=true")
    assert release.written_by_tagpin() == before

    release.upgrade()
    assert release.written_by_tagpin() == before


def test_an_upgrade_brings_what_is_new_in_the_records(release: Release, tmp_path: Path) -> None:
    """What is in the folder `crds` of a chart is never upgraded."""
    chart = tmp_path / "tagpin"
    shutil.copytree(CHART, chart)
    file = chart / "templates" / "crd" / "customresourcedefinition.yaml"
    file.write_text(file.read_text().replace("shortNames: [ipin]", "shortNames: [ipin, ipins]"))
    assert release.get(IMAGE_PINS)["spec"]["names"]["shortNames"] == ["ipin"]

    release.upgrade(chart=chart)

    assert release.get(IMAGE_PINS)["spec"]["names"]["shortNames"] == ["ipin", "ipins"]


def test_records_stay_where_an_upgrade_leaves_them_to_somebody_else(release: Release) -> None:
    before = release.records()
    release.upgrade("--set", "crds.enabled=false")
    assert release.records() == before


def test_an_upgrade_brings_back_what_broke_the_glass(release: Release) -> None:
    binding = Key("ValidatingAdmissionPolicyBinding", "tagpin-require-digest")
    release.control_plane.kubectl("delete", "/".join(binding), "/".join(WEBHOOKS))
    release.upgrade()
    assert len(release.get(WEBHOOKS)["webhooks"]) == 4
    assert release.get(binding)["spec"]["policyName"] == "tagpin-require-digest"


def test_there_is_no_second_release_in_a_cluster(release: Release) -> None:
    with pytest.raises(HelmError, match=r"tagpin.+exists and cannot be imported.+release-name"):
        release.helm("install", "tagpin-2", str(CHART), "-n", "default")


def test_values_can_be_set_and_taken_back(release: Release) -> None:
    before = release.get(DEPLOYMENT)["spec"]
    values = {
        "hostNetwork": True,
        "podSecurityContext": {"runAsUser": 1000680000, "runAsGroup": None},
        "imagePullSecrets": [{"name": "mirror"}],
        "extraEnv": [{"name": "AWS_REGION", "value": "eu-west-1"}],
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"podAntiAffinity": {}},
        "exempt": ["registry.example.com/mesh/", "docker.io/library/nginx"],
    }
    release.helm("upgrade", "tagpin", str(CHART), *release.flags, values=release.values | values)
    changed = release.get(DEPLOYMENT)["spec"]["template"]["spec"]
    assert changed["hostNetwork"] is True
    assert changed["securityContext"]["runAsUser"] == 1000680000

    release.upgrade()

    assert release.get(DEPLOYMENT)["spec"] == before


def test_uninstalling_keeps_the_records_and_the_certificate(release: Release) -> None:
    records, certificate = release.records(), release.written_by_tagpin()["certificate"]
    assert records
    mark = release.control_plane.audit_mark()
    everything = release.helm.template(values=release.values)

    release.uninstall()

    assert {key for key in everything if release.is_there(key)} == KEPT
    assert release.records() == records
    # Those who ask go before those who answer: nothing is refused in between.
    deleted = [
        event["objectRef"]["resource"]
        for event in release.control_plane.audit_events(mark)
        if event["verb"] == "delete" and event["objectRef"].get("name") == "tagpin"
    ]
    assert deleted.index("mutatingwebhookconfigurations") < deleted.index("deployments")

    release.install()  # takes them up again

    assert release.records() == records
    assert release.get(Key("Secret", "tagpin-tls"))["data"] == certificate


def test_what_kubectl_installed_is_taken_over(release: Release) -> None:
    release.uninstall()
    for folder in (CRD, BASE):
        release.control_plane.kubectl("apply", "-k", str(folder))

    take_over = ("--take-ownership", "--force-conflicts")
    release.helm("install", "tagpin", str(CHART), "-n", SYSTEM, *take_over)

    managed = "app.kubernetes.io/managed-by"
    for key in release.helm.template():
        assert release.get(key)["metadata"]["labels"][managed] == "Helm", key
    assert release.records()
