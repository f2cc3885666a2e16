"""The load generator: raw HTTP/1.1 over TLS, prebuilt bytes out, every answer looked at.

A client library would cost more than the servers that are measured. The clock starts once all
connections are made.
"""

import asyncio
import itertools
import socket
import ssl
import time
from array import array
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import uvloop

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds for one answer."""


class WrongAnswerError(Exception):
    """A server that answers wrongly is not measured."""


@dataclass(frozen=True, slots=True)
class Question:
    """A body, and what an answer to it must bear: `check` raises WrongAnswerError."""

    body: bytes
    check: Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Answered:
    """What a load has seen."""

    seconds: "array[float]"
    """Of each answer, in the order in which they came."""
    elapsed: float

    @property
    def per_second(self) -> float:
        return len(self.seconds) / self.elapsed

    def percentile(self, percent: float) -> float:
        """Seconds that so many percent of the answers took at most."""
        ranked = sorted(self.seconds)
        return ranked[min(len(ranked) - 1, int(len(ranked) * percent / 100))]


class Target:
    """A URL of a webhook, and the CA that it is known by."""

    def __init__(self, url: str, ca: Path | str) -> None:
        self.url = url
        parts = urlsplit(url)
        assert parts.hostname
        self.host, self.port = parts.hostname, parts.port or 443
        self._path = parts.path + (f"?{parts.query}" if parts.query else "")
        data = ca.read_text() if isinstance(ca, Path) else ca
        self.tls = ssl.create_default_context(cadata=data)

    def request(self, body: bytes) -> bytes:
        """As Go's client of the API server sends it."""
        return (
            f"POST {self._path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
            "User-Agent: kube-apiserver-admission\r\nAccept: application/json, */*\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            "Accept-Encoding: gzip\r\n\r\n"
        ).encode() + body


class Connection(asyncio.Protocol):
    """One connection: a request, its answer, and the next."""

    takes_any_status = False
    """Whether an answer may have another status than 200."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._received = bytearray()
        self._begin, self._end = 0, -1
        self.status = 0
        self._answered: Callable[[bytes], None] = lambda _: None
        self._failed: Callable[[Exception], None] = lambda _: None

    @classmethod
    async def to(cls, target: Target) -> Self:
        """A connection, made."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, target.host, target.port, ssl=target.tls)
        return connection

    def ask(
        self, request: bytes, answered: Callable[[bytes], None], failed: Callable[[Exception], None]
    ) -> None:
        """Send a request; one of the two is called, with the answer or with what is wrong."""
        self._answered, self._failed = answered, failed
        self._transport.write(request)

    async def answer(self, request: bytes) -> bytes:
        """The same for whoever waits."""
        waiting = asyncio.get_running_loop().create_future()

        def fail(error: Exception) -> None:
            if not waiting.done():
                waiting.set_exception(error)

        self.ask(request, waiting.set_result, fail)
        async with asyncio.timeout(PATIENCE):
            body: bytes = await waiting
        return body

    def close(self) -> None:
        self._failed = lambda _: None
        self._transport.close()

    def connection_made(self, transport: Any) -> None:  # uvloop's are no asyncio.Transport
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._failed(exc or ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        if self._end < 0:
            head = received.find(b"\r\n\r\n")
            if head < 0:
                return
            lines = bytes(received[:head]).lower()
            length = lines.partition(b"content-length: ")[2].partition(b"\r\n")[0]
            self.status = int(lines[9:12])
            is_chunked = b"\r\ntransfer-encoding: chunked" in lines
            if not (self.takes_any_status or self.status == HTTPStatus.OK) or not (
                length or is_chunked
            ):
                self._failed(WrongAnswerError(received[:500].decode(errors="replace")))
                return
            self._begin = head + 4
            self._end = self._begin + int(length) if length else 0
        if not self._end:
            # JSON has no line breaks within its strings, so this is the last chunk.
            if received.endswith(b"\r\n0\r\n\r\n"):
                self._done(_joined(bytes(received[self._begin :])))
        elif len(received) >= self._end:
            self._done(bytes(received[self._begin : self._end]))

    def _done(self, body: bytes) -> None:
        self._received, self._end = bytearray(), -1
        self._answered(body)


def _joined(chunks: bytes) -> bytes:
    """The content of chunks (RFC 9112 §7.1)."""
    parts, at = list[bytes](), 0
    while True:
        line = chunks.index(b"\r\n", at)
        size = int(chunks[at:line], 16)
        if not size:
            return b"".join(parts)
        parts.append(chunks[line + 2 : line + 2 + size])
        at = line + 2 + size + 2


def accepts(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a load on a loop of its own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


async def connect(target: Target, count: int) -> list[Connection]:
    """So many connections, made at once."""
    return list(await asyncio.gather(*(Connection.to(target) for _ in range(count))))


async def closed(
    target: Target, questions: Sequence[Question], *, connections: int, seconds: float
) -> Answered:
    """Each connection asks as soon as it is answered, for so many seconds; then all are closed."""
    made = await connect(target, connections)
    try:
        return await _closed(target, questions, made, seconds)
    finally:
        for each in made:
            each.close()


async def _closed(
    target: Target, questions: Sequence[Question], made: Sequence[Connection], seconds: float
) -> Answered:
    over = asyncio.get_running_loop().create_future()
    taken = array("d")
    under_way = len(made)
    now = time.perf_counter

    def fail(error: Exception) -> None:
        if not over.done():
            over.set_exception(error)

    def start(connection: Connection, number: int) -> None:
        question = questions[number % len(questions)]
        request, check = target.request(question.body), question.check
        asked = 0.0

        def ask() -> None:
            nonlocal asked
            asked = now()
            connection.ask(request, answered, fail)

        def answered(body: bytes) -> None:
            nonlocal under_way
            at = now()
            taken.append(at - asked)
            try:
                check(body)
            except WrongAnswerError as error:
                fail(error)
                return
            if at < deadline:
                ask()
                return
            under_way -= 1
            if not under_way and not over.done():
                over.set_result(None)

        ask()

    began = now()
    deadline = began + seconds
    for number, connection in enumerate(made):
        start(connection, number)
    async with asyncio.timeout(seconds + PATIENCE):
        await over
    return Answered(taken, now() - began)


async def steady(
    target: Target,
    questions: Sequence[Question],
    *,
    per_second: float,
    seconds: float,
    connections: int = 16,
    each: Callable[[int, float], None] = lambda _number, _seconds: None,
) -> Answered:
    """A question at each tick, whether the last one is answered or not.

    The time of an answer counts from its tick: a server that stalls makes all of them wait.
    `each` is told of the number and the time of every answer.
    """
    free: asyncio.Queue[Connection] = asyncio.Queue()
    made = await connect(target, connections)
    for connection in made:
        free.put_nowait(connection)
    requests = [target.request(each.body) for each in questions]
    taken = array("d")
    began = time.perf_counter()

    async def one(number: int) -> None:
        due = began + number / per_second
        connection = await free.get()
        body = await connection.answer(requests[number % len(requests)])
        questions[number % len(questions)].check(body)
        taken.append(time.perf_counter() - due)
        each(number, taken[-1])
        free.put_nowait(connection)

    try:
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                if number / per_second >= seconds:
                    break
                await asyncio.sleep(began + number / per_second - time.perf_counter())
                group.create_task(one(number))
        return Answered(taken, time.perf_counter() - began)
    finally:
        for connection in made:
            connection.close()
