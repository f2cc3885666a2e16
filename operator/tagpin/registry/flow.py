"""Conversations with a registry, without I/O: which requests, and what their answers mean.

A flow is a generator. It yields a Request and is sent its Response; it yields a Login and is sent
a bearer token (the driver keeps tokens, and gets a new one by running `fetch_token`); it yields an
Obtain and is sent a Credential. It returns its result or raises Failure, and whatever the driver
cannot do it throws in as a Failure too.

(opencontainers/distribution-spec: Pulling manifests; distribution/distribution: token
authentication; what real registries do instead is said where it matters)
"""

import base64
import hashlib
import math
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import Any, TypeAlias, TypeVar

import orjson
from yarl import URL

from tagpin.errors import InvalidReference, Reason
from tagpin.keychain import Candidate, Credential, Identity
from tagpin.reference import Digest, Reference
from tagpin.registry.challenge import Challenge, MalformedChallenge, parse_challenges, preferred

T = TypeVar("T")

INDEXES = frozenset(
    {
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    }
)
IMAGES = frozenset(
    {
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    }
)
_SCHEMA_1 = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)
_ACCEPT = ", ".join((*sorted(INDEXES, reverse=True), *sorted(IMAGES, reverse=True)))
"""All four in one header: without the indexes a registry answers for one platform, or 404."""

MAX_MANIFEST = 4 * 1024 * 1024
MAX_TOKEN_ANSWER = 64 * 1024
MAX_TOKEN = 8 * 1024
"""Characters: it must fit into a header, and servers take no longer ones."""
MAX_REDIRECTS = 5
MAX_AUTHENTICATIONS = 2
"""Per candidate: once, and once more where a token from the cache was refused."""
MIN_TOKEN_LIFETIME = 60.0
MAX_TOKEN_LIFETIME = 12 * 3600.0

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REASONS = {
    401: Reason.UNAUTHORIZED,
    403: Reason.UNAUTHORIZED,
    404: Reason.NOT_FOUND,
    408: Reason.TIMEOUT,
    429: Reason.RATE_LIMITED,
    499: Reason.UNREACHABLE,  # a proxy's word for a client that went away
}
_DENIALS = frozenset({Reason.UNAUTHORIZED, Reason.NOT_FOUND})

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
    host that is among `token_hosts`, hosts or globs; `strict` refuses any other one, and answers
    that contradict themselves. Without `get_after_404` it is absent what a HEAD says is absent.
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


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request; `derived` where a registry's answer, not the reference, named its place."""

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


@dataclass(frozen=True, slots=True)
class Login:
    """A bearer token that is wanted; `refused` is one that no longer serves."""

    registry: Registry
    realm: URL
    service: str | None
    scope: str
    credential: Credential | None
    refused: str | None = field(default=None, repr=False)


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


def resolve_tag(
    registry: Registry, ref: Reference, candidates: Sequence[Candidate]
) -> Flow[Digest]:
    """Ask which digest the tag of `ref` names, identifying ourselves only if asked to.

    Every candidate is tried until one is let in, as the kubelet does; anonymously only where
    there is none. An index keeps its own digest: the node, so the platform, is not known yet.
    """
    challenge = None
    denials: list[Failure] = []
    for candidate in candidates or (None,):
        attempt = _Attempt(registry, ref, candidate, challenge)
        try:
            return (yield from attempt.digest())
        except Failure as failure:
            if failure.reason not in _DENIALS:
                raise
            denials.append(failure)
        challenge = attempt.challenge
        if challenge is None:  # nobody asked who we are, so the others would hear the same
            break
    # Absent is what everyone says is absent: a registry may hide from one what another may see.
    raise next((each for each in denials if each.reason is Reason.UNAUTHORIZED), denials[0])


def fetch_token(login: Login) -> Flow[Token]:
    """Get a bearer token from the realm, with the credential of `login` where it has one."""
    query = {"service": login.service} if login.service is not None else {}
    url = login.realm.extend_query(query | {"scope": login.scope})
    headers = {} if login.credential is None else {"Authorization": _basic(login.credential)}
    derived = url.origin() != login.registry.origin
    response: Response = yield Request("GET", url, headers, MAX_TOKEN_ANSWER, derived)
    if response.status != HTTPStatus.OK:
        raise _refusal(response.status, f"the token server {url.host}")
    return _parse_token(response)


class _Attempt:
    """One candidate's conversation about one manifest.

    `challenge` is what the registry asked for, None while it did not ask.
    """

    def __init__(
        self,
        registry: Registry,
        ref: Reference,
        candidate: Candidate | None,
        challenge: Challenge | None,
    ) -> None:
        self.challenge = challenge
        self._registry = registry
        self._ref = ref
        self._candidate = candidate
        self._url = registry.origin.joinpath("v2", ref.path, "manifests", ref.effective_tag)
        self._authorization: str | None = None
        self._token: str | None = None
        self._authentications = 0

    def digest(self) -> Flow[Digest]:
        """HEAD, which costs no rate limit, then GET where that does not settle it."""
        if self.challenge is not None:
            yield from self._authenticate()
        head = yield from self._ask("HEAD")
        if head.status == HTTPStatus.OK:
            if (digest := _digest_by_head(head)) is not None:
                return digest
        elif head.status == HTTPStatus.UNAUTHORIZED and self._authorization is None:
            raise Failure(Reason.UNAUTHORIZED, "the registry wants credentials")
        elif head.status != HTTPStatus.NOT_IMPLEMENTED:
            refusal = _refusal(head.status, "the registry")
            if refusal.reason.is_outage:
                raise refusal
        # 400, 401, 403, 404, 405 and 501 are what some registries say to every HEAD.
        get = yield from self._ask("GET")
        if get.status != HTTPStatus.OK:
            raise _refusal(get.status, "the registry")
        return _digest_by_body(get)

    def _ask(self, method: str) -> Flow[Response]:
        """The answer to a request for the manifest, after having answered challenges to it."""
        while True:
            response, elsewhere = yield from self._follow(method)
            # What another host asks for is never answered: our credentials are not for it.
            if response.status != HTTPStatus.UNAUTHORIZED or elsewhere:
                return response
            self.challenge = self._challenge_of(response)
            if self.challenge is None or not (yield from self._authenticate()):
                return response

    def _follow(self, method: str) -> Flow[tuple[Response, bool]]:
        """The answer behind all redirects, and whether another origin gave it."""
        headers = {"Accept": _ACCEPT}
        if self._authorization is not None:
            headers["Authorization"] = self._authorization
        request = Request(method, self._url, headers, MAX_MANIFEST)
        for _ in range(MAX_REDIRECTS + 1):
            response: Response = yield request
            if response.status not in _REDIRECTS:
                return response, request.derived
            request = self._redirected(request, response)
        raise Failure(Reason.BAD_ANSWER, f"more than {MAX_REDIRECTS} redirects")

    def _redirected(self, request: Request, response: Response) -> Request:
        locations = response.values("location")
        if len(locations) != 1:
            raise Failure(Reason.BAD_ANSWER, "a redirect without one location")
        try:
            target = request.url.join(URL(locations[0])).with_fragment(None)
        except ValueError:
            raise Failure(Reason.BAD_ANSWER, "a redirect to no URL") from None
        _check_place(target, request.url.scheme, "a redirect")
        headers = request.headers
        if target.origin() != request.url.origin():  # gone, and not attached again on the way back
            headers = {name: headers[name] for name in headers if name != "Authorization"}
        derived = target.origin() != self._registry.origin
        return replace(request, url=target, headers=headers, derived=derived)

    def _challenge_of(self, response: Response) -> Challenge | None:
        """What a 401 asks for; a bare 401 to someone with credentials is taken for Basic."""
        headers = response.values("www-authenticate")
        try:
            challenges = parse_challenges(headers)
        except MalformedChallenge as error:
            raise Failure(Reason.BAD_ANSWER, f"the challenge is malformed: {error}") from None
        if not challenges and self._token is not None:  # to the token; ask for another one
            return self.challenge
        if not challenges:
            may = self._candidate is not None and self._registry.origin.scheme == "https"
            return Challenge("basic") if may else None
        chosen = preferred(challenges)
        if chosen is None:
            raise Failure(Reason.UNAUTHORIZED, "the registry knows neither Bearer nor Basic")
        return chosen

    def _authenticate(self) -> Flow[bool]:
        """Answer `challenge`; false where there is nothing (more) to say."""
        if self.challenge is None or self._authentications == MAX_AUTHENTICATIONS:
            return False
        self._authentications += 1
        if self.challenge.scheme == "basic":
            if self._candidate is None or self._authorization is not None:
                return False
            self._check_secrecy(self._registry.origin)
            self._authorization = _basic((yield from self._credential(self._candidate)))
            return True
        realm = _realm(self.challenge, self._registry)
        credential = None
        if self._candidate is not None:
            self._check_secrecy(realm)
            credential = yield from self._credential(self._candidate)
        token: str = yield Login(
            registry=self._registry,
            realm=realm,
            service=self.challenge.parameters.get("service"),
            scope=f"repository:{self._ref.path}:pull",  # ours, whatever the challenge wants
            credential=credential,
            refused=self._token,
        )
        if token == self._token:
            return False
        self._token, self._authorization = token, f"Bearer {token}"
        return True

    def _credential(self, candidate: Candidate) -> Flow[Credential]:
        """The candidate's credential, which is obtained when somebody asks for it."""
        if isinstance(candidate, Identity):
            obtained: Credential = yield Obtain(self._registry, candidate)
            return obtained
        return candidate

    def _check_secrecy(self, url: URL) -> None:
        if url.scheme != "https" and not self._registry.credentials_over_http:
            raise Failure(Reason.UNAUTHORIZED, "credentials are not sent over plain http")


def _realm(challenge: Challenge, registry: Registry) -> URL:
    """The token server that a registry names, if it may name this one."""
    try:
        realm = URL(challenge.parameters.get("realm", ""))
    except ValueError:
        raise Failure(Reason.BAD_ANSWER, "the realm is no URL") from None
    if realm.raw_fragment:
        raise Failure(Reason.BAD_ANSWER, "the realm has a fragment")
    _check_place(realm, registry.origin.scheme, "the realm")
    name = registry.name.lower()
    for pattern, host in _REALM_HOSTS.items():
        if fnmatchcase(name, pattern) and realm.host != (host or registry.origin.host):
            raise Failure(Reason.BAD_ANSWER, f"the realm {realm.host} is not that of {pattern}")
    return realm


def _check_place(url: URL, scheme: str, what: str) -> None:
    """Refuse a URL that no honest registry names; which addresses it may lead to, guard knows."""
    try:
        host = url.host  # decodes what begins with xn--
    except ValueError:
        raise Failure(Reason.BAD_ANSWER, f"{what} has no valid host") from None
    if url.scheme not in ("https", scheme) or not host:
        raise Failure(Reason.BAD_ANSWER, f"{what} does not lead to {scheme}")
    if "@" in url.raw_authority:
        raise Failure(Reason.BAD_ANSWER, f"{what} has a user name")


def _basic(credential: Credential) -> str:
    pair = f"{credential.username}:{credential.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def _refusal(status: int, who: str) -> Failure:
    """What a status other than 200 means, once it is final."""
    other = Reason.BAD_ANSWER if status < HTTPStatus.INTERNAL_SERVER_ERROR else Reason.UNREACHABLE
    return Failure(_REASONS.get(status, other), f"{who} answered {status}")


def _digest_by_head(response: Response) -> Digest | None:
    """The digest that a HEAD vouches for, None where the bytes must be seen.

    Content-Length is not asked for: proxies that chunk strip it.
    """
    if response.media_type in _SCHEMA_1:
        raise Failure(Reason.UNSUPPORTED, "the manifest is schema 1")
    if response.media_type not in INDEXES | IMAGES:
        return None
    return _stated_digest(response)


def _stated_digest(response: Response) -> Digest | None:
    stated = response.values("docker-content-digest")
    try:
        return Digest.parse(stated[0]) if len(stated) == 1 else None
    except InvalidReference:
        return None


def _digest_by_body(response: Response) -> Digest:
    """The hash of the bytes as received, if they are a manifest that a runtime can read."""
    if any(each.strip().lower() != "identity" for each in response.values("content-encoding")):
        raise Failure(Reason.BAD_ANSWER, "the manifest is encoded though that was not accepted")
    _check_manifest(response)
    stated = _stated_digest(response)
    algorithm = stated.algorithm if stated else "sha256"
    digest = Digest(algorithm, hashlib.new(algorithm, response.body).hexdigest())
    if stated is not None and stated != digest:
        raise Failure(Reason.BAD_ANSWER, "the manifest is not the one that its header names")
    return digest


def _check_manifest(response: Response) -> None:
    """Refuse what two readers could take for two things (CVE-2021-41190), and schema 1."""
    manifest = _json_object(response.body, "the manifest")
    if response.media_type in _SCHEMA_1 or manifest.get("schemaVersion") == 1:
        raise Failure(Reason.UNSUPPORTED, "the manifest is schema 1")
    is_index = "manifests" in manifest
    if is_index == ("layers" in manifest or "config" in manifest):
        raise Failure(Reason.BAD_ANSWER, "the manifest is neither an index nor an image, or both")
    fitting = INDEXES if is_index else IMAGES
    inner = manifest.get("mediaType")
    if not isinstance(inner, str | None):
        raise Failure(Reason.BAD_ANSWER, "the manifest's type is no text")
    outer = response.media_type if response.media_type in INDEXES | IMAGES else inner
    # OCI lets the body leave its type out; generic types outside it are those of static hosting.
    if (inner is not None and inner != outer) or (outer is not None and outer not in fitting):
        raise Failure(Reason.BAD_ANSWER, "the manifest is not of the type that it claims")


def _parse_token(response: Response) -> Token:
    """The token in a token server's answer, renewed a little before it ends."""
    answer = _json_object(response.body, "the token server's answer")
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


def _json_object(body: bytes, what: str) -> dict[str, Any]:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Failure(Reason.BAD_ANSWER, f"{what} is not JSON") from None
    if not isinstance(parsed, dict):
        raise Failure(Reason.BAD_ANSWER, f"{what} is no JSON object")
    return parsed
