"""Which addresses and names may be reached.

Whoever can create a pod chooses the host that tagpin, inside the cluster's network, connects to.
So the address about to be connected is judged where the socket is made: after name resolution,
for literals too, with nothing between check and use for a rebinding name to change.
"""

import errno
import re
import socket
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Self

from aiohttp import AddrInfoType, SocketFactoryType

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NAT64 = ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class AddressRules:
    """Ranges that are never reached, and ranges that only the inside of a network knows.

    What is in neither is public. With `block_private` only what is public is reached. Addresses
    that are `allowed` are reached in spite of both, but no range makes an address public: of a
    private one, strangers learn no more than before. What is `denied` is never reached.
    """

    blocked: tuple[Network, ...]
    private: tuple[Network, ...]
    denied: tuple[Network, ...] = ()
    allowed: tuple[Network, ...] = ()
    block_private: bool = False

    def blocking(self, *ranges: str) -> Self:
        """The same rules, with more denied addresses or CIDR ranges, whatever is allowed."""
        return replace(self, denied=(*self.denied, *map(ip_network, ranges)))

    def allowing(self, *ranges: str) -> Self:
        """The same rules, with more addresses or CIDR ranges that may be reached."""
        return replace(self, allowed=(*self.allowed, *map(ip_network, ranges)))

    def blocks(self, address: Address) -> bool:
        """Whether nothing at `address` may be reached."""
        inner = innermost(address)
        if _is_in(inner, self.denied):
            return True
        if _is_in(inner, self.allowed):
            return False
        return _is_in(inner, self.blocked) or (self.block_private and _is_in(inner, self.private))

    def is_public(self, address: Address) -> bool:
        """Whether anyone could reach `address`, so that speaking of it reveals nothing."""
        return not _is_in(innermost(address), self.denied + self.blocked + self.private)


DEFAULT_RULES = AddressRules(
    blocked=tuple(
        map(
            ip_network,
            (
                "0.0.0.0/8",  # this host; connecting to 0.0.0.0 reaches loopback
                "127.0.0.0/8",
                "169.254.0.0/16",  # link-local: the metadata services of most clouds
                "100.100.100.200/32",  # Alibaba metadata
                "168.63.129.16/32",  # Azure wire server
                "192.0.0.192/32",  # Oracle metadata
                "224.0.0.0/4",  # multicast
                "240.0.0.0/4",  # reserved, broadcast
                "::/96",  # unspecified, loopback, IPv4-compatible (RFC 4291 §2.5.5.1)
                "::ffff:0:0:0/96",  # IPv4-translated (RFC 2765)
                "64:ff9b:1::/48",  # NAT64 of a network's own, leads anywhere (RFC 8215)
                "2001::/32",  # Teredo: an IPv4 address within (RFC 4380)
                "fe80::/10",  # link-local
                "fd00:ec2::/32",  # AWS metadata
                "fd20:ce::254/128",  # Google metadata
                "ff00::/8",  # multicast
            ),
        )
    ),
    private=tuple(
        map(
            ip_network,
            (
                "10.0.0.0/8",
                "172.16.0.0/12",
                "192.168.0.0/16",
                "100.64.0.0/10",
                "192.0.0.0/24",  # special purposes (RFC 6890)
                "192.0.2.0/24",  # documentation, as the next three (RFC 5737, RFC 3849, RFC 9637)
                "198.51.100.0/24",
                "203.0.113.0/24",
                "2001:db8::/32",
                "3fff::/20",
                "198.18.0.0/15",  # benchmarks (RFC 2544)
                "100::/64",  # discarded (RFC 6666)
                "2001::/23",  # special purposes (RFC 2928)
                "5f00::/16",  # segment routing (RFC 9602)
                "fc00::/7",
                "fec0::/10",  # site-local, deprecated (RFC 3879)
            ),
        )
    ),
)
"""For production; wiring adds the addresses of the Kubernetes API and of the pod itself."""

_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


def is_blocked_name(host: str) -> bool:
    """Whether `host` names something that no registry is called.

    So does a number that is not written as addresses are (`127.1`, `0x7f000001`, `127.0.0.1.`):
    who takes it for one knows what it leads to, and we don't.
    (url.spec.whatwg.org: ends-in-a-number checker)
    """
    name = host.lower().rstrip(".")
    return (
        name in ("localhost", "metadata", "metadata.google.internal", "kubernetes.default")
        or name.endswith(".localhost")
        or name.startswith("kubernetes.default.")
        or (address_of(host) is None and bool(_NUMBER.fullmatch(name.rpartition(".")[2])))
    )


def address_of(host: str) -> Address | None:
    """The address that `host` spells, None where it is a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def innermost(address: Address) -> Address:
    """The IPv4 address that an IPv6 address really leads to, if there is one.

    (IPv4-mapped: RFC 4291 §2.5.5.2; NAT64: RFC 6052; 6to4: RFC 3056)
    """
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


@dataclass(slots=True)
class Trace:
    """The addresses that one request had to do with, in order of appearance.

    `answering` says that it was sent, so that what comes is the answer to it.
    """

    opened: list[Address] = field(default_factory=list)
    refused: list[Address] = field(default_factory=list)
    answering: bool = False

    @classmethod
    def begin(cls) -> Self:
        """A new trace, filled by what the current task, and tasks that it starts, connect to."""
        trace = cls()
        _trace.set(trace)
        return trace


_trace: ContextVar[Trace] = ContextVar("trace")


def note_peer(sockaddr: tuple[str, int] | tuple[str, int, int, int]) -> None:
    """Record the peer of a connection that is used, also one that was open already."""
    _trace.get().opened.append(ip_address(sockaddr[0]))


def note_sent() -> None:
    """Record that the request is on its way, by a connection whose peer says nothing."""
    _trace.get().answering = True


def socket_factory(allows: Callable[[Address], bool]) -> SocketFactoryType:
    """For aiohttp's TCPConnector: makes sockets to addresses that `allows` says yes to.

    It is called once per connection, not per request: a rule that depends on the request needs a
    connector that keeps no connection.
    """

    def open_socket(info: AddrInfoType) -> socket.socket:
        family, kind, protocol, _, sockaddr = info
        address = ip_address(sockaddr[0])
        trace = _trace.get()
        if not allows(address):
            trace.refused.append(address)
            raise OSError(errno.EACCES, f"connections to {address} are not allowed")
        trace.opened.append(address)
        return socket.socket(family, kind, protocol)

    return open_socket


def _is_in(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(network.version == address.version and address in network for network in networks)
