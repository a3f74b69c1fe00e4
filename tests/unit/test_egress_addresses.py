"""The address table: what may be connected to, in every spelling. Nothing here opens a socket."""

from __future__ import annotations

import ipaddress

import pytest

from receiver.core.errors import AddressBlocked
from receiver.outbound.guard import Guard, inside, literal, refusal

PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "191.255.255.255",
    "192.0.1.0",
    "192.0.3.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2001:4860:4860::8888",
    "2606:4700::1111",
    "2001:200::1",
    "2400::1",
    "::ffff:8.8.8.8",
    "::8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2002:808:808::1",
    "2001:0:808:808::f7f7:f7f7",
    "2606:4700::5efe:8.8.8.8",
]
REFUSED = [
    ("0.0.0.0", "unspecified"),
    ("0.255.255.255", "unspecified"),
    ("10.0.0.0", "private"),
    ("10.255.255.255", "private"),
    ("100.64.0.0", "carrier-grade"),
    ("100.127.255.255", "carrier-grade"),
    ("127.0.0.1", "loopback"),
    ("127.255.255.255", "loopback"),
    ("169.254.169.254", "link-local"),
    ("172.16.0.0", "private"),
    ("172.31.255.255", "private"),
    ("192.0.0.8", "protocols"),
    ("192.0.0.170", "protocols"),
    ("192.0.2.1", "documentation"),
    ("192.88.99.1", "6to4"),
    ("192.168.0.1", "private"),
    ("198.18.0.1", "benchmarking"),
    ("198.19.255.255", "benchmarking"),
    ("198.51.100.1", "documentation"),
    ("203.0.113.1", "documentation"),
    ("224.0.0.1", "multicast"),
    ("239.255.255.255", "multicast"),
    ("240.0.0.1", "reserved"),
    ("255.255.255.255", "broadcast"),
    ("::", "unspecified (0.0.0.0 inside)"),
    ("::1", "0.0.0.1 inside"),
    ("::ffff:127.0.0.1", "loopback (127.0.0.1 inside)"),
    ("::ffff:a9fe:a9fe", "link-local (169.254.169.254 inside)"),
    ("::127.0.0.1", "127.0.0.1 inside"),
    ("::ffff:0:127.0.0.1", "not handed out"),
    ("64:ff9b::10.0.0.1", "private (10.0.0.1 inside)"),
    ("64:ff9b::7f00:1", "127.0.0.1 inside"),
    ("64:ff9b:1::8.8.8.8", "local NAT64"),
    ("64:ff9b:1:a00:0:100::", "local NAT64"),
    ("100::1", "discard"),
    ("100:0:0:1::1", "dummy"),
    ("2001::", "inside"),
    ("2001:0:7f00:1::f7f7:f7f7", "127.0.0.1 inside"),
    ("2001:0:808:808::80ff:fffe", "127.0.0.1 inside"),
    ("2001:2::1", "protocols"),
    ("2001:10::1", "protocols"),
    ("2001:20::1", "protocols"),
    ("2001:1ff:ffff::1", "protocols"),
    ("2001:db8::1", "documentation"),
    ("2002:7f00:1::1", "127.0.0.1 inside"),
    ("2002:c0a8:101::1", "192.168.1.1 inside"),
    ("3fff::1", "documentation"),
    ("3fff:fff::1", "documentation"),
    ("4000::1", "not handed out"),
    ("5f00::1", "segment"),
    ("fc00::1", "unique local"),
    ("fd00:ec2::254", "unique local"),
    ("fe80::1", "link-local"),
    ("febf::1", "link-local"),
    ("fec0::1", "site-local"),
    ("ff02::1", "multicast"),
    ("2606:4700::5efe:7f00:1", "127.0.0.1 inside"),
    ("2606:4700::200:5efe:10.0.0.1", "10.0.0.1 inside"),
    ("fe80::5efe:8.8.8.8", "link-local"),
    ("fd00::200:5efe:8.8.8.8", "unique local"),
    ("2001:db8::5efe:8.8.8.8", "documentation"),
]
SPELLINGS = [
    ("2130706433", "127.0.0.1"),
    ("0x7f000001", "127.0.0.1"),
    ("0x7f.1", "127.0.0.1"),
    ("0177.0.0.1", "127.0.0.1"),
    ("127.1", "127.0.0.1"),
    ("127.0.0.1.", "127.0.0.1"),
    ("010.8.8.8", "8.8.8.8"),
    ("0", "0.0.0.0"),
    ("127.0.0.1", "127.0.0.1"),
    ("\uff11\uff12\uff17.\uff10.\uff10.\uff11", "127.0.0.1"),
    ("127\u30020\u30020\uff611", "127.0.0.1"),
    ("127\uff0e0\uff0e0\uff0e1", "127.0.0.1"),
    ("\u2460\u2461\u2466.0.0.1", "127.0.0.1"),
    ("[::1]", "::1"),
    ("0:0:0:0:0:0:0:1", "::1"),
    ("::FFFF:7F00:1", "::ffff:127.0.0.1"),
]


@pytest.mark.parametrize("text", PUBLIC)
def test_a_public_address_may_be_connected_to(text: str) -> None:
    assert refusal(ipaddress.ip_address(text)) is None
    Guard().check(text)


@pytest.mark.parametrize(("text", "reason"), REFUSED)
def test_any_other_address_is_refused_with_its_reason(text: str, reason: str) -> None:
    found = refusal(ipaddress.ip_address(text))
    assert found is not None
    assert reason in found
    with pytest.raises(AddressBlocked, match="would permit it"):
        Guard().check(text)


def test_no_address_is_let_through_that_python_calls_private() -> None:
    """One address at the middle of each /16 of IPv4, and of the small blocks: ours is stricter, never laxer."""
    for number in range(128, 1 << 32, 1 << 16):
        address = ipaddress.IPv4Address(number)
        if address.is_private or address.is_multicast or address.is_reserved or address.is_link_local:
            assert refusal(address) is not None, address


@pytest.mark.parametrize(("text", "meant"), SPELLINGS)
def test_an_odd_spelling_is_read_as_the_address_it_means(text: str, meant: str) -> None:
    assert literal(text) == ipaddress.ip_address(meant)


@pytest.mark.parametrize("text", [spelling for spelling, meant in SPELLINGS if spelling != meant])
def test_an_odd_spelling_is_refused_as_a_host_even_where_the_address_is_allowed(text: str) -> None:
    allowed = Guard(["0.0.0.0/0"])
    if ":" in text:
        with pytest.raises(AddressBlocked):
            Guard().check_host(text)
    else:
        with pytest.raises(AddressBlocked, match="another spelling"):
            allowed.check_host(text)


@pytest.mark.parametrize(
    "name", ["example.com", "example.com.", "1.example", "0xyz.example", "face.cafe", "256.1.1.1.1"]
)
def test_a_name_is_left_to_the_resolver(name: str) -> None:
    assert literal(name) is None
    Guard().check_host(name)


def test_allowed_networks_are_let_through_and_only_those() -> None:
    guard = Guard(["10.1.0.0/16", "fd00::/8"])
    guard.check("10.1.2.3")
    guard.check("fd00::1")
    guard.check("8.8.8.8")
    for refused in ("10.2.0.1", "127.0.0.1", "fe80::1"):
        with pytest.raises(AddressBlocked):
            guard.check(refused)


@pytest.mark.parametrize("text", ["::ffff:10.1.0.1", "64:ff9b::10.1.0.1", "2002:a01:1::"])
def test_an_allowed_network_covers_the_address_inside(text: str) -> None:
    Guard(["10.1.0.0/16"]).check(text)


def test_the_message_names_the_name_the_address_and_what_to_configure() -> None:
    with pytest.raises(AddressBlocked) as found:
        Guard().check("192.168.1.7", "app.example.com")
    assert found.value.message == (
        'app.example.com resolves to 192.168.1.7, which is private; allow = ["192.168.1.7/32"] would permit it'
    )


def test_what_is_no_internet_address_is_refused() -> None:
    for text in ("", "/run/socket", "fe80::1%eth0%x", "1.2.3"):
        with pytest.raises(AddressBlocked):
            Guard().check(text)


def test_a_scoped_address_is_judged_without_its_scope() -> None:
    with pytest.raises(AddressBlocked, match="link-local"):
        Guard().check("fe80::1%eth0")


def test_teredo_carries_both_its_server_and_its_client() -> None:
    """The example of RFC 4380 section 4 as Python's documentation decodes it."""
    address = ipaddress.IPv6Address("2001:0:4136:e378:8000:63bf:3fff:fdd2")
    assert [str(number) for number in inside(address)] == ["65.54.227.120", "192.0.2.45"]
    assert address.teredo == inside(address)
