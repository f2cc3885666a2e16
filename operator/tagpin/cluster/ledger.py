"""The ledger in the cluster: ImagePins, and the objects that bear out who a record is of."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Any

import orjson
from kubernetes.aio.client import ApiClient, ApiException, CoreV1Api, CustomObjectsApi

from tagpin import workload
from tagpin.cache import Cache, Use
from tagpin.cluster.api import asking
from tagpin.errors import ClusterError, Reason, Unproven, Unrecorded, Unresolvable
from tagpin.imagepin import GROUP, PLURAL, VERSION, ImagePin, entry
from tagpin.ledger import Entry
from tagpin.pins import Pin
from tagpin.revision import Claim, Revision, counts_pods, created, proven
from tagpin.workload import Pod

ATTEMPT = 3.0
"""Seconds for one call to the API."""
HELD = 5.0
"""Seconds for which a list is held: of siblings, or of a workload's records."""
MISMATCH = 2.0
"""Seconds for which a claim that did not hold is not looked into again."""
MAX_LISTED = 500
"""Siblings, or records of a workload, that are looked at."""
MAX_LISTS = 100
MAX_TRIES = 5
"""Attempts to write one record while others write it too."""

_TERMINATING = "NamespaceTerminating"


class Write(StrEnum):
    """What became of an attempt to write a record."""

    CREATED = "created"
    APPENDED = "appended"
    CONFLICT = "conflict"
    """Another replica was faster; what it wrote stands."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class _Proof:
    """What the API server says about the objects that a claim names."""

    revision: Revision
    created: datetime
    has_pods: bool


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
        self._objects = CustomObjectsApi(client)
        self._core = CoreV1Api(client)
        self._record_ttl = record_ttl
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
        self._siblings: Cache[Claim, Sequence[Pod]] = _held(clock)
        self._histories: Cache[tuple[str, str], Sequence[ImagePin]] = _held(clock)

    async def look_up(self, claimed: Claim, *, within: float) -> Entry:
        """Prove a claim, and find the revision's record (`tagpin.ledger.Ledger`)."""
        async with _reading(within):
            proof, is_new = await self._proof(claimed, max_age=self._record_ttl)
            record = await self._record(proof.revision)
            if record is None and not is_new:
                # Whether the revision has pods by now must not be taken from memory.
                proof, _ = await self._proof(claimed, max_age=0.0)
                record = await self._record(proof.revision)
        return Entry(proof.revision, record, proof.created, proof.has_pods)

    async def siblings(self, claimed: Claim, *, within: float) -> Sequence[Pod]:
        """The pods of a claim's owner that have its hash; at most `MAX_LISTED`."""

        async def load() -> Sequence[Pod]:
            async with asking(f"list the pods of {claimed.owner}", seconds=ATTEMPT):
                response = await self._core.list_namespaced_pod_without_preload_content(
                    claimed.namespace, label_selector=claimed.selector, limit=MAX_LISTED
                )
                body = await response.text()
                if not response.ok:
                    raise ApiException(status=response.status, reason=response.reason, body=body)
                pods = orjson.loads(body)["items"]
            owners = ((pod, workload.controller(pod)) for pod in pods)
            return [pod for pod, owner in owners if owner and owner.uid == claimed.owner.uid]

        async with _reading(within):
            return (await self._siblings.get(claimed, load)).value

    async def history(self, revision: Revision, *, within: float) -> Sequence[ImagePin]:
        """The records of a revision's workload; at most `MAX_LISTED`."""
        uid = revision.workload.uid

        async def load() -> Sequence[ImagePin]:
            async with asking(f"list the ImagePins of {revision.workload}", seconds=ATTEMPT):
                found: Any = await self._objects.list_namespaced_custom_object(
                    *(GROUP, VERSION, revision.namespace, PLURAL),
                    field_selector=f"spec.workload.uid={uid}",
                    limit=MAX_LISTED,
                )
                records = [ImagePin.from_object(each) for each in found["items"]]
            return [record for record in records if record.revision.workload.uid == uid]

        async with _reading(within):
            return (await self._histories.get((revision.namespace, uid), load)).value

    async def write(self, revision: Revision, pins: Sequence[Pin], *, within: float) -> ImagePin:
        """Create the record, or append to it (`tagpin.ledger.Ledger`)."""
        conflicts: list[ClusterError] = []
        try:
            async with asyncio.timeout(within):
                return await self._write(revision, pins, conflicts)
        except (ClusterError, TimeoutError) as error:
            self._observe_write(Write.FAILED)
            told = str(error) or f"cannot write {_told(revision)}: it took too long"
            if conflicts:  # there is an answer already, so ours must not be another one
                raise Unresolvable(Reason.LEDGER, told) from error
            is_expected = isinstance(error, ClusterError) and _TERMINATING in error.causes
            raise Unrecorded(told, is_fault=not is_expected) from error

    async def close(self) -> None:
        """End what is under way."""
        caches: tuple[Cache[Any, Any], ...]
        caches = (self._proofs, self._records, self._siblings, self._histories)
        for cache in caches:
            await cache.aclose()

    async def _proof(self, claimed: Claim, *, max_age: float) -> tuple[_Proof, bool]:
        """What bears out a claim, and whether that was read just now."""

        async def load() -> _Proof:
            owner, history = await asyncio.gather(
                self._object(claimed, claimed.kind.plural, claimed.owner.name),
                self._object(claimed, "controllerrevisions", claimed.history),
            )
            revision = proven(claimed, owner, history)
            return _Proof(revision, created(history or owner), counts_pods(owner))

        try:
            answer = await self._proofs.get(claimed, load, max_age=max_age)
        except ClusterError:
            if (known := self._proofs.stale(claimed)) is None:
                raise
            answer = known
        return answer.value, answer.use not in (Use.HIT, Use.STALE)

    async def _object(self, claimed: Claim, plural: str, name: str | None) -> Mapping[str, Any]:
        """An object of the owner's API group; empty without a name."""
        if name is None:
            return {}
        group, _, version = claimed.owner.api_version.partition("/")
        request = f"read {plural} {claimed.namespace}/{name}"
        try:
            async with asking(request, seconds=ATTEMPT):
                found: Any = await self._objects.get_namespaced_custom_object(
                    group, version, claimed.namespace, plural, name
                )
        except ClusterError as error:
            if error.is_absence_of(name):
                raise Unproven(f"there is no {name} among the {plural} of the namespace") from None
            raise
        return dict(found)

    async def _record(self, revision: Revision) -> ImagePin | None:
        """The record of a revision, from memory if it is young, else as the API server has it."""

        async def load() -> ImagePin:
            return _parsed(await self._found(revision))

        key = (revision.namespace, revision.record_name)
        try:
            return (await self._records.get(key, load, max_age=self._record_ttl)).value
        except ClusterError as error:
            if _is_no_record(error):
                return None
            if (known := self._records.stale(key)) is None:
                raise
            return known.value

    async def _read(self, revision: Revision) -> dict[str, Any] | None:
        """The object itself, as it is now; None where the API server says that there is none."""
        try:
            return await self._found(revision)
        except ClusterError as error:
            if _is_no_record(error):
                return None
            raise

    async def _found(self, revision: Revision) -> dict[str, Any]:
        name = revision.record_name
        try:
            async with asking(f"read {_told(revision)}", seconds=ATTEMPT):
                found: Any = await self._objects.get_namespaced_custom_object(
                    GROUP, VERSION, revision.namespace, PLURAL, name
                )
        except ClusterError as error:
            if error.status == HTTPStatus.NOT_FOUND and not error.is_absence_of(name):
                message = f"{error}; is the CRD {PLURAL}.{GROUP} installed (manifests/crd)?"
                raise ClusterError(message) from error
            raise
        return dict(found)

    async def _write(
        self, revision: Revision, pins: Sequence[Pin], conflicts: list[ClusterError]
    ) -> ImagePin:
        """Write until it holds; `conflicts` is told of every time that others were faster."""
        key = (revision.namespace, revision.record_name)
        found = None if self._records.peek(key) is None else await self._read(revision)
        while True:
            record = ImagePin(revision, {}) if found is None else _parsed(found)
            more = record.with_pins(pins) if record.is_of(revision) else record
            try:
                if len(more.pins) > len(record.pins):
                    await self._put(more, found)
                    self._observe_write(Write.APPENDED if found else Write.CREATED)
            except ClusterError as error:
                if error.status != HTTPStatus.CONFLICT or len(conflicts) == MAX_TRIES:
                    raise
                conflicts.append(error)
                self._observe_write(Write.CONFLICT)
                found = await self._read(revision)
            else:
                self._records.keep(key, more)
                return more

    async def _put(self, record: ImagePin, found: dict[str, Any] | None) -> None:
        """Create the object, or append to the one that was found what it has not."""
        where = (GROUP, VERSION, record.revision.namespace, PLURAL)
        async with asking(f"write {_told(record.revision)}", seconds=ATTEMPT):
            if found is None:
                await self._objects.create_namespaced_custom_object(*where, record.to_object())
                return
            images = found["spec"]["images"]
            new = tuple(record.pins.values())[len(images) :]
            found["spec"]["images"] = [*images, *map(entry, new)]
            await self._objects.replace_namespaced_custom_object(
                *where, record.revision.record_name, found
            )


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


def _parsed(found: Mapping[str, Any]) -> ImagePin:
    try:
        return ImagePin.from_object(found)
    except ValueError as error:
        raise ClusterError(f"an ImagePin cannot be read: {error}") from error


def _is_no_record(error: Exception) -> bool:
    return isinstance(error, ClusterError) and error.status == HTTPStatus.NOT_FOUND


def _told(revision: Revision) -> str:
    return f"ImagePin {revision.namespace}/{revision.record_name}"
