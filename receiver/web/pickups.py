"""`/api/v1/pickups`: results are handed over, and looked after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct, field

from receiver.core.pickup import PickupState
from receiver.engine.requests import MAX_SECONDS, order
from receiver.storage.store.base import PickupFilter
from receiver.web.api import Refused, answer, asked, read
from receiver.web.shown import FORMAT_KEYS, pickup_attempt_fields, pickup_fields

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from receiver.app.wiring import Receiver
    from receiver.settings.model import SourceSettings

Seconds = Annotated[float, Meta(gt=0, le=MAX_SECONDS)]


class NewPickup(Struct, forbid_unknown_fields=True, frozen=True):
    """The body of a POST."""

    source: str
    result: Annotated[str, Meta(min_length=1)]
    """The provider's URL, or its job id."""
    ref: str | None = None
    deadline_seconds: Seconds | None = None
    format: dict[str, str | int] = field(default_factory=dict)


class Wanted(Struct, forbid_unknown_fields=True, frozen=True):
    """The query of a list."""

    source: str | None = None
    state: PickupState | None = None
    job_id: str | None = None
    ref: str | None = None
    after: str | None = None
    limit: Annotated[int, Meta(ge=1, le=500)] = 50


class Pickups:
    """Adds, lists and shows pickups."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def collection(self, request: Request) -> Response:
        """POST adds one, GET lists."""
        return await (self._add(request) if request.method == "POST" else self._list(request))

    async def _add(self, request: Request) -> Response:
        wanted = await read(request, NewPickup)
        receiver = self._receiver
        source = source_named(receiver, wanted.source)
        provider = receiver.ports.pulls.get(source.name)
        if provider is None:
            raise Refused(
                422,
                f"{source.name} is of provider {source.provider}, which cannot be asked for a result: it calls back",
            )
        made = order(
            provider,
            wanted.result,
            ref=wanted.ref,
            deadline_seconds=wanted.deadline_seconds,
            format=checked_format(wanted.format),
            now=receiver.clock(),
        )
        stands, new = await receiver.store.add_pickup(made)
        receiver.collector.wake(stands.source)
        place = {"location": f"/api/v1/pickups/{stands.id}"}
        return answer(pickup_fields(stands), status=201 if new else 200, headers=place)

    async def _list(self, request: Request) -> Response:
        wanted = asked(request, Wanted)
        found = await self._receiver.store.pickups(
            PickupFilter(
                source=wanted.source,
                state=wanted.state,
                job_id=wanted.job_id,
                ref=wanted.ref,
                after=wanted.after,
                limit=wanted.limit,
            )
        )
        after = found[-1].id if len(found) == wanted.limit else None
        return answer({"pickups": [pickup_fields(one) for one in found], "after": after})

    async def one(self, request: Request) -> Response:
        """Show one with its attempts."""
        store = self._receiver.store
        found = await store.pickup(request.path_params["pickup_id"])
        attempts = await store.pickup_attempts(found.id)
        made = [pickup_attempt_fields(attempt) for attempt in attempts]
        return answer(pickup_fields(found) | {"attempts_made": made})


def source_named(receiver: Receiver, name: str) -> SourceSettings:
    """Return a configured source. Raises `Refused` naming those there are."""
    sources = receiver.settings.sources
    if name not in sources:
        raise Refused(
            422, f"there is no source {name[:100]!r}; there is: {', '.join(sorted(sources)) or 'none'}"
        )
    return sources[name]


def checked_format(format: dict[str, Any]) -> dict[str, Any]:
    """Return `format` if all its keys are known. Raises `Refused`."""
    unknown = sorted(set(format) - set(FORMAT_KEYS))
    if unknown:
        raise Refused(
            422, f"format does not understand {unknown[0][:100]!r}; it has {', '.join(FORMAT_KEYS)}"
        )
    return format
