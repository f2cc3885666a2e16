"""What conversations with a registry are made of, without I/O.

A flow is a generator. It yields a Request and is sent its Response; it yields a Login and is sent
a bearer token (the driver keeps tokens, and gets a new one by running `login.fetch_token`); it
yields an Obtain and is sent a Credential. It returns its result or raises Failure, and whatever
the driver cannot do it throws in as a Failure too. The flows are in `conversation` and `login`.
"""

import re
import zlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeAlias, TypeVar

import orjson
from yarl import URL

from tagpin.errors import Reason
from tagpin.keychain import Credential, Identity, glob_matches

T = TypeVar("T")

HTTPS_PORT = 443

_REASONS = {
    401: Reason.UNAUTHORIZED,
    403: Reason.UNAUTHORIZED,
    404: Reason.NOT_FOUND,
    408: Reason.TIMEOUT,
    429: Reason.RATE_LIMITED,
    499: Reason.UNREACHABLE,  # a proxy's word for a client that went away
}
_CODES = {
    "TOOMANYREQUESTS": Reason.RATE_LIMITED,
    "UNAVAILABLE": Reason.UNREACHABLE,
    "UNKNOWN": Reason.UNREACHABLE,
    "UNAUTHORIZED": Reason.UNAUTHORIZED,
    "DENIED": Reason.UNAUTHORIZED,
}
"""What the codes in an error's body say better than its status (distribution-spec: Error Codes)."""
MAX_AUTHORITY = 512
"""Characters of user, host and port in a URL: more than any has that leads somewhere."""
MAX_ELEMENTS = 100_000
"""Of a JSON document, about: 4 MiB of a manifest have less, and 4 MiB of `{},` take 100 MiB."""
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")
_GZIP = frozenset({"gzip", "x-gzip"})
_GZIP_WINDOW = 31
"""wbits of zlib: a gzip header, and the largest window."""


class Failure(Exception):
    """A conversation that ended without a result, for the eyes of the operator.

    It names no image, since several may share it, and holds no body, query string or secret.
    `concealed` says that an address was involved of which strangers must learn nothing.
    """

    def __init__(self, reason: Reason, detail: str, *, concealed: bool = False) -> None:
        super().__init__(detail)
        self.reason = reason
        self.concealed = concealed


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry as a conversation knows it: its name in references, and where it answers.

    `listed` says that the operator configured it. Only then can `origin` be plain http, and
    `credentials_over_http` true. A mirror may have its repositories behind a `prefix`, and want to
    hear in `ns` whom it stands for (containerd: docs/hosts.md). Its tokens may come from another
    host that is among `token_hosts`, hosts or globs; one without a port is for the port of https
    and for the registry's own. `strict` refuses any other host, and answers that contradict
    themselves. Without `get_after_404` it is absent what a HEAD says is absent.
    """

    name: str
    origin: URL
    listed: bool = False
    credentials_over_http: bool = False
    prefix: str = ""
    ns: str = ""
    token_hosts: tuple[str, ...] = ()
    strict: bool = False
    get_after_404: bool = True

    def allows_tokens_of(self, place: URL) -> bool:
        """Whether the operator said that the tokens may come from where a URL leads to."""
        labels = (place.raw_host or "").rstrip(".").split(".")
        for token_host in self.token_hosts:
            host, *port = re.split(r":(?=[0-9]+\Z)", token_host.lower())
            globs = host.rstrip(".").split(".")
            ports = (int(port[0]),) if port else (HTTPS_PORT, self.origin.port)
            is_the_host = len(globs) == len(labels) and all(map(glob_matches, globs, labels))
            if is_the_host and place.port in ports:
                return True
        return False


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request; `derived` where nobody but a registry's answer named its place."""

    method: str
    url: URL
    headers: Mapping[str, str] = field(repr=False)
    max_body: int
    derived: bool = False
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response; bodies of other statuses than 200 may be left out."""

    status: int
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)

    def values(self, name: str) -> list[str]:
        """Every value of a header, by its lower-case name, in order."""
        return [value for each, value in self.headers if each.lower() == name]

    @property
    def media_type(self) -> str:
        """Content-Type in lower case, without parameters; empty without one."""
        value = next(iter(self.values("content-type")), "")
        return value.partition(";")[0].strip().lower()

    def content(self, limit: int, what: str) -> bytes:
        """The body of at most `limit` bytes, unpacked where it came in gzip; raise Failure.

        Nobody asks for gzip, but some gateways send it (quay#1310, moby#17595).
        """
        codings = [
            coding.strip().lower()
            for value in self.values("content-encoding")
            for coding in value.split(",")
        ]
        packed = [each for each in codings if each not in ("", "identity")]
        if not packed:
            return self.body
        if len(packed) > 1 or packed[0] not in _GZIP:
            raise Failure(Reason.BAD_ANSWER, f"{what} is encoded, though that was not accepted")
        stream = zlib.decompressobj(_GZIP_WINDOW)
        try:
            content = stream.decompress(self.body, limit + 1)
        except zlib.error:
            raise Failure(Reason.BAD_ANSWER, f"{what} is no gzip, though it says so") from None
        if len(content) > limit:
            raise Failure(Reason.BAD_ANSWER, f"{what} is longer than {limit} bytes")
        if not stream.eof or stream.unused_data:
            raise Failure(Reason.BAD_ANSWER, f"{what} is not one whole gzip")
        return content


@dataclass(frozen=True, slots=True)
class Login:
    """A bearer token that is wanted; `refused` is one that no longer serves."""

    registry: Registry
    realm: URL
    service: str | None
    scope: str
    credential: Credential | None
    refused: str | None = field(default=None, repr=False)

    @property
    def derived(self) -> bool:
        """Whether the registry's answer alone named the token server, not the operator."""
        elsewhere = origin_of(self.realm) != self.registry.origin
        return elsewhere and not self.registry.allows_tokens_of(self.realm)


@dataclass(frozen=True, slots=True)
class Obtain:
    """The credential that an identity has now is wanted."""

    registry: Registry
    identity: Identity


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token, and for how many seconds after asking for it it may be used."""

    value: str = field(repr=False)
    lifetime: float


Flow: TypeAlias = Generator[Request | Login | Obtain, Any, T]


def refusal(response: Response, who: str) -> Failure:
    """What an answer other than 200 means, once it is final; nothing of its body is repeated."""
    status = response.status
    is_mistake_of_ours = status < HTTPStatus.INTERNAL_SERVER_ERROR
    other = Reason.BAD_ANSWER if is_mistake_of_ours else Reason.UNREACHABLE
    reason = _REASONS.get(status, other)
    if status >= HTTPStatus.BAD_REQUEST and not reason.is_outage:
        reason = _reason_in(response.body) or reason
    return Failure(reason, f"{who} answered {status}")


def origin_of(url: URL) -> URL:
    """The origin of a URL, which is one however its default port is spelled."""
    origin = url.origin()
    return origin.with_port(None) if origin.is_default_port() else origin


def url_in(text: str, what: str) -> URL:
    """The URL that a registry names; raise Failure.

    A host is not even decoded where it is far too long for one: for that it takes too long.
    """
    authority = re.match(r"[^/?#]*/\s*/([^/?#]*)", text)
    if authority is not None and len(authority[1]) > MAX_AUTHORITY:
        raise Failure(Reason.BAD_ANSWER, f"{what} has no valid host")
    try:
        return URL(text)
    except ValueError:
        raise Failure(Reason.BAD_ANSWER, f"{what} is no URL") from None


def check_place(url: URL, scheme: str, what: str) -> None:
    """Refuse a URL that no honest registry names; which addresses it may lead to, guard knows."""
    try:
        host = url.host  # decodes what begins with xn--
    except ValueError:
        raise Failure(Reason.BAD_ANSWER, f"{what} has no valid host") from None
    if host and not _HOST.fullmatch(url.raw_host or ""):  # a proxy could decode `%2e`
        raise Failure(Reason.BAD_ANSWER, f"{what} has no valid host")
    if url.scheme not in ("https", scheme) or not host:
        raise Failure(Reason.BAD_ANSWER, f"{what} does not lead to {scheme}")
    if "@" in url.raw_authority:
        raise Failure(Reason.BAD_ANSWER, f"{what} has a user name")


def json_object(body: bytes, what: str) -> dict[str, Any]:
    """What a body says, if it is a JSON object; raise Failure."""
    if body.count(b",") > MAX_ELEMENTS:
        raise Failure(Reason.BAD_ANSWER, f"{what} has more than {MAX_ELEMENTS} elements")
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Failure(Reason.BAD_ANSWER, f"{what} is not JSON") from None
    if not isinstance(parsed, dict):
        raise Failure(Reason.BAD_ANSWER, f"{what} is no JSON object")
    return parsed


def _reason_in(body: bytes) -> Reason | None:
    """The reason that all errors in a body agree on, if it is an error of a registry at all."""
    try:
        errors = orjson.loads(body)["errors"]
        reasons = {_CODES.get(each["code"]) for each in errors}
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return None
    return reasons.pop() if len(reasons) == 1 else None
