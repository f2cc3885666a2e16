"""Pull secrets: what a Secret's data means, and which names are never asked for."""

import base64
import json

import pytest
from kubernetes.aio.client import ApiClient, Configuration

from tagpin import workload
from tagpin.cluster.api import disconnect
from tagpin.cluster.credentials import MAX_NAMES, ClusterPullSecrets, parse_secret
from tagpin.keychain import Credential
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
