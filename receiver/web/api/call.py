"""A request of the API as its operation gets it, and a result that is not the usual one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from starlette.requests import Request

from receiver.web.api.access import Holder

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver

Q = TypeVar("Q")
B = TypeVar("B")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[Q, B]):
    """A request that was let in and understood."""

    receiver: Receiver
    holder: Holder
    query: Q
    body: B
    path: Mapping[str, str]
    """The parts of the path that the operation's path has in braces."""
    request: Request


@dataclass(frozen=True, slots=True)
class Given:
    """A result with another status than the operation's first, or with headers."""

    content: Any
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
