"""One word for one thing: the error tree as drawn, and the glossary's words in code and text."""

from __future__ import annotations

import io
import keyword
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from receiver.app.check import all_codes
from receiver.core import errors
from receiver.providers import adapters
from tests.docs.reading import PACKAGE, Page, modules, page, pages, rows

GLOSSARY = page("docs/glossary.md")

OTHER_USES = {
    "webhook": "Standard Webhooks go out; deAPI calls its own settings so",
    "account": "a provider's account",
    "message": "an error's sentence; a streaming message of Deepgram's",
    "metadata": "Deepgram's field",
    "job": "the provider's unit of work",
    "task": "asyncio's",
    "queue": "asyncio's, and Python's",
    "validate": "pydantic's",
    "invalid": "httpx2's InvalidURL",
    "watch": "an eye on the store",
}
"""Words that the glossary replaces for one thing and that have another, rightful use. Each says which."""
OTHER_NAMES = {"endpoint_url", "link_endpoint_url"}
"""Names that others gave: S3's setting."""
WEBHOOK_NAMES = {"webhook", "webhook_key", "new_webhook_secret", "webhook_secret"}
"""Names that mean Standard Webhooks; and `webhook_secret`, deAPI's own word for what a job takes."""


# ---------------------------------------------------------------- the error tree


def _drawn() -> dict[str, tuple[str | None, str]]:
    """Return class -> (parent, the remark beside it) as drawn at the top of errors.py."""
    found: dict[str, tuple[str | None, str]] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        drawn = re.fullmatch(r"([│├└─ ]*)([A-Z]\w+)(?: {2,}(.*))?", line)
        if drawn is None:
            continue
        depth = len(drawn[1]) // 4
        above = [*above[:depth], drawn[2]]
        found[drawn[2]] = (above[depth - 1] if depth else None, drawn[3] or "")
    return found


def _classes() -> dict[str, type[errors.ReceiverError]]:
    values = vars(errors).items()
    return {n: v for n, v in values if isinstance(v, type) and issubclass(v, errors.ReceiverError)}


def test_the_error_tree_drawn_is_the_error_tree() -> None:
    drawn = {name: parent for name, (parent, _) in _drawn().items()}
    real = {name: cls.__base__.__name__ if cls.__base__ else "" for name, cls in _classes().items()}
    assert drawn == real | {"ReceiverError": None}


def test_the_statuses_drawn_are_those_of_the_classes() -> None:
    for name, (_, remark) in _drawn().items():
        if remark.isdigit():
            assert getattr(_classes()[name], "status", None) == int(remark)


def test_errors_live_in_errors_py_but_for_the_command_lines_own() -> None:
    """A new kind of error elsewhere would be missing from the drawing."""
    found = {
        (path.relative_to(PACKAGE).parts[0], name)
        for path in modules()
        for name, bases in re.findall(r"^class (\w+)\((.*?)\):", path.read_text("utf-8"), re.MULTILINE)
        if set(re.split(r"\W+", bases)) & set(_classes())
    }
    assert {place for place, _ in found} <= {"core", "cli", "demo"}


# ---------------------------------------------------------------- words


def _replaced() -> set[str]:
    """Return the words that the glossary replaces: its last column, remarks in brackets left out."""
    cells = [re.sub(r"\(.*?\)", "", row[2]) for row in rows(GLOSSARY.text) if len(row) == 3]
    return {word.strip() for cell in cells for word in cell.split(",")} - {""}


@cache
def _parts(name: str) -> list[str]:
    return [part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


@cache
def _names() -> frozenset[str]:
    return frozenset(name for path in modules() for name in _spelled(path))


def _spelled(path: Path) -> Iterator[str]:
    with io.StringIO(path.read_text("utf-8")) as text:
        for token in tokenize.generate_tokens(text.readline):
            if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                yield token.string


def _holds(parts: list[str], phrase: list[str]) -> bool:
    return any(parts[i : i + len(phrase)] == phrase for i in range(len(parts)))


FORBIDDEN = sorted(_replaced() - set(OTHER_USES))


def test_the_glossary_replaces_words() -> None:
    """What the tests below look for, so that an emptied table fails."""
    assert {"vendor", "endpoint", "subscription", "dedup id", "invalid event"} <= set(FORBIDDEN)
    assert not set(OTHER_USES) - _replaced() - {"task"}


def test_no_identifier_uses_a_word_that_the_glossary_replaces() -> None:
    phrases = [phrase.split() for phrase in FORBIDDEN]
    assert {
        name for name in _names() if any(_holds(_parts(name), phrase) for phrase in phrases)
    } == OTHER_NAMES


def test_webhook_in_a_name_means_standard_webhooks_or_deapis_field() -> None:
    found = {name for name in _names() if "webhook" in _parts(name)}
    assert found == WEBHOOK_NAMES


PROSE = [found for found in pages() if found.path != GLOSSARY.path and "adr" not in found.path.parts]


@pytest.mark.parametrize("found", PROSE, ids=lambda found: found.name)
def test_the_documentation_keeps_to_the_glossary(found: Page) -> None:
    words = " ".join(re.sub(r"`[^`]*`|\]\(.*?\)|https?://\S+", " ", found.prose).lower().split())
    assert [p for p in FORBIDDEN if re.search(rf"\b{re.escape(p)}s?\b", words)] == []


# ---------------------------------------------------------------- check codes


def test_every_code_that_is_reported_has_a_meaning() -> None:
    """Adapters and check.py spell codes; each must be in `all_codes`, and each of those be spelled."""
    spelled = {
        code for path in modules() for code in re.findall(r'"([EW]\d{3})"(?!: Code)', path.read_text("utf-8"))
    }
    spelled |= {next(iter(adapter.codes)) for adapter in adapters().values()}  # of any wrong setting
    assert spelled == set(all_codes())
