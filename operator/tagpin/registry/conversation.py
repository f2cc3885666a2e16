"""The conversation with a registry about one tag, without I/O: which digest it names.

(opencontainers/distribution-spec: Pulling manifests; what real registries do instead is said where
it matters)
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from http import HTTPStatus

from yarl import URL

from tagpin.errors import Reason
from tagpin.keychain import Candidate, Credential, Identity
from tagpin.reference import Digest, Reference
from tagpin.registry.challenge import Challenge, MalformedChallenge, parse_challenges, preferred
from tagpin.registry.flow import (
    Failure,
    Flow,
    Login,
    Obtain,
    Registry,
    Request,
    Response,
    check_place,
    origin_of,
    refusal,
    url_in,
)
from tagpin.registry.login import basic, realm_of
from tagpin.registry.manifest import (
    ACCEPT,
    MAX_MANIFEST,
    Remark,
    digest_by_body,
    digest_by_head,
)

MAX_REDIRECTS = 5
MAX_AUTHENTICATIONS = 2
"""Per candidate: once, and once more where a token from the cache was refused."""

Recall = Callable[[str, Candidate | None], str | None]
"""The token that a registry has taken for a scope, of somebody with this credential, if it serves.

Sent at once, it spares the round trip that a challenge takes. It has been to that registry before.
"""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_DENIALS = frozenset({Reason.UNAUTHORIZED, Reason.NOT_FOUND})
_NOT_FOR_HEAD = frozenset({500, 501})
"""What some registries say to every HEAD, though they can answer."""
_SECRET = frozenset({"Authorization", "Cookie"})
"""Headers for one origin alone."""


def resolve_tag(
    registry: Registry,
    ref: Reference,
    candidates: Sequence[Candidate],
    remark: Remark = lambda _: None,
    recall: Recall = lambda _scope, _candidate: None,
) -> Flow[Digest]:
    """Ask which digest the tag of `ref` names, identifying ourselves only if asked to.

    Every candidate is tried until one is let in, as the kubelet does; anonymously only where
    there is none. An index keeps its own digest: the node, so the platform, is not known yet.
    `remark` is told once of each oddity.
    """
    challenge = None
    denials: list[Failure] = []
    once = cache(remark)
    for candidate in candidates or (None,):
        attempt = _Attempt(registry, ref, candidate, challenge, remark=once, recall=recall)
        try:
            return (yield from attempt.digest())
        except Failure as failure:
            if failure.reason not in _DENIALS and not attempt.is_empty_handed:
                raise
            denials.append(failure)
        challenge = attempt.challenge
        if challenge is None:  # nobody asked who we are, so the others would hear the same
            break
    # Absent is what everyone says is absent: a registry may hide from one what another may see.
    raise next((each for each in denials if each.reason is not Reason.NOT_FOUND), denials[0])


class _Attempt:
    """One candidate's conversation about one manifest.

    `challenge` is what the registry asked for, None while it did not ask. `is_empty_handed` where
    the candidate is an identity that has no credential now.
    """

    def __init__(
        self,
        registry: Registry,
        ref: Reference,
        candidate: Candidate | None,
        challenge: Challenge | None,
        *,
        remark: Remark,
        recall: Recall,
    ) -> None:
        self.challenge = challenge
        self.is_empty_handed = False
        self._registry = registry
        self._candidate = candidate
        self._remark = remark
        self._recall = recall
        self._repository = f"{registry.prefix}/{ref.path}" if registry.prefix else ref.path
        self._scope = f"repository:{self._repository}:pull"
        url = registry.origin.joinpath("v2", self._repository, "manifests", ref.effective_tag)
        self._url = url.with_query({"ns": registry.ns}) if registry.ns else url
        self._authorization: str | None = None
        self._token: str | None = None
        self._is_recalled = False
        self._authentications = 0

    def digest(self) -> Flow[Digest]:
        """HEAD, which costs no rate limit, then GET where that does not settle it."""
        if self.challenge is not None:
            yield from self._authenticate()
        elif (token := self._recall(self._scope, self._candidate)) is not None:
            self._carry(token)
            self._is_recalled = True
            self._authentications += 1
        head = yield from self._ask("HEAD")
        if head.status == HTTPStatus.OK:
            if (digest := digest_by_head(head, self._remark)) is not None:
                return digest
        else:
            self._check_refused_head(head)
        get = yield from self._ask("GET")
        if get.status != HTTPStatus.OK:
            raise refusal(get, "the registry")
        return digest_by_body(get, self._remark, strict=self._registry.strict)

    def _check_refused_head(self, head: Response) -> None:
        """Raise the Failure that a HEAD's answer is, where GET would get no better one."""
        if head.status == HTTPStatus.UNAUTHORIZED and self._authorization is None:
            raise Failure(Reason.UNAUTHORIZED, "the registry wants credentials")
        failure = refusal(head, "the registry")
        is_final = failure.reason is Reason.NOT_FOUND and not self._registry.get_after_404
        if is_final or (failure.reason.is_outage and head.status not in _NOT_FOR_HEAD):
            raise failure

    def _ask(self, method: str) -> Flow[Response]:
        """The answer to a request for the manifest, after having answered challenges to it."""
        while True:
            response, elsewhere = yield from self._follow(method)
            # What another host asks for is never answered: our credentials are not for it.
            if response.status != HTTPStatus.UNAUTHORIZED or elsewhere:
                return response
            self.challenge = self._challenge_of(response)
            if self._is_recalled:  # whatever it was given for, that may have changed since
                self._is_recalled, self._authorization = False, None
                if self.challenge is None:
                    continue  # without any: a first question is told what is wanted
            if self.challenge is None or not (yield from self._authenticate()):
                return response

    def _follow(self, method: str) -> Flow[tuple[Response, bool]]:
        """The answer behind all redirects, and whether another origin gave it."""
        headers = {"Accept": ACCEPT}
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
        target = request.url.join(url_in(locations[0], "a redirect")).with_fragment(None)
        check_place(target, request.url.scheme, "a redirect")
        headers = request.headers
        if origin_of(target) != origin_of(request.url):
            # Gone, and not attached again on the way back.
            headers = {name: headers[name] for name in headers if name not in _SECRET}
        derived = origin_of(target) != self._registry.origin
        return replace(request, url=target, headers=headers, derived=derived)

    def _challenge_of(self, response: Response) -> Challenge | None:
        """What a 401 asks for; a bare 401 to someone with credentials is taken for Basic.

        To a token it is taken for a refusal of that token: it was given for a challenge that
        stands, so another one can be asked for.
        """
        headers = response.values("www-authenticate")
        try:
            challenges = parse_challenges(headers)
        except MalformedChallenge as error:
            raise Failure(Reason.BAD_ANSWER, f"the challenge is malformed: {error}") from None
        if not challenges and self._token is not None:
            return self.challenge
        if not challenges:
            may = self._candidate is not None and self._registry.origin.scheme == "https"
            return Challenge("basic") if may else None
        chosen = preferred(challenges)
        if chosen is None:
            raise Failure(Reason.UNAUTHORIZED, "the registry knows neither Bearer nor Basic")
        return chosen

    def _authenticate(self) -> Flow[bool]:
        """Answer `challenge`; false where there is nothing (more) to say.

        A challenge that says what was wrong (`error=`, RFC 6750 §3.1) gets no other answer: the
        scope that it wants may be wider, and what is asked for is never more than to pull.
        """
        if self.challenge is None or self._authentications == MAX_AUTHENTICATIONS:
            return False
        self._authentications += 1
        if self.challenge.scheme == "basic":
            if self._authorization is not None:
                return False
            credential = yield from self._credential_for(self._registry.origin)
            if credential is None:
                return False
            if credential.identity_token and not credential.password:
                raise Failure(Reason.UNAUTHORIZED, "an identity token is no answer to Basic")
            self._authorization = basic(credential)
            return True
        realm = realm_of(self.challenge, self._registry)
        token: str = yield Login(
            registry=self._registry,
            realm=realm,
            service=self.challenge.parameters.get("service"),
            scope=self._scope,
            credential=(yield from self._credential_for(realm)),
            refused=self._token,
        )
        if token == self._token:
            return False
        self._carry(token)
        return True

    def _carry(self, token: str) -> None:
        self._token, self._authorization = token, f"Bearer {token}"

    def _credential_for(self, place: URL) -> Flow[Credential | None]:
        """The candidate's credential, obtained only when it is asked for by who may have it."""
        if self._candidate is None:
            return None
        self._check_secrecy(place)
        if not isinstance(self._candidate, Identity):
            return self._candidate
        try:
            obtained: Credential = yield Obtain(self._registry, self._candidate)
        except Failure:
            self.is_empty_handed = True
            raise
        return obtained

    def _check_secrecy(self, place: URL) -> None:
        """Refuse to send credentials where somebody on the way could have them."""
        if self._registry.credentials_over_http:
            return
        if place.scheme != "https":
            raise Failure(Reason.UNAUTHORIZED, "credentials are not sent over plain http")
        origin = self._registry.origin
        is_own = place.raw_host == origin.raw_host or self._registry.allows_tokens_of(place)
        if origin.scheme != "https" and not is_own:
            # TLS with a server that anybody may have named keeps nothing from them.
            raise Failure(Reason.UNAUTHORIZED, "credentials are not sent where plain http leads")
