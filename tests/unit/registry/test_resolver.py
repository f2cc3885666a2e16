"""The resolver remembers what registries said, for those who may know it."""

import asyncio
import logging
import time
from typing import Any

import pytest
from aiohttp import encode_basic_auth, web

from fakes.faults import Fault, Handler, answering, hanging
from fakes.registry import FakeRegistry
from tagpin.errors import Reason, Unobtainable, Unresolvable
from tagpin.keychain import Credential, Identity, Keychain
from tagpin.pinning import Resolution
from tagpin.pins import Source
from tagpin.reference import Digest, Reference
from tagpin.registry.places import RegistryPolicy, RegistrySettings
from tagpin.registry.resolver import RegistryResolver

from .conftest import ADDRESSES, Net, reason, settle

ALICE, BOB = ("alice", "a"), ("bob", "b")
USERS = dict([ALICE, BOB])


def resolution(outcome: Resolution | Unresolvable) -> Resolution:
    assert isinstance(outcome, Resolution), outcome
    return outcome


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


async def test_a_failure_counts_from_when_it_arrived(net: Net) -> None:
    """Or silence would be forgotten at once: it takes longer than it is remembered."""
    registry = await net.registry("public.test")

    async def slow(_request: web.Request, _handle: Handler) -> web.StreamResponse:
        net.clock.advance(9)
        return web.Response(status=404)

    registry.fault(slow, method="HEAD")
    resolver = await net.resolver()
    for elapsed, asked in ((0, 1), (9.9, 1), (0.1, 2)):
        net.clock.advance(elapsed)
        assert reason(await settle(resolver, net.image("public.test"))) is Reason.NOT_FOUND
        assert heads(registry) == asked


@pytest.mark.parametrize("host", ["blocked.test", "untrusted.test"])
async def test_who_is_not_to_be_asked_is_not_tried_at_every_pod(net: Net, host: str) -> None:
    await net.registry("public.test")
    net.names.add("untrusted.test", [ADDRESSES["public.test"]])
    resolver = await net.resolver()
    for elapsed, asked in ((0, 1), (4.9, 1), (0.1, 2)):
        net.clock.advance(elapsed)
        assert reason(await settle(resolver, net.image(host))) in (Reason.BLOCKED, Reason.TLS)
        assert len(net.exchanges) == asked


# Registries that want to be left alone


@pytest.mark.parametrize(
    ("status", "known_as"), [(429, Reason.RATE_LIMITED), (503, Reason.UNREACHABLE)]
)
async def test_who_wants_to_be_left_alone_is_asked_nothing_until_then(
    net: Net, status: int, known_as: Reason
) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(answering(status, {"Retry-After": "20"}), times=1)
    resolver = await net.resolver()
    assert reason(await settle(resolver, net.image("public.test", tag="first"))) is known_as
    for elapsed in (0, 19.9):
        net.clock.advance(elapsed)
        assert reason(await settle(resolver, net.image("public.test"))) is known_as
    again = await settle(resolver, net.image("public.test", tag="first"), max_age=3600)
    assert reason(again) is known_as
    assert len(registry.requests) == 1
    net.clock.advance(0.1)
    assert str(resolution(await settle(resolver, net.image("public.test"))).digest) == pushed


async def test_nobody_is_left_alone_for_more_than_a_minute(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.push_image("demo/app", "v1")
    registry.fault(answering(429, {"Retry-After": "86400"}), times=1)
    resolver = await net.resolver()
    image = net.image("public.test")
    assert reason(await settle(resolver, image, max_age=3600)) is Reason.RATE_LIMITED
    net.clock.advance(59.9)
    assert reason(await settle(resolver, image, max_age=3600)) is Reason.RATE_LIMITED
    net.clock.advance(0.1)
    resolution(await settle(resolver, image, max_age=3600))


async def test_one_who_is_limited_does_not_limit_others(net: Net) -> None:
    """Not those with other credentials, in other namespaces, or of other registries."""
    registry, other = await net.registry("public.test"), await net.registry("other.test")
    for each in (registry, other):
        each.push_image("demo/app", "v1")
    registry.fault(answering(429, {"Retry-After": "20"}), path="/demo/limited/")
    resolver = await net.resolver()
    await settle(resolver, net.image("public.test", "demo/limited"), ALICE)
    limited = await settle(resolver, net.image("public.test"), ALICE)
    assert reason(limited) is Reason.RATE_LIMITED
    resolution(await settle(resolver, net.image("public.test"), ALICE, namespace="other"))
    resolution(await settle(resolver, net.image("public.test"), BOB))
    resolution(await settle(resolver, net.image("other.test"), ALICE))
    # Nor was anything remembered that a fellow would hear.
    resolution(await settle(resolver, net.image("public.test"), ALICE, namespace="third"))


async def test_while_a_registry_is_left_alone_its_last_answer_stands_in(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.push_image("demo/app", "v1")
    resolver = await net.resolver()
    await settle(resolver, net.image("public.test"))
    registry.fault(answering(429, {"Retry-After": "50"}))
    net.clock.advance(10)
    await settle(resolver, net.image("public.test", tag="other"))
    known = await settle(resolver, net.image("public.test"), max_age=5)
    assert resolution(known).source is Source.STALE


async def test_of_a_private_registry_nobody_learns_that_it_wants_to_be_left_alone(
    net: Net,
) -> None:
    registry = await net.registry("private.test")
    registry.fault(answering(429, {"Retry-After": "20"}))
    resolver = await net.resolver()
    for tag in ("one", "two"):
        shown = await settle(resolver, net.image("private.test", tag=tag))
        assert reason(shown) is Reason.UNREACHABLE
    assert len(registry.requests) == 1


# Mirrors


async def mirrored(net: Net, *mirrors: str, **settings: Any) -> RegistryResolver:
    """A resolver for public.test, whose mirrors are these."""
    host = f"public.test:{net.port}"
    urls = tuple(f"https://{mirror}" for mirror in mirrors)
    return await net.resolver(registries=[RegistrySettings(host, mirrors=urls)], **settings)


async def test_a_mirror_is_asked_before_the_registry(net: Net) -> None:
    registry, mirror = await net.registry("public.test"), await net.registry("private.test")
    registry.push_image("demo/app", "v1")
    pushed = mirror.push_image("cache/demo/app", "v1", b"as the mirror has it")
    resolver = await mirrored(net, f"private.test:{net.port}/cache")
    first = resolution(await settle(resolver, net.image("public.test")))
    second = resolution(await settle(resolver, net.image("public.test")))
    assert (str(first.digest), first.source) == (pushed, Source.REGISTRY)
    assert second.source is Source.CACHE
    assert registry.requests == []
    (seen,) = mirror.requests
    assert seen.query == {"ns": f"public.test:{net.port}"}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
async def test_no_answer_of_a_mirror_is_final_but_a_digest(net: Net, status: int) -> None:
    registry, mirror = await net.registry("public.test"), await net.registry("other.test")
    pushed = registry.push_image("demo/app", "v1")
    mirror.fault(answering(status, {"Retry-After": "30"}))
    resolver = await mirrored(net, f"other.test:{net.port}")
    for tag in ("v1", "missing"):
        outcome = await settle(resolver, net.image("public.test", tag=tag))
        if tag == "v1":
            assert str(resolution(outcome).digest) == pushed
        else:
            assert reason(outcome) is Reason.NOT_FOUND


@pytest.mark.parametrize(("denied", "is_asked"), [("public.test", False), ("other.test", True)])
async def test_whom_a_mirror_stands_for_decides_whether_it_is_asked(
    net: Net, denied: str, *, is_asked: bool
) -> None:
    mirror = await net.registry("other.test")
    mirror.push_image("demo/app", "v1")
    resolver = await mirrored(
        net, f"other.test:{net.port}", policy=RegistryPolicy(denied=(denied,))
    )
    outcome = await settle(resolver, net.image("public.test"))
    assert isinstance(outcome, Resolution) is is_asked
    assert bool(mirror.requests) is is_asked


async def test_mirrors_are_asked_in_order(net: Net) -> None:
    registry, other = await net.registry("public.test"), await net.registry("other.test")
    private = await net.registry("private.test")
    registry.push_image("demo/app", "v1", b"registry")
    pushed = private.push_image("demo/app", "v1", b"private")
    hosts = (f"other.test:{net.port}", f"private.test:{net.port}")
    resolver = await mirrored(net, *hosts)
    outcome = await settle(resolver, net.image("public.test"))
    assert str(resolution(outcome).digest) == pushed
    assert heads(other) == 1
    assert registry.requests == []


async def test_mirrors_that_hang_leave_half_of_the_time_to_the_registry(net: Net) -> None:
    registry, other = await net.registry("public.test"), await net.registry("other.test")
    private = await net.registry("private.test")
    pushed = registry.push_image("demo/app", "v1")
    for mirror in (other, private):
        mirror.fault(hanging())
    hosts = (f"other.test:{net.port}", f"private.test:{net.port}")
    resolver = await mirrored(net, *hosts, load_timeout=0.8)
    asked_at = asyncio.get_running_loop().time()
    outcome = await settle(resolver, net.image("public.test"))
    assert str(resolution(outcome).digest) == pushed
    assert asyncio.get_running_loop().time() - asked_at > 0.35
    assert (heads(other), heads(private)) == (1, 1)


async def test_mirrors_share_the_time_that_the_operator_gives_a_registry(net: Net) -> None:
    registry, mirror = await net.registry("public.test"), await net.registry("other.test")
    registry.push_image("demo/app", "v1")
    mirror.fault(hanging())
    urls = (f"https://other.test:{net.port}",)
    listed = RegistrySettings(f"public.test:{net.port}", mirrors=urls, timeout=0.4)
    resolver = await net.resolver(registries=[listed])
    asked_at = asyncio.get_running_loop().time()
    resolution(await settle(resolver, net.image("public.test")))
    assert asyncio.get_running_loop().time() - asked_at < 4


async def test_a_mirror_may_have_less_time_of_its_own(net: Net) -> None:
    registry, mirror = await net.registry("public.test"), await net.registry("other.test")
    registry.push_image("demo/app", "v1")
    mirror.fault(hanging())
    host = f"other.test:{net.port}"
    listed = (
        RegistrySettings(f"public.test:{net.port}", mirrors=(f"https://{host}",)),
        RegistrySettings(host, timeout=0.1),
    )
    resolver = await net.resolver(registries=listed)
    asked_at = asyncio.get_running_loop().time()
    resolution(await settle(resolver, net.image("public.test")))
    assert asyncio.get_running_loop().time() - asked_at < 4


async def test_a_mirror_that_is_silent_is_left_out_for_a_while(net: Net) -> None:
    registry, mirror = await net.registry("public.test"), await net.registry("other.test")
    mirror.fault(hanging())
    resolver = await mirrored(
        net, f"other.test:{net.port}", load_timeout=2.0, read_timeout=0.05, retries=0
    )
    for tag in range(8):
        pushed = registry.push_image("demo/app", str(tag))
        outcome = await settle(resolver, net.image("public.test", tag=str(tag)))
        assert str(resolution(outcome).digest) == pushed
    assert heads(mirror) == 5


async def test_what_a_pods_mirror_says_is_not_for_those_with_other_credentials(net: Net) -> None:
    mirror = await net.registry("other.test")
    mirror.push_image("demo/app", "v1")
    resolver = await mirrored(net, f"other.test:{net.port}")
    for login in (ALICE, BOB):
        outcome = resolution(await settle(resolver, net.image("public.test"), login))
        assert outcome.source is Source.REGISTRY


@pytest.mark.parametrize("tokens", [False, True])
async def test_a_mirror_is_never_told_the_credentials_of_a_pod(net: Net, *, tokens: bool) -> None:
    """Neither those for the registry nor those that the pod has for the mirror's host."""
    registry = await net.registry("public.test", users=USERS)
    mirror = await net.registry("other.test", users=USERS, tokens=tokens)
    pushed = registry.push_image("demo/app", "v1")
    mirror.push_image("demo/app", "v1", b"as the mirror has it")
    resolver = await mirrored(net, f"other.test:{net.port}")
    ref = Reference.parse(net.image("public.test"))
    credential = Credential(*ALICE)
    keychain = Keychain(((ref.domain, credential), (f"other.test:{net.port}", credential)))
    outcome = await resolver.resolve(ref, keychain, namespace="team", max_age=60, within=20)
    assert str(outcome.digest) == pushed
    assert mirror.requests
    assert not any((seen.authorization or "").startswith("Basic") for seen in mirror.requests)


async def test_a_mirror_is_told_tagpins_own_credentials_for_its_host_and_path(net: Net) -> None:
    registry = await net.registry("public.test", users=USERS)
    mirror = await net.registry("other.test", users=dict([ALICE]))
    pushed = mirror.push_image("cache/demo/app", "v1")
    own = Keychain(
        (
            (f"public.test:{net.port}", Credential(*BOB)),
            (f"other.test:{net.port}/elsewhere", Credential(*BOB)),
            (f"other.test:{net.port}/cache/demo", Credential(*ALICE)),
        )
    )
    resolver = await mirrored(net, f"other.test:{net.port}/cache", mirror_candidates=own.candidates)
    outcome = await settle(resolver, net.image("public.test"))
    assert str(resolution(outcome).digest) == pushed
    assert [seen.authorization for seen in mirror.requests] == [None, encode_basic_auth(*ALICE)]
    assert registry.requests == []


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


class OneIdentity:
    """Who has one credential, until something is in the way."""

    def __init__(self) -> None:
        self.trouble: Unobtainable | None = None

    async def obtain(self, identity: Identity) -> Credential:
        if self.trouble is not None:
            raise self.trouble
        return Credential(*ALICE)


@pytest.mark.parametrize("is_outage", [True, False])
async def test_a_cloud_that_is_away_is_an_outage_and_one_that_refuses_is_none(
    net: Net, *, is_outage: bool
) -> None:
    registry = await net.registry("public.test", users=USERS)
    pushed = registry.push_image("demo/app", "v1")
    identities = OneIdentity()
    resolver = await net.resolver(identities=identities)
    ref = Reference.parse(net.image("public.test"))
    keychain = Keychain(((ref.domain, Identity("cloud", ref.domain)),))

    async def resolve() -> Resolution:
        return await resolver.resolve(ref, keychain, namespace="team", max_age=-1, within=5)

    assert str((await resolve()).digest) == pushed
    identities.trouble = Unobtainable("no answer", is_outage=is_outage)
    if is_outage:
        assert (await resolve()).source is Source.STALE
        return
    with pytest.raises(Unresolvable) as refused:
        await resolve()
    assert refused.value.reason is Reason.UNAUTHORIZED
    assert resolver.last_known(ref, keychain) is None


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


async def test_the_name_of_a_host_is_not_decoded_where_it_is_too_long(net: Net) -> None:
    host = "xn--" + "a" * 50_000 + "-" + "z9" * 50_000 + ".com"
    began = time.process_time()
    assert reason(await net.ask(f"{host}/demo/app:v1")) is Reason.INVALID_REFERENCE
    assert time.process_time() - began < 0.4


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
    assert heads(registry) <= 1


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
    image = net.image("private.test")
    told = [each.getMessage() for each in caplog.records if each.levelno >= logging.INFO]
    assert told == [f"{image}: unauthorized: the registry answered 401"]
    assert "s3cr3t" not in caplog.text
