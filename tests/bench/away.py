"""A registry some milliseconds away, and one that never answers."""

import asyncio
import contextlib
import socket
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
        self._clients: set[_End] = set()

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

    async def drop(self) -> None:
        """Close all connections; the next request of each client has to make one."""
        for each in tuple(self._clients):
            each.drop()


class _End(asyncio.Protocol):
    """One end of a connection that goes through; the `other` end sends on what arrives here."""

    def __init__(self, away: Away, other: "_End | None") -> None:
        self._away = away
        self._other = other
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes] = []
        self._last = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        loop = asyncio.get_running_loop()
        if self._other is None:  # a client's
            self._away._clients.add(self)
            other = self._other = _End(self._away, self)
            self._last = loop.time() + 1.5 * self._away.round_trip
            connecting = loop.create_connection(lambda: other, LOOPBACK, self._away.registry.port)
            self._task = loop.create_task(connecting)
        for each in self._early:
            transport.write(each)

    def data_received(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        self._last = max(self._last, loop.time() + self._away.round_trip / 2)
        assert self._other is not None
        if self._away.round_trip:
            loop.call_at(self._last, self._other.send, data)
        else:
            self._other.send(data)

    def send(self, data: bytes) -> None:
        if self._transport is None:
            self._early.append(data)
        elif not self._transport.is_closing():
            self._transport.write(data)

    def drop(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._away._clients.discard(self)
        if self._other is not None and self._other._transport is not None:
            asyncio.get_running_loop().call_later(
                self._away.round_trip, self._other._transport.close
            )


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
