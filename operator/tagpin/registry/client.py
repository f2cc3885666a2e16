"""Carries out the conversations of flow: logs in, tries again, keeps to the time."""

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Protocol, Self, TypeVar

from aiohttp.abc import AbstractResolver

from tagpin.cache import Cache
from tagpin.errors import Reason, Unobtainable
from tagpin.keychain import Credential, Identity, fingerprint
from tagpin.registry import guard
from tagpin.registry.flow import (
    Failure,
    Flow,
    Login,
    Obtain,
    Registry,
    Request,
    Response,
    Token,
)
from tagpin.registry.login import fetch_token
from tagpin.registry.places import Places, RegistrySettings
from tagpin.registry.transport import Exchange, TransientFailure, Transport, Visit

T = TypeVar("T")

log = logging.getLogger(__name__)

_RETRIED = frozenset({500, 502, 503, 504, 522})


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


class RegistryClient:
    """Runs conversations with registries; use as an async context manager.

    `registries` are those that the operator listed; all others are spoken to over https, at
    addresses that `rules` allow. `ca` is PEM text trusted everywhere besides the system's
    authorities. `names` resolves host names and stays the caller's to close. `identities` gives
    the credentials that candidates only name. Times are seconds:
    `connect_timeout` per connection, `read_timeout` between two reads. `per_host` and `total`
    bound the connections of each trust class: those that were listed have connections of their
    own, so that no stranger's registry can use them up. A request is retried `retries` times where
    that can help, after a pause drawn from `jitter`. `observe` is told of every exchange.
    """

    def __init__(
        self,
        *,
        registries: Iterable[RegistrySettings] = (),
        rules: guard.AddressRules = guard.DEFAULT_RULES,
        ca: str | None = None,
        names: AbstractResolver | None = None,
        identities: Identities | None = None,
        connect_timeout: float = 3.0,
        read_timeout: float = 5.0,
        per_host: int = 32,
        total: int = 1024,
        retries: int = 2,
        jitter: Callable[[], float] = _pause,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        observe: Callable[[Exchange], None] = lambda _: None,
    ) -> None:
        self._places = Places(registries)
        self._rules = rules
        self._transport = Transport(
            self._places,
            rules=rules,
            ca=ca,
            names=names,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            per_host=per_host,
            total=total,
            clock=clock,
            observe=observe,
        )
        self._identities = identities or _NoIdentities()
        self._longest_login = 2 * (connect_timeout + read_timeout)
        self._retries = retries
        self._jitter = jitter
        self._sleep = sleep
        self._key = secrets.token_bytes(32)
        self._tokens: Cache[object, Token] = Cache(
            maxsize=1000,
            clock=clock,
            lifetime=lambda token: token.lifetime,
            error_age=_token_error_age,
        )
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._transport)
        self._stack.push_async_callback(self._tokens.aclose)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    def registry(self, domain: str) -> Registry:
        """The registry that references name `domain`; ValueError where that is no place."""
        return self._places.registry(domain)

    async def run(self, flow: Flow[T], registry: Registry, *, within: float) -> T:
        """Carry out a conversation that `registry` is the subject of, in `within` seconds.

        Raises Failure. It is `concealed` where an address took part that is not public, and that
        no place has which the operator listed.
        """
        return await self._visit(flow, Visit(registry, self._rules), within)

    async def _visit(self, flow: Flow[T], visit: Visit, within: float) -> T:
        try:
            async with asyncio.timeout(within):
                return await self._drive(flow, visit)
        except TimeoutError:
            # A login may be shared with another visit, which alone knows its addresses.
            concealed = visit.conceals or visit.logs_in_at_a_stranger
            detail = f"no answer within {within:g} s"
            raise Failure(Reason.TIMEOUT, detail, concealed=concealed) from None
        except Failure as failure:
            if failure.concealed or not visit.conceals:
                raise
            raise Failure(failure.reason, str(failure), concealed=True) from failure

    async def _drive(self, flow: Flow[T], visit: Visit) -> T:
        proceed = partial(next, flow)
        try:
            while True:
                step = proceed()
                reply: Response | str | Credential
                try:
                    match step:
                        case Login():
                            reply = await self._log_in(step, visit)
                        case Obtain():
                            reply = await self._obtain(step)
                        case _:
                            reply = await self._ask(step, visit)
                except Failure as failure:
                    visit.logs_in_at_a_stranger = False
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
            provider = step.identity.provider
            log.warning("no credential of %s for %s: %s", provider, step.registry.name, error)
            detail = f"there is no credential of {provider} now"
            raise Failure(Reason.UNAUTHORIZED, detail) from error

    async def _log_in(self, login: Login, visit: Visit) -> str:
        """A token that may be used by whoever holds the same credential, and nobody else."""
        who = fingerprint(self._key, (login.credential,) if login.credential else ())
        key = (login.registry.origin, login.realm, login.service, login.scope, who)
        known = self._tokens.peek(key)
        if known is not None and known.value.value == login.refused:
            self._tokens.forget(key)

        async def load() -> Token:
            if login.realm.host != login.registry.origin.host:
                log.debug("%s has its tokens from %s", login.registry.name, login.realm.host)
            inner = Visit(login.registry, self._rules, reached_public=visit.reached_public)
            return await self._visit(fetch_token(login), inner, self._longest_login)

        derived = login.realm.origin() != login.registry.origin
        trusted = self._transport.trusted(login.realm, visit, derived=derived)
        visit.logs_in_at_a_stranger = trusted is None
        token = (await self._tokens.get(key, load)).value
        visit.logs_in_at_a_stranger = False
        return token.value

    async def _ask(self, request: Request, visit: Visit) -> Response:
        """The answer to a request, which is repeated where that can help."""
        previous = 0
        for _ in range(self._retries):
            try:
                response = await self._transport.exchange(request, visit)
            except TransientFailure:
                previous = 0
            else:
                # The same error twice is what some registries say to bad input for ever.
                if response.status not in _RETRIED or response.status == previous:
                    return response
                previous = response.status
            await self._sleep(self._jitter())
        return await self._transport.exchange(request, visit)


def _token_error_age(error: Exception) -> float:
    """Seconds for which a failure to get a token is not tried again."""
    return 2.0 if isinstance(error, Failure) and error.reason.is_outage else 5.0
