"""Many pods at once, of one new revision and of many: how fast, and how much is asked for them."""

import asyncio
import time
from array import array
from collections.abc import Iterator, Sequence

from bench import bodies, load
from bench.load import Answered, Question, Target
from bench.rows import Bar, Found, Row
from bench.world import Registry, Server, World
from cluster.installation import SERVICE_ACCOUNT
from cluster.namespaces import Namespace, Object, replica_set

PODS = 1000
CONNECTIONS = (16, 64)
REVISIONS, IMAGES = 200, 20
ROUND_TRIPS = (0.0, 0.02)
LONGEST = 4.0
"""Seconds after which no more pods of a burst are sent: slow peers get fewer."""


def measure(world: World, *, scale: float = 1.0) -> Found:
    """Bursts of one new revision, and of many new ones at once."""
    namespace = Namespace(world.control_plane, "bursts", {"tagpin.dev/mode": "pin"})
    rows: list[Row] = []
    bars: list[Bar] = []
    try:
        for round_trip in ROUND_TRIPS:
            world.registry.away.round_trip = round_trip
            where = f"{round_trip * 1000:g} ms away"
            for connections in CONNECTIONS:
                scenario = f"burst of one revision, {connections} connections, {where}"
                for server in (world.tagpin, *world.peers):
                    row = _one_revision(
                        world,
                        namespace,
                        server,
                        scenario=scenario,
                        connections=connections,
                        pods=int(PODS * scale),
                    )
                    rows.append(row)
                    if server is world.tagpin:
                        bars += _asked_once(scenario, row, 1)
            scenario = f"{REVISIONS} new revisions at once, {where}"
            row = _many_revisions(world, scenario, f"bursts-{round_trip * 1000:g}")
            rows.append(row)
            bars += _asked_once(scenario, row, IMAGES)
            written = row.figures["image_pins"]
            bars.append(Bar(f"{scenario}: ImagePins", written, REVISIONS, REVISIONS))
    finally:
        world.registry.away.round_trip = 0.0
    return Found(rows, bars)


def _one_revision(
    world: World,
    namespace: Namespace,
    server: Server,
    *,
    scenario: str,
    connections: int,
    pods: int,
) -> Row:
    """All pods of one ReplicaSet, which nobody has seen before: one question to the registry."""
    name = path_of(f"{server.name} {scenario}")
    image = world.registry.push(f"bursts/{name}:v1")
    (owner,) = new_revisions(namespace, [name])
    questions = [
        bodies.create(_pod(namespace, owner, image, number), server.digests)
        for number in range(pods)
    ]
    world.registry.away.registry.requests.clear()
    mark = world.control_plane.audit_mark()
    answered = load.run(burst(server.target, questions, connections=connections))
    figures = {
        "pods": len(answered.seconds),
        "per_second": answered.per_second,
        **percentiles(answered),
    }
    if server is world.tagpin:
        figures |= asked_of(world.registry) | _asked_of_api(world, namespace, mark)
    return Row(scenario, server.name, figures)


def _many_revisions(world: World, scenario: str, name: str) -> Row:
    """One pod of each of many ReplicaSets, of fewer images: one question for each image.

    A new revision takes no answer from before it was created, nor of the second in which it was.
    Here all of them were created a second before the first pod comes, so an answer to one of them
    is asked for late enough for all, and the bound is one question an image. Where pods come within
    that second, an answer must be asked for after the pod came: the bound is one a revision.
    """
    namespace = Namespace(world.control_plane, name, {"tagpin.dev/mode": "pin"})
    images = [world.registry.push(f"{name}/app{number}:v1") for number in range(IMAGES)]
    owners = new_revisions(namespace, [f"web-{number}" for number in range(REVISIONS)])
    questions = [
        bodies.create(_pod(namespace, owner, images[n % IMAGES], n), world.tagpin.digests)
        for n, owner in enumerate(owners)
    ]
    time.sleep(1.1)
    world.registry.away.registry.requests.clear()
    mark = world.control_plane.audit_mark()
    answered = load.run(burst(world.tagpin.target, questions, connections=max(CONNECTIONS)))
    figures = {
        "seconds": answered.elapsed,
        **percentiles(answered),
        **asked_of(world.registry),
        **_asked_of_api(world, namespace, mark),
        "image_pins": len(namespace.image_pins()),
    }
    return Row(scenario, world.tagpin.name, figures)


def _asked_once(scenario: str, row: Row, images: int) -> Iterator[Bar]:
    """One HEAD and one token for each image, whatever the number of pods."""
    for figure in ("head_requests", "token_requests"):
        yield Bar(f"{scenario}: {figure}", row.figures[figure], images, images)


def _pod(namespace: Namespace, owner: Object, image: str, number: int) -> Object:
    name = owner["metadata"]["name"]
    return bodies.pod(
        f"{name}-{number}", [image], owner=owner, template_hash=name, namespace=namespace.name
    )


# What other scenarios take from here


async def burst(
    target: Target, questions: Sequence[Question], *, connections: int, longest: float = LONGEST
) -> Answered:
    """Each question once, as soon as one of the connections is free, for `longest` seconds."""
    made = await load.connect(target, connections)
    waiting = iter(questions)
    taken = array("d")
    began = time.perf_counter()

    async def send(connection: load.Connection) -> None:
        for question in waiting:
            if time.perf_counter() > began + longest:
                return
            taken.append(await ask(connection, target, question))

    try:
        async with asyncio.TaskGroup() as group:
            for each in made:
                group.create_task(send(each))
        return Answered(taken, time.perf_counter() - began)
    finally:
        for each in made:
            each.close()


async def ask(connection: load.Connection, target: Target, question: Question) -> float:
    """The seconds until an answer, which must be right."""
    request = target.request(question.body)
    began = time.perf_counter()
    answer = await connection.answer(request)
    taken = time.perf_counter() - began
    question.check(answer)
    return taken


def percentiles(answered: Answered) -> dict[str, float]:
    """The figures of latency; of fewer than a hundred answers the slowest is the p99."""
    return {f"p{each}_ms": answered.percentile(each) * 1000 for each in (50, 99)}


def path_of(text: str) -> str:
    """Its letters and digits, for the name of a repository or of an object."""
    return "".join(each for each in text.lower() if each.isascii() and each.isalnum())


def new_revisions(namespace: Namespace, names: Sequence[str]) -> list[Object]:
    """ReplicaSets without replicas, created just now; the name of each is its hash, too."""
    namespace.create(
        *(
            replica_set(name, {"app": "app"}, labels={"pod-template-hash": name}, replicas=0)
            for name in names
        )
    )
    # Items of a list do not say what they are.
    kind = {"apiVersion": "apps/v1", "kind": "ReplicaSet"}
    found = {
        each["metadata"]["name"]: kind | each
        for each in namespace.find("replicasets", "apis/apps/v1")
    }
    return [found[name] for name in names]


def asked_of(registry: Registry) -> dict[str, float]:
    """What a registry was asked since its requests were cleared.

    HEADs without credentials are not counted: they are answered 401.
    """
    seen = registry.away.registry.requests
    return {
        "requests": len(seen),
        "head_requests": sum(each.method == "HEAD" and bool(each.authorization) for each in seen),
        "token_requests": sum(each.path == "/token" for each in seen),
    }


def _asked_of_api(world: World, namespace: Namespace, mark: int) -> dict[str, float]:
    """What tagpin asked of the API server in a namespace since then."""
    asked = world.control_plane.requests_of(SERVICE_ACCOUNT, since=mark)
    return {"api_requests": sum(each.namespace == namespace.name for each in asked)}
