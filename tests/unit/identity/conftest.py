"""The clouds as they are on loopback, and what tagpin is to them."""

import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cluster.authority import Authority
from fakes.clock import FakeClock
from fakes.clouds import FakeClouds
from tagpin.identity.clouds import CloudIdentities

API_HOSTS = [
    *(f"{name}.eu-west-1.amazonaws.com" for name in ("api.ecr", "sts")),
    *(f"api.{name}.us-east-1.amazonaws.com" for name in ("ecr", "ecr-fips", "ecr-public")),
    "api.ecr.eu-central-1.amazonaws.com",
    "ecr.eu-west-1.api.aws",
    *(f"{name}.cn-north-1.amazonaws.com.cn" for name in ("api.ecr", "sts")),
    "login.microsoftonline.com",
    "login.microsoftonline.us",
    "demo.azurecr.io",
    "demo-abc123.azurecr.io",
    "other.azurecr.io",
    "images.corp.example",
]
REGISTRY_HOSTS = [
    "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
    "public.ecr.aws",
    "europe-docker.pkg.dev",
    "demo.azurecr.io",
]


class Sky:
    """The clouds, and identities whose clock is theirs."""

    def __init__(
        self, clouds: FakeClouds, clock: FakeClock, tls: ssl.SSLContext, ca: str, folder: Path
    ) -> None:
        self.clouds = clouds
        self.clock = clock
        self.tls = tls
        self.ca = ca
        self.folder = folder
        self.stack = AsyncExitStack()

    async def identities(self, *providers: str, **settings: Any) -> CloudIdentities:
        """`environment` is empty unless given."""
        values: dict[str, Any] = {
            "environment": {},
            "ca": self.ca,
            "names": self.clouds.names,
            "clock": self.clock,
            "now": self.clock.now,
        }
        identities = CloudIdentities(providers, **(values | settings))
        return await self.stack.enter_async_context(identities)

    def be_now(self) -> None:
        """Let the clouds live today: their own libraries look at the clock themselves."""
        self.clock.started = datetime.now(UTC) - timedelta(seconds=self.clock.seconds)

    def renew_token(self, token: str) -> None:
        """Give the service account another token, in the same file."""
        self.clouds.federated = token
        (self.folder / "token").write_text(f"{token}\n")


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("clouds"))


@pytest.fixture(scope="session")
def cloud_tls(authority: Authority) -> ssl.SSLContext:
    issued = authority.issue("clouds", hosts=[*{*API_HOSTS, *REGISTRY_HOSTS}, "127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.certificate, issued.key)
    return context


@pytest.fixture
async def sky(
    authority: Authority, cloud_tls: ssl.SSLContext, tmp_path: Path
) -> AsyncIterator[Sky]:
    clock = FakeClock()
    async with FakeClouds(cloud_tls, now=clock.now) as clouds:
        clouds.lead(*API_HOSTS)
        sky = Sky(clouds, clock, cloud_tls, authority.certificate.read_text(), tmp_path)
        async with sky.stack:
            yield sky
