"""What every test may use, and the count of cluster tests in the last lines of a run."""

import os
from collections import Counter
from collections.abc import Callable

import pytest

Figure = Callable[[str, object], None]
"""Prints what a test has measured, in the last lines of a run: `(what, value)`."""

FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """For the figures that the documentation states."""

    def state(what: str, value: object) -> None:
        request.config.stash[FIGURES].append(f"{what}: {value}")

    return state


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many cluster tests ran, and which tests did not and why."""
    reports = {
        outcome: terminalreporter.stats.get(outcome, [])
        for outcome in ("passed", "failed", "skipped")
    }
    ran = [
        report
        for report in reports["passed"] + reports["failed"]
        if report.when == "call" and report.nodeid.startswith("tests/cluster/")
    ]
    skipped = Counter(
        str(report.longrepr[2]).removeprefix("Skipped: ")
        if isinstance(report.longrepr, tuple)
        else "no reason was given"
        for report in reports["skipped"]
    )
    terminalreporter.write_line(f"{len(ran)} cluster tests ran")
    for line in terminalreporter.config.stash[FIGURES]:
        terminalreporter.write_line(f"figure: {line}")
    for reason, count in skipped.items():
        terminalreporter.write_line(f"{count} tests did not run: {reason}")


def pytest_configure(config: pytest.Config) -> None:
    """Keep the user's own configuration out of the tests."""
    config.stash[FIGURES] = []
    for name in ("KUBECONFIG", "DOCKER_CONFIG", "HTTPS_PROXY", "HTTP_PROXY"):
        os.environ.pop(name, None)
