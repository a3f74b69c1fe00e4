"""Settings of PostgreSQL that no waiting mends are told as what they are, with nothing of their values; and what a new
release leaves behind for an old one. Each is asked of a server.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from receiver.app import check
from receiver.core.errors import ConfigError, Finding, StoreUnusable
from receiver.core.event import RecordStatus
from receiver.settings.load import parse
from receiver.storage.store import postgres_connection
from receiver.storage.store.postgres import PostgresStore
from tests.contract.store_suite import recording
from tests.support.postgres import execute, own_database

SECRET = "the-database-password"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A database with tables, which no test changes."""
    with own_database(migrated=True) as made:
        yield made


def found(url: str, folder: Path) -> list[Finding]:
    """What `check` says of the store, and what it warns of only where a test looks for it."""
    text = (
        f'data = "{folder}/data"\n[store]\nurl = "{url}"\n[tokens]\nsecrets = ["token-secret-0123456789"]\n'
    )
    settings = parse(text, {}, str)
    of_store = [finding for finding in check.check(settings) if finding.fatal] or check.reach(settings)
    return [finding for finding in of_store if finding.code != "W014"]


PARAMETERS = {
    "sslmode=bogus": "wrong: sslmode",
    "target_session_attrs=bogus": "wrong: target_session_attrs",
    "target_session_attrs=standby": "wrong: target_session_attrs",
    "service=nosuch": "wrong: service",
    "keepalives_idle=bogus": "wrong: keepalives_idle",
    "gssencmode=require": "wrong: gssencmode",
    "connect_timeout=bogus": "wrong: connect_timeout",
    "replication=database": "wrong: replication",
    "require_auth=scram-sha-256": "wrong: require_auth",
    "channel_binding=require": "wrong: channel_binding",
    "options=-c%20bogus%3D1": "wrong: bogus",
    "port=99999": "wrong: port",
    "port=bogus": "wrong: port",
    "sslmode=require": "could not be secured",
    "foo=bogus": "libpq knows no parameter foo",
    "user=%ff": "cannot be read",
}


@pytest.mark.parametrize("parameter", PARAMETERS)
async def test_a_parameter_that_cannot_be_used_is_named_by_check_and_migrate(
    parameter: str, url: str, tmp_path: Path
) -> None:
    wrong = f"{url}?{parameter}"
    [finding] = found(wrong, tmp_path)
    assert (finding.code, finding.fatal) == ("E008", True)
    assert PARAMETERS[parameter] in finding.message
    assert parameter.partition("=")[2] not in finding.message.replace("wrong: bogus", "")
    with pytest.raises((ConfigError, StoreUnusable), match=PARAMETERS[parameter]):
        await PostgresStore(wrong).migrate()


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [("PGPORT", "abc", "port"), ("PGSSLMODE", "bogus", "sslmode"), ("PGSERVICE", "nosuch", "service")],
)
def test_a_variable_that_cannot_be_used_is_told_by_its_parameter(
    variable: str, value: str, name: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    if variable == "PGPORT":
        url = "postgresql://postgres@127.0.0.1/receiver"
    [finding] = found(url, tmp_path)
    assert finding.code == "E008"
    assert finding.message.endswith(f"wrong: {name}")


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example"])
async def test_a_name_that_no_host_can_have_is_told(host: str, tmp_path: Path) -> None:
    wrong = f"postgresql://postgres:{SECRET}@{host}/receiver"
    [finding] = found(wrong, tmp_path)
    assert (finding.code, finding.message) == ("E018", "the host name cannot be used")
    with pytest.raises(ConfigError, match="host name"):
        await PostgresStore(wrong).migrate()


@pytest.mark.parametrize("wrong", ["postgresql://u:p/a?piece=x@h/d", "postgresql://h/d?password=a&piece=b"])
def test_a_piece_of_a_password_is_not_taken_for_a_parameter(wrong: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        postgres_connection.parse(wrong)
    assert "piece" not in caught.value.message


@pytest.mark.parametrize("change", ["user=nobody", "dbname=nothing"])
async def test_migrate_refuses_a_wrong_user_or_database_for_good(change: str, url: str) -> None:
    with pytest.raises(StoreUnusable):
        await PostgresStore(f"{url}?{change}").migrate()


def test_the_fault_of_a_question_is_a_finding(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(_settings: object, _clock: object) -> list[Finding]:
        raise KeyError(SECRET)

    monkeypatch.setattr(check, "_postgres", faulty)
    [finding] = found(url, tmp_path)
    assert (finding.code, finding.message) == ("E018", "asking it failed (KeyError)")


def test_text_is_sent_as_utf8_whatever_the_url_says(url: str) -> None:
    info = postgres_connection.parse(f"{url}?client_encoding=LATIN1")
    with postgres_connection.connect(info, writes=True) as connection:
        assert connection.execute("SELECT length($1::text), $1::text", ["€"]).fetchone() == (1, "€")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("off", "on"), ("local", "on"), ("remote_write", "on"), ("remote_apply", "remote_apply")],
)
def test_a_commit_waits_for_the_disks_of_primary_and_standby_at_least(
    theirs: str, ours: str, url: str
) -> None:
    options = quote(f"-c synchronous_commit={theirs}")
    info = postgres_connection.parse(f"{url}?options={options}")
    with postgres_connection.connect(info, writes=True) as connection:
        assert connection.execute("SHOW synchronous_commit").fetchone() == (ours,)


def test_a_right_that_lacks_is_told_with_the_grant_that_gives_it(tmp_path: Path) -> None:
    with own_database(migrated=True) as url:
        name = url.rpartition("/")[2]
        execute(url, f"CREATE ROLE {name} LOGIN; GRANT SELECT ON migrations TO {name}")
        theirs = url.replace("postgres@", f"{name}@")
        execute(
            url, f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}; REVOKE UPDATE ON pings FROM {name}"
        )
        execute(url, f"REVOKE ALL ON callbacks, tombstones FROM {name}")
        [finding] = found(theirs, tmp_path)
        assert finding.code == "E018"
        assert "SELECT, INSERT, UPDATE, DELETE on callbacks, tombstones" in finding.message
        assert "; UPDATE on pings" in finding.message
        execute(url, finding.fix)
        assert found(theirs, tmp_path) == []
        execute(url, f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_without_a_schema_search_path_is_named(url: str, tmp_path: Path) -> None:
    elsewhere = f"{url}?options={quote('-c search_path=nowhere')}"
    [finding] = found(elsewhere, tmp_path)
    assert finding.code == "E018"
    assert "search_path" in finding.message
    with pytest.raises(StoreUnusable, match="search_path"):
        await PostgresStore(elsewhere).migrate()


@pytest.mark.parametrize(
    "table", ["events (id BIGINT)", "migrations (id BIGINT)", "migrations (id BIGINT, name TEXT)"]
)
async def test_the_tables_of_another_program_are_told_as_such(table: str, tmp_path: Path) -> None:
    with own_database() as url:
        execute(url, f"CREATE TABLE {table}")
        if table == "migrations (id BIGINT)":
            [finding] = found(url, tmp_path)
            assert (finding.code, "another program's" in finding.message) == ("E018", True)
        with pytest.raises(StoreUnusable, match=r"another program's.*a database or a schema of its own"):
            await PostgresStore(url).migrate()


async def test_an_old_release_goes_on_where_a_new_one_left_room_for_it(tmp_path: Path) -> None:
    """As in a rolling deploy: `migrate` was run by the new release, and a process of the old one starts again."""
    with own_database(migrated=True) as url:
        execute(url, "INSERT INTO migrations VALUES ('9998_labels', 0); CREATE TABLE labels (id BIGINT)")
        [finding] = found(url, tmp_path)
        assert (finding.code, finding.fatal) == ("W020", False)
        assert "9998_labels" in finding.message
        store = PostgresStore(url)
        await store.open()
        assert (await store.record(recording("app"))).status is RecordStatus.RECORDED
        assert await store.migrate() == []
        await store.close()
        execute(url, "INSERT INTO migrations VALUES ('9999_needs_9998_x', 0)")
        [finding] = found(url, tmp_path)
        assert finding.code == "E016"
        assert "9999_needs_9998_x" in finding.message
        with pytest.raises(ConfigError, match="newer"):
            await PostgresStore(url).open()
