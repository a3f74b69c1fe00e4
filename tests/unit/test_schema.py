"""Which migrations of a later program leave room for an earlier one: the names tell."""

from __future__ import annotations

import re

import pytest

from receiver.storage.store.statements import migrations, unfit

KNOWN = ["0001_first", "0002_more"]


@pytest.mark.parametrize(
    ("later", "refused"),
    [
        (["0003_labels"], []),
        (["0003_labels", "0004_notes"], []),
        (["0003_needs_0002_x"], []),
        (["0003_labels", "0004_needs_0001_x"], []),
        (["0003_needs_0003_x"], ["0003_needs_0003_x"]),
        (["0003_labels", "0004_needs_0003_x"], ["0004_needs_0003_x"]),
        (["0002_other"], ["0002_other"]),
        (["CreateUsers1700000000"], ["CreateUsers1700000000"]),
    ],
)
def test_a_program_runs_on_later_tables_unless_their_names_ask_for_more(
    later: list[str], refused: list[str]
) -> None:
    assert unfit({*KNOWN, *later}, KNOWN) == refused
    assert unfit(later, KNOWN) == refused, "what is missing is another matter"


def test_a_migration_that_takes_something_away_says_for_whom_it_leaves_room() -> None:
    for name, text in migrations("BYTEA").items():
        if re.search(r"\b(DROP|RENAME|ALTER COLUMN)\b", text):
            assert re.match(r"\d{4}_needs_\d{4}_", name)


def test_no_two_migrations_have_one_number() -> None:
    """An older program takes two of one number for tables that it must not run on."""
    numbers = [name[:4] for name in migrations("BYTEA")]
    assert len(set(numbers)) == len(numbers)
