"""Logging in: where a registry has its tokens from, and how one is asked for, without I/O.

(distribution/distribution: docs/content/spec/auth, token and oauth)
"""

import base64
import math
import re
from collections.abc import Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urlencode

from yarl import URL

from tagpin.errors import Reason
from tagpin.keychain import Credential
from tagpin.registry.challenge import Challenge
from tagpin.registry.flow import (
    Failure,
    Flow,
    Login,
    Registry,
    Request,
    Response,
    Token,
    check_place,
    json_object,
    refusal,
    url_in,
)

MAX_TOKEN_ANSWER = 64 * 1024
MAX_TOKEN = 8 * 1024
"""Characters: it must fit into a header, and servers take no longer ones."""
MIN_TOKEN_LIFETIME = 60.0
MAX_TOKEN_LIFETIME = 12 * 3600.0
MAX_TOKEN_AGE = 300.0
"""Seconds before its arrival that a token is believed to have been issued."""

_NO_IDENTITY_TOKENS = frozenset({400, 401, 404, 405})
"""What token servers say to a POST that they don't know, or not with this token."""

_REALM_HOSTS = {
    "registry-1.docker.io": "auth.docker.io",
    "ghcr.io": None,
    "quay.io": None,
    "public.ecr.aws": None,
    "gcr.io": None,
    "*.gcr.io": None,
    "*.pkg.dev": None,
    "*.azurecr.io": None,
    "*.azurecr.cn": None,
    "*.azurecr.us": None,
}
"""Host of a registry → host of its realm, None for the same. Another is no mistake of theirs."""

_NOT_THE_REALMS = ("scope", "offline_token", "access_type")
"""Parameters of which a realm's own query has no say: it is we who know what we want."""


def fetch_token(login: Login) -> Flow[Token]:
    """Get a bearer token from the realm, with the credential of `login` where it has one.

    A token server that gives none to this credential refuses it; of the image that says nothing.
    """
    *first, last = _requests(login)
    for request in first:
        response: Response = yield request
        if response.status == HTTPStatus.OK:
            return _parse_token(response)
        failure = _refusal(response, login)
        if failure.reason.is_outage or response.status not in _NO_IDENTITY_TOKENS:
            raise failure
    response = yield last
    if response.status != HTTPStatus.OK:
        raise _refusal(response, login)
    return _parse_token(response)


def realm_of(challenge: Challenge, registry: Registry) -> URL:
    """The token server that a registry names, if it may name this one; raise Failure."""
    text = challenge.parameters.get("realm", "")
    realm = url_in(text, "the realm")
    if realm.raw_fragment:
        raise Failure(Reason.BAD_ANSWER, "the realm has a fragment")
    if ".." in re.split(r"[/\\]", unquote(text.partition("?")[0])):  # URL() has resolved them
        raise Failure(Reason.BAD_ANSWER, "the realm has a way back in its path")
    check_place(realm, registry.origin.scheme, "the realm")
    if not registry.allows_tokens_of(realm):
        _check_pair(_host(registry.origin), _host(realm), strict=registry.strict)
    return realm


def basic(credential: Credential) -> str:
    """The value of an Authorization header (RFC 7617 §2)."""
    pair = f"{credential.username}:{credential.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def _check_pair(registry: str, realm: str, *, strict: bool) -> None:
    """Refuse a token server that a registry is known not to have; any foreign one if `strict`."""
    for pattern, host in _REALM_HOSTS.items():
        if fnmatchcase(registry, pattern):
            if realm != (host or registry):
                raise Failure(Reason.BAD_ANSWER, f"the realm {realm} is not that of {pattern}")
            return
    if strict and realm != registry:
        raise Failure(Reason.BAD_ANSWER, f"the realm {realm} is foreign, and was not allowed")


def _host(url: URL) -> str:
    return (url.raw_host or "").rstrip(".")


def _requests(login: Login) -> Iterator[Request]:
    """The ways to ask for a token, the next of which is for servers that don't know the first.

    An identity token is posted. Some servers take it only as a password: GCR said 404 to a POST,
    Artifactory 401, Harbor 405. (containerd: core/remotes/docker/authorizer.go)
    """
    credential = login.credential
    parameters = {} if login.service is None else {"service": login.service}
    parameters["scope"] = login.scope
    realm = login.realm.without_query_params(*parameters, *_NOT_THE_REALMS)
    if credential is not None and credential.identity_token:
        form = parameters | {
            "grant_type": "refresh_token",
            "refresh_token": credential.identity_token,
            "client_id": "tagpin",
        }
        yield Request(
            "POST",
            realm,
            {"Content-Type": "application/x-www-form-urlencoded"},
            MAX_TOKEN_ANSWER,
            login.derived,
            urlencode(form, errors="replace").encode(),
        )
        if not credential.username and not credential.password:
            return
        if not credential.password:
            credential = Credential(credential.username, credential.identity_token)
    headers = {} if credential is None else {"Authorization": basic(credential)}
    url = realm.extend_query(parameters)
    yield Request("GET", url, headers, MAX_TOKEN_ANSWER, login.derived)


def _refusal(response: Response, login: Login) -> Failure:
    failure = refusal(response, f"the token server {login.realm.host}")
    is_denial = HTTPStatus.BAD_REQUEST <= response.status < HTTPStatus.INTERNAL_SERVER_ERROR
    if is_denial and not failure.reason.is_outage:
        return Failure(Reason.UNAUTHORIZED, str(failure))
    return failure


def _parse_token(response: Response) -> Token:
    """The token in a token server's answer, renewed a little before it ends."""
    what = "the token server's answer"
    answer = json_object(response.content(MAX_TOKEN_ANSWER, what), what)
    value = answer.get("access_token") or answer.get("token")
    if not isinstance(value, str) or not re.fullmatch(rf"[\x21-\x7e]{{1,{MAX_TOKEN}}}", value):
        raise Failure(Reason.BAD_ANSWER, "the token server gave no usable token")
    seconds = _seconds(answer.get("expires_in"), _age(answer.get("issued_at"), response))
    return Token(value, seconds - min(10.0, seconds / 10))


def _seconds(expires_in: Any, age: float) -> float:
    """For how long a token of this age serves; one that ends sooner is refused, then replaced."""
    try:
        seconds = float(expires_in) - age
    except (TypeError, ValueError, OverflowError):
        return MIN_TOKEN_LIFETIME
    if not math.isfinite(seconds):
        return MIN_TOKEN_LIFETIME
    return min(max(seconds, MIN_TOKEN_LIFETIME), MAX_TOKEN_LIFETIME)


def _age(issued_at: Any, response: Response) -> float:
    """Seconds since a token was issued, by the clock of who issued it; 0 where that is unlikely.

    Token servers may keep a token for the next one who asks.
    """
    try:
        issued = datetime.fromisoformat(issued_at)
        now = parsedate_to_datetime(response.values("date")[0])
        age = (now - issued).total_seconds()
    except (LookupError, TypeError, ValueError, OverflowError):
        return 0.0
    return age if 0 <= age <= MAX_TOKEN_AGE else 0.0
