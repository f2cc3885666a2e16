"""The answer about one pod, drawn from what each of its images was settled to."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

from tagpin import workload
from tagpin.pins import (
    PINS_ANNOTATION,
    PREFIX,
    REVISION_ANNOTATION,
    UNRECORDED_ANNOTATION,
    Failure,
    Pin,
    Source,
    from_annotation,
    operations,
    to_annotation,
)
from tagpin.policy import Mode
from tagpin.reference import shortened
from tagpin.revision import Revision
from tagpin.workload import Image, Pod

MAX_TOLD = 20
"""Images of one pod that messages name one by one."""


@dataclass(frozen=True, slots=True)
class Admission:
    """One pod on its way into the cluster, as the API server shows it."""

    mode: Mode
    operation: Literal["CREATE", "UPDATE"]
    namespace: str
    pod: Pod
    old: Pod = field(default_factory=dict)
    subresource: str = ""
    user: str = ""
    """Whoever sent the pod."""
    groups: tuple[str, ...] = ()
    """Their groups."""
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """How a pod stands to the ledger."""

    revision: Revision | None = None
    """Its revision, where the cluster bears it out."""
    is_recorded: bool = False
    """Whether there is an ImagePin of the revision."""
    unrecorded: str = ""
    """Why the record has nothing to do with the pod, or lacks some of its pins."""
    is_fault: bool = False
    """Whether somebody should look at that."""

    @property
    def notice(self) -> str:
        """What to tell people, if anything."""
        if not self.is_fault:
            return ""
        return f"{self.unrecorded}: the next pod may get another digest"


class Result(StrEnum):
    """What became of a pod: a closed set, for logs, metrics and the audit log."""

    UNTOUCHED = "untouched"
    PINNED = "pinned"
    UNPINNED = "unpinned"
    AUDITED = "audited"
    REFUSED = "refused"
    BROKEN = "broken"


class Late(StrEnum):
    """Why a pod was not decided about in time: a closed set, for metrics."""

    CROWDED = "crowded"
    """Too many pods of its namespace were before it."""
    OVERDUE = "overdue"
    """The decision took longer than all its parts may."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer: what to write, what to say, and to whom."""

    result: Result
    pins: Mapping[str, Pin | Failure] = field(default_factory=dict)
    """What was done about the images that this call was about, by name."""
    operations: Sequence[Mapping[str, Any]] = ()
    """RFC 6902 operations; empty where the pod is refused."""
    message: str = ""
    """Why the pod is refused, naming every bad image."""
    warnings: tuple[str, ...] = ()
    """For whoever runs kubectl."""
    notices: tuple[str, ...] = ()
    """What is wrong, for an Event on the workload; nobody sees the warnings of its pods."""
    facts: tuple[str, ...] = ()
    """What is recorded by an Event on the pod, since it is recorded nowhere else."""
    audit: Mapping[str, str] = field(default_factory=dict)
    """For the cluster's audit log."""
    standing: Standing = Standing()
    late: Late | None = None
    faults: tuple[Exception, ...] = ()
    """What must not have happened: for the log, and for whoever maintains tagpin."""

    @property
    def allowed(self) -> bool:
        """Whether the pod may enter."""
        return self.result is not Result.REFUSED


def broken(mode: Mode) -> Verdict:
    """The answer where tagpin itself failed: the mode decides, as for an image."""
    return _undecided(mode, "tagpin failed to decide about this pod; its log says why")


def overdue(mode: Mode) -> Verdict:
    """The answer where there is none yet, and no time left."""
    verdict = _undecided(mode, "the pod's images could not be pinned in time")
    return replace(verdict, late=Late.OVERDUE)


def _undecided(mode: Mode, message: str) -> Verdict:
    result = Result.REFUSED if mode.refuses else Result.BROKEN
    audit = {"mode": mode.value, "result": result.value}
    if mode.refuses:
        return Verdict(result, message=message, notices=(message,), audit=audit)
    notice = f"{message}; it runs as written"
    return Verdict(result, warnings=(notice,), notices=(notice,), audit=audit)


def draw(
    admission: Admission,
    settled: Mapping[Image, Pin | Failure],
    standing: Standing = Standing(),
    remarks: tuple[str, ...] = (),
) -> Verdict:
    """Everything that there is to say about the images of one pod, as each was settled.

    `remarks` say what was wrong with its pull secrets.
    """
    mode = admission.mode
    failures = {image: pin for image, pin in settled.items() if isinstance(pin, Failure)}
    pins = {image.name: pin for image, pin in settled.items()}
    if failures and mode.refuses:
        message = _refusal(failures, remarks)
        return Verdict(
            Result.REFUSED,
            pins,
            message=message,
            notices=(message,),
            audit=_audit(admission, pins, Result.REFUSED, standing, to_annotation(pins)),
            standing=standing,
        )
    images = _images(mode, settled)
    if mode is Mode.AUDIT:
        result = Result.AUDITED
    elif failures:
        result = Result.UNPINNED
    else:
        result = Result.PINNED if images else Result.UNTOUCHED
    text = to_annotation(pins)
    notices = _bounded(list(_notices(mode, settled))) + (remarks if failures else ())
    return Verdict(
        result,
        pins,
        operations=operations(admission.pod, images, _annotations(admission, pins, standing, text)),
        warnings=(
            *notices,
            *([standing.notice] if standing.notice else []),
            *_bounded(list(_previews(mode, settled))),
        ),
        notices=notices,
        facts=_bounded(list(_facts(admission, settled))),
        audit=_audit(admission, pins, result, standing, text),
        standing=standing,
    )


def _images(mode: Mode, settled: Mapping[Image, Pin | Failure]) -> dict[str, str]:
    """What to write, by pointer."""
    return {
        image.pointer: pin.pinned
        for image, pin in settled.items()
        if mode.writes_images
        and isinstance(pin, Pin)
        and pin.source is not Source.GIVEN
        and image.text == pin.image
    }


def _annotations(
    admission: Admission, pins: Mapping[str, Pin | Failure], standing: Standing, text: str
) -> dict[str, str | None]:
    """What must become of every `tagpin.dev/` annotation; `text` is that of the pins alone.

    On UPDATE those of the old pod stand; on CREATE nothing that came along does. The API
    server drops changes of metadata on `pods/ephemeralcontainers`.
    """
    if admission.subresource:
        return {}
    old = workload.annotations(admission.old)
    ours = [
        key for key in (*workload.annotations(admission.pod), *old) if str(key).startswith(PREFIX)
    ]
    wanted: dict[str, str | None] = {key: old.get(key) for key in ours}
    before = from_annotation(old.get(PINS_ANNOTATION))
    record = {**before, **pins}
    if record != before:  # or a record that another version wrote stays as it is
        wanted[PINS_ANNOTATION] = to_annotation(record) if before else text
    if standing.revision is not None and standing.is_recorded:
        wanted[REVISION_ANNOTATION] = standing.revision.record_name
    if standing.unrecorded:
        wanted[UNRECORDED_ANNOTATION] = standing.unrecorded
    return wanted


def _audit(
    admission: Admission,
    pins: Mapping[str, Pin | Failure],
    result: Result,
    standing: Standing,
    text: str,
) -> dict[str, str]:
    """What this call did, for the cluster's audit log.

    The API server never overwrites an audit annotation, so a second pass has keys of its own.
    """
    audit = {"mode": admission.mode.value, "result": result.value}
    if pins:
        audit["pins"] = text
    if standing.revision is not None:
        audit["revision"] = standing.revision.record_name
    if standing.unrecorded:
        audit["unrecorded"] = standing.unrecorded
    if _is_reinvoked(admission, pins):
        return {f"reinvoked-{key}": value for key, value in audit.items()}
    return audit


def _is_reinvoked(admission: Admission, pins: Mapping[str, Pin | Failure]) -> bool:
    """Whether the pod brings the record of an earlier pass of this very request."""
    record = workload.annotations(admission.pod).get(PINS_ANNOTATION)
    if record == workload.annotations(admission.old).get(PINS_ANNOTATION):
        return False
    claims = from_annotation(record)
    return any(
        name in claims and claims[name].to_json() == pin.to_json() for name, pin in pins.items()
    )


def _refusal(failures: Mapping[Image, Failure], remarks: tuple[str, ...]) -> str:
    count = "1 image" if len(failures) == 1 else f"{len(failures)} images"
    reasons = [_reproach(image, failure) for image, failure in failures.items()]
    first, *others = _bounded(reasons)
    return "; ".join([f"{count} cannot be pinned: {first}", *others, *remarks])


def _notices(mode: Mode, settled: Mapping[Image, Pin | Failure]) -> Iterator[str]:
    """What is not as it should be, for the user and for the workload."""
    for image, pin in settled.items():
        if isinstance(pin, Failure):
            outcome = "runs as written, unpinned" if mode.writes_images else "could not be pinned"
            yield f"{_reproach(image, pin)}: it {outcome}"
        elif pin.source is Source.STALE:
            yield (
                f"{image.place}: the registry of {shortened(pin.image)} is down: "
                f"the digest known since {pin.to_json()['resolvedAt']} is used"
            )
        elif pin.mixed and pin.source is not Source.LEDGER:
            yield (
                f"{image.place}: pods of the same revision run {shortened(pin.image)} with "
                f"different digests; it was resolved anew"
            )


def _facts(admission: Admission, settled: Mapping[Image, Pin | Failure]) -> Iterator[str]:
    """What only an Event can tell: the API server keeps no annotations for `kubectl debug`."""
    if admission.subresource and admission.mode.writes_images:
        for image, pin in settled.items():
            if isinstance(pin, Pin):
                yield f"{image.place}: {shortened(pin.image)} runs as {pin.digest} ({pin.source})"


def _previews(mode: Mode, settled: Mapping[Image, Pin | Failure]) -> Iterator[str]:
    """What `audit` would have done."""
    if mode is Mode.AUDIT:
        for image, pin in settled.items():
            if isinstance(pin, Pin) and pin.source is not Source.GIVEN:
                yield f"{image.place}: {shortened(pin.image)} would be pinned to {pin.digest}"


def _bounded(messages: Sequence[str]) -> tuple[str, ...]:
    """The first of them, and how many more there are."""
    more = len(messages) - MAX_TOLD
    return (*messages[:MAX_TOLD], *([f"and {more} more"] if more > 0 else []))


def _reproach(image: Image, failure: Failure) -> str:
    return f"{image.place}: {failure.message} ({failure.reason})"
