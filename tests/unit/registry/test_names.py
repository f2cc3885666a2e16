"""Host names are looked up without waiting for one another."""

import asyncio
import socket
from collections.abc import Callable

import aiohttp
import pytest
import uvloop

from tagpin.registry.guard import DEFAULT_RULES
from tagpin.registry.places import Places
from tagpin.registry.transport import Transport

EVERY_LOOP = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
NewLoop = Callable[[], asyncio.AbstractEventLoop]


class NameServer(asyncio.DatagramProtocol):
    """Knows one IPv4 address for whatever is called `good.…`, and never answers for others."""

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]  # what UDP gives
        self.transport = transport

    @property
    def address(self) -> str:
        host, port = self.transport.get_extra_info("sockname")
        return f"{host}:{port}"

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        if not data[12:].startswith(b"\x04good"):
            return
        question = data[12 : data.index(b"\0", 12) + 5]
        found = question[-4:-2] == b"\0\1"
        answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x7f\1\0\1" if found else b""
        counts = b"\0\1\0\1\0\0\0\0" if found else b"\0\1\0\0\0\0\0\0"
        self.transport.sendto(data[:2] + b"\x81\x80" + counts + question + answer, address)


async def addresses(client: Transport, name: str) -> list[str]:
    names = client._names
    assert names is not None
    return [each["host"] for each in await names.resolve(name, 443, socket.AF_UNSPEC)]


async def use_server(client: Transport) -> NameServer:
    loop = asyncio.get_running_loop()
    _, server = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
    assert isinstance(client._names, aiohttp.AsyncResolver)
    client._names._resolver.nameservers = [server.address]
    return server


@EVERY_LOOP
def test_names_without_an_answer_keep_no_other_name_waiting(new_loop: NewLoop) -> None:
    async def look_up() -> None:
        async with Transport(Places(()), rules=DEFAULT_RULES) as client:
            server = await use_server(client)
            silent = [
                asyncio.create_task(addresses(client, f"silent-{number}.test"))
                for number in range(100)
            ]
            await asyncio.sleep(0.05)
            async with asyncio.timeout(1):
                assert await addresses(client, "good.test") == ["127.1.0.1"]
            assert not any(each.done() for each in silent)
            async with asyncio.timeout(3):
                outcomes = await asyncio.gather(*silent, return_exceptions=True)
            assert {type(each) for each in outcomes} == {OSError}
            server.transport.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(look_up())


@EVERY_LOOP
def test_a_client_can_be_closed_while_a_name_is_looked_up(new_loop: NewLoop) -> None:
    async def look_up() -> None:
        async with Transport(Places(()), rules=DEFAULT_RULES) as client:
            server = await use_server(client)
            pending = asyncio.create_task(addresses(client, "silent.test"))
            await asyncio.sleep(0.05)
        with pytest.raises(OSError):
            await pending
        server.transport.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(look_up())


@EVERY_LOOP
@pytest.mark.parametrize(
    ("name", "expected"),
    [("localhost", "127.0.0.1"), ("127.1.2.3", "127.1.2.3"), ("::1", "::1")],
)
def test_what_needs_no_name_server_is_known(new_loop: NewLoop, name: str, expected: str) -> None:
    async def look_up() -> list[str]:
        async with Transport(Places(()), rules=DEFAULT_RULES) as client:
            return await addresses(client, name)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert expected in runner.run(look_up())
