"""receiver is Apache-2.0, and nothing that it needs to run forbids to give it away under that licence."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

PERMISSIVE = re.compile(r"\b(MIT|BSD|Apache|ISC|PSF|Python Software Foundation|Unlicense)\b", re.IGNORECASE)
COPYLEFT = re.compile(r"GPL|GNU|EUPL|SSPL|CDDL|Commons Clause|BUSL", re.IGNORECASE)
ALLOWED = {
    "psycopg": "LGPL-3.0: an unchanged library, imported at run time and replaceable by whoever runs receiver",
    "psycopg-binary": "LGPL-3.0: as psycopg, of which it is the compiled part",
    "apsw": "any-OSI: under whichever licence of the Open Source Initiative's list one likes, so under a permissive one",
}
"""Licences with conditions that receiver keeps, and how."""


def _needed() -> dict[str, Distribution]:
    """Return every distribution that receiver needs at run time here, its extras' included."""
    extras = [text for texts in PROJECT["optional-dependencies"].values() for text in texts]
    open_ends = [Requirement(text) for text in (*PROJECT["dependencies"], *extras)]
    needed: dict[str, Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    while open_ends:
        requirement = open_ends.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        needed[name] = distribution(name)
        open_ends += _requirements(needed[name], requirement.extras)
    return needed


def _requirements(of: Distribution, extras: set[str]) -> Iterator[Requirement]:
    for text in of.requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def _licence(of: Distribution) -> str:
    """Return what a distribution says of its licence: the expression, else the classifiers, else the old field."""
    stated = {name: of.metadata[name] for name in ("License-Expression", "License") if name in of.metadata}
    classifiers = [text for text in of.metadata.get_all("Classifier") or () if text.startswith("License ::")]
    return stated.get("License-Expression") or "; ".join(classifiers) or stated.get("License", "")


NEEDED = _needed()


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_what_receiver_needs_may_be_given_away_with_it(name: str) -> None:
    licence = _licence(NEEDED[name])
    if name not in ALLOWED:
        assert PERMISSIVE.search(licence), f"{name}: {licence!r} is not known to be permissive"
        assert not COPYLEFT.search(licence), f"{name}: {licence}"


def test_each_exception_is_needed() -> None:
    assert ALLOWED.keys() <= NEEDED.keys()


def test_what_is_needed_was_found() -> None:
    """The walk goes through the extras and past what is named in pyproject.toml."""
    assert {"starlette", "anyio", "psycopg", "boto3", "botocore"} <= NEEDED.keys()
    assert "mutagen" not in NEEDED
    assert "mutagen" not in (ROOT / "requirements.lock").read_text("utf-8")


def test_the_licence_is_named_and_there() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE"]
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    for page in ("README.md", "CONTRIBUTING.md"):
        assert "Apache-2.0" in (ROOT / page).read_text("utf-8"), page
