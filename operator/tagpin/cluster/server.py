"""The webhook server: TLS and HTTP on one side, kopf's admission function on the other.

kopf's own server limits bodies to 1 MiB, answers `allowed: true` on unknown paths and drops
its listener when a certificate changes; and kopf's patches, diffs of whole pods, would cost
most of a request. So the answer travels beside kopf, in an `Exchange`.
"""

import asyncio
import base64
import contextlib
import logging
import re
import ssl
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol

import kopf
import orjson
from aiohttp import web
from kopf._core.engines.admission import WebhookError

from tagpin.errors import BadReview
from tagpin.verdict import Verdict

MAX_BODY = 8 * 2**20
"""Bytes of a review: etcd's 1.5 MiB twice over, as JSON, with room."""
LARGE_BODY = 2**20
MAX_LARGE = 2
"""Larger bodies that are taken in at the same time: each is many times its size in memory."""
ARRIVAL = 5.0
"""Seconds for a review to arrive."""
MARGIN = 0.5
"""Seconds kept back from the API server's time-out, for the way back."""

_DURATION = re.compile(r"(?:([0-9]+)m)?(?:([0-9]+(?:\.[0-9]+)?)s)?", re.ASCII)

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Exchange:
    """What kopf's interface cannot carry: the request goes in, the verdict comes out."""

    request: Mapping[str, Any]
    budget: float | None
    """Seconds for the answer, None where the caller named none."""
    verdict: Verdict | None = field(default=None)


exchange: ContextVar[Exchange] = ContextVar("exchange")
"""The exchange of the request in hand; kopf's asynchronous handlers see it."""


class Certificate(Protocol):
    """What TLS is served with; `ready` once there is something to serve."""

    @property
    def context(self) -> ssl.SSLContext: ...  # noqa: D102

    @property
    def ready(self) -> asyncio.Event: ...  # noqa: D102


class WebhookServer:
    """Serves `POST /<path>` over HTTPS; assign it to kopf's `settings.admission.server`.

    A path is the id of a kopf handler. It listens once there is a certificate. What is no
    review of a pod is answered with a 4xx and counted by `refused`, told the status.
    """

    def __init__(
        self,
        certificate: Certificate,
        *,
        paths: Collection[str],
        address: str = "",
        port: int = 9443,
        refused: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._certificate = certificate
        self._paths = frozenset(paths)
        self._address = address
        self._port = port
        self._refused = refused
        self._large = asyncio.Semaphore(MAX_LARGE)
        self.is_listening = False
        self.is_draining = False

    async def __call__(self, dispatch: kopf.WebhookFn) -> AsyncIterator[kopf.WebhookClientConfig]:
        """Serve until cancelled (kopf.WebhookServerProtocol)."""

        async def review(request: web.Request) -> web.Response:
            return await self._review(dispatch, request)

        await self._certificate.ready.wait()
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_route("*", "/{path:.*}", review)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=10)
        await runner.setup()
        try:
            site = web.TCPSite(
                runner,
                self._address or None,
                self._port,
                ssl_context=self._certificate.context,
                backlog=1024,
            )
            await site.start()
            self.is_listening = True
            log.info("listening for admission reviews on port %d", self._port)
            yield {}  # kopf reads it only where it manages the webhook configuration
            await asyncio.Event().wait()
        finally:
            self.is_listening = False
            await runner.cleanup()

    def drain(self) -> None:
        """Ask callers to come back elsewhere: Go's client resends no POST on a dead connection."""
        self.is_draining = True

    async def _review(self, dispatch: kopf.WebhookFn, request: web.Request) -> web.Response:
        path = request.match_info["path"]
        try:
            if path not in self._paths:
                raise web.HTTPNotFound(text=f"no webhook at {'/' + path[:200]!r}")
            if request.method != "POST":
                raise web.HTTPMethodNotAllowed(request.method, ["POST"])
            if request.content_type != "application/json":
                raise web.HTTPUnsupportedMediaType(text="expected application/json")
            answer = await self._answer(dispatch, path, request)
            response = web.Response(body=orjson.dumps(answer), content_type="application/json")
        except web.HTTPException as error:
            response = self._refusal(request, error.status, error.text or error.reason)
        except (BadReview, WebhookError) as error:
            response = self._refusal(request, HTTPStatus.BAD_REQUEST, str(error))
        if self.is_draining:
            response.force_close()
        return response

    async def _answer(
        self, dispatch: kopf.WebhookFn, path: str, request: web.Request
    ) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        started = loop.time()
        budget = _budget(request.query.get("timeout", ""))
        is_large = request.content_length is None or request.content_length > LARGE_BODY
        async with self._large if is_large else contextlib.nullcontext():
            try:
                async with asyncio.timeout(ARRIVAL):
                    body = await request.read()
            except TimeoutError:
                raise web.HTTPRequestTimeout(text="the review did not arrive in time") from None
            review = _parse(body)
            del body
            if budget is not None:
                budget -= loop.time() - started
            mine = Exchange(review["request"], budget)
            exchange.set(mine)
            answer = dict(await dispatch(_outline(review), webhook=path, headers={}, sslpeer={}))
        _add(mine.verdict, answer["response"])
        return answer

    def _refusal(self, request: web.Request, status: int, reason: str) -> web.Response:
        self._refused(status)
        log.warning(
            "refused a request that is no review: %s",
            reason,
            extra={"path": request.path[:200], "status": int(status), "peer": request.remote},
        )
        response = web.Response(status=status, text=f"{reason}\n")
        response.force_close()  # the body may not have been read
        return response


def _parse(body: bytes) -> Any:
    """The review; raises BadReview for what the API server never sends."""
    try:
        review = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadReview(f"the body is no JSON: {error}") from error
    match review:
        case {
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": str(),
                "operation": "CREATE" | "UPDATE" as operation,
                "resource": {"group": "", "version": "v1", "resource": "pods"},
                "userInfo": {},
                "object": {"metadata": {}},
            } as request,
        }:
            if operation == "UPDATE" and not _is_object(request.get("oldObject")):
                raise BadReview("an UPDATE without the old pod")
            return review
        case {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}:
            raise BadReview("expected the CREATE or UPDATE of a pod (v1), by a user")
    raise BadReview("expected an AdmissionReview of admission.k8s.io/v1")


def _outline(review: Any) -> Any:
    """The review without its pods: kopf compares and copies them whole, and never needs them."""
    request = review["request"]
    outline = {
        key: {"metadata": {"name": _text(request[key]["metadata"].get("name"))}}
        for key in ("object", "oldObject")
        if request.get(key)
    }
    return review | {"request": request | outline}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _is_object(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("metadata"), dict)


def _budget(timeout: str) -> float | None:
    """Seconds for the answer by the API server's `?timeout=5s`, less a margin."""
    match = _DURATION.fullmatch(timeout)
    if match is None or not timeout:
        return None
    seconds = 60 * int(match[1] or 0) + float(match[2] or 0)
    return max(seconds - MARGIN, seconds / 2)


def _add(verdict: Verdict | None, response: Any) -> None:
    """Write what kopf cannot into its answer."""
    if verdict is None:
        return
    if verdict.allowed and verdict.operations:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(orjson.dumps(verdict.operations)).decode()
    if verdict.audit:
        response["auditAnnotations"] = dict(verdict.audit)
