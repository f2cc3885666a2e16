"""Pull secrets become candidates in the order of the kubelet."""

import base64
import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagpin.keychain import (
    ANONYMOUS,
    MAX_PATTERNS,
    Credential,
    InvalidDockerConfig,
    Keychain,
    fingerprint,
    glob_matches,
)
from tagpin.reference import Reference


def auth(username: str, word: str = "pw") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{username}:{word}".encode()).decode()}


def keychain(*keys: str) -> Keychain:
    """One credential per key, whose user name is the key, with `:` as `!`."""
    config = {key: auth(key.replace(":", "!")) for key in keys}
    return Keychain.from_docker_config(json.dumps({"auths": config}))


def users(keys: Keychain, image: str) -> list[str]:
    candidates = keys.candidates(Reference.parse(image))
    return [each.username for each in candidates if isinstance(each, Credential)]


# keyring_test.go: TestURLsMatch, and the rows of the same file for whole keyrings
@pytest.mark.parametrize(
    ("key", "image"),
    [
        ("*.kubernetes.io", "prefix.kubernetes.io/x"),
        ("prefix.*.io", "prefix.kubernetes.io/x"),
        ("prefix.kubernetes.*", "prefix.kubernetes.io/x"),
        ("*-good.kubernetes.io", "prefix-good.kubernetes.io/x"),
        ("*.kubernetes.io/blah", "prefix.kubernetes.io/blah"),
        ("prefix.*.io/foo", "prefix.kubernetes.io/foo/bar"),
        ("*.kubernetes.io:1111/blah", "prefix.kubernetes.io:1111/blah"),
        ("https://*.docker.io/v1/", "prefix.docker.io/path/foo/bar"),
        ("http://r.io", "r.io/x"),
        ("https://r.io/v2/team", "r.io/team/x"),
        ("https://user@r.io", "r.io/x"),
        ("r.io/team", "r.io/team2/x"),
        ("r.io/", "r.io/x"),
        ("[::1]:5000", "[::1]:5000/x"),
        ("r[0-9].io", "r7.io/x"),
        ("docker.io", "nginx"),
        ("docker.io/library", "nginx"),
        ("https://index.docker.io/v1/", "nginx"),
        ("index.docker.io", "docker.io/acme/app"),
        ("index.docker.io", "index.docker.io/acme/app"),
    ],
)
def test_a_key_is_for_an_image(key: str, image: str) -> None:
    assert len(keychain(key).candidates(Reference.parse(image))) == 1


@pytest.mark.parametrize(
    ("key", "image"),
    [
        ("*.kubernetes.io", "kubernetes.io/x"),
        ("*.*.kubernetes.io", "prefix.kubernetes.io/x"),
        ("kubernetes.io", "kubernetes.com/x"),
        ("k*.io", "quay.io/x"),
        ("r.io:1234", "r.io:1111/x"),
        ("r.io", "r.io:1111/x"),
        ("r.io:1111", "r.io/x"),
        ("*.io", "a.b.io/x"),
        ("*.kubernetes.io/blah", "prefix.kubernetes.io/other"),
        ("https://index.docker.io/v1", "nginx"),  # without the slash it never matches
        ("https://index.docker.io/v1", "index.docker.io/acme/app"),
        ("index.docker.io", "registry.tld/foo/bar"),
        ("index.docker.io", "registry:5000/foo/bar"),
        ("index.docker.io", "myhostdocker.io/foo/bar"),
        ("index.docker.io", "localhost/foo"),  # the kubelet's textual test says yes
        ("index.docker.io", "Registry/foo"),
        ("r[0-9.io", "r7.io/x"),
        ("r?.io", "r7.io/x"),  # a URL's path ends before `?`
        ("[::1]", "[::1]/x"),  # a character class, as in the kubelet
    ],
)
def test_a_key_is_not_for_an_image(key: str, image: str) -> None:
    assert keychain(key).candidates(Reference.parse(image)) == ()


@pytest.mark.parametrize(
    ("pattern", "label", "matches"),
    [
        ("*", "", True),
        ("*", "anything", True),
        ("a*c", "abbc", True),
        ("a*c", "abcd", False),
        ("*a*b*", "xaxbx", True),
        ("*ab", "aab", True),
        ("?", "", False),
        ("a?c", "abc", True),
        ("[a-c]x", "bx", True),
        ("[a-c]x", "dx", False),
        ("[^a-c]x", "dx", True),
        ("[^a-c]x", "bx", False),
        ("[!a]x", "!x", True),  # Go has no `!`
        ("[!a]x", "bx", False),
        ("[\\]]", "]", True),
        ("[\\-x]", "-", True),
        ("\\*", "*", True),
        ("\\*", "a", False),
        ("A", "a", False),
        ("[]a]", "]", False),
        ("[-]", "-", False),
        ("[a", "a", False),
        ("[a-", "a", False),
        ("[", "a", False),
        ("a\\", "a", False),
        ("", "", True),
        ("a", "", False),
        ("ab", "a", False),
    ],
)
def test_globs_are_those_of_go(pattern: str, label: str, *, matches: bool) -> None:
    assert glob_matches(pattern, label) is matches


def test_a_hostile_glob_cannot_hold_the_event_loop() -> None:
    started = time.perf_counter()
    assert not glob_matches("*a" * 200 + "b", "a" * 2000)
    assert time.perf_counter() - started < 2


@given(st.text("ab*?[]^-\\", max_size=8), st.text("ab-]", max_size=8))
def test_no_glob_breaks_the_matcher(pattern: str, label: str) -> None:
    assert glob_matches(pattern, label) in (True, False)


@given(st.text("ab*", max_size=8), st.text("ab", max_size=8))
def test_a_star_stands_for_any_text(pattern: str, label: str) -> None:
    expected = re.fullmatch(pattern.replace("*", ".*"), label) is not None
    assert glob_matches(pattern, label) is expected


def test_every_matching_key_is_a_candidate_and_the_most_specific_comes_first() -> None:
    keys = keychain("*.io", "r.io", "r.io/team", "r.io/team/app", "other.io")
    assert users(keys, "r.io/team/app:v1") == ["r.io/team/app", "r.io/team", "r.io", "*.io"]


def test_entries_of_one_key_keep_the_order_of_their_configs() -> None:
    first = Keychain.from_docker_config(json.dumps({"auths": {"r.io": auth("first")}}))
    second = Keychain.from_docker_config(json.dumps({"auths": {"https://r.io": auth("second")}}))
    assert users(Keychain.merged([first, second]), "r.io/x") == ["first", "second"]
    assert users(Keychain.merged([second, first]), "r.io/x") == ["second", "first"]


def test_docker_hub_credentials_stand_in_only_where_nothing_else_matches() -> None:
    assert users(keychain("index.docker.io", "docker.io/acme"), "acme/app") == ["docker.io/acme"]
    assert users(keychain("index.docker.io", "docker.io/acme"), "nginx") == ["index.docker.io"]


def test_credentials_of_docker_hub_never_go_to_a_host_that_looks_like_it() -> None:
    keys = keychain("https://index.docker.io/v1/", "docker.io")
    for image in ("localhost/foo", "Docker.io/foo/bar", "docker.io.evil.example/foo"):
        assert users(keys, image) == []


def test_a_dockercfg_is_the_bare_map() -> None:
    keys = Keychain.from_docker_config(json.dumps({"https://r.io/v1/": auth("legacy")}).encode())
    assert users(keys, "r.io/x") == ["legacy"]


@pytest.mark.parametrize("padded", [True, False])
def test_auth_overrides_and_is_split_at_the_first_colon(*, padded: bool) -> None:
    encoded = base64.b64encode(b"bot:pass:word").decode()
    entry = {"auth": encoded if padded else encoded.rstrip("="), "username": "x", "password": "y"}
    keys = Keychain.from_docker_config(json.dumps({"auths": {"r.io": entry}}))
    assert keys.candidates(Reference.parse("r.io/x")) == (Credential("bot", "pass:word"),)


def test_user_name_and_password_do_without_auth() -> None:
    entry = {"username": "bot", "password": "pä:ss", "email": "ignored", "identitytoken": "ignored"}
    keys = Keychain.from_docker_config(json.dumps({"auths": {"r.io": entry}}))
    assert keys.candidates(Reference.parse("r.io/x")) == (Credential("bot", "pä:ss"),)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        "secret",
        {},
        {"auth": "s3cr3t!"},
        {"auth": base64.b64encode(b"s3cr3t-without-colon").decode()},
        {"auth": base64.b64encode(b"\xff:s3cr3t").decode()},
        {"username": 7, "password": "s3cr3t"},
        {"username": "a:b", "password": "s3cr3t"},
        {"username": "a\nb", "password": "s3cr3t"},
    ],
)
def test_a_broken_entry_is_reported_and_costs_no_other(entry: object) -> None:
    config = {"auths": {"broken.io": entry, "r.io": auth("good")}}
    keys = Keychain.from_docker_config(json.dumps(config))
    assert users(keys, "r.io/x") == ["good"]
    assert users(keys, "broken.io/x") == []
    (report,) = keys.skipped
    assert report.startswith("'broken.io': ")
    assert "s3cr3t" not in report


@pytest.mark.parametrize("key", ["", "https://", "r.io:port", "r io", "[::1", "a:1:2"])
def test_a_key_that_names_no_host_is_reported(key: str) -> None:
    keys = keychain(key, "r.io")
    assert [name for name, _ in keys.entries] == ["r.io"]
    assert len(keys.skipped) == 1


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '"s3cr3t"', '{"auths": 1}', "[" * 100_000, b"\xff"]
)
def test_what_is_no_docker_config_is_refused_without_repeating_it(text: str | bytes) -> None:
    with pytest.raises(InvalidDockerConfig) as caught:
        Keychain.from_docker_config(text)
    assert "s3cr3t" not in str(caught.value)


def test_no_representation_shows_a_password() -> None:
    assert "hunter2" not in repr(Keychain((("r.io", Credential("bot", "hunter2")),)))


@pytest.mark.parametrize("name", ["a:b", "a\rb", "a\nb", "a\0b"])
def test_a_user_name_that_would_change_the_header_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="user name"):
        Credential(name, "x")


def test_fingerprints_tell_identities_apart_and_say_nothing_without_the_key() -> None:
    one, two = Credential("a", "b"), Credential("c", "d")
    prints = [
        fingerprint(b"key", each)
        for each in ([one], [two], [one, two], [two, one], [Credential("a", "bc")])
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint(b"key", [one]) == fingerprint(b"key", [Credential("a", "b")])
    assert fingerprint(b"other", [one]) != fingerprint(b"key", [one])
    assert fingerprint(b"key", []) == ANONYMOUS


@pytest.mark.parametrize("field", ["username", "password"])
def test_half_a_surrogate_pair_spoils_its_entry_alone(field: str) -> None:
    bad = {"username": "bot", "password": "secret"} | {field: "\ud800"}
    keys = Keychain.from_docker_config(json.dumps({"bad.io": bad, "r.io": auth("good")}))
    assert users(keys, "r.io/x") == ["good"]
    assert users(keys, "bad.io/x") == []
    (report,) = keys.skipped
    assert "UTF-8" in report


def test_a_config_that_is_no_utf_8_is_none() -> None:
    with pytest.raises(InvalidDockerConfig):
        Keychain.from_docker_config(b'{"auths": {"r.io": {"username": "\xff", "password": "x"}}}')


def test_only_the_first_200_registries_of_a_config_are_read() -> None:
    config = {f"r{number}.io": auth("bot") for number in range(250)}
    keys = Keychain.from_docker_config(json.dumps(config))
    assert len(keys.entries) == 200
    assert keys.skipped == ("only the first 200 of 250 registries are read",)


def test_no_more_than_10_reports_come_from_one_config() -> None:
    config = {f"r{number}.io": {"auth": "!"} for number in range(250)}
    keys = Keychain.from_docker_config(json.dumps(config))
    assert len(keys.skipped) == 10
    assert keys.skipped[-1] == "only the first 200 of 250 registries are read"


@pytest.mark.parametrize("key", ["r{0}.example.io", "r.io/team{0}", "*.r{0}.io"])
def test_large_configs_are_searched_quickly(key: str) -> None:
    configs = [
        keychain(*(key.format(secret * 200 + number) for number in range(200)))
        for secret in range(20)
    ]
    images = [Reference.parse(f"r{number}.example.io/team{number}/app") for number in range(100)]
    started = time.process_time()
    keys = Keychain.merged(configs)
    for image in images:
        keys.candidates(image)
    assert time.process_time() - started < 0.5


def test_only_so_many_hosts_with_wildcards_are_read() -> None:
    auths = {f"*a{i}.test": {"username": "u", "password": "p"} for i in range(MAX_PATTERNS + 3)}
    auths["plain.test"] = {"username": "u", "password": "p"}

    keychain = Keychain.from_docker_config(json.dumps({"auths": auths}))

    assert len(keychain.entries) == MAX_PATTERNS + 1
    assert len(keychain.skipped) == 3
    assert "only 20 hosts with wildcards are read" in keychain.skipped[0]
