"""The bench: what tagpin costs, and others in its place, on this machine, in one run.

    make bench                              # under ten minutes; the results are in bench-results/
    make soak                               # ten minutes at a steady rate
    make bench BENCH='--only warm cold'
    make bench BENCH='--peer digester=https://127.0.0.1:8443/v1/mutate --ca digester.crt'

A peer is asked the same about the same images. They are in a registry that the bench starts, so
it says where, and by which CA that is known, and waits until the peer answers.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from bench import (
    blackhole,
    bursts,
    cold,
    endtoend,
    machine,
    memory,
    report,
    start,
    steady,
    tenants,
    warm,
)
from bench.load import Target, accepts
from bench.rows import Found
from bench.world import Server, World, world

MEMORY = "memory"
SCENARIOS: dict[str, Callable[[World], Found]] = {
    "start": start.measure,
    "warm": warm.measure,
    "cold": cold.measure,
    "bursts": bursts.measure,
    "tenants": tenants.measure,
    "blackhole": blackhole.measure,
    "endtoend": endtoend.measure,
    "steady": steady.measure,
    MEMORY: memory.measure,
}
"""In the order in which they are run."""
SOAK = 600
"""Seconds."""
LOOPBACKS = ("127.0.0.1", "::1", "localhost")
PATIENCE = 600.0
"""Seconds for a peer to be started."""


def main() -> int:
    arguments = _arguments()
    console = Console()
    described = machine.described()
    for key, value in described.items():
        console.print(f"{key}: {value}", highlight=False)
    founds: list[Found] = []
    with world() as started:
        here = replace(started, peers=tuple(_peers(console, started, arguments)))
        if arguments.soak:
            founds.append(steady.measure(here, seconds=SOAK))
        for name in () if arguments.soak else arguments.only:
            if name != MEMORY:
                founds.append(_measured(console, name, here))
                report.write(founds, arguments.out, described)  # whatever comes later
    if MEMORY in arguments.only and not arguments.soak:
        with world() as here:  # another process, which has done nothing yet
            founds.append(_measured(console, MEMORY, here))
    report.write(founds, arguments.out, described)
    report.show(console, founds)
    console.print(f"JSON, tables and plots are in {arguments.out}/")
    return 0


def _measured(console: Console, name: str, here: World) -> Found:
    began = time.monotonic()
    found = SCENARIOS[name](here)
    resident = machine.resident(here.replica.pid) / 2**20
    console.print(f"{name}: {time.monotonic() - began:.0f} s; tagpin has {resident:.0f} MiB by now")
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = list(SCENARIOS)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--soak", action="store_true", help="only the steady rate, for 10 minutes")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=URL")
    parser.add_argument("--ca", action="append", default=[], type=Path, help="that of the peer")
    parser.add_argument("--out", type=Path, default=Path("bench-results"))
    arguments = parser.parse_args()
    if len(arguments.peer) != len(arguments.ca):
        parser.error("every --peer NAME=URL needs a --ca FILE, in the same order")
    for each in arguments.peer:
        if "=https://" not in each:
            parser.error(f"--peer {each}: expected NAME=https://HOST:PORT/PATH")
    return arguments


def _peers(console: Console, here: World, arguments: argparse.Namespace) -> Iterator[Server]:
    """All of them, once they answer."""
    if not arguments.peer:
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    ca = arguments.out / "registry-ca.crt"
    ca.write_bytes(here.authority.certificate.read_bytes())
    console.print(f"the images are at {here.registry.host}, known by {ca}")
    for peer, known_by in zip(arguments.peer, arguments.ca, strict=True):
        name, _, url = peer.partition("=")
        console.print(f"waiting for {name} at {url}")
        until = time.monotonic() + PATIENCE
        while (target := _answering(url, known_by)) is None:
            if time.monotonic() > until:
                console.print(f"{name} does not answer", style="red")
                sys.exit(1)
            time.sleep(0.2)
        pid = machine.listener(target.port) if target.host in LOOPBACKS else None
        if pid is not None:
            machine.stay_on(machine.SERVERS, [pid])
        yield Server(name, target, here.registry.digests.__getitem__, pid)


def _answering(url: str, ca: Path) -> Target | None:
    if not ca.exists():
        return None
    target = Target(url, ca)
    return target if accepts(target.host, target.port) else None


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
