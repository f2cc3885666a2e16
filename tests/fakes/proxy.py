"""An HTTP proxy in this process, which knows its own names and no others; see tests/contract.

async with FakeProxy({"r.example": "127.1.0.1"}) as proxy:
    …                                  # send requests through proxy.url
    proxy.fault = b"HTTP/1.1 502 Bad Gateway\\r\\n\\r\\n"
    print(proxy.requests)
"""

import asyncio
import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Self

from yarl import URL


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that the proxy itself saw; header names are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str] = field(repr=False)


class FakeProxy:
    """Opens tunnels, and passes on requests for plain http, to hosts by the table `names`.

    Other hosts are taken for addresses. With `login` (`user:password`) it wants that. While `fault`
    is set, those bytes are the answer to everything; empty ones close the connection, and `silent`
    never answers.
    """

    def __init__(
        self, names: Mapping[str, str], *, host: str = "127.0.0.1", login: str | None = None
    ) -> None:
        self.requests: list[Asked] = []
        self.fault: bytes | None = None
        self.silent = False
        self._names = names
        self._address = host
        self._login = login and f"Basic {base64.b64encode(login.encode()).decode()}"
        self._server: asyncio.Server | None = None
        self._serving: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.port = 0

    @property
    def name(self) -> str:
        return f"{self._address}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.name}"

    @property
    def targets(self) -> list[str]:
        return [each.target for each in self.requests]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self._address, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Stop listening and drop every connection."""
        if self._server is not None:
            self._server.close()
        serving = dict(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        # Their connections end a moment after that; with the loop closed, they never would.
        for writer in serving.values():
            writer.close()
        await asyncio.gather(
            *(writer.wait_closed() for writer in serving.values()), return_exceptions=True
        )

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving[task] = writer
        task.add_done_callback(self._serving.pop)
        # Here, since a task that is cancelled before it began runs no `finally`.
        task.add_done_callback(lambda _: writer.close())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin1")
            first, *fields = head.rstrip("\r\n").split("\r\n")
            method, target, _ = first.split(" ")
            headers = {
                name.lower(): value for name, _, value in (each.partition(": ") for each in fields)
            }
            self.requests.append(Asked(method, target, headers))
            if self.silent:
                await asyncio.Event().wait()
            if self.fault is not None:
                writer.write(self.fault)
            elif self._login and headers.get("proxy-authorization") != self._login:
                writer.write(_answer(407, "Proxy Authentication Required"))
            elif method == "CONNECT":
                host, _, port = target.rpartition(":")
                await self._lead(reader, writer, host, int(port), None)
            else:
                url = URL(target)
                kept = [each for each in fields if not each.lower().startswith("proxy-")]
                lines = [f"{method} {url.raw_path_qs} HTTP/1.1", *kept, "Connection: close", "", ""]
                onward = "\r\n".join(lines).encode("latin1")
                await self._lead(reader, writer, url.host or "", url.port or 80, onward)
        except (OSError, asyncio.IncompleteReadError):
            pass  # somebody has heard enough

    async def _lead(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        host: str,
        port: int,
        onward: bytes | None,
    ) -> None:
        try:
            address = self._names.get(host) or str(ip_address(host.strip("[]")))
            there, back = await asyncio.open_connection(address, port)
        except (OSError, ValueError):
            writer.write(_answer(502, "Bad Gateway"))
            return
        try:
            if onward is None:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                back.write(onward)
            ways = [
                asyncio.create_task(_pass_on(reader, back)),
                asyncio.create_task(_pass_on(there, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        finally:
            back.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


def _answer(status: int, phrase: str) -> bytes:
    return f"HTTP/1.1 {status} {phrase}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()
