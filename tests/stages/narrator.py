"""What the demo prints, on terminals and in logs, and the count of what it has checked."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.rule import Rule
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

SILENCE = 1.5
"""Seconds after which a log gets a sign of life."""
INDENT = 2


class Narrator:
    """Tells the story on `console`, and keeps the list of what was not as it should be."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._passed = 0
        self._failed: list[str] = []

    def heading(self, text: str) -> None:
        self._console.print()
        self._console.print(Rule(Text(text, "bold"), align="left", style="dim"))

    def blank(self) -> None:
        self._console.print()

    def say(self, what: RenderableType, *, indent: int = INDENT) -> None:
        self._console.print(_Indented(what, indent))

    def command(self, text: str) -> None:
        """What is done, as a person or a program would do it."""
        self.say(Text(text, "cyan"))

    def message(self, text: str) -> None:
        """What somebody else says, word by word."""
        self.say(Text(text, "yellow"))

    def output(self, text: str) -> None:
        """What a program prints; lines are cut where they would not fit."""
        for line in text.splitlines():
            self.say(Text(line.rstrip(), overflow="ellipsis", no_wrap=True))

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Show that something is under way, and then how long it took."""
        started = time.monotonic()
        with self._alive(what):
            yield
        seconds = f"{time.monotonic() - started:.1f} s"
        self.say(Text.assemble(("✓ ", "green"), what, (f"  {seconds}", "dim")))

    @contextmanager
    def _alive(self, what: str) -> Iterator[None]:
        """A spinner on a terminal; in a log, a line now and then."""
        if self._console.file.isatty():
            with self._console.status(what):
                yield
            return
        over = threading.Event()
        beat = threading.Thread(target=self._beat, args=(what, over), daemon=True)
        beat.start()
        try:
            yield
        finally:
            over.set()
            beat.join()

    def _beat(self, what: str, over: threading.Event) -> None:
        started, line = time.monotonic(), f"… {what}"
        while not over.wait(SILENCE):
            self.say(line)
            line = f"… {time.monotonic() - started + SILENCE:.0f} s"

    # What there is to see

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for name in columns:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.say(table)

    def pairs(self, values: Mapping[str, str]) -> None:
        """Names and values."""
        for name, value in values.items():
            self.say(Text.assemble((f"{name}: ", "bold"), value))

    def document(self, text: str) -> None:
        """A document, whole; what is none is shown as it is."""
        with contextlib.suppress(ValueError):
            text = json.dumps(json.loads(text), indent=2)
        for line in text.splitlines():
            content = line.lstrip()
            self.say(Text(content), indent=INDENT + len(line) - len(content))

    # What is checked

    def check(self, claim: str, *, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
        """Count a claim as true if both say the same of the same names; show what differs."""
        if expected == found:
            self._passed += 1
            self.say(Text.assemble(("✓ ", "green"), claim))
            return
        self._failed.append(claim)
        self.say(Text(f"✗ {claim}", "bold red"))
        for name in {**expected, **found}:
            if expected.get(name) != found.get(name):
                self.say(Text(f"{name}: expected {expected.get(name, 'nothing')}", "red"), indent=4)
                self.say(Text(f"{name}: found    {found.get(name, 'nothing')}", "red"), indent=4)

    def conclude(self, seconds: float) -> int:
        """The last words, and the exit code that belongs to them."""
        self.blank()
        total = self._passed + len(self._failed)
        for claim in self._failed:
            self._console.print(Text(f"✗ {claim}", "red"))
        if self._failed:
            self._console.print(f"{len(self._failed)} of {total} checks failed", style="bold red")
        else:
            self._console.print(f"all {total} checks passed in {seconds:.0f} s", style="bold green")
        self._console.print("Nothing is left running.", style="dim")
        return 1 if self._failed else 0

    def broke_off(self, reason: str) -> None:
        """The last words where the story could not be told to its end."""
        self.blank()
        self._console.print(Text(f"the demo broke off: {reason}", "red"))


class _Indented:
    """`rich.padding.Padding` would fill every line with spaces, and logs keep them."""

    def __init__(self, content: RenderableType, indent: int) -> None:
        self._content = content
        self._indent = indent

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        narrower = options.update(width=options.max_width - self._indent)
        for line in console.render_lines(self._content, narrower, pad=False):
            yield Segment(" " * self._indent)
            yield from line
            yield Segment.line()


def pinned(image: str) -> Text:
    """An image for a narrow column: its digest in two halves below the reference."""
    reference, at, digest = image.partition("@")
    if not at:
        return Text(image)
    algorithm, _, hexadecimal = digest.partition(":")
    start = f"@{algorithm}:"
    half = len(hexadecimal) // 2
    lines = [start + hexadecimal[:half], " " * len(start) + hexadecimal[half:]]
    return Text.assemble(reference, ("\n" + "\n".join(lines), "green"))
