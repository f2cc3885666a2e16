"""Asks the clouds' own endpoints, and reads the little that they answer.

Nobody who can create a pod chooses these places, so they need no guard as registries do, and no
connection is shared with those. What arrives is looked at closely all the same.
"""

import math
import re
import ssl
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Protocol, Self

import aiohttp
import orjson
from aiohttp.abc import AbstractResolver
from yarl import URL

from tagpin import __version__
from tagpin.errors import ConfigurationError, Unobtainable

MAX_ANSWER = 64 * 1024
MAX_TOKEN = 16 * 1024
"""Characters: Azure names groups in its tokens, AWS tags."""

_OUTAGES = frozenset({429, 500, 502, 503, 504})

NAME_TIMEOUT = 0.5
"""Seconds that a name server has for its first answer, and twice as many for its second."""
NAME_TRIES = 2


@dataclass(frozen=True, slots=True)
class Document:
    """A JSON answer of `host`. A place in it is a path of keys and indexes.

    What is not there as expected raises Unobtainable, which repeats nothing of it.
    """

    host: str
    value: Any = field(repr=False)

    def text(self, *path: str | int) -> str:
        """The token or key at a place."""
        return visible(self._at(path), f"{self.host} gave no usable {path[-1]}")

    def seconds(self, *path: str | int) -> float:
        """The number at a place; some endpoints write it as text."""
        value = self._at(path)
        try:
            seconds = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            seconds = math.nan
        if not math.isfinite(seconds):
            raise Unobtainable(f"{self.host} gave no usable {path[-1]}")
        return seconds

    def moment(self, *path: str | int) -> float:
        """The Unix time at a place, given as a number or as in ISO 8601."""
        value = self._at(path)
        if not isinstance(value, str):
            return self.seconds(*path)
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise Unobtainable(f"{self.host} gave no usable {path[-1]}") from None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

    def _at(self, path: tuple[str | int, ...]) -> Any:
        value = self.value
        for step in path:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return None
        return value


@dataclass(frozen=True, slots=True)
class Answer:
    """What `host` answered with 200."""

    host: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    def document(self) -> Document:
        """The body as JSON; Unobtainable where it is none."""
        try:
            return Document(self.host, orjson.loads(self.body))
        except orjson.JSONDecodeError:
            raise Unobtainable(f"the answer of {self.host} is not JSON") from None

    def text(self, name: str) -> str:
        """The whole body, which is the `name` that was asked for."""
        return visible(self.body.decode("latin-1"), f"{self.host} gave no usable {name}")


def visible(value: Any, complaint: str) -> str:
    """Text that may enter a header or a form as it is; Unobtainable with `complaint` otherwise.

    No space, CR, LF or NUL, and nothing that is longer than any token.
    """
    if not isinstance(value, str) or not re.fullmatch(rf"[\x21-\x7e]{{1,{MAX_TOKEN}}}", value):
        raise Unobtainable(complaint)
    return value


def base_of(environment: Mapping[str, str], variable: str, default: str, scheme: str) -> URL:
    """The place that an environment variable names."""
    text = environment.get(variable) or default
    try:
        url = URL(text)
    except ValueError:
        url = URL()
    if url.scheme != scheme or not url.host or "@" in url.raw_authority or url.raw_query_string:
        raise ConfigurationError(f"{variable} is {text!r}, which does not begin with {scheme}://")
    return url


class Proxy(Protocol):
    """An HTTP proxy."""

    @property
    def url(self) -> URL:
        """Where it is."""
        ...

    @property
    def authorization(self) -> str | None:
        """The Proxy-Authorization that it wants, if any."""
        ...


class Endpoints:
    """Carries single requests; use as an async context manager.

    `ca` is PEM text trusted besides the system's authorities. `names` resolves host names and
    stays the caller's to close. `proxy` says through which proxy a place is asked, if through one;
    those over plain http, on the node, never are. `timeout` is seconds, for all of a request.
    """

    def __init__(
        self,
        *,
        ca: str | None = None,
        names: AbstractResolver | None = None,
        proxy: Callable[[URL], Proxy | None] = lambda _: None,
        timeout: float = 4.0,
    ) -> None:
        self._tls = ssl.create_default_context()
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        if ca is not None:
            try:
                self._tls.load_verify_locations(cadata=ca)
            except ssl.SSLError:
                raise ConfigurationError("the CA for the clouds' endpoints is not PEM") from None
        self._names = names
        self._proxy = proxy
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._stack = AsyncExitStack()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        names = self._names
        if names is None:
            # Not the look-up of the event loop, which a few names without an answer keep busy.
            names = aiohttp.AsyncResolver(timeout=NAME_TIMEOUT, tries=NAME_TRIES)
            self._stack.push_async_callback(names.close)
        self._session = await self._stack.enter_async_context(
            aiohttp.ClientSession(
                # Asked once in an hour: a connection that is kept has long been closed.
                connector=aiohttp.TCPConnector(resolver=names, force_close=True),
                headers={"User-Agent": f"tagpin/{__version__}", "Accept-Encoding": "identity"},
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=self._timeout,
                auto_decompress=False,
                trust_env=False,
            )
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._session = None
        await self._stack.aclose()

    async def ask(
        self,
        method: str,
        url: URL,
        *,
        headers: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
        body: bytes | None = None,
        needs: str,
    ) -> Answer:
        """What an endpoint answers; `needs` says what must be so for it to answer with 200.

        Raises Unobtainable, with nothing in it that was sent or received.
        """
        if self._session is None:
            raise RuntimeError("the endpoints are not open")
        host = url.host or ""
        proxy = self._proxy(url) if url.scheme == "https" else None
        login = proxy.authorization if proxy else None
        try:
            async with self._session.request(
                method,
                url,
                headers=headers,
                data=body if form is None else form,
                ssl=self._tls,
                proxy=proxy.url if proxy else None,
                proxy_headers={"Proxy-Authorization": login} if login else None,
                allow_redirects=False,
            ) as response:
                if response.status != HTTPStatus.OK:
                    response.close()
                    raise Unobtainable(
                        f"{host} answered {response.status}: {needs}",
                        is_outage=response.status in _OUTAGES,
                    )
                answer = await _read(response)
        # Not chained: their texts repeat what was received.
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _complaint(error, host) from None
        if answer is None:
            raise Unobtainable(f"the answer of {host} is longer than {MAX_ANSWER} bytes")
        return Answer(host, response.headers, answer)


async def _read(response: aiohttp.ClientResponse) -> bytes | None:
    """The whole body, or None where it is longer than MAX_ANSWER."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER:
            response.close()
            return None
    return bytes(body)


def _complaint(error: Exception, host: str) -> Unobtainable:
    match error:
        case aiohttp.ClientHttpProxyError():
            text = f"the proxy answered {error.status} to the wish for {host}"
            return Unobtainable(text, is_outage=True)
        case aiohttp.ClientProxyConnectionError():
            text = f"no connection to the proxy that leads to {host}"
            return Unobtainable(text, is_outage=True)
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            return Unobtainable(f"no trusted TLS with {host}")
        case TimeoutError():
            return Unobtainable(f"no answer from {host} in time", is_outage=True)
        case aiohttp.ClientResponseError() | aiohttp.ClientPayloadError() | ValueError():
            return Unobtainable(f"{host} does not answer in HTTP")
        case _:
            return Unobtainable(f"no connection to {host}", is_outage=True)
