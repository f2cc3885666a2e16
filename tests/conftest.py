"""What every test may use, and the count of cluster tests in the last lines of a run."""

import os
from pathlib import Path

import pytest

CLUSTER = Path(__file__).parent / "cluster"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many cluster tests ran, and why the others did not."""
    ran, skipped = 0, dict[str, int]()
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            if not report.nodeid.startswith("tests/cluster/"):
                continue
            if outcome == "skipped":
                reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else "skipped"
                skipped[reason] = skipped.get(reason, 0) + 1
            elif report.when == "call":
                ran += 1
    terminalreporter.write_line(f"{ran} tests ran against the real control plane")
    for reason, count in skipped.items():
        terminalreporter.write_line(f"{count} of its tests were skipped: {reason}")


def pytest_configure(config: pytest.Config) -> None:
    """Keep the user's own configuration out of the tests."""
    for name in ("KUBECONFIG", "DOCKER_CONFIG", "HTTPS_PROXY", "HTTP_PROXY"):
        os.environ.pop(name, None)
