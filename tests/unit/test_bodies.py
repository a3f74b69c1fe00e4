"""Bodies on their way in: counted, hashed, capped, in flat memory, and gone from disk afterwards."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterable, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receiver.core.callback import MemoryBody
from receiver.core.errors import BodyCutOff, BodyTooLarge, BodyTooSlow, JournalUnavailable
from receiver.system.body_buffer import HELD_LIMIT, MEMORY_LIMIT, SHARED_BYTES, BodyBuffer, FileBody, Receive
from tests.support.examples import examples


def _receive(pieces: Iterable[bytes], *, then: str = "http.request") -> Receive:
    messages: list[MutableMapping[str, Any]] = [
        {"type": "http.request", "body": piece, "more_body": True} for piece in pieces
    ]
    messages.append({"type": then, "body": b"", "more_body": False})
    waiting = iter(messages)

    async def receive() -> MutableMapping[str, Any]:
        return next(waiting)

    return receive


@pytest.fixture
def bodies(tmp_path: Path) -> BodyBuffer:
    made = BodyBuffer(str(tmp_path / "spool"))
    made.open()
    return made


@settings(max_examples=examples(30), deadline=None)
@given(st.lists(st.binary(max_size=40_000), max_size=6))
def test_any_chunking_gives_the_same_body(pieces: list[bytes]) -> None:
    """Size, hash, prefix and bytes depend on the content, not on how it was cut."""

    async def take(folder: str) -> None:
        whole = b"".join(pieces)
        bodies = BodyBuffer(folder)
        bodies.open()
        body = await bodies.read(_receive(pieces), limit=10**7, total=5, idle=5, piece=MEMORY_LIMIT)
        assert body.size == len(whole)
        assert body.sha256 == hashlib.sha256(whole).hexdigest()
        assert body.prefix == whole[:4096]
        assert body.load() == whole
        assert isinstance(body, MemoryBody if len(whole) <= MEMORY_LIMIT else FileBody)
        body.discard()
        assert os.listdir(folder) == []

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(take(folder))


@pytest.mark.parametrize("size", [11, MEMORY_LIMIT * 3, HELD_LIMIT * 2])
async def test_a_byte_over_the_limit_is_refused_and_nothing_is_left(
    bodies: BodyBuffer, size: int, tmp_path: Path
) -> None:
    with pytest.raises(BodyTooLarge):
        await bodies.read(_receive([b"x" * size]), limit=size - 1, total=5, idle=5)
    assert os.listdir(tmp_path / "spool") == []


async def test_bodies_of_some_size_are_held_in_memory_while_there_is_room(
    bodies: BodyBuffer, tmp_path: Path
) -> None:
    """The bytes that all of them hold are bounded; there is room again when a body is discarded, or was refused."""

    async def take(*pieces: bytes, limit: int = 10**7) -> MemoryBody | FileBody:
        return await bodies.read(_receive(pieces), limit=limit, total=5, idle=5)

    whole = b"x" * HELD_LIMIT
    held = [await take(whole[:70_000], whole[70_000:]) for _ in range(SHARED_BYTES // HELD_LIMIT)]
    assert all(isinstance(body, MemoryBody) for body in held)
    late = await take(whole)
    assert isinstance(late, FileBody)
    assert late.load() == whole
    assert isinstance(await take(b"x" * MEMORY_LIMIT), MemoryBody), "a short one needs no room"
    for _ in range(2):
        held[0].discard()
    with pytest.raises(BodyTooLarge):
        await take(whole[:70_000], whole, limit=HELD_LIMIT)
    longer = await take(whole, b"x")
    assert isinstance(longer, FileBody)
    assert longer.load() == whole + b"x"
    shorter = [await take(b"x" * 100_000) for _ in range(HELD_LIMIT // 100_000)]
    assert all(isinstance(body, MemoryBody) for body in shorter), (
        "what they hold counts, not how many they are"
    )
    assert isinstance(await take(whole), FileBody)


class _Counted(bytes):
    """A piece that counts how often its length is asked for."""

    asked = 0

    def __len__(self) -> int:
        _Counted.asked += 1
        return super().__len__()


async def test_a_piece_costs_the_same_however_many_came_before(bodies: BodyBuffer) -> None:
    """Else a stranger's body, sent byte by byte, would take all of the process."""
    pieces = [b"x" * MEMORY_LIMIT, *(_Counted(b"x") for _ in range(1000))]
    body = await bodies.read(_receive(pieces), limit=10**7, total=5, idle=5, piece=MEMORY_LIMIT)
    assert body.size == MEMORY_LIMIT + 1000
    assert _Counted.asked < 10_000


async def test_exactly_the_limit_is_taken(bodies: BodyBuffer) -> None:
    body = await bodies.read(_receive([b"x" * 10]), limit=10, total=5, idle=5)
    assert body.size == 10


async def test_a_broken_connection_is_cut_off(bodies: BodyBuffer, tmp_path: Path) -> None:
    with pytest.raises(BodyCutOff):
        await bodies.read(_receive([b"x" * 200_000], then="http.disconnect"), limit=10**6, total=5, idle=5)
    assert os.listdir(tmp_path / "spool") == []


@pytest.mark.parametrize(("total", "idle"), [(60, 0.01), (0.01, 60)])
async def test_a_body_that_never_ends_is_too_slow(bodies: BodyBuffer, total: float, idle: float) -> None:
    first = True

    async def receive() -> MutableMapping[str, Any]:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": b"x", "more_body": True}
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(BodyTooSlow):
        await bodies.read(receive, limit=100, total=total, idle=idle)


async def test_a_spool_that_cannot_be_written_is_said(bodies: BodyBuffer, tmp_path: Path) -> None:
    os.rmdir(tmp_path / "spool")
    with pytest.raises(JournalUnavailable, match="folder for temporary files"):
        await bodies.read(_receive([b"x" * 2 * HELD_LIMIT]), limit=10**7, total=5, idle=5)


def test_what_a_dead_process_left_is_swept_and_a_live_ones_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    (folder / f"{2**22 + 5}-1-abcd").write_bytes(b"dead")
    (folder / "1-1-abcd").write_bytes(b"alive")
    BodyBuffer(str(folder)).open()
    assert os.listdir(folder) == ["1-1-abcd"]


@pytest.mark.parametrize("place", [0, 5, 2**20 - 3, 2**20, 2**21 - 1, 2**21 + 70_000])
async def test_rewriting_finds_a_secret_wherever_the_pieces_are_cut(bodies: BodyBuffer, place: int) -> None:
    data = b"a" * place + b"S3CRET" + b"b" * (2**21 + 100_000 - place)
    new = await bodies.rewrite(
        MemoryBody(data), lambda piece: piece.replace(b"S3CRET", b"[x]"), overlap=65536
    )
    assert new.load() == data.replace(b"S3CRET", b"[x]")
    assert new.sha256 == hashlib.sha256(new.load()).hexdigest()
