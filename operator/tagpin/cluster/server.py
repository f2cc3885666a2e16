"""The webhook server: TLS and HTTP on one side, kopf's admission function on the other.

kopf's own server limits bodies to 1 MiB, answers `allowed: true` on unknown paths and drops
its listener when a certificate changes; and kopf's patches, diffs of whole pods, would cost
most of a request. So what is known is answered without kopf, and what it hands to a handler is
answered beside it, in an `Exchange`.
"""

import asyncio
import base64
import logging
import re
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import parse_qs

import kopf
import orjson
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from kopf._core.engines.admission import WebhookError

from tagpin.cluster.clients import Clients
from tagpin.cluster.listener import USUAL, Caller, Hush, Limits, Listener, Rejection
from tagpin.errors import BadReview
from tagpin.verdict import Verdict

MAX_BODY = 8 * 2**20
"""Bytes of a review: etcd's 1.5 MiB twice over, as JSON, with room."""
LARGE_BODY = 256 * 2**10
MAX_LARGE = 2
"""Larger bodies that are taken in at the same time: each is many times its size in memory."""
MAX_IN_HAND = 16 * 2**20
"""Bytes of all other reviews that are answered at the same time: as Python's objects they may be 24
times as large, and the memory of the pod must hold that (manifests/base/deployment.yaml)."""
MAX_OF_ONE = MAX_IN_HAND // 4
"""Bytes of those of one namespace: a hundred large pods."""
ARRIVAL = 5.0
"""Seconds for a review to arrive."""
TIMEOUT = 5.0
"""The API server's time-out where it names none of use: that of our own manifests."""
MARGIN = 0.5
"""Seconds kept back from it, for the way back."""
LAST_ANSWER = 10.0
"""Seconds at the end of a drain for what is still under way: twice what a review may take."""

# https://pkg.go.dev/time#ParseDuration, but for signs: less than nothing is of no use.
_DURATION = re.compile(r"(?:([0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})(ns|us|µs|μs|ms|s|m|h))")
_NOTHING = nullcontext()
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Exchange:
    """What kopf's interface cannot carry: the request goes in, the verdict comes out."""

    request: Mapping[str, Any]
    budget: float
    """Seconds for the answer."""
    limit: float
    """Seconds after which there must be one, whatever happens: the caller will not wait longer."""
    verdict: Verdict | None = field(default=None)


exchange: ContextVar[Exchange] = ContextVar("exchange")
"""The exchange of the request in hand; kopf's asynchronous handlers see it."""


Known = Callable[[str, Mapping[str, Any]], Verdict | None]
"""The verdict on a request to a path, where nobody need be asked for it."""


class Certificate(Protocol):
    """What the next handshake is made with; `ready` once there is something to serve."""

    @property
    def context(self) -> ssl.SSLContext: ...  # noqa: D102

    @property
    def ready(self) -> asyncio.Event: ...  # noqa: D102


class WebhookServer:
    """Serves `POST /<path>` over HTTPS; assign it to kopf's `settings.admission.server`.

    A path is the id of a kopf handler, which is asked unless the answer is `known`. It listens
    once there is a certificate. What is no review of a pod is answered with a 4xx, and what there
    is no room for with a 503; `refused` is told the status, `rejected` of connections that come to
    nothing. Only `clients` may call, if there are any; those with a flaw get a 403.
    """

    def __init__(
        self,
        certificate: Certificate,
        *,
        paths: Collection[str],
        known: Known,
        address: str = "",
        port: int = 9443,
        clients: Clients | None = None,
        refused: Callable[[int], None] = lambda _: None,
        rejected: Callable[[Rejection], None] = lambda _: None,
        limits: Limits = USUAL,
    ) -> None:
        self._certificate = certificate
        self._paths = frozenset(paths)
        self._known = known
        self._address = address
        self._port = port
        self._clients = clients
        self._refused = refused
        self._rejected = rejected
        self._limits = limits
        self._hush = Hush()
        self._large = asyncio.Semaphore(MAX_LARGE)
        self._in_hand: Counter[str] = Counter()
        """Bytes by namespace; those that have none in hand are not there."""
        self._all_in_hand = 0
        """Their sum."""
        self.reviews = 0
        """How many reviews are in hand."""
        self.is_listening = False
        self.is_draining = False

    async def __call__(self, dispatch: kopf.WebhookFn) -> AsyncIterator[kopf.WebhookClientConfig]:
        """Serve until cancelled (kopf.WebhookServerProtocol)."""
        under_way: set[asyncio.Task[Any]] = set()

        async def review(request: web.BaseRequest) -> web.Response:
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - whatever runs here runs in one
            under_way.add(task)
            task.add_done_callback(under_way.discard)  # when the answer has been written
            return await self._review(dispatch, request)

        await self._certificate.ready.wait()
        # Without an Application: its routes would take as long as a review is parsed.
        server = web.Server(review, request_factory=_request)
        runner = web.ServerRunner(server, shutdown_timeout=1)
        await runner.setup()
        self._listener = Listener(
            server,
            lambda: self._certificate.context,
            rejected=self._rejected,
            limits=self._limits,
        )
        try:
            await self._listener.start(self._address, self._port)
            self.is_listening = True
            log.info("listening for admission reviews on port %d", self._port)
            yield {}  # kopf reads it only where it manages the webhook configuration
            await asyncio.Event().wait()
        finally:
            self.is_listening = False
            self.is_draining = True
            await self._listener.close()
            await _all_done(under_way)
            await runner.cleanup()

    def drain(self) -> None:
        """Ask callers to come back elsewhere: Go's client resends no POST on a dead connection."""
        self.is_draining = True

    async def _review(self, dispatch: kopf.WebhookFn, request: web.BaseRequest) -> web.Response:
        caller = request.protocol
        assert isinstance(caller, Caller)  # noqa: S101 - our listener makes no others
        caller.has_asked = True
        response = await self._response(dispatch, request, caller)
        # A connection from before the CAs changed has been verified by others.
        is_outdated = self._clients and caller.context is not self._certificate.context
        if self.is_draining or is_outdated:
            response.force_close()
        return response

    async def _response(
        self, dispatch: kopf.WebhookFn, request: web.BaseRequest, caller: Caller
    ) -> web.Response:
        path = request.path.removeprefix("/")
        try:
            if self._clients and (flaw := self._clients.flaw(caller.certificate)):
                raise web.HTTPForbidden(text=flaw)
            if path not in self._paths:
                raise web.HTTPNotFound(text=f"no webhook at {'/' + path[:200]!r}")
            if request.method != "POST":
                raise web.HTTPMethodNotAllowed(request.method, ["POST"])
            if request.content_type != "application/json":
                raise web.HTTPUnsupportedMediaType(text="expected application/json")
            answer = await self._answer(dispatch, path, request, caller)
        except web.HTTPException as error:
            return self._refusal(request, error.status, error.text or error.reason)
        except (BadReview, WebhookError) as error:
            return self._refusal(request, HTTPStatus.BAD_REQUEST, str(error))
        self._listener.answered(caller)
        return web.Response(body=orjson.dumps(answer), content_type="application/json")

    async def _answer(
        self, dispatch: kopf.WebhookFn, path: str, request: web.BaseRequest, caller: Caller
    ) -> dict[str, Any]:
        started = asyncio.get_running_loop().time()
        timeout = _patience(request.query_string)
        budget = max(timeout - MARGIN, timeout / 2)
        is_large = request.content_length is None or request.content_length > LARGE_BODY
        async with self._taking_in(until=started + budget) if is_large else _NOTHING:
            body = await _arrived(request, within=min(ARRIVAL, budget))
            review = _parse(body)
            with self._holding(caller, review["request"], 0 if is_large else len(body)):
                del body
                verdict = self._known(path, review["request"])
                if verdict is None:
                    spent = asyncio.get_running_loop().time() - started
                    mine = Exchange(
                        review["request"],
                        budget=max(0.0, budget - spent),
                        limit=max(0.0, (budget + timeout) / 2 - spent),
                    )
                    exchange.set(mine)
                    await dispatch(_outline(review), webhook=path, headers={}, sslpeer={})
                    verdict = mine.verdict
        if verdict is None:  # then kopf allows what nobody has looked at
            raise BadReview("nobody has decided")
        return _told(verdict, review)

    @asynccontextmanager
    async def _taking_in(self, *, until: float) -> AsyncIterator[None]:
        """For as long as a large body, and what it becomes, is in memory."""
        try:
            async with asyncio.timeout_at(until):
                await self._large.acquire()
        except TimeoutError:
            text = f"a review of more than {LARGE_BODY} bytes had to wait for others for too long"
            raise web.HTTPServiceUnavailable(text=text) from None
        try:
            yield
        finally:
            self._large.release()

    @contextmanager
    def _holding(self, caller: Caller, request: Mapping[str, Any], size: int) -> Iterator[None]:
        """For as long as a review is in hand."""
        namespace = _text(request.get("namespace"))
        if self._in_hand[namespace] + size > MAX_OF_ONE:
            text = f"namespace {namespace[:63]} has too many bytes of reviews under way"
            raise web.HTTPServiceUnavailable(text=text)
        if self._all_in_hand + size > MAX_IN_HAND:
            raise web.HTTPServiceUnavailable(text="too many bytes of reviews are under way")
        self._in_hand[namespace] += size
        self._all_in_hand += size
        self.reviews += 1
        caller.is_busy = True
        try:
            yield
        finally:
            caller.is_busy = False
            self.reviews -= 1
            self._all_in_hand -= size
            self._in_hand[namespace] -= size
            if not self._in_hand[namespace]:
                del self._in_hand[namespace]

    def _refusal(self, request: web.BaseRequest, status: int, reason: str) -> web.Response:
        self._refused(status)
        if self._hush.is_news(request.remote or "", str(status)):
            log.warning(
                "refused a request: %s",
                reason,
                extra={"path": request.path[:200], "status": int(status), "peer": request.remote},
            )
        response = web.Response(status=status, text=f"{reason}\n")
        response.force_close()  # the body may not have been read
        return response


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: web.RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=MAX_BODY)


async def _arrived(request: web.BaseRequest, *, within: float) -> bytes:
    """The body of a request, which may still be on its way."""
    if request.content.is_eof():
        return await request.read()
    try:
        async with asyncio.timeout(within):
            return await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="the review did not arrive in time") from None
    except (OSError, web.RequestPayloadError):
        raise web.HTTPBadRequest(text="the review broke off") from None


async def _all_done(under_way: Collection[asyncio.Task[Any]]) -> None:
    """Return when nothing is under way any more, what comes in meanwhile included.

    aiohttp would stop reading at once, in the middle of a review as well.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(LAST_ANSWER):
            while under_way:
                await asyncio.wait(tuple(under_way))


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
            old = request.get("oldObject")
            if not _is_object(old) and (operation == "UPDATE" or old is not None):
                raise BadReview("an UPDATE without the old pod, or with something else")
            return review
        case {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}:
            raise BadReview("expected the CREATE or UPDATE of a pod (v1), by a user")
    raise BadReview("expected an AdmissionReview of admission.k8s.io/v1")


def _outline(review: Any) -> Any:
    """The review without its pods: kopf compares and copies them whole, and never needs them."""
    return review | {"request": review["request"] | {"object": {}, "oldObject": None}}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _is_object(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("metadata"), dict)


@lru_cache(maxsize=64)
def _patience(query: str) -> float:
    """Seconds for which the caller waits, by its query string: `timeout=5s`."""
    return _timeout(parse_qs(query).get("timeout", [""])[0])


def _timeout(text: str) -> float:
    """Seconds of a Duration of Go; the usual ones for what is none."""
    parts = list(_DURATION.finditer(text))
    seconds = sum(float(part[1]) * _UNITS[part[2]] for part in parts)
    return seconds if seconds and "".join(part[0] for part in parts) == text else TIMEOUT


def _told(verdict: Verdict, review: Any) -> dict[str, Any]:
    """The AdmissionReview (admission.k8s.io/v1) that says so."""
    response: dict[str, Any] = {"uid": review["request"]["uid"], "allowed": verdict.allowed}
    if not verdict.allowed:
        response["status"] = {"message": verdict.message, "code": HTTPStatus.FORBIDDEN}
    elif verdict.operations:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(orjson.dumps(verdict.operations)).decode()
    if verdict.warnings:
        response["warnings"] = verdict.warnings
    if verdict.audit:
        response["auditAnnotations"] = verdict.audit
    return {"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response}
