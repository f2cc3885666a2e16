"""Azure's registries: each of them gives a refresh token for an access token of Entra ID.

(Azure/acr: docs/AAD-OAuth.md)
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial

import orjson
from yarl import URL

from tagpin.errors import ConfigurationError, Unobtainable
from tagpin.identity.endpoints import Document, Endpoints, base_of
from tagpin.identity.grants import Grant, Grants
from tagpin.identity.token_file import read_token
from tagpin.keychain import Credential

_USER = "00000000-0000-0000-0000-000000000000"
_AUDIENCE = "https://containerregistry.azure.net"
_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL})+"

# An access token is for one cloud only, and is shown to no other one.
# (azure-identity: AzureAuthorityHosts)
_SUFFIXES = {
    "login.microsoftonline.com": "azurecr.io",
    "login.microsoftonline.us": "azurecr.us",
    "login.chinacloudapi.cn": "azurecr.cn",
    "login.partner.microsoftonline.cn": "azurecr.cn",
}
_PUBLIC_CLOUD = "https://login.microsoftonline.com/"


class Acr:
    """Refresh tokens for Azure's registries: those of the cloud that we are in, and of `hosts`.

    `environment` says who we are: AZURE_FEDERATED_TOKEN_FILE and its like (workload identity), or
    nothing, which asks the node (managed identity). `clock` gives monotonic seconds, `now` the
    wall clock.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        environment: Mapping[str, str],
        *,
        hosts: Iterable[str] = (),
        clock: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        self._endpoints = endpoints
        self._environment = environment
        self._now = now
        self._hosts = frozenset(hosts)
        for host in self._hosts:
            if not re.fullmatch(_HOST, host):
                raise ConfigurationError(
                    f"acrHosts: {host!r} is no name of a host, such as registry.corp.example"
                )
        self._authority = base_of(environment, "AZURE_AUTHORITY_HOST", _PUBLIC_CLOUD, "https")
        metadata = "http://169.254.169.254"
        self._metadata = base_of(environment, "AZURE_POD_IDENTITY_AUTHORITY_HOST", metadata, "http")
        self._suffix = _SUFFIXES.get(self._authority.host or "")
        self._access: Grants[str, str] = Grants(clock)
        self._refresh: Grants[str, Credential] = Grants(clock)

    def serves(self, host: str) -> bool:
        """Whether a registry is of our cloud, or one of the listed ones."""
        own = self._suffix and re.fullmatch(rf"{_LABEL}\.{re.escape(self._suffix)}", host)
        return bool(own) or host in self._hosts

    async def credential(self, host: str) -> Credential:
        """User name and refresh token for one registry; raises Unobtainable."""
        if not self.serves(host):
            raise Unobtainable(f"{host} is no registry of this cloud of Azure's")
        return await self._refresh.get(host, partial(self._exchange, host))

    async def aclose(self) -> None:
        """Stop asking."""
        await self._refresh.aclose()
        await self._access.aclose()

    async def _exchange(self, host: str) -> Grant[Credential]:
        federated = self._environment.get("AZURE_FEDERATED_TOKEN_FILE")
        load = self._of_workload if federated else self._of_node
        answer = await self._endpoints.ask(
            "POST",
            URL.build(scheme="https", host=host, path="/oauth2/exchange"),
            form={
                "grant_type": "access_token",
                "service": host,
                "access_token": await self._access.get(_AUDIENCE, load),
            },
            needs="tagpin's identity needs the role AcrPull there",
        )
        token = answer.document().text("refresh_token")
        left = _end_of(token, host) - self._now().timestamp()
        return Grant.ending(Credential(_USER, token), left)

    async def _of_workload(self) -> Grant[str]:
        """An access token of the application that trusts our service account."""
        tenant, client = (
            self._environment.get(name) for name in ("AZURE_TENANT_ID", "AZURE_CLIENT_ID")
        )
        if not tenant or not client:
            missing = "AZURE_CLIENT_ID" if tenant else "AZURE_TENANT_ID"
            raise Unobtainable(f"AZURE_FEDERATED_TOKEN_FILE is set without {missing}")
        answer = await self._endpoints.ask(
            "POST",
            self._authority / tenant / "oauth2/v2.0/token",
            form={
                "grant_type": "client_credentials",
                "client_id": client,
                "scope": f"{_AUDIENCE}/.default",
                "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
                "client_assertion": read_token(self._environment, "AZURE_FEDERATED_TOKEN_FILE"),
            },
            needs="the identity of AZURE_CLIENT_ID must trust tagpin's service account",
        )
        return _access_token(answer.document())

    async def _of_node(self) -> Grant[str]:
        """An access token of the identity that the node has, or that AZURE_CLIENT_ID names."""
        query = {"api-version": "2018-02-01", "resource": _AUDIENCE}
        client = self._environment.get("AZURE_CLIENT_ID")
        answer = await self._endpoints.ask(
            "GET",
            (self._metadata / "metadata/identity/oauth2/token").with_query(
                query | ({"client_id": client} if client else {})
            ),
            headers={"Metadata": "true"},
            needs="there is no managed identity here, nor AZURE_FEDERATED_TOKEN_FILE "
            "(workload identity)",
        )
        return _access_token(answer.document())


def _access_token(document: Document) -> Grant[str]:
    return Grant.ending(document.text("access_token"), document.seconds("expires_in"))


def _end_of(token: str, host: str) -> float:
    """The Unix time at which a JWT ends, of which nobody but its issuer needs the signature."""
    payload = token.split(".")[1:2] or [""]
    try:
        claims = orjson.loads(base64.urlsafe_b64decode(payload[0] + "=" * (-len(payload[0]) % 4)))
    except (binascii.Error, orjson.JSONDecodeError):
        raise Unobtainable(f"{host} gave no usable refresh_token") from None
    return Document(host, claims).seconds("exp")
