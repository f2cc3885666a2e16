"""The judge can say no."""

from dataclasses import replace
from typing import Any

import pytest

from chaos.judge import BOUNDS, Cause, cause_of, judge
from chaos.seen import Complaint, Creation, Episode, Fault, Sample, Seen, Unanswered

DIGESTS = [f"sha256:{number:064x}" for number in range(3)]
TAG = "127.0.0.1:5000/hot:0"
PINNED = f"{TAG}@{DIGESTS[0]}"
CREATED = Creation(
    "strict-1", "enforce", "web-1", 101, 101.1, 201, images={"app": PINNED}, owner="rs", record="r"
)
WEBHOOK = 'admission webhook "enforce.tagpin.dev" denied the request: 1 image cannot be pinned: '
POLICY = "ValidatingAdmissionPolicy 'tagpin-require-digest' with binding 'tagpin-require-digest'"
FAILED = 'Internal error occurred: failed calling webhook "enforce.tagpin.dev": EOF'
HELD = Sample(memory=100, files=30, tasks=20, connections=3)
SEEN = Seen(
    began=100,
    ended=200,
    episodes=(),
    left_out=(),
    creations=(CREATED,),
    stored={"strict-1/web-1": {"app": PINNED}},
    forgotten=frozenset(),
    unanswered=(),
    before={"replica 1": HELD},
    after={"replica 1": HELD},
    complaints=(),
    unhealed=(),
)
NO_TAG = "no pod in enforce has a tag"
ONE_DIGEST = "every revision has one digest per image"
NO_REFUSAL = "no pod is refused but for a fault of that time"
ANSWERS = "the API server answers"
NO_LEAK = "nothing leaks"


def wrong(seen: Seen) -> set[str]:
    return {finding.question for finding in judge(seen) if not finding.holds}


def refused(message: str, at: float = 150, *, code: int = 500, mode: str = "enforce") -> Creation:
    return Creation("strict-1", mode, "web-2", at, at + 0.1, code, message)


def test_all_is_well_where_nothing_is_wrong() -> None:
    assert wrong(SEEN) == set()


def test_nothing_seen_is_no_proof() -> None:
    nothing = replace(SEEN, creations=(), stored={}, before={}, after={})
    assert wrong(nothing) == {finding.question for finding in judge(SEEN)}


@pytest.mark.parametrize("image", [TAG, f"{TAG}@sha256:abc", "nginx"])
def test_a_tag_in_enforce_is_found_at_creation_and_at_the_end(image: str) -> None:
    created = replace(CREATED, images={"app": PINNED, "other": image})
    assert wrong(replace(SEEN, creations=(created,))) == {NO_TAG}
    assert wrong(replace(SEEN, stored={"strict-1/web-1": {"app": image}})) == {NO_TAG}
    lenient = replace(created, mode="pin")
    assert wrong(replace(SEEN, creations=(CREATED, lenient))) == set()


def test_a_pod_whose_images_nobody_saw_proves_nothing() -> None:
    assert wrong(replace(SEEN, creations=(CREATED, replace(CREATED, images={})))) == {NO_TAG}
    assert wrong(replace(SEEN, stored={"strict-1/web-1": {}})) == {NO_TAG}
    assert wrong(replace(SEEN, stored={})) == {NO_TAG}


def test_two_digests_of_a_revision_are_found() -> None:
    other = replace(CREATED, name="web-2", images={"app": f"{TAG}@{DIGESTS[1]}"})
    assert wrong(replace(SEEN, creations=(CREATED, other))) == {ONE_DIGEST}
    assert wrong(replace(SEEN, creations=(CREATED, replace(other, owner="rs-2")))) == set()
    unrecorded = replace(other, unrecorded="no time")
    assert wrong(replace(SEEN, creations=(CREATED, unrecorded))) == set()


def test_a_revision_whose_record_was_deleted_may_have_two() -> None:
    other = replace(CREATED, name="web-2", images={"app": f"{TAG}@{DIGESTS[1]}"})
    both = replace(SEEN, creations=(CREATED, other, replace(CREATED, owner="rs-2", record="r-2")))
    assert wrong(replace(both, forgotten=frozenset({("strict-1", "r")}))) == set()
    assert wrong(replace(both, forgotten=frozenset({("strict-2", "r")}))) == {ONE_DIGEST}


CAUSES = [
    (FAILED, 500, Cause.CALL),
    (f"{WEBHOOK}container app: x is unreachable, so y has no digest now (unreachable)", 403, "R"),
    (f"{WEBHOOK}x has too many requests (rate_limited), y did not answer (timeout)", 403, "R"),
    (f"{WEBHOOK}the ledger is unreadable (ledger)", 403, Cause.LEDGER),
    (f"{WEBHOOK}x is silent (timeout), the ledger is unreadable (ledger)", 403, Cause.LEDGER),
    (f"{WEBHOOK}x does not exist (not_found)", 403, Cause.OTHER),
    (f"{WEBHOOK}x is silent (timeout), y does not exist (not_found)", 403, Cause.OTHER),
    (f"{WEBHOOK}a fault of its own", 403, Cause.OTHER),
    (f"{WEBHOOK}the pod's images could not be pinned in time", 403, Cause.LATE),
    ("etcdserver: request timed out", 500, Cause.API),
    ("too many requests", 429, Cause.API),
    ("pods web-2 already exists", 409, Cause.OTHER),
    (f"{POLICY} denied request: 1 image has no digest", 403, Cause.OTHER),
]


@pytest.mark.parametrize(("message", "code", "cause"), CAUSES)
def test_why_a_pod_was_refused(message: str, code: int, cause: str) -> None:
    wanted = Cause.REGISTRY if cause == "R" else cause
    assert cause_of(refused(message, code=code)) == wanted


REFUSALS = {
    Cause.CALL: FAILED,
    Cause.REGISTRY: f"{WEBHOOK}x (timeout)",
    Cause.LEDGER: f"{WEBHOOK}x (ledger)",
    Cause.API: "etcdserver: request timed out",
    Cause.LATE: f"{WEBHOOK}the pod's images could not be pinned in time",
    Cause.OTHER: f"{WEBHOOK}x (not_found)",
}


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("cause", Cause)
def test_a_fault_excuses_its_own_refusals_while_it_stands_and_shortly_after(
    fault: Fault, cause: Cause
) -> None:
    bound = BOUNDS[fault]

    def verdict(at: float) -> bool:
        episode = Episode(fault, 140, 145)
        creations = (CREATED, refused(REFUSALS[cause], at))
        return wrong(replace(SEEN, creations=creations, episodes=(episode,))) == set()

    is_excused = cause in bound.causes
    for at in (140.5, 145 + bound.seconds - 0.01):
        assert verdict(at) == is_excused
    for at in (139, 145 + bound.seconds + 0.01):
        assert not verdict(at)


@pytest.mark.parametrize("mode", ["pin", "audit"])
def test_other_modes_refuse_only_where_the_api_server_does(mode: str) -> None:
    episodes = [Episode(fault, 140, 160) for fault in Fault]
    for cause, message in REFUSALS.items():
        creations = (CREATED, refused(message, mode=mode))
        outcome = wrong(replace(SEEN, creations=creations, episodes=episodes))
        assert outcome == (set() if cause is Cause.API else {NO_REFUSAL})


def test_an_api_server_that_does_not_answer_needs_an_excuse() -> None:
    silent = replace(SEEN, unanswered=(Unanswered(150, 151, "reset"),))
    assert wrong(silent) == {ANSWERS}
    assert wrong(replace(silent, episodes=(Episode(Fault.API_KILL, 149, 155),))) == set()
    assert wrong(replace(silent, episodes=(Episode(Fault.KILL, 149, 155),))) == {ANSWERS}


@pytest.mark.parametrize(
    "more",
    [{"memory": 132.1}, {"files": 47}, {"tasks": 37}, {"connections": 20}],
    ids="".join,
)
def test_whoever_holds_more_leaks(more: dict[str, Any]) -> None:
    assert wrong(replace(SEEN, after={"replica 1": replace(HELD, **more)})) == {NO_LEAK}


def test_what_does_not_heal_is_wrong() -> None:
    assert len(wrong(replace(SEEN, unhealed=("no pod",)))) == 1


def test_a_complaint_is_wrong_but_for_lateness_where_it_was_frozen() -> None:
    frozen = replace(SEEN, episodes=(Episode(Fault.FREEZE, 140, 145),))
    for text, at, is_right in [
        ("a decision was cut after 4.75 s", 145.5, True),
        ("a decision was cut after 4.75 s", 146.5, False),
        ("a decision failed; please report this", 145.5, False),
        ("Traceback", 145.5, False),
    ]:
        assert (not wrong(replace(frozen, complaints=(Complaint(at, text),)))) == is_right
