"""What the bench has measured, and the bars that it is held against."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Figures = Mapping[str, float]
"""Figures by name; the name ends with the unit: `per_second`, `p50_ms`, `cpu_us`, `rss_mib`."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a server in a scenario."""

    scenario: str
    server: str
    figures: Figures
    series: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """What is only plotted, such as a latency over time."""


@dataclass(frozen=True, slots=True)
class Bar:
    """What was promised: `measured` must be at most, or at least, `bound`."""

    what: str
    measured: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the promise is kept."""
        return (self.at_most is None or self.measured <= self.at_most) and (
            self.at_least is None or self.measured >= self.at_least
        )


@dataclass(frozen=True, slots=True)
class Found:
    """What one group of scenarios has found."""

    rows: Sequence[Row]
    bars: Sequence[Bar] = ()


def medians(rounds: Sequence[Figures]) -> Figures:
    """The median of each figure over several rounds."""
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
