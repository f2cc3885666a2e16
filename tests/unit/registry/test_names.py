"""Host names are looked up without waiting for one another, and lead to no Service by chance."""

import asyncio
import socket
import time

import aiohttp
import pytest

from tagpin.errors import Reason, Unresolvable
from tagpin.pinning import Resolution
from tagpin.registry.guard import DEFAULT_RULES
from tagpin.registry.places import Places, RegistrySettings
from tagpin.registry.transport import Transport

from .conftest import Net, reason


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


def test_names_without_an_answer_keep_no_other_name_waiting() -> None:
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

    with asyncio.Runner() as runner:
        runner.run(look_up())


def test_a_client_can_be_closed_while_a_name_is_looked_up() -> None:
    async def look_up() -> None:
        async with Transport(Places(()), rules=DEFAULT_RULES) as client:
            server = await use_server(client)
            pending = asyncio.create_task(addresses(client, "silent.test"))
            await asyncio.sleep(0.05)
        with pytest.raises(OSError):
            await pending
        server.transport.close()

    with asyncio.Runner() as runner:
        runner.run(look_up())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("localhost", "127.0.0.1"), ("127.1.2.3", "127.1.2.3"), ("::1", "::1")],
)
def test_what_needs_no_name_server_is_known(name: str, expected: str) -> None:
    async def look_up() -> list[str]:
        async with Transport(Places(()), rules=DEFAULT_RULES) as client:
            return await addresses(client, name)

    with asyncio.Runner() as runner:
        assert expected in runner.run(look_up())


class Zone(asyncio.DatagramProtocol):
    """Knows one IPv4 address for each name of a table, and that no other name exists."""

    def __init__(self, **names: str) -> None:
        self.asked: list[str] = []
        self._names = {name.replace("_", "."): address for name, address in names.items()}

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]  # what UDP gives
        self.transport = transport

    @property
    def address(self) -> str:
        host, port = self.transport.get_extra_info("sockname")
        return f"{host}:{port}"

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        end = data.index(b"\0", 12) + 5
        question, labels = data[12:end], []
        while question[0]:
            labels.append(question[1 : question[0] + 1].decode())
            question = question[question[0] + 1 :]
        name = ".".join(labels)
        self.asked.append(name)
        answer, flags, count = b"", b"\x81\x80", 0
        if name not in self._names:
            flags = b"\x81\x83"
        elif data[end - 4 : end - 2] == b"\0\1":
            packed = socket.inet_aton(self._names[name])
            answer, count = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + packed, 1
        head = data[:2] + flags + b"\0\1" + count.to_bytes(2) + b"\0\0\0\0"
        self.transport.sendto(head + data[12:end] + answer, address)


async def ask_in_cluster(
    net: Net, zone: Zone, image: str, **settings: RegistrySettings
) -> Resolution | Unresolvable:
    """What a client makes of `image` whose resolv.conf is that of a pod."""
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: zone, local_addr=("127.0.0.1", 0))
    names = aiohttp.AsyncResolver(
        nameservers=[zone.address],
        domains=["tagpin-system.svc.cluster.local", "svc.cluster.local", "cluster.local"],
        ndots=5,
        timeout=1,
        tries=1,
    )
    try:
        return await net.ask(image, names=names, registries=settings.values())
    finally:
        await names.close()
        zone.transport.close()


async def test_a_name_of_two_dots_reaches_no_service_by_a_search_domain(net: Net) -> None:
    registry, service = await net.registry("public.test"), await net.registry("private.test")
    pushed = registry.push_image("demo/app", "v1")
    zone = Zone(
        registry_wild_test="127.1.0.1",
        registry_wild_test_svc_cluster_local="127.2.0.1",
    )
    outcome = await ask_in_cluster(net, zone, net.image("registry.wild.test"))
    assert isinstance(outcome, Resolution)
    assert str(outcome.digest) == pushed
    assert set(zone.asked) == {"registry.wild.test"}
    assert service.requests == []
    assert {seen.headers["host"] for seen in registry.requests} == {
        f"registry.wild.test:{net.port}"
    }


async def test_a_name_of_two_dots_that_does_not_exist_is_not_searched_for(net: Net) -> None:
    service = await net.registry("private.test")
    zone = Zone(registry_wild_test_svc_cluster_local="127.2.0.1")
    outcome = await ask_in_cluster(net, zone, net.image("registry.wild.test"))
    assert isinstance(outcome, Unresolvable)
    assert set(zone.asked) == {"registry.wild.test"}
    assert service.requests == []


async def test_a_glob_makes_no_service_of_a_name(net: Net) -> None:
    zone = Zone(registry_wild_test_svc_cluster_local="127.2.0.1")
    settings = RegistrySettings(f"*.wild.test:{net.port or 443}")
    outcome = await ask_in_cluster(net, zone, "registry.wild.test/demo/app:v1", listed=settings)
    assert isinstance(outcome, Unresolvable)
    assert set(zone.asked) == {"registry.wild.test"}


async def test_a_registry_listed_in_full_may_be_a_service(net: Net) -> None:
    service = await net.registry("private.test")
    pushed = service.push_image("demo/app", "v1")
    zone = Zone(registry_wild_test_svc_cluster_local="127.2.0.1")
    settings = RegistrySettings(f"registry.wild.test:{net.port}")
    outcome = await ask_in_cluster(net, zone, net.image("registry.wild.test"), listed=settings)
    assert isinstance(outcome, Resolution)
    assert str(outcome.digest) == pushed


async def test_a_name_of_one_dot_is_searched_for(net: Net) -> None:
    service = await net.registry("private.test")
    pushed = service.push_image("demo/app", "v1")
    zone = Zone(private_test_svc_cluster_local="127.2.0.1")
    outcome = await ask_in_cluster(net, zone, net.image("private.test"))
    assert isinstance(outcome, Resolution)
    assert str(outcome.digest) == pushed


# Names that strangers choose


@pytest.mark.parametrize("network", ["127.3", "127.1"], ids=["blocked", "public"])
async def test_a_name_with_a_great_many_addresses_costs_little_time(net: Net, network: str) -> None:
    net.port = 1  # where nobody listens
    net.names.add("other.test", [f"{network}.1.{number}" for number in range(250)])
    began = time.process_time()
    outcome = await net.ask(net.image("other.test"), retries=0)
    assert time.process_time() - began < 0.3
    assert reason(outcome) is (Reason.BLOCKED if network == "127.3" else Reason.UNREACHABLE)
