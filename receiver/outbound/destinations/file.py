"""A destination that is a file on this machine: one event on each line, as JSON. An event's id is its `data.event_id`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from pydantic import field_validator

from receiver.core.errors import ConfigError, Finding
from receiver.core.work import Outcome, OutcomeKind
from receiver.outbound.destinations import Destination
from receiver.settings.load import own_settings
from receiver.settings.model import DestinationSettings, Section
from receiver.system.files import sync_folder


class FileSettings(Section):
    """[destinations.NAME] of kind `file`."""

    url: str
    """`file:///absolute/path`; the file is made, its folder has to be there."""

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        if not value.startswith("file:///"):
            raise ValueError("write file:/// and an absolute path")
        return value


class FileDestination(Destination):
    """Appends to one file. A file that was moved away (as by logrotate) is made anew."""

    kind = "file"
    Settings = FileSettings

    def __init__(self, settings: DestinationSettings) -> None:
        """Raises `ConfigError` when the URL is none."""
        super().__init__(settings)
        self._path = _path(own_settings(FileSettings, settings))
        self._one = asyncio.Lock()

    @classmethod
    def findings(cls, where: str, options: FileSettings) -> Iterator[Finding]:
        """Yield what is wrong: a folder that is not there, or may not be written."""
        folder = _path(options).parent
        if not os.access(folder, os.W_OK | os.X_OK):
            message = f"the folder {folder} is not there, or may not be written"
            yield Finding("E009", f"{where}.url", message, "make it, and give it to receiver's user")

    async def open(self) -> None:
        """Raise `ConfigError` when the path is a folder."""
        if self._path.is_dir():
            raise ConfigError(f"destinations.{self.name}.url: {self._path} is a folder; name a file")

    async def send(self, event_id: str, body: bytes, *, timestamp: int) -> Outcome:
        """Append the event as one line, on disk before it counts as delivered."""
        try:
            async with self._one:
                await asyncio.to_thread(append, self._path, body + b"\n")
        except OSError as error:
            detail = f"the file cannot be written: {(error.strerror or type(error).__name__).lower()}"
            return Outcome(kind=OutcomeKind.UNREACHABLE, detail=detail)
        return Outcome(kind=OutcomeKind.DELIVERED)


def append(path: Path, line: bytes) -> None:
    """Append a line and sync it; the rest of a line that a crash cut off stays a line of its own. Raises `OSError`."""
    made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        size = os.fstat(made).st_size
        whole = size == 0 or os.pread(made, 1, size - 1) == b"\n"
        left = line if whole else b"\n" + line
        while left:
            left = left[os.write(made, left) :]
        os.fsync(made)
    finally:
        os.close(made)
    if size == 0:  # it may be new: its name has to be on disk as well
        sync_folder(path.parent)


def _path(options: FileSettings) -> Path:
    return Path(unquote(options.url.removeprefix("file://")))
