"""What is recorded about a pod's images, and the operations that put it onto the pod."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self

import orjson

from tagpin import workload
from tagpin.errors import InvalidReference, Reason
from tagpin.reference import Digest

PREFIX = "tagpin.dev/"
PINS_ANNOTATION = f"{PREFIX}pins"
REVISION_ANNOTATION = f"{PREFIX}revision"
"""The name of the ImagePin that the pod's digests are recorded in."""
UNRECORDED_ANNOTATION = f"{PREFIX}unrecorded"
"""Why the pod's digests are not, or not all, recorded in an ImagePin."""
MAX_ANNOTATION = 64 * 1024
"""Bytes of one record: the API server refuses pods with more than 256 KiB of annotations."""


class Source(StrEnum):
    """Where a digest came from, as written into `tagpin.dev/pins`."""

    REGISTRY = "registry"
    CACHE = "cache"
    LEDGER = "ledger"
    SIBLINGS = "siblings"
    STALE = "stale"
    GIVEN = "given"


@dataclass(frozen=True, slots=True)
class Pin:
    """An image as its author wrote it, and the digest that it is to run as.

    `resolved_at` is when the registry said so (UTC), None where it was not asked: for a digest
    that came with the pod or from its siblings. `mixed` says that pods of its revision ran with
    other digests before.
    """

    image: str
    digest: Digest
    source: Source
    resolved_at: datetime | None = None
    mixed: bool = False

    @property
    def pinned(self) -> str:
        """What the pod is to have: the author's text, `@` and the digest."""
        return f"{self.image}@{self.digest}"

    def taken_from(self, source: Source) -> "Pin":
        """The same digest, known from elsewhere."""
        return Pin(self.image, self.digest, source, self.resolved_at, self.mixed)

    def to_json(self) -> dict[str, Any]:
        """The entry of the annotation."""
        entry: dict[str, Any] = {
            "image": self.image,
            "digest": str(self.digest),
            "source": self.source.value,
        }
        if self.resolved_at is not None:
            moment = self.resolved_at.isoformat(timespec="seconds")
            entry["resolvedAt"] = moment.replace("+00:00", "Z")
        if self.mixed:
            entry["mixed"] = True
        return entry

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Read an entry; raises ValueError for what is none."""
        try:
            moment = entry.get("resolvedAt")
            return cls(
                entry["image"],
                Digest.parse(entry["digest"]),
                Source(entry["source"]),
                None if moment is None else _moment(moment),
                entry.get("mixed") is True,
            )
        except (InvalidReference, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"no pin: {error}") from error


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that has no digest, and why not. The message is not recorded: it may be long."""

    image: str
    reason: Reason
    message: str = ""

    def to_json(self) -> dict[str, str]:
        """The entry of the annotation."""
        return {"image": self.image, "reason": self.reason.value}


Pins = Mapping[str, Pin | Failure]
"""What is recorded, by the name of the container, or by `volume/NAME`."""


def to_annotation(pins: Pins, limit: int = MAX_ANNOTATION) -> str:
    """Compact JSON for `tagpin.dev/pins`; entries that would exceed `limit` bytes are left out."""
    entries: list[str] = []
    size = len("{}")
    for name, pin in pins.items():
        entry = f"{_json(name)}:{_json(pin.to_json())}"
        if size + len(entry) + len(",") > limit:
            continue
        size += len(entry) + len(",")
        entries.append(entry)
    return "{" + ",".join(entries) + "}"


def from_annotation(text: object) -> dict[str, Pin | Failure]:
    """Read a record back. Users can write it: what is no entry of ours is passed over."""
    if not isinstance(text, str) or len(text) > MAX_ANNOTATION:
        return {}
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(entries, dict):
        return {}
    parsed = {name: _entry(entry) for name, entry in entries.items()}
    return {name: entry for name, entry in parsed.items() if entry is not None}


def operations(
    pod: workload.Pod, images: Mapping[str, str], annotations: Mapping[str, str | None]
) -> list[dict[str, str | dict[str, str]]]:
    """The RFC 6902 operations that write `images` (JSON pointer → image) and `annotations`.

    An annotation of None is removed. What the pod has already is not written again, so that a
    second pass over our own output is empty.
    """
    changes: list[dict[str, Any]] = [
        {"op": "replace", "path": pointer, "value": text} for pointer, text in images.items()
    ]
    present = workload.annotations(pod)
    wanted = {key: value for key, value in annotations.items() if value is not None}
    if not isinstance(pod.get("metadata"), Mapping):
        if wanted:
            changes.append({"op": "add", "path": "/metadata", "value": {"annotations": wanted}})
        return changes
    if not present:
        if wanted:
            changes.append({"op": "add", "path": "/metadata/annotations", "value": wanted})
        return changes
    for key, value in annotations.items():
        path = f"/metadata/annotations/{key.replace('~', '~0').replace('/', '~1')}"
        if value is None:
            if key in present:
                changes.append({"op": "remove", "path": path})
        elif present.get(key) != value:
            changes.append({"op": "add", "path": path, "value": value})
    return changes


def _entry(entry: Any) -> Pin | Failure | None:
    match entry:
        case {"image": str(), "digest": str(), "source": str()}:
            try:
                return Pin.from_json(entry)
            except ValueError:
                return None
        case {"image": str(image), "reason": str(reason)} if reason in {*Reason}:
            return Failure(image, Reason(reason))
    return None


def _moment(text: Any) -> datetime:
    """A moment in UTC. Without an offset it could be any: ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("no offset from UTC")
    return moment.astimezone(UTC)


def _json(value: object) -> str:
    """Compact, and ASCII: a limit of bytes is one of characters."""
    with suppress(orjson.JSONEncodeError):  # of half a character, which Python can escape
        text = orjson.dumps(value)
        if text.isascii():  # as nearly always, and then ten times as fast
            return text.decode()
    return json.dumps(value, separators=(",", ":"))
