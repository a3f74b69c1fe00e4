"""Content codings: what was coded comes back, in small pieces; what is broken says so; what is a bomb costs nothing."""

from __future__ import annotations

import gzip
import os
import zlib

import pytest

from receiver.system.codings import PIECE, CodingBroken, Inflater, coding

TEXT = b"receiver " * 1000


def inflate(name: str, *pieces: bytes) -> bytes:
    inflater = Inflater(name)
    found = b"".join(part for piece in pieces for part in inflater.feed(piece))
    inflater.finish()
    return found


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


CODED = {
    "gzip": ("gzip", gzip.compress(TEXT, mtime=0)),
    "two members": ("gzip", gzip.compress(TEXT[:100], mtime=0) + gzip.compress(TEXT[100:], mtime=0)),
    "padded": ("gzip", gzip.compress(TEXT, mtime=0) + bytes(512)),
    "zlib": ("deflate", zlib.compress(TEXT)),
    "zlib, hardly": ("deflate", zlib.compress(TEXT, 1)),
    "raw": ("deflate", raw_deflate(TEXT)),
}


@pytest.mark.parametrize("case", CODED)
def test_what_was_coded_comes_back_however_it_is_cut(case: str) -> None:
    name, coded = CODED[case]
    assert inflate(name, coded) == TEXT
    assert inflate(name, *(coded[i : i + 1] for i in range(len(coded)))) == TEXT


@pytest.mark.parametrize("case", CODED)
def test_a_coding_that_is_cut_is_broken(case: str) -> None:
    name, coded = CODED[case]
    for cut in (1, 5, 30):
        with pytest.raises(CodingBroken):
            inflate(name, coded[:cut])


@pytest.mark.parametrize(
    ("name", "coded"),
    [
        ("gzip", b"plain text"),
        ("gzip", TEXT),
        ("gzip", gzip.compress(TEXT, mtime=0)[:-8] + bytes(8)),  # a wrong sum
        ("gzip", gzip.compress(TEXT, mtime=0) + b"more"),
        ("deflate", zlib.compress(TEXT)[:-4] + b"\1\2\3\4"),
        ("deflate", zlib.compress(TEXT) + b"more"),
        ("deflate", b"\xff\xff\xff"),
    ],
)
def test_bytes_that_are_not_the_coding_are_broken(name: str, coded: bytes) -> None:
    with pytest.raises(CodingBroken):
        inflate(name, coded)


def test_a_bomb_comes_in_small_pieces() -> None:
    bomb = gzip.compress(bytes(20_000_000), mtime=0)
    sizes = [len(piece) for piece in Inflater("gzip").feed(bomb)]
    assert sum(sizes) == 20_000_000
    assert max(sizes) == PIECE


@pytest.mark.parametrize("size", [PIECE - 1, PIECE, PIECE + 1, PIECE + 200, 3 * PIECE + 1])
def test_what_was_flushed_comes_without_waiting_for_more(size: int) -> None:
    packer = zlib.compressobj(wbits=31)
    flushed = packer.compress(bytes(size)) + packer.flush(zlib.Z_SYNC_FLUSH)
    assert sum(map(len, Inflater("gzip").feed(flushed))) == size
    for cut in range(1, len(flushed)):
        inflater = Inflater("gzip")
        assert (
            sum(len(piece) for part in (flushed[:cut], flushed[cut:]) for piece in inflater.feed(part))
            == size
        )


@pytest.mark.parametrize("pieces", [1, 2])
def test_headerless_deflate_ends_with_its_last_full_piece(pieces: int) -> None:
    """No checksum follows that would bring what zlib still holds when all has been taken in."""
    for size in range(pieces * PIECE - 60, pieces * PIECE + 60):
        assert inflate("deflate", raw_deflate(bytes(size))) == bytes(size)


def test_empty_members_without_end_are_broken() -> None:
    """Thousands of them decode to nothing, so that no limit on the size would ever be met."""
    with pytest.raises(CodingBroken):
        inflate("gzip", gzip.compress(b"", mtime=0) * 18)


def test_a_member_for_every_block_is_read() -> None:
    """As bgzip and pigz write them."""
    blocks = [os.urandom(2000) for _ in range(200)]
    assert inflate("gzip", b"".join(map(gzip.compress, blocks))) == b"".join(blocks)


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("", ""),
        ("identity", ""),
        ("gzip", "gzip"),
        (" X-GZIP ", "gzip"),
        ("Deflate", "deflate"),
        ("br", None),
        ("zstd", None),
        ("gzip, gzip", None),
        ("compress", None),
    ],
)
def test_the_header_names_the_coding(header: str, name: str | None) -> None:
    assert coding(header) == name


def test_blocks_that_hold_nothing_are_broken() -> None:
    """They take a processor's time by the megabyte, and no limit on the size would ever be met."""
    nothing = b"\0\0\0\xff\xff" * 13_000
    inflater = Inflater("deflate")
    assert [*inflater.feed(nothing), *inflater.feed(nothing)] == []
    with pytest.raises(CodingBroken):
        list(inflater.feed(nothing))


def test_a_flush_after_each_byte_is_no_reason_to_refuse() -> None:
    packer, body = zlib.compressobj(wbits=31), TEXT * (200_000 // len(TEXT))
    coded = [packer.compress(body[at : at + 1]) + packer.flush(zlib.Z_SYNC_FLUSH) for at in range(len(body))]
    inflater = Inflater("gzip")
    assert b"".join(piece for part in [*coded, packer.flush()] for piece in inflater.feed(part)) == body
    inflater.finish()
