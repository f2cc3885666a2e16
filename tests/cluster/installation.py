"""tagpin installed into a control plane from its own manifests, and run as a kubelet would.

Only what a container engine would bring is played: mounts are folders, the Service is a
loopback port, so `clientConfig` names that. Command, arguments, environment, mounted
configuration and the ServiceAccount's token are those of the Deployment in manifests/base.
"""

import http.client
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import yaml

from cluster.controlplane import ControlPlane
from cluster.programs import LOOPBACK, Running, free_ports

MANIFESTS = Path(__file__).parents[2] / "manifests"
BASE = MANIFESTS / "base"
CRD = MANIFESTS / "crd"
SYSTEM = "tagpin-system"

_COUNTERS = re.compile(r"tagpin_(admissions|images_pinned|images_unpinned)_total\{")


class Installation:
    """One replica of tagpin in a control plane.

    `settings` are added to the ConfigMap's. As a context manager it applies, starts and closes.
    """

    def __init__(
        self, control_plane: ControlPlane, *, settings: Mapping[str, Any] | None = None
    ) -> None:
        self._control_plane = control_plane
        self._settings = dict(settings or {})
        self._folder = Path(tempfile.mkdtemp(prefix="tagpin-installation-"))
        self._log = self._folder / "log"
        self._port, self._health_port = free_ports(2)
        self._objects = [
            each
            for each in yaml.safe_load_all(control_plane.kubectl("kustomize", str(BASE)).stdout)
            if each
        ]
        self._running: Running | None = None

    def __enter__(self) -> Self:
        try:
            self.apply()
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def apply(self) -> None:
        """Apply the manifests, records first, with clientConfig sent to our port."""
        self._control_plane.kubectl("apply", "--validate=strict", "-k", str(CRD))
        established = ("--for=condition=established", "--timeout=30s")
        self._control_plane.kubectl("wait", "crd/imagepins.tagpin.dev", *established)
        configuration = self._object("MutatingWebhookConfiguration")
        for webhook in configuration["webhooks"]:
            service = webhook["clientConfig"].pop("service", None)
            if service:
                webhook["clientConfig"]["url"] = f"https://{LOOPBACK}:{self._port}{service['path']}"
        self._control_plane.kubectl(
            "apply", "--validate=strict", "-f", "-", input=yaml.safe_dump_all(self._objects)
        )

    def start(self) -> Self:
        """Run a replica, and return when it is ready and every webhook knows its CA."""
        deployment = self._object("Deployment")
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        mounts = self._mount(container)
        command = [*container["command"], *container["args"]]
        program = Path(sys.executable).with_name(command[0])
        arguments = [_rewritten(word, mounts) for word in command[1:]]
        self._running = Running(
            "tagpin", [program, *arguments], log=self._log, environ=self._environment(container)
        )
        self._running.wait_until(self._is_in_service, seconds=30)
        return self

    def stop(self, *, patience: float = 20) -> None:
        """End the replica as a kubelet does."""
        if self._running is not None:
            self._running.stop(patience=patience)
            self._running = None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the replica."""
        assert self._running is not None
        os.kill(self._running.pid, number)

    @property
    def pid(self) -> int:
        """The process of the replica."""
        assert self._running is not None
        return self._running.pid

    def close(self) -> None:
        """End the replica, and take tagpin out of the way of other tests."""
        self.stop()
        configuration = "mutatingwebhookconfiguration/tagpin"
        self._control_plane.kubectl("delete", configuration, "--ignore-not-found")
        secret = ("secret/tagpin-tls", "-n", SYSTEM)
        self._control_plane.kubectl("delete", *secret, "--ignore-not-found")
        shutil.rmtree(self._folder, ignore_errors=True)

    def get(self, path: str) -> tuple[int, str]:
        """GET a path of the health port."""
        connection = http.client.HTTPConnection(LOOPBACK, self._health_port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def counts(self) -> Counter[str]:
        """The counters of admissions and images: `name{labels}` → value."""
        _, text = self.get("/metrics")
        lines = (line.rpartition(" ") for line in text.splitlines() if _COUNTERS.match(line))
        return Counter({series: int(float(value)) for series, _, value in lines})

    def log_lines(self) -> list[dict[str, Any]]:
        """What the replica has logged."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        lines = [line for line in text.splitlines() if line.startswith("{")]
        return [json.loads(line) for line in lines]

    def log_text(self) -> str:
        """The same, as it stands there."""
        return self._log.read_text(errors="replace")

    def _object(self, kind: str) -> Any:
        (found,) = [each for each in self._objects if each["kind"] == kind]
        return found

    def _mount(self, container: Any) -> dict[str, str]:
        """A folder for each mount; the ConfigMap's holds its keys."""
        mounts = {}
        for mount in container["volumeMounts"]:
            folder = self._folder / mount["name"]
            folder.mkdir(exist_ok=True)
            mounts[mount["mountPath"]] = str(folder)
        data = self._object("ConfigMap")["data"]
        for name, text in data.items():
            settings = (yaml.safe_load(text) or {}) | self._settings
            (self._folder / "config" / name).write_text(yaml.safe_dump(settings))
        return mounts

    def _environment(self, container: Any) -> dict[str, str]:
        """The container's own, and what depends on the machine."""
        fields = {"metadata.namespace": SYSTEM, "metadata.name": "tagpin-test"}
        environment = {
            entry["name"]: entry.get("value") or fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
            for entry in container["env"]
        }
        token = self._control_plane.token(SYSTEM, "tagpin")
        return environment | {
            "KUBECONFIG": str(self._control_plane.kubeconfig_for_token(token)),
            "TAGPIN_ADDRESS": LOOPBACK,
            "TAGPIN_WEBHOOK_PORT": str(self._port),
            "TAGPIN_HEALTH_PORT": str(self._health_port),
            "TAGPIN_CERTIFICATE_NAMES": LOOPBACK,
            "TAGPIN_CERTIFICATE_DIRECTORY": str(self._folder / "tls"),
            "TAGPIN_DRAIN": "100ms",  # no Service has to change its endpoints
            "PATH": os.environ["PATH"],
            "HOME": str(self._folder),
        }

    def _is_in_service(self) -> bool:
        try:
            status, _ = self.get("/readyz")
        except OSError:
            return False
        return status == http.HTTPStatus.OK and self._is_trusted()

    def _is_trusted(self) -> bool:
        path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/tagpin"
        _, body = self._control_plane.get(path)
        webhooks = json.loads(body)["webhooks"]
        return all(webhook["clientConfig"].get("caBundle") for webhook in webhooks)


Install = Callable[..., AbstractContextManager[Installation]]
"""Installs tagpin, with these settings besides, for as long as a context lasts."""


def _rewritten(word: str, mounts: Mapping[str, str]) -> str:
    for mount_path, folder in mounts.items():
        if word == mount_path or word.startswith(f"{mount_path}/"):
            return folder + word.removeprefix(mount_path)
    return word
