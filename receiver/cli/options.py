"""What the commands share on their command lines: flags bound to the environment, durations, times, formats."""

from __future__ import annotations

import contextlib
import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from receiver.cli.output import tell_errors_as
from receiver.core.clock import duration, wall_clock
from receiver.core.errors import UsageError


def option(*names: str, help: str, env: str | None = None, **more: Any) -> Any:
    """Return a typer option whose environment variable is RECEIVER_ and the flag's name, unless `env` names another."""
    flag = next(name for name in names if name.startswith("--")).split("/")[0]
    envvar = env or "RECEIVER_" + flag.removeprefix("--").replace("-", "_").upper()
    return typer.Option(*names, help=help, envvar=envvar, show_envvar=True, **more)


def given(*names: str, help: str, **more: Any) -> Any:
    """Return a typer option that only the command line gives: what is erased or sent again must stand in the command."""
    return typer.Option(*names, help=help, **more)


def _as_json(asked: bool) -> bool:
    tell_errors_as("json" if asked else "text")
    return asked


AsJson = Annotated[bool, option("--json", help="Print JSON, errors too.", callback=_as_json, is_eager=True)]
Wide = Annotated[bool, option("--wide", help="Print all columns, with whole ids and times.")]
ExpectWithin = Annotated[
    str | None,
    option(
        "--expect-within",
        help="How long the provider's callback may take, as 15m, 2h or 1d; then it is overdue.",
    ),
]
Format = Annotated[
    str | None,
    option("--format", help="What the job asks for: encoding=linear16,container=none,sample_rate=24000."),
]
Ref = Annotated[str | None, option("--ref", help="Your own id for the job; comes back in the event.")]
SourceName = Annotated[str, typer.Argument(help="Name of the source, as in [sources.NAME].")]
OfSource = Annotated[str | None, option("--source", help="Only of this source.")]
OfJob = Annotated[str | None, option("--job", help="Only of this job of the provider's.")]
OfRef = Annotated[str | None, option("--ref", help="Only with this ref.")]
OfType = Annotated[str | None, option("--type", help="Only of this type, as speech.completed or speech.*.")]
Yes = Annotated[bool, given("--yes", "-y", help="Do not ask.")]
Limit = Annotated[int, option("--limit", help="Show at most this many, newest first.", min=1, max=10_000)]
Since = Annotated[str | None, option("--since", help="Only since then: 2h (ago), or 2026-11-21T10:00Z.")]


def seconds(text: str) -> float:
    """Return the seconds of `90s`, `15m`, `2h`, `1d` or `1w`. Raises `UsageError`."""
    try:
        return duration(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is not a duration: {error}") from None


def since(text: str | None) -> int | None:
    """Return the epoch milliseconds of `2h` (that long ago) or `2026-11-21T10:00Z`. Raises `UsageError`."""
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        return wall_clock() - int(duration(text) * 1000)
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(f"{text!r} is not a time: write 2h (ago), or 2026-11-21T10:00Z") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def moment(text: str | None) -> datetime | None:
    """Return the time of `2h` (that long ago) or `2026-11-21T10:00Z`. Raises `UsageError`."""
    at = since(text)
    return None if at is None else datetime.fromtimestamp(at / 1000, UTC)


def job_format(text: str | None) -> dict[str, Any]:
    """Return `encoding=linear16,sample_rate=24000` as a mapping, whole numbers as numbers. Raises `UsageError`."""
    from receiver.engine.pickups import checked_format

    pairs: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in (text or "").split(","))):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if not value:
            raise UsageError(f"--format does not understand {part!r}: write KEY=VALUE")
        pairs[key] = int(value) if value.isascii() and value.isdigit() else value
    return dict(checked_format(pairs))


def confirm(question: str, what: str, *, instead: str = "") -> None:
    """Ask a person; away from a terminal only `--yes` will do. Raises `UsageError`, `typer.Exit`."""
    if not sys.stdin.isatty():
        raise UsageError(f"{what}: add --yes{instead}")
    if not typer.confirm(question):
        raise typer.Exit(1)
