"""Keys of objects in the blob store, made by the template `blobs.key`.

engine/recorder.py makes the `{name}` in them.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache, partial

from receiver.core.errors import ConfigError

DEFAULT = "{source}/{year}/{month}/{day}/{name}"
KEY_BYTES = 1024
"""The longest key that S3 accepts."""
_HOUR = 3_600_000
_NAME = r"[0-9a-f]{32}\.[A-Za-z0-9]{1,16}"
_OURS = re.compile(rf"(?:.*/)?{_NAME}", re.DOTALL)
_LONGEST = {"source": 63, "year": 4, "month": 2, "day": 2, "hour": 2, "name": 49}
_FORMS = {
    "source": r"[a-z0-9][a-z0-9-]{0,62}",
    "year": r"[0-9]{4}",
    "month": r"[0-9]{2}",
    "day": r"[0-9]{2}",
    "hour": r"[0-9]{2}",
    "name": _NAME,
}
"""The pattern of each field in a key; a source's name as the settings allow it."""


class KeyTemplate:
    """Makes keys by a template of plain text and `{source}`, `{year}`, `{month}`, `{day}`, `{hour}`, `{name}`.

    `{name}` must end it: the name is derived from a callback's identity and content, with its extension, and alone makes
    keys differ. Dates are those of the callback's arrival, in UTC, so that its retry has the same key.
    """

    def __init__(self, template: str = DEFAULT) -> None:
        """Raises `ConfigError` for a template that could not make keys."""
        try:
            pieces = list(string.Formatter().parse(template))
        except ValueError:
            raise _refused("a brace is open or does not belong there") from None
        fields = [piece[1:] for piece in pieces if piece[1] is not None]
        for name, form, conversion in fields:
            if name not in _FORMS or form or conversion:
                raise _refused(
                    f"it has {', '.join(f'{{{known}}}' for known in sorted(_FORMS))} and no others"
                )
        if not template.endswith("{name}") or [name for name, _, _ in fields].count("name") != 1:
            raise _refused("it ends with {name}, and has it once")
        if any(part in ("", ".", "..") for part in template.split("/")) or not template.isprintable():
            raise _refused("it has plain parts between its slashes")
        self._folder = lru_cache(64)(partial(_folder, template.removesuffix("{name}")))
        self._form = re.compile(
            "".join(re.escape(text) + _FORMS.get(name or "", "") for text, name, *_ in pieces)
        )
        self.longest = sum(len(text.encode()) + _LONGEST.get(name or "", 0) for text, name, *_ in pieces)
        """Bytes of the longest key that it makes."""
        if self.longest > KEY_BYTES:
            raise _refused(f"its keys may have {self.longest} bytes, and {KEY_BYTES} are taken")

    def key(self, *, source: str, received_at: int, name: str) -> str:
        """Return the key of the object `name` (with its extension), which came at `received_at` (epoch ms)."""
        return self._folder(source, received_at // _HOUR) + name

    def is_ours(self, key: str) -> bool:
        """Tell whether the whole key matches this template. An object with another key is not ours, and never removed."""
        return self._form.fullmatch(key) is not None


def _folder(template: str, source: str, hour: int) -> str:
    """Return the part of a key before the name, for a source and an hour (hours since the epoch)."""
    at = datetime.fromtimestamp(hour * 3600, UTC)
    return template.format(source=source, year=f"{at:%Y}", month=f"{at:%m}", day=f"{at:%d}", hour=f"{at:%H}")


def has_our_name(key: str) -> bool:
    """Tell whether the last part of a key has the form of receiver's names. The parts before it are not checked."""
    return _OURS.fullmatch(key) is not None


_OUTLINE = "peaks"


def outline_of(key: str) -> str:
    """Return the key of an audio's waveform, which is stored beside the audio and removed with it."""
    return key + _OUTLINE


def owner_of(key: str) -> str:
    """Return the key of the audio that a waveform belongs to; any other key unchanged."""
    return key.removesuffix(_OUTLINE)


def with_outlines(keys: Iterable[str]) -> list[str]:
    """Return the keys, each with its waveform's key, whether or not a waveform exists: the list to delete."""
    return [one for key in keys for one in (key, outline_of(key))]


def _refused(reason: str) -> ConfigError:
    return ConfigError(f"blobs.key: {reason}; for example {DEFAULT}")
