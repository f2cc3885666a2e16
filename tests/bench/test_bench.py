"""The harness itself: what it must notice, and what it makes of time."""

import asyncio
import base64
import contextlib
import json
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from rich.console import Console

from bench import bare, bodies, load, machine, report
from bench.away import Away, black_hole
from bench.bursts import burst
from bench.load import Answered, Question, Target, WrongAnswerError
from bench.rows import Bar, Found, Row
from cluster.authority import Authority
from cluster.programs import LOOPBACK
from fakes.registry import FakeRegistry

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Load = Callable[[Target], Awaitable[Answered]]
ROUND_TRIP = 0.05


async def test_answers_of_the_bare_handler_are_right(authority: Authority) -> None:
    async with serving(authority, bare.answer) as target:
        for each in LOADS.values():
            answered = await each(target)
            assert len(answered.seconds) > 1
            assert 0 < answered.percentile(50) <= answered.percentile(99)


@pytest.mark.parametrize("size", [1, 100, 10_000])
async def test_answers_may_come_in_chunks(authority: Authority, size: int) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        right = await bare.answer(request)
        assert isinstance(right.body, bytes)
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for begin in range(0, len(right.body), size):
            await response.write(right.body[begin : begin + size])
        await response.write_eof()
        return response

    async with serving(authority, answer) as target:
        answered = await LOADS["closed"](target)

    assert len(answered.seconds) > 1


async def test_whoever_listens_on_a_port_is_found(authority: Authority) -> None:
    async with serving(authority, bare.answer) as target:
        assert machine.listener(target.port) == os.getpid()

    with socket.create_server((LOOPBACK, 0)):
        assert machine.listener(target.port) is None


async def test_an_answer_that_changes_nothing_is_right_where_nothing_may_change(
    authority: Authority,
) -> None:
    pod = bodies.pod("web", ["registry.example/app:v1"])
    question = bodies.create_unpinned(pod)

    async with serving(authority, changed(lambda answer: answer.pop("patch"))) as target:
        await burst(target, [question], connections=1)
    async with serving(authority, bare.answer) as target:
        with pytest.RaisesGroup(WrongAnswerError):
            await burst(target, [question], connections=1)


@pytest.mark.parametrize("kind", ["closed", "steady", "burst"])
@pytest.mark.parametrize(
    "fault", ["wrong image", "wrong uid", "refused", "no patch", "no JSON", "500", "closes"]
)
async def test_a_wrong_answer_ends_the_load(authority: Authority, kind: str, fault: str) -> None:
    expected = ConnectionError if fault == "closes" else WrongAnswerError

    async with serving(authority, FAULTS[fault]) as target:
        with pytest.raises((expected, ExceptionGroup)) as raised:
            await LOADS[kind](target)

    error = raised.value
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, expected)


@pytest.mark.parametrize(
    ("bar", "holds"),
    [
        (Bar("", 1.0, at_most=1.0), True),
        (Bar("", 1.1, at_most=1.0), False),
        (Bar("", 1.0, at_least=1.0), True),
        (Bar("", 0.9, at_least=1.0), False),
        (Bar("", 1.0, at_most=1.0, at_least=1.0), True),
        (Bar("", 2.0, at_most=1.0, at_least=1.0), False),
        (Bar("", 0.0, at_most=1.0, at_least=1.0), False),
        (Bar("", float("nan"), at_most=1.0), False),
    ],
)
def test_a_bar_holds_up_to_its_bounds(bar: Bar, *, holds: bool) -> None:
    assert bar.holds is holds


async def test_a_registry_is_as_far_away_as_it_is_told_to_be() -> None:
    async with FakeRegistry() as registry, Away(registry) as away:
        near = await seconds_to_ask(away)
        away.round_trip = ROUND_TRIP
        connecting, kept = await seconds_to_ask(away)

    assert min(near) < ROUND_TRIP
    assert connecting >= 2 * ROUND_TRIP
    assert kept >= ROUND_TRIP
    assert connecting > kept


async def test_whoever_was_dropped_must_connect_again() -> None:
    async with FakeRegistry() as registry, Away(registry) as away:
        reader, writer = await asyncio.open_connection(*address_of(away.host))
        await asked(reader, writer)

        await away.drop()

        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await asked(reader, writer)
        writer.close()
        await seconds_to_ask(away)


async def test_what_is_sent_to_a_registry_far_away_arrives_in_order() -> None:
    over = asyncio.Event()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(100):
                writer.write(data)
        writer.close()
        over.set()

    sent = b""
    async with await asyncio.start_server(echo, LOOPBACK, 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Away(FakeRegistry(port=port)) as away:
            away.round_trip = ROUND_TRIP
            reader, writer = await asyncio.open_connection(*address_of(away.host))
            for number in range(40):
                if number == 30:  # those before it are still on the way
                    away.round_trip = 0.0
                data = f"{number},".encode()
                writer.write(data)
                sent += data
                await asyncio.sleep(0.001)
            async with asyncio.timeout(5):
                assert await reader.readexactly(len(sent)) == sent
            writer.close()
            await over.wait()


async def test_a_black_hole_says_neither_yes_nor_no() -> None:
    with black_hole() as host, pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await asyncio.open_connection(*address_of(host))


# What is sent, and who answers


def questions() -> list[Question]:
    pod = bodies.pod("web", ["registry.example/app:v1", "registry.example/other:v1"])
    return [bodies.create(pod, lambda _: bare.DIGEST) for _ in range(4)]


LOADS: Mapping[str, Load] = {
    "closed": lambda target: load.closed(target, questions(), connections=2, seconds=0.05),
    "steady": lambda target: load.steady(
        target, questions(), per_second=100, seconds=0.05, connections=2
    ),
    "burst": lambda target: burst(target, questions(), connections=2),
}


def changed(change: Callable[[dict[str, Any]], object]) -> Handler:
    """The bare handler, whose response is changed before it is sent."""

    async def answer(request: web.Request) -> web.StreamResponse:
        right = await bare.answer(request)
        assert isinstance(right.body, bytes)
        review = json.loads(right.body)
        change(review["response"])
        return web.json_response(review)

    return answer


def other_digest(response: dict[str, Any]) -> None:
    patch = base64.b64decode(response["patch"]).replace(b"b" * 64, b"c" * 64)
    response["patch"] = base64.b64encode(patch).decode()


async def fail(request: web.Request) -> web.StreamResponse:
    right = await bare.answer(request)
    return web.Response(status=500, body=right.body)


async def say_nothing_of_use(_: web.Request) -> web.StreamResponse:
    return web.Response(text="yes")


async def close(request: web.Request) -> web.StreamResponse:
    assert request.transport
    request.transport.close()
    return web.Response()


FAULTS: Mapping[str, Handler] = {
    "wrong image": changed(other_digest),
    "wrong uid": changed(lambda response: response.update(uid="another")),
    "refused": changed(lambda response: response.update(allowed=False)),
    "no patch": changed(lambda response: response.pop("patch")),
    "no JSON": say_nothing_of_use,
    "500": fail,
    "closes": close,
}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("bench"))


@asynccontextmanager
async def serving(authority: Authority, handler: Handler) -> AsyncIterator[Target]:
    """A webhook on a free port."""
    issued = authority.issue("webhook", hosts=[LOOPBACK])
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*issued)
    app = web.Application()
    app.router.add_post("/pin", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, LOOPBACK, 0, ssl_context=tls).start()
        port = runner.addresses[0][1]
        yield Target(f"https://{LOOPBACK}:{port}/pin", authority.certificate)
    finally:
        await runner.cleanup()


# Whoever asks a registry


def address_of(host: str) -> tuple[str, int]:
    name, _, port = host.rpartition(":")
    return name, int(port)


async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HEAD /v2/ HTTP/1.1\r\nHost: registry\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def seconds_to_ask(away: Away) -> list[float]:
    """Of a first request with its connection, and of a second one over that."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(*address_of(away.host))
    taken = []
    for _ in range(2):
        await asked(reader, writer)
        taken.append(time.perf_counter() - began)
        began = time.perf_counter()
    writer.close()
    await writer.wait_closed()
    return taken


# What is printed


def test_the_report_has_every_row_and_says_which_bar_is_missed(tmp_path: Path) -> None:
    rows = [
        Row("warm", "tagpin", {"per_second": 1234.5, "requests": 1.0}),
        Row("steady", "tagpin", {"p50_ms": 0.5}, {"p50_ms": [1.0] * 20, "tasks": [0.0] * 20}),
    ]
    bars = [Bar("fast", 2.5, at_least=3.3), Bar("small", 1, at_most=2)]
    found = [Found(rows, bars)]

    report.write(found, tmp_path, {"machine": "2 cores"})
    console = Console(record=True, width=200)
    report.show(console, found)

    assert {each.name for each in tmp_path.iterdir()} == {
        *("bench.json", "bench.md", "warm.png", "steady.png")
    }
    text = (tmp_path / "bench.md").read_text()
    assert "| warm | tagpin | 1234 |  |  |  |  | requests 1 |" in text
    assert "| fast | 2.50 | ≥ 3.3 | no |" in text
    assert "| small | 1 | ≤ 2 | yes |" in text
    assert json.loads((tmp_path / "bench.json").read_text())["rows"][1]["series"]["tasks"]
    assert console.export_text().count("MISSED") == 1
