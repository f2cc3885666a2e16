"""What real registries do instead, over real sockets: an image has its digest nevertheless."""

import gzip
import hashlib
import json
import socket
from collections.abc import Callable
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from aiohttp import web

from fakes.faults import (
    OCI_IMAGE,
    Fault,
    Handler,
    afterwards,
    answering,
    breaking_off,
    chunked,
    compressed,
    hanging,
    redirecting,
    refusing_cookies,
    resetting,
    static_hosting,
    streaming,
    together,
    with_header,
)
from fakes.raw import RawRegistry, Script, breaking, dripping, saying
from fakes.registry import DOCKER, OCI, OCI_INDEX, SCHEMA_1, FakeRegistry, Types
from tagpin.errors import Reason
from tagpin.registry.places import RegistrySettings

from .conftest import ADDRESSES, Net, digest, reason

ALICE = ("alice", "pa55word")
IMAGE = {"schemaVersion": 2, "mediaType": OCI_IMAGE, "config": {}, "layers": []}
INDEX = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
PLATFORMS = {"linux/amd64": b"a", "linux/arm64": b"b"}
MIB = 1024 * 1024


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def methods(registry: FakeRegistry) -> list[str]:
    return [seen.method for seen in registry.requests]


# The digest header


async def test_where_the_digest_header_is_missing_the_bytes_are_hashed(net: Net) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(with_header("Docker-Content-Digest"))
    assert digest(await net.ask(net.image("public.test"))) == pushed
    assert methods(registry) == ["HEAD", "GET"]


@pytest.mark.parametrize(
    "stated",
    [
        [""],
        ["latest"],
        ["sha256:xyz"],
        ["sha256:" + "a" * 63],
        ["sha256:" + "A" * 64],
        ["md5:" + "0" * 32],
        ["sha256:" + "a" * 64 + ", sha256:" + "a" * 64],
        ['"sha256:' + "a" * 64 + '"'],
        ["sha256:" + "a" * 64] * 2,
        ["sha256:" + "a" * 64, "sha256:" + "b" * 64],
    ],
)
async def test_where_the_digest_header_is_none_or_many_the_bytes_are_hashed(
    net: Net, stated: list[str]
) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(with_header("Docker-Content-Digest", *stated))
    assert digest(await net.ask(net.image("public.test"))) == pushed
    assert methods(registry) == ["HEAD", "GET"]


@pytest.mark.parametrize("strict", [False, True])
async def test_the_bytes_win_over_a_wrong_digest_header_unless_the_operator_is_strict(
    net: Net, *, strict: bool
) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(answering(405), method="HEAD")
    registry.fault(with_header("Docker-Content-Digest", "sha256:" + "a" * 64), method="GET")
    listed = [RegistrySettings(f"public.test:{net.port}", strict=strict)]
    outcome = await net.ask(net.image("public.test"), registries=listed)
    if strict:
        assert reason(outcome) is Reason.BAD_ANSWER
    else:
        assert digest(outcome) == pushed


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("algorithm", ["sha384", "sha512"])
async def test_a_digest_may_be_of_another_algorithm(net: Net, method: str, algorithm: str) -> None:
    registry = await net.registry("public.test")
    content = registry.content(registry.push_image("demo/app", "v1"))
    other = f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
    if method == "GET":
        registry.fault(answering(405), method="HEAD")
    registry.fault(with_header("Docker-Content-Digest", other))
    assert digest(await net.ask(net.image("public.test"))) == other


# HEAD that is refused


@pytest.mark.parametrize("status", [400, 403, 404, 405, 406, 500, 501])
async def test_where_head_is_refused_get_is_asked(net: Net, status: int) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(answering(status), method="HEAD")
    assert digest(await net.ask(net.image("public.test"))) == pushed
    assert methods(registry).count("GET") == 1


@pytest.mark.parametrize("tokens", [False, True])
async def test_where_head_is_refused_to_someone_known_get_is_asked(
    net: Net, *, tokens: bool
) -> None:
    """By a 401 without a challenge, or by one that every token is wrong for."""
    registry = await net.registry("public.test", users=dict([ALICE]), tokens=tokens)
    pushed = registry.push_image("demo/app", "v1")
    challenge = {"WWW-Authenticate": f'Bearer realm="{registry.realm}",error="invalid_token"'}
    registry.fault(answering(401, challenge if tokens else None), method="HEAD")
    assert digest(await net.ask(net.image("public.test"), ALICE)) == pushed


@pytest.mark.parametrize("code", ["MANIFEST_UNKNOWN", "NAME_UNKNOWN"])
async def test_what_get_does_not_find_does_not_exist(net: Net, code: str) -> None:
    registry = await net.registry("public.test")
    registry.fault(answering(404, body=json.dumps({"errors": [{"code": code}]}).encode()))
    assert reason(await net.ask(net.image("public.test"))) is Reason.NOT_FOUND
    assert methods(registry) == ["HEAD", "GET"]


async def test_where_the_operator_trusts_a_404_to_head_nothing_more_is_asked(net: Net) -> None:
    registry = await net.registry("public.test")
    listed = [RegistrySettings(f"public.test:{net.port}", get_after_404=False)]
    outcome = await net.ask(net.image("public.test"), registries=listed)
    assert reason(outcome) is Reason.NOT_FOUND
    assert methods(registry) == ["HEAD"]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, Reason.BAD_ANSWER),
        (401, Reason.UNAUTHORIZED),
        (403, Reason.UNAUTHORIZED),
        (406, Reason.BAD_ANSWER),
        (410, Reason.BAD_ANSWER),
        (418, Reason.BAD_ANSWER),
        (451, Reason.BAD_ANSWER),
        (200, Reason.BAD_ANSWER),
        (204, Reason.BAD_ANSWER),
        (304, Reason.BAD_ANSWER),
    ],
)
async def test_what_get_refuses_too_has_a_reason(net: Net, status: int, expected: Reason) -> None:
    registry = await net.registry("public.test")
    registry.push_image("demo/app", "v1")
    registry.fault(answering(status, body=b""))
    assert reason(await net.ask(net.image("public.test"))) is expected


# Formats


@pytest.mark.parametrize("types", [OCI, DOCKER], ids=["oci", "docker"])
@pytest.mark.parametrize("converts", [False, True])
async def test_nothing_is_converted_for_us(net: Net, types: Types, *, converts: bool) -> None:
    """Registries answer with another manifest where Accept lacks the type of the right one."""
    registry = await net.registry("public.test")
    registry.converts = converts
    for tag, pushed in {
        "image": registry.push_image("demo/app", "image", types=types),
        "index": registry.push_index("demo/app", "index", PLATFORMS, types=types),
    }.items():
        assert digest(await net.ask(net.image("public.test", tag=tag))) == pushed


async def test_an_index_has_its_own_digest_though_only_its_bytes_say_so(net: Net) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_index("demo/app", "v1", PLATFORMS)
    registry.fault(with_header("Docker-Content-Digest"))
    assert digest(await net.ask(net.image("public.test"))) == pushed


@pytest.mark.parametrize(
    "media_type",
    [SCHEMA_1, SCHEMA_1.replace("prettyjws", "json"), f"{SCHEMA_1.upper()}; charset=utf-8"],
)
async def test_schema_1_is_told_from_its_type(net: Net, media_type: str) -> None:
    registry = await net.registry("public.test")
    registry.push_image("demo/app", "v1")
    registry.fault(with_header("Content-Type", media_type))
    assert reason(await net.ask(net.image("public.test"))) is Reason.UNSUPPORTED
    assert methods(registry) == ["HEAD"]


@pytest.mark.parametrize("media_type", ["text/plain", "application/json", SCHEMA_1])
async def test_schema_1_is_told_from_its_bytes(net: Net, media_type: str) -> None:
    registry = await net.registry("public.test")
    body = b'{"schemaVersion":1,"name":"demo/app","fsLayers":[],"signatures":[{}]}'
    registry.push_manifest("demo/app", "v1", body, "text/plain")
    registry.fault(answering(405), method="HEAD")
    registry.fault(with_header("Content-Type", media_type), method="GET")
    assert reason(await net.ask(net.image("public.test"))) is Reason.UNSUPPORTED


@pytest.mark.parametrize(
    "media_type",
    [
        f"{OCI_IMAGE}; charset=utf-8",
        f"{OCI_IMAGE};charset=utf-8;q=1",
        f" {OCI_IMAGE} ",
        OCI_IMAGE.upper(),
        OCI_IMAGE.title(),
    ],
)
@pytest.mark.parametrize("method", ["HEAD", "GET"])
async def test_a_content_type_is_read_without_case_and_parameters(
    net: Net, media_type: str, method: str
) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    if method == "GET":
        registry.fault(answering(405), method="HEAD")
    registry.fault(with_header("Content-Type", media_type))
    assert digest(await net.ask(net.image("public.test"))) == pushed
    assert methods(registry)[-1] == method


@pytest.mark.parametrize(
    "manifest",
    [
        IMAGE,
        INDEX,
        {key: value for key, value in IMAGE.items() if key != "mediaType"},
        IMAGE | {"artifactType": "application/vnd.example", "subject": {"digest": "sha256:0"}},
        IMAGE | {"config": {"mediaType": "application/vnd.cncf.helm.config.v1+json"}},
    ],
    ids=["image", "index", "no type", "artifact", "chart"],
)
async def test_from_static_hosting_the_bytes_say_what_they_are(
    net: Net, manifest: dict[str, Any]
) -> None:
    registry = await net.registry("public.test")
    body = json.dumps(manifest, indent=3).encode()
    pushed = registry.push_manifest("demo/app", "v1", body, OCI_IMAGE)
    registry.fault(static_hosting())
    assert digest(await net.ask(net.image("public.test"))) == pushed


@pytest.mark.parametrize("media_type", ["application/octet-stream", "text/html", "", "x"])
async def test_a_digest_counts_for_nothing_where_head_does_not_say_of_what(
    net: Net, media_type: str
) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    odd = {"Docker-Content-Digest": "sha256:" + "a" * 64, "Content-Type": media_type}
    registry.fault(answering(200, odd), method="HEAD")
    assert digest(await net.ask(net.image("public.test"))) == pushed
    assert methods(registry) == ["HEAD", "GET"]


@pytest.mark.parametrize(
    ("manifest", "media_type"),
    [
        (IMAGE | {"manifests": []}, OCI_IMAGE),
        (INDEX | {"layers": []}, OCI_INDEX),
        (INDEX | {"config": {}}, OCI_INDEX),
        (IMAGE, OCI_INDEX),
        (INDEX, OCI_IMAGE),
        (IMAGE, DOCKER.image),
        (INDEX | {"mediaType": OCI_IMAGE}, "application/octet-stream"),
        ({"schemaVersion": 2}, OCI_IMAGE),
        ([], OCI_IMAGE),
    ],
)
async def test_what_could_be_two_things_has_no_digest(
    net: Net, manifest: Any, media_type: str
) -> None:
    registry = await net.registry("public.test")
    registry.push_manifest("demo/app", "v1", json.dumps(manifest).encode(), media_type)
    registry.fault(with_header("Docker-Content-Digest"))
    registry.fault(with_header("Content-Type", media_type))
    assert reason(await net.ask(net.image("public.test"))) is Reason.BAD_ANSWER


# Compression


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP"])
async def test_what_was_compressed_unasked_is_hashed_as_it_was_before(
    net: Net, encoding: str
) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(together(with_header("Docker-Content-Digest"), compressed(encoding)))
    assert digest(await net.ask(net.image("public.test"))) == pushed
    assert {seen.headers["accept-encoding"] for seen in registry.requests} == {"identity"}


async def test_an_encoding_that_is_none_changes_nothing(net: Net) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(answering(405), method="HEAD")
    registry.fault(with_header("Content-Encoding", "identity"), method="GET")
    assert digest(await net.ask(net.image("public.test"))) == pushed


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (gzip.compress(json.dumps(IMAGE).encode()), None),
        (gzip.compress(json.dumps(IMAGE).encode())[:-9], "gzip"),
        (gzip.compress(json.dumps(IMAGE).encode()), "br"),
        (gzip.compress(json.dumps(IMAGE).encode()), "gzip, gzip"),
        (json.dumps(IMAGE).encode(), "gzip"),
        (b"", "gzip"),
        (gzip.compress(json.dumps(IMAGE).encode() + b" " * 5 * MIB), "gzip"),
    ],
    ids=["unsaid", "cut off", "unknown", "twice", "not at all", "empty", "bomb"],
)
async def test_what_cannot_be_decompressed_is_a_bad_answer(
    net: Net, body: bytes, encoding: str | None
) -> None:
    registry = await net.registry("public.test")
    headers = {"Content-Type": OCI_IMAGE} | ({"Content-Encoding": encoding} if encoding else {})
    registry.fault(answering(405), method="HEAD")
    registry.fault(answering(200, headers, body), method="GET")
    assert reason(await net.ask(net.image("public.test"))) is Reason.BAD_ANSWER


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["/elsewhere{path}", "https://other.test:PORT{path}"])
async def test_a_redirect_is_followed_by_the_same_method(
    net: Net, status: int, location: str
) -> None:
    registry, other = await net.registry("public.test"), await net.registry("other.test")
    pushed = registry.push_image("demo/app", "v1")
    other.push_image("demo/app", "v1")
    registry.fault(redirecting(location.replace("PORT", str(net.port)), status), times=1)
    registry.fault(_without("/elsewhere"), path="/elsewhere")
    assert digest(await net.ask(net.image("public.test"))) == pushed
    assert methods(registry) + methods(other) == ["HEAD", "HEAD"]


def _without(prefix: str) -> Fault:
    """Answers as if `prefix` were not in the path."""

    async def fault(request: web.Request, handle: Handler) -> web.StreamResponse:
        return await handle(request.clone(rel_url=request.path.removeprefix(prefix)))

    return fault


async def test_five_redirects_are_followed_and_six_are_not(net: Net) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(redirecting("{path}"), times=5)
    assert digest(await net.ask(net.image("public.test"))) == pushed
    registry.fault(redirecting("{path}"), times=6)
    assert reason(await net.ask(net.image("public.test"))) is Reason.BAD_ANSWER


async def test_a_redirect_in_a_loop_ends(net: Net) -> None:
    registry, other = await net.registry("public.test"), await net.registry("other.test")
    registry.fault(redirecting(f"https://other.test:{net.port}{{path}}"))
    other.fault(redirecting(f"https://public.test:{net.port}{{path}}"))
    assert reason(await net.ask(net.image("public.test"))) is Reason.BAD_ANSWER
    assert len(registry.requests) + len(other.requests) == 6


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("http://public.test:PORT{path}", Reason.BAD_ANSWER),
        ("http://other.test:PORT{path}", Reason.BAD_ANSWER),
        ("https://user:secret@other.test:PORT{path}", Reason.BAD_ANSWER),
        ("https://[::ffff:127.0.0.1]:PORT{path}", Reason.BLOCKED),
        ("https://[::ffff:7f00:1]:PORT{path}", Reason.BLOCKED),
        ("https://127.0.0.1:PORT{path}", Reason.BLOCKED),
        ("ftp://other.test{path}", Reason.BAD_ANSWER),
        ("", Reason.BAD_ANSWER),
        ("https://", Reason.BAD_ANSWER),
    ],
)
async def test_a_redirect_is_not_followed_everywhere(
    net: Net, location: str, expected: Reason
) -> None:
    registry = await net.registry("public.test")
    places = [await net.registry("other.test"), await _at("127.0.0.1", net)]
    registry.fault(redirecting(location.replace("PORT", str(net.port))))
    assert reason(await net.ask(net.image("public.test"))) is expected
    assert [seen for place in places for seen in place.requests] == []


async def _at(address: str, net: Net) -> FakeRegistry:
    return await net.stack.enter_async_context(
        FakeRegistry(host=address, port=net.port, tls=net.tls)
    )


async def test_where_head_is_redirected_without_a_digest_get_is_redirected_too(net: Net) -> None:
    registry, other = await net.registry("public.test"), await net.registry("other.test")
    pushed = other.push_image("demo/app", "v1")
    registry.fault(redirecting(f"https://other.test:{net.port}{{path}}"))
    other.fault(with_header("Docker-Content-Digest"))
    assert digest(await net.ask(net.image("public.test"))) == pushed
    assert methods(registry) == methods(other) == ["HEAD", "GET"]


# Bodies


async def test_a_body_may_come_in_chunks_without_a_length(net: Net) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(together(with_header("Docker-Content-Digest"), chunked()), method="GET")
    registry.fault(answering(405), method="HEAD")
    assert digest(await net.ask(net.image("public.test"))) == pushed


async def test_a_head_needs_no_length(net: Net) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(chunked())
    assert digest(await net.ask(net.image("public.test"))) == pushed
    assert methods(registry) == ["HEAD"]


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("untold", [False, True])
async def test_a_manifest_has_at_most_4_mib(net: Net, padding: int, *, untold: bool) -> None:
    registry = await net.registry("public.test")
    body = json.dumps(IMAGE).encode().ljust(4 * MIB + padding)
    registry.push_manifest("demo/app", "v1", body, OCI_IMAGE)
    registry.fault(answering(405), method="HEAD")
    if untold:
        registry.fault(chunked(64 * 1024), method="GET")
    outcome = await net.ask(net.image("public.test"))
    if padding:
        assert reason(outcome) is Reason.BAD_ANSWER
    else:
        assert digest(outcome) == sha256(body)


async def test_a_length_is_a_word_that_may_be_too_big_to_be_tried(net: Net) -> None:
    """A HEAD promises nothing by it; a GET would have to be read."""
    head = _head(200, f"Content-Type: {OCI_IMAGE}", f"Docker-Content-Digest: {sha256(b'')}")
    huge = head + b"Content-Length: 5242880\r\n\r\n"
    async with _raw(net, saying(huge, b"", pause=10)) as raw:
        assert digest(await net.ask(_image(raw))) == sha256(b"")


async def test_a_body_without_an_end_ends_at_4_mib(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.fault(answering(405), method="HEAD")
    registry.fault(streaming(b" " * 65536), method="GET")
    assert reason(await net.ask(net.image("public.test"))) is Reason.BAD_ANSWER


async def test_a_body_that_drips_ends_with_the_time(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.fault(answering(405), method="HEAD")
    registry.fault(streaming(b" ", pause=0.01), method="GET")
    assert reason(await net.ask(net.image("public.test"), load_timeout=0.1)) is Reason.TIMEOUT


@pytest.mark.parametrize(
    ("method", "fault"),
    [("HEAD", resetting()), ("GET", resetting()), ("GET", breaking_off())],
    ids=["reset of HEAD", "reset of GET", "break in GET"],
)
async def test_a_connection_that_always_breaks_is_an_outage(
    net: Net, method: str, fault: Fault
) -> None:
    registry = await net.registry("public.test")
    registry.push_image("demo/app", "v1")
    registry.fault(fault, method=method)
    registry.fault(with_header("Docker-Content-Digest"))
    assert reason(await net.ask(net.image("public.test"))) is Reason.UNREACHABLE


async def test_a_tag_that_moves_between_head_and_get_has_the_digest_of_what_was_read(
    net: Net,
) -> None:
    registry = await net.registry("public.test")
    before, after = (registry.push_image("demo/app", "v1", each) for each in (b"1", b"2"))
    registry.tag("demo/app", "v1", before)
    move = afterwards(lambda: registry.tag("demo/app", "v1", after))
    registry.fault(together(with_header("Docker-Content-Digest"), move), method="HEAD")
    assert digest(await net.ask(net.image("public.test"))) == after


async def test_a_tag_that_moves_after_head_has_the_digest_that_head_gave(net: Net) -> None:
    registry = await net.registry("public.test")
    before, after = (registry.push_image("demo/app", "v1", each) for each in (b"1", b"2"))
    registry.tag("demo/app", "v1", before)
    registry.fault(afterwards(lambda: registry.tag("demo/app", "v1", after)))
    assert digest(await net.ask(net.image("public.test"))) == before


async def test_a_registry_that_refuses_its_own_cookies_never_sees_them(net: Net) -> None:
    registry = await net.registry("public.test", users=dict([ALICE]), tokens=True)
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(refusing_cookies(), path="/")
    assert digest(await net.ask(net.image("public.test"), ALICE)) == pushed


# Below HTTP


def _head(status: int, *headers: str, version: str = "1.1") -> bytes:
    """Status line and headers, whose end is still to come."""
    return "".join(f"{line}\r\n" for line in (f"HTTP/{version} {status} x", *headers)).encode()


FOUND = (f"Content-Type: {OCI_IMAGE}", f"Docker-Content-Digest: {sha256(b'')}")
EMPTY = "Content-Length: 0"


def _raw(net: Net, script: Script) -> RawRegistry:
    return RawRegistry(script, host=ADDRESSES["public.test"], tls=net.tls)


def _image(raw: RawRegistry) -> str:
    return f"public.test:{raw.port}/demo/app:v1"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_an_answer_may_end_with_its_connection(net: Net, version: str) -> None:
    body = json.dumps(IMAGE).encode()
    answer = _head(200, f"Content-Type: {OCI_IMAGE}", "Connection: close", version=version)
    async with _raw(net, _refusing_head(saying(answer + b"\r\n" + body))) as raw:
        assert digest(await net.ask(_image(raw))) == sha256(body)
    assert len(raw.requests) == 2


async def test_an_old_server_needs_no_length(net: Net) -> None:
    async with _raw(net, saying(_head(200, *FOUND, version="1.0") + b"\r\n")) as raw:
        assert digest(await net.ask(_image(raw))) == sha256(b"")


DRIPS: dict[str, Script] = {
    "status": dripping(b"HTTP/1.1 200 ", b"x", 0.01),
    "header": dripping(_head(200) + b"X-Drip: ", b"x", 0.01),
    "headers": dripping(_head(200), b"X-Drip: x\r\n", 0.01),
    "nothing": dripping(b"", b"", 0.01),
    "continue": dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01),
    "hints": dripping(b"", b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n", 0.01),
}


@pytest.mark.parametrize("script", DRIPS.values(), ids=DRIPS)
async def test_headers_that_drip_end_with_the_time(net: Net, script: Script) -> None:
    """Each byte renews the patience between two reads, and none that of the whole question."""
    async with _raw(net, script) as raw:
        outcome = await net.ask(_image(raw), load_timeout=0.1, read_timeout=5.0)
    assert reason(outcome) is Reason.TIMEOUT


async def test_who_accepts_and_never_answers_times_out(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.fault(hanging())
    outcome = await net.ask(net.image("public.test"), read_timeout=0.05, retries=0)
    assert reason(outcome) is Reason.TIMEOUT


async def test_who_accepts_and_never_speaks_tls_times_out(net: Net) -> None:
    async with RawRegistry(saying(), host=ADDRESSES["public.test"]) as raw:
        assert reason(await net.ask(_image(raw), load_timeout=0.1)) is Reason.TIMEOUT


async def test_whom_nobody_accepts_times_out(net: Net) -> None:
    with socket.socket() as full:
        full.bind((ADDRESSES["public.test"], 0))
        full.listen(0)
        host, port = full.getsockname()
        others = [await _connecting(host, port) for _ in range(4)]
        outcome = await net.ask(
            f"public.test:{port}/demo/app:v1", connect_timeout=0.05, load_timeout=1.0, retries=0
        )
        for other in others:
            other.close()
    assert reason(outcome) in (Reason.TIMEOUT, Reason.UNREACHABLE)


async def _connecting(host: str, port: int) -> socket.socket:
    connection = socket.socket()
    connection.setblocking(False)
    connection.connect_ex((host, port))
    return connection


BREAKS: dict[str, Script] = {
    "at once": breaking(),
    "in the status": breaking(b"HTTP/1.1 2"),
    "in a header": breaking(_head(200) + b"Content-T"),
    "between headers": breaking(_head(200, *FOUND)),
    "closed in a header": saying(_head(200) + b"Content-T"),
    "closed at once": saying(),
}


@pytest.mark.parametrize("script", BREAKS.values(), ids=BREAKS)
async def test_a_connection_that_breaks_before_the_answer_is_not_made_for_ever(
    net: Net, script: Script
) -> None:
    async with _raw(net, script) as raw:
        assert reason(await net.ask(_image(raw))) is Reason.UNREACHABLE
    assert len(net.pauses) == 2
    assert len(raw.requests) <= 6  # aiohttp repeats each of ours once


CUT_OFF: dict[str, bytes] = {
    "by length": _head(200, FOUND[0], "Content-Length: 999") + b"\r\n{",
    "in a chunk": _head(200, FOUND[0], "Transfer-Encoding: chunked") + b"\r\n9\r\n{",
    "between chunks": _head(200, FOUND[0], "Transfer-Encoding: chunked") + b"\r\n1\r\n{\r\n",
}


@pytest.mark.parametrize("answer", CUT_OFF.values(), ids=CUT_OFF)
@pytest.mark.parametrize("end", [saying, breaking], ids=["closed", "reset"])
async def test_a_body_that_is_cut_off_has_no_digest(
    net: Net, answer: bytes, end: Callable[..., Script]
) -> None:
    async with _raw(net, _refusing_head(end(answer))) as raw:
        assert reason(await net.ask(_image(raw))) is Reason.UNREACHABLE


def _refusing_head(script: Script) -> Script:
    refusal = saying(_head(405, EMPTY) + b"\r\n")
    return lambda method: (refusal if method == "HEAD" else script)(method)


ABSURD: dict[str, bytes] = {
    "a long line": _head(200, *FOUND, EMPTY, f"X: {'x' * 9000}") + b"\r\n",
    "a long name": _head(200, *FOUND, EMPTY, f"{'x' * 9000}: x") + b"\r\n",
    "a long status": b"HTTP/1.1 200 " + b"x" * 9000 + b"\r\n\r\n",
    "a long folded line": _head(200, *FOUND, EMPTY, "X: x", *[" " + "x" * 100] * 100) + b"\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH\r\n\r\n",
    "HTTP/2": b"HTTP/2 200\r\n\r\n",
    "no status": b"HTTP/1.1\r\n\r\n",
    "a status in words": b"HTTP/1.1 fine\r\n\r\n",
    "a status too long": b"HTTP/1.1 2000 x\r\n\r\n",
    "no name": _head(200, ": x") + b"\r\n",
    "no colon": _head(200, "x") + b"\r\n",
    "two lengths": _head(200, *FOUND, EMPTY, "Content-Length: 1") + b"\r\n",
    "a negative length": _head(200, FOUND[0], "Content-Length: -1") + b"\r\n",
    "length and chunks": _head(200, FOUND[0], EMPTY, "Transfer-Encoding: chunked") + b"\r\n",
    "bad chunks": _head(200, FOUND[0], "Transfer-Encoding: chunked") + b"\r\nxyz\r\n",
    "zeros": b"\0" * 100 + b"\r\n\r\n",
}


@pytest.mark.parametrize("answer", ABSURD.values(), ids=ABSURD)
async def test_what_is_no_sane_http_is_a_bad_answer(net: Net, answer: bytes) -> None:
    async with _raw(net, _refusing_head(saying(answer, b"", pause=5))) as raw:
        outcome = await net.ask(_image(raw), read_timeout=0.3)
    assert reason(outcome) is Reason.BAD_ANSWER


async def test_headers_without_an_end_are_not_kept(net: Net) -> None:
    """As fast as they are read: the memory is what must not run out before the time does."""
    flood = dripping(_head(200), b"".join(b"X-%d: x\r\n" % n for n in range(1000)), 0.0)
    async with _raw(net, flood) as raw:
        outcome = await net.ask(_image(raw), load_timeout=5.0)
    assert reason(outcome) is Reason.BAD_ANSWER


# Limits and outages


async def test_who_says_when_to_come_again_is_asked_then(net: Net) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(answering(429, {"Retry-After": "2"}), times=1)
    assert digest(await net.ask(net.image("public.test"))) == pushed
    assert [2.0 <= pause <= 3.0 for pause in net.pauses] == [True]


@pytest.mark.parametrize("form", ["date", "unix"])
async def test_when_to_come_again_may_be_a_moment(net: Net, form: str) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    at = net.clock.now() + timedelta(seconds=3)
    value = format_datetime(at, usegmt=True) if form == "date" else str(int(at.timestamp()))
    registry.fault(answering(429, {"Retry-After": value}), times=1)
    outcome = await net.ask(net.image("public.test"), now=net.clock.now)
    assert digest(outcome) == pushed
    assert [1.0 <= pause <= 4.0 for pause in net.pauses] == [True]


@pytest.mark.parametrize(
    "value", ["3600", "86400", "99999999999999999999", "-1", "soon", "", "1e9", "nan", None]
)
async def test_who_wants_to_be_left_alone_for_too_long_is(net: Net, value: str | None) -> None:
    registry = await net.registry("public.test")
    registry.push_image("demo/app", "v1")
    headers = {} if value is None else {"Retry-After": value}
    registry.fault(answering(429, headers))
    outcome = await net.ask(net.image("public.test"), load_timeout=5.0)
    assert reason(outcome) is Reason.RATE_LIMITED
    assert sum(net.pauses) < 5.0


async def test_503_then_200_is_an_answer(net: Net) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(answering(503), times=1)
    assert digest(await net.ask(net.image("public.test"))) == pushed


@pytest.mark.parametrize("status", [500, 502, 503, 504, 507, 522, 599])
async def test_an_outage_without_an_end_is_soon_left_alone(net: Net, status: int) -> None:
    registry = await net.registry("public.test")
    registry.push_image("demo/app", "v1")
    registry.fault(answering(status))
    assert reason(await net.ask(net.image("public.test"))) is Reason.UNREACHABLE
    assert len(registry.requests) <= 4
