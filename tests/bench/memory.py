"""What is remembered: how much room ten thousand revisions take, and what finding them costs.

They are filled in through a control plane: ten thousand ReplicaSets, a review of each, and the
records that come of it. A second replica, which knows ten, tells what their number costs.
"""

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bench import bodies, creating, load, machine
from bench.bursts import burst
from bench.creating import ApiServer
from bench.endtoend import on_both_cores, standing_still
from bench.load import Answered, Question, Target, WrongAnswerError
from bench.rows import Bar, Figures, Found, Row, medians
from bench.world import World
from cluster.installation import SERVICE_ACCOUNT, Replica
from cluster.namespaces import Object, replica_set
from cluster.programs import LOOPBACK

MANY = 10_000
FEW = 10
NAMESPACES = 20
CLIENTS = 16
"""Each takes a connection here and one to the API server, which take memory of their own."""
ROUNDS, REVIEWS = 9, 1000
BUSY = 8
"""Connections, where the cost of a review is measured."""
MIB = 2**20

_SPACE = "memory-"
_FROM_LEDGER = 'tagpin_images_pinned_total{mode="pin",source="ledger"}'

MAX_RESIDENT = 130.0
"""MiB, as was promised; the next one is times what a pod costs with few revisions."""
MAX_COST = 1.1


def measure(world: World, scale: float = 1.0) -> Found:
    """Fill it, read all of it back, and compare. At a small scale there are fewer revisions."""
    many, replica = max(10 * FEW, int(MANY * scale)), world.replica
    started = machine.resident(replica.pid) / MIB
    with on_both_cores(world), standing_still(world):
        began = time.perf_counter()
        questions = _questions(world, many)
        made = time.perf_counter() - began
        cold = _each(world.tagpin.target, questions)
        filled = machine.resident(replica.pid) / MIB
        back, requests = _read_back(world, questions)
    figures = {
        "make_seconds": made,
        "fill_seconds": cold.elapsed,
        "fill_per_second": cold.per_second,
        "started_rss_mib": started,
        "rss_mib": filled,
    }
    figures |= {
        "read_back_per_second": back.per_second,
        "read_back_rss_mib": machine.resident(replica.pid) / MIB,
        **{f"read_back_{name}": float(count) for name, count in requests.items()},
    }
    scenario = f"{many} revisions and {many} references"
    with _another(world) as (other, target):
        rounds = _compared(world, other, target, questions, scale)
    of_many, of_few = medians([each[0] for each in rounds]), medians([each[1] for each in rounds])
    return Found(
        [
            Row(scenario, "tagpin", figures),
            Row(f"warm pods of {many} revisions", "tagpin", of_many),
            Row(f"warm pods of {FEW} revisions", "tagpin", of_few),
        ],
        [
            Bar(f"{scenario}: rss_mib", figures["read_back_rss_mib"], at_most=MAX_RESIDENT),
            *(Bar(f"{scenario}, read back: {name}", n, at_most=0) for name, n in requests.items()),
            *(
                Bar(
                    f"{scenario}: {name} of a warm pod, times that with {FEW}",
                    _ratio(rounds, name),
                    at_most=MAX_COST,
                )
                for name in of_few
            ),
        ],
    )


def _questions(world: World, many: int) -> list[Question]:
    """A pod of each of so many new revisions; two images each, and as many in all."""
    api_server = ApiServer(world.control_plane)
    spaces = [f"{_SPACE}{number}" for number in range(NAMESPACES)]
    creating.created(api_server, "/api/v1/namespaces", map(_namespace, spaces))
    images = [world.registry.push(f"memory/app-{n % 100}:v{n}") for n in range(many)]
    pairs = [(images[number], images[(number + 1) % many]) for number in range(many)]
    found: list[Question | None] = [None] * many
    for first, space in enumerate(spaces):
        numbers = range(first, many, NAMESPACES)
        sets = creating.created(
            api_server,
            f"/apis/apps/v1/namespaces/{space}/replicasets",
            (_replica_set(number, *pairs[number]) for number in numbers),
            clients=CLIENTS,
        )
        for number, each in zip(numbers, sets, strict=True):
            found[number] = _question(world, space, each, pairs[number])
    return [each for each in found if each is not None]


def _namespace(name: str) -> Object:
    metadata = {"name": name, "labels": {"tagpin.dev/mode": "pin"}}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def _replica_set(number: int, *images: str) -> Object:
    return replica_set(
        f"web-{number:05d}-5d4f8c7b9",
        {f"app-{place}": image for place, image in enumerate(images)},
        labels={"pod-template-hash": _hash(number)},
        replicas=0,
    )


def _hash(number: int) -> str:
    return f"h{number:05d}"


def _question(world: World, namespace: str, owner: Object, images: Sequence[str]) -> Question:
    pod = bodies.pod(
        f"{owner['metadata']['name']}-x2x4z",
        images,
        owner=owner,
        template_hash=owner["metadata"]["labels"]["pod-template-hash"],
        namespace=namespace,
    )
    return bodies.create(pod, world.registry.digests.__getitem__)


def _each(target: Target, questions: Sequence[Question], clients: int = CLIENTS) -> Answered:
    """Ask every question once."""
    return load.run(burst(target, questions, connections=clients, longest=math.inf))


def _read_back(world: World, questions: Sequence[Question]) -> tuple[Answered, dict[str, int]]:
    """Ask everything again; how often the registry and the API server are asked meanwhile."""
    registry, pinned = world.registry.away.registry, world.replica.counts()
    asked, mark = len(registry.requests), world.control_plane.audit_mark()
    answered = _each(world.tagpin.target, questions)
    since = world.replica.counts() - pinned
    images = 2 * len(questions)
    if since[_FROM_LEDGER] != images:
        raise WrongAnswerError(f"of {images} images, not all came from the ledger: {since}")
    ours = world.control_plane.requests_of(SERVICE_ACCOUNT, since=mark)
    return answered, {
        "registry_requests": len(registry.requests) - asked,
        "api_requests": sum(each.namespace.startswith(_SPACE) for each in ours),
    }


@contextmanager
def _another(world: World) -> Iterator[tuple[Replica, Target]]:
    """One more replica, on the core of the first one, that has seen nothing."""
    replica = world.installation._new_replica("tagpin-bench-2")
    try:
        replica.start()
        machine.stay_on(machine.SERVERS, [replica.pid])
        target = Target(f"https://{LOOPBACK}:{replica.port}/pin?timeout=5s", replica.ca())
        yield replica, target
    finally:
        replica.close()


def _compared(
    world: World, other: Replica, target: Target, questions: Sequence[Question], scale: float
) -> list[tuple[Figures, Figures]]:
    """A warm pod with all of it, and with a few, in turns: the figures of each round."""
    count = max(100, int(REVIEWS * scale))
    few = [questions[number % FEW] for number in range(count)]
    many = questions[:: max(1, len(questions) // count)][:count]
    _each(target, few[:FEW], clients=1)
    for number in range(FEW):  # has had as many connections, and has answered as much
        _each(target, few, clients=CLIENTS if number else 1)
    return [
        (_warm(world.tagpin.target, world.replica.pid, many), _warm(target, other.pid, few))
        for _ in range(ROUNDS)
    ]


def _warm(target: Target, pid: int, questions: Sequence[Question]) -> Figures:
    """The latency of one after the other, and the cost of some at a time."""
    alone = _each(target, questions, clients=1)
    before = machine.cpu_seconds(pid)
    _each(target, questions, clients=BUSY)
    cpu = machine.cpu_seconds(pid) - before
    return {"cpu_us": cpu / len(questions) * 1e6, "p50_ms": alone.percentile(50) * 1e3}


def _ratio(rounds: Sequence[tuple[Figures, Figures]], name: str) -> float:
    return statistics.median(many[name] / few[name] for many, few in rounds)
