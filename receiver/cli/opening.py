"""What the commands work on: the settings, the store, blobs, the journal, a source's adapter; and the audit of what they change.

What a command asks is what the API asks: the same operations, in this process, of the store that is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import typer
from msgspec.structs import replace

from receiver.core.audit import COMMAND_LINE, new_act
from receiver.core.clock import wall_clock
from receiver.core.errors import NotFound, ReceiverError, StoreUnavailable, UsageError

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver
    from receiver.core.tokens import CallbackTokens
    from receiver.providers import PullProvider
    from receiver.settings.model import Settings, SourceSettings
    from receiver.storage.blobs import Blobs
    from receiver.storage.store.store import Store
    from receiver.web.api.operation import Operation


T = TypeVar("T")
P = TypeVar("P", bound="_Part")


def load(ctx: typer.Context) -> Settings:
    """Return the settings that `--config` names. Raises `ConfigError`."""
    from receiver.settings.load import load_settings

    return load_settings(ctx.obj)


def load_to_look(ctx: typer.Context) -> Settings:
    """Return the settings for a command that only looks: no secret of a source, destination or token has to be there. Raises `ConfigError`."""
    from receiver.core.errors import SettingsError
    from receiver.settings.load import look

    loaded = look(ctx.obj, os.environ)
    sections = ("sources", "destinations", "api", "submit")
    aside = (*(f"{name}." for name in sections), *(f"RECEIVER__{name.upper()}__" for name in sections))
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
    from receiver.app.wiring import build_store
    from receiver.settings.load import sqlite_path

    store = build_store(settings)
    if not store.shared and not os.path.exists(path := sqlite_path(settings)):
        raise NotFound(f"there is no store at {path} yet: `receiver serve` makes it (or name its --config)")
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


def opened_receiver(settings: Settings) -> AbstractAsyncContextManager[Receiver]:
    """Open all parts, without taking callbacks and without working. Raises `ConfigError`, `Unavailable`."""
    from receiver.app.wiring import build, open_receiver

    return open_receiver(build(settings, observers=[]), intake=False, work=False)


def read_file(path: str | os.PathLike[str], otherwise: str = "") -> bytes:
    """Return what is in a file that a person names. Raises `UsageError`, which ends with `otherwise`."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}{otherwise}") from None


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


@contextlib.asynccontextmanager
async def acting(store: Store, command: str, subject: str = "", **details: object) -> AsyncIterator[None]:
    """Note what a person does by a command, and after that how it ended: 200, or 422 where it was refused."""
    act = new_act(f"receiver {command}", COMMAND_LINE, at=wall_clock(), subject=subject, details=details)
    await store.begin_act(act)
    status = 200
    try:
        yield
    except ReceiverError:
        status = 422
        raise
    finally:
        with contextlib.suppress(StoreUnavailable):
            await store.end_act(act.id, status=status, answer=None)


async def called(
    store: Store,
    settings: Settings,
    operation: Operation,
    *,
    query: Any = None,
    body: Any = None,
    **path: str,
) -> Any:
    """Return what an operation gives. Raises as it does."""
    from receiver.settings.model import ApiScope
    from receiver.web.api.access import Holder
    from receiver.web.api.operation import Call

    holder = Holder(COMMAND_LINE, frozenset(ApiScope))
    call = Call(
        store=store, settings=settings, now=wall_clock(), holder=holder, query=query, body=body, path=path
    )
    return await operation.handle(call)


def asked(settings: Settings, operation: Operation, **path: str) -> Any:
    """Return what an operation without a query gives. Raises as it does, and as `opened_store` does."""
    return ask(settings, lambda store: called(store, settings, operation, **path))


def listed(settings: Settings, operation: Operation, limit: int, **filters: Any) -> list[Any]:
    """Return what an operation lists, at most `limit`, page by page. Raises `UsageError` for a name that does not exist."""

    async def read(store: Store) -> list[Any]:
        query, items = operation.query(limit=limit, **filters), []
        while True:
            page = await called(store, settings, operation, query=query)
            items += page.items
            if page.next is None or len(items) >= limit:
                return items[:limit]
            query = replace(query, after=page.next)

    found = ask(settings, read)
    if not found:
        from receiver.web.api.lists import refuse_unconfigured

        refuse_unconfigured(settings, operation.query(**filters))
    return found
