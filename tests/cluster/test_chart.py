"""The chart renders what the manifests hold, and takes no value that would mean nothing."""

import dataclasses
import json
import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.helm import CHART, COMPONENTS, Helm, HelmError, Key, Object, base_with
from cluster.requirement import require_programs
from tagpin.policy import exempt_patterns
from tagpin.settings import Settings

ROOT = Path(__file__).parents[2]
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    require_programs("helm", "kubectl")
    return Helm(tmp_path_factory.mktemp("helm"))


# What the chart has, and the manifests have not, or otherwise. Anything else is a mistake, on one
# side or the other; so is a difference of these that is no more.

EVERYWHERE = {
    # What an object belongs to, as helm and others look for it.
    "metadata labels app.kubernetes.io/instance",
    "metadata labels app.kubernetes.io/managed-by",
    "metadata labels app.kubernetes.io/version",
    "metadata labels helm.sh/chart",
}
OWN: Mapping[Key, set[str]] = {
    # `uninstall` keeps the records, and the right to see them.
    Key("CustomResourceDefinition", "imagepins.tagpin.dev"): {"metadata annotations"},
    Key("ClusterRole", "tagpin-view"): {"metadata annotations"},
    # So does a switch to cert-manager, or `uninstall`, with the certificate in use.
    Key("Secret", "tagpin-tls"): {"metadata annotations"},
    Key("Deployment", "tagpin"): {
        # The base leaves the image to overlays; the chart knows its own version.
        "spec template spec containers 0 image",
        # `upgrade` replaces the replicas where what they read at start has changed.
        "spec template metadata annotations checksum/files",
    },
}
# helm makes it, with --create-namespace; one that the chart held would be deleted with the release.
NOT_IN_THE_CHART = {Key("Namespace", "tagpin-system")}

# Component → the values that bring it.
COMPONENT_VALUES: Mapping[str, Object] = {
    "cert-manager": {"certManager": {"enabled": True}},
    "client-ca": {"clientCa": {"enabled": True}},
    "guard-mode": {"guardMode": {"enabled": True}},
    "monitoring": {"monitoring": {"enabled": True}},
    "network-policy": {"networkPolicy": {"enabled": True}},
}


def compared(rendered: Mapping[Key, Object], manifests: Mapping[Key, Object]) -> None:
    """Assert that both are the same but for the differences above."""
    assert rendered.keys() == manifests.keys() - NOT_IN_THE_CHART
    for key, one in rendered.items():
        found = set(differences(comparable(one), comparable(manifests[key])))
        assert found == EVERYWHERE | OWN.get(key, set()), key


def comparable(one: Object) -> Object:
    """An object whose files are compared as what they mean: the base has comments in them."""
    if one["kind"] != "ConfigMap" or one["metadata"]["name"] != "tagpin":
        return one
    files = one["data"]
    read = {
        "config.yaml": yaml.safe_load(files["config.yaml"]),
        "exempt": exempt_patterns(files["exempt"]),
    }
    return one | {"data": files | read}


def differences(one: Any, other: Any, place: str = "") -> Iterator[str]:
    """The fields that are not the same in both, as their places."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            inside = f"{place} {key}".lstrip()
            if key in one and key in other:
                yield from differences(one[key], other[key], inside)
            else:
                yield inside
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from differences(left, right, f"{place} {number}")
    elif one != other or type(one) is not type(other):
        yield place


class TestTheObjects:
    def test_are_those_of_the_base_and_of_the_records(self, helm: Helm) -> None:
        compared(helm.template(), base_with())

    @pytest.mark.parametrize("component", COMPONENT_VALUES)
    def test_are_those_of_the_base_with_a_component(self, helm: Helm, component: str) -> None:
        compared(helm.template(values=COMPONENT_VALUES[component]), base_with([component]))

    def test_every_component_is_there(self) -> None:
        there_is = {each.name for each in COMPONENTS.glob("*") if each.is_dir()}
        assert COMPONENT_VALUES.keys() == there_is

    def test_are_those_of_the_base_with_all_components(self, helm: Helm) -> None:
        compared(helm.template(values=everything()), base_with([*COMPONENT_VALUES]))

    def test_are_in_the_namespace_of_the_release_wherever_that_is(self, helm: Helm) -> None:
        here = helm.template(values=everything())
        there = helm.template(values=everything(), namespace="elsewhere")
        moved = json.dumps([*here.values()]).replace("tagpin-system", "elsewhere")
        assert json.dumps([*there.values()]) == moved


@pytest.mark.parametrize("name", ["dashboard.json", "prometheusrule.yaml"])
def test_a_file_of_the_monitoring_is_a_copy(name: str) -> None:
    """`cp` it again: the chart cannot reach out of its folder."""
    original, copy = COMPONENTS / "monitoring" / name, CHART / "files" / name
    assert copy.read_bytes() == original.read_bytes(), f"cp {original} {copy}"


def everything() -> Object:
    """Values that bring all components."""
    return {key: value for each in COMPONENT_VALUES.values() for key, value in each.items()}


# What values do


DEPLOYMENT = Key("Deployment", "tagpin")
DIGEST = f"sha256:{'a' * 64}"


def pod(rendered: Mapping[Key, Object]) -> Object:
    spec: Object = rendered[DEPLOYMENT]["spec"]["template"]["spec"]
    return spec


def container(rendered: Mapping[Key, Object]) -> Object:
    (only,) = pod(rendered)["containers"]
    assert isinstance(only, dict)
    return only


# A value of no use → what is said of it.
BAD = {
    "replicas=3": "at '': additional properties 'replicas' not allowed",
    "hostNetwork=maybe": "at '/hostNetwork': got string, want boolean",
    "replicaCount=0": "at '/replicaCount': minimum: got 0, want 1",
    "image.name=a": "at '/image': additional properties 'name' not allowed",
    "image.repository=reg:5000/a:1": "at '/image/repository': 'reg:5000/a:1' does not match",
    "image.digest=sha256:12": "at '/image/digest': 'sha256:12' does not match",
    "image.pullPolicy=Sometimes": "at '/image/pullPolicy': value must be one of",
    "settings.logLevl=debug": "'logLevl'",
    "settings.webhookPort=1": "'webhookPort'",
    "settings.clientCaFile=a": "'clientCaFile'",
    "exempt={nginx}": "at '/exempt/0': 'nginx' does not match",
    "caFiles.ca\\.crt=text": "at '/caFiles/ca.crt': 'text' does not match",
    "caFiles.config\\.yaml=a": "at '/caFiles': additional properties 'config.yaml' not",
    "webhook.failurePolicy=Ignore": "at '/webhook': additional properties 'failurePolicy' not",
    "webhook.timeoutSeconds=30": "at '/webhook/timeoutSeconds': maximum: got 30, want 10",
    "ports.webhook=443": "at '/ports/webhook': minimum: got 443, want 1,024",
    "podSecurityContext.runAsUser=0": "at '/podSecurityContext/runAsUser': minimum",
    "podLabels.app\\.kubernetes\\.io/name=a": "at '/podLabels/app.kubernetes.io~1name'",
    "extraEnv[0].name=TAGPIN_NAMESPACE": "at '/extraEnv/0/name': 'not' failed",
    'guardMode.groups={a"b}': "at '/guardMode/groups/0'",
}


class TestValues:
    @pytest.mark.parametrize(
        ("image", "expected"),
        [
            (
                {"repository": "reg.example:5000/a/tagpin"},
                f"reg.example:5000/a/tagpin:{PROJECT['version']}",
            ),
            ({"tag": "dev"}, "tagpin:dev"),
            ({"digest": DIGEST}, f"tagpin@{DIGEST}"),
            ({"tag": "1.2", "digest": DIGEST}, f"tagpin:1.2@{DIGEST}"),
        ],
    )
    def test_name_the_image(self, helm: Helm, image: Object, expected: str) -> None:
        assert container(helm.template(values={"image": image}))["image"] == expected

    def test_are_the_files_that_tagpin_reads(self, helm: Helm) -> None:
        certificate = "-----BEGIN CERTIFICATE-----\nMII=\n-----END CERTIFICATE-----\n"
        registries = [{"host": "registry.corp.example", "caFile": "/etc/tagpin/corp-ca.crt"}]
        exempt = ["registry.example.com/mesh/", "docker.io/library/nginx"]
        values = {
            "settings": {"logLevel": "debug", "registries": registries},
            "exempt": exempt,
            "caFiles": {"corp-ca.crt": certificate},
        }
        files = helm.template(values=values)[Key("ConfigMap", "tagpin")]["data"]

        settings = Settings.from_mapping(yaml.safe_load(files["config.yaml"]))
        assert settings.log_level == "debug"
        assert settings.registries[0].ca_file == "/etc/tagpin/corp-ca.crt"
        assert exempt_patterns(files["exempt"]) == tuple(exempt)
        assert files["corp-ca.crt"] == certificate

    def test_replace_the_replicas_where_these_files_change(self, helm: Helm) -> None:
        def template(**values: Any) -> Any:
            return helm.template(values=values)[DEPLOYMENT]["spec"]["template"]

        first = template()
        assert template(replicaCount=5) == first
        assert template(settings={"logLevel": "debug"}) != first
        assert template(exempt=["docker.io/library/nginx"]) != first

    def test_put_it_on_the_network_of_the_nodes(self, helm: Helm) -> None:
        values = {"hostNetwork": True, "ports": {"webhook": 10443, "health": 10080}}
        rendered = helm.template(values=values)

        assert pod(rendered)["hostNetwork"] is True
        assert pod(rendered)["dnsPolicy"] == "ClusterFirstWithHostNet"
        only = container(rendered)
        assert {each["name"]: each["containerPort"] for each in only["ports"]} == values["ports"]
        environment = {each["name"]: each.get("value") for each in only["env"]}
        settings = Settings.from_mapping(
            {
                "webhookPort": environment["TAGPIN_WEBHOOK_PORT"],
                "healthPort": environment["TAGPIN_HEALTH_PORT"],
            }
        )
        assert (settings.webhook_port, settings.health_port) == (10443, 10080)
        # Where each node has one already, there is no room for a third.
        assert rendered[DEPLOYMENT]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 1

    def test_leave_no_budget_to_a_single_replica(self, helm: Helm) -> None:
        rendered = helm.template(values={"replicaCount": 1})
        assert not [key for key in rendered if key.kind == "PodDisruptionBudget"]

    @pytest.mark.parametrize(
        ("name", "quotas"), [("", 0), ("important", 0), ("system-node-critical", 1)]
    )
    def test_bring_a_quota_for_priority_classes_of_the_system(
        self, helm: Helm, name: str, quotas: int
    ) -> None:
        rendered = helm.template(values={"priorityClassName": name})
        found = [
            one["spec"]["scopeSelector"]
            for key, one in rendered.items()
            if key.kind == "ResourceQuota"
        ]
        assert len(found) == quotas
        assert all(each["matchExpressions"][0]["values"] == [name] for each in found)
        assert pod(rendered).get("priorityClassName", "") == name

    def test_leave_users_to_a_platform_that_chooses_them(self, helm: Helm) -> None:
        chosen = {"runAsUser": None, "runAsGroup": None, "fsGroup": None}
        context = pod(helm.template(values={"podSecurityContext": chosen}))["securityContext"]
        assert context == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}

    def test_reach_the_pods_and_their_account(self, helm: Helm) -> None:
        values: Object = {
            "webhook": {"timeoutSeconds": 3},
            "serviceAccount": {
                "annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/a"}
            },
            "podLabels": {"azure.workload.identity/use": "true"},
            "podAnnotations": {"example.com/team": "platform"},
            "imagePullSecrets": [{"name": "mirror"}],
            "extraEnv": [{"name": "AWS_REGION", "value": "eu-west-1"}],
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {"nodeAffinity": {}},
            "topologySpreadConstraints": [],
            "podSecurityContext": {"runAsUser": 1000680000},
            "resources": {"limits": {"memory": "1Gi"}},
            "terminationGracePeriodSeconds": 60,
        }
        rendered = helm.template(values=values)

        webhooks = rendered[Key("MutatingWebhookConfiguration", "tagpin")]["webhooks"]
        assert {each["timeoutSeconds"] for each in webhooks} == {3}
        account = rendered[Key("ServiceAccount", "tagpin")]["metadata"]
        assert account["annotations"] == values["serviceAccount"]["annotations"]
        metadata = rendered[DEPLOYMENT]["spec"]["template"]["metadata"]
        assert values["podLabels"].items() <= metadata["labels"].items()
        assert values["podAnnotations"].items() <= metadata["annotations"].items()
        for name in ("imagePullSecrets", "nodeSelector", "tolerations", "affinity"):
            assert pod(rendered)[name] == values[name]
        assert "topologySpreadConstraints" not in pod(rendered)
        assert pod(rendered)["securityContext"]["runAsUser"] == 1000680000
        assert pod(rendered)["terminationGracePeriodSeconds"] == 60
        assert values["extraEnv"][0] in container(rendered)["env"]
        assert container(rendered)["resources"]["limits"] == {"memory": "1Gi"}

    def test_name_the_groups_that_guard_the_modes(self, helm: Helm) -> None:
        groups = ["platform-team", "system:serviceaccounts:argocd"]
        rendered = helm.template(values={"guardMode": {"enabled": True, "groups": groups}})
        policy = rendered[Key("ValidatingAdmissionPolicy", "tagpin-guard-mode")]["spec"]
        (expression,) = [
            each["expression"] for each in policy["variables"] if each["name"] == "groups"
        ]
        assert json.loads(expression) == groups

    def test_name_who_may_reach_it(self, helm: Helm) -> None:
        api_server = {"ipBlock": {"cidr": "192.0.2.10/32"}}
        policy = {
            "enabled": True,
            "reviewsFrom": [api_server],
            "metricsFrom": [],
            "egressPorts": [8443],
        }
        values = {"networkPolicy": policy, "ports": {"webhook": 10443}}
        spec = helm.template(values=values)[Key("NetworkPolicy", "tagpin")]["spec"]

        ports = [{"port": 10443, "protocol": "TCP"}]
        assert spec["ingress"] == [{"from": [api_server], "ports": ports}]
        _, registries = spec["egress"]
        assert registries == {"ports": [{"port": 8443, "protocol": "TCP"}]}

    def test_label_what_a_prometheus_selects(self, helm: Helm) -> None:
        values = {"monitoring": {"enabled": True, "labels": {"release": "prometheus"}}}
        rendered = helm.template(values=values)
        for kind in ("PodMonitor", "PrometheusRule"):
            assert rendered[Key(kind, "tagpin")]["metadata"]["labels"]["release"] == "prometheus"

    def test_can_leave_the_records_to_manifests_crd(self, helm: Helm) -> None:
        rendered = helm.template(values={"crds": {"enabled": False}})
        assert helm.template().keys() - rendered.keys() == {
            Key("CustomResourceDefinition", "imagepins.tagpin.dev"),
            Key("ClusterRole", "tagpin-view"),
        }

    def test_that_mean_nothing_are_all_named_at_once(self, helm: Helm) -> None:
        with pytest.raises(HelmError) as refused:
            helm.template(*(word for flag in BAD for word in ("--set", flag)))
        assert [said for said in BAD.values() if said not in str(refused.value)] == []

    def test_leave_a_replica_that_may_go(self, helm: Helm) -> None:
        with pytest.raises(HelmError, match=r"podDisruptionBudget\.minAvailable: with 2 of 2"):
            helm.template("--set", "podDisruptionBudget.minAvailable=2")

    def test_let_nobody_in_by_an_empty_list(self, helm: Helm) -> None:
        """To Kubernetes it would mean everybody."""
        with pytest.raises(HelmError, match="at '/networkPolicy/reviewsFrom': minItems"):
            helm.template(values={"networkPolicy": {"reviewsFrom": []}})


# Settings that the chart makes itself, from other values or from its own names.
NOT_IN_SETTINGS = {
    "exempt",
    "namespace",
    "podName",
    "podAddresses",
    "webhookPort",
    "healthPort",
    "serviceName",
    "webhookConfiguration",
    "certificateSecret",
    "certificateDirectory",
    "lease",
    "clientCaFile",
}


def test_all_other_settings_can_be_made() -> None:
    known = {camel_case(item.name) for item in dataclasses.fields(Settings)}
    assert SCHEMA["properties"]["settings"]["properties"].keys() == known - NOT_IN_SETTINGS


def camel_case(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.upper() if word == "ttl" else word.capitalize() for word in rest)


# Only helm sets these, where tagpin is a part of another chart.
OF_ANOTHER_CHART = {"global", "enabled"}


def test_every_value_has_a_default_and_a_type() -> None:
    assert SCHEMA["properties"].keys() - OF_ANOTHER_CHART == VALUES.keys()
    for name, value in VALUES.items():
        inner = SCHEMA["properties"][name].get("properties", {})
        if isinstance(value, dict) and value and name not in ("settings", "resources"):
            assert inner.keys() == value.keys()


def test_every_paragraph_of_the_values_explains_itself() -> None:
    for paragraph in (CHART / "values.yaml").read_text().split("\n\n"):
        assert re.search(r"^ *# [A-Za-z`]", paragraph, re.MULTILINE), paragraph


def schemas(schema: Object, place: str = "") -> Iterator[tuple[str, Object]]:
    """The schema of a value and of all that is inside of it."""
    yield place, schema
    for key, inner in schema.get("properties", {}).items():
        if isinstance(inner, dict):
            yield from schemas(inner, f"{place}/{key}")
    if "items" in schema:
        yield from schemas(schema["items"], f"{place}/0")


# What Kubernetes gives to us as it is, and checks.
AS_KUBERNETES_HAS_IT = {
    "/affinity/nodeAffinity",
    "/affinity/podAffinity",
    "/affinity/podAntiAffinity",
    "/extraEnv/0/valueFrom",
    "/global",
    "/networkPolicy/extraEgress/0",
    "/networkPolicy/metricsFrom/0/namespaceSelector",
    "/networkPolicy/metricsFrom/0/podSelector",
    "/networkPolicy/reviewsFrom/0/namespaceSelector",
    "/networkPolicy/reviewsFrom/0/podSelector",
}


def test_no_key_is_taken_that_nobody_knows() -> None:
    free = {
        place
        for place, schema in schemas(SCHEMA)
        if schema.get("type") == "object" and "additionalProperties" not in schema
    }
    assert free == AS_KUBERNETES_HAS_IT


class TestTheChart:
    def test_is_of_the_version_of_tagpin(self) -> None:
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
        assert chart["version"] == chart["appVersion"] == PROJECT["version"]

    def test_has_nothing_that_helm_objects_to(self, helm: Helm) -> None:
        assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), values=everything())

    def test_is_for_kubernetes_1_31_and_newer(self, helm: Helm) -> None:
        """Fields by which records can be selected came with it."""
        assert helm.template("--kube-version", "1.31.0-gke.100")
        with pytest.raises(HelmError, match=r"requires kubeVersion: >=1\.31.+Kubernetes v1\.30\.9"):
            helm.template("--kube-version", "1.30.9")

    def test_can_be_a_part_of_another_one(self, helm: Helm, tmp_path: Path) -> None:
        shutil.copytree(CHART, tmp_path / "charts" / "tagpin")
        part = {"name": "tagpin", "version": PROJECT["version"], "condition": "tagpin.enabled"}
        whole = {"apiVersion": "v2", "name": "platform", "version": "1.0.0", "dependencies": [part]}
        (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(whole))

        values = {"global": {"team": "a"}, "tagpin": {"enabled": True, "replicaCount": 3}}
        rendered = helm.template(chart=tmp_path, values=values)

        assert rendered[DEPLOYMENT]["spec"]["replicas"] == 3

    def test_is_packed_whole(self, helm: Helm, tmp_path: Path) -> None:
        helm("package", str(CHART), "--destination", str(tmp_path))
        (archive,) = tmp_path.glob("*.tgz")
        assert helm.template(chart=archive) == helm.template()
