"""A chaos run: faults at random under load, and whether tagpin kept its promises.

    make chaos                              # five minutes, by a new seed, which is printed
    make chaos CHAOS_SECONDS=60 CHAOS_SEED=7

How to read this folder: a `plan` is drawn from the seed (monkey.py) and done (faults.py) to a
control plane, registries and replicas (world.py) under a load (load.py); what is seen of it
(witness.py, seen.py) is judged by pure functions (judge.py), and printed (report.py).
"""

import argparse
import secrets
import sys
import time

from rich.console import Console

from chaos import witness
from chaos.judge import Finding, judge
from chaos.load import Load
from chaos.monkey import Monkey, plan
from chaos.report import show, summary
from chaos.seen import Seen
from chaos.world import World, world

WARM_UP = 6.0
"""Seconds of load before the first fault."""
REST = 2.0
"""Seconds without load before it is looked what a replica holds."""
HEALING = 45.0
"""Seconds in which all must be well again."""
SURVIVOR = "replica 1"


def run(here: World, *, seed: int, seconds: float) -> Seen:
    """Do it, and say what was seen."""
    survivor, control_plane = here.survivor, here.control_plane
    load = Load(here, seed)
    monkey = Monkey(here)
    mark, began = control_plane.audit_mark(), time.time()
    here.background.run(load.start())
    time.sleep(WARM_UP)
    here.background.run(load.pause())
    time.sleep(REST)
    before = witness.sample(survivor, control_plane.url)
    here.background.run(load.resume())
    try:
        monkey.run(plan(seed, seconds), seconds=seconds)
    finally:
        here.background.run(load.stop())
    ended = time.time()
    unhealed = witness.unhealed(here, seconds=HEALING)
    after = witness.settled(
        lambda: witness.sample(survivor, control_plane.url), before, seconds=HEALING
    )
    return Seen(
        began=began,
        ended=ended,
        episodes=monkey.episodes,
        left_out=[each.fault for each in monkey.left_out],
        creations=witness.creations(control_plane.audit_events(mark)),
        stored=witness.stored_in_enforce(here),
        forgotten=frozenset(here.forgotten),
        unanswered=load.unanswered,
        before={SURVIVOR: before},
        after={SURVIVOR: after},
        complaints=witness.complaints(here),
        unhealed=unhealed,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10_000))
    arguments = parser.parse_args()
    console = Console()
    console.print(f"seed {arguments.seed}, {arguments.seconds:g} s of faults")
    with world() as here:
        seen = run(here, seed=arguments.seed, seconds=arguments.seconds)
    findings: list[Finding] = judge(seen)
    show(console, seen, findings)
    console.print(f"{summary(seen)}; seed {arguments.seed}")
    return 0 if all(each.holds for each in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
