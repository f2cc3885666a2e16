"""Revisions of a kind that is opted in, as docs/configuration.md says how to."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from cluster.controlplane import ControlPlane
from cluster.namespaces import Namespace, Object, controller_reference, pod
from cluster.registries import Registries
from cluster.revisions.pages import OPTED_IN, RIGHTS
from cluster.revisions.workloads import (
    Tag,
    annotations,
    app,
    definition,
    digests,
    pin_of,
    source,
    uid,
)


@pytest.fixture
def kind(control_plane: ControlPlane) -> Iterator[dict[str, Any]]:
    """What the page says of the kind; the kind is there, and tagpin may read it."""
    (kind,) = yaml.safe_load(OPTED_IN)["workloadKinds"]
    control_plane.kubectl("create", "-f", "-", input=RIGHTS)
    with definition(control_plane, kind["apiVersion"], kind["kind"], kind["plural"]):
        yield kind
    control_plane.kubectl("delete", "-f", "-", input=RIGHTS)


def test_its_pods_have_revisions_if_its_own_controller_creates_them(
    control_plane: ControlPlane,
    kind: dict[str, Any],
    shop: Namespace,
    tag: Tag,
    registries: Registries,
) -> None:
    api_version, label = kind["apiVersion"], kind["hashLabel"]
    metadata = {"name": "web"}
    shop.create({"apiVersion": api_version, "kind": kind["kind"], "metadata": metadata})
    owner = shop.get(f"{kind['plural']}/web", f"apis/{api_version}")
    controller = control_plane.kubeconfig(kind["requesters"][0], ["system:masters"])

    def create(name: str, template_hash: str, **options: Any) -> Object:
        made = pod(name, {"app": tag.text}, labels={label: template_hash})
        made["metadata"]["ownerReferences"] = [controller_reference(owner)]
        shop.kubectl("create", "-f", "-", input=json.dumps(made), **options)
        return shop.pod(name)

    first = create("web-1", "web-5d4f8c", kubeconfig=controller)
    new = tag.move()
    with registries.public.away():
        second = create("web-2", "web-5d4f8c", kubeconfig=controller)
    updated = create("web-3", "web-77b9d4", kubeconfig=controller)
    forged = create("web-4", "web-5d4f8c")

    assert [app(each) for each in (first, second)] == [tag.old.pinned] * 2
    assert [source(each) for each in (first, second)] == ["registry", "ledger"]
    pin = pin_of(shop, first)
    assert digests(pin) == {tag.text: tag.old.digest}
    assert pin["spec"]["workload"] == {
        "apiVersion": api_version,
        "kind": kind["kind"],
        "name": "web",
        "uid": uid(owner),
    }
    assert digests(pin_of(shop, updated)) == {tag.text: new.digest}
    assert app(forged) == new.pinned
    assert "are not created by 'admin'" in annotations(forged)["tagpin.dev/unrecorded"]
