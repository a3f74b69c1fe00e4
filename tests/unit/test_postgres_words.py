"""What is said when PostgreSQL cannot be used: what is wrong and where to look, and no secret."""

from __future__ import annotations

import pytest
from psycopg import errors

from receiver.core.errors import ConfigError
from receiver.storage.store import postgres_connection
from receiver.storage.store.postgres import PostgresStore


@pytest.mark.parametrize(
    "url", ["postgresql://u:se%cret@h:port/d", "postgresql://u:secret@h/d?colour=red", "secret"]
)
def test_a_url_that_cannot_be_read_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read|no parameter colour") as caught:
        PostgresStore(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:se@cret@h/d",
        "postgresql://u:se/cret@h/d",
        "postgresql://u:5432/cret@h/d",
        "postgresql://u:se?x@cret@h/d",
        "postgresql://u:se@cret/x@h/d",
    ],
)
def test_a_password_that_is_not_escaped_is_told_and_no_piece_of_it_taken_for_a_host(url: str) -> None:
    with pytest.raises(ConfigError, match="@ and / in the password are written %40 and %2F") as caught:
        PostgresStore(url)
    assert not any(piece in str(caught.value) for piece in ("cret", "5432"))


def test_a_password_that_is_escaped_is_fine() -> None:
    given = postgres_connection.parse("postgresql://u:se%40cr%2Fet%3F@h/d?application_name=a@b")
    assert (given["password"], given["host"]) == ("se@cr/et?", "h")


@pytest.mark.parametrize(
    ("state", "words", "dropped"),
    [
        ("53100", "disk of the database server is full", False),
        ("53300", "no connection left", False),
        ("57P01", "ended the connection", True),
        ("57P03", "starting or stopping", True),
        ("57014", "took too long", False),
        ("55P03", "locked for too long", False),
        ("25006", "takes no writes", True),
        ("28P01", "user or the password", False),
        ("42P01", "run `receiver migrate`", False),
        ("42P05", "pool_mode = transaction", False),
        ("26000", "pool_mode = transaction", False),
        ("42P07", "another program's tables", False),
        ("42703", "or, if it is another program's", False),
        ("3F000", "look at search_path", False),
        ("42501", "lacks a right", False),
        ("23505", "already there", False),
        ("22P02", "refused a value", False),
        ("40P01", "again and again", False),
        ("XX001", "damage", True),
        ("08006", "broke", True),
    ],
)
def test_every_state_has_its_sentence_and_shows_no_value(state: str, words: str, dropped: bool) -> None:
    error = errors.lookup(state)("DETAIL: Key (id)=(secret) on host db.internal")
    assert words in postgres_connection.unavailable(error).message
    assert "secret" not in postgres_connection.unavailable(error).message
    assert postgres_connection.lost(error) is dropped
