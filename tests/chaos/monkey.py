"""The monkey: what is done when.

`plan` is pure: the same seed makes the same strikes at the same seconds. What comes of them
depends on the machine.
"""

import heapq
import itertools
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from chaos.faults import FAULTS, INSTANT, OF_REGISTRIES, OF_REPLICAS
from chaos.kubelet import Kubelet
from chaos.seen import Episode, Fault
from chaos.world import World
from cluster.controlplane import KubectlError

PATIENCE = 20.0
"""Seconds that a strike waits for what it needs; then it is left out. So it is when time is up."""


@dataclass(frozen=True, slots=True)
class Strike:
    """One thing to do: `at` seconds from the beginning, lasting for some, to any `target`."""

    at: float
    fault: Fault
    seconds: float
    target: int


def plan(seed: int, seconds: float) -> list[Strike]:
    """What to do in so many seconds: every fault once in each round, in any order."""
    draw = random.Random(seed)  # noqa: S311 - a game
    strikes, at = list[Strike](), 0.0
    while True:
        for fault in draw.sample(list(Fault), len(Fault)):
            at += draw.uniform(1, 4)
            if at > seconds:
                return strikes
            strikes.append(Strike(at, fault, draw.uniform(1, 6), draw.randrange(100)))


class Monkey:
    """Strikes at a world. `episodes` is what was done, `left_out` what could not be."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._kubelet = Kubelet(world)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._standing: set[Fault] = set()
        self._end = 0.0
        self.episodes: list[Episode] = []
        self.left_out: list[Strike] = []

    def run(self, strikes: list[Strike], *, seconds: float) -> None:
        """Strike for so long, and return when all of it has been undone."""
        self._end = time.monotonic() + seconds
        for each in strikes:
            self._later(each.at, partial(self._consider, each))
        while self._due:
            at, _, act = heapq.heappop(self._due)
            while (left := at - time.monotonic()) > 0:
                self._kubelet.work()
                time.sleep(min(left, 0.2))
            act()

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._numbers), act))

    def _consider(self, strike: Strike, waited: float = 0.0) -> None:
        """Strike when nothing of the kind stands; at a replica, when all serve."""
        if waited > PATIENCE or time.monotonic() > self._end:
            self.left_out.append(strike)
        elif self._may(strike.fault):
            self._do(strike)
        else:
            self._later(0.5, lambda: self._consider(strike, waited + 0.5))

    def _may(self, fault: Fault) -> bool:
        if fault in OF_REPLICAS:
            return not self._standing & OF_REPLICAS and self._world.all_serve()
        return not (fault in OF_REGISTRIES and self._standing & OF_REGISTRIES)

    def _do(self, strike: Strike) -> None:
        began = time.time()
        context = FAULTS[strike.fault](self._world, strike.target)
        try:
            context.__enter__()
        except KubectlError:
            self.left_out.append(strike)
            return
        self._standing.add(strike.fault)
        if strike.fault in INSTANT:
            self._undo(strike.fault, context, began)
        else:
            self._later(strike.seconds, lambda: self._undo(strike.fault, context, began))

    def _undo(self, fault: Fault, context: AbstractContextManager[object], began: float) -> None:
        context.__exit__(None, None, None)
        self._standing.remove(fault)
        self.episodes.append(Episode(fault, began, time.time()))
