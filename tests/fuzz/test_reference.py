"""References: whatever is written, what is read is what the grammar says, stated a second time."""

from dataclasses import replace
from itertools import groupby

from hypothesis import example, given
from hypothesis import strategies as st

from fuzz.fuzzing import FUZZED
from tagpin.errors import InvalidReference
from tagpin.reference import Reference

LOWER = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"
LETTERS = LOWER + LOWER.upper()
HEX = {"sha256": 64, "sha384": 96, "sha512": 128}

Parts = tuple[str, str, str | None, str | None]
"""Domain, path, tag and digest."""


def stated(text: str) -> Parts | str:
    """What a text is by the rules of distribution/reference, without a regular expression.

    The kind of the error where it is none.
    """
    if len(text) == 64 and set(text) <= set(DIGITS + "abcdef"):
        return "identifier"
    domain, rest = stated_domain(text)
    if any(character in LOWER.upper() for character in rest.split(":")[0]):
        return "uppercase"
    name, at, digest = rest.partition("@")
    path, colon, tag = name.partition(":")
    if not is_domain(domain) or not all(map(is_component, path.split("/"))):
        return "format"
    if (colon and not is_tag(tag)) or (at and not is_digest(digest)):
        return "format"
    if len(path) > 255:
        return "too_long"
    wrong = stated_digest_error(digest) if at else None
    return wrong or (domain, path, tag if colon else None, digest if at else None)


def stated_digest_error(digest: str) -> str | None:
    algorithm, _, value = digest.partition(":")
    if algorithm not in HEX:
        return "digest_algorithm"
    if len(value) != HEX[algorithm]:
        return "digest_length"
    return None if value == value.lower() else "digest_format"


def stated_domain(text: str) -> tuple[str, str]:
    if "/" not in text:
        return "docker.io", f"library/{text}"
    first, rest = text.split("/", 1)
    if first != "localhost" and not set(first) & set(".:" + LOWER.upper()):
        return "docker.io", text
    if first in ("docker.io", "index.docker.io"):
        return "docker.io", rest if "/" in rest else f"library/{rest}"
    return first, rest


def is_domain(domain: str) -> bool:
    if domain.startswith("["):
        host, bracket, port = domain[1:].partition("]")
        good = bool(bracket) and bool(host) and set(host) <= set(DIGITS + "abcdefABCDEF:")
        return good and (not port or is_port(port))
    host, colon, port = domain.partition(":")
    return all(map(is_label, host.split("."))) and (not colon or is_port(f":{port}"))


def is_port(text: str) -> bool:
    return len(text) > 1 and text[0] == ":" and set(text[1:]) <= set(DIGITS)


def is_label(label: str) -> bool:
    good = bool(label) and set(label) <= set(LETTERS + DIGITS + "-")
    return good and label[0] != "-" and label[-1] != "-"


def is_component(component: str) -> bool:
    inner = LOWER + DIGITS
    runs = [
        (is_inner, "".join(run))
        for is_inner, run in groupby(component, key=lambda character: character in inner)
    ]
    good = bool(runs) and runs[0][0] and runs[-1][0]
    return good and all(
        is_inner or run in (".", "_", "__") or set(run) == {"-"} for is_inner, run in runs
    )


def is_tag(tag: str) -> bool:
    good = set(tag) <= set(LETTERS + DIGITS + "_.-")
    return good and 1 <= len(tag) <= 128 and tag[0] not in ".-"


def is_digest(digest: str) -> bool:
    algorithm, colon, value = digest.partition(":")
    for separator in "-_+":
        algorithm = algorithm.replace(separator, ".")
    parts = algorithm.split(".")
    named = all(
        part and part[0] in LETTERS and set(part) <= set(LETTERS + DIGITS) for part in parts
    )
    return bool(colon) and named and len(value) >= 32 and set(value) <= set(DIGITS + "abcdefABCDEF")


TOKENS = st.sampled_from(
    [
        *("a", "0", "A", "f", "library", "localhost", "docker.io", "index.docker.io", "r.example"),
        *(
            "-",
            "--",
            ".",
            "..",
            "_",
            "__",
            "___",
            "/",
            "//",
            ":",
            "::",
            "@",
            "+",
            "[",
            "]",
            "[::1]",
        ),
        *(":5000", ":0", ":v1", "sha256:", "@sha256:", "@sha512:", "@md5:", "@a+b.c:"),
        *("a" * 32, "a" * 64, "0" * 63, "A" * 64, "f" * 96, "b" * 128, "t" * 127, "x/" * 127),
        *(" ", "\n", "\0", "%", "\u0130", "\u0660", "\u212a", "\ud800"),
    ]
)
WORDS = st.sampled_from(["a", "0", "f0", "library", "acme"])
COMPONENTS = st.builds(
    "{}{}{}".format,
    WORDS,
    st.sampled_from(["", "", ".", "_", "__", "-", "---", "..", "___", "._", "-_", "A"]),
    WORDS,
)
NAMES = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "", "localhost/", "docker.io/", "index.docker.io/", "r.example:5000/"])
    | st.sampled_from(
        ["[::1]:5000/", "Acme/", "a-.b/", "-a.b/", "a_b.c/", "r.example:/", "[::g]/"]
    ),
    st.lists(COMPONENTS, min_size=1, max_size=3).map("/".join),
    st.sampled_from(["", "", ":v1", ":V_1.-", ":.x", ":-", ":", ":" + "t" * 128, ":" + "t" * 129]),
    st.sampled_from(["", "", "@sha256:" + "a" * 64, "@sha512:" + "0" * 128, "@sha256:" + "a" * 63])
    | st.sampled_from(["@sha256:" + "A" * 64, "@md5:" + "a" * 32, "@a+b:" + "a" * 31, "@", "@x"]),
)
TEXTS = NAMES | st.lists(TOKENS, max_size=12).map("".join) | st.text(max_size=40)


def parsed(text: str) -> Reference | InvalidReference:
    try:
        return Reference.parse(text)
    except InvalidReference as error:
        return error


@FUZZED
@given(TEXTS)
@example("x/" * 127 + "x")
@example("x/" * 128)
@example("a@sha256:" + "A" * 64)
@example("a@sha256:" + "a" * 63 + "A")
def test_a_text_is_what_the_grammar_says(text: str) -> None:
    ref = parsed(text)
    assert str(ref).isprintable()
    if isinstance(ref, InvalidReference):
        assert ref.kind == stated(text)
        return
    digest = None if ref.digest is None else str(ref.digest)
    assert (ref.domain, ref.path, ref.tag, digest) == stated(text)
    assert ref.text == str(ref) == text


@FUZZED
@given(TEXTS)
def test_what_was_read_is_read_again_as_the_same(text: str) -> None:
    ref = parsed(text)
    if isinstance(ref, InvalidReference):
        return
    written = ref.repository
    written += "" if ref.tag is None else f":{ref.tag}"
    written += "" if ref.digest is None else f"@{ref.digest}"
    again = Reference.parse(written)
    assert replace(again, text=text) == ref
