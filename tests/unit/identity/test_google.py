"""The access token for Google's registries, asked for as Google's own library asks."""

import asyncio
import json
import os
import sys
from typing import Any

import pytest
from aiohttp import web

from tagpin.errors import ConfigurationError, Unobtainable
from tagpin.identity.clouds import CloudIdentities
from tagpin.keychain import Credential, Identity

from .conftest import Sky

REGISTRY = "europe-docker.pkg.dev"


async def google(sky: Sky) -> CloudIdentities:
    return await sky.identities("google", environment=sky.clouds.instance())


async def ask(identities: CloudIdentities, host: str = REGISTRY) -> Credential:
    return await identities.obtain(Identity("google", host))


async def refusal(identities: CloudIdentities) -> str:
    with pytest.raises(Unobtainable) as raised:
        await ask(identities)
    return str(raised.value)


THEIRS = """
import google.auth.compute_engine, google.auth.transport.requests
credentials = google.auth.compute_engine.Credentials()
credentials.refresh(google.auth.transport.requests.Request())
print(credentials.token, credentials.expiry.isoformat())
"""


async def test_a_token_is_asked_for_as_google_auth_does(sky: Sky) -> None:
    assert await ask(await google(sky)) == Credential("oauth2accesstoken", "ya29.1")
    # A process of its own: the library reads its environment when it is imported.
    theirs = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        THEIRS,
        env=os.environ | {"GCE_METADATA_HOST": sky.clouds.node},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await theirs.communicate()
    assert output.decode().startswith("ya29.2 20")
    ours, *others = sky.clouds.asked("/token")
    assert len(others) == 1
    for name in ("method", "host", "path", "body"):
        assert getattr(ours, name) == getattr(others[0], name), name
    assert ours.headers["metadata-flavor"] == others[0].headers["metadata-flavor"]
    assert dict(ours.query) == {}
    assert {*others[0].query} <= {"scopes"}  # of what the node says that it has


async def test_the_metadata_server_is_an_address_that_no_search_domain_can_change() -> None:
    identities = CloudIdentities(["google"], {})
    assert "http://169.254.169.254/computeMetadata/v1/" in str(vars(identities._clouds["google"]))


async def test_all_of_googles_registries_take_one_token(sky: Sky) -> None:
    identities = await google(sky)
    hosts = ["gcr.io", "eu.gcr.io", "us-central1-docker.pkg.dev", REGISTRY]
    given = await asyncio.gather(*[ask(identities, host) for host in hosts])
    assert {each.password for each in given} == {"ya29.1"}
    assert len(sky.clouds.seen) == 1


async def test_a_token_is_renewed_shortly_before_it_ends(sky: Sky) -> None:
    sky.clouds.lifetime = 600
    identities = await google(sky)
    await ask(identities)
    sky.clock.advance(539)
    assert (await ask(identities)).password == "ya29.1"
    sky.clock.advance(2)
    assert (await ask(identities)).password == "ya29.2"


async def test_another_server_at_that_address_is_not_googles(sky: Sky) -> None:
    body = json.dumps({"access_token": "ya29.x", "expires_in": 3600})
    for flavor in ({}, {"Metadata-Flavor": "google"}, {"Metadata-Flavor": "Amazon"}):
        sky.clouds.fault("/token", text=body, headers=flavor)
        assert await refusal(await google(sky)) == "127.0.0.1 is not Google's metadata server"


async def test_a_service_account_that_is_bound_to_none_is_told(sky: Sky) -> None:
    sky.clouds.fault("/token", status=404, text="the body says more")
    assert await refusal(await google(sky)) == (
        "127.0.0.1 answered 404: tagpin's service account must be bound to one of Google's "
        "(Workload Identity)"
    )


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        {"access_token": "", "expires_in": 1},
        {"access_token": None, "expires_in": 1},
        {"access_token": "a\r\nb", "expires_in": 1},
        {"access_token": "a b", "expires_in": 1},
        {"access_token": "ä", "expires_in": 1},
        {"access_token": "a" * 16_385, "expires_in": 1},
        {"access_token": ["a"], "expires_in": 1},
        {"access_token": "a"},
        {"access_token": "a", "expires_in": "soon"},
        {"access_token": "a", "expires_in": True},
        {"access_token": "a", "expires_in": "inf"},
        {"access_token": "a", "expires_in": "nan"},
        {"access_token": "a", "expires_in": {}},
    ],
)
async def test_an_answer_that_is_none_gives_no_credential(sky: Sky, answer: Any) -> None:
    headers = {"Metadata-Flavor": "Google"}
    sky.clouds.fault("/token", text=json.dumps(answer), headers=headers)
    message = await refusal(await google(sky))
    assert message in {
        "127.0.0.1 gave no usable access_token",
        "127.0.0.1 gave no usable expires_in",
    }


@pytest.mark.parametrize("expires_in", [0, -1, 1, "300", 1e18, 4.5])
async def test_a_token_that_ends_soon_or_late_is_used_and_the_cloud_not_asked_at_every_pod(
    sky: Sky, expires_in: Any
) -> None:
    answer = {"access_token": "ya29.x", "expires_in": expires_in}
    headers = {"Metadata-Flavor": "Google"}
    sky.clouds.fault("/token", text=json.dumps(answer), headers=headers)
    identities = await google(sky)
    await ask(identities)
    sky.clock.advance(4)
    assert (await ask(identities)).password == "ya29.x"
    assert len(sky.clouds.seen) == 1


async def test_an_hour_is_as_long_as_a_token_is_kept(sky: Sky) -> None:
    sky.clouds.lifetime = 86_400
    identities = await google(sky)
    await ask(identities)
    sky.clock.advance(3601)
    assert (await ask(identities)).password == "ya29.2"


async def test_a_token_that_has_not_ended_serves_while_there_is_no_other(sky: Sky) -> None:
    sky.clouds.lifetime = 7200
    identities = await google(sky)
    await ask(identities)
    sky.clouds.fault("/token", status=503)
    sky.clock.advance(7000)
    assert (await ask(identities)).password == "ya29.1"
    sky.clock.advance(200)
    assert "answered 503" in await refusal(identities)


async def test_a_failure_is_not_tried_again_for_some_seconds(sky: Sky) -> None:
    sky.clouds.fault("/token", status=503)
    identities = await google(sky)
    for _ in range(5):
        await refusal(identities)
    assert len(sky.clouds.seen) == 1
    sky.clouds.heal()
    sky.clock.advance(4.9)
    await refusal(identities)
    sky.clock.advance(0.2)
    assert (await ask(identities)).password == "ya29.1"


async def test_fifty_pods_ask_once(sky: Sky) -> None:
    async def slow(_: web.Request) -> web.Response:
        await asyncio.sleep(0.02)
        answer = {"access_token": "ya29.slow", "expires_in": 300}
        return web.json_response(answer, headers={"Metadata-Flavor": "Google"})

    sky.clouds.fault("/token", slow)
    identities = await google(sky)
    given = await asyncio.gather(*[ask(identities) for _ in range(50)])
    assert {each.password for each in given} == {"ya29.slow"}
    assert len(sky.clouds.seen) == 1


async def test_who_no_longer_waits_takes_the_answer_from_nobody(sky: Sky) -> None:
    arrived, proceed = asyncio.Event(), asyncio.Event()

    async def slow(_: web.Request) -> web.Response:
        arrived.set()
        await proceed.wait()
        answer = {"access_token": "ya29.slow", "expires_in": 300}
        return web.json_response(answer, headers={"Metadata-Flavor": "Google"})

    sky.clouds.fault("/token", slow)
    identities = await google(sky)
    first = asyncio.create_task(ask(identities))
    await arrived.wait()
    second = asyncio.create_task(ask(identities))
    first.cancel()
    proceed.set()
    assert (await second).password == "ya29.slow"


@pytest.mark.parametrize("host", ["evil.example/x", "a@b", "a b", "host:port", "[::1]"])
def test_a_metadata_server_that_is_no_host_is_told_at_the_start(host: str) -> None:
    with pytest.raises(ConfigurationError, match="GCE_METADATA_HOST is"):
        CloudIdentities(["google"], {"GCE_METADATA_HOST": host})
