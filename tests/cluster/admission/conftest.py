"""One installation for all tests of this folder."""

from collections.abc import Iterator

import pytest

from cluster.installation import Install, Installation


@pytest.fixture(scope="package")
def installation(install: Install) -> Iterator[Installation]:
    """tagpin as it is shipped, but for the registries that it knows."""
    with install() as running:
        yield running
