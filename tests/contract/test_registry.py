"""One suite of conversations, held with the fake registry and with real ones."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
import pytest_asyncio
from yarl import URL

from fakes.registry import DOCKER, OCI, FakeRegistry, Types
from tagpin.errors import Reason, Unresolvable
from tagpin.keychain import Credential, Keychain
from tagpin.pinning import Resolution
from tagpin.pins import Source
from tagpin.reference import Digest, Reference
from tagpin.registry.challenge import parse_challenges
from tagpin.registry.client import RegistryClient
from tagpin.registry.flow import Flow, Request
from tagpin.registry.manifest import ACCEPT, MAX_MANIFEST, Oddity, digest_by_body
from tagpin.registry.resolver import RegistryResolver

from .registries import (
    ALICE,
    IDENTITY_TOKEN,
    KINDS,
    PUBLIC,
    WITH_LOGIN,
    WITH_TOKENS,
    WITHOUT_LOGIN,
    Backend,
    running,
)

WRONG = (ALICE[0], "wrong")
ALICE_BY_TOKEN = (ALICE[0], "", IDENTITY_TOKEN)
"""User name, password, identity token."""
PLATFORMS = {"linux/amd64": b"a", "linux/arm64": b"b"}


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(params=KINDS, scope="module", loop_scope="module")
async def backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Backend]:
    """One after the other; what a test pushes stays for the others."""
    async with running(request.param, tmp_path_factory.mktemp(request.param)) as backend:
        yield backend


@pytest_asyncio.fixture(loop_scope="module")
async def client(backend: Backend) -> AsyncIterator[RegistryClient]:
    async with RegistryClient(registries=backend.listed) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def resolver(client: RegistryClient) -> AsyncIterator[RegistryResolver]:
    resolver = RegistryResolver(client)
    yield resolver
    await resolver.aclose()


@pytest.fixture
def made() -> FakeRegistry:
    """Where images are made, to be pushed from."""
    return FakeRegistry()


async def resolve(
    resolver: RegistryResolver, backend: Backend, name: str, *logins: tuple[str, ...]
) -> Resolution:
    """As alice where a login is wanted, unless told otherwise."""
    given = logins or ([backend.login] if backend.login else [])
    keychain = Keychain(tuple((backend.host, Credential(*login)) for login in given if login))
    return await resolver.resolve(
        Reference.parse(f"{backend.host}/{name}"), keychain, namespace="team", max_age=0, within=10
    )


NOBODY: tuple[str, ...] = ()


async def refusal(
    resolver: RegistryResolver, backend: Backend, name: str, *logins: tuple[str, ...]
) -> Reason:
    with pytest.raises(Unresolvable) as caught:
        await resolve(resolver, backend, name, *logins)
    return caught.value.reason


# Conversations


both_families = pytest.mark.parametrize("types", [OCI, DOCKER], ids=["oci", "docker"])


@both_families
async def test_an_image(
    resolver: RegistryResolver, backend: Backend, made: FakeRegistry, types: Types
) -> None:
    digest = made.push_image("demo/app", "v1", b"payload", types=types)
    await backend.push(made, "demo/app", "v1", digest)
    resolution = await resolve(resolver, backend, "demo/app:v1")
    assert (str(resolution.digest), resolution.source) == (digest, Source.REGISTRY)


@both_families
async def test_an_index_has_its_own_digest(
    resolver: RegistryResolver, backend: Backend, made: FakeRegistry, types: Types
) -> None:
    digest = made.push_index("demo/app", "v1", PLATFORMS, types=types)
    await backend.push(made, "demo/app", "v1", digest)
    assert str((await resolve(resolver, backend, "demo/app:v1")).digest) == digest


async def test_a_tag_that_moves(
    resolver: RegistryResolver, backend: Backend, made: FakeRegistry
) -> None:
    for payload in (b"one", b"two"):
        digest = made.push_image("demo/app", "latest", payload)
        await backend.push(made, "demo/app", "latest", digest)
        assert str((await resolve(resolver, backend, "demo/app")).digest) == digest


async def test_several_tags(
    resolver: RegistryResolver, backend: Backend, made: FakeRegistry
) -> None:
    tags = ("v1", "v2", "2026.01.01-rc_1")
    pushed = {tag: made.push_image("demo/app", tag, tag.encode()) for tag in tags}
    for tag, digest in pushed.items():
        await backend.push(made, "demo/app", tag, digest)
    for tag, digest in pushed.items():
        assert str((await resolve(resolver, backend, f"demo/app:{tag}")).digest) == digest


async def test_a_tag_that_does_not_exist(
    resolver: RegistryResolver, backend: Backend, made: FakeRegistry
) -> None:
    await backend.push(made, "demo/app", "v1", made.push_image("demo/app", "v1"))
    assert await refusal(resolver, backend, "demo/app:absent") is Reason.NOT_FOUND


async def test_a_repository_that_does_not_exist(
    resolver: RegistryResolver, backend: Backend
) -> None:
    assert await refusal(resolver, backend, "demo/absent:v1") is Reason.NOT_FOUND


@pytest.mark.parametrize("backend", WITHOUT_LOGIN, indirect=True)
async def test_a_login_that_nobody_asks_for(
    resolver: RegistryResolver, backend: Backend, made: FakeRegistry
) -> None:
    digest = made.push_image("demo/app", "v1")
    await backend.push(made, "demo/app", "v1", digest)
    assert str((await resolve(resolver, backend, "demo/app:v1", ALICE)).digest) == digest


@pytest.mark.parametrize("backend", WITHOUT_LOGIN, indirect=True)
@both_families
async def test_the_bytes_have_the_digest_that_their_header_names(
    client: RegistryClient, backend: Backend, made: FakeRegistry, types: Types
) -> None:
    """What is done where HEAD does not settle it."""

    def by_get(url: URL) -> Flow[Digest]:
        response = yield Request("GET", url, {"Accept": ACCEPT}, MAX_MANIFEST)
        return digest_by_body(response, oddities.append, strict=True)

    oddities: list[Oddity] = []
    registry = client.registry(backend.host)
    for tag, digest in {
        "image": made.push_image("demo/app", "image", types=types),
        "index": made.push_index("demo/app", "index", PLATFORMS, types=types),
    }.items():
        await backend.push(made, "demo/app", tag, digest)
        url = registry.origin / "v2/demo/app/manifests" / tag
        assert str(await client.run(by_get(url), registry, within=10)) == digest
    assert oddities == []


with_login = pytest.mark.parametrize("backend", WITH_LOGIN, indirect=True)


@with_login
async def test_a_wrong_password(
    resolver: RegistryResolver, backend: Backend, made: FakeRegistry
) -> None:
    await backend.push(made, "demo/app", "v1", made.push_image("demo/app", "v1"))
    assert await refusal(resolver, backend, "demo/app:v1", WRONG) is Reason.UNAUTHORIZED


@with_login
async def test_nobody(resolver: RegistryResolver, backend: Backend, made: FakeRegistry) -> None:
    await backend.push(made, "demo/app", "v1", made.push_image("demo/app", "v1"))
    assert await refusal(resolver, backend, "demo/app:v1", NOBODY) is Reason.UNAUTHORIZED


@with_login
async def test_the_second_of_two_logins(
    resolver: RegistryResolver, backend: Backend, made: FakeRegistry
) -> None:
    digest = made.push_image("demo/app", "v1")
    await backend.push(made, "demo/app", "v1", digest)
    resolution = await resolve(resolver, backend, "demo/app:v1", WRONG, ALICE)
    assert str(resolution.digest) == digest


with_tokens = pytest.mark.parametrize("backend", WITH_TOKENS, indirect=True)


@with_tokens
async def test_an_identity_token(
    resolver: RegistryResolver, backend: Backend, made: FakeRegistry
) -> None:
    digest = made.push_image("demo/app", "v1")
    await backend.push(made, "demo/app", "v1", digest)
    assert str((await resolve(resolver, backend, "demo/app:v1", ALICE_BY_TOKEN)).digest) == digest


@with_tokens
async def test_an_identity_token_that_is_wrong(
    resolver: RegistryResolver, backend: Backend, made: FakeRegistry
) -> None:
    await backend.push(made, "demo/app", "v1", made.push_image("demo/app", "v1"))
    wrong = (ALICE[0], "", "wrong")
    assert await refusal(resolver, backend, "demo/app:v1", wrong) is Reason.UNAUTHORIZED


@with_tokens
async def test_nobody_at_a_public_repository(
    resolver: RegistryResolver, backend: Backend, made: FakeRegistry
) -> None:
    digest = made.push_image(PUBLIC, "v1")
    await backend.push(made, PUBLIC, "v1", digest)
    assert str((await resolve(resolver, backend, f"{PUBLIC}:v1", NOBODY)).digest) == digest


# What is said, word for word


async def test_head_and_get_agree_on_type_and_digest(backend: Backend, made: FakeRegistry) -> None:
    digest = made.push_image("demo/app", "v1", b"payload")
    await backend.push(made, "demo/app", "v1", digest)
    url = f"{backend.url}/v2/demo/app/manifests/v1"
    async with aiohttp.ClientSession() as session:
        headers = {"Accept": ACCEPT} | (await authorizations(session, backend))["alice"]
        head = await session.head(url, headers=headers, ssl=backend.tls)
        get = await session.get(url, headers=headers, ssl=backend.tls)
        body = await get.read()
    assert (head.status, get.status) == (200, 200)
    assert head.headers["Docker-Content-Digest"] == digest
    assert get.headers["Docker-Content-Digest"] == digest
    assert head.content_type == get.content_type == made.media_type(digest)
    assert int(head.headers["Content-Length"]) == len(body)
    assert f"sha256:{hashlib.sha256(body).hexdigest()}" == digest


@dataclass(frozen=True, slots=True)
class Told:
    """What tagpin reads of an answer, and what people read of an error.

    `challenge` is without realm and service, which are everyone's own.
    """

    status: int
    digest: str | None = None
    media_type: str | None = None
    length: str | None = None
    challenge: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    code: str | None = None


Question = tuple[str, str, str, str]
"""Who asks, how, for what, and which formats are accepted."""

FORMATS = {
    "all": ACCEPT,
    "any": "*/*",
    "OCI images": OCI.image,
    "OCI indexes": OCI.index,
    "Docker images": DOCKER.image,
    "all, with weights": ",".join(f"{each};q=0.5" for each in ACCEPT.split(", ")[::-1]),
    "none": None,
}


@dataclass(frozen=True, slots=True)
class Content:
    """What every registry of the comparison holds; `paths` is what is asked for, by name."""

    made: FakeRegistry
    tags: dict[str, str]
    paths: dict[str, str]

    @classmethod
    def create(cls) -> "Content":
        made = FakeRegistry()
        tags = {
            "image": made.push_image("demo/app", "image"),
            "index": made.push_index("demo/app", "index", PLATFORMS),
            "docker-image": made.push_image("demo/app", "docker-image", types=DOCKER),
            "docker-index": made.push_index("demo/app", "docker-index", PLATFORMS, types=DOCKER),
        }
        child = orjson.loads(made.content(tags["index"]))["manifests"][1]["digest"]
        manifests = "/v2/demo/app/manifests"
        paths = {tag: f"{manifests}/{tag}" for tag in tags}
        paths |= {f"{tag} by digest": f"{manifests}/{digest}" for tag, digest in tags.items()}
        paths |= {
            "child by digest": f"{manifests}/{child}",
            "absent tag": f"{manifests}/absent",
            "absent digest": f"{manifests}/sha256:{'0' * 64}",
            "absent repository": "/v2/demo/absent/manifests/image",
            "digest of elsewhere": f"/v2/demo/absent/manifests/{tags['image']}",
            "public repository": f"/v2/{PUBLIC}/manifests/image",
            "base": "/v2/",
        }
        return cls(made, tags, paths)

    async def push_to(self, backend: Backend) -> None:
        for tag, digest in self.tags.items():
            await backend.push(self.made, "demo/app", tag, digest)
        await backend.push(self.made, PUBLIC, "image", self.tags["image"])

    def questions(self, who: list[str]) -> list[Question]:
        return [
            (each, method, path, formats)
            for each in who
            for method in ("HEAD", "GET")
            for path in self.paths
            for formats in (FORMATS if path in self.tags else ["all"])
        ]


async def answers(kind: str, folder: Path, content: Content) -> dict[Question, Told]:
    """Everything that a registry of this kind says."""
    async with AsyncExitStack() as stack:
        backend = await stack.enter_async_context(running(kind, folder))
        await content.push_to(backend)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(skip_auto_headers=["Accept"])
        )
        known = await authorizations(session, backend)
        found = {}
        for question in content.questions(list(known)):
            who, method, path, formats = question
            accept = FORMATS[formats]
            headers = known[who] | ({} if accept is None else {"Accept": accept})
            url = f"{backend.url}{content.paths[path]}"
            async with session.request(method, url, headers=headers, ssl=backend.tls) as response:
                found[question] = told(response, await response.read())
        return found


def told(response: aiohttp.ClientResponse, body: bytes) -> Told:
    challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
    seen = tuple(
        (each.scheme, tuple(pair for pair in each.parameters.items() if pair[0] not in _OWN))
        for each in challenges
    )
    if response.status == 200 and not response.url.path.endswith("/v2/"):
        return Told(
            200,
            digest=response.headers.get("Docker-Content-Digest"),
            media_type=response.headers.get("Content-Type"),
            length=response.headers.get("Content-Length"),
            challenge=seen,
        )
    is_error = response.status >= 400 and body
    code = orjson.loads(body)["errors"][0]["code"] if is_error else None
    return Told(response.status, challenge=seen, code=code)


_OWN = ("realm", "service")


async def authorizations(
    session: aiohttp.ClientSession, backend: Backend
) -> dict[str, dict[str, str]]:
    """Headers by who is asking: with what they have to say for themselves, if anything."""
    if backend.login is None:
        return {"alice": {}}
    password = {"Authorization": aiohttp.encode_basic_auth(*ALICE)}
    wrong = {"Authorization": aiohttp.encode_basic_auth(*WRONG)}
    url = f"{backend.url}/v2/demo/app/manifests/image"
    async with session.get(url, ssl=backend.tls) as response:
        (challenge,) = parse_challenges(response.headers.getall("WWW-Authenticate"))
    if challenge.scheme == "basic":
        return {"nobody": {}, "alice": password, "mallory": wrong}

    async def token(headers: dict[str, str]) -> dict[str, str]:
        query = {name: challenge.parameters[name] for name in ("service", "scope")}
        realm = challenge.parameters["realm"]
        async with session.get(realm, params=query, headers=headers, ssl=backend.tls) as answer:
            content: dict[str, Any] = await answer.json()
            return {"Authorization": f"Bearer {content['token']}"}

    return {
        "nobody": {},
        "alice": await token(password),
        "nobody with a token": await token({}),
        "mallory with a token": {"Authorization": "Bearer e30.e30.e30"},
        "alice with her password": password,
        "mallory": wrong,
    }


@pytest.mark.parametrize("auth", ["", "-basic", "-bearer"])
async def test_the_fake_says_what_distribution_says(tmp_path: Path, auth: str) -> None:
    content = Content.create()
    real = await answers(f"distribution{auth}", tmp_path, content)
    assert await answers(f"fake{auth}", tmp_path, content) == real


async def test_the_fake_and_crane_differ_in_this_alone(tmp_path: Path) -> None:
    """It does not look at what is accepted, and knows repositories from their names."""
    content = Content.create()
    real = await answers("crane", tmp_path, content)
    fake = await answers("fake", tmp_path, content)
    for question, said in real.items():
        _, method, path, _ = question
        everything = fake[*question[:3], "all"]
        if path in ("absent repository", "digest of elsewhere") and method == "GET":
            everything = Told(404, code="NAME_UNKNOWN")
        assert said == everything, question
