"""What is told of requests to the Kubernetes API: words of closed sets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest
from aiohttp import web

from fakes.clock import FakeClock
from tagpin.cluster.calls import Call, told_to


@asynccontextmanager
async def session(
    calls: list[Call], clock: FakeClock, status: int = 200
) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a server that takes two seconds, and for ever at /api/v1/slow."""

    async def answer(request: web.Request) -> web.Response:
        clock.advance(2)
        if "slow" in request.path:
            await asyncio.sleep(60)
        return web.Response(status=status)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    trace = told_to(calls.append, clock=clock)
    async with aiohttp.ClientSession(f"http://{host}:{port}", trace_configs=[trace]) as client:
        yield client
    await runner.cleanup()


PINS = "/apis/tagpin.dev/v1alpha1"
HOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"


@pytest.mark.parametrize(
    ("method", "path", "verb", "resource"),
    [
        ("GET", "/api/v1/namespaces/shop/secrets/regcred", "get", "secrets"),
        ("GET", "/api/v1/namespaces/shop/pods?labelSelector=a%3Db", "list", "pods"),
        ("POST", "/api/v1/namespaces/shop/events", "create", "events"),
        ("GET", f"{PINS}/imagepins?limit=500", "list", "imagepins"),
        ("PUT", f"{PINS}/namespaces/shop/imagepins/web-1", "update", "imagepins"),
        ("DELETE", f"{PINS}/namespaces/shop/imagepins/web-1", "delete", "imagepins"),
        ("PATCH", f"{HOOKS}/tagpin", "patch", "mutatingwebhookconfigurations"),
        ("GET", f"{HOOKS}?watch=True", "watch", "mutatingwebhookconfigurations"),
        ("GET", "/k8s/clusters/c-1/api/v1/namespaces/shop/secrets/a", "get", "secrets"),
        ("GET", "/api/v1/namespaces/shop/secrets/a%2F..%2Fapi%2Fv1%2Fpods", "get", "secrets"),
        ("GET", "/apis/apps.kruise.io/v1alpha1/namespaces/shop/clonesets/a", "get", "other"),
        ("GET", "/version", "list", "other"),
    ],
)
async def test_a_request_is_told_by_verb_and_resource(
    method: str, path: str, verb: str, resource: str
) -> None:
    calls: list[Call] = []
    async with session(calls, FakeClock()) as client, client.request(method, path):
        pass

    assert calls == [Call(verb, resource, "2xx", 2.0)]


@pytest.mark.parametrize(
    ("status", "code"), [(201, "2xx"), (404, "404"), (418, "4xx"), (429, "429"), (503, "5xx")]
)
async def test_and_by_what_was_answered(status: int, code: str) -> None:
    calls: list[Call] = []
    async with session(calls, FakeClock(), status) as client, client.get("/api/v1/pods/a"):
        pass

    assert [each.code for each in calls] == [code]


async def test_what_nobody_waits_for_any_longer_is_a_timeout() -> None:
    calls: list[Call] = []
    async with session(calls, FakeClock()) as client:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2), client.get("/api/v1/slow/a"):
                pass

    assert [each.code for each in calls] == ["timeout"]


async def test_where_nobody_answers_it_is_unreachable(unused_tcp_port: int) -> None:
    calls: list[Call] = []
    async with session(calls, FakeClock()) as client:
        with suppress(aiohttp.ClientConnectionError):
            async with client.get(f"http://127.0.0.1:{unused_tcp_port}/api/v1/pods/a"):
                pass

    assert [each.code for each in calls] == ["unreachable"]
