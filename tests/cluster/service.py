"""A Service of Kubernetes, played: one port of the loopback address, endpoints behind it.

Like a real one it balances connections, not requests: who keeps a connection stays with its
endpoint. And it may be behind the times: a connection to an endpoint that has just gone is lost.
It knows nothing but /readyz: a real one stops sending to a pod as soon as it is deleted, mostly.

Nothing here knows pytest.
"""

import asyncio
import itertools
import socket
import threading
from collections import Counter
from collections.abc import Sequence
from http import HTTPStatus
from typing import NamedTuple, Self

import aiohttp

from cluster.programs import LOOPBACK

# Seconds between two looks at an endpoint, and how long it may take to answer.
PERIOD = 0.1
PATIENCE = 1.0
BRIEFLY = 0.05
"""Seconds, at the end, for the event loop to do what it has begun."""


class Endpoint(NamedTuple):
    """Where a replica serves, and where its /readyz says whether it wants connections."""

    port: int
    health_port: int


class Service:
    """Sends each new connection to the next endpoint that is ready.

    Its port is taken from the beginning; it serves from `start` to `close`, in a thread of its
    own.
    """

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = list(endpoints)
        self._turn = itertools.count()
        self._ready: set[Endpoint] = set()
        self._lost: set[Endpoint] = set()
        self._opened: Counter[Endpoint] = Counter()
        self._open: Counter[Endpoint] = Counter()
        self._listener = socket.create_server((LOOPBACK, 0), backlog=1024)
        self.lag = 0.0
        """Seconds for which it sends on to an endpoint that is not ready any more."""
        self.port: int = self._listener.getsockname()[1]
        self._writers: set[asyncio.StreamWriter] = set()
        self._forwarding: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop
        self._ended: asyncio.Event
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def start(self) -> Self:
        """Begin to serve."""
        self._thread.start()
        self._started.wait()
        return self

    def close(self) -> None:
        """End all connections, and give the port back."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join()
        self._listener.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, endpoint: Endpoint) -> None:
        """Send to one more endpoint, once it is ready."""
        self._endpoints = [*self._endpoints, endpoint]

    def remove(self, endpoint: Endpoint) -> None:
        """Send no new connection there; those that are open stay, as kube-proxy leaves them."""
        self._endpoints = [each for each in self._endpoints if each != endpoint]

    def sends_to(self, endpoint: Endpoint) -> bool:
        """Whether new connections may go there."""
        return endpoint in self._ready

    def lose(self, endpoint: Endpoint) -> None:
        """Let nothing pass in either direction, as when its node has gone.

        No connection there is closed or refused, and new ones are sent there until `remove`: it
        takes the control plane 40 s or more to give up a node.
        """
        self._lost.add(endpoint)

    def connections(self, endpoint: Endpoint) -> int:
        """How many there are."""
        return self._open[endpoint]

    def opened(self, endpoint: Endpoint) -> int:
        """How many there were or should have been, from the beginning."""
        return self._opened[endpoint]

    def cut(self) -> None:
        """End the open connections: every client has to connect again, and gets the next endpoint.

        A request that is under way is lost.
        """
        done = threading.Event()
        self._loop.call_soon_threadsafe(self._abort)
        self._loop.call_soon_threadsafe(done.set)
        done.wait()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        server = await asyncio.start_server(self._accept, sock=self._listener)
        self._started.set()
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        # As a kubelet, which keeps no connection: it would have to be waited for when a pod ends.
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as client:
            watching = asyncio.create_task(self._watch(client))
            await self._ended.wait()
            # asyncio forgets to close what it has accepted just before a server is closed.
            self._loop.remove_reader(self._listener)
            await asyncio.sleep(BRIEFLY)
            server.close()
            for each in (watching, *self._forwarding):
                each.cancel()
            self._abort()
            await asyncio.sleep(BRIEFLY)

    async def _watch(self, client: aiohttp.ClientSession) -> None:
        """Look at all endpoints, each in a task of its own: one may be slow to answer."""
        looks: dict[Endpoint, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                for each in set(self._endpoints) - looks.keys():
                    looks[each] = group.create_task(self._watch_one(client, each))
                for each in looks.keys() - set(self._endpoints):
                    looks.pop(each).cancel()
                    self._ready.discard(each)
                await asyncio.sleep(PERIOD)

    async def _watch_one(self, client: aiohttp.ClientSession, endpoint: Endpoint) -> None:
        while True:
            is_ready = await _is_ready(client, endpoint)
            if endpoint in self._lost:
                pass  # nobody is there to say so
            elif is_ready:
                self._ready.add(endpoint)
            else:
                await asyncio.sleep(self.lag)
                self._ready.discard(endpoint)
            await asyncio.sleep(PERIOD)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        task = asyncio.create_task(self._forward(reader, writer))
        self._forwarding.add(task)
        task.add_done_callback(self._forwarding.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = {writer}
        endpoint = self._next()
        if endpoint is not None:
            self._opened[endpoint] += 1
            self._open[endpoint] += 1
        try:
            if endpoint is not None:
                await self._pass(endpoint)
                answers, there = await asyncio.open_connection(LOOPBACK, endpoint.port)
                writers.add(there)
                self._writers.add(there)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(endpoint, reader, there))
                    group.create_task(self._pump(endpoint, answers, writer))
        except* OSError:
            # Whoever is left at the other end sees it: but not of a node that has gone.
            if endpoint is not None:
                await self._pass(endpoint)
        finally:
            if endpoint is not None:
                self._open[endpoint] -= 1
            for each in writers:
                each.close()
            self._writers -= writers

    async def _pump(
        self, endpoint: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Pass on what comes, and then that no more will: the other direction may go on."""
        while chunk := await reader.read(65536):
            await self._pass(endpoint)
            writer.write(chunk)
            await writer.drain()
        await self._pass(endpoint)
        writer.write_eof()

    async def _pass(self, endpoint: Endpoint) -> None:
        """Return if there is a way there; else never."""
        if endpoint in self._lost:
            await asyncio.Event().wait()

    def _next(self) -> Endpoint | None:
        """The endpoint whose turn it is, of those that are ready."""
        ready = [each for each in self._endpoints if self.sends_to(each)]
        return ready[next(self._turn) % len(ready)] if ready else None

    def _abort(self) -> None:
        for each in self._writers:
            each.transport.abort()


async def _is_ready(client: aiohttp.ClientSession, endpoint: Endpoint) -> bool:
    try:
        async with client.get(f"http://{LOOPBACK}:{endpoint.health_port}/readyz") as response:
            return response.status == HTTPStatus.OK
    except (aiohttp.ClientError, TimeoutError):
        return False
