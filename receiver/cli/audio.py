"""`audio`: what a file, or the audio of an event, is, and how each fact was had."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from receiver.cli.opening import load, opened_blobs, opened_store, read_file
from receiver.cli.options import AsJson, job_format, option
from receiver.cli.output import print_fields, print_json
from receiver.core.callback import MemoryBody, split_media_type
from receiver.core.errors import NotFound

if TYPE_CHECKING:
    from receiver.settings.model import Settings


def audio(
    ctx: typer.Context,
    file_or_event: Annotated[str, typer.Argument(help="A file, or the id of an event with audio.")],
    content_type: Annotated[
        str | None, option("--content-type", help="What the sender said of a file: audio/l16;rate=24000.")
    ] = None,
    format_: Annotated[
        str | None, option("--format", help="What the job asked for: encoding=linear16,sample_rate=24000.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print what audio is, and how each fact was had."""
    said: dict[str, Any] = {}
    if file_or_event.startswith("evt_") and not Path(file_or_event).exists():
        data, said = asyncio.run(_of_event(load(ctx), file_or_event))
        content_type = content_type or said["content_type"]
    else:
        data = read_file(file_or_event, "; give a file, or the id of an event")
    found = _examined(data, content_type or "", job_format(format_))
    if said:
        found |= {"event_says": {name: said[name] for name in found if name in said}}
    if as_json:
        print_json(found)
        return
    hows = found.pop("how")
    rows = [(name, f"{value}  ({hows[name]})" if name in hows else value) for name, value in found.items()]
    print_fields((name, "unknown" if value is None else value) for name, value in rows)


async def _of_event(settings: Settings, event_id: str) -> tuple[bytes, dict[str, Any]]:
    import msgspec

    async with opened_store(settings) as store:
        event = await store.event(event_id)
    said: dict[str, Any] | None = msgspec.json.decode(event.data).get("audio")
    if said is None or event.blob_key is None:
        raise NotFound(f"{event_id} has no audio, or it was removed")
    async with opened_blobs(settings) as blobs:
        return await blobs.get(event.blob_key), said


def _examined(data: bytes, content_type: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Return the facts by the names that events have, and under `how` where each came from."""
    from receiver.providers.toolkit import asked_encoding, audio_draft, magic
    from receiver.system.audio.formats import MEDIA_TYPES, beginning
    from receiver.system.audio.formats import facts as audio_facts

    media_type, parameters = split_media_type(content_type)
    start = beginning(MemoryBody(data))
    draft = audio_draft(media_type, parameters, start, asked)
    facts = audio_facts(data, draft)
    by = "by nothing: no format shows"
    if magic(media_type, start, asked):
        by = "by the first bytes"
    elif media_type in MEDIA_TYPES:
        by = "by the content type"
    elif asked_encoding(asked):
        by = "by the job's request"
    inside = by if draft.bytes_per_frame else "by the bytes"
    hows = {
        "content_type": by,
        "extension": by,
        "codec": inside,
        "sample_rate_hz": inside,
        "channels": inside,
    }
    found: dict[str, Any] = {
        "content_type": draft.content_type,
        "extension": draft.extension,
        "codec": facts.codec,
        "sample_rate_hz": facts.sample_rate_hz,
        "channels": facts.channels,
        "duration_seconds": facts.duration_seconds,
        "duration_estimated": facts.duration_estimated,
        "bytes": len(data),
    }
    hows["duration_seconds"] = facts.how or "nothing tells it"
    return found | {"how": {name: how for name, how in hows.items() if found[name] is not None}}
