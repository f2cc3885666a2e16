"""The manifests applied, replaced and made again while pods are created in `enforce`."""

import json
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from cluster.controlplane import ControlPlane
from cluster.installation import SERVICE_ACCOUNT, SYSTEM, Install, Installation
from cluster.load import Load
from cluster.namespaces import Namespace, NewNamespace, eventually
from conftest import Figure

IMAGE = "registry.test/app@sha256:" + "1" * 64
CONFIGURATION = "mutatingwebhookconfiguration/tagpin"


@pytest.fixture(scope="module")
def installed(install: Install) -> Iterator[Installation]:
    with install(replicas=2) as running:
        yield running


@pytest.fixture(scope="module")
def shop(new_namespace: NewNamespace) -> Namespace:
    return new_namespace("enforce")


def bundles(configuration: dict[str, Any]) -> list[str]:
    return [each["clientConfig"].get("caBundle", "") for each in configuration["webhooks"]]


class Watched:
    """The webhook configuration from now on: every version of it, and every write."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self._control_plane = control_plane
        found = control_plane.kubectl("get", CONFIGURATION, "-ojson").stdout
        self._since = json.loads(found)["metadata"]["resourceVersion"]
        self._mark = control_plane.audit_mark()

    @property
    def versions(self) -> list[dict[str, Any]]:
        path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
        only = "fieldSelector=metadata.name=tagpin"
        query = f"watch=1&timeoutSeconds=1&resourceVersion={self._since}&{only}"
        _, body = self._control_plane.get(f"{path}?{query}")
        events = [json.loads(line) for line in body.splitlines()]
        return [each["object"] for each in events if each["type"] != "DELETED"]

    def milliseconds_until_repaired(self, verb: str) -> float:
        """From the admin's first such write to tagpin's first write after it."""
        writes = [
            (datetime.fromisoformat(event["stageTimestamp"]), event)
            for event in self._control_plane.audit_events(self._mark)
            if event.get("objectRef", {}).get("resource") == "mutatingwebhookconfigurations"
            and event["responseStatus"]["code"] < 300
        ]
        writes.sort(key=lambda each: each[0])
        broken = next(when for when, event in writes if event["verb"] == verb)
        repaired = next(
            when
            for when, event in writes
            if when > broken
            and event["verb"] == "patch"
            and event["user"]["username"] == SERVICE_ACCOUNT
        )
        return (repaired - broken).total_seconds() * 1000


def is_whole(control_plane: ControlPlane) -> bool:
    found = control_plane.kubectl("get", CONFIGURATION, "-ojson").stdout
    return all(bundles(json.loads(found)))


@pytest.mark.parametrize(
    "command",
    [("apply",), ("apply", "--server-side", "--force-conflicts")],
    ids=["client-side", "server-side"],
)
def test_apply_leaves_no_moment_without_a_ca_bundle(
    control_plane: ControlPlane,
    installed: Installation,
    shop: Namespace,
    command: tuple[str, ...],
) -> None:
    change = json.dumps([{"op": "replace", "path": "/webhooks/0/timeoutSeconds", "value": 7}])
    control_plane.kubectl("patch", CONFIGURATION, "--type=json", "-p", change)
    watched = Watched(control_plane)
    with Load(control_plane, shop.name, IMAGE, pause=0.02) as load:
        load.run_for(pods=10)
        installed.submit(*command)
        load.run_for(pods=10)
    versions = watched.versions
    assert versions[-1]["webhooks"][0]["timeoutSeconds"] == 5, "there was nothing to apply"
    assert all(all(bundles(each)) for each in versions)
    assert load.refused == []


def test_replace_leaves_a_gap_that_is_repaired_at_once(
    control_plane: ControlPlane, installed: Installation, shop: Namespace, figure: Figure
) -> None:
    """It empties the Secret as well, so another CA is issued."""
    watched = Watched(control_plane)
    with Load(control_plane, shop.name, IMAGE, pause=0.02) as load:
        load.run_for(pods=10)
        installed.submit("replace")
        eventually(lambda: is_whole(control_plane), bool)
        load.run_for(pods=10, seconds=1)
    gap = watched.milliseconds_until_repaired("update")
    figure(
        "kubectl replace: time without caBundle, and pods refused meanwhile",
        f"{gap:.0f} ms, {len(load.refused)} of {len(load.created)}",
    )
    assert not all(bundles(watched.versions[0])), "there was no gap"
    assert gap < 5000
    assert all("failed calling webhook" in each.message for each in load.refused)
    whole = [all(bundles(each)) for each in watched.versions]
    assert [before and not after for before, after in pairwise(whole)].count(True) == 0


def test_a_configuration_made_again_has_its_ca_bundle_at_once(
    control_plane: ControlPlane, installed: Installation, shop: Namespace, figure: Figure
) -> None:
    watched = Watched(control_plane)
    with Load(control_plane, shop.name, IMAGE, pause=0.02) as load:
        load.run_for(pods=10)
        control_plane.kubectl("delete", CONFIGURATION)
        installed.submit("apply")
        eventually(lambda: is_whole(control_plane), bool)
        load.run_for(pods=10, seconds=1)
    gap = watched.milliseconds_until_repaired("create")
    figure(
        "configuration deleted and created: time without caBundle, and pods refused meanwhile",
        f"{gap:.0f} ms, {len(load.refused)} of {len(load.created)}",
    )
    assert gap < 5000
    assert all("failed calling webhook" in each.message for each in load.refused)


def test_a_secret_deleted_while_it_runs_changes_nothing_for_pods(
    control_plane: ControlPlane, installed: Installation, shop: Namespace
) -> None:
    control_plane.kubectl("-n", SYSTEM, "delete", "secret", "tagpin-tls")
    with Load(control_plane, shop.name, IMAGE, pause=0.02) as load:
        load.run_for(pods=20)
    assert load.refused == []
    assert installed.get("/readyz")[0] == 200
    metrics = installed.get("/metrics")[1].splitlines()
    assert "tagpin_ca_bundle_is_current 1.0" in metrics
    installed.submit("apply")


def test_one_that_finds_no_certificate_lives_and_waits_for_it(
    control_plane: ControlPlane,
) -> None:
    with Installation(control_plane) as alone:
        (replica,) = alone.replicas
        replica.stop()
        control_plane.kubectl("delete", CONFIGURATION)
        control_plane.kubectl("-n", SYSTEM, "delete", "secret", "tagpin-tls")
        replica.launch()
        eventually(
            replica.log_text, lambda text: "Secret tagpin-system/tagpin-tls does not" in text
        )
        assert replica.get("/healthz") == (200, "ok\n")
        assert replica.get("/readyz") == (503, "no valid certificate yet\n")
        alone.apply()
        replica.wait_until_in_service()
