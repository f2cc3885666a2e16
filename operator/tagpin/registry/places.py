"""Which registry a name in a reference means, and what the operator said of it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from yarl import URL

from tagpin.errors import ConfigurationError
from tagpin.reference import DOCKER_HUB
from tagpin.registry.flow import Registry

MAX_HOST = 253
"""Characters of a host name (RFC 1035 §2.3.4: 255 octets on the wire)."""

DOCKER_HUB_HOST = "registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """A registry that the operator listed, so may lie at any address.

    `host` is as in references: `host[:port]`. With `http` it is spoken to in plain http, and
    credentials go there only if `credentials_over_http`. `ca` is PEM text, trusted for this host
    besides the system's authorities. Raises ConfigurationError for a host that is no place.
    """

    host: str
    http: bool = False
    ca: str | None = field(default=None, repr=False)
    credentials_over_http: bool = False

    def __post_init__(self) -> None:
        _listed_place(self)


class Places:
    """What the operator said, by host and port."""

    def __init__(self, registries: Iterable[RegistrySettings]) -> None:
        self._listed = {_listed_place(each): each for each in registries}

    def registry(self, domain: str) -> Registry:
        """The registry that references name `domain`; ValueError where that is no place."""
        host = DOCKER_HUB_HOST if domain == DOCKER_HUB else domain
        for scheme in ("https", "http"):
            origin = _origin(scheme, host)
            listed = self._listed.get(place(origin))
            if listed is not None and listed.http == (scheme == "http"):
                in_plain = listed.http and listed.credentials_over_http
                return Registry(domain, origin, listed=True, credentials_over_http=in_plain)
        return Registry(domain, _origin("https", host))

    def listed(self, url: URL) -> RegistrySettings | None:
        """What was said of the host and port that `url` leads to."""
        return self._listed.get(place(url))

    def __iter__(self) -> Iterator[tuple[tuple[str, int], RegistrySettings]]:
        return iter(self._listed.items())


def place(url: URL) -> tuple[str, int]:
    """Host and port that a URL leads to, whatever its spelling."""
    return (url.host or "").rstrip("."), url.port or 0


def _listed_place(settings: RegistrySettings) -> tuple[str, int]:
    host = DOCKER_HUB_HOST if settings.host == DOCKER_HUB else settings.host
    try:
        return place(_origin("http" if settings.http else "https", host))
    except ValueError:
        raise ConfigurationError(f"registries: {settings.host!r} is not host[:port]") from None


def _origin(scheme: str, host: str) -> URL:
    """The origin at `host[:port]`; ValueError where that is none."""
    url = URL(f"{scheme}://{host}")
    if not url.host or not url.port or url.raw_path_qs not in ("", "/") or "@" in host:
        raise ValueError(f"no host: {host!r}")
    if len(url.host) > MAX_HOST:
        raise ValueError(f"a host of more than {MAX_HOST} characters")
    return url.origin()
