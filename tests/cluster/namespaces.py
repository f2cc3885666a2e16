"""A namespace of a test's own: what people do there, and what is then found recorded."""

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from cluster.controlplane import ControlPlane, KubectlError

PINS = "tagpin.dev/pins"

T = TypeVar("T")
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API server answered to a kubectl command."""

    succeeded: bool
    output: str
    warnings: tuple[str, ...]
    error: str

    @classmethod
    def of(cls, done: subprocess.CompletedProcess[str]) -> Self:
        lines = done.stderr.splitlines()
        warnings = tuple(
            line.removeprefix("Warning: ") for line in lines if line.startswith("Warning: ")
        )
        error = "\n".join(line for line in lines if not line.startswith("Warning: "))
        return cls(done.returncode == 0, done.stdout, warnings, error)


class Namespace:
    """A namespace with `labels`, in which pods can be created."""

    def __init__(
        self, control_plane: ControlPlane, name: str, labels: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._control_plane = control_plane
        metadata = {"name": name, "labels": dict(labels or {})}
        made = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        control_plane.kubectl("create", "-f", "-", input=json.dumps(made))
        eventually(lambda: self._get("serviceaccounts/default"), bool)

    # What people do

    def kubectl(
        self,
        *arguments: str,
        input: str | None = None,  # noqa: A002 - as ControlPlane.kubectl calls it
        kubeconfig: Path | None = None,
        check: bool = True,
    ) -> Answer:
        """Run kubectl here. KubectlError: it failed, unless `check` is false."""
        done = self._control_plane.kubectl(
            *("-n", self.name, *arguments), input=input, kubeconfig=kubeconfig, check=False
        )
        answer = Answer.of(done)
        if check and not answer.succeeded:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {answer.error}")
        return answer

    def create(self, *objects: Object, flags: Sequence[str] = (), **options: Any) -> Answer:
        """`kubectl create` the objects; `options` are those of `self.kubectl`."""
        return self.kubectl("create", "-f", "-", *flags, input=_list_of(objects), **options)

    def apply(self, *objects: Object, flags: Sequence[str] = (), **options: Any) -> Answer:
        """`kubectl apply` the objects; `options` are those of `self.kubectl`."""
        return self.kubectl("apply", "-f", "-", *flags, input=_list_of(objects), **options)

    def create_pull_secret(self, name: str, host: str, user: str, password: str) -> None:
        """A Secret that holds the credentials for one registry."""
        login = (f"--docker-server={host}", f"--docker-username={user}")
        secret = ("create", "secret", "docker-registry", name)
        self.kubectl(*secret, *login, f"--docker-password={password}")

    # What is found

    def pod(self, name: str) -> Object:
        """The pod as it is stored; empty if there is none."""
        return self._get(f"pods/{name}")

    def pods(self, selector: str) -> list[Object]:
        """The pods that have the label `selector` (key=value)."""
        return self.find(f"pods?labelSelector={selector}")

    def find(self, path: str, group: str = "api/v1") -> list[Object]:
        """The objects of a kind, such as find("replicasets", "apis/apps/v1")."""
        found: list[Object] = self._get(path, group)["items"]
        return found

    def events(self, kind: str, name: str, *, reason: str = "ImageNotPinned") -> list[str]:
        """The messages of the Events of ours on an object, at least one."""
        path = f"events?fieldSelector=involvedObject.kind={kind},involvedObject.name={name}"
        found = eventually(lambda: self._told(path, reason), bool)
        return [event["message"] for event in found]

    def has_events(self, name: str) -> bool:
        """Whether there is an Event of ours on anything called `name` by now."""
        return bool(
            self._told(f"events?fieldSelector=involvedObject.name={name}", "ImageNotPinned")
        )

    def audit(self, name: str, verb: str = "create", subresource: str = "") -> dict[str, str]:
        """What the last such request for the pod has in the audit log from tagpin's webhooks."""
        wanted = ("pods", self.name, name, subresource)
        fields = ("resource", "namespace", "name", "subresource")
        annotations = [
            event.get("annotations", {})
            for event in self._control_plane.audit_events()
            if event["verb"] == verb
            and tuple(event.get("objectRef", {}).get(field, "") for field in fields) == wanted
        ][-1]
        return {
            key: value
            for key, value in annotations.items()
            if key.partition("/")[0].endswith(".tagpin.dev")
        }

    def _told(self, path: str, reason: str) -> list[Object]:
        ours = ("tagpin", reason)
        return [
            event
            for event in self.find(path)
            if (event["source"].get("component"), event["reason"]) == ours
        ]

    def _get(self, path: str, group: str = "api/v1") -> Object:
        _, body = self._control_plane.get(f"/{group}/namespaces/{self.name}/{path}")
        found: Object = json.loads(body)
        return {} if found["kind"] == "Status" else found


NewNamespace = Callable[..., Namespace]
"""Makes one that no other test has: `(mode, labels={…})`, both optional."""


def pod(
    name: str,
    containers: Mapping[str, str],
    *,
    init: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    **spec: Any,
) -> Object:
    """A pod whose `containers` (name → image) are these."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "annotations": dict(annotations or {}),
            "labels": dict(labels or {}),
        },
        "spec": {
            "containers": _containers(containers),
            "initContainers": _containers(init or {}),
            "terminationGracePeriodSeconds": 0,
            **spec,
        },
    }


def deployment(name: str, containers: Mapping[str, str], *, replicas: int = 1) -> Object:
    """A Deployment whose pods have the label app=NAME."""
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": _containers(containers)},
            },
        },
    }


def images(pod: Object) -> dict[str, str]:
    """Container name → image, of a stored pod or of a template."""
    spec = pod["spec"]
    kinds = ("containers", "initContainers", "ephemeralContainers")
    return {each["name"]: each["image"] for kind in kinds for each in spec.get(kind, [])}


def record(pod: Object) -> Any:
    """What `tagpin.dev/pins` says on a stored pod; None where it has no such annotation."""
    text = pod["metadata"].get("annotations", {}).get(PINS)
    return None if text is None else json.loads(text)


def eventually(read: Callable[[], T], holds: Callable[[T], bool], *, seconds: float = 20) -> T:
    """Read until it holds, and return what was read last."""
    deadline = time.monotonic() + seconds
    while not holds(found := read()):
        assert time.monotonic() < deadline, f"still {found!r} after {seconds} s"
        time.sleep(0.02)
    return found


def _containers(images: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "image": image} for name, image in images.items()]


def _list_of(objects: Sequence[Object]) -> str:
    if len(objects) == 1:
        return json.dumps(objects[0])
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
