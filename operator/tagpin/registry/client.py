"""The only user of aiohttp: carries out the conversations of flow."""

import asyncio
import logging
import random
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from tagpin import __version__
from tagpin.cache import Cache
from tagpin.errors import ConfigurationError, Reason
from tagpin.keychain import fingerprint
from tagpin.reference import DOCKER_HUB
from tagpin.registry import guard
from tagpin.registry.flow import (
    Failure,
    Flow,
    Login,
    Registry,
    Request,
    Response,
    Token,
    fetch_token,
)

T = TypeVar("T")

log = logging.getLogger(__name__)

MAX_HEADER_FIELD = 8190
MAX_OTHER_BODY = 64 * 1024
"""What is read of an answer that is not 200, so that its connection can be used again."""

NAME_TIMEOUT = 0.5
"""Seconds that a name server has for its first answer, and twice as many for its second."""
NAME_TRIES = 2

LARGE_BODY = 64 * 1024
LARGE_BODIES = 4
"""Bodies of more than LARGE_BODY bytes that are read at once, per trust class."""

MAX_HOST = 253
"""Characters of a host name (RFC 1035 §2.3.4: 255 octets on the wire)."""

_DOCKER_HUB_HOST = "registry-1.docker.io"
_TOLD_APART = frozenset({200, 401, 403, 404, 429})
_RETRIED = frozenset({500, 502, 503, 504, 522})


def _pause() -> float:
    """Seconds before a retry: full jitter, so that replicas don't knock in step."""
    return random.uniform(0.1, 0.4)  # noqa: S311 - spreads load, protects nothing


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """A registry that the operator listed, so may lie at any address.

    `host` is as in references: `host[:port]`. With `http` it is spoken to in plain http, and
    credentials go there only if `credentials_over_http`. `ca` is PEM text, trusted for this host
    besides the system's authorities. Raises ConfigurationError for a host that is no place.
    """

    host: str
    http: bool = False
    ca: str | None = field(default=None, repr=False)
    credentials_over_http: bool = False

    def __post_init__(self) -> None:
        _listed_place(self)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request, for metrics.

    `code` is of a closed set, since whoever runs a registry chooses the status: one of the
    statuses that ask for a reaction of their own, the class of any other (`5xx`, or `other` where
    there is none), a Reason, or `cancelled`.
    `registry` is what a pod's author wrote: an unbounded set, unless the observer bounds it.
    """

    registry: str
    method: str
    code: str
    seconds: float


class RegistryClient:
    """Runs conversations with registries; use as an async context manager.

    `registries` are those that the operator listed; all others are spoken to over https, at
    addresses that `rules` allow. `ca` is PEM text trusted everywhere besides the system's
    authorities. `names` resolves host names and stays the caller's to close. Times are seconds:
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
        self._listed = {_listed_place(each): each for each in registries}
        self._rules = rules
        self._tls = _tls_context("all registries", ca)
        self._own_tls = {
            place: _tls_context(each.host, ca, each.ca)
            for place, each in self._listed.items()
            if each.ca is not None
        }
        self._names = names
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=connect_timeout, sock_read=read_timeout
        )
        self._longest_login = 2 * (connect_timeout + read_timeout)
        self._limits = (total, per_host)
        self._retries = retries
        self._jitter = jitter
        self._sleep = sleep
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._observe = observe
        self._tokens: Cache[object, Token] = Cache(
            maxsize=1000,
            clock=clock,
            lifetime=lambda token: token.lifetime,
            error_age=_token_error_age,
        )
        self._stack = AsyncExitStack()
        self._sessions: _Sessions | None = None
        self._large = {trusted: asyncio.Semaphore(LARGE_BODIES) for trusted in (True, False)}

    async def __aenter__(self) -> Self:
        if self._names is None:
            # Not the look-up of the event loop, which a few names without an answer keep busy:
            # it has one pool of threads for all, of four under uvloop.
            self._names = aiohttp.AsyncResolver(timeout=NAME_TIMEOUT, tries=NAME_TRIES)
            self._stack.push_async_callback(self._names.close)
        rules = self._rules
        self._sessions = _Sessions(
            listed=await self._open(lambda _: True),
            unlisted=await self._open(lambda address: not rules.blocks(address)),
            # What the registry leads to is judged for each request: no connection is kept.
            derived=await self._open(lambda address: not rules.blocks(address), pooled=False),
            derived_public=await self._open(rules.is_public, pooled=False),
        )
        self._stack.push_async_callback(self._tokens.aclose)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._sessions = None
        await self._stack.aclose()

    def registry(self, domain: str) -> Registry:
        """The registry that references name `domain`; ValueError where that is no place."""
        host = _DOCKER_HUB_HOST if domain == DOCKER_HUB else domain
        for scheme in ("https", "http"):
            origin = _origin(scheme, host)
            listed = self._listed.get(_place(origin))
            if listed is not None and listed.http == (scheme == "http"):
                in_plain = listed.http and listed.credentials_over_http
                return Registry(domain, origin, listed=True, credentials_over_http=in_plain)
        return Registry(domain, _origin("https", host))

    async def run(self, flow: Flow[T], registry: Registry, *, within: float) -> T:
        """Carry out a conversation that `registry` is the subject of, in `within` seconds.

        Raises Failure. It is `concealed` where an address took part that is not public, and that
        no place has which the operator listed.
        """
        return await self._visit(flow, _Visit(registry, self._rules), within)

    async def _visit(self, flow: Flow[T], visit: "_Visit", within: float) -> T:
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

    async def _drive(self, flow: Flow[T], visit: "_Visit") -> T:
        proceed = partial(next, flow)
        try:
            while True:
                step = proceed()
                reply: Response | str
                try:
                    if isinstance(step, Login):
                        reply = await self._log_in(step, visit)
                    else:
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

    async def _log_in(self, login: Login, visit: "_Visit") -> str:
        """A token that may be used by whoever holds the same credential, and nobody else."""
        who = fingerprint(self._key, (login.credential,) if login.credential else ())
        key = (login.registry.origin, login.realm, login.service, login.scope, who)
        known = self._tokens.peek(key)
        if known is not None and known.value.value == login.refused:
            self._tokens.forget(key)

        async def load() -> Token:
            if login.realm.host != login.registry.origin.host:
                log.debug("%s has its tokens from %s", login.registry.name, login.realm.host)
            inner = _Visit(login.registry, self._rules, reached_public=visit.reached_public)
            return await self._visit(fetch_token(login), inner, self._longest_login)

        derived = login.realm.origin() != login.registry.origin
        visit.logs_in_at_a_stranger = self._trusted(login.realm, visit, derived=derived) is None
        token = (await self._tokens.get(key, load)).value
        visit.logs_in_at_a_stranger = False
        return token.value

    async def _ask(self, request: Request, visit: "_Visit") -> Response:
        """The answer to a request, which is repeated where that can help."""
        previous = 0
        for _ in range(self._retries):
            try:
                response = await self._exchange(request, visit)
            except _TransientFailure:
                previous = 0
            else:
                # The same error twice is what some registries say to bad input for ever.
                if response.status not in _RETRIED or response.status == previous:
                    return response
                previous = response.status
            await self._sleep(self._jitter())
        return await self._exchange(request, visit)

    async def _exchange(self, request: Request, visit: "_Visit") -> Response:
        trusted = self._trusted(request.url, visit, derived=request.derived)
        session = self._route(request, visit, trusted)
        tls = self._own_tls.get(_place(request.url), self._tls)
        trace = guard.Trace.begin()
        started = self._clock()
        code = "cancelled"
        try:
            large = self._large[trusted is not None]
            response = await self._send(session, request, tls, large)
        except Failure as failure:
            code = failure.reason.value
            raise
        # uvloop raises RuntimeError where asyncio raises OSError (aiohappyeyeballs: impl.py)
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            translated = _failure_of(error, request.url, trace, self._rules)
            code = translated.reason.value
            raise translated from error
        else:
            code = _code(response.status)
            return response
        finally:
            visit.note(trace, derived=request.derived, trusted=trusted is not None)
            seconds = self._clock() - started
            self._observe(Exchange(visit.registry.name, request.method, code, seconds))

    def _trusted(self, url: URL, visit: "_Visit", *, derived: bool) -> RegistrySettings | None:
        """The operator's word about a place; a stranger's registry cannot call on it."""
        return self._listed.get(_place(url)) if visit.registry.listed or not derived else None

    def _route(
        self, request: Request, visit: "_Visit", trusted: RegistrySettings | None
    ) -> aiohttp.ClientSession:
        """Which connections may carry a request."""
        if self._sessions is None:
            raise RuntimeError("the client is not open")
        url = request.url
        if url.scheme != "https" and (trusted is None or not trusted.http):
            raise Failure(Reason.BAD_ANSWER, f"{url.host} is not listed for plain http")
        if trusted is not None:
            return self._sessions.listed
        if guard.is_blocked_name(url.host or ""):
            raise Failure(Reason.BLOCKED, f"{url.host} is no name of a registry")
        if not request.derived:
            return self._sessions.unlisted
        if url.port not in (443, visit.registry.origin.port):
            raise Failure(Reason.BLOCKED, f"port {url.port} of {url.host} was not expected")
        if visit.reached_public:
            return self._sessions.derived_public
        return self._sessions.derived

    async def _send(
        self,
        session: aiohttp.ClientSession,
        request: Request,
        tls: ssl.SSLContext,
        large: asyncio.Semaphore,
    ) -> Response:
        async with session.request(
            request.method, request.url, headers=request.headers, ssl=tls, allow_redirects=False
        ) as response:
            headers = tuple(response.headers.items())
            if response.status == HTTPStatus.OK:
                body = await _read(response, request.max_body, large)
                if body is None:
                    detail = f"the answer is longer than {request.max_body} bytes"
                    raise Failure(Reason.BAD_ANSWER, detail)
                return Response(response.status, headers, body)
            if await _read(response, MAX_OTHER_BODY, large) is None:
                response.close()
            return Response(response.status, headers)

    async def _open(
        self, allows: Callable[[guard.Address], bool], *, pooled: bool = True
    ) -> aiohttp.ClientSession:
        total, per_host = self._limits
        connector = aiohttp.TCPConnector(
            resolver=self._names,
            socket_factory=guard.socket_factory(allows),
            force_close=not pooled,
            limit=total,
            limit_per_host=per_host,
        )
        return await self._stack.enter_async_context(
            aiohttp.ClientSession(
                connector=connector,
                response_class=_PeerNotingResponse,
                headers={"User-Agent": f"tagpin/{__version__}", "Accept-Encoding": "identity"},
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=self._timeout,
                auto_decompress=False,
                trust_env=False,
                max_line_size=MAX_HEADER_FIELD,
                max_field_size=MAX_HEADER_FIELD,
            )
        )


class _TransientFailure(Failure):
    """A failure that may be gone a moment later."""


@dataclass(frozen=True, slots=True)
class _Sessions:
    """One session, with its connector, per class of trust."""

    listed: aiohttp.ClientSession
    unlisted: aiohttp.ClientSession
    derived: aiohttp.ClientSession
    derived_public: aiohttp.ClientSession


@dataclass(slots=True)
class _Visit:
    """What happened so far in one conversation.

    While `reached_public`, the registry may not lead us to a private address: it answered from
    a public one, or not yet. `conceals` that an address took part of which strangers must learn
    nothing; while `logs_in_at_a_stranger`, that could be so.
    """

    registry: Registry
    rules: guard.AddressRules
    reached_public: bool = True
    conceals: bool = False
    logs_in_at_a_stranger: bool = False
    _seen_public: bool = False

    def note(self, trace: guard.Trace, *, derived: bool, trusted: bool) -> None:
        """Take in which addresses a request had to do with."""
        public = [self.rules.is_public(each) for each in trace.opened]
        if not trusted:
            inner = [each for each in trace.refused if not self.rules.blocks(each)]
            refused_private = not all(map(self.rules.is_public, inner))
            self.conceals = self.conceals or refused_private or not all(public)
        if not derived and public:
            self._seen_public = self._seen_public or public[-1]
            self.reached_public = self._seen_public


class _PeerNotingResponse(aiohttp.ClientResponse):
    """Notes which peer an answer comes from, also on a connection that was open already."""

    async def start(self, connection: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        transport = connection.transport
        peer = transport.get_extra_info("peername") if transport is not None else None
        if peer is None:
            raise aiohttp.ServerDisconnectedError
        guard.note_peer(peer)
        return await super().start(connection)


async def _read(
    response: aiohttp.ClientResponse, limit: int, large: asyncio.Semaphore
) -> bytes | None:
    """The whole body, or None where it is longer than `limit` bytes.

    What is in memory at once is bounded: a body waits for `large` to go on beyond LARGE_BODY.
    Hardly any manifest does, so who drips holds up nobody else's.
    """
    if response.content_length is not None and response.content_length > limit:
        return None if response.method != "HEAD" else b""
    body = bytearray()
    async with AsyncExitStack() as stack:
        async for chunk in response.content.iter_chunked(64 * 1024):
            if len(body) <= LARGE_BODY < len(body) + len(chunk):
                await stack.enter_async_context(large)
            body += chunk
            if len(body) > limit:
                return None
    return bytes(body)


def _failure_of(
    error: Exception, url: URL, trace: guard.Trace, rules: guard.AddressRules
) -> Failure:
    """What an exception of aiohttp means."""
    host = url.host
    if trace.refused and not trace.opened:
        if any(rules.blocks(address) for address in trace.refused):
            return Failure(Reason.BLOCKED, f"{host} has an address that is not allowed")
        return Failure(Reason.BLOCKED, f"{host} is private, unlike the registry that leads there")
    match error:
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            return Failure(Reason.TLS, f"no trusted TLS with {host}")
        case TimeoutError():
            return Failure(Reason.TIMEOUT, f"no answer from {host}")
        case aiohttp.ClientResponseError() | ValueError():
            return Failure(Reason.BAD_ANSWER, f"{host} does not answer in HTTP")
        case _:
            return _TransientFailure(Reason.UNREACHABLE, f"no connection to {host}")


def _code(status: int) -> str:
    if status in _TOLD_APART:
        return str(status)
    return f"{status // 100}xx" if 100 <= status < 600 else "other"  # noqa: PLR2004 - RFC 9110 §15


def _token_error_age(error: Exception) -> float:
    """Seconds for which a failure to get a token is not tried again."""
    return 2.0 if isinstance(error, Failure) and error.reason.is_outage else 5.0


def _listed_place(settings: RegistrySettings) -> tuple[str, int]:
    host = _DOCKER_HUB_HOST if settings.host == DOCKER_HUB else settings.host
    try:
        return _place(_origin("http" if settings.http else "https", host))
    except ValueError:
        raise ConfigurationError(f"registries: {settings.host!r} is not host[:port]") from None


def _origin(scheme: str, host: str) -> URL:
    """The origin at `host[:port]`; ValueError where that is none."""
    url = URL(f"{scheme}://{host}")
    if not url.host or not url.port or url.raw_path_qs not in ("", "/") or "@" in host:
        raise ValueError(f"no host: {host!r}")
    if len(url.host) > MAX_HOST:
        raise ValueError(f"a host of more than {MAX_HOST} characters")
    return url.origin()


def _place(url: URL) -> tuple[str, int]:
    """Host and port that a URL leads to, whatever its spelling."""
    return (url.host or "").rstrip("."), url.port or 0


def _tls_context(name: str, *authorities: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for authority in filter(None, authorities):
        try:
            context.load_verify_locations(cadata=authority)
        except ssl.SSLError:
            raise ConfigurationError(f"the CA for {name} is not PEM") from None
    return context
