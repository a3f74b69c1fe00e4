"""docs/sources.md is true: its reference is made from the models, its examples are settings that work, its recipes are those shipped."""

from __future__ import annotations

import re

import pytest
from pydantic import BaseModel

from receiver.providers.custom import CustomProvider
from receiver.providers.custom.language import About, recipe, recipes
from receiver.settings import submitting
from receiver.settings.load import parse
from tests.docs.reading import page, quoted, rows
from tests.docs.sources import MARK, models, own_fields, reference, said_of
from tests.support.golden import cases, tokens

SOURCES = page("docs/sources.md")
EXAMPLES = SOURCES.blocks("toml")


def test_the_reference_is_the_models() -> None:
    """`python -m tests.docs.sources` writes it."""
    assert SOURCES.text.partition(MARK)[2] == reference()


@pytest.mark.parametrize("model", [*models()], ids=lambda model: model.__name__)
def test_each_setting_is_explained(model: type) -> None:
    assert all(said_of(model).values())


@pytest.mark.parametrize("model", [*models()], ids=lambda model: model.__name__)
def test_each_setting_stands_in_an_example(model: type[BaseModel]) -> None:
    """Those of `[about]` are for recipes that ship, those of `[submission]` stand in their own example."""
    told = model is not About and model.__module__ != submitting.__name__
    names = [field.alias or name for name, field in own_fields(model).items() if told]
    written = "\n".join(EXAMPLES)
    assert [name for name in names if not re.search(rf"(?<![\w-]){name} = |\.{name}\]", written)] == []


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_each_example_is_a_source_that_starts(example: str) -> None:
    environ = {"SECRET": "example-secret-0123456789", "API_KEY": "example-key-0123456789"}
    for source in parse(example, environ, str).sources.values():
        CustomProvider.create(source, tokens())


def test_the_table_of_recipes_names_each_and_no_other() -> None:
    told = {quoted(row[0])[0]: row[1:] for row in rows(SOURCES.section("Recipes"))}
    assert set(told) == set(recipes())
    for name, row in told.items():
        about = recipe(name)["about"]
        assert (row[0], "experimental" in row[-1]) == (about["title"], bool(about.get("experimental")))


def test_each_recipe_has_examples_of_all_verdicts() -> None:
    found = {(case.settings["recipe"], case.verdict) for case in cases("custom")}
    assert found == {(name, verdict) for name in recipes() for verdict in ("accepted", "parked", "rejected")}
