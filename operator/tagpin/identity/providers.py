"""Whom to ask for which identity, and who hears of it where there is no answer."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Protocol

from cachetools import TTLCache

from tagpin.errors import Unobtainable
from tagpin.keychain import Credential, Identity
from tagpin.reference import shortened

log = logging.getLogger(__name__)

REPEATED = 300.0
"""Seconds for which the same complaint is not logged again: each pod could bring it about."""


class Provider(Protocol):
    """Gives the credentials of identities."""

    async def obtain(self, identity: Identity) -> Credential:
        """The credential of an identity now; Unobtainable says why there is none."""
        ...


class Providers:
    """Implements `tagpin.registry.client.Identities`: `providers` by the names in identities.

    What is missing is logged; `failed` is told each time, with the provider's name, which for a
    program is that of its file. `clock` gives monotonic seconds.
    """

    def __init__(
        self,
        providers: Mapping[str, Provider],
        *,
        failed: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._providers = dict(providers)
        self._failed = failed
        self._said: TTLCache[tuple[str, str], None] = TTLCache(1000, REPEATED, timer=clock)

    async def obtain(self, identity: Identity) -> Credential:
        """The credential of an identity now, from its own provider."""
        provider = self._providers.get(identity.provider)
        if provider is None:
            raise Unobtainable(f"nobody knows how to become {identity.provider}")
        try:
            return await provider.obtain(identity)
        except Unobtainable as error:
            name = PurePath(identity.provider).name
            self._failed(name)
            if (name, str(error)) not in self._said:
                self._said[name, str(error)] = None
                host = shortened(identity.host)
                log.warning("no credential of %s for %s: %s", name, host, error)
            raise
