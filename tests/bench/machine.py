"""Cores, and what a process takes of them: Linux only."""

import os
import platform
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import psutil

SERVERS, CLIENTS = {0}, {1}
"""The core of whoever is measured, and that of all others."""
BOTH = SERVERS | CLIENTS


def stay_on(cores: set[int], pids: Iterable[int] = ()) -> None:
    """Keep processes to some cores, with all threads; without any, this one and its children."""
    for pid in tuple(pids) or (os.getpid(),):
        for thread in psutil.Process(pid).threads():
            os.sched_setaffinity(thread.id, cores)


def cpu_seconds(pid: int) -> float:
    """What a process has used by now, in user and system mode."""
    # clock_getcpuclockid(3): to the nanosecond, where /proc has hundredths of a second.
    return time.clock_gettime(~pid << 3 | 2)


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    return psutil.Process(pid).memory_info().rss


def descriptors(pid: int) -> int:
    """How many files and sockets a process has open."""
    return psutil.Process(pid).num_fds()


def listener(port: int) -> int | None:
    """The process that listens on a port of this machine, if we may know."""
    return next(
        (
            each.pid
            for each in psutil.net_connections("tcp")
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port
        ),
        None,
    )


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
