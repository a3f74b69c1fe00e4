"""Removes data in the store, for the janitor and for erasures.

A batch examines a limited number of rows and removes those that are old enough. Each DELETE checks again that the row has
ended, since another process may have restarted it meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence, Sized

from receiver.core.event import CallbackRow, again_key, id_beside, moment
from receiver.core.retention import (
    CallbackKeys,
    Erased,
    Erasure,
    Prune,
    Pruned,
    Subject,
    SubjectKind,
    Tombstone,
    Traces,
    Walk,
)
from receiver.storage.store import submissions
from receiver.storage.store.events import callback_ids, requests_naming, write_callbacks
from receiver.storage.store.listing import bound, listed
from receiver.storage.store.statements import Each, Row, Session, Value, value_of

ERASED = "ERASED"
"""The `method` of a callback row that was erased except for its keys."""


# ---------------------------------------------------------------- in time


@Each
def prune(session: Session, request: Prune) -> Pruned:
    """Do one batch of one walk: look at some rows, remove those that are old enough and have ended.

    What is under way is never touched, whatever its age: deliveries `pending` or `delivering`, pickups `pending` or
    `collecting`, their events and callbacks. Harmless to repeat, and beside others that do the same.
    """
    statement, prefix, remove = _WALKS[request.walk]
    params: dict[str, Value] = {"before": request.before, "limit": request.limit}
    if prefix is not None:
        params |= {"after": request.after, "bound": bound(prefix, request.before)}
    if request.walk is Walk.EVENTS:
        params["dead_before"] = request.dead_before
    looked_at = session.run(statement, params)
    removable = sorted(row[0] for row in looked_at if not row[1])
    count, freed = remove(session, removable, looked_at) if removable else (0, ())
    after = looked_at[-1][0] if len(looked_at) == request.limit else None
    return Pruned(count=count, after=after, blob_keys=_unlinked(session, freed))


_Removed = tuple[int, Iterable[str]]


def _ids(session: Session, name: str, ids: Iterable[Value]) -> list[str]:
    return [row[0] for row in session.run_rows(name, [(row_id,) for row_id in ids])]


def _rows(statement: str, attempts: str = "") -> Callable[[Session, Sequence[str], Sequence[Row]], _Removed]:
    """Return a removal by one statement, and by `attempts` of the attempts of what it removed."""

    def remove(session: Session, ids: Sequence[str], _: Sequence[Row]) -> _Removed:
        removed = _ids(session, statement, ids)
        if attempts:
            _ids(session, attempts, removed)
        return len(removed), ()

    return remove


def _audio(session: Session, ids: Sequence[str], looked_at: Sequence[Row]) -> _Removed:
    keys = {row[0]: row[2] for row in looked_at}
    cleared = _ids(session, "forget_audio", ids)
    return len(cleared), [keys[event_id] for event_id in cleared]


def _events(session: Session, ids: Sequence[str], _: Sequence[Row]) -> _Removed:
    _ids(session, "forget_attempts", sorted(_ids(session, "forget_deliveries", ids)))
    # An event whose delivery was replayed a moment ago still has it, and stays.
    removed = _forget_events(session, ids)
    if removed:
        gone = {row[0] for row in removed}
        callbacks = _led_to(session, gone, min(gone), max(gone))
        _ids(session, "forget_callbacks", sorted(row[0] for row in callbacks))
    return len(removed), [row[1] for row in removed if row[1] is not None]


def _forget_events(session: Session, ids: Sequence[str]) -> list[Row]:
    """Remove events without deliveries, and deliveries that another process added while the DELETE waited for it."""
    removed = session.run_rows("forget_events", [(event_id,) for event_id in ids])
    _ids(session, "erase_deliveries", sorted(row[0] for row in removed))
    return removed


def _led_to(session: Session, events: Container[str], first: str, last: str) -> list[Row]:
    """Return the callbacks of `events`, of which the ids are from `first` to `last`."""
    rows = session.run("callbacks_between", callback_ids(first, last))
    return [row for row in rows if row[4] in events]


def _unlinked(session: Session, keys: Iterable[str]) -> tuple[str, ...]:
    freed = tuple(dict.fromkeys(keys))
    still = known_blobs(session, freed)
    return tuple(key for key in freed if key not in still)


_Walk = tuple[str, str | None, Callable[[Session, Sequence[str], Sequence[Row]], _Removed]]
_WALKS: Mapping[Walk, _Walk] = {
    Walk.BODIES: ("old_bodies", "cb", _rows("forget_bodies")),
    Walk.ATTEMPTS: ("old_attempts", "dlv", _rows("forget_attempts")),
    Walk.PICKUP_ATTEMPTS: ("old_pickup_attempts", "pku", _rows("forget_pickup_attempts")),
    Walk.AUDIO: ("old_audio", "evt", _audio),
    Walk.DEAD_LETTERS: ("old_dead_letters", None, _rows("forget_dead_letters", "forget_attempts")),
    Walk.EVENTS: ("old_events", "evt", _events),
    Walk.CALLBACKS: ("old_callbacks", "cb", _rows("forget_callbacks")),
    Walk.PICKUPS: ("old_pickups", "pku", _rows("forget_pickups", "forget_pickup_attempts")),
    Walk.KEYS: ("old_keys", None, _rows("forget_callbacks")),
    Walk.TOKENS: ("old_tokens", None, _rows("forget_tokens")),
    Walk.SUBMISSIONS: ("old_submissions", "sub", _rows("forget_submissions")),
    Walk.OPERATIONS: ("old_operations", None, _rows("forget_operations")),
    Walk.REJECTED_REQUESTS: ("old_rejected_requests", None, _rows("forget_rejected_requests")),
}
"""For each walk: the statement that looks, the prefix of the ids it goes along (None: all that it finds may go), and what
removes.
"""


def known_blobs(session: Session, keys: Sequence[str]) -> set[str]:
    """Return those of `keys` that an event links to."""
    return set(_ids(session, "known_blobs", keys))


# ---------------------------------------------------------------- on demand


def traces(session: Session, subject: Subject, *, limit: int) -> Traces:
    """Return a subject's rows; with more than `limit` events or pickups, the newest of them."""
    events, pickups = _named(session, subject, limit)
    jobs = {(row[2], row[4]) for row in events.values()} | {(row[1], row[4]) for row in pickups.values()}
    jobs = {(source, job_id) for source, job_id in jobs if job_id is not None}
    if subject.kind is SubjectKind.REF:
        # The same jobs may have had callbacks without the ref.
        for source, job_id in sorted(jobs):
            params = {"source": source, "job_id": job_id, "limit": max(limit, _OF_ONE_JOB)}
            condition = "job_id = :job_id AND source = :source AND ref IS NULL"
            events |= _by_id(session.run("list_events", params, condition))
            pickups |= _by_id(session.run("list_pickups", params, condition))
    _add_read_again(session, events, pickups, limit)
    names = {subject.key, *(job_id for _, job_id in jobs)}
    ref = subject.key if subject.kind is SubjectKind.REF else None
    links = Counter(row[10] for row in events.values() if row[10] is not None)
    deliveries = _ids(session, "deliveries_of_events", sorted(events))
    return Traces(
        event_ids=tuple(sorted(events)),
        callbacks=_callbacks(session, events, pickups),
        deliveries=len(deliveries),
        pickup_ids=tuple(sorted(pickups)),
        blob_keys=_own_blobs(session, links),
        jobs=tuple(sorted(jobs)),
        requests=tuple(requests_naming(session, ref, names)),
    )


def _own_blobs(session: Session, links: Counter[str]) -> tuple[str, ...]:
    """Return the objects that these events link to and no others do."""
    all_links = Counter(_ids(session, "known_blobs", sorted(links)))
    return tuple(sorted(key for key, count in links.items() if all_links[key] <= count))


_OF_ONE_JOB = 10_000
_Rows = dict[str, Row]


def _by_id(rows: Iterable[Row]) -> _Rows:
    return {row[0]: row for row in rows}


def _named(session: Session, subject: Subject, limit: int) -> tuple[_Rows, _Rows]:
    if subject.kind is SubjectKind.EVENT:
        return _of_event(session, subject.key, limit)
    column = "ref = :ref" if subject.kind is SubjectKind.REF else "job_id = :job_id"
    conditions: dict[str, Value] = {column: subject.key, "source = :source": subject.source}
    return (
        _by_id(listed(session, "list_events", conditions, limit)),
        _by_id(listed(session, "list_pickups", conditions, limit)),
    )


def _of_event(session: Session, event_id: str, limit: int) -> tuple[_Rows, _Rows]:
    """Return one event, and the pickups that ended or will end in it."""
    events = _by_id(session.run("list_events", {"id": event_id, "limit": 1}, "id = :id"))
    # A pickup and its event are made in the same millisecond; one that another's event ended has its job or its ref.
    made = {"id >= :first": f"pku_{moment(event_id)}", "id < :beyond": f"pku_{moment(event_id)}~"}
    searches: list[dict[str, Value]] = [dict(made)]
    for row in events.values():
        searches += [{"job_id = :job_id": row[4]}, {"ref = :ref": row[5]}]
    pickups: _Rows = {}
    for conditions in searches:
        if None not in conditions.values():
            rows = listed(session, "list_pickups", conditions, limit)
            pickups |= _by_id(row for row in rows if row[7] == event_id)
    return events, pickups


def _add_read_again(session: Session, events: _Rows, pickups: _Rows, limit: int) -> None:
    """Add the events that renormalizing made of these events' callbacks, and further ones made of those."""
    new = events
    while new:
        keys = [(row[2], again_key(event_id), again_key(event_id, "~")) for event_id, row in new.items()]
        made = {row[0] for row in session.run_rows("read_again", keys)} - events.keys()
        found = [_of_event(session, event_id, limit) for event_id in sorted(made)]
        new = {event_id: row for some, _ in found for event_id, row in some.items()}
        events |= new
        for _, some in found:
            pickups |= some


def _callbacks(session: Session, events: _Rows, pickups: _Rows) -> dict[str, CallbackKeys]:
    """Return the callbacks that lead to these events, or that these pickups were made by."""
    rows: _Rows = {}
    for event_id in sorted({*events, *(row[7] for row in pickups.values())}):
        rows |= _by_id(_led_to(session, (event_id,), event_id, event_id))
    keys = sorted({(row[1], row[3]) for row in pickups.values()})
    rows |= _by_id(session.run_rows("callbacks_of_pickups", keys))
    others = sorted({row[4] for row in rows.values()} - set(events))
    kept = set(_ids(session, "known_events", others))
    return {
        row[0]: CallbackKeys(source=row[1], idempotency_key=row[2], second_key=row[3], event_id=row[4])
        for row in rows.values()
        if row[5] != ERASED and row[4] not in kept
    }


@Each
def erase(session: Session, request: Erasure) -> Erased:
    """Remove up to `limit` events and pickups of a subject, under way or not, and all that hangs on them.

    Of their callbacks only the keys stay, for `KEYS_SECONDS`: what the provider sends again is a `DUPLICATE`. A tombstone
    adds up what was removed; none is left where there was nothing.

    What is `journaled` may be recorded by another process until its keys are written: look again after that.
    """
    traced = traces(session, request.subject, limit=request.limit)
    deliveries = _ids(session, "erase_deliveries", traced.event_ids)
    _ids(session, "forget_attempts", sorted(deliveries))
    gone = _forget_events(session, traced.event_ids)
    callbacks = sorted(traced.callbacks)
    session.run_rows("erase_callbacks", [(callback_id, request.now) for callback_id in callbacks])
    _end_pickups(session, traced.pickup_ids, request)
    _keep_keys(session, request.journaled, request.now)
    submissions.erase(session, request.subject, traced.jobs)
    _ids(session, "forget_rejected_requests", traced.requests)
    if request.subject.kind is SubjectKind.REF:
        session.run("erase_rejections", {"ref": request.subject.key})
    freed = _unlinked(session, [row[1] for row in gone if row[1] is not None])
    if traced or request.journaled or request.noted:
        removed: list[Sized] = [
            gone, callbacks, deliveries, traced.pickup_ids, freed, request.journaled,
        ]  # fmt: skip
        named: tuple[Value, ...] = (request.tombstone_id, request.subject.kind, request.digest, request.now)
        session.run_rows("add_tombstone", [(*named, *map(len, removed)), *_of_jobs(request)])
    return Erased(traces=traced, blob_keys=freed)


def _of_jobs(request: Erasure) -> list[tuple[Value, ...]]:
    return [
        (f"{request.tombstone_id}.{one}", SubjectKind.JOB_OF_REF, one, request.now, 0, 0, 0, 0, 0, 0)
        for one in request.of_jobs
    ]


def _end_pickups(session: Session, ids: Sequence[str], request: Erasure) -> None:
    """Remove pickups, under way or not, and keep the keys of their results: what a provider still sends is a duplicate."""
    results = session.run_rows("result_keys", [(pickup_id,) for pickup_id in ids])
    session.run_rows("drop_pickups", [(pickup_id,) for pickup_id in ids])
    _ids(session, "forget_pickup_attempts", ids)
    keys = [
        CallbackKeys(source=row[0], idempotency_key=row[1], second_key=row[1], event_id=row[2])
        for row in results
    ]
    _keep_keys(session, keys, request.now)


def _keep_keys(session: Session, callbacks: Sequence[CallbackKeys], now: int) -> None:
    """Write callback rows that hold only their keys."""
    rows = [
        CallbackRow(
            id=id_beside("cb", keys.event_id),
            source=keys.source,
            idempotency_key=keys.idempotency_key,
            second_key=keys.second_key,
            method=ERASED,
            content_type="",
            received_at=now,
            body_size=0,
            body_sha256="",
            body=None,
            proofs="",
        )
        for keys in callbacks
    ]
    write_callbacks(session, [(row, keys.event_id, b"") for row, keys in zip(rows, callbacks, strict=True)])


def tombstones(session: Session, digest: str | None = None, *, limit: int = 100) -> list[Tombstone]:
    """Return tombstones, newest first; those of one digest, or all that a person asked for."""
    asked_for = "TRUE" if digest else f"kind <> '{SubjectKind.JOB_OF_REF}'"
    rows = listed(session, "list_tombstones", {"digest = :digest": digest}, limit, asked_for)
    return [value_of(Tombstone, row) for row in rows]
