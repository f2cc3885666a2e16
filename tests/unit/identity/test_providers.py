"""Whoever lacks a credential is told why, and so is who runs tagpin, though not at every pod."""

import pytest

from fakes.clock import FakeClock
from tagpin.errors import Unobtainable
from tagpin.identity.providers import REPEATED, Providers
from tagpin.keychain import Credential, Identity

PROGRAM = "/opt/bin/docker-credential-x"


class Fickle:
    """Gives a credential, or what is wrong instead."""

    def __init__(self) -> None:
        self.wrong = ""

    async def obtain(self, identity: Identity) -> Credential:
        if self.wrong:
            raise Unobtainable(self.wrong)
        return Credential(identity.provider, identity.host)


async def refused(providers: Providers, identity: Identity) -> str:
    with pytest.raises(Unobtainable) as failure:
        await providers.obtain(identity)
    return str(failure.value)


async def test_each_identity_is_its_own_providers() -> None:
    fickle = Fickle()
    fickle.wrong = "no role"
    providers = Providers({"ecr": Fickle(), PROGRAM: fickle})

    assert await providers.obtain(Identity("ecr", "a.test")) == Credential("ecr", "a.test")
    assert await refused(providers, Identity(PROGRAM, "a.test")) == "no role"
    assert "nobody knows how to become acr" in await refused(providers, Identity("acr", "a.test"))


async def test_what_is_missing_is_logged_once_in_a_while_and_counted_always(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counted: list[str] = []
    clock, fickle = FakeClock(), Fickle()
    providers = Providers({PROGRAM: fickle}, failed=counted.append, clock=clock)
    hosts = [f"r{n}.test" for n in range(10)]

    fickle.wrong = "it ended"
    for host in hosts:
        await refused(providers, Identity(PROGRAM, host))
    fickle.wrong = "it is silent"
    await refused(providers, Identity(PROGRAM, "r.test"))
    clock.advance(REPEATED)
    await refused(providers, Identity(PROGRAM, "r.test"))

    assert [record.getMessage() for record in caplog.records] == [
        "no credential of docker-credential-x for r0.test: it ended",
        "no credential of docker-credential-x for r.test: it is silent",
        "no credential of docker-credential-x for r.test: it is silent",
    ]
    assert counted == ["docker-credential-x"] * 12
