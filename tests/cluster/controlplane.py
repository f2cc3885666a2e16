"""A real Kubernetes control plane on this machine, without containers and without root.

etcd, kube-apiserver, kube-controller-manager and kube-scheduler are what they are in any cluster.
kwok stands in for the kubelets: it reports pods as running, or jobs as completed, and pulls and
runs nothing.

Nothing here knows pytest: the demo and the benchmarks use the same class.
"""

import base64
import http.client
import json
import os
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from cryptography.hazmat.primitives.asymmetric import ec

from cluster.authority import Authority, write_private_key
from cluster.programs import (
    LOOPBACK,
    ProgramError,
    Running,
    executable,
    free_ports,
    lost_the_port,
)

KWOK_STAGES = Path(__file__).with_name("kwok") / "stages.yaml"
PROGRAMS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kwok",
    "kubectl",
)

# Far above what one machine can do: a limit of the client would be measured instead of the server.
UNLIMITED = ("--kube-api-qps=5000", "--kube-api-burst=10000")

# In bytes. At level Metadata the events here have about 1500.
LONGEST_AUDIT_EVENT = 1 << 20

AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
}
AUDIT_RULES = ({"level": "Metadata"},)
WITH_NEW_PODS = {
    "level": "RequestResponse",
    "verbs": ["create"],
    "resources": [{"group": "", "resources": ["pods"]}],
}


class KubectlError(Exception):
    """kubectl ended with an error; the message is what it said."""


class ApiRequest(NamedTuple):
    """A request that the API server answered, as its audit log has it."""

    verb: str
    resource: str
    """As in RBAC: `pods`, `pods/status`."""
    namespace: str
    name: str
    """Empty for lists and watches, and where the API server chose the name of what it created."""
    code: int
    """The HTTP status of the answer."""


class ControlPlane:
    """A control plane of its own: ports, certificates and data are shared with nothing.

    Any number of them run side by side. `start` returns when pods can be created; `stop` ends
    the programs and removes all data. Its programs die with the thread that called `start`.
    """

    authority: Authority
    """Issues its certificates, and others for tests, from `start` on."""
    _audit_log: Path
    _admin_tls: ssl.SSLContext

    def __init__(
        self,
        *,
        scheduler: bool = True,
        nodes: int = 3,
        api_server_flags: Sequence[str] = (),
        audit_new_pods: bool = False,
    ) -> None:
        """Prepare one; `nodes=0` leaves kwok out, so that pods stay pending.

        With `audit_new_pods` the audit log has every pod as it was created.
        """
        self._with_scheduler = scheduler
        self._nodes = nodes
        self._api_server_flags = tuple(api_server_flags)
        self._audit_rules = [*([WITH_NEW_PODS] if audit_new_pods else []), *AUDIT_RULES]
        self._programs: list[Running] = []
        self._folder = Path()
        self._port = 0
        self._api_server_command: tuple[str, ...] = ()
        self._kubeconfigs: dict[tuple[str, tuple[str, ...]], Path] = {}

    # Its life

    def start(self) -> Self:
        """Start everything. ProgramError carries the last log lines of what did not start."""
        for attempts_left in (2, 1, 0):
            try:
                self._start()
            except BaseException as error:
                self.stop()
                if not (attempts_left and isinstance(error, ProgramError) and lost_the_port(error)):
                    raise
            else:
                break
        return self

    def stop(self) -> None:
        """End the programs, clients first, and remove all data."""
        while self._programs:
            self._programs.pop().stop()
        if self._folder != Path():
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = Path()
        self._kubeconfigs.clear()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pids(self) -> dict[str, int]:
        """Program name → process id."""
        return {running.name: running.pid for running in self._programs}

    def stop_api_server(self, *, kill: bool = False, patience: float = 20) -> None:
        """End the API server alone; everybody else goes on, and misses it."""
        running = self._running("kube-apiserver")
        self._programs.remove(running)
        if kill:
            running.kill()
        else:
            running.stop(patience=patience)

    def start_api_server(self, *, until_ready: bool = True) -> None:
        """Start it again, at the same port and with the same data.

        It answers long before it is ready where it is busy: it looks at all of its roles first.
        """
        answers = self._answers_readyz if until_ready else self._admits_pods
        self._run_api_server().wait_until(answers, seconds=60)

    # How to reach it

    @property
    def url(self) -> str:
        return f"https://{LOOPBACK}:{self._port}"

    @property
    def ca_file(self) -> Path:
        """The authority of the API server, as a PEM file."""
        return self.authority.certificate

    @property
    def ca_data(self) -> str:
        """The same in base64, as kubeconfigs and webhook configurations want it."""
        return _base64(self.ca_file)

    def kubeconfig(self, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig whose client certificate says `user`, member of `groups`."""
        key = (user, tuple(groups))
        if key not in self._kubeconfigs:
            issued = self.authority.issue(user, groups=groups)
            credentials = {
                "client-certificate-data": _base64(issued.certificate),
                "client-key-data": _base64(issued.key),
            }
            self._kubeconfigs[key] = self._write_kubeconfig(credentials)
        return self._kubeconfigs[key]

    @property
    def admin(self) -> Path:
        """The kubeconfig of a user who may do everything."""
        return self.kubeconfig("admin", ["system:masters"])

    def token(self, namespace: str, service_account: str) -> str:
        """A fresh token of a ServiceAccount, as a pod would find it mounted."""
        return self.kubectl("create", "token", "-n", namespace, service_account).stdout.strip()

    def kubeconfig_for_token(self, token: str) -> Path:
        """A kubeconfig that presents `token`."""
        return self._write_kubeconfig({"token": token})

    def kubectl(
        self,
        *arguments: str,
        input: str | None = None,  # noqa: A002 - as subprocess.run calls it
        user: str | None = None,
        kubeconfig: Path | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run the real kubectl: as admin, as `user` (in no group), or with `kubeconfig`.

        KubectlError carries what it said; with `check=False` the caller looks for itself.
        """
        config = kubeconfig or (self.kubeconfig(user) if user else self.admin)
        done = subprocess.run(
            [executable("kubectl"), "--kubeconfig", config, *arguments],
            input=input,
            env=os.environ | {"KUBECACHEDIR": str(self._folder / "kubectl"), "KUBERC": "off"},
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET request of the admin, such as get("/readyz")."""
        connection = http.client.HTTPSConnection(
            LOOPBACK, self._port, timeout=10, context=self._admin_tls
        )
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def add_node(self, name: str) -> None:
        """Add a node like the others; it is ready when kwok has seen it, a moment later."""
        self.kubectl("create", "-f", "-", input=json.dumps(_node(name)))

    def remove_node(self, name: str) -> None:
        """Remove a node and the pods on it.

        The controllers would take a minute for that: they wait for a node to come back.
        """
        self.kubectl("delete", "node", name)
        here = f"--field-selector=spec.nodeName={name}"
        self.kubectl("delete", "pods", "-A", here, "--grace-period=0", "--force")

    # What it was asked

    def audit_mark(self) -> int:
        """Where the audit log ends by now, for `audit_events(since=…)`."""
        with self._audit_log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(0, end - LONGEST_AUDIT_EVENT))
            _, _, incomplete = log.read().rpartition(b"\n")
            return log.tell() - len(incomplete)

    def audit_events(self, since: int = 0) -> list[dict[str, Any]]:
        """The audit log from a mark on: an event per request, written before the answer.

        Its level is Metadata, but for pods with `audit_new_pods`. The log of a whole session is
        long: whoever knows where to begin takes an `audit_mark` there.
        https://kubernetes.io/docs/reference/config-api/apiserver-audit.v1/
        """
        with self._audit_log.open("rb") as log:
            log.seek(since)
            complete, _, _ = log.read().rpartition(b"\n")
        return [json.loads(line) for line in complete.splitlines()]

    def requests_of(
        self, user: str, *, resource: str | None = None, since: int = 0
    ) -> list[ApiRequest]:
        """What a user asked for, of one resource (such as "pods/status") or of all, from a mark on.

        In the order of the answers; a watch is there as soon as it has begun, and once.
        """
        events = {
            # What lasts is told of when it begins and when it ends.
            event["auditID"]: event
            for event in self.audit_events(since)
            if event["user"]["username"] == user and "objectRef" in event
        }
        requests = map(_api_request, events.values())
        return [each for each in requests if resource in (None, each.resource)]

    # How it starts

    def _start(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="tagpin-cluster-"))
        self._audit_log = self._folder / "audit.log"
        self.authority = Authority(self._folder)
        etcd_port, etcd_peer_port, self._port = free_ports(3)
        admin = self.authority.issue("admin", groups=["system:masters"])
        self._admin_tls = ssl.create_default_context(cafile=self.ca_file)
        self._admin_tls.load_cert_chain(admin.certificate, admin.key)

        service_account_key = self._folder / "service-accounts.key"
        write_private_key(service_account_key, ec.generate_private_key(ec.SECP256R1()))

        self._start_etcd(etcd_port, etcd_peer_port)
        self._start_api_server(etcd_port, service_account_key)
        controllers = self._start_controller_manager(service_account_key)
        if self._with_scheduler:
            self._start_scheduler()
        if self._nodes:
            self._start_kwok()
        controllers.wait_until(self._admits_pods, seconds=60)
        for running in self._programs:
            running.must_run()

    def _start_etcd(self, port: int, peer_port: int) -> None:
        client, peer = f"http://{LOOPBACK}:{port}", f"http://{LOOPBACK}:{peer_port}"
        etcd = self._run(
            "etcd",
            f"--data-dir={self._folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        )
        etcd.wait_until(lambda: _answers(port, "/health"), seconds=30)

    def _run_api_server(self) -> Running:
        """Run it; its flags are those of its first start."""
        return self._run("kube-apiserver", *self._api_server_command)

    def _running(self, name: str) -> Running:
        (found,) = [each for each in self._programs if each.name == name]
        return found

    def _start_api_server(self, etcd_port: int, service_account_key: Path) -> None:
        serving = self.authority.issue("kube-apiserver", hosts=[LOOPBACK, "localhost"])
        policy = self._folder / "audit-policy.json"
        policy.write_text(json.dumps(AUDIT_POLICY | {"rules": self._audit_rules}))
        self._api_server_command = (
            f"--etcd-servers=http://{LOOPBACK}:{etcd_port}",
            f"--bind-address={LOOPBACK}",
            f"--advertise-address={LOOPBACK}",
            "--endpoint-reconciler-type=none",  # which would object to a loopback address
            f"--secure-port={self._port}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--client-ca-file={self.ca_file}",
            f"--service-account-key-file={service_account_key}",
            f"--service-account-signing-key-file={service_account_key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
            "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
            f"--audit-policy-file={policy}",
            f"--audit-log-path={self._audit_log}",
            "--audit-log-maxsize=10000",  # megabytes; audit_events() reads one file
            *self._api_server_flags,
        )
        self.start_api_server()

    def _start_controller_manager(self, service_account_key: Path) -> Running:
        return self._run(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig('system:kube-controller-manager')}",
            f"--service-account-private-key-file={service_account_key}",
            f"--root-ca-file={self.ca_file}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--secure-port=0",
            *UNLIMITED,
        )

    def _start_scheduler(self) -> None:
        self._run(
            "kube-scheduler",
            f"--kubeconfig={self.kubeconfig('system:kube-scheduler')}",
            "--leader-elect=false",
            "--secure-port=0",
            *UNLIMITED,
        )

    def _start_kwok(self) -> None:
        nodes = [_node(f"node-{number}") for number in range(1, self._nodes + 1)]
        self.kubectl("create", "-f", "-", input=json.dumps(_list_of(nodes)))
        self._run(
            "kwok",
            f"--kubeconfig={self.kubeconfig('kwok', ['system:masters'])}",
            f"--config={KWOK_STAGES}",
            "--manage-all-nodes=true",
            "--node-lease-duration-seconds=40",
            "--server-address=",  # none of its own
        )

    def _run(self, name: str, *flags: str) -> Running:
        running = Running(name, [executable(name), *flags], log=self._folder / f"{name}.log")
        self._programs.append(running)
        return running

    def _answers_readyz(self) -> bool:
        return self._finds("/readyz")

    def _admits_pods(self) -> bool:
        return self._finds("/api/v1/namespaces/default/serviceaccounts/default")

    def _finds(self, path: str) -> bool:
        try:
            status, _ = self.get(path)
        except OSError:
            return False
        return status == http.HTTPStatus.OK

    def _write_kubeconfig(self, credentials: dict[str, str]) -> Path:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "tests",
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
            "clusters": [
                {
                    "name": "tests",
                    "cluster": {"server": self.url, "certificate-authority-data": self.ca_data},
                }
            ],
            "users": [{"name": "tests", "user": credentials}],
        }
        handle, name = tempfile.mkstemp(prefix="kubeconfig-", dir=self._folder)
        with os.fdopen(handle, "w") as file:
            json.dump(config, file)  # JSON is YAML
        return Path(name)


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


def _api_request(event: dict[str, Any]) -> ApiRequest:
    asked = event["objectRef"]
    return ApiRequest(
        event["verb"],
        "/".join(asked[part] for part in ("resource", "subresource") if asked.get(part)),
        asked.get("namespace", ""),
        asked.get("name", ""),
        event["responseStatus"]["code"],
    )


def _node(name: str) -> dict[str, Any]:
    room = {"cpu": "1000", "memory": "1Ti", "pods": "10000"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": room, "capacity": room},
    }


def _list_of(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "List", "items": list(items)}


def _base64(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()
