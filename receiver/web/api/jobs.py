"""Jobs that applications submitted, and what became of a job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import asdict

from receiver.core.explain import Cause, Job, Step, explain
from receiver.core.retention import Subject, SubjectKind
from receiver.core.submission import Submission, SubmissionFilter, SubmissionState
from receiver.engine.jobs import gather
from receiver.settings.model import ApiScope
from receiver.web.api.lists import Paged, filter_of, page
from receiver.web.api.operation import Call, Served, operation
from receiver.web.views import Page

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver


class SubmissionQuery(Paged, frozen=True):
    """Which submissions to list, newest first."""

    application: str | None = None
    source: str | None = None
    state: SubmissionState | None = None
    job_id: str | None = None
    ref: str | None = None


@operation("GET /submissions", ApiScope.READ)
async def submissions(call: Call[SubmissionQuery, None]) -> Page[Submission]:
    """List jobs that applications submitted, newest first."""
    return page(await call.store.submissions(filter_of(call.query, SubmissionFilter)))


class JobShown(Struct, frozen=True, kw_only=True):
    """What became of a job."""

    name: str
    cause: Cause
    sentence: str
    steps: Sequence[Step]
    """Oldest first; what is still to come at the end."""
    events: list[str]
    """The ids of its events, oldest first."""
    pickups: list[str]


class JobQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """Whose job it is."""

    source: str | None = None
    """Only of this source, where two have jobs of one name."""


@operation("GET /jobs/{name}", ApiScope.READ)
async def one(call: Served[JobQuery, None]) -> JobShown:
    """Tell what became of a job, by its ref, its id at the provider or an event's id."""
    return job_shown(await job_named(call.receiver, call.path["name"], call.query.source))


def job_shown(job: Job) -> JobShown:
    """Return what became of a job as it is shown."""
    return JobShown(
        name=job.name,
        **asdict(explain(job)),
        events=[event.id for event in job.events],
        pickups=[pickup.id for pickup in job.pickups],
    )


async def job_named(receiver: Receiver, name: str, source: str | None) -> Job:
    """Return all that is known here of a ref, a job id or an event's id, this process's journal included.

    Raises `StoreUnavailable`.
    """
    ref, job = Subject(kind=SubjectKind.REF, key=name), Subject(kind=SubjectKind.JOB, key=name, source=source)
    here = [await receiver.eraser.look(one) for one in (ref, job)] if receiver.journal.depth else []
    return await gather(
        receiver.store,
        receiver.settings,
        name,
        source,
        now=receiver.clock(),
        journaled=sum(len(found.journaled) for found in here),
    )
