"""Where a download may lead: every hop is judged by scheme, host and address, and a key never travels."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from receiver.core.errors import ConfigError
from receiver.core.fetch import Downloaded, Failed, FetchResponse
from receiver.core.work import OutcomeKind
from receiver.outbound.client import AddrInfo
from receiver.outbound.fetcher import Fetcher
from receiver.settings.model import SourceSettings
from receiver.system.body_buffer import BodyBuffer
from tests.support.fetching import LIMIT, LOOPBACK, Way
from tests.support.provider_host import TLS, ProviderHost, reply

CA = str(TLS / "cert.pem")  # for app.test alone


class Names:
    """A scripted DNS: each lookup of a name takes the next of its answers, the last one for good."""

    def __init__(self, answers: dict[str, list[str]]) -> None:
        self.answers = {name: list(found) for name, found in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int, family: int) -> Sequence[AddrInfo]:
        self.asked.append(host)
        script = self.answers.get(host)
        if script is None:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        text = script.pop(0) if len(script) > 1 else script[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in text.split()]


def to(location: str, status: int = 302) -> bytes:
    return reply(status, b"elsewhere", {"Location": location})


def blocked(got: object, *said: str) -> str:
    assert isinstance(got, Failed), got
    assert got.kind is OutcomeKind.BLOCKED, got
    for text in said:
        assert text in got.detail
    return got.detail


async def load(way: Way, url: str, *hosts: str, headers: dict[str, str] | None = None) -> bytes | object:
    got = await way.fetcher.download(url, hosts=hosts, limit=LIMIT, headers=headers)
    return got.body.load() if isinstance(got, Downloaded) else got


# ---------------------------------------------------------------- redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed_with_another_get(tmp_path: Path, status: int) -> None:
    async with ProviderHost() as host, Way.opened(host, str(tmp_path)) as way:
        host.scripts |= {"/a": to("/b?c=%2F", status), "/b": reply(200, b"audio")}
        assert await load(way, way.url("/a"), "127.0.0.1") == b"audio"
        assert [(one.method, one.target) for one in host.requests] == [("GET", "/a"), ("GET", "/b?c=%2F")]


async def test_five_redirects_are_followed_and_not_six(tmp_path: Path) -> None:
    async with ProviderHost() as host, Way.opened(host, str(tmp_path)) as way:
        host.scripts |= {f"/{n}": to(f"/{n + 1}") for n in range(6)}
        host.scripts["/5"] = reply(200, b"audio")
        assert await load(way, way.url("/0"), "*") == b"audio"
        host.scripts["/5"] = to("/6")
        got = await load(way, way.url("/0"), "*")
        assert isinstance(got, Failed)
        assert (got.kind, got.status) == (OutcomeKind.REFUSED, 302)
        assert "more than 5 redirects" in got.detail
        assert len(host.requests) == 12


async def test_a_redirect_without_a_place_is_an_answer(tmp_path: Path) -> None:
    async with ProviderHost() as host, Way.opened(host, str(tmp_path)) as way:
        host.scripts["/"] = reply(302, b"where?")
        got = await load(way, way.url(), "*")
        assert isinstance(got, FetchResponse)
        assert (got.status, got.body) == (302, b"where?")


async def test_with_a_key_no_redirect_is_followed(tmp_path: Path) -> None:
    async with ProviderHost() as host, Way.opened(host, str(tmp_path)) as way:
        host.scripts |= {"/a": to("/b"), "/b": reply(200, b"audio")}
        got = await load(way, way.url("/a"), "*", headers={"x-api-key": "sk-secret"})
        assert isinstance(got, FetchResponse)
        assert (got.status, got.headers["location"]) == (302, "/b")
        assert [one.headers.get("x-api-key") for one in host.requests] == ["sk-secret"]


@pytest.mark.parametrize(
    "location",
    [
        "http://evildeapi.test:{port}/b",
        "http://deapi.test.evil.test:{port}/b",
        "http://other.test:{port}/b",
        "http://127.0.0.1:{port}/b",
        "//other.test:{port}/b",
        "http://user:pw@deapi.test:{port}/b",
        "http://deapi.test@other.test:{port}/b",
        "http://deapi.test\\@other.test:{port}/b",
        "http://10.0.0.1/b",
        "http://inside.deapi.test:{port}/b",
        "ftp://deapi.test/b",
        "file:///etc/passwd",
        "http://[::1",
        "http://deapi.test:{port}/\x7f",
    ],
)
async def test_a_hop_to_anywhere_else_is_blocked_and_nothing_is_sent_there(
    tmp_path: Path, location: str
) -> None:
    names = Names(
        {
            "results.deapi.test": ["127.0.0.1"],
            "deapi.test": ["127.0.0.1"],
            "evildeapi.test": ["127.0.0.1"],
            "deapi.test.evil.test": ["127.0.0.1"],
            "other.test": ["127.0.0.1"],
            "inside.deapi.test": ["127.0.0.1 192.168.0.1"],
        }
    )
    async with ProviderHost() as host, Way.opened(host, str(tmp_path), resolve=names) as way:
        host.scripts |= {"/a": to(location.format(port=host.port)), "/b": reply(200, b"audio")}
        blocked(await load(way, host.url("/a", "results.deapi.test"), "deapi.test"))
        assert [one.path for one in host.requests] == ["/a"]


async def test_a_hop_within_the_hosts_is_followed(tmp_path: Path) -> None:
    names = Names({"api.deapi.test": ["127.0.0.1"], "results.deapi.test": ["127.0.0.1"]})
    async with ProviderHost() as host, Way.opened(host, str(tmp_path), resolve=names) as way:
        host.scripts |= {
            "/a": to(f"http://RESULTS.deapi.test.:{host.port}/b"),
            "/b": reply(200, b"audio"),
        }
        names.answers["results.deapi.test."] = ["127.0.0.1"]
        assert await load(way, host.url("/a", "api.deapi.test"), "DeAPI.test") == b"audio"


async def test_the_first_url_is_judged_as_every_hop_is(tmp_path: Path) -> None:
    async with ProviderHost() as host, Way.opened(host, str(tmp_path)) as way:
        said = blocked(await load(way, way.url("/a?sig=hunter2"), "deapi.ai"))
        assert said == f"127.0.0.1:{host.port} is not one of the hosts that results may come from"
        blocked(await load(way, f"http://user:pw@127.0.0.1:{host.port}/", "*"), "credentials")
        assert host.requests == []


# ---------------------------------------------------------------- addresses


async def test_without_leave_no_private_address_is_asked_at_any_hop(tmp_path: Path) -> None:
    async with ProviderHost() as host, Way.opened(host, str(tmp_path), allow=()) as way:
        got = await load(way, way.url("/a"), "*")
        blocked(got, "127.0.0.1 is loopback", 'allow = ["127.0.0.1/32"] would permit it')
        got = await way.fetcher.ask(way.url("/a"), headers={})
        blocked(got, "loopback")
        async with way.fetcher.stream(way.url("/a"), headers={}, idle_seconds=1) as stream:
            blocked(stream, "loopback")
        assert host.requests == []


@pytest.mark.parametrize(
    "spelling",
    [
        "2130706433",
        "0x7f.1",
        "127.1",
        "0177.0.0.1",
        "127.0.0.1.",
        "127。0。0。1",
        "[::ffff:127.0.0.1]",
        "%31",
    ],
)
async def test_an_odd_spelling_hides_no_address(tmp_path: Path, spelling: str) -> None:
    async with ProviderHost() as host, Way.opened(host, str(tmp_path), allow=()) as way:
        blocked(await load(way, host.url("/a", spelling), "*"))
        assert host.requests == []


async def test_an_odd_spelling_is_refused_though_the_address_is_allowed(tmp_path: Path) -> None:
    async with ProviderHost() as host, Way.opened(host, str(tmp_path)) as way:
        blocked(await load(way, host.url("/a", "0x7f.1"), "*"), "another spelling of 127.0.0.1")
        assert host.requests == []


async def test_a_name_that_turns_between_hops_is_judged_again(tmp_path: Path) -> None:
    names = Names({"a.deapi.test": ["127.0.0.1"], "b.deapi.test": ["169.254.169.254"]})
    async with ProviderHost() as host, Way.opened(host, str(tmp_path), resolve=names) as way:
        host.scripts["/a"] = to(f"http://b.deapi.test:{host.port}/latest/meta-data")
        blocked(
            await load(way, host.url("/a", "a.deapi.test"), "deapi.test"),
            "b.deapi.test resolves to 169.254.169.254, which is link-local",
        )


async def test_the_checked_address_is_the_one_connected_to(tmp_path: Path) -> None:
    """A DNS that answers well for the check and badly afterwards has nothing to gain: there is one lookup."""
    names = Names({"rebinding.test": ["127.0.0.1", "10.0.0.1"]})
    async with ProviderHost() as host, Way.opened(host, str(tmp_path), resolve=names) as way:
        host.scripts["/"] = reply(200, b"audio")
        assert await load(way, host.url("/", "rebinding.test"), "*") == b"audio"
        assert names.asked == ["rebinding.test"]


async def test_proxies_and_passwords_of_the_environment_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    async with ProviderHost() as proxy, ProviderHost() as host, Way.opened(host, str(tmp_path)) as way:
        for name in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy"):
            monkeypatch.setenv(name, proxy.url())
            monkeypatch.setenv(name.upper(), proxy.url())
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        host.scripts["/"] = reply(200, b"audio", {"Set-Cookie": "a=1"})
        assert await load(way, way.url(), "*") == b"audio"
        assert await load(way, way.url(), "*") == b"audio"
        assert proxy.requests == []
        assert all(not {"authorization", "cookie"} & one.headers.keys() for one in host.requests)


# ---------------------------------------------------------------- TLS


async def test_https_is_proved_by_the_sources_own_authority(tmp_path: Path) -> None:
    names = Names({"app.test": ["127.0.0.1"]})
    async with (
        ProviderHost(tls=True) as host,
        Way.opened(host, str(tmp_path), resolve=names, ca_file=CA) as way,
    ):
        host.scripts["/"] = reply(200, b"audio")
        assert await load(way, host.url("/", "app.test"), "app.test") == b"audio"


@pytest.mark.parametrize(("name", "ca_file"), [("app.test", None), ("other.test", CA)])
async def test_a_certificate_that_does_not_prove_the_host_is_said(
    tmp_path: Path, name: str, ca_file: str | None
) -> None:
    names = Names({name: ["127.0.0.1"]})
    async with (
        ProviderHost(tls=True) as host,
        Way.opened(host, str(tmp_path), resolve=names, ca_file=ca_file) as way,
    ):
        got = await load(way, host.url("/secret?key=hunter2", name), "*")
        assert isinstance(got, Failed)
        assert got.kind is OutcomeKind.UNREACHABLE
        assert got.detail.startswith(f"the certificate of {name}:{host.port} is not accepted: ")
        assert host.requests == []


async def test_what_was_https_stays_https(tmp_path: Path) -> None:
    names = Names({"app.test": ["127.0.0.1"]})
    async with (
        ProviderHost() as clear,
        ProviderHost(tls=True) as host,
        Way.opened(host, str(tmp_path), resolve=names, ca_file=CA) as way,
    ):
        clear.scripts |= {"/a": to(host.url("/a", "app.test")), "/b": reply(200, b"audio")}
        host.scripts |= {"/a": to("/b"), "/b": to(clear.url("/b", "app.test"))}
        got = await load(way, host.url("/a", "app.test"), "*")
        blocked(got, f"a redirect leads from https to http, at app.test:{clear.port}")
        got = await load(way, clear.url("/a", "app.test"), "*")
        blocked(got, "from https to http")
        assert [one.path for one in clear.requests] == ["/a"]
        host.scripts["/b"] = reply(200, b"audio")
        assert await load(way, clear.url("/a", "app.test"), "*") == b"audio"


# ---------------------------------------------------------------- failures, settings


async def test_what_cannot_be_reached_is_said_with_host_and_port_only(tmp_path: Path) -> None:
    async with ProviderHost() as host, Way.opened(host, str(tmp_path), resolve=Names({})) as way:
        got = await load(way, "https://nowhere.test/path?sig=hunter2", "*")
        assert isinstance(got, Failed)
        assert got.kind is OutcomeKind.UNREACHABLE
        assert got.detail == "nowhere.test:443 has no address: the name cannot be resolved"
    async with Way.opened(host, str(tmp_path)) as way:
        got = await way.fetcher.ask(way.url("/path?sig=hunter2"), headers={})
        assert isinstance(got, Failed)
        assert got.detail == f"127.0.0.1:{host.port} cannot be reached: connection refused"


async def test_a_sources_settings_make_its_fetcher(tmp_path: Path) -> None:
    """`allow`, `ca_file` and `attempt_seconds` are the source's own."""
    names = Names({"app.test": ["127.0.0.1"]})
    base = {"name": "deapi", "provider": "deapi", "attempt_seconds": 1.0}
    bodies = BodyBuffer(str(tmp_path))
    bodies.open()
    async with ProviderHost(tls=True) as host:
        host.scripts["/"] = reply(200, b"audio")
        for extra, fits in (({"allow": LOOPBACK, "ca_file": CA}, True), ({"ca_file": CA}, False)):
            settings = SourceSettings.model_validate(base | extra)
            fetcher = Fetcher.create(settings, bodies, resolve=names)
            assert fetcher.name == "deapi"
            await fetcher.open()
            got = await fetcher.ask(host.url("/", "app.test"), headers={})
            assert isinstance(got, FetchResponse if fits else Failed)
            host.scripts["/slow"] = _hang
            got = await fetcher.ask(host.url("/slow", "app.test"), headers={})
            assert isinstance(got, Failed)
            assert got.kind is (OutcomeKind.TIMEOUT if fits else OutcomeKind.BLOCKED)
            await fetcher.close()
    settings = SourceSettings.model_validate(base | {"ca_file": os.devnull})
    with pytest.raises(ConfigError, match="ca_file"):
        await Fetcher.create(settings, bodies).open()


async def _hang(talk: object) -> None:
    await talk.hang()  # type: ignore[attr-defined]
