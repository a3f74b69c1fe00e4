"""Reads the documentation as data: headings, tables, fenced blocks, links."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PACKAGE = ROOT / "receiver"
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^(#+) (.+)$")
_BACKTICKS = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Page:
    """One page of the documentation."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        """Its path below the repository, for messages."""
        return str(self.path.relative_to(ROOT))

    @property
    def prose(self) -> str:
        """The text without fenced blocks."""
        return _FENCE.sub("", self.text)

    def blocks(self, language: str) -> list[str]:
        """Return the fenced blocks of a language, without their indentation."""
        return [_dedent(code) for kind, code in _FENCE.findall(self.text) if kind == language]

    def section(self, heading: str) -> str:
        """Return the prose under a heading up to the next heading of any level, tables included."""
        found: list[str] | None = None
        for line in self.prose.splitlines():
            is_heading = _HEADING.match(line)
            if is_heading and found is not None:
                break
            if is_heading and is_heading[2].strip() == heading:
                found = []
            elif found is not None:
                found.append(line)
        assert found is not None, f"{self.name} has no heading {heading!r}"
        return "\n".join(found)

    def headings(self) -> list[str]:
        """Return all headings."""
        return [found[2].strip() for line in self.prose.splitlines() if (found := _HEADING.match(line))]

    def anchors(self) -> set[str]:
        """Return what a link may name after `#`."""
        return {_slug(heading) for heading in self.headings()}

    def links(self) -> list[str]:
        """Return the targets of all links."""
        return _LINK.findall(self.prose)

    def quoted(self) -> list[str]:
        """Return what stands between backticks in the prose."""
        return _BACKTICKS.findall(self.prose)


def page(name: str) -> Page:
    """Return one page by its path below the repository."""
    path = ROOT / name
    return Page(path, path.read_text("utf-8"))


def pages() -> list[Page]:
    """Return every page of the documentation."""
    found = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
    return [Page(path, path.read_text("utf-8")) for path in sorted(found)]


def rows(text: str) -> list[list[str]]:
    """Return the cells of all tables' rows in `text`, headings and rules left out."""
    lines = [line.strip() for line in text.splitlines()]
    found = []
    for before, line in zip(["", *lines], lines, strict=False):
        following = lines[lines.index(line) + 1] if line in lines[:-1] else ""
        is_rule = set(line) <= set("|- :") and line.startswith("|")
        is_head = set(following) <= set("|- :") and following.startswith("|") and not before.startswith("|")
        if line.startswith("|") and not is_rule and not is_head:
            found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


def quoted(text: str) -> list[str]:
    """Return what stands between backticks in a cell."""
    return _BACKTICKS.findall(text)


@cache
def modules() -> tuple[Path, ...]:
    """Return the program's source files."""
    return tuple(PACKAGE.rglob("*.py"))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Return all nodes of a source file's syntax tree."""
    return tuple(ast.walk(ast.parse(path.read_text("utf-8"))))


def _dedent(code: str) -> str:
    lines = code.splitlines()
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[indent:] for line in lines) + "\n"


def _slug(heading: str) -> str:
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.replace(" ", "-")
