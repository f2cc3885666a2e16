"""Records that a pod brings along: users write pods, so nothing of theirs is believed unchecked."""

import json

import pytest

from cluster.namespaces import PINS, NewNamespace, images, pod, record
from cluster.registries import Pushed, Registries

pytestmark = pytest.mark.usefixtures("installation")

LIE = f"sha256:{'0' * 64}"
SINCE = "2020-01-01T00:00:00Z"


def claim(image: str, digest: str, source: str = "registry") -> dict[str, str]:
    """A record that says that `image` was resolved to `digest`."""
    entry = {"image": image, "digest": digest, "source": source, "resolvedAt": SINCE}
    return {PINS: json.dumps({"app": entry})}


def ours(annotations: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in annotations.items() if key.startswith("tagpin.dev/")}


@pytest.fixture
def app(registries: Registries) -> Pushed:
    return registries.public.push("forgery/app:1")


@pytest.mark.parametrize("mode", ["audit", "pin", "enforce"])
def test_a_forged_record_is_overwritten_and_annotations_of_ours_are_removed(
    new_namespace: NewNamespace, app: Pushed, mode: str
) -> None:
    namespace = new_namespace(mode)
    others = {"tagpin.dev/revision": "web-1", "tagpin.dev/verified": "yes", "team": "shop"}

    namespace.create(
        pod("web", {"app": app.text}, annotations=claim(app.text, LIE, "ledger") | others)
    )

    stored = namespace.pod("web")
    assert images(stored)["app"] == (app.text if mode == "audit" else app.pinned)
    entry = record(stored)["app"]
    assert (entry["image"], entry["digest"]) == (app.text, app.digest)
    assert entry["source"] in ("registry", "cache")
    assert entry["resolvedAt"] > SINCE
    annotations = stored["metadata"]["annotations"]
    assert set(ours(annotations)) == {PINS}
    assert annotations["team"] == "shop"


@pytest.mark.parametrize(
    ("mode", "source"),
    [
        *(("pin", source) for source in ("registry", "cache", "ledger", "siblings", "stale")),
        ("audit", "registry"),
        ("enforce", "registry"),
    ],
)
def test_a_digest_that_a_forged_record_derives_from_a_tag_is_only_given(
    new_namespace: NewNamespace, app: Pushed, mode: str, source: str
) -> None:
    namespace = new_namespace(mode)
    image = f"{app.text}@{LIE}"
    namespace.create(pod("web", {"app": image}, annotations=claim(app.text, LIE, source)))
    assert images(namespace.pod("web")) == {"app": image}
    assert record(namespace.pod("web")) == {
        "app": {"image": image, "digest": LIE, "source": "given"}
    }


@pytest.mark.parametrize(
    "text",
    ["{}", "null", "[]", "no JSON", '{"app":{}}', '{"gone":{"image":"a","reason":"blocked"}}'],
)
def test_a_record_that_is_none_is_replaced(
    new_namespace: NewNamespace, app: Pushed, text: str
) -> None:
    namespace = new_namespace("pin")
    namespace.create(pod("web", {"app": app.pinned}, annotations={PINS: text}))
    assert record(namespace.pod("web")) == {
        "app": {"image": app.pinned, "digest": app.digest, "source": "given"}
    }


def test_a_copied_pod_keeps_what_the_registry_has_confirmed(
    new_namespace: NewNamespace, app: Pushed
) -> None:
    namespace = new_namespace("pin")
    namespace.create(pod("web", {"app": app.text}))
    original = namespace.pod("web")
    copy = pod("copy", images(original), annotations=ours(original["metadata"]["annotations"]))

    namespace.create(copy)

    assert images(namespace.pod("copy")) == {"app": app.pinned}
    entry = record(namespace.pod("copy"))["app"]
    assert (entry["image"], entry["digest"]) == (app.text, app.digest)
    assert entry["source"] in ("registry", "cache")


def test_an_update_with_a_forged_record_keeps_the_old_record_of_the_other_images(
    new_namespace: NewNamespace, registries: Registries, app: Pushed
) -> None:
    namespace = new_namespace("pin")
    side, newer = (registries.public.push(f"forgery/side:{tag}") for tag in (1, 2))
    namespace.create(pod("web", {"app": app.text, "side": side.text}))
    before = record(namespace.pod("web"))

    patch = {
        "metadata": {"annotations": claim(app.text, LIE) | {"tagpin.dev/revision": "web-1"}},
        "spec": {"containers": [{"name": "side", "image": newer.text}]},
    }
    namespace.kubectl("patch", "pod", "web", "-p", json.dumps(patch))

    stored = namespace.pod("web")
    assert images(stored) == {"app": app.pinned, "side": newer.pinned}
    after = record(stored)
    assert after["app"] == before["app"]
    assert (after["side"]["image"], after["side"]["digest"]) == (newer.text, newer.digest)
    assert set(ours(stored["metadata"]["annotations"])) == {PINS}


def test_an_image_is_not_put_back_to_a_digest_that_the_pod_never_ran(
    new_namespace: NewNamespace, registries: Registries, app: Pushed
) -> None:
    namespace = new_namespace("pin")
    newer = registries.public.push("forgery/app:2")
    namespace.create(pod("web", {"app": newer.text}))
    forged = json.dumps({"metadata": {"annotations": claim(app.text, LIE)}})
    namespace.kubectl("patch", "pod", "web", "-p", forged)

    namespace.kubectl("set", "image", "pod/web", f"app={app.text}")

    assert images(namespace.pod("web")) == {"app": app.pinned}
    assert record(namespace.pod("web"))["app"]["digest"] == app.digest
