"""The resolver remembers what registries said, for those who may know it."""

import asyncio
import logging

import pytest
from aiohttp import web

from fakes.registry import FakeRegistry, Fault, Handler, answering, hanging
from tagpin.errors import Reason, Unresolvable
from tagpin.keychain import Credential, Keychain
from tagpin.pinning import Resolution
from tagpin.pins import Source
from tagpin.reference import Digest, Reference
from tagpin.registry.places import RegistrySettings

from .conftest import Net, settle

ALICE, BOB = ("alice", "a"), ("bob", "b")
USERS = dict([ALICE, BOB])


def resolution(outcome: Resolution | Unresolvable) -> Resolution:
    assert isinstance(outcome, Resolution), outcome
    return outcome


def reason(outcome: Resolution | Unresolvable) -> Reason:
    assert isinstance(outcome, Unresolvable), outcome
    return outcome.reason


def heads(registry: FakeRegistry) -> int:
    return sum(seen.method == "HEAD" for seen in registry.requests)


async def test_a_second_question_is_answered_from_the_cache(net: Net) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    resolver = await net.resolver()
    asked_at = net.clock.now()
    first = resolution(await settle(resolver, net.image("public.test")))
    net.clock.advance(30)
    second = resolution(await settle(resolver, net.image("public.test")))
    assert (first.source, second.source) == (Source.REGISTRY, Source.CACHE)
    assert (str(second.digest), second.resolved_at) == (pushed, asked_at)
    assert heads(registry) == 1


async def test_an_answer_that_is_too_old_for_the_caller_is_asked_for_anew(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.push_image("demo/app", "v1", b"before")
    resolver = await net.resolver()
    await settle(resolver, net.image("public.test"))
    moved = registry.push_image("demo/app", "v1", b"after")
    net.clock.advance(6)
    fresh = resolution(await settle(resolver, net.image("public.test"), max_age=5))
    assert (str(fresh.digest), fresh.source) == (moved, Source.REGISTRY)


async def test_a_burst_of_pods_costs_one_request(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.push_image("demo/app", "v1")
    resolver = await net.resolver()
    calls = [settle(resolver, net.image("public.test")) for _ in range(50)]
    outcomes = await asyncio.gather(*calls)
    assert {resolution(outcome).source for outcome in outcomes} == {Source.REGISTRY}
    assert len(registry.requests) == 1


async def test_what_one_credential_may_see_is_not_for_another(net: Net) -> None:
    registry = await net.registry("public.test", users=USERS)
    registry.push_image("demo/app", "v1")
    resolver = await net.resolver()
    resolution(await settle(resolver, net.image("public.test"), ALICE))
    assert reason(await settle(resolver, net.image("public.test"))) is Reason.UNAUTHORIZED
    stranger = await settle(resolver, net.image("public.test"), ("mallory", "x"))
    assert reason(stranger) is Reason.UNAUTHORIZED
    assert resolution(await settle(resolver, net.image("public.test"), BOB)).source is (
        Source.REGISTRY
    )
    again = resolution(await settle(resolver, net.image("public.test"), ALICE))
    assert again.source is Source.CACHE


async def test_one_credentials_failure_is_not_anothers(net: Net) -> None:
    registry = await net.registry("public.test", users=USERS)
    registry.push_image("demo/app", "v1")
    resolver = await net.resolver()
    wrong = await settle(resolver, net.image("public.test"), ("alice", "wrong"))
    assert reason(wrong) is Reason.UNAUTHORIZED
    resolution(await settle(resolver, net.image("public.test"), ALICE))


@pytest.mark.parametrize(("status", "seconds"), [(404, 10), (403, 5), (429, 2), (503, 2), (418, 5)])
async def test_a_failure_is_an_answer_for_a_short_while(
    net: Net, status: int, seconds: float
) -> None:
    registry = await net.registry("public.test")
    registry.push_image("demo/app", "v1")
    registry.fault(answering(status))
    resolver = await net.resolver()
    failed = await settle(resolver, net.image("public.test"))
    registry.heal()
    net.clock.advance(seconds - 0.1)
    assert reason(await settle(resolver, net.image("public.test"))) is reason(failed)
    net.clock.advance(0.1)
    resolution(await settle(resolver, net.image("public.test")))


async def test_a_shared_failure_names_the_image_that_each_caller_wrote(net: Net) -> None:
    await net.registry("public.test")
    resolver = await net.resolver()
    texts = [f"public.test:{net.port}/demo/app", f"public.test:{net.port}/demo/app:latest"]
    outcomes = await asyncio.gather(*[settle(resolver, text) for text in texts])
    assert [str(outcome) for outcome in outcomes] == [f"{text} does not exist" for text in texts]


async def test_a_message_names_docker_hub_where_the_reference_does_not(net: Net) -> None:
    outcome = await net.ask("nginx")
    assert str(outcome) == "docker.io is unreachable, so nginx has no digest now"


# While the registry is down


async def test_while_the_registry_is_down_its_last_answer_stands_in(net: Net) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    resolver = await net.resolver()
    asked_at = net.clock.now()
    await settle(resolver, net.image("public.test"))
    await registry.stop()
    net.clock.advance(3599)
    known = resolution(await settle(resolver, net.image("public.test"), max_age=5))
    assert (str(known.digest), known.source, known.resolved_at) == (pushed, Source.STALE, asked_at)
    net.clock.advance(1)
    gone = await settle(resolver, net.image("public.test"), max_age=5)
    assert reason(gone) is Reason.UNREACHABLE


async def test_a_rate_limit_is_an_outage(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.push_image("demo/app", "v1")
    resolver = await net.resolver()
    await settle(resolver, net.image("public.test"))
    registry.fault(answering(429))
    net.clock.advance(60)
    limited = resolution(await settle(resolver, net.image("public.test"), max_age=5))
    assert limited.source is Source.STALE


@pytest.mark.parametrize("status", [403, 404])
async def test_a_denial_is_no_outage_and_ends_what_was_known(net: Net, status: int) -> None:
    registry = await net.registry("public.test")
    registry.push_image("demo/app", "v1")
    resolver = await net.resolver()
    await settle(resolver, net.image("public.test"))
    registry.fault(answering(status))
    net.clock.advance(60)
    assert not reason(await settle(resolver, net.image("public.test"), max_age=5)).is_outage
    await registry.stop()
    net.clock.advance(60)
    assert reason(await settle(resolver, net.image("public.test"), max_age=5)).is_outage


async def test_a_bad_answer_is_no_outage(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.push_image("demo/app", "v1")
    resolver = await net.resolver()
    await settle(resolver, net.image("public.test"))
    registry.fault(answering(418))
    net.clock.advance(60)
    outcome = await settle(resolver, net.image("public.test"), max_age=5)
    assert reason(outcome) is Reason.BAD_ANSWER


async def test_a_denial_of_a_private_host_is_no_outage_though_it_is_shown_as_one(net: Net) -> None:
    registry = await net.registry("private.test")
    registry.push_image("demo/app", "v1")
    resolver = await net.resolver()
    await settle(resolver, net.image("private.test"))
    registry.delete_tag("demo/app", "v1")
    net.clock.advance(60)
    shown = await settle(resolver, net.image("private.test"), max_age=5)
    assert reason(shown) is Reason.UNREACHABLE


# Confirming


async def test_the_cache_confirms_what_a_registry_said_to_the_same_credentials(net: Net) -> None:
    registry = await net.registry("public.test", users=USERS)
    pushed = Digest.parse(registry.push_image("demo/app", "v1"))
    resolver = await net.resolver()
    await settle(resolver, net.image("public.test"), ALICE)
    ref = Reference.parse(net.image("public.test"))
    keychain = Keychain(((ref.domain, Credential(*ALICE)),))
    for asked in (ref, Reference.parse(f"{ref}@{pushed}")):
        known = resolver.last_known(asked, keychain)
        assert known is not None
        assert (known.digest, known.source) == (pushed, Source.STALE)
    assert resolver.last_known(ref, Keychain()) is None
    net.clock.advance(3599)
    assert resolver.last_known(ref, keychain) is not None
    net.clock.advance(1)
    assert resolver.last_known(ref, keychain) is None


async def test_nothing_is_known_of_a_host_that_cannot_be(net: Net) -> None:
    resolver = await net.resolver()
    ref = Reference.parse("public.test:99999/demo/app:v1")
    assert resolver.last_known(ref, Keychain()) is None


@pytest.mark.parametrize(
    "host", ["a." * 128 + "io", ".".join(["a" * 63] * 4), "a" * 100_000 + ".io"]
)
async def test_no_host_has_more_than_253_characters(net: Net, host: str) -> None:
    outcome = await net.ask(f"{host}/{'a' * 255}:{'b' * 128}")
    assert reason(outcome) is Reason.INVALID_REFERENCE
    assert len(str(outcome)) < 700


async def test_a_message_is_short_though_the_image_is_as_long_as_can_be(net: Net) -> None:
    host = ".".join(["a" * 63] * 3 + ["b" * 61])
    outcome = await net.ask(f"{host}:65535/{'a' * 255}:{'b' * 128}")
    assert reason(outcome) is Reason.UNREACHABLE
    assert host in str(outcome)
    assert len(str(outcome)) < 700


async def test_the_last_known_digest_can_be_had_without_asking(net: Net) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    resolver = await net.resolver()
    ref = Reference.parse(net.image("public.test"))
    assert resolver.last_known(ref, Keychain()) is None
    await settle(resolver, net.image("public.test"))
    known = resolver.last_known(ref, Keychain())
    assert known is not None
    assert (str(known.digest), known.source) == (pushed, Source.STALE)


async def test_a_digest_is_its_own_answer(net: Net) -> None:
    text = f"public.test/demo/app@sha256:{'0' * 64}"
    outcome = resolution(await net.ask(text))
    assert (outcome.source, str(outcome.digest)) == (Source.GIVEN, text.partition("@")[2])
    assert net.names.asked == []


# Callers that go away


async def test_a_callers_deadline_leaves_the_question_to_the_others(net: Net) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    gate = asyncio.Event()
    registry.fault(_gated(gate), times=1)
    resolver = await net.resolver()
    patient = asyncio.create_task(settle(resolver, net.image("public.test")))
    impatient = await settle(resolver, net.image("public.test"), within=0.05)
    assert isinstance(impatient, Unresolvable)
    gate.set()
    assert str(resolution(await patient).digest) == pushed
    assert heads(registry) == 1


async def test_a_callers_deadline_is_told_as_such_only_of_a_listed_registry(net: Net) -> None:
    """Or whoever can create pods could find out which addresses swallow packets."""
    registry = await net.registry("private.test")
    registry.fault(hanging())
    hangs = await settle(await net.resolver(), net.image("private.test"), within=0.05)
    listed = await net.resolver(registries=[RegistrySettings(f"private.test:{net.port}")])
    told = await settle(listed, net.image("private.test"), within=0.05)
    await registry.stop()
    refuses = await settle(await net.resolver(), net.image("private.test"))
    assert reason(hangs) is Reason.UNREACHABLE
    assert str(hangs) == str(refuses)
    assert reason(told) is Reason.TIMEOUT


async def test_at_a_callers_deadline_the_last_known_digest_stands_in(net: Net) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    resolver = await net.resolver()
    await settle(resolver, net.image("public.test"))
    registry.fault(hanging())
    net.clock.advance(60)
    outcome = await settle(resolver, net.image("public.test"), max_age=5, within=0.05)
    assert resolution(outcome).source is Source.STALE
    assert str(resolution(outcome).digest) == pushed


async def test_a_question_that_nobody_waits_for_still_ends(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.fault(hanging())
    resolver = await net.resolver(load_timeout=0.1)
    await settle(resolver, net.image("public.test"), within=0.05)
    await asyncio.sleep(0.1)
    registry.heal()
    assert reason(await settle(resolver, net.image("public.test"))) is Reason.TIMEOUT
    assert heads(registry) == 1


def _gated(gate: asyncio.Event) -> Fault:
    async def fault(request: web.Request, handle: Handler) -> web.StreamResponse:
        await gate.wait()
        return await handle(request)

    return fault


async def test_the_log_says_what_is_hidden_and_no_secret(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    await net.registry("private.test", users=USERS)
    with caplog.at_level(logging.DEBUG, logger="tagpin"):
        await net.ask(net.image("private.test"), ("alice", "s3cr3t"))
    assert "unauthorized: the registry answered 401" in caplog.text
    assert "s3cr3t" not in caplog.text
