"""Logging in over real sockets, as the registries of this world want it."""

import asyncio
import json
from typing import Any

import pytest
from aiohttp import encode_basic_auth

from fakes.faults import (
    answering,
    redirecting,
    refusing_basic,
    refusing_cookies,
    with_header,
)
from fakes.registry import FakeRegistry, Seen
from tagpin.errors import Reason, Unresolvable
from tagpin.keychain import Keychain
from tagpin.reference import Reference
from tagpin.registry.places import RegistrySettings

from .conftest import Net, digest, reason, settle

ALICE, BOB = ("alice", "pa55word"), ("bob", "pa55word")
MALLORY = ("mallory", "guess")
IDENTITY_TOKEN = "refresh.me"
ALICE_BY_TOKEN = ("alice", "", IDENTITY_TOKEN)
"""User name, password, identity token."""


def logins(registry: FakeRegistry) -> list[Seen]:
    return [seen for seen in registry.requests if not seen.path.startswith("/v2/demo/")]


async def bearer(net: Net, **settings: Any) -> FakeRegistry:
    """A registry with tokens, two users and one image."""
    users = dict([ALICE, BOB])
    return await net.registry("public.test", tokens=True, users=users, **settings)


# Bearer tokens


async def test_a_token_is_asked_for_by_get_with_the_password(net: Net) -> None:
    registry = await bearer(net)
    pushed = registry.push_image("demo/app", "v1")
    assert digest(await net.ask(net.image("public.test"), ALICE)) == pushed
    head, login, again = registry.requests
    assert (login.method, login.path) == ("GET", "/token")
    assert login.query == {"service": registry.host, "scope": "repository:demo/app:pull"}
    assert (head.authorization, login.authorization) == (None, encode_basic_auth(*ALICE))
    assert (again.authorization or "").startswith("Bearer ")


@pytest.mark.parametrize(
    "scope",
    [
        None,
        "",
        "repository:demo/app:pull,push,delete",
        "repository:other/app:pull repository:demo/app:pull",
        "registry:catalog:*",
        "aws",
    ],
)
async def test_whatever_scope_is_wanted_the_token_is_for_this_repository(
    net: Net, scope: str | None
) -> None:
    registry = await bearer(net)
    pushed = registry.push_image("demo/app", "v1")
    challenge = f'Bearer realm="{registry.realm}",service="s"'
    if scope is not None:
        challenge += f',scope="{scope}"'
    registry.fault(answering(401, {"WWW-Authenticate": challenge}), times=1)
    assert digest(await net.ask(net.image("public.test"), ALICE)) == pushed
    (login,) = logins(registry)
    assert login.query["scope"] == "repository:demo/app:pull"


async def test_what_a_challenge_holds_cannot_become_another_parameter(net: Net) -> None:
    registry = await bearer(net)
    registry.push_image("demo/app", "v1")
    service = "s&scope=repository:other:push#x"
    challenge = f'Bearer realm="{registry.realm}?tenant=a%20b",service="{service}"'
    registry.fault(answering(401, {"WWW-Authenticate": challenge}), times=1)
    await net.ask(net.image("public.test"), ALICE)
    assert logins(registry)[0].query == {
        "tenant": "a b",
        "service": service,
        "scope": "repository:demo/app:pull",
    }


async def test_no_service_is_made_up(net: Net) -> None:
    registry = await bearer(net)
    registry.push_image("demo/app", "v1")
    challenge = f'Bearer realm="{registry.realm}"'
    registry.fault(answering(401, {"WWW-Authenticate": challenge}), times=1)
    await net.ask(net.image("public.test"), ALICE)
    assert set(logins(registry)[0].query) == {"scope"}


async def test_a_token_that_opens_too_little_is_not_asked_for_more(net: Net) -> None:
    """A challenge that says `insufficient_scope` gets no answer without an end."""
    registry = await bearer(net)
    registry.push_image("demo/app", "v1")
    error = (
        f'Bearer realm="{registry.realm}",scope="repository:demo/app:*",error="insufficient_scope"'
    )
    registry.fault(answering(401, {"WWW-Authenticate": error}))
    assert reason(await net.ask(net.image("public.test"), ALICE)) is Reason.UNAUTHORIZED
    assert len(registry.requests) <= 6
    assert {login.query["scope"] for login in logins(registry)} == {"repository:demo/app:pull"}


# Identity tokens


async def test_an_identity_token_is_posted(net: Net) -> None:
    registry = await bearer(net, identity_tokens={IDENTITY_TOKEN: "alice"})
    pushed = registry.push_image("demo/app", "v1")
    assert digest(await net.ask(net.image("public.test"), ALICE_BY_TOKEN)) == pushed
    (login,) = logins(registry)
    assert (login.method, login.path, login.query) == ("POST", "/token", {})
    assert login.authorization is None
    assert login.form == {
        "grant_type": "refresh_token",
        "refresh_token": IDENTITY_TOKEN,
        "service": registry.host,
        "scope": "repository:demo/app:pull",
        "client_id": "tagpin",
    }


@pytest.mark.parametrize("status", [400, 401, 404, 405])
async def test_where_nothing_can_be_posted_an_identity_token_is_the_password(
    net: Net, status: int
) -> None:
    registry = await bearer(net)
    registry.users["alice"] = IDENTITY_TOKEN
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(answering(status), method="POST", path="/token")
    assert digest(await net.ask(net.image("public.test"), ALICE_BY_TOKEN)) == pushed
    assert [login.method for login in logins(registry)] == ["POST", "GET"]
    assert logins(registry)[1].authorization == encode_basic_auth("alice", IDENTITY_TOKEN)


async def test_where_nothing_can_be_posted_a_password_that_came_along_is_taken(net: Net) -> None:
    registry = await bearer(net)
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(answering(405), method="POST", path="/token")
    both = (*ALICE, IDENTITY_TOKEN)
    assert digest(await net.ask(net.image("public.test"), both)) == pushed


@pytest.mark.parametrize(
    ("status", "expected"), [(429, Reason.RATE_LIMITED), (503, Reason.UNREACHABLE)]
)
async def test_an_outage_of_the_token_server_sends_nothing_elsewhere(
    net: Net, status: int, expected: Reason
) -> None:
    registry = await bearer(net, identity_tokens={IDENTITY_TOKEN: "alice"})
    registry.push_image("demo/app", "v1")
    registry.fault(answering(status), method="POST", path="/token")
    assert reason(await net.ask(net.image("public.test"), ALICE_BY_TOKEN)) is expected
    assert {login.method for login in logins(registry)} == {"POST"}


async def test_an_identity_token_that_is_wrong_is_refused(net: Net) -> None:
    registry = await bearer(net, identity_tokens={"another": "alice"})
    registry.push_image("demo/app", "v1")
    outcome = await net.ask(net.image("public.test"), ALICE_BY_TOKEN)
    assert reason(outcome) is Reason.UNAUTHORIZED


async def test_an_identity_token_is_no_password_for_basic(net: Net) -> None:
    registry = await net.registry("public.test", users={"alice": IDENTITY_TOKEN})
    registry.push_image("demo/app", "v1")
    outcome = await net.ask(net.image("public.test"), ALICE_BY_TOKEN)
    assert reason(outcome) is Reason.UNAUTHORIZED
    assert {seen.authorization for seen in registry.requests} == {None}


async def test_two_identity_tokens_of_one_user_are_two_identities(net: Net) -> None:
    registry = await bearer(net, identity_tokens={"one": "alice", "two": "alice"})
    registry.push_image("demo/app", "v1")
    resolver = await net.resolver()
    for token in ("one", "two", "one"):
        image = net.image("public.test")
        digest(await settle(resolver, image, ("alice", "", token), max_age=-1))
    posted = [login.form["refresh_token"] for login in logins(registry)]
    assert posted == ["one", "two"]


# What a token server answers


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        ({}, 54),
        ({"expires_in": 300}, 290),
        ({"expires_in": "300"}, 290),
        ({"expires_in": 300.5}, 290.5),
        ({"expires_in": 60}, 54),
        ({"expires_in": 59}, 54),
        ({"expires_in": 1.5}, 54),
        ({"expires_in": 0}, 54),
        ({"expires_in": -1}, 54),
        ({"expires_in": "soon"}, 54),
        ({"expires_in": "NaN"}, 54),
        ({"expires_in": "Infinity"}, 54),
        ({"expires_in": None}, 54),
        ({"expires_in": [300]}, 54),
        ({"expires_in": 10**12}, 43190),
        ({"expires_in": "9" * 400}, 54),
    ],
)
async def test_a_token_serves_as_long_as_is_sensible(
    net: Net, answer: dict[str, Any], seconds: float
) -> None:
    registry = await bearer(net)
    registry.token_answer = answer
    for tag in ("first", "before", "after"):
        registry.push_image("demo/app", tag)
    resolver = await net.resolver(clock=net.clock)

    async def tokens_after(tag: str) -> int:
        digest(await settle(resolver, net.image("public.test", tag=tag), ALICE))
        return len(logins(registry))

    assert await tokens_after("first") == 1
    net.clock.advance(seconds - 0.1)
    assert await tokens_after("before") == 1
    net.clock.advance(0.2)
    assert await tokens_after("after") == 2


@pytest.mark.parametrize(
    ("names", "answer"),
    [
        (["token"], {}),
        (["access_token"], {}),
        (["token", "access_token"], {}),
        (["access_token"], {"token": ""}),
        (["access_token"], {"token": "stale"}),
        (["access_token"], {"token": None}),
        (["token"], {"access_token": ""}),
        (["token"], {"access_token": None}),
    ],
)
async def test_a_token_has_one_of_two_names(
    net: Net, names: list[str], answer: dict[str, Any]
) -> None:
    registry = await bearer(net)
    registry.token_names, registry.token_answer = names, answer
    pushed = registry.push_image("demo/app", "v1")
    assert digest(await net.ask(net.image("public.test"), ALICE)) == pushed


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"<html>",
        b'{"token":""}',
        b'{"token":null}',
        b'{"token":["a"]}',
        b'{"token":"a b"}',
        b'{"token":"a\\r\\nX-Evil: 1"}',
        b'{"token":"\\u00e4"}',
        b'{"token":"a","expires_in":NaN}',
        b'{"token":"' + b"a" * 9000 + b'"}',
        b'{"token":"a","padding":"' + b"a" * 65536 + b'"}',
    ],
)
async def test_an_answer_without_a_usable_token_is_a_bad_one(net: Net, body: bytes) -> None:
    registry = await bearer(net)
    registry.push_image("demo/app", "v1")
    registry.fault(answering(200, {"Content-Type": "application/json"}, body), path="/token")
    assert reason(await net.ask(net.image("public.test"), ALICE)) is Reason.BAD_ANSWER
    assert [seen.authorization for seen in registry.requests] == [None, encode_basic_auth(*ALICE)]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, Reason.UNAUTHORIZED),
        (401, Reason.UNAUTHORIZED),
        (403, Reason.UNAUTHORIZED),
        (404, Reason.UNAUTHORIZED),
        (429, Reason.RATE_LIMITED),
        (500, Reason.UNREACHABLE),
        (503, Reason.UNREACHABLE),
    ],
)
async def test_what_a_token_server_refuses_says_nothing_of_the_image(
    net: Net, status: int, expected: Reason
) -> None:
    registry = await bearer(net)
    registry.fault(answering(status), path="/token")
    assert reason(await net.ask(net.image("public.test"), ALICE)) is expected


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_token_server_sends_nobody_on(net: Net, status: int) -> None:
    registry, other = await bearer(net), await net.registry("other.test", tokens=True)
    registry.push_image("demo/app", "v1")
    registry.fault(redirecting(f"https://other.test:{net.port}/token", status), path="/token")
    outcome = await net.ask(net.image("public.test"), ALICE)
    assert isinstance(outcome, Unresolvable)
    assert not outcome.reason.is_outage
    assert other.requests == []


@pytest.mark.parametrize(
    "realm",
    [
        "",
        "/token",
        "public.test/token",
        "http://public.test:PORT/token",
        "ftp://public.test/token",
        "https://user:secret@public.test:PORT/token",
        "https://public.test:PORT/token#fragment",
        "https:///token",
    ],
)
async def test_a_realm_is_a_whole_url_without_anything_odd(net: Net, realm: str) -> None:
    registry = await bearer(net)
    challenge = f'Bearer realm="{realm.replace("PORT", str(net.port))}"'
    registry.fault(answering(401, {"WWW-Authenticate": challenge}))
    assert reason(await net.ask(net.image("public.test"), ALICE)) is Reason.BAD_ANSWER
    assert logins(registry) == []


# Nobody, and those who may read everything


async def test_a_registry_that_wants_a_token_of_everyone_gives_one_to_everyone(net: Net) -> None:
    registry = await net.registry("public.test", tokens=True)
    pushed = registry.push_image("demo/app", "v1")
    assert digest(await net.ask(net.image("public.test"))) == pushed
    assert [login.authorization for login in logins(registry)] == [None]


async def test_a_public_repository_needs_no_login_where_others_do(net: Net) -> None:
    registry = await bearer(net, public=["demo/app"])
    pushed = registry.push_image("demo/app", "v1")
    registry.push_image("demo/private", "v1")
    assert digest(await net.ask(net.image("public.test"))) == pushed
    private = await net.ask(net.image("public.test", "demo/private"))
    assert reason(private) is Reason.UNAUTHORIZED


async def test_a_wrong_password_closes_even_a_public_repository(net: Net) -> None:
    """As it does for a node, which does not go on anonymously either."""
    registry = await bearer(net, public=["demo/app"])
    registry.push_image("demo/app", "v1")
    outcome = await net.ask(net.image("public.test"), MALLORY)
    assert reason(outcome) is Reason.UNAUTHORIZED


# Basic, and other challenges


async def test_a_password_is_shown_only_to_who_asks_for_it(net: Net) -> None:
    registry = await net.registry("public.test", users=dict([ALICE]))
    pushed = registry.push_image("demo/app", "v1")
    assert digest(await net.ask(net.image("public.test"), ALICE)) == pushed
    assert [seen.authorization for seen in registry.requests] == [None, encode_basic_auth(*ALICE)]


@pytest.mark.parametrize("tokens", [False, True])
async def test_the_second_secret_is_tried_after_the_first(net: Net, *, tokens: bool) -> None:
    registry = await net.registry("public.test", users=dict([ALICE]), tokens=tokens)
    pushed = registry.push_image("demo/app", "v1")
    assert digest(await net.ask(net.image("public.test"), MALLORY, ALICE)) == pushed


@pytest.mark.parametrize(
    ("key", "fits"),
    [
        ("public.test:PORT", True),
        ("https://public.test:PORT/v2/", True),
        ("public.test:PORT/demo", True),
        ("*.test:PORT", True),
        ("public.test:PORT/other", False),
        ("public.test", False),
        ("other.test:PORT", False),
        ("*.public.test:PORT", False),
    ],
)
async def test_a_secret_is_shown_only_where_it_is_for(net: Net, key: str, *, fits: bool) -> None:
    registry = await bearer(net)
    registry.push_image("demo/app", "v1")
    entry = {"username": ALICE[0], "password": ALICE[1]}
    config = json.dumps({"auths": {key.replace("PORT", str(net.port)): entry}})
    resolver = await net.resolver()
    ref = Reference.parse(net.image("public.test"))
    asking = resolver.resolve(
        ref, Keychain.from_docker_config(config), namespace="team", max_age=60, within=20
    )
    if fits:
        digest(await asking)
    else:
        with pytest.raises(Unresolvable):
            await asking
    assert logins(registry)[0].authorization == (encode_basic_auth(*ALICE) if fits else None)


BASIC, BEARER = 'Basic realm="x"', 'Bearer realm="REALM",service="s"'


@pytest.mark.parametrize(
    "headers",
    [
        [f"{BASIC}, {BEARER}"],
        [f"{BEARER}, {BASIC}"],
        [BASIC, BEARER],
        [BEARER, BASIC],
        ["Negotiate", BEARER],
        [f"Negotiate, {BEARER}"],
        ['Digest realm="x", nonce="y", qop="auth"', f'NTLM, {BASIC}, {BEARER}, X-Own a="b"'],
        ['bEaReR ReAlM="REALM",SERVICE="s"'],
        [f", ,{BEARER},,"],
        [BEARER.replace(",", " , ")],
    ],
)
async def test_among_several_challenges_a_token_is_preferred(net: Net, headers: list[str]) -> None:
    registry = await bearer(net)
    pushed = registry.push_image("demo/app", "v1")
    told = [header.replace("REALM", str(registry.realm)) for header in headers]
    registry.fault(with_header("WWW-Authenticate", *told), times=1)
    assert digest(await net.ask(net.image("public.test"), ALICE)) == pushed
    shown_to = {
        seen.path for seen in registry.requests if seen.authorization == encode_basic_auth(*ALICE)
    }
    assert shown_to == {"/token"}


@pytest.mark.parametrize(
    "headers", [["Negotiate", BASIC], [f'Digest realm="x", {BASIC}'], ["BASIC"], ["Basic realm=/"]]
)
async def test_basic_is_found_among_what_we_do_not_know(net: Net, headers: list[str]) -> None:
    registry = await net.registry("public.test", users=dict([ALICE]))
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(with_header("WWW-Authenticate", *headers))
    assert digest(await net.ask(net.image("public.test"), ALICE)) == pushed


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Negotiate", Reason.UNAUTHORIZED),
        ('Digest realm="x", nonce="y"', Reason.UNAUTHORIZED),
        ('Bearer realm="https://public.test/token', Reason.BAD_ANSWER),
        ('Basic realm="Dev" charset="UTF-8"', Reason.BAD_ANSWER),
        ('Basic realm="x\\', Reason.BAD_ANSWER),
        ('Basic realm="x", realm="y"', Reason.BAD_ANSWER),
        (", ".join(["Basic"] * 11), Reason.BAD_ANSWER),
        (f'Basic realm="{"x" * 9216}"', Reason.BAD_ANSWER),
    ],
)
async def test_a_challenge_that_nobody_can_answer_has_a_reason(
    net: Net, header: str, expected: Reason
) -> None:
    registry = await net.registry("public.test", users=dict([ALICE]))
    registry.push_image("demo/app", "v1")
    registry.fault(with_header("WWW-Authenticate", header))
    assert reason(await net.ask(net.image("public.test"), ALICE)) is expected
    assert {seen.authorization for seen in registry.requests} == {None}


# Tokens are kept


async def test_two_users_have_two_tokens_and_nobody_has_a_third(net: Net) -> None:
    registry = await bearer(net, public=["demo/app"])
    registry.push_image("demo/app", "v1")
    resolver = await net.resolver()
    for _ in range(2):
        for who in ([ALICE], [BOB], []):
            digest(await settle(resolver, net.image("public.test"), *who, max_age=-1))
    asked = [login.authorization for login in logins(registry)]
    assert asked == [encode_basic_auth(*ALICE), encode_basic_auth(*BOB), None]
    used = {seen.authorization for seen in registry.requests} - set(asked)
    assert len(used) == 3


@pytest.mark.parametrize("login", [ALICE, ALICE_BY_TOKEN], ids=["password", "identity token"])
async def test_fifty_questions_at_once_ask_for_one_token(net: Net, login: tuple[str, ...]) -> None:
    registry = await bearer(net, identity_tokens={IDENTITY_TOKEN: "alice"})
    resolver = await net.resolver()
    await _ask_fifty(net, registry, resolver, login)
    assert len(logins(registry)) == 1


async def test_fifty_questions_at_once_replace_a_revoked_token_once(net: Net) -> None:
    registry = await bearer(net)
    resolver = await net.resolver()
    await _ask_fifty(net, registry, resolver, ALICE)
    registry.revoke_tokens()
    registry.requests.clear()
    await _ask_fifty(net, registry, resolver, ALICE)
    assert len(logins(registry)) == 1


async def _ask_fifty(
    net: Net, registry: FakeRegistry, resolver: Any, login: tuple[str, ...]
) -> None:
    images = [net.image("public.test", tag=f"v{number}") for number in range(50)]
    for number in range(50):
        registry.push_image("demo/app", f"v{number}")
    asking = [settle(resolver, image, login, max_age=-1) for image in images]
    for outcome in await asyncio.gather(*asking):
        digest(outcome)


async def test_one_who_gives_up_takes_the_token_from_nobody(net: Net) -> None:
    """Who asked first is cancelled; the others go on waiting for the same token."""
    registry = await bearer(net)
    registry.push_image("demo/app", "v1")
    registry.push_image("demo/app", "v2")
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request: Any, handle: Any) -> Any:
        asked.set()
        await go_on.wait()
        return await handle(request)

    registry.fault(slow, path="/token")
    resolver = await net.resolver()
    first = asyncio.create_task(settle(resolver, net.image("public.test"), ALICE, within=0.05))
    await asked.wait()
    second = asyncio.create_task(settle(resolver, net.image("public.test", tag="v2"), ALICE))
    assert isinstance(await first, Unresolvable)
    go_on.set()
    digest(await second)
    assert len(logins(registry)) == 1


async def test_a_token_server_that_is_down_is_not_asked_by_everyone(net: Net) -> None:
    registry = await bearer(net)
    registry.fault(answering(503), path="/token")
    resolver = await net.resolver()
    images = [net.image("public.test", tag=f"v{number}") for number in range(20)]
    outcomes = await asyncio.gather(*[settle(resolver, image, ALICE) for image in images])
    assert {reason(outcome) for outcome in outcomes} == {Reason.UNREACHABLE}
    assert len(logins(registry)) <= 3


# Portraits


async def test_docker_hub_does_not_tell_the_absent_from_the_private(net: Net) -> None:
    """What is not there opens to no token."""
    registry = await bearer(net)
    registry.welcoming = True
    assert reason(await net.ask(net.image("public.test", "demo/absent"))) is Reason.UNAUTHORIZED


async def test_ghcr_refuses_at_the_token_server_or_behind_it(net: Net) -> None:
    registry = await bearer(net)
    registry.fault(answering(403, body=b'{"errors":[{"code":"DENIED"}]}'), path="/v2/demo/other")
    denied = answering(401, body=b'{"errors":[{"code":"UNAUTHORIZED"}]}')
    registry.fault(denied, path="/token", times=1)
    assert reason(await net.ask(net.image("public.test"))) is Reason.UNAUTHORIZED
    other = net.image("public.test", "demo/other")
    assert reason(await net.ask(other, ALICE)) is Reason.UNAUTHORIZED


@pytest.mark.parametrize(
    "robot",
    [
        ("org+robot", "s3cret"),  # Quay
        ("robot$project+name", "s3cret"),  # Harbor
        ("_json_key", json.dumps({"type": "service_account", "key": "a:b\n"}, indent=2)),  # Google
        ("oauth2accesstoken", "ya29." + "a" * 2000),
        ("AWS", "e" * 2000),  # ECR
        ("00000000-0000-0000-0000-000000000000", "ey." + "J" * 3000),  # ACR
        ("j\u00fcrgen", "pa\u00df:w\u00f6rd"),
    ],
    ids=["quay", "harbor", "google key", "google token", "ecr", "acr", "umlauts"],
)
@pytest.mark.parametrize("tokens", [False, True])
async def test_robots_have_odd_names_and_long_passwords(
    net: Net, robot: tuple[str, str], *, tokens: bool
) -> None:
    registry = await net.registry("public.test", users=dict([robot]), tokens=tokens)
    pushed = registry.push_image("demo/app", "v1")
    assert digest(await net.ask(net.image("public.test"), robot)) == pushed


async def test_private_ecr_wants_basic_and_may_hide_the_digest(net: Net) -> None:
    registry = await net.registry("public.test", users={"AWS": "t0ken"})
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(with_header("Docker-Content-Digest"))
    assert digest(await net.ask(net.image("public.test"), ("AWS", "t0ken"))) == pushed


async def test_public_ecr_never_sees_a_password_at_the_registry(net: Net) -> None:
    registry = await bearer(net, public=["demo/app"])
    registry.realm = f"https://public.test:{net.port}/token/"
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(refusing_basic(), path="/v2/")
    for who in ([], [ALICE]):
        assert digest(await net.ask(net.image("public.test"), *who)) == pushed


async def test_google_mixes_403_and_404(net: Net) -> None:
    registry = await net.registry("public.test", tokens=True)
    registry.realm = f"https://public.test:{net.port}/v2/token"
    for status, expected in ((403, Reason.UNAUTHORIZED), (404, Reason.NOT_FOUND)):
        registry.heal()
        registry.fault(answering(status))
        assert reason(await net.ask(net.image("public.test"))) is expected


async def test_acr_takes_a_refresh_token_by_post_and_as_a_password(net: Net) -> None:
    nobody = "00000000-0000-0000-0000-000000000000"
    registry = await net.registry(
        "public.test",
        users={nobody: IDENTITY_TOKEN},
        tokens=True,
        identity_tokens={IDENTITY_TOKEN: nobody},
    )
    registry.realm = f"https://public.test:{net.port}/oauth2/token"
    pushed = registry.push_image("demo/app", "v1")
    for login in ((nobody, IDENTITY_TOKEN), (nobody, "", IDENTITY_TOKEN)):
        assert digest(await net.ask(net.image("public.test"), login)) == pushed
    assert [login.method for login in logins(registry)] == ["GET", "POST"]


async def test_harbor_welcomes_a_wrong_password_and_keeps_the_door_shut(net: Net) -> None:
    registry = await bearer(net)
    registry.realm = f"https://public.test:{net.port}/service/token"
    registry.welcoming = True
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(answering(405), method="POST", path="/service/token")
    registry.fault(refusing_cookies(), path="/")
    assert digest(await net.ask(net.image("public.test"), MALLORY, ALICE)) == pushed
    assert reason(await net.ask(net.image("public.test"), MALLORY)) is Reason.UNAUTHORIZED
    with_token = ("alice", ALICE[1], IDENTITY_TOKEN)
    assert digest(await net.ask(net.image("public.test"), with_token)) == pushed


async def test_gitlab_has_its_tokens_from_another_host(net: Net) -> None:
    registry = await bearer(net)
    web = await net.registry("other.test", users=dict([ALICE]), tokens=True)
    web.realm = registry.realm = f"https://other.test:{net.port}/jwt/auth"
    registry.accept_tokens_of(web)
    pushed = registry.push_image("demo/app", "v1")
    assert digest(await net.ask(net.image("public.test"), ALICE)) == pushed
    assert [seen.authorization for seen in web.requests] == [encode_basic_auth(*ALICE)]
    assert encode_basic_auth(*ALICE) not in {seen.authorization for seen in registry.requests}


@pytest.mark.parametrize("allowed", [False, True])
async def test_a_strict_registry_has_its_tokens_from_where_the_operator_says(
    net: Net, *, allowed: bool
) -> None:
    registry = await net.registry("public.test", tokens=True)
    web = await net.registry("other.test", tokens=True)
    registry.realm = web.realm
    registry.accept_tokens_of(web)
    pushed = registry.push_image("demo/app", "v1")
    hosts = ("other.test",) if allowed else ()
    listed = [RegistrySettings(f"public.test:{net.port}", strict=True, token_hosts=hosts)]
    outcome = await net.ask(net.image("public.test"), registries=listed)
    if allowed:
        assert digest(outcome) == pushed
    else:
        assert reason(outcome) is Reason.BAD_ANSWER
        assert web.requests == []


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_artifactory_refuses_head_and_says_not_how_to_log_in(net: Net, status: int) -> None:
    registry = await net.registry("public.test", users=dict([ALICE]))
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(with_header("WWW-Authenticate"), times=1)
    registry.fault(answering(status), method="HEAD")
    outcome = await net.ask(net.image("public.test"), ALICE)
    assert digest(outcome) == pushed


async def test_nexus_knows_proxied_images_only_by_get(net: Net) -> None:
    registry = await net.registry("public.test", users=dict([ALICE]))
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(answering(404), method="HEAD")
    registry.fault(with_header("Docker-Content-Digest"), method="GET")
    assert digest(await net.ask(net.image("public.test"), ALICE)) == pushed
