"""How much is asked, of whom, and when to leave them alone: rules without I/O.

Whoever can create a pod chooses what is asked for. So what one tenant brings about, be it a
registry that is silent about certain images or one that limits us for certain images, must not
keep others from asking. Only a connection that does not come about is nobody's doing.
"""

import math
import random
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Generic, TypeVar

from cachetools import LRUCache

K = TypeVar("K", bound=Hashable)

DAY = 86_400.0

MAX_PLACES = 1000
"""Circuits and the like that are remembered: whoever can create pods can make up any number."""


def parse_retry_after(value: str, now: datetime) -> float | None:
    """Seconds to wait by a Retry-After header; None where it says nothing of use.

    It is a number of seconds, or an HTTP date (RFC 9110 §10.2.3), or a Unix time, as Docker Hub
    has sent it. What is more than a day away is a mistake.
    """
    text = value.strip(" \t")
    if re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,20})?", text):
        at = float(text)
        if at <= DAY:
            return at
    else:
        try:
            date = parsedate_to_datetime(text)
        except (ValueError, TypeError, OverflowError, IndexError):
            return None
        at = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    seconds = at - now.timestamp()
    return max(0.0, seconds) if abs(seconds) <= DAY else None


@dataclass(slots=True)
class _Circuit:
    failures: int = 0
    opened: float = -math.inf
    until: float = -math.inf


class Circuits(Generic[K]):
    """Who is not asked now, since nobody there answered the last `threshold` times.

    A circuit opens for `shortest` seconds, and for twice as long each time that a probe fails, up
    to `longest`; less a share drawn by `draw` (0 to 1), so that replicas don't probe in step. Then
    one who asks goes through as the probe; the next one does when the circuit has been closed by
    any answer, or when the probe has had its time. `clock` gives monotonic seconds. `opened` and
    `closed` are told once per outage.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        draw: Callable[[], float] = random.random,
        threshold: int = 5,
        shortest: float = 2.0,
        longest: float = 30.0,
        opened: Callable[[K], None] = lambda _: None,
        closed: Callable[[K], None] = lambda _: None,
    ) -> None:
        self._clock = clock
        self._draw = draw
        self._threshold = threshold
        self._shortest = shortest
        self._longest = longest
        self._opened = opened
        self._closed = closed
        self._circuits: LRUCache[K, _Circuit] = LRUCache(MAX_PLACES)

    def refuses(self, key: K) -> bool:
        """Whether `admits` would say no; lets nobody through."""
        circuit = self._circuits.get(key)
        return circuit is not None and self._clock() < circuit.until

    def admits(self, key: K) -> bool:
        """Whether to ask now; where it is the probe who is told so, nobody else is for a while."""
        if self.refuses(key):
            return False
        circuit = self._circuits.get(key)
        if circuit is not None and self._is_open(circuit):
            self._refuse_for_a_while(circuit)
        return True

    def answered(self, key: K) -> None:
        """Take in that somebody is there."""
        circuit = self._circuits.pop(key, None)
        if circuit is not None and self._is_open(circuit):
            self._closed(key)

    def failed(self, key: K, *, since: float) -> None:
        """Take in that somebody who began to ask at `since`, by the clock, met nobody."""
        circuit = self._circuits.setdefault(key, _Circuit())
        if self._is_open(circuit) and since <= circuit.opened:
            return  # news from before it opened
        circuit.failures += 1
        if self._is_open(circuit):
            circuit.opened = self._clock()
            self._refuse_for_a_while(circuit)
            if circuit.failures == self._threshold:
                self._opened(key)

    def open(self) -> tuple[K, ...]:
        """Whose circuits are open, or wait for a probe."""
        return tuple(key for key, circuit in self._circuits.items() if self._is_open(circuit))

    def _is_open(self, circuit: _Circuit) -> bool:
        return circuit.failures >= self._threshold

    def _refuse_for_a_while(self, circuit: _Circuit) -> None:
        # The exponent is bounded, or the power would be beyond a float one day.
        doubled = self._shortest * 2.0 ** min(circuit.failures - self._threshold, 30)
        seconds = min(doubled, self._longest) * (1 - self._draw() / 4)
        circuit.until = self._clock() + seconds


class Pace:
    """At most `rate` in a second on average; after a quiet second, as many at once.

    `clock` gives monotonic seconds.
    """

    def __init__(self, rate: float, *, clock: Callable[[], float]) -> None:
        self._gap = 1 / rate
        self._credit = max(0.0, 1 - self._gap)
        self._clock = clock
        self._due = -math.inf

    def reserve(self, patience: float) -> float | None:
        """A turn, in so many seconds; None, and no turn, where that is more than `patience`."""
        now = self._clock()
        due = max(self._due, now - self._credit)
        if due - now > patience:
            return None
        self._due = due + self._gap
        return max(0.0, due - now)
