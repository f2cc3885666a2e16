"""A minute of quiet work, and whether anything grows: latency, memory, descriptors, tasks."""

import asyncio
import re
import statistics
from collections.abc import Callable, Sequence
from itertools import chain

from bench import bodies, load, machine
from bench.bodies import Digests
from bench.load import Question
from bench.rows import Bar, Found, Row
from bench.world import World
from cluster.installation import Replica
from cluster.namespaces import Namespace, replica_set

SECONDS = 60
PER_SECOND = 200
REVISIONS = 20
MIB = 2**20

SCENARIO = f"{PER_SECOND} reviews a second, one of them with a new image"

MAX_GROWTH = 1.0
"""MiB from the second third to the last: what a third of ten minutes adds to the cache is 0.7."""
MAX_DRIFT = 1.3
"""Times the latency of the second third."""

_NAMESPACE = "steady"
_TASKS = re.compile(r"^tagpin_tasks (\S+)$", re.MULTILINE)


def measure(world: World, scale: float = 1.0, seconds: int = SECONDS) -> Found:
    """Ask so many times each second; compare the last third of the time with the second one.

    The first third is left out: memory fills up to what so many connections need.
    """
    seconds = max(6, int(seconds * scale))
    warm, new = _warm(world), _new(world, seconds)
    samples: dict[str, list[float]] = {"rss_mib": [], "descriptors": [], "tasks": []}
    latencies: list[list[float]] = [[] for _ in range(seconds)]
    load.run(_work(world, (warm, new), seconds, (latencies, samples)))
    series: dict[str, Sequence[float]] = {
        "p50_ms": [_percentile(each, 50) for each in latencies],
        "p99_ms": [_percentile(each, 99) for each in latencies],
        **samples,
    }
    third = seconds // 3
    second = [*chain.from_iterable(latencies[third : 2 * third])]
    last = [*chain.from_iterable(latencies[2 * third :])]
    p50, p99 = (_percentile(last, percent) for percent in (50, 99))
    figures = {
        "seconds": float(seconds),
        "p50_ms": p50,
        "p99_ms": p99,
        **{name: _thirds(each)[1] for name, each in samples.items()},
    }
    drifts = [
        Bar(f"{SCENARIO}: {name} of the last third, times the second", after / before, at_most=most)
        for name, before, after, most in (
            ("p50_ms", _percentile(second, 50), p50, MAX_DRIFT),
            ("p99_ms", _percentile(second, 99), p99, MAX_DRIFT),
        )
    ]
    growths = [
        Bar(f"{SCENARIO}: {name}, growth in the last third", after - before, at_most=most)
        for name, most in (("rss_mib", MAX_GROWTH), ("descriptors", 0.0), ("tasks", 0.0))
        for before, after in [_thirds(samples[name])]
    ]
    return Found([Row(SCENARIO, world.tagpin.name, figures, series)], drifts + growths)


async def _work(
    world: World,
    questions: tuple[Sequence[Question], Sequence[Question]],
    seconds: int,
    taken: tuple[list[list[float]], dict[str, list[float]]],
) -> None:
    warm, new = questions
    latencies, samples = taken

    def into(per_second: int) -> Callable[[int, float], None]:
        return lambda number, took: latencies[number // per_second].append(took)

    target = world.tagpin.target
    often = PER_SECOND - 1
    async with asyncio.TaskGroup() as group:
        group.create_task(
            load.steady(target, warm, per_second=often, seconds=seconds, each=into(often))
        )
        group.create_task(
            load.steady(target, new, per_second=1, seconds=seconds, connections=1, each=into(1))
        )
        group.create_task(_sample(world.replica, seconds, samples))


async def _sample(replica: Replica, seconds: int, samples: dict[str, list[float]]) -> None:
    """Once a second, what the process takes. Nothing is being read when the files are counted."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for number in range(seconds):
        await asyncio.sleep(began + number + 0.5 - loop.time())
        samples["rss_mib"].append(machine.resident(replica.pid) / MIB)
        samples["descriptors"].append(float(machine.descriptors(replica.pid)))
        samples["tasks"].append(await asyncio.to_thread(_tasks, replica))


def _tasks(replica: Replica) -> float:
    found = _TASKS.search(replica.get("/metrics")[1])
    assert found
    return float(found[1])


def _warm(world: World) -> list[Question]:
    """Pods of some revisions: created mostly, and some changed."""
    namespace = Namespace(world.control_plane, _NAMESPACE, {"tagpin.dev/mode": "pin"})
    images = [world.registry.push(f"steady/app-{number}:v1") for number in range(REVISIONS + 1)]
    digests = world.tagpin.digests
    found: list[Question] = []
    for number in range(REVISIONS):
        name, pair = f"web-{number}", (images[number], images[number + 1])
        made = replica_set(name, {"app": pair[0]}, labels={"pod-template-hash": name}, replicas=0)
        namespace.create(made)
        owner = namespace.get(f"replicasets/{name}", "apis/apps/v1")
        pod = bodies.pod(
            f"{name}-x2x4z", pair, owner=owner, template_hash=name, namespace=_NAMESPACE
        )
        found += [bodies.create(pod, digests)] * 4
        found.append(bodies.update(pod, digests))
    return found


def _new(world: World, count: int) -> list[Question]:
    """Pods of their own, with an image that nobody has asked for."""
    digests: Digests = world.tagpin.digests
    return [
        bodies.create(
            bodies.pod(
                f"new-{number}",
                [world.registry.push(f"steady/new:v{number}")],
                namespace=_NAMESPACE,
            ),
            digests,
        )
        for number in range(count)
    ]


def _percentile(seconds: Sequence[float], percent: float) -> float:
    """In milliseconds."""
    ranked = sorted(seconds)
    return ranked[min(len(ranked) - 1, int(len(ranked) * percent / 100))] * 1e3


def _thirds(samples: Sequence[float]) -> tuple[float, float]:
    """The medians of the second third and of the last."""
    third = len(samples) // 3
    return statistics.median(samples[third : 2 * third]), statistics.median(samples[2 * third :])
