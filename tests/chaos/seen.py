"""What a chaos run was seen to do: values, for the judge. Times are Unix times."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Fault(StrEnum):
    """What the monkey does."""

    KILL = "a replica is killed"
    TERM = "a replica is ended by SIGTERM"
    FREEZE = "a replica is frozen"
    SILENT = "a registry is silent"
    BROKEN = "a registry answers 503"
    LIMITED = "a registry answers 429"
    RESETTING = "a registry cuts connections"
    ENDED = "a registry does not run"
    NEW_LEAF = "a certificate is taken away"
    NEW_CA = "the Secret of the certificate is emptied"
    NO_BUNDLE = "the caBundle is emptied"
    API_STOP = "the API server is restarted"
    API_KILL = "the API server is killed"
    FORGET = "records are deleted"
    CUT = "the Service cuts all connections"


@dataclass(frozen=True, slots=True)
class Episode:
    """A fault, from when it began until what was done had been undone."""

    fault: Fault
    began: float
    ended: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Creation:
    """The API server's answer to whoever created a pod."""

    namespace: str
    mode: str
    name: str
    began: float
    ended: float
    code: int
    message: str = ""
    """Why it was refused."""
    images: Mapping[str, str] = field(default_factory=dict)
    """Of a pod that was created: container → image."""
    owner: str = ""
    """The uid of its controller."""
    record: str = ""
    """The name of its revision's record."""
    unrecorded: str = ""
    """Why its digests are in no record, as it says itself."""

    @property
    def was_created(self) -> bool:
        return self.code == 201


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A request that the API server did not answer."""

    began: float
    ended: float
    problem: str


@dataclass(frozen=True, slots=True)
class Complaint:
    """What a replica logged that nobody should ever read."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """What a process holds at a time."""

    memory: float
    """Resident, in MiB."""
    files: int
    tasks: int
    connections: int
    """To the API server."""


@dataclass(frozen=True, slots=True)
class Seen:
    """All of a run."""

    began: float
    ended: float
    """When the last load was sent."""
    episodes: Sequence[Episode]
    left_out: Sequence[Fault]
    """What could not be done: what it needs was not there, or there was no time left."""
    creations: Sequence[Creation]
    stored: Mapping[str, Mapping[str, str]]
    """Pods in `enforce` at the end: namespace/name → their images."""
    forgotten: frozenset[tuple[str, str]]
    """Records that were deleted: namespace and name."""
    unanswered: Sequence[Unanswered]
    before: Mapping[str, Sample]
    """Replicas that lived through, after they had warmed up."""
    after: Mapping[str, Sample]
    """The same, a while after the last load."""
    complaints: Sequence[Complaint]
    unhealed: Sequence[str]
    """What did not work at the end, when all faults were over."""
