"""Conversations with a registry, played without a server, a mock or an event loop."""

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yarl import URL

from tagpin.errors import Reason
from tagpin.keychain import Credential
from tagpin.reference import Digest, Reference
from tagpin.registry.conversation import resolve_tag
from tagpin.registry.flow import Failure, Flow, Login, Obtain, Registry, Request, Response
from tagpin.registry.login import fetch_token

T = TypeVar("T")
Step = Request | Login | Obtain
Reply = Response | str | Failure

APP = Reference.parse("r.example/acme/app:v1")
REGISTRY = Registry("r.example", URL("https://r.example"))
PLAIN = Registry("r.example", URL("http://r.example"), listed=True)
TRUSTED_PLAIN = Registry(
    "r.example", URL("http://r.example"), listed=True, credentials_over_http=True
)
ALICE, BOB = Credential("alice", "a"), Credential("bob", "b")
ALICE_BASIC = "Basic " + base64.b64encode(b"alice:a").decode()

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_IMAGE = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_IMAGE = "application/vnd.docker.distribution.manifest.v2+json"
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"

HEX = "0123456789abcdef" * 4
DIGEST = Digest("sha256", HEX)
BEARER = 'Bearer realm="https://r.example/token",service="r",scope="repository:acme/app:pull"'


def play(flow: Flow[T], *replies: Reply) -> tuple[list[Step], T]:
    """What the flow asked, and what it came to; every reply must be wanted, and no more."""
    steps: list[Step] = [next(flow)]
    for number, reply in enumerate(replies, 1):
        try:
            step = flow.throw(reply) if isinstance(reply, Failure) else flow.send(reply)
        except StopIteration as end:
            assert number == len(replies), f"{replies[number:]} are not wanted"
            return steps, end.value
        steps.append(step)
    raise AssertionError(f"the flow goes on: {steps[-1]}")


def fail(flow: Flow[Any], *replies: Reply) -> Failure:
    """How the flow failed."""
    with pytest.raises(Failure) as caught:
        play(flow, *replies)
    return caught.value


def response(status: int, body: bytes = b"", **headers: str | Sequence[str]) -> Response:
    """`content_type="x"` is the header content-type; several values make several headers."""
    pairs: list[tuple[str, str]] = []
    for name, value in headers.items():
        values = [value] if isinstance(value, str) else value
        pairs += [(name.replace("_", "-"), each) for each in values]
    return Response(status, tuple(pairs), body)


def found(digest: str = str(DIGEST), content_type: str = OCI_IMAGE) -> Response:
    return response(200, docker_content_digest=digest, content_type=content_type)


def manifest(content: dict[str, Any], content_type: str = OCI_IMAGE, **headers: str) -> Response:
    return response(200, json.dumps(content).encode(), content_type=content_type, **headers)


def denied(challenge: str = BEARER) -> Response:
    return response(401, www_authenticate=challenge)


def resolving(*candidates: Credential, registry: Registry = REGISTRY) -> Flow[Digest]:
    return resolve_tag(registry, APP, candidates)


IMAGE = {"schemaVersion": 2, "mediaType": OCI_IMAGE, "config": {}, "layers": []}
INDEX = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
NO_DIGEST = response(200, content_type=OCI_IMAGE)
NOT_FOUND = response(404)


def authorization(step: Step) -> str | None:
    assert isinstance(step, Request)
    return step.headers.get("Authorization")


def methods(steps: list[Step]) -> list[str]:
    return [step.method if isinstance(step, Request) else "login" for step in steps]


# HEAD, then GET


def test_a_head_with_a_digest_is_enough() -> None:
    (request,), digest = play(resolving(), found())
    assert digest == DIGEST
    assert isinstance(request, Request)
    assert (request.method, str(request.url)) == (
        "HEAD",
        "https://r.example/v2/acme/app/manifests/v1",
    )
    assert set(request.headers["Accept"].split(", ")) == {
        OCI_INDEX,
        OCI_IMAGE,
        DOCKER_LIST,
        DOCKER_IMAGE,
    }


def test_a_reference_without_tag_asks_for_latest_of_the_whole_path() -> None:
    ref = Reference.parse("nginx")
    hub = Registry("docker.io", URL("https://registry-1.docker.io"))
    (request,), _ = play(resolve_tag(hub, ref, ()), found())
    assert isinstance(request, Request)
    assert str(request.url) == "https://registry-1.docker.io/v2/library/nginx/manifests/latest"


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_every_registered_algorithm_is_a_digest(algorithm: str) -> None:
    digest = f"{algorithm}:{hashlib.new(algorithm, b'').hexdigest()}"
    assert str(play(resolving(), found(digest))[1]) == digest


@pytest.mark.parametrize("content_type", [OCI_INDEX, DOCKER_LIST, f"{OCI_IMAGE.upper()}; q=1"])
def test_a_media_type_is_compared_without_case_and_parameters(content_type: str) -> None:
    assert play(resolving(), found(content_type=content_type))[1] == DIGEST


UNSETTLED = {
    "no digest": NO_DIGEST,
    "garbled digest": found("sha256:xyz"),
    "digest with a newline": found(f"{DIGEST}\n"),
    "digest in upper case": found(f"sha256:{HEX.upper()}"),
    "digest of another algorithm": found("md5:" + "0" * 32),
    "repeated digest": response(
        200, docker_content_digest=[str(DIGEST)] * 2, content_type=OCI_IMAGE
    ),
    "another media type": found(content_type="application/octet-stream"),
    "no media type": response(200, docker_content_digest=str(DIGEST)),
} | {f"status {status}": response(status) for status in (400, 403, 404, 405, 406, 501, 304)}


@pytest.mark.parametrize("head", UNSETTLED.values(), ids=UNSETTLED)
def test_where_head_does_not_settle_it_the_bytes_are_hashed(head: Response) -> None:
    get = manifest(IMAGE)
    steps, digest = play(resolving(), head, get)
    assert methods(steps) == ["HEAD", "GET"]
    assert digest == Digest("sha256", hashlib.sha256(get.body).hexdigest())


def test_the_digest_is_over_the_bytes_as_they_came() -> None:
    body = b' {"schemaVersion" : 2,\n "layers": [], "config": {} }\n'
    _, digest = play(resolving(), NO_DIGEST, response(200, body, content_type=OCI_IMAGE))
    assert digest.hex == hashlib.sha256(body).hexdigest()


def test_the_digest_of_an_index_is_its_own() -> None:
    index = INDEX | {"manifests": [{"digest": str(DIGEST), "mediaType": OCI_IMAGE}]}
    get = manifest(index, OCI_INDEX)
    assert play(resolving(), NO_DIGEST, get)[1].hex == hashlib.sha256(get.body).hexdigest()


def test_bytes_are_hashed_with_the_algorithm_that_the_registry_uses() -> None:
    body = json.dumps(IMAGE).encode()
    stated = f"sha512:{hashlib.sha512(body).hexdigest()}"
    get = manifest(IMAGE, docker_content_digest=stated)
    assert str(play(resolving(), response(404), get)[1]) == stated


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", ""])
def test_static_hosting_may_not_know_media_types(content_type: str) -> None:
    play(resolving(), NO_DIGEST, manifest(IMAGE, content_type))
    play(resolving(), NO_DIGEST, manifest({"config": {}, "layers": []}, content_type))


@pytest.mark.parametrize(
    "get",
    [
        manifest(IMAGE | {"manifests": []}),
        manifest(INDEX | {"layers": []}, OCI_INDEX),
        manifest(INDEX | {"config": {}}, OCI_INDEX),
        manifest({"manifests": [], "layers": []}),
        manifest(INDEX, OCI_IMAGE),
        manifest(IMAGE, OCI_INDEX),
        manifest({"config": {}, "layers": []}, OCI_INDEX),
        manifest({"manifests": []}, DOCKER_IMAGE),
        manifest(IMAGE | {"mediaType": OCI_INDEX}, "text/plain"),
        manifest(IMAGE | {"mediaType": "text/html"}, "text/plain"),
        manifest(IMAGE | {"mediaType": ["a"]}),
        manifest({"schemaVersion": 2}),
        response(200, b"[]", content_type=OCI_IMAGE),
        response(200, b"<html>", content_type=OCI_IMAGE),
        response(200, b"", content_type=OCI_IMAGE),
        response(200, b"[" * 100_000, content_type=OCI_IMAGE),
        manifest(IMAGE, docker_content_digest=str(DIGEST)),
        manifest(IMAGE, content_encoding="gzip"),
    ],
)
def test_a_manifest_that_two_readers_could_take_for_two_things_is_refused(get: Response) -> None:
    assert fail(resolving(), NO_DIGEST, get).reason is Reason.BAD_ANSWER


def test_schema_1_is_refused_whether_head_says_it_or_the_bytes_do() -> None:
    assert fail(resolving(), found(content_type=SCHEMA_1)).reason is Reason.UNSUPPORTED
    for get in (
        manifest({"schemaVersion": 1, "fsLayers": []}, "text/plain"),
        manifest({"schemaVersion": 1, "fsLayers": []}, SCHEMA_1),
        manifest({}, SCHEMA_1),
    ):
        assert fail(resolving(), NOT_FOUND, get).reason is Reason.UNSUPPORTED


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (403, Reason.UNAUTHORIZED),
        (404, Reason.NOT_FOUND),
        (400, Reason.BAD_ANSWER),
        (204, Reason.BAD_ANSWER),
        (418, Reason.BAD_ANSWER),
    ],
)
def test_only_the_answer_to_get_is_a_final_denial(status: int, reason: Reason) -> None:
    assert fail(resolving(), response(status), response(status)).reason is reason


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (408, Reason.TIMEOUT),
        (429, Reason.RATE_LIMITED),
        (499, Reason.UNREACHABLE),
        (500, Reason.UNREACHABLE),
        (503, Reason.UNREACHABLE),
        (599, Reason.UNREACHABLE),
    ],
)
def test_an_outage_is_not_asked_twice(status: int, reason: Reason) -> None:
    failure = fail(resolving(), response(status))
    assert failure.reason is reason
    assert failure.reason.is_outage


# Logging in


def test_nothing_is_said_about_us_before_we_are_asked() -> None:
    steps, _ = play(resolving(ALICE), found())
    assert authorization(steps[0]) is None


def test_a_bearer_challenge_is_answered_with_a_token_for_this_repository_alone() -> None:
    challenge = 'Bearer realm="https://r.example/token",service="r",scope="repository:acme/*:*"'
    steps, digest = play(resolving(ALICE), denied(challenge), "t0ken", found())
    assert digest == DIGEST
    assert steps[1] == Login(
        REGISTRY, URL("https://r.example/token"), "r", "repository:acme/app:pull", ALICE
    )
    assert authorization(steps[2]) == "Bearer t0ken"


def test_without_candidates_the_token_is_anonymous() -> None:
    steps, _ = play(resolving(), denied(), "t0ken", found())
    assert isinstance(steps[1], Login)
    assert steps[1].credential is None


def test_a_basic_challenge_is_answered_once() -> None:
    steps, _ = play(resolving(ALICE), denied('Basic realm="x"'), found())
    assert authorization(steps[1]) == ALICE_BASIC
    refused = fail(resolving(ALICE), *[denied('Basic realm="x"')] * 3)
    assert refused.reason is Reason.UNAUTHORIZED


def test_whoever_has_no_credentials_for_a_basic_challenge_stops() -> None:
    assert fail(resolving(), denied('Basic realm="x"')).reason is Reason.UNAUTHORIZED


def test_get_uses_the_login_of_head() -> None:
    steps, _ = play(resolving(ALICE), denied(), "t0ken", NO_DIGEST, manifest(IMAGE))
    assert methods(steps) == ["HEAD", "login", "HEAD", "GET"]
    assert authorization(steps[3]) == "Bearer t0ken"


def test_a_challenge_may_come_to_get_alone() -> None:
    steps, _ = play(resolving(ALICE), NOT_FOUND, denied(), "t0ken", manifest(IMAGE))
    assert methods(steps) == ["HEAD", "GET", "login", "GET"]


def test_a_token_that_is_refused_is_replaced_once() -> None:
    steps, _ = play(resolving(ALICE), denied(), "old", denied(), "new", found())
    assert isinstance(steps[3], Login)
    assert steps[3].refused == "old"
    assert authorization(steps[4]) == "Bearer new"


def test_a_bare_401_to_a_token_gets_another_token_not_a_password() -> None:
    steps, _ = play(resolving(ALICE), denied(), "old", response(401), "new", found())
    assert methods(steps) == ["HEAD", "login", "HEAD", "login", "HEAD"]


def test_logging_in_ends_after_two_rounds() -> None:
    failure = fail(resolving(ALICE), denied(), "old", denied(), "new", denied(), denied())
    assert failure.reason is Reason.UNAUTHORIZED


def test_a_bare_401_is_taken_for_basic_where_we_have_credentials_and_tls() -> None:
    steps, _ = play(resolving(ALICE), response(401), found())
    assert authorization(steps[1]) == ALICE_BASIC
    assert fail(resolving(), response(401)).reason is Reason.UNAUTHORIZED
    plain = resolving(ALICE, registry=TRUSTED_PLAIN)
    assert fail(plain, response(401)).reason is Reason.UNAUTHORIZED


def test_schemes_that_we_do_not_know_are_a_closed_door() -> None:
    challenge = response(401, www_authenticate=["Negotiate", "Digest realm=x"])
    assert fail(resolving(ALICE), challenge).reason is Reason.UNAUTHORIZED


def test_a_malformed_challenge_is_a_bad_answer() -> None:
    assert fail(resolving(ALICE), denied('Bearer realm="x')).reason is Reason.BAD_ANSWER


# Candidates


WRONG_PASSWORD = Failure(Reason.UNAUTHORIZED, "")


def test_the_second_secret_opens_what_the_first_cannot() -> None:
    steps, digest = play(resolving(ALICE, BOB), denied(), WRONG_PASSWORD, "bobs", found())
    assert digest == DIGEST
    assert methods(steps) == ["HEAD", "login", "login", "HEAD"]
    assert [step.credential for step in steps if isinstance(step, Login)] == [ALICE, BOB]


@pytest.mark.parametrize("status", [403, 404])
def test_the_second_secret_is_tried_where_the_first_is_denied(status: int) -> None:
    denials = [response(status)] * 2
    steps, digest = play(resolving(ALICE, BOB), denied(), "alices", *denials, "bobs", found())
    assert digest == DIGEST
    assert authorization(steps[-1]) == "Bearer bobs"


def test_harbor_gives_a_token_without_access_for_a_wrong_password() -> None:
    flow = resolving(ALICE, BOB)
    empty: list[Reply] = [denied(), "empty", denied(), "empty", denied()]
    assert play(flow, *empty, "bobs", found())[1] == DIGEST


def test_an_image_is_absent_only_if_every_candidate_says_so() -> None:
    absent = fail(resolving(ALICE, BOB), denied(), "a", *[NOT_FOUND] * 2, "b", *[NOT_FOUND] * 2)
    assert absent.reason is Reason.NOT_FOUND
    unclear = fail(
        resolving(ALICE, BOB), denied(), "a", *[NOT_FOUND] * 2, "b", *[response(403)] * 2
    )
    assert unclear.reason is Reason.UNAUTHORIZED


def test_candidates_are_not_tried_where_nobody_asked_for_them() -> None:
    assert fail(resolving(ALICE, BOB), NOT_FOUND, NOT_FOUND).reason is Reason.NOT_FOUND


def test_an_outage_ends_the_search_among_candidates() -> None:
    outage = Failure(Reason.UNREACHABLE, "")
    assert fail(resolving(ALICE, BOB), denied(), outage) is outage


def test_where_all_candidates_fail_nobody_goes_anonymously() -> None:
    assert fail(resolving(ALICE), denied(), WRONG_PASSWORD).reason is Reason.UNAUTHORIZED


# Redirects


def moved(location: str | list[str], status: int = 307) -> Response:
    return response(status, location=location)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_keeps_the_method(status: int) -> None:
    steps, digest = play(resolving(), moved("/elsewhere", status), found())
    assert digest == DIGEST
    assert methods(steps) == ["HEAD", "HEAD"]
    assert isinstance(steps[1], Request)
    assert (str(steps[1].url), steps[1].derived) == ("https://r.example/elsewhere", False)


def test_credentials_stay_on_the_way_within_the_registry() -> None:
    steps, _ = play(resolving(ALICE), denied(), "t0ken", moved("/elsewhere"), found())
    assert authorization(steps[3]) == "Bearer t0ken"


@pytest.mark.parametrize(
    "target", ["https://evil.example/x", "https://r.example:444/x", "//evil.example/x"]
)
def test_credentials_are_never_sent_to_the_host_a_redirect_names(target: str) -> None:
    steps, _ = play(resolving(ALICE), denied(), "t0ken", moved(target), found())
    assert authorization(steps[3]) is None
    assert isinstance(steps[3], Request)
    assert steps[3].derived


def test_credentials_do_not_come_back_with_a_redirect_that_returns() -> None:
    there, back = moved("https://evil.example/x"), moved("https://r.example/v2/other/manifests/v1")
    steps, _ = play(resolving(ALICE), denied(), "t0ken", there, back, found())
    assert [authorization(step) for step in steps[3:]] == [None, None]


@pytest.mark.parametrize("challenge", ['Basic realm="x"', BEARER, None])
def test_a_401_from_a_redirects_target_is_never_answered(challenge: str | None) -> None:
    refused = denied(challenge) if challenge else response(401)
    away = moved("https://evil.example/x")
    failure = fail(resolving(ALICE), denied(), "t0ken", *[away, refused] * 2)
    assert failure.reason is Reason.UNAUTHORIZED


@pytest.mark.parametrize(
    "location",
    [
        "http://r.example/x",
        "http://evil.example/x",
        "ftp://evil.example/x",
        "file:///etc/passwd",
        "https://user@evil.example/x",
        "https://user:password@evil.example/x",
        "https://evil.example:99999/x",
        "https://[::1/x",
        [],
        ["https://a.example/", "https://b.example/"],
    ],
)
def test_a_redirect_to_no_honest_place_is_refused(location: str | list[str]) -> None:
    assert fail(resolving(), moved(location)).reason is Reason.BAD_ANSWER


def test_a_way_that_came_to_https_never_goes_back_to_http() -> None:
    flow = resolving(registry=PLAIN)
    up, down = moved("https://r.example/x"), moved("http://r.example/x")
    assert fail(flow, up, down).reason is Reason.BAD_ANSWER


def test_the_sixth_redirect_is_one_too_many() -> None:
    assert play(resolving(), *[moved("/x")] * 5, found())[1] == DIGEST
    assert fail(resolving(), *[moved("/x")] * 6).reason is Reason.BAD_ANSWER


# Realms


def realm(url: str) -> Response:
    return denied(f'Bearer realm="{url}"')


@pytest.mark.parametrize(
    "url",
    [
        "http://r.example/token",
        "https://user@r.example/token",
        "https://user:pw@r.example/token",
        "https://r.example/token#x",
        "/token",
        "//r.example/token",
        "",
        "https://",
        "https://[::1",
        "https://r.example:99999/",
        "ftp://r.example/token",
    ],
)
def test_a_realm_that_no_honest_registry_names_is_refused(url: str) -> None:
    assert fail(resolving(ALICE), realm(url)).reason is Reason.BAD_ANSWER


def test_a_challenge_without_realm_is_a_bad_answer() -> None:
    assert fail(resolving(ALICE), denied("Bearer")).reason is Reason.BAD_ANSWER


@pytest.mark.parametrize(
    ("domain", "origin", "url", "fits"),
    [
        ("docker.io", "https://registry-1.docker.io", "https://auth.docker.io/token", True),
        ("docker.io", "https://registry-1.docker.io", "https://registry-1.docker.io/t", False),
        ("ghcr.io", "https://ghcr.io", "https://ghcr.io/token", True),
        ("GHCR.io", "https://ghcr.io", "https://evil.example/token", False),
        ("quay.io", "https://quay.io", "https://quay.io.evil.example/auth", False),
        ("x.azurecr.io", "https://x.azurecr.io", "https://x.azurecr.io/oauth2/token", True),
        ("x.azurecr.io", "https://x.azurecr.io", "https://y.azurecr.io/oauth2/token", False),
        ("eu-docker.pkg.dev", "https://eu-docker.pkg.dev", "https://gcr.io/v2/token", False),
        ("r.example", "https://r.example", "https://gitlab.example/jwt/auth", True),
    ],
)
def test_well_known_registries_have_their_tokens_from_where_they_are_known_to(
    domain: str, origin: str, url: str, *, fits: bool
) -> None:
    flow = resolve_tag(Registry(domain, URL(origin)), APP, (ALICE,))
    if fits:
        play(flow, realm(url), "t0ken", found())
    else:
        assert fail(flow, realm(url)).reason is Reason.BAD_ANSWER


# Plain http


@pytest.mark.parametrize("challenge", ['Basic realm="x"', 'Bearer realm="http://r.example/token"'])
def test_credentials_are_not_sent_over_plain_http_unless_that_is_allowed(challenge: str) -> None:
    refused = fail(resolving(ALICE, registry=PLAIN), denied(challenge))
    assert refused.reason is Reason.UNAUTHORIZED
    reply = () if "Basic" in challenge else ("t0ken",)
    play(resolving(ALICE, registry=TRUSTED_PLAIN), denied(challenge), *reply, found())


def test_a_plain_registry_may_send_us_to_a_token_server_with_tls() -> None:
    play(resolving(ALICE, registry=PLAIN), denied(), "t0ken", found())


def test_an_anonymous_token_may_come_over_the_plain_http_of_a_listed_registry() -> None:
    play(resolving(registry=PLAIN), realm("http://r.example/token"), "t0ken", found())


# Tokens


def login(url: str = "https://r.example/token", **changes: Any) -> Login:
    values: dict[str, Any] = {"service": "r", "credential": None}
    return Login(REGISTRY, URL(url), scope="repository:acme/app:pull", **(values | changes))


def token(**answer: Any) -> Response:
    return response(200, json.dumps(answer).encode())


def test_a_token_is_asked_for_with_encoded_parameters() -> None:
    (request,), got = play(
        fetch_token(login("https://r.example/t?a=b%26c", service="x&scope=evil y")),
        token(token="t0ken", expires_in=300),
    )
    assert isinstance(request, Request)
    assert list(request.url.query.items()) == [
        ("a", "b&c"),
        ("service", "x&scope=evil y"),
        ("scope", "repository:acme/app:pull"),
    ]
    assert authorization(request) is None
    assert not request.derived
    assert (got.value, got.lifetime) == ("t0ken", 290)


def test_a_service_that_was_not_named_is_not_sent() -> None:
    (request,), _ = play(fetch_token(login(service=None)), token(token="t"))
    assert isinstance(request, Request)
    assert "service" not in request.url.query


def test_a_token_server_elsewhere_is_a_derived_place() -> None:
    (request,), _ = play(fetch_token(login("https://auth.example/")), token(token="t"))
    assert isinstance(request, Request)
    assert request.derived


def test_the_login_goes_to_the_token_server() -> None:
    (request,), _ = play(fetch_token(login(credential=ALICE)), token(token="t"))
    assert authorization(request) == ALICE_BASIC


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ({"access_token": "a", "token": "b"}, "a"),
        ({"access_token": "", "token": "b"}, "b"),
        ({"token": "b"}, "b"),
        ({"token": "b" * 8192}, "b" * 8192),
    ],
)
def test_an_access_token_comes_first(answer: dict[str, Any], value: str) -> None:
    assert play(fetch_token(login()), token(**answer))[1].value == value


@pytest.mark.parametrize(
    ("expires_in", "lifetime"),
    [
        (None, 54),
        (0, 54),
        (-1, 54),
        ("x", 54),
        ([], 54),
        ("inf", 54),
        ("nan", 54),
        (59, 54),
        ("300", 290),
        (300.5, 290.5),
        (80, 72),
        (10**9, 12 * 3600 - 10),
    ],
)
def test_a_token_lives_for_a_sensible_time(expires_in: Any, lifetime: float) -> None:
    got = play(fetch_token(login()), token(token="t", expires_in=expires_in))[1]
    assert got.lifetime == pytest.approx(lifetime)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"token": ""},
        {"token": 7},
        {"token": "a\r\nX: y"},
        {"token": "a b"},
        {"token": "ä"},
        {"token": "x" * 8193},
    ],
)
def test_a_token_that_does_not_fit_into_a_header_is_refused(answer: dict[str, Any]) -> None:
    assert fail(fetch_token(login()), token(**answer)).reason is Reason.BAD_ANSWER


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, Reason.UNAUTHORIZED),
        (403, Reason.UNAUTHORIZED),
        (429, Reason.RATE_LIMITED),
        (503, Reason.UNREACHABLE),
        (302, Reason.BAD_ANSWER),
    ],
)
def test_the_token_server_may_refuse_and_is_not_followed(status: int, reason: Reason) -> None:
    answer = response(status, location="https://evil.example/")
    assert fail(fetch_token(login()), answer).reason is reason


# What is shown


def test_nothing_that_is_printed_holds_a_secret() -> None:
    steps, _ = play(resolving(ALICE), denied(), "s3cr3t", found())
    got = play(fetch_token(login(credential=ALICE)), token(token="s3cr3t"))[1]
    printed = f"{steps} {got} {Login(REGISTRY, URL(), None, '', ALICE, refused='s3cr3t')}"
    assert "s3cr3t" not in printed
    assert ALICE_BASIC not in printed


HEADERS = st.tuples(
    st.sampled_from(["location", "www-authenticate", "docker-content-digest", "content-type"]),
    st.sampled_from([OCI_IMAGE, OCI_INDEX, BEARER, "Basic", str(DIGEST), "/x"]) | st.text(),
)
REPLIES = st.builds(
    Response,
    st.sampled_from([200, 204, 301, 307, 400, 401, 403, 404, 405, 429, 500, 501]),
    st.lists(HEADERS, max_size=4).map(tuple),
    st.binary(max_size=20) | st.sampled_from([json.dumps(IMAGE).encode(), b"{}", b"[]"]),
)


@settings(max_examples=50)
@given(st.lists(REPLIES, min_size=60, max_size=60))
def test_every_conversation_ends_with_a_digest_or_a_reason(replies: list[Response]) -> None:
    assert isinstance(outcome(resolving(ALICE, BOB), replies), Digest | Reason)


def outcome(flow: Flow[Digest], replies: list[Response]) -> Digest | Reason | None:
    step: Step = next(flow)
    try:
        for reply in replies:
            step = flow.send("t0ken" if isinstance(step, Login) else reply)
    except StopIteration as end:
        digest: Digest = end.value
        return digest
    except Failure as failure:
        return failure.reason
    return None
