"""Conversations about a tag, played without a server or an event loop."""

from collections.abc import Sequence

import pytest
from yarl import URL

from fakes.conversation import (
    ALICE,
    APP,
    BEARER,
    BOB,
    DIGEST,
    DOCKER_IMAGE,
    DOCKER_LIST,
    IMAGE,
    INDEX,
    OCI_IMAGE,
    OCI_INDEX,
    REGISTRY,
    SCHEMA_1,
    Reply,
    Step,
    authorization,
    basic,
    denied,
    errors,
    fail,
    found,
    manifest,
    methods,
    play,
    response,
    url,
)
from tagpin.errors import Reason
from tagpin.keychain import Candidate, Credential, Identity
from tagpin.reference import Digest, Reference
from tagpin.registry.conversation import resolve_tag
from tagpin.registry.flow import Failure, Flow, Login, Obtain, Registry, Request, Response
from tagpin.registry.manifest import Oddity

PLAIN = Registry("r.example", URL("http://r.example"), listed=True)
TRUSTED_PLAIN = Registry(
    "r.example", URL("http://r.example"), listed=True, credentials_over_http=True
)
CLOUD = Identity("ecr", "r.example")
BY_TOKEN = Credential("", "", identity_token="r3fresh")
BASIC = 'Basic realm="x"'

NO_DIGEST = response(200, content_type=OCI_IMAGE)
NOT_FOUND = response(404)
GOT = manifest(IMAGE)


def resolving(*candidates: Candidate, registry: Registry = REGISTRY) -> Flow[Digest]:
    return resolve_tag(registry, APP, candidates)


def at(origin: str, image: str, *candidates: Candidate) -> Flow[Digest]:
    """A conversation about an image at the registry that has it."""
    ref = Reference.parse(image)
    return resolve_tag(Registry(ref.domain, URL(origin)), ref, candidates)


def realm(text: str, **parameters: str) -> Response:
    more = "".join(f',{name}="{value}"' for name, value in parameters.items())
    return denied(f'Bearer realm="{text}"{more}')


def logins(steps: Sequence[Step]) -> list[Login]:
    return [step for step in steps if isinstance(step, Login)]


# HEAD, then GET


def test_a_head_with_a_digest_is_enough() -> None:
    (request,), digest = play(resolving(), found())
    assert digest == DIGEST
    assert methods([request]) == ["HEAD"]
    assert url(request) == "https://r.example/v2/acme/app/manifests/v1"
    assert isinstance(request, Request)
    accepted = f"{OCI_INDEX}, {DOCKER_LIST}, {OCI_IMAGE}, {DOCKER_IMAGE}"
    assert request.headers == {"Accept": accepted}


UNSETTLED = {
    "no digest": NO_DIGEST,
    "garbled digest": found("sha256:xyz"),
    "repeated digest": response(
        200, docker_content_digest=[str(DIGEST)] * 2, content_type=OCI_IMAGE
    ),
    "another media type": found(content_type="application/octet-stream"),
    "no media type": response(200, docker_content_digest=str(DIGEST)),
} | {
    f"status {status}": response(status)
    for status in (204, 304, 400, 403, 404, 405, 406, 410, 416, 500, 501)
}


@pytest.mark.parametrize("head", UNSETTLED.values(), ids=UNSETTLED)
def test_where_head_does_not_settle_it_the_bytes_are_hashed(head: Response) -> None:
    steps, digest = play(resolving(), head, GOT)
    assert methods(steps) == ["HEAD", "GET"]
    assert url(steps[0]) == url(steps[1])
    assert digest == play(resolving(), NO_DIGEST, GOT)[1]


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (408, Reason.TIMEOUT),
        (429, Reason.RATE_LIMITED),
        (499, Reason.UNREACHABLE),
        (502, Reason.UNREACHABLE),
        (503, Reason.UNREACHABLE),
        (504, Reason.UNREACHABLE),
        (522, Reason.UNREACHABLE),
        (599, Reason.UNREACHABLE),
    ],
)
def test_an_outage_is_not_asked_twice(status: int, reason: Reason) -> None:
    failure = fail(resolving(), response(status))
    assert failure.reason is reason
    assert failure.reason.is_outage


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (204, Reason.BAD_ANSWER),
        (400, Reason.BAD_ANSWER),
        (403, Reason.UNAUTHORIZED),
        (404, Reason.NOT_FOUND),
        (405, Reason.BAD_ANSWER),
        (418, Reason.BAD_ANSWER),
        (500, Reason.UNREACHABLE),
        (501, Reason.UNREACHABLE),
    ],
)
def test_the_answer_to_get_is_the_final_one(status: int, reason: Reason) -> None:
    assert fail(resolving(), response(status), response(status)).reason is reason


def test_a_head_may_be_trusted_where_it_says_that_the_image_is_absent() -> None:
    trusted = Registry("r.example", REGISTRY.origin, get_after_404=False)
    assert fail(resolving(registry=trusted), NOT_FOUND).reason is Reason.NOT_FOUND
    steps, _ = play(resolving(registry=trusted), response(405), GOT)
    assert methods(steps) == ["HEAD", "GET"]


def test_the_body_of_an_error_says_whether_it_passes() -> None:
    for status in (400, 403, 404, 405):
        busy = fail(resolving(), response(status), errors(status, "TOOMANYREQUESTS"))
        assert busy.reason is Reason.RATE_LIMITED
    invalid = fail(resolving(), response(400), errors(400, "NAME_INVALID"))
    assert invalid.reason is Reason.BAD_ANSWER


def test_a_denial_that_poses_as_absence_is_a_denial() -> None:
    assert fail(resolving(), NOT_FOUND, errors(404, "DENIED")).reason is Reason.UNAUTHORIZED


# Oddities


def remarks(*replies: Reply, strict: bool = False) -> list[Oddity]:
    said: list[Oddity] = []
    registry = Registry("r.example", REGISTRY.origin, strict=strict)
    flow = resolve_tag(registry, APP, (), said.append)
    if strict:
        assert fail(flow, *replies).reason is Reason.BAD_ANSWER
    else:
        play(flow, *replies)
    return said


def test_what_a_registry_does_as_it_should_is_not_remarked_on() -> None:
    assert remarks(found()) == []
    assert remarks(NO_DIGEST, GOT) == []


def test_a_malformed_digest_is_remarked_on_once() -> None:
    garbled = manifest(IMAGE, docker_content_digest="latest")
    assert remarks(found("latest"), garbled) == [Oddity.DIGEST_MALFORMED]


def test_a_digest_of_other_bytes_is_remarked_on_and_refused_by_who_is_strict() -> None:
    wrong = manifest(IMAGE, docker_content_digest=str(DIGEST))
    assert remarks(NO_DIGEST, wrong) == [Oddity.DIGEST_MISMATCH]
    assert remarks(NO_DIGEST, wrong, strict=True) == [Oddity.DIGEST_MISMATCH]


# Logging in


def test_nothing_is_said_about_us_before_we_are_asked() -> None:
    for candidate in (ALICE, BY_TOKEN, CLOUD):
        steps, _ = play(resolving(candidate), NO_DIGEST, GOT)
        assert [authorization(step) for step in steps] == [None, None]


@pytest.mark.parametrize(
    "scope",
    [
        "repository:acme/app:pull",
        "repository:acme/*:*",
        "repository:victim/app:push",
        "registry:catalog:*",
        "aws",
        None,
    ],
)
def test_a_token_is_for_pulling_this_repository_whatever_the_challenge_wants(
    scope: str | None,
) -> None:
    challenge = 'Bearer realm="https://r.example/token",service="r"'
    challenge += f',scope="{scope}"' if scope else ""
    steps, digest = play(resolving(ALICE), denied(challenge), "t0ken", found())
    assert digest == DIGEST
    assert steps[1] == Login(
        REGISTRY, URL("https://r.example/token"), "r", "repository:acme/app:pull", ALICE
    )
    assert authorization(steps[2]) == "Bearer t0ken"


def test_without_candidates_the_token_is_anonymous() -> None:
    steps, _ = play(resolving(), denied(), "t0ken", found())
    assert [login.credential for login in logins(steps)] == [None]


def test_a_service_that_was_not_named_is_not_invented() -> None:
    steps, _ = play(resolving(), realm("https://r.example/token"), "t0ken", found())
    assert [login.service for login in logins(steps)] == [None]


def test_a_basic_challenge_is_answered_once() -> None:
    steps, _ = play(resolving(ALICE), denied(BASIC), found())
    assert authorization(steps[1]) == basic(ALICE)
    refused = fail(resolving(ALICE), *[denied(BASIC)] * 3)
    assert refused.reason is Reason.UNAUTHORIZED


def test_whoever_has_no_credentials_for_a_basic_challenge_stops() -> None:
    assert fail(resolving(), denied(BASIC)).reason is Reason.UNAUTHORIZED


def test_an_identity_token_is_no_password() -> None:
    assert fail(resolving(BY_TOKEN), denied(BASIC)).reason is Reason.UNAUTHORIZED
    assert fail(resolving(BY_TOKEN), response(401)).reason is Reason.UNAUTHORIZED
    named = Credential("alice", "", identity_token="r3fresh")
    assert fail(resolving(named), denied(BASIC)).reason is Reason.UNAUTHORIZED


def test_whoever_has_a_password_besides_an_identity_token_sends_that() -> None:
    both = Credential("alice", "a", identity_token="r3fresh")
    steps, _ = play(resolving(both), denied(BASIC), found())
    assert authorization(steps[1]) == basic(ALICE)


def test_an_identity_token_logs_in_for_a_bearer_token() -> None:
    steps, _ = play(resolving(BY_TOKEN), denied(), "t0ken", found())
    assert [login.credential for login in logins(steps)] == [BY_TOKEN]


def test_get_uses_the_login_of_head() -> None:
    steps, _ = play(resolving(ALICE), denied(), "t0ken", NO_DIGEST, GOT)
    assert methods(steps) == ["HEAD", "login", "HEAD", "GET"]
    assert authorization(steps[3]) == "Bearer t0ken"


@pytest.mark.parametrize("head", [NOT_FOUND, response(405), NO_DIGEST])
def test_a_challenge_may_come_to_get_alone(head: Response) -> None:
    steps, _ = play(resolving(ALICE), head, denied(), "t0ken", GOT)
    assert methods(steps) == ["HEAD", "GET", "login", "GET"]


def test_a_head_that_is_still_refused_after_the_login_is_followed_by_one_get() -> None:
    steps, _ = play(resolving(ALICE), denied(BASIC), denied(BASIC), GOT)
    assert methods(steps) == ["HEAD", "HEAD", "GET"]
    assert authorization(steps[2]) == basic(ALICE)


# Tokens that are refused


@pytest.mark.parametrize("error", ["", ',error="invalid_token"', ',error="insufficient_scope"'])
def test_a_token_that_is_refused_is_replaced_once(error: str) -> None:
    refused = denied(BEARER + error)
    steps, _ = play(resolving(ALICE), denied(), "old", refused, "new", found())
    assert methods(steps) == ["HEAD", "login", "HEAD", "login", "HEAD"]
    assert [login.refused for login in logins(steps)] == [None, "old"]
    assert authorization(steps[4]) == "Bearer new"


@pytest.mark.parametrize("error", ["", ',error="invalid_token"', ',error="insufficient_scope"'])
def test_logging_in_ends_after_two_rounds(error: str) -> None:
    refused = denied(BEARER + error)
    failure = fail(resolving(ALICE), denied(), "old", refused, "new", refused, refused)
    assert failure.reason is Reason.UNAUTHORIZED


def test_a_scope_that_was_not_enough_is_asked_for_again_and_not_widened() -> None:
    wider = denied(
        'Bearer realm="https://r.example/token",service="r",'
        'scope="repository:acme/app:pull,push",error="insufficient_scope"'
    )
    steps, _ = play(resolving(ALICE), denied(), "old", wider, "new", found())
    assert {login.scope for login in logins(steps)} == {"repository:acme/app:pull"}


def test_a_token_that_is_given_again_is_not_sent_again() -> None:
    failure = fail(resolving(ALICE), denied(), "same", denied(), "same", denied())
    assert failure.reason is Reason.UNAUTHORIZED


def test_a_second_challenge_may_name_another_token_server() -> None:
    other = realm("https://r.example/other")
    steps, _ = play(resolving(ALICE), denied(), "old", other, "new", found())
    assert [login.realm.path for login in logins(steps)] == ["/token", "/other"]


def test_whoever_has_a_token_sends_no_password_for_a_later_challenge() -> None:
    steps: list[Reply] = [denied(), "t0ken", denied(BASIC), denied(BASIC)]
    assert fail(resolving(ALICE), *steps).reason is Reason.UNAUTHORIZED


# 401 without a challenge


def test_a_bare_401_is_taken_for_basic_where_we_have_credentials_and_tls() -> None:
    steps, _ = play(resolving(ALICE), response(401), found())
    assert authorization(steps[1]) == basic(ALICE)
    assert fail(resolving(), response(401)).reason is Reason.UNAUTHORIZED
    plain = resolving(ALICE, registry=TRUSTED_PLAIN)
    assert fail(plain, response(401)).reason is Reason.UNAUTHORIZED


def test_a_bare_401_to_a_password_is_final() -> None:
    assert fail(resolving(ALICE), *[response(401)] * 3).reason is Reason.UNAUTHORIZED


def test_a_bare_401_to_a_token_gets_another_token_not_a_password() -> None:
    steps, _ = play(resolving(ALICE), denied(), "old", response(401), "new", found())
    assert methods(steps) == ["HEAD", "login", "HEAD", "login", "HEAD"]
    assert logins(steps)[1].refused == "old"
    bare = [response(401)] * 2
    assert fail(resolving(ALICE), denied(), "old", response(401), "new", *bare)


# Several challenges


@pytest.mark.parametrize(
    "challenges",
    [
        [f"{BASIC}, {BEARER}"],
        [f"{BEARER}, {BASIC}"],
        [BASIC, BEARER],
        [BEARER, BASIC],
        [f"Negotiate, {BASIC}", f"Digest realm=x, {BEARER}"],
    ],
)
def test_a_token_is_preferred_to_a_password(challenges: list[str]) -> None:
    either = response(401, www_authenticate=challenges)
    for candidates in ((), (ALICE,)):
        steps, _ = play(resolving(*candidates), either, "t0ken", found())
        assert methods(steps) == ["HEAD", "login", "HEAD"]


def test_the_first_of_two_token_servers_is_taken() -> None:
    both = response(401, www_authenticate=[BEARER, 'Bearer realm="https://r.example/other"'])
    steps, _ = play(resolving(), both, "t0ken", found())
    assert logins(steps)[0].realm == URL("https://r.example/token")


@pytest.mark.parametrize(
    "text", ["http://r.example/token", "https://u@r.example/token", "/token", ""]
)
def test_whoever_names_a_bad_token_server_gets_no_password_instead(text: str) -> None:
    either = response(401, www_authenticate=[f'Bearer realm="{text}"', BASIC])
    assert fail(resolving(ALICE), either).reason is Reason.BAD_ANSWER


def test_schemes_that_we_do_not_know_are_a_closed_door() -> None:
    challenge = response(401, www_authenticate=["Negotiate", "Digest realm=x"])
    assert fail(resolving(ALICE), challenge).reason is Reason.UNAUTHORIZED


@pytest.mark.parametrize("header", ['Bearer realm="x', f"{BASIC} charset=x", "<html>"])
def test_a_malformed_challenge_is_a_bad_answer(header: str) -> None:
    assert fail(resolving(ALICE), denied(header)).reason is Reason.BAD_ANSWER
    spoiled = response(401, www_authenticate=[BEARER, header])
    assert fail(resolving(ALICE), spoiled).reason is Reason.BAD_ANSWER


# Candidates


WRONG_PASSWORD = Failure(Reason.UNAUTHORIZED, "")


def test_the_second_secret_opens_what_the_first_cannot() -> None:
    steps, digest = play(resolving(ALICE, BOB), denied(), WRONG_PASSWORD, "bobs", found())
    assert digest == DIGEST
    assert methods(steps) == ["HEAD", "login", "login", "HEAD"]
    assert [login.credential for login in logins(steps)] == [ALICE, BOB]


def test_the_second_password_is_tried_where_the_first_is_wrong() -> None:
    steps, digest = play(resolving(ALICE, BOB), *[denied(BASIC)] * 3, found())
    assert digest == DIGEST
    assert [authorization(step) for step in steps] == [None, *[basic(ALICE)] * 2, basic(BOB)]


@pytest.mark.parametrize(
    "denial",
    [response(401), response(403), response(404), errors(404, "DENIED"), errors(400, "DENIED")],
    ids=["401", "403", "404", "404 DENIED", "400 DENIED"],
)
def test_the_second_secret_is_tried_where_the_first_is_denied(denial: Response) -> None:
    denials = [response(403), denial] if denial.status != 401 else [denied(BASIC), denial]
    flow = resolving(ALICE, BOB)
    steps, digest = play(flow, denied(BASIC), *denials, found())
    assert digest == DIGEST
    assert authorization(steps[-1]) == basic(BOB)


def test_the_search_ends_with_the_first_who_is_let_in() -> None:
    steps, _ = play(resolving(ALICE, BOB), denied(), "alices", found())
    assert [login.credential for login in logins(steps)] == [ALICE]


def test_an_image_is_absent_only_if_every_candidate_says_so() -> None:
    absent = fail(resolving(ALICE, BOB), denied(), "a", *[NOT_FOUND] * 2, "b", *[NOT_FOUND] * 2)
    assert absent.reason is Reason.NOT_FOUND
    for first, second in ((NOT_FOUND, response(403)), (response(403), NOT_FOUND)):
        flow = resolving(ALICE, BOB)
        unclear = fail(flow, denied(), "a", *[first] * 2, "b", *[second] * 2)
        assert unclear.reason is Reason.UNAUTHORIZED


def test_candidates_are_not_tried_where_nobody_asked_for_them() -> None:
    assert fail(resolving(ALICE, BOB), NOT_FOUND, NOT_FOUND).reason is Reason.NOT_FOUND


@pytest.mark.parametrize("reason", [Reason.UNREACHABLE, Reason.TIMEOUT, Reason.RATE_LIMITED])
def test_an_outage_ends_the_search_among_candidates(reason: Reason) -> None:
    outage = Failure(reason, "")
    assert fail(resolving(ALICE, BOB), denied(), outage) is outage


def test_an_error_that_passes_is_no_denial() -> None:
    busy = errors(403, "TOOMANYREQUESTS")
    failure = fail(resolving(ALICE, BOB), denied(), "alices", response(403), busy)
    assert failure.reason is Reason.RATE_LIMITED


def test_where_all_candidates_fail_nobody_goes_anonymously() -> None:
    assert fail(resolving(ALICE), denied(), WRONG_PASSWORD).reason is Reason.UNAUTHORIZED


def test_who_cannot_answer_basic_makes_way_for_who_can() -> None:
    steps, _ = play(resolving(BY_TOKEN, ALICE), denied(BASIC), found())
    assert authorization(steps[1]) == basic(ALICE)


# Identities


def test_an_identity_is_asked_for_its_credential_only_when_the_registry_asks() -> None:
    steps, _ = play(resolving(CLOUD), found())
    assert methods(steps) == ["HEAD"]
    steps, _ = play(resolving(CLOUD), denied(), ALICE, "t0ken", found())
    assert methods(steps) == ["HEAD", "obtain", "login", "HEAD"]
    assert steps[1] == Obtain(REGISTRY, CLOUD)
    assert logins(steps)[0].credential == ALICE


def test_an_identity_answers_basic_and_bare_challenges() -> None:
    for challenge in (denied(BASIC), response(401)):
        steps, _ = play(resolving(CLOUD), challenge, ALICE, found())
        assert authorization(steps[2]) == basic(ALICE)


def test_an_identity_stands_back_where_a_secret_opens() -> None:
    steps, _ = play(resolving(ALICE, CLOUD), denied(), "t0ken", found())
    assert "obtain" not in methods(steps)


@pytest.mark.parametrize("reason", [Reason.UNAUTHORIZED, Reason.UNREACHABLE, Reason.TIMEOUT])
def test_an_identity_without_a_credential_makes_way_for_the_next_candidate(reason: Reason) -> None:
    steps, digest = play(resolving(CLOUD, ALICE), denied(), Failure(reason, ""), "t", found())
    assert digest == DIGEST
    assert methods(steps) == ["HEAD", "obtain", "login", "HEAD"]


@pytest.mark.parametrize("reason", [Reason.UNAUTHORIZED, Reason.UNREACHABLE])
def test_what_an_identity_could_not_see_is_not_absent(reason: Reason) -> None:
    nothing = Failure(reason, "")
    assert fail(resolving(CLOUD), denied(), nothing) is nothing
    flow = resolving(CLOUD, ALICE)
    assert fail(flow, denied(), nothing, "t0ken", *[NOT_FOUND] * 2) is nothing
    flow = resolving(ALICE, CLOUD)
    assert fail(flow, denied(), "t0ken", *[NOT_FOUND] * 2, nothing) is nothing


def test_a_token_of_an_identity_that_is_refused_is_replaced_with_its_credential_then() -> None:
    flow = resolving(CLOUD)
    steps, _ = play(flow, denied(), ALICE, "old", denied(), BOB, "new", found())
    assert [login.credential for login in logins(steps)] == [ALICE, BOB]


# Redirects


def moved(location: str | list[str], status: int = 307) -> Response:
    return response(status, location=location)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_keeps_the_method(status: int) -> None:
    there = moved("/elsewhere", status)
    steps, digest = play(resolving(), there, NO_DIGEST, there, GOT)
    assert digest != DIGEST
    assert methods(steps) == ["HEAD", "HEAD", "GET", "GET"]
    assert url(steps[1]) == url(steps[3]) == "https://r.example/elsewhere"
    assert isinstance(steps[1], Request)
    assert not steps[1].derived


@pytest.mark.parametrize("status", [300, 304, 305, 306])
def test_not_every_3xx_is_a_redirect(status: int) -> None:
    away = moved("https://evil.example/x", status)
    assert fail(resolving(), away, away).reason is Reason.BAD_ANSWER


def test_a_redirect_may_be_relative_and_its_fragment_goes_nowhere() -> None:
    steps, _ = play(resolving(), moved("../blobs/x?y=z#part"), found())
    assert url(steps[1]) == "https://r.example/v2/acme/app/blobs/x?y=z"


@pytest.mark.parametrize("target", ["/elsewhere", "https://r.example:443/x", "https://R.example/x"])
def test_credentials_stay_on_the_way_within_the_registry(target: str) -> None:
    steps, _ = play(resolving(ALICE), denied(), "t0ken", moved(target), found())
    last = steps[-1]
    assert isinstance(last, Request)
    assert authorization(last) == "Bearer t0ken"
    assert not last.derived


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/x",
        "https://r.example:444/x",
        "//evil.example/x",
        "https://r.example.evil.example/x",
        "https://sub.r.example/x",
    ],
)
@pytest.mark.parametrize("login", [(denied(BASIC),), (denied(), "t0ken")], ids=["basic", "bearer"])
def test_credentials_are_never_sent_to_the_host_a_redirect_names(
    target: str, login: tuple[Reply, ...]
) -> None:
    steps, _ = play(resolving(ALICE), *login, moved(target), found())
    last = steps[-1]
    assert isinstance(last, Request)
    assert last.headers.keys() == {"Accept"}
    assert last.derived


def test_credentials_stay_behind_where_a_redirect_changes_the_scheme() -> None:
    flow = resolving(ALICE, registry=TRUSTED_PLAIN)
    steps, _ = play(flow, denied(BASIC), moved("https://r.example/x"), found())
    assert authorization(steps[-1]) is None


def test_credentials_do_not_come_back_with_a_redirect_that_returns() -> None:
    there, back = moved("https://evil.example/x"), moved("https://r.example/v2/other/manifests/v1")
    steps, _ = play(resolving(ALICE), denied(), "t0ken", there, back, found())
    assert [authorization(step) for step in steps[3:]] == [None, None]


@pytest.mark.parametrize("challenge", [BASIC, BEARER, None])
def test_a_401_from_a_redirects_target_is_never_answered(challenge: str | None) -> None:
    refused = denied(challenge) if challenge else response(401)
    away = moved("https://evil.example/x")
    failure = fail(resolving(ALICE), denied(), "t0ken", *[away, refused] * 2)
    assert failure.reason is Reason.UNAUTHORIZED
    assert fail(resolving(ALICE), away, refused).reason is Reason.UNAUTHORIZED


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
        "https://xn--a.example/x",
        "https://169.254.169.254%2e/x",
        "https://localhost%2e/x",
        "https://[fe80::1%25lo]/x",
        "https://a,b.example/x",
        "https://" + "ü." * 300 + "example/x",
        "//" + "a" * 600,
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


# Plain http


@pytest.mark.parametrize("challenge", [BASIC, 'Bearer realm="http://r.example/token"'])
def test_credentials_are_not_sent_over_plain_http_unless_that_is_allowed(challenge: str) -> None:
    for candidate in (ALICE, CLOUD, BY_TOKEN):
        refused = fail(resolving(candidate, registry=PLAIN), denied(challenge))
        assert refused.reason is Reason.UNAUTHORIZED
    reply = () if "Basic" in challenge else ("t0ken",)
    play(resolving(ALICE, registry=TRUSTED_PLAIN), denied(challenge), *reply, found())


def test_a_plain_registry_may_send_us_to_its_token_server_with_tls() -> None:
    play(resolving(ALICE, registry=PLAIN), denied(), "t0ken", found())


def test_whoever_listens_to_plain_http_cannot_have_the_credentials_sent_to_them() -> None:
    foreign = realm("https://evil.example/token")
    refused = fail(resolving(ALICE, registry=PLAIN), foreign)
    assert refused.reason is Reason.UNAUTHORIZED
    named = Registry(
        "r.example", PLAIN.origin, listed=True, token_hosts=("auth.example", "*.corp.example")
    )
    assert fail(resolving(ALICE, registry=named), foreign).reason is Reason.UNAUTHORIZED
    for host in ("auth.example", "login.corp.example"):
        play(resolving(ALICE, registry=named), realm(f"https://{host}/token"), "t0ken", found())
    play(resolving(ALICE, registry=TRUSTED_PLAIN), foreign, "t0ken", found())


def test_an_anonymous_token_may_come_over_the_plain_http_of_a_listed_registry() -> None:
    play(resolving(registry=PLAIN), realm("http://r.example/token"), "t0ken", found())


# Mirrors


MIRROR = Registry(
    "m.example", URL("https://m.example"), listed=True, prefix="proxy/hub", ns="docker.io"
)


def test_a_mirror_is_asked_behind_its_prefix_and_told_whom_it_stands_for() -> None:
    flow = resolve_tag(MIRROR, Reference.parse("nginx:1.25"), (ALICE,))
    steps, _ = play(flow, denied(), "t0ken", NO_DIGEST, GOT)
    place = "https://m.example/v2/proxy/hub/library/nginx/manifests/1.25?ns=docker.io"
    assert [url(step) for step in steps if isinstance(step, Request)] == [place] * 3
    assert logins(steps)[0].scope == "repository:proxy/hub/library/nginx:pull"


def test_whom_a_mirror_stands_for_is_no_other_hosts_business() -> None:
    flow = resolve_tag(MIRROR, APP, ())
    away, within = moved("https://cdn.example/x"), moved("/y")
    steps, _ = play(flow, away, NO_DIGEST, within, GOT)
    assert [url(step).partition("?")[2] for step in steps] == [
        "ns=docker.io",
        "",
        "ns=docker.io",
        "",
    ]


def test_a_registry_that_is_no_mirror_is_told_nothing() -> None:
    steps, _ = play(resolving(), found())
    assert "?" not in url(steps[0])


# Known registries: docs/registries.md names these


HUB = "https://registry-1.docker.io"
HUB_CHALLENGE = realm("https://auth.docker.io/token", service="registry.docker.io")


def test_docker_hub_has_library_images_and_its_tokens_elsewhere() -> None:
    steps, _ = play(at(HUB, "nginx"), HUB_CHALLENGE, "t0ken", found())
    assert url(steps[0]) == f"{HUB}/v2/library/nginx/manifests/latest"
    (login,) = logins(steps)
    assert (str(login.realm), login.service) == (
        "https://auth.docker.io/token",
        "registry.docker.io",
    )
    assert login.scope == "repository:library/nginx:pull"


def test_docker_hub_says_401_to_a_token_where_there_is_no_image() -> None:
    flow = at(HUB, "acme/absent", ALICE)
    refused = denied(
        'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",'
        'scope="repository:acme/absent:pull",error="insufficient_scope"'
    )
    failure = fail(flow, HUB_CHALLENGE, "t0ken", refused, "another", refused, refused)
    assert failure.reason is Reason.UNAUTHORIZED


def test_docker_hub_counts_no_head_as_a_pull() -> None:
    steps, _ = play(at(HUB, "nginx"), HUB_CHALLENGE, "t0ken", found())
    assert methods(steps) == ["HEAD", "login", "HEAD"]


def test_docker_hub_says_429_and_is_left_in_peace() -> None:
    failure = fail(at(HUB, "nginx"), HUB_CHALLENGE, "t0ken", response(429))
    assert failure.reason is Reason.RATE_LIMITED


GHCR = "https://ghcr.io"
GHCR_CHALLENGE = realm("https://ghcr.io/token", service="ghcr.io")


def test_ghcr_gives_nobody_a_token_who_is_anonymous_at_a_private_image() -> None:
    nobody = Failure(Reason.UNAUTHORIZED, "the token server ghcr.io answered 401")
    assert fail(at(GHCR, "ghcr.io/acme/app"), GHCR_CHALLENGE, nobody) is nobody


def test_ghcr_denies_with_403_after_the_login() -> None:
    forbidden = errors(403, "DENIED")
    flow = at(GHCR, "ghcr.io/acme/app", ALICE)
    failure = fail(flow, GHCR_CHALLENGE, "t0ken", response(403), forbidden)
    assert failure.reason is Reason.UNAUTHORIZED


def test_quay_has_robots_and_says_401_where_there_is_no_image() -> None:
    robot = Credential("acme+robot", "p")
    challenge = realm("https://quay.io/v2/auth", service="quay.io")
    flow = at("https://quay.io", "quay.io/acme/app", robot)
    steps, _ = play(flow, challenge, "t0ken", found())
    assert logins(steps)[0].credential == robot
    flow = at("https://quay.io", "quay.io/acme/absent", robot)
    failure = fail(flow, challenge, "a", challenge, "b", challenge, challenge)
    assert failure.reason is Reason.UNAUTHORIZED


ECR = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"


def test_ecr_asks_for_basic_and_may_leave_the_digest_out() -> None:
    flow = at(f"https://{ECR}", f"{ECR}/app:v1", Identity("ecr", ECR))
    challenge = denied(f'Basic realm="https://{ECR}/",service="ecr.amazonaws.com"')
    aws = Credential("AWS", "t0ken")
    steps, _ = play(flow, challenge, aws, NO_DIGEST, GOT)
    assert methods(steps) == ["HEAD", "obtain", "HEAD", "GET"]
    assert authorization(steps[3]) == basic(aws)


def test_ecr_may_ask_without_a_challenge() -> None:
    flow = at(f"https://{ECR}", f"{ECR}/app:v1", Identity("ecr", ECR))
    steps, _ = play(flow, response(401), Credential("AWS", "t0ken"), found())
    assert methods(steps) == ["HEAD", "obtain", "HEAD"]


@pytest.mark.parametrize("candidates", [(), (Credential("AWS", "p"),)])
def test_ecr_public_gets_no_basic_before_it_asks(candidates: tuple[Credential, ...]) -> None:
    flow = at("https://public.ecr.aws", "public.ecr.aws/docker/library/nginx:1", *candidates)
    challenge = realm("https://public.ecr.aws/token/", service="public.ecr.aws", scope="aws")
    steps, digest = play(flow, challenge, "t0ken", NO_DIGEST, GOT)
    assert digest
    sent = [authorization(step) for step in steps if isinstance(step, Request)]
    assert sent == [None, "Bearer t0ken", "Bearer t0ken"]
    assert logins(steps)[0].scope == "repository:docker/library/nginx:pull"


GAR = "europe-docker.pkg.dev"


def test_google_takes_an_access_token_as_a_password_at_its_own_realm() -> None:
    google = Credential("oauth2accesstoken", "ya29")
    flow = at(f"https://{GAR}", f"{GAR}/acme/repo/app:v1", Identity("google", GAR))
    steps, _ = play(flow, realm(f"https://{GAR}/v2/token", service=GAR), google, "t0ken", found())
    assert methods(steps) == ["HEAD", "obtain", "login", "HEAD"]
    (login,) = logins(steps)
    assert (str(login.realm), login.credential) == (f"https://{GAR}/v2/token", google)


def test_google_mixes_403_and_404_for_what_may_not_be_seen() -> None:
    challenge = realm(f"https://{GAR}/v2/token", service=GAR)
    for denial in (response(403), NOT_FOUND):
        flow = at(f"https://{GAR}", f"{GAR}/acme/repo/app:v1", ALICE, BOB)
        assert play(flow, challenge, "alices", *[denial] * 2, "bobs", found())[1] == DIGEST


ACR = "acme.azurecr.io"
ACR_CHALLENGE = realm(f"https://{ACR}/oauth2/token", service=ACR)


def test_acr_has_a_user_of_zeros_with_a_refresh_token_for_a_password() -> None:
    nil = Credential("00000000-0000-0000-0000-000000000000", "r3fresh")
    flow = at(f"https://{ACR}", f"{ACR}/app:v1", Identity("acr", ACR))
    steps, _ = play(flow, ACR_CHALLENGE, nil, "t0ken", found())
    (login,) = logins(steps)
    assert (str(login.realm), login.service) == (f"https://{ACR}/oauth2/token", ACR)
    assert login.credential == nil


def test_acr_logs_in_with_the_identity_token_of_az_acr_login() -> None:
    nil = Credential("00000000-0000-0000-0000-000000000000", "", identity_token="r3fresh")
    flow = at(f"https://{ACR}", f"{ACR}/app:v1", nil)
    steps, _ = play(flow, ACR_CHALLENGE, "t0ken", found())
    assert logins(steps)[0].credential == nil


HARBOR = "harbor.example"
HARBOR_CHALLENGE = realm(f"https://{HARBOR}/service/token", service="harbor-registry")


def test_harbor_gives_a_token_without_access_for_a_wrong_password() -> None:
    flow = at(f"https://{HARBOR}", f"{HARBOR}/acme/app", ALICE, BOB)
    empty: list[Reply] = [
        HARBOR_CHALLENGE,
        "empty",
        HARBOR_CHALLENGE,
        "empty too",
        *[HARBOR_CHALLENGE] * 2,
    ]
    steps, digest = play(flow, *empty, "bobs", found())
    assert digest == DIGEST
    assert [login.credential for login in logins(steps)] == [ALICE, ALICE, BOB]


def test_harbor_has_robots_with_a_dollar() -> None:
    robot = Credential("robot$acme+x", "p")
    flow = at(f"https://{HARBOR}", f"{HARBOR}/acme/app", robot)
    steps, _ = play(flow, HARBOR_CHALLENGE, "t0ken", found())
    assert logins(steps)[0].credential == robot


def test_gitlab_has_its_tokens_from_its_web_host() -> None:
    flow = at("https://registry.gitlab.example", "registry.gitlab.example/acme/app", ALICE)
    challenge = realm("https://gitlab.example/jwt/auth", service="container_registry")
    steps, _ = play(flow, challenge, "t0ken", found())
    (login,) = logins(steps)
    assert str(login.realm) == "https://gitlab.example/jwt/auth"
    assert login.derived


@pytest.mark.parametrize("status", [400, 403])
def test_artifactory_refuses_the_head_of_a_virtual_repository(status: int) -> None:
    host = "acme.jfrog.example"
    flow = at(f"https://{host}", f"{host}/docker/app", ALICE)
    challenge = realm(f"https://{host}/artifactory/api/docker/docker/v2/token", service=host)
    steps, _ = play(flow, challenge, "t0ken", response(status), GOT)
    assert methods(steps) == ["HEAD", "login", "HEAD", "GET"]


def test_artifactory_leaves_the_digest_of_a_remote_repository_out() -> None:
    host = "acme.jfrog.example"
    flow = at(f"https://{host}", f"{host}/docker-remote/app", ALICE)
    challenge = denied('Basic realm="Artifactory Realm"')
    steps, _ = play(flow, challenge, NO_DIGEST, GOT)
    assert methods(steps) == ["HEAD", "HEAD", "GET"]


def test_nexus_says_404_to_the_head_of_a_proxied_image() -> None:
    challenge = denied('BASIC realm="Sonatype Nexus Repository Manager"')
    flow = at("https://nexus.example", "nexus.example/acme/app", ALICE)
    steps, _ = play(flow, challenge, NOT_FOUND, GOT)
    assert methods(steps) == ["HEAD", "HEAD", "GET"]


def test_registry_k8s_io_redirects_to_another_registry() -> None:
    flow = at("https://registry.k8s.io", "registry.k8s.io/pause:3.10")
    away = moved(f"https://{GAR}/v2/k8s-artifacts-prod/images/pause/manifests/3.10", 302)
    steps, digest = play(flow, away, found(content_type=DOCKER_LIST))
    assert digest == DIGEST
    assert methods(steps) == ["HEAD", "HEAD"]


def test_red_hat_sends_schema_1_as_plain_text() -> None:
    host = "registry.access.redhat.com"
    old = manifest({"schemaVersion": 1, "fsLayers": []}, "text/plain")
    flow = at(f"https://{host}", f"{host}/rhel7")
    head = found(content_type="text/plain")
    assert fail(flow, head, old).reason is Reason.UNSUPPORTED
    flow = at(f"https://{host}", f"{host}/rhel7")
    assert fail(flow, found(content_type=SCHEMA_1)).reason is Reason.UNSUPPORTED


def test_static_hosting_knows_neither_digests_nor_media_types() -> None:
    files = manifest(INDEX, "application/octet-stream")
    plain = response(200, content_type="application/octet-stream")
    steps, _ = play(resolving(), plain, files)
    assert methods(steps) == ["HEAD", "GET"]


# A token that the registry has taken before


OLD = "0ld-t0ken"


def recalling(*candidates: Candidate) -> Flow[Digest]:
    """Somebody whose token for this repository is remembered."""
    return resolve_tag(REGISTRY, APP, candidates, recall=lambda _scope, _candidate: OLD)


def test_a_remembered_token_is_sent_at_once() -> None:
    (request,), digest = play(recalling(ALICE), found())
    assert digest == DIGEST
    assert authorization(request) == f"Bearer {OLD}"


def test_what_is_remembered_is_asked_for_by_scope_and_candidate() -> None:
    asked = []

    def recall(scope: str, candidate: Candidate | None) -> None:
        asked.append((scope, candidate))

    play(resolve_tag(REGISTRY, APP, (ALICE,), recall=recall), found())
    play(resolve_tag(REGISTRY, APP, (), recall=recall), found())
    scope = "repository:acme/app:pull"
    assert asked == [(scope, ALICE), (scope, None)]


def test_a_remembered_token_that_is_refused_is_replaced() -> None:
    steps, digest = play(recalling(ALICE), denied(), "new", found())
    assert digest == DIGEST
    assert methods(steps) == ["HEAD", "login", "HEAD"]
    (login,) = logins(steps)
    assert login.refused == OLD
    assert authorization(steps[2]) == "Bearer new"


def test_where_nobody_says_why_it_is_refused_the_question_is_asked_as_at_first() -> None:
    steps, digest = play(recalling(ALICE), response(401), denied(), "new", found())
    assert digest == DIGEST
    assert [authorization(step) for step in (steps[0], steps[1])] == [f"Bearer {OLD}", None]


def test_a_registry_that_wants_passwords_by_now_gets_one() -> None:
    steps, digest = play(recalling(ALICE), denied(BASIC), found())
    assert digest == DIGEST
    assert authorization(steps[1]) == basic(ALICE)


def test_a_remembered_token_is_one_of_two_attempts() -> None:
    failure = fail(recalling(ALICE), denied(), "new", denied(), denied())
    assert failure.reason is Reason.UNAUTHORIZED


def test_a_remembered_token_goes_to_no_other_origin() -> None:
    moved = response(307, location="https://elsewhere.example/x")
    steps, _ = play(recalling(), moved, found())
    assert [authorization(step) for step in steps] == [f"Bearer {OLD}", None]
