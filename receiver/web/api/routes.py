"""Every operation of the API."""

from __future__ import annotations

from receiver.settings.model import ApiScope
from receiver.web.api import callback_urls, pickups
from receiver.web.api.operation import Operation
from receiver.web.views import CallbackUrl, Page, PickupShown, PickupWhole

OPERATIONS = (
    Operation(
        method="GET",
        path="/pickups",
        scope=ApiScope.READ,
        does="List pickups, newest first.",
        handle=pickups.listed,
        query=pickups.PickupQuery,
        gives=Page[PickupShown],
    ),
    Operation(
        method="POST",
        path="/pickups",
        scope=ApiScope.OPERATE,
        does="Hand over a result that is to be fetched; 200 shows the pickup that it has already.",
        handle=pickups.add,
        body=pickups.NewPickup,
        gives=PickupShown,
        statuses=(201, 200),
    ),
    Operation(
        method="GET",
        path="/pickups/{pickup_id}",
        scope=ApiScope.READ,
        does="Show a pickup with its attempts.",
        handle=pickups.one,
        gives=PickupWhole,
    ),
    Operation(
        method="POST",
        path="/callback-urls",
        scope=ApiScope.OPERATE,
        does="Make a callback URL for one job.",
        handle=callback_urls.make,
        body=callback_urls.NewCallbackUrl,
        gives=CallbackUrl,
        statuses=(201,),
    ),
)
