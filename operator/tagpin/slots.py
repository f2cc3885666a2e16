"""So many at a time of each: whoever comes then waits for their turn."""

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable
from functools import partial
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

Release = Callable[[], None]
"""Gives a slot back; to be called once."""


class Slots(Generic[K]):
    """A bounded number at a time per key; who waits is served in order."""

    def __init__(self) -> None:
        self._lanes: dict[K, asyncio.Semaphore] = {}
        self._users: Counter[K] = Counter()

    def is_free(self, key: K) -> bool:
        """Whether `take` would not wait."""
        lane = self._lanes.get(key)
        return lane is None or not lane.locked()

    async def take(self, key: K, limit: int) -> Release:
        """A slot, as soon as fewer than `limit` of the key's are taken.

        The limit of a key stays the same for as long as it has users.
        """
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = asyncio.Semaphore(limit)
        self._users[key] += 1
        try:
            await lane.acquire()
        except BaseException:
            self._leave(key)
            raise
        return partial(self._release, key, lane)

    def __len__(self) -> int:
        """Keys in use."""
        return len(self._lanes)

    def _release(self, key: K, lane: asyncio.Semaphore) -> None:
        lane.release()
        self._leave(key)

    def _leave(self, key: K) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key], self._lanes[key]
