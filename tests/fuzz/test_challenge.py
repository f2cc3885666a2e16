"""Challenges: every header is read or refused, at once, and what was written is what is read."""

import time
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from fuzz.fuzzing import FUZZED
from tagpin.registry.challenge import (
    MAX_CHALLENGES,
    MAX_HEADER,
    MAX_PARAMETERS,
    Challenge,
    MalformedChallenge,
    parse_challenges,
    preferred,
)

PIECES = [
    *("Bearer", "basic", "Negotiate", "a", "realm", "REALM", "scope", "error", "charset"),
    *(" ", "  ", "\t", ",", ",,", " , ", "=", "==", '"', '""', "\\", '\\"', "\\\\", ";", ":", "/"),
    *('="', '=",', "=x", '="x",', 'realm="https://r.example/token"', "YWJj", "dG9r=="),
    *("\0", "\r\n", "\x7f", "\x80", "\xff", "\u0130", "\ud800", "x" * 100),
]
HEADERS = st.lists(
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=20), max_size=3
)


def parsed(headers: list[str]) -> tuple[Challenge, ...] | MalformedChallenge:
    try:
        return parse_challenges(headers)
    except MalformedChallenge as error:
        return error


@FUZZED
@given(HEADERS)
def test_every_header_is_read_within_the_limits_or_refused(headers: list[str]) -> None:
    challenges = parsed(headers)
    if isinstance(challenges, MalformedChallenge):
        assert str(challenges).isprintable()
        return
    assert len(challenges) <= MAX_CHALLENGES
    everything = "".join(headers).lower()
    for each in challenges:
        assert each.scheme == each.scheme.lower()
        assert each.scheme in everything
        assert len(each.parameters) <= MAX_PARAMETERS
        assert all(name in everything for name in each.parameters)
    chosen = preferred(challenges)
    assert chosen is None or chosen in challenges
    assert (chosen is None) == {"bearer", "basic"}.isdisjoint(each.scheme for each in challenges)


WORDS = st.text("abcXYZ019!#$%&'*+-.^_`|~", min_size=1, max_size=6)
VALUES = st.text('ab \t,="\\/:?&;\u00e4\u20ac', max_size=10)


@dataclass(frozen=True, slots=True)
class Written:
    """A challenge as a server writes it: by the grammar, in a spelling of its own."""

    scheme: str
    parameters: dict[str, str]
    escaped: bool
    equals: str
    comma: str

    @property
    def text(self) -> str:
        pairs = (f"{name}{self.equals}{self.quoted(of)}" for name, of in self.parameters.items())
        return f"{self.scheme} {self.comma.join(pairs)}".rstrip()

    def quoted(self, value: str) -> str:
        if value and set(value) <= set("ab/:?&;") and not self.escaped:
            return value
        specials = '"\\' + ("ab/" if self.escaped else "")
        return '"' + "".join(f"\\{each}" if each in specials else each for each in value) + '"'


WRITTEN = st.builds(
    Written,
    WORDS,
    st.dictionaries(WORDS.map(str.lower), VALUES, max_size=3),
    st.booleans(),
    st.sampled_from(["=", " = ", "= ", "\t="]),
    st.sampled_from([",", ", ", " , ", ",,", ", ,\t"]),
)


@FUZZED
@given(st.lists(st.lists(WRITTEN, min_size=1, max_size=2), max_size=2))
def test_what_was_written_by_the_grammar_is_read(headers: list[list[Written]]) -> None:
    challenges = parse_challenges([", ".join(each.text for each in header) for header in headers])
    assert [(each.scheme, dict(each.parameters)) for each in challenges] == [
        (each.scheme.lower(), each.parameters) for header in headers for each in header
    ]


@FUZZED
@given(
    st.lists(st.sampled_from(PIECES), max_size=3).map("".join),
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=2).map("".join),
)
def test_no_header_takes_longer_than_it_is_long(start: str, repeated: str, end: str) -> None:
    """8 KiB take some 10 ms at most; a square of their length would be seen."""
    times = (MAX_HEADER - len(start) - len(end)) // len(repeated)
    header = start + repeated * times + end
    # The fastest of three, since there is a collector of garbage, too.
    assert any(seconds < 0.1 for seconds in (timed(header) for _ in range(3)))


def timed(header: str) -> float:
    began = time.process_time()
    parsed([header])
    return time.process_time() - began
