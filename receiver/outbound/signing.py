"""What a destination's secrets sign with: Standard Webhooks, each secret within its own time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from math import inf
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from receiver.core.webhook import sign, webhook_key


class TimedSecret(BaseModel):
    """A secret that signs from one time until another."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=True, populate_by_name=True
    )

    secret: SecretStr
    from_: AwareDatetime | None = Field(default=None, alias="from")
    until: AwareDatetime | None = None


def _timed(value: Any) -> Any:
    return {"secret": value} if isinstance(value, str | SecretStr) else value


def _usable(value: tuple[TimedSecret, ...]) -> tuple[TimedSecret, ...]:
    for one in value:
        webhook_key(one.secret.get_secret_value())
    return value


Secrets = Annotated[tuple[Annotated[TimedSecret, BeforeValidator(_timed)], ...], AfterValidator(_usable)]
"""The setting `secrets`: each a secret, or one with its times."""


class Keys:
    """What a destination's secrets sign with, each within its own time."""

    def __init__(self, secrets: Sequence[TimedSecret]) -> None:
        self._keys = [
            (webhook_key(one.secret.get_secret_value()), _millis(one.from_, -inf), _millis(one.until, inf))
            for one in secrets
        ]

    def headers(self, event_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """Return the headers of Standard Webhooks at a time in epoch milliseconds; without a key, there is no signature."""
        keys = [key for key, start, end in self._keys if start <= timestamp < end]
        return sign(keys, event_id, timestamp // 1000, body)


def _millis(time: datetime | None, default: float) -> float:
    return default if time is None else time.timestamp() * 1000
