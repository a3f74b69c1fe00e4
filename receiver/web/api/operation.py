"""One operation of the API: its scope, what it takes and gives; and what its handler gets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from types import NoneType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_args, get_type_hints

from msgspec import Struct
from starlette.requests import Request

from receiver.settings.model import ApiScope, Settings
from receiver.web.api.access import Holder

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver
    from receiver.storage.store.store import Store

Q = TypeVar("Q")
B = TypeVar("B")
T = TypeVar("T")


class Again(StrEnum):
    """What becomes of a request whose idempotency key was used before."""

    RUNS = "runs"
    """It is done again, which changes nothing."""
    ANSWERED = "answered"
    """It gets the answer of the first."""
    REFUSED = "refused"
    """It is refused: the first answer held secrets, and is not kept."""


class Call(Struct, Generic[Q, B], frozen=True, kw_only=True):
    """What is asked of an operation, by a request or by a command."""

    store: Store
    settings: Settings
    now: int
    holder: Holder
    query: Q
    body: B
    path: Mapping[str, str]
    """The parts of the path that the operation's path has in braces."""

    def wake(self, destinations: Iterable[str] = ()) -> None:
        """Have the parts that run look at once for operations, and for deliveries to these destinations."""


class Served(Call[Q, B], frozen=True, kw_only=True):
    """A request that was let in and understood. What a command asks has no parts that run."""

    receiver: Receiver
    request: Request
    peer: str | None = None
    """The caller's address, behind proxies that are trusted to name it."""

    def wake(self, destinations: Iterable[str] = ()) -> None:
        """Have the parts that run look."""
        self.receiver.bulk.look.set()
        self.receiver.relay.wake(destinations)


class Operation(Struct, frozen=True, kw_only=True):
    """One method of one path."""

    method: str
    path: str
    """Under `/api/v1`, variable parts in braces."""
    scope: ApiScope
    does: str
    """A sentence without its point."""
    handle: Callable[[Any], Awaitable[Any]]
    """Takes a `Call`, or a `Served` where it needs the running parts; returns a struct, or a whole `Response`."""
    query: Any
    """The struct of the query, None where there is none."""
    body: Any
    """The struct of the body, None where there is none."""
    gives: Any
    """The type of the result; a media type in words where it is no JSON."""
    statuses: Sequence[int]
    """The statuses of success, the usual one first."""
    again: Again
    problems: Sequence[int] = ()
    """Statuses of problems that not every operation of its method has."""

    @property
    def name(self) -> str:
        """Method and path."""
        return f"{self.method} {self.path}"


def operation(
    name: str,
    scope: ApiScope,
    *,
    gives: Any = None,
    statuses: Sequence[int] = (200,),
    again: Again = Again.RUNS,
    problems: Sequence[int] = (),
) -> Callable[[Callable[[Any], Awaitable[Any]]], Operation]:
    """Return what makes an operation of its handler: the signature says what it takes and gives, the docstring what it does.

    `name` is method and path, as `GET /pickups/{pickup_id}`; `gives` is for a handler that returns a `Response`.
    """
    method, _, path = name.partition(" ")

    def made(handle: Callable[[Any], Awaitable[Any]]) -> Operation:
        hints = get_type_hints(handle)
        query, body = (None if kind is NoneType else kind for kind in get_args(hints["call"]))
        return Operation(
            method=method,
            path=path,
            scope=scope,
            does=(handle.__doc__ or "").partition("\n")[0].removesuffix("."),
            handle=handle,
            query=query,
            body=body,
            gives=gives or hints["return"],
            statuses=statuses,
            again=again,
            problems=problems,
        )

    return made
