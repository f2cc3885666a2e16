"""The manifests on a real API server: they apply, grant no more than meant, and call us rightly."""

import copy
import itertools
import json
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, Self

import pytest
import yaml

from cluster.controlplane import ControlPlane
from cluster.installation import BINDINGS, kustomized, wait_until_unbound
from cluster.namespaces import NewNamespace, deployment

MANIFESTS = Path(__file__).parents[2] / "manifests"
BASE = str(MANIFESTS / "base")
CRD = str(MANIFESTS / "crd")
KIND = str(MANIFESTS / "overlays" / "kind")
SYSTEM = "tagpin-system"
ACCOUNT = f"system:serviceaccount:{SYSTEM}:tagpin"

Pod = dict[str, Any]


@pytest.fixture(scope="class")
def installed(control_plane: ControlPlane) -> Iterator[None]:
    control_plane.kubectl("apply", "-k", CRD, "--validate=strict")
    control_plane.kubectl("apply", "-k", BASE, "--validate=strict")
    yield
    # The rest disturbs nobody, and a namespace takes seconds to go.
    control_plane.kubectl("delete", "mutatingwebhookconfiguration/tagpin", *BINDINGS[:2])
    control_plane.kubectl("delete", "secret/tagpin-tls", "-n", SYSTEM)


@pytest.mark.usefixtures("installed")
class TestInstallation:
    """kubectl apply -k of manifests/crd and manifests/base is all, any number of times."""

    def test_applying_again_changes_nothing(self, control_plane: ControlPlane) -> None:
        budget = ("get", "poddisruptionbudget/tagpin", "-n", SYSTEM, "-o", "json")
        before = json.loads(control_plane.kubectl(*budget).stdout)

        answer = control_plane.kubectl("apply", "-k", BASE).stdout.splitlines()

        assert len(answer) == len(kustomized(control_plane))
        # The selector of a budget is always replaced as a whole, so kubectl always has a patch.
        changed = [line for line in answer if not line.endswith(" unchanged")]
        assert changed == ["poddisruptionbudget.policy/tagpin configured"]
        after = json.loads(control_plane.kubectl(*budget).stdout)
        assert after["metadata"]["generation"] == before["metadata"]["generation"]

    def test_its_pods_are_admitted_and_become_available(self, control_plane: ControlPlane) -> None:
        arguments = ("rollout", "status", "deployment/tagpin", "-n", SYSTEM, "--timeout=60s")
        assert "successfully rolled out" in control_plane.kubectl(*arguments).stdout

    def test_nothing_in_it_draws_a_warning(self, control_plane: ControlPlane) -> None:
        answer = control_plane.kubectl("apply", "-k", BASE, "--dry-run=server", "--validate=strict")
        assert answer.stderr == ""

    def test_the_overlay_for_kind_renders_and_is_valid(self, control_plane: ControlPlane) -> None:
        rendered = yaml.safe_load_all(control_plane.kubectl("kustomize", KIND).stdout)
        (deployment,) = [each for each in rendered if each["kind"] == "Deployment"]
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert container["image"] == "localhost:5001/tagpin:dev"
        control_plane.kubectl("apply", "-k", KIND, "--dry-run=server", "--validate=strict")

    @pytest.mark.parametrize("how", [(), ("--server-side", "--force-conflicts")])
    def test_applying_again_keeps_the_certificate_that_was_written(
        self, control_plane: ControlPlane, how: Sequence[str]
    ) -> None:
        data = {"tls.crt": "Y2VydGlmaWNhdGU="}
        patch = json.dumps({"data": data})
        control_plane.kubectl("patch", "secret", "tagpin-tls", "-n", SYSTEM, "-p", patch)

        control_plane.kubectl("apply", "-k", BASE, *how)

        secret = control_plane.kubectl("get", "secret", "tagpin-tls", "-n", SYSTEM, "-o", "json")
        assert json.loads(secret.stdout)["data"] == data

    @pytest.mark.parametrize("how", [(), ("--server-side", "--force-conflicts")])
    def test_applying_again_keeps_the_authority_that_was_written(
        self, control_plane: ControlPlane, how: Sequence[str]
    ) -> None:
        patch = [
            {"op": "add", "path": f"/webhooks/{n}/clientConfig/caBundle", "value": bundle}
            for n, bundle in enumerate([control_plane.ca_data] * 4)
        ]
        configuration = ("mutatingwebhookconfiguration", "tagpin")
        control_plane.kubectl("patch", *configuration, "--type=json", "-p", json.dumps(patch))

        control_plane.kubectl("apply", "-k", BASE, *how)

        kept = json.loads(control_plane.kubectl("get", *configuration, "-o", "json").stdout)
        bundles = [entry["clientConfig"]["caBundle"] for entry in kept["webhooks"]]
        assert bundles == [control_plane.ca_data] * 4

    @pytest.mark.parametrize("how", [(), ("--server-side", "--force-conflicts")])
    def test_applying_again_leaves_the_lease_to_its_holder(
        self, control_plane: ControlPlane, how: Sequence[str]
    ) -> None:
        held = {"holderIdentity": "tagpin-1", "leaseDurationSeconds": 15}
        patch = json.dumps([{"op": "add", "path": "/spec", "value": held}])
        lease = ("patch", "lease", "tagpin", "-n", SYSTEM)
        control_plane.kubectl(*lease, "--type=json", "-p", patch)

        control_plane.kubectl("apply", "-k", BASE, *how)

        found = control_plane.kubectl("get", "lease", "tagpin", "-n", SYSTEM, "-o", "json")
        assert json.loads(found.stdout)["spec"] == held

        # No later test must wait for a holder that is not there.
        control_plane.kubectl(*lease, "--type=merge", "-p", json.dumps({"spec": None}))

    @pytest.mark.parametrize(
        ("namespace", "verb", "resource", "allowed"),
        [
            ("shop", "get", "secrets/pull-secret", "yes"),
            ("shop", "list", "secrets", "no"),
            ("shop", "watch", "secrets", "no"),
            ("shop", "create", "secrets", "no"),
            ("shop", "update", "secrets/pull-secret", "no"),
            ("shop", "patch", "secrets/pull-secret", "no"),
            ("shop", "delete", "secrets/pull-secret", "no"),
            ("shop", "get", "serviceaccounts/default", "yes"),
            ("shop", "list", "serviceaccounts", "no"),
            ("shop", "create", "serviceaccounts/token", "no"),
            ("shop", "impersonate", "serviceaccounts/default", "no"),
            ("shop", "create", "events", "yes"),
            ("shop", "list", "events", "no"),
            ("shop", "get", "pods/web", "no"),
            ("shop", "list", "pods", "yes"),
            ("shop", "watch", "pods", "no"),
            ("shop", "update", "pods/web", "no"),
            ("shop", "delete", "pods/web", "no"),
            ("shop", "get", "imagepins.tagpin.dev/web-1", "yes"),
            ("shop", "list", "imagepins.tagpin.dev", "yes"),
            ("shop", "create", "imagepins.tagpin.dev", "yes"),
            ("shop", "update", "imagepins.tagpin.dev/web-1", "yes"),
            ("shop", "delete", "imagepins.tagpin.dev/web-1", "yes"),
            ("shop", "watch", "imagepins.tagpin.dev", "no"),
            ("shop", "patch", "imagepins.tagpin.dev/web-1", "no"),
            ("shop", "deletecollection", "imagepins.tagpin.dev", "no"),
            ("shop", "get", "replicasets.apps/web-1", "yes"),
            ("shop", "list", "replicasets.apps", "no"),
            ("shop", "watch", "replicasets.apps", "no"),
            ("shop", "update", "replicasets.apps/web-1", "no"),
            ("shop", "get", "statefulsets.apps/db", "yes"),
            ("shop", "list", "statefulsets.apps", "no"),
            ("shop", "get", "daemonsets.apps/agent", "yes"),
            ("shop", "list", "daemonsets.apps", "no"),
            ("shop", "get", "controllerrevisions.apps/db-1", "yes"),
            ("shop", "list", "controllerrevisions.apps", "no"),
            ("shop", "get", "jobs.batch/report", "yes"),
            ("shop", "list", "jobs.batch", "no"),
            ("shop", "get", "cronjobs.batch/report", "no"),
            ("shop", "get", "configmaps/settings", "no"),
            ("shop", "get", "deployments.apps/web", "no"),
            ("shop", "patch", "deployments.apps/web", "no"),
            (SYSTEM, "get", "secrets/tagpin-tls", "yes"),
            (SYSTEM, "update", "secrets/tagpin-tls", "no"),
            (SYSTEM, "patch", "secrets/tagpin-tls", "yes"),
            (SYSTEM, "delete", "secrets/tagpin-tls", "no"),
            (SYSTEM, "create", "secrets", "no"),
            (SYSTEM, "list", "secrets", "no"),
            (SYSTEM, "update", "secrets/another", "no"),
            (SYSTEM, "update", "configmaps/tagpin", "no"),
            (SYSTEM, "get", "leases.coordination.k8s.io/tagpin", "yes"),
            (SYSTEM, "update", "leases.coordination.k8s.io/tagpin", "yes"),
            (SYSTEM, "patch", "leases.coordination.k8s.io/tagpin", "no"),
            (SYSTEM, "delete", "leases.coordination.k8s.io/tagpin", "no"),
            (SYSTEM, "create", "leases.coordination.k8s.io", "no"),
            (SYSTEM, "list", "leases.coordination.k8s.io", "no"),
            (SYSTEM, "get", "leases.coordination.k8s.io/another", "no"),
            (SYSTEM, "update", "leases.coordination.k8s.io/another", "no"),
            ("shop", "update", "leases.coordination.k8s.io/tagpin", "no"),
            ("", "get", "mutatingwebhookconfigurations/tagpin", "yes"),
            ("", "patch", "mutatingwebhookconfigurations/tagpin", "yes"),
            ("", "watch", "mutatingwebhookconfigurations/tagpin", "yes"),
            ("", "update", "mutatingwebhookconfigurations/tagpin", "no"),
            ("", "delete", "mutatingwebhookconfigurations/tagpin", "no"),
            ("", "patch", "mutatingwebhookconfigurations/another", "no"),
            ("", "list", "mutatingwebhookconfigurations", "no"),
            ("", "watch", "mutatingwebhookconfigurations", "no"),
            ("", "get", "namespaces/shop", "no"),
            ("", "get", "nodes/node-1", "no"),
        ],
    )
    def test_its_token_may_do_what_is_meant_and_no_more(
        self, control_plane: ControlPlane, namespace: str, verb: str, resource: str, allowed: str
    ) -> None:
        scope = ("-n", namespace) if namespace else ()
        question = ("auth", "can-i", verb, resource, *scope, "--as", ACCOUNT)
        assert control_plane.kubectl(*question, check=False).stdout.strip() == allowed

    def test_its_token_may_write_a_record_and_say_whose_it_is(
        self, control_plane: ControlPlane, new_namespace: NewNamespace
    ) -> None:
        """OwnerReferencesPermissionEnforcement asks for more where an owner is to be held back."""
        shop = new_namespace()
        shop.create(deployment("web", {"web": TAG}, replicas=0))
        workload = shop.get("deployments/web", "apis/apps/v1")
        owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
        owner["uid"] = workload["metadata"]["uid"]
        image = {"reference": TAG, "digest": f"sha256:{'0' * 64}", "source": "registry"}
        record = {
            "apiVersion": "tagpin.dev/v1alpha1",
            "kind": "ImagePin",
            "metadata": {"name": "web-1", "ownerReferences": [owner]},
            "spec": {
                "workload": owner,
                "revision": {"kind": "ReplicaSet", "name": "web-1", "hash": "1"},
                "images": [image],
            },
        }
        token = control_plane.kubeconfig_for_token(control_plane.token(SYSTEM, "tagpin"))
        path = f"/apis/tagpin.dev/v1alpha1/namespaces/{shop.name}/imagepins"

        shop.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(record), kubeconfig=token)

        (stored,) = shop.image_pins()
        stored["spec"]["images"].append(image | {"reference": f"{TAG}2"})
        changed = json.dumps(stored)
        one = ("--raw", f"{path}/web-1")
        shop.kubectl("replace", *one, "-f", "-", input=changed, kubeconfig=token)
        listed = shop.kubectl("get", "--raw", f"{path}?limit=1", kubeconfig=token).output
        assert json.loads(listed)["items"][0]["spec"] == stored["spec"]
        shop.kubectl("delete", *one, kubeconfig=token)
        assert not shop.image_pins()


TAG = "registry.test/web:1"
SHA256 = f"registry.test/web@sha256:{'0' * 64}"
SHA384 = f"registry.test/web@sha384:{'0' * 96}"
SHA512 = f"registry.test/web:1@sha512:{'f' * 128}"
LONG = f"{'a.' * 100}test/{'p' * 150}:{'t' * 60}@sha256:{'0' * 64}"
FORGED = {"tagpin.dev/pins": "{}"}
MIRROR = {"kubernetes.io/config.mirror": "abc"}
OPTED_OUT = {"tagpin.dev/pin": "disabled"}
HOLD = "tagpin.dev/test-hold"

# Every namespace has labels of its own; "manifests-" keeps off those of other tests.
AUDIT, PIN, ENFORCE, DIGESTER = (f"manifests-{name}" for name in ("a", "p", "e", "d"))
PLAIN, BOTH, OFF, CONTRARY = (f"manifests-{name}" for name in ("plain", "both", "off", "contrary"))
NAMESPACES: dict[str, dict[str, str]] = {
    AUDIT: {"tagpin.dev/mode": "audit"},
    PIN: {"tagpin.dev/mode": "pin"},
    ENFORCE: {"tagpin.dev/mode": "enforce"},
    DIGESTER: {"digest-resolution": "enabled"},
    BOTH: {"tagpin.dev/mode": "enforce", "digest-resolution": "enabled"},
    CONTRARY: {"tagpin.dev/mode": "nonsense", "digest-resolution": "enabled"},
    OFF: {"digest-resolution": "disabled"},
    PLAIN: {},
    SYSTEM: {"tagpin.dev/mode": "pin"},
    f"{SYSTEM}-too": {"tagpin.dev/mode": "pin"},
}


class Call(NamedTuple):
    """A review that the API server has sent."""

    path: str
    operation: str
    namespace: str
    name: str
    subresource: str


class Recorder:
    """A webhook server that admits everything and remembers what it was asked."""

    def __init__(self, control_plane: ControlPlane) -> None:
        issued = control_plane.authority.issue("recorder", hosts=["127.0.0.1"])
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(issued.certificate, issued.key)
        calls: list[Call] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                review = json.loads(self.rfile.read(int(self.headers["content-length"])))
                request = review["request"]
                path, _, _ = self.path.partition("?")
                calls.append(
                    Call(
                        path,
                        request["operation"],
                        request["namespace"],
                        request["name"],
                        request.get("subResource", ""),
                    )
                )
                review["response"] = {"uid": request.pop("uid"), "allowed": True}
                del review["request"]
                body = json.dumps(review).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.calls = calls
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self._control_plane = control_plane
        self._thread = Thread(target=self.server.serve_forever, daemon=True)
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server.server_address[1]}"

    def create(self, namespace: str, pod: Pod, *, user: Path | None = None) -> str:
        """Create a pod of a name that no other has, for certain; say which."""
        pod = copy.deepcopy(pod)
        pod["metadata"]["name"] = name = f"pod-{next(self._numbers)}"
        self._control_plane.kubectl(
            "create", "-n", namespace, "-f", "-", input=json.dumps(pod), kubeconfig=user
        )
        return name

    def would_create(self, namespace: str, pod: Pod, *, user: Path | None = None) -> list[str]:
        """The paths that are called when the pod is created; a dry run calls the same ones."""
        pod = copy.deepcopy(pod)
        pod["metadata"]["name"] = name = f"pod-{next(self._numbers)}"
        self._control_plane.kubectl(
            *("create", "-n", namespace, "-f", "-", "--dry-run=server", "--validate=ignore"),
            input=json.dumps(pod),
            kubeconfig=user,
        )
        return self.paths(namespace, name)

    def paths(self, namespace: str, name: str) -> list[str]:
        return [call.path for call in self.calls if call[2:4] == (namespace, name)]


def a_pod(
    *images: str | None,
    init: Sequence[str | None] = (),
    volumes: Sequence[str] = (),
    annotations: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    **spec: Any,
) -> Pod:
    """A pod with a container for each image (None: a container without an image)."""
    metadata = {"annotations": annotations or {}, "labels": labels or {}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata | spec.pop("metadata", {}),
        "spec": {
            "containers": [_container(f"c{n}", image) for n, image in enumerate(images)],
            "initContainers": [_container(f"i{n}", image) for n, image in enumerate(init)],
            "volumes": [
                {"name": f"v{n}", "image": {"reference": reference}}
                for n, reference in enumerate(volumes)
            ],
            "terminationGracePeriodSeconds": 0,
            **spec,
        },
    }


def _container(name: str, image: str | None) -> dict[str, str]:
    return {"name": name} if image is None else {"name": name, "image": image}


@pytest.fixture(scope="class")
def recorder(control_plane: ControlPlane) -> Iterator[Recorder]:
    """The webhook configuration as it is shipped, but for where it sends the API server."""
    text = (MANIFESTS / "base" / "mutatingwebhookconfiguration.yaml").read_text()
    configuration = yaml.safe_load(text)
    namespaces = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        for name, labels in NAMESPACES.items()
    ]
    wait_until_unbound(control_plane)
    with Recorder(control_plane) as recorder:
        for entry in configuration["webhooks"]:
            path = entry["clientConfig"]["service"]["path"]
            entry["clientConfig"] = {
                "url": recorder.url + path,
                "caBundle": control_plane.ca_data,
            }
        made = [*namespaces, configuration]
        manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": made})
        mode_of_kube_system = ("label", "namespace", "kube-system")
        try:
            control_plane.kubectl(*mode_of_kube_system, "tagpin.dev/mode=pin")
            control_plane.kubectl("apply", "-f", "-", "--validate=strict", input=manifest)
            for name in NAMESPACES:
                wait = ("wait", "serviceaccount/default", "-n", name)
                control_plane.kubectl(*wait, "--for=create", "--timeout=30s")
            deadline = time.monotonic() + 30
            while not recorder.would_create(ENFORCE, a_pod(TAG)):
                assert time.monotonic() < deadline, "the API server has called nobody"
                time.sleep(0.1)
            yield recorder
        finally:
            control_plane.kubectl(*mode_of_kube_system, "tagpin.dev/mode-")
            control_plane.kubectl("label", "namespace", SYSTEM, "tagpin.dev/mode-")
            control_plane.kubectl("delete", "mutatingwebhookconfiguration/tagpin")
            others = [name for name in NAMESPACES if name != SYSTEM]
            control_plane.kubectl("delete", "namespace", *others, "--wait=false")


def errors_of_conditions(control_plane: ControlPlane) -> list[str]:
    """What the API server counts of match conditions that could not be evaluated."""
    status, body = control_plane.get("/metrics")
    assert status == 200
    return [
        line
        for line in body.decode().splitlines()
        if line.startswith("apiserver_admission_match_condition_evaluation_errors_total")
        and ".tagpin.dev" in line
    ]


@pytest.fixture(autouse=True)
def conditions_must_evaluate(
    request: pytest.FixtureRequest, control_plane: ControlPlane
) -> Iterator[None]:
    """Under failurePolicy Ignore, a condition that fails would look like one that says no."""
    if "recorder" not in request.fixturenames:
        yield
        return
    before = errors_of_conditions(control_plane)
    yield
    assert errors_of_conditions(control_plane) == before


class TestWhichRequestsReachTagpin:
    """The rules, selectors and match conditions, as the API server evaluates them."""

    @pytest.mark.parametrize(
        ("namespace", "pod", "called"),
        [
            # Modes
            pytest.param(AUDIT, a_pod(TAG), ["/audit"], id="audit"),
            pytest.param(PIN, a_pod(TAG), ["/pin"], id="pin"),
            pytest.param(ENFORCE, a_pod(TAG), ["/enforce"], id="enforce"),
            pytest.param(DIGESTER, a_pod(TAG), ["/pin"], id="digester's label alone"),
            pytest.param(BOTH, a_pod(TAG), ["/enforce"], id="our label goes before digester's"),
            pytest.param(CONTRARY, a_pod(TAG), [], id="even if its value is none of ours"),
            pytest.param(OFF, a_pod(TAG), [], id="digester's label with another value"),
            pytest.param(PLAIN, a_pod(TAG), [], id="a namespace without labels"),
            pytest.param("kube-system", a_pod(TAG), [], id="kube-system, though labelled"),
            pytest.param(SYSTEM, a_pod(TAG), [], id="our own namespace, though labelled"),
            pytest.param(f"{SYSTEM}-too", a_pod(TAG), ["/pin"], id="a namespace named alike"),
            # Digests only
            pytest.param(AUDIT, a_pod(SHA256), [], id="a digest in audit"),
            pytest.param(PIN, a_pod(SHA256), [], id="a digest in pin"),
            pytest.param(DIGESTER, a_pod(SHA256), [], id="a digest under digester's label"),
            pytest.param(ENFORCE, a_pod(SHA256), ["/enforce"], id="a digest in enforce"),
            pytest.param(PIN, a_pod(SHA256, SHA384, SHA512), [], id="all kinds of digests"),
            pytest.param(PIN, a_pod(SHA256, init=[SHA256], volumes=[SHA256]), [], id="everywhere"),
            pytest.param(PIN, a_pod(SHA256, TAG), ["/pin"], id="a tag in the last container"),
            pytest.param(PIN, a_pod(SHA256, init=[TAG]), ["/pin"], id="a tag in an init container"),
            pytest.param(PIN, a_pod(SHA256, volumes=[TAG]), ["/pin"], id="a tag in a volume"),
            pytest.param(PIN, a_pod(SHA256[:-1]), ["/pin"], id="a digest that is too short"),
            pytest.param(PIN, a_pod(SHA256 + "0"), ["/pin"], id="a digest that is too long"),
            pytest.param(PIN, a_pod(SHA384[:-1]), ["/pin"], id="a short sha384"),
            pytest.param(PIN, a_pod(SHA512 + "0"), ["/pin"], id="a long sha512"),
            pytest.param(PIN, a_pod(SHA256[:-1] + "F"), ["/pin"], id="a digest in capitals"),
            pytest.param(PIN, a_pod(f"web@md5:{'0' * 32}"), ["/pin"], id="an unknown algorithm"),
            # Records that a pod brings along
            pytest.param(PIN, a_pod(SHA256, annotations=FORGED), ["/pin"], id="a record in pin"),
            pytest.param(
                AUDIT, a_pod(SHA256, annotations=FORGED), ["/audit"], id="a record in audit"
            ),
            pytest.param(
                PIN,
                a_pod(SHA256, annotations={"tagpin.dev/revision": "x"}),
                ["/pin"],
                id="any annotation of ours",
            ),
            pytest.param(
                PIN,
                a_pod(SHA256, annotations={"x.tagpin.dev/pins": "", "tagpin.development/a": ""}),
                [],
                id="annotations of others",
            ),
            # Opting out
            pytest.param(AUDIT, a_pod(TAG, labels=OPTED_OUT), [], id="opted out of audit"),
            pytest.param(PIN, a_pod(TAG, labels=OPTED_OUT), [], id="opted out of pin"),
            pytest.param(DIGESTER, a_pod(TAG, labels=OPTED_OUT), [], id="opted out of digester"),
            pytest.param(
                ENFORCE, a_pod(TAG, labels=OPTED_OUT), ["/enforce"], id="no opting out of enforce"
            ),
            pytest.param(
                PIN, a_pod(TAG, labels={"tagpin.dev/pin": "no"}), ["/pin"], id="another label value"
            ),
            # Sizes
            pytest.param(PIN, a_pod(*[TAG] * 150), ["/pin"], id="150 tags"),
            pytest.param(
                PIN,
                a_pod(*[LONG] * 150, init=[LONG] * 50, volumes=[LONG] * 150),
                [],
                id="350 long digests",
            ),
            pytest.param(
                PIN,
                a_pod(*[LONG] * 150, init=[LONG] * 50, volumes=[*[LONG] * 150, TAG]),
                ["/pin"],
                id="350 long digests and a tag",
            ),
            pytest.param(
                PIN,
                a_pod(f"{'a' * 700_000}@sha256:{'0' * 64}", TAG),
                ["/pin"],
                id="an image name that would exhaust the budget",
            ),
        ],
    )
    def test_of_creates(
        self, recorder: Recorder, namespace: str, pod: Pod, called: list[str]
    ) -> None:
        assert recorder.would_create(namespace, pod) == called

    @pytest.mark.parametrize("namespace", [AUDIT, PIN, ENFORCE, DIGESTER])
    def test_a_mirror_pod_of_a_kubelet_does_not(
        self, recorder: Recorder, control_plane: ControlPlane, namespace: str
    ) -> None:
        kubelet = control_plane.kubeconfig("system:node:node-1", ["system:nodes", "system:masters"])
        pod = a_pod(TAG, annotations=MIRROR, nodeName="node-1")
        assert recorder.would_create(namespace, pod, user=kubelet) == []

    @pytest.mark.parametrize(
        ("namespace", "called"),
        [(AUDIT, "/audit"), (PIN, "/pin"), (ENFORCE, "/enforce"), (DIGESTER, "/pin")],
    )
    def test_a_pod_that_only_claims_to_be_a_mirror_does(
        self, recorder: Recorder, namespace: str, called: str
    ) -> None:
        pod = a_pod(TAG, annotations=MIRROR, nodeName="node-1")
        assert recorder.would_create(namespace, pod) == [called]

    def test_other_pods_of_a_kubelet_do(
        self, recorder: Recorder, control_plane: ControlPlane
    ) -> None:
        kubelet = control_plane.kubeconfig("system:node:node-1", ["system:nodes", "system:masters"])
        assert recorder.would_create(PIN, a_pod(TAG), user=kubelet) == ["/pin"]

    @pytest.mark.parametrize(
        ("change", "called"),
        [
            pytest.param(["label", "pod/{name}", "team=a"], False, id="a label"),
            pytest.param(["annotate", "pod/{name}", "note=a"], False, id="an annotation"),
            pytest.param(
                ["annotate", "pod/{name}", "tagpin.dev/pins={{}}"], False, id="a forged record"
            ),
            pytest.param(
                ["patch", "pod/{name}", "--type=merge", "-p", '{{"metadata":{{"finalizers":[]}}}}'],
                False,
                id="a finalizer taken away",
            ),
            pytest.param(
                [
                    *("patch", "pod/{name}", "--subresource=status", "-p"),
                    '{{"status":{{"message":"well"}}}}',
                ],
                False,
                id="the status",
            ),
            pytest.param(
                ["set", "image", "pod/{name}", f"c1={TAG}2"], True, id="another tag in a container"
            ),
            pytest.param(
                ["set", "image", "pod/{name}", f"i0={TAG}2"], True, id="another tag in an init one"
            ),
            pytest.param(
                ["set", "image", "pod/{name}", f"c0={SHA256}", f"c1={TAG}2"], True, id="two images"
            ),
            pytest.param(
                ["debug", "pod/{name}", f"--image={TAG}", "--container=d", "--profile=general"],
                True,
                id="an ephemeral container",
            ),
        ],
    )
    @pytest.mark.parametrize(("namespace", "path"), [(PIN, "/pin"), (ENFORCE, "/enforce")])
    def test_of_updates(
        self,
        recorder: Recorder,
        control_plane: ControlPlane,
        *,
        namespace: str,
        path: str,
        change: list[str],
        called: bool,
    ) -> None:
        pod = a_pod(TAG, TAG, init=[TAG], volumes=[TAG], metadata={"finalizers": [HOLD]})
        name = recorder.create(namespace, pod)
        assert recorder.paths(namespace, name) == [path]

        control_plane.kubectl("-n", namespace, *(each.format(name=name) for each in change))

        # The API server asks once more where a controller has written the pod meanwhile.
        assert set(recorder.paths(namespace, name)[1:]) == ({path} if called else set())

        free = json.dumps({"metadata": {"finalizers": None}})
        control_plane.kubectl("patch", "pod", name, "-n", namespace, "--type=merge", "-p", free)

    @pytest.mark.parametrize("namespace", [PIN, ENFORCE])
    def test_two_images_exchanged_do(
        self, recorder: Recorder, control_plane: ControlPlane, namespace: str
    ) -> None:
        name = recorder.create(namespace, a_pod(TAG, f"{TAG}2"))
        before = len(recorder.paths(namespace, name))
        exchange = (f"c0={TAG}2", f"c1={TAG}")
        control_plane.kubectl("set", "image", f"pod/{name}", *exchange, "-n", namespace)
        assert len(recorder.paths(namespace, name)) > before

    @pytest.mark.parametrize("namespace", [PIN, ENFORCE])
    def test_updates_of_a_pod_being_deleted_do_not(
        self, recorder: Recorder, control_plane: ControlPlane, namespace: str
    ) -> None:
        name = recorder.create(namespace, a_pod(TAG, metadata={"finalizers": [HOLD]}))
        before = recorder.paths(namespace, name)
        here = ("-n", namespace)
        control_plane.kubectl("delete", "pod", name, "--wait=false", *here)

        control_plane.kubectl("label", f"pod/{name}", "team=a", *here)
        control_plane.kubectl("set", "image", f"pod/{name}", f"c0={TAG}2", *here)
        free = json.dumps({"metadata": {"finalizers": None}})
        control_plane.kubectl("patch", f"pod/{name}", "--type=merge", "-p", free, *here)

        control_plane.kubectl("wait", f"pod/{name}", "--for=delete", "--timeout=30s", *here)
        assert recorder.paths(namespace, name) == before

    @pytest.mark.parametrize("namespace", [PIN, ENFORCE])
    def test_updates_of_a_huge_pod_do_only_where_an_image_changes(
        self, recorder: Recorder, control_plane: ControlPlane, namespace: str
    ) -> None:
        pod = a_pod(*[TAG] * 150, init=[TAG] * 50, volumes=[TAG] * 150)
        name = recorder.create(namespace, pod)
        before = len(recorder.paths(namespace, name))
        control_plane.kubectl("label", f"pod/{name}", "team=a", "-n", namespace)
        assert len(recorder.paths(namespace, name)) == before
        control_plane.kubectl("set", "image", f"pod/{name}", f"c149={TAG}2", "-n", namespace)
        assert len(recorder.paths(namespace, name)) == before + 1

    def test_an_ephemeral_container_arrives_by_its_subresource(
        self, recorder: Recorder, control_plane: ControlPlane
    ) -> None:
        name = recorder.create(PIN, a_pod(TAG))
        control_plane.kubectl(
            *("debug", name, "-n", PIN, f"--image={TAG}", "--container=d", "--profile=general")
        )
        assert Call("/pin", "UPDATE", PIN, name, "ephemeralcontainers") in recorder.calls

    @pytest.mark.parametrize(
        ("pod", "called"),
        [
            pytest.param(a_pod(TAG, containers=None, initContainers=None), False, id="null lists"),
            pytest.param(a_pod(containers=None, init=[TAG]), True, id="null, and a tag elsewhere"),
            pytest.param(a_pod(), False, id="no containers"),
            pytest.param(a_pod(None), False, id="a container without an image"),
            pytest.param(a_pod(""), False, id="a container with an empty image"),
            pytest.param(a_pod(None, SHA256, TAG), True, id="a tag behind an absent image"),
            pytest.param(a_pod(SHA256, containers=[None, {"image": TAG}]), True, id="a null item"),
            pytest.param(
                a_pod(SHA256, volumes=[""], metadata={"annotations": None, "labels": None}),
                False,
                id="null annotations, an empty volume image",
            ),
            pytest.param(
                {"apiVersion": "v1", "kind": "Pod", "metadata": {}}, False, id="no spec at all"
            ),
        ],
    )
    def test_a_malformed_pod_breaks_no_condition(
        self, recorder: Recorder, control_plane: ControlPlane, pod: Pod, *, called: bool
    ) -> None:
        """Kubernetes refuses most of these: after us, and with reasons of its own."""
        pod = copy.deepcopy(pod)
        for namespace, expected in ((PIN, ["/pin"] if called else []), (ENFORCE, ["/enforce"])):
            pod["metadata"]["name"] = name = f"malformed-{len(recorder.calls)}-{namespace}"
            arguments = ("-n", namespace, "-f", "-", "--dry-run=server", "--validate=false")
            answer = control_plane.kubectl("create", *arguments, input=json.dumps(pod), check=False)
            assert "webhook" not in answer.stderr
            assert recorder.paths(namespace, name) == expected

    def test_an_update_that_takes_everything_away_breaks_no_condition(
        self, recorder: Recorder, control_plane: ControlPlane
    ) -> None:
        name = recorder.create(ENFORCE, a_pod(TAG))
        nothing = json.dumps([{"op": "replace", "path": "/spec/containers", "value": None}])
        patch = ("patch", f"pod/{name}", "-n", ENFORCE, "--type=json", "-p", nothing)
        answer = control_plane.kubectl(*patch, check=False)
        assert "webhook" not in answer.stderr
        assert "spec.containers" in answer.stderr
