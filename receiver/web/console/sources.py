"""Sources: how to register each, and trying it; and what was refused, with its second look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import RedirectResponse, Response

from receiver.core.errors import UsageError
from receiver.core.event import new_id
from receiver.engine.requests import source_named
from receiver.providers import adapter_of
from receiver.providers.custom.language import CustomSettings
from receiver.web.api import callback_urls, rejections
from receiver.web.console.events import latest, rows_of
from receiver.web.console.lists import filters
from receiver.web.console.trying import PLAYED, play
from receiver.web.console.visit import HOME, Visit

if TYPE_CHECKING:
    from receiver.settings.model import SourceSettings
    from receiver.web.views import RejectionShown

_LATEST = 200
_REJECTIONS = 500
_NOISE = ("unknown_source", "missing", "malformed")
_REGISTER_AT = {
    "deepgram": "In each request to /v1/speak, /v1/listen or /v1/read: the query parameter callback, percent-encoded.",
    "deapi": "In each request as webhook_url; or once for the account, in its webhook settings, made with --no-token.",
    "playht": "In the dashboard, in its settings of webhooks.",
    "sns": "At the topic: a subscription with the protocol HTTPS, without raw message delivery.",
    "pubsub": "At the topic: a push subscription with authentication switched on.",
}
"""Where the callback URL of a built-in provider goes."""


async def newest_of(visit: Visit, sources: Sequence[Any]) -> Mapping[str, Any]:
    """Return, for the list of sources, the newest event of each among the latest: to look further costs what there is."""
    found = await latest(visit.receiver.store, _LATEST)
    return {"newest": {event.source: event for event in reversed(found)}}


async def show(visit: Visit, *, made: Any = None) -> Response:
    """Show one source: how to register it, its last callbacks, its rejections."""
    receiver = visit.receiver
    source = source_named(receiver.settings, visit.path("name"))
    events = await latest(receiver.store, 5, source.name)
    return await visit.page(
        "source.html",
        source=source,
        calls_back=adapter_of(source).calls_back,
        register_at=_register_at(source),
        played=source.provider in PLAYED,
        public_url=receiver.settings.public_url,
        made=made,
        rows=await rows_of(receiver.store, events),
        callback=await receiver.store.callback(events[0].id) if events else None,
        rejections=await receiver.store.rejections(source.name, limit=5),
    )


def _register_at(source: SourceSettings) -> str:
    """Return where the callback URL goes at the provider."""
    if source.provider != "custom":
        return _REGISTER_AT.get(source.provider, "")
    about = CustomSettings.model_validate(source.options).about
    return about.register_at if about else ""


async def make_url(visit: Visit) -> Response:
    """Make a callback URL and show it, this once: it is a secret."""
    wanted = visit.sent(callback_urls.NewCallbackUrl, source=visit.path("name"))
    return await show(visit, made=await callback_urls.make.handle(visit.call(body=wanted)))


async def test(visit: Visit) -> Response:
    """Have the provider of a source played, and lead to what became of its callback."""
    source, playing = source_named(visit.receiver.settings, visit.path("name")), visit.console.playing
    if source.provider not in PLAYED:
        raise UsageError(f"{source.provider} proves its callbacks with a key that only it has: have it call")
    if playing.locked():
        raise UsageError("another test callback is under way: wait for it, then try again")
    host, port = visit.request.scope["server"]
    address = f"[{host}]" if ":" in host else host
    ref = f"test-{new_id('t', visit.receiver.clock())[-10:]}"
    url = f"{visit.request.scope['scheme']}://{address}:{port}"
    async with playing:
        trouble = await play(source.provider, source.name, url=url, ref=ref)
    if trouble:
        raise UsageError(f"the test callback was not taken: {trouble}")
    return RedirectResponse(f"{HOME}/jobs?ref={ref}", 303)


# ---------------------------------------------------------------- what was refused


class Group(Struct):
    """Rejections of one source with the same failing check."""

    source: str
    kind: str
    rows: list[RejectionShown] = []
    """The newest first."""


async def refused(visit: Visit) -> Response:
    """Show callbacks that were refused, by source and failing check: those of strangers last."""
    query = replace(visit.query(rejections.RejectionQuery), limit=_REJECTIONS)
    groups: dict[tuple[str, str], Group] = {}
    for one in (await rejections.listed.handle(visit.call(query=query))).items:
        groups.setdefault((one.source, one.kind), Group(one.source, one.kind)).rows.append(one)
    return await visit.page(
        "rejections.html",
        groups=sorted(groups.values(), key=lambda group: group.kind in _NOISE),
        **filters(visit, rejections.RejectionQuery),
    )


async def verify(visit: Visit) -> Response:
    """Show what today's settings say of a rejected request, with a form that accepts it."""
    return await _rejection(visit, judged=await rejections.verify.handle(visit.call()))


async def accept(visit: Visit) -> Response:
    """Record a rejected request on the word of whoever is logged in, and tell what became of it."""
    if not visit.given("reason"):
        raise UsageError("say why: the audit keeps it")
    wanted = visit.sent(rejections.Acceptance)
    return await _rejection(visit, recorded=await rejections.accept.handle(visit.call(body=wanted)))


async def _rejection(visit: Visit, *, judged: Any = None, recorded: Any = None) -> Response:
    rejection_id = visit.path("rejection_id")
    found = await visit.receiver.store.rejections(None, limit=1, one=rejection_id)
    one = found[0] if found else None
    return await visit.page("rejection.html", one=one, id=rejection_id, judged=judged, recorded=recorded)
