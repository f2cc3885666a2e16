"""Cores, and what a process takes of them: Linux only."""

import os
import platform
import resource
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")
PAGE = resource.getpagesize()

SERVERS, CLIENTS = {0}, {1}
"""The core of whoever is measured, and that of all others."""
BOTH = SERVERS | CLIENTS


def stay_on(cores: set[int], pids: Iterable[int] = ()) -> None:
    """Keep processes to some cores, with all threads; without any, this one and its children."""
    for pid in tuple(pids) or (os.getpid(),):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores)


def cpu_seconds(pid: int) -> float:
    """What a process has used by now, in user and system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def descriptors(pid: int) -> int:
    """How many files and sockets a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def described() -> dict[str, str]:
    """This machine, and the versions that matter."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    names = ("aiohttp", "cachetools", "kopf", "jsonpatch", "kubernetes", "orjson", "uvloop")
    return {
        "machine": f"{os.cpu_count()} cores, {model}",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }
