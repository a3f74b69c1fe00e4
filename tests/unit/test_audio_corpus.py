"""Every fact about every file of the corpus is right, marked as an estimate, or unknown; a decoder is the judge."""

from __future__ import annotations

from pathlib import Path

import pytest

from receiver.system.audio.formats import facts
from tests.support import corpus

DECODED = corpus.table()


SUFFIXES = sorted({name.rpartition(".")[2] for name in corpus.names()})


def _named(suffix: str) -> list[str]:
    return [name for name in corpus.names() if name.rpartition(".")[2] == suffix]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_fact_is_wrong(suffix: str, tmp_path: Path) -> None:
    """Whether the body is held in memory or in a file."""
    for name in _named(suffix):
        audio, path = corpus.content(name), tmp_path / name
        path.write_bytes(audio)
        said = facts(audio, corpus.draft(name))
        assert corpus.errors(name, said, DECODED[name]) == [], name
        assert facts(str(path), corpus.draft(name)) == said, name


def test_few_facts_are_unknown_and_few_lengths_are_estimates() -> None:
    said = [
        facts(corpus.content(name), corpus.draft(name)) for name in corpus.names() if DECODED[name]["codec"]
    ]
    assert len(said) > 220
    assert sum(each.codec is None or each.duration_seconds is None for each in said) <= 77
    assert sum(each.duration_estimated for each in said) <= 30


_EXTENSIONS = {
    "opus": "ogg",
    "oga": "ogg",
    "spx": "ogg",
    "mp4": "m4a",
    "mov": "m4a",
    "3gp": "m4a",
    "aifc": "aiff",
}
_NO_MAGIC = {*corpus.RAW, "lame-free-format.mp3"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_type_and_extension_follow_the_bytes_whatever_the_sender_says(suffix: str) -> None:
    for name in {*_named(suffix)} - _NO_MAGIC:
        for media_type in ("", "audio/wav", "audio/mpeg", "video/mp4"):
            assert corpus.draft(name, media_type).extension == _EXTENSIONS.get(suffix, suffix), name


def test_how_a_length_was_had_is_told() -> None:
    assert corpus.told(corpus.content("lame-v9.mp3")).how == "counted: 189 frames"


def test_the_documentation_has_the_corpus() -> None:
    """`python -m tests.support.corpus` writes it."""
    text = corpus.PAGE.read_text("utf-8")
    assert text[text.index("| file |") :] == corpus.page()


@pytest.mark.skipif(bool(corpus.missing_tools()), reason="the encoders are not all here")
def test_what_an_encoder_of_this_machine_makes_is_told_right(tmp_path: Path) -> None:
    """`make soak` has them all; what they made once is in the corpus."""
    name = "opusenc.opus"
    assert corpus.make(tmp_path, {name: corpus.RECIPES[name]}) == []
    path = tmp_path / name
    assert corpus.errors(name, facts(path.read_bytes(), corpus.draft(name)), corpus.decoded(path)) == []


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.skipif(bool(corpus.missing_tools()), reason="the encoders are not all here")
def test_all_that_this_machines_encoders_make_is_told_right(tmp_path: Path) -> None:
    assert corpus.make(tmp_path) == []
    wrong = {
        name: found
        for name in corpus.RECIPES
        if (
            found := corpus.errors(
                name,
                facts((tmp_path / name).read_bytes(), corpus.draft(name)),
                corpus.decoded(tmp_path / name),
            )
        )
    }
    assert wrong == {}


@pytest.mark.parametrize("name", ["flac-blocksize.flac", "ffmpeg.flac", "flac-stereo.flac"])
def test_a_hole_in_a_flac_file_leaves_no_certain_length(name: str) -> None:
    """The last frame says where the sound ended, not how much of it is here."""
    whole = corpus.content(name)
    for begin in range(len(whole) // 4, len(whole) // 2, len(whole) // 16):
        found = corpus.told(whole[:begin] + whole[begin + len(whole) // 4 :])
        assert found.duration_seconds is None or found.duration_estimated


@pytest.mark.parametrize("name", ["flac-blocksize.flac", "ffmpeg.flac", "flac-stereo.flac"])
def test_bytes_missing_within_one_frame_of_flac_leave_no_certain_length(name: str) -> None:
    """Its header and the next one are there; only its checksum tells that the decoder will drop it."""
    whole = corpus.content(name)
    for begin in range(len(whole) // 2, len(whole) - 100, len(whole) // 16):
        found = corpus.told(whole[:begin] + whole[begin + 7 :])
        assert found.duration_seconds is None or found.duration_estimated


def test_an_mp4_whose_edit_is_not_as_long_as_its_samples_has_no_certain_length() -> None:
    """Players differ about what an edit adds or leaves out."""
    whole = bytearray(corpus.content("ffmpeg-alac.m4a"))
    place = whole.index(b"tkhd") + 4 + 20
    whole[place : place + 4] = (2 * int.from_bytes(whole[place : place + 4])).to_bytes(4)
    found = corpus.told(bytes(whole))
    assert found.duration_seconds is None or found.duration_estimated
