"""Reference → digest: the cache in front of the registries, and what each tenant may ask."""

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from cachetools import TLRUCache
from yarl import URL

from tagpin.cache import Answer, Cache, Use
from tagpin.errors import Reason, Unresolvable
from tagpin.keychain import Candidate, Keychain, fingerprint
from tagpin.pinning import Resolution
from tagpin.pins import Source
from tagpin.reference import Digest, Reference, shortened
from tagpin.registry.client import RegistryClient, Throttled, Unasked
from tagpin.registry.conversation import resolve_tag
from tagpin.registry.flow import Failure, Registry
from tagpin.registry.limits import MAX_PLACES, Circuits
from tagpin.registry.manifest import Oddity
from tagpin.registry.transport import TransientFailure, Unconnected
from tagpin.slots import Release, Slots

log = logging.getLogger(__name__)

_SENTENCES = {
    Reason.NOT_FOUND: "{image} does not exist{where}",
    Reason.UNAUTHORIZED: "{host} refuses access to {image}, or it does not exist",
    Reason.RATE_LIMITED: "{host} limits our requests, so {image} has no digest now",
    Reason.TIMEOUT: "{host} did not answer in time, so {image} has no digest now",
    Reason.UNREACHABLE: "{host} is unreachable, so {image} has no digest now",
    Reason.TLS: "{host} does not prove its identity over TLS, so {image} is not resolved",
    Reason.BAD_ANSWER: "{host} gives no valid answer for {image}",
    Reason.UNSUPPORTED: "{image}{where} has a schema 1 manifest, which no runtime supports now",
    Reason.BLOCKED: "{host} leads to an address that is not allowed, so {image} is not resolved",
}
"""One sentence per reason, so that none says more than its reason does."""

_ERROR_AGES = {
    Reason.NOT_FOUND: 10.0,
    Reason.UNAUTHORIZED: 5.0,
    Reason.RATE_LIMITED: 2.0,
    Reason.TIMEOUT: 2.0,
    Reason.UNREACHABLE: 2.0,
}
_OTHER_ERROR_AGE = 5.0
MAX_ERROR_AGE = 60.0
"""For which a registry that wants to be left alone is."""
_DISPROOFS = frozenset({Reason.NOT_FOUND, Reason.UNAUTHORIZED})


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class _Key:
    """What an answer depends on: what one credential may see is not for another's eyes."""

    registry: Registry
    path: str
    tag: str
    identity: str


@dataclass(frozen=True, slots=True)
class _Known:
    digest: Digest
    resolved_at: datetime


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked, with which credentials, and for whom."""

    key: _Key
    ref: Reference
    candidates: tuple[Candidate, ...]
    namespace: str


class _Crowded(Failure):
    """The namespace asks too much at a time; the message is for the pod's author."""


class _Refused(Unasked):
    """What came of earlier questions of this namespace; it is nobody else's business."""

    def __init__(
        self, namespace: str, reason: Reason, detail: str, *, concealed: bool = False
    ) -> None:
        super().__init__(reason, detail, concealed=concealed)
        self.namespace = namespace


class RegistryResolver:
    """The Resolver of pinning: asks registries, and remembers.

    At most `cache_size` answers are kept. While a registry cannot say, its last answer stands in
    until it is `stale_if_error` seconds old. One question to a registry, its mirrors included,
    takes at most `load_timeout` seconds; it goes on when its caller is cancelled, since others may
    share it. `clock` is monotonic, `now` the wall clock (UTC). `observe` is told how the cache was
    used, and `remark` of each oddity of a registry, by its name; the log has those too.

    A namespace has at most `per_namespace` questions under way, and of one registry what the
    client says is a share. Whatever else it brings about is held against it alone: a registry that
    is silent about what it asks for, as one that asks others in its turn may be, or that limits us.

    A mirror is never told a pod's credentials, only what `mirror_candidates` finds for a reference
    that bears the mirror's name: they must be tagpin's own.
    """

    def __init__(
        self,
        client: RegistryClient,
        *,
        mirror_candidates: Callable[[Reference], tuple[Candidate, ...]] = lambda _: (),
        cache_size: int = 10_000,
        stale_if_error: float = 3600.0,
        load_timeout: float = 10.0,
        per_namespace: int = 64,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = _utc_now,
        observe: Callable[[Use], None] = lambda _: None,
        remark: Callable[[str, Oddity], None] = lambda *_: None,
    ) -> None:
        self._client = client
        self._remark = remark
        self._mirror_candidates = mirror_candidates
        self._load_timeout = load_timeout
        self._per_namespace = per_namespace
        self._clock = clock
        self._now = now
        self._fingerprint_key = secrets.token_bytes(32)
        # None of these ages has jitter: what they hold is renewed when a pod comes, not by a
        # clock, so nothing makes replicas ask in step. And an age is a promise.
        self._cache: Cache[_Key, _Known] = Cache(
            maxsize=cache_size,
            clock=clock,
            lifetime=lambda _: stale_if_error,
            error_age=_error_age,
            disproves=lambda error: isinstance(error, Failure) and error.reason in _DISPROOFS,
            observe=observe,
        )
        self._slots: Slots[tuple[str, URL | None]] = Slots()
        self._circuits: Circuits[tuple[str, URL]] = Circuits(
            clock=clock, draw=draw, opened=_log_opened, closed=_log_closed
        )
        self._throttled: TLRUCache[tuple[str, URL, str], tuple[float, _Refused]] = TLRUCache(
            MAX_PLACES, ttu=lambda _key, kept, _now: kept[0], timer=clock
        )

    async def resolve(
        self,
        ref: Reference,
        keychain: Keychain,
        *,
        namespace: str,
        max_age: float,
        within: float,
    ) -> Resolution:
        """Say which digest the tag of `ref` names, from an answer at most `max_age` seconds old.

        Raises Unresolvable, after `within` seconds at the latest. A reference that has a digest
        is its own answer (`given`).
        """
        if ref.digest is not None:
            return Resolution(ref.digest, Source.GIVEN, self._now())
        candidates = keychain.candidates(ref)
        question = _Question(self._key(ref, candidates), ref, candidates, namespace)
        try:
            answer = await self._answer(question, max_age, within)
        except Failure as error:
            failure = error
        else:
            source = Source.CACHE if answer.use is Use.HIT else Source.REGISTRY
            return Resolution(answer.value.digest, source, answer.value.resolved_at)
        if failure.reason.is_outage and (known := self._cache.stale(question.key)) is not None:
            return _stale(known)
        raise _unresolvable(failure, ref)

    def last_known(self, ref: Reference, keychain: Keychain) -> Resolution | None:
        """The last answer that is within `stale_if_error`, as `stale`, without asking anyone.

        For a caller who wants to know whether a record that came with a pod is true.
        """
        try:
            known = self._cache.peek(self._key(ref, keychain.candidates(ref)))
        except Unresolvable:
            return None
        return None if known is None else _stale(known)

    async def aclose(self) -> None:
        """Cancel the questions in flight."""
        await self._cache.aclose()

    def _key(self, ref: Reference, candidates: tuple[Candidate, ...]) -> _Key:
        try:
            registry = self._client.registry(ref.domain)
        except ValueError:
            host, image = shortened(ref.domain), shortened(ref.text)
            message = f"{host} is no host that could be connected to, in {image}"
            raise Unresolvable(Reason.INVALID_REFERENCE, message) from None
        if not self._client.permits(ref.domain):
            host, image = shortened(ref.domain), shortened(ref.text)
            message = f"{host} is no registry that tagpin may ask, so {image} is not resolved"
            raise Unresolvable(Reason.BLOCKED, message)
        identity = fingerprint(self._fingerprint_key, candidates)
        return _Key(registry, ref.path, ref.effective_tag, identity)

    async def _answer(self, question: _Question, max_age: float, within: float) -> Answer[_Known]:
        deadline = asyncio.get_running_loop().time() + within
        while True:
            release = await self._let_in(question, max_age, deadline)
            load = partial(self._load, question, release)
            try:
                async with asyncio.timeout_at(deadline):
                    return await self._cache.get(question.key, load, max_age=max_age)
            except _Refused as refused:
                if refused.namespace == question.namespace:
                    raise
                # We only shared the question of another namespace: now ask ourselves.
            except TimeoutError:
                # That an address swallows packets is news too, to whoever scans a network.
                concealed = not question.key.registry.listed
                detail = f"no answer within {within:g} s"
                raise Failure(Reason.TIMEOUT, detail, concealed=concealed) from None

    async def _let_in(self, question: _Question, max_age: float, deadline: float) -> Release:
        """The right to start a load, where one is needed.

        It is waited for outside the load, so that nobody who shares that waits with us.
        """
        key, namespace = question.key, question.namespace
        lanes = (
            # This one first: who waits here for one registry keeps nobody from others.
            ((namespace, key.registry.origin), self._client.share(key.registry)),
            ((namespace, None), self._per_namespace),
        )
        with ExitStack() as held:
            for lane, limit in lanes:
                if self._cache.serves(key, max_age=max_age):
                    break
                try:
                    async with asyncio.timeout_at(deadline):
                        held.callback(await self._slots.take(lane, limit))
                except TimeoutError:
                    raise _crowded(question, limit, everywhere=lane[1] is None) from None
            if self._cache.serves(key, max_age=max_age):
                return lambda: None
            return held.pop_all().close

    async def _load(self, question: _Question, release: Release) -> _Known:
        try:
            asked_at = self._now()
            return _Known(await self._ask_around(question), asked_at)
        except Failure as failure:
            # Nobody else hears what was answered, by whom: whoever creates pods hears the reason.
            level = logging.DEBUG if isinstance(failure, Unasked) else logging.INFO
            log.log(level, "%s: %s: %s", question.ref, failure.reason, failure)
            raise
        finally:
            release()

    async def _ask_around(self, question: _Question) -> Digest:
        """Ask the mirrors in order, then the registry, for which half of the time is kept."""
        loop = asyncio.get_running_loop()
        registry, ref = question.key.registry, question.ref
        seconds = self._client.time_for(registry, self._load_timeout)
        deadline = loop.time() + seconds
        mirrors = self._client.mirrors(ref.domain)
        for mirror in mirrors:
            path = f"{mirror.prefix}/{ref.path}" if mirror.prefix else ref.path
            candidates = self._mirror_candidates(replace(ref, domain=mirror.name, path=path))
            share = seconds / 2 / len(mirrors)
            try:
                return await self._converse(mirror, question, candidates, share)
            except Failure as failure:
                # Not even its "there is no such tag" is final: it may not have it yet.
                log.debug("%s: mirror %s: %s: %s", ref, mirror.name, failure.reason, failure)
        return await self._converse(registry, question, question.candidates, deadline - loop.time())

    async def _converse(
        self,
        registry: Registry,
        question: _Question,
        candidates: tuple[Candidate, ...],
        within: float,
    ) -> Digest:
        """Ask one registry, unless it gave this namespace reason to leave it alone."""
        whose = (question.namespace, registry.origin)
        throttle = (*whose, fingerprint(self._fingerprint_key, candidates))
        if (kept := self._throttled.get(throttle)) is not None:
            raise kept[1].with_traceback(None)
        if not self._circuits.admits(whose):
            raise _Refused(question.namespace, Reason.UNREACHABLE, _SILENT.format(*whose))
        since = self._clock()
        try:
            remark = partial(self._note, question.ref, registry)
            recall = partial(self._client.token, registry)
            flow = resolve_tag(registry, question.ref, candidates, remark, recall)
            digest = await self._client.run(flow, registry, within=within)
        except (Unasked, Unconnected):
            raise  # which has nothing to do with what is asked for
        except TransientFailure:
            self._circuits.failed(whose, since=since)
            raise
        except Failure as failure:
            self._circuits.answered(whose)
            if isinstance(failure, Throttled):
                until = self._clock() + min(failure.seconds, MAX_ERROR_AGE)
                refused = _Refused(
                    question.namespace, failure.reason, str(failure), concealed=failure.concealed
                )
                self._throttled[throttle] = (until, refused)
            raise
        self._circuits.answered(whose)
        return digest

    def _note(self, ref: Reference, registry: Registry, oddity: Oddity) -> None:
        log.warning("%s: a %s in the answer of %s", ref, oddity, registry.name)
        self._remark(registry.name, oddity)


_SILENT = "{1} was silent about what {0} asked for lately"


def _log_opened(whose: tuple[str, URL]) -> None:
    log.warning("namespace %s asks for what %s is silent about: it waits for a while", *whose)


def _log_closed(whose: tuple[str, URL]) -> None:
    log.info("namespace %s has answers of %s again", *whose)


def _crowded(question: _Question, limit: int, *, everywhere: bool) -> _Crowded:
    where = "" if everywhere else f" at {question.ref.domain}"
    message = f"namespace {question.namespace} has {limit} look-ups under way{where}"
    return _Crowded(Reason.TIMEOUT, f"{message}, so {shortened(question.ref.text)} had to wait")


def _stale(known: Answer[_Known]) -> Resolution:
    return Resolution(known.value.digest, Source.STALE, known.value.resolved_at)


def _error_age(error: Exception) -> float:
    """Seconds for which a failure is an answer: long enough for a burst, short for a push."""
    if not isinstance(error, Failure) or isinstance(error, Unasked):
        return 0.0
    if isinstance(error, Throttled):
        return min(error.seconds, MAX_ERROR_AGE)
    return _ERROR_AGES.get(error.reason, _OTHER_ERROR_AGE)


def _unresolvable(failure: Failure, ref: Reference) -> Unresolvable:
    """What the pod's author may know: of a hidden address, only that it cannot be reached."""
    if isinstance(failure, _Crowded):
        return Unresolvable(failure.reason, str(failure))
    reason = Reason.UNREACHABLE if failure.concealed else failure.reason
    where = "" if ref.text.startswith(ref.domain) else f" in {ref.domain}"
    message = _SENTENCES[reason].format(image=shortened(ref.text), host=ref.domain, where=where)
    return Unresolvable(reason, message)
