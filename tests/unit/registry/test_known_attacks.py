"""What has gone wrong in other clients of registries, tried on this one over real sockets.

The id of a test names the records that it is about: CVE and GHSA numbers, and issues as
project#number (ggcr is google/go-containerregistry, kf google/kf, jib GoogleContainerTools/jib).
"""

import asyncio
import gzip
import hashlib
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aiohttp import web

from fakes.faults import OCI_IMAGE, Handler, answering, redirecting, with_body, with_header
from fakes.registry import OCI_INDEX, FakeRegistry
from tagpin.errors import InvalidReference, Reason, Unresolvable
from tagpin.keychain import Credential, Keychain
from tagpin.pinning import Resolution
from tagpin.reference import Reference
from tagpin.registry.places import RegistrySettings

from .conftest import Net, digest, reason, settle
from .test_attacks import ALICE, ALICE_BASIC, authorizations

T = TypeVar("T", bound=Callable[..., Any])

METADATA = "169.254.169.254"
MANIFEST = "/v2/demo/app/manifests/v1"
IMAGE = {"schemaVersion": 2, "mediaType": OCI_IMAGE, "config": {}, "layers": []}
INDEX = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}


@pytest.fixture
def record() -> None:
    """What a test is about, for its id."""


def about(*records: str) -> Callable[[T], T]:
    def decorate(test: T) -> T:
        ids = pytest.mark.parametrize("record", [None], ids=[" ".join(records)], indirect=True)
        decorated: T = ids(pytest.mark.usefixtures("record")(test))
        return decorated

    return decorate


@asynccontextmanager
async def bait(address: str, port: int) -> AsyncIterator[list[object]]:
    """Whoever connects to an address, even without getting as far as a request."""
    connections: list[object] = []

    def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer.get_extra_info("peername"))
        writer.close()

    async with await asyncio.start_server(connected, address, port):
        yield connections


def challenge(net: Net, *, tokens: bool) -> str:
    return f'Bearer realm="https://public.test:{net.port}/token"' if tokens else "Basic"


# Credentials carried off


@about("CVE-2020-15157")
@pytest.mark.parametrize("tokens", [False, True])
async def test_a_401_from_a_redirects_target_draws_no_credentials(
    net: Net, *, tokens: bool
) -> None:
    registry = await net.registry("public.test")
    evil = await net.registry("other.test", users={"nobody": "x"}, tokens=tokens)
    registry.fault(redirecting(f"https://other.test:{net.port}{{path}}"))
    assert reason(await net.ask(net.image("public.test"), ALICE)) is Reason.UNAUTHORIZED
    assert set(authorizations(evil)) == {None}
    assert {seen.path for seen in evil.requests} == {MANIFEST}


@about("CVE-2026-50151", "GHSA-vh4v-2xq2-g5cg")
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("origin", ["another host", "another port", "another scheme"])
async def test_credentials_are_never_sent_to_the_origin_that_a_redirect_names(
    net: Net, origin: str, *, tokens: bool
) -> None:
    plain = origin == "another scheme"
    registry = await net.registry("public.test", tls=not plain, users=dict([ALICE]), tokens=tokens)
    host = "other.test" if origin == "another host" else "public.test"
    evil = await net.registry(host, port=None if host == "other.test" else 0)
    pushed = evil.push_image("demo/app", "v1")
    scheme = "http" if plain else "https"
    realm = f'Bearer realm="{scheme}://public.test:{net.port}/token"' if tokens else "Basic"
    registry.fault(answering(401, {"WWW-Authenticate": realm}), times=1)
    registry.fault(redirecting(f"https://{host}:{evil.port}{{path}}"))
    listed = [
        RegistrySettings(f"public.test:{net.port}", http=plain, credentials_over_http=plain),
        RegistrySettings(f"{host}:{evil.port}"),
    ]
    outcome = await net.ask(net.image("public.test"), ALICE, registries=listed)
    assert digest(outcome) == pushed
    assert authorizations(registry)[-1] is not None
    assert authorizations(evil) == [None]


@about("ggcr#2349", "ggcr#2360")
async def test_a_token_is_not_attached_again_where_a_redirect_leads_to_a_challenge(
    net: Net,
) -> None:
    registry = await net.registry("public.test", users=dict([ALICE]), tokens=True)
    evil = await net.registry("other.test", users={"nobody": "x"}, tokens=True)
    evil.realm = f"https://public.test:{net.port}/token"  # whose tokens we have already
    registry.fault(answering(401, {"WWW-Authenticate": challenge(net, tokens=True)}), times=1)
    registry.fault(redirecting(f"https://other.test:{net.port}{{path}}"))
    assert reason(await net.ask(net.image("public.test"), ALICE)) is Reason.UNAUTHORIZED
    assert any(each and each.startswith("Bearer ") for each in authorizations(registry))
    assert set(authorizations(evil)) == {None}


@about("ggcr#2349")
async def test_a_token_does_not_come_back_with_a_redirect_that_returns(net: Net) -> None:
    registry = await net.registry("public.test", users=dict([ALICE]), tokens=True)
    evil = await net.registry("other.test")
    registry.fault(answering(401, {"WWW-Authenticate": challenge(net, tokens=True)}), times=1)
    registry.fault(redirecting(f"https://other.test:{net.port}{{path}}"), path=MANIFEST)
    evil.fault(redirecting(f"https://public.test:{net.port}/v2/mallory/app/manifests/v1"))
    assert reason(await net.ask(net.image("public.test"), ALICE)) is Reason.UNAUTHORIZED
    back = [seen for seen in registry.requests if "mallory" in seen.path]
    assert back
    assert {seen.authorization for seen in back} == {None}


@about("ggcr#2193", "jib#4523", "CVE-2026-33540", "CVE-2026-24845", "CVE-2026-48978")
@pytest.mark.parametrize("identity", ["", "identity"], ids=["password", "identity token"])
async def test_a_strict_registrys_credentials_go_to_no_token_server_that_it_names(
    net: Net, identity: str
) -> None:
    registry = await net.registry("public.test", users=dict([ALICE]), tokens=True)
    evil = await net.registry("other.test", tokens=True)
    registry.realm = evil.realm
    where = f"public.test:{net.port}"
    keychain = Keychain(((where, Credential(*ALICE, identity)),))
    for token_hosts in ((), ("other.example",), ("*.other.test",)):
        strict = RegistrySettings(where, strict=True, token_hosts=token_hosts)
        resolver = await net.resolver(registries=[strict])
        ref = Reference.parse(net.image("public.test"))
        with pytest.raises(Unresolvable) as caught:
            await resolver.resolve(ref, keychain, namespace="team", max_age=60, within=20)
        assert caught.value.reason is Reason.BAD_ANSWER
    assert evil.requests == []


@about("ggcr#2193", "jib#4523", "CVE-2026-33540", "CVE-2026-24845", "CVE-2026-48978")
async def test_a_foreign_token_server_gets_only_what_was_for_its_registry(net: Net) -> None:
    """Where nobody is strict: whoever runs the registry could have had it there, too."""
    registry = await net.registry("public.test", users=dict([ALICE]), tokens=True)
    evil = await net.registry("other.test", tokens=True)
    registry.realm = evil.realm
    resolver = await net.resolver()
    others = [("other.test", "bob"), ("private.test", "carol"), ("*.example", "dave")]
    entries = [(f"{host}:{net.port}", Credential(name, name)) for host, name in others]
    ref = Reference.parse(net.image("public.test"))
    keychain = Keychain(((ref.domain, Credential(*ALICE)), *entries))
    with pytest.raises(Unresolvable):
        await resolver.resolve(ref, keychain, namespace="team", max_age=60, within=20)
    assert {ALICE_BASIC} == set(authorizations(evil))


@about("ollama#10750")
async def test_a_registry_gets_no_token_that_is_for_another_one(net: Net) -> None:
    """It names the token server of a registry that the pod has a secret for."""
    evil = await net.registry("public.test", tokens=True)
    victim = await net.registry("other.test", users=dict([ALICE]), tokens=True)
    victim.push_image("demo/app", "v1")
    evil.realm = victim.realm
    resolver = await net.resolver()
    keychain = Keychain(((f"other.test:{net.port}", Credential(*ALICE)),))
    for name in ("other.test", "public.test"):  # a token for the first one is in the cache
        with_secret = Reference.parse(net.image(name))
        asked = resolver.resolve(with_secret, keychain, namespace="team", max_age=60, within=20)
        if name == "other.test":
            await asked
        else:
            with pytest.raises(Unresolvable):
                await asked
    of_the_victim = {each for each in authorizations(victim) if each and "Bearer" in each}
    assert of_the_victim
    assert not of_the_victim & set(authorizations(evil))
    passwords = [seen for seen in victim.requests if seen.authorization == ALICE_BASIC]
    assert len(passwords) == 1


@about("kf#1108", "CVE-2026-33990")
@pytest.mark.parametrize("way", ["realm", "redirect of the token server"])
async def test_no_token_of_a_metadata_service_is_brought_back(net: Net, way: str) -> None:
    evil = await net.registry("public.test", tokens=True)
    metadata = await net.registry("blocked.test")
    body = {"access_token": "of-the-node", "expires_in": 3599, "token_type": "Bearer"}
    metadata.fault(answering(200, body=json.dumps(body).encode()), path="/")
    place = f"https://blocked.test:{net.port}/computeMetadata/v1/token"
    if way == "realm":
        evil.realm = place
    else:
        evil.fault(redirecting(place), path="/token")
    outcome = await net.ask(net.image("public.test"))
    assert reason(outcome) is (Reason.BLOCKED if way == "realm" else Reason.BAD_ANSWER)
    assert metadata.requests == []
    assert set(authorizations(evil)) == {None}


@about("artifact-keeper#3606")
@pytest.mark.parametrize("stranger", [("mallory", "x"), None], ids=["another login", "none"])
async def test_a_token_for_one_credential_is_not_used_for_another(
    net: Net, stranger: tuple[str, str] | None
) -> None:
    registry = await net.registry("public.test", users=dict([ALICE]), tokens=True)
    registry.push_image("demo/app", "v1")
    resolver = await net.resolver()
    digest(await settle(resolver, net.image("public.test"), ALICE))
    before = len(registry.requests)
    outcome = await settle(resolver, net.image("public.test"), *([stranger] if stranger else []))
    assert reason(outcome) is Reason.UNAUTHORIZED
    of_alice = {each for each in authorizations(registry)[:before] if each}
    assert not of_alice & set(authorizations(registry)[before:])


@about("artifact-keeper#3606")
async def test_a_token_for_one_repository_is_not_used_for_another(net: Net) -> None:
    registry = await net.registry("public.test", users=dict([ALICE]), tokens=True)
    resolver = await net.resolver()
    for repository in ("demo/app", "demo/other"):
        registry.push_image(repository, "v1")
        digest(await settle(resolver, net.image("public.test", repository), ALICE))
    asked = [seen.query["scope"] for seen in registry.requests if seen.path == "/token"]
    assert asked == ["repository:demo/app:pull", "repository:demo/other:pull"]
    bearers = [each for each in authorizations(registry) if each and "Bearer" in each]
    assert len(bearers) == len(set(bearers)) == 2


@about("CVE-2026-34518")
async def test_cookies_are_not_kept(net: Net) -> None:
    registry = await net.registry("public.test")
    other = await net.registry("other.test")
    other.push_image("demo/app", "v1")
    away = f"https://other.test:{net.port}{MANIFEST}"
    moved = {"Set-Cookie": "session=1; Domain=test; Path=/", "Location": away}
    registry.fault(answering(307, moved))
    resolver = await net.resolver()
    for _ in range(2):
        digest(await settle(resolver, net.image("public.test"), max_age=-1))
    seen = [*registry.requests, *other.requests]
    assert len(seen) == 4
    assert not any("cookie" in each.headers for each in seen)


@about("CVE-2026-34518", "CVE-2026-41323")
async def test_nothing_that_lies_about_in_the_environment_is_sent(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a ~/.netrc nor a proxy's password: what is not for registries stays away."""
    registry = await net.registry("public.test")
    proxy = await net.registry("other.test")
    pushed = registry.push_image("demo/app", "v1")
    netrc = tmp_path / "netrc"
    netrc.write_text("default login alice password pa55word\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTPS_PROXY", f"http://alice:pa55word@127.1.0.2:{net.port}")
    assert digest(await net.ask(net.image("public.test"))) == pushed
    (seen,) = registry.requests
    assert {"authorization", "proxy-authorization"}.isdisjoint(seen.headers)
    assert proxy.requests == []


# Requests carried to where they may not go


@about("ggcr#2243", "CVE-2026-48978", "CVE-2026-33990", "CVE-2026-4789")
@pytest.mark.parametrize(
    "url",
    [
        f"https://{METADATA}/latest/meta-data",
        f"https://[::ffff:{METADATA}]/latest/meta-data",
        "https://[fd00:ec2::254]/latest/meta-data",
        "https://metadata.google.internal/computeMetadata/v1",
        "https://metadata/computeMetadata/v1",
        "https://kubernetes.default.svc/api",
        "https://localhost/",
    ],
)
async def test_a_realm_that_names_the_metadata_service_is_refused(net: Net, url: str) -> None:
    registry = await net.registry("public.test", tokens=True)
    registry.realm = url
    assert reason(await net.ask(net.image("public.test"), ALICE)) is Reason.BLOCKED
    assert net.names.asked == ["public.test"]


@about("ggcr#2243", "CVE-2026-48978")
@pytest.mark.parametrize("name", ["public.test", "other.test"])
async def test_a_realm_is_not_asked_in_plain_http_by_a_registry_with_tls(
    net: Net, name: str
) -> None:
    registry = await net.registry("public.test", tokens=True)
    plain = await net.registry(name, tls=False, port=0)
    registry.realm = f"http://{name}:{plain.port}/token"
    listed = [RegistrySettings(f"{name}:{plain.port}", http=True, credentials_over_http=True)]
    outcome = await net.ask(net.image("public.test"), ALICE, registries=listed)
    assert reason(outcome) is Reason.BAD_ANSWER
    assert plain.requests == []


@about("ggcr#2284", "ggcr#2285")
@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "[::ffff:0:0]", "0"])  # noqa: S104 - refused
@pytest.mark.parametrize("place", ["registry", "realm", "redirect"])
async def test_the_unspecified_address_does_not_lead_to_loopback(
    net: Net, host: str, place: str
) -> None:
    registry = await net.registry("public.test", tokens=True)
    async with bait("::", net.port) as connections:
        name = lured(registry, f"{host}:{net.port}", place, net)
        assert isinstance(await net.ask(name), Unresolvable)
    assert connections == []


@about("ggcr#2425")
@pytest.mark.parametrize(
    "host",
    ["2130903041", "0x7f030001", "0177.3.0.1", "127.3.1", "127.003.000.001", "[0:0::ffff:7f03:1]"],
)
@pytest.mark.parametrize("place", ["registry", "realm", "redirect"])
async def test_an_odd_spelling_of_an_address_is_no_way_round_the_guard(
    net: Net, host: str, place: str
) -> None:
    registry = await net.registry("public.test", tokens=True)
    net.names.add(host, ["127.3.0.1"])  # as look-ups of operating systems have it
    async with bait("127.3.0.1", net.port) as connections:
        name = lured(registry, f"{host}:{net.port}", place, net)
        assert isinstance(await net.ask(name), Unresolvable)
    assert connections == []


@about("ggcr#2440")
@pytest.mark.parametrize("place", ["registry", "realm", "redirect"])
@pytest.mark.parametrize(
    "address",
    [
        "127.3.0.1",
        "::ffff:127.3.0.1",
        "64:ff9b::7f03:1",
        "2002:7f03:1::",
        "2001:0:7f03:1::",
        "::7f03:1",
        "::ffff:0:7f03:1",
        METADATA,
        "fd00:ec2::254",
    ],
)
async def test_a_name_is_judged_by_the_address_that_it_leads_to(
    net: Net, address: str, place: str
) -> None:
    registry = await net.registry("public.test", tokens=True)
    inner = await net.registry("blocked.test")
    net.names.add("innocent.test", [address])
    name = lured(registry, f"innocent.test:{net.port}", place, net)
    assert reason(await net.ask(name)) is Reason.BLOCKED
    assert "innocent.test" in net.names.asked
    assert inner.requests == []


def lured(registry: FakeRegistry, authority: str, place: str, net: Net) -> str:
    """The image to ask for, so that we are led to `authority`."""
    if place == "registry":
        return f"{authority}/demo/app:v1"
    if place == "realm":
        registry.realm = f"https://{authority}/token"
    else:
        registry.fault(redirecting(f"https://{authority}{{path}}"))
    return net.image("public.test")


@about("ggcr#2292")
@pytest.mark.parametrize("target", ["blocked.test", "private.test", "other.test"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_token_server_redirects_nobody(net: Net, target: str, status: int) -> None:
    registry = await net.registry("public.test", users=dict([ALICE]), tokens=True)
    bait = await net.registry(target, tokens=True)
    registry.fault(redirecting(f"https://{target}:{net.port}/token", status), path="/token")
    outcome = await net.ask(net.image("public.test"), ALICE)
    assert reason(outcome) is Reason.BAD_ANSWER
    assert bait.requests == []


@about("ggcr#2295")
@pytest.mark.parametrize("scheme", ["https", "http"])
@pytest.mark.parametrize("target", ["blocked.test", "private.test"])
async def test_a_location_leads_neither_inside_nor_to_plain_http(
    net: Net, target: str, scheme: str
) -> None:
    registry = await net.registry("public.test")
    bait = await net.registry(target, tls=scheme == "https")
    registry.fault(redirecting(f"{scheme}://{target}:{net.port}{{path}}"))
    assert isinstance(await net.ask(net.image("public.test")), Unresolvable)
    assert bait.requests == []


@about("ggcr#2293")
async def test_what_a_manifest_points_at_is_not_fetched(net: Net) -> None:
    registry = await net.registry("public.test")
    bait = await net.registry("other.test")
    layer = {"digest": f"sha256:{'0' * 64}", "urls": [f"https://other.test:{net.port}/layer"]}
    body = json.dumps(IMAGE | {"layers": [layer], "subject": layer, "config": layer}).encode()
    pushed = registry.push_manifest("demo/app", "v1", body, OCI_IMAGE)
    registry.fault(with_header("Docker-Content-Digest"))
    assert digest(await net.ask(net.image("public.test"))) == pushed
    assert [seen.path for seen in registry.requests] == [MANIFEST, MANIFEST]
    assert bait.requests == []


@about("ggcr#2332")
async def test_a_link_is_not_followed(net: Net) -> None:
    registry = await net.registry("public.test")
    bait = await net.registry("other.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(with_header("Link", f'<https://other.test:{net.port}/>; rel="next"'))
    assert digest(await net.ask(net.image("public.test"))) == pushed
    assert bait.requests == []


@about("ggcr#2302", "mindthegap#1046", "model-runner#1050", "prowler#12678")
async def test_a_private_registry_may_be_its_own_token_server(net: Net) -> None:
    """The other side: what must go on working where the guard is at its strictest."""
    registry = await net.registry("private.test", users=dict([ALICE]), tokens=True)
    pushed = registry.push_image("demo/app", "v1")
    assert digest(await net.ask(net.image("private.test"), ALICE)) == pushed


# Answers that are not what they seem


@about("CVE-2024-3727")
@pytest.mark.parametrize(
    "stated", ["sha256:../../../token", "sha256:" + "a" * 63 + "/", f"sha256:{'A' * 64}", "../x"]
)
async def test_a_digest_that_is_none_enters_no_url(net: Net, stated: str) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(with_header("Docker-Content-Digest", stated))
    assert digest(await net.ask(net.image("public.test"))) == pushed
    assert {seen.path for seen in registry.requests} == {MANIFEST}
    with pytest.raises(InvalidReference):
        Reference.parse(f"{net.image('public.test')}@{stated}")


@about("CVE-2020-1702")
@pytest.mark.parametrize("kind", ["manifest", "token", "error"])
async def test_endless_data_is_not_read_to_the_end(net: Net, kind: str) -> None:
    registry = await net.registry("public.test", tokens=kind == "token")
    sent = 0

    async def endless(request: web.Request, _handle: Handler) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(status=404 if kind == "error" else 200)
        response.enable_chunked_encoding()
        await response.prepare(request)
        while True:
            await response.write(b" " * 65536)
            sent += 65536

    registry.fault(answering(405), method="HEAD", times=1 if kind != "token" else 0)
    registry.fault(endless, method="GET", path="/token" if kind == "token" else MANIFEST)
    expected = Reason.NOT_FOUND if kind == "error" else Reason.BAD_ANSWER
    assert reason(await net.ask(net.image("public.test"))) is expected
    assert sent < 16 * 1024 * 1024  # the limit, and what is on its way in buffers


@about("CVE-2021-41190")
@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (IMAGE | {"manifests": []}, OCI_IMAGE),
        (INDEX | {"layers": []}, OCI_INDEX),
        (IMAGE, OCI_INDEX),
        (INDEX, OCI_IMAGE),
    ],
)
async def test_what_could_be_taken_for_two_things_is_refused(
    net: Net, body: dict[str, Any], media_type: str
) -> None:
    registry = await net.registry("public.test")
    registry.push_manifest("demo/app", "v1", json.dumps(body).encode(), media_type)
    registry.fault(with_header("Docker-Content-Digest"))
    assert reason(await net.ask(net.image("public.test"))) is Reason.BAD_ANSWER


@about("CVE-2022-47633", "CVE-2023-47630")
async def test_the_digest_is_that_of_the_answer_that_was_looked_at(net: Net) -> None:
    """The tag moves with each request, and the digest is hashed from the bytes that were read."""
    registry = await net.registry("public.test")
    pushed = [registry.push_image("demo/app", "v1", str(n).encode()) for n in range(3)]
    versions = iter(pushed)

    async def moving(request: web.Request, handle: Handler) -> web.StreamResponse:
        registry.tag("demo/app", "v1", next(versions))
        response = await handle(request)
        if request.method == "HEAD":
            response.headers["Docker-Content-Digest"] = "unknown"
        return response

    registry.fault(moving)
    assert digest(await net.ask(net.image("public.test"))) == pushed[1]
    assert len(registry.requests) == 2


@about("CVE-2022-47633", "CVE-2023-47630")
async def test_an_answer_whose_header_names_other_bytes_gives_no_digest_of_theirs(
    net: Net,
) -> None:
    registry = await net.registry("public.test")
    signed = registry.push_image("demo/app", "v1", b"signed")
    other = json.dumps(IMAGE).encode()
    registry.fault(answering(405), method="HEAD")
    registry.fault(with_body(other), method="GET")
    outcome = await net.ask(net.image("public.test"))
    assert not isinstance(outcome, Resolution) or str(outcome.digest) != signed


@about("CVE-2025-69223")
@pytest.mark.parametrize("size", ["bomb", "honest"])
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("kind", ["manifest", "token"])
async def test_what_was_packed_without_being_asked_is_not_unpacked_beyond_its_limit(
    net: Net, kind: str, encoding: str, size: str
) -> None:
    registry = await net.registry("public.test", tokens=kind == "token")
    answer = json.dumps(IMAGE if kind == "manifest" else {"token": "t"}).encode()
    content = answer if size == "honest" else b" " * (16 << 20)
    packed = (gzip if encoding == "gzip" else zlib).compress(content, 1)[:60_000]
    registry.fault(answering(405), method="HEAD", times=1 if kind == "manifest" else 0)
    path = "/token" if kind == "token" else MANIFEST
    headers = {"Content-Encoding": encoding, "Content-Type": OCI_IMAGE}
    registry.fault(answering(200, headers, packed), method="GET", path=path)
    tracemalloc.start()
    try:
        outcome = await net.ask(net.image("public.test"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    is_understood = encoding == "gzip" and size == "honest"  # moby#17595
    if is_understood and kind == "manifest":
        assert digest(outcome) == f"sha256:{hashlib.sha256(answer).hexdigest()}"
    else:
        # The token of the other one is understood too, and of no use.
        expected = Reason.UNAUTHORIZED if is_understood else Reason.BAD_ANSWER
        assert reason(outcome) is expected
    assert peak < 12 << 20
    assert all(seen.headers["accept-encoding"] == "identity" for seen in registry.requests)


@about("CVE-2026-33990")
@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
async def test_nothing_that_a_realm_answers_is_reflected(net: Net, status: int) -> None:
    registry = await net.registry("public.test", tokens=True)
    body = b'{"error": "secret", "errors": [{"message": "secret"}]}'
    registry.fault(answering(status, {"X-Reason": "secret"}, body), path="/token")
    outcome = await net.ask(net.image("public.test"))
    assert isinstance(outcome, Unresolvable)
    assert "secret" not in f"{outcome} {outcome!r} {outcome.__cause__!r}"
