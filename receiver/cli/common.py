"""What the commands share: settings, the opened store, and what a source's provider was told (floor 9)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import typer

from receiver.cli.options import UsageError
from receiver.errors import ConfigError, NotFound

if TYPE_CHECKING:
    from receiver.config import Settings, SourceSettings
    from receiver.signing import CallbackTokens
    from receiver.store.base import Store


def load(ctx: typer.Context) -> Settings:
    """Return the settings that `--config` names. Raises `ConfigError`."""
    from receiver.wiring import load_settings

    return load_settings(ctx.obj)


@contextlib.asynccontextmanager
async def opened_store(settings: Settings) -> AsyncIterator[Store]:
    """Open the store that is there already. Raises `NotFound` when there is none yet, `StoreUnavailable`."""
    store = _existing_store(settings)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def _existing_store(settings: Settings) -> Store:
    from receiver.wiring import build_store, sqlite_path

    path = sqlite_path(settings)
    if not os.path.exists(path):
        raise NotFound(f"there is no store at {path} yet: `receiver serve` makes it (or name its --config)")
    return build_store(settings)


def tokens_of(settings: Settings) -> CallbackTokens:
    """Return what signs callback tokens. Raises `ConfigError` when its secret cannot be kept."""
    from receiver.signing import CallbackTokens
    from receiver.wiring import token_secrets

    return CallbackTokens(token_secrets(settings))


def source_named(settings: Settings, name: str) -> SourceSettings:
    """Return one source. Raises `UsageError` naming those there are."""
    try:
        return settings.sources[name]
    except KeyError:
        known = ", ".join(sorted(settings.sources)) or "none is configured"
        raise UsageError(f"there is no source {name!r}; there is: {known}") from None


def source_of(settings: Settings, provider: str, name: str | None) -> SourceSettings:
    """Return the source of `provider`: the one named, or the only one. Raises `UsageError`."""
    if name is not None:
        source = source_named(settings, name)
        if source.provider != provider:
            raise UsageError(f"the source {name} is of provider {source.provider}, not {provider}")
        return source
    fitting = [source for source in settings.sources.values() if source.provider == provider]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise UsageError(
            f'no source has provider = "{provider}": add [sources.{provider}] to the settings (`receiver init` writes the one of deAPI as a comment)'
        )
    raise UsageError(f"several sources are of {provider}: choose with --source {fitting[0].name}")


def provider_settings(source: SourceSettings) -> Any:
    """Return the provider's own settings of a source, checked by its model. Raises `ConfigError`."""
    from receiver.config import provider_options
    from receiver.providers.deapi import DeapiSettings
    from receiver.providers.deepgram import DeepgramSettings

    if source.provider == "deepgram":
        return provider_options(DeepgramSettings, source)
    if source.provider == "deapi":
        return provider_options(DeapiSettings, source)
    raise ConfigError(f"sources.{source.name}.provider: there is no provider {source.provider!r}")


def newest(source: SourceSettings, setting: str) -> str | None:
    """Return the last of a source's list of secrets: the one to sign with; None when it has none."""
    secrets = getattr(provider_settings(source), setting, ())
    return secrets[-1].get_secret_value() if secrets else None
