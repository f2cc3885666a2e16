"""Amazon's registries: an access key of AWS buys a password for those of one region."""

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from yarl import URL

from tagpin.errors import Unobtainable
from tagpin.identity.aws import Keys, partition_of
from tagpin.identity.endpoints import Endpoints, visible
from tagpin.identity.grants import Grant, Grants
from tagpin.identity.sigv4 import signed
from tagpin.keychain import Credential

_USER = "AWS"


@dataclass(frozen=True, slots=True)
class Api:
    """Where a password is had, which is good for all registries of a region."""

    host: str
    region: str
    service: str = "ecr"
    target: str = "AmazonEC2ContainerRegistry_V20150921"
    permission: str = "ecr:GetAuthorizationToken"


_PUBLIC = Api(
    host="api.ecr-public.us-east-1.amazonaws.com",
    region="us-east-1",
    service="ecr-public",
    target="SpencerFrontendService",
    permission="ecr-public:GetAuthorizationToken and sts:GetServiceBearerToken",
)

# (kubernetes/cloud-provider-aws: cmd/ecr-credential-provider/main.go, where any label is a region.
# Here it must be one of the partition's: a bucket of S3 may be called 123456789012.dkr.ecr, and its
# host has `s3` in that place.)
_REGISTRY = re.compile(
    r"[0-9]{12}\.dkr(?P<separator>[.-])ecr(?P<fips>-fips)?"
    r"\.(?P<region>[a-z0-9-]+)\.(?P<suffix>[a-z0-9.-]+)"
)


def api_of(host: str) -> Api | None:
    """Where the password of a registry is had, None for what is no registry of Amazon's."""
    if host == "public.ecr.aws":
        return _PUBLIC
    match = _REGISTRY.fullmatch(host)
    partition = partition_of(match["region"]) if match else None
    if match is None or partition is None:
        return None
    region, service = match["region"], f"ecr{match['fips'] or ''}"
    if (match["separator"], match["suffix"]) == (".", partition.suffix):
        return Api(f"api.{service}.{region}.{partition.suffix}", region)
    registries, apis = partition.dual_stack or ("", "")
    if (match["separator"], match["suffix"]) == ("-", registries):
        return Api(f"{service}.{region}.{apis}", region)
    return None


class Ecr:
    """Passwords for Amazon's registries, by the access key of `keys`, which it closes."""

    def __init__(
        self,
        endpoints: Endpoints,
        keys: Keys,
        *,
        clock: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        self._endpoints = endpoints
        self._keys = keys
        self._now = now
        self._grants: Grants[Api, Credential] = Grants(clock)

    def serves(self, host: str) -> bool:
        """Whether a registry is Amazon's."""
        return api_of(host) is not None

    async def credential(self, host: str) -> Credential:
        """User name and password for one of Amazon's registries; raises Unobtainable."""
        api = api_of(host)
        if api is None:
            raise Unobtainable(f"{host} is no registry of Amazon's")
        return await self._grants.get(api, partial(self._load, api))

    async def aclose(self) -> None:
        """Stop asking."""
        await self._grants.aclose()
        await self._keys.aclose()

    async def _load(self, api: Api) -> Grant[Credential]:
        body = b"{}"
        headers = {
            "Content-Type": "application/x-amz-json-1.1",
            "X-Amz-Target": f"{api.target}.GetAuthorizationToken",
        }
        key = await self._keys.key(api.region)
        answer = await self._endpoints.ask(
            "POST",
            URL(f"https://{api.host}/"),
            headers=signed(
                api.host,
                headers,
                body,
                key=key,
                region=api.region,
                service=api.service,
                now=self._now(),
            ),
            body=body,
            needs=f"the role needs {api.permission}, and this node a clock that is right",
        )
        document = answer.document()
        place = ("authorizationData",) if api is _PUBLIC else ("authorizationData", 0)
        encoded = document.text(*place, "authorizationToken")
        left = document.moment(*place, "expiresAt") - self._now().timestamp()
        return Grant.ending(Credential(_USER, _password(encoded, api.host)), left)


def _password(encoded: str, host: str) -> str:
    """What stands behind `AWS:` in a token."""
    complaint = f"{host} gave no usable authorizationToken"
    try:
        user, _, password = base64.b64decode(encoded, validate=True).partition(b":")
    except binascii.Error:
        raise Unobtainable(complaint) from None
    if user.decode("latin-1") != _USER:
        raise Unobtainable(complaint)
    return visible(password.decode("latin-1"), complaint)
