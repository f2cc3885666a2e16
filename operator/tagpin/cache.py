"""An expiring cache with one load in flight per key.

Freshness is the caller's: every call says how old an answer may be. The age of an answer counts
from when its load *started*, since what a registry says may be older than its arrival, and never
younger.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Hashable, MutableMapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from cachetools import LRUCache, TLRUCache

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Use(StrEnum):
    """How a call was served."""

    HIT = "hit"
    """From a value in the cache."""
    NEGATIVE = "negative"
    """From an error in the cache, which was raised again."""
    MISS = "miss"
    """By a load of its own."""
    SHARED = "shared"
    """By a load that another call had begun."""
    STALE = "stale"
    """From a value that is too old for the caller, who wants it all the same."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[V]):
    """A value, when its load started, and how this call came by it."""

    value: V
    started: float
    use: Use


@dataclass(frozen=True, slots=True)
class _Kept(Generic[V]):
    value: V
    started: float
    expires: float


@dataclass(frozen=True, slots=True)
class _Load(Generic[V]):
    task: asyncio.Task[V]
    started: float


class Cache(Generic[K, V]):
    """Values and errors by key, at most `maxsize` of each; the least recently used go first.

    `clock` gives monotonic seconds. `lifetime(value)` is how long a value may serve
    (for ever, unless told), to a call of any `max_age`. `error_age(error)`
    is how long after its arrival an error is raised again without a load (never, unless told): a
    load that nobody answered may have taken longer than that. An error that `disproves` the value
    makes the cache forget it. `observe` is told of every use.
    """

    def __init__(
        self,
        *,
        maxsize: int,
        clock: Callable[[], float],
        lifetime: Callable[[V], float] | None = None,
        error_age: Callable[[Exception], float] = lambda _: 0.0,
        disproves: Callable[[Exception], bool] = lambda _: False,
        observe: Callable[[Use], None] = lambda _: None,
    ) -> None:
        self._clock = clock
        self._lifetime = lifetime
        self._error_age = error_age
        self._disproves = disproves
        self._observe = observe
        self._values: MutableMapping[K, _Kept[V]]
        if lifetime is None:  # what never expires takes half as much memory so
            self._values = LRUCache(maxsize)
        else:
            self._values = TLRUCache(
                maxsize, ttu=lambda _key, kept, _now: kept.expires, timer=clock
            )
        self._errors: TLRUCache[K, _Kept[Exception]] = TLRUCache(
            maxsize, ttu=lambda _key, kept, _now: kept.expires, timer=clock
        )
        self._loads: dict[K, _Load[V]] = {}
        self._tasks: set[asyncio.Task[V]] = set()

    async def get(
        self, key: K, load: Callable[[], Awaitable[V]], *, max_age: float = math.inf
    ) -> Answer[V]:
        """The value of `key`, from an answer at most `max_age` seconds old, or the load's error.

        A load in flight is shared if it started no longer than `max_age` ago. A load belongs to
        nobody: when a caller is cancelled, even the last one, it goes on and fills the cache, so
        `load` must bring its own time limit.
        """
        if (known := self.young(key, max_age=max_age)) is not None:
            return known
        oldest = self._clock() - max_age
        error = self._errors.get(key)
        if error is not None and error.started >= oldest:
            self._observe(Use.NEGATIVE)
            # One error object serves many callers: without this its traceback would only grow.
            raise error.value.with_traceback(None)
        flight = self._loads.get(key)
        use = Use.SHARED
        if flight is None or flight.started < oldest:
            flight, use = self._start(key, load), Use.MISS
        self._observe(use)
        await asyncio.wait([flight.task])  # unlike awaiting it, this cancels nothing
        return Answer(flight.task.result(), flight.started, use)

    def young(self, key: K, *, max_age: float = math.inf) -> Answer[V] | None:
        """What `get` would answer from a value in the cache; counts as that."""
        try:
            kept = self._values[key]
        except KeyError:
            return None
        if kept.started < self._clock() - max_age:
            return None
        self._observe(Use.HIT)
        return Answer(kept.value, kept.started, Use.HIT)

    def serves(self, key: K, *, max_age: float = math.inf) -> bool:
        """Whether `get` would do without a load of its own, if it were called now."""
        oldest = self._clock() - max_age
        known = (self._values.get(key), self._errors.get(key), self._loads.get(key))
        return any(each is not None and each.started >= oldest for each in known)

    def stale(self, key: K) -> Answer[V] | None:
        """The last known value within its lifetime, however old; counts as a use."""
        known = self.peek(key)
        if known is not None:
            self._observe(Use.STALE)
        return known

    def peek(self, key: K) -> Answer[V] | None:
        """As `stale`, without counting."""
        kept = self._values.get(key)
        return None if kept is None else Answer(kept.value, kept.started, Use.STALE)

    def keep(self, key: K, value: V) -> None:
        """Take a value that is known to hold now, by other means than a load."""
        now = self._clock()
        self._keep_value(key, _Kept(value, now, self._expiry(value, now)))

    def forget(self, key: K) -> None:
        """Drop what is known of `key`; a load in flight goes on, and is no longer shared."""
        self._values.pop(key, None)
        self._errors.pop(key, None)
        self._loads.pop(key, None)

    async def aclose(self) -> None:
        """Cancel the loads in flight and wait for them to end."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __len__(self) -> int:
        return len(self._values)

    def _start(self, key: K, load: Callable[[], Awaitable[V]]) -> _Load[V]:
        started = self._clock()
        task = asyncio.create_task(self._fill(key, started, load))
        self._tasks.add(task)
        flight = self._loads[key] = _Load(task, started)
        task.add_done_callback(lambda _: self._land(key, flight))
        return flight

    def _land(self, key: K, flight: _Load[V]) -> None:
        self._tasks.discard(flight.task)
        if self._loads.get(key) is flight:
            del self._loads[key]
        if not flight.task.cancelled():
            flight.task.exception()  # retrieved, also when every caller has gone

    async def _fill(self, key: K, started: float, load: Callable[[], Awaitable[V]]) -> V:
        try:
            value = await load()
        except Exception as error:
            expires = self._clock() + self._error_age(error)
            self._keep_error(key, _Kept(error, started, expires))
            raise
        self._keep_value(key, _Kept(value, started, self._expiry(value, started)))
        return value

    def _expiry(self, value: V, started: float) -> float:
        return math.inf if self._lifetime is None else started + self._lifetime(value)

    def _keep_value(self, key: K, new: _Kept[V]) -> None:
        if not self._is_outdated(key, new.started):
            self._errors.pop(key, None)
            self._values[key] = new

    def _keep_error(self, key: K, new: _Kept[Exception]) -> None:
        if not self._is_outdated(key, new.started):
            if self._disproves(new.value):
                self._values.pop(key, None)
            self._errors[key] = new

    def _is_outdated(self, key: K, started: float) -> bool:
        """Whether something is known already from a load that started later."""
        known = (self._values.get(key), self._errors.get(key))
        return any(each is not None and each.started > started for each in known)
