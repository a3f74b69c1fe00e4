"""The reference of `provider = "custom"` in docs/sources.md: made from the settings' models.

`python -m tests.docs.sources` writes it anew.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from receiver.providers.custom import handshakes, language
from receiver.providers.proofs import base, plain, signatures, web_tokens
from receiver.providers.proofs.request import Template
from receiver.settings import submitting
from receiver.settings.model import Section


def models() -> Iterator[type[BaseModel]]:
    """Yield every table of the language."""
    for module in (base, plain, signatures, web_tokens, handshakes, language, submitting):
        for value in vars(module).values():
            own = (
                isinstance(value, type) and issubclass(value, Section) and value.__module__ == module.__name__
            )
            if own and value is not language.CustomSettings:
                yield value


def heading(model: type[BaseModel]) -> str:
    """Return the heading of a table: what stands before the colon in the model's docstring, without its backticks."""
    return (model.__doc__ or "").partition(": ")[0].replace("`", "").strip()


def own_fields(model: type[BaseModel]) -> Mapping[str, FieldInfo]:
    """Return the settings that a model adds to those it inherits."""
    return {name: field for name, field in model.model_fields.items() if name in model.__annotations__}


def default_of(field: FieldInfo) -> str:
    """Return a default as the table spells it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Section):
        return "`none`"
    if value is None:
        return "none"
    if isinstance(value, Template):
        value = "{body}"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"`{json.dumps(dict(value) if isinstance(value, Mapping) else value)}`"


def values_of(field: FieldInfo) -> str:
    """Return the words that a setting takes, "" where it takes any."""
    kind = field.annotation
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return ", ".join(f"`{word.value}`" for word in kind)
    words = [arg for each in (kind, *get_args(kind)) if get_origin(each) is Literal for arg in get_args(each)]
    return ", ".join(f"`{word}`" for word in dict.fromkeys(words) if isinstance(word, str))


def said_of(model: type[BaseModel]) -> Mapping[str, str]:
    """Return the docstrings under a model's settings."""
    said: dict[str, str] = {}
    tree = ast.parse(inspect.getsource(sys.modules[model.__module__]))
    body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == model.__name__)
    for before, after in itertools.pairwise(body):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name):
            text = (
                after.value.value
                if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                else ""
            )
            said[before.target.id] = " ".join(str(text).split())
    return said


def reference() -> str:
    """Return the tables of every model."""
    return "\n".join(_table(model) for model in models())


def _table(model: type[BaseModel]) -> str:
    said = said_of(model)
    about = (model.__doc__ or "").splitlines()[0].partition(": ")[2]
    lines = [f"### {heading(model)}", "", about[:1].upper() + about[1:], ""]
    lines += ["| setting | values | default | meaning |", "|---|---|---|---|"]
    for name, field in own_fields(model).items():
        row = (f"`{field.alias or name}`", values_of(field), default_of(field), said[name])
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, ""])


MARK = "## Reference\n\n"
"""What stands before the reference in the page; nothing follows it."""

if __name__ == "__main__":
    path = Path("docs/sources.md")
    path.write_text(path.read_text("utf-8").partition(MARK)[0] + MARK + reference(), "utf-8")
