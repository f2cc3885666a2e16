"""Records become annotations and come back; operations apply to pods of any shape."""

import copy
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagpin import workload
from tagpin.errors import Reason
from tagpin.pins import (
    MAX_ANNOTATION,
    PINS_ANNOTATION,
    Failure,
    Pin,
    Source,
    from_annotation,
    operations,
    to_annotation,
)
from tagpin.reference import Digest

DIGEST = Digest.parse("sha256:" + "a" * 64)
NOON = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
PIN = Pin("nginx:1.25", DIGEST, Source.REGISTRY, NOON)
ENTRY = PIN.to_json()

moments = st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.replace(microsecond=0))
pins = st.builds(
    Pin,
    st.text(),
    st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True).map(Digest.parse),
    st.sampled_from(Source),
    st.none() | moments,
)
failures = st.builds(Failure, st.text(), st.sampled_from(Reason))
records = st.dictionaries(st.text(st.characters(codec=None)), pins | failures, max_size=5)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
annotation_maps = st.dictionaries(
    st.sampled_from(
        [PINS_ANNOTATION, "tagpin.dev/revision", "a~b/c", "~1", "", "/", "example.com/x"]
    ),
    st.text(max_size=8),
)
pods = st.dictionaries(st.sampled_from(["spec", "kind"]), json_values).flatmap(
    lambda rest: st.one_of(
        st.just(rest),
        st.builds(lambda metadata: {**rest, "metadata": metadata}, json_values),
        st.builds(
            lambda annotations: {**rest, "metadata": {"name": "web", "annotations": annotations}},
            json_values | annotation_maps,
        ),
    )
)


def applied(pod: Any, changes: list[Any]) -> Any:
    """What the API server makes of the operations."""
    return jsonpatch.apply_patch(copy.deepcopy(pod), json.loads(json.dumps(changes)))


def test_a_record_is_compact_json() -> None:
    record: dict[str, Pin | Failure] = {
        "app": PIN,
        "log": Failure("log:1", Reason.NOT_FOUND, "log:1 does not exist"),
        "volume/models": Pin(f"models@{DIGEST}", DIGEST, Source.GIVEN),
    }

    assert to_annotation(record) == (
        '{"app":{"image":"nginx:1.25","digest":"sha256:' + "a" * 64 + '","source":"registry",'
        '"resolvedAt":"2026-03-01T12:00:00Z"},'
        '"log":{"image":"log:1","reason":"not_found"},'
        '"volume/models":{"image":"models@sha256:'
        + "a" * 64
        + '","digest":"sha256:'
        + "a" * 64
        + '","source":"given"}}'
    )


def test_an_empty_record_is_an_empty_object() -> None:
    assert to_annotation({}) == "{}"
    assert from_annotation("{}") == {}


@given(records)
def test_what_is_recorded_is_read_back(record: dict[str, Pin | Failure]) -> None:
    text = to_annotation(record)

    assert from_annotation(text) == record
    assert list(from_annotation(text)) == list(record)
    assert text.isascii()


@given(records, st.integers(0, 1000))
def test_a_record_never_exceeds_its_limit(record: dict[str, Pin | Failure], limit: int) -> None:
    text = to_annotation(record, limit)

    assert len(text.encode()) <= max(limit, len("{}"))
    assert from_annotation(text).items() <= record.items()


def test_an_entry_that_is_too_long_hides_no_other() -> None:
    huge = Failure("x" * MAX_ANNOTATION, Reason.INVALID_REFERENCE)
    record: dict[str, Pin | Failure] = {"a": PIN, "b": huge, "c": PIN}

    assert from_annotation(to_annotation(record)) == {"a": PIN, "c": PIN}


def test_a_moment_is_read_in_any_zone_and_recorded_in_utc() -> None:
    text = json.dumps({"app": {**ENTRY, "resolvedAt": "2026-03-01T14:00:00+02:00"}})

    record = from_annotation(text)

    assert record == {"app": PIN}
    assert to_annotation(record) == to_annotation({"app": PIN})


def test_a_moment_with_an_offset_keeps_its_meaning() -> None:
    zone = timezone(timedelta(hours=2))
    pin = Pin("nginx", DIGEST, Source.REGISTRY, NOON.astimezone(zone))

    assert from_annotation(to_annotation({"app": pin})) == {"app": pin}


@pytest.mark.parametrize(
    "text",
    [
        None,
        5,
        [],
        {},
        b"{}",
        "",
        " ",
        "{",
        "null",
        "5",
        '"{}"',
        "[]",
        '[{"app": {}}]',
        "[" * 60_000,
        '{"a":' * 10_000,
        '{"app": ' + "9" * 60_000 + "}",
        '{"app": NaN}',
        "\x00",
        "\ud800",
        json.dumps({"app": ENTRY}) + "x",
        json.dumps({"app": ENTRY, "b": "x" * MAX_ANNOTATION}),
    ],
    ids=lambda text: repr(text)[:30],
)
def test_what_is_no_record_is_an_empty_one(text: Any) -> None:
    assert from_annotation(text) == {}


@pytest.mark.parametrize(
    "entry",
    [
        None,
        5,
        "nginx",
        [],
        {},
        {**ENTRY, "image": None},
        {**ENTRY, "image": ["nginx"]},
        {**ENTRY, "digest": None},
        {**ENTRY, "digest": "sha256:abc"},
        {**ENTRY, "digest": "latest"},
        {**ENTRY, "digest": str(DIGEST).upper()},
        {**ENTRY, "source": "hearsay"},
        {**ENTRY, "source": ["registry"]},
        {**ENTRY, "source": ""},
        {**ENTRY, "resolvedAt": "yesterday"},
        {**ENTRY, "resolvedAt": ""},
        {**ENTRY, "resolvedAt": 0},
        {**ENTRY, "resolvedAt": 1767225600},
        {**ENTRY, "resolvedAt": False},
        {**ENTRY, "resolvedAt": ["2026-03-01T12:00:00Z"]},
        {**ENTRY, "resolvedAt": "2026-03-01T12:00:00"},
        {**ENTRY, "resolvedAt": "2026-03-01"},
        {**ENTRY, "resolvedAt": "0001-01-01T00:00:00"},
        {**ENTRY, "resolvedAt": "0001-01-01T00:00:00+23:59"},
        {**ENTRY, "resolvedAt": "9999-12-31T23:59:59-23:59"},
        {**ENTRY, "resolvedAt": "2026-02-30T12:00:00Z"},
        {**ENTRY, "resolvedAt": "9" * 5000},
        {"image": "nginx", "reason": "hearsay"},
        {"image": "nginx", "reason": None},
        {"image": "nginx", "reason": ["timeout"]},
        {"reason": "timeout"},
    ],
    ids=str,
)
def test_a_broken_entry_is_passed_over_and_the_others_stay(entry: Any) -> None:
    text = json.dumps({"before": ENTRY, "app": entry, "after": ENTRY})

    assert from_annotation(text) == {"before": PIN, "after": PIN}


def test_what_a_later_version_adds_to_an_entry_is_passed_over() -> None:
    text = json.dumps({"app": {**ENTRY, "signature": {"by": "acme"}}})

    assert from_annotation(text) == {"app": PIN}


@given(
    st.text()
    | json_values.map(json.dumps)
    | st.dictionaries(
        st.text(max_size=3),
        st.fixed_dictionaries(
            {},
            optional={
                "image": json_values,
                "digest": json_values | st.just(str(DIGEST)),
                "source": json_values | st.sampled_from([*Source]),
                "resolvedAt": json_values | st.datetimes().map(datetime.isoformat),
                "reason": json_values | st.sampled_from([*Reason]),
            },
        ),
    ).map(json.dumps)
)
def test_whatever_a_user_writes_there_is_read_without_an_error(text: str) -> None:
    record = from_annotation(text)

    assert from_annotation(to_annotation(record)).keys() == record.keys()


@pytest.mark.parametrize(
    "pod",
    [
        {},
        {"metadata": None},
        {"metadata": {}},
        {"metadata": {"name": "web"}},
        {"metadata": {"annotations": None}},
        {"metadata": {"annotations": {}}},
        {"metadata": {"annotations": []}},
        {"metadata": {"annotations": {"example.com/x": "y"}}},
        {"metadata": {"annotations": {PINS_ANNOTATION: "forged"}}},
    ],
    ids=str,
)
def test_an_annotation_is_written_onto_a_pod_of_any_shape(pod: dict[str, Any]) -> None:
    before = (pod.get("metadata") or {}).get("annotations") or {}

    patched = applied(pod, operations(pod, {}, {PINS_ANNOTATION: "{}"}))

    assert patched["metadata"]["annotations"] == {**dict(before), PINS_ANNOTATION: "{}"}
    assert {**patched["metadata"], "annotations": 0} == {
        **(pod.get("metadata") or {}),
        "annotations": 0,
    }


def test_keys_are_escaped_as_json_pointers_are() -> None:
    pod = {"metadata": {"annotations": {"a~b/c": "old", "x": "y"}}}

    changes = operations(pod, {}, {"a~b/c": "new", "x": None})

    assert changes == [
        {"op": "add", "path": "/metadata/annotations/a~0b~1c", "value": "new"},
        {"op": "remove", "path": "/metadata/annotations/x"},
    ]
    assert applied(pod, changes) == {"metadata": {"annotations": {"a~b/c": "new"}}}


def test_an_image_is_replaced_where_it_stands() -> None:
    pod = {"spec": {"containers": [{"image": "log:1"}, {"image": "app:1"}]}}

    changes = operations(pod, {"/spec/containers/1/image": "app:1@sha256:…"}, {})

    assert changes == [
        {"op": "replace", "path": "/spec/containers/1/image", "value": "app:1@sha256:…"}
    ]
    assert applied(pod, changes) == {
        "spec": {"containers": [{"image": "log:1"}, {"image": "app:1@sha256:…"}]}
    }


@pytest.mark.parametrize(
    "pod",
    [
        {},
        {"metadata": None},
        {"metadata": {"annotations": None}},
        {"metadata": {"annotations": {}}},
        {"metadata": {"annotations": {"example.com/x": "y"}}},
    ],
    ids=str,
)
def test_what_is_not_there_is_not_removed(pod: dict[str, Any]) -> None:
    assert operations(pod, {}, {PINS_ANNOTATION: None}) == []


def test_what_is_there_already_is_not_written_again() -> None:
    pod = {"metadata": {"annotations": {PINS_ANNOTATION: "{}"}}}

    assert operations(pod, {}, {PINS_ANNOTATION: "{}"}) == []


wanted_annotations = st.dictionaries(
    st.sampled_from([PINS_ANNOTATION, "tagpin.dev/revision", "a~b/c", "~1", "", "/"]),
    st.none() | st.text(max_size=8),
)


@given(pods, wanted_annotations)
def test_operations_write_what_is_wanted_and_nothing_else(
    pod: dict[str, Any], wanted: dict[str, str | None]
) -> None:
    original = copy.deepcopy(pod)

    patched = applied(pod, operations(pod, {}, wanted))

    untouched = {k: v for k, v in workload.annotations(pod).items() if k not in wanted}
    written = {key: value for key, value in wanted.items() if value is not None}
    assert workload.annotations(patched) == untouched | written
    assert pod == original
    assert patched.get("spec") == pod.get("spec")


@given(pods, wanted_annotations)
def test_a_second_pass_over_our_own_output_is_empty(
    pod: dict[str, Any], wanted: dict[str, str | None]
) -> None:
    patched = applied(pod, operations(pod, {}, wanted))

    assert operations(patched, {}, wanted) == []
