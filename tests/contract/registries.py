"""The fake registry and the real ones behind one face: push an image, be told how to log in."""

import asyncio
import base64
import ssl
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import aiohttp
import jwt
import orjson
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from yarl import URL

from cluster.authority import Authority
from cluster.programs import LOOPBACK, CraneRegistry, Distribution, Registry, TokenAuth, free_ports
from cluster.requirement import require_programs
from fakes.registry import FakeRegistry
from tagpin.registry.places import RegistrySettings

ALICE = ("alice", "pa55word")
IDENTITY_TOKEN = "refresh.alice"
"""What alice may post to a token server in place of her password."""
PUBLIC = "public/app"
"""The repository that needs no login where tokens are asked for."""

KINDS = (
    "fake",
    "fake-basic",
    "fake-bearer",
    "distribution",
    "distribution-basic",
    "distribution-bearer",
    "crane",
)
"""Those with a login speak TLS, the others plain http."""

WITH_LOGIN = tuple(kind for kind in KINDS if "-" in kind)
WITHOUT_LOGIN = tuple(kind for kind in KINDS if "-" not in kind)
WITH_TOKENS = tuple(kind for kind in KINDS if kind.endswith("-bearer"))


class Push(Protocol):
    async def __call__(self, made: FakeRegistry, repository: str, tag: str, digest: str) -> None:
        """Copy a manifest and all below it from where it was made, under a tag."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A running registry, whatever it is."""

    host: str
    push: Push
    listed: tuple[RegistrySettings, ...]
    login: tuple[str, str] | None = None
    tls: ssl.SSLContext = field(default_factory=ssl.create_default_context)

    @property
    def url(self) -> str:
        return f"{'http' if self.login is None else 'https'}://{self.host}"


@asynccontextmanager
async def running(kind: str, folder: Path) -> AsyncIterator[Backend]:
    """Start a registry of `KINDS`; skip the test where its program was not built."""
    program, _, auth = kind.partition("-")
    authority = Authority(folder)
    match program:
        case "fake":
            async with _fake(authority, auth) as backend:
                yield backend
        case "distribution":
            require_programs("registry")
            async with _distribution(authority, auth) as backend:
                yield backend
        case _:
            require_programs("crane")
            async with _started(CraneRegistry()) as registry:
                listed = (RegistrySettings(registry.host, http=True),)
                yield Backend(registry.host, Uploader(registry.url), listed)


@asynccontextmanager
async def _fake(authority: Authority, auth: str) -> AsyncIterator[Backend]:
    settings: dict[str, Any] = {}
    if auth:
        settings = {"tls": _server_tls(authority), "users": dict([ALICE])}
    if auth == "bearer":
        settings |= {
            "tokens": True,
            "public": [PUBLIC],
            "identity_tokens": {IDENTITY_TOKEN: ALICE[0]},
        }
    async with FakeRegistry(**settings) as fake:

        async def push(made: FakeRegistry, repository: str, tag: str, digest: str) -> None:
            body, media_type = made.content(digest), made.media_type(digest)
            for child in orjson.loads(body).get("manifests", []):
                await push(made, repository, child["digest"], child["digest"])
            fake.push_manifest(repository, tag, body, str(media_type))

        if auth:
            listed = RegistrySettings(fake.host, ca=authority.certificate.read_text())
            yield Backend(fake.host, push, (listed,), ALICE, _trusting(authority))
        else:
            yield Backend(fake.host, push, (RegistrySettings(fake.host, http=True),))


@asynccontextmanager
async def _distribution(authority: Authority, auth: str) -> AsyncIterator[Backend]:
    if not auth:
        async with _started(Distribution()) as registry:
            listed = (RegistrySettings(registry.host, http=True),)
            yield Backend(registry.host, Uploader(registry.url), listed)
        return
    certificate = authority.issue("registry", hosts=[LOOPBACK])
    ca, trusting = authority.certificate.read_text(), _trusting(authority)
    if auth == "basic":
        headers = {"Authorization": aiohttp.encode_basic_auth(*ALICE)}
        async with _started(Distribution(users=dict([ALICE]), certificate=certificate)) as registry:
            push = Uploader(registry.url, headers, trusting)
            listed = (RegistrySettings(registry.host, ca=ca),)
            yield Backend(registry.host, push, listed, ALICE, trusting)
        return
    async with TokenServer(authority) as tokens:
        auth_settings = TokenAuth(
            realm=f"https://{tokens.host}/token",
            service="registry.test",
            issuer="issuer.test",
            certificates=authority.certificate,
        )
        async with _started(Distribution(certificate=certificate, token=auth_settings)) as registry:
            may_push = tokens.issue(("demo/app", PUBLIC), "pull", "push")
            push = Uploader(registry.url, {"Authorization": f"Bearer {may_push}"}, trusting)
            both = (RegistrySettings(registry.host, ca=ca), RegistrySettings(tokens.host, ca=ca))
            yield Backend(registry.host, push, both, ALICE, trusting)


@asynccontextmanager
async def _started(registry: Registry) -> AsyncIterator[Registry]:
    """A program starts and ends without holding the event loop."""
    # In this thread: a child dies with the thread that started it.
    registry.start()
    try:
        yield registry
    finally:
        await asyncio.to_thread(registry.close)


class Uploader:
    """Pushes to a real registry over the distribution API (distribution-spec: Push)."""

    def __init__(
        self,
        url: str,
        headers: dict[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._url = URL(url)
        self._headers = headers or {}
        self._tls = tls or ssl.create_default_context()

    async def __call__(self, made: FakeRegistry, repository: str, tag: str, digest: str) -> None:
        async with aiohttp.ClientSession(headers=self._headers) as session:
            await self._manifest(session, made, repository, tag, digest)

    async def _manifest(
        self,
        session: aiohttp.ClientSession,
        made: FakeRegistry,
        repository: str,
        tag: str,
        digest: str,
    ) -> None:
        body = made.content(digest)
        manifest = orjson.loads(body)
        for child in manifest.get("manifests", []):
            await self._manifest(session, made, repository, child["digest"], child["digest"])
        config = [manifest["config"]] if "config" in manifest else []
        for blob in (*config, *manifest.get("layers", [])):
            await self._blob(session, repository, blob["digest"], made.content(blob["digest"]))
        place = self._url / "v2" / repository / "manifests" / tag
        await self._send(session, "PUT", place, body, str(made.media_type(digest)))

    async def _blob(
        self, session: aiohttp.ClientSession, repository: str, digest: str, content: bytes
    ) -> None:
        uploads = URL(f"{self._url}/v2/{repository}/blobs/uploads/")
        location = (await self._send(session, "POST", uploads)).headers["Location"]
        place = uploads.join(URL(location)).extend_query(digest=digest)
        await self._send(session, "PUT", place, content, "application/octet-stream")

    async def _send(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: URL,
        body: bytes = b"",
        content_type: str = "application/octet-stream",
    ) -> aiohttp.ClientResponse:
        async with session.request(
            method, url, data=body, headers={"Content-Type": content_type}, ssl=self._tls
        ) as response:
            assert response.ok, (method, url, response.status, await response.text())
            return response


class TokenServer:
    """Issues tokens that distribution accepts (distribution: docs/spec/auth/jwt.md)."""

    def __init__(self, authority: Authority) -> None:
        issued = authority.issue("issuer", hosts=[LOOPBACK])
        certificate = x509.load_pem_x509_certificate(issued.certificate.read_bytes())
        self._chain = [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()]
        self._key = issued.key.read_bytes()
        self._tls = _server_tls(authority)
        (port,) = free_ports(1)
        self.host = f"{LOOPBACK}:{port}"
        app = web.Application()
        app.router.add_get("/token", self._answer)
        app.router.add_post("/token", self._answer_post)
        self._runner = web.AppRunner(app, access_log=None)

    def issue(self, repositories: Iterable[str], *actions: str) -> str:
        """A token for some repositories, good for some minutes."""
        now = int(time.time())
        claims = {
            "iss": "issuer.test",
            "sub": ALICE[0],
            "aud": "registry.test",
            "exp": now + 300,
            "nbf": now - 10,
            "iat": now,
            "jti": str(time.monotonic_ns()),
            "access": [
                {"type": "repository", "name": name, "actions": list(actions)}
                for name in repositories
            ],
        }
        return jwt.encode(claims, self._key, "ES256", {"x5c": self._chain})

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        host, _, port = self.host.partition(":")
        await web.TCPSite(self._runner, host, int(port), ssl_context=self._tls).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        given = request.headers.get("Authorization")
        if given not in (None, aiohttp.encode_basic_auth(*ALICE)):
            return web.Response(status=401)
        repository = request.query["scope"].split(":")[1]
        actions = ("pull",) if given or repository == PUBLIC else ()
        return web.json_response({"token": self.issue([repository], *actions), "expires_in": 300})

    async def _answer_post(self, request: web.Request) -> web.Response:
        """(distribution: docs/spec/auth/oauth.md)"""
        form = await request.post()
        if (form["grant_type"], form["refresh_token"]) != ("refresh_token", IDENTITY_TOKEN):
            return web.json_response({"error": "invalid_grant"}, status=400)
        repository = str(form["scope"]).split(":")[1]
        token = self.issue([repository], "pull")
        return web.json_response({"access_token": token, "expires_in": 300})


def _server_tls(authority: Authority) -> ssl.SSLContext:
    issued = authority.issue("server", hosts=[LOOPBACK])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.certificate, issued.key)
    return context


def _trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority.certificate)
