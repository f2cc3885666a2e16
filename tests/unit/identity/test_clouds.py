"""A cloud's credential goes to registries of that cloud, and to nobody who looks like one."""

import asyncio
import subprocess
import sys
from contextlib import AsyncExitStack
from ipaddress import ip_network
from typing import Any

import pytest
from aiohttp import web

from fakes.clouds import ACCESS_KEY
from fakes.proxy import FakeProxy
from fakes.registry import FakeRegistry
from tagpin.errors import ConfigurationError, Reason, Unobtainable
from tagpin.identity.clouds import PROVIDERS, CloudIdentities
from tagpin.identity.endpoints import Answer
from tagpin.identity.providers import Providers
from tagpin.keychain import Candidate, Credential, Identity
from tagpin.reference import Reference
from tagpin.registry.client import RegistryClient
from tagpin.registry.conversation import resolve_tag
from tagpin.registry.flow import Failure
from tagpin.registry.guard import DEFAULT_RULES, AddressRules
from tagpin.registry.proxies import Proxies, Proxy

from .conftest import Sky

ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
GAR = "europe-docker.pkg.dev"
ACR = "demo.azurecr.io"
STATIC = {"AWS_ACCESS_KEY_ID": ACCESS_KEY[0], "AWS_SECRET_ACCESS_KEY": ACCESS_KEY[1]}


async def all_of(sky: Sky, **settings: Any) -> CloudIdentities:
    environment = sky.clouds.instance() | sky.clouds.workload(sky.folder) | STATIC
    return await sky.identities(*PROVIDERS, environment=environment, **settings)


async def refusal(identities: CloudIdentities, provider: str = "ecr", host: str = ECR) -> str:
    with pytest.raises(Unobtainable) as raised:
        await identities.obtain(Identity(provider, host))
    return str(raised.value)


# Who is who


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        (ECR, "ecr"),
        ("public.ecr.aws", "ecr"),
        ("gcr.io", "google"),
        ("eu.gcr.io", "google"),
        (GAR, "google"),
        ("us-central1-docker.pkg.dev", "google"),
        (ACR, "acr"),
        ("demo-abc123.azurecr.io", "acr"),
    ],
)
async def test_a_registry_is_of_one_cloud(sky: Sky, host: str, provider: str) -> None:
    identities = await all_of(sky)
    assert identities.identities_for(host) == (Identity(provider, host),)
    assert (await identities.obtain(Identity(provider, host))).password


LOOK_ALIKES = [
    f"{ECR}.evil.example",
    f"{ECR}.",
    f"{ECR}:443",
    f"{ECR}:8443",
    ECR.upper(),
    ECR.replace("amazonaws", "amazonavvs"),
    "gcr.io.evil.example",
    "gcr.io.",
    "gcr.io:443",
    "GCR.io",
    "evilgcr.io",
    "a.b.gcr.io",
    ".gcr.io",
    "-.gcr.io",
    "eu_.gcr.io",
    "gcr.iо",  # noqa: RUF001 - a Cyrillic o
    "xn--gcr-tqa.io",
    "gcr.io\n",
    "pkg.dev",
    "evilpkg.dev",
    "a.europe-docker.pkg.dev",
    "europe-docker.pkg.dev:443",
    "europe-docker.pkg.dev.evil.example",
    "europe-docker.pkg.devil",
    "Europe-docker.pkg.dev",
    "metadata.google.internal",
    "azurecr.io",
    "demo.azurecr.io.evil.example",
    "demo.azurecr.io.",
    "demo.azurecr.io:443",
    "demo.azurecr.io:5000",
    "Demo.azurecr.io",
    "a.demo.azurecr.io",
    "demo.azurecr.com",
    "demo.xazurecr.io",
    "demo@evil.example/.azurecr.io",
    "evil.example#.azurecr.io",
    "demo.azurеcr.io",  # noqa: RUF001 - a Cyrillic e
    "ｄemo.azurecr.io",  # noqa: RUF001 - a full-width d
    "login.microsoftonline.com",
    "sts.eu-west-1.amazonaws.com",
    "169.254.169.254",
    "[fd00:ec2::254]",
    "localhost",
    "docker.io",
    "",
]


@pytest.mark.parametrize("host", LOOK_ALIKES)
async def test_who_only_looks_like_a_registry_of_a_cloud_gets_nothing(sky: Sky, host: str) -> None:
    identities = await all_of(sky)
    assert identities.identities_for(host) == ()
    for provider in PROVIDERS:
        assert "is no registry" in await refusal(identities, provider, host)
    assert sky.clouds.seen == []


async def test_an_identity_of_another_cloud_opens_no_registry(sky: Sky) -> None:
    identities = await all_of(sky)
    for provider, host in [("ecr", GAR), ("google", ACR), ("acr", ECR)]:
        assert "is no registry" in await refusal(identities, provider, host)
    assert sky.clouds.seen == []


async def test_nobody_is_anything_to_a_cloud_unless_it_is_listed(sky: Sky) -> None:
    identities = await sky.identities("google", environment=sky.clouds.instance() | STATIC)
    assert identities.identities_for(ECR) == identities.identities_for(ACR) == ()
    assert await refusal(identities) == "nobody knows how to become ecr"
    assert (await sky.identities()).identities_for(GAR) == ()
    assert sky.clouds.seen == []


def test_a_cloud_that_nobody_knows_is_told_at_the_start() -> None:
    with pytest.raises(ConfigurationError, match="no cloud is called 'gcp'; known: ecr, google"):
        CloudIdentities(["gcp"], {})


# Bounds


async def test_an_endpoint_that_never_answers_is_given_up(sky: Sky) -> None:
    async def hang(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    sky.clouds.fault("api.ecr", hang)
    identities = await all_of(sky, timeout=0.05)
    assert await refusal(identities) == "no answer from api.ecr.eu-west-1.amazonaws.com in time"


async def test_an_endpoint_that_drips_is_given_up(sky: Sky) -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.01)

    sky.clouds.fault("api.ecr", drip)
    identities = await all_of(sky, timeout=0.2)
    assert await refusal(identities) == "no answer from api.ecr.eu-west-1.amazonaws.com in time"


async def test_an_answer_without_an_end_is_given_up(sky: Sky) -> None:
    sent = 0

    async def pour(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 65536)
            sent += 65536

    sky.clouds.fault("api.ecr", pour)
    message = await refusal(await all_of(sky))
    assert message == "the answer of api.ecr.eu-west-1.amazonaws.com is longer than 65536 bytes"
    assert sent < 8 * 1024 * 1024


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_no_redirect_is_followed_and_no_cookie_kept(sky: Sky, provider: str) -> None:
    headers = {"Location": f"http://{sky.clouds.node}/elsewhere", "Set-Cookie": "a=b"}
    sky.clouds.fault("", status=302, headers=headers)
    identities = await all_of(sky)
    host = {"ecr": ECR, "google": GAR, "acr": ACR}[provider]
    assert "answered 302" in await refusal(identities, provider, host)
    sky.clouds.heal()
    sky.clock.advance(6)
    await identities.obtain(Identity(provider, host))
    assert sky.clouds.asked("elsewhere") == []
    assert [each for each in sky.clouds.seen if "cookie" in each.headers] == []


@pytest.mark.parametrize(
    "raw",
    [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"],
)
async def test_what_does_not_speak_http_gives_no_credential(sky: Sky, raw: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        environment = {"GCE_METADATA_HOST": f"127.0.0.1:{port}"}
        identities = await sky.identities("google", environment=environment)
        message = await refusal(identities, "google", GAR)
    assert message in {"127.0.0.1 does not answer in HTTP", "no connection to 127.0.0.1"}


async def test_who_has_no_certificate_of_the_cloud_hears_no_secret(sky: Sky) -> None:
    sky.clouds.names.lead("api.ecr.eu-north-1.amazonaws.com", sky.clouds.port)
    host = "123456789012.dkr.ecr.eu-north-1.amazonaws.com"
    expected = "no trusted TLS with api.ecr.eu-north-1.amazonaws.com"
    assert await refusal(await all_of(sky), host=host) == expected
    assert await refusal(await all_of(sky, ca=None)) == f"no trusted TLS with api.{ECR[17:]}"
    assert sky.clouds.seen == []


def test_a_ca_that_is_none_is_told_at_the_start() -> None:
    with pytest.raises(ConfigurationError, match="is not PEM"):
        CloudIdentities([], {}, ca="none")


async def test_proxies_of_the_environment_are_not_used(
    sky: Sky, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    identities = await all_of(sky)
    for provider, host in [("ecr", ECR), ("google", GAR), ("acr", ACR)]:
        assert (await identities.obtain(Identity(provider, host))).password


async def test_a_given_proxy_leads_to_the_clouds_and_not_to_the_node(sky: Sky) -> None:
    async with FakeProxy({}, login="me:secret") as proxy:
        given = Proxy.parse(f"http://me:secret@{proxy.name}")
        sky.clouds.names.lead("api.ecr.eu-west-1.amazonaws.com", 9)
        identities = await all_of(sky, proxy=lambda _: given)
        assert (await identities.obtain(Identity("google", GAR))).password
        assert proxy.requests == []
        proxy.fault = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"
        api = "api.ecr.eu-west-1.amazonaws.com"
        message = await refusal(identities)
        assert message == f"the proxy answered 502 to the wish for {api}"
        [asked] = proxy.requests
        assert (asked.method, asked.target) == ("CONNECT", f"{api}:443")
        assert asked.headers["proxy-authorization"] == "Basic bWU6c2VjcmV0"
    sky.clock.advance(6)
    assert await refusal(identities) == f"no connection to the proxy that leads to {api}"


async def test_the_registry_clients_word_about_proxies_will_do(sky: Sky) -> None:
    proxies = Proxies.parse(https="http://127.0.0.1:9", no_proxy=".amazonaws.com")
    identities = await all_of(sky, proxy=proxies.leading_to)
    assert (await identities.obtain(Identity("ecr", ECR))).password
    message = await refusal(identities, "acr", ACR)
    assert message == "no connection to the proxy that leads to login.microsoftonline.com"


def test_what_was_received_is_not_printed() -> None:
    answer = Answer("host", {"X": "secret"}, b'{"a": "secret"}')
    assert "secret" not in f"{answer!r}{answer.document()!r}"


async def test_what_is_asked_when_closing_ends_with_it(sky: Sky) -> None:
    arrived = asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        arrived.set()
        await asyncio.Event().wait()
        raise AssertionError

    sky.clouds.fault("api.ecr", hang)
    identities = CloudIdentities(
        ["ecr"], STATIC, ca=sky.ca, names=sky.clouds.names, now=sky.clock.now
    )
    async with identities:
        waiting = asyncio.create_task(identities.obtain(Identity("ecr", ECR)))
        await arrived.wait()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_no_library_of_a_cloud_is_loaded() -> None:
    code = "import sys, tagpin.identity.clouds; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "tagpin.identity.ecr" in loaded
    heavy = ("botocore", "google.auth", "azure", "msal", "requests", "xml", "kubernetes", "kopf")
    assert [name for name in loaded if name.startswith(heavy)] == []


# With the registry client


LOOPBACK = ip_network("127.0.0.0/8")
RULES = AddressRules(
    blocked=tuple(each for each in DEFAULT_RULES.blocked if each != LOOPBACK),
    private=DEFAULT_RULES.private,
)


class Registries:
    """A registry of each cloud, under its own name, and a client with our identities."""

    def __init__(self, sky: Sky, stack: AsyncExitStack) -> None:
        self._sky = sky
        self._stack = stack
        self.identities: CloudIdentities
        self.client: RegistryClient

    async def open(self, host: str, **settings: Any) -> FakeRegistry:
        tls = self._sky.tls
        registry = FakeRegistry(tls=tls, **settings)
        await self._stack.enter_async_context(registry)
        registry.realm = f"https://{host}/token"
        self._sky.clouds.names.lead(host, registry.port)
        self.identities = await all_of(self._sky)
        self.client = await self._stack.enter_async_context(
            RegistryClient(
                rules=RULES,
                ca=self._sky.ca,
                names=self._sky.clouds.names,
                identities=Providers(dict.fromkeys(PROVIDERS, self.identities)),
            )
        )
        return registry

    async def resolve(self, image: str, *first: Candidate) -> str:
        ref = Reference.parse(image)
        candidates = (*first, *self.identities.identities_for(ref.domain))
        flow = resolve_tag(self.client.registry(ref.domain), ref, candidates)
        found = await self.client.run(flow, self.client.registry(ref.domain), within=5)
        return str(found)


@pytest.fixture
async def registries(sky: Sky) -> Any:
    async with AsyncExitStack() as stack:
        yield Registries(sky, stack)


async def test_an_image_of_ecr_is_resolved_with_its_password(registries: Registries) -> None:
    registry = await registries.open(ECR, users={"AWS": "ecr-password"})
    pushed = registry.push_image("team/app", "v1")
    assert await registries.resolve(f"{ECR}/team/app:v1") == pushed


async def test_an_image_of_ecr_public_is_resolved_with_a_token(registries: Registries) -> None:
    host = "public.ecr.aws"
    registry = await registries.open(host, users={"AWS": "ecr-password"}, tokens=True)
    pushed = registry.push_image("team/app", "v1")
    assert await registries.resolve(f"{host}/team/app:v1") == pushed


async def test_an_image_of_google_is_resolved_with_our_service_account(
    registries: Registries,
) -> None:
    registry = await registries.open(GAR, users={"oauth2accesstoken": "ya29.1"}, tokens=True)
    pushed = registry.push_image("project/team/app", "v1")
    assert await registries.resolve(f"{GAR}/project/team/app:v1") == pushed


async def test_an_image_of_azure_is_resolved_with_a_refresh_token(
    sky: Sky, registries: Registries
) -> None:
    registry = await registries.open(ACR, tokens=True)
    pushed = registry.push_image("team/app", "v1")
    # The exchange is the registry's own, on the same name.
    sky.clouds.names.lead(ACR, sky.clouds.port)
    credential = await registries.identities.obtain(Identity("acr", ACR))
    sky.clouds.names.lead(ACR, registry.port)
    registry.users = {credential.username: credential.password}
    assert await registries.resolve(f"{ACR}/team/app:v1") == pushed


async def test_a_pods_own_secret_comes_first_and_the_cloud_is_not_even_asked(
    sky: Sky, registries: Registries
) -> None:
    registry = await registries.open(ECR, users={"me": "pa55word", "AWS": "ecr-password"})
    pushed = registry.push_image("team/app", "v1")
    image = f"{ECR}/team/app:v1"
    assert await registries.resolve(image, Credential("me", "pa55word")) == pushed
    assert sky.clouds.seen == []
    assert await registries.resolve(image, Credential("me", "wrong")) == pushed
    assert len(sky.clouds.seen) == 1


async def test_a_registry_that_asks_for_nothing_is_shown_nothing(
    sky: Sky, registries: Registries
) -> None:
    registry = await registries.open(ECR)
    registry.push_image("team/app", "v1")
    await registries.resolve(f"{ECR}/team/app:v1")
    assert sky.clouds.seen == []
    assert [each.authorization for each in registry.requests] == [None]


async def test_a_cloud_that_gives_nothing_leaves_the_image_unauthorized(
    sky: Sky, registries: Registries, caplog: pytest.LogCaptureFixture
) -> None:
    await registries.open(ECR, users={"AWS": "ecr-password"})
    sky.clouds.fault("api.ecr", status=400, text="the body says more")
    with pytest.raises(Failure) as raised:
        await registries.resolve(f"{ECR}/team/app:v1")
    assert raised.value.reason is Reason.UNAUTHORIZED
    assert "GetAuthorizationToken" not in str(raised.value)  # users read that
    assert "the role needs ecr:GetAuthorizationToken" in caplog.text
    assert "the body" not in caplog.text
    assert ACCESS_KEY[1] not in caplog.text
