"""Google's registries: the metadata server gives an access token of our service account."""

import re
from collections.abc import Callable, Mapping

from yarl import URL

from tagpin.errors import ConfigurationError, Unobtainable
from tagpin.identity.endpoints import Endpoints
from tagpin.identity.grants import Grant, Grants
from tagpin.keychain import Credential

_USER = "oauth2accesstoken"
_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_FLAVOR = {"Metadata-Flavor": "Google"}

# An address and not metadata.google.internal: where search domains apply, a Service called `google`
# in a namespace called `internal` could have that name.
_METADATA_HOST = "169.254.169.254"


class Google:
    """The access token of our service account, which all of Google's registries take.

    `environment` can name another metadata server, as for Google's libraries, with
    GCE_METADATA_HOST; `clock` gives monotonic seconds.
    """

    def __init__(
        self, endpoints: Endpoints, environment: Mapping[str, str], *, clock: Callable[[], float]
    ) -> None:
        host = environment.get("GCE_METADATA_HOST") or _METADATA_HOST
        if not re.fullmatch(r"[A-Za-z0-9.-]+(?::[0-9]+)?", host):
            raise ConfigurationError(f"GCE_METADATA_HOST is {host!r}, which is no host")
        accounts = URL(f"http://{host}/computeMetadata/v1/instance/service-accounts")
        self._token = accounts / "default/token"
        self._endpoints = endpoints
        self._grants: Grants[str, Credential] = Grants(clock)

    def serves(self, host: str) -> bool:
        """Whether a registry is Google's: Artifact Registry, or what took the place of GCR."""
        return bool(re.fullmatch(rf"(?:{_LABEL}\.)?gcr\.io|{_LABEL}\.pkg\.dev", host))

    async def credential(self, host: str) -> Credential:
        """User name and access token; raises Unobtainable."""
        if not self.serves(host):
            raise Unobtainable(f"{host} is no registry of Google's")
        return await self._grants.get(_USER, self._load)

    async def aclose(self) -> None:
        """Stop asking."""
        await self._grants.aclose()

    async def _load(self) -> Grant[Credential]:
        answer = await self._endpoints.ask(
            "GET",
            self._token,
            headers=_FLAVOR,
            needs="tagpin's service account must be bound to one of Google's (Workload Identity)",
        )
        if answer.headers.get("Metadata-Flavor") != "Google":
            raise Unobtainable(f"{answer.host} is not Google's metadata server")
        document = answer.document()
        credential = Credential(_USER, document.text("access_token"))
        return Grant.ending(credential, document.seconds("expires_in"))
