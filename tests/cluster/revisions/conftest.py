"""A namespace and an image for each test."""

import re

import pytest

from cluster.installation import Installation
from cluster.namespaces import Namespace, NewNamespace
from cluster.registries import Registries
from cluster.revisions.workloads import Tag


@pytest.fixture
def shop(installation: Installation, new_namespace: NewNamespace) -> Namespace:
    """Where no pod runs that is not pinned."""
    return new_namespace("enforce")


@pytest.fixture
def tag(registries: Registries, request: pytest.FixtureRequest) -> Tag:
    """An image of the test's own."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
    return Tag(registries.public, f"revisions/{name}")
