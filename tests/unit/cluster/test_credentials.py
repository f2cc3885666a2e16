"""Pull secrets: what a Secret's data means, and which names are never asked for."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from fakes.clock import FakeClock
from tagpin import workload
from tagpin.cluster.api import disconnect
from tagpin.cluster.credentials import HELD, MAX_NAMES, ClusterPullSecrets, parse_secret
from tagpin.keychain import Candidate, Credential, Identity, Keychain
from tagpin.reference import Reference

IMAGE = Reference.parse("registry.test/app:1")
CONFIG = {"auths": {"registry.test": {"username": "ann", "password": "s3cret"}}}


def encoded(document: object) -> str:
    return base64.b64encode(json.dumps(document).encode()).decode()


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("kubernetes.io/dockerconfigjson", {".dockerconfigjson": encoded(CONFIG)}),
        ("kubernetes.io/dockercfg", {".dockercfg": encoded(CONFIG["auths"])}),
    ],
)
def test_both_formats_of_pull_secrets_are_read(kind: str, data: dict[str, str]) -> None:
    access = parse_secret("regcred", kind, data)

    assert access.keychain.candidates(IMAGE) == (Credential("ann", "s3cret"),)
    assert access.remarks == ()


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("Opaque", {".dockerconfigjson": encoded(CONFIG)}),
        ("kubernetes.io/dockerconfigjson", {}),
        ("kubernetes.io/dockerconfigjson", {".dockercfg": encoded(CONFIG)}),
        ("kubernetes.io/dockerconfigjson", {".dockerconfigjson": "no base64!"}),
        ("kubernetes.io/dockerconfigjson", {".dockerconfigjson": encoded("s3cret")}),
        ("kubernetes.io/dockerconfigjson", {".dockerconfigjson": encoded(CONFIG)[:-8]}),
        ("kubernetes.io/dockerconfigjson", {".dockerconfigjson": encoded(CONFIG["auths"])}),
        ("kubernetes.io/dockercfg", {".dockercfg": encoded(CONFIG)}),
        ("kubernetes.io/dockercfg", {".dockerconfigjson": encoded(CONFIG)}),
        (
            "kubernetes.io/dockerconfigjson",
            {
                ".dockerconfigjson": encoded(
                    {"auths": {"registry.test": {}}, "credsStore": "s3cret"}
                )
            },
        ),
        (
            "kubernetes.io/dockerconfigjson",
            {".dockerconfigjson": encoded({"auths": {"registry.test": {"auth": "s3cret!"}}})},
        ),
    ],
)
def test_a_secret_of_no_use_is_named_without_its_content(kind: str, data: dict[str, str]) -> None:
    access = parse_secret("regcred", kind, data)

    assert access.keychain.candidates(IMAGE) == ()
    assert "pull secret regcred" in " ".join(access.remarks)
    assert "s3cret" not in " ".join(access.remarks)


@pytest.mark.parametrize("name", ["..", "a/b", "../../nodes", "UPPER", "a?b", "", "x" * 300, "a\n"])
async def test_a_name_that_could_lead_elsewhere_is_never_asked_for(name: str) -> None:
    # Nothing listens there: a request would say that it was refused.
    client = ApiClient(Configuration(host="http://127.0.0.1:1"))

    access = await ClusterPullSecrets(client).read("shop", [name], "default")

    assert access.keychain.entries == ()
    assert access.remarks == (f"{workload.shown(name)} is no name of a Kubernetes object",)
    await disconnect(client)


async def test_the_number_of_pull_secrets_is_bounded() -> None:
    client = ApiClient(Configuration(host="http://127.0.0.1:1"))
    names = [f"secret-{number}" for number in range(MAX_NAMES + 5)]

    access = await ClusterPullSecrets(client).read("shop", names, "default")

    assert access.remarks[0] == f"only the first {MAX_NAMES} pull secrets were read"
    assert len(access.remarks) == MAX_NAMES + 1
    await disconnect(client)


def test_a_secret_that_only_resolves_and_cannot_pull_is_used_and_named() -> None:
    config = {"auths": {"registry.test": {"identitytoken": "s3cret"}}}
    kind = "kubernetes.io/dockerconfigjson"

    access = parse_secret("regcred", kind, {".dockerconfigjson": encoded(config)})

    assert access.keychain.candidates(IMAGE) == (Credential("", "", "s3cret"),)
    remark = "pull secret regcred: 'registry.test': nodes cannot use its identitytoken"
    assert access.remarks == (remark,)


class FakeSecrets:
    """An API server that only knows Secrets and ServiceAccounts, by `namespace/name`."""

    def __init__(self) -> None:
        self.secrets: dict[str, dict[str, Any]] = {}
        self.accounts: dict[str, list[str]] = {}
        self.account_fields: dict[str, dict[str, Any]] = {}
        """The same, as they are answered."""
        self.asked: list[str] = []
        self.client: ApiClient

    def store(self, where: str, user: str, host: str = "registry.test") -> None:
        config = {"auths": {host: {"username": user, "password": "pw"}}}
        self.store_data(where, encoded(config))

    def store_data(self, where: str, data: str) -> None:
        self.secrets[where] = {
            "type": "kubernetes.io/dockerconfigjson",
            "data": {".dockerconfigjson": data},
        }

    async def answer(self, request: web.Request) -> web.Response:
        namespace, plural, name = request.path.split("/")[-3:]
        self.asked.append(f"{request.method} {plural} {namespace}/{name}")
        found: dict[str, Any] | None
        if plural == "serviceaccounts":
            names = self.accounts.get(f"{namespace}/{name}")
            found = None if names is None else {"imagePullSecrets": [{"name": n} for n in names]}
            found = self.account_fields.get(f"{namespace}/{name}", found)
        else:
            found = self.secrets.get(f"{namespace}/{name}")
        if found is None:
            body = {
                "kind": "Status",
                "code": 404,
                "details": {"name": name},
                "message": "not found",
            }
            return web.json_response(body, status=404)
        return web.json_response({"metadata": {"name": name, "namespace": namespace}, **found})


@pytest.fixture
async def api() -> AsyncIterator[FakeSecrets]:
    api = FakeSecrets()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", api.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    api.client = ApiClient(Configuration(host=f"http://{host}:{port}"))
    yield api
    await disconnect(api.client)
    await runner.cleanup()


class Own:
    """Identities that only the namespaces `team` and `shop` may use."""

    def keychain(self, namespace: str) -> Keychain:
        if namespace in ("team", "shop"):
            return Keychain.of_identities({"registry.test": "cloud"})
        return Keychain()


OWN = Identity("cloud", "registry.test")


def named(*users: str) -> tuple[Candidate, ...]:
    return tuple(Credential(user, "pw") for user in users)


async def test_secrets_are_tried_in_the_order_of_the_pod_and_those_of_tagpin_last(
    api: FakeSecrets,
) -> None:
    api.store("shop/one", "ann", "*.test")
    api.store("shop/two", "bob", "*.test")

    pull_secrets = ClusterPullSecrets(api.client, own=Own())
    access = await pull_secrets.read("shop", ["two", "one"], "default")

    assert access.keychain.candidates(IMAGE) == (*named("bob", "ann"), OWN)
    assert access.remarks == ()


async def test_the_secrets_of_the_service_account_count_only_for_a_pod_without_any(
    api: FakeSecrets,
) -> None:
    api.store("shop/one", "ann")
    api.store("shop/two", "bob")
    api.accounts["shop/builder"] = ["two"]
    pull_secrets = ClusterPullSecrets(api.client)

    with_names = await pull_secrets.read("shop", ["one"], "builder")
    without = await pull_secrets.read("shop", [], "builder")

    assert with_names.keychain.candidates(IMAGE) == named("ann")
    assert without.keychain.candidates(IMAGE) == named("bob")


async def test_the_secrets_of_a_namespace_are_never_those_of_another(api: FakeSecrets) -> None:
    api.store("shop/regcred", "ann")
    api.accounts["shop/default"] = ["regcred"]
    pull_secrets = ClusterPullSecrets(api.client)
    assert (await pull_secrets.read("shop", ["regcred"], "default")).keychain.entries

    for names in (["regcred"], []):
        other = await pull_secrets.read("evil", names, "default")
        assert other.keychain.candidates(IMAGE) == ()
        assert other.remarks
    api.store("evil/regcred", "mallory")
    api.accounts["evil/default"] = []
    api.accounts["evil/other"] = ["regcred"]
    again = ClusterPullSecrets(api.client)
    for namespace, account, users in (
        ("shop", "default", ["ann"]),
        ("evil", "default", []),
        ("evil", "other", ["mallory"]),
        ("shop", "other", []),
    ):
        access = await again.read(namespace, [], account)
        assert access.keychain.candidates(IMAGE) == named(*users)


async def test_a_namespace_that_may_not_use_the_credentials_of_tagpin_gets_none(
    api: FakeSecrets,
) -> None:
    for namespace in ("shop", "evil"):
        api.store(f"{namespace}/regcred", "ann")
    pull_secrets = ClusterPullSecrets(api.client, own=Own())

    for names in (["regcred"], ["missing"], []):
        allowed = await pull_secrets.read("shop", names, "default")
        other = await pull_secrets.read("evil", names, "default")
        assert OWN in allowed.keychain.candidates(IMAGE)
        assert OWN not in other.keychain.candidates(IMAGE)


async def test_bad_secrets_are_named_and_cost_no_other(api: FakeSecrets) -> None:
    api.store_data("shop/broken", encoded(CONFIG)[:-8])
    api.store("shop/good", "ann")

    access = await ClusterPullSecrets(api.client).read(
        "shop", ["missing", "broken", "good"], "default"
    )

    assert access.keychain.candidates(IMAGE) == named("ann")
    missing, broken = access.remarks
    assert "missing" in missing
    assert broken == "pull secret broken is of no use: the docker config is not valid JSON"


async def test_secrets_are_read_by_name_and_held_for_seconds(api: FakeSecrets) -> None:
    clock = FakeClock()
    api.store("shop/regcred", "ann")
    pull_secrets = ClusterPullSecrets(api.client, clock=clock)
    await pull_secrets.read("shop", ["regcred"], "default")
    api.store("shop/regcred", "bob")
    clock.advance(HELD - 1)
    held = await pull_secrets.read("shop", ["regcred"], "default")
    clock.advance(1)
    anew = await pull_secrets.read("shop", ["regcred"], "default")

    assert held.keychain.candidates(IMAGE) == named("ann")
    assert anew.keychain.candidates(IMAGE) == named("bob")
    assert api.asked == ["GET secrets shop/regcred"] * 2


BAD_SECRETS: dict[str, dict[str, Any]] = {
    "data of text": {"data": "s3cret"},
    "a number in the data": {"data": {".dockerconfigjson": 7}},
    "data without a value": {"data": {".dockerconfigjson": None}},
    "a type that is none": {"type": ["s3cret"], "data": {}},
}


@pytest.mark.parametrize("fields", BAD_SECRETS.values(), ids=BAD_SECRETS)
async def test_an_answer_that_is_no_secret_is_named_and_costs_no_other(
    fields: dict[str, Any], api: FakeSecrets
) -> None:
    api.secrets["shop/bad"] = fields
    api.store("shop/good", "ann")

    access = await ClusterPullSecrets(api.client).read("shop", ["bad", "good"], "default")

    assert access.keychain.candidates(IMAGE) == named("ann")
    assert access.remarks == ("cannot read pull secret bad: no Secret",)


@pytest.mark.parametrize("fields", [{}, {"data": None, "type": None}])
async def test_a_secret_without_data_holds_nothing(
    fields: dict[str, Any], api: FakeSecrets
) -> None:
    api.secrets["shop/empty"] = fields

    access = await ClusterPullSecrets(api.client).read("shop", ["empty"], "default")

    assert access.remarks == ("pull secret empty holds no docker config",)


async def test_data_beyond_ascii_is_no_base64(api: FakeSecrets) -> None:
    api.store_data("shop/odd", "é")

    access = await ClusterPullSecrets(api.client).read("shop", ["odd"], "default")

    (remark,) = access.remarks
    assert remark.startswith("pull secret odd is of no use")


@pytest.mark.parametrize("secrets", [7, "text", [None], [7], [{"name": 7}], [["a"]]])
async def test_an_answer_that_is_no_service_account_is_named(
    secrets: Any, api: FakeSecrets
) -> None:
    api.account_fields["shop/default"] = {"imagePullSecrets": secrets}

    access = await ClusterPullSecrets(api.client).read("shop", [], "default")

    assert access.remarks == ("cannot read ServiceAccount default: no ServiceAccount",)


@pytest.mark.parametrize("secrets", [None, [], [{}], [{"name": ""}], [{"name": None}]])
async def test_a_service_account_may_name_no_secret(secrets: Any, api: FakeSecrets) -> None:
    api.account_fields["shop/default"] = {"imagePullSecrets": secrets}

    access = await ClusterPullSecrets(api.client).read("shop", [], "default")

    assert (access.keychain.entries, access.remarks) == ((), ())
