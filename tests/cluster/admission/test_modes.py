"""The table of modes: what becomes of an image that can, and of one that cannot be resolved."""

from collections.abc import Callable
from typing import NamedTuple

import pytest

from cluster.installation import Installation
from cluster.namespaces import (
    Answer,
    Namespace,
    NewNamespace,
    deployment,
    eventually,
    images,
    pod,
    record,
)
from cluster.registries import USER, WRONG_PASSWORD, Pushed, Registries


class Bad(NamedTuple):
    """An image that has no digest, and what is said about it."""

    image: Callable[[Registries], str]
    reason: str
    words: str


UPPER = "UPPER/Case:tag"
METADATA = "169.254.169.254/x:1"
BAD = {
    "missing": Bad(lambda all_: f"{all_.public.host}/modes:9", "not_found", "does not exist"),
    "lost": Bad(lambda all_: f"{all_.lost.host}/modes:1", "unreachable", "is unreachable"),
    "login": Bad(lambda all_: f"{all_.private.host}/modes:1", "unauthorized", "refuses access to"),
    "invalid": Bad(lambda _: UPPER, "invalid_reference", "invalid image reference"),
    "metadata": Bad(lambda _: METADATA, "blocked", "an address that is not allowed"),
    "loopback": Bad(
        lambda all_: f"{all_.unlisted.host}/modes:1", "blocked", "an address that is not allowed"
    ),
}
EVERY_BAD_IMAGE = pytest.mark.parametrize("case", BAD)


class Tried(NamedTuple):
    """A pod with a good and a bad image, and what came of creating it."""

    name: str
    good: Pushed
    bad: str
    bad_entry: dict[str, str]
    answer: Answer
    counted: dict[str, int]


Try = Callable[[Namespace, str], Tried]


@pytest.fixture(scope="module", autouse=True)
def images_behind_closed_doors(registries: Registries) -> None:
    """They exist, so that only what keeps tagpin from them can be the reason."""
    registries.private.push("modes:1")
    registries.unlisted.push("modes:1")


@pytest.fixture(scope="module")
def try_out(installation: Installation, registries: Registries) -> Try:
    """Creates a pod with a good image of its own, and with the bad image of a case."""

    def create(namespace: Namespace, case: str) -> Tried:
        good = registries.public.push(f"{namespace.name}/{case}:1")
        bad = BAD[case].image(registries)
        before = installation.counts()
        answer = namespace.create(
            pod(case, {"app": good.text, "bad": bad}, imagePullSecrets=[{"name": "wrong"}]),
            check=False,
        )
        counted = dict(installation.counts() - before)
        return Tried(case, good, bad, {"image": bad, "reason": BAD[case].reason}, answer, counted)

    return create


@pytest.fixture(scope="module")
def namespaces(new_namespace: NewNamespace, registries: Registries) -> dict[str, Namespace]:
    """One in each mode, with a pull secret that is of no use."""
    made = {mode: new_namespace(mode) for mode in ("audit", "pin", "enforce")}
    for namespace in made.values():
        namespace.create_pull_secret("wrong", registries.private.host, USER, WRONG_PASSWORD)
    return made


@pytest.fixture
def audit(namespaces: dict[str, Namespace]) -> Namespace:
    return namespaces["audit"]


@pytest.fixture
def pin(namespaces: dict[str, Namespace]) -> Namespace:
    return namespaces["pin"]


@pytest.fixture
def enforce(namespaces: dict[str, Namespace]) -> Namespace:
    return namespaces["enforce"]


def assert_pinned(entry: dict[str, str], image: Pushed) -> None:
    resolved_at = entry["resolvedAt"]
    assert resolved_at.endswith("Z")
    assert entry == {
        "image": image.text,
        "digest": image.digest,
        "source": "registry",
        "resolvedAt": resolved_at,
    }


def counts(mode: str, result: str, *, reason: str) -> dict[str, int]:
    """What one pod with one good and one bad image adds to the metrics."""
    return {
        f'tagpin_admissions_total{{mode="{mode}",result="{result}"}}': 1,
        f'tagpin_images_pinned_total{{mode="{mode}",source="registry"}}': 1,
        f'tagpin_images_unpinned_total{{mode="{mode}",reason="{reason}"}}': 1,
    }


class TestAudit:
    """Nothing is changed; everything is said."""

    @EVERY_BAD_IMAGE
    def test_a_pod_with_a_bad_image_enters_as_written_and_is_told_of_both(
        self, audit: Namespace, try_out: Try, case: str
    ) -> None:
        tried = try_out(audit, case)

        assert tried.answer.succeeded
        stored = audit.pod(tried.name)
        assert images(stored) == {"app": tried.good.text, "bad": tried.bad}
        assert_pinned(record(stored)["app"], tried.good)
        assert record(stored)["bad"] == tried.bad_entry
        about_bad, about_good = tried.answer.warnings
        assert about_bad.startswith('container "bad": ')
        assert BAD[case].words in about_bad
        assert about_bad.endswith(f"({BAD[case].reason}): it could not be pinned")
        assert about_good == (
            f'container "app": {tried.good.text} would be pinned to {tried.good.digest}'
        )
        assert audit.events("Pod", tried.name) == [about_bad]
        assert audit.audit(tried.name) == {
            "audit.tagpin.dev/mode": "audit",
            "audit.tagpin.dev/result": "audited",
            "audit.tagpin.dev/pins": stored["metadata"]["annotations"]["tagpin.dev/pins"],
        }
        assert tried.counted == counts("audit", "audited", reason=BAD[case].reason)


class TestPin:
    """What can be pinned is pinned; what cannot enters as written, and is told of."""

    @EVERY_BAD_IMAGE
    def test_a_bad_image_enters_as_written_and_the_others_are_pinned(
        self, pin: Namespace, try_out: Try, case: str
    ) -> None:
        tried = try_out(pin, case)

        assert tried.answer.succeeded
        stored = pin.pod(tried.name)
        assert images(stored) == {"app": tried.good.pinned, "bad": tried.bad}
        assert_pinned(record(stored)["app"], tried.good)
        assert record(stored)["bad"] == tried.bad_entry
        (warning,) = tried.answer.warnings
        assert warning.startswith('container "bad": ')
        assert BAD[case].words in warning
        assert warning.endswith(f"({BAD[case].reason}): it runs as written, unpinned")
        assert pin.events("Pod", tried.name) == [warning]
        assert pin.audit(tried.name) == {
            "pin.tagpin.dev/mode": "pin",
            "pin.tagpin.dev/result": "unpinned",
            "pin.tagpin.dev/pins": stored["metadata"]["annotations"]["tagpin.dev/pins"],
        }
        assert tried.counted == counts("pin", "unpinned", reason=BAD[case].reason)

    def test_a_deployment_with_a_bad_image_runs_and_has_an_event(
        self, pin: Namespace, registries: Registries
    ) -> None:
        bad = f"{registries.public.host}/modes:9"
        pin.create(deployment("web", {"app": bad}))
        pin.kubectl("rollout", "status", "deployment/web", "--timeout=60s")

        (event,) = pin.events("Deployment", "web")
        assert event == (
            f'container "app": {bad} does not exist (not_found): it runs as written, unpinned'
        )


class TestEnforce:
    """Only what is pinned enters."""

    @EVERY_BAD_IMAGE
    def test_a_pod_with_a_bad_image_is_refused(
        self, enforce: Namespace, try_out: Try, case: str
    ) -> None:
        tried = try_out(enforce, case)

        assert not tried.answer.succeeded
        assert enforce.pod(tried.name) == {}
        assert tried.answer.warnings == ()
        _, _, refusal = tried.answer.error.partition(
            'admission webhook "enforce.tagpin.dev" denied the request: '
        )
        assert refusal.startswith('1 image cannot be pinned: container "bad": ')
        assert BAD[case].words in refusal
        assert refusal.endswith(f"({BAD[case].reason})")
        assert enforce.events("Pod", tried.name) == [refusal]
        said = enforce.audit(tried.name)
        assert said["enforce.tagpin.dev/mode"] == "enforce"
        assert said["enforce.tagpin.dev/result"] == "refused"
        assert f'"reason":"{BAD[case].reason}"' in said["enforce.tagpin.dev/pins"]
        assert tried.counted == counts("enforce", "refused", reason=BAD[case].reason)

    def test_a_refusal_names_every_bad_image_and_its_reason(
        self, enforce: Namespace, registries: Registries
    ) -> None:
        good = registries.public.push("modes/good:1")
        written = {case: bad.image(registries) for case, bad in BAD.items()}
        answer = enforce.create(
            pod("all", {"app": good.text, **written}, imagePullSecrets=[{"name": "wrong"}]),
            check=False,
        )

        assert not answer.succeeded
        assert "6 images cannot be pinned: " in answer.error
        for case, bad in BAD.items():
            (about,) = [each for each in answer.error.split("; ") if f'container "{case}"' in each]
            assert written[case] in about
            assert bad.words in about
            assert about.endswith(f"({bad.reason})")
        assert 'container "app"' not in answer.error

    def test_the_deployment_of_a_refused_pod_has_an_event(
        self, enforce: Namespace, registries: Registries
    ) -> None:
        bad = f"{registries.public.host}/modes:9"
        enforce.create(deployment("web", {"app": bad}))

        def refused() -> bool:
            return any(
                condition["type"] == "ReplicaFailure" and "does not exist" in condition["message"]
                for replica_set in enforce.find("replicasets", "apis/apps/v1")
                for condition in replica_set.get("status", {}).get("conditions", [])
            )

        eventually(refused, bool)
        (event,) = enforce.events("Deployment", "web")
        assert event == (
            f'1 image cannot be pinned: container "app": {bad} does not exist (not_found)'
        )
        assert enforce.pods("app=web") == []
        # Its controller would go on trying, and be counted by other tests.
        enforce.kubectl("delete", "deployment/web", "--cascade=foreground")


@pytest.mark.parametrize(
    ("mode", "result", "is_pinned"),
    [("audit", "audited", False), ("pin", "pinned", True), ("enforce", "pinned", True)],
)
def test_a_pod_of_good_images_enters_every_mode(
    installation: Installation,
    new_namespace: NewNamespace,
    registries: Registries,
    *,
    mode: str,
    result: str,
    is_pinned: bool,
) -> None:
    namespace = new_namespace(mode)
    good = registries.public.push(f"modes/{mode}:1")
    before = installation.counts()

    answer = namespace.create(pod("good", {"app": good.text}))

    stored = namespace.pod("good")
    assert images(stored) == {"app": good.pinned if is_pinned else good.text}
    assert_pinned(record(stored)["app"], good)
    would = f'container "app": {good.text} would be pinned to {good.digest}'
    assert answer.warnings == (() if is_pinned else (would,))
    assert namespace.audit("good") == {
        f"{mode}.tagpin.dev/mode": mode,
        f"{mode}.tagpin.dev/result": result,
        f"{mode}.tagpin.dev/pins": stored["metadata"]["annotations"]["tagpin.dev/pins"],
    }
    assert installation.counts() - before == {
        f'tagpin_admissions_total{{mode="{mode}",result="{result}"}}': 1,
        f'tagpin_images_pinned_total{{mode="{mode}",source="registry"}}': 1,
    }
