"""Carries out the conversations of flow: logs in, tries again, keeps to time and limits."""

import asyncio
import logging
import math
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Protocol, Self, TypeAlias, TypeVar

from aiohttp.abc import AbstractResolver
from cachetools import LRUCache
from yarl import URL

from tagpin.cache import Cache
from tagpin.errors import Reason, Unobtainable
from tagpin.keychain import Candidate, Credential, Identity, fingerprint
from tagpin.registry import guard
from tagpin.registry.flow import (
    HTTPS_PORT,
    Failure,
    Flow,
    Login,
    Obtain,
    Registry,
    Request,
    Response,
    Token,
)
from tagpin.registry.limits import MAX_PLACES, Circuits, Pace, parse_retry_after
from tagpin.registry.login import fetch_token
from tagpin.registry.places import ANY_REGISTRY, Places, RegistryPolicy, RegistrySettings, place
from tagpin.registry.proxies import DIRECTLY, Proxies
from tagpin.registry.transport import Exchange, TransientFailure, Transport, Unconnected, Visit
from tagpin.slots import Slots

T = TypeVar("T")

log = logging.getLogger(__name__)

MAX_LOGINS = 1000
_RETRIED = frozenset({408, 429, 499, 500, 502, 503, 504, 522})
_THROTTLING = {429: Reason.RATE_LIMITED, 503: Reason.UNREACHABLE}
"""Statuses that can say when to come back."""

_Place: TypeAlias = tuple[str, int]
_Route: TypeAlias = tuple[_Place, _Place]
"""Where a request leads, and whose registry leads it there.

Limits are by both: a stranger's registry can name any place, and must not close it to others.
"""


class Throttled(Failure):
    """The registry answered, and wants to be left alone for `seconds`."""

    def __init__(self, reason: Reason, detail: str, seconds: float) -> None:
        super().__init__(reason, detail)
        self.seconds = seconds


class Unasked(Failure):
    """Limits of our own were in the way, or our time was over before somebody was asked."""


class Identities(Protocol):
    """Where the credentials come from that no docker config holds."""

    async def obtain(self, identity: Identity) -> Credential:
        """The credential of an identity now; Unobtainable says why there is none."""
        ...


class _NoIdentities:
    async def obtain(self, identity: Identity) -> Credential:
        raise Unobtainable(f"nobody knows how to become {identity.provider}")


def _pause() -> float:
    """Seconds before a retry: full jitter, so that replicas don't knock in step."""
    return random.uniform(0.1, 0.4)  # noqa: S311 - spreads load, protects nothing


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class _Talk:
    """One conversation: when it must be over, by the event loop's clock, and who is silent."""

    visit: Visit
    deadline: float
    awaits: bool = False
    """Whether somebody owes us an answer."""

    @property
    def remaining(self) -> float:
        return self.deadline - asyncio.get_running_loop().time()


class RegistryClient:
    """Runs conversations with registries; use as an async context manager.

    `registries` are those that the operator listed; all others are spoken to over https, at
    addresses that `rules` allow. `policy` says which of them references may name. `proxies` lead
    to those that no registry has another word for. `ca` is PEM text trusted everywhere besides the
    system's authorities. `names` resolves host names and stays the caller's to close. `identities`
    gives the credentials that candidates only name. Times are seconds: `connect_timeout` per
    connection, `read_timeout` between two reads. `per_host` bounds the requests under way to a
    host, of each registry that leads there; `total` the connections of each trust class: those
    that were listed have connections of their own, so that no stranger's registry can use them up.
    A request is retried `retries` times where that can help, after a pause drawn from `jitter`. A
    place that cannot be connected to is left alone for a while, as Circuits does; `draw` is for
    its jitter. `clock` is monotonic, `now` the wall clock (UTC). `observe` is told of every
    exchange.
    """

    def __init__(
        self,
        *,
        registries: Iterable[RegistrySettings] = (),
        rules: guard.AddressRules = guard.DEFAULT_RULES,
        policy: RegistryPolicy = ANY_REGISTRY,
        proxies: Proxies = DIRECTLY,
        ca: str | None = None,
        names: AbstractResolver | None = None,
        identities: Identities | None = None,
        connect_timeout: float = 3.0,
        read_timeout: float = 5.0,
        per_host: int = 32,
        total: int = 1024,
        retries: int = 2,
        jitter: Callable[[], float] = _pause,
        draw: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = _utc_now,
        observe: Callable[[Exchange], None] = lambda _: None,
    ) -> None:
        self._places = Places(registries)
        self._policy = policy
        self._rules = rules
        self._transport = Transport(
            self._places,
            rules=rules,
            proxies=proxies,
            ca=ca,
            names=names,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            total=total,
            clock=clock,
            observe=observe,
        )
        self._identities = identities or _NoIdentities()
        self._longest_login = 2 * (connect_timeout + read_timeout)
        self._per_host = per_host
        self._retries = retries
        self._jitter = jitter
        self._sleep = sleep
        self._clock = clock
        self._now = now
        self._circuits: Circuits[_Route] = Circuits(
            clock=clock, draw=draw, opened=_log_opened, closed=_log_closed
        )
        self._connections: Slots[_Route] = Slots()
        self._paces: LRUCache[_Place, Pace] = LRUCache(MAX_PLACES)
        self._foreign: LRUCache[tuple[str, str | None], None] = LRUCache(MAX_PLACES)
        self._key = secrets.token_bytes(32)
        self._tokens: Cache[object, Token] = Cache(
            maxsize=MAX_LOGINS,
            clock=clock,
            lifetime=lambda token: token.lifetime,
            error_age=_token_error_age,
        )
        self._logins: LRUCache[tuple[URL, str, str], object] = LRUCache(MAX_LOGINS)
        """By registry, scope and credential: which of the tokens it was that was got last."""
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._transport)
        self._stack.push_async_callback(self._tokens.aclose)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def registry(self, domain: str) -> Registry:
        """The registry that references name `domain`; ValueError where that is no place."""
        return self._places.registry(domain)

    def permits(self, domain: str) -> bool:
        """Whether the operator lets references name `domain`; whoever asks must heed it."""
        return self._policy.permits(domain)

    def mirrors(self, domain: str) -> tuple[Registry, ...]:
        """The registries to ask before that one, in this order."""
        return self._places.mirrors(domain)

    def share(self, registry: Registry) -> int:
        """How many conversations with `registry` one tenant may have at a time.

        Some connections are left for others; and where there is a rate, its turns of one second.
        """
        settings = self._places.settings(registry.origin)
        share = self._per_host_at(settings) * 3 // 4
        if settings is not None and settings.requests_per_second is not None:
            share = min(share, math.floor(settings.requests_per_second))
        return max(1, share)

    def time_for(self, registry: Registry, seconds: float) -> float:
        """How long a question to `registry` may take, of so many seconds."""
        settings = self._places.settings(registry.origin)
        longest = settings.timeout if settings is not None else None
        return seconds if longest is None else min(seconds, longest)

    def token(self, registry: Registry, scope: str, candidate: Candidate | None) -> str | None:
        """The token got last for this very scope and credential, while it serves."""
        if isinstance(candidate, Identity):
            return None  # what credential it has now is only known by asking
        who = fingerprint(self._key, (candidate,) if candidate else ())
        key = self._logins.get((registry.origin, scope, who))
        known = None if key is None else self._tokens.peek(key)
        return None if known is None else known.value.value

    def open_circuits(self) -> tuple[str, ...]:
        """The places that are not asked now, since nobody could connect to them lately."""
        return tuple(_shown(where) for where, _ in self._circuits.open())

    async def run(self, flow: Flow[T], registry: Registry, *, within: float) -> T:
        """Carry out a conversation that `registry` is the subject of, in `within` seconds.

        Raises Failure: a TransientFailure where somebody was silent, Throttled where they want to
        be left alone, Unasked where no request went out. It is `concealed` where an address took
        part that is not public, and that no place has which the operator listed.
        """
        return await self._visit(flow, Visit(registry, self._rules), within)

    async def _visit(self, flow: Flow[T], visit: Visit, within: float) -> T:
        within = self.time_for(visit.registry, within)
        talk = _Talk(visit, asyncio.get_running_loop().time() + within)
        failure: Failure
        try:
            async with asyncio.timeout_at(talk.deadline):
                return await self._drive(flow, talk)
        except TimeoutError:
            # A login may be shared with another visit, which alone knows its addresses.
            concealed = visit.conceals or visit.logs_in_at_a_stranger
            kind = TransientFailure if talk.awaits else Unasked
            failure = kind(Reason.TIMEOUT, f"no answer within {within:g} s", concealed=concealed)
        except Failure as caught:
            # Others may share the failure of a login: they hide no less for it.
            caught.concealed = caught.concealed or visit.conceals
            failure = caught
        # It is remembered for a while; the frames that it came through hold all that was answered.
        failure.__cause__ = failure.__context__ = None
        raise failure.with_traceback(None)

    async def _drive(self, flow: Flow[T], talk: _Talk) -> T:
        proceed = partial(next, flow)
        try:
            while True:
                step = proceed()
                reply: Response | str | Credential
                try:
                    match step:
                        case Login():
                            reply = await self._log_in(step, talk)
                        case Obtain():
                            reply = await self._obtain(step)
                        case _:
                            reply = await self._ask(step, talk)
                except Failure as failure:
                    talk.visit.logs_in_at_a_stranger = talk.awaits = False
                    proceed = partial(flow.throw, failure)
                else:
                    proceed = partial(flow.send, reply)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            flow.close()

    async def _obtain(self, step: Obtain) -> Credential:
        try:
            return await self._identities.obtain(step.identity)
        except Unobtainable as error:
            detail = f"there is no credential of {step.identity.provider} now"
            # Only a refusal speaks against what was known before.
            reason = Reason.UNREACHABLE if error.is_outage else Reason.UNAUTHORIZED
            raise Failure(reason, detail) from error

    async def _log_in(self, login: Login, talk: _Talk) -> str:
        """A token that may be used by whoever holds the same credential, and nobody else."""
        visit = talk.visit
        who = fingerprint(self._key, (login.credential,) if login.credential else ())
        key = (login.registry.origin, login.realm, login.service, login.scope, who)
        known = self._tokens.peek(key)
        if known is not None and known.value.value == login.refused:
            self._tokens.forget(key)

        async def load() -> Token:
            if login.realm.host != login.registry.origin.host:
                self._note_foreign(login.registry.name, login.realm.host)
            inner = Visit(login.registry, self._rules, reached_public=visit.reached_public)
            return await self._visit(fetch_token(login), inner, self._longest_login)

        trusted = self._transport.trusted(login.realm, visit, derived=login.derived)
        visit.logs_in_at_a_stranger, talk.awaits = trusted is None, True
        token = (await self._tokens.get(key, load)).value
        self._logins[login.registry.origin, login.scope, who] = key
        visit.logs_in_at_a_stranger = talk.awaits = False
        return token.value

    def _note_foreign(self, registry: str, host: str | None) -> None:
        """Say once that a registry has its tokens from elsewhere."""
        if (registry, host) not in self._foreign:
            self._foreign[registry, host] = None
            log.info("%s has its tokens from %s", registry, host)

    async def _ask(self, request: Request, talk: _Talk) -> Response:
        """The answer to a request, which is repeated where that can help and there is time."""
        retries, previous = self._retries, 0
        while True:
            pause = self._jitter()
            outcome: Response | TransientFailure
            try:
                outcome = await self._attempt(request, talk)
            except TransientFailure as failure:
                outcome, status = failure, 0
            else:
                status = outcome.status
                if status not in _RETRIED:
                    return outcome
                pause += self._wanted_pause(outcome)
            if (
                retries == 0
                or pause >= talk.remaining
                # The same error twice is what some registries say to bad input for ever.
                or (status == previous and status >= HTTPStatus.INTERNAL_SERVER_ERROR)
                or self._circuits.refuses(_route(request, talk))
            ):
                return self._given_up(outcome, request)
            retries, previous = retries - 1, status
            await self._sleep(pause)

    def _given_up(self, outcome: Response | TransientFailure, request: Request) -> Response:
        """What the last attempt came to."""
        if isinstance(outcome, TransientFailure):
            raise outcome
        if seconds := self._wanted_pause(outcome):
            detail = f"{request.url.host} answered {outcome.status}, and to wait {seconds:.0f} s"
            raise Throttled(_THROTTLING[outcome.status], detail, seconds)
        return outcome

    def _wanted_pause(self, response: Response) -> float:
        """Seconds for which the server wants to be left alone."""
        if response.status not in _THROTTLING:
            return 0.0
        said = (parse_retry_after(each, self._now()) for each in response.values("retry-after"))
        return max((seconds for seconds in said if seconds is not None), default=0.0)

    async def _attempt(self, request: Request, talk: _Talk) -> Response:
        """The answer to one request, when and if our limits let it out."""
        route, settings = _route(request, talk), self._places.settings(request.url)
        if self._circuits.refuses(route):
            raise _left_alone(route)
        await self._keep_pace(request, talk)
        release = await self._connections.take(route, self._per_host_at(settings))
        try:
            # It may have opened while we stood in line; so a whole line is gone at once.
            if not self._circuits.admits(route):
                raise _left_alone(route)
            since, talk.awaits = self._clock(), True
            try:
                response = await self._transport.exchange(request, talk.visit)
            except Unconnected:
                self._circuits.failed(route, since=since)
                raise
            except Failure:
                self._circuits.answered(route)
                raise
            self._circuits.answered(route)
            talk.awaits = False
            return response
        finally:
            release()

    async def _keep_pace(self, request: Request, talk: _Talk) -> None:
        """Wait for a turn, where a place is to have only so many requests a second."""
        settings = self._places.settings(request.url)
        if settings is None or settings.requests_per_second is None:
            return
        where, rate = place(request.url), settings.requests_per_second
        trusted = self._transport.trusted(request.url, talk.visit, derived=request.derived)
        pace = self._paces.setdefault(where, Pace(rate, clock=self._clock))
        # What a stranger's registry leads there waits for nothing: it would keep others waiting.
        seconds = pace.reserve(talk.remaining if trusted is not None else 0.0)
        if seconds is None:
            detail = f"{_shown(where)} is to have {rate:g} requests a second, and has more in line"
            raise Unasked(Reason.RATE_LIMITED, detail)
        if seconds:
            await self._sleep(seconds)

    def _per_host_at(self, settings: RegistrySettings | None) -> int:
        return (settings.connections if settings is not None else None) or self._per_host


def _route(request: Request, talk: _Talk) -> _Route:
    return place(request.url), place(talk.visit.registry.origin)


def _left_alone(route: _Route) -> Unasked:
    return Unasked(Reason.UNREACHABLE, f"nobody could connect to {_shown(route[0])} lately")


def _shown(where: _Place) -> str:
    host, port = where
    host = f"[{host}]" if ":" in host else host
    return host if port == HTTPS_PORT else f"{host}:{port}"


def _log_opened(route: _Route) -> None:
    log.warning("nobody can connect to %s: it is left alone for a while", _shown(route[0]))


def _log_closed(route: _Route) -> None:
    log.info("%s can be connected to again", _shown(route[0]))


def _token_error_age(error: Exception) -> float:
    """Seconds for which a failure to get a token is not tried again."""
    if isinstance(error, Unasked):
        return 0.0
    return 2.0 if isinstance(error, Failure) and error.reason.is_outage else 5.0
