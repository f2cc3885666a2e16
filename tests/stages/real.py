"""The demo's story on a real control plane, told with kubectl."""

import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from cluster.controlplane import PROGRAMS as CONTROL_PLANE
from cluster.controlplane import ControlPlane
from cluster.images import Pusher
from cluster.installation import Installation
from cluster.programs import Distribution
from stages.narrator import Narrator
from stages.stage import RECORD_TTL, Admitted, Refused, StageError, digests

PROGRAMS = (*CONTROL_PLANE, "registry")
PATIENCE = 30
"""Seconds that the controllers get for a new pod."""
NOTICE = (
    "On a real control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler and "
    "kubectl; tagpin as its manifests say; the CNCF's registry. Only the node is played: kwok "
    "reports what a kubelet would, so no image is pulled and no container runs."
)


@contextmanager
def real(narrator: Narrator) -> Iterator["RealStage"]:
    """Start everything, and end it. Raises ProgramError, which says what did not start."""
    with ExitStack() as stack:
        with narrator.doing("etcd, kube-apiserver, controller manager, scheduler, kwok"):
            control_plane = stack.enter_context(ControlPlane(nodes=1))
        with narrator.doing("a registry"):
            registry = stack.enter_context(Distribution())
        settings = {
            "recordTTL": RECORD_TTL,
            "registries": [{"host": registry.host, "http": True}],
        }
        with narrator.doing("tagpin, from manifests/base"):
            stack.enter_context(Installation(control_plane, settings=settings))
        yield RealStage(narrator, control_plane, registry)


class RealStage:
    """Implements `stages.stage.Stage`."""

    def __init__(
        self, narrator: Narrator, control_plane: ControlPlane, registry: Distribution
    ) -> None:
        self.host = registry.host
        self._registry = registry
        self._narrator = narrator
        self._control_plane = control_plane
        self._pusher = Pusher(registry.url)
        self._seen: set[str] = set()

    def push(self, repository: str, tag: str, content: str) -> str:
        return self._pusher.push(repository, tag, content)

    def create_namespace(self, name: str, mode: str) -> None:
        self._kubectl("create", "namespace", name)
        self._kubectl("label", "namespace", name, f"tagpin.dev/mode={mode}")

    def create_deployment(self, namespace: str, name: str, images: Sequence[str]) -> Admitted:
        options = [f"--image={image}" for image in images]
        self._kubectl("create", "deployment", name, f"--namespace={namespace}", *options)
        return self._new_pod(namespace, name)

    def restart_deployment(self, namespace: str, name: str) -> Admitted:
        self._kubectl("rollout", "restart", f"deployment/{name}", f"--namespace={namespace}")
        return self._new_pod(namespace, name)

    def undo_deployment(self, namespace: str, name: str) -> Admitted:
        self._kubectl("rollout", "undo", f"deployment/{name}", f"--namespace={namespace}")
        return self._new_pod(namespace, name)

    def replace_pod(self, namespace: str, name: str) -> Admitted:
        self._kubectl("delete", "pod", f"--selector=app={name}", f"--namespace={namespace}")
        return self._new_pod(namespace, name)

    def show_imagepins(self, namespace: str) -> Mapping[str, Mapping[str, str]]:
        command = ("get", "imagepins", f"--namespace={namespace}")
        self._show(*command)
        self._narrator.output(self._control_plane.kubectl(*command).stdout)
        return digests(self._get(*command[1:])["items"])

    def questions(self) -> int:
        return sum(each.method in ("GET", "HEAD") for each in self._registry.requests())

    @contextmanager
    def without_registry(self) -> Iterator[None]:
        self._narrator.command("the registry is stopped")
        self._registry.stop()
        yield
        self._narrator.command("the registry is started again")
        self._registry.start()

    def run_pod(self, namespace: str, name: str, image: str) -> Admitted | Refused:
        command = ("run", name, f"--namespace={namespace}", f"--image={image}")
        self._show(*command)
        done = self._control_plane.kubectl(*command, check=False)
        if done.returncode != 0:
            return Refused(done.stderr.strip())
        pod = self._get(f"pod/{name}", f"--namespace={namespace}")
        return Admitted(pod, self._audit_record(namespace))

    def _kubectl(self, *command: str) -> None:
        self._show(*command)
        self._control_plane.kubectl(*command)

    def _show(self, *command: str) -> None:
        self._narrator.command(f"$ kubectl {shlex.join(command)}")

    def _get(self, *what: str) -> Any:
        return json.loads(self._control_plane.kubectl("get", *what, "--output=json").stdout)

    def _new_pod(self, namespace: str, deployment: str) -> Admitted:
        """The pod that a rollout made, or the controllers alone."""
        where = f"--namespace={namespace}"
        self._control_plane.kubectl(
            "rollout", "status", f"deployment/{deployment}", where, "--timeout=30s"
        )
        deadline = time.monotonic() + PATIENCE
        while True:
            pods = self._get("pods", where, f"--selector=app={deployment}")["items"]
            new = [pod for pod in pods if pod["metadata"]["uid"] not in self._seen]
            if new or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        if len(new) != 1:
            raise StageError(f"expected one new pod of {deployment}, found {len(new)}")
        self._seen.add(new[0]["metadata"]["uid"])
        return Admitted(new[0], self._audit_record(namespace))

    def _audit_record(self, namespace: str) -> dict[str, str]:
        """What the API server wrote about the newest pod of a namespace."""
        event = next(
            event
            for event in reversed(self._control_plane.audit_events())
            if event["verb"] == "create"
            and event.get("requestURI", "").startswith(f"/api/v1/namespaces/{namespace}/pods")
            and "subresource" not in event["objectRef"]
        )
        return {
            "user": event["user"]["username"],
            "verb": event["verb"],
            "resource": f"pods in {namespace}",
            **{
                key: value
                for key, value in event["annotations"].items()
                if key.partition("/")[0].endswith("tagpin.dev")
            },
        }
