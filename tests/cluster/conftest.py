"""Fixtures of the tests that run against a real control plane."""

from collections.abc import Iterator

import pytest

from cluster.controlplane import PROGRAMS, ControlPlane
from cluster.programs import CraneRegistry, Distribution
from cluster.requirement import require_programs


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """One control plane for all tests; each keeps to namespaces and names of its own."""
    require_programs(*PROGRAMS)
    with ControlPlane() as running:
        yield running


@pytest.fixture
def distribution() -> Iterator[Distribution]:
    """An empty registry that lets everybody in."""
    require_programs("registry")
    with Distribution() as running:
        yield running


@pytest.fixture
def crane_registry() -> Iterator[CraneRegistry]:
    """An empty registry of the second implementation."""
    require_programs("crane")
    with CraneRegistry() as running:
        yield running
