"""`receiver check`, and the start of `serve` and `work`, over PostgreSQL and S3: one clear sentence for each trouble."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from receiver.app.check import all_codes, reach, unreached
from receiver.core.clock import wall_clock
from receiver.settings.load import parse
from receiver.storage.blobs.s3_probe import Trouble
from tests.support import postgres, s3
from tests.support.fleet import TOKEN_SECRET
from tests.support.house import Said, receiver
from tests.support.patience import PATIENCE
from tests.support.pooler import pooled
from tests.support.ports import free_port
from tests.support.postgres import Server, execute
from tests.support.s3 import BUCKET, Weed


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a good server may take longer to answer than `check` waits."""
    monkeypatch.setattr("receiver.app.check.PATIENCE", PATIENCE)


weed, s3_credentials = s3.weed, s3.s3_credentials
pytestmark = pytest.mark.usefixtures("s3_credentials")
PASSWORD = "the-database-password"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that asks for a password and waits for its disk, as one in earnest does."""
    with postgres.server(durable=True) as running:
        running.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
        hba = running.folder / "pg_hba.conf"
        hba.write_text(f"host all app 127.0.0.1/32 scram-sha-256\n{hba.read_text()}")
        running.execute("SELECT pg_reload_conf()")
        yield running


@pytest.fixture
def database(server: Server) -> Iterator[str]:
    """The URL of a database of the server's, with tables."""
    name = server.new_database()
    yield server.url(name)
    server.drop_database(name)


def config(folder: Path, store: str = "", blobs: str = "") -> str:
    text = f"""
data = "{folder}/data"
public_url = "https://hooks.example.com"
[tokens]
secrets = ["{TOKEN_SECRET}"]
[sources.deepgram]
provider = "deepgram"
require_token = true
[destinations.app]
url = "https://app.example.com/hooks"
secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]
"""
    if store:
        text += f'[store]\nurl = "{store}"\n'
    path = folder / "receiver.toml"
    path.write_text(text + blobs)
    path.chmod(0o600)
    return str(path)


def s3_text(weed: Weed, *, bucket: str = BUCKET, endpoint: str | None = None) -> str:
    place = f'url = "s3://{bucket}/check"\nendpoint_url = "{endpoint or weed.http}"'
    return f'[blobs]\n{place}\nregion = "us-east-1"\ntimeout_seconds = 1\n'


def codes(said: Said) -> list[str]:
    return [finding["code"] for finding in said.items]


def migrate(path: str) -> None:
    assert receiver("--config", path, "migrate").status == 0


def test_good_parts_have_no_finding(weed: Weed, database: str, tmp_path: Path) -> None:
    path = config(tmp_path, database, s3_text(weed))
    migrate(path)
    said = receiver("--config", path, "check", "--json")
    assert (said.status, said.items) == (0, [])
    keys = weed.client().list_objects_v2(Bucket=BUCKET, Prefix="check/")
    assert "Contents" not in keys, "what was stored for the check is gone"


Trouble_ = tuple[str, str, str]


def _refused(server: Server) -> Trouble_:
    url = f"postgresql://app:{PASSWORD}@127.0.0.1:{(port := free_port())}/receiver"
    return url, "E012", f"cannot be reached: nothing listens at 127.0.0.1:{port}; "


def _unknown_host(server: Server) -> Trouble_:
    url = f"postgresql://app:{PASSWORD}@nobody.invalid/receiver"
    return url, "E012", "cannot be reached: there is no host nobody.invalid; "


def _wrong_password(server: Server) -> Trouble_:
    return (
        server.url("postgres", user="app", password="wrong-password"),
        "E013",
        '(user "app", database "postgres")',
    )


def _unknown_user(server: Server) -> Trouble_:
    return server.url("postgres", user="nobody-here"), "E013", 'password of store.url (user "nobody-here", '


def _unknown_database(server: Server) -> Trouble_:
    return server.url("nothing"), "E014", '(user "postgres", database "nothing"); create it, or'


def _no_tables(server: Server) -> Trouble_:
    return server.url(server.new_database()), "E015", "no tables yet"


def _other_letters(server: Server) -> Trouble_:
    server.execute("DROP DATABASE IF EXISTS letters")
    server.execute("CREATE DATABASE letters ENCODING 'SQL_ASCII' TEMPLATE template0")
    return server.url("letters"), "E018", "Unicode"


@pytest.mark.parametrize(
    "make",
    [_refused, _unknown_host, _wrong_password, _unknown_user, _unknown_database, _no_tables, _other_letters],
)
def test_a_database_that_cannot_be_used_is_told(
    make: Callable[[Server], Trouble_], server: Server, tmp_path: Path
) -> None:
    url, code, sentence = make(server)
    findings = reach(parse(Path(config(tmp_path, url)).read_text(), {}, str))
    assert [finding.code for finding in findings] == [code]
    assert sentence in f"{findings[0].message}; {findings[0].fix}"
    assert not any(secret in str(findings) for secret in (PASSWORD, "wrong-password", TOKEN_SECRET))


def test_a_pooler_that_lends_connections_for_one_transaction_is_named(database: str, tmp_path: Path) -> None:
    """Through it the tables look as if they were not there, and `receiver migrate` would be told for ever."""
    assert receiver("--config", config(tmp_path, database), "migrate").status == 0
    with pooled(database) as url:
        for command, status in (("check", 2), ("serve", 2)):
            said = receiver("--config", config(tmp_path, url), command)
            assert said.status == status
            assert "PgBouncer's pool_mode = transaction" in said.out + said.err
            assert "migrate" not in said.out + said.err


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server with a certificate for db.example.com, and its authority."""
    authority = trustme.CA()
    certificate = authority.issue_cert("db.example.com")
    trusted = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority.cert_pem.write_to_path(str(trusted))
    with postgres.server() as running:
        key, chain = running.folder / "key.pem", running.folder / "chain.pem"
        certificate.private_key_pem.write_to_path(str(key))
        certificate.cert_chain_pems[0].write_to_path(str(chain))
        for path in (key, chain):
            os.chown(path, running.folder.stat().st_uid, running.folder.stat().st_gid)
            path.chmod(0o600)
        running.execute(f"ALTER SYSTEM SET ssl_cert_file = '{chain}'")
        running.execute(f"ALTER SYSTEM SET ssl_key_file = '{key}'")
        running.execute("ALTER SYSTEM SET ssl = on")
        running.execute("SELECT pg_reload_conf()")
        yield running, trusted


def test_a_certificate_for_another_host_name_is_told_as_that(
    named: tuple[Server, Path], tmp_path: Path
) -> None:
    running, trusted = named
    url = running.url(more=f"?sslmode=verify-full&sslrootcert={trusted}")
    [found] = reach(parse(Path(config(tmp_path, url)).read_text(), {}, str))
    assert "certificate is for another host name" in found.message
    assert "cannot be reached" not in all_codes()[found.code].title


@pytest.mark.parametrize(
    ("prepare", "database", "user"),
    [
        ("CREATE DATABASE closed ALLOW_CONNECTIONS false", "closed", "postgres"),
        ("CREATE ROLE barred NOLOGIN", "postgres", "barred"),
    ],
)
def test_a_server_that_refuses_is_not_one_that_cannot_be_reached(
    prepare: str, database: str, user: str, server: Server, tmp_path: Path
) -> None:
    server.execute(prepare)
    url = server.url(database, user=user)
    [found] = reach(parse(Path(config(tmp_path, url)).read_text(), {}, str))
    assert "refused" in found.message
    assert "reached" not in found.message + all_codes()[found.code].title


@pytest.mark.parametrize("make", [_refused, _wrong_password])
def test_what_is_wrong_with_the_database_is_told_by_check_and_at_the_start(
    make: Callable[[Server], Trouble_], weed: Weed, server: Server, tmp_path: Path
) -> None:
    url, code, sentence = make(server)
    path = config(tmp_path, url, s3_text(weed))
    said = receiver("--config", path, "check", "--json")
    assert (said.status, codes(said)) == (2, [code])
    assert sentence in f"{said.items[0]['message']}; {said.items[0]['fix']}"
    assert codes(receiver("--config", path, "check", "--offline", "--json")) == []
    for command in ("serve", "work"):
        started = receiver("--config", path, command)
        assert started.status == (1 if code == "E012" else 2), "an outage may be over at the next start"
        assert started.err.startswith(f"error {code} store.url: ")
        assert started.err.count("\n") == 1
        assert sentence in started.err
        assert not any(secret in started.err for secret in (PASSWORD, "wrong-password", TOKEN_SECRET))
    assert not any(secret in said.out for secret in (PASSWORD, "wrong-password", TOKEN_SECRET))


@pytest.mark.parametrize(
    ("change", "code", "sentence"),
    [
        ("DELETE FROM migrations WHERE name = (SELECT max(name) FROM migrations)", "E015", "lacks 0"),
        ("INSERT INTO migrations VALUES ('9999_needs_9999_later', 0)", "E016", "has 9999_needs_"),
    ],
)
def test_a_schema_of_another_version_is_told_with_what_to_do(
    change: str, code: str, sentence: str, weed: Weed, database: str, tmp_path: Path
) -> None:
    path = config(tmp_path, database, s3_text(weed))
    migrate(path)
    execute(database, change)
    said = receiver("--config", path, "check", "--json")
    assert (said.status, codes(said)) == (2, [code])
    assert sentence in said.items[0]["message"]
    started = receiver("--config", path, "work")
    assert (started.status, started.err.partition(" store.url")[0]) == (2, f"error {code}")


def test_a_right_that_lacks_is_told(weed: Weed, server: Server, database: str, tmp_path: Path) -> None:
    migrate(config(tmp_path, database))
    theirs = database.replace("postgres@", f"app:{PASSWORD}@")
    said = receiver("--config", config(tmp_path, theirs, s3_text(weed)), "check", "--json")
    assert codes(said) == ["E018"]
    assert "lacks a right" in said.items[0]["message"]
    assert "TO app" in said.items[0]["fix"]
    said = receiver("--config", config(tmp_path, theirs), "events")
    assert "lacks a right: the owner of the tables runs GRANT SELECT, INSERT, " in said.err


@pytest.mark.parametrize(
    ("seconds", "expected"), [(-3, []), (7, ["W013"]), (-400, ["W013"]), (700, ["E017"]), (-700, ["E017"])]
)
def test_clocks_that_differ_are_told(
    seconds: int, expected: list[str], database: str, tmp_path: Path
) -> None:
    path = config(tmp_path, database)
    migrate(path)
    settings = parse(Path(path).read_text(), {}, str)
    found = reach(settings, clock=lambda: wall_clock() + seconds * 1000)
    assert [finding.code for finding in found] == expected
    if expected:
        said = f"clock is {abs(seconds)} s {'behind' if seconds < 0 else 'ahead of'} the database's"
        assert said in found[0].message.replace(f"{abs(seconds) - 1} s", f"{abs(seconds)} s")
    assert unreached(found), "a start may be tried again: a clock is set in time"


def test_a_server_that_syncs_nothing_is_told(weed: Weed, tmp_path: Path) -> None:
    """Receiver starts all the same: it is somebody's choice."""
    with postgres.database() as url:
        said = receiver("--config", config(tmp_path, url, s3_text(weed)), "check", "--json")
    assert (said.status, codes(said)) == (0, ["W014"])


def test_a_bucket_that_is_not_there_is_told_by_check_and_at_the_start(weed: Weed, tmp_path: Path) -> None:
    path = config(tmp_path, blobs=s3_text(weed, bucket="no-such-bucket"))
    said = receiver("--config", path, "check", "--json")
    assert (said.status, codes(said)) == (2, ["E020"])
    assert "there is no bucket no-such-bucket" in said.items[0]["message"]
    started = receiver("--config", path, "serve")
    assert (started.status, started.err.count("\n")) == (2, 1)
    assert "E020 blobs.url: " in started.err


def test_wrong_credentials_are_told_without_showing_them(
    weed: Weed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret-of-this-store")
    said = receiver("--config", config(tmp_path, blobs=s3_text(weed)), "check", "--json")
    assert codes(said) == ["E020"]
    assert "the secret access key is wrong" in said.items[0]["message"]
    assert "not-the-secret" not in said.out
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    said = receiver("--config", config(tmp_path, blobs=s3_text(weed)), "check", "--json")
    assert "credentials" in said.items[0]["message"]


def test_a_bucket_that_is_out_is_a_warning_since_receiver_starts_and_journals(
    weed: Weed, tmp_path: Path
) -> None:
    path = config(tmp_path, blobs=s3_text(weed, endpoint=f"http://127.0.0.1:{free_port()}"))
    said = receiver("--config", path, "check", "--json")
    assert (said.status, codes(said)) == (0, ["W017"])
    assert "cannot be reached" in said.items[0]["message"]


def test_what_the_bucket_does_not_do_well_is_told_with_the_right_that_lacks(
    weed: Weed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test store grants everything, so what the probe found is put here."""
    found = [Trouble("listing s3://b failed: access denied", "s3:ListBucket", fatal=False)]
    monkeypatch.setattr("receiver.storage.blobs.s3_probe.probe", lambda options: found)
    said = receiver("--config", config(tmp_path, blobs=s3_text(weed)), "check", "--json")
    assert (said.status, codes(said)) == (0, ["W018"])
    assert "grant s3:ListBucket" in said.items[0]["fix"]


def test_embedded_parts_are_asked_nothing(tmp_path: Path) -> None:
    said = receiver("--config", config(tmp_path), "check", "--json")
    assert (said.status, said.items) == (0, [])
    assert not os.path.exists(tmp_path / "data")


def test_a_queue_that_would_take_nothing_is_a_warning() -> None:
    settings = parse(
        '[destinations.q]\nkind = "nats"\nurl = "nats://127.0.0.1:1"\nsubject = "speech"\n'
        '[destinations.app]\nurl = "https://app.example.com"\n',
        {},
        str,
    )
    [found] = reach(settings)
    assert (found.code, found.where, found.fatal) == ("W025", "destinations.q", False)
    assert found.message == "127.0.0.1:1 cannot be reached: connection refused"
