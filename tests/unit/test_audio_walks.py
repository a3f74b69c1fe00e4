"""What walking counts in files that no encoder of the corpus writes: fragments, large boxes, many frames, several tracks."""

from __future__ import annotations

import struct

import pytest

from receiver.core.event import AudioFacts
from tests.support.corpus import content, told

# ---------------------------------------------------------------- MP4


def _box(kind: bytes, *parts: bytes) -> bytes:
    inside = b"".join(parts)
    return struct.pack(">I", len(inside) + 8) + kind + inside


def _words(*words: int) -> bytes:
    return struct.pack(f">{len(words)}I", *words)


def _samples(kind: bytes, more: bytes = b"", version: int = 0) -> bytes:
    """Return the description of stereo samples of 16 bits, 8,000 a second."""
    return _box(kind, bytes(8), struct.pack(">H6xHHIHH", version, 2, 16, 0, 8000, 0), more)


def _track(number: int, sort: bytes, *, lasting: int = 0, samples: bytes = _samples(b"sowt")) -> bytes:
    """Return a track of 1,000 units a second."""
    return _box(
        b"trak",
        _box(b"tkhd", _words(0, 0, 0, number, 0, lasting)),
        _box(
            b"mdia",
            _box(b"mdhd", _words(0, 0, 0, 1000, lasting)),
            _box(b"hdlr", bytes(8), sort),
            _box(b"minf", _box(b"stbl", _box(b"stsd", _words(0, 1), samples))),
        ),
    )


def _movie(*tracks: bytes) -> bytes:
    return _box(b"ftyp", b"isom") + _box(b"moov", _box(b"mvhd", _words(0, 0, 0, 1000, 0)), *tracks)


def _fragment(*parts: bytes) -> bytes:
    return _box(b"moof", _box(b"traf", *parts)) + _box(b"mdat", bytes(100))


SOUND, PICTURES = _track(7, b"soun"), _track(3, b"vide")


@pytest.mark.parametrize(
    ("parts", "seconds"),
    [
        ((_box(b"tfhd", _words(8, 7, 20)), _box(b"trun", _words(0, 50))), 1.0),
        ((_box(b"tfhd", _words(0xB, 7, 0, 9, 1, 20)), _box(b"trun", _words(5, 50, 9, 9))), 1.0),
        ((_box(b"tfhd", _words(0, 7)), _box(b"trun", _words(0x100, 2, 400, 600))), 1.0),
        ((_box(b"tfhd", _words(0, 7)), _box(b"trun", _words(0xF05, 2, 9, 9, 400, 9, 9, 9, 600, 9, 9, 9))), 1.0),
        ((_box(b"tfhd", _words(8, 7, 20)), _box(b"trun", _words(0, 30)), _box(b"trun", _words(0, 20))), 1.0),
        ((_box(b"tfhd", _words(8, 3, 20)), _box(b"trun", _words(0, 50))), None),
        ((_box(b"tfhd", _words(0, 7)), _box(b"trun", _words(0, 50))), None),
        ((_box(b"tfhd", _words(0, 7)), _box(b"trun", _words(0x300, 2, 400))), None),
    ],
    ids=["the default", "behind other fields", "each", "each of four fields", "two runs", "another track", "unknown", "cut"],
)  # fmt: skip
def test_a_fragments_samples_last_as_long_as_it_says(parts: tuple[bytes, ...], seconds: float | None) -> None:
    assert told(_movie(PICTURES, SOUND) + _fragment(*parts)).duration_seconds == seconds


def test_fragments_are_added_up_and_those_of_pictures_are_left_out() -> None:
    fragments = _fragment(_box(b"tfhd", _words(8, 7, 20)), _box(b"trun", _words(0, 50)))
    fragments += _fragment(_box(b"tfhd", _words(8, 3, 40)), _box(b"trun", _words(0, 25)))
    found = told(_movie(SOUND, PICTURES) + fragments * 3)
    assert (found.duration_seconds, found.duration_estimated) == (3.0, False)


def test_a_movie_with_samples_before_its_fragments_has_no_length() -> None:
    fragment = _fragment(_box(b"tfhd", _words(8, 7, 20)), _box(b"trun", _words(0, 50)))
    assert told(_movie(_track(7, b"soun", lasting=1000)) + fragment).duration_seconds is None


@pytest.mark.parametrize(
    ("sound", "seconds"),
    [
        (_box(b"mdat", bytes(100)), 1.0),
        (struct.pack(">I4sQ", 1, b"mdat", 116) + bytes(100), 1.0),
        (struct.pack(">I4sQ", 1, b"mdat", 116) + bytes(100) + _box(b"ftyp", b"isom"), None),
        (struct.pack(">I4s", 0, b"mdat") + bytes(100), 1.0),
        (b"", None),
        (struct.pack(">I4s", 200, b"mdat") + bytes(100), None),
        (_box(b"mdat", bytes(100)) + _box(b"ftyp", b"isom"), None),
        (_box(b"mdat", bytes(100)) + bytes(100), None),
    ],
    ids=[
        "whole",
        "of 64 bits",
        "of 64 bits and joined",
        "to the end",
        "not there",
        "cut",
        "joined",
        "damage behind it",
    ],
)
def test_a_stated_length_counts_where_all_samples_are_there(sound: bytes, seconds: float | None) -> None:
    assert told(_movie(PICTURES, _track(7, b"soun", lasting=1000)) + sound).duration_seconds == seconds


def test_times_of_64_bits_are_read_like_those_of_32() -> None:
    track = _box(
        b"trak",
        _box(b"tkhd", struct.pack(">IQQIIQ", 1 << 24, 0, 0, 7, 0, 2000)),
        _box(b"mdia", _box(b"mdhd", struct.pack(">IQQIQ", 1 << 24, 0, 0, 8000, 16_000)), _box(b"hdlr", bytes(8), b"soun"),
             _box(b"minf", _box(b"stbl", _box(b"stsd", _words(0, 1), _samples(b"sowt"))))),
    )  # fmt: skip
    found = told(_movie(track) + _box(b"mdat", bytes(100)))
    assert (found.duration_seconds, found.duration_estimated) == (2.0, False)


def _described(objects: int, config: bytes = b"") -> bytes:
    inside = bytes([objects]) + bytes(12) + (b"\5" + bytes([len(config)]) + config if config else b"")
    return _box(b"esds", bytes(4), b"\3\x40\0\0\0\4\x30", inside)


@pytest.mark.parametrize(
    ("samples", "facts"),
    [
        (_samples(b"mp4a", _described(0x40, b"\x15\x88")), ("aac", 8000, 1)),
        (_samples(b"mp4a", _described(0x40, b"\x2d\x8b\x88\0")), ("aac", 22050, 1)),
        (_samples(b"mp4a", _described(0x40, b"\xed\x8b\x88\0")), ("aac", 22050, 2)),
        (_samples(b"mp4a", _described(0x40)), ("aac", 8000, None)),
        (_samples(b"mp4a", _described(0x6B)), ("mp3", 8000, None)),
        (_samples(b"mp4a", _described(0x20)), (None, 8000, None)),
        (_samples(b"alac", _box(b"alac", bytes(13), b"\1", bytes(10), _words(96_000))), ("alac", 96_000, 1)),
        (_samples(b"samr"), ("amr-nb", 8000, 1)),
        (_samples(b"lpcm", version=2), (None, None, None)),
    ],
    ids=["AAC", "AAC with its band replicated", "and its stereo made", "AAC undescribed", "MP3", "other", "ALAC", "AMR", "version 2"],
)  # fmt: skip
def test_what_a_codec_says_of_itself_counts_before_what_its_container_says(
    samples: bytes, facts: tuple[str | None, int | None, int | None]
) -> None:
    found = told(_movie(_track(7, b"soun", lasting=1000, samples=samples)) + _box(b"mdat", bytes(100)))
    assert (found.codec, found.sample_rate_hz, found.channels) == facts


# ---------------------------------------------------------------- FLAC


def _shifted(rest: int) -> int:
    for _ in range(8):
        rest = rest << 1 ^ (0x18005 if rest & 0x8000 else 0)
    return rest


_SHIFTED = [_shifted(byte << 8) for byte in range(256)]


def _checksum(data: bytes) -> bytes:
    rest = 0
    for byte in data:
        rest = (rest & 0xFF) << 8 ^ _SHIFTED[rest >> 8 ^ byte]
    return rest.to_bytes(2)


def _flac(count: int, size: int = 700, head: bytes = b"\xff\xf8\x39\x00", inside: bytes = b"") -> bytes:
    """Return frames of 1,152 samples, 8,000 a second, without a total in the head; `inside` stands in each."""
    information = struct.pack(">HH6xQ16x", 1152, 1152, 8000 << 44 | 15 << 36)
    frames = []
    for number in range(count):
        sound = bytes((number * 7 + place) % 255 for place in range(size))
        frame = head + chr(number).encode() + b"\0\1" + inside + sound
        frames.append(frame + _checksum(frame))
    return b"fLaC\x80\x00\x00\x22" + information + b"".join(frames)


@pytest.mark.parametrize("count", [3, 150])
def test_flac_frames_are_counted_over_any_number_of_bytes(count: int) -> None:
    """150 of them are more than three times what is read at once."""
    found = told(_flac(count))
    assert found.duration_seconds == pytest.approx(count * 0.144)
    assert not found.duration_estimated


def test_a_flac_frame_may_state_its_samples_behind_its_number() -> None:
    assert told(_flac(3, head=b"\xff\xf8\x69\x00")).duration_seconds == pytest.approx(3 / 8000)
    assert told(_flac(3, head=b"\xff\xf8\x79\x00")).duration_seconds == pytest.approx(3 * 2 / 8000)


@pytest.mark.parametrize("inside", [b"\xff\xf8\x3a\x00\5", b"\xff\xf8\x39\x02\5", b"\xff\xf8\x39\x00\6"])
def test_what_looks_like_a_flac_frame_within_one_is_not_counted(inside: bytes) -> None:
    """It has the next number, but another rate or other samples; or it is of the stream, but has another number."""
    assert told(_flac(5, inside=inside)).duration_seconds == pytest.approx(5 * 0.144)


def test_what_cannot_be_told_from_a_flac_frame_leaves_no_wrong_length() -> None:
    """It is of the stream and has the next number; in the last frame, the bytes behind it are not whole."""
    assert told(_flac(9, inside=b"\xff\xf8\x39\x00\5")).duration_seconds == pytest.approx(9 * 0.144)
    assert told(_flac(9, inside=b"\xff\xf8\x39\x00\x09")).duration_seconds is None


@pytest.mark.parametrize("place", [60, 40_000, -1])
def test_a_flipped_bit_leaves_a_flac_without_length(place: int) -> None:
    damaged = bytearray(_flac(80))
    damaged[place] ^= 4
    assert told(bytes(damaged)).duration_seconds is None


def test_flac_frames_that_are_not_those_stated_leave_no_certain_length() -> None:
    whole = bytearray(_flac(10))
    whole[22:26] = (11_700).to_bytes(4)
    found = told(bytes(whole))
    assert found.duration_estimated
    whole[22:26] = (11_520).to_bytes(4)
    assert not told(bytes(whole)).duration_estimated


# ---------------------------------------------------------------- MPEG audio


@pytest.mark.parametrize("behind", [9000, 20_000])
def test_many_bytes_that_are_no_frames_leave_no_certain_length(behind: int) -> None:
    found = told(content("lame-320.mp3") + bytes(behind))
    assert found.duration_seconds is None or found.duration_estimated


def test_more_junk_than_frames_has_no_facts() -> None:
    assert told(content("lame-cbr.mp3") + bytes(20_000)) == AudioFacts(codec="mp3")


def test_an_xing_frame_that_tells_of_more_frames_makes_the_length_of_a_short_file_an_estimate() -> None:
    whole = content("lame-cbr-stereo.mp3")
    assert not told(whole).duration_estimated
    assert told(whole[:-432]).duration_estimated


def test_frames_are_counted_over_any_number_of_bytes() -> None:
    """300 KB of them are more than what is read at once; a header may stand across its end."""
    piece = content("lame-no-xing.mp3")
    seconds = told(piece).duration_seconds or 0
    assert told(piece * 60).duration_seconds == pytest.approx(60 * seconds)


# ---------------------------------------------------------------- Matroska


def _element(number: str, *parts: bytes) -> bytes:
    inside = b"".join(parts)
    return bytes.fromhex(number) + struct.pack(">I", 0x1000_0000 | len(inside)) + inside


def _webm(*blocks: bytes, discarded: bytes = b"") -> bytes:
    pictures = _element("ae", _element("d7", b"\1"), _element("83", b"\1"), _element("86", b"V_VP8"))
    hertz = _element(
        "e1",
        _element("b5", struct.pack(">f", 22050)),
        _element("78b5", struct.pack(">d", 44100)),
        _element("9f", b"\2"),
    )
    sound = _element(
        "ae", _element("d7", b"\2"), _element("83", b"\2"), _element("86", b"A_AAC/MPEG2/SBR"), hertz
    )
    cluster = _element("1f43b675", _element("e7", b"\0"), *blocks, discarded)
    return _element("1a45dfa3", _element("4282", b"webm")) + _element("18538067", _element("1654ae6b", pictures, sound), cluster)  # fmt: skip


def _block(track: int, at: int) -> bytes:
    return _element("a3", bytes([0x80 | track]), struct.pack(">hB", at, 0), bytes(20))


def test_blocks_of_pictures_do_not_count_and_the_rate_is_the_one_that_is_played() -> None:
    blocks = [_block(2, at) for at in range(0, 4000, 20)]
    found = told(_webm(*blocks, _block(1, 9000)))
    assert (found.codec, found.sample_rate_hz, found.channels) == ("aac", 44100, 2)
    assert found.duration_seconds == pytest.approx(4.0)
    assert not found.duration_estimated


def test_what_a_group_discards_is_not_played() -> None:
    blocks = [_block(2, at) for at in range(0, 3980, 20)]
    last = _element(
        "a0",
        _element("a1", b"\x82", struct.pack(">hB", 3980, 0), bytes(20)),
        _element("75a2", (10**9).to_bytes(8)),
    )
    assert told(_webm(*blocks, last)).duration_seconds == pytest.approx(3.0)


def test_an_unknown_element_among_the_blocks_leaves_no_length() -> None:
    blocks = [_block(2, at) for at in range(0, 4000, 20)]
    assert told(_webm(*blocks[:50], _element("c1", b"?"), *blocks[50:])).duration_seconds is None


# ---------------------------------------------------------------- Ogg


def _pages(whole: bytes) -> list[bytes]:
    return [b"OggS" + page for page in whole.split(b"OggS")[1:]]


def test_an_ogg_page_that_is_missing_or_overwritten_leaves_no_length() -> None:
    pages = _pages(content("opusenc-vary.opus"))
    assert told(b"".join(pages)).duration_seconds == pytest.approx(4.872, abs=0.01)
    for number in range(2, len(pages) - 1):
        assert told(b"".join(pages[:number] + pages[number + 1 :])).duration_seconds is None
        overwritten = [*pages[:number], b"Oggs" + pages[number][4:], *pages[number + 1 :]]
        assert told(b"".join(overwritten)).duration_seconds is None


def test_vorbis_that_begins_late_has_no_length() -> None:
    """Of a page without all packets of the sound before it nobody knows where its first packet begins."""
    head, *rest = _pages(content("oggenc-vary.ogg"))
    late = [
        page[:6] + struct.pack("<q", 9_000_000) + page[14:] if page[6:14] != bytes(8) else page
        for page in rest
    ]
    assert told(head + b"".join(late)).duration_seconds is None
