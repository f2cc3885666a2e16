"""Whole conversations with a registry whose every answer is drawn.

Whatever it says, we come to an end soon: with a digest that it gave, or with a reason. And whatever
it says, our secrets go only to the registry that they are for, or to its token server.
"""

import base64
import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from typing import Any, TypeVar

from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from fuzz.fuzzing import FUZZED
from tagpin.errors import Reason
from tagpin.keychain import Candidate, Credential, Identity
from tagpin.reference import Digest, Reference
from tagpin.registry.conversation import MAX_AUTHENTICATIONS, MAX_REDIRECTS, resolve_tag
from tagpin.registry.flow import Failure, Flow, Login, Obtain, Registry, Request, Response
from tagpin.registry.login import fetch_token
from tagpin.registry.manifest import INDEXES

T = TypeVar("T")

REF = Reference.parse("r.example/acme/app:v1")
MARK = "m4rk"
"""In everything that the registry says beyond what is by the rules."""

INDEX, *_ = sorted(INDEXES)
IMAGE = "application/vnd.oci.image.manifest.v1+json"
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"
MANIFEST = {"schemaVersion": 2, "mediaType": IMAGE, "config": {}, "layers": [MARK]}

# Those that can be, with what may be done there.

R = URL("https://r.example")
REGISTRIES = st.sampled_from(
    [
        Registry("r.example", R),
        Registry("r.example", R),
        Registry("r.example", R),
        Registry("r.example", R, listed=True),
        Registry("r.example", R, listed=True, strict=True),
        Registry("r.example", R, listed=True, strict=True, token_hosts=("auth.example",)),
        Registry("r.example", R, listed=True, get_after_404=False),
        Registry("r.example", URL("http://r.example"), listed=True),
        Registry("r.example", URL("http://r.example"), listed=True, token_hosts=("auth.example",)),
        Registry("r.example", URL("http://r.example"), listed=True, credentials_over_http=True),
        Registry("r.example", URL("https://mirror.example:5000"), prefix="r/x", ns="r.example"),
        Registry("docker.io", URL("https://registry-1.docker.io")),
        Registry("ghcr.io", URL("https://ghcr.io")),
    ]
)
CANDIDATES = st.lists(
    st.sampled_from(
        [
            Credential("alice", "s3cr3t-a"),
            Credential("bob", "s3cr3t-b"),
            Credential("<token>", "", "s3cr3t-identity"),
            Identity("ecr", "r.example"),
        ]
    ),
    max_size=3,
    unique=True,
)
SECRET = "s3cr3t"
OBTAINED = Credential("AWS", "s3cr3t-obtained")

# What is answered: mostly what leads further.


def mostly(good: st.SearchStrategy[T], odd: st.SearchStrategy[T]) -> st.SearchStrategy[T]:
    """Nine in ten; `one_of` counts equal ones only once."""
    return st.sampled_from([*[good] * 9, odd]).flatmap(lambda chosen: chosen)


PLACES = mostly(
    st.sampled_from(["https://r.example/token", "https://auth.example/token", "/v2/other"]),
    st.sampled_from(
        [
            *("http://r.example/token", "https://r.example:444/t", "https://auth.docker.io/token"),
            *("https://ghcr.io/token", "http://evil.example/", "https://evil.example/t?x=m4rk&y"),
            *("//evil.example/m4rk", "https://mirror.example:5000/t", "?x=1", "", "https://"),
            *("https://user:m4rk@r.example/", "https://r.example/#m4rk", "https://r.example:99999"),
            *("https://xn--/", "https://R.EXAMPLE./token", "https://r.example%2f.evil.example/"),
            *("ftp://r.example/", "https://\u2100.example/", "https://r.example\\@evil.example/"),
            "https://[::1",
        ]
    ),
)
REALMS = PLACES.map(lambda place: f"https://r.example{place}" if place[:1] == "/" else place)
BEARER = st.builds('Bearer realm="{}",service="m4rk",scope="repository:m4rk:*"'.format, REALMS)
CHALLENGES = mostly(
    st.sampled_from([BEARER, BEARER, st.just('Basic realm="m4rk"')]).flatmap(lambda each: each),
    st.sampled_from(
        [
            *("Basic", "Negotiate m4rk", "Bearer", 'Bearer realm="', "", "="),
            *('Bearer realm="http://r.example/token"', 'Bearer realm="//m4rk"'),
            'Negotiate, Basic realm="x", Bearer realm="https://r.example/token"',
            'Bearer realm="https://r.example/token",error="insufficient_scope"',
        ]
    ),
)
DIGESTS = mostly(
    st.sampled_from([f"sha256:{'a' * 64}", f"sha512:{'b' * 128}"]),
    st.sampled_from([f"SHA256:{'a' * 64}", f"sha256:{'A' * 64}", "sha256:m4rk", "../m4rk", ""]),
)
TYPES = mostly(
    st.sampled_from([IMAGE, INDEX, f"{IMAGE.upper()}; m4rk=1"]),
    st.sampled_from([SCHEMA_1, "text/m4rk", "application/json", ""]),
)
BODIES = mostly(
    st.just(json.dumps(MANIFEST).encode()),
    st.sampled_from(
        [
            *(b"", b"m4rk", b"\xff\xfe", b"[" * 3000, b'{"a":1e999}', b'["m4rk"]', b'"m4rk"'),
            b'{"schemaVersion":2,"manifests":["m4rk"]}',
            b'{"schemaVersion":2,"manifests":["m4rk"],"layers":[]}',
            b'{"schemaVersion":1,"layers":["m4rk"]}',
            b'{"mediaType":["m4rk"],"layers":0}',
            b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"m4rk"}]}',
            b'{"errors":[{"code":"TOOMANYREQUESTS","detail":{"m4rk":"m4rk"}}]}',
            b'{"errors":"m4rk"}',
        ]
    ),
)
HEADERS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["Location", "LOCATION"]), PLACES),
        st.tuples(st.sampled_from(["WWW-Authenticate", "www-authenticate"]), CHALLENGES),
        st.tuples(st.just("Docker-Content-Digest"), DIGESTS),
        st.tuples(st.just("Content-Type"), TYPES),
        st.tuples(st.just("Content-Encoding"), st.sampled_from(["gzip", "identity", "m4rk"])),
        st.tuples(st.just("Retry-After"), st.sampled_from(["1", "-1", "m4rk", "9" * 400])),
    ),
    max_size=4,
)
STATUSES = mostly(
    st.sampled_from([200, 200, 301, 302, 303, 307, 308, 401, 401, 403, 404]),
    st.sampled_from([0, 99, 204, 400, 405, 406, 408, 410, 418, 429, 499, 500, 501, 503, 522, 999]),
)
FAILURES = st.sampled_from(list(Reason)).map(lambda reason: Failure(reason, "the network"))
FOUND = st.builds(
    lambda digest, media_type: Response(
        200, (("Docker-Content-Digest", digest), ("Content-Type", media_type)), b""
    ),
    DIGESTS,
    TYPES,
)
CHALLENGED = st.builds(lambda text: Response(401, (("WWW-Authenticate", text),)), CHALLENGES)
MOVED = st.builds(lambda place: Response(307, (("Location", place),)), PLACES)
UNSETTLED = st.builds(lambda body: Response(200, (("Content-Type", IMAGE),), body), BODIES)
PACKED = st.builds(
    lambda body: Response(200, (("Content-Type", IMAGE), ("Content-Encoding", "gzip")), body),
    BODIES.map(lambda body: gzip.compress(body, 1)) | BODIES,
)
ANYTHING = st.builds(Response, STATUSES, HEADERS.map(tuple), BODIES)
FURTHER = st.integers(0, 4).flatmap(
    lambda number: [FOUND, UNSETTLED, MOVED, CHALLENGED, CHALLENGED][number]
)
ANSWERS = st.lists(mostly(FURTHER, PACKED | ANYTHING | FAILURES), min_size=1, max_size=8)
TOKEN_ANSWERS = st.lists(
    mostly(
        st.integers(0, 9).map(lambda n: Response(200, (), b'{"token": "s3cr3t-token-%d"}' % n)),
        st.one_of(
            st.sampled_from([400, 401, 403, 404, 405, 429, 503]).map(
                lambda status: Response(status, (), b"m4rk")
            ),
            ANYTHING,
            FAILURES,
        ),
    ),
    min_size=1,
    max_size=5,
)


@dataclass(frozen=True, slots=True)
class Said:
    """A step of ours; `login` where it is to a token server."""

    step: Request | Login | Obtain
    login: Login | None


@dataclass(slots=True)
class Talk:
    """One conversation: what we said, and what we were answered by others than token servers."""

    answers: Iterator[Response | Failure]
    token_answers: Iterator[Response | Failure]
    bound: int
    said: list[Said] = field(default_factory=list)
    heard: list[tuple[Request, Response]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)

    def hold(self, flow: Flow[Any], login: Login | None = None) -> Any:
        """Carry it on to its end, as the client does."""
        proceed = partial(next, flow)
        while True:
            try:
                step = proceed()
            except StopIteration as end:
                return end.value
            self.said.append(Said(step, login))
            assert len(self.said) <= self.bound, "there is no end to it"
            try:
                reply = self.reply(step, login)
            except Failure as failure:
                proceed = partial(flow.throw, failure)
            else:
                proceed = partial(flow.send, reply)

    def outcome(self, flow: Flow[Digest]) -> Digest | Failure:
        try:
            digest: Digest = self.hold(flow)
        except Failure as failure:
            return failure
        return digest

    def reply(self, step: Request | Login | Obtain, login: Login | None) -> object:
        match step:
            case Obtain():
                return OBTAINED
            case Login():
                self.tokens.append(self.hold(fetch_token(step), step).value)
                return self.tokens[-1]
        answer = next(self.answers if login is None else self.token_answers)
        if isinstance(answer, Failure):
            raise answer
        if login is None:
            self.heard.append((step, answer))
        return answer


@FUZZED
@given(REGISTRIES, CANDIDATES, ANSWERS, TOKEN_ANSWERS)
def test_a_conversation_ends_with_a_digest_that_was_given_or_with_a_reason(
    registry: Registry,
    candidates: list[Candidate],
    answers: list[Response | Failure],
    token_answers: list[Response | Failure],
) -> None:
    talk = talking(candidates, answers, token_answers)
    outcome = talk.outcome(resolve_tag(registry, REF, candidates))
    if isinstance(outcome, Failure):
        assert isinstance(outcome.reason, Reason)
        assert str(outcome).isprintable()
        assert MARK not in str(outcome)
        assert SECRET not in f"{outcome} {outcome!r}"
        return
    request, response = talk.heard[-1]
    assert response.status == 200
    if request.method == "HEAD":
        assert response.values("docker-content-digest") == [str(outcome)]
    else:
        is_packed = response.values("content-encoding") == ["gzip"]
        content = gzip.decompress(response.body) if is_packed else response.body
        assert hashlib.new(outcome.algorithm, content).hexdigest() == outcome.hex


@FUZZED
@given(REGISTRIES, CANDIDATES, ANSWERS, TOKEN_ANSWERS)
def test_no_conversation_carries_a_secret_to_where_it_does_not_belong(
    registry: Registry,
    candidates: list[Candidate],
    answers: list[Response | Failure],
    token_answers: list[Response | Failure],
) -> None:
    talk = talking(candidates, answers, token_answers)
    talk.outcome(resolve_tag(registry, REF, candidates))
    for said in talk.said:
        assert SECRET not in repr(said)
        match said.step:
            case Request() as request:
                check_request(request, said.login, registry, talk)
            case Login() as login:
                check_login(login, registry, candidates)
            case Obtain() as obtain:
                assert (obtain.registry, obtain.identity in candidates) == (registry, True)
    logins = Counter(said.step.credential for said in talk.said if isinstance(said.step, Login))
    assert all(times <= MAX_AUTHENTICATIONS for times in logins.values())
    asked = [request.method for request, answer in talk.heard if answer.status == 401]
    confided = [said for said in talk.said if confides(said.step)]
    assert asked or not confided


def talking(
    candidates: Sequence[Candidate],
    answers: Sequence[Response | Failure],
    token_answers: Sequence[Response | Failure],
) -> Talk:
    """A conversation in which the answers are repeated for ever."""
    asked = (2 + MAX_AUTHENTICATIONS) * (MAX_REDIRECTS + 1)
    identified = MAX_AUTHENTICATIONS * len(("obtain", "log in", "post", "get"))
    bound = max(1, len(candidates)) * (asked + identified)
    return Talk(cycle(answers), cycle(token_answers), bound)


def confides(step: Request | Login | Obtain) -> bool:
    return not isinstance(step, Request) or "Authorization" in step.headers


def check_request(request: Request, login: Login | None, registry: Registry, talk: Talk) -> None:
    """It goes to where it may, and says to each only what is for them."""
    url = request.url
    assert url.scheme in ("https", registry.origin.scheme)
    assert url.host
    assert url.user is url.password is None
    assert not url.fragment
    assert SECRET not in str(url)
    is_named = login is not None and url.host in registry.token_hosts
    assert request.derived == (url.origin() != registry.origin and not is_named)
    assert request.method in ("HEAD", "GET", "POST")
    is_safe = url.scheme == "https" or registry.credentials_over_http
    if login is not None:
        assert url.origin() == login.realm.origin()
    if request.body:
        assert login is not None
        assert login.credential is not None
        assert is_safe
    for name, value in request.headers.items():
        assert SECRET not in value or name == "Authorization"
    authorization = request.headers.get("Authorization")
    if authorization is None:
        return
    scheme, _, value = authorization.partition(" ")
    if scheme == "Bearer":
        assert login is None
        assert url.origin() == registry.origin
        assert value in talk.tokens
        return
    assert scheme == "Basic"
    assert is_safe
    if login is None:
        assert url.origin() == registry.origin
    else:
        assert value == encoded(login.credential)


def encoded(credential: Credential | None) -> str:
    assert credential is not None
    secret = credential.password or credential.identity_token
    return base64.b64encode(f"{credential.username}:{secret}".encode()).decode()


def check_login(login: Login, registry: Registry, candidates: Sequence[Candidate]) -> None:
    """Its realm may be named by this registry, and only our own words are in it."""
    realm = login.realm
    assert login.registry == registry
    assert login.scope == "repository:acme/app:pull" or registry.prefix
    assert realm.scheme in ("https", registry.origin.scheme)
    assert realm.user is realm.password is None
    known = {"docker.io": "auth.docker.io", "ghcr.io": "ghcr.io"}.get(registry.name)
    host = (realm.host or "").rstrip(".")  # with a final dot it is the same one
    assert known in (None, host)
    assert not registry.strict or host in (registry.origin.host, *registry.token_hosts)
    if login.credential is None:
        assert not candidates
    else:
        is_identity = any(isinstance(each, Identity) for each in candidates)
        assert login.credential in candidates or (is_identity and login.credential == OBTAINED)
        is_own = host in (registry.origin.host, *registry.token_hosts)
        is_safe = realm.scheme == "https" and (registry.origin.scheme == "https" or is_own)
        assert is_safe or registry.credentials_over_http
