"""One suite of conversations, held with the fake registry and with real ones."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from fakes.registry import FakeRegistry
from tagpin.errors import Reason, Unresolvable
from tagpin.keychain import Credential, Keychain
from tagpin.pinning import Resolution
from tagpin.pins import Source
from tagpin.reference import Reference
from tagpin.registry.client import RegistryClient
from tagpin.registry.resolver import RegistryResolver

from .registries import ALICE, KINDS, WITH_LOGIN, Backend, running

ACCEPT = {
    "Accept": "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"
}


@pytest.fixture(params=KINDS)
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    async with running(request.param, tmp_path) as backend:
        yield backend


@pytest.fixture
async def resolver(backend: Backend) -> AsyncIterator[RegistryResolver]:
    async with RegistryClient(registries=backend.listed) as client:
        resolver = RegistryResolver(client)
        yield resolver
        await resolver.aclose()


@pytest.fixture
def made() -> FakeRegistry:
    """Where images are made, to be pushed from."""
    return FakeRegistry()


async def resolve(
    resolver: RegistryResolver, backend: Backend, name: str, *logins: tuple[str, str]
) -> Resolution:
    given = logins or ([backend.login] if backend.login else [])
    keychain = Keychain(tuple((backend.host, Credential(*login)) for login in given))
    return await resolver.resolve(
        Reference.parse(f"{backend.host}/{name}"), keychain, namespace="team", max_age=0, within=10
    )


async def refusal(
    resolver: RegistryResolver, backend: Backend, name: str, *logins: tuple[str, str]
) -> Reason:
    with pytest.raises(Unresolvable) as caught:
        await resolve(resolver, backend, name, *logins)
    return caught.value.reason


async def test_an_image(resolver: RegistryResolver, backend: Backend, made: FakeRegistry) -> None:
    digest = made.push_image("demo/app", "v1", b"payload")
    await backend.push(made, "demo/app", "v1", digest)
    resolution = await resolve(resolver, backend, "demo/app:v1")
    assert (str(resolution.digest), resolution.source) == (digest, Source.REGISTRY)


async def test_an_index_has_its_own_digest(
    resolver: RegistryResolver, backend: Backend, made: FakeRegistry
) -> None:
    digest = made.push_index("demo/app", "v1", {"linux/amd64": b"a", "linux/arm64": b"b"})
    await backend.push(made, "demo/app", "v1", digest)
    assert str((await resolve(resolver, backend, "demo/app:v1")).digest) == digest


async def test_a_tag_that_moves(
    resolver: RegistryResolver, backend: Backend, made: FakeRegistry
) -> None:
    for payload in (b"one", b"two"):
        digest = made.push_image("demo/app", "latest", payload)
        await backend.push(made, "demo/app", "latest", digest)
        assert str((await resolve(resolver, backend, "demo/app")).digest) == digest


async def test_a_tag_that_does_not_exist(
    resolver: RegistryResolver, backend: Backend, made: FakeRegistry
) -> None:
    await backend.push(made, "demo/app", "v1", made.push_image("demo/app", "v1"))
    assert await refusal(resolver, backend, "demo/app:v2") is Reason.NOT_FOUND


async def test_a_repository_that_does_not_exist(
    resolver: RegistryResolver, backend: Backend
) -> None:
    assert await refusal(resolver, backend, "demo/absent:v1") is Reason.NOT_FOUND


async def test_head_and_get_agree_on_type_and_digest(backend: Backend, made: FakeRegistry) -> None:
    digest = made.push_image("demo/app", "v1", b"payload")
    await backend.push(made, "demo/app", "v1", digest)
    url = f"{backend.url}/v2/demo/app/manifests/v1"
    async with aiohttp.ClientSession(headers=ACCEPT | backend.headers) as session:
        head = await session.head(url, ssl=backend.tls)
        get = await session.get(url, ssl=backend.tls)
        body = await get.read()
    assert (head.status, get.status) == (200, 200)
    assert head.headers["Docker-Content-Digest"] == digest
    assert get.headers["Docker-Content-Digest"] == digest
    assert head.content_type == get.content_type == made.media_type(digest)
    assert int(head.headers["Content-Length"]) == len(body)
    assert f"sha256:{hashlib.sha256(body).hexdigest()}" == digest


with_login = pytest.mark.parametrize("backend", WITH_LOGIN, indirect=True)


@with_login
async def test_a_wrong_password(resolver: RegistryResolver, backend: Backend) -> None:
    wrong = (ALICE[0], "wrong")
    assert await refusal(resolver, backend, "demo/app:v1", wrong) is Reason.UNAUTHORIZED


@with_login
async def test_nobody(resolver: RegistryResolver, backend: Backend, made: FakeRegistry) -> None:
    await backend.push(made, "demo/app", "v1", made.push_image("demo/app", "v1"))
    ref = Reference.parse(f"{backend.host}/demo/app:v1")
    with pytest.raises(Unresolvable) as caught:
        await resolver.resolve(ref, Keychain(), namespace="team", max_age=0, within=10)
    assert caught.value.reason is Reason.UNAUTHORIZED


@with_login
async def test_the_second_of_two_logins(
    resolver: RegistryResolver, backend: Backend, made: FakeRegistry
) -> None:
    digest = made.push_image("demo/app", "v1")
    await backend.push(made, "demo/app", "v1", digest)
    resolution = await resolve(resolver, backend, "demo/app:v1", (ALICE[0], "wrong"), ALICE)
    assert str(resolution.digest) == digest
