"""A registry that writes bytes as they are: for what no HTTP library would send."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from typing import Self

Script = Callable[[str], AsyncIterator[bytes]]
"""What is written in answer to a request of a method, piece by piece.

Where it ends, the connection is closed; where it raises ConnectionResetError, that is reset.
"""


class RawRegistry:
    """Reads requests at `host` and `port` (0: a free one) and answers by `script`.

    Without `tls` it is plain. Every connection carries one request, since a script says of itself
    where its answer ends. `requests` are the request lines.
    """

    def __init__(
        self, script: Script, *, host: str, port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self.requests: list[str] = []
        self.connections = 0
        self._script = script
        self._address = host
        self._port = port
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        return self._port

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._accept, self._address, self._port, ssl=self._tls
        )
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer: socket.socket = writer.get_extra_info("socket")
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(head.partition("\r\n")[0])
            async for piece in self._script(head.partition(" ")[0]):
                writer.write(piece)
                await writer.drain()
            writer.close()
        except ConnectionResetError:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has heard enough
        finally:
            if not writer.is_closing():
                writer.transport.abort()


def saying(*pieces: bytes, pause: float = 0.0) -> Script:
    """These pieces, `pause` seconds before each but the first."""

    async def script(_method: str) -> AsyncIterator[bytes]:
        for number, piece in enumerate(pieces):
            if number:
                await asyncio.sleep(pause)
            yield piece

    return script


def dripping(beginning: bytes, drop: bytes, pause: float) -> Script:
    """A beginning, then a drop every `pause` seconds, without an end."""

    async def script(_method: str) -> AsyncIterator[bytes]:
        yield beginning
        while True:
            await asyncio.sleep(pause)
            yield drop

    return script


def breaking(*pieces: bytes) -> Script:
    """These pieces, then the connection is reset."""

    async def script(_method: str) -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece
        await asyncio.sleep(0.01)  # what was written is read before
        raise ConnectionResetError

    return script
