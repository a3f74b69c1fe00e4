"""`recipes`, the providers that need no code, and `try`: what a request to a source would become, or why one was refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from receiver.cli.opening import ask, load, read_file, tokens_of
from receiver.cli.options import AsJson, SourceName, option, since
from receiver.cli.output import print_fields, print_json, print_table
from receiver.core.callback import HEADERS, Head, MemoryBody, is_plain
from receiver.core.clock import wall_clock
from receiver.core.errors import KeysUnavailable, NotFound, UsageError
from receiver.core.fetch import KeysNeeded
from receiver.web.views import view

if TYPE_CHECKING:
    from receiver.core.event import Rejection
    from receiver.core.tokens import CallbackTokens
    from receiver.providers import PushProvider
    from receiver.settings.model import Settings


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


# ---------------------------------------------------------------- try

_THERE = {True: "came", False: "did not come", None: "is not known to have come"}


def try_(
    ctx: typer.Context,
    source: SourceName,
    request: Annotated[
        Path | None,
        typer.Argument(help="The request as it is sent: line, headers, empty line, body."),
    ] = None,
    rejected: Annotated[
        bool, option("--rejected", help="Explain the last rejection, or the one whose id follows.")
    ] = False,
    at: Annotated[
        str | None, option("--at", help="When it came: 2h (ago), or 2026-11-21T10:00Z. Without it, now.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a request to a source would become, or why one was refused."""
    settings = load(ctx)
    if rejected:
        if at is not None:
            raise UsageError("--at goes with a request, and not with --rejected")
        one = None if request is None else str(request)
        explained = _explain_rejected(settings, _adapter(settings, source), one)
        (print_json if as_json else _print_rejected)(explained)
        return
    if request is None:
        raise UsageError(
            f"name a file with a request, or add --rejected; for a source with a recipe, `receiver simulate custom --source {source}` sends an example"
        )
    text = RequestText.of(read_file(request), source)
    head = _head(settings, source, text, since(at) or wall_clock())
    result = asyncio.run(_tried(settings, source, head, text.body))
    if as_json:
        print_json(result)
    else:
        _print(result)
    raise typer.Exit(0 if result["verdict"] in ("accepted", "ignored", "handshake") else 1)


class RequestText(NamedTuple):
    """A request as a file spells it."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    """Names in lower case."""
    body: bytes

    @classmethod
    def of(cls, raw: bytes, source: str) -> RequestText:
        """Take a request apart; line feeds alone may end its lines, and one may follow the body. Raises `UsageError`."""
        ending = b"\r\n" if b"\r\n" in raw.partition(b"\n\n")[0] else b"\n"
        top, _, body = raw.partition(ending * 2)
        first, *lines = top.decode("latin-1").split(ending.decode())
        words = first.split()
        if len(words) < 2 or not words[1].startswith("/"):
            raise UsageError(f"the file begins with a request line: POST /callbacks/{source} HTTP/1.1")
        pairs = (line.partition(":") for line in lines)
        headers = tuple((name.strip().lower(), value.strip()) for name, _, value in pairs)
        length = dict(headers).get("content-length", "")
        if length.isdecimal() and body[int(length) :] in (b"\n", b"\r\n"):  # an editor ended the file so
            body = body[: int(length)]
        return cls(words[0].upper(), words[1], headers, body)


def _head(settings: Settings, source: str, request: RequestText, now: int) -> Head:
    """Return the head of a request that came at `now`. Raises `UsageError` when it goes elsewhere."""
    from receiver.settings.load import public_base

    path, _, query = request.target.partition("?")
    parts = path.rstrip("/").split("/")
    if parts[1:3] != ["callbacks", source]:
        raise UsageError(
            f"the request goes to {path[:100]}, and callbacks of this source to /callbacks/{source}: "
            "correct the first line of the file"
        )
    return Head(
        source=source,
        method=request.method,
        headers=request.headers,
        token=parts[3] if len(parts) > 3 else None,
        received_at=now,
        peer="127.0.0.1",
        query=query,
        url=public_base(settings) + request.target,
    )


def _adapter(settings: Settings, name: str) -> PushProvider:
    from receiver.providers import PushProvider, adapter_of

    source = settings.source_named(name)
    adapter = adapter_of(source).create(source, _tokens(settings))
    if not isinstance(adapter, PushProvider):
        raise UsageError(f"the source {name} is only polled: no request comes to it")
    return adapter


def _tokens(settings: Settings) -> CallbackTokens:
    """Return what checks callback tokens: before the first start nobody has one, so none is right."""
    from receiver.core.tokens import CallbackTokens
    from receiver.settings.load import has_token_secret

    return tokens_of(settings) if has_token_secret(settings) else CallbackTokens([token_hex()])


async def _tried(settings: Settings, name: str, head: Head, raw: bytes) -> dict[str, Any]:
    from receiver.app.trial import judged
    from receiver.outbound.fetcher import Fetcher
    from receiver.system.body_buffer import BodyBuffer

    adapter, body = _adapter(settings, name), MemoryBody(raw)
    try:
        return judged(adapter, head, body)
    except KeysNeeded as needed:
        with tempfile.TemporaryDirectory() as folder:
            fetcher = Fetcher.create(settings.sources[name], BodyBuffer(folder))
            await fetcher.open()
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_callback(fetcher.close)
                if not await needed.fetch(fetcher, head.received_at):
                    raise KeysUnavailable from None
        return judged(adapter, head, body)


def _print(result: dict[str, Any]) -> None:
    for found in result["proofs"]:
        verdict = "holds" if found["holds"] else "does not hold"
        _fields_of(
            {"proof": f"{found['proof']} {verdict}", "why": found["reason"], "signed": found["signed"]}
        )
    explained = {name: result.get(name) for name in ("verdict", "reason", "answer")}
    _fields_of(explained | (result.get("event") or {}))


def _fields_of(fields: dict[str, Any]) -> None:
    print_fields(
        (name, json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value)
        for name, value in fields.items()
        if value
    )


# ---------------------------------------------------------------- what was refused


def _explain_rejected(settings: Settings, adapter: PushProvider, one: str | None) -> dict[str, Any]:
    """Return what is kept of a source's last rejection, or of the one with this id, and which headers each proof wanted.

    Raises `NotFound`.
    """
    found = ask(settings, lambda store: store.rejections(adapter.source, limit=1, one=one))
    if not found:
        which = "is kept" if one is None else f"has the id {one}: `receiver rejections --wide` lists them"
        raise NotFound(f"no rejection of the source {adapter.source} {which}")
    return {"rejection": view(found[0]), "proofs": list(proofs_wanted(adapter, found[0]))}


def _print_rejected(explained: dict[str, Any]) -> None:
    """Print what `_explain_rejected` returned."""
    kept = explained["rejection"]
    print_fields(
        [
            ("rejected", kept["at"]),
            ("id", kept["id"]),
            ("answer", f"{kept['status']}, {kept['kind']}"),
            ("reason", kept["reason"]),
            ("came with", ", ".join(kept["headers"]) or "headers whose names are not kept"),
            *((f"proof {proof['proof']}", _wanted(proof["headers"])) for proof in explained["proofs"]),
        ]
    )


def _wanted(headers: list[dict[str, Any]]) -> str:
    said = (f"{' or '.join(wanted['names'])} {_THERE[wanted['came']]}" for wanted in headers)
    return ", ".join(said) or "wants no header"


def proofs_wanted(adapter: PushProvider, kept: Rejection) -> Iterator[dict[str, Any]]:
    """Yield each proof of a source, and which of the headers that it wants came with a request that was rejected."""
    for name, wanted in adapter.wanted_headers():
        headers = [{"names": list(names), "came": _came(kept, names)} for names in wanted]
        yield {"proof": name, "headers": headers}


def _came(kept: Rejection, names: tuple[str, ...]) -> bool | None:
    """Tell whether one of these headers came; None where its name would not have been kept."""
    if set(names) & set(kept.headers):
        return True
    complete = 0 < len(kept.headers) < HEADERS and all(map(is_plain, names))
    return False if complete else None
