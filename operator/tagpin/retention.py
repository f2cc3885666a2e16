"""Which records may go, so that a workload that is rolled out for years has a bounded number.

A record that is forgotten while its revision can still make pods would give the next of them
another digest. So the object that stands for a revision decides, not the workload's UID: a
ReplicaSet that was orphaned and adopted by a new Deployment makes pods as before.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Self

from tagpin import workload
from tagpin.revision import HASH_LABELS, created
from tagpin.workload import Owner

YOUNG = timedelta(minutes=10)
"""Up to this age, a record may be of a revision whose object is only just being made."""


class Resource(NamedTuple):
    """A kind of object, and where the API has it."""

    kind: str
    group: str
    version: str
    plural: str


_RESOURCES = (
    Resource("ReplicaSet", "apps", "v1", "replicasets"),
    Resource("ControllerRevision", "apps", "v1", "controllerrevisions"),
    Resource("Job", "batch", "v1", "jobs"),
)
_BY_KIND = {resource.kind: resource for resource in _RESOURCES}


@dataclass(frozen=True, slots=True)
class Record:
    """What must be known of an ImagePin to judge whether it may go."""

    namespace: str
    name: str
    uid: str
    version: str
    """Its resourceVersion: a pin that is added meanwhile makes it another one."""
    created: datetime
    workload: str
    """The uid of its workload."""
    is_owned: bool
    """Whether it still belongs to it: a workload that is deleted can leave its records behind."""
    revision: str
    """The name of the object that stands for its revision."""
    hash: str
    resource: Resource | None
    """What kind that object is of; None for one that was opted in, which we may not read."""

    @classmethod
    def from_object(cls, found: Mapping[str, Any]) -> Self:
        """Read an ImagePin of the API; raises ValueError where it is none."""
        try:
            metadata, spec = found["metadata"], found["spec"]
            owner = Owner.from_reference(spec["workload"])
            kind, name, template_hash = (spec["revision"][key] for key in ("kind", "name", "hash"))
            owners = map(Owner.from_reference, metadata.get("ownerReferences") or ())
            return cls(
                namespace=metadata["namespace"],
                name=metadata["name"],
                uid=metadata["uid"],
                version=metadata["resourceVersion"],
                created=created(found),
                workload=owner.uid,
                is_owned=any(each.uid == owner.uid for each in owners),
                revision=name,
                hash=template_hash,
                resource=_resource(kind, name, owner),
            )
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"no ImagePin: {error!r}") from error

    def is_stood_for_by(self, found: Mapping[str, Any]) -> bool:
        """Whether the object of the revision's kind and name is the revision indeed.

        Raises ValueError where it is another object, so that nothing follows.
        """
        kind, name = found.get("kind"), workload.display_name(found)
        if self.resource is None or (kind, name) != (self.resource.kind, self.revision):
            raise ValueError(f"{kind} {name} was not asked for")
        if kind == "ReplicaSet":
            labels = workload.labels(found)
            return any(labels.get(label) == self.hash for label in HASH_LABELS)
        if kind == "Job":
            return workload.uid(found) == self.hash
        return True  # a ControllerRevision's name has the hash, and its template never changes


def superfluous(
    records: Iterable[Record], *, keep: int, now: datetime, young: timedelta = YOUNG
) -> Sequence[Record]:
    """The records that may go unless their revision is in use, those created first in front.

    Of each workload, the `keep` records that were created last stay. One that was left behind
    has no workload, so it goes by its revision alone, if that can be asked for.
    """
    of_workload: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    left_behind: list[Record] = []
    for record in records:
        if record.is_owned or record.resource is None:
            of_workload[record.namespace, record.workload].append(record)
        else:
            left_behind.append(record)
    too_many = (
        record
        for group in of_workload.values()
        for record in sorted(group, key=_age)[: max(0, len(group) - keep)]
    )
    return sorted(
        (each for each in (*left_behind, *too_many) if now - each.created > young), key=_age
    )


def _age(record: Record) -> tuple[datetime, str]:
    return record.created, record.name


def _resource(kind: str, name: str, owner: Owner) -> Resource | None:
    resource = _BY_KIND.get(kind)
    if resource is None or not workload.is_object_name(name):
        return None
    # There are more groups with a Job; where it is the workload itself, the record has its group.
    api_version = f"{resource.group}/{resource.version}"
    is_another = (owner.kind, owner.name) == (kind, name) and owner.api_version != api_version
    return None if is_another else resource
