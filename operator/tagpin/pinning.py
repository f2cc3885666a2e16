"""The use case: every image of a pod becomes a digest, or says why not.

The Protocols that it needs are here too; `registry` and `cluster` implement them.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Protocol

from tagpin import workload
from tagpin.errors import InvalidReference, Reason, Unresolvable
from tagpin.keychain import Keychain
from tagpin.pins import (
    PINS_ANNOTATION,
    PREFIX,
    Failure,
    Pin,
    Source,
    from_annotation,
    operations,
    to_annotation,
)
from tagpin.policy import Decision, Mode, Rules, decide, leaves_alone
from tagpin.reference import Digest, Reference, shortened
from tagpin.workload import Image, Pod

MAX_IMAGES = 100
"""Images of one pod that are asked for: whoever creates a pod chooses how many."""
MAX_TOLD = 20
"""Images of one pod that messages name one by one."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """Which digest a tag names, who said so, and when the registry said it (UTC)."""

    digest: Digest
    source: Source
    resolved_at: datetime


class Resolver(Protocol):
    """Turns a tag into a digest."""

    async def resolve(
        self, ref: Reference, keychain: Keychain, *, max_age: float, within: float
    ) -> Resolution:
        """Say in `within` seconds which digest `ref` names, from an answer `max_age` old at most.

        Raises Unresolvable. While the registry is down, or too slow, the last known digest may
        come back, with source `stale`.
        """
        ...

    def last_known(self, ref: Reference, keychain: Keychain) -> Resolution | None:
        """What is remembered of `ref`, as `stale`, without asking anybody."""
        ...


@dataclass(frozen=True, slots=True)
class Access:
    """The credentials of a pod, and what was wrong with its pull secrets, by their names."""

    keychain: Keychain
    remarks: tuple[str, ...] = ()


class PullSecrets(Protocol):
    """Reads the pull secrets of a pod."""

    async def read(self, namespace: str, names: Sequence[str], service_account: str) -> Access:
        """Read the named Secrets; without names, those of the ServiceAccount.

        Never raises for what it can't read: a remark says so, as the kubelet's Event would.
        """
        ...


@dataclass(frozen=True, slots=True)
class Admission:
    """One pod on its way into the cluster, as the API server shows it."""

    mode: Mode
    operation: Literal["CREATE", "UPDATE"]
    namespace: str
    pod: Pod
    old: Pod = field(default_factory=dict)
    subresource: str = ""
    groups: tuple[str, ...] = ()
    """The groups of whoever sent the pod."""
    dry_run: bool = False


class Result(StrEnum):
    """What became of a pod: a closed set, for logs, metrics and the audit log."""

    UNTOUCHED = "untouched"
    PINNED = "pinned"
    UNPINNED = "unpinned"
    AUDITED = "audited"
    REFUSED = "refused"
    BROKEN = "broken"


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
    faults: tuple[Exception, ...] = ()
    """What must not have happened: for the log, and for whoever maintains tagpin."""

    @property
    def allowed(self) -> bool:
        """Whether the pod may enter."""
        return self.result is not Result.REFUSED


class Pinner:
    """Answers admissions.

    `freshness` is the age in seconds up to which a registry's answer serves another pod,
    `budget` how long all images of a pod may take together.
    """

    def __init__(
        self,
        resolver: Resolver,
        pull_secrets: PullSecrets,
        *,
        rules: Rules,
        freshness: float = 5.0,
        budget: float = 4.0,
    ) -> None:
        self._resolver = resolver
        self._pull_secrets = pull_secrets
        self._rules = rules
        self._freshness = freshness
        self._budget = budget

    async def admit(self, admission: Admission, *, budget: float | None = None) -> Verdict:
        """Decide about one pod within `budget` seconds; what can't be resolved is in the answer."""
        if leaves_alone(
            admission.pod,
            mode=admission.mode,
            namespace=admission.namespace,
            groups=admission.groups,
            rules=self._rules,
        ):
            return Verdict(Result.UNTOUCHED)
        seconds = self._budget if budget is None else min(budget, self._budget)
        deadline = asyncio.get_running_loop().time() + seconds
        claims = from_annotation(workload.annotations(admission.pod).get(PINS_ANNOTATION))
        subjects = _subjects(admission)
        settled, unsettled = self._parse(subjects, admission, claims)
        access, faults = Access(Keychain()), list[Exception]()
        if unsettled:
            access = await self._read_pull_secrets(admission, deadline)
            answers = await asyncio.gather(
                *(
                    self._settle(image, ref, claims.get(image.name), access, deadline)
                    for image, ref in unsettled.items()
                ),
                return_exceptions=True,
            )
            for image, answer in zip(unsettled, answers, strict=True):
                if isinstance(answer, Exception):  # a fault of ours: it must not end the others
                    faults.append(answer)
                    message = f"tagpin failed to resolve {shortened(image.text)}; its log says why"
                    settled[image] = Failure(image.text, Reason.BAD_ANSWER, message)
                elif isinstance(answer, BaseException):
                    raise answer
                else:
                    settled[image] = answer
        in_order = {image: settled[image] for image in subjects if image in settled}
        return replace(_verdict(admission, in_order, access.remarks), faults=tuple(faults))

    def _parse(
        self,
        subjects: Sequence[Image],
        admission: Admission,
        claims: Mapping[str, Pin | Failure],
    ) -> tuple[dict[Image, Pin | Failure], dict[Image, Reference]]:
        """What is known without asking anybody, and what must be asked for."""
        settled: dict[Image, Pin | Failure] = {}
        unsettled: dict[Image, Reference] = {}
        restorable = _restorable(admission)
        for image in subjects:
            try:
                ref = Reference.parse(image.text)
            except InvalidReference as error:
                settled[image] = Failure(image.text, error.reason, str(error))
                continue
            if decide(ref, self._rules) is Decision.LEAVE:
                continue
            if ref.digest is not None and not _claims(claims.get(image.name), image):
                settled[image] = Pin(image.text, ref.digest, Source.GIVEN)
            elif (
                ref.digest is None
                and (restored := restorable.get(image.pointer))
                and restored.image == image.text
            ):
                settled[image] = restored
            elif len(unsettled) == MAX_IMAGES:
                message = f"only {MAX_IMAGES} images of a pod are resolved"
                settled[image] = Failure(image.text, Reason.UNSUPPORTED, message)
            else:
                unsettled[image] = ref
        return settled, unsettled

    async def _read_pull_secrets(self, admission: Admission, deadline: float) -> Access:
        names = workload.pull_secret_names(workload.spec(admission.pod))
        account = workload.service_account_name(admission.pod)
        try:
            # Half of the time that there is: public images need no secrets.
            async with asyncio.timeout((deadline - asyncio.get_running_loop().time()) / 2):
                return await self._pull_secrets.read(admission.namespace, names, account)
        except TimeoutError:
            return Access(Keychain(), ("the pull secrets could not be read in time",))

    async def _settle(
        self,
        image: Image,
        ref: Reference,
        claim: Pin | Failure | None,
        access: Access,
        deadline: float,
    ) -> Pin | Failure:
        """Find the digest of one image. A failure of one must not end the others."""
        if ref.digest is not None:
            return self._confirmed(claim, access) or Pin(image.text, ref.digest, Source.GIVEN)
        within = deadline - asyncio.get_running_loop().time()
        try:
            resolution = await self._resolver.resolve(
                ref, access.keychain, max_age=self._freshness, within=within
            )
        except Unresolvable as error:
            return Failure(image.text, error.reason, str(error))
        return _kept(claim, _pin(image.text, resolution))

    def _confirmed(self, claim: Pin | Failure | None, access: Access) -> Pin | None:
        """The claim, in our own words, if the cache knows that its tag named its digest."""
        if not isinstance(claim, Pin):
            return None
        try:
            ref = Reference.parse(claim.image)
        except InvalidReference:
            return None
        known = self._resolver.last_known(ref, access.keychain)
        if known is None or known.digest != claim.digest:
            return None
        pin = _pin(claim.image, known)
        return pin if claim == pin else _kept(claim, replace(pin, source=Source.CACHE))


def broken(mode: Mode) -> Verdict:
    """The answer where tagpin itself failed: the mode decides, as for an image."""
    message = "tagpin failed to decide about this pod; its log says why"
    result = Result.REFUSED if mode.refuses else Result.BROKEN
    audit = {"mode": mode.value, "result": result.value}
    if mode.refuses:
        return Verdict(result, message=message, notices=(message,), audit=audit)
    notice = f"{message}; it runs as written"
    return Verdict(result, warnings=(notice,), notices=(notice,), audit=audit)


def _subjects(admission: Admission) -> tuple[Image, ...]:
    """The images that this call is about: an unrelated update must never restart a container."""
    if admission.operation == "UPDATE":
        return workload.changed_images(admission.pod, admission.old)
    return workload.images(admission.pod)


def _restorable(admission: Admission) -> dict[str, Pin]:
    """Which pins an image gets back that is put back to how its author wrote it, by pointer.

    Only those that the pod runs now: users can write the record, but not the past.
    """
    if admission.operation != "UPDATE":
        return {}
    record = from_annotation(workload.annotations(admission.old).get(PINS_ANNOTATION))
    return {
        image.pointer: pin
        for image in workload.images(admission.old)
        if isinstance(pin := record.get(image.name), Pin)
        and pin.source is not Source.GIVEN
        and image.text == _pinned_text(pin)
    }


def _claims(claim: object, image: Image) -> bool:
    """Whether a record says how the digest of this image got behind a tag."""
    return isinstance(claim, Pin) and image.text == _pinned_text(claim)


def _pin(text: str, resolution: Resolution) -> Pin:
    resolved_at = resolution.resolved_at.replace(microsecond=0)  # as far as it is recorded
    return Pin(text, resolution.digest, resolution.source, resolved_at)


def _kept(claim: Pin | Failure | None, pin: Pin) -> Pin:
    """`pin`, unless the claim is what an earlier pass of ours wrote about the same answer."""
    if pin.source is Source.CACHE and claim == replace(pin, source=Source.REGISTRY):
        return replace(pin, source=Source.REGISTRY)
    return pin


def _pinned_text(pin: Pin) -> str:
    return f"{pin.image}@{pin.digest}"


def _verdict(
    admission: Admission, settled: Mapping[Image, Pin | Failure], remarks: tuple[str, ...]
) -> Verdict:
    """Everything that there is to say about the images of one pod."""
    mode = admission.mode
    failures = {image: pin for image, pin in settled.items() if isinstance(pin, Failure)}
    pins = {image.name: pin for image, pin in settled.items()}
    if failures and mode.refuses:
        message = _refusal(failures, remarks)
        audit = _audit(admission, pins, Result.REFUSED)
        return Verdict(Result.REFUSED, pins, message=message, notices=(message,), audit=audit)
    images = {
        image.pointer: _pinned_text(pin)
        for image, pin in settled.items()
        if mode.writes_images
        and isinstance(pin, Pin)
        and pin.source is not Source.GIVEN
        and image.text == pin.image
    }
    if mode is Mode.AUDIT:
        result = Result.AUDITED
    elif failures:
        result = Result.UNPINNED
    else:
        result = Result.PINNED if images else Result.UNTOUCHED
    notices = _bounded(list(_notices(mode, settled))) + (remarks if failures else ())
    return Verdict(
        result,
        pins,
        operations=operations(admission.pod, images, _annotations(admission, pins)),
        warnings=notices + _bounded(list(_previews(mode, settled))),
        notices=notices,
        facts=_bounded(list(_facts(admission, settled))),
        audit=_audit(admission, pins, result),
    )


def _annotations(admission: Admission, pins: Mapping[str, Pin | Failure]) -> dict[str, str | None]:
    """What must become of every `tagpin.dev/` annotation.

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
        wanted[PINS_ANNOTATION] = to_annotation(record)
    return wanted


def _audit(
    admission: Admission, pins: Mapping[str, Pin | Failure], result: Result
) -> dict[str, str]:
    """What this call did, for the cluster's audit log.

    The API server never overwrites an audit annotation, so a second pass has keys of its own.
    """
    audit = {"mode": admission.mode.value, "result": result.value}
    if pins:
        audit["pins"] = to_annotation(pins)
    if revision := workload.revision(admission.pod):
        audit["revision"] = str(revision)
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
