"""The cache: fresh enough for each caller, one load per key, errors shared but not for long."""

import asyncio
import gc
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.clock import FakeClock
from tagpin.cache import Answer, Cache, Use


class Denied(Exception):
    """An error that proves the value wrong."""


class Source:
    """Something to load from: counts, and answers when it is told to."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.loads = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> str:
        self.loads += 1
        answer = self.answers.pop(0) if self.answers else f"v{self.loads}"
        await self.gate.wait()
        if isinstance(answer, Exception):
            raise answer
        return str(answer)


class Box:
    """A cache, its clock and its counters."""

    def __init__(self, *, maxsize: int = 10, lifetime: float = 160.0) -> None:
        self.clock = FakeClock()
        self.uses: Counter[Use] = Counter()
        self.cache: Cache[str, str] = Cache(
            maxsize=maxsize,
            clock=self.clock,
            lifetime=lambda _: lifetime,
            error_age=lambda error: 10.0 if isinstance(error, Denied) else 2.0,
            disproves=lambda error: isinstance(error, Denied),
            observe=lambda use: self.uses.update([use]),
        )


async def spin() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_value_is_loaded_once_and_then_served() -> None:
    box, source = Box(), Source()
    assert await box.cache.get("k", source) == Answer("v1", 1000.0, Use.MISS)
    box.clock.advance(5)
    assert await box.cache.get("k", source) == Answer("v1", 1000.0, Use.HIT)
    assert box.uses == {Use.MISS: 1, Use.HIT: 1}


@pytest.mark.parametrize(("age", "use"), [(5.0, Use.HIT), (5.1, Use.MISS)])
async def test_a_hit_is_never_older_than_the_caller_accepts(age: float, use: Use) -> None:
    box, source = Box(), Source()
    await box.cache.get("k", source)
    box.clock.advance(age)
    assert (await box.cache.get("k", source, max_age=5)).use is use


async def test_a_value_is_as_old_as_the_start_of_its_load() -> None:
    box, source = Box(), Source()
    source.gate.clear()
    slow = asyncio.create_task(box.cache.get("k", source))
    await spin()
    box.clock.advance(6)
    source.gate.set()
    assert (await slow).started == 1000.0
    assert (await box.cache.get("k", source, max_age=5)).value == "v2"


async def test_a_value_past_its_lifetime_is_loaded_anew_whatever_the_caller_accepts() -> None:
    box, source = Box(lifetime=60), Source()
    await box.cache.get("k", source)
    box.clock.advance(60)
    assert (await box.cache.get("k", source)).value == "v2"


async def test_concurrent_callers_share_one_load() -> None:
    box, source = Box(), Source()
    source.gate.clear()
    calls = [asyncio.create_task(box.cache.get("k", source)) for _ in range(20)]
    await spin()
    source.gate.set()
    answers = await asyncio.gather(*calls)
    assert {answer.value for answer in answers} == {"v1"}
    assert source.loads == 1
    assert box.uses == {Use.MISS: 1, Use.SHARED: 19}


async def test_concurrent_callers_share_the_error_too() -> None:
    box, source = Box(), Source(Denied())
    source.gate.clear()
    calls = [asyncio.create_task(box.cache.get("k", source)) for _ in range(3)]
    await spin()
    source.gate.set()
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(error) for error in errors] == [Denied] * 3
    assert source.loads == 1


async def test_a_load_that_started_too_long_ago_is_not_shared() -> None:
    box, source = Box(), Source("before the push", "after the push")
    source.gate.clear()
    early = asyncio.create_task(box.cache.get("k", source))
    await spin()
    box.clock.advance(3)
    late = asyncio.create_task(box.cache.get("k", source, max_age=2))
    await spin()
    source.gate.set()
    assert (await early).value == "before the push"
    assert (await late).value == "after the push"


async def test_a_load_that_started_earlier_never_replaces_a_later_one() -> None:
    box = Box()
    slow, quick = Source("old"), Source("new")
    slow.gate.clear()
    early = asyncio.create_task(box.cache.get("k", slow))
    await spin()
    box.clock.advance(3)
    assert (await box.cache.get("k", quick, max_age=0)).value == "new"
    slow.gate.set()
    assert (await early).value == "old"
    assert (await box.cache.get("k", quick)).value == "new"


async def test_a_late_failure_of_an_earlier_load_disproves_nothing() -> None:
    box = Box()
    slow, quick = Source(Denied()), Source("new")
    slow.gate.clear()
    early = asyncio.create_task(box.cache.get("k", slow))
    await spin()
    box.clock.advance(3)
    await box.cache.get("k", quick, max_age=0)
    slow.gate.set()
    with pytest.raises(Denied):
        await early
    assert (await box.cache.get("k", quick)).use is Use.HIT


async def test_a_cancelled_caller_does_not_cancel_the_load_of_the_others() -> None:
    box, source = Box(), Source()
    source.gate.clear()
    first = asyncio.create_task(box.cache.get("k", source))
    second = asyncio.create_task(box.cache.get("k", source))
    await spin()
    first.cancel()
    await spin()
    source.gate.set()
    assert (await second).value == "v1"
    assert first.cancelled()
    assert source.loads == 1


@pytest.mark.parametrize("answer", ["value", Denied()])
async def test_a_load_that_everybody_left_fills_the_cache(answer: object) -> None:
    box, source = Box(), Source(answer)
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    source.gate.clear()
    only = asyncio.create_task(box.cache.get("k", source))
    await spin()
    only.cancel()
    await spin()
    source.gate.set()
    await spin()
    del only  # it holds the load
    gc.collect()  # which is when asyncio reports an exception that nobody retrieved
    assert reported == []
    again = await asyncio.gather(box.cache.get("k", source), return_exceptions=True)
    assert source.loads == 1
    assert isinstance(again[0], (Answer, Denied))


async def test_an_error_is_raised_again_for_as_long_as_its_kind_allows() -> None:
    box, source = Box(), Source(Denied(), Denied())
    for elapsed, loads in ((0, 1), (9.9, 1), (0.1, 2)):
        box.clock.advance(elapsed)
        with pytest.raises(Denied):
            await box.cache.get("k", source)
        assert source.loads == loads
    assert box.uses[Use.NEGATIVE] == 1


async def test_an_error_is_remembered_from_when_it_arrived() -> None:
    box, source = Box(), Source(OSError(), "recovered")
    source.gate.clear()
    asking = asyncio.create_task(box.cache.get("k", source))
    await spin()
    box.clock.advance(30)  # longer than the error is remembered
    source.gate.set()
    with pytest.raises(OSError):
        await asking
    box.clock.advance(1.9)
    with pytest.raises(OSError):
        await box.cache.get("k", source)
    box.clock.advance(0.1)
    assert (await box.cache.get("k", source)).value == "recovered"


async def test_an_error_is_as_old_as_the_question_that_it_answers() -> None:
    box, source = Box(), Source(OSError(), "recovered")
    source.gate.clear()
    asking = asyncio.create_task(box.cache.get("k", source))
    await spin()
    box.clock.advance(30)
    source.gate.set()
    await asyncio.gather(asking, return_exceptions=True)
    assert (await box.cache.get("k", source, max_age=5)).value == "recovered"


async def test_it_is_known_beforehand_whether_a_call_needs_a_load() -> None:
    box, source = Box(), Source("v1", Denied())
    assert not box.cache.serves("k")
    source.gate.clear()
    asking = asyncio.create_task(box.cache.get("k", source))
    await spin()
    box.clock.advance(3)
    assert box.cache.serves("k")  # by sharing a load
    assert not box.cache.serves("k", max_age=2)
    source.gate.set()
    await asking
    box.clock.advance(3)
    assert box.cache.serves("k", max_age=6)  # by the value
    assert not box.cache.serves("k", max_age=5)
    with pytest.raises(Denied):
        await box.cache.get("k", source, max_age=0)
    assert box.cache.serves("k", max_age=0)  # by the error
    assert box.uses == {Use.MISS: 2}
    box.clock.advance(10)
    assert not box.cache.serves("k")


async def test_an_error_is_subject_to_the_age_that_the_caller_accepts() -> None:
    box, source = Box(), Source(Denied(), "pushed meanwhile")
    with pytest.raises(Denied):
        await box.cache.get("k", source)
    box.clock.advance(1)
    assert (await box.cache.get("k", source, max_age=0.5)).value == "pushed meanwhile"


async def test_an_error_that_is_raised_often_does_not_grow() -> None:
    box, source = Box(), Source(Denied())
    depths = []
    for _ in range(50):
        with pytest.raises(Denied) as caught:
            await box.cache.get("k", source)
        depths.append(len(caught.traceback))
    assert depths[-1] == depths[1]


async def test_an_outage_leaves_the_last_known_value_to_whoever_wants_it_stale() -> None:
    box, source = Box(lifetime=160), Source("known", OSError(), OSError())
    await box.cache.get("k", source)
    for elapsed, known in ((61, True), (98, True), (1, False)):
        box.clock.advance(elapsed)
        assert (box.cache.stale("k") is not None) is known
    assert box.uses[Use.STALE] == 2


async def test_an_outage_does_not_hide_a_value_that_is_fresh_enough() -> None:
    box, source = Box(), Source("known", OSError())
    await box.cache.get("k", source)
    box.clock.advance(3)
    with pytest.raises(OSError):
        await box.cache.get("k", source, max_age=1)
    assert (await box.cache.get("k", source, max_age=60)).value == "known"


async def test_an_error_that_disproves_the_value_makes_the_cache_forget_it() -> None:
    box, source = Box(), Source("known", Denied())
    await box.cache.get("k", source)
    box.clock.advance(1)
    with pytest.raises(Denied):
        await box.cache.get("k", source, max_age=0)
    assert box.cache.stale("k") is None


async def test_the_least_recently_used_goes_first() -> None:
    box, source = Box(maxsize=2), Source()
    for key in ("a", "b", "a", "c"):
        await box.cache.get(key, source)
    assert (await box.cache.get("a", source)).use is Use.HIT
    assert (await box.cache.get("b", source)).use is Use.MISS
    assert len(box.cache) == 2


async def test_what_is_forgotten_is_loaded_anew() -> None:
    box, source = Box(), Source()
    await box.cache.get("k", source)
    box.cache.forget("k")
    assert (await box.cache.get("k", source)).value == "v2"


async def test_a_value_that_is_known_by_other_means_needs_no_load() -> None:
    box, source = Box(lifetime=60), Source()
    box.cache.keep("k", "written")
    box.clock.advance(5)
    assert await box.cache.get("k", source, max_age=5) == Answer("written", 1000.0, Use.HIT)
    box.clock.advance(1)
    assert (await box.cache.get("k", source, max_age=5)).value == "v1"
    box.cache.keep("k", "written again")
    box.clock.advance(60)
    assert box.cache.peek("k") is None


async def test_what_is_known_by_now_ends_an_error() -> None:
    box, source = Box(lifetime=2), Source(Denied(), "loaded anew")
    with pytest.raises(Denied):
        await box.cache.get("k", source)
    box.clock.advance(1)
    box.cache.keep("k", "written")
    assert (await box.cache.get("k", source, max_age=0)).value == "written"
    assert source.loads == 1
    box.clock.advance(2)
    assert (await box.cache.get("k", source)).value == "loaded anew"


@pytest.mark.parametrize("answer", ["read before the write", Denied(), OSError()], ids=repr)
async def test_a_load_in_flight_that_lands_later_does_not_replace_what_is_known_since(
    answer: object,
) -> None:
    box, source = Box(), Source(answer)
    source.gate.clear()
    early = asyncio.create_task(box.cache.get("k", source))
    await spin()
    box.clock.advance(1)
    box.cache.keep("k", "written")
    source.gate.set()
    await asyncio.gather(early, return_exceptions=True)
    assert await box.cache.get("k", source) == Answer("written", 1001.0, Use.HIT)
    assert source.loads == 1


async def test_a_load_that_starts_later_replaces_what_was_known() -> None:
    box, source = Box(), Source("changed meanwhile")
    box.cache.keep("k", "written")
    box.clock.advance(1)
    await box.cache.get("k", source, max_age=0)
    assert (await box.cache.get("k", source)).value == "changed meanwhile"


async def test_to_peek_is_no_use() -> None:
    box = Box()
    assert box.cache.peek("k") is None
    box.cache.keep("k", "written")
    assert box.cache.peek("k") == Answer("written", 1000.0, Use.STALE)
    assert box.uses == {}


async def test_closing_ends_the_loads_in_flight() -> None:
    box, source = Box(), Source()
    source.gate.clear()
    call = asyncio.create_task(box.cache.get("k", source))
    await spin()
    await box.cache.aclose()
    with pytest.raises(asyncio.CancelledError):
        await call


@given(
    st.lists(
        st.tuples(
            st.integers(0, 200), st.integers(0, 100), st.sampled_from(["value", "outage", "denial"])
        ),
        max_size=20,
    )
)
def test_no_answer_is_ever_older_than_accepted(steps: list[tuple[int, int, str]]) -> None:
    async def play() -> None:
        box = Box()
        for elapsed, max_age, outcome in steps:
            box.clock.advance(elapsed)
            answer = {"outage": OSError(), "denial": Denied()}.get(outcome, outcome)
            try:
                got = await box.cache.get("k", Source(answer), max_age=max_age)
            except (OSError, Denied):
                continue
            assert box.clock() - got.started <= min(max_age, 160)

    asyncio.run(play())
