"""Words found in transcripts: a bounded look through them, newest first. Nothing is indexed, so that no callback pays for it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from receiver.core.errors import NotFound
from receiver.core.event import Event, EventSearch, Place, PlacedEvent
from receiver.core.page import pages
from receiver.engine.renormalizer import kept_body
from receiver.web.console.visit import Visit

_PAGE = 200
_MOST = 20_000
"""Transcripts that one look goes through."""
_SECONDS = 1.0
_AROUND = 60
"""Characters of a text that are shown before and after what was found."""


class Look(Struct):
    """What a look found, and how far it came."""

    found: dict[str, tuple[Event, str]]
    """The events, each with the words around."""
    looked: int = 0
    back_to: int | None = None
    """When the last event that it looked at was recorded."""
    after: Place | None = None
    """Where the next look begins; None when there is nothing older."""


async def look(visit: Visit, wanted: EventSearch, words: str) -> Look:
    """Return events whose transcript has the words, in any case, until a page is full or the time is over."""
    needle, end = words.casefold(), time.monotonic() + _SECONDS
    result = Look({})
    types = wanted.types or ("transcript.completed",)
    async for page in pages(visit.store.search, replace(wanted, types=types, limit=_PAGE)):
        texts = await asyncio.to_thread(_texts, page)
        for (place, event), short in zip(page, texts, strict=True):
            text = await _document(visit, event) if short is None else short
            result.looked, result.back_to, result.after = result.looked + 1, event.recorded_at, place
            if (at := text.casefold().find(needle)) >= 0:
                result.found[event.id] = (event, _excerpt(text, at, len(words)))
            if len(result.found) == wanted.limit or time.monotonic() > end:
                return result
        result.after = None if page.after is None else Place(*page.after)
        if result.looked >= _MOST or time.monotonic() > end:
            break
    return result


def _texts(page: Sequence[PlacedEvent]) -> list[str | None]:
    """Return the text of each transcript; None where it is in the document, being long."""
    transcripts = [json.loads(one.event.data)["transcript"] for one in page]
    return ["" if transcript is None else transcript["text"] for transcript in transcripts]


async def _document(visit: Visit, event: Event) -> str:
    """Return the document of a long transcript as text, empty where it is not kept any more."""
    try:
        body = await kept_body(visit.store, visit.receiver.blobs, event)
        document = await asyncio.to_thread(msgspec.json.decode, body)
        return await asyncio.to_thread(json.dumps, document, ensure_ascii=False)
    except NotFound:
        return ""
    except (msgspec.DecodeError, RecursionError):
        return body.decode("utf-8", "replace")


def _excerpt(text: str, at: int, length: int) -> str:
    start, end = max(0, at - _AROUND), at + length + _AROUND
    return f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"
