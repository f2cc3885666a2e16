"""Credentials of clouds, for registries of their own and no others."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Protocol, Self

from aiohttp.abc import AbstractResolver
from yarl import URL

from tagpin.errors import ConfigurationError, Unobtainable
from tagpin.identity.acr import Acr
from tagpin.identity.aws import Keys
from tagpin.identity.ecr import Ecr
from tagpin.identity.endpoints import Endpoints, Proxy
from tagpin.identity.google import Google
from tagpin.keychain import Credential, Identity

PROVIDERS = ("ecr", "google", "acr")


class _Cloud(Protocol):
    def serves(self, host: str) -> bool: ...

    async def credential(self, host: str) -> Credential: ...

    async def aclose(self) -> None: ...


def _now() -> datetime:
    return datetime.now(UTC)


class CloudIdentities:
    """What tagpin is to the clouds of `providers`; use as an async context manager.

    `environment` says who we are, in the variables that each cloud's own libraries read.
    `acr_hosts` are registries of Azure's under names of the operator's own; `aws_instance_role`
    allows the role of the node, with all that it may do. `ca`, `names`, `proxy` and `timeout`
    are those of Endpoints. `clock` gives monotonic seconds, `now` the wall clock.

    Raises ConfigurationError for what can never work; what is missing or refused is told by each
    `obtain`, since it can be mended while we run.
    """

    def __init__(
        self,
        providers: Collection[str],
        environment: Mapping[str, str],
        *,
        acr_hosts: Iterable[str] = (),
        aws_instance_role: bool = False,
        ca: str | None = None,
        names: AbstractResolver | None = None,
        proxy: Callable[[URL], Proxy | None] = lambda _: None,
        timeout: float = 4.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = _now,
    ) -> None:
        self._endpoints = endpoints = Endpoints(ca=ca, names=names, proxy=proxy, timeout=timeout)
        self._clouds: dict[str, _Cloud] = {}
        for provider in providers:
            match provider:
                case "ecr":
                    keys = Keys(
                        endpoints, environment, instance=aws_instance_role, clock=clock, now=now
                    )
                    cloud: _Cloud = Ecr(endpoints, keys, clock=clock, now=now)
                case "google":
                    cloud = Google(endpoints, environment, clock=clock)
                case "acr":
                    cloud = Acr(endpoints, environment, hosts=acr_hosts, clock=clock, now=now)
                case _:
                    known = ", ".join(PROVIDERS)
                    raise ConfigurationError(f"no cloud is called {provider!r}; known: {known}")
            self._clouds[provider] = cloud
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._endpoints)
        for cloud in self._clouds.values():
            self._stack.push_async_callback(cloud.aclose)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def identities_for(self, domain: str) -> tuple[Identity, ...]:
        """Who we are to a registry, by its name in references; nobody, to all but the clouds' own.

        The name must be spelled as the cloud does: in lower case and without a port.
        """
        return tuple(
            Identity(provider, domain)
            for provider, cloud in self._clouds.items()
            if cloud.serves(domain)
        )

    async def obtain(self, identity: Identity) -> Credential:
        """The credential of an identity now; Unobtainable says why there is none.

        Its own host is looked at again: what comes of an identity that nobody here gave is none.
        """
        cloud = self._clouds.get(identity.provider)
        if cloud is None:
            raise Unobtainable(f"nobody knows how to become {identity.provider}")
        return await cloud.credential(identity.host)
