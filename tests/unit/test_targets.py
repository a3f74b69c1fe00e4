"""URLs taken apart: what is asked is what was judged, and what is not plain is refused."""

from __future__ import annotations

import pytest

from receiver.outbound.guard import Target, follow, listed, target


def plain(text: str) -> Target:
    found = target(text)
    assert isinstance(found, Target), found
    return found


@pytest.mark.parametrize(
    ("text", "host", "where"),
    [
        ("https://api.deapi.ai/v1?x=1", "api.deapi.ai", "api.deapi.ai:443"),
        ("http://API.deapi.AI:8080", "api.deapi.ai", "api.deapi.ai:8080"),
        ("HTTPS://deapi.ai.:443/", "deapi.ai.", "deapi.ai.:443"),
        ("https://bücher.example/", "xn--bcher-kva.example", "xn--bcher-kva.example:443"),
        ("https://a。b/", "a.b", "a.b:443"),
        ("http://[::1]:81/", "::1", "[::1]:81"),
        ("http://192.0.2.1/", "192.0.2.1", "192.0.2.1:80"),
        ("http://127。0。0。1/", "127.0.0.1", "127.0.0.1:80"),
        ("http://a_b.example/", "a_b.example", "a_b.example:80"),
        ("https:\u002f/①.example/", "1.example", "1.example:443"),
    ],
)
def test_the_host_is_read_as_it_is_connected_to(text: str, host: str, where: str) -> None:
    found = plain(text)
    assert (found.host, found.where) == (host, where)
    assert found.url.raw_host == host


@pytest.mark.parametrize(
    "rest",
    [
        "/",
        "/a/%2e%2E/b%2Fc",
        "/a/../b",
        "/a//b",
        "/?X-Amz-Signature=a%2Fb%2bc+d&e=%7E~&f",
        "/x?sig=abc%3D%3D",
        "/x?a=1&a=1&b=|{}[]'\"<>",
    ],
)
def test_path_and_query_are_sent_as_they_were_given(rest: str) -> None:
    """A signature covers them as they are."""
    assert plain("https://results.example" + rest).url.raw_path_qs == rest


def test_what_cannot_be_sent_as_it_is_is_escaped() -> None:
    assert plain("https://results.example/ü x?a=ü").url.raw_path_qs == "/%C3%BC%20x?a=%C3%BC"


def test_the_fragment_is_not_sent_and_an_empty_path_is_the_root() -> None:
    assert str(plain("https://results.example/a?b#c").url) == "https://results.example/a?b"
    assert str(plain("https://results.example/ü?b#c").url) == "https://results.example/%C3%BC?b"
    assert plain("https://results.example").url.raw_path_qs == "/"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "results.example/a",
        "//results.example/a",
        "https:///a",
        "https:a",
        "ftp://results.example/",
        "file:///etc/passwd",
        "data:,x",
        "https://user@results.example/",
        "https://user:hunter2@results.example/",
        "https://:@results.example/",
        "https://@results.example/",
        "https://deapi.ai@127.0.0.1/",
        "https://deapi.ai\\@127.0.0.1/",
        "https://results.example:0/",
        "https://results.example:65536/",
        "https://results.example:x/",
        "https://results.example/\r\nx: y",
        "https://results\t.example/",
        "\nhttps://results.example/",
        "https://results.example/\x7f",
        "https://a b/",
        "https://%31%32%37.0.0.1/",
        "https://127.0.0.1%2f.deapi.ai/",
        "https://127.0.0.1%00.deapi.ai/",
        "https://deapi..ai/",
        "https://.deapi.ai/",
        "https://[::1/",
        "https://[::1]evil/",
        "https://[v1.x]:y/",
        "https://\ud800/",
        "https://results.example/\ud800",
        "https://results.example/" + "a" * 20_000,
    ],
)
def test_what_is_not_plain_is_refused_without_being_quoted(text: str) -> None:
    found = target(text)
    assert isinstance(found, str), found
    assert found.startswith("the URL")
    assert "hunter2" not in found
    assert "results" not in found


@pytest.mark.parametrize(
    ("host", "hosts", "verdict"),
    [
        ("deapi.ai", ["deapi.ai"], True),
        ("results.deapi.ai", ["deapi.ai"], True),
        ("a.b.deapi.ai", ["x.example", "deapi.ai"], True),
        ("DEAPI.ai", ["dEAPI.AI"], True),
        ("deapi.ai.", ["deapi.ai"], True),
        ("deapi.ai", ["deapi.ai."], True),
        ("xn--bcher-kva.example", ["bücher.example"], True),
        ("a.xn--bcher-kva.example", ["BÜCHER.example"], True),
        ("anything.example", ["*"], True),
        ("127.0.0.1", ["127.0.0.1"], True),
        ("::1", ["[::1]"], True),
        ("::1", ["0:0::1"], True),
        ("evildeapi.ai", ["deapi.ai"], False),
        ("deapi.ai.evil.example", ["deapi.ai"], False),
        ("deapi-ai", ["deapi.ai"], False),
        ("ai", ["deapi.ai"], False),
        ("deapi.ai", ["results.deapi.ai"], False),
        ("deapi.ai", [], False),
        ("deapi.ai", [""], False),
        ("deapi.ai", ["."], False),
        ("1.127.0.0.1", ["127.0.0.2"], False),
        ("10.0.0.1", ["0.1"], False),
        ("results.deapi.ai", ["*.deapi.ai"], False),
    ],
)
def test_a_host_is_one_of_the_list_or_below_one(host: str, hosts: list[str], verdict: bool) -> None:
    assert listed(host, hosts) is verdict


@pytest.mark.parametrize(
    ("location", "leads"),
    [
        ("/b", "https://a.example:8443/b"),
        ("b", "https://a.example:8443/x/b"),
        ("?q", "https://a.example:8443/x/y?q"),
        ("//b.example/c", "https://b.example/c"),
        ("http://b.example/c", "http://b.example/c"),
        ("http://[::1", ""),
    ],
)
def test_a_redirect_is_read_against_the_url_it_came_from(location: str, leads: str) -> None:
    assert follow("https://a.example:8443/x/y?z=1", location) == leads
