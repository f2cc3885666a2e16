"""Private registries: whose credentials are used, and for whom."""

import pytest

from cluster.namespaces import Namespace, NewNamespace, eventually, images, pod, record
from cluster.registries import PASSWORD, USER, WRONG_PASSWORD, Pushed, Registries

pytestmark = pytest.mark.usefixtures("installation")


@pytest.fixture(scope="module")
def app(registries: Registries) -> Pushed:
    return registries.private.push("secrets/app:1")


@pytest.fixture(scope="module")
def host(registries: Registries) -> str:
    return registries.private.host


@pytest.fixture(scope="module")
def shop(new_namespace: NewNamespace, host: str) -> Namespace:
    """A namespace with a pull secret that is right, and one that is wrong."""
    namespace = new_namespace("pin")
    namespace.create_pull_secret("right", host, USER, PASSWORD)
    namespace.create_pull_secret("wrong", host, USER, WRONG_PASSWORD)
    return namespace


def pull_secrets(*names: str) -> list[dict[str, str]]:
    return [{"name": name} for name in names]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["right"], id="one"),
        pytest.param(["wrong", "right"], id="the second of two"),
        pytest.param(["absent", "right"], id="one that exists, behind one that does not"),
    ],
)
def test_a_private_image_is_pinned_by_the_pods_own_secrets(
    shop: Namespace, app: Pushed, names: list[str]
) -> None:
    name = "-".join(["by", *names])
    answer = shop.create(pod(name, {"app": app.text}, imagePullSecrets=pull_secrets(*names)))
    assert answer.warnings == ()
    assert images(shop.pod(name)) == {"app": app.pinned}


def test_a_private_image_is_pinned_by_the_secrets_of_the_service_account(
    shop: Namespace, app: Pushed
) -> None:
    shop.create(
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "puller"},
            "imagePullSecrets": pull_secrets("right"),
        }
    )
    shop.create(pod("by-account", {"app": app.text}, serviceAccountName="puller"))
    assert images(shop.pod("by-account")) == {"app": app.pinned}


@pytest.mark.parametrize(
    ("name", "remark"),
    [
        ("absent", 'cannot read pull secret absent: secrets "absent" not found'),
        ("opaque", "pull secret opaque holds no docker config"),
    ],
)
def test_a_secret_that_is_of_no_use_is_named_beside_the_image(
    shop: Namespace, app: Pushed, name: str, remark: str
) -> None:
    if name == "opaque":
        shop.kubectl("create", "secret", "generic", "opaque", "--from-literal=key=value")
    answer = shop.create(pod(name, {"app": app.text}, imagePullSecrets=pull_secrets(name)))
    assert images(shop.pod(name)) == {"app": app.text}
    refused, remarked = answer.warnings
    assert "(unauthorized)" in refused
    assert remarked == remark


def test_a_secret_that_was_missing_is_used_once_it_is_there(
    shop: Namespace, app: Pushed, host: str
) -> None:
    late = pod("too-early", {"app": app.text}, imagePullSecrets=pull_secrets("late"))
    shop.create(late)
    assert images(shop.pod("too-early")) == {"app": app.text}

    shop.create_pull_secret("late", host, USER, PASSWORD)

    def pinned_by_then() -> bool:
        answer = shop.create(late, flags=("--dry-run=server", "-o", "name"), check=False)
        return answer.succeeded and not answer.warnings

    late["metadata"]["name"] = "in-time"
    eventually(pinned_by_then, bool, seconds=10)


@pytest.mark.parametrize("mode", ["pin", "enforce"])
def test_what_one_namespace_may_see_is_not_served_to_another(
    new_namespace: NewNamespace, registries: Registries, shop: Namespace, mode: str
) -> None:
    image = registries.private.push(f"secrets/of-{mode}:1")
    shop.create(pod(f"own-{mode}", {"app": image.text}, imagePullSecrets=pull_secrets("right")))
    assert images(shop.pod(f"own-{mode}")) == {"app": image.pinned}

    other = new_namespace(mode)
    answer = other.create(pod("curious", {"app": image.text}), check=False)

    assert answer.succeeded == (mode == "pin")
    assert image.digest not in answer.error
    assert not any(image.digest in warning for warning in answer.warnings)
    if mode == "pin":
        assert images(other.pod("curious")) == {"app": image.text}
        assert record(other.pod("curious"))["app"]["reason"] == "unauthorized"
