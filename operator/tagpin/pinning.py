"""The use case: every image of a pod becomes a digest, or says why not.

The Protocols that it needs are here too; `registry` and `cluster` implement them.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from tagpin import workload
from tagpin.errors import InvalidReference, Reason, Unresolvable
from tagpin.keychain import Keychain
from tagpin.pins import PINS_ANNOTATION, Failure, Pin, Source, from_annotation
from tagpin.policy import Decision, Rules, decide, leaves_alone
from tagpin.reference import Digest, Reference, shortened
from tagpin.verdict import Admission, Result, Verdict, draw
from tagpin.workload import Image

MAX_IMAGES = 100
"""Images of one pod that are asked for: whoever creates a pod chooses how many."""


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
        return replace(draw(admission, in_order, access.remarks), faults=tuple(faults))

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


def _pin(text: str, resolution: Resolution) -> Pin:
    resolved_at = resolution.resolved_at.replace(microsecond=0)  # as far as it is recorded
    return Pin(text, resolution.digest, resolution.source, resolved_at)


def _kept(claim: Pin | Failure | None, pin: Pin) -> Pin:
    """`pin`, unless the claim is what an earlier pass of ours wrote about the same answer."""
    if pin.source is Source.CACHE and claim == replace(pin, source=Source.REGISTRY):
        return replace(pin, source=Source.REGISTRY)
    return pin
