"""What the pods of a revision run already, by their own word or the kubelet's."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagpin.reference import Digest, Reference
from tagpin.siblings import running_digests
from tagpin.workload import Image

A, B = (Digest.parse("sha256:" + letter * 64) for letter in "ab")
LONG = Digest.parse("sha512:" + "c" * 128)


def image_of(text: str, name: str = "app") -> Image:
    return Image(name, text, "/spec/containers/0/image")


def found(siblings: list[Any], text: str = "nginx:1.25", name: str = "app") -> set[Digest]:
    return set(running_digests(siblings, image_of(text, name), Reference.parse(text)))


def sibling(image: str, image_id: Any = "", name: str = "app") -> dict[str, Any]:
    """A pod of one container, and what the kubelet says it pulled."""
    status = {"containerStatuses": [{"name": name, "image": image, "imageID": image_id}]}
    return {"spec": {"containers": [{"name": name, "image": image}]}, "status": status}


def test_a_pinned_sibling_says_itself_what_it_runs() -> None:
    assert found([sibling(f"nginx:1.25@{A}")]) == {A}


def test_a_pinned_sibling_is_believed_before_its_kubelet() -> None:
    """The kubelet may report the digest of another name of the same image."""
    assert found([sibling(f"nginx:1.25@{A}", f"docker.io/library/nginx@{B}")]) == {A}


@pytest.mark.parametrize(
    ("text", "image_id", "digest"),
    [
        ("nginx:1.25", f"docker.io/library/nginx@{A}", A),
        ("nginx:1.25", f"docker-pullable://nginx@{A}", A),
        ("nginx:1.25", f"docker-pullable://docker.io/library/nginx@{A}", A),
        ("nginx:1.25", f"nginx@{A}", A),
        ("nginx:1.25", f"index.docker.io/library/nginx@{A}", A),
        ("nginx:1.25", f"docker.io/library/nginx:1.25@{A}", A),
        ("docker.io/library/nginx:1.25", f"nginx@{A}", A),
        ("nginx:1.25", f"docker.io/library/nginx@{LONG}", LONG),
        ("a.test:5000/team/app", f"a.test:5000/team/app@{A}", A),
        ("nginx:1.25", f"docker.io/library/redis@{A}", None),
        ("nginx:1.25", f"docker.io/other/nginx@{A}", None),
        ("nginx:1.25", f"a.test/library/nginx@{A}", None),
        ("a.test/nginx", f"a.test:5000/nginx@{A}", None),
        ("a.test/nginx", f"nginx@{A}", None),
        ("nginx:1.25", str(A), None),  # the image's own ID: no registry knows it
        ("nginx:1.25", f"docker://{A}", None),
        ("nginx:1.25", A.hex, None),
        ("nginx:1.25", "docker.io/library/nginx:1.25", None),
        ("nginx:1.25", "docker.io/library/nginx@sha256:abc", None),
        ("nginx:1.25", f"docker.io/library/nginx@sha1:{'a' * 40}", None),
        ("nginx:1.25", f"docker-pullable://docker-pullable://nginx@{A}", None),
        ("nginx:1.25", f"{A}@nginx", None),
        ("nginx:1.25", "", None),
        ("nginx:1.25", None, None),
        ("nginx:1.25", [f"nginx@{A}"], None),
    ],
)
def test_of_a_sibling_that_runs_a_tag_the_kubelet_says_what_it_pulled(
    text: str, image_id: Any, digest: Digest | None
) -> None:
    assert found([sibling(text, image_id)], text) == ({digest} if digest else set())


@pytest.mark.parametrize(
    "other",
    [
        "nginx:1.26",
        "nginx",
        "docker.io/library/nginx:1.25",  # the same image, and not what the template says
        f"nginx:1.26@{A}",
        f"nginx@{A}",
        f"docker.io/library/nginx:1.25@{A}",
        "redis:7",
    ],
)
def test_a_sibling_that_was_changed_by_hand_says_nothing(other: str) -> None:
    assert found([sibling(other, f"docker.io/library/nginx@{A}")]) == set()


@pytest.mark.parametrize("digest", ["", "sha256:abc", "latest", f"{A}@{B}", str(A).upper()])
def test_a_sibling_with_a_broken_digest_says_nothing(digest: str) -> None:
    """Not even by its kubelet: it is not the template's image."""
    assert found([sibling(f"nginx:1.25@{digest}", f"nginx@{A}")]) == set()


def test_siblings_that_agree_have_one_digest() -> None:
    siblings = [
        sibling(f"nginx:1.25@{A}"),
        sibling("nginx:1.25", f"docker.io/library/nginx@{A}"),
        sibling("nginx:1.25"),  # not pulled yet
        sibling("nginx:1.26", f"docker.io/library/nginx@{B}"),
    ]

    assert found(siblings) == {A}


def test_siblings_that_disagree_have_several() -> None:
    siblings = [sibling(f"nginx:1.25@{A}"), sibling("nginx:1.25", f"nginx@{B}")]

    assert found(siblings) == {A, B}


def test_nobody_runs_anything() -> None:
    assert found([]) == set()


def test_only_the_container_of_the_same_name_is_asked() -> None:
    """The same image may have been pulled twice, with a push in between."""
    both = {
        "spec": {
            "containers": [
                {"name": "app", "image": "nginx:1.25"},
                {"name": "web", "image": "nginx:1.25"},
                {"name": "log", "image": f"nginx:1.25@{LONG}"},
            ]
        },
        "status": {
            "containerStatuses": [
                {"name": "web", "imageID": f"nginx@{B}"},
                {"name": "app", "imageID": f"nginx@{A}"},
            ]
        },
    }

    assert found([both]) == {A}
    assert found([both], name="web") == {B}
    assert found([both], name="log") == {LONG}
    assert found([both], name="new") == set()


def test_a_status_that_says_nothing_does_not_hide_another() -> None:
    """While a container waits, its status has no image."""
    pod = sibling("nginx:1.25")
    pod["status"]["containerStatuses"] += [
        {"name": "app", "imageID": "no image"},
        {"name": "app", "imageID": f"redis@{B}"},
        {"name": "app", "imageID": f"nginx@{A}"},
    ]

    assert found([pod]) == {A}


def test_an_init_container_has_a_status_of_its_own() -> None:
    pod = {
        "spec": {"initContainers": [{"name": "app", "image": "nginx:1.25"}]},
        "status": {"initContainerStatuses": [{"name": "app", "imageID": f"nginx@{A}"}]},
    }

    assert found([pod]) == {A}


def test_of_a_volume_only_the_pod_itself_can_tell() -> None:
    """There is no status of volumes, and a container may be called the same."""

    def pod(reference: str) -> dict[str, Any]:
        return {
            **sibling("nginx:1.25", f"nginx@{B}"),
            "spec": {"volumes": [{"name": "app", "image": {"reference": reference}}]},
        }

    assert found([pod(f"nginx:1.25@{A}")], name="volume/app") == {A}
    assert found([pod("nginx:1.25")], name="volume/app") == set()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
digests = st.sampled_from([str(A), str(B), "sha256:", ""])
containers = json_values | st.lists(
    json_values
    | st.fixed_dictionaries(
        {"name": st.just("app")},
        optional={"image": st.just("nginx:1.25") | digests.map("nginx:1.25@{}".format)},
    )
)
statuses = json_values | st.lists(
    json_values
    | st.fixed_dictionaries(
        {"name": st.just("app") | json_values},
        optional={"imageID": digests.map("nginx@{}".format) | json_values},
    )
)
specs = json_values | st.fixed_dictionaries({}, optional={"containers": containers})


@pytest.mark.parametrize("statuses", [None, 5, True, "app", {"name": "app"}, [None, 5, "app", []]])
@pytest.mark.parametrize("field", ["containerStatuses", "initContainerStatuses"])
def test_a_status_of_another_shape_says_nothing(field: str, statuses: Any) -> None:
    assert found([{**sibling("nginx:1.25"), "status": {field: statuses}}]) == set()


@given(statuses, statuses)
def test_whatever_a_kubelet_says_only_a_digest_counts(one: Any, other: Any) -> None:
    status = {"containerStatuses": one, "initContainerStatuses": other}

    assert found([{**sibling("nginx:1.25"), "status": status}]) <= {A, B}


@given(specs, statuses, json_values)
def test_whatever_siblings_hold_they_run_a_digest_that_one_of_them_names(
    spec: Any, statuses: Any, anything: Any
) -> None:
    for status in ({"containerStatuses": statuses}, anything):
        assert found([{"spec": spec, "status": status}, {"metadata": anything}]) <= {A, B}
