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
    Candidate,
    Credential,
    Identity,
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
        ("prefix.*.io:1111/foo", "prefix.kubernetes.io:1111/foo/bar"),
        ("https://*.docker.io/v1/", "prefix.docker.io/path/foo/bar"),
        ("https://*.docker.io/v2/", "prefix.docker.io/path/foo/bar"),
        ("https://*.docker.io", "prefix.docker.io/x"),
        ("https://prefix.docker.*/path", "prefix.docker.io/path/x"),
        ("https://*.docker.io:8888", "prefix.docker.io:8888/x"),
        ("https://quay.io/v1/", "quay.io/x"),
        ("r.io/v1/", "r.io/x"),
        ("http://r.io:5000/v2/", "r.io:5000/x"),
        ("http://r.io:5000/v1", "r.io:5000/v1/x"),  # without the slash it is a path
        ("r.io/v2/team/", "r.io/team/x"),
        ("r.io/team/", "r.io/team/x"),
        ("R.io", "R.io/x"),
        ("r.io:", "r.io/x"),
        ("http://r.io", "r.io/x"),
        ("https://user:word@r.io:5000/team", "r.io:5000/team/x"),
        ("https://r.io/v2/team", "r.io/team/x"),
        ("https://user@r.io", "r.io/x"),
        ("r.io/team", "r.io/team2/x"),
        ("r.io/", "r.io/x"),
        ("[::1]:5000", "[::1]:5000/x"),
        ("r[0-9].io", "r7.io/x"),
        ("docker.io", "nginx"),
        ("docker.io/library", "nginx"),
        ("index.docker.io", "foo"),
        ("index.docker.io", "foo/bar"),
        ("http://index.docker.io/v1/", "foo/bar"),
        ("index.docker.io/v2/", "docker.io/foo/bar"),
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
        ("*.*.kubernetes.io", "kubernetes.io/x"),
        ("*.kubernetes.io:1234/blah", "prefix.kubernetes.io:1111/blah"),
        ("prefix.*.io/foo", "prefix.kubernetes.io:1111/foo/bar"),
        ("https://suffix.*.io", "prefix.docker.io/x"),
        ("https://prefix.docker.c*", "prefix.docker.io/x"),
        ("R.io", "r.io/x"),  # no letter stands for its other case
        ("r.io", "R.io/x"),
        ("HTTPS://r.io", "r.io/x"),  # a host called HTTPS
        ("r.io:443", "r.io/x"),
        ("r.io/team/", "r.io/team2/x"),
        ("r.io/v1/team", "r.io/x"),
        ("r.io/v3/", "r.io/x"),
        ("r.io/v2", "r.io/x"),
        ("r.io/t*", "r.io/team/x"),
        ("r.io:50*", "r.io:5000/x"),
        ("*", "r.io/x"),
        ("registry-1.docker.io", "nginx"),
        ("index.docker.io/library", "nginx"),
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


def test_a_credential_that_came_twice_is_tried_once() -> None:
    same = keychain("r.io")
    assert users(Keychain.merged([same, same]), "r.io/x") == ["r.io"]


def test_candidates_of_another_keychain_follow_however_specific_they_are() -> None:
    own = keychain("r.io/team/app", "other.io")
    keys = Keychain.merged([keychain("*.io"), keychain("r.io")], then=own)
    assert users(keys, "r.io/team/app") == ["r.io", "*.io", "r.io/team/app"]
    assert users(keys, "r.io/x") == ["r.io", "*.io"]
    assert users(Keychain.merged([], then=own), "other.io/x") == ["other.io"]


def test_docker_hub_credentials_stand_in_in_each_keychain_by_itself() -> None:
    hub = "https://index.docker.io/v1/"
    keys = Keychain.merged([keychain("docker.io")], then=keychain(hub))
    assert users(keys, "nginx") == ["docker.io", hub.replace(":", "!")]
    keys = Keychain.merged([keychain("docker.io", hub)], then=keychain("docker.io/acme"))
    assert users(keys, "nginx") == ["docker.io"]


@pytest.mark.parametrize(
    ("hosts", "image", "served"),
    [
        (None, "r.io/x", True),
        ((), "r.io/x", False),
        (("r.io",), "r.io/x", True),
        (("r.io",), "evil.io/x", False),
        (("r.io",), "r.io:5000/x", False),
        (("*.r.io",), "a.r.io/x", True),
        (("*.r.io",), "r.io/x", False),
        (("docker.io",), "nginx", True),
        (("index.docker.io",), "nginx", False),
    ],
)
def test_a_keychain_for_certain_hosts_has_nothing_for_others(
    hosts: tuple[str, ...] | None, image: str, *, served: bool
) -> None:
    entries = tuple((key, Credential("own", "pw")) for key in ("*.io", "*.r.io", "*.io:5000"))
    following = keychain("*.io", "*.io:5000", "*.r.io", "index.docker.io")
    keys = Keychain(
        entries,
        identities=lambda domain: (Identity("cloud", domain),),
        hosts=hosts,
        then=following,
    )

    candidates = keys.candidates(Reference.parse(image))

    assert (Credential("own", "pw") in candidates) is served
    assert any(isinstance(each, Identity) for each in candidates) is served
    assert candidates != ()  # those that follow have limits of their own


def test_an_identity_is_for_the_registry_that_it_is_asked_for() -> None:
    keys = Keychain.of_identities(
        {"*.pkg.dev": "google", "https://index.docker.io/v1/": "/bin/hub", "r.io/team": "/bin/r"}
    )
    assert keys.candidates(Reference.parse("eu.pkg.dev/x")) == (Identity("google", "eu.pkg.dev"),)
    assert keys.candidates(Reference.parse("nginx")) == (Identity("/bin/hub", "docker.io"),)
    assert keys.candidates(Reference.parse("r.io/team/x")) == (Identity("/bin/r", "r.io"),)
    assert keys.candidates(Reference.parse("r.io/x")) == ()


def test_identities_that_somebody_has_come_between_this_keychain_and_the_next() -> None:
    keys = Keychain(
        (("*.io", Credential("bot", "pw")),),
        identities=lambda domain: (Identity("cloud", domain),),
        then=keychain("r.io"),
    )
    names = [type(each).__name__ for each in keys.candidates(Reference.parse("r.io/x"))]
    assert names == ["Credential", "Identity", "Credential"]
    hub = Reference.parse("nginx")
    assert keys.candidates(hub)[-1] == Identity("cloud", "docker.io")


def test_an_identity_for_no_host_is_reported() -> None:
    keys = Keychain.of_identities({"r io": "google"})
    assert (keys.entries, keys.remarks) == ((), ("'r io': not a registry host",))


@pytest.mark.parametrize("key", ["*", "*.*", "https://*.*.*/v1/", "*:5000", "*.*/team"])
def test_a_key_that_any_host_matches_is_used_and_warned_about(key: str) -> None:
    keys = keychain(key)
    assert len(keys.entries) == 1
    assert keys.remarks == (f"{key!r}: is for any registry with such a name, whoever runs it",)


@pytest.mark.parametrize("key", ["*.io", "r.*", "a*.*"])
def test_a_key_with_a_name_in_it_is_no_cause_for_a_warning(key: str) -> None:
    assert keychain(key).remarks == ()


def test_docker_hub_credentials_stand_in_only_where_nothing_else_matches() -> None:
    assert users(keychain("index.docker.io", "docker.io/acme"), "acme/app") == ["docker.io/acme"]
    assert users(keychain("index.docker.io", "docker.io/acme"), "nginx") == ["index.docker.io"]


def test_credentials_of_docker_hub_never_go_to_a_host_that_looks_like_it() -> None:
    keys = keychain("https://index.docker.io/v1/", "docker.io")
    for image in ("localhost/foo", "Docker.io/foo/bar", "docker.io.evil.example/foo"):
        assert users(keys, image) == []


def test_a_dockercfg_is_the_bare_map() -> None:
    keys = Keychain.from_dockercfg(json.dumps({"https://r.io/v1/": auth("legacy")}).encode())
    assert users(keys, "r.io/x") == ["legacy"]


def test_what_one_format_holds_is_nothing_in_the_other() -> None:
    bare = {"r.io": auth("bot")}

    modern = Keychain.from_docker_config(json.dumps(bare))
    legacy = Keychain.from_dockercfg(json.dumps({"auths": bare}))

    assert modern.entries == legacy.entries == ()
    assert modern.remarks == ("it has no auths, so holds no credential",)
    assert legacy.remarks == ("'auths': neither auth nor username and password",)


@pytest.mark.parametrize("auths", [{}, None])
def test_an_empty_docker_config_is_no_flaw(auths: object) -> None:
    assert Keychain.from_docker_config(json.dumps({"auths": auths})) == Keychain()


def test_of_a_docker_config_only_auths_counts_for_pods() -> None:
    config = {
        "auths": {"r.io": auth("bot")},
        "credsStore": "desktop",
        "credHelpers": {"r.io": "ecr-login", "other.io": "ecr-login"},
        "HttpHeaders": {"X-Forwarded-For": "10.0.0.1"},
    }
    keys = Keychain.from_docker_config(json.dumps(config))
    assert keys == Keychain.from_docker_config(json.dumps({"auths": config["auths"]}))
    assert users(keys, "other.io/x") == []


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
    assert keys.remarks == ()


def test_names_of_fields_have_any_case_as_in_go() -> None:
    keys = Keychain.from_dockercfg(json.dumps({"r.io": {"Username": "bot", "PASSWORD": "pw"}}))
    assert keys.candidates(Reference.parse("r.io/x")) == (Credential("bot", "pw"),)


@pytest.mark.parametrize("entry", [{}, {"auth": base64.b64encode(b"0000:").decode()}])
def test_an_identity_token_counts_where_there_is_no_password(
    entry: dict[str, str],
) -> None:
    entry = entry | {"identitytoken": "refresh-me"}
    keys = Keychain.from_docker_config(json.dumps({"auths": {"r.io": entry}}))
    (credential,) = keys.candidates(Reference.parse("r.io/x"))
    assert credential == Credential("0000" if "auth" in entry else "", "", "refresh-me")
    assert keys.remarks == ()


def test_line_breaks_in_auth_are_passed_over() -> None:
    encoded = base64.b64encode(b"bot:password").decode()
    keys = Keychain.from_dockercfg(
        json.dumps({"r.io": {"auth": f"{encoded[:8]}\r\n{encoded[8:]}\n"}})
    )
    assert users(keys, "r.io/x") == ["bot"]


@pytest.mark.parametrize(
    "entry",
    [
        None,
        "secret",
        {},
        {"auth": "s3cr3t!"},
        {"auth": base64.b64encode(b"s3cr3t-without-colon").decode()},
        {"auth": base64.b64encode(b"\xff:s3cr3t").decode()},
        {"auth": base64.b64encode(b"a:s3cr3t").decode() + "="},  # too much padding
        {"auth": base64.b64encode(b"a:s3cr3t!!").decode()[:-1]},  # too little
        {"auth": " " + base64.b64encode(b"a:s3cr3t").decode()},
        {"registrytoken": "s3cr3t"},
        {"identitytoken": "s3cr3t\n"},
        {"identitytoken": ["s3cr3t"]},
        ["s3cr3t"],
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
    (report,) = keys.remarks
    assert report.startswith("'broken.io': ")
    assert "s3cr3t" not in report


@pytest.mark.parametrize("key", ["", "https://", "r.io:port", "r io", "[::1", "a:1:2"])
def test_a_key_that_names_no_host_is_reported(key: str) -> None:
    keys = keychain(key, "r.io")
    assert [name for name, _ in keys.entries] == ["r.io"]
    assert len(keys.remarks) == 1


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
    others = Credential("a", "bc"), Credential("a", "b", "token"), Identity("a", "b")
    tried: list[tuple[Candidate, ...]] = [(each,) for each in (one, two, *others)]
    prints = [fingerprint(b"key", each) for each in (*tried, (one, two), (two, one))]
    assert len(set(prints)) == len(prints)
    assert fingerprint(b"key", [one]) == fingerprint(b"key", [Credential("a", "b")])
    assert fingerprint(b"other", [one]) != fingerprint(b"key", [one])
    assert fingerprint(b"key", []) == ANONYMOUS


@pytest.mark.parametrize("field", ["username", "password", "identitytoken"])
def test_half_a_surrogate_pair_spoils_its_entry_alone(field: str) -> None:
    bad = {"username": "bot", "password": "" if field == "identitytoken" else "pw"}
    bad[field] = "\ud800"
    keys = Keychain.from_dockercfg(json.dumps({"bad.io": bad, "r.io": auth("good")}))
    assert users(keys, "r.io/x") == ["good"]
    assert users(keys, "bad.io/x") == []
    (report,) = keys.remarks
    assert "UTF-8" in report


def test_a_config_that_is_no_utf_8_is_none() -> None:
    with pytest.raises(InvalidDockerConfig):
        Keychain.from_dockercfg(b'{"r.io": {"username": "\xff", "password": "x"}}')


def test_only_the_first_200_registries_of_a_config_are_read() -> None:
    config = {f"r{number}.io": auth("bot") for number in range(250)}
    keys = Keychain.from_dockercfg(json.dumps(config))
    assert len(keys.entries) == 200
    assert keys.remarks == ("only the first 200 of 250 registries are read",)


def test_no_more_than_10_reports_come_from_one_config() -> None:
    config = {f"r{number}.io": {"auth": "!"} for number in range(250)}
    keys = Keychain.from_dockercfg(json.dumps(config))
    assert len(keys.remarks) == 10
    assert keys.remarks[-1] == "only the first 200 of 250 registries are read"


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
    assert len(keychain.remarks) == 3
    assert "only 20 hosts with wildcards are read" in keychain.remarks[0]
