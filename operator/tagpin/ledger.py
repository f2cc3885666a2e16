"""How a pod and the ledger stand to each other: what it may take from a record, and adds to it.

The Protocol that this needs is here too; `cluster.ledger` implements it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol, Self

from tagpin.errors import Reason, Unproven, Unrecorded, Unresolvable
from tagpin.imagepin import MAX_PINS, MAX_REFERENCE, ImagePin
from tagpin.pins import Failure, Pin, Source
from tagpin.reference import Digest, Reference, shortened
from tagpin.revision import Claim, Kinds, Revision, claim
from tagpin.siblings import running_digests
from tagpin.verdict import MAX_TOLD, Admission, Standing
from tagpin.workload import Image, Pod

_STAMP = timedelta(seconds=1)
"""What a creationTimestamp leaves out at most."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the cluster has of a revision.

    `created` is when it came to be (its ReplicaSet, ControllerRevision or Job), in whole
    seconds; None where no object says so. `has_pods` says that its controller counts pods, or may
    have made some since it was last looked at.
    """

    revision: Revision
    record: ImagePin | None
    created: datetime | None
    has_pods: bool


class Ledger(Protocol):
    """The records of all revisions. Every call that may wait ends `within` so many seconds."""

    def recent(self, claimed: Claim) -> Entry | None:
        """What `look_up` would say, where that is in memory, and too young to be read again."""
        ...

    async def look_up(self, claimed: Claim, *, within: float) -> Entry:
        """Compare a claim with the objects that it names, and find the revision's record.

        Raises Unproven where they do not bear it out, and Unresolvable (reason `ledger`) where
        owner or record could not be read: "no record" is what the API server says, nothing else.
        """
        ...

    async def siblings(self, claimed: Claim, *, within: float) -> Sequence[Pod]:
        """The pods that the owner controls and that have the claim's hash; or Unresolvable."""
        ...

    async def history(self, revision: Revision, *, within: float) -> Sequence[ImagePin]:
        """All records of the revision's workload; or Unresolvable."""
        ...

    async def write(self, revision: Revision, pins: Sequence[Pin], *, within: float) -> ImagePin:
        """Add `pins` to the revision's record, which need not be there, and say what it then has.

        What others recorded meanwhile stands, and a pin that finds no room is left out. Raises
        Unrecorded where the record could not be written, Unresolvable where somebody else's
        answer is there and cannot be read.
        """
        ...


class Page:
    """The ledger, opened for one pod that is about to be created."""

    def __init__(
        self,
        ledger: Ledger,
        entry: Entry | None = None,
        *,
        failure: Unresolvable | None = None,
        unrecorded: str = "",
    ) -> None:
        self._ledger = ledger
        self._entry = entry
        self._siblings: Sequence[Pod] = ()
        self._failure = failure
        self._unrecorded = unrecorded
        self._is_fault = False

    @classmethod
    async def open(
        cls,
        ledger: Ledger,
        kinds: Kinds,
        admission: Admission,
        texts: Iterable[str],
        *,
        remaining: Callable[[], float],
    ) -> Self:
        """Find what the ledger has for the images `texts` of a pod, in the seconds that remain.

        What goes wrong is told image by image. A pod that may not speak for a revision is its
        own, as one without a revision is. So are images that are changed by hand: they never
        enter a record.
        """
        if admission.operation != "CREATE" or admission.subresource:
            return cls(ledger)
        try:
            claimed = claim(
                admission.pod, namespace=admission.namespace, user=admission.user, known=kinds
            )
            if claimed is None:
                return cls(ledger)
            entry = await ledger.look_up(claimed, within=remaining())
        except Unproven as error:
            return cls(ledger, unrecorded=str(error))
        except Unresolvable as error:
            return cls(ledger, failure=error)
        page = cls(ledger, entry)
        page._take(entry.record)
        if entry.has_pods and not all(map(page._recorded, texts)):
            try:
                page._siblings = await ledger.siblings(claimed, within=remaining())
            except Unresolvable as error:
                page._failure = error
        return page

    @classmethod
    def recent(cls, ledger: Ledger, kinds: Kinds, admission: Admission) -> Self | None:
        """The page of a pod that is about to be created, where nobody need be asked for it."""
        if admission.operation != "CREATE" or admission.subresource:
            return None
        try:
            claimed = claim(
                admission.pod, namespace=admission.namespace, user=admission.user, known=kinds
            )
        except Unproven:
            return None
        if claimed is None or (entry := ledger.recent(claimed)) is None:
            return None
        page = cls(ledger, entry)
        page._take(entry.record)
        return page

    @property
    def is_of_a_revision(self) -> bool:
        """Whether what is found out about the pod's images is going to be recorded."""
        return self._entry is not None

    def pin(self, image: Image, ref: Reference) -> Pin | Failure | None:
        """The digest that the revision has for an image already; None where it has none."""
        if (recorded := self._recorded(image.text)) is not None:
            return recorded.taken_from(Source.LEDGER)
        if self._failure is not None:
            return _unreadable(image, self._failure)
        match tuple(self._running(image, ref)):
            case (digest,):
                return Pin(image.text, digest, Source.SIBLINGS)
        return None

    def is_mixed(self, image: Image, ref: Reference) -> bool:
        """Whether pods of the revision run several digests for an image."""
        return len(self._running(image, ref)) > 1

    def confirmed(self, image: Image, ref: Reference, claimed: Pin) -> Pin | None:
        """What a pod brings along about an image, if it is what the record says, or its siblings.

        `ref` is the image as its author wrote it.
        """
        recorded = self._recorded(claimed.image)
        if recorded is None:
            agreed = self._running(image, ref) == {claimed.digest}
            return Pin(claimed.image, claimed.digest, Source.SIBLINGS) if agreed else None
        if recorded.digest != claimed.digest:
            return None
        return claimed if claimed == recorded else recorded.taken_from(Source.LEDGER)

    def max_age(
        self, now: datetime, *, arrived: datetime, freshness: float, cache_ttl: float
    ) -> float:
        """How many seconds old an answer of a registry may be for a new image of the pod.

        A new revision takes none from before it was created, or a build that was pushed for it
        might be missed. It was there a second after its timestamp, and when its pod `arrived`.
        """
        if self._entry is None:
            return freshness
        if self._entry.record is not None:
            return cache_ttl
        created = self._entry.created
        existed = arrived if created is None else min(arrived, created + _STAMP)
        return min(freshness, max(0.0, (now - existed).total_seconds()))

    async def last_recorded(self, text: str, *, since: datetime, within: float) -> Pin | None:
        """The workload's newest pin of an image in any revision, if it is not too old."""
        if self._entry is None:
            return None
        try:
            records = await self._ledger.history(self._entry.revision, within=within)
        except Unresolvable:
            return None
        pins = [pin for record in records if (pin := record.pins.get(text)) is not None]
        dated = [(pin.resolved_at, pin.digest) for pin in pins if pin.resolved_at is not None]
        resolved_at, digest = max(dated, default=(since, None), key=lambda each: each[0])
        if digest is None or resolved_at < since:
            return None
        return Pin(text, digest, Source.STALE, resolved_at)

    async def record(
        self,
        settled: Mapping[Image, Pin | Failure],
        *,
        since: datetime,
        dry_run: bool,
        within: float,
    ) -> dict[Image, Pin | Failure]:
        """Write what is new; return what the images are settled to by what is then recorded.

        What an earlier pass could not write is tried again if it was resolved `since`; its digest
        is on the pod already.
        """
        ours = {
            image: pin
            for image, pin in settled.items()
            if isinstance(pin, Pin) and pin.source is not Source.GIVEN
        }
        if self._entry is None and self._failure is not None and ours:
            self._unrecorded, self._is_fault = str(self._failure), True
        if self._entry is None or self._is_fault:
            return {}
        new = self._new(ours, since=None if dry_run else since)
        try:
            if new:
                self._take(await self._written(new.values(), dry_run=dry_run, within=within))
        except Unrecorded as error:
            self._unrecorded, self._is_fault = str(error), error.is_fault
            return {}
        except Unresolvable as error:
            if any(image.text != pin.image for image, pin in new.items()):
                self._unrecorded, self._is_fault = str(error), True
            return {i: _unreadable(i, error) for i, pin in new.items() if i.text == pin.image}
        self._find_faults(ours, new.values())
        return {
            image: recorded.taken_from(Source.LEDGER)
            for image, pin in ours.items()
            if (recorded := self._recorded(pin.image))
            and recorded != pin
            and image.text in (recorded.image, recorded.pinned)
        }

    @property
    def standing(self) -> Standing:
        """What there is to say about the pod's revision."""
        if self._entry is None:
            return Standing(unrecorded=self._unrecorded, is_fault=self._is_fault)
        return Standing(
            self._entry.revision,
            is_recorded=self._entry.record is not None,
            unrecorded=self._unrecorded,
            is_fault=self._is_fault,
        )

    def _new(self, ours: Mapping[Image, Pin], *, since: datetime | None) -> dict[Image, Pin]:
        """Which pins to record; None for `since` takes all that an earlier pass has left."""
        lacking = {image: pin for image, pin in ours.items() if self._recorded(pin.image) is None}
        new = {
            image: pin
            for image, pin in lacking.items()
            if since is None or image.text == pin.image or self._is_current(pin, since)
        }
        if old := [pin for image, pin in lacking.items() if image not in new]:
            self._unrecorded = f"{self._told} does not have {_images(old)}"
        return new

    async def _written(
        self, pins: Iterable[Pin], *, dry_run: bool, within: float
    ) -> ImagePin | None:
        """The record after `pins` were added to it."""
        if self._entry is None:
            return None
        revision = self._entry.revision
        if dry_run:
            return (self._entry.record or ImagePin(revision, {})).with_pins(pins)
        return await self._ledger.write(revision, tuple(pins), within=within)

    def _find_faults(self, ours: Mapping[Image, Pin], new: Iterable[Pin]) -> None:
        """Tell what the record does not have of the pod's pins, now that it is written."""
        if self._is_fault:
            return
        contradicted = [
            pin
            for image, pin in ours.items()
            if image.text != pin.image  # or it takes what is recorded
            and (recorded := self._recorded(pin.image))
            and recorded.digest != pin.digest
        ]
        left_out = [pin for pin in new if self._recorded(pin.image) is None]
        if contradicted:
            told = f"{self._told} has another digest for {_images(contradicted)}"
            self._unrecorded, self._is_fault = told, True
        elif left_out:
            self._unrecorded, self._is_fault = f"{self._told} {_no_room(left_out)}", True

    @property
    def _told(self) -> str:
        return f"ImagePin {self._entry.revision.record_name}" if self._entry else ""

    def _take(self, record: ImagePin | None) -> None:
        """Go on with a record as the cluster has it, if it is the revision's."""
        if self._entry is None or record is None:
            return
        if record.is_of(self._entry.revision):
            # Without pins, nothing found room in it, and nobody has written it.
            if record.pins and record is not self._entry.record:
                self._entry = replace(self._entry, record=record)
            return
        # Its name has a short hash, and whoever may write ImagePins can choose one.
        self._entry = replace(self._entry, record=None)
        self._unrecorded, self._is_fault = f"{self._told} is of another revision", True

    def _is_current(self, brought: Pin, since: datetime) -> bool:
        """Whether a pin that a pod brings along can be of an earlier pass about this revision.

        Its digest was named once. That of an older build, said by whoever can post a review, must
        not become the digest of a revision that was made for a newer one.
        """
        if brought.resolved_at is None:
            return brought.source is Source.SIBLINGS
        created = since if self._entry is None else self._entry.created or since
        return brought.resolved_at >= max(created, since)

    def _recorded(self, text: str) -> Pin | None:
        if self._entry is None or self._entry.record is None:
            return None
        return self._entry.record.pins.get(text)

    def _running(self, image: Image, ref: Reference) -> frozenset[Digest]:
        return running_digests(self._siblings, image, ref)


def _unreadable(image: Image, error: Unresolvable) -> Failure:
    """Resolving anew instead would break the promise, and nobody would notice."""
    message = f"{shortened(image.text)} has no digest, since the ledger is unreadable: {error}"
    return Failure(image.text, Reason.LEDGER, message)


def _no_room(pins: Sequence[Pin]) -> str:
    return (
        f"has no room (it takes {MAX_PINS} images of {MAX_REFERENCE} characters) "
        f"for {_images(pins)}"
    )


def _images(pins: Sequence[Pin]) -> str:
    return ", ".join(shortened(pin.image) for pin in pins[:MAX_TOLD])
