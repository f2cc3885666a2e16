"""Retry-After: whatever stands there, it is no wait at all, or one of a day at most."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from hypothesis import example, given
from hypothesis import strategies as st

from fuzz.fuzzing import FUZZED
from tagpin.registry.limits import DAY, parse_retry_after

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)

PIECES = st.sampled_from(
    [
        *("0", "1", "60", "86400", "86401", "1795521600", "9" * 400, "-1", "+1", "1e9", ".", ".5"),
        *(" ", "\t", "\n", ",", ";", "inf", "nan", "0x10", "1_0", "\u0663", "\ud800", "\0"),
        *("Tue, ", "24 Nov 2026 ", "31 Feb 2026 ", "Nov", "12:00:00", "25:61:61", " GMT", " +9999"),
    ]
)
VALUES = st.lists(PIECES, max_size=6).map("".join) | st.text(max_size=30)


@FUZZED
@given(VALUES, st.datetimes(timezones=st.just(UTC)))
@example("Fri, 31 Dec 9999 23:59:59 -2359", NOW)
@example("Mon, 01 Jan 0001 00:00:00 +2359", NOW)
def test_every_value_is_a_wait_of_a_day_at_most_or_none(value: str, now: datetime) -> None:
    seconds = parse_retry_after(value, now)
    assert seconds is None or 0 <= seconds <= DAY


@FUZZED
@given(st.integers(0, int(DAY)), st.sampled_from(["{}", " {} ", "{}.0", "00{}"]))
def test_a_number_of_seconds_is_taken_as_such(seconds: int, spelling: str) -> None:
    assert parse_retry_after(spelling.format(seconds), NOW) == seconds


@FUZZED
@given(st.integers(-100_000, 100_000))
def test_a_time_is_the_wait_until_then(seconds: int) -> None:
    at = NOW + timedelta(seconds=seconds)
    expected = max(0.0, float(seconds)) if abs(seconds) <= DAY else None
    assert parse_retry_after(format_datetime(at, usegmt=True), NOW) == expected
    assert parse_retry_after(str(int(at.timestamp())), NOW) == expected
