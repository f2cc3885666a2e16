"""Which addresses and names may be reached."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import example, given
from hypothesis.strategies import ip_addresses

from tagpin.registry.guard import DEFAULT_RULES, innermost, is_blocked_name


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",  # noqa: S104 - to be refused, not bound to
        "0.1.2.3",
        "127.0.0.1",
        "127.255.255.255",
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "fd20:ce::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "::7f00:1",
        "::a9fe:a9fe",
        "::ffff:0:a9fe:a9fe",
        "64:ff9b:1::a9fe:a9fe",
        "64:ff9b:1:fffe::1",
        "2001:0:a9fe:a9fe::1",
    ],
)
def test_an_address_of_this_host_or_its_cloud_is_blocked(address: str) -> None:
    assert DEFAULT_RULES.blocks(ip_address(address))
    assert not DEFAULT_RULES.is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "10.1.2.3",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "100.64.0.1",
        "fd12::1",
        "::ffff:10.1.2.3",
        "64:ff9b::a01:203",
        "2002:a01:203::",
        "192.0.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "100::1",
        "2001:2::1",
        "2001:db8::1",
        "3fff::1",
        "5f00::1",
        "fec0::1",
    ],
)
def test_an_address_of_a_private_network_is_allowed_but_not_public(address: str) -> None:
    assert not DEFAULT_RULES.blocks(ip_address(address))
    assert not DEFAULT_RULES.is_public(ip_address(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "64:ff9b::101:101"]
)
def test_every_other_address_is_public(address: str) -> None:
    assert not DEFAULT_RULES.blocks(ip_address(address))
    assert DEFAULT_RULES.is_public(ip_address(address))


@given(ip_addresses())
@example(ip_address("198.18.0.1"))
def test_what_is_public_is_globally_reachable(address: IPv4Address | IPv6Address) -> None:
    assert innermost(address).is_global or not DEFAULT_RULES.is_public(address)


def test_the_kubernetes_api_can_be_blocked_too() -> None:
    rules = DEFAULT_RULES.blocking("10.96.0.1", "fd00:96::/112")
    assert rules.blocks(ip_address("10.96.0.1"))
    assert rules.blocks(ip_address("::ffff:10.96.0.1"))
    assert rules.blocks(ip_address("fd00:96::1"))
    assert not rules.blocks(ip_address("10.96.0.2"))
    assert not DEFAULT_RULES.blocks(ip_address("10.96.0.1"))


def test_what_is_allowed_is_reached_and_stays_as_private_as_it_was() -> None:
    rules = DEFAULT_RULES.allowing("169.254.20.0/24", "10.1.0.0/16", "fd00:ec2::7")
    for address in ("169.254.20.7", "::ffff:169.254.20.7", "10.1.2.3", "fd00:ec2::7"):
        assert not rules.blocks(ip_address(address))
        assert not rules.is_public(ip_address(address))
    for address in ("169.254.21.1", "169.254.169.254", "fd00:ec2::254", "127.0.0.1"):
        assert rules.blocks(ip_address(address))


def test_what_was_denied_is_blocked_whatever_is_allowed() -> None:
    ours = ("10.96.0.1", "10.244.1.17")  # the API server, the pod itself
    before = DEFAULT_RULES.blocking(*ours).allowing("10.0.0.0/8")
    after = DEFAULT_RULES.allowing("10.0.0.0/8").blocking(*ours)
    for rules in (before, after):
        for address in (*ours, "64:ff9b::a60:1", "2002:a60:1::"):
            assert rules.blocks(ip_address(address))
        assert not rules.blocks(ip_address("10.96.0.2"))


def test_what_was_denied_is_not_public() -> None:
    rules = DEFAULT_RULES.blocking("1.1.1.1")
    assert rules.blocks(ip_address("1.1.1.1"))
    assert not rules.is_public(ip_address("1.1.1.1"))


def test_where_private_addresses_are_blocked_those_that_are_allowed_are_not() -> None:
    rules = replace(DEFAULT_RULES, block_private=True).allowing("10.1.0.0/16")
    for address in ("10.2.0.1", "192.168.1.1", "fd12::1", "100.64.0.1", "2002:a02:1::"):
        assert rules.blocks(ip_address(address))
    for address in ("10.1.0.1", "1.1.1.1", "2606:4700::1111"):
        assert not rules.blocks(ip_address(address))


@given(ip_addresses())
def test_where_private_addresses_are_blocked_only_public_ones_are_reached(
    address: IPv4Address | IPv6Address,
) -> None:
    rules = replace(DEFAULT_RULES, block_private=True)
    assert rules.blocks(address) is not rules.is_public(address)


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("64:ff9b::1.2.3.4", "1.2.3.4"),
        ("2002:102:304::5", "1.2.3.4"),
        ("2001:db8::1", "2001:db8::1"),
    ],
)
def test_an_ipv4_address_within_an_ipv6_address_is_found(address: str, inside: str) -> None:
    assert innermost(ip_address(address)) == ip_address(inside)


@pytest.mark.parametrize(
    "name",
    [
        "localhost",
        "LocalHost",
        "localhost.",
        "x.localhost",
        "metadata",
        "metadata.google.internal",
        "metadata.google.internal.",
        "kubernetes.default",
        "kubernetes.default.svc",
        "Kubernetes.Default.svc.cluster.local",
        # numbers that somebody may take for an address
        "127.1",
        "2130706433",
        "0x7f000001",
        "0X7F.1",
        "127.0.0.0x1",
        "127.0.0.01",
        "1.2.3.4.5",
        "999.1.1.1",
        "registry.5",
        "127.1.",
        "127.0.0.1.",
        "0x",
    ],
)
def test_names_that_are_no_registry_are_blocked(name: str) -> None:
    assert is_blocked_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "ghcr.io",
        "metadata.example",
        "kubernetes.defaults.example",
        "localhost.example",
        "127.0.0.1",
        "::1",
        "fe80::1%eth0",
        "registry5",
        "5.registry",
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
    ],
)
def test_names_that_only_look_alike_are_not(name: str) -> None:
    assert not is_blocked_name(name)
