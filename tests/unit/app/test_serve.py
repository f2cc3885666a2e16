"""`tagpin serve` as a process: what it does while the API server does not do its part."""

import asyncio
import json
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

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
API_AWAY = "http://127.0.0.1:1"
BODY = json.dumps(REVIEW).encode()
HEAD = (
    b"POST /enforce?timeout=5s HTTP/1.1\r\nHost: tagpin\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n" % len(BODY)
)
# Loaded by the interpreter of the replica: SIGUSR1 holds up whatever its main thread does.
HANGING = """
import signal, time
signal.signal(signal.SIGUSR1, lambda *_: time.sleep(SECONDS))
"""


class Answer(NamedTuple):
    status: int
    connection: str
    """What is to become of it."""
    body: str


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
        return await self.get("/readyz")

    async def get(self, path: str) -> tuple[int, str]:
        """From the health port."""
        url = f"http://127.0.0.1:{self._health}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status, await response.text()

    async def until_ready(self) -> None:
        async with asyncio.timeout(60):
            while True:
                assert self.process.returncode is None, self.log.read_text()
                try:
                    if (await self.readiness())[0] == 200:
                        return
                except aiohttp.ClientConnectionError:
                    pass
                await asyncio.sleep(0.05)

    async def connect(self) -> "Connection":
        return Connection(
            *await asyncio.open_connection("127.0.0.1", self._webhook, ssl=self._trust)
        )

    async def until_draining(self) -> None:
        """The signal has been seen."""
        async with asyncio.timeout(10):
            while (await self.readiness())[0] == 200:  # noqa: ASYNC110 - over HTTP
                await asyncio.sleep(0.01)

    async def ends_within(self, seconds: float) -> int:
        """Its exit code."""
        return await asyncio.wait_for(self.process.wait(), seconds)

    async def review(self) -> tuple[dict[str, Any], str]:
        """The answer to a review, and what the connection is to become."""
        url = f"https://127.0.0.1:{self._webhook}/enforce"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json=REVIEW, ssl=self._trust) as response,
        ):
            answer: dict[str, Any] = json.loads(await response.text())["response"]
            return answer, response.headers.get("Connection", "")


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection that is kept, as the API server keeps its own."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, content: bytes) -> None:
        self.writer.write(content)
        await self.writer.drain()

    async def answer(self) -> Answer:
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)).decode()
        status, *lines = head.split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (each.partition(": ") for each in lines)
        }
        body = await self.reader.readexactly(int(headers["content-length"]))
        by_default = "close" if status.startswith("HTTP/1.0 ") else ""
        connection = headers.get("connection", by_default)
        return Answer(int(status.split()[1]), connection, body.decode())

    async def ask(self, content: bytes) -> Answer:
        await self.send(content)
        return await self.answer()

    async def has_ended(self) -> bool:
        """Nothing more comes."""
        try:
            return await asyncio.wait_for(self.reader.read(), 10) == b""
        except ConnectionError:
            return True
        finally:
            self.writer.close()


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
    folder: Path,
    ports: tuple[int, int],
    api: str,
    *,
    drain: str = "0.2s",
    has_certificate: bool = True,
) -> AsyncIterator[Replica]:
    ca = issue_ca(datetime.now(UTC))
    pair = issue_serving(ca, ["127.0.0.1"], datetime.now(UTC))
    for name, content in (
        ("ca.crt", ca.certificate_pem),
        ("tls.crt", pair.certificate_pem),
        ("tls.key", pair.key_pem),
        ("kubeconfig", kubeconfig(api).encode()),
    ):
        if has_certificate or name == "kubeconfig":
            (folder / name).write_bytes(content)
    environment = {
        "KUBECONFIG": str(folder / "kubeconfig"),
        "TAGPIN_ADDRESS": "127.0.0.1",
        "TAGPIN_WEBHOOK_PORT": str(ports[0]),
        "TAGPIN_HEALTH_PORT": str(ports[1]),
        "TAGPIN_CERTIFICATE_DIRECTORY": str(folder),
        "TAGPIN_DRAIN": drain,
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(folder),
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
        yield API_AWAY
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
    async with serving(tmp_path, ports, API_AWAY, drain="1s") as replica:
        await replica.until_ready()

        replica.process.send_signal(signal.SIGTERM)
        await replica.until_draining()

        assert await replica.readiness() == (503, "draining\n")
        answer, connection = await replica.review()
        assert answer["allowed"] is True
        assert connection == "close"
        # kopf would wait five seconds for tasks that don't end, whoever began them.
        assert await replica.ends_within(4) == 0
        assert "Traceback" not in replica.log.read_text()
        assert "kopf" not in replica.log.read_text()


async def test_while_it_drains_every_answer_says_that_the_connection_ends(
    tmp_path: Path, ports: tuple[int, int]
) -> None:
    async with serving(tmp_path, ports, API_AWAY, drain="2s") as replica:
        await replica.until_ready()
        kept = [await replica.connect() for _ in range(5)]
        for each in kept:
            assert (await each.ask(HEAD + BODY))[:2] == (200, "")
        under_way, *others = kept
        await under_way.send(HEAD + BODY[:100])
        assert (await replica.readiness())[0] == 200  # so that has been read

        replica.process.send_signal(signal.SIGTERM)
        await replica.until_draining()

        asked = [
            HEAD + BODY,
            HEAD.replace(b"/enforce", b"/unknown") + BODY,
            HEAD.replace(b"POST", b"GET") + BODY,
            b"no HTTP\r\n\r\n",
        ]
        answers = [await each.ask(what) for each, what in zip(others, asked, strict=True)]
        assert [each[:2] for each in answers] == [
            (status, "close") for status in (200, 404, 405, 400)
        ]
        await under_way.send(BODY[100:])
        status, connection, body = await under_way.answer()
        assert (status, connection) == (200, "close")
        assert json.loads(body)["response"]["allowed"] is True
        assert all([await each.has_ended() for each in kept])
        assert await replica.ends_within(10) == 0


async def test_what_is_under_way_when_the_drain_ends_is_answered_and_what_comes_meanwhile_too(
    tmp_path: Path, ports: tuple[int, int]
) -> None:
    async with serving(tmp_path, ports, API_AWAY, drain="10ms") as replica:
        await replica.until_ready()
        slow, late, idle = [await replica.connect() for _ in range(3)]
        for each in (slow, late, idle):
            assert (await each.ask(HEAD + BODY))[:2] == (200, "")
        await slow.send(HEAD + BODY[:100])
        assert (await replica.readiness())[0] == 200  # so that has been read

        replica.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            while True:  # until nobody else can connect
                try:
                    (await replica.connect()).writer.close()
                except OSError:
                    break
        assert (await late.ask(HEAD + BODY))[:2] == (200, "close")
        await slow.send(BODY[100:])

        assert (await slow.answer())[:2] == (200, "close")
        assert await idle.has_ended()
        assert await replica.ends_within(10) == 0


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_changes_nothing(
    tmp_path: Path, ports: tuple[int, int], again: signal.Signals
) -> None:
    async with serving(tmp_path, ports, API_AWAY, drain="1s") as replica:
        await replica.until_ready()
        kept = await replica.connect()
        assert (await kept.ask(HEAD + BODY))[:2] == (200, "")
        replica.process.send_signal(signal.SIGTERM)
        await replica.until_draining()

        for _ in range(3):
            replica.process.send_signal(again)
            await asyncio.sleep(0.05)

        assert (await kept.ask(HEAD + BODY))[:2] == (200, "close")
        assert await replica.ends_within(10) == 0
        assert replica.log.read_text().count("draining for") == 1
        assert "Traceback" not in replica.log.read_text()


async def test_one_that_nobody_could_call_yet_ends_at_once(
    tmp_path: Path, ports: tuple[int, int]
) -> None:
    async with serving(tmp_path, ports, API_AWAY, drain="60s", has_certificate=False) as replica:
        async with asyncio.timeout(60):
            while True:
                try:
                    assert await replica.readiness() == (503, "no valid certificate yet\n")
                    break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.01)

        replica.process.send_signal(signal.SIGTERM)

        assert await replica.ends_within(10) == 0
        assert "Traceback" not in replica.log.read_text()


async def test_one_that_hangs_says_neither_that_it_is_ready_nor_that_it_lives(
    tmp_path: Path, ports: tuple[int, int]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HANGING.replace("SECONDS", "3"))
    async with serving(tmp_path, ports, API_AWAY) as replica:
        await replica.until_ready()
        assert await replica.get("/healthz") == (200, "ok\n")

        replica.process.send_signal(signal.SIGUSR1)
        await asyncio.sleep(0.1)

        for path in ("/readyz", "/healthz"):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(replica.get(path), 0.5)
        replica.process.send_signal(signal.SIGTERM)  # is not seen either, until it hangs no more
        await asyncio.sleep(0.5)
        assert replica.process.returncode is None
        assert "draining" not in replica.log.read_text()
        assert await replica.ends_within(10) == 0
        assert "draining" in replica.log.read_text()


async def test_a_scraper_that_keeps_its_connection_does_not_hold_up_the_end(
    tmp_path: Path, ports: tuple[int, int]
) -> None:
    async with (
        serving(tmp_path, ports, API_AWAY, drain="10ms") as replica,
        aiohttp.ClientSession() as session,
    ):
        await replica.until_ready()
        async with session.get(f"http://127.0.0.1:{ports[1]}/metrics") as response:
            assert response.status == 200
            await response.read()

        replica.process.send_signal(signal.SIGTERM)

        assert await replica.ends_within(4) == 0


async def test_a_port_that_is_taken_is_one_line(tmp_path: Path, ports: tuple[int, int]) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", ports[0])
    async with server, serving(tmp_path, ports, API_AWAY) as replica:
        assert await replica.ends_within(20) == 1

        lines = replica.log.read_text().splitlines()
        assert [line for line in lines if not line.startswith("{")] == [lines[-1]]
        assert lines[-1].startswith("tagpin: cannot listen: ")
        assert "address already in use" in lines[-1]
