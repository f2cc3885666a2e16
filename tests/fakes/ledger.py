"""A ledger that keeps its records in a table, with faults to switch on."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tagpin import workload
from tagpin.errors import Reason, Unproven, Unrecorded, Unresolvable
from tagpin.imagepin import ImagePin
from tagpin.ledger import Entry
from tagpin.pins import Pin
from tagpin.revision import Claim, Proof, Revision, counts_pods, created, proven
from tagpin.workload import Pod

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class FakeLedger:
    """Every claim is borne out by `owners` (by uid), or else by a Deployment's ReplicaSet.

    Where there are `objects`, only they bear out claims, and of `pods` only siblings are told.
    """

    records: dict[str, ImagePin] = field(default_factory=dict)
    owners: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: Sequence[Pod] = ()
    created: datetime | None = LONG_AGO
    unproven: str = ""
    unreadable: str = ""
    unlistable: str = ""
    """Why neither siblings nor a workload's records can be listed."""
    unwritable: str = ""
    is_fault: bool = True
    unanswered: str = ""
    """Why what another replica wrote just before our first write cannot be read."""
    delay: float = 0.0
    """Seconds that every call takes."""
    calls: list[str] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)
    """How many seconds each call was given."""
    overtaken_by: ImagePin | None = None
    """What another replica writes just before our first write."""
    remembers: bool = False
    """Whether what it has need not be asked for."""
    objects: dict[tuple[str, str], dict[str, Any]] | None = None
    """What the cluster has, by plural and name."""

    def recent(self, claimed: Claim) -> Entry | None:
        """Nothing, unless `remembers` makes it what `look_up` would say."""
        if not self.remembers:
            return None
        owner = self.owners.get(claimed.owner.uid) or owner_of(claimed)
        revision = proven(claimed, owner, {"metadata": owner["metadata"]})
        record = self.records.get(revision.record_name)
        return Entry(revision, record, self.created, has_pods=True) if record else None

    async def look_up(self, claimed: Claim, *, within: float) -> Entry:
        await self._called("look_up", within)
        if self.unproven:
            raise Unproven(self.unproven)
        _must_not(self.unreadable)
        if self.objects is not None:
            return self._compared(claimed, self.objects)
        owner = self.owners.get(claimed.owner.uid) or owner_of(claimed)
        revision = proven(claimed, owner, {"metadata": owner["metadata"]})
        record = self.records.get(revision.record_name)
        return Entry(revision, record, self.created, has_pods=bool(self.pods))

    async def siblings(self, claimed: Claim, *, within: float) -> Sequence[Pod]:
        await self._called("siblings", within)
        _must_not(self.unlistable)
        if self.objects is None:
            return self.pods
        return [pod for pod in self.pods if _is_sibling(pod, claimed)]

    async def history(self, revision: Revision, *, within: float) -> Sequence[ImagePin]:
        await self._called("history", within)
        _must_not(self.unlistable or self.unreadable)
        uid = revision.workload.uid
        return [each for each in self.records.values() if each.revision.workload.uid == uid]

    async def write(self, revision: Revision, pins: Sequence[Pin], *, within: float) -> ImagePin:
        await self._called("write", within)
        if self.overtaken_by is not None:
            self.records[revision.record_name], self.overtaken_by = self.overtaken_by, None
        if self.unwritable:
            raise Unrecorded(self.unwritable, is_fault=self.is_fault)
        _must_not(self.unanswered or self.unreadable)
        record = self.records.get(revision.record_name, ImagePin(revision, {}))
        if record.is_of(revision):
            record = record.with_pins(pins)
        if record.pins:  # the API server takes no other
            self.records[revision.record_name] = record
        return record

    def _compared(self, claimed: Claim, objects: dict[tuple[str, str], dict[str, Any]]) -> Entry:
        owner = objects.get((claimed.kind.plural, claimed.owner.name))
        history = objects.get(("controllerrevisions", claimed.history or ""))
        if owner is None:
            raise Unproven("no such object")
        revision = proven(claimed, owner, history)
        record = self.records.get(revision.record_name)
        known = claimed.kind.proof is not Proof.REQUESTER
        since = created(history or owner) if known else None
        return Entry(revision, record, since, has_pods=counts_pods(owner))

    async def _called(self, name: str, within: float) -> None:
        self.calls.append(name)
        self.limits.append(within)
        await asyncio.sleep(self.delay)


def owner_of(claimed: Claim) -> dict[str, Any]:
    """The object that bears out a claim."""
    above = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "uid-web"}
    return {
        "metadata": {
            "uid": claimed.owner.uid,
            "labels": {claimed.label: claimed.hash},
            "ownerReferences": [{**above, "controller": True}],
        }
    }


def _must_not(fault: str) -> None:
    if fault:
        raise Unresolvable(Reason.LEDGER, fault)


def _is_sibling(pod: Pod, claimed: Claim) -> bool:
    owner = workload.controller(pod)
    label, _, value = claimed.selector.partition("=")
    is_labelled = workload.labels(pod).get(label) == value
    return owner is not None and owner.uid == claimed.owner.uid and is_labelled
