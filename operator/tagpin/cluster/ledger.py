"""The ledger in the cluster: ImagePins, and the objects that bear out who a record is of."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Any

from kubernetes.aio.client import ApiClient

from tagpin import workload
from tagpin.cache import Cache, Use
from tagpin.cluster.api import asking
from tagpin.cluster.objects import IMAGE_PINS, PODS, Collection, Objects
from tagpin.errors import ClusterError, Reason, Unproven, Unrecorded, Unresolvable
from tagpin.imagepin import GROUP, PLURAL, ImagePin, entry
from tagpin.ledger import Entry
from tagpin.pins import Pin
from tagpin.revision import Claim, Proof, Revision, counts_pods, created, proven
from tagpin.slots import Slots
from tagpin.workload import Pod

ATTEMPT = 3.0
"""Seconds for one call to the API."""
HELD = 5.0
"""Seconds for which a list is held: of siblings, or of a workload's records."""
MISMATCH = 2.0
"""Seconds for which a claim that did not hold is not looked into again."""
MAX_SIBLINGS = 100
"""Siblings of a pod that are looked at."""
MAX_RECORDS = 500
"""Records of a workload that are looked at."""
MAX_LIST = 16 * 1024 * 1024
"""Bytes of a list. Whoever may create pods decides how large one of them is."""
MAX_LISTS = 100
MAX_TRIES = 5
"""Attempts to write one record while others write it too."""

_TERMINATING = "NamespaceTerminating"
_OUTLINE = {
    "spec": {
        "containers": ("name", "image"),
        "initContainers": ("name", "image"),
        "ephemeralContainers": ("name", "image"),
        "volumes": ("name", "image"),
    },
    "status": {
        "containerStatuses": ("name", "imageID"),
        "initContainerStatuses": ("name", "imageID"),
    },
}


class Write(StrEnum):
    """What became of an attempt to write a record."""

    CREATED = "created"
    APPENDED = "appended"
    CONFLICT = "conflict"
    """Another replica was faster; what it wrote stands."""
    FAILED = "failed"
    """And somebody should look: that a namespace is going away is none."""


@dataclass(frozen=True, slots=True)
class _Proof:
    """What the API server says about the objects that a claim names."""

    revision: Revision
    created: datetime | None
    has_pods: bool


@dataclass(slots=True)
class _Known:
    """What is known of a record while it is being written."""

    record: ImagePin | None = None
    is_current: bool = True
    """False once others wrote it, until it is read."""

    def excludes(self, pins: Sequence[Pin]) -> bool:
        """Whether there is, or may be, another digest for one of the pins."""
        recorded = {} if self.record is None else self.record.pins
        return not self.is_current or any(
            recorded[pin.image].digest != pin.digest for pin in pins if pin.image in recorded
        )


class ClusterLedger:
    """Implements `tagpin.ledger.Ledger`. A record that was found serves for `record_ttl` seconds.

    After that it is read again, so a record that somebody deleted is forgotten by all replicas
    within that time; where it cannot be read, the one that was found still serves. That there is
    none is never remembered. `observe_read` and `observe_write` are told what happened.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        record_ttl: float = 60.0,
        size: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
        observe_read: Callable[[Use], None] = lambda _: None,
        observe_write: Callable[[Write], None] = lambda _: None,
    ) -> None:
        self._objects = Objects(client)
        self._record_ttl = record_ttl
        self._clock = clock
        self._observe_write = observe_write
        self._proofs: Cache[Claim, _Proof] = Cache(
            maxsize=size,
            clock=clock,
            error_age=lambda error: MISMATCH if isinstance(error, Unproven) else 0.0,
            disproves=lambda error: isinstance(error, Unproven),
        )
        self._records: Cache[tuple[str, str], ImagePin] = Cache(
            maxsize=size, clock=clock, disproves=_is_no_record, observe=observe_read
        )
        self._writes: Slots[tuple[str, str]] = Slots()
        self._siblings: Cache[Claim, Sequence[Pod]] = _held(clock)
        self._histories: Cache[tuple[str, str], Sequence[ImagePin]] = _held(clock)

    def recent(self, claimed: Claim) -> Entry | None:
        """Find both in memory (`tagpin.ledger.Ledger`)."""
        if (proof := self._proofs.young(claimed, max_age=self._record_ttl)) is None:
            return None
        key = _key(proof.value.revision)
        if (record := self._records.young(key, max_age=self._record_ttl)) is None:
            return None
        return _entry(proof.value, record.value, is_new=False)

    async def look_up(self, claimed: Claim, *, within: float) -> Entry:
        """Prove a claim, and find the revision's record (`tagpin.ledger.Ledger`)."""
        if (recent := self.recent(claimed)) is not None:
            return recent
        try:
            async with _reading(within):
                return await self._look_up(claimed)
        except Unresolvable:
            if (remembered := self._remembered(claimed)) is None:
                raise
            return remembered

    async def siblings(self, claimed: Claim, *, within: float) -> Sequence[Pod]:
        """At most `MAX_SIBLINGS` pods of a claim's owner with its hash: their images and status."""

        async def load() -> Sequence[Pod]:
            async with asking(f"list the pods of {claimed.owner}", seconds=ATTEMPT):
                pods = await self._listed(
                    PODS,
                    claimed.namespace,
                    {"labelSelector": claimed.selector, "limit": MAX_SIBLINGS},
                )
                owners = ((pod, workload.controller(pod)) for pod in pods)
                uid = claimed.owner.uid
                return [_outline(pod) for pod, owner in owners if owner and owner.uid == uid]

        async with _reading(within):
            return (await self._siblings.get(claimed, load)).value

    async def history(self, revision: Revision, *, within: float) -> Sequence[ImagePin]:
        """The records of a revision's workload; at most `MAX_RECORDS`."""
        uid = revision.workload.uid

        async def load() -> Sequence[ImagePin]:
            async with _asking_for_records(f"list the ImagePins of {revision.workload}"):
                selector = f"spec.workload.uid={_escaped(uid)}"
                found = await self._listed(
                    IMAGE_PINS,
                    revision.namespace,
                    {"fieldSelector": selector, "limit": MAX_RECORDS},
                )
                records = [ImagePin.from_object(each) for each in found]
            return [record for record in records if record.revision.workload.uid == uid]

        async with _reading(within):
            return (await self._histories.get((revision.namespace, uid), load)).value

    async def write(self, revision: Revision, pins: Sequence[Pin], *, within: float) -> ImagePin:
        """Create the record, or append to it (`tagpin.ledger.Ledger`)."""
        known, began = _Known(), self._clock()
        try:
            async with asyncio.timeout(within):
                # One after the other: the first one's record is mostly what all others want.
                release = await self._writes.take(_key(revision), 1)
                try:
                    kept = self._kept(revision, since=began)
                    if kept is not None and _has_all(kept, pins):
                        return kept
                    return await self._write(revision, pins, known)
                finally:
                    release()
        except (ClusterError, TimeoutError) as error:
            known.record = self._kept(revision, since=began) or known.record
            told = str(error) or f"cannot write {_told(revision)}: it took too long"
            is_fault = not (isinstance(error, ClusterError) and _is_going(revision, error))
            if known.excludes(pins):
                self._observe_write(Write.FAILED)
                raise Unresolvable(Reason.LEDGER, told) from error
            if is_fault:
                self._observe_write(Write.FAILED)
            raise Unrecorded(told, is_fault=is_fault) from error

    async def close(self) -> None:
        """End what is under way."""
        caches: tuple[Cache[Any, Any], ...]
        caches = (self._proofs, self._records, self._siblings, self._histories)
        for cache in caches:
            await cache.aclose()

    async def _look_up(self, claimed: Claim) -> Entry:
        """What the cluster has of a claimed revision, as far as memory must not say it."""
        began = self._clock()
        proof, is_new = await self._proof(claimed, max_age=self._record_ttl)
        record = await self._record(proof.revision)
        if record is None and not is_new:
            # Whether the revision has pods by now must not be taken from memory. What another
            # call has read since this one began will do.
            before = proof.revision
            proof, is_new = await self._proof(claimed, max_age=self._clock() - began)
            if proof.revision != before:
                record = await self._record(proof.revision)
        return _entry(proof, record, is_new=is_new)

    def _remembered(self, claimed: Claim) -> Entry | None:
        """The entry as it was once, if it has a record: that there is none is not remembered."""
        if (proof := self._proofs.peek(claimed)) is None:
            return None
        if (record := self._records.stale(_key(proof.value.revision))) is None:
            return None
        return _entry(proof.value, record.value, is_new=False)

    async def _proof(self, claimed: Claim, *, max_age: float) -> tuple[_Proof, bool]:
        """What bears out a claim, and whether that was read just now."""

        async def load() -> _Proof:
            owner, history = await asyncio.gather(
                self._named(claimed, claimed.kind.plural, claimed.owner.name),
                self._named(claimed, "controllerrevisions", claimed.history),
            )
            revision = proven(claimed, owner, history)
            if claimed.kind.proof is Proof.REQUESTER:  # the owner is older than its revisions
                return _Proof(revision, None, counts_pods(owner))
            try:
                return _Proof(revision, created(history or owner), counts_pods(owner))
            except ValueError as error:
                message = f"{revision.kind} {revision.name} has no time of creation"
                raise ClusterError(message) from error

        answer = await self._proofs.get(claimed, load, max_age=max_age)
        return answer.value, answer.use is not Use.HIT

    async def _named(self, claimed: Claim, plural: str, name: str | None) -> Mapping[str, Any]:
        """An object of the owner's API group; empty without a name."""
        if name is None:
            return {}
        group, _, version = claimed.owner.api_version.partition("/")
        request = f"read {plural} {claimed.namespace}/{name}"
        try:
            async with asking(request, seconds=ATTEMPT):
                objects = Collection(group, version, plural)
                return await self._objects.get(objects, claimed.namespace, name)
        except ClusterError as error:
            if error.is_absence_of(name):
                raise Unproven(f"there is no {name} among the {plural} of the namespace") from None
            raise

    async def _record(self, revision: Revision) -> ImagePin | None:
        """The record of a revision, from memory if it is young, else as the API server has it."""

        async def load() -> ImagePin:
            return _parsed(await self._found(revision), revision)

        try:
            answer = await self._records.get(_key(revision), load, max_age=self._record_ttl)
        except ClusterError as error:
            if _is_no_record(error):
                return None
            raise
        return answer.value

    async def _found(self, revision: Revision) -> dict[str, Any]:
        """The object itself. That there is none is the only error with status 404."""
        name = revision.record_name
        async with _asking_for_records(f"read {_told(revision)}", name):
            return await self._objects.get(IMAGE_PINS, revision.namespace, name)

    async def _listed(
        self, objects: Collection, namespace: str, query: Mapping[str, str | int]
    ) -> Sequence[Mapping[str, Any]]:
        return (await self._objects.list(objects, namespace, query, max_bytes=MAX_LIST)).items

    def _kept(self, revision: Revision, *, since: float) -> ImagePin | None:
        """The record as this process has read or written it since then."""
        remembered = self._records.peek(_key(revision))
        return remembered.value if remembered and remembered.started > since else None

    async def _write(self, revision: Revision, pins: Sequence[Pin], known: _Known) -> ImagePin:
        """Write until it holds; what is found meanwhile becomes `known`."""
        key, refusals = _key(revision), list[ClusterError]()
        found = None
        if (remembered := self._records.peek(key)) is not None:
            known.record = remembered.value
            found = await self._reread(revision, known)
        while True:
            record = known.record or ImagePin(revision, {})
            wanted = record.with_pins(pins) if record.is_of(revision) else record
            new = [pin for image, pin in wanted.pins.items() if image not in record.pins]
            if not new:
                return record
            if len(refusals) == MAX_TRIES:
                raise refusals[-1]
            try:
                written = await self._put(wanted, found, new)
            except ClusterError as error:
                refusals.append(error)
                if error.status == HTTPStatus.CONFLICT:
                    self._observe_write(Write.CONFLICT)
                    known.is_current = False
                elif not error.is_absence_of(revision.record_name):  # else: deleted on purpose
                    if await self._lacks(pins, revision, known, error):
                        raise
                    continue
                found = await self._reread(revision, known)
            else:
                self._observe_write(Write.CREATED if found is None else Write.APPENDED)
                self._records.keep(key, written)
                return written

    async def _lacks(
        self, pins: Sequence[Pin], revision: Revision, known: _Known, error: ClusterError
    ) -> bool:
        """Whether the record still lacks some of `pins` after a write that failed.

        Where the API server did not say why, it may have written all the same, or another
        replica may have been faster.
        """
        if 0 < error.status < HTTPStatus.INTERNAL_SERVER_ERROR:
            return True
        with contextlib.suppress(ClusterError):
            await self._reread(revision, known)
        return known.record is None or not _has_all(known.record, pins)

    async def _reread(self, revision: Revision, known: _Known) -> dict[str, Any] | None:
        """The object as it is now; None where the API server says that there is none."""
        try:
            found = await self._found(revision)
        except ClusterError as error:
            if not _is_no_record(error):
                raise
            self._records.forget(_key(revision))
            known.record, known.is_current = None, True
            return None
        known.is_current = False  # until it is understood
        known.record = _parsed(found, revision)
        known.is_current = True
        self._records.keep(_key(revision), known.record)
        return found

    async def _put(
        self, record: ImagePin, found: dict[str, Any] | None, new: Sequence[Pin]
    ) -> ImagePin:
        """Create the object, or append what is new to the one that was found; return the result."""
        name, namespace = record.revision.record_name, record.revision.namespace
        async with _asking_for_records(f"write {_told(record.revision)}", name, namespace):
            if found is None:
                answer = await self._objects.create(IMAGE_PINS, namespace, record.to_object())
            else:
                # Whole: with its resourceVersion, and with fields that only newer versions know.
                images = [*found["spec"]["images"], *map(entry, new)]
                more = {**found, "spec": {**found["spec"], "images": images}}
                answer = await self._objects.replace(IMAGE_PINS, namespace, name, more)
            written = ImagePin.from_object(answer)
        return record if written == record else written


def _entry(proof: _Proof, record: ImagePin | None, *, is_new: bool) -> Entry:
    """A record was made for a pod, so a count from before it says nothing of pods by now."""
    has_pods = proof.has_pods or (record is not None and not is_new)
    return Entry(proof.revision, record, proof.created, has_pods)


def _held(clock: Callable[[], float]) -> Cache[Any, Any]:
    return Cache(maxsize=MAX_LISTS, clock=clock, lifetime=lambda _: HELD)


@asynccontextmanager
async def _reading(within: float) -> AsyncIterator[None]:
    """Bound how long the body may read, and translate how that fails."""
    try:
        async with asyncio.timeout(within):
            yield
    except TimeoutError:
        message = "the API server did not answer in time"
        raise Unresolvable(Reason.LEDGER, message) from None
    except ClusterError as error:
        raise Unresolvable(Reason.LEDGER, str(error)) from error


@asynccontextmanager
async def _asking_for_records(request: str, *names: str) -> AsyncIterator[None]:
    """As `asking`. A 404 counts as one only where it says that one of `names` does not exist.

    A proxy answers so too, and the API server where it knows of no records at all.
    """
    try:
        async with asking(request, seconds=ATTEMPT):
            yield
    except ClusterError as error:
        if error.status != HTTPStatus.NOT_FOUND or any(map(error.is_absence_of, names)):
            raise
        message = f"{error}; is the CRD {PLURAL}.{GROUP} installed (manifests/crd)?"
        raise ClusterError(message) from error


def _outline(pod: Pod) -> Pod:
    """What `tagpin.siblings` asks of a pod: the rest may be large, and lists are held."""
    try:
        return {
            place: {
                field: [{key: each[key] for key in keys if key in each} for each in items]
                for field, keys in fields.items()
                if (items := pod[place].get(field))
            }
            for place, fields in _OUTLINE.items()
        }
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError("no pod") from error


def _escaped(text: str) -> str:
    """A value for a field selector (k8s.io/apimachinery/pkg/fields: EscapeValue)."""
    return re.sub(r"[\\,=]", r"\\\g<0>", text)


def _parsed(found: Mapping[str, Any], revision: Revision) -> ImagePin:
    """The record that was found under the name of `revision`, and shares it if it is of that."""
    try:
        record = ImagePin.from_object(found)
    except ValueError as error:
        raise ClusterError(f"an ImagePin cannot be read: {error}") from error
    return replace(record, revision=revision) if record.revision == revision else record


def _has_all(record: ImagePin, pins: Sequence[Pin]) -> bool:
    """Whether it says something about every image of `pins`."""
    return all(pin.image in record.pins for pin in pins)


def _is_no_record(error: Exception) -> bool:
    return isinstance(error, ClusterError) and error.status == HTTPStatus.NOT_FOUND


def _is_going(revision: Revision, error: ClusterError) -> bool:
    """Whether a record was refused since its namespace is going away, or has gone."""
    return _TERMINATING in error.causes or error.is_absence_of(revision.namespace)


def _key(revision: Revision) -> tuple[str, str]:
    return revision.namespace, revision.record_name


def _told(revision: Revision) -> str:
    return f"ImagePin {revision.namespace}/{revision.record_name}"
