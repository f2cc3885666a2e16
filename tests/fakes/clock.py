"""A clock that stands still until it is told."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta


@dataclass(slots=True)
class FakeClock:
    """Monotonic seconds when called; `now()` is the wall clock that goes with them."""

    seconds: float = 1000.0
    started: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return self.started + timedelta(seconds=self.seconds)

    def advance(self, seconds: float) -> None:
        self.seconds += seconds

    async def sleep(self, seconds: float) -> None:
        """Stands in for asyncio.sleep: time passes at once."""
        self.seconds += seconds
