"""Where images and pull-secret names live in a pod, and who controls it.

A pod arrives before the API server has validated it: every field may be absent, null or of
another type. What is not as it should be is passed over here, and refused there.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

Pod = Mapping[str, Any]

MAX_SHOWN = 80
"""Characters of a name that a message repeats."""

_OBJECT_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)
_CONTAINER_LISTS = ("containers", "initContainers", "ephemeralContainers")

_COMMON = {
    text: text
    for text in (
        *("apps/v1", "ReplicaSet", "Deployment", "StatefulSet", "DaemonSet"),
        *("batch/v1", "Job", "CronJob"),
        *("argoproj.io/v1alpha1", "Rollout"),
    )
}
"""Texts that thousands of remembered revisions have in common. They are not interned: whoever
creates pods chooses them, and some versions of Python 3.12 never let go of those
(python/cpython#113993)."""

MIRROR_ANNOTATION = "kubernetes.io/config.mirror"
NODES_GROUP = "system:nodes"


@dataclass(frozen=True, slots=True)
class Image:
    """One place of a pod where an image is written.

    `name` is the container's name, or `volume/NAME`; `pointer` is where `text` stands
    (RFC 6901).
    """

    name: str
    text: str
    pointer: str

    @property
    def place(self) -> str:
        """What to call the place in a message: `container "app"`, `volume "models"`."""
        kind, slash, name = self.name.rpartition("/")
        return f'{kind} "{name}"' if slash else f'container "{name}"'


@dataclass(frozen=True, slots=True)
class Owner:
    """What an owner reference says: nobody has checked it."""

    api_version: str
    kind: str
    name: str
    uid: str

    @classmethod
    def from_reference(cls, reference: Mapping[str, Any]) -> Self:
        """Read an entry of `metadata.ownerReferences`."""
        of = reference.get
        return cls(
            _shared(of("apiVersion")),
            _shared(of("kind")),
            _text(of("name")),
            _text(of("uid")),
        )

    def to_reference(self) -> dict[str, str]:
        """An entry for `metadata.ownerReferences`, which blocks nothing."""
        return {
            "apiVersion": self.api_version,
            "kind": self.kind,
            "name": self.name,
            "uid": self.uid,
        }

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


def images(pod: Pod) -> tuple[Image, ...]:
    """Every image of a pod: containers, init (sidecars too), ephemeral, and image volumes.

    An absent or empty image is none: it is legal in templates.
    """
    return tuple(image for image in _places(pod) if image.text)


def changed_images(pod: Pod, old: Pod) -> tuple[Image, ...]:
    """The images that `old` does not have at the same place."""
    before = {image.pointer: image.text for image in _places(old)}
    return tuple(image for image in images(pod) if before.get(image.pointer) != image.text)


def pull_secret_names(owner: Mapping[str, Any]) -> tuple[str, ...]:
    """Names under `imagePullSecrets` of a pod's spec or of a ServiceAccount, in their order."""
    names = (_text(_mapping(item).get("name")) for item in _list(owner.get("imagePullSecrets")))
    return tuple(name for name in names if name)


def spec(pod: Pod) -> Mapping[str, Any]:
    """The pod's spec, empty where there is none."""
    return _mapping(pod.get("spec"))


def service_account_name(pod: Pod) -> str:
    """The ServiceAccount that the pod runs as."""
    return _text(spec(pod).get("serviceAccountName")) or "default"


def annotations(pod: Pod) -> Mapping[str, Any]:
    """The pod's annotations, empty where there are none."""
    return _mapping(_mapping(pod.get("metadata")).get("annotations"))


def labels(pod: Pod) -> Mapping[str, Any]:
    """The pod's labels, empty where there are none."""
    return _mapping(_mapping(pod.get("metadata")).get("labels"))


def is_being_deleted(pod: Pod) -> bool:
    """Whether only finalizers keep the pod."""
    return bool(_mapping(pod.get("metadata")).get("deletionTimestamp"))


def is_mirror(pod: Pod, requester_groups: tuple[str, ...]) -> bool:
    """Whether a kubelet mirrors a static pod here: the annotation counts only from a node."""
    return MIRROR_ANNOTATION in annotations(pod) and NODES_GROUP in requester_groups


def controller(pod: Pod) -> Owner | None:
    """The owner that manages the pod, or any other object, if it has one."""
    references = _list(_mapping(pod.get("metadata")).get("ownerReferences"))
    return next(
        (
            Owner.from_reference(reference)
            for reference in map(_mapping, references)
            if reference.get("controller") is True
        ),
        None,
    )


def display_name(pod: Pod) -> str:
    """What to call the pod in a log or an Event: its name, else what it is generated from."""
    metadata = _mapping(pod.get("metadata"))
    return _text(metadata.get("name")) or _text(metadata.get("generateName")) or "(unnamed)"


def uid(pod: Pod) -> str | None:
    """The uid of a pod, or of any object; None before it is created."""
    return _text(_mapping(pod.get("metadata")).get("uid")) or None


def is_object_name(text: str) -> bool:
    """Whether `text` may be a name in a path of the API: nobody has validated the pod yet."""
    return _OBJECT_NAME.fullmatch(text) is not None


def shown(text: str) -> str:
    """`text` as a message repeats what a pod's author made up."""
    return repr(text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…")


def _places(pod: Pod) -> Iterator[Image]:
    """Every place for an image, those without one too."""
    for field in _CONTAINER_LISTS:
        for index, container in enumerate(map(_mapping, _list(spec(pod).get(field)))):
            pointer = f"/spec/{field}/{index}/image"
            name = _text(container.get("name")) or f"{field}/{index}"
            yield Image(name, _text(container.get("image")), pointer)
    for index, volume in enumerate(map(_mapping, _list(spec(pod).get("volumes")))):
        if source := _mapping(volume.get("image")):
            pointer = f"/spec/volumes/{index}/image/reference"
            name = f"volume/{_text(volume.get('name')) or index}"
            yield Image(name, _text(source.get("reference")), pointer)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _shared(value: object) -> str:
    text = _text(value)
    return _COMMON.get(text, text)
