"""What a person sees of the bench: one table, the bars, JSON for machines, and plots."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib as mpl
from rich.console import Console
from rich.table import Table

from bench.rows import Bar, Found, Row

mpl.use("Agg")  # before pyplot looks for a screen

from matplotlib import pyplot as plt

COLUMNS = {
    "per_second": "pods/s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "cpu_us": "CPU µs",
    "seconds": "s",
}
"""Figures that have a column of their own; all others stand in the last one."""


def show(console: Console, founds: Sequence[Found]) -> None:
    """Print the table, and the bars."""
    table = Table(title="tagpin and others")
    table.add_column("scenario")
    table.add_column("server")
    for title in COLUMNS.values():
        table.add_column(title, justify="right")
    table.add_column("besides")
    before = ""
    for row in _rows(founds):
        cells = _cells(row)
        table.add_row(row.scenario if row.scenario != before else "", row.server, *cells)
        before = row.scenario
    console.print(table)
    bars = Table(title="Bars")
    for title in ("what", "measured", "bound", ""):
        bars.add_column(title)
    for bar in _bars(founds):
        bars.add_row(bar.what, _number(bar.measured), _bound(bar), "" if bar.holds else "MISSED")
    console.print(bars)


def write(founds: Sequence[Found], folder: Path, machine: Mapping[str, str]) -> None:
    """Write bench.json, bench.md (the tables as in docs/performance.md) and the plots."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": dict(machine),
        "rows": [asdict(row) for row in _rows(founds)],
        "bars": [asdict(bar) | {"holds": bar.holds} for bar in _bars(founds)],
    }
    (folder / "bench.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "bench.md").write_text(_markdown(founds, machine))
    _plot_rows(founds, "warm", "per_second", folder / "warm.png")
    _plot_rows(founds, "ms away, ", "p50_ms", folder / "cold.png")
    _plot_rows(founds, "through the API server", "seconds", folder / "end-to-end.png")
    _plot_series(founds, folder / "steady.png")


def _markdown(founds: Sequence[Found], machine: Mapping[str, str]) -> str:
    lines = [
        ", ".join(f"{key} {value}" for key, value in machine.items()),
        "",
        "| scenario | server | " + " | ".join(COLUMNS.values()) + " | besides |",
        "|---|---|" + "---:|" * len(COLUMNS) + "---|",
    ]
    lines += [
        f"| {row.scenario} | {row.server} | " + " | ".join(_cells(row)) + " |"
        for row in _rows(founds)
    ]
    lines += ["", "| bar | measured | bound | holds |", "|---|---:|---:|---|"]
    lines += [
        f"| {bar.what} | {_number(bar.measured)} | {_bound(bar)} | {'yes' if bar.holds else 'no'} |"
        for bar in _bars(founds)
    ]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    own = [_number(row.figures[name]) if name in row.figures else "" for name in COLUMNS]
    others = [
        f"{name.replace('_', ' ')} {_number(value)}"
        for name, value in row.figures.items()
        if name not in COLUMNS
    ]
    return [*own, ", ".join(others)]


def _number(value: float) -> str:
    """Three digits that count."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def _bound(bar: Bar) -> str:
    least = f"≥ {bar.at_least:g}" if bar.at_least is not None else ""
    most = f"≤ {bar.at_most:.3g}" if bar.at_most is not None else ""
    return " ".join(filter(None, (least, most)))


def _plot_rows(founds: Iterable[Found], word: str, figure: str, file: Path) -> None:
    """A bar for each server in each scenario that has the figure, and the word in its name."""
    rows = [row for row in _rows(founds) if word in row.scenario and figure in row.figures]
    if not rows:
        return
    servers = list(dict.fromkeys(row.server for row in rows))
    scenarios = list(dict.fromkeys(row.scenario for row in rows))
    height = 0.8 / len(servers)
    _, axes = plt.subplots(figsize=(10, 1.5 + 0.5 * len(scenarios)), layout="constrained")
    for number, server in enumerate(servers):
        values = {row.scenario: row.figures[figure] for row in rows if row.server == server}
        places = [scenarios.index(each) + number * height for each in values]
        drawn = axes.barh(places, list(values.values()), height, label=server)
        axes.bar_label(drawn, [_number(each) for each in values.values()], padding=3)
    axes.set_yticks([at + 0.4 - height / 2 for at in range(len(scenarios))], scenarios)
    axes.invert_yaxis()
    axes.set_xlabel(COLUMNS[figure])
    figures = [row.figures[figure] for row in rows]
    if max(figures) > 100 * min(figures) > 0:
        axes.set_xscale("log")
    axes.margins(x=0.12, y=0.01)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    plt.savefig(file, dpi=120)
    plt.close()


def _plot_series(founds: Iterable[Found], file: Path) -> None:
    """What was sampled over time, one below the other."""
    row = next((row for row in _rows(founds) if row.series), None)
    if row is None:
        return
    _, all_axes = plt.subplots(
        len(row.series), figsize=(10, 2 * len(row.series)), sharex=True, layout="constrained"
    )
    for axes, (name, values) in zip(all_axes, row.series.items(), strict=True):
        began = len(values) // 20  # connections are made, and all is new
        axes.plot(range(began, len(values)), values[began:])
        axes.set_ylabel(name.replace("_", " "))
        axes.set_ylim(0, 1.1 * max(values[began:]) or 1)
    all_axes[-1].set_xlabel("seconds")
    all_axes[0].set_title(f"{row.scenario}: {row.server}")
    plt.savefig(file, dpi=120)
    plt.close()


def _rows(founds: Iterable[Found]) -> list[Row]:
    return [row for found in founds for row in found.rows]


def _bars(founds: Iterable[Found]) -> list[Bar]:
    return [bar for found in founds for bar in found.bars]
