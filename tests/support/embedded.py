"""Embedded databases that have been migrated before: migrating takes longer than most of what tests do with one."""

from __future__ import annotations

import asyncio
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from receiver.storage.store.sqlite import SqliteStore
from receiver.system.files import make_folder


@cache
def _template() -> bytes:
    """Return the file of a migrated database without rows."""

    async def migrate(path: str) -> None:
        store = SqliteStore(path)
        await store.migrate()
        await store.close()

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as thread:
        path = Path(folder, "template.db")
        # In a thread, because the first to ask may be in an event loop.
        thread.submit(lambda: asyncio.run(migrate(str(path)))).result()
        return path.read_bytes()


def migrated(path: str | Path) -> str:
    """Put a migrated database without rows at `path`, unless one is there; return `path`."""
    if not os.path.exists(path):
        make_folder(Path(path).parent)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(_template())
    return str(path)
