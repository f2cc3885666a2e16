"""What every test may use, and the count of cluster tests in the last lines of a run."""

import os
from collections import Counter

import pytest


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
    for reason, count in skipped.items():
        terminalreporter.write_line(f"{count} tests did not run: {reason}")


def pytest_configure(config: pytest.Config) -> None:
    """Keep the user's own configuration out of the tests."""
    for name in ("KUBECONFIG", "DOCKER_CONFIG", "HTTPS_PROXY", "HTTP_PROXY"):
        os.environ.pop(name, None)
