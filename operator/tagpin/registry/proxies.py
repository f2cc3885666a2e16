"""Which proxy leads to a host, by the rules that every program written in Go goes by.

(golang.org/x/net/http/httpproxy: what is in HTTPS_PROXY, HTTP_PROXY and NO_PROXY)
"""

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Self, TypeAlias

from yarl import URL

from tagpin.errors import ConfigurationError

Address: TypeAlias = IPv4Address | IPv6Address
_Rule: TypeAlias = Callable[[str, str, Address | None], bool]
"""Of a host in lower case, its port, and its address where the host is one."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy: where it is, and the Proxy-Authorization that it wants, if any."""

    url: URL
    authorization: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """`http://[user[:password]@]host[:port]`; raise ConfigurationError, without the login."""
        wrong = ConfigurationError(
            f"the proxy {text.rpartition('@')[2]!r} is not http://[user:password@]host[:port]"
        )
        try:
            url = URL(text)
            host = url.host
        except ValueError:
            raise wrong from None
        if url.scheme != "http" or not host or not url.port or url.raw_path_qs not in ("", "/"):
            raise wrong
        if url.raw_fragment:
            raise wrong
        authorization = None
        if url.user is not None:
            login = f"{url.user}:{url.password or ''}".encode()
            authorization = f"Basic {base64.b64encode(login).decode()}"
        return cls(url.origin(), authorization)

    @property
    def name(self) -> str:
        """`host:port`, for messages."""
        return f"{self.url.host_subcomponent}:{self.url.port}"


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies for https and for http, and where none is used.

    `no_proxy` is a list with commas: `example.com` (and all below it), `.example.com` or
    `*.example.com` (only what is below it), addresses, CIDR ranges, `*` (everything); all but
    ranges and `*` also with a port. What makes no sense is left out, as Go does. `localhost` and
    loopback addresses are never reached through a proxy.
    """

    https: Proxy | None = None
    http: Proxy | None = None
    no_proxy: str = ""
    _rules: tuple[_Rule, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        entries = (each.strip() for each in self.no_proxy.split(","))
        rules = tuple(rule for each in entries if (rule := _rule(each)) is not None)
        object.__setattr__(self, "_rules", rules)

    @classmethod
    def parse(cls, *, https: str = "", http: str = "", no_proxy: str = "") -> Self:
        """From what stands in a setting or the environment; raise ConfigurationError."""
        return cls(
            Proxy.parse(https) if https else None, Proxy.parse(http) if http else None, no_proxy
        )

    def leading_to(self, url: URL) -> Proxy | None:
        """The proxy for a URL, None where it is to be reached directly."""
        proxy = self.https if url.scheme == "https" else self.http
        if proxy is None:
            return None
        host, port = (url.raw_host or "").lower(), str(url.port)
        address = _address(host)
        if host == "localhost" or (address is not None and address.is_loopback):
            return None
        return None if any(rule(host, port, address) for rule in self._rules) else proxy


def _rule(entry: str) -> _Rule | None:
    """What one entry of NO_PROXY says, None for nothing."""
    if entry == "*":
        return lambda _host, _port, _address: True
    if "/" in entry:
        try:
            network = ip_network(entry, strict=False)
        except ValueError:
            return None
        return lambda _host, _port, address: address is not None and address in network
    host, port = _split(entry)
    if not host.strip("."):
        return None
    if (its_address := _address(host)) is not None:
        return lambda _, at, address: address == its_address and port in ("", at)
    only_below = host.startswith((".", "*."))
    host = _ascii(host.removeprefix("*").removeprefix(".") if only_below else host)
    return lambda name, at, address: (
        address is None
        and (name.endswith(f".{host}") or (name == host and not only_below))
        and port in ("", at)
    )


def _split(entry: str) -> tuple[str, str]:
    """Host and port, which is empty for every port."""
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::([^:]*))?", entry)
    if bracketed:
        return bracketed[1], bracketed[2] or ""
    host, _, port = entry.partition(":")
    return (entry, "") if ":" in port else (host, port)


def _ascii(host: str) -> str:
    try:
        return URL.build(scheme="http", host=host).raw_host or host
    except ValueError:
        return host


def _address(host: str) -> Address | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


DIRECTLY = Proxies()
"""No proxy anywhere."""
