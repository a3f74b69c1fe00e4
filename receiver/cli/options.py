"""What the commands share on their command lines: flags bound to the environment, durations, formats."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import typer

from receiver.core.clock import wall_clock
from receiver.core.errors import ReceiverError
from receiver.web.shown import FORMAT_KEYS

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw])")


class UsageError(ReceiverError):
    """The command was not given what it needs."""


def option(*names: str, help: str, env: str | None = None, **more: Any) -> Any:
    """Return a typer option whose environment variable is RECEIVER_ and the flag's name, unless `env` names another."""
    flag = next(name for name in names if name.startswith("--")).split("/")[0]
    envvar = env or "RECEIVER_" + flag.removeprefix("--").replace("-", "_").upper()
    return typer.Option(*names, help=help, envvar=envvar, show_envvar=True, **more)


def seconds(text: str) -> float:
    """Return the seconds of `90s`, `15m`, `2h`, `1d` or `1w`. Raises `UsageError`."""
    found = _DURATION.fullmatch(text.strip())
    if not found:
        raise UsageError(f"{text!r} is not a duration: write 90s, 15m, 2h, 1d or 1w")
    return float(found[1]) * _UNITS[found[2]]


def since(text: str | None, *, now: int | None = None) -> int | None:
    """Return the epoch milliseconds of `2h` (that long ago) or `2026-11-21T10:00Z`. Raises `UsageError`."""
    if text is None:
        return None
    now = wall_clock() if now is None else now
    if _DURATION.fullmatch(text.strip()):
        return now - int(seconds(text) * 1000)
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(f"{text!r} is not a time: write 2h (ago), or 2026-11-21T10:00Z") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def job_format(text: str | None) -> dict[str, Any]:
    """Return `encoding=linear16,sample_rate=24000` as a mapping, whole numbers as numbers. Raises `UsageError`."""
    pairs: dict[str, Any] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value or key not in FORMAT_KEYS:
            raise UsageError(
                f"--format does not understand {part.strip()!r}: write KEY=VALUE with {', '.join(FORMAT_KEYS)}"
            )
        pairs[key] = int(value) if value.isascii() and value.isdigit() else value
    return pairs
