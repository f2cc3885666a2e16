"""How long a replica takes from the start of its process to "ready", on one core."""

import http
import json
import os
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import machine
from bench.rows import Bar, Found, Row
from bench.world import World
from cluster.installation import SYSTEM, Replica
from cluster.namespaces import eventually

STARTS = 5
EMPTY = 3
BOUND = 2.0
"""Seconds, as was promised."""

PATIENCE = 30.0

_CONFIGURATION = ("mutatingwebhookconfiguration", "tagpin")
_SECRET = ("-n", SYSTEM, "secret", "tagpin-tls")


def measure(world: World, scale: float = 1.0) -> Found:
    """Start another replica again and again; it serves the certificate that is there.

    Without one it has to make one first. Then nobody else may run, who would make it too, so
    tagpin stands still, and gets its own certificate back.
    """
    with_one = [_start(world) for _ in range(max(1, int(STARTS * scale)))]
    with _certificate_put_aside(world):
        without = []
        for _ in range(max(1, int(EMPTY * scale))):
            _empty(world)
            without.append(_start(world))
    scenario = "a start, until it is ready"
    return Found(
        [_row(scenario, with_one), _row(f"{scenario}, without a certificate", without)],
        [Bar(f"{scenario}: seconds", statistics.median(with_one), at_most=BOUND)],
    )


def _row(scenario: str, taken: Sequence[float]) -> Row:
    return Row(scenario, "tagpin", {"seconds": statistics.median(taken), "max_seconds": max(taken)})


def _start(world: World) -> float:
    """Seconds from the start of the process to the first answer that it is ready."""
    replica = world.installation._new_replica("tagpin-bench-start")
    machine.stay_on(machine.SERVERS)  # as the process that is started
    try:
        replica.launch()
    finally:
        machine.stay_on(machine.CLIENTS)
    try:
        deadline = time.monotonic() + PATIENCE
        while not _is_ready(replica):
            assert time.monotonic() < deadline, replica.log_text()[-2000:]
            time.sleep(0.005)
        return time.clock_gettime(time.CLOCK_BOOTTIME) - _started(replica.pid)
    finally:
        replica.close()


def _is_ready(replica: Replica) -> bool:
    try:
        return replica.get("/readyz")[0] == http.HTTPStatus.OK
    except OSError:
        return False


def _started(pid: int) -> float:
    """When a process began, in seconds since the machine did, to a hundredth (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return float(fields[19]) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _certificate_put_aside(world: World) -> Iterator[None]:
    """The Secret is free meanwhile, and tagpin sees nothing of it."""
    found = json.loads(world.control_plane.kubectl("get", *_SECRET, "-o", "json").stdout)
    before = world.replica.ca()
    world.replica.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        data = json.dumps({"data": found["data"]})
        world.control_plane.kubectl("patch", *_SECRET, "--type=merge", "-p", data)
        world.replica.signal(signal.SIGCONT)
        eventually(world.replica.ca, lambda ca: before in ca)


def _empty(world: World) -> None:
    """As it was applied: nobody has a certificate, and API servers know none."""
    data = json.dumps([{"op": "remove", "path": "/data"}])
    world.control_plane.kubectl("patch", *_SECRET, "--type=json", "-p", data)
    found = json.loads(world.control_plane.kubectl("get", *_CONFIGURATION, "-o", "json").stdout)
    removals = [
        {"op": "remove", "path": f"/webhooks/{number}/clientConfig/caBundle"}
        for number in range(len(found["webhooks"]))
    ]
    patch = json.dumps(removals)
    world.control_plane.kubectl("patch", *_CONFIGURATION, "--type=json", "-p", patch)
