"""Fixtures of the tests that run against a real control plane."""

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest

from cluster.controlplane import PROGRAMS, ControlPlane
from cluster.installation import Install, Installation
from cluster.namespaces import Namespace, NewNamespace, eventually
from cluster.programs import CraneRegistry, Distribution
from cluster.registries import PASSWORDS, Registries
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


@pytest.fixture(scope="session")
def registries(control_plane: ControlPlane) -> Iterator[Registries]:
    """Those that the operator of `install` knows; repositories have names of their own."""
    require_programs("registry")
    with Registries.start(control_plane) as running:
        yield running


@pytest.fixture(scope="session")
def new_namespace(control_plane: ControlPlane) -> NewNamespace:
    """Makes a namespace that no other test has, in a `mode` or with other labels."""
    numbers = count(1)

    def make(mode: str = "", labels: Mapping[str, str] | None = None) -> Namespace:
        own = {"tagpin.dev/mode": mode} if mode else {}
        return Namespace(control_plane, f"shop-{next(numbers)}", own | dict(labels or {}))

    return make


@pytest.fixture(scope="session")
def install(control_plane: ControlPlane, registries: Registries) -> Install:
    """Installs tagpin for as long as a context lasts, and looks at what it has logged."""

    @contextmanager
    def installed(
        *,
        replicas: int = 1,
        components: Sequence[str] = (),
        arguments: Sequence[str] = (),
        **settings: Any,
    ) -> Iterator[Installation]:
        running = Installation(
            control_plane,
            settings=registries.settings | settings,
            replicas=replicas,
            components=components,
            arguments=arguments,
        )
        with running:
            # While its cache fills, lists of a kind that is new are refused (429).
            eventually(
                lambda: control_plane.get("/apis/tagpin.dev/v1alpha1/imagepins")[0] == 200, bool
            )
            yield running
            running.stop()  # whatever it has still to say
            log = running.log_text()
            assert "forbidden" not in log.lower(), "its rights are too small"
            assert "Traceback" not in log
            assert not [word for word in _spellings(PASSWORDS) if word in log]

    return installed


def _spellings(passwords: Sequence[str]) -> Iterator[str]:
    """The passwords, and the parts of their base64 that no neighbour changes."""
    for password in passwords:
        yield password
        for before in range(3):
            encoded = b64encode(b" " * before + password.encode()).decode()
            yield encoded[4 if before else 0 : -4]
