"""How long data is kept, and what is erased on demand."""

from __future__ import annotations

from starlette.responses import Response

from receiver.core.errors import UsageError
from receiver.engine.erasure import WORDS
from receiver.web.api import erasures
from receiver.web.console.visit import Visit

_KINDS = {"ref": "ref", "job": "job_id", "event": "event_id"}


async def show(visit: Visit) -> Response:
    """Show how long each class is kept, and the tombstones of what was erased."""
    settings, stones = visit.settings.retention, await visit.store.tombstones(limit=50)
    return await visit.page("retention.html", settings=settings, tombstones=stones)


async def look(visit: Visit) -> Response:
    """Count what there is of a subject, before anybody erases it."""
    found = await _erased(visit, dry_run=True)
    counts = {many: getattr(found, name) for name, (_, many) in WORDS.items() if getattr(found, name)}
    return await visit.page("erase.html", kind=visit.given("kind"), key=visit.given("key"), counts=counts)


async def erase(visit: Visit) -> Response:
    """Erase a subject whose name was typed once more."""
    if visit.given("typed") != visit.given("key"):
        raise UsageError("what was typed is not the subject’s name: nothing was erased")
    removed = await _erased(visit, dry_run=False)
    return visit.lead(f"/retention?done=erased.{removed.events}")


async def _erased(visit: Visit, *, dry_run: bool) -> erasures.ErasureShown:
    kind, key = visit.given("kind"), visit.given("key")
    if kind not in _KINDS or not key:
        raise UsageError("name a ref, a job or an event")
    wanted = erasures.NewErasure(**{_KINDS[kind]: key}, dry_run=dry_run)
    counted: erasures.ErasureShown = await visit.do(erasures.make, body=wanted)
    return counted
