"""How long data is kept, and what is erased on demand."""

from __future__ import annotations

from starlette.responses import RedirectResponse, Response

from receiver.core.errors import UsageError
from receiver.engine.erasure import WORDS
from receiver.web.api import erasures
from receiver.web.console.visit import HOME, Visit

_CLASSES = {
    "bodies": "the kept bodies of callbacks",
    "attempts": "attempts of what has ended, with answers",
    "audio": "audio, other results, and their waveforms",
    "dead_letters": "deliveries that were given up",
    "events": "events with all that belongs to them",
}
_KINDS = {"ref": "ref", "job": "job_id", "event": "event_id"}


async def show(visit: Visit) -> Response:
    """Show how long each class is kept, and the tombstones of what was erased."""
    settings = visit.receiver.settings.retention
    return await visit.page(
        "retention.html",
        classes=[(name, getattr(settings, name), what) for name, what in _CLASSES.items()],
        sweep=settings.sweep_seconds,
        tombstones=await visit.receiver.store.tombstones(limit=50),
    )


async def look(visit: Visit) -> Response:
    """Count what there is of a subject, before anybody erases it."""
    kind, key, found = await _erased(visit, dry_run=True)
    counts = {many: getattr(found, name) for name, (_, many) in WORDS.items() if getattr(found, name)}
    return await visit.page("erase.html", kind=kind, key=key, counts=counts)


async def erase(visit: Visit) -> Response:
    """Erase a subject whose name was typed once more."""
    if visit.given("typed") != visit.given("key"):
        raise UsageError("what was typed is not the subject’s name: nothing was erased")
    _, _, removed = await _erased(visit, dry_run=False)
    return RedirectResponse(f"{HOME}/retention?done=erased.{removed.events}", 303)


async def _erased(visit: Visit, *, dry_run: bool) -> tuple[str, str, erasures.ErasureShown]:
    kind, key = visit.given("kind"), visit.given("key")
    if kind not in _KINDS or not key:
        raise UsageError("name a ref, a job or an event")
    wanted = erasures.NewErasure(**{_KINDS[kind]: key}, dry_run=dry_run)
    return kind, key, await erasures.make.handle(visit.call(body=wanted))
