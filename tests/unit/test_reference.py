"""References are read as container runtimes read them, whatever is written."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tagpin.errors import InvalidReference, Reason
from tagpin.reference import Digest, Reference

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "references.json").read_text(encoding="utf-8")
)
VALID = [case for case in CASES if "err" not in case]
INVALID = [case for case in CASES if "err" in case]
DIGEST = Digest.parse("sha256:" + "a" * 64)


def inputs(cases: list[dict[str, Any]]) -> list[Any]:
    """One parameter per case, shown by what it is about."""
    return [pytest.param(case, id=f"{i}-{case['why']}") for i, case in enumerate(cases)]


def parsed(text: str) -> Reference | InvalidReference:
    try:
        return Reference.parse(text)
    except InvalidReference as error:
        return error


def parts(ref: Reference) -> tuple[str, str, str | None, Digest | None]:
    return ref.domain, ref.path, ref.tag, ref.digest


host_part = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
domains = st.builds(
    lambda labels, port: ".".join(labels) + port,
    st.lists(host_part, min_size=2, max_size=3),
    st.from_regex(r"(:[0-9]{1,5})?", fullmatch=True),
) | st.sampled_from(["localhost", "[2001:db8::1]:5000", "index.docker.io", "docker.io", "ACME"])
path_part = st.from_regex(r"[a-z0-9]{1,5}((\.|_|__|-{1,3})[a-z0-9]{1,5})?", fullmatch=True)
tags = st.from_regex(r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?", fullmatch=True)
digests = st.one_of(
    st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True),
    st.from_regex(r"sha384:[0-9a-f]{96}", fullmatch=True),
    st.from_regex(r"sha512:[0-9a-f]{128}", fullmatch=True),
)
names = st.builds(
    lambda domain, path: "/".join([*domain, *path]),
    st.lists(domains, max_size=1),
    st.lists(path_part, min_size=1, max_size=4),
).filter(lambda name: not re.fullmatch(r"[0-9a-f]{64}", name))
unpinned = st.builds(str.__add__, names, tags)
pinned = st.builds("{}@{}".format, unpinned, digests)


@pytest.mark.parametrize("case", inputs(VALID))
def test_a_reference_is_read_as_a_runtime_reads_it(case: dict[str, Any]) -> None:
    ref = Reference.parse(case["input"])

    digest = str(ref.digest) if ref.digest else None
    expected = (case["domain"], case["path"], case["tag"], case["digest"])
    assert (ref.domain, ref.path, ref.tag, digest) == expected
    assert str(ref) == ref.text == case["input"]


@pytest.mark.parametrize("case", inputs(INVALID))
def test_what_a_runtime_refuses_is_refused_with_its_reason(case: dict[str, Any]) -> None:
    with pytest.raises(InvalidReference) as error:
        Reference.parse(case["input"])

    assert error.value.kind == case["err"]
    assert error.value.reason is Reason.INVALID_REFERENCE
    assert "invalid image reference" in str(error.value)


def test_every_kind_of_error_has_a_case() -> None:
    kinds = {"identifier", "uppercase", "format", "too_long"}
    digest_kinds = {"digest_algorithm", "digest_length", "digest_format"}

    assert {case["err"] for case in INVALID} == kinds | digest_kinds
    assert len(CASES) >= 92


@given(
    st.text()
    | st.text(st.characters(codec=None))
    | st.from_regex(r"[a-zA-Z0-9:/@.\[\]_-]*")
    | st.builds("{}{}".format, unpinned, st.text(max_size=3))
)
@example("\ud800/\udfff")
@example("a\x00/b")
@example("nginx\n")
@example("nginx\r\n:1")
def test_any_text_parses_or_is_an_invalid_reference(text: str) -> None:
    result = parsed(text)

    assert str(result).isprintable()  # neither control characters nor surrogates get through
    if isinstance(result, Reference):
        assert result.text == text
        assert text.isascii()
        assert " " not in text


@given(unpinned | pinned)
def test_the_text_is_kept_byte_for_byte(text: str) -> None:
    assert Reference.parse(text).text == text


@given(unpinned, digests)
def test_a_pinned_reference_is_the_same_text_with_the_digest_behind_it(
    text: str, digest: str
) -> None:
    ref = Reference.parse(text)

    again = Reference.parse(f"{text}@{digest}")

    assert parts(again) == (ref.domain, ref.path, ref.tag, Digest.parse(digest))


@given(unpinned | pinned)
def test_normalising_twice_is_normalising_once(text: str) -> None:
    ref = Reference.parse(text)
    tag = f":{ref.tag}" if ref.tag else ""
    digest = f"@{ref.digest}" if ref.digest else ""

    again = Reference.parse(f"{ref.repository}{tag}{digest}")

    assert parts(again) == parts(ref)
    assert again.repository == ref.repository


@pytest.mark.parametrize(
    ("text", "tag"),
    [("nginx", "latest"), ("nginx:1.25", "1.25"), (f"nginx@{DIGEST}", "latest")],
)
def test_without_a_tag_a_runtime_asks_for_latest(text: str, tag: str) -> None:
    assert Reference.parse(text).effective_tag == tag


MEGABYTE = 1_000_000


@pytest.mark.parametrize(
    "text",
    [
        "a" * MEGABYTE,
        "a/" * (MEGABYTE // 2),
        "a-" * (MEGABYTE // 2),
        "a" + "-" * MEGABYTE,
        "a" + "_" * MEGABYTE,
        "a__" * (MEGABYTE // 3) + "!",
        "a." * (MEGABYTE // 2) + "/b",
        "a" + "-" * MEGABYTE + ".com/b!",
        "a-" * (MEGABYTE // 2) + "a.b/c!",
        "[" + ":" * MEGABYTE + "/a",
        "a.b:" + "1" * MEGABYTE + "/!",
        "a:" + "b" * MEGABYTE,
        "a@" + "b" * MEGABYTE + ":" + "f" * 32,
        "a@" + "b+" * (MEGABYTE // 2) + ":",
        "a@b:" + "f" * MEGABYTE,
        "a@sha256:" + "f" * MEGABYTE,
        "A" * MEGABYTE,
        "@" * MEGABYTE,
        ":" * MEGABYTE,
        "/" * MEGABYTE,
        "\x00" * MEGABYTE,
        "\ud800" * MEGABYTE,
    ],
    ids=lambda text: f"{text[:10]!r}…{text[-10:]!r}",
)
def test_a_megabyte_is_refused_at_once_and_in_few_words(text: str) -> None:
    started = time.process_time()

    with pytest.raises(InvalidReference) as error:
        Reference.parse(text)

    assert time.process_time() - started < 0.5
    assert len(str(error.value)) < 4096


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_a_digest_prints_as_it_was_written(algorithm: str) -> None:
    length = {"sha256": 64, "sha384": 96, "sha512": 128}[algorithm]
    text = f"{algorithm}:{'0a' * (length // 2)}"

    assert str(Digest.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "digest_algorithm"),
        ("sha256", "digest_length"),
        ("sha256:", "digest_length"),
        ("md5:" + "0" * 32, "digest_algorithm"),
        ("sha256:" + "0" * 63, "digest_length"),
        ("sha256:" + "0" * 65, "digest_length"),
        ("sha256:" + "0" * 63 + "\n", "digest_format"),
        ("sha256:" + "0" * 64 + "\n", "digest_length"),
        ("sha256:" + "A" * 64, "digest_format"),
        ("sha256:" + "\u0660" * 64, "digest_format"),
        ("sha512:" + "0" * 64, "digest_length"),
        (" sha256:" + "0" * 64, "digest_algorithm"),
    ],
)
def test_what_is_no_digest_is_refused_with_its_reason(text: str, kind: str) -> None:
    with pytest.raises(InvalidReference) as error:
        Digest.parse(text)

    assert error.value.kind == kind


@given(st.text() | st.text(st.characters(codec=None)))
def test_any_text_is_a_digest_or_an_invalid_reference(text: str) -> None:
    try:
        assert str(Digest.parse(text)) == text
    except InvalidReference as error:
        str(error).encode()


@pytest.mark.parametrize("text", ["a" * 100_000 + "!", "\U000e0001" * 255, "sha256:" + "\x00" * 64])
def test_a_refusal_repeats_little_of_a_long_text(text: str) -> None:
    for parse in (Reference.parse, Digest.parse):
        with pytest.raises(InvalidReference) as error:
            parse(text)
        assert len(str(error.value)) < 700
