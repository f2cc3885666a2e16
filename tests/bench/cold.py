"""Images that nobody has seen: what a pod waits for, besides the registry."""

import asyncio
import http.client
import itertools
import json
import ssl
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlsplit

from bench import bodies, load
from bench.bursts import ask, new_revisions, path_of, percentiles
from bench.load import Answered, Connection, Question, Target, WrongAnswerError
from bench.rows import Bar, Found, Row
from bench.world import Server, World
from cluster.installation import SERVICE_ACCOUNT, SYSTEM
from cluster.namespaces import Namespace, Object

COUNTS = (1, 5, 20)
"""Images of a pod, each of a repository of its own."""
SAMPLES = {0.0: 20, 0.02: 12, 0.1: 3}
"""Round trip to the registry in seconds → how many pods."""
REVISIONS = 10
PROMISED = 0.02
"""The round trip that the bars are for."""


@dataclass(slots=True)
class _Times:
    """Seconds by the row that they belong to: scenario and server."""

    taken: dict[tuple[str, str], "array[float]"] = field(default_factory=dict)

    def add(self, scenario: str, server: str, seconds: float) -> None:
        self.taken.setdefault((scenario, server), array("d")).append(seconds)

    def of(self, scenario: str, server: str) -> dict[str, float]:
        taken = self.taken[scenario, server]
        return percentiles(Answered(taken, sum(taken)))

    def rows(self) -> list[Row]:
        return [Row(*key, self.of(*key)) for key in self.taken]


def measure(world: World, *, scale: float = 1.0) -> Found:
    """Pods with new tags of a registry that is some way off, by itself and with the ledger.

    The bars are for medians, where tokens and connections are there already.
    """
    namespace = Namespace(world.control_plane, "cold", {"tagpin.dev/mode": "pin"})
    times = _Times()
    bars = []
    try:
        for round_trip, samples in SAMPLES.items():
            world.registry.away.round_trip = round_trip
            for count in COUNTS:
                cell = _Cell(world, namespace, times, count, max(2, round(samples * scale)))
                load.run(cell.measure())
                if round_trip == PROMISED:
                    bars.append(cell.bar)
        world.registry.away.round_trip = PROMISED
        recorded, more = _with_the_ledger(world, namespace, max(2, round(REVISIONS * scale)))
    finally:
        world.registry.away.round_trip = 0.0
    return Found([*times.rows(), *recorded], [*bars, *more])


def _bound(round_trip: float) -> float:
    """Milliseconds that a pod may take which needs one answer of a registry for each image."""
    return 1.5 * round_trip * 1000 + 5


def _told(count: int) -> str:
    return f"{count} new image{'s' if count > 1 else ''}"


class _Cell:
    """So many images of one pod, from a registry so far away; pods without a controller."""

    def __init__(
        self, world: World, namespace: Namespace, times: _Times, count: int, samples: int
    ) -> None:
        self._world = world
        self._namespace = namespace.name
        self._times = times
        self._count = count
        self._samples = samples
        self._round_trip = world.registry.away.round_trip
        self._where = f"{_told(count)} {self._round_trip * 1000:g} ms away"
        self._kept = f"{self._where}, tokens and connections kept"

    @property
    def bar(self) -> Bar:
        measured = self._times.of(self._kept, self._world.tagpin.name)["p50_ms"]
        return Bar(f"{self._kept}: p50_ms", measured, at_most=_bound(self._round_trip))

    async def measure(self) -> None:
        servers = (self._world.tagpin, *self._world.peers)
        connections = {each.name: await Connection.to(each.target) for each in servers}
        alone = await _Registry.to(self._world, self._repositories("alone"))
        try:
            for each in servers:
                await ask(connections[each.name], each.target, self._question(each, "warm", "seen"))
            for number in range(self._samples):
                self._times.add(self._kept, "registry alone", await alone.ask())
                for each in servers:
                    question = self._question(each, "warm", f"v{number}")
                    taken = await ask(connections[each.name], each.target, question)
                    self._times.add(self._kept, each.name, taken)
            server = self._world.tagpin
            for number in range(self._samples):
                for scenario, group, tag in (
                    ("tokens kept, no connections", "warm", f"w{number}"),
                    ("no tokens, no connections", f"cold{number}", "v1"),
                ):
                    self._world.background.run(self._world.registry.away.drop())
                    question = self._question(server, group, tag)
                    await asyncio.sleep(0.02)  # in which it sees that they are gone
                    taken = await ask(connections[server.name], server.target, question)
                    self._times.add(f"{self._where}, {scenario}", server.name, taken)
        finally:
            alone.close()
            for connection in connections.values():
                connection.close()

    def _question(self, server: Server, group: str, tag: str) -> Question:
        names = self._repositories(f"{path_of(server.name)}/{group}")
        images = [self._world.registry.push(f"{each}:{tag}") for each in names]
        pod = bodies.pod(f"{group}-{tag}", images, namespace=self._namespace)
        return bodies.create(pod, server.digests)

    def _repositories(self, group: str) -> list[str]:
        cell = f"cold/{self._round_trip * 1000:g}ms/{self._count}"
        return [f"{cell}/{group}/app{number}" for number in range(self._count)]


class _Registry:
    """The registry itself, asked for a manifest over each of some connections at once.

    That is all that has to be waited for. By GET, since an answer to HEAD has no body.
    """

    def __init__(self, requests: Mapping[Connection, bytes]) -> None:
        self._requests = requests

    @classmethod
    async def to(cls, world: World, repositories: Sequence[str]) -> "_Registry":
        for each in repositories:
            world.registry.push(f"{each}:v1")
        host = world.registry.host
        target = Target(f"https://{host}/", world.authority.certificate)
        made = await load.connect(target, len(repositories))
        scopes = "&".join(f"scope=repository:{each}:pull" for each in repositories)
        answer = await made[0].answer(_get(host, f"/token?{scopes}"))
        authorization = f"Authorization: Bearer {json.loads(answer)['token']}\r\n"
        accept = "Accept: application/vnd.oci.image.manifest.v1+json\r\n"
        paths = [f"/v2/{each}/manifests/v1" for each in repositories]
        registry = cls(
            {
                connection: _get(host, path, authorization + accept)
                for connection, path in zip(made, paths, strict=True)
            }
        )
        await registry.ask()  # over connections that were waited for
        return registry

    async def ask(self) -> float:
        """Seconds until all answers are there."""
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for connection, request in self._requests.items():
                group.create_task(connection.answer(request))
        return time.perf_counter() - began

    def close(self) -> None:
        for each in self._requests:
            each.close()


def _get(host: str, path: str, headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n".encode()


def _with_the_ledger(
    world: World, namespace: Namespace, samples: int
) -> tuple[list[Row], list[Bar]]:
    """Pods of new revisions, which may take the time of two calls of the API more.

    What a call takes is measured between them, over a connection that is kept.
    """
    times = _Times()
    requests = {}
    calls = _Calls(world, namespace)
    for count in COUNTS:
        owners = new_revisions(namespace, [f"cold-{count}-{n}" for n in range(samples + 1)])
        mark = world.control_plane.audit_mark()
        load.run(_new_revisions(world, namespace, owners, times=times, calls=calls, count=count))
        asked = world.control_plane.requests_of(SERVICE_ACCOUNT, since=mark)
        ours = [
            each
            for each in asked
            if each.namespace == namespace.name and not each.name.startswith(_Calls.PREFIX)
        ]
        requests[_of_a_revision(count)] = {"api_requests_per_pod": len(ours) / (samples + 1)}
    calls.close()
    rows = [
        Row(each.scenario, each.server, {**each.figures, **requests.get(each.scenario, {})})
        for each in times.rows()
    ]
    bars = []
    for count in COUNTS:
        took = times.of(_of_a_revision(count), world.tagpin.name)["p50_ms"]
        two_calls = sum(times.of(_call(count), verb)["p50_ms"] for verb in ("GET", "POST"))
        bound = _bound(PROMISED) + two_calls
        bars.append(Bar(f"{_of_a_revision(count)}: p50_ms", took, at_most=bound))
    return rows, bars


def _call(count: int) -> str:
    return f"one call of the API for an ImagePin, {count} in it"


def _of_a_revision(count: int) -> str:
    return f"{_told(count)} of a new revision, {PROMISED * 1000:g} ms away"


async def _new_revisions(
    world: World,
    namespace: Namespace,
    owners: Sequence[Object],
    *,
    times: _Times,
    calls: "_Calls",
    count: int,
) -> None:
    """A pod of each revision; of the first one, which opens connections, nothing is told."""
    server = world.tagpin
    connection = await Connection.to(server.target)
    try:
        for number, owner in enumerate(owners):
            name = owner["metadata"]["name"]
            images = [
                world.registry.push(f"cold/ledger/{count}/app{each}:v{number}")
                for each in range(count)
            ]
            pod = bodies.pod(
                name, images, owner=owner, template_hash=name, namespace=namespace.name
            )
            taken = await ask(connection, server.target, bodies.create(pod, server.digests))
            if number == 0:
                continue
            times.add(_of_a_revision(count), server.name, taken)
            for verb, seconds in calls.make(count):
                times.add(_call(count), verb, seconds)
    finally:
        connection.close()


class _Calls:
    """What the API takes to write and to read a record: a plain client, with tagpin's token."""

    PREFIX = "call-"

    def __init__(self, world: World, namespace: Namespace) -> None:
        plane = world.control_plane
        tls = ssl.create_default_context(cafile=plane.ca_file)
        parts = urlsplit(plane.url)
        self._connection = http.client.HTTPSConnection(
            str(parts.hostname), parts.port, timeout=10, context=tls
        )
        self._headers = {
            "Authorization": f"Bearer {plane.token(SYSTEM, 'tagpin')}",
            "Content-Type": "application/json",
        }
        self._namespace = namespace
        self._path = f"/apis/tagpin.dev/v1alpha1/namespaces/{namespace.name}/imagepins"
        self._numbers = itertools.count()
        self._records: dict[int, Object] = {}

    def make(self, count: int) -> list[tuple[str, float]]:
        """Write a record like those that are there of so many images, and read it: seconds."""
        if count not in self._records:
            self._records |= {
                len(each["spec"]["images"]): each for each in self._namespace.image_pins()
            }
            self._call("GET", "")  # connects
        record = self._records[count]
        name = f"{self.PREFIX}{next(self._numbers)}"
        owners = record["metadata"]["ownerReferences"]
        body = {
            "apiVersion": "tagpin.dev/v1alpha1",
            "kind": "ImagePin",
            "metadata": {"name": name, "ownerReferences": owners},
            "spec": record["spec"],
        }
        return [
            ("POST", self._call("POST", "", json.dumps(body).encode())),
            ("GET", self._call("GET", f"/{name}")),
        ]

    def close(self) -> None:
        self._connection.close()

    def _call(self, verb: str, path: str, body: bytes | None = None) -> float:
        began = time.perf_counter()
        self._connection.request(verb, self._path + path, body, self._headers)
        response = self._connection.getresponse()
        answer = response.read()
        taken = time.perf_counter() - began
        if response.status not in (HTTPStatus.OK, HTTPStatus.CREATED):
            raise WrongAnswerError(f"{verb}: {response.status}: {answer[:500]!r}")
        return taken
