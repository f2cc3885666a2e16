"""`tagpin serve` as a process: what it does while the API server does not do its part."""

import asyncio
import json
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tagpin.certificates import Pair, issue_ca, issue_serving

TAGPIN = Path(sys.executable).with_name("tagpin")
DIGEST = "sha256:" + "1" * 64
REVIEW = {
    "apiVersion": "admission.k8s.io/v1",
    "kind": "AdmissionReview",
    "request": {
        "uid": "1",
        "operation": "CREATE",
        "namespace": "shop",
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "userInfo": {"username": "ann"},
        "object": {
            "metadata": {"name": "web"},
            "spec": {"containers": [{"name": "app", "image": f"nginx@{DIGEST}"}]},
        },
    },
}


class Replica:
    """A serving process whose certificate was mounted."""

    def __init__(
        self, process: asyncio.subprocess.Process, ports: tuple[int, int], ca: Pair, log: Path
    ) -> None:
        self.process = process
        self.log = log
        self._webhook, self._health = ports
        self._trust = ssl.create_default_context(cadata=ca.certificate_pem.decode())

    async def readiness(self) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self._health}/readyz"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status, await response.text()

    async def until_ready(self) -> None:
        async with asyncio.timeout(20):
            while True:
                assert self.process.returncode is None, self.log.read_text()
                try:
                    if (await self.readiness())[0] == 200:
                        return
                except aiohttp.ClientConnectionError:
                    pass
                await asyncio.sleep(0.05)

    async def review(self) -> tuple[dict[str, Any], str]:
        """The answer to a review, and what the connection is to become."""
        url = f"https://127.0.0.1:{self._webhook}/enforce"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json=REVIEW, ssl=self._trust) as response,
        ):
            answer: dict[str, Any] = json.loads(await response.text())["response"]
            return answer, response.headers.get("Connection", "")


def kubeconfig(server: str) -> str:
    """JSON is YAML."""
    return json.dumps(
        {
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {"server": server}}],
            "users": [{"name": "test", "user": {"token": "a-token"}}],
        }
    )


@asynccontextmanager
async def serving(
    folder: Path, ports: tuple[int, int], api: str, *, drain: str = "0.2s"
) -> AsyncIterator[Replica]:
    ca = issue_ca(datetime.now(UTC))
    pair = issue_serving(ca, ["127.0.0.1"], datetime.now(UTC))
    for name, content in (
        ("ca.crt", ca.certificate_pem),
        ("tls.crt", pair.certificate_pem),
        ("tls.key", pair.key_pem),
        ("kubeconfig", kubeconfig(api).encode()),
    ):
        (folder / name).write_bytes(content)
    environment = {
        "KUBECONFIG": str(folder / "kubeconfig"),
        "TAGPIN_ADDRESS": "127.0.0.1",
        "TAGPIN_WEBHOOK_PORT": str(ports[0]),
        "TAGPIN_HEALTH_PORT": str(ports[1]),
        "TAGPIN_CERTIFICATE_DIRECTORY": str(folder),
        "TAGPIN_DRAIN": drain,
        "PATH": os.environ["PATH"],
    }
    log = folder / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            TAGPIN, "serve", env=environment, stdout=output, stderr=output
        )
    try:
        yield Replica(process, ports, ca, log)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def api_server(port: int, status: int | None) -> AsyncIterator[str]:
    """An API server that answers everything with one status; None is one that is away."""
    if status is None:
        yield "http://127.0.0.1:1"
        return
    app = web.Application()

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"kind": "Status", "code": status}, status=status)

    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


@pytest.fixture
def ports(unused_tcp_port_factory: Any) -> tuple[int, int]:
    return unused_tcp_port_factory(), unused_tcp_port_factory()


async def test_a_mounted_certificate_is_enough_to_serve_whatever_the_api_server_says(
    tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> None:
    async def serves(status: int | None) -> None:
        folder = tmp_path / str(status)
        folder.mkdir()
        ports = unused_tcp_port_factory(), unused_tcp_port_factory()
        async with (
            api_server(unused_tcp_port_factory(), status) as api,
            serving(folder, ports, api) as replica,
        ):
            await replica.until_ready()
            await asyncio.sleep(0.5)  # for what would end it a moment later

            answer, _ = await replica.review()

            assert answer["allowed"] is True, status
            assert replica.process.returncode is None, status

    async with asyncio.TaskGroup() as replicas:
        for status in (None, 200, 401, 403, 404, 500):
            replicas.create_task(serves(status))


async def test_on_sigterm_it_is_not_ready_but_answers_and_then_ends_well(
    tmp_path: Path, ports: tuple[int, int]
) -> None:
    async with serving(tmp_path, ports, "http://127.0.0.1:1", drain="1s") as replica:
        await replica.until_ready()

        replica.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(1):
            while (await replica.readiness())[0] == 200:  # noqa: ASYNC110 - over HTTP
                await asyncio.sleep(0.01)

        assert await replica.readiness() == (503, "draining\n")
        answer, connection = await replica.review()
        assert answer["allowed"] is True
        assert connection == "close"
        # kopf would wait five seconds for tasks that don't end, whoever began them.
        assert await asyncio.wait_for(replica.process.wait(), 4) == 0
        assert "Traceback" not in replica.log.read_text()
        assert "kopf" not in replica.log.read_text()


async def test_a_scraper_that_keeps_its_connection_does_not_hold_up_the_end(
    tmp_path: Path, ports: tuple[int, int]
) -> None:
    async with (
        serving(tmp_path, ports, "http://127.0.0.1:1", drain="10ms") as replica,
        aiohttp.ClientSession() as session,
    ):
        await replica.until_ready()
        async with session.get(f"http://127.0.0.1:{ports[1]}/metrics") as response:
            assert response.status == 200
            await response.read()

        replica.process.send_signal(signal.SIGTERM)

        assert await asyncio.wait_for(replica.process.wait(), 4) == 0


async def test_a_port_that_is_taken_is_one_line(tmp_path: Path, ports: tuple[int, int]) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", ports[0])
    async with server, serving(tmp_path, ports, "http://127.0.0.1:1") as replica:
        assert await asyncio.wait_for(replica.process.wait(), 20) == 1

        lines = replica.log.read_text().splitlines()
        assert [line for line in lines if not line.startswith("{")] == [lines[-1]]
        assert lines[-1].startswith("tagpin: cannot listen: ")
        assert "address already in use" in lines[-1]
