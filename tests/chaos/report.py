"""The report of a run, for a terminal."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from chaos.judge import BOUNDS, MANY, Finding
from chaos.seen import Creation, Seen


def show(console: Console, seen: Seen, findings: Sequence[Finding]) -> None:
    """What was done, what came of it, and what is wrong."""
    console.print(_faults(seen))
    console.print(_pods(seen.creations))
    console.print(_held(seen))
    console.print(_findings(findings))
    for finding in findings:
        for each in finding.wrong[:MANY]:
            console.print(f"WRONG: {finding.question}: {each}", markup=False, highlight=False)
        if len(finding.wrong) > MANY:
            console.print(f"… and {len(finding.wrong) - MANY} more")


def summary(seen: Seen) -> str:
    """The figures in a line."""
    created = sum(each.was_created for each in seen.creations)
    refused = len(seen.creations) - created
    minutes = f"{seen.ended - seen.began:.0f} s"
    return f"{len(seen.episodes)} faults in {minutes}: {created} pods created, {refused} refused"


def _faults(seen: Seen) -> Table:
    table = Table(
        "fault", "times", "left out", "seconds", "excuses refusals because …", "and so long after"
    )
    lasted = defaultdict[str, list[float]](list)
    for each in seen.episodes:
        lasted[each.fault].append(each.ended - each.began)
    for fault, bound in BOUNDS.items():
        causes = ", ".join(sorted(bound.causes)) or "nothing"
        after = f"{bound.seconds:g} s" if bound.causes else ""
        times = lasted[fault]
        left_out = str(seen.left_out.count(fault))
        table.add_row(fault, str(len(times)), left_out, f"{sum(times):.1f}", causes, after)
    return table


def _pods(creations: Sequence[Creation]) -> Table:
    table = Table("mode", "pods created", "refused", "slowest answer")
    modes = sorted({each.mode for each in creations})
    created = Counter(each.mode for each in creations if each.was_created)
    for mode in modes:
        of_mode = [each for each in creations if each.mode == mode]
        slowest = max(each.ended - each.began for each in of_mode)
        refused = len(of_mode) - created[mode]
        table.add_row(mode, str(created[mode]), str(refused), f"{slowest:.2f} s")
    return table


def _held(seen: Seen) -> Table:
    table = Table("lived through", "MiB", "files", "tasks", "connections to the API server")
    for replica, before in seen.before.items():
        after = seen.after[replica]
        pairs = zip(
            (before.memory, before.files, before.tasks, before.connections),
            (after.memory, after.files, after.tasks, after.connections),
            strict=True,
        )
        table.add_row(replica, *(f"{then:.0f} → {now:.0f}" for then, now in pairs))
    return table


def _findings(findings: Sequence[Finding]) -> Table:
    table = Table("", "question", "looked at", "excused", "wrong")
    for each in findings:
        excused = "\n".join(f"{count} times: {what}" for what, count in each.excused.most_common())
        sign = "ok" if each.holds else "NO"
        table.add_row(sign, each.question, str(each.looked_at), excused, str(len(each.wrong)))
    return table
