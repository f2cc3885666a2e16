"""What a `WWW-Authenticate` header asks for (RFC 7235 §2.1, RFC 7617, RFC 6750 §3).

The header comes from a stranger: it is scanned once, from left to right, within limits, and one
bad part spoils all of it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

MAX_HEADER = 8192
"""Characters of one header."""
MAX_CHALLENGES = 10
MAX_PARAMETERS = 20

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(
    rf'({_WORD})[ \t]*=[ \t]*(?:"((?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[\t\x20-\x7e\x80-\xff])*)"'
    rf'|((?!=)[^\s",]+))[ \t]*(?:,|\Z)'
)
# `/` and more are tolerated in an unquoted value, as every client does.
_SCHEME = re.compile(rf"({_WORD})(?:[ \t]+|(?=,)|\Z)")
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*[ \t]*(?:,|\Z)")
_SEPARATORS = re.compile(r"[ \t,]*")


class MalformedChallenge(ValueError):
    """The header is not by the grammar, or over the limits."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """One scheme, in lower case, with its parameters by their lower-case names."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def parse_challenges(headers: Iterable[str]) -> tuple[Challenge, ...]:
    """Every challenge of every header, in order; raise MalformedChallenge."""
    challenges: list[Challenge] = []
    for header in headers:
        challenges += _parse_header(header, MAX_CHALLENGES - len(challenges))
    return tuple(challenges)


def preferred(challenges: Iterable[Challenge]) -> Challenge | None:
    """The first Bearer challenge, else the first Basic one, else None."""
    by_scheme = {each.scheme: each for each in reversed(tuple(challenges))}
    return by_scheme.get("bearer") or by_scheme.get("basic")


def _parse_header(header: str, limit: int) -> list[Challenge]:
    """At most `limit` challenges: beyond them nothing more is read."""
    if len(header) > MAX_HEADER:
        raise MalformedChallenge(f"a header of more than {MAX_HEADER} characters")
    found: list[tuple[str, dict[str, str]]] = []
    at = 0
    while (at := _skip_separators(header, at)) < len(header):
        if found and (parameter := _PARAMETER.match(header, at)):
            _add(found[-1][1], parameter)
            at = parameter.end()
        elif scheme := _SCHEME.match(header, at):
            if len(found) == limit:
                raise MalformedChallenge(f"more than {MAX_CHALLENGES} challenges")
            found.append((scheme[1].lower(), {}))
            at = scheme.end()
            if not _PARAMETER.match(header, at) and (credentials := _TOKEN68.match(header, at)):
                at = credentials.end()
        else:
            raise MalformedChallenge("a challenge that is not by RFC 7235")
    return [Challenge(scheme, MappingProxyType(parameters)) for scheme, parameters in found]


def _skip_separators(header: str, at: int) -> int:
    separators = _SEPARATORS.match(header, at)
    return separators.end() if separators else at


def _add(parameters: dict[str, str], match: re.Match[str]) -> None:
    name, quoted, plain = match[1].lower(), match[2], match[3]
    if name in parameters:
        raise MalformedChallenge("a parameter that occurs twice")
    if len(parameters) == MAX_PARAMETERS:
        raise MalformedChallenge(f"more than {MAX_PARAMETERS} parameters")
    parameters[name] = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
