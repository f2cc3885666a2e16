"""One suite of conversations through a proxy, held with the fake one and with a real one."""

import base64
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from yarl import URL

from cluster.authority import Authority
from cluster.programs import LOOPBACK
from fakes.faults import resetting, with_header
from fakes.names import FakeNames
from fakes.registry import OCI_INDEX, FakeRegistry
from tagpin.errors import Reason, Unresolvable
from tagpin.keychain import Credential, Keychain
from tagpin.pins import Source
from tagpin.reference import Reference
from tagpin.registry.client import RegistryClient
from tagpin.registry.flow import Failure, Flow, Request, Response
from tagpin.registry.places import RegistrySettings
from tagpin.registry.resolver import RegistryResolver

from .proxies import KINDS, LOGIN, WITH_LOGIN, Backend, running

ALICE = ("alice", "pa55word")
UNKNOWN = "nobody.invalid"
"""A name that nobody has (RFC 6761 §6.4)."""

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(params=KINDS, scope="module", loop_scope="module")
async def backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Backend]:
    async with running(request.param, tmp_path_factory.mktemp("proxy")) as backend:
        yield backend


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server_tls(authority: Authority) -> ssl.SSLContext:
    issued = authority.issue("registry", hosts=["localhost", LOOPBACK])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.certificate, issued.key)
    return context


@dataclass(slots=True)
class Office:
    """Whose clients know no name at all, and reach registries through the proxy only."""

    backend: Backend
    ca: str
    tls: ssl.SSLContext
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def registry(self, *, tls: bool = True, **settings: Any) -> FakeRegistry:
        registry = FakeRegistry(tls=self.tls if tls else None, **settings)
        return await self.stack.enter_async_context(registry)

    async def client(
        self, host: str, *, login: str | None = None, ca: bool = True, **settings: Any
    ) -> RegistryClient:
        """For the registry at `host`, through the proxy with the right login or with another."""
        client = RegistryClient(
            registries=[RegistrySettings(host, proxy=self.backend.url(login), **settings)],
            ca=self.ca if ca else None,
            names=FakeNames(),
            jitter=lambda: 0.0,
        )
        return await self.stack.enter_async_context(client)

    async def resolver(self, host: str, **settings: Any) -> RegistryResolver:
        resolver = RegistryResolver(await self.client(host, **settings))
        self.stack.push_async_callback(resolver.aclose)
        return resolver


@pytest_asyncio.fixture(loop_scope="module")
async def office(
    backend: Backend, authority: Authority, server_tls: ssl.SSLContext
) -> AsyncIterator[Office]:
    office = Office(backend, authority.certificate.read_text(), server_tls)
    async with office.stack:
        yield office


async def resolve(resolver: RegistryResolver, host: str, tag: str, *, login: bool = False) -> str:
    """In less time than a client waits for somebody silent: nobody has to be."""
    keychain = Keychain(((host, Credential(*ALICE)),) if login else ())
    ref = Reference.parse(f"{host}/demo/app:{tag}")
    resolution = await resolver.resolve(ref, keychain, namespace="team", max_age=0, within=4)
    assert resolution.source is Source.REGISTRY  # and not what was known before
    return str(resolution.digest)


async def status_of(client: RegistryClient, host: str) -> int:
    """Of an answer in plain http, which the proxy may have given itself.

    By GET, since proxy.py answers HEAD with a body too.
    """

    def get() -> Flow[int]:
        response: Response = yield Request("GET", URL(f"http://{host}/v2/"), {}, 1000)
        return response.status

    return await client.run(get(), client.registry(host), within=10)


async def refusal(resolver: RegistryResolver, host: str) -> Unresolvable:
    with pytest.raises(Unresolvable) as caught:
        await resolve(resolver, host, "absent")
    return caught.value


def at(host: str, registry: FakeRegistry) -> str:
    return f"{host}:{registry.port}"


# Conversations


by_name_and_by_address = pytest.mark.parametrize("host", ["localhost", LOOPBACK])


@by_name_and_by_address
async def test_a_tunnel(office: Office, host: str) -> None:
    registry = await office.registry()
    pushed = registry.push_image("demo/app", "v1")
    where = at(host, registry)
    assert await resolve(await office.resolver(where), where, "v1") == pushed
    assert {seen.headers["host"] for seen in registry.requests} == {where}


@by_name_and_by_address
async def test_plain_http(office: Office, host: str) -> None:
    registry = await office.registry(tls=False)
    pushed = registry.push_image("demo/app", "v1")
    where = at(host, registry)
    assert await resolve(await office.resolver(where, http=True), where, "v1") == pushed
    assert {seen.headers["host"] for seen in registry.requests} == {where}


@pytest.mark.parametrize("tls", [True, False], ids=["tunnel", "plain"])
async def test_the_registry_hears_its_own_login_and_not_the_proxys(
    office: Office, *, tls: bool
) -> None:
    registry = await office.registry(tls=tls, users=dict([ALICE]))
    pushed = {tag: registry.push_image("demo/app", tag, tag.encode()) for tag in ("v1", "v2")}
    where = at("localhost", registry)
    plain = {} if tls else {"http": True, "credentials_over_http": True}
    resolver = await office.resolver(where, **plain)
    for tag, digest in pushed.items():
        assert await resolve(resolver, where, tag, login=True) == digest
    assert any(seen.authorization for seen in registry.requests)
    # proxy.py passes it on with what follows on a connection in plain http: RFC 9110 §11.7.2
    judged = registry.requests if tls else registry.requests[:1]
    assert all("proxy-authorization" not in seen.headers for seen in judged)


@pytest.mark.parametrize("tls", [True, False], ids=["tunnel", "plain"])
async def test_a_large_manifest(office: Office, *, tls: bool) -> None:
    registry = await office.registry(tls=tls)
    registry.fault(with_header("Docker-Content-Digest"))  # so that its digest is of what arrives
    body = b'{"schemaVersion": 2, "manifests": [], "annotations": {"a": "%s"}}' % (b"x" * 1_000_000)
    pushed = registry.push_manifest("demo/app", "v1", body, OCI_INDEX)
    where = at("localhost", registry)
    assert await resolve(await office.resolver(where, http=not tls), where, "v1") == pushed


async def test_one_tunnel_carries_many_questions(office: Office) -> None:
    registry = await office.registry(users=dict([ALICE]), tokens=True)
    registry.realm = f"https://{at('localhost', registry)}/token"
    pushed = {tag: registry.push_image("demo/app", tag, tag.encode()) for tag in ("v1", "v2")}
    where = at("localhost", registry)
    resolver = await office.resolver(where)
    for tag, digest in pushed.items():
        assert await resolve(resolver, where, tag, login=True) == digest
    assert len(registry.requests) > 3
    assert len({seen.connection for seen in registry.requests}) == 1


async def test_a_tunnel_that_the_registry_ends_is_followed_by_another(office: Office) -> None:
    registry = await office.registry()
    pushed = registry.push_image("demo/app", "v1")
    where = at("localhost", registry)
    resolver = await office.resolver(where)
    assert await resolve(resolver, where, "v1") == pushed
    await registry.stop()
    await registry.start()
    assert await resolve(resolver, where, "v1") == pushed
    registry.fault(resetting(), times=1)
    assert await resolve(resolver, where, "v1") == pushed


async def test_nobody_trusts_a_registry_for_the_proxy_that_leads_there(office: Office) -> None:
    registry = await office.registry()
    where = at("localhost", registry)
    assert (await refusal(await office.resolver(where, ca=False), where)).reason is Reason.TLS
    assert registry.requests == []


# What goes wrong


@pytest.fixture(params=["silent", "unknown"])
def absent(request: pytest.FixtureRequest) -> Iterator[str]:
    """The host and port of nobody: an address where none listens, or a name that none has."""
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        if request.param == "unknown":
            taken.listen()  # so that it is the name alone which leads nowhere
        host = LOOPBACK if request.param == "silent" else UNKNOWN
        yield f"{host}:{taken.getsockname()[1]}"


async def test_who_is_not_there_is_unreachable(
    office: Office, absent: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    error = await refusal(await office.resolver(absent), absent)
    assert error.reason is Reason.UNREACHABLE
    host, _, _ = absent.partition(":")
    assert f"the proxy {office.backend.proxy.name} answered 502 to the wish for {host}" in (
        caplog.text
    )
    assert_no_login(caplog.text + str(error))


async def test_who_is_not_there_in_plain_http(office: Office, absent: str) -> None:
    assert await status_of(await office.client(absent, http=True), absent) == 502


wrong_logins = pytest.mark.parametrize("login", ["", "proxyuser:wr0ng"], ids=["none", "wrong"])


@pytest.mark.parametrize("backend", WITH_LOGIN, indirect=True, scope="module")
@wrong_logins
async def test_without_the_right_login_nothing_is_reached(
    office: Office, login: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    registry = await office.registry()
    where = at("localhost", registry)
    error = await refusal(await office.resolver(where, login=login), where)
    assert error.reason is Reason.UNREACHABLE
    assert f"the proxy {office.backend.proxy.name} answered 407 to the wish for localhost" in (
        caplog.text
    )
    assert_no_login(caplog.text + str(error), login)
    assert registry.requests == []


@pytest.mark.parametrize("backend", WITH_LOGIN, indirect=True, scope="module")
@wrong_logins
async def test_without_the_right_login_nothing_is_reached_in_plain_http(
    office: Office, login: str
) -> None:
    registry = await office.registry(tls=False)
    where = at("localhost", registry)
    with pytest.raises(Failure) as failure:
        await status_of(await office.client(where, login=login, http=True), where)
    assert failure.value.reason is Reason.UNREACHABLE
    told = f"the proxy {office.backend.proxy.name} answered 407 to the wish for localhost"
    assert str(failure.value) == told
    assert registry.requests == []


async def test_a_proxy_that_comes_back(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    registry, proxy = await office.registry(), office.backend.proxy
    pushed = registry.push_image("demo/app", "v1")
    where = at("localhost", registry)
    resolver = await office.resolver(where)
    assert await resolve(resolver, where, "v1") == pushed
    await proxy.stop()
    try:
        error = await refusal(resolver, where)
    finally:
        await proxy.__aenter__()
    assert error.reason is Reason.UNREACHABLE
    assert f"no connection to localhost through the proxy {proxy.name}" in caplog.text
    assert_no_login(caplog.text + str(error))
    assert await resolve(resolver, where, "v1") == pushed


def assert_no_login(shown: str, login: str = LOGIN) -> None:
    user, _, password = login.partition(":")
    encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
    assert not [each for each in (user, password, encoded) if each and each in shown]
