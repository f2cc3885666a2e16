"""Who may call the webhook, with API servers that have a certificate, or none, or a wrong one.

The API server's side is what manifests/components/client-ca says, but for paths and hosts. It
presents a certificate by the host that it calls, so one API server plays them all.
"""

import copy
import itertools
import json
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.authority import Authority
from cluster.controlplane import ControlPlane
from cluster.images import Pusher
from cluster.installation import MANIFESTS, SYSTEM, Installation
from cluster.namespaces import Namespace, eventually, images, pod
from cluster.programs import LOOPBACK, Distribution
from cluster.registries import Pushed, Store
from cluster.requirement import require_programs
from cluster.service import Service
from tagpin.settings import Settings

COMPONENT = MANIFESTS / "components" / "client-ca" / "kustomization.yaml"
NAME = "kube-apiserver"
CALLERS = ("right", "without", "stranger", "expired", "misnamed")
MODES = ("pin", "enforce")

# Who is refused, what the API server tells the pod's author, and what is counted.
REFUSED = {
    "without": ("tls: certificate required", 'rejected_connections_total{reason="no_certificate"}'),
    "stranger": (
        "tls: unknown certificate authority",
        'rejected_connections_total{reason="bad_certificate"}',
    ),
    "expired": ("tls: expired certificate", 'rejected_connections_total{reason="bad_certificate"}'),
    "misnamed": (
        "the client certificate bears none of the names in clientNames",
        'refused_requests_total{code="403"}',
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("who")


@pytest.fixture(scope="module")
def doors() -> Iterator[dict[str, Service]]:
    """A port for each caller; all lead to one replica."""
    with ExitStack() as stack:
        services = {caller: Service([]) for caller in CALLERS}
        for each in services.values():
            stack.enter_context(each)
        yield services


@pytest.fixture(scope="module")
def client_ca(folder: Path) -> Authority:
    return authority(folder / "clients")


def authority(folder: Path) -> Authority:
    folder.mkdir()
    return Authority(folder)


@pytest.fixture(scope="module")
def guarded(
    folder: Path, doors: Mapping[str, Service], client_ca: Authority
) -> Iterator[ControlPlane]:
    """A control plane that has a certificate for each door but one."""
    require_programs("etcd", "kube-apiserver", "kube-controller-manager", "kubectl", "registry")
    issued = {
        "right": client_ca.issue(NAME),
        "stranger": authority(folder / "others").issue(NAME),
        "expired": client_ca.issue(NAME, lifetime=timedelta(minutes=-1)),
        "misnamed": client_ca.issue("system:node:node-1"),
    }
    admission, kubeconfig = documented()
    (user,) = kubeconfig["users"]
    assert user["name"] == f"{Settings().service_name}.{SYSTEM}.svc"
    assert user["user"].keys() == {"client-certificate", "client-key"}
    kubeconfig["users"] = [
        {
            "name": f"{LOOPBACK}:{doors[caller].port}",
            "user": {"client-certificate": str(each.certificate), "client-key": str(each.key)},
        }
        for caller, each in issued.items()
    ]
    (folder / "kubeconfig.yaml").write_text(yaml.safe_dump(kubeconfig))
    (plugin,) = admission["plugins"]
    plugin["configuration"]["kubeConfigFile"] = str(folder / "kubeconfig.yaml")
    (folder / "admission.yaml").write_text(yaml.safe_dump(admission))
    flag = f"--admission-control-config-file={folder / 'admission.yaml'}"
    with ControlPlane(scheduler=False, nodes=0, api_server_flags=[flag]) as running:
        yield running


def documented() -> tuple[dict[str, Any], dict[str, Any]]:
    """What the component tells people to write for their API servers."""
    text = COMPONENT.read_text()
    assert "--admission-control-config-file=" in text
    blocks = re.findall(r"^#      apiVersion.*\n(?:#      .*\n)+", text, re.MULTILINE)
    admission, kubeconfig = (
        yaml.safe_load(re.sub(r"^#      ", "", block, flags=re.MULTILINE)) for block in blocks
    )
    return admission, kubeconfig


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with Distribution() as registry:
        yield Store(registry, Pusher(registry.url))


@pytest.fixture(scope="module")
def app(store: Store) -> Pushed:
    return store.push("who/app:1")


@pytest.fixture(scope="module")
def installation(
    guarded: ControlPlane, doors: Mapping[str, Service], client_ca: Authority, store: Store
) -> Iterator[Installation]:
    prepared = Installation(
        guarded,
        components=["client-ca", "network-policy"],
        settings={
            "registries": [{"host": store.host, "http": True}],
            "clientNames": [NAME],
            "logLevel": "debug",
        },
    )
    (replica,) = prepared.replicas
    mounted = replica._folder / "client-ca"
    mounted.mkdir()
    (mounted / "ca.crt").write_bytes(client_ca.certificate.read_bytes())
    with prepared as running:
        for caller, door in doors.items():
            door.add(replica.endpoint)
            eventually(partial(door.sends_to, replica.endpoint), bool)
            call_through(guarded, caller, door.port)
        yield running
        running.stop()
        assert "Traceback" not in running.log_text()


def call_through(control_plane: ControlPlane, caller: str, port: int) -> None:
    """Our webhooks once more, for namespaces of a caller's own."""
    stored = control_plane.kubectl("get", "mutatingwebhookconfiguration", "tagpin", "-o", "json")
    ours = {each["name"]: each for each in json.loads(stored.stdout)["webhooks"]}
    webhooks = []
    for mode in MODES:
        webhook = copy.deepcopy(ours[f"{mode}.tagpin.dev"])
        webhook["name"] = f"{mode}.{caller}.tagpin.dev"
        webhook["clientConfig"]["url"] = f"https://{LOOPBACK}:{port}/{mode}"
        webhook["namespaceSelector"] = {"matchLabels": {"caller": caller, "in": mode}}
        webhooks.append(webhook)
    control_plane.kubectl(
        *("create", "-f", "-"),
        input=json.dumps(
            {
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "MutatingWebhookConfiguration",
                "metadata": {"name": f"who-{caller}"},
                "webhooks": webhooks,
            }
        ),
    )


def new_namespace(control_plane: ControlPlane, caller: str, mode: str) -> Namespace:
    return Namespace(control_plane, f"{caller}-{mode}", {"caller": caller, "in": mode})


@pytest.mark.parametrize("mode", MODES)
def test_api_servers_with_a_certificate_of_the_right_ca_and_name_are_served(
    installation: Installation, guarded: ControlPlane, app: Pushed, mode: str
) -> None:
    namespace = new_namespace(guarded, "right", mode)

    def run() -> dict[str, str]:  # API servers need a moment to hear of a configuration
        flags = ("--dry-run=server", "-o", "json")
        return images(json.loads(namespace.create(pod("a", {"app": app.text}), flags=flags).output))

    assert eventually(run, lambda found: found != {"app": app.text}) == {"app": app.pinned}


@pytest.mark.parametrize("caller", REFUSED)
def test_whoever_has_no_right_certificate_is_refused_and_enforce_says_why(
    installation: Installation, guarded: ControlPlane, app: Pushed, caller: str
) -> None:
    message, counter = REFUSED[caller]
    before = count(installation, counter)
    namespace = new_namespace(guarded, caller, "enforce")

    answer = eventually(
        lambda: namespace.create(
            pod("a", {"app": app.text}), flags=["--dry-run=server"], check=False
        ),
        # Go may still be writing when it reads why, and then tells of the writing.
        lambda answer: not answer.succeeded and "closed network connection" not in answer.error,
    )

    assert f'failed calling webhook "enforce.{caller}.tagpin.dev"' in answer.error
    assert message in answer.error
    assert count(installation, counter) > before


@pytest.mark.parametrize("caller", ["without", "misnamed"])
def test_pin_lets_pods_in_as_written_where_the_api_server_is_refused(
    installation: Installation, guarded: ControlPlane, app: Pushed, caller: str
) -> None:
    _, counter = REFUSED[caller]
    namespace = new_namespace(guarded, caller, "pin")
    before = count(installation, counter)

    numbers = itertools.count()

    def pods_until_asked() -> str:
        name = f"a{next(numbers)}"
        namespace.create(pod(name, {"app": app.text}))
        return name

    name = eventually(pods_until_asked, lambda _: count(installation, counter) > before)

    assert images(namespace.pod(name)) == {"app": app.text}


def test_the_log_says_so_once(installation: Installation) -> None:
    told = [
        line["reason"]
        for line in installation.log_lines()
        if line["message"].startswith("a connection to the webhook came to nothing")
    ]

    assert sorted(told) == ["bad_certificate", "no_certificate"]


def test_kubelets_and_prometheus_need_no_certificate(installation: Installation) -> None:
    assert [installation.get(path)[0] for path in ("/healthz", "/readyz", "/metrics")] == [200] * 3


def test_nobody_speaks_at_the_webhook_port_without(installation: Installation) -> None:
    with pytest.raises(ssl.SSLError, match="certificate required"):
        installation.replicas[0].review("/enforce", {})


def test_the_api_server_takes_the_network_policy_and_it_selects_our_pods_alone(
    installation: Installation, guarded: ControlPlane
) -> None:
    def stored(kind: str, name: str = "tagpin") -> Any:
        found = guarded.kubectl("-n", SYSTEM, "get", kind, name, "-o", "json")
        return json.loads(found.stdout)["spec"]

    policy, deployment = stored("networkpolicy"), stored("deployment")

    assert (
        policy["podSelector"]
        == deployment["selector"]
        == {"matchLabels": stored("service")["selector"]}
    )
    (container,) = deployment["template"]["spec"]["containers"]
    opened = [port["port"] for rule in policy["ingress"] for port in rule["ports"]]
    assert opened == [port["containerPort"] for port in container["ports"]]
    assert all(rule["from"] for rule in policy["ingress"])
    # An empty peer, or a selector of nothing, would be everybody.
    peers = [peer for rule in policy["ingress"] for peer in rule["from"]]
    for peer in peers:
        assert peer.get("ipBlock", {}).get("except") or peer["namespaceSelector"]["matchLabels"]
    assert {53, 443, 6443, 5000} == {
        port["port"] for rule in policy["egress"] for port in rule["ports"]
    }


def count(installation: Installation, series: str) -> float:
    _, text = installation.get("/metrics")
    (value,) = re.findall(rf"^tagpin_{re.escape(series)} (\S+)$", text, re.MULTILINE) or ["0"]
    return float(value)
