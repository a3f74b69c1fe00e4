"""What comes in beside events: sources, rejections, parked callbacks, pickups, and jobs across all of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.responses import RedirectResponse, Response

from receiver.app.second_look import accept_once, verify_again
from receiver.core.errors import UsageError
from receiver.core.event import EventFilter, new_id
from receiver.core.explain import PARKED, Cause, explain
from receiver.core.work import PickupFilter, PickupState
from receiver.engine.requests import MAX_REF, issue_callback_url, source_named
from receiver.providers import adapter_of
from receiver.providers.custom.language import CustomSettings
from receiver.web.api.jobs import job_named
from receiver.web.api.rejections import MAX_REASON
from receiver.web.console.event import listed
from receiver.web.console.events import PAGE, cursor, fields_of, further, rows_of
from receiver.web.console.guard import HOME, Visit
from receiver.web.console.trying import PLAYED, play

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver
    from receiver.core.event import Event, Recorded, Rejection
    from receiver.core.explain import Job as Everything
    from receiver.core.work import Pickup, PickupAttempt
    from receiver.settings.model import SourceSettings

_REJECTIONS = 200
_LATEST = 200
"""The newest events, of which the list of sources tells: to look further costs what there is."""
_LOOKS = {
    "callback": ("ok", "in", "Callback"),
    "recorded": ("ok", "box", "Recorded"),
    "rejected": ("bad", "lock", "Rejected"),
    "pickup": ("wait", "wait", "Pickup"),
    "fetched": ("none", "again", "Asked the provider"),
    "sent": ("none", "out", "Sent"),
    "next": ("wait", "wait", "Next"),
}
"""The meaning, the icon and the word of each step of a job."""


_REGISTER_AT = {
    "deepgram": "In each request to /v1/speak, /v1/listen or /v1/read: the query parameter callback, percent-encoded.",
    "deapi": "In each request as webhook_url; or once for the account, in its webhook settings, made with --no-token.",
    "playht": "In the dashboard, in its settings of webhooks.",
    "sns": "At the topic: a subscription with the protocol HTTPS, without raw message delivery.",
    "pubsub": "At the topic: a push subscription with authentication switched on.",
}
"""Where the callback URL of a built-in provider goes."""


_REMEDIES = {
    Cause.REJECTED: ("See the failing check", "rejections"),
    Cause.PARKED: ("See why, and read it again", "events"),
    Cause.NO_ROUTE: ("See by which rules, and send it", "events"),
    Cause.DEAD: ("See its answers, and replay", "events"),
    Cause.PICKUP_WAITING: ("See its pickup", "pickups"),
    Cause.PICKUP_GONE: ("See its pickup", "pickups"),
    Cause.EXPECTED: ("See what is expected", "pickups"),
    Cause.OVERDUE: ("See what was expected", "pickups"),
    Cause.PAUSED: ("See the destination", "destinations"),
    Cause.HELD: ("See the destination", "destinations"),
    Cause.RETRYING: ("See the destination", "destinations"),
}
"""The words of a job's button, and the page that it leads to, by why the job stands where it stands."""


@dataclass(slots=True)
class Group:
    """Rejections of one source with the same failing check."""

    source: str
    kind: str
    newest: Rejection
    rows: list[Rejection] = field(default_factory=list)


@dataclass(slots=True)
class Job:
    """What is known of one job, or of all jobs with one ref."""

    name: str
    field: str
    source: str
    last: int
    events: int
    state: str


class Incoming:
    """The pages."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._playing = asyncio.Lock()
        """Held while a provider is played: that takes a process of its own."""

    # ------------------------------------------------------------ sources

    async def sources(self, visit: Visit) -> Response:
        """Show what is configured to call back, and to be polled."""
        lines = []
        latest = await self._receiver.store.events(EventFilter(limit=_LATEST))
        last = {event.source: event for event in reversed(latest)}
        for name, source in self._receiver.settings.sources.items():
            adapter = adapter_of(source)
            pulls = name in self._receiver.ports.pulls
            roads = listed(
                [*(["calls back"] if adapter.calls_back else []), *(["is polled"] if pulls else [])]
            )
            lines.append(
                {"name": name, "provider": source.provider, "roads": roads, "newest": last.get(name)}
            )
        return await visit.page("sources.html", sources=lines)

    async def source(self, visit: Visit, *, made: Any = None) -> Response:
        """Show one source: how to register it, its last callbacks, its rejections."""
        receiver = self._receiver
        source = source_named(receiver.settings, visit.path("name"))
        events = await receiver.store.events(EventFilter(source=source.name, limit=5))
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

    async def make_url(self, visit: Visit) -> Response:
        """Make a callback URL and show it, this once: it is a secret."""
        receiver = self._receiver
        source = source_named(receiver.settings, visit.path("name"))
        ref = visit.given("ref").strip()
        if len(ref) > MAX_REF:
            raise UsageError(f"the ref is longer than {MAX_REF} characters")
        made = issue_callback_url(
            receiver.settings.public_url, source, receiver.tokens, ref=ref or None, now=receiver.clock()
        )
        return await self.source(visit, made=made)

    async def test(self, visit: Visit) -> Response:
        """Have the provider of a source played, and lead to what became of its callback."""
        source = source_named(self._receiver.settings, visit.path("name"))
        if source.provider not in PLAYED:
            raise UsageError(
                f"{source.provider} proves its callbacks with a key that only it has: have it call"
            )
        if self._playing.locked():
            raise UsageError("another test callback is under way: wait for it, then try again")
        host, port = visit.request.scope["server"]
        address = f"[{host}]" if ":" in host else host
        ref = f"test-{new_id('t', self._receiver.clock())[-10:]}"
        url = f"{visit.request.scope['scheme']}://{address}:{port}"
        async with self._playing:
            trouble = await play(source.provider, source.name, url=url, ref=ref)
        if trouble:
            raise UsageError(f"the test callback was not taken: {trouble}")
        return RedirectResponse(f"{HOME}/jobs?ref={ref}", 303)

    # ------------------------------------------------------------ rejections

    async def rejections(self, visit: Visit) -> Response:
        """Show callbacks that were refused, by source and failing check, the worst first."""
        fields = fields_of(visit, ("source", "kind"))
        found = await self._receiver.store.rejections(fields["source"] or None, limit=_REJECTIONS)
        groups: dict[tuple[str, str], Group] = {}
        for one in found:
            if fields["kind"] in ("", one.kind):
                group = groups.setdefault((one.source, one.kind), Group(one.source, one.kind, one))
                group.rows.append(one)
        noise = ("unknown_source", "missing", "malformed")
        return await visit.page(
            "rejections.html",
            fields=fields,
            choices={"source": list(self._receiver.settings.sources)},
            groups=sorted(groups.values(), key=lambda group: (group.kind in noise, -group.newest.at)),
        )

    async def verify(self, visit: Visit) -> Response:
        """Show what today's settings say of a rejected request, with a form that accepts it."""
        rejection_id = visit.path("rejection_id")
        judged = await verify_again(self._receiver, rejection_id)
        return await self._rejection(visit, rejection_id, judged=judged)

    async def accept(self, visit: Visit) -> Response:
        """Record a rejected request on the word of whoever is logged in, and tell what became of it."""
        if not 0 < len(visit.given("reason").strip()) <= MAX_REASON:
            raise UsageError(f"say why, in at most {MAX_REASON} characters: the audit keeps it")
        rejection_id = visit.path("rejection_id")
        recorded = await accept_once(self._receiver, rejection_id)
        return await self._rejection(visit, rejection_id, recorded=recorded)

    async def _rejection(
        self, visit: Visit, rejection_id: str, *, judged: Any = None, recorded: Recorded | None = None
    ) -> Response:
        found = await self._receiver.store.rejections(None, limit=1, one=rejection_id)
        one = found[0] if found else None
        return await visit.page("rejection.html", one=one, id=rejection_id, judged=judged, recorded=recorded)

    # ------------------------------------------------------------ parked

    async def parked(self, visit: Visit) -> Response:
        """Show callbacks that were verified and not understood, with what today's code makes of each."""
        store, fields = self._receiver.store, fields_of(visit, ("source", "after"))
        wanted = EventFilter(type=PARKED, source=fields["source"] or None, after=cursor(fields["after"]))
        events = await store.events(wanted)
        shown = [
            {"event": event, "body": await store.body(event.id), "row": row}
            for event, row in zip(events, await rows_of(store, events), strict=True)
        ]
        choices = {"source": list(self._receiver.settings.sources)}
        after = further(events.after)
        return await visit.page("parked.html", parked=shown, fields=fields, choices=choices, after=after)

    # ------------------------------------------------------------ pickups

    async def pickups(self, visit: Visit) -> Response:
        """Show results to be fetched, and callbacks that are expected."""
        fields = fields_of(visit, ("source", "state", "ref", "job", "id", "after"))
        state = _state(fields["state"])
        if fields["id"]:
            found = [await self._receiver.store.pickup(fields["id"])]
        else:
            wanted = PickupFilter(
                source=fields["source"] or None,
                state=state,
                ref=fields["ref"] or None,
                job_id=fields["job"] or None,
                after=fields["after"] or None,
                limit=PAGE + 1,
            )
            found = await self._receiver.store.pickups(wanted)
        tries: dict[str, list[PickupAttempt]] = {}
        for one in found[:PAGE]:
            tries[one.id] = await self._receiver.store.pickup_attempts(one.id) if one.attempts else []
        choices = {"source": list(self._receiver.ports.pulls), "state": [one.value for one in PickupState]}
        after = found[PAGE - 1].id if len(found) > PAGE else None
        return await visit.page(
            "pickups.html", fields=fields, choices=choices, pickups=found[:PAGE], tries=tries, after=after
        )

    # ------------------------------------------------------------ jobs

    async def jobs(self, visit: Visit) -> Response:
        """Show jobs, newest first; or one job, or all with one ref, across its events and pickups."""
        fields = fields_of(visit, ("ref", "job", "source", "after"))
        if fields["ref"] or fields["job"]:
            return await self._one_job(visit, fields)
        events = await self._receiver.store.events(EventFilter(source=fields["source"] or None, limit=200))
        pickups = await self._receiver.store.pickups(PickupFilter(source=fields["source"] or None, limit=50))
        choices = {"source": list(self._receiver.settings.sources)}
        return await visit.page("jobs.html", fields=fields, choices=choices, jobs=_jobs(events, pickups))

    async def _one_job(self, visit: Visit, fields: dict[str, str]) -> Response:
        name = fields["ref"] or fields["job"]
        job = await job_named(self._receiver, name, fields["source"] or None)
        explained = explain(job)
        return await visit.page(
            "job.html",
            name=name,
            explained=explained,
            remedy=_remedy(explained.cause, job),
            steps=[(step, *_LOOKS[step.what]) for step in explained.steps],
            rows=(await rows_of(self._receiver.store, job.events))[::-1],
            pickups=job.pickups[::-1],
        )


def _remedy(cause: Cause, job: Everything) -> tuple[str, str] | None:
    """Return the words and the address of the button that leads from a job to what can be done about it."""
    words, kind = _REMEDIES.get(cause, ("", ""))
    waiting = [one.destination for one in job.deliveries if one.due_at is not None]
    found = {
        "rejections": [f"?source={one.source}" for one in job.rejections],
        "events": [f"/{one.id}" for one in job.events if cause is not Cause.PARKED or one.type == PARKED],
        "pickups": [f"?id={one.id}" for one in job.pickups],
        "destinations": [f"/{one}" for one in waiting],
    }.get(kind)
    return (words, f"{HOME}/{kind}{found[-1]}") if found else None


def _register_at(source: SourceSettings) -> str:
    """Return where the callback URL goes at the provider."""
    if source.provider != "custom":
        return _REGISTER_AT.get(source.provider, "")
    about = CustomSettings.model_validate(source.options).about
    return about.register_at if about else ""


def _state(text: str) -> PickupState | None:
    try:
        return PickupState(text) if text else None
    except ValueError:
        raise UsageError(
            f"a pickup is {listed([one.value for one in PickupState])}, and nothing else"
        ) from None


def _jobs(events: list[Event], pickups: list[Pickup]) -> list[Job]:
    """Return one line for each job; what has neither job nor ref is left out."""
    jobs: dict[tuple[str, str], Job] = {}
    things: list[tuple[int, str, Event | Pickup]] = [(one.recorded_at, one.type, one) for one in events]
    things += [
        (pickup.updated_at, f"pickup {pickup.state.value}", pickup)
        for pickup in pickups
        if pickup.due_at is not None
    ]
    for at, state, one in sorted(things, key=lambda thing: -thing[0]):
        name, kind = (one.ref, "ref") if one.ref else (one.job_id, "job")
        if name is None:
            continue
        job = jobs.setdefault((kind, name), Job(name, kind, one.source, at, 0, state))
        job.events += not state.startswith("pickup ")
    return list(jobs.values())[:PAGE]
