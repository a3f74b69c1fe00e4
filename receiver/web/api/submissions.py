"""Submissions: listed."""

from __future__ import annotations

from receiver.core.submission import SubmissionFilter, SubmissionState
from receiver.settings.model import ApiScope
from receiver.web.api.lists import Paged, filter_of, page
from receiver.web.api.operation import Call, operation
from receiver.web.views import Page, SubmissionShown


class SubmissionQuery(Paged, frozen=True):
    """Which submissions to list, newest first."""

    application: str | None = None
    source: str | None = None
    state: SubmissionState | None = None
    job_id: str | None = None
    ref: str | None = None


@operation("GET /submissions", ApiScope.READ)
async def listed(call: Call[SubmissionQuery, None]) -> Page[SubmissionShown]:
    """List jobs that applications submitted, newest first."""
    return page(await call.store.submissions(filter_of(call.query, SubmissionFilter)), SubmissionShown)
