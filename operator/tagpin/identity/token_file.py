"""Tokens that Kubernetes writes into files, and renews there."""

from collections.abc import Mapping
from pathlib import Path

from tagpin.errors import Unobtainable
from tagpin.identity.endpoints import MAX_TOKEN, visible


def read_token(environment: Mapping[str, str], variable: str) -> str:
    """What the file that an environment variable names holds now; Unobtainable if nothing fit."""
    where = f"the file that {variable} names"
    try:
        with Path(environment[variable]).open("rb") as file:
            content = file.read(MAX_TOKEN + 2)
    except (OSError, ValueError) as error:
        detail = error.strerror if isinstance(error, OSError) else "no path"
        raise Unobtainable(f"{where} cannot be read: {detail}") from None
    return visible(content.decode("latin-1").strip(), f"{where} holds no token")
