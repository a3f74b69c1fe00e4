"""Callbacks, their events and rejections in the store: recording (with deliveries), reading and listing.

Only the backends in this package wait or commit: a backend opens a transaction, these functions run in it, and the backend
commits. Functions that write take the requests of many callers at once, since a statement for many rows costs little more
than for one.
"""

from __future__ import annotations

import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import msgspec
from msgspec.structs import astuple

from receiver.core.errors import NotFound
from receiver.core.event import (
    EVENT_TYPES,
    Answered,
    Callback,
    CallbackRow,
    Event,
    EventSearch,
    Place,
    PlacedEvent,
    Positions,
    Recorded,
    Recording,
    RecordStatus,
    RejectedRequest,
    Rejection,
    Stage,
    moment,
    new_id,
)
from receiver.core.page import Page
from receiver.core.routing import Decision
from receiver.core.work import DeliveryState
from receiver.storage.store.listing import (
    LOOKED_AT,
    LOOKED_UP,
    OF_STATE,
    Listing,
    is_pattern,
    listed,
    named,
    one,
    page,
)
from receiver.storage.store.statements import Each, Row, Session, Value, clean, value_of

# ---------------------------------------------------------------- kept bodies

_WINDOW, _MEMORY = 15, 5
"""zlib's parameters: the longest match distance, and the least memory, which makes the shortest header."""


def difference(body: bytes | None, data: bytes) -> tuple[bytes | None, int]:
    """Return the stored form of a body and its flag: 1 for a difference from the event's data, 0 for the body itself.

    Most of a body is also in its event's data, which serves as zlib's dictionary: some hundred bytes instead of two thousand.
    It is restored byte by byte, as long as the event exists.
    """
    if not body or len(body) > 2 * len(data):
        return body, 0
    deflate = zlib.compressobj(
        zlib.Z_BEST_SPEED, zlib.DEFLATED, -_WINDOW, _MEMORY, zlib.Z_DEFAULT_STRATEGY, data
    )
    differs = deflate.compress(body) + deflate.flush()
    return (differs, 1) if 2 * len(differs) < len(body) else (body, 0)


def whole(kept: bytes | None, differs: int, data: bytes) -> bytes | None:
    """Return the body that `difference` was given."""
    if kept is None or not differs:
        return kept
    return zlib.decompressobj(-_WINDOW, data).decompress(kept)


R = TypeVar("R")

# ---------------------------------------------------------------- recorded


def record(session: Session, recordings: Sequence[Recording]) -> list[Recorded]:
    """Write callbacks, events and deliveries, all or none. A recording that replaces an event that no longer exists writes
    nothing.

    A callback whose (source, idempotency key) or (source, second key) is known is a `DUPLICATE` and writes nothing. A
    `PROGRESS` event whose (source, job) already has a `FINAL` event, or a deferred one, is `LATE`: recorded, with no
    deliveries. Deliveries start `pending`, due at the event's `recorded_at`.

    With `answered`, the pickup (source, `answered.key`) is updated unless it is `collected`: a final answer makes it
    `collected` with this event (for a duplicate, the first one); another answer adds the job id if the pickup lacks it.
    """
    return unless_gone(session, [one.replaces for one in recordings], recordings, _record)


def unless_gone(
    session: Session,
    replaced: Sequence[str | None],
    requests: Sequence[R],
    write: Callable[[Session, Sequence[R]], list[Recorded]],
) -> list[Recorded]:
    """Write requests, except those that replace an event that no longer exists: that one was erased meanwhile."""
    wanted = sorted({one for one in replaced if one is not None})
    if not wanted:
        return write(session, requests)
    there = {None, *(row[0] for row in session.run_rows("lock_events", [(one,) for one in wanted]))}
    fitting = [request for request, one in zip(requests, replaced, strict=True) if one in there]
    results = iter(write(session, fitting) if fitting else ())
    return [
        Recorded(status=RecordStatus.GONE, event_id=one) if one and one not in there else next(results)
        for one in replaced
    ]


def _record(session: Session, recordings: Sequence[Recording]) -> list[Recorded]:
    unknown = write_callbacks(session, [(one.callback, one.event.id, one.event.data) for one in recordings])
    new = []
    for recording in recordings:
        new.append(recording.callback.id in unknown)
        unknown.discard(recording.callback.id)  # the same callback twice in one batch counts once
    late = write_events(session, list(itertools.compress(recordings, new)))
    results, answers = [], []
    for recording, is_new in zip(recordings, new, strict=True):
        if is_new:
            event_id = recording.event.id
            status = RecordStatus.LATE if event_id in late else RecordStatus.RECORDED
        else:
            event_id, status = first_event(session, recording.callback), RecordStatus.DUPLICATE
        results.append(Recorded(status=status, event_id=event_id))
        if recording.answered:
            at = recording.event.recorded_at
            answers.append((recording.callback.source, recording.answered, event_id, at))
    if answers:
        resolve(session, answers)
    return results


def write_callbacks(session: Session, callbacks: Iterable[tuple[CallbackRow, str, bytes]]) -> set[str]:
    """Write callbacks, each with its event's id and data; return the ids of the new ones.

    The data is empty if the event comes later, or does not exist.
    """
    rows = []
    for callback, event_id, data in callbacks:
        *before, body, proofs, arrival = astuple(callback)
        kept, differs = difference(body, data)
        rows.append((*before, kept, proofs, arrival, event_id, differs))
    return {row[0] for row in session.run_rows("insert_callbacks", rows)}


def write_events(session: Session, recordings: Sequence[Recording]) -> set[str]:
    """Write the events and deliveries of recordings; return the ids of late events, which get no deliveries."""
    events = [recording.event for recording in recordings]
    late = _late(session, events)
    if events:
        session.begin_recording()
    rows: list[tuple[Value, ...]] = []
    deliveries: list[tuple[Value, ...]] = []
    for recording in recordings:
        event, at, is_late = recording.event, recording.event.recorded_at, recording.event.id in late
        rows.append((*astuple(event), None if is_late else recording.routing))
        if recording.destinations and not is_late:
            keys = [f"{event.source} {key or event.id}" for key in (event.job_id, event.ref)]
            deliveries += [
                (new_id("dlv", at), event.id, to, at, at, at, *keys) for to in recording.destinations
            ]
    session.run_rows("insert_events", rows)
    session.run_rows("insert_deliveries", deliveries)
    return late


def first_event(session: Session, callback: CallbackRow) -> str:
    """Return the event of the first callback that is the same as this one, by either key. There must be one."""
    keys = {
        "source": callback.source,
        "idempotency_key": callback.idempotency_key,
        "second_key": callback.second_key,
    }
    event_id: str = session.run("first_event", keys)[0][0]
    return event_id


def resolve(session: Session, answers: Iterable[tuple[str, Answered, str, int]]) -> None:
    """Update the pickups that expect these callbacks: a final answer makes one `collected`, another adds a missing job id.

    An answer has its source, its event's id, and the time of the callback.
    """
    rows: dict[tuple[str, str], tuple[Value, ...]] = {}
    for source, answered, event_id, at in answers:
        awaited = (source, clean(answered.key))
        _, _, known_id, ended, _ = rows.get(awaited, (None,) * 5)
        if (answered.final or answered.job_id) and ended is None:  # nothing comes after a final one
            rows[awaited] = (
                *awaited,
                known_id or answered.job_id,
                event_id if answered.final else None,
                at,
            )
    resolved = {(row[0], row[1]) for row in session.run_rows("resolve_pickups", list(rows.values()))}
    unresolved = [row for awaited, row in rows.items() if awaited not in resolved]
    session.run_rows("resolve_gone_pickups", unresolved)


def _late(session: Session, events: Sequence[Event]) -> set[str]:
    """Return the ids of the events of progress that come after their job's end, earlier ones of the batch included."""
    jobs = {
        (clean(event.job_id), event.source)
        for event in events
        if event.stage is Stage.PROGRESS and event.job_id
    }
    if not jobs:
        return set()
    ended = {(row[0], row[1]) for row in session.run_rows("ended_jobs", list(jobs))}
    late = set()
    for event in events:
        job = (clean(event.job_id or ""), event.source)
        if event.stage is Stage.PROGRESS and job in ended:
            late.add(event.id)
        elif event.stage is Stage.FINAL and event.job_id:
            ended.add(job)
    return late


# ---------------------------------------------------------------- read


def event(session: Session, event_id: str) -> Event:
    """Return one event. Raises `NotFound`."""
    return value_of(Event, one(session, "event", "list_events", event_id))


def body(session: Session, event_id: str) -> bytes | None:
    """Return the kept body of the callback behind an event, secrets removed; None when it is kept as a blob.

    Raises `NotFound`.
    """
    rows = session.run("callback_body", {**callback_ids(event_id), "event_id": event_id})
    if not rows:
        raise NotFound(f"no event has the id {event_id}")
    kept, differs, data = rows[0]
    return None if kept is None else whole(bytes(kept), differs, bytes(data))


def routing(session: Session, event_id: str) -> list[Decision]:
    """Return the routing decisions recorded with an event; empty for a late event or an unknown one."""
    rows = session.run("event_routing", {"id": event_id})
    return msgspec.json.decode(rows[0][0], type=list[Decision]) if rows and rows[0][0] else []


def callback(session: Session, event_id: str) -> Callback | None:
    """Return the callback behind an event, None where it is not there (any more)."""
    rows = session.run("callback_of_event", {**callback_ids(event_id), "event_id": event_id})
    if not rows:
        return None
    *row, arrival = rows[0]
    return value_of(Callback, [*row, None if arrival is None else msgspec.json.decode(arrival)])


def callback_ids(first: str, last: str | None = None) -> dict[str, Value]:
    """Return the lowest and highest id that callbacks of these events can have: both are made for the same millisecond."""
    return {"first": f"cb_{moment(first)}", "beyond": f"cb_{moment(last or first)}~"}


def has_scope(session: Session, source: str, scope: str) -> bool:
    """Return whether a callback was recorded whose identity begins with `scope`."""
    bounds: dict[str, Value] = {"source": source, "first": scope, "beyond": f"{scope}~"}
    return bool(session.run("callback_between_keys", bounds))


_BACK = Listing("events_back", "place_of_events_back", "(e.position, e.id)", (0, 1))
_ONWARD = Listing("events_onward", "place_of_events_onward", "(e.position, e.id)", (0, 1), onward=True)
TROUBLED = tuple(one for one in EVENT_TYPES if not one.endswith((".completed", ".processing", ".partial")))
"""Event types of failures and of operation. They are rare and often searched for, so they have their own indexes."""
_TROUBLED = f"type IN {TROUBLED}"
_RECORDING_MS = 600_000
"""The order of recording and that of times differ by this much at most."""


def search(session: Session, wanted: EventSearch) -> Page[PlacedEvent]:
    """List events in the order of recording, a page at a time."""
    indexed: dict[str, Value] = {"e.job_id = :job_id": wanted.job_id, "e.ref = :ref": wanted.ref}
    others: dict[str, Value | tuple[str, ...]] = {
        "e.provider = :provider": wanted.provider,
        "e.type || '' IN :type": wanted.types,
        "e.recorded_at >= :since": wanted.since,
        "e.recorded_at < :until": wanted.until,
        "e.size >= :min_bytes": wanted.min_bytes,
        "e.size <= :max_bytes": wanted.max_bytes,
        "e.duration_ms >= :min_duration_ms": wanted.min_duration_ms,
        "e.duration_ms <= :max_duration_ms": wanted.max_duration_ms,
    }
    if wanted.types and set(wanted.types) <= set(TROUBLED):
        indexed[f"e.{_TROUBLED}"] = "the index"
    owed = wanted.state is not None or wanted.destination is not None
    if owed:
        _add_owed(session, wanted, indexed, others)
    if all(value is None for value in indexed.values()) and not is_pattern(wanted.source):
        indexed["e.source = :source"] = wanted.source
    else:
        others |= named("e.source || ''", wanted.source, "source")
    if wanted.since is not None:
        indexed["e.position >= :first"] = _position(session, wanted.since - _RECORDING_MS)
    if wanted.until is not None:
        indexed["e.position <= :final"] = _position(session, wanted.until + _RECORDING_MS) or 0
    return page(
        session,
        _BACK if wanted.newest_first else _ONWARD,
        indexed,
        others,
        after=wanted.after,
        limit=wanted.limit,
        item=lambda row: PlacedEvent(Place(row[0], row[1]), value_of(Event, row[1:])),
        looked_at=LOOKED_UP if owed else LOOKED_AT,
    )


def _position(session: Session, at: int) -> int | None:
    """Return the position of the last event recorded before a time, None without one."""
    rows = session.run("position_at", {"at": at})
    return rows[0][0] if rows else None


def _add_owed(
    session: Session,
    wanted: EventSearch,
    indexed: dict[str, Value],
    others: dict[str, Value | tuple[str, ...]],
) -> None:
    """Add the condition that the event has a delivery in the wanted state, to the wanted destination."""
    # The state is written out, not a parameter: only then may the indexes of what is due and dead be used.
    state = DeliveryState(wanted.state) if wanted.state else None
    of_state = "" if state is None else OF_STATE.get(state, f"d.state = '{state}'")
    ((of_destination, destination),) = named("d.destination || ''", wanted.destination, "destination").items()
    owed = " AND ".join(filter(None, (of_state, of_destination if destination else "")))
    value = destination or state
    few = state in OF_STATE and not session.run("place_of_deliveries", {"looked_at": LOOKED_UP}, of_state)
    if few:  # the events are found from the deliveries
        indexed[f"e.id IN (SELECT d.event_id FROM deliveries AS d WHERE {owed})"] = value  # noqa: S608 - fixed texts
    else:
        # Not EXISTS, which PostgreSQL may turn into a join that reads all deliveries: this one looks each event up.
        one = f"SELECT d.event_id FROM deliveries AS d WHERE d.event_id = e.id AND {owed} LIMIT 1"  # noqa: S608 - fixed texts
        others[f"e.id = ({one})"] = value


def positions(session: Session) -> Positions:
    """Return the positions between which a place of this store can be."""
    return Positions(*session.run("positions", {})[0])


# ---------------------------------------------------------------- rejections

_SEQUENCE = itertools.count()
_OF_ONE_REF = 10_000
REQUESTS_OF_A_SOURCE = 20
"""Requests of rejections that are kept of each source, the newest of them."""
REQUESTS = 200
"""Requests of rejections that are kept of all sources together: with 64 KiB each, 13 MB."""


@Each
def reject(session: Session, rejections: Sequence[Rejection], *, keep: int) -> None:
    """Keep these rejections, and only the newest `keep` of each kind and source, with a token of ours and without.

    Their requests are kept apart from them, fewer and for a day.
    """
    ids = [rejection_id(row) for row in rejections]
    session.run_rows("insert_rejections", [_rejection_row(*one) for one in zip(ids, rejections, strict=True)])
    requests = [
        (row_id, row.source, row.at, msgspec.msgpack.encode(row.request))
        for row_id, row in zip(ids, rejections, strict=True)
        if row.request is not None
    ]
    session.run_rows("insert_rejected_requests", requests)
    for source, kind, noise in {(row.source, row.kind, row.token_id is None) for row in rejections}:
        params: dict[str, Value] = {"source": source, "kind": kind, "keep": keep}
        session.run("trim_rejections", params, f"token_id IS {'' if noise else 'NOT '}NULL")
    for source in {request[1] for request in requests}:
        params = {"source": source, "keep": REQUESTS_OF_A_SOURCE}
        session.run("trim_rejected_requests", params, "source = :source")
    session.run("trim_rejected_requests", {"keep": REQUESTS}, "TRUE")
    session.run("forget_lone_requests", {})


def rejection_id(row: Rejection) -> str:
    """Return an id that sorts by time, then by arrival; its end differs between processes."""
    return f"rej_{row.at:013x}{next(_SEQUENCE):010x}{os.urandom(4).hex()}"


def _rejection_row(row_id: str, row: Rejection) -> tuple[Value, ...]:
    _, *values, headers, _, _ = astuple(row)
    return (row_id, *values, " ".join(headers))


def rejections(
    session: Session, source: str | None, *, limit: int, ref: str | None = None, one: str | None = None
) -> list[Rejection]:
    """List rejections, newest first; `one` is the id of a single one."""
    conditions: dict[str, Value] = {**named("source", source, "source"), "ref = :ref": ref, "id = :id": one}
    rows: list[Row] = listed(session, "list_rejections", conditions, limit)
    return [
        value_of(Rejection, (*values, headers.split(), bool(kept), None)) for *values, headers, kept in rows
    ]


def rejected_request(session: Session, row_id: str) -> RejectedRequest:
    """Return the request of a rejection. Raises `NotFound`."""
    found = listed(session, "list_rejected_requests", {"id = :id": row_id}, 1)
    if not found:
        raise NotFound(
            f"no request of a rejection {row_id[:60]} is kept: that is done for a day, of the newest whose URL carried "
            "a token of ours and whose body is short"
        )
    return msgspec.msgpack.decode(found[0][1], type=RejectedRequest)


def requests_naming(session: Session, ref: str | None, names: Iterable[str]) -> list[str]:
    """Return the rejections with a kept request that are of a ref, or in whose request one of the names occurs."""
    of_ref = [] if ref is None else listed(session, "list_rejections", {"ref = :ref": ref}, _OF_ONE_REF)
    found = {row[0] for row in of_ref if row[-1]}
    spelled = {form for name in names if name for form in (name.encode("utf-8", "replace"), _in_json(name))}
    kept = listed(session, "list_rejected_requests", {}, REQUESTS)
    return sorted(found | {row[0] for row in kept if any(form in bytes(row[1]) for form in spelled)})


def _in_json(name: str) -> bytes:
    return json.dumps(name)[1:-1].encode()
