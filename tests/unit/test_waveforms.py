"""Outlines of audio: what they hold, and that a decoder that cannot, or does not end, costs one attempt and says why."""

from __future__ import annotations

import array
import base64
import sys
from pathlib import Path

import pytest

from receiver.core.callback import MemoryBody
from receiver.core.errors import NotFound
from receiver.engine import waveforms
from receiver.engine.waveforms import Waveforms
from receiver.storage.blobs.keys import KeyTemplate, outline_of
from receiver.storage.blobs.local import LocalBlobs
from receiver.system.audio.peaks import NEEDS_AV, outline, view

CORPUS = Path(__file__).parents[1] / "corpus"
KEY = f"deepgram/2026/11/30/{'0a' * 16}.mp3"


async def _stored(folder: Path, content: bytes) -> LocalBlobs:
    blobs = LocalBlobs(str(folder), KeyTemplate())
    await blobs.open()
    await blobs.put(KEY, MemoryBody(content), content_type="audio/mpeg")
    return blobs


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_each_channel_has_the_lowest_and_highest_sample_of_each_part(block: int) -> None:
    left = [k % 256 * 256 - 32768 for k in range(4000)]
    whole = array.array("h", [value for sample in left for value in (sample, 0)])
    blocks = [whole[at : at + 2 * block] for at in range(0, len(whole), 2 * block)]
    one, two = (array.array("b", base64.b64decode(text)) for text in outline(blocks, 8000, 2).peaks)
    assert len(one) == len(two) == 2000
    assert set(two) == {0}
    for bucket in range(1000):
        part = [value >> 8 for value in left[4 * bucket : 4 * bucket + 4]]
        assert (one[2 * bucket], one[2 * bucket + 1]) == (min(0, *part), max(0, *part))


@pytest.mark.parametrize(
    "name", ["ffmpeg-8khz.aac", "ffmpeg-faststart.m4a", "ffmpeg-opus.webm", "ffmpeg-opus.ogg"]
)
def test_what_miniaudio_does_not_know_is_drawn_with_the_extra_and_without_it_the_reason_names_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = view(str(CORPUS / name))
    assert drawn.error is None
    assert (drawn.buckets, any(base64.b64decode(drawn.peaks[0]))) == (1000, True)
    monkeypatch.setitem(sys.modules, "av", None)
    assert view(str(CORPUS / name)).error == NEEDS_AV


def test_a_playlist_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "list.m3u8"
    song = CORPUS / "ffmpeg-8khz.aac"
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{song}\n#EXT-X-ENDLIST\n")
    assert view(str(path)).error == "the decoder does not know this format"


async def test_what_cannot_be_decoded_is_remembered_as_that(tmp_path: Path) -> None:
    blobs = await _stored(tmp_path, b"no audio at all")
    made = await Waveforms(blobs, answer_seconds=60.0).of(KEY, size=15)
    assert made is not None
    assert made.error == "the decoder does not know this format"
    assert await Waveforms(blobs, answer_seconds=60.0).of(KEY, size=15) == made
    with pytest.raises(NotFound):
        await Waveforms(blobs, answer_seconds=60.0).of(KEY.replace("0a", "0b"), size=15)


async def test_a_decoder_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = await _stored(tmp_path, b"no audio at all")
    monkeypatch.setattr(waveforms, "_SECONDS", 0.0)
    made = await Waveforms(blobs, answer_seconds=60.0).of(KEY, size=15)
    assert made is not None
    assert made.error == "it took longer than 0 s"
    assert blobs.is_ours(outline_of(KEY))


async def test_one_that_takes_long_goes_on_while_nobody_waits_and_is_there_for_who_asks_again(
    tmp_path: Path,
) -> None:
    blobs = await _stored(tmp_path, b"no audio at all")
    drawn = Waveforms(blobs, answer_seconds=0.0)
    assert await drawn.of(KEY, size=15) is None
    assert await drawn.of(KEY, size=15) is None
    (task,) = drawn._made.values()
    made = await task
    assert await drawn.of(KEY, size=15) == made
