"""The records on a real API server: whoever writes, and however, what is recorded stays.

The definition is the whole cluster's and is never deleted here; each test has a record of its own.
"""

import copy
import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from cluster.controlplane import ControlPlane
from cluster.namespaces import Answer, Namespace, NewNamespace, deployment, eventually

CRD = str(Path(__file__).parents[2] / "manifests" / "crd")
API = "apis/tagpin.dev/v1alpha1"

ZEROS, ONES = f"sha256:{'0' * 64}", f"sha256:{'1' * 64}"
MOMENT = "2026-11-24T09:29:10Z"

CHANGED = "a recorded image never changes; for a new digest, restart the workload"
REMOVED = "a recorded image cannot be removed; to forget all images of the revision"
OTHER_WORKLOAD = "a record is of one workload for ever; to forget it"
OTHER_REVISION = "a record is of one revision for ever; to forget it"

Object = dict[str, Any]
Change = Callable[[Object], object]
"""Changes the `spec` that it is given."""


def image(reference: str, digest: str = ZEROS, **fields: Any) -> Object:
    return {"reference": reference, "digest": digest, "source": "registry", **fields}


def record(name: str, *images: Object) -> Object:
    return {
        "apiVersion": "tagpin.dev/v1alpha1",
        "kind": "ImagePin",
        "metadata": {"name": name},
        "spec": {
            "workload": {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "name": "web",
                "uid": f"uid-of-{name}",
            },
            "revision": {"kind": "ReplicaSet", "name": f"web-{name}", "hash": name},
            "images": copy.deepcopy(list(images)),  # tests change them
        },
    }


WEB = image("web:1", resolvedAt=MOMENT)
SIDECAR = image("sidecar:1", ONES, source="siblings")


@pytest.fixture(scope="module", autouse=True)
def defined(control_plane: ControlPlane) -> None:
    control_plane.kubectl("apply", "-k", CRD, "--validate=strict")
    established = ("--for=condition=established", "--timeout=30s")
    control_plane.kubectl("wait", "crd/imagepins.tagpin.dev", *established)


@pytest.fixture(scope="module")
def shop(new_namespace: NewNamespace) -> Namespace:
    return new_namespace()


@pytest.fixture(scope="module")
def names() -> Iterator[str]:
    return (f"record-{number}" for number in count(1))


@pytest.fixture
def stored(shop: Namespace, names: Iterator[str]) -> Object:
    """A record of two images, as it is stored."""
    # By server-side apply, so that whoever applies again owns the images, and can let go of one.
    made = record(next(names), WEB, SIDECAR)
    shop.apply(made, flags=["--server-side"])
    return found(shop, made)


def found(shop: Namespace, of: Object) -> Object:
    return shop.get(f"imagepins/{of['metadata']['name']}", API)


def patch(shop: Namespace, of: Object, kind: str, body: object, *flags: str) -> Answer:
    arguments = ("patch", "imagepin", of["metadata"]["name"], f"--type={kind}", *flags)
    return shop.kubectl(*arguments, "-p", json.dumps(body), check=False)


# The ways to write


def replace(shop: Namespace, stored: Object, spec: Object) -> Answer:
    wanted = json.dumps({**stored, "spec": spec})
    return shop.kubectl("replace", "--validate=false", "-f", "-", input=wanted, check=False)


def merge_patch(shop: Namespace, stored: Object, spec: Object) -> Answer:
    without = dict.fromkeys(stored["spec"].keys() - spec.keys())
    return patch(shop, stored, "merge", {"spec": {**without, **spec}})


def json_patch(shop: Namespace, stored: Object, spec: Object) -> Answer:
    return patch(shop, stored, "json", [{"op": "replace", "path": "/spec", "value": spec}])


def server_side_apply(shop: Namespace, stored: Object, spec: Object) -> Answer:
    wanted = record(stored["metadata"]["name"]) | {"spec": spec}
    flags = ["--server-side", "--force-conflicts", "--validate=false"]
    return shop.apply(wanted, flags=flags, check=False)


Write = Callable[[Namespace, Object, Object], Answer]
WAYS: list[Write] = [replace, merge_patch, json_patch, server_side_apply]


in_every_way = pytest.mark.parametrize("write", WAYS, ids=[way.__name__ for way in WAYS])


class TestWhatIsRecordedStays:
    @in_every_way
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            pytest.param(
                lambda spec: spec["images"][0].update(digest=ONES), CHANGED, id="another digest"
            ),
            pytest.param(
                lambda spec: spec["images"][1].update(digest=ZEROS),
                CHANGED,
                id="another digest of the last image",
            ),
            pytest.param(
                lambda spec: spec["images"][0].update(source="cache"), CHANGED, id="another source"
            ),
            pytest.param(
                lambda spec: spec["images"][0].update(resolvedAt="2026-11-24T09:29:11Z"),
                CHANGED,
                id="a later moment",
            ),
            pytest.param(
                lambda spec: spec["images"][0].update(resolvedAt="2026-11-24T10:29:10+01:00"),
                "resolvedAt in body should match",
                id="the same moment, spelled otherwise",
            ),
            pytest.param(
                lambda spec: spec["images"][0].pop("resolvedAt"), CHANGED, id="no moment any more"
            ),
            pytest.param(
                lambda spec: spec["images"][1].update(resolvedAt=MOMENT),
                CHANGED,
                id="a moment where there was none",
            ),
            pytest.param(
                lambda spec: spec["images"][1].update(mixed=True), CHANGED, id="a mark added"
            ),
            pytest.param(
                lambda spec: spec["images"][0].update(reference="web:2"),
                REMOVED,
                id="another reference",
            ),
            pytest.param(lambda spec: spec["images"].pop(0), REMOVED, id="the first image gone"),
            pytest.param(lambda spec: spec["images"].pop(), REMOVED, id="the last image gone"),
            pytest.param(
                lambda spec: spec["images"].append(spec["images"].pop(0) | {"digest": ONES}),
                CHANGED,
                id="an image taken out and put in again with another digest",
            ),
            pytest.param(
                lambda spec: spec.update(images=[image("web:2")]), REMOVED, id="another list"
            ),
            pytest.param(
                lambda spec: spec.pop("images"), "spec.images: Required value", id="no list"
            ),
            pytest.param(
                lambda spec: spec["workload"].update(uid="another"),
                OTHER_WORKLOAD,
                id="another workload",
            ),
            pytest.param(
                lambda spec: spec["workload"].update(apiVersion="apps/v2"),
                OTHER_WORKLOAD,
                id="another version of the workload's API",
            ),
            pytest.param(
                lambda spec: spec.pop("workload"), "spec.workload: Required value", id="no workload"
            ),
            pytest.param(
                lambda spec: spec["revision"].update(hash="another"),
                OTHER_REVISION,
                id="another revision",
            ),
            pytest.param(
                lambda spec: spec.pop("revision"), "spec.revision: Required value", id="no revision"
            ),
            # What is added must be as good as what is created.
            pytest.param(
                lambda spec: spec["images"].append(image("new:1", "sha256:0")),
                "digest in body should match",
                id="a malformed digest added",
            ),
            pytest.param(
                lambda spec: spec["images"].append(image("new:1", source="hearsay")),
                "supported values",
                id="an unknown source added",
            ),
            pytest.param(
                lambda spec: spec["images"].extend(image(f"new:{n}") for n in range(49)),
                "spec.images: Too many: 51: must have at most 50 items",
                id="51 images",
            ),
        ],
    )
    def test_in_spite_of(
        self, shop: Namespace, stored: Object, write: Write, change: Change, message: str
    ) -> None:
        spec = copy.deepcopy(stored["spec"])
        change(spec)

        answer = write(shop, stored, spec)

        assert not answer.succeeded
        assert message in answer.error
        assert found(shop, stored) == stored

    @pytest.mark.parametrize(
        "write", [replace, merge_patch, json_patch]
    )  # apply has no empty lists
    def test_in_spite_of_an_empty_list(self, shop: Namespace, stored: Object, write: Write) -> None:
        answer = write(shop, stored, stored["spec"] | {"images": []})
        assert not answer.succeeded
        assert REMOVED in answer.error
        assert found(shop, stored) == stored

    @pytest.mark.parametrize("write", [replace, merge_patch, json_patch])
    def test_one_reference_has_one_entry(
        self, shop: Namespace, stored: Object, write: Write
    ) -> None:
        images = [*stored["spec"]["images"], image("web:1", ONES)]
        answer = write(shop, stored, stored["spec"] | {"images": images})
        assert 'spec.images[2]: Duplicate value: {"reference":"web:1"}' in answer.error
        assert found(shop, stored) == stored

    def test_one_reference_has_one_entry_in_what_is_applied(
        self, shop: Namespace, stored: Object
    ) -> None:
        images = [*stored["spec"]["images"], image("web:1", ONES)]
        answer = server_side_apply(shop, stored, stored["spec"] | {"images": images})
        assert 'duplicate entries for key [reference="web:1"]' in answer.error
        assert found(shop, stored) == stored

    @pytest.mark.parametrize(
        ("kind", "body"),
        [
            ("merge", {"spec": None}),
            ("json", [{"op": "remove", "path": "/spec"}]),
        ],
    )
    def test_without_its_spec_there_is_no_record(
        self, shop: Namespace, stored: Object, kind: str, body: object
    ) -> None:
        answer = patch(shop, stored, kind, body)
        assert not answer.succeeded
        assert "spec: Required value" in answer.error
        assert found(shop, stored) == stored

    @pytest.mark.parametrize("path", ["/spec/images/0", "/spec/images", "/spec"])
    def test_nothing_can_be_made_anew_in_two_steps(
        self, shop: Namespace, stored: Object, path: str
    ) -> None:
        wanted = copy.deepcopy(stored)
        wanted["spec"]["images"][0]["digest"] = ONES

        first = patch(shop, stored, "json", [{"op": "remove", "path": path}])
        second = patch(shop, stored, "merge", {"spec": wanted["spec"]})

        assert not first.succeeded
        assert CHANGED in second.error
        assert found(shop, stored) == stored

    def test_who_refuses_says_how_to_forget(self, shop: Namespace, stored: Object) -> None:
        another = [{"op": "replace", "path": "/spec/images/0/digest", "value": ONES}]
        answer = patch(shop, stored, "json", another)
        assert "use `kubectl delete imagepin`" in answer.error

    @pytest.mark.parametrize("spec", [None, {"images": [image("web:1", ONES)]}])
    def test_whoever_writes_the_status_writes_nothing_else(
        self, shop: Namespace, stored: Object, spec: Object | None
    ) -> None:
        answer = patch(shop, stored, "merge", {"spec": spec, "status": {}}, "--subresource=status")
        assert answer.succeeded
        assert found(shop, stored)["spec"] == stored["spec"]


class TestWhatMayBeWritten:
    @in_every_way
    def test_images_may_be_added(self, shop: Namespace, stored: Object, write: Write) -> None:
        added = image("new:1", ONES, source="stale", resolvedAt=MOMENT)
        images = [*stored["spec"]["images"], added]

        answer = write(shop, stored, stored["spec"] | {"images": images})

        assert answer.succeeded, answer.error
        assert found(shop, stored)["spec"]["images"] == images

    def test_an_added_image_stays_as_well(self, shop: Namespace, stored: Object) -> None:
        add = [{"op": "add", "path": "/spec/images/-", "value": image("new:1")}]
        assert patch(shop, stored, "json", add).succeeded
        change = [{"op": "replace", "path": "/spec/images/2/digest", "value": ONES}]
        assert CHANGED in patch(shop, stored, "json", change).error

    def test_50_images_of_the_longest_names_are_within_the_budget_of_the_rules(
        self, shop: Namespace, names: Iterator[str]
    ) -> None:
        """A rule that is too costly at run time would refuse what it should allow."""
        longest = [
            image(f"{'x' * 509}:{n}", f"sha512:{'f' * 128}", resolvedAt=MOMENT)
            for n in range(10, 60)
        ]
        assert {len(each["reference"]) for each in longest} == {512}
        made = record(next(names), *longest[:49])
        shop.create(made)

        add = [{"op": "add", "path": "/spec/images/-", "value": longest[49]}]
        assert patch(shop, made, "json", add).succeeded
        again = [{"op": "replace", "path": "/spec/images/49/digest", "value": ONES}]
        assert CHANGED in patch(shop, made, "json", again).error
        assert found(shop, made)["spec"]["images"] == longest

    def test_labels_and_annotations_may_change(self, shop: Namespace, stored: Object) -> None:
        for how in ("label", "annotate"):
            for what in ("team=a", "team=b", "team-"):
                shop.kubectl(how, "imagepin", stored["metadata"]["name"], what, "--overwrite")
        assert found(shop, stored)["spec"] == stored["spec"]

    def test_a_record_can_be_forgotten_and_made_anew(self, shop: Namespace, stored: Object) -> None:
        shop.kubectl("delete", "imagepin", stored["metadata"]["name"])
        assert not found(shop, stored)
        anew = record(stored["metadata"]["name"], image("web:1", ONES))
        shop.create(anew)
        assert found(shop, anew)["spec"] == anew["spec"]

    @pytest.mark.parametrize(
        "images",
        [
            pytest.param([image("web:1")], id="no more than is required"),
            pytest.param([image("web:1", f"sha384:{'a' * 96}")], id="sha384"),
            pytest.param([image("web:1", f"sha512:{'a' * 128}")], id="sha512"),
            pytest.param([image("web:1", source="cache", resolvedAt=MOMENT)], id="from the cache"),
            pytest.param([image("web:1", source="stale", resolvedAt=MOMENT)], id="stale"),
            pytest.param([image("web:1", source="siblings")], id="from siblings"),
            pytest.param([image("web:1", mixed=True, resolvedAt=MOMENT)], id="mixed"),
            pytest.param([image(f"web:{n}") for n in range(50)], id="50 images"),
        ],
    )
    def test_a_record_is_stored_as_it_is_written(
        self, shop: Namespace, names: Iterator[str], images: Sequence[Object]
    ) -> None:
        made = record(next(names), *images)
        shop.create(made)
        assert found(shop, made)["spec"] == made["spec"]

    def test_a_record_goes_with_its_workload(self, shop: Namespace, names: Iterator[str]) -> None:
        shop.create(deployment("gone", {"web": "web:1"}, replicas=0))
        owner = shop.get("deployments/gone", "apis/apps/v1")
        made = record(next(names), WEB)
        made["metadata"]["ownerReferences"] = [
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "name": "gone",
                "uid": owner["metadata"]["uid"],
            }
        ]
        shop.create(made)

        shop.kubectl("delete", "deployment/gone")

        eventually(lambda: found(shop, made), lambda record: not record)


class TestWhatMustNotBeCreated:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            pytest.param(lambda spec: spec.clear(), "spec.images: Required value", id="nothing"),
            pytest.param(
                lambda spec: spec.pop("images"), "spec.images: Required value", id="no images"
            ),
            pytest.param(
                lambda spec: spec["images"].clear(),
                "spec.images in body should have at least 1 items",
                id="an empty list of images",
            ),
            pytest.param(
                lambda spec: spec["images"].extend(image(f"new:{n}") for n in range(50)),
                "spec.images: Too many: 51: must have at most 50 items",
                id="51 images",
            ),
            pytest.param(
                lambda spec: spec["images"].append(image("web:1", ONES)),
                'spec.images[1]: Duplicate value: {"reference":"web:1"}',
                id="two digests of one reference",
            ),
            *[
                pytest.param(
                    lambda spec, field=field: spec["images"][0].pop(field),
                    f"spec.images[0].{field}: Required value",
                    id=f"an image without {field}",
                )
                for field in ("reference", "digest", "source")
            ],
            *[
                pytest.param(
                    lambda spec, value=value: spec["images"][0].update(reference=value),
                    f"spec.images[0].reference: {message}",
                    id=name,
                )
                for name, value, message in [
                    ("an empty reference", "", "Invalid value"),
                    ("a reference of 513 characters", "x" * 513, "Too long"),
                ]
            ],
            *[
                pytest.param(
                    lambda spec, value=value: spec["images"][0].update(digest=value),
                    "spec.images[0].digest in body should match",
                    id=name,
                )
                for name, value in [
                    ("an empty digest", ""),
                    ("a digest without its algorithm", "0" * 64),
                    ("a digest that is too short", ZEROS[:-1]),
                    ("a digest that is too long", f"{ZEROS}0"),
                    ("a digest in capitals", f"sha256:{'A' * 64}"),
                    ("a digest of an unknown algorithm", f"md5:{'0' * 32}"),
                    ("a digest of another algorithm's length", f"sha512:{'0' * 64}"),
                    ("a digest with a line behind it", f"{ZEROS}\n"),
                    ("a digest with a line before it", f"\n{ZEROS}"),
                ]
            ],
            pytest.param(
                lambda spec: spec["images"][0].update(source="given"),
                'supported values: "registry", "cache", "siblings", "stale"',
                id="a source that needs no record",
            ),
            *[
                pytest.param(
                    lambda spec, value=value: spec["images"][0].update(resolvedAt=value),
                    "spec.images[0].resolvedAt in body",
                    id=name,
                )
                for name, value in [
                    ("no moment", "yesterday"),
                    ("a moment that does not exist", "2026-13-24T09:29:10Z"),
                    ("a moment of another zone", "2026-11-24T09:29:10+00:00"),
                    ("a moment and a fraction", "2026-11-24T09:29:10.0Z"),
                ]
            ],
            *[
                pytest.param(
                    lambda spec, place=place, field=field: spec[place].pop(field),
                    f"spec.{place}.{field}: Required value",
                    id=f"a {place} without {field}",
                )
                for place, fields in [
                    ("workload", ("apiVersion", "kind", "name", "uid")),
                    ("revision", ("kind", "name", "hash")),
                ]
                for field in fields
            ],
            *[
                pytest.param(
                    lambda spec, place=place, field=field, size=size: spec[place].update(
                        {field: "x" * size}
                    ),
                    f"spec.{place}.{field}: {'Too long' if size else 'Invalid value'}",
                    id=f"a {place} whose {field} has {size} characters",
                )
                for place, field, most in [
                    ("workload", "apiVersion", 317),
                    ("workload", "kind", 63),
                    ("workload", "name", 253),
                    ("workload", "uid", 63),
                    ("revision", "kind", 63),
                    ("revision", "name", 253),
                    ("revision", "hash", 63),
                ]
                for size in (0, most + 1)
            ],
        ],
    )
    def test_such_as(
        self, shop: Namespace, names: Iterator[str], change: Change, message: str
    ) -> None:
        made = record(next(names), WEB)
        change(made["spec"])

        answer = shop.create(made, flags=["--validate=false"], check=False)

        assert not answer.succeeded
        assert message in answer.error
        assert not found(shop, made)

    def test_a_record_without_a_spec(self, shop: Namespace, names: Iterator[str]) -> None:
        made = record(next(names))
        del made["spec"]
        answer = shop.create(made, flags=["--validate=false"], check=False)
        assert "spec: Required value" in answer.error

    def test_fields_that_nobody_knows(self, shop: Namespace, names: Iterator[str]) -> None:
        made = record(next(names), image("web:1", note="x"))
        answer = shop.create(made, check=False)
        assert 'unknown field "spec.images[0].note"' in answer.error


@pytest.fixture(scope="module")
def fleet(new_namespace: NewNamespace) -> Namespace:
    """A namespace that has two records and no others."""
    namespace = new_namespace()
    namespace.create(record("a", WEB, SIDECAR), record("b", SIDECAR))
    return namespace


class TestReading:
    @pytest.mark.parametrize("word", ["imagepins", "imagepin", "ipin", "imagepins.tagpin.dev"])
    def test_a_line_of_the_table_says_whose_record_it_is(self, fleet: Namespace, word: str) -> None:
        head, *lines = table(fleet.kubectl("get", word).output)
        assert head == ["NAME", "KIND", "WORKLOAD", "REVISION", "FIRST IMAGE", "AGE"]
        assert [line[:-1] for line in lines] == [
            ["a", "Deployment", "web", "web-a", "web:1"],
            ["b", "Deployment", "web", "web-b", "sidecar:1"],
        ]
        assert all(re.fullmatch(r"\d+[sm]", line[-1]) for line in lines)

    def test_a_wide_table_says_which_bytes_and_which_workload_as_well(
        self, fleet: Namespace
    ) -> None:
        narrow, wide = (
            table(fleet.kubectl("get", "ipin", *how).output) for how in ([], ["-owide"])
        )
        assert wide[0] == [*narrow[0], "DIGEST", "WORKLOAD UID"]
        assert [line[-2:] for line in wide[1:]] == [[ZEROS, "uid-of-a"], [ONES, "uid-of-b"]]

    @pytest.mark.parametrize(
        ("selector", "selected"),
        [
            ("spec.workload.uid=uid-of-b", ["imagepin.tagpin.dev/b"]),
            ("spec.workload.name=web", ["imagepin.tagpin.dev/a", "imagepin.tagpin.dev/b"]),
            ("spec.workload.name=db", []),
            ("spec.revision.name=web-a", ["imagepin.tagpin.dev/a"]),
        ],
    )
    def test_the_records_of_a_workload_or_revision_can_be_selected(
        self, fleet: Namespace, selector: str, selected: list[str]
    ) -> None:
        answer = fleet.kubectl("get", "ipin", "-o", "name", "--field-selector", selector)
        assert answer.output.split() == selected

    def test_kubectl_explains_the_fields(self, fleet: Namespace) -> None:
        told = fleet.kubectl("explain", "imagepin.spec.images").output
        for field in ("reference", "digest", "source"):
            assert f"{field}\t<string> -required-" in told
        assert "One that is recorded never changes" in " ".join(told.split())


def table(text: str) -> list[list[str]]:
    return [re.split(r" {2,}", line.strip()) for line in text.splitlines()]


@pytest.fixture(scope="module")
def granted(new_namespace: NewNamespace) -> Namespace:
    """A namespace in which each of the usual roles for people has a user."""
    namespace = new_namespace()
    roles = ("view", "edit", "admin")
    for role in roles:
        user = f"--user={a(role)}"
        namespace.kubectl("create", "rolebinding", role, f"--clusterrole={role}", user)
    # A controller adds our rules to view, these to edit, and these to admin.
    eventually(lambda: all(may(namespace, a(role), "watch", "imagepins") for role in roles), bool)
    return namespace


class TestWhoMay:
    @pytest.mark.parametrize("role", ["view", "edit", "admin"])
    @pytest.mark.parametrize("verb", ["get", "list", "watch"])
    def test_read_the_records_of_a_namespace(
        self, granted: Namespace, role: str, verb: str
    ) -> None:
        assert may(granted, a(role), verb, "imagepins")

    @pytest.mark.parametrize("role", ["view", "edit", "admin"])
    @pytest.mark.parametrize("verb", ["create", "update", "patch", "delete", "deletecollection"])
    def test_not_write_them(self, granted: Namespace, role: str, verb: str) -> None:
        assert not may(granted, a(role), verb, "imagepins")

    @pytest.mark.parametrize("role", ["edit", "admin"])
    def test_not_write_their_status(self, granted: Namespace, role: str) -> None:
        assert not may(granted, a(role), "update", "imagepins", "--subresource=status")

    def test_not_read_those_of_another_namespace(self, granted: Namespace, shop: Namespace) -> None:
        assert not may(shop, a("admin"), "get", "imagepins")

    def test_not_read_them_without_a_role(self, granted: Namespace) -> None:
        assert not may(granted, "somebody", "get", "imagepins")


def a(role: str) -> str:
    """The user who has that role."""
    return f"records-{role}"


def may(namespace: Namespace, user: str, verb: str, resource: str, *flags: str) -> bool:
    question = ("auth", "can-i", verb, f"{resource}.tagpin.dev", "--as", user, *flags)
    return namespace.kubectl(*question, check=False).output.strip() == "yes"


class TestInstallation:
    def test_applying_again_changes_nothing(self, control_plane: ControlPlane) -> None:
        answer = control_plane.kubectl("apply", "-k", CRD).stdout.splitlines()
        assert sorted(answer) == [
            "clusterrole.rbac.authorization.k8s.io/tagpin-view unchanged",
            "customresourcedefinition.apiextensions.k8s.io/imagepins.tagpin.dev unchanged",
        ]

    def test_nothing_in_it_draws_a_warning(self, control_plane: ControlPlane) -> None:
        answer = control_plane.kubectl("apply", "-k", CRD, "--dry-run=server", "--validate=strict")
        assert answer.stderr == ""
