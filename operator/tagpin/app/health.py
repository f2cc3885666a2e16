"""`/healthz`, `/readyz` and `/metrics`, over plain HTTP on a port of their own."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from tagpin.app.metrics import Metrics


@asynccontextmanager
async def serve_health(
    *, address: str, port: int, not_ready: Callable[[], str | None], metrics: Metrics
) -> AsyncIterator[None]:
    """Serve while the body runs. `not_ready` says why this replica takes no reviews, if so."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        reason = not_ready()
        return web.Response(status=503 if reason else 200, text=f"{reason or 'ok'}\n")

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(
            body=metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", exposition)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, address or None, port).start()
        yield
    finally:
        await runner.cleanup()
