"""A pod and the record of its revision: what it takes from it, and what it adds."""

import asyncio
import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import jsonpatch
import pytest

from fakes.ledger import FakeLedger
from fakes.resolver import HANGS, FakePullSecrets, FakeResolver, digest_of
from tagpin import workload
from tagpin.errors import Reason, Unresolvable
from tagpin.imagepin import MAX_PINS, MAX_REFERENCE, ImagePin
from tagpin.keychain import Credential, Keychain
from tagpin.pinning import Access, Pinner
from tagpin.pins import (
    PINS_ANNOTATION,
    REVISION_ANNOTATION,
    UNRECORDED_ANNOTATION,
    Failure,
    Pin,
    Source,
    from_annotation,
    to_annotation,
)
from tagpin.policy import Mode, Rules
from tagpin.reference import Digest
from tagpin.revision import Revision, kinds
from tagpin.verdict import Admission, Result, Verdict
from tagpin.workload import Owner

NGINX = digest_of("docker.io/library/nginx:1.25")
REDIS = digest_of("docker.io/library/redis:7")
OLD, OTHER = (Digest.parse("sha256:" + letter * 64) for letter in "ab")
MANAGER = "system:kube-controller-manager"
WEB = Owner("apps/v1", "Deployment", "web", "uid-web")
REVISION = Revision("shop", WEB, "ReplicaSet", "web-5d4f", "5d4f")
NAME = REVISION.record_name
WRITING = [Mode.PIN, Mode.ENFORCE]
UNRECORDED_PATH = "/metadata/annotations/tagpin.dev~1unrecorded"
NOW = datetime(2026, 1, 1, 0, 16, 40, tzinfo=UTC)
"""What the fakes' clock says, unless it is told otherwise."""
NGINX_OLD = Pin("nginx:1.25", OLD, Source.REGISTRY, NOW)


def record_of(*pins: Pin, revision: Revision = REVISION) -> ImagePin:
    return ImagePin(revision, {pin.image: pin for pin in pins})


class Shop:
    """One replica of tagpin, its registry and its ledger."""

    def __init__(self, **faults: Any) -> None:
        self.resolver = FakeResolver()
        self.secrets = FakePullSecrets()
        self.ledger = FakeLedger(**faults)
        self.pinner = self.replica(self.resolver)

    def replica(self, resolver: FakeResolver, **limits: Any) -> Pinner:
        """Another one, on the same ledger."""
        return Pinner(
            resolver,
            self.secrets,
            self.ledger,
            rules=Rules(),
            kinds=kinds(),
            now=resolver.clock.now,
            **limits,
        )

    async def admit(self, admission: Admission) -> Verdict:
        return await self.pinner.admit(admission)

    def push(self, image: str, answer: Digest | Exception) -> None:
        """From now on, a tag names another digest, or none."""
        self.resolver.answers[image] = answer

    def recorded(self) -> dict[str, Pin]:
        """What the record of the revision has."""
        return dict(self.ledger.records[NAME].pins)

    def keep(self, *pins: Pin, revision: Revision = REVISION) -> None:
        """Let pins be recorded already."""
        self.ledger.records[revision.record_name] = record_of(*pins, revision=revision)


def pod_of(
    images: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    *,
    template: str = "5d4f",
) -> dict[str, Any]:
    """A pod of the ReplicaSet web-HASH."""
    images = {"app": "nginx:1.25"} if images is None else images
    owner = Owner("apps/v1", "ReplicaSet", f"web-{template}", f"uid-rs-{template}")
    return {
        "metadata": {
            "generateName": f"web-{template}-",
            "labels": {"pod-template-hash": template},
            "annotations": dict(annotations or {}),
            "ownerReferences": [{**owner.to_reference(), "controller": True}],
        },
        "spec": {"containers": [{"name": name, "image": text} for name, text in images.items()]},
    }


def create(pod: Any = None, mode: Mode = Mode.PIN, **fields: Any) -> Admission:
    return Admission(
        mode=mode,
        operation="CREATE",
        namespace="shop",
        pod=pod_of() if pod is None else pod,
        **{"user": MANAGER, **fields},
    )


def patched(admission: Admission, verdict: Verdict) -> Any:
    """The pod as the API server goes on with it."""
    changes = json.loads(json.dumps(verdict.operations))
    return jsonpatch.apply_patch(copy.deepcopy(admission.pod), changes)


def texts(pod: Any) -> dict[str, str]:
    return {image.name: image.text for image in workload.images(pod)}


def annotations_of(admission: Admission, verdict: Verdict) -> dict[str, str]:
    return dict(workload.annotations(patched(admission, verdict)))


def images_of(admission: Admission, verdict: Verdict) -> dict[str, str]:
    return texts(patched(admission, verdict))


def annotated(**pins: Pin | Failure) -> dict[str, str]:
    return {PINS_ANNOTATION: to_annotation(pins)}


def down(image: str, reason: Reason = Reason.UNREACHABLE) -> Unresolvable:
    return Unresolvable(reason, f"the registry of {image} is down")


def sibling(*images: tuple[str, str], **fields: Any) -> dict[str, Any]:
    pod = pod_of(dict(images))
    return {**pod, **fields}


# --- the first pod, and the later ones ---------------------------------------------------------


@pytest.mark.parametrize("mode", WRITING)
async def test_the_first_pod_of_a_revision_records_what_its_tags_name(mode: Mode) -> None:
    shop = Shop()
    admission = create(pod_of({"app": "nginx:1.25", "db": "redis:7"}), mode)

    verdict = await shop.admit(admission)

    assert verdict.result is Result.PINNED
    assert images_of(admission, verdict) == {
        "app": f"nginx:1.25@{NGINX}",
        "db": f"redis:7@{REDIS}",
    }
    assert shop.recorded() == {
        "nginx:1.25": Pin("nginx:1.25", NGINX, Source.REGISTRY, NOW),
        "redis:7": Pin("redis:7", REDIS, Source.REGISTRY, NOW),
    }
    assert shop.ledger.records[NAME].revision == REVISION
    assert annotations_of(admission, verdict) == {
        PINS_ANNOTATION: to_annotation(verdict.pins),
        REVISION_ANNOTATION: NAME,
    }
    assert verdict.audit["revision"] == NAME
    assert verdict.warnings == ()


@pytest.mark.parametrize("mode", Mode)
async def test_a_later_pod_takes_the_recorded_digest_and_asks_nobody(mode: Mode) -> None:
    shop = Shop()
    await shop.admit(create())
    shop.push("docker.io/library/nginx:1.25", OTHER)
    asked, read = list(shop.resolver.asked), list(shop.secrets.asked)
    admission = create(mode=mode)

    verdict = await shop.admit(admission)

    assert verdict.pins == {"app": Pin("nginx:1.25", NGINX, Source.LEDGER, NOW)}
    assert shop.resolver.asked == asked
    assert shop.secrets.asked == read
    assert shop.ledger.calls == ["look_up", "write", "look_up"]
    assert annotations_of(admission, verdict)[REVISION_ANNOTATION] == NAME


async def test_a_new_revision_resolves_anew_and_a_rollback_finds_the_old_bytes() -> None:
    shop = Shop()
    await shop.admit(create(pod_of(template="old")))
    shop.push("docker.io/library/nginx:1.25", OTHER)
    shop.resolver.clock.advance(60)

    new = await shop.admit(create(pod_of(template="new")))
    rolled_back = await shop.admit(create(pod_of(template="old")))

    assert new.pins == {
        "app": Pin("nginx:1.25", OTHER, Source.REGISTRY, NOW + timedelta(seconds=60))
    }
    assert rolled_back.pins == {"app": Pin("nginx:1.25", NGINX, Source.LEDGER, NOW)}


async def test_a_pod_without_a_revision_is_resolved_for_itself() -> None:
    shop = Shop()
    pod = pod_of()
    del pod["metadata"]["ownerReferences"]

    first = create(pod)
    verdict = await shop.admit(first)

    assert shop.ledger.calls == []
    assert annotations_of(first, verdict).keys() == {PINS_ANNOTATION}
    assert verdict.audit.keys() == {"mode", "result", "pins"}


async def test_one_image_of_two_containers_is_recorded_once_and_is_the_same_for_both() -> None:
    shop = Shop()
    admission = create(pod_of({"app": "nginx:1.25", "web": "nginx:1.25", "w2": "nginx"}))

    verdict = await shop.admit(admission)

    assert set(shop.recorded()) == {"nginx:1.25", "nginx"}
    assert images_of(admission, verdict)["app"] == images_of(admission, verdict)["web"]


async def test_a_digest_that_came_with_the_pod_is_not_recorded() -> None:
    shop = Shop()

    verdict = await shop.admit(create(pod_of({"app": f"nginx@{OLD}", "db": "redis:7"})))

    assert set(shop.recorded()) == {"redis:7"}
    assert verdict.pins["app"] == Pin(f"nginx@{OLD}", OLD, Source.GIVEN)


@pytest.mark.parametrize("mode", Mode)
async def test_a_pod_of_digests_does_not_need_the_ledger(mode: Mode) -> None:
    shop = Shop(unreadable="down")

    verdict = await shop.admit(create(pod_of({"app": f"nginx@{OLD}"}), mode))

    assert verdict.allowed
    assert shop.ledger.calls == []


# --- two pods at once --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", WRITING)
async def test_of_two_first_pods_both_run_what_was_recorded_first(mode: Mode) -> None:
    """Replicas race, and each may have been told another digest."""
    theirs = Pin("nginx:1.25", OTHER, Source.CACHE, NOW - timedelta(seconds=1))
    shop = Shop(overtaken_by=record_of(theirs))
    admission = create(pod_of({"app": "nginx:1.25", "db": "redis:7"}), mode)

    verdict = await shop.admit(admission)

    assert verdict.pins["app"] == replace(theirs, source=Source.LEDGER)
    assert images_of(admission, verdict) == {
        "app": f"nginx:1.25@{OTHER}",
        "db": f"redis:7@{REDIS}",
    }
    assert shop.recorded()["nginx:1.25"] == theirs
    assert shop.recorded()["redis:7"] == verdict.pins["db"]


async def test_who_was_overtaken_with_the_same_answer_says_what_is_recorded() -> None:
    """Else a second pass over the pod would correct the first."""
    theirs = Pin("nginx:1.25", NGINX, Source.CACHE, NOW - timedelta(seconds=1))
    shop = Shop(overtaken_by=record_of(theirs))

    verdict = await shop.admit(create())

    assert verdict.pins == {"app": replace(theirs, source=Source.LEDGER)}


async def test_what_others_recorded_meanwhile_serves_an_image_that_failed() -> None:
    """With the second pass over the pod, if there is one; else the next pod gets it."""
    theirs = Pin("nginx:1.25", OTHER, Source.REGISTRY, NOW)
    shop = Shop(overtaken_by=record_of(theirs))
    shop.push("docker.io/library/nginx:1.25", down("nginx:1.25"))
    admission = create(pod_of({"app": "nginx:1.25", "db": "redis:7"}))

    first = await shop.admit(admission)
    again = replace(admission, pod=patched(admission, first))
    second = await shop.admit(again)

    assert first.result is Result.UNPINNED
    assert images_of(again, second) == {"app": f"nginx:1.25@{OTHER}", "db": f"redis:7@{REDIS}"}


async def test_however_many_pods_come_at_once_they_run_one_digest() -> None:
    shop = Shop(delay=0.001)
    replicas = [
        shop.replica(FakeResolver({"docker.io/library/nginx:1.25": digest_of(str(number))}))
        for number in range(20)
    ]

    verdicts = await asyncio.gather(*(replica.admit(create()) for replica in replicas))

    digests = {pin.digest for each in verdicts for pin in each.pins.values() if type(pin) is Pin}
    assert digests == {shop.recorded()["nginx:1.25"].digest}


# --- pods that cannot speak for a revision -----------------------------------------------------


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("user", [MANAGER, "ann"])
async def test_an_unproven_pod_neither_reads_nor_writes_a_record(mode: Mode, user: str) -> None:
    shop = Shop(unproven="it is another one")
    shop.keep(Pin("nginx:1.25", OTHER, Source.REGISTRY, NOW))
    before = copy.deepcopy(shop.ledger.records)
    admission = create(mode=mode, user=user)

    verdict = await shop.admit(admission)

    why = "it is another one" if user == MANAGER else f"not created by {user!r}"
    assert verdict.allowed
    assert verdict.pins == {"app": Pin("nginx:1.25", NGINX, Source.REGISTRY, NOW)}
    assert shop.ledger.records == before
    assert shop.ledger.calls == (["look_up"] if user == MANAGER else [])
    after = annotations_of(admission, verdict)
    assert after[UNRECORDED_ANNOTATION].endswith(why)
    assert REVISION_ANNOTATION not in after
    assert verdict.audit["unrecorded"] == after[UNRECORDED_ANNOTATION]
    assert verdict.notices == ()  # it may be all right: nobody needs to look
    assert not verdict.standing.is_fault


# --- a ledger that fails -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", Mode)
async def test_where_the_ledger_cannot_be_read_the_mode_decides(mode: Mode) -> None:
    """Resolving anew would break the promise in silence."""
    shop = Shop(unreadable="the API server did not answer in time")
    admission = create(pod_of({"app": "nginx:1.25", "given": f"redis@{OLD}"}), mode)

    verdict = await shop.admit(admission)

    message = (
        "nginx:1.25 has no digest, since the ledger is unreadable: "
        "the API server did not answer in time"
    )
    assert verdict.pins["app"] == Failure("nginx:1.25", Reason.LEDGER, message)
    assert verdict.allowed is (mode is not Mode.ENFORCE)
    assert f'container "app": {message} (ledger)' in (verdict.message or verdict.warnings[0])
    assert verdict.notices
    assert shop.resolver.asked == []
    assert shop.ledger.calls == ["look_up"]
    assert texts(patched(admission, verdict)) == texts(admission.pod)


@pytest.mark.parametrize("mode", WRITING)
async def test_where_the_ledger_cannot_be_written_the_pod_is_pinned_all_the_same(
    mode: Mode,
) -> None:
    shop = Shop(unwritable="the quota of ImagePins is used up")
    admission = create(mode=mode)

    verdict = await shop.admit(admission)

    notice = "the quota of ImagePins is used up: the next pod may get another digest"
    after = annotations_of(admission, verdict)
    assert verdict.result is Result.PINNED
    assert images_of(admission, verdict) == {"app": f"nginx:1.25@{NGINX}"}
    assert after[UNRECORDED_ANNOTATION] == "the quota of ImagePins is used up"
    assert REVISION_ANNOTATION not in after
    assert verdict.audit["unrecorded"] == "the quota of ImagePins is used up"
    assert verdict.audit["revision"] == NAME
    assert verdict.warnings == (notice,)
    assert verdict.standing.notice == notice
    assert verdict.standing.is_fault


async def test_what_could_not_be_written_is_written_with_the_next_pod() -> None:
    shop = Shop(unwritable="down")
    await shop.admit(create())
    shop.ledger.unwritable = ""

    verdict = await shop.admit(create())

    assert not verdict.standing.unrecorded
    assert shop.recorded()["nginx:1.25"] == verdict.pins["app"]


async def test_a_record_that_cannot_be_added_to_still_serves() -> None:
    shop = Shop(unwritable="down")
    shop.keep(Pin("nginx:1.25", OLD, Source.REGISTRY, NOW))
    admission = create(pod_of({"app": "nginx:1.25", "side": "redis:7"}))

    verdict = await shop.admit(admission)

    assert images_of(admission, verdict) == {"app": f"nginx:1.25@{OLD}", "side": f"redis:7@{REDIS}"}
    after = annotations_of(admission, verdict)
    assert (after[REVISION_ANNOTATION], after[UNRECORDED_ANNOTATION]) == (NAME, "down")


async def test_a_namespace_that_is_going_away_is_nobodys_fault() -> None:
    shop = Shop(unwritable="the namespace is going away", is_fault=False)
    admission = create()

    verdict = await shop.admit(admission)

    after = annotations_of(admission, verdict)
    assert verdict.result is Result.PINNED
    assert after[UNRECORDED_ANNOTATION] == "the namespace is going away"
    assert verdict.warnings == verdict.notices == ()
    assert verdict.standing.notice == ""


@pytest.mark.parametrize("mode", WRITING)
async def test_an_answer_of_others_that_cannot_be_read_is_not_guessed(mode: Mode) -> None:
    """After a conflict there is one, and ours may be another."""
    shop = Shop(unanswered="the API server is down")
    shop.keep(Pin("redis:7", OLD, Source.REGISTRY, NOW))
    admission = create(pod_of({"app": "nginx:1.25", "db": "redis:7"}), mode)

    verdict = await shop.admit(admission)

    assert verdict.pins["app"].to_json() == {"image": "nginx:1.25", "reason": "ledger"}
    assert verdict.pins["db"] == Pin("redis:7", OLD, Source.LEDGER, NOW)
    assert verdict.allowed is (mode is Mode.PIN)
    if mode is Mode.PIN:
        assert images_of(admission, verdict) == {"app": "nginx:1.25", "db": f"redis:7@{OLD}"}


@pytest.mark.parametrize("mode", WRITING)
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
async def test_siblings_that_cannot_be_listed_leave_an_image_without_a_digest(
    mode: Mode, *, known: bool
) -> None:
    """One of them may run it."""
    shop = Shop(unlistable="down", pods=[pod_of()])
    if known:
        shop.keep(Pin("redis:7", OLD, Source.REGISTRY, NOW))
    admission = create(pod_of({"app": "nginx:1.25", "db": "redis:7"}), mode)

    verdict = await shop.admit(admission)

    assert verdict.pins["app"].to_json() == {"image": "nginx:1.25", "reason": "ledger"}
    assert isinstance(verdict.pins["db"], Pin) is known
    assert shop.resolver.asked == []


async def test_all_calls_of_the_ledger_share_the_budget_of_the_pod() -> None:
    shop = Shop(delay=0.1, pods=[pod_of()])

    verdict = await shop.replica(shop.resolver, budget=2.0).admit(create())

    assert verdict.result is Result.PINNED
    assert shop.ledger.calls == ["look_up", "siblings", "write"]
    first, second, third = shop.ledger.limits
    assert 1.9 < first <= 2.0
    assert second <= first - 0.09
    assert third <= second - 0.09


async def test_a_registry_that_hangs_leaves_time_to_record_the_others() -> None:
    shop = Shop()
    shop.resolver.answers["slow.test/app:1"] = HANGS
    admission = create(pod_of({"slow": "slow.test/app:1", "app": "nginx:1.25"}))

    await shop.replica(shop.resolver, budget=0.4).admit(admission)

    assert set(shop.recorded()) == {"nginx:1.25"}
    assert all(limit <= 0.85 * 0.4 for limit in shop.resolver.limits)
    assert shop.ledger.limits[-1] > 0.01


# --- records that are not as they should be ----------------------------------------------------


async def test_a_record_that_is_full_is_told_and_holds_up_no_pod() -> None:
    shop = Shop()
    shop.keep(*(Pin(f"app:{number}", OLD, Source.REGISTRY, NOW) for number in range(MAX_PINS)))
    admission = create(pod_of({"app": "nginx:1.25", "old": "app:7"}))

    verdict = await shop.admit(admission)

    after = annotations_of(admission, verdict)
    assert images_of(admission, verdict) == {"app": f"nginx:1.25@{NGINX}", "old": f"app:7@{OLD}"}
    assert after[UNRECORDED_ANNOTATION] == (
        f"ImagePin {NAME} has no room (it takes 50 images of 512 characters) for nginx:1.25"
    )
    assert after[REVISION_ANNOTATION] == NAME
    assert verdict.standing.is_fault
    assert len(shop.recorded()) == MAX_PINS


async def test_a_reference_that_is_too_long_is_recorded_by_nobody() -> None:
    shop = Shop()
    host = ".".join(["a" * 60] * 6)
    long = f"{host}/{'x' * 200}:{'t' * 100}"
    assert len(long) > MAX_REFERENCE
    admission = create(pod_of({"app": "nginx:1.25", "long": long}))

    verdict = await shop.admit(admission)

    assert set(shop.recorded()) == {"nginx:1.25"}
    assert images_of(admission, verdict)["long"].startswith(f"{long}@sha256:")
    assert "has no room" in annotations_of(admission, verdict)[UNRECORDED_ANNOTATION]


@pytest.mark.parametrize("dry_run", [False, True], ids=["wet", "dry"])
async def test_a_record_that_nothing_finds_room_in_is_not_named(*, dry_run: bool) -> None:
    shop = Shop()
    long = f"{'.'.join(['a' * 60] * 6)}/{'x' * 200}:1"
    admission = create(pod_of({"long": long}), dry_run=dry_run)

    verdict = await shop.admit(admission)

    after = annotations_of(admission, verdict)
    assert shop.ledger.records == {}
    assert REVISION_ANNOTATION not in after
    assert "has no room" in after[UNRECORDED_ANNOTATION]


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("dry_run", [False, True], ids=["wet", "dry"])
async def test_the_record_of_another_revision_is_neither_taken_nor_changed(
    mode: Mode, *, dry_run: bool
) -> None:
    """Its name has a short hash, and whoever may write ImagePins can choose one."""
    shop = Shop()
    forged = ImagePin(
        replace(REVISION, hash="other"), {"nginx:1.25": Pin("nginx:1.25", OLD, Source.REGISTRY)}
    )
    shop.ledger.records[NAME] = forged
    admission = create(mode=mode, dry_run=dry_run)

    verdict = await shop.admit(admission)

    after = annotations_of(admission, verdict)
    assert verdict.pins == {"app": Pin("nginx:1.25", NGINX, Source.REGISTRY, NOW)}
    assert shop.ledger.records == {NAME: forged}
    assert after[UNRECORDED_ANNOTATION] == f"ImagePin {NAME} is of another revision"
    assert REVISION_ANNOTATION not in after
    assert verdict.standing.is_fault


async def test_so_is_one_that_another_wrote_meanwhile() -> None:
    forged = ImagePin(
        replace(REVISION, hash="other"), {"nginx:1.25": Pin("nginx:1.25", OLD, Source.REGISTRY)}
    )
    shop = Shop(overtaken_by=forged)
    admission = create()

    verdict = await shop.admit(admission)

    assert images_of(admission, verdict) == {"app": f"nginx:1.25@{NGINX}"}
    assert annotations_of(admission, verdict)[UNRECORDED_ANNOTATION].endswith("another revision")
    assert shop.ledger.records == {NAME: forged}


# --- where nothing is written ------------------------------------------------------------------


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("known", [(), ("nginx:1.25",), ("nginx:1.25", "redis:7")], ids=len)
async def test_a_dry_run_gets_the_same_answer_and_writes_nothing(
    mode: Mode, known: tuple[str, ...]
) -> None:
    wet, dry = Shop(), Shop()
    for shop in (wet, dry):
        shop.keep(*(Pin(text, OLD, Source.REGISTRY, NOW) for text in known))
        if not known:
            shop.ledger.records.clear()
    before = copy.deepcopy(dry.ledger.records)
    admission = create(pod_of({"app": "nginx:1.25", "db": "redis:7"}), mode)

    answer = await wet.admit(admission)

    assert await dry.admit(replace(admission, dry_run=True)) == answer
    assert dry.ledger.records == before
    assert "write" not in dry.ledger.calls


async def test_a_dry_run_knows_that_a_record_is_full() -> None:
    wet, dry = Shop(), Shop()
    admission = create(pod_of({f"c{number}": f"app:{number}" for number in range(MAX_PINS + 1)}))

    answer = await wet.admit(admission)

    assert await dry.admit(replace(admission, dry_run=True)) == answer
    assert "has no room" in answer.standing.unrecorded


async def test_audit_records_nothing() -> None:
    shop = Shop()
    admission = create(mode=Mode.AUDIT)

    verdict = await shop.admit(admission)

    assert verdict.result is Result.AUDITED
    assert shop.ledger.records == {}
    assert "write" not in shop.ledger.calls
    assert annotations_of(admission, verdict).keys() == {PINS_ANNOTATION}


async def test_a_pod_that_is_refused_records_nothing() -> None:
    """It never ran, and by the next attempt the tag may name another build."""
    shop = Shop()
    shop.push("docker.io/library/redis:7", Unresolvable(Reason.NOT_FOUND, "redis:7 is gone"))
    admission = create(pod_of({"app": "nginx:1.25", "db": "redis:7"}), Mode.ENFORCE)

    verdict = await shop.admit(admission)

    assert not verdict.allowed
    assert shop.ledger.records == {}
    assert "write" not in shop.ledger.calls


async def test_an_image_that_fails_in_pin_keeps_no_other_out_of_the_record() -> None:
    shop = Shop()
    shop.push("docker.io/library/redis:7", Unresolvable(Reason.NOT_FOUND, "redis:7 is gone"))

    verdict = await shop.admit(create(pod_of({"app": "nginx:1.25", "db": "redis:7"})))

    assert verdict.result is Result.UNPINNED
    assert set(shop.recorded()) == {"nginx:1.25"}


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("subresource", ["", "ephemeralcontainers", "resize"])
async def test_what_is_changed_by_hand_is_resolved_afresh_and_never_recorded(
    mode: Mode, subresource: str
) -> None:
    shop = Shop()
    shop.keep(Pin("redis:7", OLD, Source.REGISTRY, NOW))
    old = pod_of(annotations={REVISION_ANNOTATION: NAME})
    new = pod_of({"app": "redis:7"}, {REVISION_ANNOTATION: NAME})
    admission = replace(
        create(new, mode), operation="UPDATE", old=old, subresource=subresource, user=MANAGER
    )

    verdict = await shop.admit(admission)

    assert shop.ledger.calls == []
    assert verdict.pins == {"app": Pin("redis:7", REDIS, Source.REGISTRY, NOW)}
    assert shop.resolver.max_ages == [5.0]
    assert annotations_of(admission, verdict)[REVISION_ANNOTATION] == NAME


async def test_nor_is_what_comes_with_a_subresource_at_creation() -> None:
    shop = Shop()

    await shop.admit(create(subresource="ephemeralcontainers"))

    assert shop.ledger.calls == []


# --- how fresh an answer must be ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "accepted"),
    [
        (0.0, 0.0),
        (0.9, 0.0),  # its timestamp leaves out parts of a second
        (1.0, 0.0),
        (3.5, 2.5),
        (5.9, 4.9),
        (6.0, 5.0),
        (3600.0, 5.0),
        (-30.0, 0.0),  # the clocks differ
    ],
)
async def test_a_new_revision_takes_no_answer_from_before_it_was_created(
    age: float, accepted: float
) -> None:
    shop = Shop(created=NOW - timedelta(seconds=age))

    await shop.admit(create())

    assert shop.resolver.max_ages == [pytest.approx(accepted)]


async def test_a_build_that_was_pushed_before_its_rollout_is_never_missed() -> None:
    shop = Shop(created=NOW + timedelta(seconds=2))
    shop.resolver.remember("nginx:1.25", OLD)
    shop.resolver.clock.advance(2)

    verdict = await shop.admit(create())

    assert verdict.pins == {
        "app": Pin("nginx:1.25", NGINX, Source.REGISTRY, NOW + timedelta(seconds=2))
    }


async def test_what_was_asked_since_the_pod_arrived_serves_it() -> None:
    """It was created no later: the pods of one rollout share one question."""
    shop = Shop(created=NOW)

    class Slow(FakePullSecrets):
        async def read(self, *request: Any) -> Access:
            shop.resolver.clock.advance(0.5)
            return await FakePullSecrets.read(self, *request)

    shop.secrets = Slow()

    await shop.replica(shop.resolver).admit(create())

    assert shop.resolver.max_ages == [pytest.approx(0.5)]


async def test_a_revision_of_unknown_age_takes_no_answer_from_before_its_pod() -> None:
    shop = Shop(created=None)

    await shop.admit(create())

    assert shop.resolver.max_ages == [0.0]


async def test_a_clock_that_is_set_back_meanwhile_makes_no_answer_fresher() -> None:
    shop = Shop()

    class Slow(FakePullSecrets):
        async def read(self, *request: Any) -> Access:
            shop.resolver.clock.advance(-2000)
            return await FakePullSecrets.read(self, *request)

    shop.secrets = Slow()

    await shop.replica(shop.resolver).admit(create())

    assert shop.resolver.max_ages == [0.0]


@pytest.mark.parametrize("age", [0.0, 3600.0])
async def test_a_pod_without_a_revision_takes_an_answer_that_is_fresh(age: float) -> None:
    shop = Shop(created=NOW - timedelta(seconds=age), unproven="it is another one")

    await shop.replica(shop.resolver, freshness=7.5).admit(create())

    assert shop.resolver.max_ages == [7.5]


@pytest.mark.parametrize("age", [0.0, 3600.0])
async def test_what_is_injected_into_a_recorded_revision_may_come_from_the_cache(
    age: float,
) -> None:
    shop = Shop(created=NOW - timedelta(seconds=age))
    shop.keep(Pin("nginx:1.25", OLD, Source.REGISTRY, NOW))
    admission = create(pod_of({"app": "nginx:1.25", "proxy": "redis:7"}))

    verdict = await shop.replica(shop.resolver, cache_ttl=42.0).admit(admission)

    assert shop.resolver.asked == ["redis:7"]
    assert shop.resolver.max_ages == [42.0]
    assert list(shop.recorded().values()) == [
        Pin("nginx:1.25", OLD, Source.REGISTRY, NOW),
        verdict.pins["proxy"],
    ]
    assert images_of(admission, verdict) == {
        "app": f"nginx:1.25@{OLD}",
        "proxy": f"redis:7@{REDIS}",
    }


# --- a revision that already runs --------------------------------------------------------------


async def test_a_revision_that_runs_already_keeps_the_digest_of_its_siblings() -> None:
    shop = Shop(pods=[sibling(("app", f"nginx:1.25@{OLD}"))])
    admission = create(pod_of({"app": "nginx:1.25", "db": "redis:7"}))

    verdict = await shop.admit(admission)

    assert shop.resolver.asked == ["redis:7"]
    assert images_of(admission, verdict)["app"] == f"nginx:1.25@{OLD}"
    assert shop.recorded() == {
        "nginx:1.25": Pin("nginx:1.25", OLD, Source.SIBLINGS),
        "redis:7": Pin("redis:7", REDIS, Source.REGISTRY, NOW),
    }
    assert verdict.warnings == ()


@pytest.mark.parametrize("mode", WRITING)
async def test_siblings_that_disagree_are_resolved_anew_and_the_record_says_so(
    mode: Mode,
) -> None:
    status = {"containerStatuses": [{"name": "app", "imageID": f"nginx@{OLD}"}]}
    shop = Shop(
        pods=[
            sibling(("app", f"nginx:1.25@{OTHER}")),
            sibling(("app", "nginx:1.25"), status=status),
        ]
    )
    admission = create(mode=mode)

    verdict = await shop.admit(admission)
    later = await shop.admit(admission)

    notice = (
        'container "app": pods of the same revision run nginx:1.25 with different digests; '
        "it was resolved anew"
    )
    mixed = Pin("nginx:1.25", NGINX, Source.REGISTRY, NOW, mixed=True)
    assert shop.recorded() == {"nginx:1.25": mixed}
    assert verdict.notices == verdict.warnings == (notice,)
    assert later.pins == {"app": replace(mixed, source=Source.LEDGER)}
    assert later.notices == ()


async def test_siblings_that_say_nothing_leave_the_word_to_the_registry() -> None:
    shop = Shop(pods=[sibling(("app", "nginx:1.25"))])

    verdict = await shop.admit(create())

    assert verdict.pins == {"app": Pin("nginx:1.25", NGINX, Source.REGISTRY, NOW)}
    assert verdict.notices == ()


@pytest.mark.parametrize(
    ("pods", "recorded", "calls"),
    [
        ((), (), ["look_up", "write"]),
        ((pod_of(),), (), ["look_up", "siblings", "write"]),
        ((), ("redis:7",), ["look_up", "write"]),
        ((pod_of(),), ("redis:7",), ["look_up", "siblings", "write"]),
        ((pod_of(),), ("nginx:1.25",), ["look_up"]),
    ],
    ids=[
        "a new revision",
        "an old one",
        "a sidecar for the first pod",
        "a record without the image",
        "a record with it",
    ],
)
async def test_siblings_are_listed_only_where_one_may_run_what_is_not_recorded(
    pods: tuple[Any, ...], recorded: tuple[str, ...], calls: list[str]
) -> None:
    shop = Shop(pods=pods)
    if recorded:
        shop.keep(*(Pin(text, OLD, Source.REGISTRY, NOW) for text in recorded))

    await shop.admit(create())

    assert shop.ledger.calls == calls


async def test_a_record_is_believed_before_siblings() -> None:
    shop = Shop(pods=[sibling(("app", f"nginx:1.25@{OTHER}"), ("db", f"redis:7@{OTHER}"))])
    shop.keep(Pin("nginx:1.25", OLD, Source.REGISTRY, NOW))
    admission = create(pod_of({"app": "nginx:1.25", "db": "redis:7"}))

    verdict = await shop.admit(admission)

    assert images_of(admission, verdict) == {"app": f"nginx:1.25@{OLD}", "db": f"redis:7@{OTHER}"}


# --- while a registry is down ------------------------------------------------------------------

BEFORE = Revision("shop", WEB, "ReplicaSet", "web-old", "old")
LONG_BEFORE = Revision("shop", WEB, "ReplicaSet", "web-older", "older")
ELSEWHERE = Revision("shop", replace(WEB, uid="uid-2"), "ReplicaSet", "api-1", "1")
OUTAGES = [reason for reason in Reason if reason.is_outage]


def aged(seconds: float, digest: Digest = OLD, source: Source = Source.REGISTRY) -> Pin:
    return Pin("nginx:1.25", digest, source, NOW - timedelta(seconds=seconds))


@pytest.mark.parametrize("reason", OUTAGES)
@pytest.mark.parametrize("mode", WRITING)
async def test_a_new_revision_takes_the_workloads_newest_record(mode: Mode, reason: Reason) -> None:
    shop = Shop()
    shop.push("docker.io/library/nginx:1.25", down("nginx:1.25", reason))
    shop.keep(aged(1800, OTHER), revision=LONG_BEFORE)
    shop.keep(aged(600), revision=BEFORE)
    shop.keep(aged(60, OTHER), revision=ELSEWHERE)
    admission = create(mode=mode)

    verdict = await shop.admit(admission)

    stale = aged(600, source=Source.STALE)
    assert verdict.pins == {"app": stale}
    assert shop.recorded() == {"nginx:1.25": stale}
    assert images_of(admission, verdict) == {"app": f"nginx:1.25@{OLD}"}
    (notice,) = verdict.notices
    assert notice == (
        'container "app": the registry of nginx:1.25 is down: the digest known since '
        "2026-01-01T00:06:40Z is used"
    )


@pytest.mark.parametrize(
    ("seconds", "used"), [(3600.0, True), (3600.5, False), (90.0, True), (-5.0, True)]
)
async def test_a_record_stands_in_for_so_long_and_no_longer(seconds: float, *, used: bool) -> None:
    shop = Shop()
    shop.push("docker.io/library/nginx:1.25", down("nginx:1.25"))
    shop.keep(aged(seconds), revision=BEFORE)

    verdict = await shop.admit(create())

    assert isinstance(verdict.pins["app"], Pin) is used


async def test_how_long_is_for_the_operator_to_say() -> None:
    shop = Shop()
    shop.push("docker.io/library/nginx:1.25", down("nginx:1.25"))
    shop.keep(aged(11), revision=BEFORE)

    patient, strict = [
        await shop.replica(shop.resolver, stale_if_error=seconds).admit(create(dry_run=True))
        for seconds in (12.0, 10.0)
    ]

    assert isinstance(patient.pins["app"], Pin)
    assert isinstance(strict.pins["app"], Failure)


async def test_what_is_stale_stays_as_old_as_it_is() -> None:
    """Else a digest could be handed from revision to revision for ever."""
    shop = Shop()
    shop.push("docker.io/library/nginx:1.25", down("nginx:1.25"))
    shop.keep(aged(0), revision=LONG_BEFORE)
    shop.resolver.clock.advance(3000)
    await shop.admit(create(pod_of(template="old")))
    shop.resolver.clock.advance(1200)

    verdict = await shop.admit(create())

    assert isinstance(verdict.pins["app"], Failure)


async def test_siblings_that_disagree_make_a_stale_record_mixed_too() -> None:
    shop = Shop(pods=[sibling(("app", f"nginx:1.25@{digest}")) for digest in (OTHER, NGINX)])
    shop.push("docker.io/library/nginx:1.25", down("nginx:1.25"))
    shop.keep(aged(600), revision=BEFORE)

    await shop.admit(create())

    stale = replace(aged(600), source=Source.STALE, mixed=True)
    assert shop.recorded() == {"nginx:1.25": stale}


async def test_a_record_is_taken_before_the_cache() -> None:
    shop = Shop()
    shop.resolver.remember("nginx:1.25", OTHER)
    shop.push("docker.io/library/nginx:1.25", down("nginx:1.25"))
    shop.keep(aged(600), revision=BEFORE)
    shop.resolver.clock.advance(30)

    verdict = await shop.admit(create())

    assert verdict.pins == {"app": aged(600, source=Source.STALE)}


@pytest.mark.parametrize("fault", ["", "down"])
async def test_without_a_record_the_cache_stands_in(fault: str) -> None:
    shop = Shop(unlistable=fault)
    shop.resolver.remember("nginx:1.25", OTHER)
    shop.push("docker.io/library/nginx:1.25", down("nginx:1.25"))
    if fault:
        shop.keep(aged(600), revision=BEFORE)
    shop.resolver.clock.advance(30)

    verdict = await shop.admit(create())

    assert verdict.pins == {"app": Pin("nginx:1.25", OTHER, Source.STALE, NOW)}
    assert shop.recorded() == {"nginx:1.25": verdict.pins["app"]}


@pytest.mark.parametrize("mode", Mode)
async def test_without_either_the_mode_decides(mode: Mode) -> None:
    shop = Shop()
    shop.push("docker.io/library/nginx:1.25", down("nginx:1.25"))
    shop.keep(Pin("nginx:1.25", OLD, Source.SIBLINGS), revision=BEFORE)  # nobody knows how old

    verdict = await shop.admit(create(mode=mode))

    assert verdict.pins["app"].to_json() == {"image": "nginx:1.25", "reason": "unreachable"}
    assert verdict.allowed is (mode is not Mode.ENFORCE)


@pytest.mark.parametrize("reason", [reason for reason in Reason if not reason.is_outage])
async def test_a_registry_that_says_no_is_not_contradicted(reason: Reason) -> None:
    shop = Shop()
    shop.push("docker.io/library/nginx:1.25", down("nginx:1.25", reason))
    shop.keep(aged(60), revision=BEFORE)

    verdict = await shop.admit(create())

    assert verdict.pins["app"].to_json() == {"image": "nginx:1.25", "reason": reason.value}
    assert "history" not in shop.ledger.calls


async def test_a_recorded_revision_never_notices_an_outage() -> None:
    shop = Shop()
    shop.keep(aged(1_000_000))
    shop.push("docker.io/library/nginx:1.25", down("nginx:1.25"))

    verdict = await shop.admit(create(mode=Mode.ENFORCE))

    assert verdict.pins == {"app": aged(1_000_000, source=Source.LEDGER)}
    assert verdict.notices == ()


async def test_a_pod_of_no_revision_has_no_history() -> None:
    shop = Shop(unproven="it is another one")
    shop.keep(aged(60), revision=BEFORE)
    shop.push("docker.io/library/nginx:1.25", down("nginx:1.25"))

    verdict = await shop.admit(create())

    assert isinstance(verdict.pins["app"], Failure)
    assert shop.ledger.calls == ["look_up"]


# --- a second pass, and what comes with a pod --------------------------------------------------


FAULTS: dict[str, dict[str, Any]] = {
    "none": {},
    "unproven": {"unproven": "it is another one"},
    "unreadable": {"unreadable": "down"},
    "unwritable": {"unwritable": "down"},
    "going away": {"unwritable": "going away", "is_fault": False},
    "unanswered": {"unanswered": "down"},
    "recorded": {"records": {NAME: record_of(Pin("nginx:1.25", OLD, Source.STALE, NOW))}},
    "full": {"records": {NAME: record_of(*(Pin(f"a:{n}", OLD, Source.CACHE) for n in range(50)))}},
    "taken": {"records": {NAME: record_of(revision=replace(REVISION, hash="other"))}},
    "overtaken": {"overtaken_by": record_of(Pin("nginx:1.25", OTHER, Source.CACHE, NOW))},
    "overtaken by the same": {
        "overtaken_by": record_of(Pin("nginx:1.25", NGINX, Source.CACHE, NOW))
    },
}
"""States that a pod may find the ledger in."""


def faulty(name: str) -> Shop:
    return Shop(**copy.deepcopy(FAULTS[name]))


SITUATIONS = ["up", "down", "cached", "siblings", "mixed", "down with siblings that disagree"]


def in_situation(shop: Shop, name: str) -> None:
    """What registry and siblings say of nginx:1.25."""
    if "down" in name:
        shop.push("docker.io/library/nginx:1.25", down("nginx:1.25"))
        shop.keep(aged(600), revision=BEFORE)
    if name == "cached":
        shop.ledger.created = NOW - timedelta(hours=1)
        shop.resolver.remember("nginx:1.25", NGINX)
        shop.resolver.clock.advance(2)
    if name == "siblings":
        shop.ledger.pods = [sibling(("app", f"nginx:1.25@{OLD}"), ("web", f"nginx:1.25@{OLD}"))]
    if name in ("mixed", "down with siblings that disagree"):
        shop.ledger.pods = [sibling(("app", f"nginx:1.25@{digest}")) for digest in (OLD, OTHER)]


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("dry_run", [False, True], ids=["wet", "dry"])
@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_second_pass_over_a_pod_of_a_revision_is_empty(
    fault: str, situation: str, mode: Mode, *, dry_run: bool
) -> None:
    shop = faulty(fault)
    in_situation(shop, situation)
    images = {"app": "nginx:1.25", "web": "nginx:1.25", "db": f"redis@{OLD}"}
    admission = create(pod_of(images), mode, dry_run=dry_run)

    first = await shop.admit(admission)
    second = await shop.admit(replace(admission, pod=patched(admission, first)))

    assert second.allowed is first.allowed
    assert second.notices == first.notices
    if "down" in situation and fault in ("unwritable", "going away", "full"):
        # What is stale may not be written on a pod's word, so another reason may be given.
        assert {each["path"] for each in second.operations} <= {UNRECORDED_PATH}
        assert bool(second.standing.unrecorded) is bool(first.standing.unrecorded)
    else:
        assert list(second.operations) == []
        assert second.standing == first.standing


async def test_a_second_pass_over_a_recorded_pod_reads_the_record_and_nothing_else() -> None:
    shop = Shop(pods=[pod_of()])
    admission = create()
    first = await shop.admit(admission)
    asked, read = list(shop.resolver.asked), list(shop.secrets.asked)
    shop.ledger.calls.clear()

    await shop.admit(replace(admission, pod=patched(admission, first)))

    assert shop.ledger.calls == ["look_up"]
    assert (shop.resolver.asked, shop.secrets.asked) == (asked, read)


async def test_what_was_recorded_meanwhile_is_taken_by_the_second_pass() -> None:
    """An image of the first pass that could not be resolved."""
    shop = Shop(unreadable="down")
    admission = create()
    first = await shop.admit(admission)
    shop.ledger.unreadable = ""
    shop.keep(Pin("nginx:1.25", OLD, Source.REGISTRY, NOW))
    again = replace(admission, pod=patched(admission, first))

    second = await shop.admit(again)

    assert images_of(again, second) == {"app": f"nginx:1.25@{OLD}"}


async def test_what_the_first_pass_could_not_write_is_tried_again() -> None:
    shop = Shop(unwritable="down")
    admission = create()
    first = await shop.admit(admission)
    shop.ledger.unwritable = ""
    again = replace(admission, pod=patched(admission, first))

    second = await shop.admit(again)

    after = annotations_of(again, second)
    assert shop.recorded() == {"nginx:1.25": Pin("nginx:1.25", NGINX, Source.REGISTRY, NOW)}
    assert (after[REVISION_ANNOTATION], UNRECORDED_ANNOTATION in after) == (NAME, False)


async def test_so_is_an_answer_that_was_only_just_fresh_in_the_first_pass() -> None:
    shop = Shop(unwritable="down")
    shop.ledger.created = NOW - timedelta(hours=1)
    shop.resolver.remember("nginx:1.25", NGINX)
    shop.resolver.clock.advance(4.9)
    admission = create()
    first = await shop.admit(admission)
    shop.ledger.unwritable = ""
    shop.resolver.clock.advance(0.5)

    await shop.admit(replace(admission, pod=patched(admission, first)))

    assert shop.recorded() == {"nginx:1.25": Pin("nginx:1.25", NGINX, Source.CACHE, NOW)}


async def test_a_ledger_that_cannot_even_be_read_the_second_time_is_told() -> None:
    shop = Shop(unwritable="no room in etcd")
    admission = create(mode=Mode.ENFORCE)
    first = await shop.admit(admission)
    shop.ledger.unreadable = "down"
    again = replace(admission, pod=patched(admission, first))

    second = await shop.admit(again)

    assert second.pins == first.pins
    assert annotations_of(again, second)[UNRECORDED_ANNOTATION] == "down"
    assert second.standing.is_fault


@pytest.mark.parametrize("fault", ["", "down"])
async def test_what_a_pod_has_from_an_earlier_pass_is_not_taken_back(fault: str) -> None:
    """The record may say another digest by now, but the pod's image says what it runs."""
    shop = Shop(unwritable="down")
    admission = create(mode=Mode.ENFORCE)
    first = await shop.admit(admission)
    theirs = ImagePin(REVISION, {"nginx:1.25": Pin("nginx:1.25", OTHER, Source.CACHE, NOW)})
    shop.ledger = FakeLedger(overtaken_by=theirs, unanswered=fault)
    again = replace(admission, pod=patched(admission, first))

    second = await shop.replica(shop.resolver).admit(again)

    assert second.allowed
    assert images_of(again, second) == {"app": f"nginx:1.25@{NGINX}"}
    assert second.pins == first.pins
    told = fault or f"ImagePin {NAME} has another digest for nginx:1.25"
    assert annotations_of(again, second)[UNRECORDED_ANNOTATION] == told
    assert second.standing.is_fault


async def test_what_contradicts_a_record_that_was_made_since_the_first_pass_is_told() -> None:
    shop = Shop(unwritable="down")
    admission = create()
    first = await shop.admit(admission)
    shop.keep(Pin("nginx:1.25", OTHER, Source.REGISTRY, NOW))
    again = replace(admission, pod=patched(admission, first))

    second = await shop.admit(again)
    third = await shop.admit(replace(again, pod=patched(again, second)))

    told = f"ImagePin {NAME} has another digest for nginx:1.25"
    assert images_of(again, second) == {"app": f"nginx:1.25@{NGINX}"}
    assert annotations_of(again, second)[UNRECORDED_ANNOTATION] == told
    assert second.standing.notice
    assert list(third.operations) == []


@pytest.mark.parametrize("mode", WRITING)
async def test_a_record_that_was_made_anew_meanwhile_serves_every_image_of_the_pod(
    mode: Mode,
) -> None:
    """Deleted and made again by another replica, while this one remembered the old one."""
    shop = Shop()
    shop.keep(Pin("nginx:1.25", OLD, Source.REGISTRY, NOW))
    shop.ledger.overtaken_by = record_of(Pin("nginx:1.25", OTHER, Source.REGISTRY, NOW))
    admission = create(pod_of({"app": "nginx:1.25", "proxy": "redis:7"}), mode)

    verdict = await shop.admit(admission)

    runs = {pin.image: str(pin.digest) for pin in shop.recorded().values()}
    assert images_of(admission, verdict) == {
        "app": f"nginx:1.25@{OTHER}",
        "proxy": f"redis:7@{runs['redis:7']}",
    }


async def test_a_container_that_is_injected_later_joins_the_record() -> None:
    shop = Shop()
    admission = create()
    first = await shop.admit(admission)
    pod = patched(admission, first)
    pod["spec"]["containers"].insert(0, {"name": "proxy", "image": "redis:7"})

    second = await shop.admit(replace(admission, pod=pod))

    assert shop.recorded() == {
        "nginx:1.25": first.pins["app"],
        "redis:7": second.pins["proxy"],
    }
    assert second.pins["app"] == first.pins["app"]
    assert shop.resolver.max_ages == [5.0, 60.0]


@pytest.mark.parametrize("source", Source)
async def test_a_claim_that_the_record_contradicts_is_a_given_digest(source: Source) -> None:
    shop = Shop()
    shop.keep(Pin("nginx:1.25", NGINX, Source.REGISTRY, NOW))
    forged = Pin("nginx:1.25", OTHER, source, NOW)
    admission = create(pod_of({"app": f"nginx:1.25@{OTHER}"}, annotated(app=forged)))

    verdict = await shop.admit(admission)

    assert verdict.pins == {"app": Pin(f"nginx:1.25@{OTHER}", OTHER, Source.GIVEN)}
    assert shop.recorded() == {"nginx:1.25": Pin("nginx:1.25", NGINX, Source.REGISTRY, NOW)}
    assert "write" not in shop.ledger.calls


@pytest.mark.parametrize("source", Source)
@pytest.mark.parametrize(
    "pods",
    [
        (),
        (sibling(("app", f"nginx:1.25@{NGINX}")),),
        (sibling(("app", f"nginx:1.25@{OTHER}")), sibling(("app", f"nginx:1.25@{NGINX}"))),
    ],
    ids=["no siblings", "siblings of another digest", "siblings that disagree"],
)
async def test_a_claim_that_nobody_confirms_is_a_given_digest_and_not_recorded(
    source: Source, pods: tuple[Any, ...]
) -> None:
    shop = Shop(pods=pods)
    shop.resolver.remember("nginx:1.25", NGINX)
    shop.keep(aged(600, NGINX), revision=BEFORE)
    forged = Pin("nginx:1.25", OTHER, source, NOW)
    admission = create(pod_of({"app": f"nginx:1.25@{OTHER}"}, annotated(app=forged)))

    verdict = await shop.admit(admission)

    assert verdict.pins == {"app": Pin(f"nginx:1.25@{OTHER}", OTHER, Source.GIVEN)}
    assert NAME not in shop.ledger.records


@pytest.mark.parametrize("source", [*Source])
async def test_a_claim_that_the_record_bears_out_is_told_in_our_words(source: Source) -> None:
    shop = Shop()
    recorded = Pin("nginx:1.25", NGINX, Source.CACHE, NOW)
    shop.keep(recorded)
    claim = Pin("nginx:1.25", NGINX, source, NOW)
    admission = create(pod_of({"app": f"nginx:1.25@{NGINX}"}, annotated(app=claim)))

    verdict = await shop.admit(admission)

    said = recorded if source is Source.CACHE else replace(recorded, source=Source.LEDGER)
    assert verdict.pins == {"app": said}
    assert shop.resolver.asked == []
    assert shop.secrets.asked == []


async def test_a_claim_of_another_image_is_not_borne_out_by_the_record() -> None:
    """The digest is recorded, but for another reference."""
    shop = Shop()
    shop.keep(Pin("nginx:1.25", NGINX, Source.REGISTRY, NOW))
    claim = Pin("nginx:1.24", NGINX, Source.LEDGER, NOW)
    admission = create(pod_of({"app": f"nginx:1.24@{NGINX}"}, annotated(app=claim)))

    verdict = await shop.admit(admission)

    assert verdict.pins == {"app": Pin(f"nginx:1.24@{NGINX}", NGINX, Source.GIVEN)}


async def test_only_what_a_pods_own_credentials_were_told_is_recorded_of_a_claim() -> None:
    shop = Shop()
    bob = Keychain((("docker.io", Credential("bob", "pw")),))
    known = shop.resolver.remember("nginx:1.25", OTHER, bob)
    claim = Pin("nginx:1.25", OTHER, Source.REGISTRY, known.resolved_at)
    admission = create(pod_of({"app": f"nginx:1.25@{OTHER}"}, annotated(app=claim)))

    stranger = await shop.admit(admission)
    assert stranger.pins == {"app": Pin(f"nginx:1.25@{OTHER}", OTHER, Source.GIVEN)}
    assert shop.ledger.records == {}

    shop.secrets.answer = Access(bob)
    assert (await shop.admit(admission)).pins == {"app": claim}


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("fault", ["none", "unproven", "unwritable", "recorded"])
async def test_what_a_new_pod_says_of_its_revision_is_not_believed(mode: Mode, fault: str) -> None:
    forged = {REVISION_ANNOTATION: "web-12345678", UNRECORDED_ANNOTATION: "forged", "note": "kept"}
    honest, liar = create(pod_of(), mode), create(pod_of(annotations=forged), mode)

    told = annotations_of(honest, await faulty(fault).admit(honest))
    after = annotations_of(liar, await faulty(fault).admit(liar))

    assert after == {**told, "note": "kept"}


async def test_the_record_on_a_pod_can_be_read_back() -> None:
    shop = Shop(pods=[sibling(("app", f"nginx:1.25@{OLD}"))])
    admission = create(pod_of({"app": "nginx:1.25", "db": "redis:7"}))

    verdict = await shop.admit(admission)

    assert from_annotation(annotations_of(admission, verdict)[PINS_ANNOTATION]) == verdict.pins


# What is in memory

LIKE_THE_OTHERS = {
    "a tag": create(),
    "two tags": create(pod_of({"app": "nginx:1.25", "side": "redis:7"})),
    "a digest beside it": create(pod_of({"app": "nginx:1.25", "side": f"redis@{REDIS}"})),
    "what is no reference": create(pod_of({"app": "nginx:1.25", "side": "NGINX"})),
    "in enforce": create(mode=Mode.ENFORCE),
    "in audit": create(mode=Mode.AUDIT),
    "a dry run": create(dry_run=True),
    "with annotations": create(pod_of(annotations={"team": "a", "tagpin.dev/revision": "x"})),
}
UNLIKE = {
    "an image that is not recorded": create(pod_of({"app": "nginx:1.25", "new": "busybox:1"})),
    "another's pod": create(user="jane"),
    "another revision's": create(pod_of(template="77aa")),
    "a second pass": create(
        pod_of({"app": f"nginx:1.25@{OLD}"}, {PINS_ANNOTATION: to_annotation({"app": NGINX_OLD})})
    ),
    "an update": replace(create(), operation="UPDATE", old=pod_of({"app": "nginx:1"})),
}


def remembering(*, remembers: bool) -> Shop:
    shop = Shop(remembers=remembers)
    shop.keep(NGINX_OLD, Pin("redis:7", OTHER, Source.STALE, NOW))
    return shop


@pytest.mark.parametrize("admission", LIKE_THE_OTHERS.values(), ids=LIKE_THE_OTHERS)
async def test_what_is_in_memory_leads_to_the_same_verdict(admission: Admission) -> None:
    asked, knowing = remembering(remembers=False), remembering(remembers=True)
    assert await knowing.admit(admission) == await asked.admit(admission)
    assert asked.ledger.calls == ["look_up"]
    assert knowing.ledger.calls == []


@pytest.mark.parametrize("admission", UNLIKE.values(), ids=UNLIKE)
async def test_what_memory_cannot_tell_is_asked_for(admission: Admission) -> None:
    asked, knowing = remembering(remembers=False), remembering(remembers=True)
    assert await knowing.admit(admission) == await asked.admit(admission)
    assert knowing.ledger.calls == asked.ledger.calls


async def test_who_is_in_memory_waits_for_nobodys_turn() -> None:
    shop = remembering(remembers=True)
    pinner = shop.replica(shop.resolver, per_namespace=1, budget=0.5)
    shop.resolver.answers["docker.io/library/slow:1"] = HANGS
    slow = asyncio.create_task(pinner.admit(create(pod_of({"app": "slow:1"}, template="77aa"))))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(0.2):
        assert (await pinner.admit(create())).result is Result.PINNED
    assert not slow.done()
    await slow
