"""What all conversations with a registry have in common."""

import gzip
import zlib
from typing import Any

import pytest
from yarl import URL

from fakes.conversation import ALICE, errors, response
from tagpin.errors import Reason
from tagpin.registry.flow import Failure, Login, Registry, Response, check_place, refusal

# Bodies


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "GZip", "identity, gzip"])
def test_a_body_in_gzip_is_unpacked(coding: str) -> None:
    answer = response(200, gzip.compress(b"text"), content_encoding=coding)
    assert answer.content(4, "it") == b"text"


@pytest.mark.parametrize("coding", ["", "identity"])
def test_a_body_without_an_encoding_is_left_as_it_is(coding: str) -> None:
    packed = gzip.compress(b"text")
    assert response(200, packed, content_encoding=coding).content(4, "it") == packed
    assert response(200, packed).content(4, "it") == packed


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", b"text"),
        ("gzip", b""),
        ("gzip", gzip.compress(b"text")[:-1]),
        ("gzip", gzip.compress(b"text") + b"more"),
        ("gzip", gzip.compress(b"te") + gzip.compress(b"xt")),
        ("gzip", gzip.compress(b"x" * 1001)),
        ("gzip", gzip.compress(bytes(10_000_000))),
        ("gzip", zlib.compress(b"text")),
        ("deflate", zlib.compress(b"text")),
        ("br", b"text"),
        ("gzip, gzip", gzip.compress(gzip.compress(b"text"))),
        (["gzip", "gzip"], gzip.compress(gzip.compress(b"text"))),
    ],
    ids=[
        "no gzip",
        "nothing",
        "cut off",
        "more behind it",
        "two in one",
        "too long",
        "a bomb",
        "zlib",
        "deflate",
        "unknown",
        "twice",
        "twice in two headers",
    ],
)
def test_a_body_that_cannot_be_unpacked_within_its_limit_is_a_bad_answer(
    coding: str | list[str], body: bytes
) -> None:
    with pytest.raises(Failure) as caught:
        response(200, body, content_encoding=coding).content(1000, "it")
    assert caught.value.reason is Reason.BAD_ANSWER


# Refusals


STATUSES = {
    204: Reason.BAD_ANSWER,
    302: Reason.BAD_ANSWER,
    400: Reason.BAD_ANSWER,
    401: Reason.UNAUTHORIZED,
    403: Reason.UNAUTHORIZED,
    404: Reason.NOT_FOUND,
    405: Reason.BAD_ANSWER,
    406: Reason.BAD_ANSWER,
    408: Reason.TIMEOUT,
    418: Reason.BAD_ANSWER,
    429: Reason.RATE_LIMITED,
    499: Reason.UNREACHABLE,
    500: Reason.UNREACHABLE,
    502: Reason.UNREACHABLE,
    503: Reason.UNREACHABLE,
    504: Reason.UNREACHABLE,
    522: Reason.UNREACHABLE,
    599: Reason.UNREACHABLE,
}


@pytest.mark.parametrize(("status", "reason"), STATUSES.items())
def test_every_status_has_a_reason(status: int, reason: Reason) -> None:
    assert refusal(response(status), "r").reason is reason


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 416])
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("TOOMANYREQUESTS", Reason.RATE_LIMITED),
        ("UNAVAILABLE", Reason.UNREACHABLE),
        ("UNKNOWN", Reason.UNREACHABLE),
    ],
)
def test_an_error_that_passes_is_an_outage_whatever_its_status(
    status: int, code: str, reason: Reason
) -> None:
    assert refusal(errors(status, code), "r").reason is reason
    assert refusal(errors(status, code, code), "r").reason is reason


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (400, "NAME_INVALID", Reason.BAD_ANSWER),
        (400, "TAG_INVALID", Reason.BAD_ANSWER),
        (400, "DIGEST_INVALID", Reason.BAD_ANSWER),
        (401, "UNAUTHORIZED", Reason.UNAUTHORIZED),
        (403, "DENIED", Reason.UNAUTHORIZED),
        (404, "MANIFEST_UNKNOWN", Reason.NOT_FOUND),
        (404, "NAME_UNKNOWN", Reason.NOT_FOUND),
    ],
)
def test_an_error_that_stays_is_no_outage(status: int, code: str, reason: Reason) -> None:
    assert refusal(errors(status, code), "r").reason is reason


@pytest.mark.parametrize("code", ["DENIED", "UNAUTHORIZED"])
@pytest.mark.parametrize("status", [400, 404])
def test_a_denial_is_one_whatever_its_status(status: int, code: str) -> None:
    assert refusal(errors(status, code), "r").reason is Reason.UNAUTHORIZED


@pytest.mark.parametrize("code", ["DENIED", "NAME_INVALID", "MANIFEST_UNKNOWN"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_no_body_makes_an_outage_a_final_answer(status: int, code: str) -> None:
    assert refusal(errors(status, code), "r").reason is STATUSES[status]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"null",
        b"[]",
        b"{}",
        b'"errors"',
        b"7",
        *(
            b'{"errors": %s}' % each
            for each in (
                b"null",
                b"7",
                b"{}",
                b"[]",
                b'"UNKNOWN"',
                b'["UNKNOWN"]',
                b"[{}]",
                b'[{"code": 7}]',
                b'[{"code": ["UNKNOWN"]}]',
                b'[{"code": "unknown"}]',
                b'[{"code": "MANIFEST_UNKNOWN"}, {"code": "UNKNOWN"}]',
                b'[{"code": "UNKNOWN"}, {"code": "DENIED"}]',
            )
        ),
        b"[" * 60_000,
        b"\xff\xfe",
    ],
)
def test_where_a_body_is_not_clear_the_status_decides(body: bytes) -> None:
    assert refusal(response(404, body), "r").reason is Reason.NOT_FOUND


def test_nothing_of_a_body_is_in_a_message() -> None:
    for answer in (errors(404, "UNKNOWN"), errors(400, "s3cret"), response(403, b"s3cret")):
        assert str(refusal(answer, "the registry")) == f"the registry answered {answer.status}"


# Places


@pytest.mark.parametrize(
    ("pattern", "host", "matches"),
    [
        ("auth.corp.example", "auth.corp.example", True),
        ("auth.corp.example", "auth.corp.example.", True),
        ("Auth.Corp.Example", "auth.corp.example", True),
        ("*.corp.example", "auth.corp.example", True),
        ("auth-[0-9].corp.example", "auth-1.corp.example", True),
        ("*.corp.example", "corp.example", False),
        ("*.corp.example", "a.auth.corp.example", False),
        ("*.corp.example", "auth.corp.example.evil.example", False),
        ("corp.example", "evilcorp.example", False),
        ("*", "auth.corp.example", False),
        ("[", "auth.corp.example", False),
        ("", "auth.corp.example", False),
    ],
)
def test_token_hosts_are_matched_label_by_label(pattern: str, host: str, *, matches: bool) -> None:
    registry = Registry("r.example", URL("https://r.example"), token_hosts=("x.example", pattern))
    realm = URL.build(scheme="https", host=host, path="/token")
    assert registry.allows_tokens_of(realm) is matches
    assert not Registry("r.example", registry.origin).allows_tokens_of(realm)


@pytest.mark.parametrize(
    ("pattern", "realm", "matches"),
    [
        ("auth.example", "https://auth.example:443/token", True),
        ("auth.example", "https://auth.example:5000/token", True),
        ("auth.example", "http://auth.example/token", False),
        ("*.example", "https://auth.example:22/token", False),
        ("auth.example:22", "https://auth.example:22/token", True),
        ("auth.example:22", "https://auth.example/token", False),
        ("[fd00::1]", "https://auth.example/token", False),
        ("[fd00::1]:22", "https://auth.example:22/token", False),
    ],
)
def test_a_token_host_is_for_the_ports_of_https_and_the_registry_unless_it_names_one(
    pattern: str, realm: str, *, matches: bool
) -> None:
    registry = Registry("r.example:5000", URL("https://r.example:5000"), token_hosts=(pattern,))
    assert registry.allows_tokens_of(URL(realm)) is matches


@pytest.mark.parametrize(
    ("realm", "derived"),
    [
        ("https://r.example/token", False),
        ("https://r.example:444/token", True),
        ("https://auth.example/token", True),
        ("https://r.example:443/token", False),
        ("https://named.example/token", False),
        ("https://named.example:444/token", True),
    ],
)
def test_a_token_server_that_the_operator_named_is_no_derived_place(
    realm: str, *, derived: bool
) -> None:
    registry = Registry("r.example", URL("https://r.example"), token_hosts=("named.example",))
    assert Login(registry, URL(realm), None, "", ALICE).derived is derived


def test_a_host_that_cannot_be_decoded_is_a_bad_answer() -> None:
    with pytest.raises(Failure) as caught:
        check_place(URL("https://xn--a.example/"), "https", "it")
    assert caught.value.reason is Reason.BAD_ANSWER


# What is shown


def test_nothing_that_is_printed_holds_a_secret() -> None:
    secret = "s3cret"
    shown: list[Any] = [
        Login(Registry("r", URL()), URL(), None, "", ALICE, refused=secret),
        Response(200, (("x", secret),), secret.encode()),
    ]
    assert secret not in str(shown)
