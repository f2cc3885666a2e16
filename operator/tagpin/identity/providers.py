"""Whom to ask for which identity."""

from collections.abc import Mapping
from typing import Protocol

from tagpin.errors import Unobtainable
from tagpin.keychain import Credential, Identity


class Provider(Protocol):
    """Gives the credentials of identities."""

    async def obtain(self, identity: Identity) -> Credential:
        """The credential of an identity now; Unobtainable says why there is none."""
        ...


class Providers:
    """Implements `tagpin.registry.client.Identities`: `providers` by the names in identities."""

    def __init__(self, providers: Mapping[str, Provider]) -> None:
        self._providers = dict(providers)

    async def obtain(self, identity: Identity) -> Credential:
        """The credential of an identity now, from its own provider."""
        provider = self._providers.get(identity.provider)
        if provider is None:
            raise Unobtainable(f"nobody knows how to become {identity.provider}")
        return await provider.obtain(identity)
