"""What is read out of a pod, however the pod is shaped."""

import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagpin import workload
from tagpin.revision import HASH_LABELS
from tagpin.workload import Image, Owner

OWNER = Owner("apps/v1", "ReplicaSet", "web-5d4f", "uid-1")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
containers = json_values | st.lists(
    json_values | st.fixed_dictionaries({}, optional={"name": json_values, "image": json_values}),
    max_size=3,
)
volumes = json_values | st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "name": json_values,
            "image": json_values | st.fixed_dictionaries({}, optional={"reference": json_values}),
        },
    ),
    max_size=2,
)
specs = json_values | st.fixed_dictionaries(
    {},
    optional={
        "containers": containers,
        "initContainers": containers,
        "ephemeralContainers": containers,
        "volumes": volumes,
        "imagePullSecrets": containers,
        "serviceAccountName": json_values,
    },
)
owner_references = json_values | st.lists(
    json_values
    | st.fixed_dictionaries(
        {"controller": st.booleans() | json_values},
        optional=dict.fromkeys(("apiVersion", "kind", "name", "uid"), json_values),
    ),
    max_size=3,
)
metadata = json_values | st.fixed_dictionaries(
    {},
    optional={
        "name": json_values,
        "generateName": json_values,
        "annotations": json_values,
        "labels": json_values | st.dictionaries(st.sampled_from(HASH_LABELS), json_values),
        "ownerReferences": owner_references,
        "deletionTimestamp": json_values,
    },
)
pods = st.dictionaries(st.text(max_size=8), json_values) | st.fixed_dictionaries(
    {}, optional={"metadata": metadata, "spec": specs}
)


def pod_with(**spec: Any) -> dict[str, Any]:
    return {"spec": spec}


def owned_pod(owner: dict[str, Any], **labels: Any) -> dict[str, Any]:
    labels = {label.replace("_", "-"): value for label, value in labels.items()}
    return {"metadata": {"ownerReferences": [owner], "labels": labels}}


def owner_reference(kind: str = "ReplicaSet", api_version: str = "apps/v1") -> dict[str, Any]:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "name": "web-5d4f",
        "uid": "uid-1",
        "controller": True,
    }


def test_an_image_is_found_wherever_a_pod_can_have_one() -> None:
    pod = pod_with(
        containers=[{"name": "app", "image": "app:1"}, {"name": "log", "image": "log:1"}],
        initContainers=[
            {"name": "migrate", "image": "migrate:1"},
            {"name": "proxy", "image": "proxy:1", "restartPolicy": "Always"},
        ],
        ephemeralContainers=[{"name": "debugger", "image": "busybox"}],
        volumes=[
            {"name": "settings", "configMap": {"name": "settings"}},
            {"name": "models", "image": {"reference": "models:1", "pullPolicy": "Always"}},
        ],
    )

    assert workload.images(pod) == (
        Image("app", "app:1", "/spec/containers/0/image"),
        Image("log", "log:1", "/spec/containers/1/image"),
        Image("migrate", "migrate:1", "/spec/initContainers/0/image"),
        Image("proxy", "proxy:1", "/spec/initContainers/1/image"),
        Image("debugger", "busybox", "/spec/ephemeralContainers/0/image"),
        Image("volume/models", "models:1", "/spec/volumes/1/image/reference"),
    )


@pytest.mark.parametrize(
    "container",
    [
        {"name": "app"},
        {"name": "app", "image": ""},
        {"name": "app", "image": None},
        {"name": "app", "image": 5},
        {"name": "app", "image": ["nginx"]},
        {"name": "app", "image": {"reference": "nginx"}},
        None,
        "nginx",
        ["nginx"],
        {},
    ],
)
def test_an_absent_image_is_none_and_moves_no_other(container: Any) -> None:
    pod = pod_with(containers=[container, {"name": "log", "image": "log:1"}])

    assert workload.images(pod) == (Image("log", "log:1", "/spec/containers/1/image"),)


@pytest.mark.parametrize(
    "volume",
    [
        {"name": "models"},
        {"name": "models", "image": None},
        {"name": "models", "image": "models:1"},
        {"name": "models", "image": {}},
        {"name": "models", "image": {"reference": None}},
        {"name": "models", "image": {"reference": ""}},
        None,
        [],
    ],
)
def test_a_volume_without_an_image_is_none(volume: Any) -> None:
    assert workload.images(pod_with(volumes=[volume])) == ()


@pytest.mark.parametrize(
    "pod",
    [
        {},
        {"spec": None},
        {"spec": []},
        {"spec": "nginx"},
        {"spec": {"containers": None}},
        {"spec": {"containers": {"name": "app", "image": "app:1"}}},
        {"spec": {"volumes": "models"}},
    ],
)
def test_a_pod_without_lists_of_containers_has_no_images(pod: Any) -> None:
    assert workload.images(pod) == ()


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("app", 'container "app"'),
        ("volume/models", 'volume "models"'),
    ],
)
def test_a_place_is_called_as_its_author_knows_it(name: str, place: str) -> None:
    assert Image(name, "app:1", "/spec").place == place


def test_what_has_no_name_is_told_apart_by_its_position() -> None:
    pod = pod_with(
        containers=[{"image": "a"}, {"name": None, "image": "b"}],
        initContainers=[{"name": "", "image": "c"}],
        volumes=[{"image": {"reference": "d"}}],
    )

    names = [image.name for image in workload.images(pod)]

    assert names == ["containers/0", "containers/1", "initContainers/0", "volume/0"]


def test_only_images_that_differ_at_the_same_place_have_changed() -> None:
    old = pod_with(
        containers=[{"name": "app", "image": "app:1"}, {"name": "log", "image": "log:1"}],
        volumes=[{"name": "models", "image": {"reference": "models:1"}}],
    )
    new = pod_with(
        containers=[{"name": "app", "image": "app:2"}, {"name": "log", "image": "log:1"}],
        ephemeralContainers=[{"name": "debugger", "image": "log:1"}],
        volumes=[{"name": "models", "image": {"reference": "models:2"}}],
    )

    changed = [image.name for image in workload.changed_images(new, old)]

    assert changed == ["app", "debugger", "volume/models"]


def test_an_image_that_goes_away_has_not_changed() -> None:
    old = pod_with(containers=[{"name": "app", "image": "app:1"}])

    assert workload.changed_images(pod_with(containers=[{"name": "app"}]), old) == ()
    assert workload.changed_images({}, old) == ()


def test_an_image_that_comes_has_changed() -> None:
    new = pod_with(containers=[{"name": "app", "image": "app:1"}])

    for old in ({}, pod_with(containers=[{"name": "app", "image": ""}]), {"spec": None}):
        assert [image.name for image in workload.changed_images(new, old)] == ["app"]


@given(pods)
def test_a_pod_has_not_changed_from_itself(pod: Any) -> None:
    assert workload.changed_images(pod, pod) == ()


@pytest.mark.parametrize(
    ("secrets", "names"),
    [
        ([{"name": "b"}, {"name": "a"}], ("b", "a")),
        ([{"name": ""}, {"name": None}, {}, None, "a", {"name": 1}, {"name": "a"}], ("a",)),
        ([], ()),
        (None, ()),
        ({"name": "a"}, ()),
    ],
)
def test_pull_secrets_keep_their_order_and_what_is_none_is_passed_over(
    secrets: Any, names: tuple[str, ...]
) -> None:
    assert workload.pull_secret_names({"imagePullSecrets": secrets}) == names


def test_without_the_field_there_are_no_pull_secrets() -> None:
    assert workload.pull_secret_names({}) == ()


@pytest.mark.parametrize(
    ("spec", "account"),
    [
        ({"serviceAccountName": "builder"}, "builder"),
        ({"serviceAccountName": ""}, "default"),
        ({"serviceAccountName": None}, "default"),
        ({"serviceAccountName": ["builder"]}, "default"),
        ({}, "default"),
        (None, "default"),
    ],
)
def test_a_pod_runs_as_its_service_account_or_the_default_one(spec: Any, account: str) -> None:
    assert workload.service_account_name({"spec": spec}) == account


@pytest.mark.parametrize(
    "metadata",
    [None, [], {}, {"annotations": None, "labels": None}, {"annotations": [], "labels": "a"}],
)
def test_a_pod_without_metadata_has_neither_annotations_nor_labels(metadata: Any) -> None:
    pod = {"metadata": metadata}

    assert workload.annotations(pod) == {}
    assert workload.labels(pod) == {}
    assert workload.controller(pod) is None
    assert not workload.is_being_deleted(pod)


def test_the_controller_is_the_owner_that_says_so() -> None:
    helper = {**owner_reference(kind="Helper"), "controller": False}
    silent = {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u"}
    pod = {"metadata": {"ownerReferences": [None, helper, silent, owner_reference()]}}

    assert workload.controller(pod) == OWNER


@pytest.mark.parametrize("controller", [False, None, "true", 1, [True]])
def test_an_owner_that_is_no_controller_is_none(controller: Any) -> None:
    pod = {"metadata": {"ownerReferences": [{**owner_reference(), "controller": controller}]}}

    assert workload.controller(pod) is None


def test_what_an_owner_says_is_not_interned() -> None:
    """Some versions of Python never let go of that, and whoever creates pods makes it up."""
    owner = Owner.from_reference({"apiVersion": made_up("v"), "kind": made_up("k")})
    assert owner.api_version is not sys.intern(made_up("v"))
    assert owner.kind is not sys.intern(made_up("k"))


def test_what_many_owners_say_is_one_object() -> None:
    """Of two JSON texts: those share nothing."""
    first, second = (
        Owner.from_reference(json.loads('{"apiVersion": "apps/v1", "kind": "Deployment"}'))
        for _ in range(2)
    )
    assert first.api_version is second.api_version
    assert first.kind is second.kind


def made_up(beginning: str) -> str:
    """A text of which there is no other object."""
    return f"{beginning}-made-up"


def test_an_owner_of_wrong_types_is_read_as_empty_texts() -> None:
    pod = {"metadata": {"ownerReferences": [{"controller": True, "kind": 5, "name": None}]}}

    assert workload.controller(pod) == Owner("", "", "", "")


@pytest.mark.parametrize(
    ("annotated", "groups", "mirror"),
    [
        (True, ("system:authenticated", "system:nodes"), True),
        (True, ("system:authenticated",), False),
        (True, (), False),
        (False, ("system:nodes",), False),
    ],
)
def test_only_a_node_can_say_that_a_pod_is_a_mirror(
    annotated: bool, groups: tuple[str, ...], mirror: bool
) -> None:
    annotations = {workload.MIRROR_ANNOTATION: ""} if annotated else {}

    assert workload.is_mirror({"metadata": {"annotations": annotations}}, groups) is mirror


def test_a_pod_with_a_deletion_timestamp_is_being_deleted() -> None:
    pod = {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}

    assert workload.is_being_deleted(pod)
    assert not workload.is_being_deleted({"metadata": {"deletionTimestamp": None}})


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ({"name": "web-0", "generateName": "web-"}, "web-0"),
        ({"generateName": "web-"}, "web-"),
        ({"name": ""}, "(unnamed)"),
        (None, "(unnamed)"),
    ],
)
def test_a_pod_has_a_name_even_before_it_has_one(metadata: Any, name: str) -> None:
    assert workload.display_name({"metadata": metadata}) == name


@given(pods, pods)
def test_whatever_a_pod_holds_it_is_read_without_an_error(pod: Any, old: Any) -> None:
    images = workload.images(pod)
    workload.controller(pod)

    assert all(type(part) is str and part for i in images for part in (i.name, i.text, i.pointer))
    assert len({image.pointer for image in images}) == len(images)
    assert set(workload.changed_images(pod, old)) <= set(images)
    assert all(image.place for image in images)
    assert all(workload.pull_secret_names(workload.spec(pod)))
    assert workload.service_account_name(pod)
    assert workload.display_name(pod)
    assert isinstance(workload.is_mirror(pod, (workload.NODES_GROUP,)), bool)
    assert isinstance(workload.is_being_deleted(pod), bool)
