"""One replica prunes; when it ends, the other one does."""

import signal
from collections.abc import Iterator
from uuid import uuid4

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


def roll_out_four_times(shop: Namespace) -> None:
    for _ in range(4):
        shop.kubectl("set", "env", "deployment/web", f"EDITION={uuid4()}")
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

    def is_pruned(left: set[str]) -> bool:
        """Down to the newest one, and the one in use, if that is another of the same second."""
        return len(left) <= 2 and replica_sets(shop) <= left

    shop.create(deployment("web", {"app": image.text}, revisionHistoryLimit=0))
    roll_out_four_times(shop)
    eventually(lambda: revisions(shop), is_pruned)

    led[0].signal(signal.SIGKILL)
    led[0].stop()
    roll_out_four_times(shop)

    eventually(lambda: leads(other), bool)
    eventually(lambda: revisions(shop), is_pruned)
