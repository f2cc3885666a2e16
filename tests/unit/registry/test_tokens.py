"""Where tokens come from, and how they are asked for."""

import base64
import gzip
import json
from typing import Any
from urllib.parse import parse_qs

import pytest
from yarl import URL

from fakes.conversation import (
    ALICE,
    REGISTRY,
    authorization,
    basic,
    errors,
    fail,
    methods,
    play,
    response,
    url,
)
from tagpin.errors import Reason
from tagpin.keychain import Credential
from tagpin.registry.challenge import Challenge
from tagpin.registry.flow import Failure, Flow, Login, Registry, Request, Response, Token
from tagpin.registry.login import fetch_token, realm_of

SCOPE = "repository:acme/app:pull"
IDENTITY = Credential("", "", identity_token="r3fresh")
NAMED_IDENTITY = Credential("alice", "", identity_token="r3fresh")


def login(realm: str = "https://r.example/token", **changes: Any) -> Login:
    values: dict[str, Any] = {"registry": REGISTRY, "service": "r", "credential": None}
    return Login(realm=URL(realm), scope=SCOPE, **(values | changes))


def fetching(credential: Credential | None = None, **changes: Any) -> Flow[Token]:
    return fetch_token(login(credential=credential, **changes))


def token(**answer: Any) -> Response:
    return response(200, json.dumps(answer).encode())


# By name and password


def test_a_token_is_asked_for_with_encoded_parameters() -> None:
    (request,), got = play(
        fetch_token(login("https://r.example/t?a=b%26c", service="x&scope=evil y;z")),
        token(token="t0ken", expires_in=300),
    )
    assert isinstance(request, Request)
    assert list(request.url.query.items()) == [
        ("a", "b&c"),
        ("service", "x&scope=evil y;z"),
        ("scope", SCOPE),
    ]
    assert ";" not in request.url.raw_query_string
    assert authorization(request) is None
    assert not request.derived
    assert (got.value, got.lifetime) == ("t0ken", 290)


def test_a_service_that_was_not_named_is_not_sent() -> None:
    (request,), _ = play(fetching(service=None), token(token="t"))
    assert url(request) == f"https://r.example/token?scope={SCOPE}"


@pytest.mark.parametrize(
    "query",
    [
        "scope=repository:victim/app:push",
        "scope=a&scope=b",
        "offline_token=true",
        "access_type=offline",
        "service=evil",
        "%73cope=a",
    ],
)
@pytest.mark.parametrize("credential", [None, ALICE, IDENTITY])
def test_a_realm_says_where_to_ask_not_for_what(query: str, credential: Credential | None) -> None:
    flow = fetch_token(login(f"https://r.example/token?{query}&kept=1", credential=credential))
    (request,), _ = play(flow, token(token="t"))
    assert isinstance(request, Request)
    asked = parse_qs(f"{request.url.raw_query_string}&{request.body.decode()}")
    assert asked["scope"] == [SCOPE]
    assert asked["service"] == ["r"]
    assert asked["kept"] == ["1"]
    assert not asked.keys() & {"offline_token", "access_type"}


def test_the_login_goes_to_the_token_server() -> None:
    (request,), _ = play(fetching(ALICE), token(token="t"))
    assert authorization(request) == basic(ALICE)


def test_a_token_server_elsewhere_is_a_derived_place_unless_the_operator_named_it() -> None:
    for registry, derived in (
        (REGISTRY, True),
        (Registry("r.example", REGISTRY.origin, token_hosts=("auth.example",)), False),
    ):
        flow = fetch_token(
            login("https://auth.example/", registry=registry, credential=NAMED_IDENTITY)
        )
        steps, _ = play(flow, response(405), token(token="t"))
        assert [isinstance(step, Request) and step.derived for step in steps] == [derived] * 2


@pytest.mark.parametrize("credential", [None, ALICE])
@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (400, Reason.UNAUTHORIZED),
        (401, Reason.UNAUTHORIZED),
        (403, Reason.UNAUTHORIZED),
        (404, Reason.UNAUTHORIZED),
        (405, Reason.UNAUTHORIZED),
        (408, Reason.TIMEOUT),
        (429, Reason.RATE_LIMITED),
        (500, Reason.UNREACHABLE),
        (503, Reason.UNREACHABLE),
        (204, Reason.BAD_ANSWER),
        (302, Reason.BAD_ANSWER),
        (307, Reason.BAD_ANSWER),
    ],
)
def test_the_token_server_may_refuse_and_is_not_followed(
    credential: Credential | None, status: int, reason: Reason
) -> None:
    answer = response(status, location="https://evil.example/")
    assert fail(fetching(credential), answer).reason is reason


def test_a_token_server_without_time_for_us_refuses_nobody() -> None:
    assert fail(fetching(ALICE), errors(401, "TOOMANYREQUESTS")).reason is Reason.RATE_LIMITED


def test_a_token_server_says_nothing_of_the_image() -> None:
    assert fail(fetching(ALICE), errors(404, "NAME_UNKNOWN")).reason is Reason.UNAUTHORIZED


# By identity token


def test_an_identity_token_is_posted_in_a_form_and_never_in_a_url() -> None:
    flow = fetching(Credential("", "", identity_token="r3fresh/+=&x=y"))
    (request,), got = play(flow, token(access_token="t0ken", refresh_token="other", expires_in=300))
    assert isinstance(request, Request)
    assert (request.method, str(request.url)) == ("POST", "https://r.example/token")
    assert dict(request.headers) == {"Content-Type": "application/x-www-form-urlencoded"}
    assert parse_qs(request.body.decode(), strict_parsing=True) == {
        "grant_type": ["refresh_token"],
        "refresh_token": ["r3fresh/+=&x=y"],
        "service": ["r"],
        "scope": [SCOPE],
        "client_id": ["tagpin"],
    }
    assert (got.value, got.lifetime) == ("t0ken", 290)


def test_a_form_names_no_service_that_was_not_named() -> None:
    (request,), _ = play(fetching(IDENTITY, service=None), token(token="t"))
    assert isinstance(request, Request)
    assert b"service" not in request.body


def test_an_identity_token_comes_before_a_password() -> None:
    both = Credential("alice", "a", identity_token="r3fresh")
    steps, _ = play(fetching(both), token(token="t"))
    assert methods(steps) == ["POST"]


@pytest.mark.parametrize("status", [400, 401, 404, 405])
def test_a_server_that_knows_no_identity_tokens_is_asked_by_password(status: int) -> None:
    both = Credential("alice", "a", identity_token="r3fresh")
    steps, _ = play(fetching(both), response(status), token(token="t"))
    assert methods(steps) == ["POST", "GET"]
    assert authorization(steps[1]) == basic(ALICE)
    assert "r3fresh" not in url(steps[1])


@pytest.mark.parametrize("status", [400, 401, 404, 405])
def test_an_identity_token_stands_in_for_the_password_that_a_user_has_not(status: int) -> None:
    steps, _ = play(fetching(NAMED_IDENTITY), response(status), token(token="t"))
    assert authorization(steps[1]) == basic(Credential("alice", "r3fresh"))
    assert "r3fresh" not in url(steps[1])


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405])
def test_an_identity_token_without_a_user_is_refused_never_left_out(status: int) -> None:
    assert fail(fetching(IDENTITY), response(status)).reason is Reason.UNAUTHORIZED


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (response(403), Reason.UNAUTHORIZED),
        (response(429), Reason.RATE_LIMITED),
        (response(500), Reason.UNREACHABLE),
        (response(503), Reason.UNREACHABLE),
        (response(302, location="https://evil.example/"), Reason.BAD_ANSWER),
        (errors(400, "TOOMANYREQUESTS"), Reason.RATE_LIMITED),
        (response(200, b"<html>"), Reason.BAD_ANSWER),
    ],
)
def test_a_post_that_was_understood_is_not_followed_by_a_password(
    answer: Response, reason: Reason
) -> None:
    assert fail(fetching(NAMED_IDENTITY), answer).reason is reason


def test_the_answer_to_the_password_is_the_last_one() -> None:
    failure = fail(fetching(NAMED_IDENTITY), response(405), response(401))
    assert failure.reason is Reason.UNAUTHORIZED


def test_a_service_that_utf_8_cannot_write_harms_nobody() -> None:
    for credential, refused in ((IDENTITY, response(401)), (ALICE, response(401))):
        flow = fetching(credential, service="\udcff")
        assert fail(flow, refused).reason is Reason.UNAUTHORIZED


def test_harbor_and_artifactory_take_an_identity_token_as_a_password_alone() -> None:
    robot = Credential("robot$acme", "", identity_token="r3fresh")
    for host, path, status in (
        ("harbor.example", "/service/token", 405),
        ("acme.jfrog.example", "/artifactory/api/docker/docker/v2/token", 401),
    ):
        registry = Registry(host, URL(f"https://{host}"))
        flow = fetch_token(login(f"https://{host}{path}", registry=registry, credential=robot))
        steps, _ = play(flow, response(status), token(token="t"))
        assert methods(steps) == ["POST", "GET"]
        assert authorization(steps[1]) == basic(Credential("robot$acme", "r3fresh"))


def test_acr_takes_a_posted_identity_token() -> None:
    nil = Credential("00000000-0000-0000-0000-000000000000", "", identity_token="r3fresh")
    registry = Registry("acme.azurecr.io", URL("https://acme.azurecr.io"))
    place = "https://acme.azurecr.io/oauth2/token"
    flow = fetch_token(login(place, registry=registry, service=registry.name, credential=nil))
    (request,), got = play(flow, token(access_token="t0ken"))
    assert url(request) == place
    assert got.value == "t0ken"


# The answer


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ({"access_token": "a", "token": "b"}, "a"),
        ({"access_token": "", "token": "b"}, "b"),
        ({"access_token": None, "token": "b"}, "b"),
        ({"access_token": "a", "token": ""}, "a"),
        ({"access_token": "a", "token": 7}, "a"),
        ({"access_token": "a"}, "a"),
        ({"token": "b"}, "b"),
        ({"token": "b" * 8192}, "b" * 8192),
        ({"token": "!~"}, "!~"),
    ],
)
def test_an_access_token_comes_first(answer: dict[str, Any], value: str) -> None:
    assert play(fetching(), token(**answer))[1].value == value


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"token": ""},
        {"token": None},
        {"access_token": "", "token": ""},
        {"access_token": "a b", "token": "b"},
        {"access_token": 7, "token": "b"},
        {"token": 7},
        {"token": True},
        {"token": ["t"]},
        {"token": "a\r\nX: y"},
        {"token": "a\0"},
        {"token": "a\n"},
        {"token": "a b"},
        {"token": "ä"},
        {"token": "\x7f"},
        {"token": "x" * 8193},
        {"refresh_token": "t"},
    ],
)
def test_a_token_that_does_not_fit_into_a_header_is_refused(answer: dict[str, Any]) -> None:
    failure = fail(fetching(), token(**answer))
    assert failure.reason is Reason.BAD_ANSWER
    assert str(failure) == "the token server gave no usable token"


LIFETIMES: dict[str, float] = {
    "null": 54,
    "0": 54,
    "-1": 54,
    "-1e300": 54,
    '"x"': 54,
    '""': 54,
    "[]": 54,
    "{}": 54,
    "true": 54,
    "false": 54,
    '"inf"': 54,
    '"nan"': 54,
    "59": 54,
    "60": 54,
    "61": 54.9,
    "80": 72,
    "100": 90,
    "300": 290,
    '"300"': 290,
    '" 300 "': 290,
    "300.5": 290.5,
    "1000000000": 12 * 3600 - 10,
    "99999999999999999999999": 12 * 3600 - 10,
    "1e300": 12 * 3600 - 10,
}


@pytest.mark.parametrize(("expires_in", "lifetime"), LIFETIMES.items())
def test_a_token_lives_for_a_sensible_time(expires_in: str, lifetime: float) -> None:
    answer = response(200, f'{{"token": "t", "expires_in": {expires_in}}}'.encode())
    assert play(fetching(), answer)[1].lifetime == pytest.approx(lifetime)


def test_a_token_of_which_nothing_is_said_lives_for_a_minute() -> None:
    assert play(fetching(), token(token="t"))[1].lifetime == 54


@pytest.mark.parametrize(
    ("issued_at", "lifetime"),
    [
        ("2026-11-24T12:00:00Z", 590),
        ("2026-11-24T11:58:20Z", 490),
        ("2026-11-24T11:58:20.123456789Z", 490.123456),
        ("2026-11-24T13:58:20+02:00", 490),
        ("2026-11-24T11:55:00Z", 290),
        ("2026-11-24T11:54:59Z", 590),
        ("2026-11-24T12:00:01Z", 590),
        ("9999-12-31T23:59:59Z", 590),
        ("0001-01-01T00:00:00+23:59", 590),
        ("2026-11-24T11:58:20", 590),
        ("yesterday", 590),
        ("", 590),
        (1795521500, 590),
        (None, 590),
        ([], 590),
    ],
)
def test_a_token_that_was_issued_a_while_ago_ends_sooner(issued_at: Any, lifetime: float) -> None:
    body = json.dumps({"token": "t", "expires_in": 600, "issued_at": issued_at}).encode()
    answer = response(200, body, date="Tue, 24 Nov 2026 12:00:00 GMT")
    assert play(fetching(), answer)[1].lifetime == pytest.approx(lifetime)


@pytest.mark.parametrize("date", [[], "", "yesterday", "Tue, 99 Nov 2026 12:00:00 GMT", "\udcff"])
def test_without_a_date_the_age_of_a_token_is_not_known(date: str | list[str]) -> None:
    body = b'{"token": "t", "expires_in": 600, "issued_at": "2026-11-24T11:58:20Z"}'
    assert play(fetching(), response(200, body, date=date))[1].lifetime == 590


def test_however_old_a_token_is_it_is_used_for_a_minute() -> None:
    body = b'{"token": "t", "expires_in": 300, "issued_at": "2026-11-24T11:55:00Z"}'
    answer = response(200, body, date="Tue, 24 Nov 2026 12:00:00 GMT")
    assert play(fetching(), answer)[1].lifetime == 54


def test_a_token_may_come_in_gzip() -> None:
    answer = response(200, gzip.compress(b'{"token": "t"}'), content_encoding="gzip")
    assert play(fetching(), answer)[1].value == "t"
    bomb = response(200, gzip.compress(b" " * 100_000), content_encoding="gzip")
    assert fail(fetching(), bomb).reason is Reason.BAD_ANSWER


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"null", b'{"token": "t", "expires_in": NaN}', b"[" * 60_000],
    ids=["nothing", "a page", "a list", "null", "NaN", "a deep hole"],
)
def test_an_answer_that_is_no_json_object_is_a_bad_answer(body: bytes) -> None:
    assert fail(fetching(), response(200, body)).reason is Reason.BAD_ANSWER


# Realms


def realm(text: str, registry: Registry = REGISTRY) -> URL:
    return realm_of(Challenge("bearer", {"realm": text}), registry)


def refused(text: str, registry: Registry = REGISTRY) -> Reason:
    with pytest.raises(Failure) as caught:
        realm(text, registry)
    return caught.value.reason


@pytest.mark.parametrize(
    "text",
    [
        "https://r.example/token",
        "https://r.example:8443/token",
        "https://R.Example/token",
        "https://gitlab.example/jwt/auth",
        "https://r.example/token?a=b",
        "https://r.example/a..b/..c",
        "https://r.example/token?x=../y",
        "https://r.example",
    ],
)
def test_an_honest_realm_is_taken_as_it_is(text: str) -> None:
    assert realm(text) == URL(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "token",
        "/token",
        "//r.example/token",
        "http://r.example/token",
        "ftp://r.example/token",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "https://",
        "https:///token",
        "https://:443/token",
        "https://user@r.example/token",
        "https://user:pw@r.example/token",
        "https://r.example/token#x",
        "https://r.example/a/../token",
        "https://r.example/..",
        "https://r.example/%2e%2E/token",
        "https://r.example/a%2f..%2ftoken",
        "https://r.example/a\\..\\token",
        "https://[::1",
        "https://r.example:99999/",
        "https://r.example:x/",
        "https://xn--a.example/",
        "https://xn--\udcff/",
        "https://evil.example\\@r.example/",
    ],
)
def test_a_realm_that_no_honest_registry_names_is_refused(text: str) -> None:
    assert refused(text) is Reason.BAD_ANSWER


def test_a_challenge_without_realm_is_a_bad_answer() -> None:
    with pytest.raises(Failure) as caught:
        realm_of(Challenge("bearer"), REGISTRY)
    assert caught.value.reason is Reason.BAD_ANSWER


def test_a_plain_registry_may_name_either_scheme() -> None:
    plain = Registry("r.example", URL("http://r.example"), listed=True)
    assert realm("http://r.example/token", plain).scheme == "http"
    assert realm("https://r.example/token", plain).scheme == "https"


KNOWN = {
    "registry-1.docker.io": "https://auth.docker.io/token",
    "ghcr.io": "https://ghcr.io/token",
    "quay.io": "https://quay.io/v2/auth",
    "public.ecr.aws": "https://public.ecr.aws/token/",
    "gcr.io": "https://gcr.io/v2/token",
    "eu.gcr.io": "https://eu.gcr.io/v2/token",
    "europe-west1-docker.pkg.dev": "https://europe-west1-docker.pkg.dev/v2/token",
    "acme.azurecr.io": "https://acme.azurecr.io/oauth2/token",
}


@pytest.mark.parametrize(("host", "text"), KNOWN.items())
def test_well_known_registries_have_their_tokens_from_where_they_are_known_to(
    host: str, text: str
) -> None:
    for spelling in (host, host.upper(), f"{host}.", f"{host}:5000"):
        registry = Registry(spelling, URL(f"https://{spelling}"))
        assert realm(text, registry) == URL(text)
        for foreign in ("https://evil.example/token", f"https://{host}.evil.example/token"):
            assert refused(foreign, registry) is Reason.BAD_ANSWER


@pytest.mark.parametrize(
    ("host", "foreign"),
    [
        ("registry-1.docker.io", "https://registry-1.docker.io/token"),
        ("acme.azurecr.io", "https://other.azurecr.io/oauth2/token"),
        ("us-docker.pkg.dev", "https://gcr.io/v2/token"),
    ],
)
def test_not_even_a_well_known_token_server_is_that_of_another_registry(
    host: str, foreign: str
) -> None:
    assert refused(foreign, Registry(host, URL(f"https://{host}"))) is Reason.BAD_ANSWER


def test_a_registry_is_known_by_its_place_not_by_whom_it_stands_for() -> None:
    hub = Registry("docker.io", URL("https://registry-1.docker.io"))
    assert realm("https://auth.docker.io/token", hub)
    mirror = Registry("mirror.example", URL("https://mirror.example"), ns="docker.io")
    assert realm("https://mirror.example/token", mirror)


def test_a_foreign_token_server_is_refused_where_the_operator_is_strict() -> None:
    strict = Registry("r.example", URL("https://r.example"), strict=True)
    assert realm("https://r.example:8443/token", strict)
    assert refused("https://auth.example/token", strict) is Reason.BAD_ANSWER
    hub = Registry("docker.io", URL("https://registry-1.docker.io"), strict=True)
    assert realm("https://auth.docker.io/token", hub)


@pytest.mark.parametrize("host", ["r.example", "ghcr.io"])
def test_a_token_server_that_the_operator_named_is_always_allowed(host: str) -> None:
    origin = URL(f"https://{host}")
    registry = Registry(host, origin, token_hosts=("*.corp.example",), strict=True)
    assert realm("https://auth.corp.example/token", registry)
    assert realm(f"https://{host}/token", registry)
    assert refused("https://corp.example/token", registry) is Reason.BAD_ANSWER


# What is shown


def test_nothing_that_is_printed_holds_a_secret() -> None:
    secret = Credential("alice", "s3cret", identity_token="s3cret")
    steps, got = play(fetching(secret), response(405), token(token="s3cret"))
    shown = f"{login(credential=secret)} {steps} {got} {fail(fetching(secret), response(403))}"
    assert "s3cret" not in shown
    assert base64.b64encode(b"alice:s3cret").decode() not in shown
