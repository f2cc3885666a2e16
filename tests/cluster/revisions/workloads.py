"""What tests of revisions look at: a tag that moves, and what a workload's pods run."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from cluster.controlplane import ControlPlane
from cluster.namespaces import Namespace, Object, eventually, images, record
from cluster.registries import Pushed, Store

ALL_NODES = 3


class Tag:
    """An image whose tag is moved from build to build."""

    def __init__(self, store: Store, repository: str) -> None:
        self._store = store
        self._repository = repository
        self._numbers = count(1)
        self.old = self.move()
        """The first build."""

    def move(self) -> Pushed:
        """Push the next build with the same tag."""
        return self._store.push(f"{self._repository}:1", f"build {next(self._numbers)}")

    @property
    def text(self) -> str:
        """The image as manifests have it."""
        return self.old.text

    @property
    def questions(self) -> int:
        """How often the registry was asked what the tag names, by its own log."""
        return len(self._store.questions(self._repository))


def running(
    namespace: Namespace, name: str, number: int, *, besides: Iterable[Object] = ()
) -> list[Object]:
    """The pods of a workload, as soon as exactly so many run and none is one of those `besides`."""
    old = {uid(pod) for pod in besides}
    return eventually(
        lambda: namespace.pods(f"app={name}"),
        lambda pods: (
            len(pods) == number
            and all(pod["status"]["phase"] == "Running" for pod in pods)
            and not any(uid(pod) in old or is_going(pod) for pod in pods)
        ),
        seconds=60,
    )


def renewed(namespace: Namespace, name: str, pod: Object, number: int) -> Object:
    """Delete a pod of a workload; return the one that comes instead of it."""
    before = {uid(each) for each in namespace.pods(f"app={name}")}
    namespace.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")
    pods = running(namespace, name, number, besides=[pod])
    (new,) = [each for each in pods if uid(each) not in before]
    return new


def app(pod: Object) -> str:
    """What the container `app` runs."""
    return images(pod)["app"]


def apps(pods: Iterable[Object]) -> set[str]:
    """What the containers `app` of several pods run."""
    return {app(pod) for pod in pods}


def source(pod: Object) -> str:
    """Where the digest of the container `app` came from, as the pod says."""
    return str(record(pod)["app"]["source"])


def digests(pin: Object) -> dict[str, str]:
    """Reference → digest of an ImagePin."""
    return {each["reference"]: each["digest"] for each in pin["spec"]["images"]}


def workload(pin: Object) -> tuple[str, str]:
    """Kind and uid of an ImagePin's workload."""
    return pin["spec"]["workload"]["kind"], pin["spec"]["workload"]["uid"]


def pin_of(namespace: Namespace, pod: Object) -> Object:
    """The ImagePin that a pod names."""
    name = annotations(pod)["tagpin.dev/revision"]
    return namespace.get(f"imagepins/{name}", "apis/tagpin.dev/v1alpha1")


def annotations(pod: Object) -> Any:
    return pod["metadata"].get("annotations", {})


def uid(found: Object) -> str:
    return str(found["metadata"]["uid"])


def is_going(pod: Object) -> bool:
    return "deletionTimestamp" in pod["metadata"]


@contextmanager
def definition(
    control_plane: ControlPlane, api_version: str, kind: str, plural: str
) -> Iterator[None]:
    """A kind of somebody else's, for as long as a context lasts."""
    group, _, version = api_version.partition("/")
    schema = {"openAPIV3Schema": {"type": "object"}}
    served = {"name": version, "served": True, "storage": True, "schema": schema}
    names = {"kind": kind, "plural": plural}
    name = f"{plural}.{group}"
    made = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [served]},
    }
    control_plane.kubectl("create", "-f", "-", input=json.dumps(made))
    try:
        established = ("--for=condition=established", "--timeout=30s")
        control_plane.kubectl("wait", f"crd/{name}", *established)
        yield
    finally:
        control_plane.kubectl("delete", "crd", name, "--wait=false")
