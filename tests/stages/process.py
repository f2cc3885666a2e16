"""For tests: the demo as a user starts it, and what it leaves behind."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

DEMO = Path(__file__).parents[1] / "demo.py"


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of a demo."""

    status: int
    output: str
    left_behind: list[str]


class DemoProcess:
    """`python tests/demo.py …`, whose temporary files go to `folder`."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        self._folder = folder
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [sys.executable, DEMO, *options],
            env=kept | {"TMPDIR": str(folder)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: list[str] = []

    def read_until(self, words: str) -> None:
        """Read on to the first line with these words."""
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.append(line)
            if words in line:
                return
        raise AssertionError(f"{words!r} is not in the output:\n{''.join(self._lines)}")

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self) -> Ended:
        """Read to the end, and look around."""
        try:
            rest, _ = self._process.communicate(timeout=100)
        finally:
            self._process.kill()
        output = "".join(self._lines) + rest
        return Ended(self._process.returncode, output, left_behind(self._folder))


def left_behind(folder: Path) -> list[str]:
    """Files in the folder, and the command lines of processes that name it (where /proc is)."""
    files = [str(path) for path in folder.rglob("*")]
    commands = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # ended meanwhile
            continue
        if str(folder) in command:
            commands.append(command)
    return files + commands
