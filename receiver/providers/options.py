"""What the adapters' own settings have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, SecretStr

from receiver.core.errors import ConfigError
from receiver.settings.model import Finding


def _as_list(value: Any) -> Any:
    """Take one value for a list of one, and digits (an environment value is read as TOML) for text."""
    items = list(value) if isinstance(value, list | tuple) else [value]
    return [str(item) if isinstance(item, int) and not isinstance(item, bool) else item for item in items]


def _not_empty(value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    if any(not secret.get_secret_value() for secret in value):
        raise ValueError("an empty value would let everybody in: write the secret, or leave the setting out")
    return value


SecretList = Annotated[tuple[SecretStr, ...], BeforeValidator(_as_list), AfterValidator(_not_empty)]
"""Secrets, newest last; a single string stands for a list of one."""


def reveal(secrets: Iterable[SecretStr]) -> tuple[str, ...]:
    """Return the values behind the masks."""
    return tuple(secret.get_secret_value() for secret in secrets)


def refuse(findings: Sequence[Finding]) -> None:
    """Raise `ConfigError` for the first fatal finding, naming the setting and what to write."""
    for finding in findings:
        if finding.fatal:
            raise ConfigError(f"{finding.where}: {finding.message}; {finding.fix}")
