"""What the demo needs of a place where its story can happen; `played` and `real` are two."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

RECORD_TTL = "0s"
"""Shorter than tagpin's own 60 s, so that a record comes from the cluster, not from memory."""


class StageError(Exception):
    """The story cannot go on; the message says why."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A pod as it entered the cluster, and what the audit log says about that."""

    pod: Mapping[str, Any]
    audit: Mapping[str, str]
    """Who did what, and tagpin's annotations; the keys are for people."""

    @property
    def name(self) -> str:
        return str(self.pod["metadata"]["name"])

    @property
    def images(self) -> dict[str, str]:
        """Container name → image."""
        return {each["name"]: each["image"] for each in self.pod["spec"]["containers"]}

    @property
    def record(self) -> str:
        """The annotation `tagpin.dev/pins`, empty if there is none."""
        return self._annotation("tagpin.dev/pins")

    @property
    def imagepin(self) -> str:
        """The name of the ImagePin of the pod's revision, empty if there is none."""
        return self._annotation("tagpin.dev/revision")

    def _annotation(self, key: str) -> str:
        return str(self.pod["metadata"].get("annotations", {}).get(key, ""))


@dataclass(frozen=True, slots=True)
class Refused:
    """What kubectl says of a pod that did not enter."""

    message: str


def digests(imagepins: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """What is recorded: the name of each ImagePin, its images and their digests."""
    return {
        each["metadata"]["name"]: {
            image["reference"]: image["digest"] for image in each["spec"]["images"]
        }
        for each in imagepins
    }


class Stage(Protocol):
    """A cluster with tagpin in it, and a registry."""

    @property
    def host(self) -> str:
        """What references to the registry begin with."""
        ...

    def push(self, repository: str, tag: str, content: str) -> str:
        """Push an image that differs by `content`; the digest of its manifest's bytes."""
        ...

    def create_namespace(self, name: str, mode: str) -> None:
        """Create a namespace with the label `tagpin.dev/mode`."""
        ...

    def create_deployment(self, namespace: str, name: str, images: Sequence[str]) -> Admitted:
        """Create a Deployment of one replica, and return its pod.

        As kubectl does it, a container is called like the last part of its repository.
        """
        ...

    def restart_deployment(self, namespace: str, name: str) -> Admitted:
        """Restart what `create_deployment` created, and return the new pod."""
        ...

    def undo_deployment(self, namespace: str, name: str) -> Admitted:
        """Go back to the template from before the restart, and return the new pod."""
        ...

    def replace_pod(self, namespace: str, name: str) -> Admitted:
        """Delete the pod of a Deployment, and return the one that takes its place."""
        ...

    def show_imagepins(self, namespace: str) -> Mapping[str, Mapping[str, str]]:
        """Show what is recorded; by name, the images of each and their digests."""
        ...

    def questions(self) -> int:
        """How often the registry has been asked about an image by now."""
        ...

    def without_registry(self) -> AbstractContextManager[None]:
        """A registry that is stopped, and afterwards started again."""
        ...

    def run_pod(self, namespace: str, name: str, image: str) -> Admitted | Refused:
        """Create a pod by hand."""
        ...
