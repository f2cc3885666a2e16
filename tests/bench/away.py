"""A registry some milliseconds away, and one that never answers."""

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from cluster.programs import LOOPBACK
from fakes.registry import FakeRegistry


class Away:
    """A port behind which the `registry` is `round_trip` seconds away, set at any time.

    Every byte travels for half of that, and the first ones of a connection for one round trip
    more, which its making would have taken. The registry knows itself by this address.
    """

    def __init__(self, registry: FakeRegistry) -> None:
        self.registry = registry
        self.round_trip = 0.0
        self._server: asyncio.Server
        self.transports: set[asyncio.Transport] = set()

    @property
    def host(self) -> str:
        """What references to it begin with."""
        return f"{LOOPBACK}:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _End(self, None), LOOPBACK, 0
        )
        self.registry.realm = f"https://{self.host}/token"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self.drop()

    async def drop(self) -> None:
        """Close all connections at once; the next request of each client has to make one."""
        for each in tuple(self.transports):
            each.abort()
        await asyncio.sleep(0)  # in which they are closed


class _End(asyncio.Protocol):
    """One end of a connection that goes through; the `other` end sends on what arrives here."""

    def __init__(self, away: Away, other: "_End | None") -> None:
        self._away = away
        self._other = other
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes | None] = []
        self._travelling: deque[bytes | None] = deque()
        self._last = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._away.transports.add(transport)
        loop = asyncio.get_running_loop()
        if self._other is None:  # a client's
            other = self._other = _End(self._away, self)
            self._last = loop.time() + 1.5 * self._away.round_trip
            connecting = loop.create_connection(lambda: other, LOOPBACK, self._away.registry.port)
            self._task = loop.create_task(connecting)
        for each in self._early:
            self._arrived(each)

    def data_received(self, data: bytes) -> None:
        self._depart(data)

    def connection_lost(self, exc: Exception | None) -> None:
        assert self._transport is not None
        self._away.transports.discard(self._transport)
        self._depart(None)

    def _depart(self, data: bytes | None) -> None:
        """Send on data, or the news that there is no more, behind all that is on the way."""
        assert self._other is not None
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._last = max(self._last, now + self._away.round_trip / 2)
        if self._last <= now and not self._travelling:
            self._other._arrived(data)
            return
        self._travelling.append(data)
        loop.call_at(self._last, self._arrive)

    def _arrive(self) -> None:
        # Whichever timer comes first: those of the same moment have no order.
        assert self._other is not None
        self._other._arrived(self._travelling.popleft())

    def _arrived(self, data: bytes | None) -> None:
        if self._transport is None:
            self._early.append(data)
        elif data is None:
            self._transport.close()
        elif not self._transport.is_closing():
            self._transport.write(data)


@contextmanager
def black_hole() -> Iterator[str]:
    """The host of a registry that nobody reaches: what is sent there is lost on the way.

    Its port has a queue for connections that is full, so the kernel drops all others.
    """
    with socket.create_server((LOOPBACK, 0), backlog=0) as listener:
        address = listener.getsockname()
        waiting = []
        for _ in range(4):
            each = socket.socket()
            each.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                each.connect(address)
            waiting.append(each)
        try:
            yield f"{LOOPBACK}:{address[1]}"
        finally:
            for each in waiting:
                each.close()
