"""What an entry of the journal is on disk: found, read, proved to be what was kept, set aside when it is not."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from receiver.core.callback import Head, TokenClaims, VerifiedCallback
from receiver.core.errors import JournalUnavailable
from receiver.system.bodies import FileBody, why

UNREADABLE = "unreadable: "
"""How the reason of an entry begins whose commit could not be read."""
_ADVICE = "; make it writable, or name another with data or journal.path"


@dataclass(slots=True)
class Entry:
    """One kept callback, as the folder shows it."""

    stem: str
    received_at: int
    size: int
    source: str
    reason: str
    failures: int = 0
    refusals: int = 0
    """How often store or blobs were out for it: those that were refused less often go first."""
    alone: int = 0
    """How often while another was taken: no outage, which the first time may have been the beginning of one."""
    not_before: float = 0.0
    """By the process's own clock, which nobody sets."""
    told: str = ""
    """What was last said of its refusal."""


def names(folder: Path) -> set[str]:
    """Return the names in a journal's folder. Raises `OSError`, also for a folder that may not be read."""
    return set(os.listdir(folder))


def found(commit: Path) -> Entry:
    """Return the entry whose commit this is; one that cannot be read now is an entry as well. Raises `FileNotFoundError`."""
    try:
        return entry_of(commit.stem, commit.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        return Entry(commit.stem, _changed_at(commit), 0, "", UNREADABLE + why(error))


def _changed_at(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.lstat().st_mtime_ns // 1_000_000
    return 0


def entry_of(stem: str, meta: bytes) -> Entry:
    """Return the entry that a commit tells of."""
    fields = _fields(meta)
    if fields is None:
        return Entry(stem, 0, len(meta), "", "damaged")
    head = fields["head"]
    return Entry(stem, head["received_at"], fields["size"], head["source"], fields["reason"])


def restored(folder: Path, stem: str) -> VerifiedCallback | None:
    """Return a kept callback, None when its bytes are not those that were kept: it lies in `damaged/` then.

    Raises `FileNotFoundError` when it is gone, `OSError` when it cannot be read, or not set aside.
    """
    body_path, commit = folder / f"{stem}.body", folder / f"{stem}.json"
    fields = _fields(commit.read_bytes())
    try:
        body = FileBody.read(str(body_path))
    except FileNotFoundError:
        commit.stat()  # gone as well: another process of this machine drained it just now
        body = None
    callback = _callback(fields, body) if fields and body else None
    if callback is None:
        aside = folder / "damaged"
        aside.mkdir(mode=0o700, exist_ok=True)
        for path in (body_path, commit):
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, aside / path.name)
    return callback


def _fields(meta: bytes) -> dict[str, Any] | None:
    try:
        fields = msgspec.json.decode(meta)
    except msgspec.MsgspecError:
        return None
    if not isinstance(fields, dict) or not isinstance(fields.get("head"), dict):
        return None
    head = fields["head"]
    shown = (head.get("received_at"), fields.get("size"), head.get("source"), fields.get("reason"))
    whole = {"sha256", "claims", "proofs"} <= fields.keys()
    return fields if whole and [type(one) for one in shown] == [int, int, str, str] else None


def _callback(fields: dict[str, Any], body: FileBody) -> VerifiedCallback | None:
    """Return the callback that was kept, None when the bytes are not those that were."""
    if body.sha256 != fields["sha256"]:
        return None
    try:
        return VerifiedCallback(
            head=msgspec.convert(fields["head"], Head),
            claims=msgspec.convert(fields["claims"], TokenClaims | None),
            proofs=msgspec.convert(fields["proofs"], frozenset[str]),
            body=body,
        )
    except msgspec.ValidationError:
        return None


def unavailable(error: BaseException, folder: Path | str = "", *, entry: str = "") -> JournalUnavailable:
    """Return what callers are told; with `folder`, a person at the machine, whom its path concerns; `entry`: of this one alone."""
    place, advice = (f" at {folder}", _ADVICE) if folder else ("", "")
    what = f"the journal's entry {entry}" if entry else f"the journal{place}"
    return JournalUnavailable(f"{what} cannot be used: {why(error)}{advice}")
