"""What clouds give for a time: kept until shortly before it ends, asked for once by many."""

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from tagpin.cache import Cache
from tagpin.errors import Unobtainable

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

RENEW_AFTER = 3600.0
"""Seconds after which a new one is asked for although the old one would still serve, so that one
that was revoked is not held on to for hours."""
FAILURE_AGE = 5.0
"""Seconds for which a failure is not tried again."""


@dataclass(frozen=True, slots=True)
class Grant(Generic[T]):
    """What a cloud gave, and for how many seconds after asking for it it may be used."""

    value: T
    lifetime: float

    @classmethod
    def ending(cls, value: T, seconds: float) -> "Grant[T]":
        """One that its cloud ends in `seconds`: it is renewed a little earlier.

        However soon that is, no cloud is asked at every pod: its clock may differ from ours.
        """
        return cls(value, max(seconds - min(60.0, seconds / 10), FAILURE_AGE))


class Grants(Generic[K, T]):
    """Grants by key; `clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float], *, maxsize: int = 1000) -> None:
        self._cache: Cache[K, Grant[T]] = Cache(
            maxsize=maxsize,
            clock=clock,
            lifetime=lambda grant: grant.lifetime,
            error_age=lambda error: FAILURE_AGE if isinstance(error, Unobtainable) else 0.0,
        )

    async def get(self, key: K, load: Callable[[], Awaitable[Grant[T]]]) -> T:
        """What `key` stands for; raises the Unobtainable of `load`, unless the last one serves."""
        try:
            return (await self._cache.get(key, load, max_age=RENEW_AFTER)).value.value
        except Unobtainable:
            known = self._cache.stale(key)
            if known is None:
                raise
            return known.value.value

    async def aclose(self) -> None:
        """Cancel what is being asked for, and wait for it to end."""
        await self._cache.aclose()
