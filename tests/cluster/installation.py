"""tagpin installed into a control plane from its own manifests, and run as a kubelet would.

Only what a container engine would bring is played: mounts are folders, the Service is a
loopback port, so `clientConfig` names that: the port of the replica if there is only one, else
one that forwards to the replicas that are ready. Command, arguments, environment, mounted
configuration and the ServiceAccount's token are those of the Deployment in manifests/base.
"""

import base64
import http.client
import json
import os
import re
import shutil
import signal
import ssl
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import yaml

from cluster.controlplane import ControlPlane
from cluster.namespaces import eventually
from cluster.programs import LOOPBACK, Running, free_ports
from cluster.service import PERIOD, Endpoint, Service

MANIFESTS = Path(__file__).parents[2] / "manifests"
BASE = MANIFESTS / "base"
CRD = MANIFESTS / "crd"
SYSTEM = "tagpin-system"
SERVICE_ACCOUNT = f"system:serviceaccount:{SYSTEM}:tagpin"

BINDINGS = tuple(
    f"validatingadmissionpolicybinding/tagpin-{name}"
    for name in ("require-digest", "known-mode", "guard-mode")
)
"""Without these the policies say nothing, a second after they are gone.

`tagpin-keep-params` stays: its file says why.
"""

_COUNTERS = re.compile(r"tagpin_(admissions|images_pinned|images_unpinned)_total\{")


class Replica:
    """One replica of tagpin, with a folder, ports and a token of its own.

    `stop` and `start` may be called again and again; ports and log stay until `close`.
    """

    port: int
    health_port: int

    def __init__(
        self,
        control_plane: ControlPlane,
        pod: str,
        *,
        container: Mapping[str, Any],
        configuration: Mapping[str, str],
    ) -> None:
        """Prepare the `container` of a `pod`; `configuration` is file name → content."""
        self._control_plane = control_plane
        self._pod = pod
        self._container = container
        self._configuration = configuration
        self._folder = Path(tempfile.mkdtemp(prefix=f"{pod}-"))
        self._log = self._folder / "log"
        self.port, self.health_port = free_ports(2)
        self._service: Service | None = None
        self._running: Running | None = None

    def start(self) -> None:
        """Run it, and return when it is in service."""
        self.launch()
        self.wait_until_in_service()

    def launch(self) -> None:
        """Run it, and don't wait."""
        assert self._running is None, f"{self._pod} runs already"
        mounts = self._mount()
        command = [*self._container["command"], *self._container["args"]]
        program = Path(sys.executable).with_name(command[0])
        arguments = [_rewritten(word, mounts) for word in command[1:]]
        self._running = Running(
            "tagpin", [program, *arguments], log=self._log, environ=self._environment()
        )

    def wait_until_in_service(self) -> None:
        """Return when it is ready, every webhook knows its CA, and the Service sends to it."""
        assert self._running is not None
        self._running.wait_until(self._is_in_service, seconds=90)

    def serve_behind(self, service: Service) -> None:
        """Be one of the endpoints of `service`."""
        self._service = service

    def stop(self, *, patience: float = 20) -> None:
        """End it as a kubelet does."""
        if self._running is not None:
            self._running.stop(patience=patience)
            self._running = None

    def kill(self) -> None:
        """End it as a node that runs out of memory does; `launch` may start it again."""
        if self._running is not None:
            self._running.kill()
            self._running = None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._running is not None
        return self._running.pid

    @property
    def certificate_directory(self) -> Path:
        """Where the Secret with its certificate is mounted: it stays empty if nobody fills it."""
        return self._folder / "tls"

    @property
    def endpoint(self) -> Endpoint:
        """Where a Service finds it."""
        return Endpoint(self.port, self.health_port)

    def close(self) -> None:
        """End it, and remove its files."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def get(self, path: str) -> tuple[int, str]:
        """GET a path of the health port."""
        connection = http.client.HTTPConnection(LOOPBACK, self.health_port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def review(self, path: str, review: Mapping[str, Any]) -> dict[str, Any]:
        """Send an AdmissionReview to a path such as "/pin" as the API server would.

        The answer is the answered review. Any thread may call it.
        """
        webhook = self._webhook(path)
        timeout = webhook["timeoutSeconds"]
        connection = http.client.HTTPSConnection(
            LOOPBACK,
            self.port,
            timeout=timeout,
            context=ssl.create_default_context(cadata=self.ca(path)),
        )
        try:
            connection.request(
                "POST",
                f"{path}?timeout={timeout}s",
                json.dumps(review),
                {"Content-Type": "application/json", "Accept": "application/json"},
            )
            response = connection.getresponse()
            body = response.read().decode()
        finally:
            connection.close()
        assert response.status == http.HTTPStatus.OK, f"{response.status}: {body}"
        answered: dict[str, Any] = json.loads(body)
        return answered

    def ca(self, path: str = "/pin") -> str:
        """What the API server knows the webhook at a path by: PEM."""
        return base64.b64decode(self._webhook(path)["clientConfig"]["caBundle"]).decode()

    def counts(self) -> Counter[str]:
        """The counters of admissions and images: `name{labels}` → value."""
        _, text = self.get("/metrics")
        lines = (line.rpartition(" ") for line in text.splitlines() if _COUNTERS.match(line))
        return Counter({series: int(float(value)) for series, _, value in lines})

    def log_lines(self) -> list[dict[str, Any]]:
        """What it has logged."""
        lines = [line for line in self.log_text().splitlines() if line.startswith("{")]
        return [json.loads(line) for line in lines]

    def log_text(self) -> str:
        """The same, as it stands there."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def _mount(self) -> dict[str, str]:
        """A folder for each mount; the ConfigMap's holds its files."""
        mounts = {}
        for mount in self._container["volumeMounts"]:
            folder = self._folder / mount["name"]
            folder.mkdir(exist_ok=True)
            mounts[mount["mountPath"]] = str(folder)
        for name, content in self._configuration.items():
            (self._folder / "config" / name).write_text(content)
        return mounts

    def _environment(self) -> dict[str, str]:
        """The container's own, and what depends on the machine."""
        fields = {
            "metadata.namespace": SYSTEM,
            "metadata.name": self._pod,
            "status.podIPs": LOOPBACK,
        }
        environment = {
            entry["name"]: entry.get("value") or fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
            for entry in self._container["env"]
        }
        token = self._control_plane.token(SYSTEM, "tagpin")
        drain = {
            # If there is a Service: until that has noticed, and until whoever creates one pod
            # after the other has asked once more on every connection, however slowly.
            "TAGPIN_DRAIN": f"{20 * PERIOD}s" if self._service else "100ms",
        }
        if any("drain:" in each for each in self._configuration.values()):
            drain = {}
        return (
            environment
            | drain
            | {
                "KUBECONFIG": str(self._control_plane.kubeconfig_for_token(token)),
                "TAGPIN_ADDRESS": LOOPBACK,
                "TAGPIN_WEBHOOK_PORT": str(self.port),
                "TAGPIN_HEALTH_PORT": str(self.health_port),
                "TAGPIN_CERTIFICATE_NAMES": LOOPBACK,
                "TAGPIN_CERTIFICATE_DIRECTORY": str(self.certificate_directory),
                "PATH": os.environ["PATH"],
                "HOME": str(self._folder),
            }
        )

    def _is_in_service(self) -> bool:
        try:
            status, _ = self.get("/readyz")
        except OSError:
            return False
        return (
            status == http.HTTPStatus.OK
            and all(each["clientConfig"].get("caBundle") for each in self._webhooks())
            and (self._service is None or self._service.sends_to(self.endpoint))
        )

    def _webhook(self, path: str) -> dict[str, Any]:
        return next(
            each for each in self._webhooks() if urlsplit(each["clientConfig"]["url"]).path == path
        )

    def _webhooks(self) -> list[dict[str, Any]]:
        path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/tagpin"
        _, body = self._control_plane.get(path)
        webhooks: list[dict[str, Any]] = json.loads(body)["webhooks"]
        return webhooks


class Installation:
    """tagpin in a control plane, one replica or several.

    `settings` are added to the ConfigMap's (`exempt` is a list of patterns), `arguments` to the
    command line, and `components` of manifests/components to the base. As a context manager it
    applies, starts and closes.
    What it says of processes, logs and counters is of all replicas, unless it says otherwise.
    """

    replicas: list[Replica]
    service: Service | None
    """What the API server calls instead of a replica, where there are several."""

    def __init__(
        self,
        control_plane: ControlPlane,
        *,
        settings: Mapping[str, Any] | None = None,
        replicas: int = 1,
        components: Sequence[str] = (),
        arguments: Sequence[str] = (),
    ) -> None:
        self._control_plane = control_plane
        self._objects = kustomized(control_plane, components)
        template = self._object("Deployment")["spec"]["template"]
        given = dict(settings or {})
        configuration = self._object("ConfigMap")["data"]
        # In the ConfigMap as well, where the policies read it.
        configuration["exempt"] = "\n".join(given.pop("exempt", ()))
        written = yaml.safe_load(configuration["config.yaml"]) or {}
        configuration = configuration | {"config.yaml": yaml.safe_dump(written | given)}
        container = template["spec"]["containers"][0]
        container["args"] += arguments
        self._new_replica = partial(
            Replica, control_plane, container=container, configuration=configuration
        )
        self._numbers = count(1)
        self.service = Service([]) if replicas > 1 else None
        self.replicas = []
        for _ in range(replicas):
            self._prepare_replica()

    def __enter__(self) -> Self:
        try:
            if self.service:
                self.service.start()
            self.apply()
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def apply(self) -> None:
        """Apply the manifests, records first, with clientConfig sent to our port."""
        applied = self._control_plane.kubectl("apply", "--validate=strict", "-k", str(CRD))
        if "customresourcedefinition.apiextensions.k8s.io/imagepins.tagpin.dev unchanged" not in (
            applied.stdout.splitlines()
        ):
            established = ("--for=condition=established", "--timeout=30s")
            self._control_plane.kubectl("wait", "crd/imagepins.tagpin.dev", *established)
        port = (self.service or self.replicas[0]).port
        configuration = self._object("MutatingWebhookConfiguration")
        for webhook in configuration["webhooks"]:
            service = webhook["clientConfig"].pop("service", None)
            if service:
                webhook["clientConfig"]["url"] = f"https://{LOOPBACK}:{port}{service['path']}"
        for each in self._objects:
            if each["kind"] == "Certificate" and "dnsNames" in each["spec"]:
                each["spec"]["ipAddresses"] = [LOOPBACK]
        self.submit("apply", "--validate=strict")

    def submit(self, *command: str) -> None:
        """Give the manifests, but for those of the records, to a command of kubectl."""
        self._control_plane.kubectl(*command, "-f", "-", input=yaml.safe_dump_all(self._objects))

    def start(self) -> Self:
        """Run the replicas, and return when they are in service."""
        for each in self.replicas:
            each.launch()
        for each in self.replicas:
            each.wait_until_in_service()
        return self

    def add_replica(self) -> Replica:
        """Prepare one more, of another pod: it is up to the caller to launch it."""
        assert self.service is not None, "one replica alone has no Service"
        return self._prepare_replica()

    def remove_replica(self, replica: Replica, *, patience: float = 20) -> None:
        """End one for good, as when its pod is deleted."""
        replica.stop(patience=patience)
        if self.service:
            self.service.remove(replica.endpoint)
        self.replicas.remove(replica)
        replica.close()

    def _prepare_replica(self) -> Replica:
        replica = self._new_replica(f"tagpin-test-{next(self._numbers)}")
        self.replicas.append(replica)
        if self.service:
            replica.serve_behind(self.service)
            self.service.add(replica.endpoint)
        return replica

    def stop(self, *, patience: float = 20) -> None:
        """End the replicas as a kubelet does, one after the other."""
        for each in self.replicas:
            each.stop(patience=patience)

    def close(self) -> None:
        """End everything, and take tagpin out of the way of other tests."""
        for each in self.replicas:
            each.close()
        if self.service:
            self.service.close()
        configuration = "mutatingwebhookconfiguration/tagpin"
        self._control_plane.kubectl("delete", configuration, *BINDINGS, "--ignore-not-found")
        secret = ("secret/tagpin-tls", "-n", SYSTEM)
        self._control_plane.kubectl("delete", *secret, "--ignore-not-found")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the replicas."""
        for each in self.replicas:
            each.signal(number)

    @property
    def pid(self) -> int:
        """The process of the first replica."""
        return self.replicas[0].pid

    def get(self, path: str) -> tuple[int, str]:
        """GET a path of the first replica's health port."""
        return self.replicas[0].get(path)

    def counts(self) -> Counter[str]:
        """The sums of the counters of admissions and images: `name{labels}` → value."""
        return sum((each.counts() for each in self.replicas), Counter())

    def log_lines(self) -> list[dict[str, Any]]:
        """What was logged, replica after replica."""
        return [line for each in self.replicas for line in each.log_lines()]

    def log_text(self) -> str:
        """The same, as it stands there."""
        return "".join(each.log_text() for each in self.replicas)

    def _object(self, kind: str) -> Any:
        (found,) = [each for each in self._objects if each["kind"] == kind]
        return found


Install = Callable[..., AbstractContextManager[Installation]]
"""Installs tagpin for as long as a context lasts; all is optional.

`(replicas=…, components=…, arguments=…, **settings)`, as of `Installation`.
"""


def kustomized(control_plane: ControlPlane, components: Sequence[str] = ()) -> list[Any]:
    """The objects of manifests/base, with `components` of manifests/components."""
    with tempfile.TemporaryDirectory() as folder:
        overlay = {
            "resources": [os.path.relpath(BASE, folder)],
            "components": [
                os.path.relpath(MANIFESTS / "components" / each, folder) for each in components
            ],
        }
        Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(overlay))
        text = control_plane.kubectl("kustomize", folder).stdout
    return [each for each in yaml.safe_load_all(text) if each]


def wait_until_unbound(control_plane: ControlPlane) -> None:
    """Return when no policy is in force any more whose binding was deleted."""
    metadata = {"name": "unbound", "labels": {"tagpin.dev/mode": "none"}}
    made = json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    create = ("create", "-f", "-", "--dry-run=server")
    eventually(
        lambda: control_plane.kubectl(*create, input=made, check=False).returncode,
        lambda code: code == 0,
    )


def _rewritten(word: str, mounts: Mapping[str, str]) -> str:
    for mount_path, folder in mounts.items():
        if word == mount_path or word.startswith(f"{mount_path}/"):
            return folder + word.removeprefix(mount_path)
    return word
