"""Where an object lies (floor 3): the key template."""

from __future__ import annotations

import re
import string
from datetime import UTC, datetime

from receiver.errors import ConfigError

DEFAULT = "{source}/{year}/{month}/{day}/{name}"
_OURS = re.compile(r"[0-9a-f]{32}\.[A-Za-z0-9]{1,16}\Z")
_FIELDS = frozenset({"source", "year", "month", "day", "hour", "name"})


class KeyTemplate:
    """Makes keys by a template of plain text and `{source}`, `{year}`, `{month}`, `{day}`, `{hour}`, `{name}`.

    `{name}` must end it: the name is derived from a callback's identity and content, with its extension, and alone makes
    keys differ. Dates are those of the callback's arrival, in UTC, so that its retry has the same key.
    """

    def __init__(self, template: str = DEFAULT) -> None:
        """Raises `ConfigError` for a template that could not make keys."""
        try:
            fields = [parsed[1:] for parsed in string.Formatter().parse(template) if parsed[1] is not None]
        except ValueError:
            raise _refused("a brace is open or does not belong there") from None
        for name, form, conversion in fields:
            if name not in _FIELDS or form or conversion:
                raise _refused(
                    f"it has {', '.join(f'{{{known}}}' for known in sorted(_FIELDS))} and no others"
                )
        if not template.endswith("{name}") or [name for name, _, _ in fields].count("name") != 1:
            raise _refused("it ends with {name}, and has it once")
        if any(part in ("", ".", "..") for part in template.split("/")) or not template.isprintable():
            raise _refused("it has plain parts between its slashes")
        self._template = template

    def key(self, *, source: str, received_at: int, name: str) -> str:
        """Return the key of the object `name` (with its extension), which came at `received_at` (epoch ms)."""
        at = datetime.fromtimestamp(received_at / 1000, UTC)
        return self._template.format(
            source=source,
            year=f"{at:%Y}",
            month=f"{at:%m}",
            day=f"{at:%d}",
            hour=f"{at:%H}",
            name=name,
        )


def is_ours(key: str) -> bool:
    """Tell whether an object's name has the form that receiver gives: what lies beside its own is not its to remove."""
    return _OURS.search(key) is not None


def _refused(reason: str) -> ConfigError:
    return ConfigError(f"blobs.key: {reason}; for example {DEFAULT}")
