"""Whether what was seen in a chaos run may happen: pure functions, with the bounds that hold.

A pod may only be refused for a reason that a fault can have, while the fault stands or shortly
after. Everything else is wrong at any time.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from chaos.seen import Creation, Episode, Fault, Sample, Seen


class Cause(StrEnum):
    """Why a pod was refused."""

    CALL = "the API server's call to tagpin failed"
    REGISTRY = "a registry gave no digest"
    LEDGER = "the API server gave no record"
    API = "the API server was not ready"
    LATE = "tagpin took too long"
    OTHER = "something else"


@dataclass(frozen=True, slots=True)
class Bound:
    """What a fault excuses, and for how many seconds after its end."""

    causes: frozenset[Cause]
    seconds: float


def _bound(seconds: float, *causes: Cause) -> Bound:
    return Bound(frozenset(causes), seconds)


_NONE = _bound(0)
_RESTART = _bound(10, Cause.API, Cause.LEDGER, Cause.CALL)
BOUNDS = {
    # Requests under way are lost, and those sent there until the Service has noticed.
    Fault.KILL: _bound(3, Cause.CALL),
    Fault.TERM: _NONE,
    # Each connection that is kept to it costs one request, which takes the webhook's 5 s.
    Fault.FREEZE: _bound(1, Cause.CALL, Cause.LATE),
    # A circuit that opened is probed again after at most twice the time that it stood.
    Fault.SILENT: _bound(10, Cause.REGISTRY),
    Fault.BROKEN: _bound(10, Cause.REGISTRY),
    Fault.LIMITED: _bound(10, Cause.REGISTRY),
    Fault.RESETTING: _bound(10, Cause.REGISTRY),
    Fault.ENDED: _bound(10, Cause.REGISTRY),
    Fault.NEW_LEAF: _NONE,
    Fault.NEW_CA: _NONE,
    # The watch that repairs it may have to be taken up again, if the API server was away before.
    Fault.NO_BUNDLE: _bound(12, Cause.CALL),
    Fault.API_STOP: _RESTART,
    Fault.API_KILL: _RESTART,
    Fault.FORGET: _NONE,
    Fault.CUT: _bound(1, Cause.CALL),
}

MEMORY, FILES, TASKS, CONNECTIONS = 32.0, 16, 16, 16
"""What a replica may hold more at the end than when it had warmed up; memory in MiB."""
MANY = 10
"""Wrong things of one kind that are told in full."""

_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
_REASONS = re.compile(r"\((?P<reason>[a-z_]+)\)")
_SECOND_LINE = re.compile(
    "'tagpin-require-digest' denied request: [0-9]+ images? ha(s|ve) no digest"
)
_OVERDUE = "could not be pinned in time"
_CUT = "a decision was cut"
_OF_REGISTRIES = {"timeout", "unreachable", "rate_limited"}


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one question."""

    question: str
    looked_at: int
    """Nothing looked at is no answer."""
    wrong: Sequence[str]
    excused: Counter[str] = field(default_factory=Counter)

    @property
    def holds(self) -> bool:
        return bool(self.looked_at) and not self.wrong


def judge(seen: Seen) -> list[Finding]:
    """Every question, answered."""
    return [
        tags_in_enforce(seen),
        digests_per_revision(seen),
        refusals(seen),
        unanswered(seen),
        leaks(seen),
        complaints(seen),
        Finding("all is well at the end", len(seen.before), seen.unhealed),
    ]


def tags_in_enforce(seen: Seen) -> Finding:
    """Of all pods that were ever created, and of all that are there at the end."""
    created = [
        (f"{each.namespace}/{each.name} as it was created", each.images)
        for each in seen.creations
        if each.was_created and each.mode == "enforce"
    ]
    stored = [(f"{name} at the end", images) for name, images in seen.stored.items()]
    wrong = [
        f"{what}: {image}"
        for what, images in (*created, *stored)
        for image in images.values()
        if not _DIGEST.search(image)
    ]
    wrong += [f"{what} has no image" for what, images in (*created, *stored) if not images]
    return Finding("no pod in enforce has a tag", len(created) if seen.stored else 0, wrong)


def digests_per_revision(seen: Seen) -> Finding:
    """Every image of a revision has one digest, unless its record was deleted or not written."""
    digests: defaultdict[tuple[str, str, str], set[str]] = defaultdict(set)
    excused: Counter[str] = Counter()
    for each in seen.creations:
        if not each.was_created or not each.owner or each.mode == "audit":
            continue
        if (each.namespace, each.record) in seen.forgotten:
            excused["the record was deleted"] += 1
        elif each.unrecorded:
            excused["not recorded, as the pod says"] += 1
        else:
            for image in filter(_DIGEST.search, each.images.values()):
                reference, _, digest = image.partition("@")
                digests[each.namespace, each.owner, reference].add(digest)
    wrong = [
        f"{namespace}: {owner} has {len(found)} digests of {reference}"
        for (namespace, owner, reference), found in digests.items()
        if len(found) > 1
    ]
    return Finding("every revision has one digest per image", len(digests), wrong, excused)


def refusals(seen: Seen) -> Finding:
    """None but what a fault excuses; in `pin` and `audit`, tagpin never refuses."""
    wrong, excused = [], Counter[str]()
    for each in seen.creations:
        if each.was_created:
            continue
        cause = cause_of(each)
        fault = _excuse(cause, each.began, each.ended, seen.episodes)
        if fault is None or (each.mode != "enforce" and cause is not Cause.API):
            wrong.append(f"{_told(each, seen)} in {each.mode}: {each.code} {each.message}")
        else:
            excused[f"{fault}: {cause}"] += 1
    question = "no pod is refused but for a fault of that time"
    return Finding(question, len(seen.creations), wrong, excused)


def unanswered(seen: Seen) -> Finding:
    """The API server answers always, but when it is away."""
    wrong, excused = [], Counter[str]()
    for each in seen.unanswered:
        fault = _excuse(Cause.API, each.began, each.ended, seen.episodes)
        if fault is None:
            wrong.append(f"{each.began - seen.began:.1f} s: {each.problem}")
        else:
            excused[str(fault)] += 1
    return Finding("the API server answers", len(seen.creations), wrong, excused)


def complaints(seen: Seen) -> Finding:
    """No replica logs a traceback, or asks to be reported; but one that was frozen was late."""
    wrong, excused = [], Counter[str]()
    for each in seen.complaints:
        cause = Cause.LATE if _CUT in each.text else Cause.OTHER
        fault = _excuse(cause, each.at, each.at, seen.episodes)
        if fault is None:
            wrong.append(f"{each.at - seen.began:.1f} s: {each.text}")
        else:
            excused[f"{fault}: {cause}"] += 1
    return Finding("no replica logs a fault of its own", len(seen.before), wrong, excused)


def leaks(seen: Seen) -> Finding:
    """Who lived through holds no more than it did at first, but for what the bounds allow."""
    wrong = [
        f"{replica}: {then:.0f} {what}, then {now:.0f}"
        for replica, before in seen.before.items()
        for what, then, now, bound in _compared(before, seen.after[replica])
        if now > then + bound
    ]
    return Finding("nothing leaks", len(seen.before), wrong)


def fits(before: Sample, after: Sample) -> bool:
    """Whether a replica holds no more than the bounds allow."""
    return all(now <= then + bound for _, then, now, bound in _compared(before, after))


def _compared(before: Sample, after: Sample) -> list[tuple[str, float, float, float]]:
    return [
        ("MiB of memory", before.memory, after.memory, MEMORY),
        ("open files", before.files, after.files, FILES),
        ("tasks", before.tasks, after.tasks, TASKS),
        ("connections to the API server", before.connections, after.connections, CONNECTIONS),
    ]


def cause_of(refused: Creation) -> Cause:
    """By what the API server said; where two images have two reasons, the worse one."""
    message = refused.message
    if "failed calling webhook" in message:
        return Cause.CALL
    if _SECOND_LINE.search(message):
        return Cause.OTHER  # tagpin let a tag pass
    if "denied the request" not in message:
        is_busy = refused.code in (403, 429) or refused.code >= 500
        return Cause.API if is_busy else Cause.OTHER
    if _OVERDUE in message:
        return Cause.LATE
    reasons = set(_REASONS.findall(message))
    if not reasons or not reasons <= {*_OF_REGISTRIES, "ledger"}:
        return Cause.OTHER
    return Cause.LEDGER if "ledger" in reasons else Cause.REGISTRY


def _excuse(cause: Cause, began: float, ended: float, episodes: Sequence[Episode]) -> Fault | None:
    """The fault that excuses something of that time."""
    for each in episodes:
        bound = BOUNDS[each.fault]
        if cause in bound.causes and ended >= each.began and began <= each.ended + bound.seconds:
            return each.fault
    return None


def _told(each: Creation, seen: Seen) -> str:
    """When it was, and what stood shortly before."""
    near = ", ".join(_near(each.began, seen.episodes))
    return f"{each.began - seen.began:.1f} s ({near}): {each.namespace}/{each.name}"


def _near(time: float, episodes: Sequence[Episode], seconds: float = 15) -> Iterator[str]:
    for each in episodes:
        if each.began <= time <= each.ended + seconds:
            yield f"{each.fault.name} {time - each.ended:+.1f}"
