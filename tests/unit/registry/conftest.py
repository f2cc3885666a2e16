"""A small internet on loopback: 127.1/16 is public, 127.2/16 private, 127.3/16 blocked."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from ipaddress import ip_network
from typing import Any

import pytest

from cluster.authority import Authority
from cluster.programs import free_ports
from fakes.clock import FakeClock
from fakes.names import FakeNames
from fakes.registry import FakeRegistry
from tagpin.errors import Reason, Unresolvable
from tagpin.keychain import Credential, Keychain
from tagpin.pinning import Resolution
from tagpin.reference import Reference
from tagpin.registry.client import RegistryClient
from tagpin.registry.guard import DEFAULT_RULES, AddressRules
from tagpin.registry.resolver import RegistryResolver
from tagpin.registry.transport import Exchange

LOOPBACK = ip_network("127.0.0.0/8")
RULES = AddressRules(
    blocked=tuple(each for each in DEFAULT_RULES.blocked if each != LOOPBACK),
    private=(*DEFAULT_RULES.private, ip_network("127.2.0.0/16")),
).blocking("127.3.0.0/16", "127.0.0.0/16")

_OF_THE_RESOLVER = ("per_namespace", "mirror_candidates", "remark")

ADDRESSES = {
    "public.test": "127.1.0.1",
    "other.test": "127.1.0.2",
    "private.test": "127.2.0.1",
    "inner.test": "127.2.0.2",
    "blocked.test": "127.3.0.1",
}


class Net:
    """Registries by name, all on one port, and a client that may reach some of them."""

    def __init__(self, tls: ssl.SSLContext, ca: str) -> None:
        self.tls = tls
        self.ca = ca
        self.names = FakeNames(**{name.replace(".", "_"): at for name, at in ADDRESSES.items()})
        self.clock = FakeClock()
        self.exchanges: list[Exchange] = []
        self.pauses: list[float] = []
        self.port = 0
        self.stack = AsyncExitStack()

    async def registry(
        self, name: str, *, tls: bool = True, port: int | None = None, **settings: Any
    ) -> FakeRegistry:
        """A registry at the address of `name`, whose realm is on that name."""
        registry = FakeRegistry(
            host=ADDRESSES[name],
            # One that is free at 127.0.0.1, where tests want it besides.
            port=(self.port or free_ports(1)[0]) if port is None else port,
            tls=self.tls if tls else None,
            **settings,
        )
        await self.stack.enter_async_context(registry)
        self.port = self.port or registry.port
        registry.realm = f"{'https' if tls else 'http'}://{name}:{registry.port}/token"
        return registry

    async def client(self, **settings: Any) -> RegistryClient:
        values: dict[str, Any] = {
            "rules": RULES,
            "ca": self.ca,
            "names": self.names,
            "observe": self.exchanges.append,
            "sleep": self._sleep,
        }
        return await self.stack.enter_async_context(RegistryClient(**(values | settings)))

    async def resolver(self, *, load_timeout: float = 10.0, **settings: Any) -> RegistryResolver:
        """Settings of the resolver itself are its own, all others those of its client."""
        own = {name: settings.pop(name) for name in _OF_THE_RESOLVER if name in settings}
        resolver = RegistryResolver(
            await self.client(**settings),
            load_timeout=load_timeout,
            draw=lambda: 0.0,
            clock=self.clock,
            now=self.clock.now,
            **own,
        )
        self.stack.push_async_callback(resolver.aclose)
        return resolver

    def image(self, name: str, repository: str = "demo/app", tag: str = "v1") -> str:
        return f"{name}:{self.port}/{repository}:{tag}"

    async def ask(
        self, image: str, *logins: tuple[str, ...], **settings: Any
    ) -> Resolution | Unresolvable:
        """What a fresh resolver makes of `image`, with these user names and passwords."""
        return await settle(await self.resolver(**settings), image, *logins)

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)


async def settle(
    resolver: RegistryResolver,
    image: str,
    *logins: tuple[str, ...],
    max_age: float = 60,
    within: float = 20,
    namespace: str = "team",
) -> Resolution | Unresolvable:
    ref = Reference.parse(image)
    keychain = Keychain(tuple((ref.domain, Credential(*login)) for login in logins))
    try:
        return await resolver.resolve(
            ref, keychain, namespace=namespace, max_age=max_age, within=within
        )
    except Unresolvable as error:
        return error


def reason(outcome: Resolution | Unresolvable) -> Reason:
    assert isinstance(outcome, Unresolvable), outcome
    return outcome.reason


def digest(outcome: Resolution | Unresolvable) -> str:
    assert isinstance(outcome, Resolution), outcome
    return str(outcome.digest)


async def until(registry: FakeRegistry, count: int) -> None:
    """Wait until so many requests have arrived."""
    for _ in range(2000):
        if len(registry.requests) >= count:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"only {len(registry.requests)} requests of {count}")


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def server_tls(authority: Authority) -> ssl.SSLContext:
    hosts = [*ADDRESSES, *ADDRESSES.values(), "*.wild.test", "10.1.2.3", "169.254.1.1"]
    issued = authority.issue("registry", hosts=hosts)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.certificate, issued.key)
    return context


@pytest.fixture
async def net(authority: Authority, server_tls: ssl.SSLContext) -> AsyncIterator[Net]:
    net = Net(server_tls, authority.certificate.read_text())
    async with net.stack:
        yield net
