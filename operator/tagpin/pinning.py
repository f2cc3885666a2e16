"""The use case: every image of a pod becomes a digest, or says why not.

The Protocols that it needs are here too; `registry` and `cluster` implement them.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from tagpin import workload
from tagpin.errors import InvalidReference, Reason, Unresolvable
from tagpin.keychain import Keychain
from tagpin.ledger import Ledger, Page
from tagpin.pins import PINS_ANNOTATION, Failure, Pin, Source, from_annotation
from tagpin.policy import Decision, Rules, decide, leaves_alone
from tagpin.reference import Digest, Reference, shortened
from tagpin.revision import Kinds
from tagpin.slots import Release, Slots
from tagpin.verdict import Admission, Late, Result, Standing, Verdict, draw
from tagpin.workload import Image

MAX_IMAGES = 100
"""Images of one pod that are asked for: whoever creates a pod chooses how many."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """Which digest a tag names, who said so, and when the registry said it (UTC)."""

    digest: Digest
    source: Source
    resolved_at: datetime


@dataclass(frozen=True, slots=True)
class Deadline:
    """When everything about a pod must be over, by the event loop's clock."""

    at: float

    def remaining(self, share: float = 1.0) -> float:
        """Seconds until then, or a share of them; never less than none."""
        return max(0.0, share * (self.at - asyncio.get_running_loop().time()))


class Resolver(Protocol):
    """Turns a tag into a digest."""

    async def resolve(
        self, ref: Reference, keychain: Keychain, *, namespace: str, max_age: float, within: float
    ) -> Resolution:
        """Say in `within` seconds which digest `ref` names, from an answer `max_age` old at most.

        `namespace` is whose question it is: what one may ask at a time is limited.
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
class _Case:
    """What there is to go by in settling the images of one pod."""

    namespace: str
    claims: Mapping[str, Pin | Failure]
    """What the pod says of its images itself, by name."""
    page: Page
    access: Access
    arrived: datetime
    deadline: Deadline


class Pinner:
    """Answers admissions.

    Ages are in seconds. `freshness` is how old a registry's answer may be for a pod of a new
    revision, or one that is its own; `cache_ttl`, for an image that is new to a recorded one.
    `stale_if_error` is how old a recorded digest may be that stands in while a registry is down.
    `budget` is how long all images of a pod may take together, and the turn that is waited for:
    of one namespace, `per_namespace` pods are decided about at once. `now` is the wall clock (UTC).
    """

    def __init__(
        self,
        resolver: Resolver,
        pull_secrets: PullSecrets,
        ledger: Ledger,
        *,
        rules: Rules,
        kinds: Kinds,
        now: Callable[[], datetime],
        freshness: float = 5.0,
        cache_ttl: float = 60.0,
        stale_if_error: float = 3600.0,
        budget: float = 4.0,
        per_namespace: int = 32,
    ) -> None:
        self._resolver = resolver
        self._pull_secrets = pull_secrets
        self._ledger = ledger
        self._rules = rules
        self._kinds = kinds
        self._now = now
        self._freshness = freshness
        self._cache_ttl = cache_ttl
        self._stale_if_error = timedelta(seconds=stale_if_error)
        self._budget = budget
        self._per_namespace = per_namespace
        self._turns: Slots[str] = Slots()

    def known(self, admission: Admission) -> Verdict | None:
        """The answer where nobody is asked, and no turn waited for: to most pods there are."""
        if leaves_alone(
            admission.pod,
            mode=admission.mode,
            namespace=admission.namespace,
            groups=admission.groups,
            rules=self._rules,
        ):
            return Verdict(Result.UNTOUCHED)
        subjects = _subjects(admission)
        # A second pass, or somebody's claims; and of so many images none is to be read twice.
        if PINS_ANNOTATION in workload.annotations(admission.pod) or len(subjects) > MAX_IMAGES:
            return None
        settled, asked = self._parse(subjects, admission, {})
        if not asked:
            return draw(admission, settled)
        if (page := Page.recent(self._ledger, self._kinds, admission)) is None:
            return None
        recorded = _settled_by(page, asked, {})
        if len(recorded) < len(asked):
            return None
        return draw(admission, _in_order(subjects, settled | recorded), page.standing)

    async def admit(self, admission: Admission, *, budget: float | None = None) -> Verdict:
        """Decide about one pod within `budget` seconds; what can't be resolved is in the answer."""
        if (known := self.known(admission)) is not None:
            return known
        seconds = self._budget if budget is None else min(budget, self._budget)
        arrived, deadline = self._now(), Deadline(asyncio.get_running_loop().time() + seconds)
        claims = from_annotation(workload.annotations(admission.pod).get(PINS_ANNOTATION))
        subjects = _subjects(admission)
        settled, asked = self._parse(subjects, admission, claims)
        if not asked:
            return draw(admission, settled)
        try:
            release = await self._turn(admission.namespace, deadline)
        except TimeoutError:
            return self._crowded(admission, subjects, settled, asked)
        try:
            return await self._decide(
                admission, subjects, settled, asked, claims, arrived=arrived, deadline=deadline
            )
        finally:
            release()

    async def _turn(self, namespace: str, deadline: Deadline) -> Release:
        """Wait for the namespace's turn, if there are others; raises TimeoutError."""
        if self._turns.is_free(namespace):
            return await self._turns.take(namespace, self._per_namespace)
        # Whoever comes to their turn needs some time themselves.
        async with asyncio.timeout(deadline.remaining(0.8)):
            return await self._turns.take(namespace, self._per_namespace)

    def _crowded(
        self,
        admission: Admission,
        subjects: Sequence[Image],
        settled: Mapping[Image, Pin | Failure],
        asked: Mapping[Image, Reference],
    ) -> Verdict:
        """The answer where too many pods of the namespace were before this one."""
        before = f"namespace {admission.namespace} has {self._per_namespace} pods under way"
        late = {
            image: Failure(
                image.text,
                Reason.TIMEOUT,
                f"{before} (requestsPerNamespace), so {shortened(image.text)} had to wait",
            )
            if ref.digest is None
            else Pin(image.text, ref.digest, Source.GIVEN)
            for image, ref in asked.items()
        }
        return replace(draw(admission, _in_order(subjects, {**settled, **late})), late=Late.CROWDED)

    async def _decide(
        self,
        admission: Admission,
        subjects: Sequence[Image],
        settled: dict[Image, Pin | Failure],
        asked: Mapping[Image, Reference],
        claims: Mapping[str, Pin | Failure],
        *,
        arrived: datetime,
        deadline: Deadline,
    ) -> Verdict:
        """The answer where somebody must be asked for some images."""
        page = await self._open(admission, asked, claims, deadline)
        settled |= _settled_by(page, asked, claims)
        unsettled = {image: ref for image, ref in asked.items() if image not in settled}
        remarks: tuple[str, ...] = ()
        faults: tuple[Exception, ...] = ()
        if unsettled:
            access = await self._read_pull_secrets(admission, deadline)
            answers, faults = await self._settle_all(
                unsettled, _Case(admission.namespace, claims, page, access, arrived, deadline)
            )
            settled |= answers
            remarks = access.remarks
        if _will_run(admission, settled):
            settled |= await page.record(
                settled,
                # An earlier pass of this request had a fresh answer, and the whole budget.
                since=arrived - timedelta(seconds=self._freshness + self._budget),
                dry_run=admission.dry_run,
                within=deadline.remaining(),
            )
        # A record has nothing to do with digests that came with the pod, whatever it says of them.
        has_more = any(not _is_given(settled[image]) for image in asked)
        standing = page.standing if has_more else Standing()
        verdict = draw(admission, _in_order(subjects, settled), standing, remarks)
        return replace(verdict, faults=faults) if faults else verdict

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

    async def _open(
        self,
        admission: Admission,
        asked: Mapping[Image, Reference],
        claims: Mapping[str, Pin | Failure],
        deadline: Deadline,
    ) -> Page:
        """The ledger, at the page of the pod's revision."""
        texts = [
            image.text if ref.digest is None else claims[image.name].image
            for image, ref in asked.items()
        ]
        return await Page.open(
            self._ledger, self._kinds, admission, texts, remaining=deadline.remaining
        )

    async def _read_pull_secrets(self, admission: Admission, deadline: Deadline) -> Access:
        names = workload.pull_secret_names(workload.spec(admission.pod))
        account = workload.service_account_name(admission.pod)
        try:
            # Half of the time that there is: public images need no secrets.
            async with asyncio.timeout(deadline.remaining(0.5)):
                return await self._pull_secrets.read(admission.namespace, names, account)
        except TimeoutError:
            return Access(Keychain(), ("the pull secrets could not be read in time",))

    async def _settle_all(
        self, unsettled: Mapping[Image, Reference], case: _Case
    ) -> tuple[dict[Image, Pin | Failure], tuple[Exception, ...]]:
        """Find the digests of all images at once; faults of ours must not end the others."""
        answers = await asyncio.gather(
            *(self._settle(image, ref, case) for image, ref in unsettled.items()),
            return_exceptions=True,
        )
        settled: dict[Image, Pin | Failure] = {}
        for image, answer in zip(unsettled, answers, strict=True):
            if isinstance(answer, Exception):
                message = f"tagpin failed to resolve {shortened(image.text)}; its log says why"
                settled[image] = Failure(image.text, Reason.BAD_ANSWER, message)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                settled[image] = answer
        return settled, tuple(each for each in answers if isinstance(each, Exception))

    async def _settle(self, image: Image, ref: Reference, case: _Case) -> Pin | Failure:
        """Find the digest of one image."""
        claim, page, deadline = case.claims.get(image.name), case.page, case.deadline
        if ref.digest is not None:
            given = Pin(image.text, ref.digest, Source.GIVEN)
            if not isinstance(claim, Pin):
                return given
            tag = _without_digest(ref, claim)
            if claim.source in (Source.STALE, Source.LEDGER):  # a dry run says ledger too
                last = await self._last(image, tag, case)
                if last and (last.digest, last.resolved_at) == (claim.digest, claim.resolved_at):
                    return last
            mixed = page.is_mixed(image, tag)
            return self._confirmed(claim, tag, case.access, mixed=mixed) or given
        max_age = page.max_age(
            self._now(),
            arrived=case.arrived,
            freshness=self._freshness,
            cache_ttl=self._cache_ttl,
        )
        try:
            resolution = await self._resolver.resolve(
                # Some time must be left to record the answer.
                ref,
                case.access.keychain,
                namespace=case.namespace,
                max_age=max_age,
                within=deadline.remaining(0.85 if page.is_of_a_revision else 1.0),
            )
        except Unresolvable as error:
            answer: Pin | Failure = Failure(image.text, error.reason, str(error))
            is_outage = error.reason.is_outage
        else:
            pin = replace(_pin(image.text, resolution), mixed=page.is_mixed(image, ref))
            answer, is_outage = _kept(claim, pin), resolution.source is Source.STALE
        return (is_outage and await self._last(image, ref, case)) or answer

    async def _last(self, image: Image, ref: Reference, case: _Case) -> Pin | None:
        """What the workload ran last for an image, while its registry is down."""
        oldest = self._now() - self._stale_if_error
        within = case.deadline.remaining(0.5)
        last = await case.page.last_recorded(ref.text, since=oldest, within=within)
        return last and replace(last, mixed=case.page.is_mixed(image, ref))

    def _confirmed(self, claim: Pin, tag: Reference, access: Access, *, mixed: bool) -> Pin | None:
        """The claim, in our own words, if the cache knows that its tag named its digest."""
        known = self._resolver.last_known(tag, access.keychain)
        if known is None or known.digest != claim.digest:
            return None
        pin = replace(_pin(claim.image, known), mixed=mixed)
        return pin if claim == pin else _kept(claim, replace(pin, source=Source.CACHE))


def _in_order(
    subjects: Sequence[Image], settled: Mapping[Image, Pin | Failure]
) -> dict[Image, Pin | Failure]:
    """As the pod has its images; those that are left as written are not there."""
    return {image: settled[image] for image in subjects if image in settled}


def _settled_by(
    page: Page, asked: Mapping[Image, Reference], claims: Mapping[str, Pin | Failure]
) -> dict[Image, Pin | Failure]:
    """What the ledger says about the images, before anybody else is asked."""
    known: dict[Image, Pin | Failure] = {}
    for image, ref in asked.items():
        claim = claims.get(image.name)
        answer: Pin | Failure | None = None
        if ref.digest is None:
            answer = page.pin(image, ref)
        elif isinstance(claim, Pin):
            answer = page.confirmed(image, _without_digest(ref, claim), claim)
        if answer is not None:
            known[image] = answer
    return known


def _will_run(admission: Admission, settled: Mapping[Image, Pin | Failure]) -> bool:
    """Whether the pod is let in with its digests, as far as we are asked."""
    refused = admission.mode.refuses and any(isinstance(pin, Failure) for pin in settled.values())
    return admission.mode.writes_images and not refused


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
        and image.text == pin.pinned
    }


def _claims(claim: object, image: Image) -> bool:
    """Whether a record says how the digest of this image got behind a tag."""
    return isinstance(claim, Pin) and image.text == claim.pinned


def _is_given(pin: Pin | Failure) -> bool:
    return isinstance(pin, Pin) and pin.source is Source.GIVEN


def _without_digest(ref: Reference, claim: Pin) -> Reference:
    """The reference that a record says the author wrote."""
    return replace(ref, text=claim.image, digest=None)


def _pin(text: str, resolution: Resolution) -> Pin:
    resolved_at = resolution.resolved_at.replace(microsecond=0)  # as far as it is recorded
    return Pin(text, resolution.digest, resolution.source, resolved_at)


def _kept(claim: Pin | Failure | None, pin: Pin) -> Pin:
    """`pin`, unless the claim is what an earlier pass of ours wrote about the same answer."""
    if pin.source is Source.CACHE and claim == replace(pin, source=Source.REGISTRY):
        return replace(pin, source=Source.REGISTRY)
    return pin
