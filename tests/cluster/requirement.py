"""What a test says that cannot do without a program of `make tools`."""

import os

import pytest

from tools.build import missing


def require_programs(*names: str) -> None:
    """Skip the test if a program was not built; where CI=true, fail it."""
    reasons = [reason for name in names if (reason := missing(name))]
    if not reasons:
        return
    if os.environ.get("CI") == "true":
        pytest.fail("\n".join(reasons))
    pytest.skip("; ".join(reasons))
