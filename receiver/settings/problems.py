"""What is wrong with settings, in words for a person: the place as it is written, and what may have been meant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import ValidationError

from receiver.core.findings import Problem
from receiver.settings.model import Section


def problems_of(error: ValidationError, model: type[Section], above: str = "") -> list[Problem]:
    """Return what is wrong, each with its place under `above`, and what may have been meant."""
    found = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        place, holders, inner = place_of(model, item["loc"])
        where = f"{above}{place}".strip(".")
        message, fix = item["msg"].removeprefix("Value error, "), ""
        if item["type"] == "extra_forbidden":
            message = "no such setting"
            fields = (pair for holder in holders for pair in holder.model_fields.items())
            known = (field.alias or name for name, field in fields)
            fix = did_you_mean(place.rpartition(".")[2], known) or f"see {model.manual}"
        elif item["type"] == "missing":
            message = "is missing"
        elif item["type"].startswith("union_tag_"):
            message = "kind is missing, or none that there is"
            fix = "write one of " + ", ".join(sorted(_kinds(inner)))
        elif item["type"] == "string_type" and where.startswith("retention."):
            message = 'write it as "90d": a number and a unit, in quotes'
        found.append(Problem(where, message, fix))
    return found


Models = tuple[type[Section], ...]


def place_of(model: type[Section], loc: Sequence[str | int]) -> tuple[str, Models, Models]:
    """Return a place as a person writes it, `.proof[0].header`, and the models of the table that it is in, and of its own."""
    text = ""
    holders: Models = (model,)
    inner = holders
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]" * bool(inner)
            continue
        kinds = tuple(each for each in inner if part in _kinds((each,)))
        if kinds and len(inner) > 1:  # pydantic names the table's kind as a step of its own
            inner = kinds
        elif part != "*":  # stands for the whole table
            text, holders = f"{text}.{part}", inner
            found = tuple(kind for each in inner for kind in _sections(kind_at(each, part)))
            inner = found or (inner if not any(kind_at(each, part) for each in inner) else ())
    return text, holders, inner


def _kinds(models: Models) -> set[str]:
    return {word for each in models for word in get_args(kind_at(each, "kind"))}


def kind_at(model: type[Section], name: str) -> Any:
    """Return the annotation of a setting; None when there is no such setting."""
    fields = model.model_fields.items()
    return next((field.annotation for own, field in fields if name in (own, field.alias)), None)


def _sections(kind: Any) -> Iterable[type[Section]]:
    if isinstance(kind, type):
        return (kind,) if issubclass(kind, Section) else ()
    return (found for part in get_args(kind) for found in _sections(part))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `did you mean …?` with the nearest of the names there are; empty when none is near."""
    near = get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}?" if near else ""
