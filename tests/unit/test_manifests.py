"""What must be true of the manifests, whoever edits them next."""

import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from tagpin.cluster.listener import IDLE
from tagpin.cluster.server import LAST_ANSWER
from tagpin.errors import InvalidReference
from tagpin.policy import Mode, Rules, exempt_patterns
from tagpin.reference import Digest
from tagpin.settings import Settings

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
BASE = MANIFESTS / "base"
CRD = MANIFESTS / "crd"
SYSTEM = "tagpin-system"

Manifest = dict[str, Any]


def load(file: Path) -> Manifest:
    """The one object of a file."""
    (document,) = yaml.safe_load_all(file.read_text())
    assert isinstance(document, dict)
    return document


def base(kind: str, name: str = "") -> Manifest:
    """The object of a kind; where there are several, the one called tagpin-`name`."""
    return load(BASE / f"{kind.lower()}{name and '-'}{name}.yaml")


def crd(kind: str) -> Manifest:
    return load(CRD / f"{kind.lower()}.yaml")


OBJECTS = {
    f"{folder.name}/{file.name}": load(file)
    for folder in (BASE, CRD)
    for file in sorted(folder.glob("*.yaml"))
    if file.stem != "kustomization"
}
COMPONENTS = {"base": "webhook", "crd": "records"}
WEBHOOKS = {entry["name"]: entry for entry in base("MutatingWebhookConfiguration")["webhooks"]}
DEPLOYMENT = base("Deployment")
POD = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


def keys(value: object) -> Iterator[str]:
    """Every key of every mapping inside `value`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner)


# The files


@pytest.mark.parametrize("folder", [file.parent for file in MANIFESTS.rglob("kustomization.yaml")])
def test_every_manifest_is_in_its_kustomization(folder: Path) -> None:
    kustomization = load(folder / "kustomization.yaml")
    patches = [patch["path"] for patch in kustomization.get("patches", []) if "path" in patch]
    named = {*kustomization.get("resources", []), *patches}
    assert {name for name in named if name.endswith(".yaml")} == {
        file.name for file in folder.glob("*.yaml") if file.name != "kustomization.yaml"
    }
    assert all((folder / name).exists() for name in named)


@pytest.mark.parametrize("name", OBJECTS)
def test_a_file_holds_one_object_and_is_named_after_its_kind(name: str) -> None:
    kind, dash, rest = Path(name).stem.partition("-")
    assert kind == OBJECTS[name]["kind"].lower()
    if dash:  # there are several of the kind
        assert OBJECTS[name]["metadata"]["name"] == f"tagpin-{rest}"


@pytest.mark.parametrize("name", OBJECTS)
def test_every_object_says_what_it_belongs_to(name: str) -> None:
    labels = OBJECTS[name]["metadata"]["labels"]
    assert labels["app.kubernetes.io/name"] == "tagpin"
    assert labels["app.kubernetes.io/part-of"] == "tagpin"
    if OBJECTS[name]["kind"] != "Namespace":
        assert labels["app.kubernetes.io/component"] == COMPONENTS[Path(name).parent.name]


CLUSTER_WIDE = {
    "base/namespace.yaml": SYSTEM,
    "base/clusterrole.yaml": "tagpin",
    "base/clusterrolebinding.yaml": "tagpin",
    "base/mutatingwebhookconfiguration.yaml": "tagpin",
    "base/validatingadmissionpolicy-require-digest.yaml": "tagpin-require-digest",
    "base/validatingadmissionpolicy-known-mode.yaml": "tagpin-known-mode",
    "base/validatingadmissionpolicybinding-require-digest.yaml": "tagpin-require-digest",
    "base/validatingadmissionpolicybinding-known-mode.yaml": "tagpin-known-mode",
    "base/validatingadmissionpolicybinding-keep-params.yaml": "tagpin-keep-params",
    "base/prioritylevelconfiguration.yaml": "tagpin",
    "base/flowschema.yaml": "tagpin",
    "crd/customresourcedefinition.yaml": "imagepins.tagpin.dev",
    "crd/clusterrole.yaml": "tagpin-view",
}


@pytest.mark.parametrize("name", OBJECTS)
def test_every_namespaced_object_is_in_our_namespace(name: str) -> None:
    metadata = OBJECTS[name]["metadata"]
    if name in CLUSTER_WIDE:
        assert "namespace" not in metadata
        assert metadata["name"] == CLUSTER_WIDE[name]
    else:
        assert metadata["namespace"] == SYSTEM


@pytest.mark.parametrize("manifest", OBJECTS.values(), ids=list(OBJECTS))
def test_apply_owns_nothing_that_tagpin_writes(manifest: Manifest) -> None:
    assert "caBundle" not in keys(manifest)
    if manifest["kind"] == "Secret":
        assert manifest.keys() == {"apiVersion", "kind", "metadata", "type"}
    if manifest["kind"] == "Lease":
        assert manifest.keys() == {"apiVersion", "kind", "metadata"}


def test_the_records_are_in_no_other_kustomization() -> None:
    """`kubectl delete -k` of anything else must keep them."""
    for file in MANIFESTS.rglob("kustomization.yaml"):
        if file.parent != CRD:
            places = [load(file).get(key, []) for key in ("resources", "components")]
            reached = {(file.parent / place).resolve() for place in chain(*places)}
            assert not [each for each in reached if CRD in (each, each.parent)]


@pytest.mark.parametrize(
    ("instructions", "program"),
    [("README.md", "manifests/base"), ("kind-config.yaml", "manifests/overlays/kind")],
)
def test_the_records_are_installed_before_the_program(instructions: str, program: str) -> None:
    text = (ROOT / instructions).read_text()
    records, whole = "kubectl apply -k manifests/crd ", f"kubectl apply -k {program}"
    assert 0 < text.index(records) < text.index(whole)


# The records


def schemas(name: str, schema: Manifest) -> Iterator[tuple[str, Manifest]]:
    """The schema of a field and of all that is inside of it, by path."""
    yield name, schema
    for key, inner in schema.get("properties", {}).items():
        yield from schemas(f"{name}.{key}", inner)
    if "items" in schema:
        yield from schemas(f"{name}[]", schema["items"])


(VERSION,) = crd("CustomResourceDefinition")["spec"]["versions"]
SCHEMAS = dict(schemas("ImagePin", VERSION["schema"]["openAPIV3Schema"]))
IMAGE = SCHEMAS["ImagePin.spec.images[]"]


@pytest.mark.parametrize("path", SCHEMAS)
def test_every_field_explains_itself(path: str) -> None:
    assert SCHEMAS[path]["description"].endswith(".")


@pytest.mark.parametrize("path", SCHEMAS)
def test_every_field_is_bounded(path: str) -> None:
    """What has no bound is taken for as long as a request, and rules would cost too much."""
    bounds = {"string": {"maxLength", "enum", "format"}, "array": {"maxItems"}}
    schema = SCHEMAS[path]
    if schema["type"] in bounds:
        assert bounds[schema["type"]] & schema.keys()


def test_what_a_rule_protects_cannot_be_left_out() -> None:
    """Without `required`, it could be taken away and made anew: rules compare two values."""
    for path, schema in SCHEMAS.items():
        if "x-kubernetes-validations" in schema:
            above, _, last = path.rpartition(".")
            if not last.endswith("[]"):  # a rule of the list keeps its items
                assert last in SCHEMAS[above]["required"]
    assert SCHEMAS["ImagePin"]["required"] == ["spec"]


def test_every_rule_says_what_to_do_instead() -> None:
    rules = [
        rule for schema in SCHEMAS.values() for rule in schema.get("x-kubernetes-validations", [])
    ]
    assert len(rules) == 4
    for rule in rules:
        assert "`kubectl delete imagepin`" in rule["message"]


@pytest.mark.parametrize(
    "digest",
    [
        f"sha256:{'0' * 64}",
        f"sha384:{'a' * 96}",
        f"sha512:{'f' * 128}",
        f"sha256:{'0' * 63}",
        f"sha256:{'0' * 65}",
        f"sha256:{'0' * 96}",
        f"sha384:{'0' * 64}",
        f"sha512:{'0' * 129}",
        f"sha256:{'A' * 64}",
        f"sha256:{'g' * 64}",
        f"SHA256:{'0' * 64}",
        f"md5:{'0' * 32}",
        f" sha256:{'0' * 64}",
        "0" * 64,
        "",
    ],
)
def test_a_digest_in_a_record_is_what_a_digest_is_to_us(digest: str) -> None:
    schema = IMAGE["properties"]["digest"]
    recordable = bool(re.search(schema["pattern"], digest)) and len(digest) <= schema["maxLength"]
    try:
        Digest.parse(digest)
    except InvalidReference:
        assert not recordable
    else:
        assert recordable


def test_records_are_seen_by_those_who_may_view_and_changed_by_nobody() -> None:
    role = crd("ClusterRole")
    assert role["rules"] == [
        {
            "apiGroups": ["tagpin.dev"],
            "resources": ["imagepins"],
            "verbs": ["get", "list", "watch"],
        }
    ]
    aggregated = {key for key in role["metadata"]["labels"] if "aggregate-to" in key}
    assert aggregated == {"rbac.authorization.k8s.io/aggregate-to-view"}


# Rights


def test_the_rights_in_the_cluster_are_these() -> None:
    assert base("ClusterRole")["rules"] == [
        {"apiGroups": [""], "resources": ["secrets", "serviceaccounts"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
        {
            "apiGroups": ["tagpin.dev"],
            "resources": ["imagepins"],
            "verbs": ["get", "list", "create", "update", "delete"],
        },
        {
            "apiGroups": ["apps"],
            "resources": ["replicasets", "statefulsets", "daemonsets", "controllerrevisions"],
            "verbs": ["get"],
        },
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
        {
            "apiGroups": ["admissionregistration.k8s.io"],
            "resources": ["mutatingwebhookconfigurations"],
            "resourceNames": ["tagpin"],
            "verbs": ["get", "patch", "watch"],
        },
    ]
    assert "aggregationRule" not in base("ClusterRole")


def test_the_rights_in_our_own_namespace_are_these() -> None:
    assert base("Role")["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["secrets"],
            "resourceNames": ["tagpin-tls"],
            "verbs": ["get", "patch"],
        },
        {
            "apiGroups": ["coordination.k8s.io"],
            "resources": ["leases"],
            "resourceNames": ["tagpin"],
            "verbs": ["get", "update"],
        },
    ]
    assert base("Secret")["metadata"]["name"] == "tagpin-tls"
    assert base("Lease")["metadata"]["name"] == "tagpin"


@pytest.mark.parametrize("kind", ["ClusterRole", "Role"])
def test_no_right_is_a_wildcard_and_no_secret_can_be_listed(kind: str) -> None:
    for rule in base(kind)["rules"]:
        assert "*" not in (*rule["apiGroups"], *rule["resources"], *rule["verbs"])
        if "secrets" in rule["resources"]:
            assert not {"list", "watch", "create", "delete", "deletecollection"} & {*rule["verbs"]}


@pytest.mark.parametrize("kind", ["ClusterRole", "Role"])
def test_the_rights_are_those_of_our_service_account_alone(kind: str) -> None:
    binding = base(f"{kind}Binding")
    assert binding["roleRef"] == {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": kind,
        "name": base(kind)["metadata"]["name"],
    }
    account = base("ServiceAccount")["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": SYSTEM}]
    assert POD["serviceAccountName"] == account


def test_only_the_deployment_gets_a_token() -> None:
    assert base("ServiceAccount")["automountServiceAccountToken"] is False
    assert POD["automountServiceAccountToken"] is True


# The pods


@pytest.mark.parametrize("what", ["enforce", "audit", "warn"])
def test_the_namespace_admits_restricted_pods_only(what: str) -> None:
    labels = base("Namespace")["metadata"]["labels"]
    assert labels[f"pod-security.kubernetes.io/{what}"] == "restricted"


def test_the_container_is_confined() -> None:
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "fsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & POD.keys()


def test_memory_is_limited_and_cpu_is_not() -> None:
    assert CONTAINER["resources"].keys() == {"requests", "limits"}
    assert CONTAINER["resources"]["requests"].keys() == {"cpu", "memory"}
    assert CONTAINER["resources"]["limits"].keys() == {"memory"}


def test_the_command_reads_the_settings_that_are_mounted() -> None:
    assert CONTAINER["image"] == "tagpin"
    assert CONTAINER["command"] == ["tagpin"]
    assert CONTAINER["args"] == ["serve", "--config", "/etc/tagpin/config.yaml"]
    assert list(base("ConfigMap")["data"]) == ["config.yaml", "exempt"]
    assert volume("config") == {"configMap": {"name": base("ConfigMap")["metadata"]["name"]}}
    assert mount("config") == {"mountPath": "/etc/tagpin", "readOnly": True}


def test_the_settings_are_valid_with_and_without_their_examples() -> None:
    text = base("ConfigMap")["data"]["config.yaml"]
    assert Settings.from_mapping(yaml.safe_load(text)) == Settings()

    examples = yaml.safe_load(re.sub(r"^#(?=\S|  )", "", text, flags=re.MULTILINE))

    assert examples.keys() == {"logLevel", "registries", "staleIfError"}
    Settings.from_mapping(examples)


def test_what_is_exempt_is_valid_with_and_without_its_example() -> None:
    text = base("ConfigMap")["data"]["exempt"]
    assert exempt_patterns(text) == ()

    (example,) = exempt_patterns(re.sub(r"^#(?=\S)", "", text, flags=re.MULTILINE))

    Rules.from_settings([example], [])


def test_names_and_places_are_those_that_tagpin_expects() -> None:
    expected = Settings()
    assert base("Namespace")["metadata"]["name"] == expected.namespace
    assert base("Service")["metadata"]["name"] == expected.service_name
    assert base("Secret")["metadata"]["name"] == expected.certificate_secret
    assert mount("tls")["mountPath"] == expected.certificate_directory
    configuration = base("MutatingWebhookConfiguration")
    assert configuration["metadata"]["name"] == expected.webhook_configuration
    ports = {each["name"]: each["containerPort"] for each in CONTAINER["ports"]}
    assert ports == {"webhook": expected.webhook_port, "health": expected.health_port}


def test_a_replica_starts_without_a_certificate_and_reads_one_as_its_group() -> None:
    secret = {"secretName": "tagpin-tls", "optional": True, "defaultMode": 0o440}
    assert volume("tls") == {"secret": secret}
    assert mount("tls") == {"mountPath": "/var/run/tagpin/tls", "readOnly": True}


def test_nothing_is_mounted_that_could_be_written_to() -> None:
    assert {each["name"] for each in POD["volumes"]} == {"config", "tls", "credentials"}


def test_a_replica_finds_credentials_of_its_own_where_there_are_some() -> None:
    secret = {"secretName": "tagpin-credentials", "optional": True, "defaultMode": 0o440}
    assert volume("credentials") == {"secret": secret}
    folder, _, name = Settings().credentials_file.rpartition("/")
    assert mount("credentials") == {"mountPath": folder, "readOnly": True}
    assert name == ".dockerconfigjson"  # the key of a Secret of type kubernetes.io/dockerconfigjson


@pytest.mark.parametrize(
    ("variable", "field"),
    [
        ("TAGPIN_NAMESPACE", "metadata.namespace"),
        ("TAGPIN_POD_NAME", "metadata.name"),
        ("TAGPIN_POD_ADDRESSES", "status.podIPs"),
    ],
)
def test_a_replica_knows_its_name_and_addresses(variable: str, field: str) -> None:
    (found,) = [each for each in CONTAINER["env"] if each["name"] == variable]
    assert found["valueFrom"] == {"fieldRef": {"fieldPath": field}}


def test_the_service_sets_no_variables_in_the_pods() -> None:
    assert POD["enableServiceLinks"] is False


@pytest.mark.parametrize(
    ("probe", "path"), [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")]
)
def test_probes_ask_the_second_port(probe: str, path: str) -> None:
    assert CONTAINER[probe]["httpGet"] == {"path": path, "port": "health"}


def test_the_service_leads_to_both_ports() -> None:
    service = {each["port"]: each["targetPort"] for each in base("Service")["spec"]["ports"]}
    assert service == {443: "webhook", 8080: "health"}


# Staying available


def test_there_are_two_replicas_of_which_one_always_stays() -> None:
    assert DEPLOYMENT["spec"]["replicas"] == 2
    assert DEPLOYMENT["spec"]["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }
    assert base("PodDisruptionBudget")["spec"]["minAvailable"] == 1


def test_a_draining_replica_is_noticed_and_given_time() -> None:
    drain, until_all_nodes_know = Settings().drain, 3
    assert seconds_to_notice(CONTAINER["readinessProbe"]) + until_all_nodes_know <= drain
    slowest_answer = max(entry["timeoutSeconds"] for entry in WEBHOOKS.values())
    assert slowest_answer < LAST_ANSWER
    to_exit = 5
    assert POD["terminationGracePeriodSeconds"] >= drain + LAST_ANSWER + to_exit


def test_one_that_hangs_is_noticed_in_the_time_that_the_docs_say() -> None:
    assert seconds_to_notice(CONTAINER["readinessProbe"]) == 6
    assert seconds_to_notice(CONTAINER["livenessProbe"]) == 65


def test_the_api_server_is_the_first_to_close_an_idle_connection() -> None:
    it_does_so_after = 90  # IdleConnTimeout of Go's http.DefaultTransport
    assert it_does_so_after < IDLE


def seconds_to_notice(probe: Manifest) -> int:
    """The longest time until a probe has failed for a process that does not answer."""
    assert probe["timeoutSeconds"] <= probe["periodSeconds"]
    return int(probe["failureThreshold"] * probe["periodSeconds"] + probe["timeoutSeconds"])


def test_replicas_spread_where_they_can() -> None:
    spread = {each["topologyKey"]: each for each in POD["topologySpreadConstraints"]}
    assert spread.keys() == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    for constraint in spread.values():
        assert constraint["whenUnsatisfiable"] == "ScheduleAnyway"
        assert constraint["labelSelector"] == DEPLOYMENT["spec"]["selector"]


def test_the_priority_class_is_admitted_everywhere() -> None:
    (scope,) = base("ResourceQuota")["spec"]["scopeSelector"]["matchExpressions"]
    assert scope == {
        "scopeName": "PriorityClass",
        "operator": "In",
        "values": [POD["priorityClassName"]],
    }
    most = DEPLOYMENT["spec"]["replicas"] + 1
    assert int(base("ResourceQuota")["spec"]["hard"]["pods"]) > most


def test_selectors_select_our_pods() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    selector = DEPLOYMENT["spec"]["selector"]["matchLabels"]
    assert selector.items() <= labels.items()
    assert base("Service")["spec"]["selector"] == selector
    assert base("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == selector


# The webhooks

NEVER_OURS = {
    "key": "kubernetes.io/metadata.name",
    "operator": "NotIn",
    "values": ["kube-system", SYSTEM],
}
OPT_OUT = {
    "matchExpressions": [{"key": "tagpin.dev/pin", "operator": "NotIn", "values": ["disabled"]}]
}


def mode(value: str) -> list[Manifest]:
    return [{"key": "tagpin.dev/mode", "operator": "In", "values": [value]}]


DIGESTER = [
    {"key": "digest-resolution", "operator": "In", "values": ["enabled"]},
    {"key": "tagpin.dev/mode", "operator": "DoesNotExist"},
]
ALWAYS = ["not-a-mirror-pod", "not-being-deleted", "changes-an-image"]
UNLESS_DIGESTS = [*ALWAYS, "has-a-tag-or-claims-a-record"]


@pytest.mark.parametrize(
    ("name", "path", "failure_policy", "namespaces", "objects", "conditions"),
    [
        ("audit.tagpin.dev", "/audit", "Ignore", mode("audit"), OPT_OUT, UNLESS_DIGESTS),
        ("pin.tagpin.dev", "/pin", "Ignore", mode("pin"), OPT_OUT, UNLESS_DIGESTS),
        ("enforce.tagpin.dev", "/enforce", "Fail", mode("enforce"), None, ALWAYS),
        ("digester.tagpin.dev", "/pin", "Ignore", DIGESTER, OPT_OUT, UNLESS_DIGESTS),
    ],
)
def test_an_entry_is_for_one_mode(
    *,
    name: str,
    path: str,
    failure_policy: str,
    namespaces: list[Manifest],
    objects: Manifest | None,
    conditions: list[str],
) -> None:
    entry = WEBHOOKS[name]
    service = base("Service")["metadata"]
    assert entry["clientConfig"] == {
        "service": {
            "name": service["name"],
            "namespace": service["namespace"],
            "path": path,
            "port": 443,
        }
    }
    assert entry["failurePolicy"] == failure_policy
    assert entry["namespaceSelector"] == {"matchExpressions": [*namespaces, NEVER_OURS]}
    assert entry.get("objectSelector") == objects
    assert [condition["name"] for condition in entry["matchConditions"]] == conditions


def test_there_is_no_other_entry() -> None:
    assert list(WEBHOOKS) == [
        "audit.tagpin.dev",
        "pin.tagpin.dev",
        "enforce.tagpin.dev",
        "digester.tagpin.dev",
    ]


@pytest.mark.parametrize("entry", WEBHOOKS.values(), ids=list(WEBHOOKS))
def test_all_entries_are_for_pods_that_start_or_change(entry: Manifest) -> None:
    version = {"apiGroups": [""], "apiVersions": ["v1"], "scope": "Namespaced"}
    assert entry["rules"] == [
        {**version, "resources": ["pods"], "operations": ["CREATE", "UPDATE"]},
        {**version, "resources": ["pods/ephemeralcontainers"], "operations": ["UPDATE"]},
    ]


@pytest.mark.parametrize("entry", WEBHOOKS.values(), ids=list(WEBHOOKS))
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("matchPolicy", "Equivalent"),
        ("reinvocationPolicy", "IfNeeded"),
        ("sideEffects", "NoneOnDryRun"),
        ("timeoutSeconds", 5),
        ("admissionReviewVersions", ["v1"]),
    ],
)
def test_all_entries_agree_on(entry: Manifest, field: str, value: object) -> None:
    assert entry[field] == value


def test_conditions_of_one_name_are_one_condition() -> None:
    expressions: dict[str, set[str]] = {}
    for entry in WEBHOOKS.values():
        for condition in entry["matchConditions"]:
            expressions.setdefault(condition["name"], set()).add(condition["expression"])
    assert {name: len(found) for name, found in expressions.items()} == dict.fromkeys(
        UNLESS_DIGESTS, 1
    )


@pytest.mark.parametrize("entry", WEBHOOKS.values(), ids=list(WEBHOOKS))
def test_no_condition_looks_at_the_namespace(entry: Manifest) -> None:
    """The object is empty there: such a condition would always fail."""
    for condition in entry["matchConditions"]:
        assert "namespaceObject" not in condition["expression"]


# The policies

REQUIRE_DIGEST = base("ValidatingAdmissionPolicy", "require-digest")["spec"]
REQUIRED = base("ValidatingAdmissionPolicyBinding", "require-digest")["spec"]


def test_the_second_line_judges_what_the_webhook_of_enforce_is_called_for() -> None:
    webhook = WEBHOOKS["enforce.tagpin.dev"]
    assert REQUIRE_DIGEST["matchConstraints"]["resourceRules"] == webhook["rules"]
    assert REQUIRE_DIGEST["matchConditions"] == webhook["matchConditions"]
    assert REQUIRED["matchResources"] == {"namespaceSelector": webhook["namespaceSelector"]}


def test_a_digest_is_the_same_to_the_policy_and_to_the_webhooks() -> None:
    (of_policy,) = [each for each in REQUIRE_DIGEST["variables"] if "sha384" in each["expression"]]
    of_webhooks = WEBHOOKS["pin.tagpin.dev"]["matchConditions"][-1]["expression"]
    pattern = re.compile(r'"@\(.*\)\$"')
    assert {*pattern.findall(of_policy["expression"])} == {*pattern.findall(of_webhooks)}
    assert len(pattern.findall(of_policy["expression"])) == 1


def test_the_second_line_reads_the_settings_of_the_operator_and_can_do_without() -> None:
    settings = base("ConfigMap")["metadata"]
    assert REQUIRE_DIGEST["paramKind"] == {"apiVersion": "v1", "kind": "ConfigMap"}
    assert REQUIRED["paramRef"] == {
        "name": settings["name"],
        "namespace": settings["namespace"],
        "parameterNotFoundAction": "Allow",
    }


def test_while_the_second_line_is_unbound_its_parameters_are_watched() -> None:
    kept = base("ValidatingAdmissionPolicyBinding", "keep-params")["spec"]
    assert {key: kept[key] for key in ("policyName", "paramRef")} == {
        key: REQUIRED[key] for key in ("policyName", "paramRef")
    }
    key = "tagpin.dev/mode"
    contrary = [{"key": key, "operator": each} for each in ("Exists", "DoesNotExist")]
    assert kept["matchResources"] == {"namespaceSelector": {"matchExpressions": contrary}}


def test_every_policy_refuses_and_says_why() -> None:
    policies = [each for each in OBJECTS.values() if each["kind"] == "ValidatingAdmissionPolicy"]
    assert len(policies) == 2
    for policy in policies:
        assert policy["spec"]["failurePolicy"] == "Fail"
        assert all(rule["message"] for rule in policy["spec"]["validations"])


def test_the_modes_that_a_namespace_may_have_are_those_that_there_are() -> None:
    (rule,) = base("ValidatingAdmissionPolicy", "known-mode")["spec"]["validations"]
    assert rule["expression"].endswith(f"in {json.dumps([*Mode])}")


# kind


def test_the_kind_overlay_runs_the_image_of_the_local_registry() -> None:
    overlay = load(MANIFESTS / "overlays" / "kind" / "kustomization.yaml")
    assert overlay["images"] == [
        {"name": "tagpin", "newName": "localhost:5001/tagpin", "newTag": "dev"}
    ]
    config = (ROOT / "kind-config.yaml").read_text()
    for said in ("localhost:5001/tagpin:dev", "kubectl apply -k manifests/overlays/kind"):
        assert said in config


def test_the_nodes_of_the_kind_cluster_are_pinned_and_know_the_registry() -> None:
    config = load(ROOT / "kind-config.yaml")
    for node in config["nodes"]:
        assert re.fullmatch(r"kindest/node:v[\d.]+@sha256:[0-9a-f]{64}", node["image"])
    (patch,) = config["containerdConfigPatches"]
    assert 'config_path = "/etc/containerd/certs.d"' in patch


def volume(name: str) -> Manifest:
    (found,) = [each for each in POD["volumes"] if each["name"] == name]
    return {key: value for key, value in found.items() if key != "name"}


def mount(name: str) -> Manifest:
    (found,) = [each for each in CONTAINER["volumeMounts"] if each["name"] == name]
    return {key: value for key, value in found.items() if key != "name"}
