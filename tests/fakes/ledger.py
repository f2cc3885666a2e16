"""A ledger that keeps its records in a table, with faults to switch on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tagpin.errors import Reason, Unproven, Unrecorded, Unresolvable
from tagpin.imagepin import ImagePin
from tagpin.ledger import Entry
from tagpin.pins import Pin
from tagpin.revision import Claim, Revision, proven
from tagpin.workload import Pod

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class FakeLedger:
    """Every claim is borne out by `owners` (by uid), or else by a Deployment's ReplicaSet."""

    records: dict[str, ImagePin] = field(default_factory=dict)
    owners: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: Sequence[Pod] = ()
    created: datetime = LONG_AGO
    unproven: str = ""
    unreadable: str = ""
    unwritable: str = ""
    is_fault: bool = True
    calls: list[str] = field(default_factory=list)
    overtaken_by: ImagePin | None = None
    """What another replica writes just before our first write."""

    async def look_up(self, claimed: Claim, *, within: float) -> Entry:
        self.calls.append("look_up")
        if self.unproven:
            raise Unproven(self.unproven)
        self._must_be_readable()
        owner = self.owners.get(claimed.owner.uid) or owner_of(claimed)
        revision = proven(claimed, owner, {"metadata": owner["metadata"]})
        record = self.records.get(revision.record_name)
        return Entry(revision, record, self.created, has_pods=bool(self.pods))

    async def siblings(self, claimed: Claim, *, within: float) -> Sequence[Pod]:
        self.calls.append("siblings")
        return self.pods

    async def history(self, revision: Revision, *, within: float) -> Sequence[ImagePin]:
        self.calls.append("history")
        self._must_be_readable()
        uid = revision.workload.uid
        return [each for each in self.records.values() if each.revision.workload.uid == uid]

    async def write(self, revision: Revision, pins: Sequence[Pin], *, within: float) -> ImagePin:
        self.calls.append("write")
        if self.overtaken_by is not None:
            self.records[revision.record_name], self.overtaken_by = self.overtaken_by, None
        if self.unwritable:
            raise Unrecorded(self.unwritable, is_fault=self.is_fault)
        self._must_be_readable()
        record = self.records.get(revision.record_name, ImagePin(revision, {}))
        if record.is_of(revision):
            record = record.with_pins(pins)
        self.records[revision.record_name] = record
        return record

    def _must_be_readable(self) -> None:
        if self.unreadable:
            raise Unresolvable(Reason.LEDGER, self.unreadable)


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
