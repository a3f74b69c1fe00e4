"""What the documentation shows can be done: examples parse and run, commands exist, links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from standardwebhooks import WebhookVerificationError

from receiver.__main__ import app
from receiver.app.check import check
from receiver.core import event_json, urls
from receiver.core.event import EVENT_TYPES, EventDraft
from receiver.core.retry import RETRY_AFTER_LIMIT
from receiver.core.tokens import CallbackTokens
from receiver.core.webhook import new_webhook_secret, webhook_key
from receiver.core.webhook import sign as standard_webhook
from receiver.settings.load import parse
from receiver.settings.model import Settings
from tests.docs.reading import PACKAGE, ROOT, Page, modules, page, pages

README = page("README.md")
ALL = pages()
MEANT = [found for found in ALL if "adr" not in found.path.parts]
"""Pages for users; decisions tell of what was, too."""
_SHOWN = {
    "receiver.toml",
    "receiver.db",
    "request.http",
    "case.toml",
    "expected.toml",
    "origin.md",
    "source.toml",
}
"""Files of a user's or of a golden case."""


def _name(found: Page) -> str:
    return found.name


# ---------------------------------------------------------------- settings


_SECRET = "averyrandomsecretof32characters0"


def _settings(text: str, folder: Path) -> Settings:
    """Parse settings as if every variable and file that they name held a fitting secret."""
    environ = dict.fromkeys(re.findall(r"env:(\w+)", text), _SECRET)
    environ |= {name: new_webhook_secret() for name in environ if name.endswith("WEBHOOK_SECRET")}
    environ |= {
        name: "postgresql://receiver@db.example.com/receiver" for name in environ if name == "DATABASE_URL"
    }
    settings = parse(text, environ, lambda path: _SECRET)
    return settings.model_copy(update={"data": str(folder)})


def test_the_readmes_settings_are_ten_lines_and_pass_the_check(tmp_path: Path) -> None:
    text = README.blocks("toml")[0]
    assert len(text.splitlines()) == 10
    assert [(f.code, f.where) for f in check(_settings(text, tmp_path))] == []


SETTINGS = [(found, text) for found in MEANT for text in found.blocks("toml")]


@pytest.mark.parametrize(("found", "text"), SETTINGS, ids=[found.name for found, _ in SETTINGS])
def test_settings_shown_anywhere_have_no_fatal_finding(found: Page, text: str, tmp_path: Path) -> None:
    assert [f for f in check(_settings(text, tmp_path)) if f.fatal] == []


def test_settings_shown_in_tables_are_taken() -> None:
    """Values in the table of retry policies, and lists shown beside settings, are what the parser takes."""
    section = page("docs/configuration.md").section("Retry policies")
    for value in re.findall(r"^\| `(.+?)` \|", section, re.MULTILINE):
        text = f'[destinations.app]\nurl = "https://app.example.com"\nretry = {value}\n'
        assert parse(text, {}, str).destinations["app"].policy.attempts > 1


# ---------------------------------------------------------------- Python


def test_the_readmes_python_takes_a_signed_event_once_and_refuses_others() -> None:
    [code] = README.blocks("python")
    secret = new_webhook_secret()
    names: dict[str, Any] = {}
    exec(code.replace("whsec_…", secret), names)  # noqa: S102 - what the reader would run
    take: Callable[[bytes, Mapping[str, str]], Any] = names["take"]
    body = b'{"type":"speech.completed","data":{"audio":{"url":"https://hooks.example.com/objects/a"}}}'
    headers = standard_webhook([webhook_key(secret)], "evt_1", int(time.time()), body)
    with pytest.raises(WebhookVerificationError):
        take(body + b" ", headers)
    assert take(body, headers) == json.loads(body)
    assert take(body, headers) is None


def test_the_callback_url_made_in_python_is_read_back() -> None:
    [code] = page("docs/providers.md").blocks("python")
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - what the reader would run
    secret = re.search(r'CallbackTokens\(\["(.+?)"\]\)', code)
    assert secret
    head, _, token = names["url"].rpartition("/")
    assert head == "https://deepgram:PASSWORD@hooks.example.com/callbacks/deepgram"
    claims = CallbackTokens([secret[1]]).read(token)
    assert claims
    assert (claims.source, claims.ref, claims.format) == ("deepgram", "order-42", {"product": "speak"})


# ---------------------------------------------------------------- events


EXAMPLES = [(found, text) for found in (README, page("docs/events.md")) for text in found.blocks("json")]


@pytest.mark.parametrize(("found", "text"), EXAMPLES, ids=[found.name for found, _ in EXAMPLES])
def test_events_shown_have_the_fields_of_real_ones(found: Page, text: str) -> None:
    event = json.loads(text)
    draft = EventDraft(type="speech.failed", idempotency_key="k", occurred_at=1)
    real = json.loads(event_json.compose(draft, event_id="evt_1", source="s", provider="p"))
    assert list(event) == ["type", "timestamp", "data"]
    assert event["type"] in EVENT_TYPES
    assert list(event["data"]) == list(real)


def test_limits_told_are_those_of_the_program() -> None:
    text = page("docs/events.md").text
    assert f"longer than {event_json.TEXT_LIMIT} bytes" in text
    assert f"{event_json.ERROR_LIMIT} characters at most" in text
    assert f"short top-level fields, {event_json.INLINE_LIMIT} bytes in all" in text
    assert event_json.DATA_LIMIT < 20_000, "events are said to be under 20 kB"
    assert RETRY_AFTER_LIMIT == 24 * 3600, "Retry-After is said to be a day at most"


@pytest.mark.parametrize(
    "name", ["README.md", "docs/configuration.md", "docs/providers.md", "docs/operating.md"]
)
def test_the_ports_told_are_those_that_are_taken(name: str) -> None:
    *first, last = urls.PORTS
    numbers = ", ".join(map(str, first))
    told = rf"\b{numbers}(?:,| or| and) {last}\b(?!,? (?:or |and )?\d)"
    assert re.search(told, page(name).text)


# ---------------------------------------------------------------- commands


def _lines() -> Iterator[tuple[str, str]]:
    for found in MEANT:
        for kind in ("sh", "text"):
            for block in found.blocks(kind):
                for line in block.replace("\\\n", " ").splitlines():
                    yield found.name, line
        for quoted in found.quoted():
            yield found.name, quoted


def _said(line: str) -> str | None:
    """Return the call of receiver in a line, as it would be typed."""
    call = re.search(r"(?:^|\$\(|: )receiver ((?:-|[a-z]).*?)\)?$", line.strip())
    return call[1] if call else None


CALLS = [(name, said) for name, line in _lines() if (said := _said(line))]
COMMAND: Any = typer.main.get_command(app)


@pytest.mark.parametrize("where", dict(CALLS))
def test_commands_shown_exist_with_their_flags(where: str) -> None:
    assert [wrong for name, said in CALLS if name == where for wrong in _wrong_in(said)] == []


def _wrong_in(said: str) -> list[str]:
    """Return the command, or the flags, that there are not."""
    command = COMMAND
    words = [word for word in shlex.split(said, comments=True) if word != "…"]
    while words and not words[0].startswith("-") and hasattr(command, "commands"):
        if words[0].isupper():
            return []
        if words[0] not in command.commands:
            return [f"{said}: there is no command {words[0]}"]
        command = command.commands[words.pop(0)]
    flags = {flag for param in command.params for flag in (*param.opts, *param.secondary_opts)}
    unknown = {word for word in words if word.startswith("-")} - flags - {"-h", "--help"}
    return [f"{said}: there is no {flag}" for flag in unknown]


def test_make_targets_shown_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    shown = {target for _, line in _lines() for target in re.findall(r"(?:^|`)make ([a-z]+)\b", line)}
    assert {"demo", "test"} <= shown
    assert not {target for target in shown if not re.search(rf"^{target}:", makefile, re.MULTILINE)}


def test_the_processes_shown_are_those_of_the_procfile() -> None:
    """Apart from `--no-work`, which the page explains."""
    shown = next(b for b in page("docs/operating.md").blocks("text") if b.startswith("web: "))
    assert shown.replace(" --no-work", "") == (ROOT / "Procfile").read_text("utf-8")


# ---------------------------------------------------------------- links and files


@pytest.mark.parametrize("found", ALL, ids=_name)
def test_links_inside_the_repository_lead_somewhere(found: Page) -> None:
    for link in found.links():
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        path = (found.path.parent / target).resolve() if target else found.path
        assert path.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in Page(path, path.read_text("utf-8")).anchors(), f"{link} names no heading"


_PLACES = re.compile(r"(?:receiver|tests|docs|bench|deploy|\.ci)/[\w./-]*")
_FILES = re.compile(r"[\w-]+\.(?:md|toml|lock|py|sql|http)|Makefile|Procfile")


@pytest.mark.parametrize("found", MEANT, ids=_name)
def test_files_named_are_there(found: Page) -> None:
    for word in found.quoted():
        if _PLACES.fullmatch(word) and not re.search(r"[A-Z]{3,}", word):
            assert (ROOT / word).exists(), f"there is no {word}"
        elif _FILES.fullmatch(word) and word not in _SHOWN:
            assert (ROOT / word).exists() or list(PACKAGE.rglob(word)), f"there is no {word}"


def test_pages_that_the_program_names_are_there() -> None:
    """Messages and docstrings send the reader to docs/…; so does the metadata."""
    texts = [path.read_text("utf-8") for path in modules()]
    named = {name for text in texts for name in re.findall(r"docs/[\w/-]+\.md", text)}
    assert named
    assert not {name for name in named if not (ROOT / name).is_file()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert (ROOT / project["readme"]).is_file()
