"""What is wrong with real registries, to be given to a FakeRegistry.

    registry.fault(answering(503), times=1)
    registry.fault(with_header("Docker-Content-Digest"), method="HEAD")

What no HTTP library would send is RawRegistry's.
"""

import asyncio
import gzip
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

OCI_IMAGE = "application/vnd.oci.image.manifest.v1+json"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Fault = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]
"""Answers a request instead of the handler, or changes what the handler answers."""


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
        return web.Response(status=response.status, headers=_kept(response), body=body)

    return fault


def together(*faults: Fault) -> Fault:
    """All of these; the first one has the last word."""

    async def fault(request: web.Request, handle: Handler) -> web.StreamResponse:
        for each in reversed(faults):
            handle = _handler_with(each, handle)
        return await handle(request)

    return fault


def _handler_with(fault: Fault, handle: Handler) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await fault(request, handle)

    return handler


def afterwards(act: Callable[[], object]) -> Fault:
    """The right answer; then `act` is called, to change what the next one is."""

    async def fault(request: web.Request, handle: Handler) -> web.StreamResponse:
        response = await handle(request)
        act()
        return response

    return fault


def static_hosting() -> Fault:
    """Manifests are files like any other."""
    return together(
        with_header("Docker-Content-Digest"),
        with_header("Content-Type", "application/octet-stream"),
    )


def compressed(encoding: str | None = "gzip") -> Fault:
    """The right answer in gzip, which its Content-Encoding calls `encoding`, if anything."""

    async def fault(request: web.Request, handle: Handler) -> web.StreamResponse:
        response = await handle(request)
        headers = _kept(response) | ({"Content-Encoding": encoding} if encoding else {})
        return web.Response(
            status=response.status, headers=headers, body=gzip.compress(_body(response))
        )

    return fault


def chunked(size: int = 100) -> Fault:
    """The right answer in chunks of `size` bytes, its length untold."""

    async def fault(request: web.Request, handle: Handler) -> web.StreamResponse:
        answer = await handle(request)
        response = web.StreamResponse(status=answer.status, headers=_kept(answer))
        response.enable_chunked_encoding()
        await response.prepare(request)
        body = _body(answer) if request.method != "HEAD" else b""
        for start in range(0, len(body), size):
            await response.write(body[start : start + size])
        return response

    return fault


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


def refusing_basic() -> Fault:
    """Takes a password for a mistake, wherever a token is wanted (ECR Public)."""

    async def fault(request: web.Request, handle: Handler) -> web.StreamResponse:
        if request.headers.get("Authorization", "").startswith("Basic"):
            return web.Response(status=400, body=b'{"errors":[{"code":"UNSUPPORTED"}]}')
        return await handle(request)

    return fault


def refusing_cookies() -> Fault:
    """Gives everyone a cookie, and refuses who brings it back (Harbor)."""

    async def fault(request: web.Request, handle: Handler) -> web.StreamResponse:
        if "Cookie" in request.headers:
            return web.Response(status=403, body=b'{"errors":[{"code":"DENIED"}]}')
        response = await handle(request)
        response.headers.add("Set-Cookie", "sid=1; Path=/; Secure; HttpOnly")
        response.headers.add("Set-Cookie", "_gorilla_csrf=1; Path=/; Secure")
        return response

    return fault


def _kept(response: web.StreamResponse) -> dict[str, str]:
    names = ("Content-Type", "Docker-Content-Digest")
    return {name: response.headers[name] for name in names if name in response.headers}


def _body(response: web.StreamResponse) -> bytes:
    body = response.body if isinstance(response, web.Response) else None
    return body if isinstance(body, bytes) else b""
