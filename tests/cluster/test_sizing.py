"""What pods cost: the figures of docs/performance.md that are not another test's."""

import re
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from cluster.controlplane import ControlPlane
from cluster.installation import SERVICE_ACCOUNT, Install, Installation
from cluster.namespaces import Namespace, NewNamespace, deployment, eventually
from cluster.registries import Registries
from conftest import Figure

PODS = 150
REVISIONS = 20
NOBODYS = {"nodeSelector": {"nobody": "has-this"}}
"""Pods that stay pending cost the control plane less."""


@pytest.fixture(scope="module")
def installation(install: Install) -> Iterator[Installation]:
    with install(logLevel="info") as running:
        yield running


def test_pods_of_one_revision_cost_little_more_than_without_tagpin(
    installation: Installation,
    control_plane: ControlPlane,
    new_namespace: NewNamespace,
    registries: Registries,
    figure: Figure,
) -> None:
    app = registries.public.push("sizing/pods:1")
    plain, ours = new_namespace(), new_namespace("enforce")
    mark = control_plane.audit_mark()

    without, with_tagpin = (seconds_to_create(each, app.text) for each in (plain, ours))

    requests = [
        each
        for each in control_plane.requests_of(SERVICE_ACCOUNT, since=mark)
        if each.namespace == ours.name
    ]
    asked = registries.public.questions("sizing/pods")
    figure(f"{PODS} pods of one revision, questions to the registry", len(asked))
    figure(f"{PODS} pods of one revision, requests to the API server", len(requests))
    figure(
        "pods created a second, without tagpin and in enforce",
        f"{PODS / without:.0f} and {PODS / with_tagpin:.0f}",
    )
    assert len(asked) == 1
    assert len(requests) <= 10


def test_a_revision_costs_a_question_and_a_handful_of_requests(
    installation: Installation,
    control_plane: ControlPlane,
    new_namespace: NewNamespace,
    registries: Registries,
    figure: Figure,
) -> None:
    namespace = new_namespace("enforce")
    app = registries.public.push("sizing/revisions:1")
    mark, before = control_plane.audit_mark(), memory(installation)

    many = [deployment(f"web-{n}", {"app": app.text}, pod_spec=NOBODYS) for n in range(REVISIONS)]
    namespace.create(*many)
    eventually(lambda: len(namespace.image_pins()), lambda count: count == REVISIONS, seconds=60)

    requests = Counter(
        f"{each.verb} {each.resource}"
        for each in control_plane.requests_of(SERVICE_ACCOUNT, since=mark)
        if each.namespace == namespace.name
    )
    asked = len(registries.public.questions("sizing/revisions"))
    figure(f"{REVISIONS} new revisions of one image, questions to the registry", asked)
    figure(f"{REVISIONS} new revisions, requests to the API server", dict(requests))
    figure("resident memory of a replica after a start", f"{before // 2**20} MiB")
    assert 1 <= asked <= REVISIONS
    assert sum(requests.values()) <= 6 * REVISIONS
    namespace.kubectl("delete", "deployments", "--all", "--wait=false")


def seconds_to_create(namespace: Namespace, image: str) -> float:
    """How long the controllers need for a Deployment's pods."""
    began = time.monotonic()
    namespace.create(deployment("web", {"app": image}, replicas=PODS, pod_spec=NOBODYS))
    eventually(lambda: created(namespace), lambda count: count == PODS, seconds=100)
    taken = time.monotonic() - began
    namespace.kubectl("delete", "deployments,replicasets", "--all")
    namespace.kubectl("delete", "--raw", f"/api/v1/namespaces/{namespace.name}/pods")
    return taken


def created(namespace: Namespace) -> int:
    """How many pods its ReplicaSet has."""
    found = namespace.find("replicasets", "apis/apps/v1")
    return sum(each.get("status", {}).get("replicas", 0) for each in found)


def memory(installation: Installation) -> int:
    """Resident bytes of the first replica."""
    _, text = installation.get("/metrics")
    match = re.search(r"^process_resident_memory_bytes (\S+)$", text, re.MULTILINE)
    assert match
    return int(float(match[1]))
