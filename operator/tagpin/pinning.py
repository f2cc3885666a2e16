"""The use case: every image of a pod becomes a digest, or says why not."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from tagpin.keychain import Keychain
from tagpin.pins import Source
from tagpin.reference import Digest, Reference


@dataclass(frozen=True, slots=True)
class Resolution:
    """Which digest a tag names, who said so, and when the registry said it (UTC)."""

    digest: Digest
    source: Source
    resolved_at: datetime


class Resolver(Protocol):
    """Turns a tag into a digest."""

    async def resolve(self, ref: Reference, keychain: Keychain, *, max_age: float) -> Resolution:
        """Say which digest `ref` names, from an answer at most `max_age` seconds old.

        Raises Unresolvable. While the registry is down the last known digest may come back,
        with source `stale`.
        """
        ...
