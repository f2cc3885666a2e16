"""API servers and kubelets, played, as far as a webhook's certificate goes.

The API servers trust what the caBundle says, a little late, and nothing else. The kubelets bring
the Secret to the volume, a little late as well.
"""

import asyncio
import base64
import itertools
import json
import os
import ssl
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any, Self

import aiohttp
from kubernetes.aio.client import AdmissionregistrationV1Api, ApiClient, CoreV1Api

from cluster.programs import LOOPBACK
from tagpin.cluster.api import connect, disconnect, watch

RATE = 100
LAGS = (0.0, 0.1, 0.4)
"""Seconds by which each of the API servers is behind."""


class Trust:
    """What one API server knows of the caBundle of the first webhook."""

    def __init__(self, lag: float) -> None:
        self._lag = lag
        self.context: ssl.SSLContext | None = None
        """None while nothing is to be trusted."""
        self.known = asyncio.Event()

    def learn(self, bundle: str | None) -> None:
        """Know of it after the lag."""
        asyncio.get_running_loop().call_later(self._lag, self._learn, bundle)

    def _learn(self, bundle: str | None) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        if bundle:
            context.load_verify_locations(cadata=base64.b64decode(bundle).decode())
            self.known.set()
        self.context = context


class Callers:
    """Several API servers that call the webhooks at `ports`, `RATE` times a second in all.

    Every second request comes on a new connection, the others on one that is kept from the
    beginning to the end.
    """

    def __init__(self, kubeconfig: Path, ports: Sequence[int]) -> None:
        self._kubeconfig = kubeconfig
        self._ports = list(ports)
        self._under_way: Counter[int] = Counter()
        self._trusts = [Trust(lag) for lag in LAGS]
        self.failures: list[str] = []
        self.answered: Counter[str] = Counter()
        """How many requests were answered, by the kind of connection."""
        self.seconds = 0.0
        """How long they have been called."""
        self._at_first: dict[int, ssl.SSLContext] = {}
        self._stack = AsyncExitStack()

    @property
    def told(self) -> str:
        """The figures."""
        total = sum(self.answered.values())
        return (
            f"{total} answered in {self.seconds:.0f} s ({total / self.seconds:.0f}/s),"
            f" {self.answered['new']} of them on new connections; {len(self.failures)} failed"
        )

    async def __aenter__(self) -> Self:
        api = await connect(self._kubeconfig)
        self._stack.push_async_callback(disconnect, api)
        self._fresh = await self._stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
        )
        # One connection to each port, whatever is trusted later.
        self._kept = await self._stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit_per_host=1))
        )
        watching = asyncio.create_task(self._watch(api))
        self._stack.push_async_callback(_ended, watching)
        async with asyncio.timeout(20):
            for each in self._trusts:
                await each.known.wait()
        calling = asyncio.create_task(self._call())
        self._stack.push_async_callback(_ended, calling)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def call(self, port: int) -> None:
        """Call this one too."""
        self._ports.append(port)

    async def leave(self, port: int) -> None:
        """Call it no more, and return when nobody waits for its answer."""
        self._ports.remove(port)
        while self._under_way[port]:  # noqa: ASYNC110 - nothing signals it
            await asyncio.sleep(0.02)

    async def _watch(self, api: ApiClient) -> None:
        """As an API server's informer."""
        listing = AdmissionregistrationV1Api(api)
        while True:
            events = watch(
                "watch",
                listing.list_mutating_webhook_configuration_without_preload_content,
                {"field_selector": "metadata.name=tagpin"},
            )
            async with aclosing(events):
                async for event in events:
                    if event.type != "DELETED":
                        config = event.object["webhooks"][0]["clientConfig"]
                        for each in self._trusts:
                            each.learn(config.get("caBundle"))

    async def _call(self) -> None:
        time = asyncio.get_running_loop().time
        began = time()
        async with asyncio.TaskGroup() as group:
            for number in itertools.count(1):
                trust = self._trusts[number % len(self._trusts)]
                port = self._ports[number % len(self._ports)]
                group.create_task(self._one(trust, port, is_kept=number // 2 % 2 == 0))
                self.seconds = time() - began
                await asyncio.sleep(began + number / RATE - time())

    async def _one(self, trust: Trust, port: int, *, is_kept: bool) -> None:
        session, context = self._fresh, trust.context
        assert context is not None
        if is_kept:  # what is trusted later does not matter to it
            session, context = self._kept, self._at_first.setdefault(port, context)
        review = {
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": _request(),
        }
        url = f"https://{LOOPBACK}:{port}/enforce?timeout=5s"
        self._under_way[port] += 1
        try:
            async with session.post(url, json=review, ssl=context) as response:
                answer = await response.text()
                if response.status != 200 or not json.loads(answer)["response"]["allowed"]:
                    self.failures.append(f"{response.status}: {answer}")
                    return
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.failures.append(f"{'kept' if is_kept else 'new'}: {error!r}")
        else:
            self.answered["kept" if is_kept else "new"] += 1
        finally:
            self._under_way[port] -= 1


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def _request() -> dict[str, Any]:
    pods = {"group": "", "version": "v1", "resource": "pods"}
    kind = {"group": "", "version": "v1", "kind": "Pod"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"containers": [{"name": "web", "image": "web"}]},
    }
    return {
        "uid": str(uuid.uuid4()),
        "kind": kind,
        "requestKind": kind,
        "resource": pods,
        "requestResource": pods,
        "operation": "CREATE",
        "namespace": "shop",
        "userInfo": {"username": "jane"},
        "object": pod,
        "oldObject": None,
        "dryRun": False,
    }


class MountedSecret:
    """The Secret tagpin-tls as a volume, brought up to date every `period` seconds, and `lag` late.

    As a kubelet does: all files change at once, and those of a Secret that is gone go too.
    """

    def __init__(self, kubeconfig: Path, folder: Path, *, period: float, lag: float) -> None:
        self._kubeconfig = kubeconfig
        self.folder = folder
        self._period = period
        self._lag = lag
        self._versions = itertools.count(1)
        self._task: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        self.folder.mkdir()
        self._api = await connect(self._kubeconfig)
        self._task = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *_: object) -> None:
        await _ended(self._task)
        await disconnect(self._api)

    async def _keep(self) -> None:
        core = CoreV1Api(self._api)
        name = "metadata.name=tagpin-tls"
        held: dict[str, bytes] | None = None
        while True:
            found = await core.list_namespaced_secret("tagpin-system", field_selector=name)
            encoded = (found.items[0].data or {}) if found.items else {}
            data = {key: base64.b64decode(content) for key, content in encoded.items()}
            if data != held:
                held = data
                asyncio.get_running_loop().call_later(self._lag, self._write, data)
            await asyncio.sleep(self._period)

    def _write(self, data: dict[str, bytes]) -> None:
        write_volume(self.folder, data, version=f"..{next(self._versions)}")


def write_volume(folder: Path, data: dict[str, bytes], *, version: str = "..1") -> None:
    """Have these files in a volume, and no others, all at once."""
    (folder / version).mkdir()
    for name, content in data.items():
        (folder / version / name).write_bytes(content)
    (folder / "..data_tmp").symlink_to(version)
    os.rename(folder / "..data_tmp", folder / "..data")  # noqa: PTH104 - replaces, as kubelets do
