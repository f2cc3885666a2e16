"""An OCI registry in this process, with the faults that real ones have.

    async with FakeRegistry() as registry:
        digest = registry.push_image("demo/app", "v1", b"payload")
        …                                  # ask http://{registry.host}/v2/demo/app/manifests/v1
        registry.fault(answering(503))     # from now on it is down
        registry.heal()
        print(registry.requests)

Everything it holds is made of real bytes, by the same function every time: the same push has the
same digest. tests/contract holds it against real registries.
"""

import asyncio
import base64
import gzip
import hashlib
import io
import json
import secrets
import ssl
import tarfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_IMAGE = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Fault = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]
"""Answers a request instead of the handler, or changes what the handler answers."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it arrived; header names are in lower case.

    `connection` is the client's port: equal for requests over one connection.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str] = field(repr=False)
    connection: int = field(repr=False)

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
    challenges with `realm`, its own `/token` unless told otherwise. Without users, `tokens` makes
    it hand out tokens to everyone.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        users: Mapping[str, str] | None = None,
        tokens: bool = False,
    ) -> None:
        self.users = dict(users or {})
        self.tokens = tokens
        self.realm: str | None = None
        self.token_answer: dict[str, Any] = {"expires_in": 300}
        self.requests: list[Seen] = []
        self._address = host
        self._port = port
        self._tls = tls
        self._rules: list[_Rule] = []
        self._blobs: dict[str, bytes] = {}
        self._types: dict[str, str] = {}
        self._tags: dict[tuple[str, str], str] = {}
        self._granted: dict[str, tuple[str | None, str]] = {}
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
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # What it holds

    def push_image(
        self, repository: str, tag: str, payload: bytes = b"", *, platform: str = "linux/amd64"
    ) -> str:
        """Make an image whose only layer holds `payload`, tag it, and return its digest."""
        digest = self._store_image(payload, platform)
        return self.tag(repository, tag, digest)

    def push_index(self, repository: str, tag: str, platforms: Mapping[str, bytes]) -> str:
        """Make an index of one image per platform (`linux/arm64` → payload) and tag it."""
        entries = []
        for platform, payload in platforms.items():
            digest = self._store_image(payload, platform)
            system, architecture = platform.split("/")
            entries.append(
                {
                    "mediaType": OCI_IMAGE,
                    "digest": digest,
                    "size": len(self._blobs[digest]),
                    "platform": {"architecture": architecture, "os": system},
                }
            )
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        return self.push_manifest(repository, tag, _json(index), OCI_INDEX)

    def push_manifest(self, repository: str, tag: str, body: bytes, media_type: str) -> str:
        """Store any bytes as a manifest of any type, tag them, and return their digest."""
        digest = self._store(body)
        self._types[digest] = media_type
        return self.tag(repository, tag, digest)

    def tag(self, repository: str, tag: str, digest: str) -> str:
        """Let a tag name what was pushed before; a tag that exists moves."""
        self._tags[repository, tag] = digest
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
        self.requests.append(Seen(request.method, request.path, query, headers, port))
        rule = next((each for each in self._rules if each.takes(request)), None)
        if rule is not None:
            return await rule.fault(request, self._answer)
        return await self._answer(request)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/token":
            return self._issue_token(request)
        match request.path.strip("/").split("/"):
            case ["v2"]:
                return web.json_response({})
            case ["v2", *parts, "manifests", tag]:
                repository = "/".join(parts)
                return self._challenge(request, repository) or self._manifest(
                    request, repository, tag
                )
            case ["v2", *parts, "blobs", digest]:
                return self._challenge(request, "/".join(parts)) or self._blob(digest)
        return _error(404, "UNSUPPORTED")

    def _manifest(self, request: web.Request, repository: str, tag: str) -> web.Response:
        digest = tag if tag in self._types else self._tags.get((repository, tag))
        if digest is None:
            known = any(name == repository for name, _ in self._tags)
            return _error(404, "MANIFEST_UNKNOWN" if known else "NAME_UNKNOWN")
        media_type = self._types[digest]
        accepted = request.headers.get("Accept", "*/*")
        if media_type not in accepted and "*/*" not in accepted:
            return _error(404, "MANIFEST_UNKNOWN")
        headers = {"Docker-Content-Digest": digest, "Content-Type": media_type}
        return web.Response(body=self._blobs[digest], headers=headers)

    def _blob(self, digest: str) -> web.Response:
        if digest not in self._blobs:
            return _error(404, "BLOB_UNKNOWN")
        return web.Response(body=self._blobs[digest], headers={"Docker-Content-Digest": digest})

    def _challenge(self, request: web.Request, repository: str) -> web.Response | None:
        """A 401 for whoever may not read `repository`."""
        if not self.users and not self.tokens:
            return None
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        if not self.tokens:
            if scheme == "Basic" and self._user(value) is not None:
                return None
            return _error(401, "UNAUTHORIZED", 'Basic realm="fake"')
        user, granted = self._granted.get(value, (None, ""))
        if scheme == "Bearer" and granted == repository and (user or not self.users):
            return None
        scope = f"repository:{repository}:pull"
        realm = self.realm or f"{self.url}/token"
        challenge = f'Bearer realm="{realm}",service="{self.host}",scope="{scope}"'
        return _error(401, "UNAUTHORIZED", challenge)

    def _issue_token(self, request: web.Request) -> web.Response:
        """A token for whom the login is good, and for anonymous callers, who may do less."""
        _, _, value = request.headers.get("Authorization", "").partition(" ")
        user = self._user(value)
        if value and user is None:
            return _error(401, "UNAUTHORIZED", 'Basic realm="fake"')
        token = secrets.token_hex(16)
        self._granted[token] = (user, request.query["scope"].split(":")[1])
        return web.json_response({"token": token} | self.token_answer)

    def _user(self, credentials: str) -> str | None:
        name, _, password = base64.b64decode(credentials).decode().partition(":")
        return name if name and self.users.get(name) == password else None

    def revoke_tokens(self) -> None:
        """Every token issued so far is refused from now on."""
        self._granted.clear()

    # Real bytes

    def _store_image(self, payload: bytes, platform: str) -> str:
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
            "mediaType": OCI_IMAGE,
            "config": self._descriptor(OCI_CONFIG, config),
            "layers": [self._descriptor(OCI_LAYER, layer)],
        }
        digest = self._store(_json(manifest))
        self._types[digest] = OCI_IMAGE
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


# Faults


def answering(
    status: int, headers: Mapping[str, str] | None = None, body: bytes = b'{"errors":[]}'
) -> Fault:
    """Always this answer."""

    async def fault(_request: web.Request, _handle: Handler) -> web.StreamResponse:
        return web.Response(status=status, headers=headers, body=body)

    return fault


def redirecting(url: str, status: int = 307) -> Fault:
    """To another place: `url` with `{path}` replaced by the path that was asked for."""

    async def fault(request: web.Request, _handle: Handler) -> web.StreamResponse:
        location = url.replace("{path}", request.path)
        return web.Response(status=status, headers={"Location": location}, body=b"moved")

    return fault


def with_header(name: str, *values: str) -> Fault:
    """The right answer, but for a header: absent, changed, or repeated."""

    async def fault(request: web.Request, handle: Handler) -> web.StreamResponse:
        response = await handle(request)
        response.headers.popall(name, None)
        for value in values:
            response.headers.add(name, value)
        return response

    return fault


def with_body(body: bytes) -> Fault:
    """The right headers over other bytes."""

    async def fault(request: web.Request, handle: Handler) -> web.StreamResponse:
        response = await handle(request)
        return web.Response(
            status=response.status,
            headers={name: response.headers[name] for name in response.headers if name in _KEPT},
            body=body,
        )

    return fault


_KEPT = ("Content-Type", "Docker-Content-Digest")


def hanging() -> Fault:
    """Accepts and never answers."""

    async def fault(_request: web.Request, _handle: Handler) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets this event")

    return fault


def resetting() -> Fault:
    """Drops the connection before any answer."""

    async def fault(request: web.Request, _handle: Handler) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    return fault


def breaking_off() -> Fault:
    """Promises a long body and drops the connection in the middle of it."""

    async def fault(request: web.Request, _handle: Handler) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": OCI_IMAGE, "Content-Length": "999"})
        await response.prepare(request)
        await response.write(b"{")
        if request.transport is not None:
            request.transport.abort()
        return response

    return fault


def streaming(chunk: bytes, pause: float = 0.0) -> Fault:
    """A chunked body without an end: as fast as it is read, or a drip every `pause` seconds."""

    async def fault(request: web.Request, _handle: Handler) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": OCI_IMAGE})
        response.enable_chunked_encoding()
        await response.prepare(request)
        while True:
            await response.write(chunk)
            await asyncio.sleep(pause)

    return fault


def _error(status: int, code: str, challenge: str | None = None) -> web.Response:
    headers = {"WWW-Authenticate": challenge} if challenge else None
    errors = {"errors": [{"code": code, "message": "secret body of the registry"}]}
    return web.json_response(errors, status=status, headers=headers)


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
