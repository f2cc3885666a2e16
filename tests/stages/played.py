"""The demo's story with nothing but Python: tagpin's own process, and all around it is played."""

import asyncio
import hashlib
import http.client
import os
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml

from cluster.images import digest
from cluster.programs import LOOPBACK, Running, free_ports
from fakes.registry import FakeRegistry
from stages.api_server import PlayedApiServer
from stages.narrator import Narrator
from stages.stage import RECORD_TTL, Admitted, Refused, StageError, digests

T = TypeVar("T")

NOTICE = (
    "The API server is played here: it sends tagpin, a real process, over TLS what a real one "
    "would send, and applies the answer as that would. The registry is played too; no image is "
    "pulled and no container runs. For the same on a real control plane, with kubectl: "
    "`make tools` builds one, which takes a while; then `make demo` again."
)
REPLICASET_CONTROLLER = {
    "username": "system:serviceaccount:kube-system:replicaset-controller",
    "uid": str(uuid.UUID(int=1)),
    "groups": [
        "system:serviceaccounts",
        "system:serviceaccounts:kube-system",
        "system:authenticated",
    ],
}
PERSON = {"username": "jane", "groups": ["system:authenticated"]}


@contextmanager
def played(narrator: Narrator, **settings: str) -> Iterator["PlayedStage"]:
    """Start a registry, an API server and tagpin, and end them. Raises ProgramError.

    `settings` are tagpin's, besides those that the stage needs.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tagpin-played-")))
        run = stack.enter_context(LoopThread()).run
        servers = AsyncExitStack()
        stack.callback(lambda: run(servers.aclose()))
        webhook_port, health_port = free_ports(2)
        with narrator.doing("a registry and an API server, played by this process"):
            registry = run(servers.enter_async_context(FakeRegistry()))
            api_server = run(servers.enter_async_context(PlayedApiServer(narrator, webhook_port)))
        with narrator.doing("tagpin serve"):
            known = [{"host": registry.host, "http": True}]
            (folder / "config.yaml").write_text(
                yaml.safe_dump({"recordTTL": RECORD_TTL, "registries": known} | settings)
            )
            tagpin = _tagpin(folder, api_server, (webhook_port, health_port))
            stack.callback(tagpin.stop)
            tagpin.wait_until(lambda: _is_ready(health_port) and api_server.is_trusting, seconds=30)
        yield PlayedStage(narrator, registry, api_server, run)


def _tagpin(folder: Path, api_server: PlayedApiServer, ports: tuple[int, int]) -> Running:
    """The command of the Deployment, in a process of its own."""
    config, kubeconfig, tls = folder / "config.yaml", folder / "kubeconfig", folder / "tls"
    tls.mkdir()
    kubeconfig.write_text(yaml.safe_dump(_kubeconfig(api_server.url)))
    environment = {
        "KUBECONFIG": str(kubeconfig),
        "TAGPIN_ADDRESS": LOOPBACK,
        "TAGPIN_WEBHOOK_PORT": str(ports[0]),
        "TAGPIN_HEALTH_PORT": str(ports[1]),
        "TAGPIN_CERTIFICATE_NAMES": LOOPBACK,
        "TAGPIN_CERTIFICATE_DIRECTORY": str(tls),
        "TAGPIN_DRAIN": "0s",
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
    }
    program = Path(sys.executable).with_name("tagpin")
    command = [str(program), "serve", "--config", str(config)]
    return Running("tagpin", command, log=folder / "log", environ=environment)


def _kubeconfig(url: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "played",
        "contexts": [{"name": "played", "context": {"cluster": "played", "user": "tagpin"}}],
        "clusters": [{"name": "played", "cluster": {"server": url}}],
        "users": [{"name": "tagpin", "user": {"token": "played"}}],
    }


def _is_ready(health_port: int) -> bool:
    connection = http.client.HTTPConnection(LOOPBACK, health_port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


class LoopThread:
    """An event loop in a thread of its own, as a context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there, and wait for its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass(slots=True)
class _Deployment:
    """What the controllers know of a Deployment."""

    namespace: str
    name: str
    images: Sequence[str]
    restarts: int = 0
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def template_hash(self) -> str:
        template = repr((self.images, self.restarts))
        return hashlib.sha256(template.encode()).hexdigest()[:10]

    @property
    def replica_set(self) -> str:
        """The path of the ReplicaSet for the template as it is now."""
        name = f"{self.name}-{self.template_hash}"
        return f"/apis/apps/v1/namespaces/{self.namespace}/replicasets/{name}"

    @property
    def labels(self) -> dict[str, str]:
        return {"app": self.name, "pod-template-hash": self.template_hash}


class PlayedStage:
    """Implements `stages.stage.Stage`."""

    def __init__(
        self,
        narrator: Narrator,
        registry: FakeRegistry,
        api_server: PlayedApiServer,
        run: Callable[[Coroutine[Any, Any, object]], object],
    ) -> None:
        """`run` runs what is to be awaited where registry and API server are."""
        self._narrator = narrator
        self.registry = registry
        self.api_server = api_server
        self._run = run
        self._deployments: dict[tuple[str, str], _Deployment] = {}

    @property
    def host(self) -> str:
        return self.registry.host

    def push(self, repository: str, tag: str, content: str) -> str:
        return digest(
            self.registry.content(self.registry.push_image(repository, tag, content.encode()))
        )

    def create_namespace(self, name: str, mode: str) -> None:
        self._narrator.command(f"namespace {name}, with the label tagpin.dev/mode={mode}")
        self.api_server.create_namespace(name, {"tagpin.dev/mode": mode})

    def create_deployment(self, namespace: str, name: str, images: Sequence[str]) -> Admitted:
        self._narrator.command(f"Deployment {name}: {', '.join(images)}")
        deployment = _Deployment(namespace, name, tuple(images))
        self._deployments[namespace, name] = deployment
        return self._new_pod(deployment)

    def restart_deployment(self, namespace: str, name: str) -> Admitted:
        self._narrator.command(f"Deployment {name} is restarted: a new ReplicaSet, a new pod")
        return self._roll_out(self._deployments[namespace, name], restarts=+1)

    def undo_deployment(self, namespace: str, name: str) -> Admitted:
        self._narrator.command(f"Deployment {name} is undone: the first ReplicaSet, a new pod")
        return self._roll_out(self._deployments[namespace, name], restarts=-1)

    def replace_pod(self, namespace: str, name: str) -> Admitted:
        self._narrator.command("the pod is deleted: its ReplicaSet makes a new one")
        deployment = self._deployments[namespace, name]
        self._scale(deployment.replica_set, 0)
        return self._new_pod(deployment)

    def show_imagepins(self, namespace: str) -> Mapping[str, Mapping[str, str]]:
        self._narrator.command(
            f"the ImagePins of namespace {namespace}, each with its first digest:"
        )
        found = [
            each
            for each in self.api_server.imagepins.values()
            if each["metadata"]["namespace"] == namespace
        ]
        for each in found:
            first_image = each["spec"]["images"][0]
            self._narrator.output(f"{each['metadata']['name']}   {first_image['digest']}")
        return digests(found)

    def questions(self) -> int:
        return len(self.registry.requests)

    @contextmanager
    def without_registry(self) -> Iterator[None]:
        self._narrator.command("the registry is stopped")
        self._run(self.registry.stop())
        yield
        self._narrator.command("the registry is started again")
        self._run(self.registry.start())

    def run_pod(self, namespace: str, name: str, image: str) -> Admitted | Refused:
        self._narrator.command(f"pod {name}, created by hand: {image}")
        pod = _pod({"name": name, "namespace": namespace, "labels": {"run": name}}, {name: image})
        return self.api_server.admit(namespace, pod, PERSON)

    def _roll_out(self, deployment: _Deployment, *, restarts: int) -> Admitted:
        old = deployment.replica_set
        deployment.restarts += restarts
        admitted = self._new_pod(deployment)
        self._scale(old, 0)
        return admitted

    def _new_pod(self, deployment: _Deployment) -> Admitted:
        """What the controllers do: a ReplicaSet for the template as it is now, and its pod."""
        path, namespace = deployment.replica_set, deployment.namespace
        metadata = {
            "name": path.rpartition("/")[2],
            "namespace": namespace,
            "labels": deployment.labels,
            "ownerReferences": [_owner("Deployment", deployment.name, deployment.uid)],
        }
        found = self.api_server.ensure(path, {"metadata": metadata, "status": {"replicas": 0}})
        replica_set = found["metadata"]
        pod = {
            "generateName": f"{replica_set['name']}-",
            "namespace": namespace,
            "labels": deployment.labels,
            "ownerReferences": [_owner("ReplicaSet", replica_set["name"], replica_set["uid"])],
        }
        images = {_container_name(image): image for image in deployment.images}
        admitted = self.api_server.admit(namespace, _pod(pod, images), REPLICASET_CONTROLLER)
        if isinstance(admitted, Refused):
            raise StageError(admitted.message)
        self._scale(path, 1)
        return admitted

    def _scale(self, replica_set: str, replicas: int) -> None:
        """Count the pods of a ReplicaSet, as its controller does afterwards."""
        self.api_server.update(replica_set, {"status": {"replicas": replicas}})


def _owner(kind: str, name: str, uid: str) -> dict[str, Any]:
    """A reference to a controller in the group `apps`."""
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _container_name(image: str) -> str:
    """As kubectl does it."""
    return image.rpartition("/")[2].partition(":")[0]


def _pod(metadata: dict[str, Any], images: dict[str, str]) -> dict[str, Any]:
    """A pod with the defaults that are set before webhooks are called."""
    containers = [
        {
            "name": name,
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "resources": {},
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File",
        }
        for name, image in images.items()
    ]
    spec = {
        "containers": containers,
        "restartPolicy": "Always",
        "serviceAccountName": "default",
        "terminationGracePeriodSeconds": 30,
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": {}}
