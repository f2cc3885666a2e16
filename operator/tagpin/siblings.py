"""What the pods of a revision run already, where nobody has recorded it."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tagpin import workload
from tagpin.errors import InvalidReference
from tagpin.reference import Digest, Reference
from tagpin.workload import Image, Pod

_PULLABLE = "docker-pullable://"


def running_digests(siblings: Iterable[Pod], image: Image, ref: Reference) -> frozenset[Digest]:
    """The digests that the siblings' container (or volume) of the same name runs for `ref`.

    A pinned image says it itself; for one that is a tag, the kubelet says it in `imageID`, which
    counts if it names a digest of the same repository. One that was changed by hand says nothing.
    """
    return frozenset(
        digest
        for sibling in siblings
        for place in workload.images(sibling)
        if place.name == image.name and (digest := _digest(sibling, place, ref)) is not None
    )


def _digest(sibling: Pod, place: Image, ref: Reference) -> Digest | None:
    if place.text == ref.text:
        return _pulled(sibling, place.name, ref)
    text, _, digest = place.text.rpartition("@")
    return _parsed(digest) if text == ref.text else None


def _pulled(sibling: Pod, name: str, ref: Reference) -> Digest | None:
    """The digest that the kubelet reports for a container, if it is of the repository."""
    for status in _statuses(sibling):
        if status.get("name") == name and isinstance(status.get("imageID"), str):
            try:
                pulled = Reference.parse(status["imageID"].removeprefix(_PULLABLE))
            except InvalidReference:
                continue
            if pulled.repository == ref.repository and pulled.digest is not None:
                return pulled.digest
    return None


def _statuses(sibling: Pod) -> Iterator[Mapping[str, Any]]:
    status = sibling.get("status")
    for field in ("containerStatuses", "initContainerStatuses"):
        statuses = status.get(field) if isinstance(status, Mapping) else None
        for each in statuses if isinstance(statuses, list) else []:
            if isinstance(each, Mapping):
                yield each


def _parsed(digest: str) -> Digest | None:
    try:
        return Digest.parse(digest)
    except InvalidReference:
        return None
