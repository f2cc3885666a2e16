"""Fixtures of the tests that run against a real control plane."""

import os
from collections.abc import Iterator

import pytest

from cluster.controlplane import PROGRAMS, ControlPlane
from tools.build import missing


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """One control plane for all tests; each keeps to namespaces and names of its own."""
    require(*PROGRAMS)
    with ControlPlane() as running:
        yield running


def require(*programs: str) -> None:
    """Skip the test if a program was not built; in CI that is a failure."""
    reasons = [reason for name in programs if (reason := missing(name))]
    if reasons and os.environ.get("CI") == "true":
        pytest.fail("\n".join(reasons))
    if reasons:
        pytest.skip("; ".join(reasons))
