"""Settings: what a file and the environment become, what is refused with which words, and that no secret is in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from receiver.app.wiring import build, build_providers
from receiver.core.errors import ConfigError
from receiver.outbound.destinations import kind_of
from receiver.providers.deepgram import DeepgramSettings
from receiver.settings.load import (
    blob_folder,
    load_settings,
    made_token_secrets,
    own_settings,
    parse,
    public_base,
    sqlite_path,
)
from receiver.settings.model import MIB, Settings
from tests.support.golden import tokens
from tests.support.running import APP_SECRET

DESTINATION = "[destinations.app]\nurl = 'https://app.example.com/hooks'\n"


def _parse(
    text: str | None, environ: Mapping[str, str] | None = None, files: Mapping[str, str] | None = None
) -> Settings:
    def read(path: str) -> str:
        try:
            return (files or {})[path]
        except KeyError:
            raise FileNotFoundError(2, "No such file or directory", path) from None

    return parse(text, environ or {}, read)


def _refused(
    text: str, environ: Mapping[str, str] | None = None, files: Mapping[str, str] | None = None
) -> str:
    def judged() -> None:
        for destination in _parse(text, environ, files).destinations.values():
            own_settings(kind_of(destination).Settings, destination)

    with pytest.raises(ConfigError) as caught:
        judged()
    return caught.value.message


# ---------------------------------------------------------------- what is meant


def test_without_a_file_there_is_a_deepgram_source_proved_by_tokens() -> None:
    settings = _parse(None)
    assert settings.sources["deepgram"].options == {"require_token": True}
    assert (settings.server.host, settings.server.port, settings.data) == ("127.0.0.1", 8080, "receiver-data")
    assert settings.destinations == {}


def test_an_empty_file_has_no_source() -> None:
    """Who writes a file says what is in it."""
    assert _parse("").sources == {}


def test_the_defaults_of_a_source_and_a_destination() -> None:
    settings = _parse(f"[sources.dg]\nprovider = 'deepgram'\nrequire_token = true\n{DESTINATION}")
    source, destination = settings.sources["dg"], settings.destinations["app"]
    assert (source.name, source.max_audio_bytes, source.max_json_bytes) == ("dg", 256 * MIB, 32 * MIB)
    assert (source.body_seconds, source.idle_seconds, source.budget_seconds) == (120, 10, 6)
    assert (destination.sources, destination.events) == (("*",), ("*",))
    assert (destination.policy.attempts, destination.timeout_seconds) == (11, 15)


def test_the_environment_overrides_the_file() -> None:
    environ = {
        "RECEIVER__SERVER__PORT": "9000",
        "RECEIVER__PUBLIC_URL": "https://hooks.example.com",
        "RECEIVER__SOURCES__DG__REQUIRE_TOKEN": "true",
        "RECEIVER__SOURCES__DG__BASIC": '["a:b", "c:d"]',
        "RECEIVER__DESTINATIONS__APP__URL": "https://app.example.com/a?b=c#d",
        "RECEIVER__SERVER__HOST": "::1",
        "PATH": "/bin",
        "RECEIVER_CONFIG": "elsewhere.toml",
    }
    settings = _parse("[server]\nport = 1\n[sources.dg]\nprovider = 'deepgram'\n", environ)
    assert (settings.server.port, settings.server.host) == (9000, "::1")
    assert settings.public_url == "https://hooks.example.com"
    assert settings.sources["dg"].options == {"require_token": True, "basic": ["a:b", "c:d"]}
    assert settings.destinations["app"].options["url"] == "https://app.example.com/a?b=c#d"


def test_port_and_database_url_are_honoured_and_our_own_names_win() -> None:
    environ = {"PORT": "5000", "DATABASE_URL": "sqlite:///a.db"}
    settings = _parse("", environ)
    assert settings.server.port == 5000
    assert sqlite_path(settings) == "a.db"
    own = _parse("", environ | {"RECEIVER__SERVER__PORT": "6000", "RECEIVER__STORE__URL": "sqlite:////b.db"})
    assert (own.server.port, sqlite_path(own)) == (6000, "/b.db")


def test_port_wins_over_the_port_that_init_wrote() -> None:
    """Under a Procfile nothing else is listened to."""
    assert _parse("[server]\nport = 8080\n", {"PORT": "5000"}).server.port == 5000


def test_a_line_feed_at_the_end_of_a_secret_in_the_environment_is_not_part_of_it() -> None:
    """That is what `echo secret | base64` leaves in a Kubernetes Secret."""
    settings = _parse("[tokens]\nsecrets = ['env:A']\n", {"A": "0123456789abcdef0123456789abcdef\n"})
    assert settings.tokens.secrets[0].get_secret_value() == "0123456789abcdef0123456789abcdef"


def test_a_secret_comes_from_the_environment_or_a_file() -> None:
    text = (
        "[sources.dg]\nprovider = 'deepgram'\nbasic = ['user:env:PASSWORD', 'user:file:/run/pw', 'env:PAIR', 'user:plain']\n"
        f"{DESTINATION}secrets = ['file:/run/app']\n"
    )
    files = {"/run/pw": "from-file\n", "/run/app": f"{APP_SECRET}\n"}
    settings = _parse(text, {"PASSWORD": "from-env", "PAIR": "u:p"}, files)
    basic = settings.sources["dg"].options["basic"]
    assert basic == ["user:from-env", "user:from-file", "u:p", "user:plain"]
    assert settings.destinations["app"].options["secrets"] == [APP_SECRET]


def test_a_secret_that_looks_like_a_reference_is_not_followed_twice() -> None:
    """What the environment holds is the value, whatever it looks like."""
    settings = _parse("[tokens]\nsecrets = ['env:A']\n", {"A": "env:NOT-A-REFERENCE"})
    assert settings.tokens.secrets[0].get_secret_value() == "env:NOT-A-REFERENCE"


def test_places_with_file_urls_are_no_secrets() -> None:
    kind = _parse("[destinations.x]\nkind = 'file'\nurl = 'file:///var/x'\n").destinations["x"].kind
    assert kind == "file", "a word alone names no secret"
    assert blob_folder(_parse("[blobs]\nurl = 'file:///var/lib/receiver'\n")) == "/var/lib/receiver"


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("public_url = ", "the settings are not valid TOML"),
        ("public_url = " + "[" * 10_000, "the settings are not valid TOML"),
        ("colour = 'red'", "colour: no such setting; see docs/configuration.md"),
        ("[server]\nprot = 1", "server.prot: no such setting; did you mean port?"),
        (
            "[server]\npublic_url = 'https://a.example'",
            "server.public_url: no such setting; write public_url above the first",
        ),
        ("[server]\nport = 65536", "server.port: Input should be less than or equal to 65535"),
        ("[server]\nlog = 'xml'", "server.log: Input should be 'json', 'console' or 'auto'"),
        (
            "[server]\ntrusted_proxies = ['localhost']",
            "server.trusted_proxies: 'localhost' does not appear to be",
        ),
        ("[tokens]\nsecrets = ['short']", "tokens.secrets: each secret needs at least 16 characters"),
        ("[sources]\nname = 1", "sources.name: it must be a table: write [sources.name]"),
        ("sources = 1", "sources: it must be a table of tables: write [sources.NAME]"),
        ("[sources.Deep_Gram]\nprovider = 'deepgram'", "a name has lower-case letters, digits and hyphens"),
        ("[sources.dg]\nbasic = ['a:b']", "sources.dg.provider: is missing"),
        (
            "[sources.dg]\nprovider = 'deepgram'\nmax_json_bytes = 0",
            "sources.dg.max_json_bytes: Input should be greater",
        ),
        ("[destinations.app]", "destinations.app.url: is missing"),
        ("[blobs]\nendpoint_url = 's3.example.com'", "blobs.endpoint_url: it must begin with https://"),
        ("[blobs]\nendpoint_url = 'https://[::1'", "blobs.endpoint_url: it must begin with https://"),
        ("[blobs]\nlink_endpoint_url = 'https://a/?b'", "blobs.link_endpoint_url: it holds a query"),
        ("[blobs]\nendpoint_url = 'https://k:s@s3.example.com'", "blobs.endpoint_url: it holds credentials"),
        (
            "[destinations.app]\nurl = 'ftp://a'",
            "destinations.app.url: it must begin with https://",
        ),
        (
            "[destinations.app]\nurl = 'https://'",
            "destinations.app.url: it must begin with https://",
        ),
        (
            "[destinations.app]\nurl = 'https://a:99999/'",
            "destinations.app.url: it must begin with",
        ),
        (f"{DESTINATION}secrets = ['whsec_short']", "destinations.app.secrets: a destination's secret"),
        (f"{DESTINATION}allow = ['10.0.0.1/8']", "destinations.app.allow: 10.0.0.1/8 has host bits set"),
        (f"{DESTINATION}allow = ['lan']", "destinations.app.allow: 'lan' does not appear"),
        (f"{DESTINATION}retry = 'often'", "destinations.app.retry: "),
        (f"{DESTINATION}timeout_seconds = 121", "destinations.app.timeout_seconds: "),
        (f"{DESTINATION}concurrency = 0", "destinations.app.concurrency: "),
        ("[retention]\nevents = 90", 'retention.events: write it as "90d"'),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_wrong(text: str, said: str) -> None:
    assert said in _refused(text)


def test_every_wrong_setting_is_named_at_once() -> None:
    said = _refused("[server]\nport = -1\nlog_level = 'loud'\n[journal]\nmax_bytes = -1\n")
    assert [part.partition(":")[0] for part in said.split(". Also ")] == [
        "server.port",
        "server.log_level",
        "journal.max_bytes",
    ]


@pytest.mark.parametrize(
    ("value", "environ", "files", "said"),
    [
        ("env:NOBODY", {}, {}, "[…]: it says env:NOBODY, and NOBODY is not set; export it"),
        ("env:NOBODY", {"NOBODY": ""}, {}, "[…]: it says env:NOBODY, and NOBODY is empty; export it"),
        ("file:/run/x", {}, {}, "[…]: it says file:/run/x, which cannot be read: No such file or directory"),
        (
            "file:/run/x",
            {},
            {"/run/x": " \n"},
            "[…]: it says file:/run/x, which is empty; write the secret into it",
        ),
    ],
)
@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("sources.dg.basic", "[sources.dg]\nprovider = 'deepgram'\nbasic = ['user:{}']"),
        ("destinations.app.secrets", DESTINATION + "secrets = ['{}']"),
        ("tokens.secrets", "[tokens]\nsecrets = ['{}']"),
        ("destinations.app.headers.x-key", DESTINATION + "headers = {{ x-key = '{}' }}"),
    ],
)
def test_a_secret_that_is_not_there_is_never_taken_for_an_empty_one(
    setting: str, text: str, value: str, environ: dict[str, str], files: dict[str, str], said: str
) -> None:
    """An empty password would let everybody in who leaves it out."""
    assert _refused(text.format(value), environ, files) == said.replace("[…]", setting)


def test_every_secret_that_is_not_there_is_named_at_once() -> None:
    text = (
        f"{DESTINATION}secrets = ['env:ONE', 'env:THERE', 'env:TWO']\n[tokens]\nsecrets = ['file:/run/x']\n"
    )
    said = _refused(text, {"THERE": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}, {})
    assert said.split(". Also ") == [
        "destinations.app.secrets: it says env:ONE, and ONE is not set; export it",
        "destinations.app.secrets: it says env:TWO, and TWO is not set; export it",
        "tokens.secrets: it says file:/run/x, which cannot be read: No such file or directory",
    ]


def test_a_file_with_secrets_that_is_no_text_is_said(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="it is not text"):
        parse(f"[store]\nurl = 'file:{tmp_path}/secret'", {}, lambda name: Path(name).read_text("utf-8"))


def test_an_environment_name_below_a_plain_value_is_refused() -> None:
    said = _refused("data = 'here'", {"RECEIVER__DATA__PATH": "x"})
    assert said == "RECEIVER__DATA__PATH: it names a section that is a plain value: data"


def test_a_provider_that_is_not_there_is_answered_with_those_that_are() -> None:
    settings = _parse("[sources.dg]\nprovider = 'deapgram'\n")
    with pytest.raises(
        ConfigError, match=r"sources\.dg\.provider: there is no provider 'deapgram'; did you mean deepgram"
    ):
        build_providers(settings, tokens())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[store]\nurl = 'mysql://user:hunter2@host/db'", "store.url must begin with"),
        ("[store]\nurl = 'sqlite:///'", "store.url must begin with"),
        ("[blobs]\nurl = 'gs://bucket'", "blobs.url must begin with"),
        ("[blobs]\nurl = 'file://relative'", "blobs.url must begin with"),
    ],
)
def test_a_place_of_another_kind_is_refused_without_repeating_it(
    text: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        build(_parse(f"data = '{tmp_path}'\n{text}"), observers=[])
    assert caught.value.message.startswith(said)
    assert "hunter2" not in caught.value.message


# ---------------------------------------------------------------- secrets stay inside

SECRETS = (
    "hunter2",
    "s3cr3t-pair",
    "s3cr3t-query",
    "s3cr3t-header",
    "s3cr3t-token-secret",
    "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
)


def test_no_setting_shows_a_secret() -> None:
    settings = _parse(
        f"""
[[api.tokens]]
name = "app"
secret = "s3cr3t-token-secret-api"
[store]
url = "postgresql://user:hunter2@db/x"
[tokens]
secrets = ["s3cr3t-token-secret"]
[sources.dg]
provider = "deepgram"
basic = ["user:s3cr3t-pair"]
[destinations.app]
url = "https://user:hunter2@app.example.com/?key=s3cr3t-query"
secrets = ["{APP_SECRET}"]
headers = {{ x-key = "s3cr3t-header" }}
"""
    )
    shown = repr(settings) + str(settings) + repr(settings.sources["dg"]) + f"{settings.destinations['app']}"
    for secret in SECRETS:
        assert secret not in shown


@pytest.mark.parametrize(
    "text",
    [
        "[destinations.app]\nurl = 'https://user:hunter2\u2100@app.example.com'",  # urllib quotes what it cannot read
        "[destinations.app]\nurl = 'https://user:hunter2@[app'",
        "[destinations.app]\nurl = 'gopher://user:hunter2@app'",
        f"{DESTINATION}secrets = ['whsec_hunter2']",
        f"{DESTINATION}secrets = 'hunter2'",
        f"{DESTINATION}headers = 'hunter2'",
        "[tokens]\nsecrets = ['hunter2']",
        "[store]\nurl = ['hunter2']",
        "[api]\ntokens = 'hunter2'",
        "[[api.tokens]]\nname = 'a'\nsecret = ['hunter2']",
        "[store]\nurl = hunter2",
        "[store]\nurl = 'hunter2' 'x'",
    ],
)
def test_no_refusal_shows_a_secret(text: str) -> None:
    assert "hunter2" not in _refused(text)


def test_a_providers_own_settings_are_refused_without_their_values() -> None:
    source = _parse(
        "[sources.dg]\nprovider = 'deepgram'\nbasic = ['hunter2']\nrequire_token = 'hunter2'\n"
    ).sources["dg"]
    with pytest.raises(ConfigError) as caught:
        own_settings(DeepgramSettings, source)
    assert "sources.dg.basic: each entry is" in caught.value.message
    assert "sources.dg.require_token: " in caught.value.message
    assert "hunter2" not in caught.value.message


# ---------------------------------------------------------------- files


def test_the_file_is_the_named_one_or_receiver_toml_if_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "deepgram" in load_settings(None, {}).sources
    (tmp_path / "receiver.toml").write_text("data = 'a'")
    (tmp_path / "other.toml").write_text("data = 'b'")
    assert load_settings(None, {}).data == "a"
    assert load_settings(None, {"RECEIVER_CONFIG": "other.toml"}).data == "b"
    assert load_settings("receiver.toml", {"RECEIVER_CONFIG": "other.toml"}).data == "a"
    for name in ("nobody.toml", str(tmp_path)):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_settings(name, {})
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="it is not UTF-8 text"):
        load_settings("bytes.toml", {})


def test_the_token_secret_is_made_once_and_kept_private(tmp_path: Path) -> None:
    settings = _parse(f"data = '{tmp_path}/a/b'")
    first = made_token_secrets(settings)
    assert made_token_secrets(settings) == first
    assert len(first[0]) == 64
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["token-secret"]
    assert (tmp_path / "a" / "b" / "token-secret").stat().st_mode & 0o077 == 0
    assert (tmp_path / "a" / "b").stat().st_mode & 0o077 == 0


def test_a_token_secret_that_cannot_be_kept_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"the token secret cannot be kept in .*set tokens\.secrets"):
        made_token_secrets(_parse(f"data = '{tmp_path}/file'"))


def test_a_token_secret_is_synced_before_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL handed out with a secret that a power loss takes would never be proved again."""
    synced: list[str] = []
    real = os.fsync

    def record(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", record)
    made_token_secrets(_parse(f"data = '{tmp_path}/data'"))
    assert synced[-1] == str(tmp_path / "data")
    assert str(tmp_path) in synced


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ("public_url = 'https://hooks.example.com/'", "https://hooks.example.com"),
        ("[server]\nhost = '0.0.0.0'\nport = 80", "http://127.0.0.1:80"),
        ("[server]\nhost = '::1'", "http://[::1]:8080"),
        ("[server]\nhost = '::'", "http://127.0.0.1:8080"),
        ("", "http://127.0.0.1:8080"),
    ],
)
def test_links_lead_to_where_receiver_is_reached(text: str, base: str) -> None:
    assert public_base(_parse(text)) == base


def test_urls_of_places_are_trimmed() -> None:
    """As from a secret's file that ends with a line feed."""
    text = '[store]\nurl = " sqlite:///kept.db\\n"\n[blobs]\nurl = "s3://bucket/prefix "'
    found = parse(text, {}, str)
    assert (sqlite_path(found), found.blobs.url) == ("kept.db", "s3://bucket/prefix")


@pytest.mark.parametrize(
    ("path", "told"), [("receiver.db?mode=ro", "without \\?mode=ro"), (":memory:", "name a file")]
)
def test_a_store_that_could_keep_nothing_is_refused(path: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        sqlite_path(parse(f"[store]\nurl = 'sqlite:///{path}'", {}, str))


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("RECEIVER__SERVR__PORT", "1", "no such setting; did you mean RECEIVER__SERVER__PORT?"),
        ("RECEIVER__SERVER__PROT", "1", "no such setting; did you mean RECEIVER__SERVER__PORT?"),
        ("RECEIVER__SOURCES__DEEPGRM__BASIC", "a:b", "did you mean RECEIVER__SOURCES__DEEPGRAM__BASIC?"),
        ("RECEIVER__SERVER__PORT", "high", "server.port: Input should be a valid integer"),
    ],
)
def test_a_variable_that_alone_speaks_of_a_setting_is_blamed_itself(
    variable: str, value: str, told: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        parse("[sources.deepgram]\nprovider = 'deepgram'\nbasic = 'a:b'", {variable: value}, str)
    assert refused.value.message.startswith(f"{variable}: ")
    assert told in refused.value.message


@pytest.mark.parametrize(
    "setting",
    ["public_url =", "data =", "[server]\nlog =", "[server]\ntrusted_proxies =", "[blobs]\nca_file ="],
)
def test_a_file_named_by_a_setting_that_is_no_secret_is_not_read(setting: str) -> None:
    """What is no secret is shown when it is wrong, and the file may hold one."""
    with pytest.raises(ConfigError, match="it is no secret; write the value itself") as refused:
        parse(f"{setting} 'file:/run/secret'", {}, lambda _: "the-content")
    assert "the-content" not in refused.value.message


@pytest.mark.parametrize(
    ("token", "told"),
    [
        ("secret = 'a-token-of-some-length'", "api.tokens[0].name: is missing"),
        ("name = 'app'", "give secret or sha256"),
        (f"name = 'app'\nsecret = 'a'\nsha256 = '{'0' * 64}'", "give secret or sha256"),
        ("name = 'app'\nsha256 = 'abc'", "64 hexadecimal digits"),
        ("name = 'app'\nsecret = 'a'\nscopes = ['write']", "'read', 'operate' or 'admin'"),
        ("name = 'app'\nsecret = 'a'\nscope = ['read']", "did you mean scopes?"),
        ("name = 'app'\nsecret = 'a'\n[[api.tokens]]\nname = 'b'\nsecret = 'a'", "the same secret"),
    ],
)
def test_a_token_that_is_not_whole_is_refused_by_what_it_lacks(token: str, told: str) -> None:
    assert told in _refused(f"[[api.tokens]]\n{token}\n")
