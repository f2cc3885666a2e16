"""The client carries conversations out, within bounds, whatever a registry does."""

import asyncio

import pytest
from aiohttp import web

from cluster.authority import Authority
from fakes.clock import FakeClock
from fakes.faults import (
    Fault,
    Handler,
    answering,
    breaking_off,
    hanging,
    redirecting,
    resetting,
    streaming,
    with_body,
    with_header,
)
from fakes.registry import FakeRegistry
from tagpin.errors import ConfigurationError, Reason, Unresolvable
from tagpin.pinning import Resolution
from tagpin.reference import Reference
from tagpin.registry.client import RegistryClient
from tagpin.registry.conversation import resolve_tag
from tagpin.registry.flow import Failure, Response
from tagpin.registry.places import RegistrySettings
from tagpin.registry.resolver import RegistryResolver

from .conftest import ADDRESSES, Net, digest, reason, settle, until

ALICE, BOB = ("alice", "pa55word"), ("bob", "w0rdpass")


# Bounds


@pytest.mark.parametrize("size", [4 * 1024 * 1024 + 1, 5 * 1024 * 1024])
async def test_a_manifest_of_more_than_4_mib_is_refused(net: Net, size: int) -> None:
    registry = await net.registry("public.test")
    registry.push_image("demo/app", "v1")
    registry.fault(with_header("Docker-Content-Digest"), method="HEAD")
    registry.fault(with_body(b" " * size), method="GET")
    assert reason(await net.ask(net.image("public.test"))) is Reason.BAD_ANSWER


async def test_a_body_without_an_end_is_refused_when_it_is_too_long(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.fault(answering(405), method="HEAD")
    registry.fault(streaming(b" " * 65536), method="GET")
    assert reason(await net.ask(net.image("public.test"))) is Reason.BAD_ANSWER


async def test_an_error_without_an_end_is_still_that_error(net: Net) -> None:
    registry = await net.registry("public.test")

    async def endless_404(request: web.Request, _handle: Handler) -> web.StreamResponse:
        response = web.StreamResponse(status=404)
        response.enable_chunked_encoding()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)

    registry.fault(endless_404, method="GET")
    assert reason(await net.ask(net.image("public.test"))) is Reason.NOT_FOUND


async def test_a_manifest_of_very_many_elements_is_refused(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.fault(answering(405), method="HEAD")
    registry.fault(answering(200, body=b'{"manifests":[' + b"{}," * 100_001 + b"{}]}"))
    assert reason(await net.ask(net.image("public.test"))) is Reason.BAD_ANSWER


@pytest.mark.parametrize(
    "fault",
    [
        answering(200, body=b"[" + b" " * 1_000_000 + b"]"),
        answering(200, body=b"no JSON" * 100_000),
        streaming(b"x" * 60_000, pause=0.05),
    ],
    ids=["no manifest", "no JSON", "too slow"],
)
async def test_a_failure_holds_nothing_of_what_was_answered(net: Net, fault: Fault) -> None:
    registry = await net.registry("public.test")
    registry.fault(answering(405), method="HEAD")
    registry.fault(fault, method="GET")
    client = await net.client()
    ref = Reference.parse(net.image("public.test"))
    asked = client.registry(ref.domain)
    with pytest.raises(Failure) as caught:
        await client.run(resolve_tag(asked, ref, ()), asked, within=0.5)
    held = [value for entry in caught.traceback for value in entry.frame.f_locals.values()]
    assert not any(isinstance(value, Response | bytes | bytearray) for value in held)
    assert caught.value.__cause__ is caught.value.__context__ is None


async def test_a_token_answer_of_more_than_64_kib_is_refused(net: Net) -> None:
    registry = await net.registry("public.test", tokens=True)
    registry.token_answer = {"padding": "x" * 65536}
    assert reason(await net.ask(net.image("public.test"))) is Reason.BAD_ANSWER


async def test_a_header_of_9_kib_is_refused(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.push_image("demo/app", "v1")
    registry.fault(with_header("X-Large", "x" * 9216))
    assert reason(await net.ask(net.image("public.test"))) is Reason.BAD_ANSWER


async def test_a_registry_that_never_answers_times_out(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.fault(hanging())
    assert reason(await net.ask(net.image("public.test"), read_timeout=0.1)) is Reason.TIMEOUT
    assert len(net.pauses) == 2


async def test_a_registry_that_drips_is_cut_off_at_the_deadline(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.fault(answering(405), method="HEAD")
    registry.fault(streaming(b" ", pause=0.02), method="GET")
    assert reason(await net.ask(net.image("public.test"), load_timeout=0.2)) is Reason.TIMEOUT


async def test_a_token_server_that_never_answers_is_cut_off_too(net: Net) -> None:
    registry = await net.registry("public.test", tokens=True)
    registry.fault(hanging(), path="/token")
    settings = [RegistrySettings(f"public.test:{net.port}")]
    outcome = await net.ask(net.image("public.test"), load_timeout=0.1, registries=settings)
    assert reason(outcome) is Reason.TIMEOUT


async def test_no_more_connections_per_host_than_agreed(net: Net) -> None:
    registry = await net.registry("public.test")
    now, most = 0, 0

    async def counted(request: web.Request, handle: Handler) -> web.StreamResponse:
        nonlocal now, most
        now, most = now + 1, max(most, now + 1)
        await asyncio.sleep(0.01)
        now -= 1
        return await handle(request)

    registry.fault(counted)
    for tag in range(20):
        registry.push_image("demo/app", str(tag))
    resolver = await net.resolver(per_host=4)
    questions = [
        settle(resolver, net.image("public.test", tag=str(tag)), namespace=f"team-{tag % 5}")
        for tag in range(20)
    ]
    outcomes = await asyncio.gather(*questions)
    assert all(isinstance(outcome, Resolution) for outcome in outcomes)
    assert most == 4


async def test_a_stranger_of_many_names_that_hangs_keeps_nobody_from_connecting(net: Net) -> None:
    stranger, honest = await net.registry("other.test"), await net.registry("public.test")
    many = asyncio.Event()

    async def hang(request: web.Request, handle: Handler) -> web.StreamResponse:
        if len(stranger.requests) >= 256:
            many.set()
        return await hanging()(request, handle)

    stranger.fault(hang)
    pushed = honest.push_image("demo/app", "v1")
    hosts = [f"h{number}.wild.test" for number in range(11)]
    for host in hosts:
        net.names.add(host, [ADDRESSES["other.test"]])
    resolver = await net.resolver(connect_timeout=30.0, read_timeout=30.0)
    asking = [
        asyncio.create_task(settle(resolver, net.image(host, tag=str(tag)), namespace=host))
        for host in hosts
        for tag in range(24)
    ]
    await asyncio.wait_for(many.wait(), 10)
    assert digest(await settle(resolver, net.image("public.test"), within=3)) == pushed
    for each in asking:
        each.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


async def test_large_manifests_wait_for_one_another_and_small_ones_for_nobody(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.fault(answering(405), method="HEAD")
    small = registry.push_image("demo/app", "small")
    padded = registry.content(small) + b" " * 100_000
    media_type = registry.media_type(small)
    assert media_type is not None
    large = registry.push_manifest("demo/app", "large", padded, media_type)
    proceed, stalled, sent = asyncio.Event(), asyncio.Event(), 0

    async def stall(request: web.Request, _handle: Handler) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b" " * 100_000)
        sent += 1
        if sent == 4:
            stalled.set()
        await proceed.wait()
        return response

    registry.fault(stall, method="GET", path="/manifests/stalled")
    resolver = await net.resolver()
    asking = [
        asyncio.create_task(settle(resolver, net.image("public.test", tag=f"stalled-{number}")))
        for number in range(4)
    ]
    await asyncio.wait_for(stalled.wait(), 10)
    await asyncio.sleep(0.1)  # for them to be read as far as they came
    outcome = await settle(resolver, net.image("public.test", tag="large"), within=0.2)
    assert isinstance(outcome, Unresolvable)
    assert digest(await settle(resolver, net.image("public.test", tag="small"))) == small
    proceed.set()
    await asyncio.gather(*asking)
    assert digest(await settle(resolver, net.image("public.test", tag="large"))) == large


# Trying again


async def test_503_then_200_is_an_answer(net: Net) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(answering(503), times=1)
    assert digest(await net.ask(net.image("public.test"))) == pushed
    assert len(net.pauses) == 1
    assert 0.1 <= net.pauses[0] <= 0.4


async def test_replicas_do_not_ask_again_in_step(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.push_image("demo/app", "v1")
    resolver = await net.resolver()
    for _ in range(5):
        registry.fault(answering(503), times=1)
        digest(await settle(resolver, net.image("public.test"), max_age=-1))
    assert len(set(net.pauses)) == 5
    assert all(0.1 <= pause <= 0.4 for pause in net.pauses)


@pytest.mark.parametrize("status", [408, 429, 499, 500, 502, 503, 504, 522])
async def test_what_may_have_passed_a_moment_later_is_asked_again(net: Net, status: int) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(answering(status), times=1)
    assert digest(await net.ask(net.image("public.test"))) == pushed
    assert len(net.pauses) == 1


async def test_a_registry_that_was_silent_is_asked_again(net: Net) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(hanging(), times=2)
    assert digest(await net.ask(net.image("public.test"), read_timeout=0.1)) == pushed
    assert len(net.pauses) == 2


async def test_a_registry_that_refused_to_connect_is_asked_again(net: Net) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    await registry.stop()

    async def start(_seconds: float) -> None:
        await registry.start()

    assert digest(await net.ask(net.image("public.test"), sleep=start)) == pushed


@pytest.mark.parametrize("status", [408, 429, 499])
async def test_a_mistake_that_is_said_to_be_ours_is_no_error_of_the_registry(
    net: Net, status: int
) -> None:
    """So that it is said twice does not mean that it will be said for ever."""
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(answering(status), times=2)
    assert digest(await net.ask(net.image("public.test"))) == pushed


async def test_errors_that_change_are_not_asked_about_for_ever(net: Net) -> None:
    registry = await net.registry("public.test")
    for status in (503, 500, 502, 504):
        registry.fault(answering(status), times=1)
    assert reason(await net.ask(net.image("public.test"))) is Reason.UNREACHABLE
    assert len(registry.requests) == 3


async def test_nothing_is_asked_again_that_could_not_be_answered_in_time(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.fault(answering(503))
    outcome = await net.ask(net.image("public.test"), load_timeout=0.3, jitter=lambda: 0.4)
    assert reason(outcome) is Reason.UNREACHABLE
    assert (len(registry.requests), net.pauses) == (1, [])


async def test_one_deadline_is_for_all_requests_of_a_question(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.fault(hanging())
    short = {"load_timeout": 0.8, "read_timeout": 0.3, "jitter": lambda: 0.01}
    assert reason(await net.ask(net.image("public.test"), **short)) is Reason.TIMEOUT
    assert [each.code for each in net.exchanges] == ["timeout", "timeout", "cancelled"]


async def test_a_registry_may_have_less_time_for_a_question(net: Net) -> None:
    registry, other = await net.registry("public.test"), await net.registry("other.test")
    for each in (registry, other):
        each.fault(hanging(), times=1)
    pushed = other.push_image("demo/app", "v1")
    hasty = [RegistrySettings(f"public.test:{net.port}", timeout=0.1)]
    resolver = await net.resolver(registries=hasty, read_timeout=0.2)
    assert reason(await settle(resolver, net.image("public.test"))) is Reason.TIMEOUT
    assert len(registry.requests) <= 1  # none where not even a connection came about in time
    assert digest(await settle(resolver, net.image("other.test"))) == pushed


# Waiting as long as a registry wants


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    "said", ["2", "Thu, 01 Jan 2026 00:16:42 GMT", str(1767225600 + 1002), "2.0"]
)
async def test_a_wait_that_fits_is_kept_to(net: Net, status: int, said: str) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(answering(status, {"Retry-After": said}), times=1)
    assert digest(await net.ask(net.image("public.test"), now=net.clock.now)) == pushed
    assert len(net.pauses) == 1
    assert 2.1 <= net.pauses[0] <= 2.4


@pytest.mark.parametrize(
    ("status", "known_as"), [(429, Reason.RATE_LIMITED), (503, Reason.UNREACHABLE)]
)
async def test_a_wait_that_does_not_fit_is_not_begun(
    net: Net, status: int, known_as: Reason
) -> None:
    registry = await net.registry("public.test")
    registry.fault(answering(status, {"Retry-After": "5"}))
    assert reason(await net.ask(net.image("public.test"), load_timeout=5.0)) is known_as
    assert (len(registry.requests), net.pauses) == (1, [])


async def test_of_several_waits_the_longest_is_kept_to(net: Net) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")

    async def limited(_request: web.Request, _handle: Handler) -> web.StreamResponse:
        response = web.Response(status=429)
        for value in ("1", "soon", "3"):
            response.headers.add("Retry-After", value)
        return response

    registry.fault(limited, times=1)
    assert digest(await net.ask(net.image("public.test"))) == pushed
    assert 3.1 <= net.pauses[0] <= 3.4


@pytest.mark.parametrize("said", ["", "-5", "soon", "1e400", "99999999", "9" * 4000])
async def test_a_wait_that_makes_no_sense_is_a_short_one(net: Net, said: str) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(answering(429, {"Retry-After": said}), times=1)
    assert digest(await net.ask(net.image("public.test"))) == pushed
    assert net.pauses[0] <= 0.4


@pytest.mark.parametrize("status", [404, 500])
async def test_other_answers_make_nobody_wait(net: Net, status: int) -> None:
    registry = await net.registry("public.test")
    registry.fault(answering(status, {"Retry-After": "3"}))
    await net.ask(net.image("public.test"))
    assert all(pause <= 0.4 for pause in net.pauses)


async def test_a_token_server_can_make_us_wait_too(net: Net) -> None:
    registry = await net.registry("public.test", tokens=True)
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(answering(429, {"Retry-After": "2"}), path="/token", times=1)
    assert digest(await net.ask(net.image("public.test"))) == pushed
    assert 2.1 <= net.pauses[0] <= 2.4


# Trying again, and no more


async def test_the_same_error_twice_is_an_answer_too(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.fault(answering(503))
    assert reason(await net.ask(net.image("public.test"))) is Reason.UNREACHABLE
    assert len(registry.requests) == 2


async def test_nothing_is_tried_more_than_three_times(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.fault(resetting())
    assert reason(await net.ask(net.image("public.test"))) is Reason.UNREACHABLE
    assert len(net.pauses) == 2


@pytest.mark.parametrize("fault", [resetting(), breaking_off()], ids=["reset", "break"])
async def test_a_connection_that_breaks_is_made_again(net: Net, fault: Fault) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(answering(405), method="HEAD")
    registry.fault(fault, method="GET", times=1)
    assert digest(await net.ask(net.image("public.test"))) == pushed


@pytest.mark.parametrize("status", [400, 401, 403, 404, 406, 418])
async def test_what_would_not_change_is_not_tried_again(net: Net, status: int) -> None:
    registry = await net.registry("public.test")
    registry.fault(answering(status))
    assert isinstance(await net.ask(net.image("public.test")), Unresolvable)
    assert net.pauses == []


# Reasons


async def test_where_nobody_listens_the_registry_is_unreachable(net: Net) -> None:
    registry = await net.registry("public.test")
    await registry.stop()
    assert reason(await net.ask(net.image("public.test"))) is Reason.UNREACHABLE


async def test_where_nobody_listens_at_the_allowed_address_the_registry_is_unreachable(
    net: Net,
) -> None:
    registry = await net.registry("public.test")
    await registry.stop()
    net.names.add("public.test", ["127.3.0.1", "127.1.0.1"])
    assert reason(await net.ask(net.image("public.test"))) is Reason.UNREACHABLE


async def test_a_name_that_does_not_exist_is_unreachable(net: Net) -> None:
    assert reason(await net.ask("absent.test/demo/app:v1")) is Reason.UNREACHABLE


async def test_what_is_no_http_is_a_bad_answer(net: Net) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(babble, "127.1.0.1", 0)
    async with server:
        host = f"public.test:{server.sockets[0].getsockname()[1]}"
        settings = [RegistrySettings(host, http=True)]
        outcome = await net.ask(f"{host}/demo/app:v1", registries=settings)
    assert reason(outcome) is Reason.BAD_ANSWER


async def test_a_port_that_does_not_exist_is_a_mistake_in_the_reference(net: Net) -> None:
    for port in (0, 65536, 99999999):
        outcome = await net.ask(f"public.test:{port}/demo/app:v1")
        assert reason(outcome) is Reason.INVALID_REFERENCE


# TLS


async def test_a_certificate_of_an_unknown_authority_is_refused(net: Net) -> None:
    registry = await net.registry("public.test")
    assert reason(await net.ask(net.image("public.test"), ca=None)) is Reason.TLS
    assert registry.requests == []


async def test_a_certificate_for_another_name_is_refused(net: Net) -> None:
    registry = await net.registry("public.test")
    net.names.add("impostor.test", ["127.1.0.1"])
    assert reason(await net.ask(net.image("impostor.test"))) is Reason.TLS
    assert registry.requests == []


async def test_an_authority_may_be_trusted_for_one_registry_alone(net: Net) -> None:
    one, other = await net.registry("public.test"), await net.registry("other.test")
    for registry in (one, other):
        registry.push_image("demo/app", "v1")
    resolver = await net.resolver(
        ca=None, registries=[RegistrySettings(f"public.test:{net.port}", ca=net.ca)]
    )
    assert isinstance(await settle(resolver, net.image("public.test")), Resolution)
    assert reason(await settle(resolver, net.image("other.test"))) is Reason.TLS


@pytest.mark.parametrize("ca", ["no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_what_is_no_authority_is_a_mistake_in_the_settings(ca: str) -> None:
    with pytest.raises(ConfigurationError, match="the CA for listed"):
        RegistryClient(registries=[RegistrySettings("listed", ca=ca)])


def test_a_private_key_is_no_authority(authority: Authority) -> None:
    key = authority.issue("x").key.read_text()
    with pytest.raises(ConfigurationError):
        RegistryClient(ca=key)


@pytest.mark.parametrize(
    "host", ["", "https://r.example", "r.example/x", "r.example:x", "r.example:0", "u@r.example"]
)
def test_a_registry_is_listed_as_host_and_port(host: str) -> None:
    with pytest.raises(ConfigurationError):
        RegistryClient(registries=[RegistrySettings(host)])


# Which registry


@pytest.mark.parametrize(
    ("domain", "origin"),
    [
        ("docker.io", "https://registry-1.docker.io"),
        ("ghcr.io", "https://ghcr.io"),
        ("r.example:5000", "https://r.example:5000"),
        ("[::1]:5000", "https://[::1]:5000"),
        ("plain.example:5000", "http://plain.example:5000"),
        ("plain.example", "https://plain.example"),
        ("short.example", "http://short.example"),
        ("GHCR.io", "https://ghcr.io"),
    ],
)
def test_every_registry_has_an_origin(domain: str, origin: str) -> None:
    client = RegistryClient(
        registries=[
            RegistrySettings("plain.example:5000", http=True),
            RegistrySettings("short.example", http=True),
        ]
    )
    assert str(client.registry(domain).origin) == origin


def test_docker_hub_can_be_listed_by_its_name() -> None:
    client = RegistryClient(registries=[RegistrySettings("docker.io")])
    assert client.registry("docker.io").listed


# Tokens


async def test_tags_of_one_repository_share_a_token(net: Net) -> None:
    registry = await net.registry("public.test", users=dict([ALICE]), tokens=True)
    tags = [str(number) for number in range(10)]
    for tag in tags:
        registry.push_image("demo/app", tag)
    resolver = await net.resolver()
    images = [net.image("public.test", tag=tag) for tag in tags]
    outcomes = await asyncio.gather(*[settle(resolver, image, ALICE) for image in images])
    assert all(isinstance(outcome, Resolution) for outcome in outcomes)
    assert [seen.path for seen in registry.requests].count("/token") == 1


async def test_repositories_do_not_share_a_token(net: Net) -> None:
    registry = await net.registry("public.test", tokens=True)
    resolver = await net.resolver()
    for repository in ("demo/one", "demo/two"):
        pushed = registry.push_image(repository, "v1")
        assert digest(await settle(resolver, net.image("public.test", repository))) == pushed
    assert len(registry.requests) == 2 * 3  # no token was refused on the way


async def test_a_token_server_elsewhere_is_told_once(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    registry = await net.registry("public.test", tokens=True)
    tokens = await net.registry("other.test", tokens=True)
    registry.realm = f"https://other.test:{net.port}/token"
    resolver = await net.resolver()
    for repository in ("demo/one", "demo/two"):
        await settle(resolver, net.image("public.test", repository))
    assert [seen.path for seen in tokens.requests].count("/token") > 1
    told = f"public.test:{net.port} has its tokens from other.test"
    assert caplog.messages.count(told) == 1


async def test_whoever_has_a_token_asks_once(net: Net) -> None:
    registry = await net.registry("public.test", users=dict([ALICE, BOB]), tokens=True)
    resolver = await net.resolver()
    for tag in ("1", "2"):
        registry.push_image("demo/app", tag)
        registry.push_image("demo/other", tag)

    async def requests(login: tuple[str, str], tag: str, repository: str = "demo/app") -> list[str]:
        before = len(registry.requests)
        digest(await settle(resolver, net.image("public.test", repository, tag), login))
        return [seen.method for seen in registry.requests[before:]]

    first = ["HEAD", "GET", "HEAD"]
    assert await requests(ALICE, "1") == first
    assert await requests(ALICE, "2") == ["HEAD"]
    assert await requests(BOB, "2") == first, "it is not Bob's"
    assert await requests(ALICE, "2", "demo/other") == first, "it is not for that"


async def test_a_token_is_not_sent_for_longer_than_it_serves(net: Net) -> None:
    clock = FakeClock()
    registry = await net.registry("public.test", tokens=True)
    registry.push_image("demo/app", "v1")
    resolver = await net.resolver(clock=clock)
    await settle(resolver, net.image("public.test"))
    clock.advance(301)
    await settle(resolver, net.image("public.test"), max_age=-1)
    assert [seen.authorization is None for seen in registry.requests] == [True, True, False] * 2


async def test_a_revoked_token_is_replaced(net: Net) -> None:
    registry = await net.registry("public.test", users=dict([ALICE]), tokens=True)
    pushed = registry.push_image("demo/app", "v1")
    resolver = await net.resolver()
    await settle(resolver, net.image("public.test"), ALICE)
    registry.revoke_tokens()
    outcome = await settle(resolver, net.image("public.test"), ALICE, max_age=-1)
    assert digest(outcome) == pushed


async def test_fifty_questions_at_once_are_one_request_for_a_token(net: Net) -> None:
    registry = await net.registry("public.test", users=dict([ALICE]), tokens=True)
    registry.fault(_slow, path="/token")
    assert await _ask_for_fifty(net, registry, await net.resolver()) == 50
    assert tokens(registry) == 1


async def test_fifty_questions_whose_token_was_revoked_are_one_request_for_another(
    net: Net,
) -> None:
    registry = await net.registry("public.test", users=dict([ALICE]), tokens=True)
    registry.fault(_slow, path="/token")
    resolver = await net.resolver(per_host=100)
    await _ask_for_fifty(net, registry, resolver)
    registry.revoke_tokens()
    refused = asyncio.Barrier(50)

    async def at_once(request: web.Request, handle: Handler) -> web.StreamResponse:
        response = await handle(request)
        if response.status == 401:  # nobody has a new token before all have found out
            await refused.wait()
        return response

    registry.fault(at_once)
    assert await _ask_for_fifty(net, registry, resolver) == 50
    assert tokens(registry) == 2


async def test_every_credential_has_a_token_of_its_own(net: Net) -> None:
    users = {f"user{number}": "x" for number in range(5)}
    registry = await net.registry("public.test", users=users, tokens=True)
    registry.push_image("demo/app", "v1")
    resolver = await net.resolver()
    questions = [
        settle(resolver, net.image("public.test"), (user, "x"), max_age=-1)
        for user in users
        for _ in range(4)
    ]
    assert all(isinstance(each, Resolution) for each in await asyncio.gather(*questions))
    assert tokens(registry) == 5


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [(answering(401), 5), (answering(500), 2), (answering(429, {"Retry-After": "300"}), 2)],
)
async def test_a_failed_login_is_tried_again_a_little_later(
    net: Net, fault: Fault, seconds: float
) -> None:
    registry = await net.registry("public.test", tokens=True)
    registry.push_image("demo/app", "v1")
    registry.fault(fault, path="/token")
    resolver = await net.resolver(clock=net.clock, retries=0)
    image = net.image("public.test")
    # Different namespaces and ages, so that only the failure of the login is shared.
    for namespace, asked in (("one", 1), ("two", 1)):
        assert isinstance(
            await settle(resolver, image, namespace=namespace, max_age=-1), Unresolvable
        )
        assert tokens(registry) == asked
    registry.heal()
    net.clock.advance(seconds - 0.1)
    await settle(resolver, image, namespace="three", max_age=-1)
    assert tokens(registry) == 1
    net.clock.advance(0.1)
    digest(await settle(resolver, image, namespace="four", max_age=-1))


async def _slow(request: web.Request, handle: Handler) -> web.StreamResponse:
    await asyncio.sleep(0.02)
    return await handle(request)


async def _ask_for_fifty(net: Net, registry: FakeRegistry, resolver: RegistryResolver) -> int:
    """How many of fifty tags of one repository have a digest, asked for all at once."""
    for tag in range(50):
        registry.push_image("demo/app", str(tag))
    questions = [
        settle(
            resolver,
            net.image("public.test", tag=str(tag)),
            ALICE,
            namespace=f"team-{tag % 5}",
            max_age=-1,
        )
        for tag in range(50)
    ]
    outcomes = await asyncio.gather(*questions)
    return sum(isinstance(outcome, Resolution) for outcome in outcomes)


def tokens(registry: FakeRegistry) -> int:
    """Requests for tokens so far."""
    return [seen.path for seen in registry.requests].count("/token")


async def test_a_failed_login_is_not_repeated_at_once(net: Net) -> None:
    registry = await net.registry("public.test", users=dict([ALICE]), tokens=True)
    resolver = await net.resolver()
    for tag in ("one", "two"):
        outcome = await settle(resolver, net.image("public.test", tag=tag), ("alice", "wrong"))
        assert reason(outcome) is Reason.UNAUTHORIZED
    assert [seen.path for seen in registry.requests].count("/token") == 1


# Connections


async def test_questions_one_after_the_other_share_a_connection(net: Net) -> None:
    registry = await net.registry("public.test", users=dict([ALICE]), tokens=True)
    resolver = await net.resolver()
    for number in range(10):
        registry.push_image("demo/app", str(number))
        digest(await settle(resolver, net.image("public.test", tag=str(number)), ALICE))
    assert len(registry.requests) > 10
    assert len({seen.connection for seen in registry.requests}) == 1


@pytest.mark.parametrize("status", [404, 503])
async def test_a_connection_is_used_again_after_an_error(net: Net, status: int) -> None:
    registry = await net.registry("public.test")
    registry.fault(answering(status, body=b"x" * 60_000))
    resolver = await net.resolver()
    for number in range(3):
        await settle(resolver, net.image("public.test", tag=str(number)))
    assert len({seen.connection for seen in registry.requests}) == 1


async def test_no_more_connections_are_kept_than_were_needed_at_once(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.fault(_slow)
    resolver = await net.resolver(per_host=4)
    for _ in range(3):
        questions = [
            settle(resolver, net.image("public.test", tag=str(tag)), namespace=f"team-{tag}")
            for tag in range(12)
        ]
        await asyncio.gather(*questions)
        net.clock.advance(60)
    assert len({seen.connection for seen in registry.requests}) == 4


@pytest.mark.parametrize(("connections", "share"), [(1, 1), (2, 1), (8, 6)])
async def test_the_operator_says_how_many_requests_a_registry_bears(
    net: Net, connections: int, share: int
) -> None:
    registry = await net.registry("public.test")
    registry.fault(hanging())
    listed = [RegistrySettings(f"public.test:{net.port}", connections=connections)]
    resolver = await net.resolver(registries=listed)
    asking = [
        asyncio.create_task(
            settle(resolver, net.image("public.test", tag=str(tag)), namespace=namespace)
        )
        for tag in range(10)
        for namespace in ("one", "two")[: 1 if share == connections else 2]
    ]
    await until(registry, min(connections, 2 * share))
    await asyncio.sleep(0.1)
    assert len(registry.requests) == min(connections, 2 * share)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


# What is asked


async def test_requests_say_who_we_are_and_want_no_compression(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.push_image("demo/app", "v1")
    await net.ask(net.image("public.test"))
    (seen,) = registry.requests
    assert seen.headers["user-agent"].startswith("tagpin/")
    assert seen.headers["accept-encoding"] == "identity"


async def test_a_proxy_in_the_environment_is_not_used(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.1.9.9:1")
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    assert digest(await net.ask(net.image("public.test"))) == pushed


async def test_every_exchange_is_observed(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.fault(answering(404), method="HEAD")
    registry.fault(resetting(), method="GET")
    await net.ask(net.image("public.test"), retries=0)
    observed = [(each.registry, each.method, each.code) for each in net.exchanges]
    host = f"public.test:{net.port}"
    assert observed == [(host, "HEAD", "404"), (host, "GET", "unreachable")]
    assert all(each.seconds >= 0 for each in net.exchanges)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (200, "200"),
        (401, "401"),
        (403, "403"),
        (404, "404"),
        (429, "429"),
        (206, "2xx"),
        (304, "3xx"),
        (418, "4xx"),
        (503, "5xx"),
        (599, "5xx"),
        (600, "other"),
        (999, "other"),
    ],
)
async def test_a_registry_chooses_among_few_codes(net: Net, status: int, code: str) -> None:
    registry = await net.registry("public.test")
    registry.fault(answering(status))
    await net.ask(net.image("public.test"), retries=0)
    assert {each.code for each in net.exchanges} == {code}


async def test_a_redirect_is_followed_to_another_public_host(net: Net) -> None:
    registry, other = await net.registry("public.test"), await net.registry("other.test")
    pushed = other.push_image("demo/app", "v1")
    registry.fault(redirecting(f"https://other.test:{net.port}{{path}}"))
    assert digest(await net.ask(net.image("public.test"))) == pushed


async def test_closing_ends_what_is_in_flight_and_leaves_nothing_open(net: Net) -> None:
    registry = await net.registry("public.test", tokens=True)
    asked = asyncio.Event()

    async def hang(request: web.Request, handle: Handler) -> web.StreamResponse:
        asked.set()
        return await hanging()(request, handle)

    registry.fault(hang, path="/token")
    resolver = await net.resolver()
    asking = asyncio.create_task(settle(resolver, net.image("public.test")))
    await asked.wait()
    await resolver.aclose()
    with pytest.raises(asyncio.CancelledError):
        await asking
