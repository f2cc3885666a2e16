"""Attacks by whoever can create a pod, or runs a registry that somebody uses.

Those that have been tried on other clients, and are on record, are in test_known_attacks.
"""

import asyncio
from typing import Any

import pytest
from aiohttp import encode_basic_auth

from fakes.faults import (
    OCI_IMAGE,
    answering,
    breaking_off,
    hanging,
    redirecting,
    resetting,
    streaming,
)
from fakes.registry import FakeRegistry
from tagpin.errors import Reason, Unresolvable
from tagpin.pinning import Resolution
from tagpin.registry.places import RegistrySettings
from tagpin.registry.resolver import RegistryResolver

from .conftest import Net, digest, reason, settle

ALICE = ("alice", "pa55word")
ALICE_BASIC = encode_basic_auth(*ALICE)


def authorizations(registry: FakeRegistry) -> list[str | None]:
    return [seen.authorization for seen in registry.requests]


# Credentials


async def test_a_password_goes_to_the_realm_and_nowhere_else(net: Net) -> None:
    registry = await net.registry("public.test", users=dict([ALICE]), tokens=True)
    registry.push_image("demo/app", "v1")
    digest(await net.ask(net.image("public.test"), ALICE))
    with_password = [seen for seen in registry.requests if seen.authorization == ALICE_BASIC]
    assert [seen.path for seen in with_password] == ["/token"]


# Addresses


@pytest.mark.parametrize(
    "host", ["127.3.0.1", "[::ffff:7f03:1]", "[64:ff9b::7f03:1]", "[2002:7f03:1::]", "blocked.test"]
)
async def test_a_registry_at_a_blocked_address_is_never_connected_to(net: Net, host: str) -> None:
    registry = await net.registry("blocked.test")
    registry.push_image("demo/app", "v1")
    assert reason(await net.ask(net.image(host))) is Reason.BLOCKED
    assert registry.requests == []


@pytest.mark.parametrize(
    "host", ["127.3.0.1", "[::ffff:127.3.0.1]", "0x7f030001", "blocked.test", "blocked.test."]
)
async def test_a_redirect_to_a_blocked_address_is_not_followed(net: Net, host: str) -> None:
    registry = await net.registry("public.test")
    target = await net.registry("blocked.test")
    registry.fault(redirecting(f"https://{host}:{net.port}/"))
    assert isinstance(await net.ask(net.image("public.test")), Unresolvable)
    assert target.requests == []


async def test_a_name_with_a_good_and_a_bad_address_leads_to_the_good_one_only(net: Net) -> None:
    good = await net.registry("public.test")
    bad = await net.registry("blocked.test")
    pushed = good.push_image("demo/app", "v1")
    net.names.add("public.test", ["127.3.0.1", "127.1.0.1"])
    assert digest(await net.ask(net.image("public.test"))) == pushed
    assert bad.requests == []


async def test_a_name_that_rebinds_to_a_blocked_address_is_judged_when_it_is_connected(
    net: Net,
) -> None:
    registry = await net.registry("public.test", tokens=True)
    net.names.add("public.test", ["127.1.0.1"], ["169.254.169.254"])
    registry.realm = "https://public.test/token"  # another port, so another connection
    assert reason(await net.ask(net.image("public.test"))) is Reason.BLOCKED
    assert net.names.asked == ["public.test", "public.test"]


async def test_names_that_are_no_registry_are_not_even_looked_up(net: Net) -> None:
    for host in ("localhost", "kubernetes.default.svc", "metadata.google.internal"):
        assert reason(await net.ask(f"{host}/demo/app:v1")) is Reason.BLOCKED
    assert net.names.asked == []


async def test_a_derived_place_on_an_odd_port_is_refused(net: Net) -> None:
    registry = await net.registry("public.test")
    other = await net.registry("other.test", port=0)
    registry.fault(redirecting(f"https://other.test:{other.port}/"))
    assert reason(await net.ask(net.image("public.test"))) is Reason.BLOCKED
    assert other.requests == []


# From a public registry into the private network


async def test_a_public_registry_may_not_lead_to_a_private_address_by_redirect(net: Net) -> None:
    registry = await net.registry("public.test")
    inner = await net.registry("private.test")
    registry.fault(redirecting(f"https://private.test:{net.port}{{path}}"))
    outcome = await net.ask(net.image("public.test"))
    assert reason(outcome) is Reason.UNREACHABLE
    assert inner.requests == []


async def test_a_public_registry_may_not_lead_to_a_private_address_by_realm(net: Net) -> None:
    registry = await net.registry("public.test", tokens=True)
    inner = await net.registry("private.test", tokens=True)
    registry.realm = f"https://private.test:{net.port}/token"
    outcome = await net.ask(net.image("public.test"))
    assert reason(outcome) is Reason.UNREACHABLE
    assert inner.requests == []


async def test_a_public_registry_may_not_lead_to_a_private_address_in_two_steps(net: Net) -> None:
    registry = await net.registry("public.test")
    other = await net.registry("other.test")
    inner = await net.registry("private.test")
    registry.fault(redirecting(f"https://other.test:{net.port}{{path}}"))
    other.fault(redirecting(f"https://private.test:{net.port}{{path}}"))
    assert reason(await net.ask(net.image("public.test"))) is Reason.UNREACHABLE
    assert inner.requests == []


@pytest.mark.parametrize("way", ["redirect", "realm"])
@pytest.mark.parametrize("listed", [False, True])
async def test_a_private_registry_leads_nobody_to_a_blocked_address(
    net: Net, way: str, *, listed: bool
) -> None:
    registry = await net.registry("private.test", tokens=True)
    target = await net.registry("blocked.test", tokens=True)
    registry.realm = f"https://blocked.test:{net.port}/token"
    if way == "redirect":
        registry.fault(redirecting(f"https://blocked.test:{net.port}{{path}}"))
    registries = [RegistrySettings(f"private.test:{net.port}")] if listed else []
    outcome = await net.ask(net.image("private.test"), registries=registries)
    assert reason(outcome) is (Reason.BLOCKED if listed else Reason.UNREACHABLE)
    assert target.requests == []


async def test_a_connection_that_a_private_registry_opened_is_not_lent_to_a_public_one(
    net: Net,
) -> None:
    target = await net.registry("inner.test")
    target.push_image("demo/app", "v1")
    for name in ("private.test", "public.test"):
        registry = await net.registry(name)
        registry.fault(redirecting(f"https://inner.test:{net.port}{{path}}"))
    resolver = await net.resolver()
    assert isinstance(await settle(resolver, net.image("private.test")), Resolution)
    seen = len(target.requests)
    assert reason(await settle(resolver, net.image("public.test"))) is Reason.UNREACHABLE
    assert len(target.requests) == seen


@pytest.mark.parametrize(
    ("name", "derived"), [("public.test", "other.test"), ("private.test", "inner.test")]
)
async def test_no_connection_to_a_derived_place_is_kept(net: Net, name: str, derived: str) -> None:
    registry, other = await net.registry(name), await net.registry(derived)
    other.push_image("demo/app", "v1")
    registry.fault(redirecting(f"https://{derived}:{net.port}{{path}}"))
    resolver = await net.resolver()
    for _ in range(3):
        digest(await settle(resolver, net.image(name), max_age=-1))
    assert len({seen.connection for seen in other.requests}) == 3
    assert len({seen.connection for seen in registry.requests}) == 1


async def test_a_registry_that_rebinds_between_the_steps_stays_public(net: Net) -> None:
    registry = await net.registry("public.test", tokens=True)
    inner = await net.registry("private.test", tokens=True)
    net.names.add("public.test", ["127.1.0.1"], ["127.2.0.1"])
    registry.realm = "https://public.test/token"
    assert reason(await net.ask(net.image("public.test"))) is Reason.UNREACHABLE
    assert inner.requests == []


async def test_a_registry_with_a_public_and_a_private_address_counts_as_public(net: Net) -> None:
    registry, double = await net.registry("public.test"), await net.registry("private.test")
    target = await net.registry("inner.test")
    net.names.add("public.test", ["127.1.0.1", "127.2.0.1"])  # aiohttp takes them in turn
    registry.fault(answering(404, {"Connection": "close"}))
    double.fault(redirecting(f"https://inner.test:{net.port}{{path}}"))
    assert reason(await net.ask(net.image("public.test"))) is Reason.UNREACHABLE
    assert [len(each.requests) for each in (registry, double, target)] == [1, 1, 0]


async def test_a_stranger_may_not_lead_to_a_place_that_the_operator_listed(net: Net) -> None:
    registry = await net.registry("public.test")
    listed = await net.registry("blocked.test")
    registry.fault(redirecting(f"https://blocked.test:{net.port}{{path}}"))
    settings = [RegistrySettings(f"blocked.test:{net.port}")]
    outcome = await net.ask(net.image("public.test"), registries=settings)
    assert reason(outcome) is Reason.BLOCKED
    assert listed.requests == []


async def test_a_private_registry_may_have_its_tokens_from_a_private_server(net: Net) -> None:
    registry = await net.registry("private.test", tokens=True)
    server = await net.registry("inner.test", tokens=True)
    registry.realm = f"https://inner.test:{net.port}/token"
    outcome = await net.ask(net.image("private.test"))
    assert {seen.path for seen in server.requests} == {"/token"}
    assert reason(outcome) is Reason.UNREACHABLE  # its tokens are not ours, which stays hidden


# Scanning the private network


SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"
FINDINGS = {
    "nothing of that name": answering(404),
    "a closed door": answering(403),
    "a login": answering(401, {"WWW-Authenticate": "Basic"}),
    "a login by token": answering(401, {"WWW-Authenticate": 'Bearer realm="https://r.test/t"'}),
    "a bad challenge": answering(401, {"WWW-Authenticate": 'Bearer realm="'}),
    "an unknown login": answering(401, {"WWW-Authenticate": "Negotiate"}),
    "a bad request": answering(400),
    "another method": answering(405),
    "a time-out": answering(408),
    "a limit": answering(429),
    "a limit for an hour": answering(429, {"Retry-After": "3600"}),
    "a pause of an hour": answering(503, {"Retry-After": "3600"}),
    "trouble": answering(500),
    "more trouble": answering(503),
    "an odd status": answering(799),
    "a page": answering(200, {"Content-Type": "text/html"}, b"<title>router</title>"),
    "no manifest": answering(200, {"Content-Type": OCI_IMAGE}, b"{}"),
    "an old manifest": answering(200, {"Content-Type": SCHEMA_1}, b'{"schemaVersion": 1}'),
    "a packed manifest": answering(200, {"Content-Encoding": "gzip"}, b"\x1f\x8b"),
    "an endless manifest": streaming(b" " * 65536),
    "half a manifest": breaking_off(),
    "a way in plain http": redirecting("http://private.test/"),
    "a way to the metadata": redirecting("https://169.254.169.254/"),
    "a way in a circle": redirecting("{path}"),
    "a way to nowhere": redirecting("https://[::1"),
    "a reset": resetting(),
    "silence": hanging(),
}


@pytest.mark.parametrize("logins", [(), (ALICE,)], ids=["anonymous", "with a login"])
async def test_strangers_learn_only_that_a_private_host_is_unreachable(
    net: Net, logins: tuple[tuple[str, str], ...]
) -> None:
    """Whatever is at the address, or nothing: one reason and one sentence, also the second time."""
    registry = await net.registry("private.test")
    client = await net.client(read_timeout=0.05)
    said: dict[str, set[str]] = {}

    async def look(finding: str, name: str = "private.test") -> None:
        resolver = RegistryResolver(client, clock=net.clock, now=net.clock.now)
        for _ in range(2):
            outcome = await settle(resolver, net.image(name, tag="absent"), *logins, max_age=-1)
            assert reason(outcome) is Reason.UNREACHABLE, finding
            said.setdefault(str(outcome).replace(name, "HOST"), set()).add(finding)
        await resolver.aclose()
        net.clock.advance(4000)

    await look("nothing at all")
    for finding, fault in FINDINGS.items():
        registry.heal()
        registry.fault(fault)
        await look(finding)
    net.names.add("other-name.test", ["127.2.0.1"])
    await look("a certificate for others", "other-name.test")
    await registry.stop()
    await look("nobody who listens")
    plain = await net.registry("private.test", tls=False)
    await look("no TLS")
    await plain.stop()
    net.names.add("private.test")
    await look("no such name")
    assert len(said) == 1, said


@pytest.mark.parametrize("slow", ["server", "caller"])
async def test_a_private_token_server_hides_behind_its_registry(net: Net, slow: str) -> None:
    """Also for those who only wait for a login that others began."""
    registry = await net.registry("private.test", tokens=True)
    server = await net.registry("inner.test")
    registry.realm = f"https://inner.test:{net.port}/token"
    server.fault(hanging(), path="/token")
    limits: dict[str, Any] = {"read_timeout": 0.1} if slow == "server" else {"load_timeout": 0.1}
    listed = [RegistrySettings(f"private.test:{net.port}")]
    resolver = await net.resolver(**limits, registries=listed)
    images = [net.image("private.test", tag=tag) for tag in ("one", "two")]
    outcomes = await asyncio.gather(*[settle(resolver, image) for image in images])
    assert {reason(outcome) for outcome in outcomes} == {Reason.UNREACHABLE}


async def test_an_unlisted_private_place_is_hidden_though_a_listed_registry_leads_there(
    net: Net,
) -> None:
    registry, target = await net.registry("private.test"), await net.registry("inner.test")
    registry.fault(redirecting(f"https://inner.test:{net.port}{{path}}"))
    listed = [RegistrySettings(f"private.test:{net.port}")]
    outcome = await net.ask(net.image("private.test"), registries=listed)
    assert reason(outcome) is Reason.UNREACHABLE
    assert target.requests != []


async def test_a_deadline_at_a_private_host_is_hidden_too(net: Net) -> None:
    registry = await net.registry("private.test")
    registry.fault(hanging())
    outcome = await net.ask(net.image("private.test"), load_timeout=0.1)
    assert reason(outcome) is Reason.UNREACHABLE


async def test_a_private_registry_can_be_used_without_being_listed(net: Net) -> None:
    registry = await net.registry("private.test", users=dict([ALICE]), tokens=True)
    pushed = registry.push_image("demo/app", "v1")
    assert digest(await net.ask(net.image("private.test"), ALICE)) == pushed


async def test_a_listed_private_registry_says_what_is_wrong(net: Net) -> None:
    await net.registry("private.test")
    settings = [RegistrySettings(f"private.test:{net.port}")]
    outcome = await net.ask(net.image("private.test"), registries=settings)
    assert reason(outcome) is Reason.NOT_FOUND


async def test_a_listed_registry_may_lie_at_a_blocked_address(net: Net) -> None:
    registry = await net.registry("blocked.test")
    pushed = registry.push_image("demo/app", "v1")
    settings = [RegistrySettings(f"Blocked.test:{net.port}")]
    assert digest(await net.ask(net.image("blocked.test"), registries=settings)) == pushed


async def test_listing_one_port_opens_no_other(net: Net) -> None:
    await net.registry("blocked.test")
    settings = [RegistrySettings("blocked.test:1")]
    outcome = await net.ask(net.image("blocked.test"), registries=settings)
    assert reason(outcome) is Reason.BLOCKED


# Plain http


async def test_an_unlisted_registry_is_never_spoken_to_in_plain_http(net: Net) -> None:
    registry = await net.registry("public.test", tls=False)
    registry.push_image("demo/app", "v1")
    assert reason(await net.ask(net.image("public.test"))) is Reason.TLS
    assert registry.requests == []


async def test_a_listed_plain_registry_may_not_lead_to_an_unlisted_one(net: Net) -> None:
    registry = await net.registry("public.test", tls=False)
    other = await net.registry("other.test", tls=False)
    registry.fault(redirecting(f"http://other.test:{net.port}{{path}}"))
    settings = [RegistrySettings(f"public.test:{net.port}", http=True)]
    outcome = await net.ask(net.image("public.test"), registries=settings)
    assert reason(outcome) is Reason.BAD_ANSWER
    assert other.requests == []


@pytest.mark.parametrize("allowed", [False, True])
async def test_credentials_travel_over_plain_http_only_where_that_was_allowed(
    net: Net, *, allowed: bool
) -> None:
    registry = await net.registry("public.test", tls=False, users=dict([ALICE]), tokens=True)
    registry.push_image("demo/app", "v1")
    settings = [
        RegistrySettings(f"public.test:{net.port}", http=True, credentials_over_http=allowed)
    ]
    outcome = await net.ask(net.image("public.test"), ALICE, registries=settings)
    assert isinstance(outcome, Resolution) is allowed
    assert any(authorizations(registry)) is allowed


# What is said


async def test_no_message_repeats_what_a_registry_said(net: Net) -> None:
    registry = await net.registry("public.test", users=dict([ALICE]), tokens=True)
    registry.push_image("demo/app", "v1")
    for status in (400, 403, 404, 429, 503):
        registry.heal()
        registry.fault(answering(status, body=b'{"errors":[{"message":"secret \\u0007"}]}'))
        message = str(await net.ask(net.image("public.test"), ALICE))
        assert "secret" not in message
        assert net.image("public.test") in message
        assert message.isprintable()
        assert message == message.rstrip(".")
