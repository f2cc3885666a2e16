"""Which records may go, and which objects stand for their revisions."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagpin.retention import YOUNG, Record, Resource, superfluous

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
REPLICA_SETS = Resource("ReplicaSet", "apps", "v1", "replicasets")

Object = dict[str, Any]


def image_pin(
    name: str = "web-1",
    *,
    kind: str = "ReplicaSet",
    revision: str = "web-1",
    template_hash: str = "1",
    workload: Object | None = None,
    owners: list[Object] | None = None,
    **metadata: Any,
) -> Object:
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "u"}
    owner |= workload or {}
    return {
        "metadata": {
            "namespace": "shop",
            "name": name,
            "uid": f"uid-of-{name}",
            "resourceVersion": "7",
            "creationTimestamp": "2026-11-24T09:29:10Z",
            "ownerReferences": [owner] if owners is None else owners,
            **metadata,
        },
        "spec": {
            "workload": owner,
            "revision": {"kind": kind, "name": revision, "hash": template_hash},
            "images": [],
        },
    }


def record(name: str, *, age: float = 60, **fields: Any) -> Record:
    """A Deployment's record, so many minutes old."""
    defaults: dict[str, Any] = {
        "namespace": "shop",
        "uid": f"uid-of-{name}",
        "version": "1",
        "created": NOW - timedelta(minutes=age),
        "workload": "u",
        "is_owned": True,
        "revision": name,
        "hash": name,
        "resource": REPLICA_SETS,
    }
    return Record(name=name, **defaults | fields)


def names(records: list[Record], keep: int = 2) -> list[str]:
    return [each.name for each in superfluous(records, keep=keep, now=NOW)]


class TestReading:
    def test_what_is_needed_is_read(self) -> None:
        assert Record.from_object(image_pin()) == Record(
            namespace="shop",
            name="web-1",
            uid="uid-of-web-1",
            version="7",
            created=datetime(2026, 11, 24, 9, 29, 10, tzinfo=UTC),
            workload="u",
            is_owned=True,
            revision="web-1",
            hash="1",
            resource=REPLICA_SETS,
        )

    @pytest.mark.parametrize(
        "owners",
        [[], [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "new"}], None],
    )
    def test_a_record_belongs_to_its_own_workload_only(self, owners: list[Object] | None) -> None:
        found = image_pin(owners=owners or [])
        if owners is None:
            del found["metadata"]["ownerReferences"]
        assert not Record.from_object(found).is_owned

    @pytest.mark.parametrize(
        ("found", "plural"),
        [
            (image_pin(kind="ReplicaSet"), "replicasets"),
            (image_pin(kind="ControllerRevision"), "controllerrevisions"),
            (image_pin(kind="Job"), "jobs"),
            (
                image_pin(
                    kind="Job", workload={"apiVersion": "batch/v1", "kind": "Job", "name": "web-1"}
                ),
                "jobs",
            ),
            # Jobs of another group, whose name nobody may look for in this one.
            (
                image_pin(
                    kind="Job",
                    workload={"apiVersion": "batch.volcano.sh/v1", "kind": "Job", "name": "web-1"},
                ),
                None,
            ),
            (image_pin(kind="CloneSet"), None),
            (image_pin(revision="../../secrets"), None),
            (image_pin(revision=""), None),
        ],
    )
    def test_objects_are_looked_for_where_they_are(self, found: Object, plural: str | None) -> None:
        resource = Record.from_object(found).resource
        assert (resource.plural if resource else None) == plural

    @pytest.mark.parametrize(
        "found",
        [
            {},
            {"metadata": {}, "spec": {}},
            {**image_pin(), "spec": None},
            {**image_pin(), "spec": {"workload": None, "revision": None}},
            image_pin(creationTimestamp=None),
            image_pin(owners=[7]),  # type: ignore[list-item] # no API server would let it pass
        ],
    )
    def test_what_is_no_record_is_an_error(self, found: Object) -> None:
        with pytest.raises(ValueError):
            Record.from_object(found)


class TestWhatMayGo:
    def test_those_created_last_stay(self) -> None:
        records = [record("b", age=20), record("d", age=40), record("a", age=30), record("c")]
        assert names(records) == ["c", "d"]

    def test_the_name_decides_between_equal_ages(self) -> None:
        assert names([record("b"), record("c"), record("a")]) == ["a"]

    def test_each_workload_has_its_own(self) -> None:
        two = [record("a"), record("b")]
        others = [
            record("a", namespace="other"),
            record("b", namespace="other"),
            record("c", workload="v"),
            record("d", workload="v"),
        ]
        assert names(two + others) == []

    def test_one_that_was_left_behind_has_no_workload(self) -> None:
        assert names([record("a", is_owned=False)]) == ["a"]

    def test_those_left_behind_take_no_place(self) -> None:
        records = [record("a", age=90), record("b", age=80), record("c", is_owned=False)]
        assert names(records) == ["c"]

    def test_where_nobody_can_be_asked_the_number_decides(self) -> None:
        records = [
            record("a", age=90, is_owned=False, resource=None),
            record("b", age=80, resource=None),
            record("c", age=70, is_owned=False, resource=None),
        ]
        assert names(records) == ["a"]

    @pytest.mark.parametrize("fields", [{}, {"is_owned": False}, {"resource": None}])
    def test_a_young_one_stays(self, fields: dict[str, Any]) -> None:
        minutes = YOUNG.total_seconds() / 60
        assert names([record("a", age=minutes, **fields)], keep=0) == []
        assert names([record("a", age=minutes + 0.1, **fields)], keep=0) == ["a"]

    def test_young_ones_count_among_the_newest(self) -> None:
        assert names([record("a"), record("b", age=1), record("c", age=1)]) == ["a"]

    @given(
        st.lists(
            st.builds(
                record,
                st.text("ab", min_size=1),
                age=st.integers(0, 30),
                namespace=st.sampled_from("mn"),
                workload=st.sampled_from("uv"),
                is_owned=st.booleans(),
                resource=st.sampled_from([REPLICA_SETS, None]),
            ),
            unique_by=lambda each: (each.namespace, each.name),
        ),
        st.integers(0, 4),
    )
    def test_no_workload_ever_loses_one_of_its_newest(
        self, records: list[Record], keep: int
    ) -> None:
        going = superfluous(records, keep=keep, now=NOW)
        for gone in going:
            if gone.is_owned:
                newer = [
                    each
                    for each in records
                    if (each.namespace, each.workload) == (gone.namespace, gone.workload)
                    and (each.created, each.name) > (gone.created, gone.name)
                    and (each.is_owned or each.resource is None)
                ]
                assert len(newer) >= keep
        assert list(going) == sorted(going, key=lambda each: (each.created, each.name))


def stored(kind: str, name: str = "web-1", **metadata: Any) -> Object:
    return {"kind": kind, "metadata": {"name": name, **metadata}}


class TestUse:
    @pytest.mark.parametrize(
        ("kind", "metadata", "is_stood_for"),
        [
            ("ReplicaSet", {"labels": {"pod-template-hash": "1"}}, True),
            ("ReplicaSet", {"labels": {"rollouts-pod-template-hash": "1"}}, True),
            # The same name with another template, made by somebody who names hashes himself.
            ("ReplicaSet", {"labels": {"pod-template-hash": "2"}}, False),
            ("ReplicaSet", {"labels": {"app": "1"}}, False),
            ("ReplicaSet", {}, False),
            ("ControllerRevision", {}, True),
            ("Job", {"uid": "1"}, True),
            # The same name, but another run.
            ("Job", {"uid": "2"}, False),
        ],
    )
    def test_an_object_stands_for_its_own_revision(
        self, kind: str, metadata: Object, is_stood_for: bool
    ) -> None:
        made = Record.from_object(image_pin(kind=kind))
        assert made.is_stood_for_by(stored(kind, **metadata)) is is_stood_for

    def test_the_owner_of_the_object_is_of_no_account(self) -> None:
        adopted = stored(
            "ReplicaSet", labels={"pod-template-hash": "1"}, ownerReferences=[{"uid": "new"}]
        )
        assert Record.from_object(image_pin()).is_stood_for_by(adopted)

    @pytest.mark.parametrize(
        "found",
        [{}, stored("ReplicaSet", "web-2"), stored("ReplicaSetList"), {"kind": "ReplicaSet"}],
    )
    def test_from_any_other_answer_nothing_follows(self, found: Object) -> None:
        with pytest.raises(ValueError):
            Record.from_object(image_pin()).is_stood_for_by(found)
