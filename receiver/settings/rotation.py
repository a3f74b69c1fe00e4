"""The setting by which a destination's present secrets go on signing for a while beside a fresh one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any


def rotated(present: Sequence[Any], fresh: str, until: datetime) -> str:
    """Return the setting `secrets` in TOML: the present entries go on until then, beside the fresh secret.

    An entry that stands elsewhere (`env:`, `file:`) is named, one that stands in the file by its end; an empty one is `…`.
    """
    ends = f"{until:%Y-%m-%dT%H:%M:%SZ}"
    lines = [
        f'  {{secret = "{_shown(entry)}", until = {ends}}},' for entry in present if isinstance(entry, str)
    ]
    lines += [_kept(entry, ends) for entry in present if isinstance(entry, dict)]
    return "\n".join(["secrets = [", *lines, f'  "{fresh}",', "]"])


def _kept(entry: dict[str, Any], ends: str) -> str:
    """Return an entry that has times of its own; one that has no end gets one."""
    times = {name: str(entry[name]) for name in ("from", "until") if name in entry} | (
        {} if "until" in entry else {"until": ends}
    )
    shown = ", ".join(
        f"{name} = {value.replace('+00:00', 'Z').replace(' ', 'T')}" for name, value in times.items()
    )
    return f'  {{secret = "{_shown(entry["secret"])}", {shown}}},'


def _shown(secret: str) -> str:
    """Return where a secret is; one that stands in the file itself is named by its end."""
    return secret if secret.startswith(("env:", "file:")) else f"…{secret[-4:]}"
