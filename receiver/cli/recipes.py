"""`recipes`: the providers that need no code."""

from __future__ import annotations

from typing import Annotated

import typer

from receiver.cli.options import AsJson, option
from receiver.cli.output import print_fields, print_json, print_table
from receiver.core.errors import UsageError


def recipes(
    name: Annotated[str | None, typer.Argument(help="Tell what one has to know of this recipe.")] = None,
    toml: Annotated[
        bool, option("--toml", help="Print the recipe as a source for receiver.toml, to change it there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the recipes for providers without code."""
    from receiver.providers.custom.language import recipe, recipe_as_source
    from receiver.providers.custom.language import recipes as known

    if toml and (name is None or as_json):
        raise UsageError("--toml goes with the name of one recipe, and without --json")
    if name is not None:
        if name not in known():
            raise UsageError(f"there is no recipe named {name!r}: `receiver recipes` lists them")
        about = recipe(name)["about"]
        if toml:
            typer.echo(recipe_as_source(name), nl=False)
        elif as_json:
            print_json({"name": name, **recipe(name), "warning": _warning(name)})
        else:
            fields = {"name": name, **about, "warning": _warning(name)}
            print_fields((field, value) for field, value in fields.items() if value)
        return
    found = [(each, recipe(each)["about"]) for each in known()]
    if as_json:
        items = [{"name": each, **about, "warning": _warning(each)} for each, about in found]
        print_json({"items": items, "next": None})
        return
    rows = [
        (each, about["title"], "no" if _warning(each) else "yes", "yes" if "experimental" in about else "")
        for each, about in found
    ]
    print_table(("recipe", "for", "body proved", "experimental"), rows, empty="no recipe")


def _warning(name: str) -> str:
    from receiver.providers.custom.language import CustomSettings

    if CustomSettings.model_validate({"recipe": name}).covered:
        return ""
    return "no proof covers the body: use URLs of `receiver callback-url`, whose token receiver demands here"
