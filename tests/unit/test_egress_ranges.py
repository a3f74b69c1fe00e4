"""Every range of the special-purpose registries: its first and last address, and the neighbours outside.

The table is written a second time here, from the registries, so that a slip in one of the two shows.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from receiver.outbound.guard import Address, Network, refusal

REFUSED_4 = """
    0.0.0.0/8 0.0.0.0/32 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.0.0/29
    192.0.0.8/32 192.0.0.9/32 192.0.0.10/32 192.0.0.170/32 192.0.0.171/32 192.0.2.0/24 192.88.99.0/24 192.88.99.2/32
    192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 255.255.255.255/32
    168.63.129.16/32 169.254.169.254/32 169.254.170.2/32 100.100.100.200/32 192.0.0.192/32
"""
REFUSED_6 = """
    ::/128 ::1/128 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 2001:1::1/128 2001:1::2/128 2001:1::3/128 2001:2::/48
    2001:3::/32 2001:4:112::/48 2001:10::/28 2001:20::/28 2001:30::/28 2001:db8::/32 3fff::/20 5f00::/16 fc00::/7
    fd00:ec2::254/128 fe80::/10 fec0::/10 ff00::/8 4000::/2 8000::/1 ::/3
"""
CARRIERS = "::/96 ::ffff:0:0/96 64:ff9b::/96 2001::/32 2002::/16"
"""Judged by the address inside: 0.0.0.0 and 255.255.255.255 at their two ends."""
PUBLIC = """
    192.31.196.0/24 192.52.193.0/24 192.175.48.0/24 1.0.0.0/8 8.8.8.0/24 168.63.129.0/28 168.63.129.17/32
    2620:4f:8000::/48 2001:200::/23 2003::/16 2600::/12 2a00::/12 3ffe::/16 2001:4860::/32
"""
"""Registered, and as public as any other."""


def networks(text: str) -> list[Network]:
    return [ipaddress.ip_network(one) for one in text.split()]


REFUSED = networks(REFUSED_4) + networks(REFUSED_6)
ALL = REFUSED + networks(CARRIERS)


def edges(network: Network) -> Iterator[Address]:
    kind = IPv4Address if network.version == 4 else IPv6Address
    first, last = int(network[0]), int(network[-1])
    for number in (first - 1, first, last, last + 1):
        if 0 <= number < 1 << network.max_prefixlen:
            yield kind(number)


def expected(address: Address) -> bool:
    """Whether an address at an edge is refused. Of a carrier only the edges are asked for here."""
    return any(address in network for network in ALL if network.version == address.version)


@pytest.mark.parametrize("network", ALL, ids=str)
def test_a_range_is_refused_from_its_first_to_its_last_address_and_no_further(network: Network) -> None:
    for address in edges(network):
        assert (refusal(address) is not None) is expected(address), address
    assert refusal(network[0]) is not None
    assert refusal(network[-1]) is not None


@pytest.mark.parametrize("network", networks(PUBLIC), ids=str)
def test_the_registered_ranges_that_are_public_are_not_refused(network: Network) -> None:
    assert refusal(network[0]) is None
    assert refusal(network[-1]) is None


def _carried(number: IPv4Address) -> list[IPv6Address]:
    """Return the address in every form that carries it; a Teredo server and a Teredo client beside 8.8.8.8."""
    low = int(number)
    public = int(IPv4Address("8.8.8.8"))
    teredo = int(IPv6Address("2001::"))
    return [
        IPv6Address(low) if low > 1 else IPv6Address("::"),
        IPv6Address(int(IPv6Address("::ffff:0:0")) | low),
        IPv6Address(int(IPv6Address("64:ff9b::")) | low),
        IPv6Address(int(IPv6Address("2002::")) | low << 80 | 1),
        IPv6Address(teredo | low << 64 | 0x8000 << 48 | public ^ 0xFFFFFFFF),
        IPv6Address(teredo | public << 64 | 0x8000 << 48 | low ^ 0xFFFFFFFF),
        IPv6Address(int(IPv6Address("2606:4700::5efe:0:0")) | low),
        IPv6Address(int(IPv6Address("2606:4700::200:5efe:0:0")) | low),
    ]


@pytest.mark.parametrize("network", [n for n in REFUSED if isinstance(n, IPv4Network)], ids=str)
def test_a_refused_address_is_refused_in_every_form_that_carries_it(network: IPv4Network) -> None:
    for address in edges(network):
        assert isinstance(address, IPv4Address)
        for carrier in _carried(address):
            assert (refusal(carrier) is not None) is expected(address), (address, carrier)


def test_what_is_outside_every_range_is_public() -> None:
    """And what is inside one is not, at random."""
    chance = random.Random(20261121)
    for _ in range(4_000):
        four = IPv4Address(chance.getrandbits(32))
        assert (refusal(four) is not None) is expected(four), four
        six = IPv6Address(1 << 125 | chance.getrandbits(125))
        if six not in IPv6Network("2002::/16"):
            assert (refusal(six) is not None) is expected(six), six
