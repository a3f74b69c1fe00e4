"""The words of a transcript with their times, whichever provider heard them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

_PAUSE_SECONDS = 1.5


class Word(Struct, frozen=True):
    """One word; times in seconds from the beginning of the audio."""

    text: str
    start: float
    end: float
    confidence: float | None = None
    speaker: str | None = None


class Turn(Struct, frozen=True):
    """What one speaker says without a pause."""

    speaker: str | None
    start: float
    end: float
    words: tuple[Word, ...]


def turns_of(words: Iterable[Word]) -> list[Turn]:
    """Return words as turns: another begins where the speaker changes, or after a pause."""
    turns: list[list[Word]] = []
    for word in sorted(words, key=lambda word: word.start):
        last = turns[-1][-1] if turns else None
        if last is None or last.speaker != word.speaker or word.start - last.end > _PAUSE_SECONDS:
            turns.append([])
        turns[-1].append(word)
    return [_turn(words) for words in turns]


def _turn(words: Sequence[Word]) -> Turn:
    return Turn(words[0].speaker, words[0].start, words[-1].end, tuple(words))
