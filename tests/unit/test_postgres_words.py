"""What is said when PostgreSQL cannot be used: what is wrong and where to look, and no secret."""

from __future__ import annotations

import pytest
from psycopg import errors

from receiver.errors import ConfigError
from receiver.store import postgres_connect
from receiver.store.postgres import PostgresStore


@pytest.mark.parametrize(
    "url", ["postgresql://u:se%cret@h:port/d", "postgresql://u:secret@h/d?colour=red", "secret"]
)
def test_a_url_that_cannot_be_read_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        PostgresStore(url)
    assert "secret" not in str(caught.value)


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
    assert words in postgres_connect.told(error).message
    assert "secret" not in postgres_connect.told(error).message
    assert postgres_connect.lost(error) is dropped
