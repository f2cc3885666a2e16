"""The load: people and controllers that create pods, in every mode, all the time.

It writes down what the API server does not answer; what it does answer is in its audit log.
"""

import asyncio
import contextlib
import itertools
import random
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp

from chaos.seen import Unanswered
from chaos.world import HOT, NAMESPACES, RARE, World
from cluster.images import Pusher
from cluster.namespaces import Object, deployment, job, pod

BARE_PODS = 25
"""Of each namespace; the oldest go."""
JOBS = 8
DEPLOYMENTS = ("web", "api")
STRATEGIC = "application/strategic-merge-patch+json"


class Load:
    """Creates, changes and deletes, from `start` to `stop`; `pause` and `resume` in between.

    All of it runs in the loop of the world's background thread.
    """

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._draw = random.Random(seed)  # noqa: S311 - a game
        self._rare = itertools.cycle(range(RARE))
        self._on = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._client: aiohttp.ClientSession
        self._under_way = 0
        self._idle = asyncio.Event()
        self.unanswered: list[Unanswered] = []

    async def start(self) -> None:
        """Begin, with Deployments that have pods."""
        control_plane = self._world.control_plane
        issued = control_plane.authority.issue("load", groups=["system:masters"])
        tls = ssl.create_default_context(cafile=control_plane.ca_file)
        tls.load_cert_chain(issued.certificate, issued.key)
        self._client = aiohttp.ClientSession(
            base_url=control_plane.url,
            connector=aiohttp.TCPConnector(limit=0, ssl=tls),
            timeout=aiohttp.ClientTimeout(total=15),
        )
        works: list[tuple[Callable[[str], Awaitable[None]], str]] = []
        for namespace, mode in NAMESPACES.items():
            works += [(self._create_bare_pods, namespace)] * (2 if mode == "enforce" else 1)
            if mode != "audit":
                works += [(self._create_jobs, namespace), (self._change_deployments, namespace)]
        works += [(self._move_tags, "")]
        self._on.set()
        self._tasks = [asyncio.ensure_future(work(namespace)) for work, namespace in works]

    async def pause(self) -> None:
        """Begin nothing new."""
        self._on.clear()

    async def resume(self) -> None:
        """Go on."""
        self._on.set()

    async def stop(self) -> None:
        """End; raises what went wrong with the load itself."""
        self._on.clear()
        await self._idle.wait()
        broken = [task for task in self._tasks if task.done()]
        await self._client.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for task in broken:
            task.result()

    # What it does

    async def _create_bare_pods(self, namespace: str) -> None:
        names: deque[str] = deque()
        for number in itertools.count():
            await self._turn(0.3)
            name = f"bare-{id(names)}-{number}"
            await self._post(namespace, "api/v1", "pods", pod(name, self._images()))
            names.append(name)
            if len(names) > BARE_PODS:
                await self._ask("DELETE", f"/api/v1/namespaces/{namespace}/pods/{names.popleft()}")

    async def _create_jobs(self, namespace: str) -> None:
        background = {"propagationPolicy": "Background"}
        for number in itertools.count():
            await self._turn(1.5)
            made = job(f"job-{number}", self._images(), completions=2)
            await self._post(namespace, "apis/batch/v1", "jobs", made)
            if number >= JOBS:
                old = f"/apis/batch/v1/namespaces/{namespace}/jobs/job-{number - JOBS}"
                await self._ask("DELETE", old, background)

    async def _change_deployments(self, namespace: str) -> None:
        """New revisions, old ones again, more pods and fewer, and pods that are made anew."""
        for name in DEPLOYMENTS:
            made = deployment(name, self._images(), replicas=2)
            await self._post(namespace, "apis/apps/v1", "deployments", made)
        for number in itertools.count(1):
            await self._turn(1.0)
            name = self._draw.choice(DEPLOYMENTS)
            path = f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}"
            match self._draw.choice(["new", "old", "scale", "renew"]):
                case "new":
                    await self._ask("PATCH", path, _revision(number), STRATEGIC)
                case "old":
                    await self._ask("PATCH", path, _revision(max(1, number - 5)), STRATEGIC)
                case "scale":
                    spec = {"spec": {"replicas": self._draw.randint(1, 5)}}
                    await self._ask("PATCH", path, spec, STRATEGIC)
                case "renew":
                    selector = f"labelSelector=app={name}"
                    await self._ask("DELETE", f"/api/v1/namespaces/{namespace}/pods?{selector}")

    async def _move_tags(self, _: str) -> None:
        pusher = Pusher(self._world.real.url)
        for number in itertools.count():
            await self._turn(0.5)
            tag = str(self._draw.randrange(HOT))
            self._world.fake.push_image("hot", tag, str(number).encode())
            with contextlib.suppress(OSError):  # the registry is not there
                await asyncio.to_thread(pusher.push, "hot", tag, str(number))

    def _images(self) -> Mapping[str, str]:
        """Of either registry or of both; mostly tags that everybody uses."""
        hosts = (self._world.real.host, self._world.fake.host)
        chosen = self._draw.choice([hosts, hosts[:1], hosts[1:]])
        rare = self._draw.random() < 0.2
        image = f"rare:{next(self._rare)}" if rare else f"hot:{self._draw.randrange(HOT)}"
        return {f"app-{number}": f"{host}/{image}" for number, host in enumerate(chosen)}

    # How it asks

    async def _turn(self, seconds: float) -> None:
        """Wait about so long, and for as long as there is a pause."""
        await asyncio.sleep(self._draw.uniform(0.5, 1.5) * seconds)
        await self._on.wait()

    async def _post(self, namespace: str, group: str, plural: str, wanted: Object) -> None:
        await self._ask("POST", f"/{group}/namespaces/{namespace}/{plural}", wanted)

    async def _ask(
        self, method: str, path: str, body: Any = None, kind: str = "application/json"
    ) -> None:
        began = time.time()
        headers = {"Content-Type": kind}
        self._under_way += 1
        self._idle.clear()
        try:
            async with self._client.request(
                method, path, json=body, headers=headers if body else None
            ) as answer:
                await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            problem = f"{method} {path}: {error!r}"
            self.unanswered.append(Unanswered(began, time.time(), problem))
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()


def _revision(number: int) -> Object:
    return {"spec": {"template": {"metadata": {"annotations": {"revision": str(number)}}}}}
