"""The only user of aiohttp: one request to wherever it may go."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Self
from weakref import WeakSet

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from tagpin import __version__
from tagpin.errors import ConfigurationError, Reason
from tagpin.registry import guard
from tagpin.registry.flow import HTTPS_PORT, Failure, Registry, Request, Response
from tagpin.registry.places import Places, RegistrySettings
from tagpin.registry.proxies import DIRECTLY, Proxies, Proxy

MAX_HEADER_FIELD = 8190
MAX_OTHER_BODY = 64 * 1024
"""What is read of an answer that is not 200: an error's text, or nothing if it is longer."""

KEEPALIVE = 60.0
"""Seconds for which a connection that nobody uses is kept."""
NAME_AGE = 20
"""Seconds for which the addresses of a name are remembered."""

NAME_TIMEOUT = 0.5
"""Seconds that a name server has for its first answer, and twice as many for its second."""
NAME_TRIES = 2
MAX_ADDRESSES = 16
"""Addresses of a name that are tried: aiohttp goes through all that are left after each failure."""

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
    `rules` allow. `proxies` lead to those that no place has another word for. `ca` is PEM text
    trusted everywhere besides the system's authorities.
    `names` resolves host names and stays the caller's to close. Times are seconds:
    `connect_timeout` per connection, `read_timeout` between two reads. `total` bounds the
    connections of each trust class: places that were listed have connections of their own, and so
    have those of a glob, so that no stranger's registry can use them up. How many may lead to one
    host is the client's to say, who knows what leads there. `observe` is told of every exchange.

    Through a proxy nobody sees which address a name has. What the URL itself shows is judged
    here; to keep inner addresses from whoever chooses the names is the proxy's part.
    """

    def __init__(
        self,
        places: Places,
        *,
        rules: guard.AddressRules,
        proxies: Proxies = DIRECTLY,
        ca: str | None = None,
        names: AbstractResolver | None = None,
        connect_timeout: float = 3.0,
        read_timeout: float = 5.0,
        total: int = 1024,
        clock: Callable[[], float] = time.monotonic,
        observe: Callable[[Exchange], None] = lambda _: None,
    ) -> None:
        self._places = places
        self._rules = rules
        self._proxies = proxies
        self._own_proxies = {
            each.host: Proxy.parse(each.proxy) if each.proxy else None
            for each in places
            if each.proxy is not None
        }
        self._tls = _tls_context("all registries", ca)
        self._own_tls = {
            each.host: _tls_context(each.host, ca, each.ca)
            for each in places
            if each.ca is not None
        }
        self._names = names
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._total = total
        self._clock = clock
        self._observe = observe
        self._stack = AsyncExitStack()
        self._pools: _Pools | None = None
        self._large = {trusted: asyncio.Semaphore(LARGE_BODIES) for trusted in (True, False)}

    async def __aenter__(self) -> Self:
        if self._names is None:
            # Not the look-up of the event loop, which a few names without an answer keep busy:
            # it has one pool of threads for all.
            self._names = aiohttp.AsyncResolver(timeout=NAME_TIMEOUT, tries=NAME_TRIES)
            self._stack.push_async_callback(self._names.close)
        names, rules = self._names, self._rules
        strange = _StrangersNames(names)
        everywhere = guard.socket_factory(lambda _: True)
        guarded = guard.socket_factory(lambda address: not rules.blocks(address))
        public = guard.socket_factory(rules.is_public)
        self._pools = _Pools(
            listed=await self._open(names, everywhere),
            globbed=await self._open(strange, guarded),
            unlisted=await self._open(strange, guarded),
            # What a registry leads to is judged for each request: no connection is kept.
            derived=await self._open(strange, guarded, idle=0),
            derived_public=await self._open(strange, public, idle=0),
            # These connect to proxies alone, which the operator chose.
            proxied_listed=await self._open(names, _any_socket, _ProxiedResponse),
            proxied=await self._open(names, _any_socket, _ProxiedResponse),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._pools = None
        await self._stack.aclose()

    async def exchange(self, request: Request, visit: Visit) -> Response:
        """The answer to one request; raises Failure, TransientFailure where it may pass."""
        way = self._way(request, visit)
        trace = guard.Trace.begin()
        if way.proxy is not None and (literal := guard.address_of(way.host)) is not None:
            trace.opened.append(literal)
        started = self._clock()
        code = "cancelled"
        try:
            response = await self._send(way, request)
        except Failure as failure:
            code = failure.reason.value
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            translated = _failure_of(error, way, trace, self._rules)
            code = translated.reason.value
            # What aiohttp raises quotes the answer, and shows the headers that we sent.
            raise translated from None
        except asyncio.CancelledError:
            visit.conceals = visit.conceals or way.conceals
            raise
        else:
            code = _code(response.status)
            return response
        finally:
            visit.note(trace, derived=request.derived, trusted=way.told)
            seconds = self._clock() - started
            self._observe(Exchange(visit.registry.name, request.method, code, seconds))

    def trusted(self, url: URL, visit: Visit, *, derived: bool) -> RegistrySettings | None:
        """The operator's word about a place; a stranger's registry cannot call on it."""
        return self._places.settings(url) if visit.registry.listed or not derived else None

    def _way(self, request: Request, visit: Visit) -> "_Way":
        """How a request may travel; Failure where it may not."""
        url = request.url
        settings = self._places.settings(url)
        trusted = self.trusted(url, visit, derived=request.derived)
        exempt = trusted is not None and self._is_exempt(trusted, request, visit)
        if url.scheme != "https":
            self._check_plain(request, trusted if exempt else None)
        proxy = self._proxy(url, settings)
        connect = (settings.connect_timeout if settings else None) or self._connect_timeout
        return _Way(
            pool=self._pool(request, visit, trusted, exempt=exempt, proxied=bool(proxy)),
            host=url.raw_host or "",
            tls=self._own_tls.get(settings.host, self._tls) if settings else self._tls,
            timeout=aiohttp.ClientTimeout(
                total=None,
                # For all addresses of a host together, of which `sock_connect` is for each.
                # By a proxy it is for the way there, its answer, and TLS through it.
                connect=2 * connect + self._read_timeout if proxy else connect,
                sock_connect=connect,
                sock_read=self._read_timeout,
            ),
            proxy=proxy,
            told=trusted is not None,
        )

    def _is_exempt(self, trusted: RegistrySettings, request: Request, visit: Visit) -> bool:
        """Whether a place may have any address, since the operator listed it in full.

        Who may name a host below a glob is not the operator, so it cannot lead there either.
        """
        registry = self._places.settings(visit.registry.origin) if request.derived else trusted
        return not trusted.is_glob and registry is not None and not registry.is_glob

    def _check_plain(self, request: Request, trusted: RegistrySettings | None) -> None:
        host = request.url.host
        if trusted is None or not trusted.http:
            raise Failure(Reason.BAD_ANSWER, f"{host} is not listed for plain http")
        is_secret = "Authorization" in request.headers or bool(request.body)
        if is_secret and not trusted.credentials_over_http:
            raise Failure(Reason.UNAUTHORIZED, f"{host} gets no credentials over plain http")

    def _proxy(self, url: URL, settings: RegistrySettings | None) -> Proxy | None:
        if settings is not None and settings.host in self._own_proxies:
            return self._own_proxies[settings.host]
        return self._proxies.leading_to(url)

    def _pool(
        self,
        request: Request,
        visit: Visit,
        trusted: RegistrySettings | None,
        *,
        exempt: bool,
        proxied: bool,
    ) -> "_Pool":
        """Which connections may carry a request."""
        if self._pools is None:
            raise RuntimeError("the client is not open")
        if exempt:
            return self._pools.proxied_listed if proxied else self._pools.listed
        url, host = request.url, request.url.raw_host or ""
        if guard.is_blocked_name(host):
            raise Failure(Reason.BLOCKED, f"{host} is no name of a registry")
        if request.derived and url.port not in (HTTPS_PORT, visit.registry.origin.port):
            raise Failure(Reason.BLOCKED, f"port {url.port} of {host} was not expected")
        if proxied:
            self._check_literal(host, public=request.derived and visit.reached_public)
            return self._pools.proxied
        if not request.derived:
            return self._pools.globbed if trusted is not None else self._pools.unlisted
        return self._pools.derived_public if visit.reached_public else self._pools.derived

    def _check_literal(self, host: str, *, public: bool) -> None:
        """What the guard says to an address, of one that only the proxy will connect to."""
        address = guard.address_of(host)
        if address is None:
            return
        if self._rules.blocks(address):
            raise Failure(Reason.BLOCKED, f"{host} is an address that is not allowed")
        if public and not self._rules.is_public(address):
            raise Failure(
                Reason.BLOCKED, f"{host} is private, unlike the registry that leads there"
            )

    async def _send(self, way: "_Way", request: Request) -> Response:
        headers = dict(request.headers)
        proxy_headers: dict[str, str] = {}
        if way.proxy is not None and way.proxy.authorization is not None:
            # A tunnel is asked for in a request of its own; plain http has but this one.
            to_proxy = proxy_headers if request.url.scheme == "https" else headers
            to_proxy["Proxy-Authorization"] = way.proxy.authorization
        async with (
            way.pool.lend() as session,
            session.request(
                request.method,
                request.url,
                headers=headers,
                data=request.body or None,
                ssl=way.tls,
                # Through a tunnel aiohttp takes the final dot of a name for a part of it.
                server_hostname=way.host.rstrip(".") if way.proxy else None,
                proxy=way.proxy.url if way.proxy else None,
                proxy_headers=proxy_headers or None,
                timeout=way.timeout,
                allow_redirects=False,
            ) as response,
        ):
            status = HTTPStatus.PROXY_AUTHENTICATION_REQUIRED
            if way.proxy is not None and request.url.scheme == "http" and response.status == status:
                raise Failure(Reason.UNREACHABLE, _refusal_of(way.proxy, status, way.host))
            return await self._receive(response, request, self._large[way.told])

    async def _receive(
        self, response: aiohttp.ClientResponse, request: Request, large: asyncio.Semaphore
    ) -> Response:
        headers = tuple(response.headers.items())
        is_ok = response.status == HTTPStatus.OK
        body = await _read(response, request.max_body if is_ok else MAX_OTHER_BODY, large)
        if body is None and is_ok:
            detail = f"the answer is longer than {request.max_body} bytes"
            raise Failure(Reason.BAD_ANSWER, detail)
        return Response(response.status, headers, body or b"")

    async def _open(
        self,
        names: AbstractResolver,
        make: aiohttp.SocketFactoryType,
        response_class: type[aiohttp.ClientResponse] | None = None,
        *,
        idle: int | None = None,
    ) -> "_Pool":
        """Connections of which `idle`, by default `total`, may wait for the next request."""
        sockets: WeakSet[socket.socket] = WeakSet()

        def counted(info: aiohttp.AddrInfoType) -> socket.socket:
            made = make(info)
            sockets.add(made)
            return made

        async def session(*, keeps: bool) -> aiohttp.ClientSession:
            connector = aiohttp.TCPConnector(
                resolver=names,
                socket_factory=counted if keeps else make,
                force_close=not keeps,
                keepalive_timeout=KEEPALIVE if keeps else None,
                limit=0,  # the pool's part: to wait for a connection is not to connect
                ttl_dns_cache=NAME_AGE,
            )
            return await self._stack.enter_async_context(
                aiohttp.ClientSession(
                    connector=connector,
                    response_class=response_class or _PeerNotingResponse,
                    headers={"User-Agent": f"tagpin/{__version__}", "Accept-Encoding": "identity"},
                    cookie_jar=aiohttp.DummyCookieJar(),
                    auto_decompress=False,
                    trust_env=False,
                    max_line_size=MAX_HEADER_FIELD,
                    max_field_size=MAX_HEADER_FIELD,
                )
            )

        return _Pool(
            keeping=await session(keeps=True),
            closing=await session(keeps=False),
            sockets=sockets,
            idle=self._total if idle is None else idle,
            free=asyncio.Semaphore(self._total),
        )


class TransientFailure(Failure):
    """No answer came; that may be gone a moment later."""


class Unconnected(TransientFailure):
    """No connection came about, so that it says nothing of what was asked for."""


@dataclass(slots=True)
class _Pool:
    """Connections of one class of trust, of which as many are used at once as are `free`.

    While `idle` of the `sockets` of one session wait for a next request, the other one, which
    keeps no connection, carries what comes.
    """

    keeping: aiohttp.ClientSession
    closing: aiohttp.ClientSession
    sockets: WeakSet[socket.socket]
    idle: int
    free: asyncio.Semaphore
    _busy: int = 0

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[aiohttp.ClientSession]:
        """The session for one request, as soon as there may be one more."""
        async with self.free:
            if len(self.sockets) - self._busy >= self.idle:
                yield self.closing
                return
            self._busy += 1
            try:
                yield self.keeping
            finally:
                self._busy -= 1


@dataclass(frozen=True, slots=True)
class _Pools:
    """One per class of trust."""

    listed: _Pool
    globbed: _Pool
    unlisted: _Pool
    derived: _Pool
    derived_public: _Pool
    proxied_listed: _Pool
    proxied: _Pool


@dataclass(frozen=True, slots=True)
class _Way:
    """How a request gets to its host; `told` where strangers may hear what comes of it."""

    pool: _Pool
    host: str
    tls: ssl.SSLContext
    timeout: aiohttp.ClientTimeout
    proxy: Proxy | None
    told: bool

    @property
    def conceals(self) -> bool:
        """Whether a failure on the way could be one of an inner address: nobody has seen it."""
        return self.proxy is not None and not self.told


class _PeerNotingResponse(aiohttp.ClientResponse):
    """Notes which peer an answer comes from, also on a connection that was open already."""

    async def start(self, connection: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        transport = connection.transport
        peer = transport.get_extra_info("peername") if transport is not None else None
        if peer is None:
            raise aiohttp.ServerDisconnectedError
        guard.note_peer(peer)
        return await super().start(connection)


class _ProxiedResponse(aiohttp.ClientResponse):
    """Notes that the request went out, behind whatever the proxy had to be told before."""

    async def start(self, connection: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        guard.note_sent()
        return await super().start(connection)


class _StrangersNames(AbstractResolver):
    """Looks up what strangers choose: of a name with very many addresses only some.

    A name of two dots or more is taken as it is: no search domain makes a Service of it. Nor does
    /etc/hosts know it then; what it is to know must be listed in full.
    """

    def __init__(self, names: AbstractResolver) -> None:
        self._names = names

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        is_whole = host.count(".") >= 2 and not host.endswith(".")  # noqa: PLR2004 - dots
        found = await self._names.resolve(f"{host}." if is_whole else host, port, family)
        return found[:MAX_ADDRESSES]

    async def close(self) -> None:
        """Leave that to whoever owns the names."""


def _any_socket(info: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = info
    return socket.socket(family, kind, protocol)


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
    error: Exception, way: _Way, trace: guard.Trace, rules: guard.AddressRules
) -> Failure:
    """What an exception of aiohttp means."""
    if way.proxy is not None:
        failure = (
            _answer_failure(error, way.host)
            if trace.answering
            else _proxy_failure(error, way.host, way.proxy)
        )
        failure.concealed = way.conceals
        return failure
    if trace.refused and not trace.opened:
        if any(rules.blocks(address) for address in trace.refused):
            return Failure(Reason.BLOCKED, f"{way.host} has an address that is not allowed")
        detail = f"{way.host} is private, unlike the registry that leads there"
        return Failure(Reason.BLOCKED, detail)
    return _answer_failure(error, way.host)


def _proxy_failure(error: Exception, host: str, proxy: Proxy) -> Failure:
    """What it means that no proxy led to a host."""
    by = f"through the proxy {proxy.name}"
    match error:
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            return Failure(Reason.TLS, f"no trusted TLS with {host} {by}")
        case aiohttp.ClientHttpProxyError(status=status):
            detail = _refusal_of(proxy, status, host)
            is_passing = status >= HTTPStatus.INTERNAL_SERVER_ERROR
            return (Unconnected if is_passing else Failure)(Reason.UNREACHABLE, detail)
        case TimeoutError():
            return Unconnected(Reason.TIMEOUT, f"no connection to {host} in time {by}")
        case _:
            return Unconnected(Reason.UNREACHABLE, f"no connection to {host} {by}")


def _refusal_of(proxy: Proxy, status: int, host: str) -> str:
    return f"the proxy {proxy.name} answered {status} to the wish for {host}"


def _answer_failure(error: Exception, host: str) -> Failure:
    match error:
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            return Failure(Reason.TLS, f"no trusted TLS with {host}")
        case aiohttp.ClientResponseError() | ValueError():
            return Failure(Reason.BAD_ANSWER, f"{host} does not answer in HTTP")
        case _:
            return _silence_of(error, host)


def _silence_of(error: Exception, host: str) -> TransientFailure:
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
