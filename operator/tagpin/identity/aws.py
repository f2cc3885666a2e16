"""AWS: its partitions and regions, and whose access key we have."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from ipaddress import ip_address

from yarl import URL

from tagpin.errors import ConfigurationError, Unobtainable
from tagpin.identity.endpoints import Document, Endpoints, base_of, visible
from tagpin.identity.grants import Grant, Grants
from tagpin.identity.sigv4 import Key
from tagpin.identity.token_file import read_token

# What the SDKs take instead of https (botocore: utils.py, ContainerMetadataFetcher).
_ON_THE_NODE = frozenset({"localhost", "169.254.170.2", "169.254.170.23", "fd00:ec2::23"})

_NO_KEY = (
    "no AWS credentials: give the service account a role (IRSA: AWS_ROLE_ARN and "
    "AWS_WEB_IDENTITY_TOKEN_FILE) or an EKS Pod Identity, or set AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY"
)


@dataclass(frozen=True, slots=True)
class Partition:
    """A part of AWS that shares no credentials with the others, and how its hosts end.

    `dual_stack` is how those of registries and of APIs end that have IPv6 addresses too.
    """

    region: str
    suffix: str
    dual_stack: tuple[str, str] | None = None


_DUAL_STACK = ("on.aws", "api.aws")

# (botocore: data/partitions.json. The regions are patterns: new ones open every year.)
_PARTITIONS = (
    Partition("us-gov-[a-z]+-[0-9]{1,2}", "amazonaws.com", _DUAL_STACK),
    Partition(
        "cn-[a-z]+-[0-9]{1,2}",
        "amazonaws.com.cn",
        ("on.amazonwebservices.com.cn", "api.amazonwebservices.com.cn"),
    ),
    Partition("us-iso-[a-z]+-[0-9]{1,2}", "c2s.ic.gov"),
    Partition("us-isob-[a-z]+-[0-9]{1,2}", "sc2s.sgov.gov"),
    Partition("eu-isoe-[a-z]+-[0-9]{1,2}", "cloud.adc-e.uk"),
    Partition("us-isof-[a-z]+-[0-9]{1,2}", "csp.hci.ic.gov"),
    Partition("eusc-[a-z]+-[a-z]+-[0-9]{1,2}", "amazonaws.eu"),
    Partition("[a-z]{2}-[a-z]+-[0-9]{1,2}", "amazonaws.com", _DUAL_STACK),
)


def partition_of(region: str) -> Partition | None:
    """The partition that a region is of, None for what is no region."""
    return next((each for each in _PARTITIONS if re.fullmatch(each.region, region)), None)


class Keys:
    """The access key that the environment gives, in the order in which the SDKs look for one.

    The region that it names, if any, is where roles are assumed, and of which partition they are.
    `instance` says that the role of the node may be used where nothing else applies. `clock` gives
    monotonic seconds, `now` the wall clock.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        environment: Mapping[str, str],
        *,
        instance: bool,
        clock: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        self._endpoints = endpoints
        self._environment = environment
        self._instance = instance
        self._now = now
        self._grants: Grants[str, Key] = Grants(clock)
        variable = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
        self._metadata = base_of(environment, variable, "http://169.254.169.254", "http")
        self._home = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
        if self._home and partition_of(self._home) is None:
            raise ConfigurationError(f"AWS_REGION is {self._home!r}, which is no region of AWS")

    async def key(self, region: str) -> Key:
        """The key to use in a region; raises Unobtainable."""
        home = self._home or region
        partition = partition_of(home)
        if partition is None or partition is not partition_of(region):
            raise Unobtainable(f"AWS_REGION is {home}, and no credentials are for {region} too")
        sts = f"sts.{home}.{partition.suffix}"
        return await self._grants.get(sts, partial(self._load, sts))

    async def aclose(self) -> None:
        """Stop asking."""
        await self._grants.aclose()

    async def _load(self, sts: str) -> Grant[Key]:
        environment = self._environment
        if environment.get("AWS_ACCESS_KEY_ID"):
            return self._static()
        if environment.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
            return await self._assumed(sts)
        if environment.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"):
            return await self._of_pod()
        if self._instance:
            return await self._of_instance()
        raise Unobtainable(_NO_KEY)

    def _static(self) -> Grant[Key]:
        environment = self._environment
        if not environment.get("AWS_SECRET_ACCESS_KEY"):
            raise Unobtainable("AWS_ACCESS_KEY_ID is set without AWS_SECRET_ACCESS_KEY")
        names = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
        if environment.get("AWS_SESSION_TOKEN"):
            names.append("AWS_SESSION_TOKEN")
        return Grant(Key(*(_variable(environment, name) for name in names)), math.inf)

    async def _assumed(self, sts: str) -> Grant[Key]:
        """The role that our service account may assume (IRSA)."""
        role = self._environment.get("AWS_ROLE_ARN")
        if not role:
            raise Unobtainable("AWS_WEB_IDENTITY_TOKEN_FILE is set without AWS_ROLE_ARN")
        answer = await self._endpoints.ask(
            "POST",
            URL(f"https://{sts}/"),
            headers={"Accept": "application/json"},
            form={
                "Action": "AssumeRoleWithWebIdentity",
                "Version": "2011-06-15",
                "RoleArn": role,
                "RoleSessionName": self._environment.get("AWS_ROLE_SESSION_NAME") or "tagpin",
                "WebIdentityToken": read_token(self._environment, "AWS_WEB_IDENTITY_TOKEN_FILE"),
            },
            needs="the role of AWS_ROLE_ARN must trust tagpin's service account",
        )
        place = ("AssumeRoleWithWebIdentityResponse", "AssumeRoleWithWebIdentityResult")
        return self._grant(answer.document(), *place, "Credentials", session="SessionToken")

    async def _of_pod(self) -> Grant[Key]:
        """What the agent on the node says who we are (EKS Pod Identity)."""
        variable = "AWS_CONTAINER_CREDENTIALS_FULL_URI"
        environment = self._environment
        try:
            url = URL(environment[variable])
        except ValueError:
            url = URL()
        if not _may_be_asked(url):
            raise Unobtainable(f"{variable} is neither https nor on this node")
        headers = {"Accept": "application/json"}
        if environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"):
            token = read_token(environment, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
            headers["Authorization"] = token
        elif environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN"):
            headers["Authorization"] = _variable(environment, "AWS_CONTAINER_AUTHORIZATION_TOKEN")
        answer = await self._endpoints.ask(
            "GET",
            url,
            headers=headers,
            needs="tagpin's service account must have a pod identity association",
        )
        return self._grant(answer.document())

    async def _of_instance(self) -> Grant[Key]:
        """The role of the node (IMDS, version 2 only)."""
        root = self._metadata / "latest"
        needs = "the instance must have a role, and let pods ask for it (hop limit 2)"
        session = await self._endpoints.ask(
            "PUT",
            root / "api/token",
            headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"},
            needs=needs,
        )
        headers = {"X-aws-ec2-metadata-token": session.text("session token")}
        roles = root / "meta-data/iam/security-credentials/"
        name = (await self._endpoints.ask("GET", roles, headers=headers, needs=needs)).text("role")
        if not re.fullmatch(r"[\w+=,.@-]{1,64}", name, re.ASCII):
            raise Unobtainable(f"{roles.host} gave no usable role")
        answer = await self._endpoints.ask("GET", roles / name, headers=headers, needs=needs)
        return self._grant(answer.document())

    def _grant(self, document: Document, *place: str, session: str = "Token") -> Grant[Key]:
        key = Key(
            document.text(*place, "AccessKeyId"),
            document.text(*place, "SecretAccessKey"),
            document.text(*place, session),
        )
        left = document.moment(*place, "Expiration") - self._now().timestamp()
        return Grant.ending(key, left)


def _variable(environment: Mapping[str, str], name: str) -> str:
    return visible(environment[name], f"{name} holds what no key or token holds")


def _may_be_asked(url: URL) -> bool:
    """Whether the token for the node's agent may be sent there, as the SDKs see it."""
    host = url.host or ""
    if url.scheme == "https" or (url.scheme == "http" and host in _ON_THE_NODE):
        return bool(host)
    try:
        return url.scheme == "http" and ip_address(host).is_loopback
    except ValueError:
        return False
