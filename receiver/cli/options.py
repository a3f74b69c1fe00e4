"""What the commands share on their command lines: flags bound to the environment, durations, formats."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

from receiver.cli.output import tell_errors_as_json
from receiver.core.clock import duration, wall_clock
from receiver.core.errors import NotFound, UsageError

if TYPE_CHECKING:
    from receiver.core.tokens import CallbackTokens
    from receiver.providers import PullProvider
    from receiver.settings.model import Settings, SourceSettings
    from receiver.storage.blobs import Blobs
    from receiver.storage.store.store import Store

T = TypeVar("T")
P = TypeVar("P", bound="_Part")


def option(*names: str, help: str, env: str | None = None, **more: Any) -> Any:
    """Return a typer option whose environment variable is RECEIVER_ and the flag's name, unless `env` names another."""
    flag = next(name for name in names if name.startswith("--")).split("/")[0]
    envvar = env or "RECEIVER_" + flag.removeprefix("--").replace("-", "_").upper()
    return typer.Option(*names, help=help, envvar=envvar, show_envvar=True, **more)


def given(*names: str, help: str, **more: Any) -> Any:
    """Return a typer option that only the command line gives: what is erased or sent again must stand in the command."""
    return typer.Option(*names, help=help, **more)


def _as_json(asked: bool) -> bool:
    tell_errors_as_json(on=asked)
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


def load(ctx: typer.Context) -> Settings:
    """Return the settings that `--config` names. Raises `ConfigError`."""
    from receiver.settings.load import load_settings

    return load_settings(ctx.obj)


def load_to_look(ctx: typer.Context) -> Settings:
    """Return the settings for a command that only looks: no source or destination has to be whole. Raises `ConfigError`."""
    from receiver.core.errors import SettingsError
    from receiver.settings.load import look

    loaded = look(ctx.obj, os.environ)
    aside = ("sources.", "destinations.", "RECEIVER__SOURCES__", "RECEIVER__DESTINATIONS__")
    problems = [problem for problem in loaded.problems if not problem.where.startswith(aside)]
    if problems or loaded.settings is None:
        raise SettingsError(problems or loaded.problems)
    return loaded.settings


class _Part(Protocol):
    async def close(self) -> None: ...


@contextlib.asynccontextmanager
async def _opened(part: P, opening: Callable[[], Awaitable[object]]) -> AsyncIterator[P]:
    try:
        await opening()
        yield part
    finally:
        await part.close()


def opened_store(settings: Settings) -> AbstractAsyncContextManager[Store]:
    """Open the store that is there already. Raises `NotFound` when there is none yet, `StoreUnavailable`."""
    store = _existing_store(settings)
    return _opened(store, store.open)


def ask(settings: Settings, question: Callable[[Store], Awaitable[T]]) -> T:
    """Return what the store that is there answers. Raises as `opened_store` does."""

    async def answer() -> T:
        async with opened_store(settings) as store:
            return await question(store)

    return asyncio.run(answer())


def made_store(settings: Settings) -> AbstractAsyncContextManager[Store]:
    """Open the store for writing, a file made and brought up to date first, as `serve` does. Raises `StoreUnavailable`."""
    from receiver.app.wiring import build_store

    store = build_store(settings)
    return _opened(store, store.prepare)


def opened_blobs(settings: Settings) -> AbstractAsyncContextManager[Blobs]:
    """Open the blob store. Raises `ConfigError`, `BlobsUnavailable`."""
    from receiver.app.wiring import build_blobs

    blobs = build_blobs(settings)
    return _opened(blobs, blobs.open)


def _existing_store(settings: Settings) -> Store:
    from receiver.app.wiring import build_store
    from receiver.settings.load import sqlite_path

    store = build_store(settings)
    if store.shared:
        return store
    path = sqlite_path(settings)
    if not os.path.exists(path):
        raise NotFound(f"there is no store at {path} yet: `receiver serve` makes it (or name its --config)")
    return store


def existing_journal(settings: Settings, *, otherwise: str) -> str:
    """Return the whole path of this machine's journal. Raises `NotFound` when it is not there; `otherwise` tells what else to do.

    It is never made by looking: an empty one made in the wrong place would pass for the journal that was meant.
    """
    from receiver.settings.load import journal_folder

    folder = os.path.abspath(journal_folder(settings))
    if not os.path.isdir(folder):
        raise NotFound(
            f"there is no journal at {folder}: set data (or RECEIVER__DATA) to where `receiver serve` has it{otherwise}"
        )
    return folder


def tokens_of(settings: Settings) -> CallbackTokens:
    """Return what signs callback tokens. Raises `ConfigError` when its secret cannot be kept."""
    from receiver.core.tokens import CallbackTokens
    from receiver.settings.load import token_secrets

    return CallbackTokens(token_secrets(settings), settings.tokens.signing)


def source_of(settings: Settings, provider: str, name: str | None) -> SourceSettings:
    """Return the source of `provider`: the one named, or the only one. Raises `UsageError`."""
    if name is not None:
        source = settings.source_named(name)
        if source.provider != provider:
            raise UsageError(f"the source {name} is of provider {source.provider}, not {provider}")
        return source
    fitting = [source for source in settings.sources.values() if source.provider == provider]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise UsageError(
            f'no source has provider = "{provider}": add [sources.{provider}] to the settings (`receiver init` writes it as a comment)'
        )
    raise UsageError(f"several sources are of {provider}: choose with --source {fitting[0].name}")


def pull_provider(settings: Settings, source: SourceSettings) -> PullProvider | None:
    """Return the adapter of a source that can be asked; None when it only calls back. Raises `ConfigError`."""
    from receiver.app.wiring import build_providers
    from receiver.providers import PullProvider

    alone = settings.model_copy(update={"sources": {source.name: source}})
    adapter = build_providers(alone, tokens_of(settings))[source.name]
    return adapter if isinstance(adapter, PullProvider) else None


def provider_settings(source: SourceSettings) -> Any:
    """Return the provider's own settings of a source, checked by its model. Raises `ConfigError`."""
    from receiver.providers import adapter_of
    from receiver.settings.load import own_settings

    return own_settings(adapter_of(source).Settings, source)


def newest(source: SourceSettings, setting: str) -> str | None:
    """Return the last of a source's list of secrets: the one to sign with; None when it has none."""
    secrets = getattr(provider_settings(source), setting, ())
    return secrets[-1].get_secret_value() if secrets else None
