"""What became of a job."""

from __future__ import annotations

from msgspec import Struct

from receiver.core.retention import Subject, SubjectKind
from receiver.engine.erasure import Eraser
from receiver.engine.jobs import gather
from receiver.settings.load import token_secrets
from receiver.web.api.call import Call
from receiver.web.views import JobShown, job_shown


class JobQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """Whose job it is."""

    source: str | None = None
    """Only of this source, where two have jobs of one name."""


async def one(call: Call[JobQuery, None]) -> JobShown:
    """Tell what became of a job; 200 also when nothing is known of it, which is a cause as well."""
    receiver, name = call.receiver, call.path["name"]
    settings = receiver.settings
    job = await gather(
        receiver.store,
        name,
        now=receiver.clock(),
        secrets=token_secrets(settings),
        allowed={one: destination.policy.attempts for one, destination in settings.destinations.items()},
        journaled=await _journaled(call, name),
        source=call.query.source,
    )
    return job_shown(job)


async def _journaled(call: Call[JobQuery, None], name: str) -> int:
    """Return how many callbacks of a job are in this process's journal."""
    receiver = call.receiver
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
        Subject(kind=SubjectKind.JOB, key=name, source=call.query.source),
    ]
    return sum([len((await eraser.look(subject)).journaled) for subject in subjects])
