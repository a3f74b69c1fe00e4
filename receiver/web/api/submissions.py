"""Submissions: listed."""

from __future__ import annotations

from msgspec import Struct, to_builtins

from receiver.core.submission import SubmissionFilter, SubmissionState
from receiver.web.api.call import Call
from receiver.web.api.lists import Limit, page
from receiver.web.views import Page, SubmissionShown


class SubmissionQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """Which submissions to list, newest first."""

    application: str | None = None
    source: str | None = None
    state: SubmissionState | None = None
    job_id: str | None = None
    ref: str | None = None
    after: str | None = None
    """`next` of the page before."""
    limit: Limit = 50


async def listed(call: Call[SubmissionQuery, None]) -> Page[SubmissionShown]:
    """List submissions."""
    found = await call.receiver.store.submissions(SubmissionFilter(**to_builtins(call.query)))
    return page(found, SubmissionShown)
