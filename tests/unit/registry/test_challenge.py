"""The WWW-Authenticate parser, by its table and within its limits."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagpin.registry.challenge import MalformedChallenge, parse_challenges, preferred

TABLE = json.loads((Path(__file__).parents[2] / "data" / "challenges.json").read_text())


@pytest.mark.parametrize("row", TABLE, ids=lambda row: "|".join(row["headers"])[:60])
def test_the_table(row: dict[str, Any]) -> None:
    if "malformed" in row:
        with pytest.raises(MalformedChallenge):
            parse_challenges(row["headers"])
        return
    challenges = parse_challenges(row["headers"])
    assert [[each.scheme, dict(each.parameters)] for each in challenges] == row["challenges"]
    chosen = preferred(challenges)
    assert (chosen.scheme if chosen else None) == row["preferred"]


@pytest.mark.parametrize(
    "headers",
    [
        ['Basic realm="' + "x" * 8192 + '"'],
        [", ".join(["Basic"] * 11)],
        ["Basic"] * 11,
        ["Basic " + ", ".join(f"p{n}=1" for n in range(21))],
    ],
    ids=["header of 8 KiB", "11 challenges", "11 headers", "21 parameters"],
)
def test_what_is_over_the_limits_is_refused(headers: list[str]) -> None:
    with pytest.raises(MalformedChallenge):
        parse_challenges(headers)


@pytest.mark.parametrize(
    ("headers", "count"),
    [
        (['Basic realm="' + "x" * 8178 + '"'], 1),
        ([", ".join(["Basic"] * 10)], 10),
        (["Basic"] * 10, 10),
        (["Basic"] * 5 + [", ".join(["Basic"] * 5)], 10),
        (["Basic " + ", ".join(f"p{n}=1" for n in range(20))], 1),
    ],
    ids=["header of 8 KiB", "10 challenges", "10 headers", "10 in all", "20 parameters"],
)
def test_what_is_within_the_limits_is_read(headers: list[str], count: int) -> None:
    assert len(parse_challenges(headers)) == count


def test_a_hostile_header_cannot_hold_the_event_loop() -> None:
    started = time.perf_counter()
    for header in ('Basic realm="' + "\\" * 8000, "a " * 4000, "a=" * 4000, 'Basic a="' * 900):
        with pytest.raises(MalformedChallenge):
            parse_challenges([header])
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("header", ["a," * 4000, "a " + "b=c," * 2000, ", a" * 2000])
def test_a_hundred_hostile_headers_cannot_either(header: str) -> None:
    started = time.process_time()
    with pytest.raises(MalformedChallenge):
        parse_challenges([header] * 100)
    assert time.process_time() - started < 0.1


@given(st.lists(st.text('aB=", \\/:\t\x00', max_size=30), max_size=3))
def test_no_header_breaks_the_parser(headers: list[str]) -> None:
    try:
        parse_challenges(headers)
    except MalformedChallenge:
        return
