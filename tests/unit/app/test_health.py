"""/healthz, /readyz and /metrics, over real HTTP."""

import aiohttp

from tagpin.app.health import serve_health
from tagpin.app.metrics import Metrics


async def test_ready_follows_what_the_process_says(unused_tcp_port: int) -> None:
    reason: list[str | None] = ["no valid certificate yet"]
    url = f"http://127.0.0.1:{unused_tcp_port}"
    async with (
        serve_health(
            address="127.0.0.1",
            port=unused_tcp_port,
            not_ready=lambda: reason[0],
            metrics=Metrics(),
        ),
        aiohttp.ClientSession() as session,
    ):
        answers = []
        for path in ("/readyz", "/healthz"):
            async with session.get(url + path) as response:
                answers.append((response.status, await response.text()))
        reason[0] = None
        async with session.get(f"{url}/readyz") as response:
            answers.append((response.status, await response.text()))
        async with session.get(f"{url}/metrics") as response:
            exposition = await response.text()

    assert answers == [(503, "no valid certificate yet\n"), (200, "ok\n"), (200, "ok\n")]
    assert "tagpin_build_info" in exposition
