"""What is asked of the Kubernetes API, told to whoever counts it."""

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import aiohttp
from yarl import URL

RESOURCES = frozenset(
    {
        "controllerrevisions",
        "daemonsets",
        "events",
        "imagepins",
        "jobs",
        "leases",
        "mutatingwebhookconfigurations",
        "pods",
        "replicasets",
        "secrets",
        "serviceaccounts",
        "statefulsets",
    }
)
"""What manifests/base lets tagpin ask for; whatever else there is, is `OTHER`."""
OTHER = "other"
CODES = frozenset({"401", "403", "404", "409", "410", "422", "429"})
"""Statuses that ask for a reaction of their own; of the others only the class is told."""
TIMEOUT = "timeout"
UNREACHABLE = "unreachable"

_PATH = re.compile(
    r"/(?:api/[^/]+|apis/[^/]+/[^/]+)/(?:namespaces/[^/]+/)?(?P<resource>[^/]+)(?P<name>/[^/]+)?"
)
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True, slots=True)
class Call:
    """One request to the Kubernetes API, for metrics: all its words are of closed sets.

    `code` is a status or its class, `timeout` where nobody waited for the answer any longer, or
    `unreachable`. `seconds` is the time until the answer began.
    """

    verb: str
    resource: str
    code: str
    seconds: float


Observer = Callable[[Call], None]
"""Told of every request when it is answered, or has come to nothing."""


def told_to(observe: Observer, clock: Callable[[], float] = time.monotonic) -> aiohttp.TraceConfig:
    """What tells `observe` of the requests of an aiohttp session."""

    async def began(_session: Any, context: SimpleNamespace, _params: Any) -> None:
        context.began = clock()

    async def answered(
        _session: Any, context: SimpleNamespace, params: aiohttp.TraceRequestEndParams
    ) -> None:
        code = _code(params.response.status)
        observe(_call(params.method, params.url, code, clock() - context.began))

    async def failed(
        _session: Any, context: SimpleNamespace, params: aiohttp.TraceRequestExceptionParams
    ) -> None:
        late = isinstance(params.exception, asyncio.CancelledError | TimeoutError)
        code = TIMEOUT if late else UNREACHABLE
        observe(_call(params.method, params.url, code, clock() - context.began))

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(began)
    trace.on_request_end.append(answered)
    trace.on_request_exception.append(failed)
    return trace


def _call(method: str, url: URL, code: str, seconds: float) -> Call:
    match = _PATH.search(url.raw_path)
    resource = match["resource"] if match else OTHER
    if method == "GET":
        reads_all = match is None or match["name"] is None
        verb = "get" if not reads_all else "watch" if "watch" in url.query else "list"
    else:
        verb = _VERBS.get(method, OTHER)
    return Call(verb, resource if resource in RESOURCES else OTHER, code, seconds)


def _code(status: int) -> str:
    return str(status) if str(status) in CODES else f"{status // 100}xx"
