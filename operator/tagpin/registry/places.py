"""Which registry a name in a reference means, and what the operator said of it."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from cachetools import LRUCache
from yarl import URL

from tagpin.errors import ConfigurationError, InvalidReference
from tagpin.keychain import glob_matches
from tagpin.reference import DOCKER_HUB, Reference
from tagpin.registry.flow import HTTPS_PORT, Registry, origin_of
from tagpin.registry.limits import MAX_PLACES
from tagpin.registry.proxies import Proxy

MAX_HOST = 253
"""Characters of a host name (RFC 1035 §2.3.4: 255 octets on the wire)."""

MAX_PORT = 65535

DOCKER_HUB_HOST = "registry-1.docker.io"

_ADDRESS = re.compile(r"\[[0-9a-fA-F:.]*:[0-9a-fA-F:.]*\](?::[0-9]*)?")
_GLOB_LABEL = re.compile(r"(?:[a-z0-9_*?-]|\[\^?(?:[a-z0-9](?:-[a-z0-9])?)+\])+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """What the operator said of a registry, or of all whose hosts match a glob.

    `host` is as in references: `host[:port]`. Listed in full, it may lie at any address. A glob
    (`*.corp.example`, label by label as in pull secrets, the port equal) gives settings and lets
    users hear what is wrong, but exempts no address from the guard.

    With `http` the registry is spoken to in plain http, and credentials go there only if
    `credentials_over_http`: both want the host in full. `ca` is PEM text, trusted there besides
    the system's authorities. `mirrors` are the URLs of those that may say what its tags name, each
    with the path that stands before a repository there. `proxy` leads there: None is as for all
    registries, empty is none. At most `connections` requests are under way at once, and
    `requests_per_second` are sent. Times are seconds: `connect_timeout` for one connection,
    `timeout` for a whole question. For the rest see flow.Registry.

    Raises ConfigurationError.
    """

    host: str
    http: bool = False
    ca: str | None = field(default=None, repr=False)
    credentials_over_http: bool = False
    mirrors: tuple[str, ...] = ()
    proxy: str | None = field(default=None, repr=False)
    requests_per_second: float | None = None
    connections: int | None = None
    connect_timeout: float | None = None
    timeout: float | None = None
    token_hosts: tuple[str, ...] = ()
    strict: bool = False
    get_after_404: bool = True

    def __post_init__(self) -> None:
        if self.is_glob:
            _glob(self.host)
            if self.http or self.credentials_over_http:
                raise _wrong(self.host, "plain http is for a host that is listed in full")
        else:
            _listed_place(self)
        if self.credentials_over_http and not self.http:
            raise _wrong(self.host, "credentials over http, but it is not spoken to in http")
        for endpoint in self.mirrors:
            _mirror(self.host, endpoint)
        if self.proxy:
            _proxy(self.host, self.proxy)
        for what in ("requests_per_second", "connections", "connect_timeout", "timeout"):
            number = getattr(self, what)
            if number is not None and not (math.isfinite(number) and number > 0):
                raise _wrong(self.host, f"{what} is {number}, not more than 0")

    @property
    def is_glob(self) -> bool:
        """Whether it stands for many hosts, so that none is exempt from the guard."""
        return _is_glob(self.host)


class Places:
    """What the operator said, by host and port.

    The host in full counts before any glob, and the more specific glob before the others: as the
    kubelet orders the keys of a pull secret. A mirror is a listed registry itself.
    """

    def __init__(self, registries: Iterable[RegistrySettings]) -> None:
        said = tuple(registries)
        self._listed = {_listed_place(each): each for each in said if not each.is_glob}
        self._registries: LRUCache[str, Registry] = LRUCache(MAX_PLACES)
        globs = sorted((each for each in said if each.is_glob), key=_by_glob, reverse=True)
        self._globs = tuple(
            (labels, port or HTTPS_PORT, each)
            for each in globs
            for labels, port in [_glob(each.host)]
        )
        for each in said:
            for endpoint in each.mirrors:
                self._list_mirror(each.host, _mirror(each.host, endpoint))

    def registry(self, domain: str) -> Registry:
        """The registry that references name `domain`; ValueError where that is no place."""
        if (known := self._registries.get(domain)) is None:
            known = self._registries[domain] = _registry(domain, *self._find(domain))
        return known

    def mirrors(self, domain: str) -> tuple[Registry, ...]:
        """The registries to ask before the one that references name `domain`, in this order.

        Each bears its own name, so that its own credentials are found.
        """
        _, settings = self._find(domain)
        return tuple(
            replace(self.registry(_name(mirror)), prefix=mirror.path.strip("/"), ns=domain)
            for mirror in map(URL, settings.mirrors if settings else ())
        )

    def settings(self, where: URL | str) -> RegistrySettings | None:
        """What was said of the place that a URL leads to, or that references name."""
        if isinstance(where, str):
            return self._find(where)[1]
        host, port = place(where)
        return self._listed.get((host, port)) or next(
            (
                each
                for labels, its_port, each in self._globs
                if its_port == port and _matches(labels, host)
            ),
            None,
        )

    def __iter__(self) -> Iterator[RegistrySettings]:
        return chain(self._listed.values(), (each for _, _, each in self._globs))

    def _find(self, domain: str) -> tuple[URL, RegistrySettings | None]:
        https, http = (_origin(scheme, _hub(domain)) for scheme in ("https", "http"))
        settings = self.settings(https)
        if settings is None or settings.http or settings.is_glob:
            plain = self._listed.get(place(http))
            if plain is not None and plain.http:
                return http, plain
        return https, None if settings is None or settings.http else settings

    def _list_mirror(self, host: str, mirror: URL) -> None:
        settings = self.settings(mirror)
        if mirror.scheme == "http" and (settings is None or not settings.http):
            raise _wrong(host, f"the mirror {mirror} is plain http, and not listed with http")
        if mirror.scheme == "https" and settings is not None and settings.http:
            raise _wrong(host, f"the mirror {mirror} is listed with http")
        if settings is None:
            settings = RegistrySettings(_name(mirror))
        elif settings.is_glob:
            settings = replace(settings, host=_name(mirror))
        self._listed[place(mirror)] = settings


@dataclass(frozen=True, slots=True)
class RegistryPolicy:
    """Which registries references may name: hosts or globs, with or without a port.

    A pattern among `allowed` without a port is for the port of https; without any pattern, all
    are allowed. One among `denied` without a port is for every port, and counts more. They judge
    names, and `docker.io` is registry-1.docker.io: what has other names, AddressRules can deny.

    Raises ConfigurationError.
    """

    allowed: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in (*self.allowed, *self.denied):
            _pattern(pattern)

    def permits(self, domain: str) -> bool:
        """Whether a reference may name this host."""
        host, port = place(_origin("https", _hub(domain.lower())))
        if any(_names(pattern, host, port, default=port) for pattern in self.denied):
            return False
        return not self.allowed or any(
            _names(pattern, host, port, default=HTTPS_PORT) for pattern in self.allowed
        )


ANY_REGISTRY = RegistryPolicy()


def place(url: URL) -> tuple[str, int]:
    """Host and port that a URL leads to, whatever its spelling."""
    return (url.host or "").rstrip("."), url.port or 0


def _registry(domain: str, origin: URL, settings: RegistrySettings | None) -> Registry:
    if settings is None:
        return Registry(domain, origin)
    return Registry(
        domain,
        origin,
        listed=True,
        credentials_over_http=settings.credentials_over_http,
        token_hosts=settings.token_hosts,
        strict=settings.strict,
        get_after_404=settings.get_after_404,
    )


def _hub(domain: str) -> str:
    """What is connected to for a domain."""
    return DOCKER_HUB_HOST if domain == DOCKER_HUB else domain


def _wrong(host: str, what: str) -> ConfigurationError:
    return ConfigurationError(f"registries: {host}: {what}")


def _listed_place(settings: RegistrySettings) -> tuple[str, int]:
    try:
        return place(_origin("http" if settings.http else "https", _hub(settings.host)))
    except ValueError:
        raise ConfigurationError(f"registries: {settings.host!r} is not host[:port]") from None


def _is_glob(host: str) -> bool:
    return bool(re.search(r"[*?\[\]\\]", host)) and not _ADDRESS.fullmatch(host)


def _by_glob(settings: RegistrySettings) -> str:
    return settings.host.lower()


def _glob(pattern: str) -> tuple[tuple[str, ...], int | None]:
    """The labels of a glob, and its port if it has one; raise ConfigurationError."""
    host, colon, port = pattern.lower().partition(":")
    labels = tuple(host.split("."))
    if not all(map(_GLOB_LABEL.fullmatch, labels)) or (colon and not _is_port(port)):
        raise ConfigurationError(f"registries: {pattern!r} is no glob of host[:port]")
    if host == "*":
        raise _wrong(pattern, "a * stands for one label, not for all registries")
    return labels, int(port) if port else None


def _pattern(text: str) -> tuple[str | tuple[str, ...], int | None]:
    """A host or the labels of a glob, and the port if it has one; raise ConfigurationError."""
    if _is_glob(text):
        return _glob(text)
    try:
        host, port = place(_origin("https", _hub(text.lower())))
    except ValueError:
        raise ConfigurationError(f"registries: {text!r} is not host[:port]") from None
    return host, port if re.search(r":[0-9]+\Z", text) else None


def _names(pattern: str, host: str, port: int, *, default: int) -> bool:
    """Whether a pattern is for a host and port, with this port where it has none."""
    named, its_port = _pattern(pattern)
    if (its_port or default) != port:
        return False
    return named == host if isinstance(named, str) else _matches(named, host)


def _matches(globs: Sequence[str], host: str) -> bool:
    labels = host.split(".")
    is_name = ":" not in host
    return is_name and len(globs) == len(labels) and all(map(glob_matches, globs, labels))


def _is_port(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9]{1,5}", text)) and 0 < int(text) <= MAX_PORT


def _mirror(host: str, endpoint: str) -> URL:
    """The URL of a mirror; raise ConfigurationError."""
    wrong = _wrong(host, f"the mirror {endpoint.rpartition('@')[2]!r} is not https://host[/path]")
    try:
        url = URL(endpoint)
        _origin(url.scheme, url.raw_authority)
    except ValueError:
        raise wrong from None
    if url.scheme not in ("http", "https") or url.raw_query_string or url.raw_fragment:
        raise wrong
    if prefix := url.raw_path.strip("/"):
        try:
            Reference.parse(f"{DOCKER_HUB}/{prefix}/image")
        except InvalidReference:
            raise wrong from None
    return url


def _proxy(host: str, url: str) -> Proxy:
    try:
        return Proxy.parse(url)
    except ConfigurationError as error:
        raise _wrong(host, str(error)) from None


def _name(url: URL) -> str:
    """How references name the registry at a URL."""
    host = url.host_subcomponent or ""
    return host if url.is_default_port() else f"{host}:{url.port}"


def _origin(scheme: str, host: str) -> URL:
    """The origin at `host[:port]`; ValueError where that is none."""
    if len(host) > MAX_HOST + len(f":{MAX_PORT}"):  # before it is decoded, which takes its time
        raise ValueError(f"a host of more than {MAX_HOST} characters")
    url = URL(f"{scheme}://{host}")
    if not url.host or not url.port or url.raw_path_qs not in ("", "/") or "@" in host:
        raise ValueError(f"no host: {host!r}")
    if len(url.host) > MAX_HOST:
        raise ValueError(f"a host of more than {MAX_HOST} characters")
    return origin_of(url)
