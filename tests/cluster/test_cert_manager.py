"""The component cert-manager, with cert-manager's own controllers and cainjector.

Only their main function is ours, and of their CRDs the descriptions are left out. Their webhook,
which checks what people write, does not run.
"""

import base64
import contextlib
import http.client
import json
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from cluster.callers import write_volume
from cluster.controlplane import PROGRAMS, ControlPlane
from cluster.installation import SERVICE_ACCOUNT, SYSTEM, Installation
from cluster.namespaces import eventually
from cluster.programs import LOOPBACK, Running, executable
from cluster.requirement import require_programs
from conftest import Figure
from tagpin.certificates import CA_CERTIFICATE, CA_KEY, CERTIFICATE, parse_certificates

CRDS = Path(__file__).with_name("cert-manager") / "crds.yaml"
LIFE = timedelta(days=90)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with cert-manager."""
    require_programs(*PROGRAMS, "cert-manager")
    log = tmp_path_factory.mktemp("cert-manager") / "log"
    with ControlPlane(scheduler=False, nodes=0) as running:
        running.kubectl("create", "-f", str(CRDS))
        names = ("certificates", "certificaterequests", "issuers", "clusterissuers")
        crds = [f"crd/{name}.cert-manager.io" for name in names]
        running.kubectl("wait", *crds, "--for=condition=established", "--timeout=30s")
        program = executable("cert-manager")
        cert_manager = Running("cert-manager", [program, f"--kubeconfig={running.admin}"], log=log)
        try:
            yield running
            cert_manager.must_run()
        finally:
            cert_manager.stop()


@pytest.fixture
def installed(cluster: ControlPlane) -> Iterator[Installation]:
    """tagpin as it comes, without cert-manager."""
    with Installation(cluster) as running:
        yield running
    forget_certificates(cluster)


@pytest.fixture
def with_cert_manager(cluster: ControlPlane) -> Iterator[Installation]:
    with Installation(cluster, components=["cert-manager"]) as running:
        yield running
    forget_certificates(cluster)


def forget_certificates(cluster: ControlPlane) -> None:
    kinds = "certificates,certificaterequests,issuers,secrets"
    cluster.kubectl("-n", SYSTEM, "delete", kinds, "--all")


def secret(cluster: ControlPlane, name: str = "tagpin-tls") -> dict[str, bytes]:
    text = cluster.kubectl("-n", SYSTEM, "get", "secret", name, "-ojson").stdout
    data = json.loads(text).get("data", {})
    return {key: base64.b64decode(value) for key, value in data.items()}


def configuration(cluster: ControlPlane) -> dict[str, Any]:
    path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/tagpin"
    found: dict[str, Any] = json.loads(cluster.get(path)[1])
    return found


def bundle(cluster: ControlPlane) -> bytes:
    """What all webhooks trust."""
    configs = [each["clientConfig"] for each in configuration(cluster)["webhooks"]]
    (only,) = {each.get("caBundle", "") for each in configs}
    return base64.b64decode(only)


def served(installation: Installation, trusted: bytes) -> x509.Certificate:
    """What a client is served that trusts these CAs alone; raises ssl.SSLError if it refuses."""
    context = ssl.create_default_context(cadata=trusted.decode())
    port = installation.replicas[0].port
    connection = http.client.HTTPSConnection(LOOPBACK, port, timeout=5, context=context)
    try:
        connection.connect()
        assert isinstance(connection.sock, ssl.SSLSocket)
        der = connection.sock.getpeercert(binary_form=True)
    finally:
        connection.close()
    assert der is not None
    return x509.load_der_x509_certificate(der)


def renew(cluster: ControlPlane, certificate: str) -> None:
    """What `cmctl renew` does."""
    condition = {
        "type": "Issuing",
        "status": "True",
        "reason": "ManuallyTriggered",
        "message": "by hand",
        "lastTransitionTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    path = f"certificate/{certificate}"
    text = cluster.kubectl("-n", SYSTEM, "get", path, "-ojson").stdout
    status = json.loads(text)["status"]
    status["conditions"] = [*status["conditions"], condition]
    patch = json.dumps({"status": status})
    options = ("--subresource=status", "--type=merge", "-p", patch)
    cluster.kubectl("-n", SYSTEM, "patch", path, *options)


def writers(cluster: ControlPlane, since: int) -> set[str]:
    """Who has written the Secret, or the webhook configuration, or has tried to."""
    return {
        event["user"]["username"]
        for event in cluster.audit_events(since)
        if event.get("objectRef", {}).get("resource")
        in ("secrets", "mutatingwebhookconfigurations")
        and event["objectRef"].get("name") in ("tagpin", "tagpin-tls")
        and event["verb"] not in ("get", "list", "watch")
    }


def metric(installation: Installation, name: str) -> float:
    lines = installation.get("/metrics")[1].splitlines()
    (value,) = [line.partition(" ")[2] for line in lines if line.startswith(f"{name} ")]
    return float(value)


class Caller(threading.Thread):
    """A client that connects anew all the time, and trusts what the caBundle says then."""

    def __init__(self, cluster: ControlPlane, installation: Installation) -> None:
        super().__init__()
        self._cluster = cluster
        self._installation = installation
        self._ended = threading.Event()
        self.calls = 0
        self.refusals: list[str] = []

    def run(self) -> None:
        while not self._ended.wait(0.005):
            self.calls += 1
            try:
                served(self._installation, bundle(self._cluster))
            except (ssl.SSLError, OSError) as error:
                self.refusals.append(repr(error))

    def end(self) -> None:
        self._ended.set()
        self.join()


@contextlib.contextmanager
def calling(cluster: ControlPlane, installation: Installation) -> Iterator[Caller]:
    caller = Caller(cluster, installation)
    caller.start()
    try:
        yield caller
    finally:
        caller.end()


def test_it_issues_and_renews_what_tagpin_serves_and_no_call_fails(
    cluster: ControlPlane, with_cert_manager: Installation, figure: Figure
) -> None:
    before = secret(cluster)
    (issued,) = parse_certificates(before[CERTIFICATE])
    assert bundle(cluster) == before[CA_CERTIFICATE] == secret(cluster, "tagpin-ca")[CERTIFICATE]
    assert served(with_cert_manager, bundle(cluster)) == issued
    assert issued.not_valid_after_utc - issued.not_valid_before_utc == LIFE
    assert metric(with_cert_manager, "tagpin_ca_bundle_is_current") == 1
    expiry = metric(with_cert_manager, "tagpin_certificate_expiry_timestamp_seconds")
    assert expiry == issued.not_valid_after_utc.timestamp()

    since = cluster.audit_mark()
    with calling(cluster, with_cert_manager) as caller:
        renew(cluster, "tagpin-ca")
        old_ca = before[CA_CERTIFICATE]
        eventually(lambda: secret(cluster, "tagpin-ca")[CERTIFICATE], lambda it: it != old_ca)
        renew(cluster, "tagpin")
        after = eventually(lambda: secret(cluster), lambda it: it[CA_CERTIFICATE] != old_ca)
        (issued,) = parse_certificates(after[CERTIFICATE])
        write_volume(with_cert_manager.replicas[0].certificate_directory, after)
        eventually(
            lambda: served(with_cert_manager, after[CA_CERTIFICATE] + old_ca),
            lambda it: it == issued,
        )
    figure(
        "connections while cert-manager renewed CA and certificate",
        f"{caller.calls}; {len(caller.refusals)} failed",
    )
    assert after[CA_CERTIFICATE] in bundle(cluster)
    assert caller.refusals == []
    assert SERVICE_ACCOUNT not in writers(cluster, since)


def test_what_tagpin_has_issued_gives_way_to_what_cert_manager_issues(
    cluster: ControlPlane, installed: Installation, figure: Figure
) -> None:
    ours = secret(cluster)
    with calling(cluster, installed) as caller:
        since = cluster.audit_mark()
        Installation(cluster, components=["cert-manager"]).apply()
        eventually(
            lambda: (secret(cluster)[CA_CERTIFICATE], bundle(cluster)),
            lambda it: it[0] in it[1] and it[0] != ours[CA_CERTIFICATE],
        )
        after = secret(cluster)
        write_volume(installed.replicas[0].certificate_directory, after)
        eventually(lambda: trusts(after[CA_CERTIFICATE], installed), bool, seconds=60)
    figure(
        "calls failed while cert-manager took over from tagpin",
        f"{len(caller.refusals)} of {caller.calls}",
    )
    assert secret(cluster) == after
    assert after[CA_CERTIFICATE] in bundle(cluster)
    assert after[CA_KEY] == ours[CA_KEY], "a left-over, which is of no account"
    assert SERVICE_ACCOUNT not in writers(cluster, since)
    assert caller.refusals == []


def trusts(authorities: bytes, installation: Installation) -> bool:
    """Whether clients that trust these CAs accept what is served."""
    try:
        served(installation, authorities)
    except ssl.SSLCertVerificationError:
        return False
    return True


def test_while_the_api_server_is_away_what_there_is_is_served(
    cluster: ControlPlane, installed: Installation
) -> None:
    """Without cert-manager; it is here for the control plane, whose API server may be stopped."""
    ours, (replica,) = bundle(cluster), installed.replicas
    cluster.stop_api_server()
    try:
        for _ in range(20):
            served(installed, ours)
            assert replica.get("/readyz") == (200, "ok\n")
            time.sleep(0.1)
    finally:
        cluster.start_api_server()
    wiped = [{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]
    named = "mutatingwebhookconfiguration/tagpin"
    cluster.kubectl("patch", named, "--type=json", "-p", json.dumps(wiped))
    # Its watch begins again within half a minute.
    eventually(lambda: trusted_by_all(cluster), lambda it: it == {ours}, seconds=90)


def trusted_by_all(cluster: ControlPlane) -> set[bytes]:
    webhooks = configuration(cluster)["webhooks"]
    return {base64.b64decode(each["clientConfig"].get("caBundle", "")) for each in webhooks}
