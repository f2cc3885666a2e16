"""What is made of an oddity, and of an operator's word about token servers."""

import logging

import pytest

from fakes.faults import together, with_header
from tagpin.errors import Reason, Unresolvable
from tagpin.pinning import Resolution
from tagpin.registry.manifest import Oddity
from tagpin.registry.places import RegistrySettings

from .conftest import Net

DIGEST = "Docker-Content-Digest"


@pytest.mark.parametrize(
    ("stated", "oddity"),
    [("s3cret", Oddity.DIGEST_MALFORMED), ("sha256:" + "0" * 64, Oddity.DIGEST_MISMATCH)],
)
async def test_an_oddity_is_counted_and_logged_once_without_what_was_sent(
    net: Net, caplog: pytest.LogCaptureFixture, stated: str, oddity: Oddity
) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(together(with_header(DIGEST, stated), with_header("Content-Type", "text/plain")))
    counted: list[tuple[str, Oddity]] = []
    with caplog.at_level(logging.WARNING):
        outcome = await net.ask(
            net.image("public.test"), remark=lambda *said: counted.append((said[0], said[1]))
        )
    assert isinstance(outcome, Resolution)
    assert str(outcome.digest) == pushed
    host = f"public.test:{net.port}"
    assert counted == [(host, oddity)]
    assert caplog.messages == [f"{host}/demo/app:v1: a {oddity} in the answer of {host}"]


async def test_a_digest_of_other_bytes_is_refused_where_the_operator_is_strict(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.push_image("demo/app", "v1")
    wrong = with_header(DIGEST, "sha256:" + "0" * 64)
    registry.fault(together(wrong, with_header("Content-Type", "text/plain")))
    strict = [RegistrySettings(f"public.test:{net.port}", strict=True)]
    outcome = await net.ask(net.image("public.test"), registries=strict)
    assert isinstance(outcome, Unresolvable)
    assert outcome.reason is Reason.BAD_ANSWER


@pytest.mark.parametrize("named", [False, True])
async def test_a_public_registry_may_have_a_private_token_server_that_the_operator_named(
    net: Net, *, named: bool
) -> None:
    registry = await net.registry("public.test", tokens=True)
    web = await net.registry("private.test", tokens=True)
    registry.realm = web.realm
    registry.accept_tokens_of(web)
    pushed = registry.push_image("demo/app", "v1")
    hosts = ("*.test",) if named else ()
    listed = [RegistrySettings(f"public.test:{net.port}", token_hosts=hosts)]
    outcome = await net.ask(net.image("public.test"), registries=listed)
    if named:
        assert isinstance(outcome, Resolution)
        assert str(outcome.digest) == pushed
    else:
        assert isinstance(outcome, Unresolvable)
        assert not web.requests
