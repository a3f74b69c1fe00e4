"""The OpenAPI document and the JSON Schemas in docs/ are those that serve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from receiver.web.api.descriptions import openapi
from receiver.web.api.routes import OPERATIONS
from tests.docs.schemas import DOCS, documents


@pytest.mark.parametrize("place", documents(), ids=lambda place: place.name)
def test_each_committed_document_is_the_one_that_serves(place: Path) -> None:
    assert place.read_text("utf-8") == documents()[place], "run: python -m tests.docs.schemas"


def test_no_schema_is_left_of_a_type_that_is_gone() -> None:
    assert set((DOCS / "schemas").iterdir()) == {place for place in documents() if place.parent != DOCS}


def _references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if "$ref" in value else set[str]()
        return own.union(*map(_references, value.values()))
    return set[str]().union(*map(_references, value)) if isinstance(value, list) else set()


def test_every_reference_leads_to_a_schema_and_every_schema_is_used() -> None:
    document = json.loads(json.dumps(openapi()))
    there = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert _references(document) == there


def test_every_operation_has_a_name_of_its_own() -> None:
    paths = openapi()["paths"].values()
    names = [one["operationId"] for path in paths for one in path.values()]
    assert len(names) == len(set(names)) == len(OPERATIONS)
