"""Updates of pods: what nobody changed stays as it is, whatever has become of its tag."""

import json
from collections.abc import Iterator

import pytest

from cluster.installation import Install, Installation
from cluster.namespaces import Namespace, NewNamespace, Object, images, pod, record
from cluster.registries import Pushed, Registries


@pytest.fixture(scope="module")
def installation(install: Install) -> Iterator[Installation]:
    """One that asks the registry again for nearly every image."""
    with install(freshness="10ms") as running:
        yield running


@pytest.fixture
def repository(request: pytest.FixtureRequest) -> str:
    """A repository of the test's own."""
    name = request.node.originalname.removeprefix("test_").replace("_", "-")
    return f"updates/{name}"


@pytest.fixture
def shop(installation: Installation, new_namespace: NewNamespace) -> Namespace:
    return new_namespace("enforce")


class Pair:
    """The images `app:1` and `side:1` of one repository each, whose tags can be moved."""

    def __init__(self, registries: Registries, repository: str) -> None:
        self._store = registries.public
        self._repositories = {name: f"{repository}/{name}" for name in ("app", "side")}
        self.app, self.side = self.push("before")

    def push(self, content: str, tag: str = "1") -> tuple[Pushed, Pushed]:
        app, side = (
            self._store.push(f"{repository}:{tag}", content)
            for repository in self._repositories.values()
        )
        return app, side

    def questions(self) -> dict[str, list[str]]:
        """The tags that were asked for, by name."""
        return {name: self._store.questions(at) for name, at in self._repositories.items()}


@pytest.fixture
def pair(registries: Registries, repository: str) -> Pair:
    return Pair(registries, repository)


@pytest.fixture
def web(pair: Pair) -> Object:
    """The manifest of a pod that runs both."""
    return pod("web", {"app": pair.app.text, "side": pair.side.text})


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(["label", "pod/web", "team=shop"], id="a label"),
        pytest.param(["annotate", "pod/web", "note=well"], id="an annotation"),
        pytest.param(
            ["patch", "pod/web", "-p", '{"metadata":{"finalizers":["tagpin.test/hold"]}}'],
            id="a finalizer",
        ),
        pytest.param(
            ["patch", "pod/web", "-p", '{"spec":{"activeDeadlineSeconds":99}}'], id="spec"
        ),
    ],
)
def test_a_change_of_no_image_makes_no_call(
    installation: Installation,
    shop: Namespace,
    pair: Pair,
    web: Object,
    change: list[str],
) -> None:
    shop.create(web)
    written, counted = shop.pod("web"), installation.counts()

    shop.kubectl(*change)

    assert images(shop.pod("web")) == images(written)
    assert record(shop.pod("web")) == record(written)
    assert installation.counts() == counted
    shop.kubectl("patch", "pod/web", "-p", '{"metadata":{"finalizers":null}}')


def test_only_the_image_that_was_changed_is_resolved(
    shop: Namespace, pair: Pair, web: Object
) -> None:
    shop.create(web)
    before = record(shop.pod("web"))
    newer, _ = pair.push("newer", tag="2")
    _, moved = pair.push("moved")
    shop.create(pod("other", {"side": moved.text}))
    assert images(shop.pod("other")) == {"side": moved.pinned}
    asked = pair.questions()

    shop.kubectl("set", "image", "pod/web", f"app={newer.text}")

    assert images(shop.pod("web")) == {"app": newer.pinned, "side": pair.side.pinned}
    after = record(shop.pod("web"))
    assert (after["app"]["image"], after["app"]["digest"]) == (newer.text, newer.digest)
    assert after["side"] == before["side"]
    assert pair.questions() == {"app": [*asked["app"], "2"], "side": asked["side"]}
    said = json.loads(shop.audit("web", "patch")["enforce.tagpin.dev/pins"])
    assert said == {"app": after["app"]}


@pytest.mark.parametrize("how", [(), ("--server-side", "--force-conflicts")])
def test_applying_a_manifest_again_changes_nothing_though_its_tags_have_moved(
    shop: Namespace, pair: Pair, web: Object, how: tuple[str, ...]
) -> None:
    shop.apply(web, flags=how)
    before = shop.pod("web")
    moved, _ = pair.push("moved")
    asked = pair.questions()

    answer = shop.apply(web, flags=how)

    assert answer.warnings == ()
    after = shop.pod("web")
    assert images(after) == {"app": pair.app.pinned, "side": pair.side.pinned}
    assert moved.digest != pair.app.digest
    assert record(after) == record(before)
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert pair.questions() == asked


def test_applying_a_manifest_with_one_new_tag_restarts_no_other_container(
    shop: Namespace, pair: Pair, web: Object
) -> None:
    shop.apply(web)
    before = record(shop.pod("web"))
    newer, _ = pair.push("newer", tag="2")
    pair.push("moved")

    shop.apply(pod("web", {"app": newer.text, "side": pair.side.text}))

    assert images(shop.pod("web")) == {"app": newer.pinned, "side": pair.side.pinned}
    assert record(shop.pod("web"))["side"] == before["side"]
    assert pair.questions() == {"app": ["1", "2"], "side": ["1"]}


def test_a_tag_that_was_changed_by_hand_and_back_is_resolved_afresh(
    shop: Namespace, pair: Pair, web: Object
) -> None:
    shop.create(web)
    newer, _ = pair.push("newer", tag="2")
    shop.kubectl("set", "image", "pod/web", f"app={newer.text}")
    moved, _ = pair.push("moved")

    shop.kubectl("set", "image", "pod/web", f"app={pair.app.text}")

    assert images(shop.pod("web"))["app"] == f"{pair.app.text}@{moved.digest}"
    assert record(shop.pod("web"))["app"]["digest"] == moved.digest
    assert pair.questions()["app"] == ["1", "2", "1"]


def test_a_digest_that_was_set_by_hand_is_left_and_recorded_as_given(
    shop: Namespace, pair: Pair, web: Object
) -> None:
    shop.create(web)
    newer, _ = pair.push("newer", tag="2")
    asked = pair.questions()

    shop.kubectl("set", "image", "pod/web", f"app={newer.pinned}")

    assert images(shop.pod("web")) == {"app": newer.pinned, "side": pair.side.pinned}
    assert record(shop.pod("web"))["app"] == {
        "image": newer.pinned,
        "digest": newer.digest,
        "source": "given",
    }
    assert pair.questions() == asked


def test_two_images_that_change_places_are_resolved_afresh(
    shop: Namespace, pair: Pair, web: Object
) -> None:
    shop.create(web)
    moved_app, moved_side = pair.push("moved")
    exchange = (f"app={pair.side.text}", f"side={pair.app.text}")
    shop.kubectl("set", "image", "pod/web", *exchange)
    assert images(shop.pod("web")) == {"app": moved_side.pinned, "side": moved_app.pinned}


def test_a_bad_image_set_by_hand_is_refused_in_enforce_and_the_pod_stays(
    shop: Namespace, pair: Pair, web: Object
) -> None:
    shop.create(web)
    before = shop.pod("web")
    missing = pair.app.text.removesuffix(":1") + ":9"
    answer = shop.kubectl("set", "image", "pod/web", f"app={missing}", check=False)
    assert f'container "app": {missing} does not exist (not_found)' in answer.error
    assert images(shop.pod("web")) == images(before)
    assert record(shop.pod("web")) == record(before)


def test_a_bad_image_set_by_hand_enters_in_pin_and_the_others_keep_their_record(
    installation: Installation, new_namespace: NewNamespace, pair: Pair, web: Object
) -> None:
    shop = new_namespace("pin")
    shop.create(web)
    before = record(shop.pod("web"))
    missing = pair.app.text.removesuffix(":1") + ":9"
    answer = shop.kubectl("set", "image", "pod/web", f"app={missing}")
    assert "(not_found)" in answer.warnings[0]
    assert images(shop.pod("web")) == {"app": missing, "side": pair.side.pinned}
    assert record(shop.pod("web")) == {
        "app": {"image": missing, "reason": "not_found"},
        "side": before["side"],
    }


def test_an_ephemeral_container_gets_what_its_tag_names_today(
    shop: Namespace, pair: Pair, web: Object
) -> None:
    shop.create(web)
    moved, _ = pair.push("moved")
    debug = ("debug", "web", f"--image={pair.app.text}", "--container=twin", "--profile=general")
    shop.kubectl(*debug)
    stored = shop.pod("web")
    assert images(stored) == {
        "app": pair.app.pinned,
        "side": pair.side.pinned,
        "twin": moved.pinned,
    }
    said = json.loads(shop.audit("web", "patch", "ephemeralcontainers")["enforce.tagpin.dev/pins"])
    assert said["twin"]["digest"] == moved.digest
