"""An OCI registry in this process, with the faults that real ones have.

    async with FakeRegistry() as registry:
        digest = registry.push_image("demo/app", "v1", b"payload")
        …                                  # ask http://{registry.host}/v2/demo/app/manifests/v1
        registry.fault(answering(503))     # from now on it is down (fakes.faults has more)
        registry.heal()
        print(registry.requests)

Everything it holds is made of real bytes, by the same function every time: the same push has the
same digest. Without faults it says what distribution/distribution says: tests/contract.
"""

import base64
import gzip
import hashlib
import io
import json
import secrets
import ssl
import tarfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web
from yarl import URL

from fakes.faults import OCI_IMAGE, Fault

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"


@dataclass(frozen=True, slots=True)
class Types:
    """The media types of one family of formats."""

    index: str
    image: str
    config: str
    layer: str


OCI = Types(
    OCI_INDEX,
    OCI_IMAGE,
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.oci.image.layer.v1.tar+gzip",
)
DOCKER = Types(
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.container.image.v1+json",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
)


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it arrived; header names are in lower case.

    `form` is what a POST carries. `connection` is the client's port: equal for requests over one
    connection.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str] = field(repr=False)
    connection: int = field(repr=False)
    form: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def authorization(self) -> str | None:
        return self.headers.get("authorization")


@dataclass(slots=True)
class _Rule:
    fault: Fault
    method: str | None
    path: str
    times: float

    def takes(self, request: web.Request) -> bool:
        fits = (
            self.method in (None, request.method) and self.path in request.path and self.times > 0
        )
        self.times -= fits
        return fits


class FakeRegistry:
    """A registry on `host` and `port` (0: a free one), over TLS with an `ssl.SSLContext`.

    With `users` (name → password) it wants a login: basic, or bearer tokens if `tokens`. It
    challenges with `realm`, its own `/token` unless told otherwise, and answers at the path of
    that. Without users, `tokens` makes
    it hand out tokens to everyone, and so it does for the repositories in `public`.
    `identity_tokens` (token → user) are taken in place of passwords, by POST.

    Its habits can be changed at any time: `token_answer` is added to the token server's answers,
    which hold the token under each of `token_names`; if `welcoming`, whoever gives a wrong password
    gets a token too, that opens nothing (Harbor). If it `converts`, a client that does not accept
    an image's format gets another one with another digest (distribution 2).
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        users: Mapping[str, str] | None = None,
        tokens: bool = False,
        public: Collection[str] = (),
        identity_tokens: Mapping[str, str] | None = None,
    ) -> None:
        self.users = dict(users or {})
        self.tokens = tokens
        self.public = frozenset(public)
        self.identity_tokens = dict(identity_tokens or {})
        self.realm: str | None = None
        self.token_answer: dict[str, Any] = {"expires_in": 300}
        self.token_names = ["token"]
        self.welcoming = False
        self.converts = False
        self.requests: list[Seen] = []
        self._address = host
        self._port = port
        self._tls = tls
        self._rules: list[_Rule] = []
        self._blobs: dict[str, bytes] = {}
        self._types: dict[str, str] = {}
        self._tags: dict[tuple[str, str], str] = {}
        self._links: set[tuple[str, str]] = set()
        self._granted: dict[str, frozenset[str]] = {}
        self._runner: web.AppRunner | None = None

    # Its life

    @property
    def host(self) -> str:
        """What references to it begin with: `address:port`."""
        return f"{self._address}:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.host}"

    async def start(self) -> Self:
        """Listen; after `stop`, on the same port with the same content."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._receive)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._address, self._port, ssl_context=self._tls)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def stop(self) -> None:
        """Stop listening and drop every connection."""
        if self._runner is not None:
            handlers = self._runner.server.connections if self._runner.server else []
            transports = [each.transport for each in handlers if each.transport]
            await self._runner.cleanup()
            # One of TLS is closed when the other side has said so as well, which may have gone.
            for each in transports:
                each.abort()
            self._runner = None

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # What it holds

    def push_image(
        self,
        repository: str,
        tag: str,
        payload: bytes = b"",
        *,
        platform: str = "linux/amd64",
        types: Types = OCI,
    ) -> str:
        """Make an image whose only layer holds `payload`, tag it, and return its digest."""
        return self.tag(repository, tag, self._store_image(payload, platform, types))

    def push_index(
        self, repository: str, tag: str, platforms: Mapping[str, bytes], *, types: Types = OCI
    ) -> str:
        """Make an index of one image per platform (`linux/arm64` → payload) and tag it."""
        entries = []
        for platform, payload in platforms.items():
            digest = self._store_image(payload, platform, types)
            self._links.add((repository, digest))
            system, architecture = platform.split("/")
            entries.append(
                {
                    "mediaType": types.image,
                    "digest": digest,
                    "size": len(self._blobs[digest]),
                    "platform": {"architecture": architecture, "os": system},
                }
            )
        index = {"schemaVersion": 2, "mediaType": types.index, "manifests": entries}
        return self.push_manifest(repository, tag, _json(index), types.index)

    def push_manifest(self, repository: str, tag: str, body: bytes, media_type: str) -> str:
        """Store any bytes as a manifest of any type, tag them, and return their digest."""
        digest = self._store(body)
        self._types[digest] = media_type
        return self.tag(repository, tag, digest)

    def tag(self, repository: str, tag: str, digest: str) -> str:
        """Let a tag name what was pushed before; a tag that exists moves."""
        self._tags[repository, tag] = digest
        self._links.add((repository, digest))
        return digest

    def delete_tag(self, repository: str, tag: str) -> None:
        del self._tags[repository, tag]

    # What is wrong with it

    def fault(
        self,
        fault: Fault,
        *,
        method: str | None = None,
        path: str = "/manifests/",
        times: float = float("inf"),
    ) -> None:
        """From now on `fault` takes the next `times` requests of that method and path part."""
        self._rules.append(_Rule(fault, method, path, times))

    def heal(self) -> None:
        """Forget every fault."""
        self._rules.clear()

    # What it answers

    async def _receive(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        query = dict(request.query)
        port = request.transport.get_extra_info("peername")[1] if request.transport else 0
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.requests.append(Seen(request.method, request.path, query, headers, port, form))
        rule = next((each for each in self._rules if each.takes(request)), None)
        if rule is not None:
            return await rule.fault(request, self._answer)
        return await self._answer(request)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == URL(self.realm or "/token").path:
            return await self._issue_token(request)
        match request.path.strip("/").split("/"):
            case ["v2"]:
                return self._challenge(request) or _json_answer({})
            case ["v2", *parts, "manifests", reference]:
                repository = "/".join(parts)
                return self._challenge(request, repository) or self._manifest(
                    request, repository, reference
                )
            case ["v2", *parts, "blobs", digest]:
                return self._challenge(request, "/".join(parts)) or self._blob(digest)
        return web.Response(status=404, text="404 page not found")

    def _manifest(self, request: web.Request, repository: str, reference: str) -> web.Response:
        digest = self._tags.get((repository, reference), reference)
        if (repository, digest) not in self._links:
            return _error(404, "MANIFEST_UNKNOWN")
        media_type = self._types[digest]
        accepted = _accepted(request)
        if media_type not in accepted:
            if media_type == OCI_IMAGE or (media_type == OCI_INDEX and self.converts):
                return _error(404, "MANIFEST_UNKNOWN")
            if media_type == DOCKER.index and reference != digest:
                # One platform's image, as if all the world had it.
                digest, media_type = self._child(digest, "amd64"), DOCKER.image
                if DOCKER.image not in accepted and not self.converts:
                    return _error(400, "MANIFEST_INVALID")
            if media_type == DOCKER.image not in accepted and self.converts:
                digest, media_type = self._store(_json(_IN_SCHEMA_1)), SCHEMA_1
        headers = {"Docker-Content-Digest": digest, "Content-Type": media_type}
        return web.Response(body=self._blobs[digest], headers=headers)

    def _child(self, index: str, architecture: str) -> str:
        entries = json.loads(self._blobs[index])["manifests"]
        chosen = (each for each in entries if each["platform"]["architecture"] == architecture)
        digest: str = next(chosen)["digest"]
        return digest

    def _blob(self, digest: str) -> web.Response:
        if digest not in self._blobs:
            return _error(404, "BLOB_UNKNOWN")
        return web.Response(body=self._blobs[digest], headers={"Docker-Content-Digest": digest})

    def _challenge(
        self, request: web.Request, repository: str | None = None
    ) -> web.Response | None:
        """A 401 for whoever may not read `repository`, or here at all."""
        if not self.users and not self.tokens:
            return None
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        if not self.tokens:
            if scheme == "Basic" and self._user(value) is not None:
                return None
            return _error(401, "UNAUTHORIZED", 'Basic realm="fake"')
        granted = self._granted.get(value) if scheme == "Bearer" else None
        if granted is not None and (repository is None or repository in granted):
            return None
        challenge = f'Bearer realm="{self.realm or f"{self.url}/token"}",service="{self.host}"'
        if repository is not None:
            challenge += f',scope="repository:{repository}:pull"'
        if scheme == "Bearer":
            error = "invalid_token" if granted is None else "insufficient_scope"
            challenge += f',error="{error}"'
        return _error(401, "UNAUTHORIZED", challenge)

    async def _issue_token(self, request: web.Request) -> web.Response:
        """A token for whom the login is good, and for anonymous callers, who may do less.

        (distribution: docs/spec/auth/token.md and oauth.md)
        """
        if request.method == "POST":
            form = await request.post()
            user = self.identity_tokens.get(str(form.get("refresh_token")))
            if form.get("grant_type") != "refresh_token" or user is None:
                return _json_answer({"error": "invalid_grant"}, 400)
            return self._granting(user, [str(form.get("scope", ""))], ["access_token"])
        _, _, value = request.headers.get("Authorization", "").partition(" ")
        user = self._user(value)
        if value and user is None and not self.welcoming:
            return _error(401, "UNAUTHORIZED", 'Basic realm="fake"')
        return self._granting(user, request.query.getall("scope", []), self.token_names)

    def _granting(self, user: str | None, scopes: list[str], names: list[str]) -> web.Response:
        wanted = {scope.split(":")[1] for scope in scopes if scope.count(":") > 1}
        token = secrets.token_hex(16)
        anyone = wanted if user is not None or not self.users else wanted & self.public
        self._granted[token] = frozenset(anyone)
        return _json_answer(dict.fromkeys(names, token) | self.token_answer)

    def _user(self, credentials: str) -> str | None:
        """The user whose name and password these are."""
        try:
            name, _, password = base64.b64decode(credentials).decode().partition(":")
        except ValueError:
            return None
        return name if name and self.users.get(name) == password else None

    def accept_tokens_of(self, other: "FakeRegistry") -> None:
        """From now on, what `other` issues is good here too."""
        self._granted = other._granted

    def revoke_tokens(self) -> None:
        """Every token issued so far is refused from now on."""
        self._granted.clear()

    # Real bytes

    def _store_image(self, payload: bytes, platform: str, types: Types) -> str:
        system, architecture = platform.split("/")
        archive = _archive(payload)
        layer = gzip.compress(archive, mtime=0)
        diff_ids = [_digest_of(archive)]
        config = _json(
            {
                "architecture": architecture,
                "os": system,
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            }
        )
        manifest = {
            "schemaVersion": 2,
            "mediaType": types.image,
            "config": self._descriptor(types.config, config),
            "layers": [self._descriptor(types.layer, layer)],
        }
        digest = self._store(_json(manifest))
        self._types[digest] = types.image
        return digest

    def _descriptor(self, media_type: str, content: bytes) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": self._store(content), "size": len(content)}

    def _store(self, content: bytes) -> str:
        digest = _digest_of(content)
        self._blobs[digest] = content
        return digest

    def content(self, digest: str) -> bytes:
        """The bytes behind a digest."""
        return self._blobs[digest]

    def media_type(self, digest: str) -> str | None:
        """The type of a manifest, None for a blob."""
        return self._types.get(digest)


_IN_SCHEMA_1 = {"schemaVersion": 1, "name": "demo/app", "fsLayers": [], "signatures": []}


def _accepted(request: web.Request) -> set[str]:
    """The media types that a client lists; `*/*` counts for nothing, as with distribution."""
    listed = ",".join(request.headers.getall("Accept", []))
    return {each.partition(";")[0].strip() for each in listed.split(",")}


def _error(status: int, code: str, challenge: str | None = None) -> web.Response:
    errors = {"errors": [{"code": code, "message": "secret body of the registry"}]}
    answer = _json_answer(errors, status)
    if challenge:
        answer.headers["WWW-Authenticate"] = challenge
    return answer


def _json_answer(content: Any, status: int = 200) -> web.Response:
    return web.Response(
        status=status, body=_json(content), headers={"Content-Type": "application/json"}
    )


def _archive(payload: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("payload")
        member.size = len(payload)
        archive.addfile(member, io.BytesIO(payload))
    return file.getvalue()


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
