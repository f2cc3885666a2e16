"""What is recorded about a pod's images, and how it gets onto the pod."""

from enum import StrEnum


class Source(StrEnum):
    """Where a digest came from, as written into `tagpin.dev/pins`."""

    REGISTRY = "registry"
    CACHE = "cache"
    LEDGER = "ledger"
    SIBLINGS = "siblings"
    STALE = "stale"
    GIVEN = "given"
