"""Classes that are found by their module: nothing has to be registered."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from typing import Any


@cache
def module_names(package: str) -> tuple[str, ...]:
    """Return the names of a package's modules, without importing them."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(import_module(package).__path__)))


@cache
def class_named(package: str, name: str, base: type[Any], attribute: str) -> Any:
    """Return the class below `base` whose module has this name, and which says the name in `attribute`; None without one.

    Only that module is imported.
    """
    if name not in module_names(package):
        return None
    for found in vars(import_module(f"{package}.{name}")).values():
        if isinstance(found, type) and issubclass(found, base) and vars(found).get(attribute) == name:
            return found
    return None
