"""What goes on while a registry is away, and while we are."""

import json
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from cluster.controlplane import ControlPlane
from cluster.installation import SYSTEM, Install, Installation
from cluster.namespaces import Namespace, NewNamespace, Object, eventually, images, pod, record
from cluster.registries import Pushed, Registries, Store

MODES = ("audit", "pin", "enforce")
HOLD = "tagpin.test/hold"
FREE = json.dumps({"metadata": {"finalizers": None}})


@pytest.fixture(scope="module")
def installation(install: Install) -> Iterator[Installation]:
    """One that asks the registry again for nearly every image."""
    with install(freshness="10ms") as running:
        yield running


@pytest.fixture
def store(installation: Installation, registries: Registries) -> Iterator[Store]:
    """A registry that is there for now."""
    store = registries.lost
    store.registry.start()
    yield store
    store.registry.stop()


class TestARegistryThatIsAway:
    @pytest.mark.parametrize("mode", ["pin", "enforce"])
    def test_the_last_known_digest_is_used_and_told_of(
        self, installation: Installation, new_namespace: NewNamespace, store: Store, mode: str
    ) -> None:
        namespace = new_namespace(mode)
        app = store.push(f"outage/{mode}:1")
        namespace.create(pod("before", {"app": app.text}))
        resolved_at = record(namespace.pod("before"))["app"]["resolvedAt"]
        store.registry.stop()
        before = installation.counts()

        answer = namespace.create(pod("during", {"app": app.text}))

        stored = namespace.pod("during")
        assert images(stored) == {"app": app.pinned}
        assert record(stored) == {
            "app": {
                "image": app.text,
                "digest": app.digest,
                "source": "stale",
                "resolvedAt": resolved_at,
            }
        }
        (warning,) = answer.warnings
        assert warning == (
            f'container "app": the registry of {app.text} is down: the digest known since '
            f"{resolved_at} is used"
        )
        assert namespace.events("Pod", "during") == [warning]
        said = json.loads(namespace.audit("during")[f"{mode}.tagpin.dev/pins"])
        assert said == record(stored)
        counted = installation.counts() - before
        assert counted[f'tagpin_images_pinned_total{{mode="{mode}",source="stale"}}'] == 1

    def test_a_registry_that_is_back_is_asked_again(
        self, new_namespace: NewNamespace, store: Store
    ) -> None:
        namespace = new_namespace("enforce")
        app = store.push("outage/back:1")
        namespace.create(pod("before", {"app": app.text}))
        store.registry.stop()
        namespace.create(pod("during", {"app": app.text}))
        assert record(namespace.pod("during"))["app"]["source"] == "stale"
        store.registry.start()
        moved = store.push("outage/back:1", "moved")

        def digest_of_today() -> str:
            flags = ("--dry-run=server", "-o", "json")
            answer = namespace.create(pod("after", {"app": app.text}), flags=flags)
            return str(record(json.loads(answer.output))["app"]["digest"])

        eventually(digest_of_today, lambda digest: digest == moved.digest, seconds=10)

    def test_a_tag_that_was_deleted_is_not_taken_from_memory(
        self, new_namespace: NewNamespace, registries: Registries, installation: Installation
    ) -> None:
        namespace = new_namespace("enforce")
        app = registries.public.push("outage/deleted:1")
        namespace.create(pod("before", {"app": app.text}))
        registries.public.pusher.delete("outage/deleted", app.digest)
        answer = namespace.create(pod("after", {"app": app.text}), check=False)
        assert "does not exist (not_found)" in answer.error


def test_after_a_restart_pods_are_pinned_by_the_same_authority(
    installation: Installation,
    control_plane: ControlPlane,
    new_namespace: NewNamespace,
    registries: Registries,
) -> None:
    namespace = new_namespace("enforce")
    app = registries.public.push("outage/restart:1")
    trusted = authorities(control_plane)

    installation.stop()
    installation.start()

    assert authorities(control_plane) == trusted
    namespace.create(pod("web", {"app": app.text}))
    assert images(namespace.pod("web")) == {"app": app.pinned}


def authorities(control_plane: ControlPlane) -> set[str]:
    """What the API server trusts us by, and what our Secret says."""
    answer = control_plane.kubectl("get", "mutatingwebhookconfiguration", "tagpin", "-o", "json")
    secret = control_plane.kubectl("get", "secret", "tagpin-tls", "-n", SYSTEM, "-o", "json")
    return {
        *(each["clientConfig"]["caBundle"] for each in json.loads(answer.stdout)["webhooks"]),
        json.loads(secret.stdout)["data"]["ca.crt"],
    }


class Outage(NamedTuple):
    """We are away, and what was there before."""

    namespaces: dict[str, Namespace]
    """One for each mode, with a running pod `old`."""
    app: Pushed


def job(name: str, image: str) -> Object:
    """A Job whose pod is not scheduled until its gate is taken away."""
    written = pod("", {"app": image}, restartPolicy="Never", schedulingGates=[{"name": HOLD}])
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"template": {"spec": written["spec"]}},
    }


@pytest.fixture(scope="module")
def outage(
    installation: Installation, new_namespace: NewNamespace, registries: Registries
) -> Outage:
    """It lasts to the end of this file."""
    app = registries.public.push("outage/app:1")
    namespaces = {mode: new_namespace(mode) for mode in MODES}
    for namespace in namespaces.values():
        namespace.create(*(pod(name, {"app": app.text}) for name in ("old", "last")))
    held = pod("held", {"app": app.text})
    held["metadata"]["finalizers"] = [HOLD]
    namespaces["enforce"].create(job("once", app.text), held)
    eventually(lambda: namespaces["enforce"].pods("job-name=once"), bool)
    installation.stop()
    return Outage(namespaces, app)


class TestWhileWeAreAway:
    @pytest.mark.parametrize("mode", ["audit", "pin"])
    def test_pods_enter_as_written(self, outage: Outage, mode: str) -> None:
        namespace = outage.namespaces[mode]
        namespace.create(pod("web", {"app": outage.app.text}))
        assert images(namespace.pod("web")) == {"app": outage.app.text}
        assert record(namespace.pod("web")) is None

    def test_pods_are_refused_in_enforce(self, outage: Outage) -> None:
        namespace = outage.namespaces["enforce"]
        answer = namespace.create(pod("web", {"app": outage.app.text}), check=False)
        assert 'failed calling webhook "enforce.tagpin.dev"' in answer.error
        assert namespace.pod("web") == {}

    @pytest.mark.parametrize("mode", MODES)
    def test_running_pods_can_be_labelled_and_deleted(self, outage: Outage, mode: str) -> None:
        namespace = outage.namespaces[mode]
        namespace.kubectl("label", "pod/old", "team=shop")
        namespace.kubectl("delete", "pod/old", "--timeout=30s")

    def test_a_job_in_enforce_finishes_and_its_pod_can_be_deleted(self, outage: Outage) -> None:
        namespace = outage.namespaces["enforce"]
        (waiting,) = namespace.pods("job-name=once")
        assert images(waiting) == {"app": outage.app.pinned}
        assert waiting["metadata"]["finalizers"] == ["batch.kubernetes.io/job-tracking"]
        name = waiting["metadata"]["name"]

        namespace.kubectl("patch", "pod", name, "-p", '{"spec":{"schedulingGates":null}}')

        namespace.kubectl("wait", "job/once", "--for=condition=complete", "--timeout=60s")
        assert "finalizers" not in namespace.pod(name)["metadata"]
        namespace.kubectl("delete", "pod", name, "--timeout=30s")

    def test_a_finalizer_can_be_taken_from_a_pod_in_enforce_that_is_being_deleted(
        self, outage: Outage
    ) -> None:
        namespace = outage.namespaces["enforce"]
        namespace.kubectl("delete", "pod/held", "--wait=false")
        assert "deletionTimestamp" in namespace.pod("held")["metadata"]
        namespace.kubectl("patch", "pod/held", "-p", FREE)
        namespace.kubectl("wait", "pod/held", "--for=delete", "--timeout=30s")

    def test_namespaces_of_all_modes_go_away_with_their_pods(
        self, outage: Outage, control_plane: ControlPlane
    ) -> None:
        """The last of the tests that use them."""
        assert all(namespace.pod("last") for namespace in outage.namespaces.values())
        names = [namespace.name for namespace in outage.namespaces.values()]
        control_plane.kubectl("delete", "namespace", *names, "--timeout=60s")
