"""Whatever a registry, a name or a credential holds, an image has a digest or a reason."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fakes.faults import Handler
from fakes.raw import RawRegistry
from tagpin.errors import Unresolvable
from tagpin.keychain import InvalidDockerConfig, Keychain
from tagpin.pinning import Resolution
from tagpin.reference import Reference
from tagpin.registry.resolver import RegistryResolver

from .conftest import ADDRESSES, Net, settle

ANY_TEXT = st.text(st.characters(codec=None), max_size=30)
# What a server can put on the wire as a header at all.
HEADER = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=60)
URLS = st.sampled_from(
    [
        "//",
        "https://",
        "https://[::1",
        "https://[fe80::1%25eth0]/",
        "https://public.test:99999/",
        "https://xn--/",
        "https://a..b/",
        "https://\u0130.test/",
        f"https://{'a' * 64}.test/",
        f"https://{'a.' * 200}test/",
        "https://public.test/%ff%00",
        "/v2/other",
        "https://other.test:PORT/",
        "?",
    ]
)
CHALLENGES = st.one_of(
    HEADER,
    st.builds('Bearer realm="{}",service="{}"'.format, URLS | HEADER, HEADER),
    st.just("Basic realm=x"),
    st.just('Bearer realm="https://public.test:PORT/token"'),
    st.just('Bearer realm="https://public.test:PORT/token"'),
)
BODIES = st.one_of(
    st.binary(max_size=60),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["schemaVersion", "mediaType", "manifests", "layers", "token", "expires_in"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=6,
    ).map(lambda value: json.dumps(value).encode()),
    st.just(b"[" * 2000),
)
ANSWERS = st.tuples(
    st.sampled_from([200, 200, 200, 204, 206, 301, 307, 401, 401, 403, 404, 429, 500, 799]),
    st.fixed_dictionaries(
        {},
        optional={
            "Location": URLS | HEADER,
            "WWW-Authenticate": CHALLENGES,
            "Docker-Content-Digest": HEADER | st.just("sha256:" + "a" * 64),
            "Content-Type": HEADER | st.just("application/vnd.oci.image.index.v1+json"),
            "Content-Encoding": st.sampled_from(["gzip", "identity", "x"]),
        },
    ),
    BODIES,
)
FIELDS = st.dictionaries(
    st.sampled_from(["username", "password", "auth"]), ANY_TEXT | st.none() | st.integers()
)
LABELS = st.text("aA0-\u00e4", min_size=1, max_size=70)
HOSTS = st.lists(LABELS, min_size=1, max_size=5).map(".".join)
PORTS = st.sampled_from(["", ":0", ":443", ":99999", ":" + "9" * 5000])


async def settles(resolver: RegistryResolver, image: str, entry: dict[str, Any]) -> None:
    """Fail where anything but a Resolution or Unresolvable is the outcome."""
    try:
        ref = Reference.parse(image)
        keychain = Keychain.from_docker_config(json.dumps({"auths": {ref.domain: entry}}))
        outcome = await resolver.resolve(ref, keychain, namespace="team", max_age=0, within=5)
    except (Unresolvable, InvalidDockerConfig) as error:
        str(error).encode()
    else:
        assert isinstance(outcome, Resolution)


async def test_no_answer_and_no_credential_breaks_the_resolver(net: Net) -> None:
    registry = await net.registry("public.test")
    resolver = await net.resolver()
    answers: list[tuple[int, dict[str, str], bytes]] = []

    async def hostile(request: web.Request, _handle: Handler) -> web.StreamResponse:
        status, headers, body = answers[min(len(registry.requests), len(answers)) - 1]
        told = {name: value.replace("PORT", str(net.port)) for name, value in headers.items()}
        return web.Response(status=status, headers=told, body=body)

    registry.fault(hostile, path="/")
    numbers = itertools.count()
    loop = asyncio.get_running_loop()

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @example([(200, {}, b'{"mediaType":[],"manifests":[]}')], {})
    @example([(307, {"Location": "https://xn--/"}, b"")], {})
    @example([(401, {"WWW-Authenticate": 'Bearer realm="https://xn--/"'}, b"")], {})
    @example([(401, {"WWW-Authenticate": "Basic"}, b"")], {"username": "\ud800", "password": "x"})
    @given(st.lists(ANSWERS, min_size=1, max_size=4), FIELDS)
    def fuzz(given_answers: list[tuple[int, dict[str, str], bytes]], entry: Any) -> None:
        answers[:] = given_answers
        registry.requests.clear()
        net.clock.advance(1000)
        image = net.image("public.test", repository=f"demo/app{next(numbers)}")
        asyncio.run_coroutine_threadsafe(settles(resolver, image, entry), loop).result(20)

    await asyncio.to_thread(fuzz)


async def test_no_name_breaks_the_resolver(net: Net) -> None:
    resolver = await net.resolver()
    loop = asyncio.get_running_loop()

    @settings(max_examples=300, deadline=None)
    @given(HOSTS, PORTS)
    def fuzz(host: str, port: str) -> None:
        image = f"{host}{port}/demo/app:v1"
        asyncio.run_coroutine_threadsafe(settles(resolver, image, {}), loop).result(20)

    await asyncio.to_thread(fuzz)


def head(status: str, *lines: str) -> bytes:
    told = [f"HTTP/1.1 {status}", "Content-Length: 0", "Connection: close", *lines]
    return "\r\n".join([*told, "", ""]).encode()


LONG = "x" * 8000
FLOODS = {
    "10,000 challenges": head("401 x", *["WWW-Authenticate: " + "Basic, " * 1100] * 100),
    "10,000 challenges of one letter": head("401 x", *["WWW-Authenticate: " + "a," * 4000] * 100),
    "a challenge of 2,000 parameters": head("401 x", "WWW-Authenticate: a " + "b=c," * 2000),
    "10,000 challenges in one line": head("401 x", "WWW-Authenticate: " + "Basic, " * 10_000),
    "10,000 headers": head("200 x", *[f"X-{number}: x" for number in range(10_000)]),
    "10,000 cookies": head("200 x", *[f"Set-Cookie: a{n}=x; Path=/" for n in range(10_000)]),
    "10,000 digests": head("200 x", *["Docker-Content-Digest: sha256:x"] * 10_000),
    "a redirect of 8 KiB": head("307 x", f"Location: https://public.test:PORT/{LONG}"),
    "a redirect of 8 KiB of query": head("307 x", f"Location: ?{LONG}"),
    "a redirect to a name of 8 KiB": head("307 x", f"Location: https://{LONG}.test/"),
    "a redirect to 4,000 labels": head("307 x", f"Location: https://{'a.' * 4000}test/"),
    "a redirect of many ways back": head("307 x", "Location: " + "../" * 2600),
    "a realm of 8 KiB": head(
        "401 x", f'WWW-Authenticate: Bearer realm="https://public.test:PORT/{LONG}"'
    ),
    "a service of 8 KiB": head(
        "401 x", f'WWW-Authenticate: Bearer realm="https://public.test:PORT/",service="{LONG}"'
    ),
    "a pause of 8 KiB": head("429 x", f"Retry-After: {'9' * 8000}"),
    "a type of 8 KiB": head("200 x", f"Content-Type: {LONG}", f"Content-Encoding: {LONG}"),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_a_flood_costs_little_time_and_few_words(net: Net, flood: bytes) -> None:
    async def script(_method: str) -> AsyncIterator[bytes]:
        yield flood.replace(b"PORT", str(net.port).encode())

    async with RawRegistry(script, host=ADDRESSES["public.test"], tls=net.tls) as registry:
        net.port = registry.port
        client = await net.client()
        resolver = RegistryResolver(client)
        began = time.process_time()
        outcome = await settle(resolver, net.image("public.test"), ("alice", "pa55word"))
        spent = time.process_time() - began
        await resolver.aclose()
    assert isinstance(outcome, Unresolvable)
    assert len(str(outcome)) < 300
    assert spent < 0.5
