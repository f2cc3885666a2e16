"""One installation for all tests of this folder, which takes nothing from memory."""

from collections.abc import Iterator

import pytest
import yaml

from cluster.installation import Install, Installation
from cluster.revisions.pages import OPTED_IN


@pytest.fixture(scope="package")
def installation(install: Install) -> Iterator[Installation]:
    """One that asks registry and API server again for nearly every pod."""
    ages = {"recordTTL": "10ms", "freshness": "10ms"}
    with install(**ages, **yaml.safe_load(OPTED_IN)) as running:
        yield running
