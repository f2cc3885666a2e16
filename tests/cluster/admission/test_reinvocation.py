"""Containers that other webhooks add, after we have answered."""

import json

import pytest

from cluster.admission.injector import ANOTHER, CONTAINER, Injector
from cluster.controlplane import ControlPlane
from cluster.installation import Installation
from cluster.namespaces import NewNamespace, images, pod, record
from cluster.registries import Registries


@pytest.mark.parametrize("mode", ["pin", "enforce"])
def test_an_injected_container_is_pinned_and_the_first_answer_stands(
    installation: Installation,
    control_plane: ControlPlane,
    new_namespace: NewNamespace,
    registries: Registries,
    mode: str,
) -> None:
    namespace = new_namespace(mode)
    app = registries.public.push(f"reinvocation/{mode}:1")
    proxy = registries.public.push("reinvocation/proxy:1")
    with Injector(control_plane, namespace, proxy.text):
        before = installation.counts()
        namespace.create(pod("web", {"app": app.text}))
        counted = installation.counts() - before

    assert counted[f'tagpin_admissions_total{{mode="{mode}",result="pinned"}}'] == 2
    stored = namespace.pod("web")
    assert images(stored) == {"app": app.pinned, CONTAINER: proxy.pinned}
    said = namespace.audit("web")
    first = json.loads(said[f"{mode}.tagpin.dev/pins"])
    second = json.loads(said[f"{mode}.tagpin.dev/reinvoked-pins"])
    assert second == {"app": first["app"], CONTAINER: record(stored)[CONTAINER]}
    assert record(stored)["app"] == first["app"]
    assert record(stored)["app"]["source"] == "registry"
    assert record(stored)[CONTAINER]["digest"] == proxy.digest
    assert registries.public.questions(f"reinvocation/{mode}") == ["1"]


def test_an_injected_bad_image_is_refused_in_enforce(
    installation: Installation,
    control_plane: ControlPlane,
    new_namespace: NewNamespace,
    registries: Registries,
) -> None:
    namespace = new_namespace("enforce")
    app = registries.public.push("reinvocation/app:1")
    given = f"registry.test/proxy@sha256:{'1' * 64}"
    # The probes of the injector must enter, so its image must be good at first.
    with Injector(control_plane, namespace, given) as injector:
        injector.image = f"{registries.public.host}/reinvocation/proxy:9"
        answer = namespace.create(pod("web", {"app": app.text}), check=False)
    assert f'container "{CONTAINER}"' in answer.error
    assert "(not_found)" in answer.error
    assert namespace.pod("web") == {}


def test_what_is_injected_when_we_are_asked_no_more_is_refused_by_the_policy(
    installation: Installation,
    control_plane: ControlPlane,
    new_namespace: NewNamespace,
    registries: Registries,
) -> None:
    """The API server asks each webhook twice at most."""
    namespace = new_namespace("enforce")
    app = registries.public.push("reinvocation/last:1")
    proxy = registries.public.push("reinvocation/insisting:1")
    given = f"registry.test/proxy@sha256:{'1' * 64}"
    with Injector(control_plane, namespace, given, insists=True) as injector:
        injector.image = proxy.text
        answer = namespace.create(pod("web", {"app": app.text}), check=False)
    assert "tagpin-require-digest" in answer.error
    assert f'1 image has no digest: container "{ANOTHER}": {proxy.text}; ' in answer.error
    assert namespace.pod("web") == {}
