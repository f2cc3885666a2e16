"""ImagePin: what is recorded of one revision, as the object in the cluster and as a value."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from tagpin.pins import Pin
from tagpin.revision import Revision
from tagpin.workload import Owner

GROUP, VERSION, KIND, PLURAL = "tagpin.dev", "v1alpha1", "ImagePin", "imagepins"

MAX_PINS = 50
"""Images of one record, as the CRD limits them."""
MAX_REFERENCE = 512
"""Characters of a recorded reference, as the CRD limits them."""


@dataclass(frozen=True, slots=True)
class ImagePin:
    """The pins of a revision, by the image as its author wrote it. None of them ever changes."""

    revision: Revision
    pins: Mapping[str, Pin]

    @classmethod
    def from_object(cls, found: Mapping[str, Any]) -> Self:
        """Read an object of the API; raises ValueError where it is no ImagePin of this version."""
        try:
            spec = found["spec"]
            revision = Revision(
                _text(found["metadata"], "namespace"),
                Owner.from_reference(spec["workload"]),
                *(_text(spec["revision"], field) for field in ("kind", "name", "hash")),
            )
            pins = [
                Pin.from_json({**each, "image": _text(each, "reference")})
                for each in spec["images"]
            ]
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"no ImagePin: {error!r}") from error
        return cls(revision, {pin.image: pin for pin in pins})

    def to_object(self) -> dict[str, Any]:
        """A new object for the API. It goes when its workload goes, and holds up nothing."""
        revision, owner = self.revision, self.revision.workload.to_reference()
        return {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": KIND,
            "metadata": {
                "namespace": revision.namespace,
                "name": revision.record_name,
                "ownerReferences": [owner],
            },
            "spec": {
                "workload": owner,
                "revision": {
                    "kind": revision.kind,
                    "name": revision.name,
                    "hash": revision.hash,
                },
                "images": [entry(pin) for pin in self.pins.values()],
            },
        }

    def with_pins(self, pins: Iterable[Pin]) -> Self:
        """The record with those of `pins` that it has not, and has room for."""
        more = dict(self.pins)
        for pin in pins:
            if len(more) < MAX_PINS and len(pin.image) <= MAX_REFERENCE:
                more.setdefault(pin.image, pin)
        return replace(self, pins=more)

    def is_of(self, revision: Revision) -> bool:
        """Whether the record is of this very revision, not only of its name."""
        mine = self.revision
        return (mine.workload.uid, mine.hash) == (revision.workload.uid, revision.hash)


def entry(pin: Pin) -> dict[str, Any]:
    """The item of `spec.images`."""
    fields = pin.to_json()
    return {"reference": fields.pop("image"), **fields}


def _text(fields: Mapping[str, Any], key: str) -> str:
    text = fields[key]
    if not isinstance(text, str):
        raise TypeError(f"{key} is no text")
    return text
