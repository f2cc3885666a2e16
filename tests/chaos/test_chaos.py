"""The short version of `make chaos`."""

import io
import os
import secrets

import pytest
from rich.console import Console

from chaos.judge import judge
from chaos.monkey import plan
from chaos.report import show, summary
from chaos.run import run
from chaos.seen import Fault
from chaos.world import world
from cluster.controlplane import PROGRAMS
from cluster.requirement import require_programs
from conftest import Figure

SECONDS = 45.0


@pytest.mark.timeout(400)
def test_tagpin_keeps_its_promises_whatever_breaks(figure: Figure) -> None:
    require_programs(*PROGRAMS, "registry")
    seed = int(os.environ.get("CHAOS_SEED") or secrets.randbelow(10_000))
    with world() as here:
        seen = run(here, seed=seed, seconds=SECONDS)
    findings = judge(seen)
    report = io.StringIO()
    show(Console(file=report, width=150), seen, findings)
    figure(f"chaos, seed {seed}", summary(seen))
    assert all(each.holds for each in findings), (
        f"make chaos CHAOS_SEED={seed}\n" + report.getvalue()
    )


def test_a_seed_makes_the_same_plan() -> None:
    assert plan(7, 100) == plan(7, 100)
    assert plan(7, 100) != plan(8, 100)


def test_a_plan_has_every_fault_before_any_for_the_second_time() -> None:
    for seed in range(20):
        faults = [each.fault for each in plan(seed, 300)]
        assert set(faults[: len(Fault)]) == set(Fault)
        assert len(faults) > 5 * len(Fault)


def test_a_short_plan_has_nearly_all() -> None:
    for seed in range(20):
        assert len(plan(seed, SECONDS)) >= 13
