"""Pickups of results, and callback URLs that may order one."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct, field
from msgspec.structs import asdict
from starlette.responses import Response

from receiver.core.event_json import Time
from receiver.core.work import Pickup, PickupAttempt, PickupFilter, PickupState
from receiver.engine.pickups import (
    MAX_REF,
    MAX_SECONDS,
    IssuedUrl,
    checked_format,
    issue_callback_url,
    new_pickup,
    pollable,
)
from receiver.settings.model import ApiScope
from receiver.web.api.lists import Paged, filter_of, page
from receiver.web.api.operation import Again, Call, Served, operation
from receiver.web.api.problems import answer
from receiver.web.views import Page, time_of, whole

Seconds = Annotated[float, Meta(gt=0, le=MAX_SECONDS)]


class NewPickup(Struct, forbid_unknown_fields=True, frozen=True):
    """A result that is to be fetched."""

    source: str
    result: Annotated[str, Meta(min_length=1)]
    """The provider's URL, or its job id."""
    ref: str | None = None
    deadline_seconds: Seconds | None = None
    expect_within_seconds: Seconds | None = None
    """The provider's callback may come within this time; it is asked only then."""
    format: dict[str, str | int] = field(default_factory=dict)


class PickupQuery(Paged, frozen=True):
    """Which pickups to list, newest first."""

    source: str | None = None
    state: PickupState | None = None
    job_id: str | None = None
    ref: str | None = None


class PickupWhole(Pickup, frozen=True, kw_only=True):
    """A pickup with its attempts."""

    attempts_made: list[PickupAttempt]


@operation("GET /pickups", ApiScope.READ)
async def listed(call: Call[PickupQuery, None]) -> Page[Pickup]:
    """List pickups, newest first."""
    return page(await call.store.pickups(filter_of(call.query, PickupFilter)))


@operation("POST /pickups", ApiScope.OPERATE, gives=Pickup, statuses=(201, 200))
async def add(call: Served[None, NewPickup]) -> Response:
    """Hand over a result that is to be fetched; 200 shows the pickup that it has already."""
    receiver, wanted = call.receiver, call.body
    source = receiver.settings.source_named(wanted.source)
    made = new_pickup(
        pollable(source, receiver.ports.pulls.get(source.name)),
        wanted.result,
        ref=wanted.ref,
        deadline_seconds=wanted.deadline_seconds,
        expect_seconds=wanted.expect_within_seconds or 0,
        format=checked_format(wanted.format),
        now=call.now,
    )
    pickup, new = await receiver.store.add_pickup(made)
    receiver.collector.wake([pickup.source])
    place = {"location": f"/api/v1/pickups/{pickup.id}"}
    return answer(pickup, status=201 if new else 200, headers=place)


@operation("GET /pickups/{pickup_id}", ApiScope.READ)
async def one(call: Call[None, None]) -> PickupWhole:
    """Show a pickup with its attempts."""
    found = await call.store.pickup(call.path["pickup_id"])
    return whole(PickupWhole, found, attempts_made=await call.store.pickup_attempts(found.id))


class NewCallbackUrl(Struct, forbid_unknown_fields=True, frozen=True):
    """The job that a callback URL is for."""

    source: str
    ref: Annotated[str, Meta(max_length=MAX_REF)] | None = None
    expires_seconds: Annotated[float, Meta(gt=0, le=10 * 365 * 86400)] | None = None
    format: dict[str, str | int] = field(default_factory=dict)
    expect_within_seconds: Seconds | None = None
    job_secret: bool = False
    short: bool = False
    """A token of 40 characters, whose meaning is kept."""


class CallbackUrl(Struct, frozen=True, kw_only=True):
    """A callback URL and what goes with it. It holds secrets: only who asked for it may see it."""

    url: str
    source: str
    token: str | None
    ref: str | None
    webhook_secret: str | None
    expect_by: Time | None
    pickup_id: str | None


def issued_url(made: IssuedUrl) -> CallbackUrl:
    """Return a callback URL as it is shown."""
    expected, given = made.expectation, asdict(made)
    return CallbackUrl(
        **{name: given[name] for name in ("url", "source", "token", "ref", "webhook_secret")},
        expect_by=time_of(expected.due_at) if expected else None,
        pickup_id=expected.id if expected else None,
    )


@operation("POST /callback-urls", ApiScope.OPERATE, statuses=(201,), again=Again.REFUSED)
async def make_url(call: Served[None, NewCallbackUrl]) -> CallbackUrl:
    """Make a callback URL for one job."""
    receiver, wanted = call.receiver, call.body
    source = receiver.settings.source_named(wanted.source)
    made = issue_callback_url(
        receiver.settings.public_url,
        source,
        receiver.tokens,
        provider=receiver.ports.pulls.get(source.name),
        ref=wanted.ref,
        format=checked_format(wanted.format),
        expires_seconds=wanted.expires_seconds,
        expect_seconds=wanted.expect_within_seconds,
        job_secret=wanted.job_secret,
        short=wanted.short,
        now=call.now,
    )
    if made.claims is not None:
        await receiver.store.add_token(made.claims)
    if made.expectation is not None:
        await receiver.store.add_pickup(made.expectation)
        receiver.collector.wake([source.name])
    return issued_url(made)
