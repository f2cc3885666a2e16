"""Connections to the webhook port: who gets one, and for how long.

Anybody who reaches the port can open connections and leave it at that, or send so slowly that
nothing ever arrives. asyncio's own servers let them, and say nothing of handshakes that fail.
"""

import asyncio
import errno
import logging
import os
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from aiohttp import web
from cachetools import TTLCache

from tagpin.cluster.context import failed

IDLE = 600.0
"""Seconds without a request. API servers close their idle connections after 90 s, and must be the
first to do so: Go's client resends no POST on a connection that has just been closed."""
LINGERING = 1.0
"""Seconds for which the other side may read why a handshake, or a request, has failed."""
QUIET = 60.0
"""Seconds for which nothing more is logged of the same peer."""
MAX_QUIET = 1000
BACKLOG = 1024
NO_DESCRIPTORS = 1.0
"""Seconds to wait where a connection cannot be accepted."""

log = logging.getLogger(__name__)


class Rejection(StrEnum):
    """Why a connection came to nothing: a closed set, for metrics."""

    NO_CERTIFICATE = "no_certificate"
    """The client has none, and must."""
    BAD_CERTIFICATE = "bad_certificate"
    """It is not of our CAs, or not for clients, or has expired."""
    HANDSHAKE = "handshake"
    """Something else was wrong with it: the client does not trust us, for example."""
    SILENCE = "silence"
    """Nothing was asked, or nothing arrived in time."""
    CROWDED = "crowded"
    """There were too many others."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What connections are allowed."""

    connections: int = 512
    """Open at the same time; the one that is missed least gives way to a new one."""
    handshake: float = 5.0
    """Seconds for a handshake."""
    first_request: float = 120.0
    """Seconds from there until the head of the first request has arrived. API servers open more
    than they need and keep them for later, for 90 s: see `IDLE`."""


USUAL = Limits()


class Hush:
    """Says what is worth a line in the log: the same of the same peer is not, for a while."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._told: TTLCache[tuple[str, str], bool] = TTLCache(MAX_QUIET, QUIET, timer=clock)

    def is_news(self, peer: str, what: str) -> bool:
        """Whether to tell this of a peer; then it is told."""
        if (peer, what) in self._told:
            return False
        self._told[peer, what] = True
        return True


class Caller(web.RequestHandler):
    """One connection, from the end of its handshake on.

    `context` is what that was made with; `made` and `lost` are told of its life.
    """

    def __init__(
        self,
        server: web.Server,
        context: ssl.SSLContext,
        *,
        made: Callable[["Caller"], None],
        lost: Callable[["Caller"], None],
    ) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type] # as AppRunner has it
            keepalive_timeout=IDLE,
            lingering_time=LINGERING,
            auto_decompress=False,  # a few KiB would become many MiB, and no API server packs any
        )
        self._made = made
        self._lost = lost
        self.context = context
        self.certificate: bytes | None = None
        """Of the client, in DER; it is verified, if clients need one."""
        self.has_asked = False
        """Whether the head of a request has arrived."""
        self.is_busy = False
        """Whether a review is in hand; one that is still to arrive is not."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As of an asyncio.Protocol."""
        super().connection_made(transport)
        handshake: ssl.SSLObject = transport.get_extra_info("ssl_object")
        self.certificate = handshake.getpeercert(binary_form=True)
        self._made(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """As of an asyncio.Protocol."""
        super().connection_lost(exc)
        self._lost(self)

    def abort(self) -> None:
        """Close it without ceremony."""
        if self.transport is not None:
            self.transport.abort()


class Listener:
    """Accepts connections for `server` at a port, from `start` to `close`.

    Each handshake is made with the `context` of its moment. `rejected` is told of connections
    that came to nothing; one that was opened and closed again is not worth a word.
    """

    def __init__(
        self,
        server: web.Server,
        context: Callable[[], ssl.SSLContext],
        *,
        rejected: Callable[[Rejection], None],
        limits: Limits,
    ) -> None:
        self._server = server
        self._context = context
        self._rejected = rejected
        self._limits = limits
        self._listening: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._greetings: dict[asyncio.Task[None], str] = {}
        """Handshakes under way and their peers, the oldest first."""
        self._strangers: dict[Caller, asyncio.TimerHandle] = {}
        """Connections that no review was answered on, the oldest first, and what expects one."""
        self._known: dict[Caller, None] = {}
        """The others, the one first that has been of no use for longest."""
        self._hush = Hush()

    async def start(self, address: str, port: int) -> None:
        """Listen; an empty address is all of them. Raises OSError."""
        self._listening = await _listening(address, port)
        self._accepting = [asyncio.create_task(self._accept(each)) for each in self._listening]

    async def close(self) -> None:
        """Accept no more; the connections that are there belong to the server."""
        tasks = [*self._accepting, *self._greetings]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in self._listening:
            each.close()

    def __len__(self) -> int:
        """How many connections are open."""
        return len(self._greetings) + len(self._strangers) + len(self._known)

    def answered(self, caller: Caller) -> None:
        """Take note that a review was answered: this connection is of use."""
        if self._forget(caller):
            self._known[caller] = None

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listening)
            except OSError as error:  # there are no more descriptors, for example
                self._reject(Rejection.CROWDED, "", f"no connection can be accepted: {error}")
                await asyncio.sleep(NO_DESCRIPTORS)
                continue
            peer = str(address[0])
            if len(self) >= self._limits.connections and not self._make_room():
                self._reject(Rejection.CROWDED, peer, "too many connections")
                accepted.close()
                continue
            greeting = loop.create_task(self._greet(accepted, peer))
            self._greetings[greeting] = peer
            greeting.add_done_callback(partial(self._greeted, accepted))

    def _make_room(self) -> bool:
        """Give up the connection that is missed least, if there is one without a review."""
        if self._greetings:
            greeting = next(iter(self._greetings))
            peer = self._greetings.pop(greeting)
            greeting.cancel()
            self._reject(Rejection.CROWDED, peer, "too many connections: a handshake is given up")
            return True
        for callers in (self._strangers, self._known):
            idle = next((each for each in callers if not each.is_busy), None)
            if idle is not None:
                self._forget(idle)
                self._reject(Rejection.CROWDED, _peer(idle), "too many connections: one is closed")
                idle.abort()
                return True
        return False

    async def _greet(self, accepted: socket.socket, peer: str) -> None:
        """Make the handshake."""
        loop = asyncio.get_running_loop()
        caller = Caller(self._server, self._context(), made=self._meet, lost=self._lose)
        failures: list[ssl.SSLError] = []
        patience = asyncio.timeout(None)

        def fail(error: ssl.SSLError) -> None:
            failures.append(error)
            patience.reschedule(loop.time() + LINGERING)

        failed.set(fail)
        try:
            async with patience:
                await loop.connect_accepted_socket(
                    lambda: caller,
                    accepted,
                    ssl=caller.context,
                    ssl_handshake_timeout=self._limits.handshake,
                )
        except OSError as error:
            accepted.close()
            if failures:
                self._reject(*_explained(failures[0], peer))
            elif isinstance(error, ConnectionAbortedError):
                self._reject(Rejection.SILENCE, peer, "a handshake took too long")

    def _greeted(self, accepted: socket.socket, greeting: asyncio.Task[None]) -> None:
        self._greetings.pop(greeting, None)
        if greeting.cancelled():  # perhaps before it had begun
            accepted.close()
        elif (fault := greeting.exception()) is not None:
            accepted.close()
            log.error("a handshake failed; please report this", exc_info=fault)

    def _meet(self, caller: Caller) -> None:
        loop = asyncio.get_running_loop()
        self._strangers[caller] = loop.call_later(
            self._limits.first_request, self._expect_request, caller
        )

    def _expect_request(self, caller: Caller) -> None:
        if not caller.has_asked:
            self._reject(Rejection.SILENCE, _peer(caller), "a connection asked for nothing")
            caller.abort()

    def _lose(self, caller: Caller) -> None:
        self._forget(caller)

    def _forget(self, caller: Caller) -> bool:
        """Drop a connection, and whatever would keep it in memory; whether it was there."""
        if (expecting := self._strangers.pop(caller, None)) is not None:
            expecting.cancel()
            return True
        if caller in self._known:
            del self._known[caller]
            return True
        return False

    def _reject(self, rejection: Rejection, peer: str, message: str) -> None:
        self._rejected(rejection)
        if self._hush.is_news(peer, rejection):
            extra = {"reason": rejection.value, "peer": peer}
            log.warning("a connection to the webhook came to nothing: %s", message, extra=extra)


def _explained(error: ssl.SSLError, peer: str) -> tuple[Rejection, str, str]:
    if isinstance(error, ssl.SSLCertVerificationError):
        message = f"the client's certificate will not do: {error.verify_message}"
        return Rejection.BAD_CERTIFICATE, peer, message
    if error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return Rejection.NO_CERTIFICATE, peer, "the client has no certificate"
    reason = (error.reason or "TLS error").replace("_", " ").lower()
    return Rejection.HANDSHAKE, peer, f"the handshake failed: {reason}"


def _peer(caller: Caller) -> str:
    return str(caller.peername[0]) if caller.peername else ""


async def _listening(address: str, port: int) -> list[socket.socket]:
    """A socket for each family that the address, or the machine, has."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(
        address or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    made: list[socket.socket] = []
    errors: list[OSError] = []
    for family, _, _, _, where in found:
        try:
            made.append(socket.create_server(where[:2], family=family, backlog=BACKLOG))
            made[-1].setblocking(False)
        except OSError as error:
            errors.append(error)
    is_lacking = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}  # a family that the machine has not
    if not made or any(error.errno not in is_lacking for error in errors):
        for each in made:
            each.close()
        number = errors[0].errno if errors else errno.EADDRNOTAVAIL
        raise OSError(number, f"{address or 'port'} {port}: {os.strerror(number or 0).lower()}")
    return made
