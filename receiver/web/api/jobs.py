"""What became of a job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from receiver.core.retention import Subject, SubjectKind
from receiver.engine.erasure import Eraser
from receiver.engine.jobs import gather
from receiver.settings.load import token_secrets
from receiver.web.api.call import Call
from receiver.web.views import JobShown, job_shown

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver
    from receiver.core.explain import Job


class JobQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """Whose job it is."""

    source: str | None = None
    """Only of this source, where two have jobs of one name."""


async def one(call: Call[JobQuery, None]) -> JobShown:
    """Tell what became of a job; 200 also when nothing is known of it, which is a cause as well."""
    return job_shown(await job_named(call.receiver, call.path["name"], call.query.source))


async def job_named(receiver: Receiver, name: str, source: str | None) -> Job:
    """Return all that is known here of a ref, a job id or an event's id. Raises `StoreUnavailable`."""
    settings = receiver.settings
    return await gather(
        receiver.store,
        name,
        now=receiver.clock(),
        secrets=token_secrets(settings),
        allowed={one: destination.policy.attempts for one, destination in settings.destinations.items()},
        journaled=await _journaled(receiver, name, source),
        source=source,
    )


async def _journaled(receiver: Receiver, name: str, source: str | None) -> int:
    """Return how many callbacks of a job are in this process's journal."""
    if not receiver.journal.depth:
        return 0
    eraser = Eraser(
        store=receiver.store,
        blobs=receiver.blobs,
        journal=receiver.journal,
        providers=receiver.ports.providers,
    )
    subjects = [
        Subject(kind=SubjectKind.REF, key=name),
        Subject(kind=SubjectKind.JOB, key=name, source=source),
    ]
    return sum([len((await eraser.look(subject)).journaled) for subject in subjects])
