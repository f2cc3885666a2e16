"""What goes on while a registry is away, and while we are."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest

from cluster.controlplane import ControlPlane
from cluster.images import digest
from cluster.installation import SYSTEM, Install, Installation
from cluster.namespaces import (
    Namespace,
    NewNamespace,
    Object,
    admission_review,
    controller_reference,
    cron_job,
    deployment,
    eventually,
    images,
    patched,
    pod,
    record,
    replica_set,
)
from cluster.registries import Pushed, Registries, Store

MODES = ("audit", "pin", "enforce")
HOLD = "tagpin.test/hold"
FREE = json.dumps({"metadata": {"finalizers": None}})
LONGEST = timedelta(hours=1)
"""What the setting staleIfError is if nobody sets it."""
MARGIN = timedelta(minutes=2)


@pytest.fixture(scope="module")
def installation(install: Install) -> Iterator[Installation]:
    """One that asks the registry again for nearly every image."""
    with install(freshness="10ms") as running:
        yield running


@pytest.fixture
def store(installation: Installation, registries: Registries) -> Iterator[Store]:
    """A registry that is there for now."""
    with there_for_now(registries.lost) as store:
        yield store


@contextmanager
def there_for_now(store: Store) -> Iterator[Store]:
    """A registry runs for as long as a context lasts, unless it is stopped earlier."""
    store.registry.start()
    try:
        yield store
    finally:
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


class Forgotten(NamedTuple):
    """The registry has gone, and then we were started anew: only the records know a digest."""

    namespace: Namespace
    """With the Deployments `known` and `web`, and the CronJob `nightly`, that have run."""
    app: Pushed


@pytest.fixture(scope="class")
def forgotten(
    installation: Installation, new_namespace: NewNamespace, registries: Registries
) -> Forgotten:
    """The registry stays away."""
    namespace, store = new_namespace("enforce"), registries.lost
    with there_for_now(store):
        app = store.push("outage/revisions:1")
        of_app = {"app": app.text}
        namespace.create(
            deployment("known", of_app), deployment("web", of_app), cron_job("nightly", of_app)
        )
        namespace.kubectl("create", "job", "nightly-1", "--from=cronjob/nightly")
        namespace.wait_for_rollout("deployment/known")
        namespace.wait_for_rollout("deployment/web")
        eventually(lambda: namespace.pods("job-name=nightly-1"), bool)
        assert questions(installation)
    installation.stop()
    installation.start()
    return Forgotten(namespace, app)


class TestRevisionsOfARegistryThatIsAway:
    def test_one_that_is_recorded_asks_nobody(
        self, forgotten: Forgotten, installation: Installation
    ) -> None:
        namespace, app = forgotten
        before = questions(installation)

        namespace.kubectl("scale", "deployment/known", "--replicas=5")
        namespace.wait_for_rollout("deployment/known")

        pods = namespace.pods("app=known")
        assert [images(each) for each in pods] == [{"app": app.pinned}] * 5
        sources = sorted(record(each)["app"]["source"] for each in pods)
        # The three of `forgotten` may have come at once: then one of them asked for all.
        assert sources in ([*["ledger"] * 4, "registry"], ["cache", *["ledger"] * 4])
        assert questions(installation) == before
        assert not namespace.has_events("known")

    def test_a_new_one_takes_the_last_digest_of_its_workload_and_makes_it_no_younger(
        self, forgotten: Forgotten
    ) -> None:
        namespace, app = forgotten
        (first,) = recorded(namespace, "web")
        assert first["source"] in ("registry", "cache")
        stale = {**first, "source": "stale"}
        for number in (1, 2):
            web = deployment("web", {"app": app.text})
            web["spec"]["template"]["metadata"]["annotations"] = {"restarted": f"{number}"}
            namespace.apply(web)
            namespace.wait_for_rollout("deployment/web")
            assert recorded(namespace, "web") == [first, *[stale] * number]
        assert {images(each)["app"] for each in namespace.pods("app=web")} == {app.pinned}
        (told,) = namespace.events("Deployment", "web")
        assert told == (
            f'container "app": the registry of {app.text} is down: the digest known since '
            f"{first['resolvedAt']} is used"
        )

    def test_so_does_the_next_job_of_a_cron_job(self, forgotten: Forgotten) -> None:
        namespace, app = forgotten
        (first,) = recorded(namespace, "nightly")

        namespace.kubectl("create", "job", "nightly-2", "--from=cronjob/nightly")

        (made,) = eventually(lambda: namespace.pods("job-name=nightly-2"), bool)
        assert images(made) == {"app": app.pinned}
        assert record(made)["app"]["source"] == "stale"
        assert recorded(namespace, "nightly") == [first, {**first, "source": "stale"}]
        (told,) = namespace.events("CronJob", "nightly")
        assert f"the digest known since {first['resolvedAt']} is used" in told

    def test_the_records_of_other_workloads_do_not_serve(self, forgotten: Forgotten) -> None:
        namespace, app = forgotten
        registry = app.text.partition("/")[0]
        namespace.create(deployment("another", {"app": app.text}))
        (told,) = namespace.events("Deployment", "another")
        assert told == (
            f'1 image cannot be pinned: container "app": {registry} is unreachable, '
            f"so {app.text} has no digest now (unreachable)"
        )
        assert recorded(namespace, "another") == []
        assert namespace.pods("app=another") == []
        namespace.kubectl("delete", "deployment/another")

    @pytest.mark.parametrize("source", ["registry", "stale"])
    def test_a_digest_that_is_nearly_too_old_serves(
        self, new_namespace: NewNamespace, registries: Registries, source: str
    ) -> None:
        namespace = new_namespace("enforce")
        known = old_revision(namespace, registries.lost, source, LONGEST - MARGIN)
        namespace.kubectl("scale", "deployment/web", "--replicas=1")
        namespace.wait_for_rollout("deployment/web")
        (made,) = namespace.pods("app=web")
        assert images(made) == {"app": f"{known['reference']}@{known['digest']}"}
        assert recorded(namespace, "web") == [known, {**known, "source": "stale"}]

    @pytest.mark.parametrize("source", ["registry", "stale"])
    def test_for_one_that_is_too_old_the_mode_decides(
        self, new_namespace: NewNamespace, registries: Registries, source: str
    ) -> None:
        """However young the record is that says it."""
        strict, lenient = new_namespace("enforce"), new_namespace("pin")
        for namespace in (strict, lenient):
            known = old_revision(namespace, registries.lost, source, LONGEST + MARGIN)
            namespace.kubectl("scale", "deployment/web", "--replicas=1")
            (told,) = namespace.events("Deployment", "web")
            assert "(unreachable)" in told
            assert recorded(namespace, "web") == [known]
        assert strict.pods("app=web") == []
        (made,) = eventually(lambda: lenient.pods("app=web"), bool)
        assert images(made) == {"app": known["reference"]}
        strict.kubectl("delete", "deployment/web")


def questions(installation: Installation) -> int:
    """How many requests to registries a process has made, answered or not."""
    _, text = installation.get("/metrics")
    lines = text.splitlines()
    series = [line for line in lines if line.startswith("tagpin_registry_requests_total{")]
    return int(sum(float(line.rpartition(" ")[2]) for line in series))


def recorded(namespace: Namespace, workload: str) -> list[Object]:
    """What the records of a workload with one image say of it, the oldest record first."""
    found = [
        each for each in namespace.image_pins() if each["spec"]["workload"]["name"] == workload
    ]
    found.sort(key=lambda each: int(each["metadata"]["resourceVersion"]))
    return [image for each in found for image in each["spec"]["images"]]


def old_revision(namespace: Namespace, store: Store, source: str, age: timedelta) -> Object:
    """A Deployment `web` without pods, and what an old revision of it ran."""
    resolved_at = datetime.now(UTC) - age
    known = {
        "reference": f"{store.host}/outage/{namespace.name}:1",
        "digest": digest(b"old"),
        "source": source,
        "resolvedAt": resolved_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    namespace.create(deployment("web", {"app": known["reference"]}, replicas=0))
    web = namespace.get("deployments/web", "apis/apps/v1")
    owner = controller_reference(web)
    namespace.create(
        {
            "apiVersion": "tagpin.dev/v1alpha1",
            "kind": "ImagePin",
            "metadata": {"name": "web-old"},
            "spec": {
                "workload": {key: owner[key] for key in ("apiVersion", "kind", "name", "uid")},
                "revision": {"kind": "ReplicaSet", "name": "web-old", "hash": "old"},
                "images": [known],
            },
        }
    )
    return known


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


def test_no_digest_serves_longer_than_the_setting_allows(
    install: Install, new_namespace: NewNamespace, registries: Registries
) -> None:
    """With an installation of its own, so it is the last of this file."""
    namespace = new_namespace("enforce")
    with install(freshness="10ms", staleIfError="3s") as running:
        (replica,) = running.replicas
        with there_for_now(registries.lost) as store:
            app = store.push("outage/short:1")
            namespace.create(deployment("web", {"app": app.text}))
            namespace.wait_for_rollout("deployment/web")
        first = recorded(namespace, "web")
        review = admission_review(namespace.name, next_pod(namespace, "web", app), dry_run=True)

        refused = eventually(
            lambda: replica.review("/enforce", review)["response"],
            lambda response: not response["allowed"],
        )

        assert "(unreachable)" in refused["status"]["message"]
        left = patched(review["request"]["object"], replica.review("/pin", review))
        assert images(left) == {"app": app.text}
        assert record(left) == {"app": {"image": app.text, "reason": "unreachable"}}
        assert recorded(namespace, "web") == first


def next_pod(namespace: Namespace, name: str, app: Pushed) -> Object:
    """The first pod of another revision of a Deployment, as its controller writes it."""
    # Both, or the Deployment's controller would disown it.
    labels = {"app": name, "pod-template-hash": "next"}
    web = namespace.get(f"deployments/{name}", "apis/apps/v1")
    namespace.create(
        replica_set(f"{name}-next", {"app": app.text}, labels=labels, owner=web, replicas=0)
    )
    owner = namespace.get(f"replicasets/{name}-next", "apis/apps/v1")
    written = pod("", {"app": app.text}, labels=labels)
    written["metadata"]["ownerReferences"] = [controller_reference(owner)]
    return written
