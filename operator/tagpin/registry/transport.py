"""The only user of aiohttp: one request to wherever it may go."""

import asyncio
import ssl
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from tagpin import __version__
from tagpin.errors import ConfigurationError, Reason
from tagpin.registry import guard
from tagpin.registry.flow import Failure, Registry, Request, Response
from tagpin.registry.places import Places, RegistrySettings

MAX_HEADER_FIELD = 8190
MAX_OTHER_BODY = 64 * 1024
"""What is read of an answer that is not 200, so that its connection can be used again."""

NAME_TIMEOUT = 0.5
"""Seconds that a name server has for its first answer, and twice as many for its second."""
NAME_TRIES = 2

LARGE_BODY = 64 * 1024
LARGE_BODIES = 4
"""Bodies of more than LARGE_BODY bytes that are read at once, per trust class."""

_TOLD_APART = frozenset({200, 401, 403, 404, 429})


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


@dataclass(slots=True)
class Visit:
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


class Transport:
    """Carries single requests; use as an async context manager.

    `places` is what the operator listed; all others are spoken to over https, at addresses that
    `rules` allow. `ca` is PEM text trusted everywhere besides the system's authorities. `names`
    resolves host names and stays the caller's to close. Times are seconds: `connect_timeout` per
    connection, `read_timeout` between two reads. `per_host` and `total` bound the connections of
    each trust class: those that were listed have connections of their own, so that no stranger's
    registry can use them up. `observe` is told of every exchange.
    """

    def __init__(
        self,
        places: Places,
        *,
        rules: guard.AddressRules,
        ca: str | None = None,
        names: AbstractResolver | None = None,
        connect_timeout: float = 3.0,
        read_timeout: float = 5.0,
        per_host: int = 32,
        total: int = 1024,
        clock: Callable[[], float] = time.monotonic,
        observe: Callable[[Exchange], None] = lambda _: None,
    ) -> None:
        self._places = places
        self._rules = rules
        self._tls = _tls_context("all registries", ca)
        self._own_tls = {
            each.host: _tls_context(each.host, ca, each.ca)
            for each in places
            if each.ca is not None
        }
        self._names = names
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=connect_timeout, sock_read=read_timeout
        )
        self._limits = (total, per_host)
        self._clock = clock
        self._observe = observe
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
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._sessions = None
        await self._stack.aclose()

    async def exchange(self, request: Request, visit: Visit) -> Response:
        """The answer to one request; raises Failure, TransientFailure where it may pass."""
        trusted = self.trusted(request.url, visit, derived=request.derived)
        session = self._route(request, visit, trusted)
        settings = self._places.settings(request.url)
        tls = self._own_tls.get(settings.host, self._tls) if settings else self._tls
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

    def trusted(self, url: URL, visit: Visit, *, derived: bool) -> RegistrySettings | None:
        """The operator's word about a place; a stranger's registry cannot call on it."""
        return self._places.settings(url) if visit.registry.listed or not derived else None

    def _route(
        self, request: Request, visit: Visit, trusted: RegistrySettings | None
    ) -> aiohttp.ClientSession:
        """Which connections may carry a request."""
        if self._sessions is None:
            raise RuntimeError("the client is not open")
        url = request.url
        if url.scheme != "https" and (trusted is None or not trusted.http):
            raise Failure(Reason.BAD_ANSWER, f"{url.host} is not listed for plain http")
        if trusted is not None and not trusted.is_glob:
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
            request.method,
            request.url,
            headers=request.headers,
            data=request.body or None,
            ssl=tls,
            allow_redirects=False,
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


class TransientFailure(Failure):
    """No answer came; that may be gone a moment later."""


class Unconnected(TransientFailure):
    """No connection came about, so that it says nothing of what was asked for."""


@dataclass(frozen=True, slots=True)
class _Sessions:
    """One session, with its connector, per class of trust."""

    listed: aiohttp.ClientSession
    unlisted: aiohttp.ClientSession
    derived: aiohttp.ClientSession
    derived_public: aiohttp.ClientSession


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
        case aiohttp.ClientResponseError() | ValueError():
            return Failure(Reason.BAD_ANSWER, f"{host} does not answer in HTTP")
        case _:
            return _silence_of(error, host)


def _silence_of(error: Exception, host: str | None) -> TransientFailure:
    match error:
        case aiohttp.ConnectionTimeoutError():
            return Unconnected(Reason.TIMEOUT, f"no connection to {host} in time")
        case aiohttp.ClientConnectorError() | RuntimeError():
            return Unconnected(Reason.UNREACHABLE, f"no connection to {host}")
        case TimeoutError():
            return TransientFailure(Reason.TIMEOUT, f"no answer from {host}")
        case _:
            return TransientFailure(Reason.UNREACHABLE, f"the connection to {host} broke")


def _code(status: int) -> str:
    if status in _TOLD_APART:
        return str(status)
    return f"{status // 100}xx" if 100 <= status < 600 else "other"  # noqa: PLR2004 - RFC 9110 §15


def _tls_context(name: str, *authorities: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for authority in filter(None, authorities):
        try:
            context.load_verify_locations(cadata=authority)
        except ssl.SSLError:
            raise ConfigurationError(f"the CA for {name} is not PEM") from None
    return context
