"""Sources: how to register each, and trying it; and what was refused, with its second look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from receiver.app.trial import kept_request
from receiver.core.errors import NotFound, UsageError
from receiver.core.event import new_id
from receiver.providers import PushProvider, adapter_of
from receiver.providers.custom.language import CustomSettings
from receiver.settings.model import ApiScope
from receiver.system.background import printed_by
from receiver.web.api import pickups, rejections
from receiver.web.console.events import latest, rows_of
from receiver.web.console.visit import Visit
from receiver.web.views import SHOWN_HEADERS

_LATEST = 200
_PLAY_SECONDS = 60.0
"""How long playing a provider may take: on a busy machine a program starts slowly."""
_PLAYED = {"deepgram": (), "custom": (), "deapi": ("--event", "failed")}
"""Providers that can be played with the source's own secret, and how: a result of deAPI's would have to be fetched from somewhere."""


async def newest_of(visit: Visit, found: Any) -> Mapping[str, Any]:
    """Return, for the list of sources, the newest event of each among the latest: to look further costs what there is."""
    events = await latest(visit.store, _LATEST)
    return {"newest": {event.source: event for event in reversed(events)}}


async def show(visit: Visit, *, made: Any = None) -> Response:
    """Show one source: how to register it, its last callbacks, its rejections."""
    store, source = visit.store, visit.settings.source_named(visit.path["name"])
    about = CustomSettings.model_validate(source.options).about if source.provider == "custom" else None
    events = await latest(store, 5, source.name)
    return await visit.page(
        "source.html",
        source=source,
        calls_back=issubclass(adapter_of(source), PushProvider),
        register_at=about.register_at if about else "",
        played=source.provider in _PLAYED,
        public_url=visit.settings.public_url,
        made=made,
        rows=await rows_of(store, events),
        callback=await store.callback(events[0].id) if events else None,
        rejections=await store.rejections(source.name, limit=5),
    )


async def make_url(visit: Visit) -> Response:
    """Make a callback URL and show it, this once: it is a secret."""
    wanted = visit.sent(pickups.NewCallbackUrl, source=visit.path["name"])
    return await show(visit, made=await visit.do(pickups.make_url, body=wanted))


async def test(visit: Visit) -> Response:
    """Have the provider of a source played, and lead to what became of its callback."""
    source, playing = visit.settings.source_named(visit.path["name"]), visit.console.playing
    if source.provider not in _PLAYED:
        raise UsageError(f"{source.provider} proves its callbacks with a key that only it has: have it call")
    if playing.locked():
        raise UsageError("another test callback is under way: wait for it, then try again")
    host, port = visit.request.scope["server"]
    url = f"{visit.request.url.scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    ref = f"test-{new_id('t', visit.now)[-10:]}"
    how = (*_PLAYED[source.provider], "--attempts", "1", "--source", source.name, "--url", url, "--ref", ref)
    try:
        async with playing:
            visit.request.state.limit.reschedule(None)  # it has a limit of its own
            status, printed = await printed_by(
                "receiver", "simulate", source.provider, *how, seconds=_PLAY_SECONDS
            )
    except TimeoutError:
        raise UsageError(f"the test callback was not answered within {_PLAY_SECONDS:.0f} s") from None
    if status:
        raise UsageError(f"the test callback was not taken: {printed.decode('utf-8', 'replace').strip()}")
    return visit.lead(f"/jobs?ref={ref}")


# ---------------------------------------------------------------- what was refused


async def rejection(visit: Visit, *, judged: Any = None, recorded: Any = None) -> Response:
    """Show one rejection; to admins its request as well, while it is kept, without what came as its proof."""
    rejection_id = visit.path["rejection_id"]
    found = await visit.store.rejections(None, limit=1, one=rejection_id)
    if not found:
        raise NotFound("there is no such rejection (any more)")
    head = body = None
    if found[0].request_kept and ApiScope.ADMIN in visit.session.scopes:
        head, body = await kept_request(visit.receiver, rejection_id)
    headers = (
        [(name, value if name in SHOWN_HEADERS else None) for name, value in head.headers] if head else []
    )
    given = {"judged": judged, "recorded": recorded, "headers": headers, "body": body}
    return await visit.page("rejection.html", one=found[0], **given)


async def verify(visit: Visit) -> Response:
    """Show what today's settings say of a rejected request, with a form that accepts it."""
    return await rejection(visit, judged=await visit.do(rejections.verify))


async def accept(visit: Visit) -> Response:
    """Record a rejected request on the word of whoever is logged in, and tell what became of it."""
    if not visit.given("reason"):
        raise UsageError("say why: the audit keeps it")
    wanted = visit.sent(rejections.Acceptance)
    return await rejection(visit, recorded=await visit.do(rejections.accept, body=wanted))
