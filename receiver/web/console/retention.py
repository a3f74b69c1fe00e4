"""How long data is kept, what is erased on demand, and who did what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.responses import RedirectResponse, Response

from receiver.core.errors import UsageError
from receiver.core.retention import Subject, SubjectKind
from receiver.engine.erasure import WORDS
from receiver.web.console.events import PAGE, fields_of
from receiver.web.console.guard import HOME, Visit

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver


@dataclass(frozen=True, slots=True)
class Kept:
    """One class of data and how long it is kept."""

    name: str
    what: str
    age: str


_CLASSES = (
    ("bodies", "the kept bodies of callbacks"),
    ("attempts", "attempts of what has ended, with answers"),
    ("audio", "audio, other results, and their waveforms"),
    ("dead_letters", "deliveries that were given up"),
    ("events", "events with all that belongs to them"),
)


class RetentionPages:
    """The pages, and the form that erases."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def show(self, visit: Visit) -> Response:
        """Show how long each class is kept, and the tombstones of what was erased."""
        settings = self._receiver.settings.retention
        return await visit.page(
            "retention.html",
            classes=[Kept(name, what, getattr(settings, name)) for name, what in _CLASSES],
            sweep=settings.sweep_seconds,
            tombstones=await self._receiver.store.tombstones(limit=50),
        )

    async def look(self, visit: Visit) -> Response:
        """Count what there is of a subject, before anybody erases it."""
        subject = self._subject(visit)
        found = await self._receiver.eraser.look(subject)
        counts = {many: getattr(found.counts, name) for name, (_, many) in WORDS.items()}
        return await visit.page("erase.html", subject=subject, found=found, counts=counts)

    async def erase(self, visit: Visit) -> Response:
        """Erase a subject whose name was typed once more."""
        subject = self._subject(visit)
        if visit.given("typed") != subject.key:
            raise UsageError("what was typed is not the subject’s name: nothing was erased")
        eraser = self._receiver.eraser
        found = await eraser.look(subject)
        removed = await eraser.erase(subject, found, now=self._receiver.clock())
        return RedirectResponse(f"{HOME}/retention?done=erased.{removed.events}", 303)

    async def audit(self, visit: Visit) -> Response:
        """Show what was done, over the API and here, newest first."""
        fields = fields_of(visit, ("token", "after"))
        found = await self._receiver.store.acts(fields["token"] or None, fields["after"] or None, PAGE + 1)
        names = sorted({token.name for token in self._receiver.settings.api.tokens})
        after = found[PAGE - 1].id if len(found) > PAGE else None
        choices = {"token": names}
        return await visit.page("audit.html", fields=fields, choices=choices, acts=found[:PAGE], after=after)

    def _subject(self, visit: Visit) -> Subject:
        kind, key = visit.given("kind"), visit.given("key")
        if kind not in SubjectKind.__members__.values() or not key:
            raise UsageError("name a ref, a job or an event")
        return Subject(kind=SubjectKind(kind), key=key)
