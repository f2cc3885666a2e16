"""ImagePins: objects of the API become values and come back, within what the CRD allows."""

import copy
import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tagpin import imagepin
from tagpin.imagepin import MAX_PINS, MAX_REFERENCE, ImagePin, entry
from tagpin.pins import Pin, Source
from tagpin.reference import Digest
from tagpin.revision import MAX_NAME, Revision
from tagpin.workload import Owner

A, B = (Digest.parse("sha256:" + letter * 64) for letter in "ab")
NOON = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
REVISION = Revision(
    "shop", Owner("apps/v1", "Deployment", "web", "uid-web"), "ReplicaSet", "web-5d4f", "5d4f"
)
NGINX = Pin("nginx:1.25", A, Source.REGISTRY, NOON)
REDIS = Pin("redis:7", B, Source.SIBLINGS)
RECORD = ImagePin(REVISION, {NGINX.image: NGINX, REDIS.image: REDIS})

WRITTEN = [Source.REGISTRY, Source.CACHE, Source.SIBLINGS, Source.STALE]
"""What the first pod of a revision can have its digests from."""

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
owners = st.builds(Owner, texts, texts, texts, texts)
revisions = st.builds(Revision, texts, owners, texts, texts, texts)
pins = st.builds(
    Pin,
    texts,
    st.sampled_from([A, B, Digest.parse("sha512:" + "c" * 128)]),
    st.sampled_from(WRITTEN),
    st.none()
    | st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.replace(microsecond=0)),
    st.booleans(),
)
records = st.builds(
    lambda revision, pins: ImagePin(revision, {pin.image: pin for pin in pins}),
    revisions,
    st.lists(pins, max_size=5),
)


def stored(record: ImagePin) -> Any:
    """The object as the API server gives it back."""
    found = json.loads(json.dumps(record.to_object()))
    found["metadata"] |= {"uid": "uid-pin", "resourceVersion": "7"}
    return found | {"status": {}}


# --- objects ----------------------------------------------------------------------------------


def test_a_record_is_an_object_that_people_can_read() -> None:
    workload = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "uid-web"}

    assert RECORD.to_object() == {
        "apiVersion": "tagpin.dev/v1alpha1",
        "kind": "ImagePin",
        "metadata": {
            "namespace": "shop",
            "name": REVISION.record_name,
            "ownerReferences": [workload],
        },
        "spec": {
            "workload": workload,
            "revision": {"kind": "ReplicaSet", "name": "web-5d4f", "hash": "5d4f"},
            "images": [
                {
                    "reference": "nginx:1.25",
                    "digest": str(A),
                    "source": "registry",
                    "resolvedAt": "2026-03-01T12:00:00Z",
                },
                {"reference": "redis:7", "digest": str(B), "source": "siblings"},
            ],
        },
    }


def test_a_record_holds_up_nothing_when_its_workload_goes() -> None:
    """`blockOwnerDeletion` needs rights that we don't want; `controller` would adopt it."""
    (owner,) = RECORD.to_object()["metadata"]["ownerReferences"]

    assert owner.keys() == {"apiVersion", "kind", "name", "uid"}


def test_a_resolved_disagreement_is_marked() -> None:
    assert entry(replace(NGINX, mixed=True))["mixed"] is True
    assert "mixed" not in entry(NGINX)


@given(records)
def test_what_is_recorded_is_read_back(record: ImagePin) -> None:
    again = ImagePin.from_object(stored(record))

    assert again == record
    assert list(again.pins) == list(record.pins)


def test_what_a_later_version_adds_is_passed_over() -> None:
    found = stored(RECORD)
    found["spec"]["signatures"] = ["x"]
    found["spec"]["images"][0] |= {"platform": "linux/amd64", "image": "other:1"}
    found["spec"]["workload"]["labels"] = {}

    assert ImagePin.from_object(found) == RECORD


def changed(path: str, value: Any) -> Any:
    """The object with another value at a path; without the key, where the value is `...`."""
    found = stored(RECORD)
    *above, last = (int(key) if key.isdecimal() else key for key in path.split("."))
    place = found
    for key in above:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return found


BROKEN = [
    ("metadata", ...),
    ("metadata", None),
    ("metadata.namespace", ...),
    ("metadata.namespace", None),
    ("spec", ...),
    ("spec", None),
    ("spec", []),
    ("spec.workload", ...),
    ("spec.workload", "web"),
    ("spec.workload", None),
    ("spec.revision", ...),
    ("spec.revision", "5d4f"),
    ("spec.revision.kind", ...),
    ("spec.revision.name", ...),
    ("spec.revision.name", None),
    ("spec.revision.hash", ...),
    ("spec.revision.hash", 5),
    ("spec.revision.hash", []),
    ("spec.images", ...),
    ("spec.images", None),
    ("spec.images", 5),
    ("spec.images", "nginx"),
    ("spec.images", {"reference": "nginx:1.25"}),
    ("spec.images.0", None),
    ("spec.images.0", "nginx"),
    ("spec.images.0.reference", ...),
    ("spec.images.0.reference", None),
    ("spec.images.0.reference", 5),
    ("spec.images.0.reference", ["nginx:1.25"]),
    ("spec.images.0.digest", ...),
    ("spec.images.0.digest", None),
    ("spec.images.0.digest", "sha256:abc"),
    ("spec.images.0.digest", "latest"),
    ("spec.images.0.source", ...),
    ("spec.images.0.source", "hearsay"),
    ("spec.images.0.source", []),
    ("spec.images.0.resolvedAt", "yesterday"),
    ("spec.images.0.resolvedAt", "2026-03-01T12:00:00"),
    ("spec.images.0.resolvedAt", 5),
]


@pytest.mark.parametrize(("path", "value"), BROKEN)
def test_an_object_that_is_no_record_is_an_error_as_a_whole(path: str, value: Any) -> None:
    """Half a record would let the other half be resolved anew."""
    with pytest.raises(ValueError):
        ImagePin.from_object(changed(path, value))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(st.sampled_from(sorted({path for path, _ in BROKEN})), json_values)
def test_whatever_the_api_server_holds_it_is_a_record_or_a_value_error(
    path: str, value: Any
) -> None:
    found = changed(path, value)
    before = copy.deepcopy(found)

    try:
        record = ImagePin.from_object(found)
    except ValueError:
        record = None

    assert record is None or ImagePin.from_object(stored(record)) == record
    assert repr(found) == repr(before)


@given(json_values)
def test_whatever_is_no_object_is_a_value_error(found: Any) -> None:
    with pytest.raises(ValueError, match="no ImagePin"):
        ImagePin.from_object(found)


# --- adding pins ------------------------------------------------------------------------------


def test_a_pin_is_added_behind_those_that_are_there() -> None:
    log = Pin("log:1", B, Source.CACHE, NOON)

    more = RECORD.with_pins([log])

    assert list(more.pins.values()) == [NGINX, REDIS, log]
    assert list(RECORD.pins) == ["nginx:1.25", "redis:7"]
    assert more.revision == REVISION


def test_a_recorded_image_never_changes() -> None:
    assert RECORD.with_pins([replace(NGINX, digest=B, source=Source.CACHE)]) == RECORD


def test_of_two_answers_for_one_image_the_first_stands() -> None:
    empty = ImagePin(REVISION, {})

    assert empty.with_pins([NGINX, replace(NGINX, digest=B)]).pins == {"nginx:1.25": NGINX}


def test_a_record_has_room_for_so_many_images() -> None:
    pins = [Pin(f"app:{number}", A, Source.REGISTRY, NOON) for number in range(MAX_PINS + 5)]

    full = RECORD.with_pins(pins)

    assert len(full.pins) == MAX_PINS
    assert list(full.pins.values()) == [NGINX, REDIS, *pins[: MAX_PINS - 2]]
    assert full.with_pins([Pin("more:1", A, Source.REGISTRY)]) == full
    assert full.with_pins(pins) == full


@pytest.mark.parametrize(("length", "fits"), [(MAX_REFERENCE, True), (MAX_REFERENCE + 1, False)])
def test_a_reference_that_is_too_long_is_left_out_and_keeps_no_other_out(
    length: int, *, fits: bool
) -> None:
    long = Pin("x" * length, A, Source.REGISTRY, NOON)
    log = Pin("log:1", B, Source.REGISTRY, NOON)

    more = RECORD.with_pins([long, log])

    assert (long.image in more.pins) is fits
    assert more.pins["log:1"] == log


@given(records, st.lists(pins, max_size=5))
def test_a_record_only_grows(record: ImagePin, added: list[Pin]) -> None:
    more = record.with_pins(added)

    assert list(more.pins.items())[: len(record.pins)] == list(record.pins.items())
    assert set(more.pins) == {*record.pins, *(pin.image for pin in added)}
    assert more.with_pins(added) == more


# --- whose record it is -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (REVISION, True),
        (replace(REVISION, workload=replace(REVISION.workload, api_version="apps/v2")), True),
        (replace(REVISION, workload=replace(REVISION.workload, uid="uid-2")), False),
        (replace(REVISION, hash="7c9b"), False),
    ],
)
def test_a_record_is_of_the_workload_and_the_hash_that_it_says(
    other: Revision, *, same: bool
) -> None:
    assert RECORD.is_of(other) is same
    assert ImagePin.from_object(stored(RECORD)).is_of(other) is same


# --- agreement with the CRD --------------------------------------------------------------------

CRD = yaml.safe_load(
    Path(__file__).parents[2].joinpath("manifests/crd/customresourcedefinition.yaml").read_text()
)["spec"]
(VERSION,) = CRD["versions"]
SPEC = VERSION["schema"]["openAPIV3Schema"]["properties"]["spec"]
IMAGES = SPEC["properties"]["images"]
IMAGE = IMAGES["items"]


def test_the_crd_is_of_the_kind_that_is_written() -> None:
    names = (CRD["group"], VERSION["name"], CRD["names"]["kind"], CRD["names"]["plural"])

    assert names == (imagepin.GROUP, imagepin.VERSION, imagepin.KIND, imagepin.PLURAL)
    assert CRD["scope"] == "Namespaced"


def test_the_crd_has_the_limits_that_are_kept() -> None:
    assert IMAGES["maxItems"] == MAX_PINS
    assert IMAGE["properties"]["reference"]["maxLength"] == MAX_REFERENCE
    assert SPEC["properties"]["revision"]["properties"]["name"]["maxLength"] == MAX_NAME


def test_the_crd_knows_the_sources_that_can_be_recorded_and_no_other() -> None:
    """A digest from a record, or one that came with the pod, is never recorded itself."""
    assert IMAGE["properties"]["source"]["enum"] == [source.value for source in WRITTEN]
    assert {*Source} - {*WRITTEN} == {Source.LEDGER, Source.GIVEN}


@pytest.mark.parametrize("path", ["", "workload", "revision", "images"])
def test_what_the_crd_requires_is_always_written(path: str) -> None:
    schema = SPEC["properties"].get(path, SPEC)
    schema = schema.get("items", schema)
    written = RECORD.to_object()["spec"]
    written = written.get(path, written)

    for each in written if isinstance(written, list) else [written]:
        assert set(schema["required"]) <= set(each) <= set(schema["properties"])


@given(pins)
def test_what_is_written_has_the_form_that_the_crd_asks_for(pin: Pin) -> None:
    written = entry(pin)

    for field, value in written.items():
        schema = IMAGE["properties"][field]
        if schema["type"] == "boolean":
            assert value is True
        else:
            assert isinstance(value, str)
            assert re.search(schema.get("pattern", ""), value)
            assert len(value) <= schema.get("maxLength", len(value))
