"""Refresh tokens of Azure's registries, asked for as Azure's own libraries ask."""

import asyncio
import json
from typing import Any

import pytest
from azure.containerregistry._exchange_client import ACRExchangeClient
from azure.core.credentials import AccessToken
from azure.identity import ManagedIdentityCredential, WorkloadIdentityCredential

from cluster.authority import Authority
from fakes.clouds import CLIENT, FEDERATED, TENANT, Asked, jwt
from tagpin.errors import ConfigurationError, Unobtainable
from tagpin.identity.clouds import CloudIdentities
from tagpin.keychain import Credential, Identity

from .conftest import Sky

REGISTRY = "demo.azurecr.io"
SCOPE = "https://containerregistry.azure.net/.default"


async def workload(sky: Sky, **environment: str) -> CloudIdentities:
    return await sky.identities("acr", environment=sky.clouds.workload(sky.folder) | environment)


async def ask(identities: CloudIdentities, host: str = REGISTRY) -> Credential:
    return await identities.obtain(Identity("acr", host))


async def refusal(identities: CloudIdentities, host: str = REGISTRY) -> str:
    with pytest.raises(Unobtainable) as raised:
        await ask(identities, host)
    return str(raised.value)


def wire(asked: Asked) -> tuple[object, ...]:
    return asked.method, asked.path, asked.form, asked.headers.get("content-type")


# The requests


async def test_an_access_token_is_asked_for_as_azure_identity_does(
    sky: Sky, authority: Authority
) -> None:
    assert (await ask(await workload(sky))).username == "00000000-0000-0000-0000-000000000000"
    theirs = WorkloadIdentityCredential(
        tenant_id=TENANT,
        client_id=CLIENT,
        token_file_path=str(sky.folder / "token"),
        authority=f"https://127.0.0.1:{sky.clouds.port}",
        connection_verify=str(authority.certificate),
        disable_instance_discovery=True,
    )
    with theirs:
        token = await asyncio.to_thread(theirs.get_token, SCOPE)
    assert token.token.startswith("aad.")
    ours, _, other = sky.clouds.seen
    assert ours.host == "login.microsoftonline.com"
    assert wire(ours) == wire(other)


async def test_the_managed_identity_is_asked_for_as_azure_identity_does(
    sky: Sky, monkeypatch: pytest.MonkeyPatch
) -> None:
    for client in (None, CLIENT):
        sky.clouds.seen.clear()
        environment = sky.clouds.instance() | ({"AZURE_CLIENT_ID": client} if client else {})
        await ask(await sky.identities("acr", environment=environment))
        # Azure's library has no other way to name a node's address.
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", f"http://{sky.clouds.node}")
        with ManagedIdentityCredential(client_id=client) as theirs:
            token = await asyncio.to_thread(theirs.get_token, SCOPE)
        assert token.token.startswith("aad.")
        ours, _, other = sky.clouds.seen
        assert (ours.method, ours.host, ours.path) == (other.method, other.host, other.path)
        assert ours.query == other.query
        assert ours.headers["metadata"] == other.headers["metadata"] == "true"


async def test_the_token_is_exchanged_as_azure_containerregistry_does(
    sky: Sky, authority: Authority
) -> None:
    given = await ask(await workload(sky))

    class Holder:
        def get_token(self, *_: str, **__: Any) -> AccessToken:
            return AccessToken("aad.1", 0)

    theirs = ACRExchangeClient(
        f"https://127.0.0.1:{sky.clouds.port}",
        Holder(),
        connection_verify=str(authority.certificate),
    )
    with theirs:
        token = await asyncio.to_thread(theirs.exchange_aad_token_for_refresh_token, REGISTRY)
    _, ours, other = sky.clouds.seen
    assert ours.host == REGISTRY
    assert wire(ours) == wire(other)
    assert ours.form["access_token"] == "aad.1"
    assert token.count(".") == given.password.count(".") == 2


async def test_the_token_of_the_service_account_is_read_anew_each_time(sky: Sky) -> None:
    identities = await workload(sky)
    await ask(identities)
    sky.renew_token("second")
    sky.clock.advance(3601)
    await ask(identities)
    assert [each.form["client_assertion"] for each in sky.clouds.asked("/oauth2/v2.0")] == [
        FEDERATED,
        "second",
    ]


async def test_the_exchange_follows_no_redirect(sky: Sky) -> None:
    there = {"Location": "https://other.azurecr.io/oauth2/exchange"}
    for status in (301, 302, 303, 307, 308):
        sky.clouds.fault("demo.azurecr.io/oauth2", status=status, headers=there)
        message = await refusal(await workload(sky))
        assert message.startswith(f"demo.azurecr.io answered {status}")
    assert sky.clouds.asked("other.azurecr.io") == []


# Which registries


@pytest.mark.parametrize(
    ("entra", "served"),
    [
        (None, "azurecr.io"),
        ("https://login.microsoftonline.com", "azurecr.io"),
        ("https://login.microsoftonline.us/", "azurecr.us"),
        ("https://login.chinacloudapi.cn/", "azurecr.cn"),
        ("https://login.partner.microsoftonline.cn/", "azurecr.cn"),
        ("https://login.corp.example/", None),
    ],
)
async def test_a_token_is_shown_only_to_registries_of_its_own_cloud(
    sky: Sky, entra: str | None, served: str | None
) -> None:
    environment = {"AZURE_AUTHORITY_HOST": entra} if entra else {}
    identities = await sky.identities("acr", environment=environment)
    for suffix in ("azurecr.io", "azurecr.us", "azurecr.cn"):
        host = f"demo.{suffix}"
        expected = (Identity("acr", host),) if suffix == served else ()
        assert identities.identities_for(host) == expected
        if suffix != served:
            assert await refusal(identities, host) == (
                f"{host} is no registry of this cloud of Azure's"
            )
    assert sky.clouds.seen == []


async def test_a_registry_under_a_name_of_the_operators_is_asked_itself(sky: Sky) -> None:
    environment = sky.clouds.workload(sky.folder)
    host = "images.corp.example"
    identities = await sky.identities("acr", environment=environment, acr_hosts=[host])
    assert identities.identities_for(host) == (Identity("acr", host),)
    await ask(identities, host)
    [exchange] = sky.clouds.asked("/oauth2/exchange")
    assert (exchange.host, exchange.form["service"]) == (host, host)


@pytest.mark.parametrize(
    "host", ["", "*.corp.example", "a:5000", "https://a.b", "A.b", "localhost"]
)
def test_a_listed_name_that_is_none_is_told_at_the_start(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"acrHosts: .+ is no name of a host"):
        CloudIdentities(["acr"], {}, acr_hosts=[host])


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AZURE_AUTHORITY_HOST", "http://login.microsoftonline.com/"),
        ("AZURE_AUTHORITY_HOST", "login.microsoftonline.com"),
        ("AZURE_AUTHORITY_HOST", "https://login.microsoftonline.com@evil.example/"),
        ("AZURE_AUTHORITY_HOST", "https://"),
        ("AZURE_AUTHORITY_HOST", "https://[::1"),
        ("AZURE_POD_IDENTITY_AUTHORITY_HOST", "ftp://169.254.169.254"),
    ],
)
def test_a_place_that_is_none_is_told_at_the_start(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=variable):
        CloudIdentities(["acr"], {variable: value})


# What is kept


async def test_one_access_token_serves_all_registries_and_a_refresh_token_one(sky: Sky) -> None:
    identities = await workload(sky)
    hosts = [REGISTRY, "other.azurecr.io"]
    given = await asyncio.gather(*[ask(identities, host) for host in hosts])
    again = await asyncio.gather(*[ask(identities, host) for host in hosts])
    assert given == again
    assert given[0].password != given[1].password
    assert len(sky.clouds.asked("/oauth2/v2.0/token")) == 1
    assert len(sky.clouds.asked("/oauth2/exchange")) == 2


async def test_a_registry_that_does_not_exist_costs_the_others_nothing(sky: Sky) -> None:
    identities = await workload(sky)
    for host in ("nosuch1.azurecr.io", "nosuch2.azurecr.io"):
        assert await refusal(identities, host) == f"no connection to {host}"
    await ask(identities)
    assert len(sky.clouds.asked("/oauth2/v2.0/token")) == 1


async def test_a_refresh_token_is_renewed_shortly_before_the_end_that_it_names(sky: Sky) -> None:
    end = int(sky.clock.now().timestamp()) + 600
    sky.clouds.fault("/oauth2/exchange", text=json.dumps({"refresh_token": jwt({"exp": end})}))
    identities = await workload(sky)
    await ask(identities)
    sky.clock.advance(539)
    await ask(identities)
    assert len(sky.clouds.asked("/oauth2/exchange")) == 1
    sky.clock.advance(2)
    await ask(identities)
    assert len(sky.clouds.asked("/oauth2/exchange")) == 2


# What is missing is named, and no more


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"AZURE_TENANT_ID": ""}, "AZURE_FEDERATED_TOKEN_FILE is set without AZURE_TENANT_ID"),
        ({"AZURE_CLIENT_ID": ""}, "AZURE_FEDERATED_TOKEN_FILE is set without AZURE_CLIENT_ID"),
        (
            {"AZURE_FEDERATED_TOKEN_FILE": "/nonexistent"},
            "the file that AZURE_FEDERATED_TOKEN_FILE names cannot be read: No such file",
        ),
        (
            {"AZURE_FEDERATED_TOKEN_FILE": "/\0"},
            "the file that AZURE_FEDERATED_TOKEN_FILE names cannot be read: no path",
        ),
        (
            {"AZURE_TENANT_ID": "another"},
            "login.microsoftonline.com answered 401: the identity of AZURE_CLIENT_ID must trust",
        ),
    ],
)
async def test_what_is_missing_is_named(sky: Sky, environment: dict[str, str], words: str) -> None:
    message = await refusal(await workload(sky, **environment))
    assert words in message
    assert FEDERATED not in message
    assert sky.clouds.asked("/oauth2/exchange") == []


async def test_without_any_identity_both_kinds_are_named(sky: Sky) -> None:
    sky.clouds.fault("/metadata/identity", status=400)
    identities = await sky.identities("acr", environment=sky.clouds.instance())
    assert await refusal(identities) == (
        "127.0.0.1 answered 400: there is no managed identity here, nor "
        "AZURE_FEDERATED_TOKEN_FILE (workload identity)"
    )


async def test_an_identity_without_the_role_is_told_which(sky: Sky) -> None:
    sky.clouds.fault("/oauth2/exchange", status=401, text="aad.1 echoed")
    assert await refusal(await workload(sky)) == (
        "demo.azurecr.io answered 401: tagpin's identity needs the role AcrPull there"
    )


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        {"refresh_token": ""},
        {"refresh_token": 1},
        {"refresh_token": "a.b\r\n.c"},
        {"refresh_token": "nodots"},
        {"refresh_token": "a.!!.c"},
        {"refresh_token": "a..c"},
        {"refresh_token": "a.W10.c"},
        {"refresh_token": "a.bnVsbA.c"},
        {"refresh_token": "a./////w.c"},
        {"refresh_token": jwt({})},
        {"refresh_token": jwt({"exp": None})},
        {"refresh_token": jwt({"exp": "soon"})},
        {"refresh_token": jwt([1])},
        {"refresh_token": jwt({"exp": 1, "padding": "x" * 20_000})},
    ],
)
async def test_an_answer_that_is_none_gives_no_credential(sky: Sky, answer: Any) -> None:
    sky.clouds.fault("/oauth2/exchange", text=json.dumps(answer))
    message = await refusal(await workload(sky))
    assert message in {
        "demo.azurecr.io gave no usable refresh_token",
        "demo.azurecr.io gave no usable exp",
    }


@pytest.mark.parametrize(
    "answer", [{}, {"access_token": "a\nb", "expires_in": 1}, {"access_token": "a"}]
)
async def test_an_access_token_that_is_none_is_not_exchanged(sky: Sky, answer: Any) -> None:
    sky.clouds.fault("/oauth2/v2.0/token", text=json.dumps(answer))
    assert (await refusal(await workload(sky))).startswith("login.microsoftonline.com gave no")
    assert sky.clouds.asked("/oauth2/exchange") == []
