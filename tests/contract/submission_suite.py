"""What every store must do about submissions. The fixture `store` is given elsewhere."""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec.structs import replace

from receiver.core.callback import TokenClaims
from receiver.core.event import new_id
from receiver.core.retention import Erasure, Prune, Subject, SubjectKind, Walk
from receiver.core.submission import REPEAT_SECONDS, Submission, SubmissionFilter, SubmissionState, Usage
from receiver.core.work import Pickup, PickupFilter, PickupState
from receiver.engine.pickups import new_expectation
from receiver.storage.store.store import Store
from tests.contract.store_suite import T0

ALL = SubmissionFilter()


New = tuple[Submission, TokenClaims, Pickup]


def new(token: int, *, fingerprint: str | None = "f", at: int = T0, **fields: Any) -> New:
    claims = TokenClaims(
        source="speech", token_id=f"{token:020x}", ref="order-1", expires_at=at + 9, expect_by=at + 5
    )
    submission = Submission(
        id=new_id("sub", at),
        application="crm",
        source="speech",
        request="POST /v1/jobs",
        token_id=claims.token_id,
        ref="order-1",
        fingerprint=fingerprint,
        created_at=at,
        updated_at=at,
    )
    return replace(submission, **fields), claims, new_expectation("speech", claims, None, now=at)


def ended(made: New, state: SubmissionState, job: str | None = None) -> Submission:
    return replace(made[0], state=state, status=200, job_id=job, answer=b"answer", updated_at=T0 + 1)


class SubmissionSuite:
    """A submission is there before its job is, and once for each wish."""

    async def test_a_submission_comes_with_its_token_and_its_expectation_which_learns_of_the_job(
        self, store: Store
    ) -> None:
        made = new(1)
        assert await store.begin_submission(*made) is None
        assert list(await store.submissions(ALL)) == [made[0]]
        assert await store.token_claims(made[1]) == made[1]
        await store.end_submission(ended(made, SubmissionState.ACCEPTED, "job-1"))
        [row] = await store.submissions(SubmissionFilter(application="crm", source="speech", job_id="job-1"))
        assert (row.state, row.status, row.answer) == (SubmissionState.ACCEPTED, 200, b"answer")
        [expected] = await store.pickups(PickupFilter())
        assert (expected.state, expected.job_id, expected.ref) == (PickupState.PENDING, "job-1", "order-1")

    async def test_where_there_is_no_job_nothing_is_expected(self, store: Store) -> None:
        refused, nothing = new(1, fingerprint="a"), new(2, fingerprint="b")
        for made, state in ((refused, SubmissionState.REFUSED), (nothing, SubmissionState.OPEN)):
            await store.begin_submission(*made)
            await store.end_submission(ended(made, state))
        assert await store.pickups(PickupFilter()) == []
        assert [row.id for row in await store.submissions(ALL)] == [refused[0].id]

    async def test_an_identical_one_is_the_earlier_one_until_that_was_delivered(self, store: Store) -> None:
        first, again = new(1), new(2)
        await store.begin_submission(*first)
        found = await store.begin_submission(*again)
        assert found is not None
        assert found.id == first[0].id
        assert len(await store.pickups(PickupFilter())) == 1
        stream = new(3, fingerprint=None)
        await store.begin_submission(*stream)
        late = T0 + REPEAT_SECONDS * 1000
        for application, at, known in (("crm", late, True), ("crm", late + 1, False), ("other", T0, False)):
            wanted = replace(stream[0], application=application, fingerprint="f", created_at=at)
            repeated = await store.fingerprint_submission(wanted)
            assert bool(repeated) is known
        await store.end_submission(ended(stream, SubmissionState.OPEN))
        await store.deliver_submission(first[0].id)
        assert await store.begin_submission(*again) is None

    async def test_a_key_is_of_the_first_accepted_one_for_as_long_as_it_is_remembered(
        self, store: Store
    ) -> None:
        keyed = [new(n, fingerprint=str(n), idempotency_key="k") for n in range(3)]
        await store.begin_submission(*keyed[0])
        await store.end_submission(ended(keyed[0], SubmissionState.REFUSED))
        assert await store.begin_submission(*keyed[1]) is None
        await store.forget_answers(before=T0 + 1)  # that of an open one stays
        await store.end_submission(ended(keyed[1], SubmissionState.ACCEPTED, "job-1"))
        await store.forget_answers(before=T0)
        found = await store.begin_submission(*keyed[2])
        assert found is not None
        assert found.job_id == "job-1"
        await store.end_submission(replace(found, answer=None))  # as of a long answer
        await store.forget_answers(before=T0 + 1)
        assert await store.begin_submission(*new(4, fingerprint="4", idempotency_key="k")) is None

    async def test_what_applications_use_is_one_sum_of_all_processes_in_each_window(
        self, store: Store
    ) -> None:
        calls, other = Usage("crm", "calls", 7, 2), Usage("billing", "calls", 7, 5)
        told = await asyncio.gather(*(store.count_usage((calls, other)) for _ in range(3)))
        assert sorted(told) == [(2, 5), (4, 10), (6, 15)]
        assert await store.count_usage((Usage("crm", "calls", 8, 1), Usage("crm", "jobs", 7, 1))) == (1, 1)
        assert await store.count_usage((calls,)) == (3,)  # from a process whose clock is behind
        assert await store.count_usage((Usage("crm", "calls", 9000, 5),)) == (
            5,
        )  # by a clock that was far ahead
        assert await store.count_usage((Usage("crm", "calls", 8, 2),)) == (2,)

    async def test_what_is_known_of_one_stays_when_another_process_closes_it_as_unknown(
        self, store: Store
    ) -> None:
        """A journal may tell what it came to between that process's look and its word."""
        made = new(1, idempotency_key="k")
        await store.begin_submission(*made)
        await store.end_submission(ended(made, SubmissionState.UNKNOWN))
        await store.end_submission(ended(made, SubmissionState.ACCEPTED, "job-1"))
        [known] = await store.submissions(ALL)
        await store.end_submission(ended(made, SubmissionState.UNKNOWN))
        assert list(await store.submissions(ALL)) == [known]
        assert known.job_id == "job-1"

    async def test_what_is_old_goes_and_what_is_open_stays(self, store: Store) -> None:
        left, done = new(1, fingerprint="a"), new(2, fingerprint="b")
        for made in (left, done):
            await store.begin_submission(*made)
        await store.end_submission(ended(done, SubmissionState.ACCEPTED, "job-1"))
        assert (await store.prune(Prune(walk=Walk.SUBMISSIONS, before=T0 + 10**6))).count == 1
        assert [row.id for row in await store.submissions(ALL)] == [left[0].id]
        await store.end_submission(ended(left, SubmissionState.UNKNOWN))
        assert (await store.prune(Prune(walk=Walk.SUBMISSIONS, before=T0 + 10**6))).count == 1

    async def test_erasing_a_job_or_a_ref_takes_its_submissions(self, store: Store) -> None:
        for number, kind in enumerate((SubjectKind.JOB, SubjectKind.REF)):
            made = new(number, fingerprint=str(number))
            await store.begin_submission(*made)
            await store.end_submission(ended(made, SubmissionState.ACCEPTED, "job-1"))
            key = "job-1" if kind is SubjectKind.JOB else "order-1"
            subject = Subject(kind=kind, key=key)
            await store.erase(Erasure(subject=subject, tombstone_id=f"tmb_{number}", digest="d", now=T0))
            assert await store.submissions(ALL) == []
            claims = await store.token_claims(TokenClaims(source="speech", token_id=f"{number:020x}"))
            assert claims is not None
            assert claims.ref is None
