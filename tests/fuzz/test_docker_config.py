"""Docker configs: whatever a Secret holds, it is read or refused, and no secret is spoken of."""

import base64
import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from fuzz.fuzzing import FUZZED
from tagpin.keychain import (
    MAX_ENTRIES,
    MAX_PATTERNS,
    MAX_REMARKS,
    Credential,
    InvalidDockerConfig,
    Keychain,
    fingerprint,
)
from tagpin.reference import Reference

SECRET = "s3cr3t"
IMAGES = [
    Reference.parse(text)
    for text in (
        *("nginx", "r.example/acme/app", "r.example:5000/x", "[::1]:5000/x", "localhost/x"),
        *("a.b.c.d.example/x", "Registry/x", "index.docker.io/acme/app", "123.dkr.ecr.test/a/b"),
    )
]

SECRETS = st.sampled_from(
    [
        *(
            SECRET,
            f"{SECRET}:x",
            f"{SECRET}\r\nX: y",
            f"\ud800{SECRET}",
            f"\0{SECRET}",
            "",
            "\u00e4",
        ),
        *(None, 7, True, [SECRET], {"x": SECRET}),
    ]
)
AUTHS = st.one_of(
    SECRETS,
    st.builds(
        lambda name, word, padding: (
            base64.b64encode(f"{name}:{SECRET}{word}".encode()).decode().rstrip("=") + padding
        ),
        st.sampled_from(["bot", "", "<token>", "a b", "\u00e4"]),
        st.text("ab:=", max_size=3),
        st.sampled_from(["", "=", "==", "===", "\n", " ", "!"]),
    ),
    st.just(base64.b64encode(b"\xff" + SECRET.encode()).decode()),
    st.just(base64.b64encode(SECRET.encode()).decode()),
)
ENTRIES = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "auth": AUTHS,
            "username": SECRETS | st.just("bot"),
            "password": SECRETS,
            "identitytoken": SECRETS,
            "registrytoken": SECRETS,
            "email": SECRETS,
        },
    ),
    SECRETS,
)
HOSTS = [
    "r.example",
    "docker.io",
    "*.example",
    "*",
    "r?.example",
    "r[a-z.example",
    "[::1]",
    "ec2\\",
]
KEYS = st.one_of(
    st.builds(
        "{}{}{}{}".format,
        st.sampled_from(["", "https://", "http://", "ftp://", "//", "user:pw@", "https://u@"]),
        st.sampled_from(
            [*HOSTS, "", " ", "a" * 300, "\ud800", "index.docker.io", "[", "123.dkr.ecr.test"]
        ),
        st.sampled_from(["", ":5000", ":", ":x", ":1:2"]),
        st.sampled_from(["", "/", "/v1/", "/v2", "/v2/acme", "/acme//", "?x", "#x", "/%2f"]),
    ),
    st.text(max_size=12),
)
CONFIGS = st.one_of(
    st.builds(
        lambda auths, more: more | {"auths": auths},
        st.dictionaries(KEYS, ENTRIES, max_size=5),
        st.dictionaries(
            st.sampled_from(["credsStore", "credHelpers", "HttpHeaders", "auths"]),
            SECRETS,
            max_size=2,
        ),
    ),
    st.builds(lambda auths: {"auths": auths}, SECRETS),
    st.dictionaries(KEYS, ENTRIES, max_size=4),
    SECRETS,
)
TEXTS = st.one_of(
    CONFIGS.map(json.dumps),
    CONFIGS.map(lambda value: json.dumps(value).encode()),
    st.builds(
        lambda value, at, byte: _spoilt(json.dumps(value).encode(), at, byte),
        CONFIGS,
        st.integers(0, 400),
        st.integers(0, 255),
    ),
    st.binary(max_size=40),
    st.text(st.characters(codec=None), max_size=40),
    st.just("[" * 3000),
)


def _spoilt(text: bytes, at: int, byte: int) -> bytes:
    at %= max(1, len(text))
    return text[:at] + bytes([byte]) + text[at + 1 :]


@FUZZED
@given(TEXTS, st.booleans())
@example(b'{"auths": {"r.example": {"auth": "\xff"}}}', False)
@example(json.dumps({"auths": {f"*.r{n}.example": {"auth": "YTpi"} for n in range(300)}}), False)
@example(json.dumps({f"r{n}.example": {"auth": "YTpi"} for n in range(300)}), True)
@example(json.dumps({f"r{n}.example": {"auth": SECRET} for n in range(300)}), True)
def test_every_config_is_read_or_refused_and_its_secrets_stay_secret(
    text: str | bytes, is_bare: bool
) -> None:
    keychain = read(text, is_bare=is_bare)
    if isinstance(keychain, InvalidDockerConfig):
        assert SECRET not in f"{keychain} {keychain!r} {keychain.__cause__!r}"
        assert str(keychain).isprintable()
        return
    assert len(keychain.entries) <= MAX_ENTRIES
    assert len(keychain.remarks) <= MAX_REMARKS
    patterns = [key for key, _ in keychain.entries if set(key) & set("*?[\\")]
    assert len(patterns) <= MAX_PATTERNS
    for remark in keychain.remarks:
        assert remark.isprintable()
        assert len(remark) < 1000
    assert SECRET not in repr(_without_names(keychain))


@FUZZED
@given(CONFIGS, st.booleans())
def test_every_credential_is_one_that_stood_there_under_a_key_for_the_image(
    config: Any, is_bare: bool
) -> None:
    keychain = read(json.dumps(config), is_bare=is_bare)
    if isinstance(keychain, InvalidDockerConfig):
        return
    read_ones = [candidate for _, candidate in keychain.entries]
    for image in IMAGES:
        candidates = keychain.candidates(image)
        assert all(each in read_ones for each in candidates)
        assert fingerprint(b"key", candidates) == fingerprint(b"key", keychain.candidates(image))
    for each in read_ones:
        assert isinstance(each, Credential)
        f"{each.username}:{each.password}{each.identity_token}".encode()
        assert not set(each.username) & set("\r\n\0:")
        assert not set(each.identity_token) & set("\r\n\0")


def read(text: str | bytes, *, is_bare: bool) -> Keychain | InvalidDockerConfig:
    try:
        return Keychain.from_dockercfg(text) if is_bare else Keychain.from_docker_config(text)
    except InvalidDockerConfig as refusal:
        return refusal


def _without_names(keychain: Keychain) -> Keychain:
    """User names may be shown; that in which we put a secret is left out."""
    entries = tuple(
        (key, candidate)
        for key, candidate in keychain.entries
        if isinstance(candidate, Credential) and SECRET not in candidate.username
    )
    return Keychain(entries, keychain.remarks)
