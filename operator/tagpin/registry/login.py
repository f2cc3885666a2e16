"""Logging in: where a registry has its tokens from, and how one is asked for, without I/O.

(distribution/distribution: docs/content/spec/auth, token and oauth)
"""

import base64
import math
import re
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import Any

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
)

MAX_TOKEN_ANSWER = 64 * 1024
MAX_TOKEN = 8 * 1024
"""Characters: it must fit into a header, and servers take no longer ones."""
MIN_TOKEN_LIFETIME = 60.0
MAX_TOKEN_LIFETIME = 12 * 3600.0

# Where these registries have their tokens issued; a realm elsewhere is no mistake of theirs.
_REALM_HOSTS = {
    "docker.io": "auth.docker.io",
    "ghcr.io": None,
    "quay.io": None,
    "public.ecr.aws": None,
    "gcr.io": None,
    "*.gcr.io": None,
    "*.pkg.dev": None,
    "*.azurecr.io": None,
}
"""Registry → host of its realm, None for the registry's own."""


def fetch_token(login: Login) -> Flow[Token]:
    """Get a bearer token from the realm, with the credential of `login` where it has one."""
    query = {"service": login.service} if login.service is not None else {}
    url = login.realm.extend_query(query | {"scope": login.scope})
    headers = {} if login.credential is None else {"Authorization": basic(login.credential)}
    derived = url.origin() != login.registry.origin
    response: Response = yield Request("GET", url, headers, MAX_TOKEN_ANSWER, derived)
    if response.status != HTTPStatus.OK:
        raise refusal(response.status, f"the token server {url.host}")
    return _parse_token(response)


def realm_of(challenge: Challenge, registry: Registry) -> URL:
    """The token server that a registry names, if it may name this one."""
    try:
        realm = URL(challenge.parameters.get("realm", ""))
    except ValueError:
        raise Failure(Reason.BAD_ANSWER, "the realm is no URL") from None
    if realm.raw_fragment:
        raise Failure(Reason.BAD_ANSWER, "the realm has a fragment")
    check_place(realm, registry.origin.scheme, "the realm")
    name = registry.name.lower()
    for pattern, host in _REALM_HOSTS.items():
        if fnmatchcase(name, pattern) and realm.host != (host or registry.origin.host):
            raise Failure(Reason.BAD_ANSWER, f"the realm {realm.host} is not that of {pattern}")
    return realm


def basic(credential: Credential) -> str:
    """The value of an Authorization header (RFC 7617 §2)."""
    pair = f"{credential.username}:{credential.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def _parse_token(response: Response) -> Token:
    """The token in a token server's answer, renewed a little before it ends."""
    answer = json_object(response.body, "the token server's answer")
    value = answer.get("access_token") or answer.get("token")
    if not isinstance(value, str) or not re.fullmatch(rf"[\x21-\x7e]{{1,{MAX_TOKEN}}}", value):
        raise Failure(Reason.BAD_ANSWER, "the token server gave no usable token")
    seconds = _seconds(answer.get("expires_in"))
    return Token(value, seconds - min(10.0, seconds / 10))


def _seconds(expires_in: Any) -> float:
    try:
        seconds = float(expires_in)
    except (TypeError, ValueError):
        return MIN_TOKEN_LIFETIME
    if not math.isfinite(seconds):
        return MIN_TOKEN_LIFETIME
    return min(max(seconds, MIN_TOKEN_LIFETIME), MAX_TOKEN_LIFETIME)
