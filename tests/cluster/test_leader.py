"""One replica prunes; when it ends, the other one does."""

import signal
from collections.abc import Iterator

import pytest

from cluster.installation import Install, Installation, Replica
from cluster.namespaces import Namespace, NewNamespace, deployment, eventually
from cluster.registries import Registries


@pytest.fixture
def installation(install: Install) -> Iterator[Installation]:
    """Two replicas that keep the newest record of a workload only, and those in use."""
    shortened = {
        "leaseDuration": "2s",
        "pruneInterval": "200ms",
        "pruneAge": "0s",
        "recordsPerWorkload": 1,
    }
    with install(replicas=2, **shortened) as running:
        yield running


def leads(replica: Replica) -> bool:
    _, text = replica.get("/metrics")
    return "\ntagpin_leader 1.0" in text


def roll_out(shop: Namespace, edition: str) -> None:
    shop.kubectl("set", "env", "deployment/web", f"EDITION={edition}")
    shop.wait_for_rollout("deployment/web")


def revisions(shop: Namespace) -> set[str]:
    return {each["spec"]["revision"]["name"] for each in shop.image_pins()}


def replica_sets(shop: Namespace) -> set[str]:
    return {each["metadata"]["name"] for each in shop.find("replicasets", "apis/apps/v1")}


def test_records_are_pruned_whichever_replica_is_killed(
    installation: Installation,
    new_namespace: NewNamespace,
    registries: Registries,
) -> None:
    shop = new_namespace("pin")
    image = registries.public.push("leader:1")
    led = eventually(lambda: [*filter(leads, installation.replicas)], bool)
    (other,) = {*installation.replicas} - {*led}
    shop.create(deployment("web", {"app": image.text}, revisionHistoryLimit=0))
    shop.wait_for_rollout("deployment/web")
    (first,) = revisions(shop)

    roll_out(shop, "second")

    (second,) = eventually(lambda: revisions(shop), lambda left: left == replica_sets(shop))
    assert second != first

    led[0].signal(signal.SIGKILL)
    led[0].stop()
    roll_out(shop, "third")

    eventually(lambda: leads(other), bool)
    (third,) = eventually(lambda: revisions(shop), lambda left: left == replica_sets(shop))
    assert third not in (first, second)
