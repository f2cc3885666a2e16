"""Pull secrets: docker configs → Keychain, matched exactly as the kubelet matches them.

An image is resolved with the credentials that a node will pull it with, so even the quirks are
the kubelet's. (kubernetes/kubernetes: pkg/credentialprovider, keyring.go and config.go)
"""

import base64
import binascii
import hmac
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import lru_cache
from itertools import islice
from typing import Any, Generic, Self, TypeAlias, TypeVar

from tagpin.errors import TagpinError
from tagpin.reference import DOCKER_HUB, Reference

V = TypeVar("V")

ANONYMOUS = "anonymous"
"""The fingerprint of no credentials at all."""

MAX_ENTRIES = 200
"""Registries that are read from one docker config."""
MAX_PATTERNS = 20
"""Hosts with wildcards among them: each is compared with the host of each image."""
MAX_REMARKS = 10
"""Entries of one docker config of which something is said."""

_DOCKER_HUB_KEY = "index.docker.io"
_ANY_HOST = re.compile(r"\*+(?:\.\*+)*(?::[0-9]*)?(?:/.*)?")


class InvalidDockerConfig(TagpinError):
    """The text is no docker config at all; the message repeats nothing of it."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name and password for the registry whose key they were found under.

    Raises ValueError for a user name that would change meaning in an HTTP header: with CR, LF,
    NUL or `:` (RFC 7617 §2); for an identity token with CR, LF or NUL; and for what JSON can escape
    and UTF-8 cannot write: half a surrogate pair.
    """

    username: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)
    """An OAuth 2 refresh token, which stands in for the password (docker: `identitytoken`)."""

    def __post_init__(self) -> None:
        if re.search(r"[\r\n\0:]", self.username):
            raise ValueError("the user name has a character that Basic authentication forbids")
        if re.search(r"[\r\n\0]", self.identity_token):
            raise ValueError("the identity token has a control character")
        if re.search(r"[\ud800-\udfff]", self.username + self.password + self.identity_token):
            raise ValueError("a secret or its user name has a character that UTF-8 cannot write")


@dataclass(frozen=True, slots=True)
class Identity:
    """Names a credential of tagpin's own that is only obtained when a registry asks for one.

    `provider` is who gives it (`ecr`, `google`, `acr`, or a credential program), `host` the
    registry that it is for, as in references: it must go nowhere else.
    """

    provider: str
    host: str


Candidate: TypeAlias = Credential | Identity


def _nobody(_domain: str) -> tuple[Identity, ...]:
    return ()


@dataclass(frozen=True, slots=True)
class Keychain:
    """Credentials from any number of docker configs, in the order of the configs.

    `entries` are pairs of a normalised key (`host[:port][/path]`) and its candidate. `remarks` say,
    in words fit for a warning, which entries could not be used and why, or what is odd about them.
    After them come the `identities` that somebody has for a registry, named as in references.
    Where there are `hosts`, it has candidates for no other registries: `host[:port]`, globs as in
    keys. Where its candidates end, those of `then` follow, which is looked up by itself.
    (secrets.go: UnionDockerKeyring)
    """

    entries: tuple[tuple[str, Candidate], ...] = ()
    remarks: tuple[str, ...] = ()
    identities: Callable[[str], tuple[Identity, ...]] = _nobody
    hosts: tuple[str, ...] | None = None
    then: "Keychain | None" = None
    _index: "_Index[Candidate]" = field(init=False, repr=False, compare=False)
    _allowed: "_Index[None] | None" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", _Index.of(self.entries))
        hosts = None if self.hosts is None else _Index.of((host, None) for host in self.hosts)
        object.__setattr__(self, "_allowed", hosts)

    @classmethod
    def from_docker_config(cls, text: str | bytes) -> Self:
        """Read a docker config or `.dockerconfigjson`: `{"auths": {…}}`; the rest is ignored.

        Raises InvalidDockerConfig where the whole text is unusable. A single bad entry costs no
        other, and the first MAX_ENTRIES are read: `remarks` say so.
        """
        document = json_object(text)
        if "auths" not in document:
            return cls(remarks=("it has no auths, so holds no credential",))
        return cls.from_auths(document["auths"])

    @classmethod
    def from_dockercfg(cls, text: str | bytes) -> Self:
        """Read the bare map of a `.dockercfg`, in which a key `auths` is a host; else the same."""
        return cls.from_auths(json_object(text))

    @classmethod
    def from_auths(cls, auths: Any) -> Self:
        """Read the map of registries of a docker config, as parsed from JSON."""
        if not isinstance(auths, dict | None):
            raise InvalidDockerConfig("the docker config holds no map of registries")
        return cls._read(auths or {}, _parse_entry)

    @classmethod
    def of_identities(cls, providers: Mapping[str, str]) -> Self:
        """Identities for the registries whose keys, as in a docker config, name who gives them."""
        return cls._read(providers, lambda provider: Identity(provider, host=""))

    @classmethod
    def _read(cls, entries: Mapping[str, Any], parse: Callable[[Any], Candidate]) -> Self:
        read: list[tuple[str, Candidate]] = []
        remarks: list[str] = []
        patterns = 0
        for location, entry in islice(entries.items(), MAX_ENTRIES):
            remark = ""
            try:
                key, candidate = _parse_key(location), parse(entry)
            except ValueError as error:
                remark = str(error)
            else:
                patterns += _is_pattern(key)
                if patterns > MAX_PATTERNS and _is_pattern(key):
                    remark = f"only {MAX_PATTERNS} hosts with wildcards are read"
                else:
                    read.append((key, candidate))
                    if _ANY_HOST.fullmatch(key):
                        remark = "is for any registry with such a name, whoever runs it"
            if remark:
                remarks.append(f"{location[:255]!r}: {remark}")
        del remarks[MAX_REMARKS:]
        if len(entries) > MAX_ENTRIES:
            remarks[MAX_REMARKS - 1 :] = [
                f"only the first {MAX_ENTRIES} of {len(entries)} registries are read"
            ]
        return cls(tuple(read), tuple(remarks))

    @classmethod
    def merged(cls, keychains: Iterable["Keychain"], *, then: "Keychain | None" = None) -> Self:
        """All credentials of `keychains`, those of the first one first; and `then` after them."""
        parts = tuple(keychains)
        return cls(
            tuple(entry for part in parts for entry in part.entries),
            tuple(remark for part in parts for remark in part.remarks),
            then=then,
        )

    def candidates(self, ref: Reference) -> tuple[Candidate, ...]:
        """Every credential to try for `ref`, in the kubelet's order; empty means anonymously.

        More specific keys come first, entries of one key in the order of their configs. An Identity
        is one for the registry of `ref`. (keyring.go: BasicDockerKeyring.Lookup)
        """
        following = self.then.candidates(ref) if self.then is not None else ()
        if not self._allows(ref.domain):
            return following
        matching = self._index.keys_for(ref.domain, ref.path)
        # The kubelet's own test for Docker Hub is textual and says yes to `localhost/foo` too.
        if not matching and ref.domain == DOCKER_HUB:
            matching = [_DOCKER_HUB_KEY]
        own = (each for key in matching for each in self._index.values.get(key, ()))
        bound = (
            replace(each, host=ref.domain) if isinstance(each, Identity) else each for each in own
        )
        found = (*bound, *self.identities(ref.domain), *following)
        return tuple(dict.fromkeys(found))  # none is worth a second refusal

    def idle_keys(self) -> tuple[str, ...]:
        """The keys that serve no image, since their registry is not among `hosts`; but no globs."""
        hosts = {key: key.partition("/")[0] for key, _ in self.entries if not _is_pattern(key)}
        return tuple(
            key
            for key, host in hosts.items()
            if not self._allows(DOCKER_HUB if host == _DOCKER_HUB_KEY else host)
        )

    def _allows(self, domain: str) -> bool:
        return self._allowed is None or bool(self._allowed.keys_for(domain, ""))


def fingerprint(key: bytes, candidates: Sequence[Candidate]) -> str:
    """A name for these candidates in this order, which says nothing about them without `key`."""
    if not candidates:
        return ANONYMOUS
    named = json.dumps([[type(each).__name__, *astuple(each)] for each in candidates])
    return hmac.digest(key, named.encode(), "sha256").hex()


def json_object(text: str | bytes) -> dict[str, Any]:
    """A docker config's outermost map; raises InvalidDockerConfig, which repeats nothing of it."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidDockerConfig("the docker config is not valid JSON") from None
    if not isinstance(document, dict):
        raise InvalidDockerConfig("the docker config holds no map of registries")
    return document


def _is_pattern(key: str) -> bool:
    return bool(re.search(r"[*?\[\\]", key))


def _parse_key(location: str) -> str:
    """`host[:port][/path]` out of what stands in a docker config (keyring.go: Add)."""
    rest = re.sub(r"\Ahttps?://", "", location)
    # As Go's url.Parse: what follows # or ? is no part of the path, so `?` is no glob here.
    rest = rest.partition("#")[0].partition("?")[0]
    authority, slash, path = rest.partition("/")
    host = authority.rpartition("@")[2]
    if not re.fullmatch(r"(?:[^\s\[\]:]|\[[^\s\[\]]*\])+(?::[0-9]*)?", host):
        raise ValueError("not a registry host")
    path = slash + path
    if path.startswith(("/v1/", "/v2/")):  # only with the slash behind it
        path = path[3:]
    return host if path == "/" else host + path


def _parse_entry(entry: Any) -> Credential:
    """One credential; ValueError says what is wrong without repeating it.

    As for the kubelet, `auth` overrides user name and password, and names of fields have any case.
    An identity token, which the kubelet does not read, counts where there is no password.
    (config.go)
    """
    fields = {key.lower(): value for key, value in entry.items()} if isinstance(entry, dict) else {}
    username, password, auth, identity_token = (
        fields.get(key) or "" for key in ("username", "password", "auth", "identitytoken")
    )
    if not all(isinstance(each, str) for each in (username, password, auth, identity_token)):
        raise ValueError("a field of the entry is no text")
    if auth:
        username, password = _decode_auth(auth)
    if identity_token and not password:
        return Credential(username, "", identity_token)
    if not username and not password:
        raise ValueError("neither auth nor username and password")
    return Credential(username, password)


def _decode_auth(auth: str) -> tuple[str, str]:
    compact = re.sub(r"[\r\n]", "", auth)  # all that Go's decoder passes over
    padding = "" if compact.endswith("=") else "=" * (-len(compact) % 4)
    try:
        raw = base64.b64decode(compact + padding, validate=True)
        username, colon, password = raw.decode().partition(":")
    except (binascii.Error, ValueError):
        raise ValueError("auth is not base64 of text") from None
    if not colon:
        raise ValueError("auth is not base64 of username:password")
    return username, password


@dataclass(frozen=True, slots=True)
class _Index(Generic[V]):
    """Values by key, and keys by what an image must have to match them at all.

    A key is for an image whose port is the same, whose path begins with the key's, and whose host
    labels match the key's, glob by glob. (keyring.go: URLsMatch)
    """

    values: Mapping[str, Sequence[V]]
    by_host: Mapping[tuple["_Shape", str], Sequence[tuple[str, str, "_Labels"]]]
    """(shape of the host, port) → (path, key, labels)."""
    masks: Collection[tuple[bool, ...]]
    """Which labels are globs, for every shape that occurs."""

    @classmethod
    def of(cls, entries: Iterable[tuple[str, V]]) -> Self:
        values: dict[str, list[V]] = {}
        for key, value in entries:
            values.setdefault(key, []).append(value)
        by_host: dict[tuple[_Shape, str], list[tuple[str, str, _Labels]]] = {}
        masks: set[tuple[bool, ...]] = set()
        for key in values:
            authority, slash, path = key.partition("/")
            host, port = _split_port(authority)
            labels = tuple(host.split("."))
            mask = tuple(bool(re.search(r"[*?\[\\]", label)) for label in labels)
            masks.add(mask)
            by_host.setdefault((_shape(labels, mask), port), []).append((slash + path, key, labels))
        return cls(values, by_host, masks)

    def keys_for(self, domain: str, path: str) -> list[str]:
        """The keys that match an image, more specific ones first."""
        host, port = _split_port(domain)
        labels, path = tuple(host.split(".")), f"/{path}"
        found = [
            key
            for mask in self.masks
            if len(mask) == len(labels)
            for start, key, globs in self.by_host.get((_shape(labels, mask), port), ())
            if path.startswith(start) and (not any(mask) or all(map(glob_matches, globs, labels)))
        ]
        return sorted(found, reverse=True)


_Labels: TypeAlias = tuple[str, ...]
_Shape: TypeAlias = tuple[str | None, ...]


def _shape(labels: "_Labels", mask: tuple[bool, ...]) -> "_Shape":
    """The labels of a host, without those that are for a glob to match."""
    return tuple(None if masked else label for label, masked in zip(labels, mask, strict=True))


def _split_port(authority: str) -> tuple[str, str]:
    """Host and port as Go's net.SplitHostPort, or all of it and no port where that fails."""
    bracketed = re.fullmatch(r"\[([^\[\]]*)\]:([^\[\]:]*)", authority)
    if bracketed:
        return bracketed[1], bracketed[2]
    host, _, port = authority.partition(":")
    return (authority, "") if ":" in port or "[" in host else (host, port)


@dataclass(frozen=True, slots=True)
class _OneOf:
    """One character of a glob: within any of the ranges, or within none of them."""

    ranges: tuple[tuple[str, str], ...]
    negated: bool = False

    def matches(self, character: str) -> bool:
        return any(low <= character <= high for low, high in self.ranges) is not self.negated


_STAR = None
_ANY = _OneOf((), negated=True)


def glob_matches(pattern: str, label: str) -> bool:
    """Go's filepath.Match for one host label; a malformed pattern matches nothing.

    Backtracks to the last star only, so that a hostile pattern costs no more than
    len(pattern) * len(label).
    """
    parts = _parsed_glob(pattern)
    if parts is None:
        return False
    at = part = 0
    star: tuple[int, int] | None = None
    while at < len(label):
        here = parts[part] if part < len(parts) else _OneOf(())
        if here is _STAR:
            star = (part, at)
            part += 1
        elif here.matches(label[at]):
            at, part = at + 1, part + 1
        elif star is not None:
            star = (star[0], star[1] + 1)
            part, at = star[0] + 1, star[1]
        else:
            return False
    return all(rest is _STAR for rest in parts[part:])


@lru_cache(maxsize=4096)
def _parsed_glob(pattern: str) -> "tuple[_OneOf | None, ...] | None":
    """What `_parse_glob` yields, or None for a malformed pattern."""
    try:
        return tuple(_parse_glob(pattern))
    except ValueError:
        return None


def _parse_glob(pattern: str) -> Iterator[_OneOf | None]:
    """The characters of a glob, None for `*`; ValueError where Go says ErrBadPattern."""
    characters = iter(pattern)
    for character in characters:
        match character:
            case "*":
                yield _STAR
            case "?":
                yield _ANY
            case "[":
                yield _parse_class(characters)
            case "\\":
                literal = _next(characters)
                yield _OneOf(((literal, literal),))
            case _:
                yield _OneOf(((character, character),))


def _parse_class(characters: Iterator[str]) -> _OneOf:
    """What stands between `[` and `]`: `[abc]`, `[a-z0-9]`, `[^x]`."""
    ranges: list[tuple[str, str]] = []
    character = _next(characters)
    negated = character == "^"
    if negated:
        character = _next(characters)
    while character != "]" or not ranges:
        low = _class_literal(character, characters)
        high, character = low, _next(characters)
        if character == "-":
            high = _class_literal(_next(characters), characters)
            character = _next(characters)
        ranges.append((low, high))
    return _OneOf(tuple(ranges), negated)


def _class_literal(character: str, characters: Iterator[str]) -> str:
    if character in "-]":
        raise ValueError("misplaced - or ]")
    return _next(characters) if character == "\\" else character


def _next(characters: Iterator[str]) -> str:
    for character in characters:
        return character
    raise ValueError("the pattern ends too early")
