"""A registry that never answers, and what those notice who ask other ones."""

import asyncio
import itertools
import math
import statistics
from array import array
from collections.abc import Callable

from bench import bodies, load
from bench.bursts import new_revisions, percentiles
from bench.load import Answered, Question, WrongAnswerError
from bench.rows import Bar, Found, Row
from bench.world import World
from cluster.namespaces import Namespace

ROUND_TRIP = 0.02
WARM, COLD, LOST = 100, 5, 5
"""Pods a second: of a recorded revision, with new tags, and of the registry that is lost."""
SECONDS = 8.0
"""Of a phase. Pods of the lost registry come in its first half, and are under way in the second."""
ALONE, ELSEWHERE, HERE = "nobody", "another namespace", "the same namespace"
"""Who asks for images of the lost registry."""
ORDER = (ALONE, ELSEWHERE, ALONE, HERE)
LOST_CONNECTIONS = 32
"""Enough for all of its pods: each is a few seconds under way."""
REPOSITORIES = 5
WAITED_MS = 1000
"""Milliseconds for which some pod of the lost registry must have waited, or there was no test."""
MOST = 1.2
"""What the p99 of others may become, as a share."""


def measure(world: World, *, scale: float = 1.0) -> Found:
    """Pods of a registry that works, while nobody asks the black hole and while some do.

    Phases with and without alternate; what each kind saw is put together. Of all pods of the
    working registry, the p99 lies among those with new tags, which are five of a hundred. It is
    taken for each second, and the bars are for the median of these: so what the machine does once
    in a while is no verdict on tagpin. The p99 over all seconds is in the table.
    """
    world.registry.away.round_trip = ROUND_TRIP
    try:
        scene = _Scene(world, SECONDS * scale)
        load.run(scene.phase(ALONE, _Seen()))  # connections are made, and what is warm gets so
        seen = {who: _Seen() for who in (ALONE, ELSEWHERE, HERE)}
        for who in ORDER:
            load.run(scene.phase(who, seen[who]))
        for who in (ELSEWHERE, HERE):
            if seen[who].figures["lost_p99_ms"] < WAITED_MS:
                raise WrongAnswerError("no pod has waited for the black hole")
    finally:
        world.registry.away.round_trip = 0.0
    name = f"{WARM + COLD} pods/s of a registry {ROUND_TRIP * 1000:g} ms away"
    rows = [
        Row(f"{name}; a black hole asked by {who}", world.tagpin.name, each.figures)
        for who, each in seen.items()
    ]
    bars = [
        Bar(
            f"a black hole asked by {who}: p99 of the other pods, as a share of that without",
            seen[who].steady_p99_ms / seen[ALONE].steady_p99_ms,
            at_most=MOST,
        )
        for who in (ELSEWHERE, HERE)
    ]
    return Found(rows, bars)


class _Seen:
    """What pods took, by what they asked for, over all phases of a kind."""

    def __init__(self) -> None:
        self._all = {name: array("d") for name in ("warm", "cold", "lost")}
        self._seconds: list[array[float]] = []
        """Of pods of the working registry, second by second."""

    def begin(self, seconds: float) -> None:
        """Begin a phase of so many seconds."""
        self._seconds += [array("d") for _ in range(math.ceil(seconds))]
        self._began = len(self._seconds) - math.ceil(seconds)

    def watching(self, name: str, per_second: float) -> Callable[[int, float], None]:
        """Take in what a load tells of each of its answers."""

        def answered(number: int, seconds: float) -> None:
            self._all[name].append(seconds)
            if name != "lost":
                self._seconds[self._began + int(number / per_second)].append(seconds)

        return answered

    @property
    def steady_p99_ms(self) -> float:
        """The median over the seconds of the p99 of each."""
        return statistics.median(_percentiles(each)["p99_ms"] for each in self._seconds)

    @property
    def figures(self) -> dict[str, float]:
        """Of the pods of the working registry, all of them and by kind; and of the lost one."""
        figures = _percentiles(self._all["warm"] + self._all["cold"])
        figures["p99_of_a_second_ms"] = self.steady_p99_ms
        for name, taken in self._all.items():
            if taken:
                figures |= {f"{name}_{key}": value for key, value in _percentiles(taken).items()}
        return figures


class _Scene:
    """Pods for each phase, of which those with new tags are seen for the first time."""

    def __init__(self, world: World, seconds: float) -> None:
        self._world = world
        self._seconds = seconds
        self._phases = itertools.count()
        self._black_holes = iter(world.lost)
        here, elsewhere = (
            Namespace(world.control_plane, name, {"tagpin.dev/mode": "pin"})
            for name in ("blackhole", "blackhole-elsewhere")
        )
        self._askers = {HERE: here.name, ELSEWHERE: elsewhere.name}
        (owner,) = new_revisions(here, ["warm"])
        image = world.registry.push("blackhole/warm:v1")
        self._warm = [
            bodies.create(
                bodies.pod(
                    f"warm-{number}",
                    [image],
                    owner=owner,
                    template_hash="warm",
                    namespace=here.name,
                ),
                world.tagpin.digests,
            )
            for number in range(WARM)
        ]

    async def phase(self, asker: str, seen: _Seen) -> None:
        """Warm pods, some with new tags, and some of the lost registry if somebody asks for it."""
        phase, seconds, target = next(self._phases), self._seconds, self._world.tagpin.target
        seen.begin(seconds)
        loads = [
            load.steady(
                target, asked, per_second=rate, seconds=seconds, each=seen.watching(name, rate)
            )
            for name, asked, rate in (
                ("warm", self._warm, WARM),
                ("cold", self._cold(phase), COLD),
            )
        ]
        if asker != ALONE:
            lost = load.steady(
                target,
                self._lost(phase, self._askers[asker]),
                per_second=LOST,
                seconds=seconds / 2,
                connections=LOST_CONNECTIONS,
                each=seen.watching("lost", LOST),
            )
            loads.append(lost)
        await asyncio.gather(*loads)

    def _cold(self, phase: int) -> list[Question]:
        here, registry = self._askers[HERE], self._world.registry
        images = [
            registry.push(f"blackhole/cold{number % REPOSITORIES}:v{phase}-{number}")
            for number in range(math.ceil(COLD * self._seconds))
        ]
        pods = [bodies.pod(f"cold-{n}", [each], namespace=here) for n, each in enumerate(images)]
        return [bodies.create(each, self._world.tagpin.digests) for each in pods]

    def _lost(self, phase: int, asker: str) -> list[Question]:
        """Pods that are admitted as they are; each has a tag of its own, so none is a repeat.

        The black hole is another one in each phase, since one that is known is left alone.
        """
        host = next(self._black_holes)
        images = [
            f"{host}/lost/app:v{phase}-{number}"
            for number in range(math.ceil(LOST * self._seconds / 2))
        ]
        pods = [bodies.pod(f"lost-{n}", [each], namespace=asker) for n, each in enumerate(images)]
        return [bodies.create_unpinned(each) for each in pods]


def _percentiles(taken: "array[float]") -> dict[str, float]:
    return percentiles(Answered(taken, sum(taken)))
