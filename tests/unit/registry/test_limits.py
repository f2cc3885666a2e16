"""When a registry is left alone, and how much is asked of it: rules that need no registry."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fakes.clock import FakeClock
from tagpin.registry.limits import DAY, MAX_PLACES, Circuits, Pace, parse_retry_after

NOW = datetime(2026, 8, 1, 12, 0, 0, tzinfo=UTC)
UNIX_NOW = int(NOW.timestamp())


# What Retry-After says


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        ("0007", 7),
        (" 120\t", 120),
        ("1.5", 1.5),
        ("86400", 86_400),
        # Dates of RFC 9110 §5.6.7, in all three forms
        ("Sat, 01 Aug 2026 12:00:30 GMT", 30),
        ("Saturday, 01-Aug-26 12:00:30 GMT", 30),
        ("Sat Aug  1 12:00:30 2026", 30),
        ("Sat, 01 Aug 2026 14:00:30 +0200", 30),
        ("Sat, 01 Aug 2026 11:59:00 GMT", 0),  # over already
        # Unix time, as Docker Hub sends it (hub-feedback#2459)
        (str(UNIX_NOW + 45), 45),
        (f"{UNIX_NOW + 45}.25", 45.25),
        (str(UNIX_NOW - 45), 0),
    ],
)
def test_a_wait_is_given_in_seconds_or_as_a_time(value: str, seconds: float) -> None:
    assert parse_retry_after(value, NOW) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "soon",
        "-1",
        "+1",
        "1e3",
        "1_000",
        "0x10",
        "1.",
        ".5",
        "nan",
        "inf",
        "٣",  # a digit, says str.isdigit
        "7, 7",
        "7;8",
        "86401",  # neither a wait nor a time near now
        str(UNIX_NOW + 86_401),
        str(UNIX_NOW - 86_401),
        str(UNIX_NOW * 1000),  # milliseconds
        "9" * 20,
        "9" * 8000,
        "1." + "9" * 8000,
        "Sat, 01 Aug 2126 12:00:00 GMT",
        "Sat, 01 Aug 1926 12:00:00 GMT",
        "Sat, 01 Aug 2026 25:00:00 GMT",
        "Fri, 31 Feb 2026 12:00:00 GMT",
        "Sat, 01 Aug 99999 12:00:00 GMT",
        "Sat, 01 Aug 2026 12:00:00 +9999",
        "Sat, 01 Aug 0001 00:00:00 +2359",
    ],
)
def test_a_wait_that_makes_no_sense_is_none(value: str) -> None:
    assert parse_retry_after(value, NOW) is None


@given(
    st.one_of(
        st.text(max_size=40),
        st.text("0123456789.-+eE ", max_size=30),
        st.text("SatMonAug 0123456789:,+-GMTZ", max_size=40),
        st.builds(
            "{}, {} {} {} {}:{}:{} {}".format,
            st.sampled_from(["Sat", "Mon", ""]),
            st.integers(-1, 40),
            st.sampled_from(["Aug", "Feb", "Foo"]),
            st.integers(-1, 100_000),
            st.integers(-1, 99),
            st.integers(-1, 99),
            st.integers(-1, 99),
            st.sampled_from(["GMT", "+2500", "-0000", "-9999999999", "ZZZ", ""]),
        ),
    )
)
@example("Mon, 1 Aug 1 0:0:0 +2359")
def test_no_wait_is_negative_or_absurd(value: str) -> None:
    seconds = parse_retry_after(value, NOW)
    assert seconds is None or 0 <= seconds <= DAY


# Circuits


class Box:
    """Circuits, their clock, and what they said."""

    def __init__(self, *, draw: float = 0.0) -> None:
        self.clock = FakeClock()
        self.told: list[str] = []
        self.circuits: Circuits[str] = Circuits(
            clock=self.clock,
            draw=lambda: draw,
            opened=lambda key: self.told.append(f"{key} opened"),
            closed=lambda key: self.told.append(f"{key} closed"),
        )

    def fail(self, times: int = 1, key: str = "r") -> None:
        for _ in range(times):
            assert self.circuits.admits(key)
            self.circuits.failed(key, since=self.clock())

    def probe_fails(self) -> None:
        """The next probe, as soon as one is let through."""
        while not self.circuits.admits("r"):
            self.clock.advance(0.01)
        since = self.clock()
        self.clock.advance(0.5)
        self.circuits.failed("r", since=since)

    def wait(self) -> float:
        """Seconds until somebody is let through."""
        started = self.clock()
        while self.circuits.refuses("r"):
            self.clock.advance(0.01)
        return self.clock() - started


def test_who_fails_five_times_in_a_row_is_left_alone_for_two_seconds() -> None:
    box = Box()
    box.fail(4)
    assert box.circuits.admits("r")
    box.fail()
    assert not box.circuits.admits("r")
    box.clock.advance(1.99)
    assert not box.circuits.admits("r")
    box.clock.advance(0.01)
    assert box.circuits.admits("r")


def test_an_answer_in_between_begins_the_count_anew() -> None:
    box = Box()
    box.fail(4)
    box.circuits.answered("r")
    box.fail(4)
    assert box.circuits.admits("r")
    assert box.told == []


def test_one_place_says_nothing_of_another() -> None:
    box = Box()
    box.fail(5)
    assert box.circuits.admits("other")


def test_one_probe_is_let_through_at_a_time() -> None:
    box = Box()
    box.fail(5)
    box.clock.advance(2)
    assert not box.circuits.refuses("r")
    assert [box.circuits.admits("r") for _ in range(3)] == [True, False, False]


def test_a_probe_that_is_answered_lets_everybody_through() -> None:
    box = Box()
    box.fail(5)
    box.clock.advance(2)
    assert box.circuits.admits("r")
    box.circuits.answered("r")
    assert all(box.circuits.admits("r") for _ in range(3))
    box.fail(4)
    assert box.circuits.admits("r")


def test_a_late_answer_to_a_question_from_before_closes_the_circuit_too() -> None:
    box = Box()
    box.fail(5)
    box.circuits.answered("r")
    assert box.circuits.admits("r")


def test_every_probe_that_fails_doubles_the_wait_up_to_thirty_seconds() -> None:
    box = Box()
    box.fail(5)
    waits = [box.wait()]
    for _ in range(6):
        box.probe_fails()
        waits.append(box.wait())
    assert waits == pytest.approx([2, 4, 8, 16, 30, 30, 30], abs=0.02)


def test_years_of_failure_make_no_wait_that_cannot_be_computed() -> None:
    box = Box()
    box.fail(5)
    for _ in range(2000):
        box.clock.advance(30)
        assert box.circuits.admits("r")
        box.circuits.failed("r", since=box.clock())
    assert box.wait() == pytest.approx(30, abs=0.02)


def test_waits_are_drawn_so_that_replicas_do_not_probe_in_step() -> None:
    waits = []
    for draw in (0.0, 0.5, 1.0):
        box = Box(draw=draw)
        box.fail(5)
        waits.append(box.wait())
    assert waits == pytest.approx([2, 1.75, 1.5], abs=0.02)


def test_a_probe_that_nobody_hears_of_again_is_followed_by_another() -> None:
    box = Box()
    box.fail(5)
    box.clock.advance(2)
    assert box.circuits.admits("r")
    box.clock.advance(1.99)
    assert not box.circuits.admits("r")
    box.clock.advance(0.01)
    assert box.circuits.admits("r")


def test_those_who_were_on_their_way_when_it_opened_do_not_prolong_it() -> None:
    box = Box()
    since = box.clock()
    box.clock.advance(3)
    for _ in range(32):
        box.circuits.failed("r", since=since)
    assert box.wait() == pytest.approx(2, abs=0.02)


def test_an_outage_is_told_of_once() -> None:
    box = Box()
    box.fail(5)
    for _ in range(3):
        box.probe_fails()
    assert box.told == ["r opened"]
    assert box.circuits.open() == ("r",)
    box.circuits.answered("r")
    box.circuits.answered("r")
    assert box.told == ["r opened", "r closed"]
    assert box.circuits.open() == ()


def test_only_so_many_places_are_remembered() -> None:
    """Whoever creates pods makes them up."""
    box = Box()
    for number in range(MAX_PLACES + 1):
        box.fail(5, key=f"r{number}")
    assert len(box.circuits.open()) == MAX_PLACES
    assert box.circuits.admits("r0")


# Pace


def test_a_second_has_so_many_turns_and_no_more() -> None:
    clock = FakeClock()
    pace = Pace(10, clock=clock)
    waits = [pace.reserve(10) for _ in range(30)]
    expected = [0.0] * 10 + [0.1 * number for number in range(1, 21)]
    assert waits == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("rate", [0.5, 1, 3, 10, 250])
def test_no_pace_is_exceeded_in_the_long_run(rate: float) -> None:
    clock = FakeClock()
    pace = Pace(rate, clock=clock)
    turns = 0
    for _ in range(2000):
        turns += pace.reserve(0) is not None
        clock.advance(0.01)
    assert turns <= 20 * rate + max(1, rate)
    assert turns >= 20 * min(rate, 100) - 1


def test_a_turn_that_comes_too_late_is_not_taken() -> None:
    clock = FakeClock()
    pace = Pace(1, clock=clock)
    assert pace.reserve(0) == 0
    assert [pace.reserve(0.9) for _ in range(100)] == [None] * 100
    assert pace.reserve(1.0) == pytest.approx(1)


def test_a_long_silence_saves_up_one_second() -> None:
    clock = FakeClock()
    pace = Pace(4, clock=clock)
    pace.reserve(0)
    clock.advance(3600)
    assert [pace.reserve(0) is not None for _ in range(5)] == [True] * 4 + [False]


def test_a_day_is_the_longest_wait() -> None:
    at = NOW + timedelta(days=1)
    assert parse_retry_after(str(int(at.timestamp())), NOW) == DAY
