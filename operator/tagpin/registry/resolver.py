"""Reference → digest: the cache in front of the registries."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from tagpin.cache import Answer, Cache, Use
from tagpin.errors import Reason, Unresolvable
from tagpin.keychain import Candidate, Keychain, fingerprint
from tagpin.pinning import Resolution
from tagpin.pins import Source
from tagpin.reference import Digest, Reference, shortened
from tagpin.registry.client import RegistryClient
from tagpin.registry.conversation import resolve_tag
from tagpin.registry.flow import Failure, Registry

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


class RegistryResolver:
    """The Resolver of pinning: asks registries, and remembers.

    At most `cache_size` answers are kept. While a registry cannot say, its last answer stands in
    until it is `stale_if_error` seconds old. One question to a registry takes at most
    `load_timeout` seconds; it goes on when its caller is cancelled, since others may share it.
    `now` is the wall clock (UTC). `observe` is told how the cache was used.
    """

    def __init__(
        self,
        client: RegistryClient,
        *,
        cache_size: int = 10_000,
        stale_if_error: float = 3600.0,
        load_timeout: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = _utc_now,
        observe: Callable[[Use], None] = lambda _: None,
    ) -> None:
        self._client = client
        self._load_timeout = load_timeout
        self._now = now
        self._fingerprint_key = secrets.token_bytes(32)
        self._cache: Cache[_Key, _Known] = Cache(
            maxsize=cache_size,
            clock=clock,
            lifetime=lambda _: stale_if_error,
            error_age=_error_age,
            disproves=lambda error: isinstance(error, Failure) and error.reason in _DISPROOFS,
            observe=observe,
        )

    async def resolve(
        self,
        ref: Reference,
        keychain: Keychain,
        *,
        namespace: str,  # noqa: ARG002 - to be limited by
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
        key = self._key(ref, candidates)
        try:
            async with asyncio.timeout(within):
                answer = await self._cache.get(
                    key, partial(self._load, key.registry, ref, candidates), max_age=max_age
                )
        except TimeoutError:
            # That an address swallows packets is news too, to whoever scans a network.
            concealed = not key.registry.listed
            failure = Failure(Reason.TIMEOUT, f"no answer within {within:g} s", concealed=concealed)
        except Failure as error:
            failure = error
        else:
            source = Source.CACHE if answer.use is Use.HIT else Source.REGISTRY
            return Resolution(answer.value.digest, source, answer.value.resolved_at)
        log.debug("%s: %s: %s", ref, failure.reason, failure)
        if failure.reason.is_outage and (known := self._cache.stale(key)) is not None:
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
        identity = fingerprint(self._fingerprint_key, candidates)
        return _Key(registry, ref.path, ref.effective_tag, identity)

    async def _load(
        self, registry: Registry, ref: Reference, candidates: tuple[Candidate, ...]
    ) -> _Known:
        asked_at = self._now()
        flow = resolve_tag(registry, ref, candidates)
        digest = await self._client.run(flow, registry, within=self._load_timeout)
        return _Known(digest, asked_at)


def _stale(known: Answer[_Known]) -> Resolution:
    return Resolution(known.value.digest, Source.STALE, known.value.resolved_at)


def _error_age(error: Exception) -> float:
    """Seconds for which a failure is an answer: long enough for a burst, short for a push."""
    if not isinstance(error, Failure):
        return 0.0
    return _ERROR_AGES.get(error.reason, _OTHER_ERROR_AGE)


def _unresolvable(failure: Failure, ref: Reference) -> Unresolvable:
    """What the pod's author may know: of a hidden address, only that it cannot be reached."""
    reason = Reason.UNREACHABLE if failure.concealed else failure.reason
    where = "" if ref.text.startswith(ref.domain) else f" in {ref.domain}"
    message = _SENTENCES[reason].format(image=shortened(ref.text), host=ref.domain, where=where)
    return Unresolvable(reason, message)
