"""The tables of the store that few statements use: acts, ended console logins, counts by the minute, and short callback tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from operator import attrgetter

import msgspec
from msgspec.structs import astuple

from receiver.core.audit import Act
from receiver.core.callback import TokenClaims
from receiver.core.observe import HOUR, Process, Tally, TallyBatch
from receiver.core.page import Page
from receiver.storage.store.listing import newest_first, page
from receiver.storage.store.statements import Each, Session, Value, clean, value_of

# ---------------------------------------------------------------- acts: noted before they are carried out, ended with their answer


@Each
def begin_act(session: Session, act: Act) -> Act:
    """Note an act; return it, or the earlier one that has its key."""
    if session.run_rows("insert_acts", [astuple(act)]):
        return act
    rows = session.run(
        "list_acts", {"token": act.token, "key": act.key, "limit": 1}, "token = :token AND key = :key"
    )
    return value_of(Act, rows[0])


@Each
def end_act(session: Session, act_id: str, *, status: int, answer: bytes | None) -> None:
    """Note how an act was answered; the answer where it must be given again."""
    session.run("end_act", {"id": act_id, "status": status, "answer": answer})


_ACTS = newest_first("acts")


def acts(session: Session, token: str | None, after: str | None, limit: int) -> Page[Act]:
    """List acts, newest first."""
    others = {"token = :token": token}
    return page(session, _ACTS, {}, others, after=after, limit=limit, item=partial(value_of, Act))


# ---------------------------------------------------------------- console logins that were ended early; a running one exists only in the browser's cookie


_LOGIN_KEPT_MS = 24 * 3600 * 1000
"""How long an ended login is remembered: longer than any login lasts."""


@Each
def end_login(session: Session, subject: str, *, now: int) -> None:
    """End a login, named by its id, or all of a token's until now, named `all:` and the token's name."""
    session.run("forget_ended_logins", {"before": now - _LOGIN_KEPT_MS})
    session.run("end_login", {"subject": clean(subject), "at": now})


def login_ended(session: Session, login_id: str, name: str, issued_at: int) -> bool:
    """Tell whether a login was ended, by itself or with all of its token's."""
    params: dict[str, Value] = {"id": login_id, "everywhere": clean(everywhere(name)), "issued_at": issued_at}
    return bool(session.run("ended_login", params))


def everywhere(name: str) -> str:
    """Return the subject of all logins by one token."""
    return f"all:{name}"


# ---------------------------------------------------------------- counts per minute, later per hour, and the live processes


@Each
def add_tallies(session: Session, batch: TallyBatch) -> None:
    """Add what a process counted, note that it lives, add minutes that are old to their hours, and forget old hours."""
    session.run_rows("add_tallies", [astuple(one) for one in batch.tallies])
    session.run_rows("note_processes", [astuple(batch.process)])
    hours: Counter[tuple[int, str, str, str]] = Counter()
    for minute, kind, name, outcome, count in session.run("forget_tallies", {"before": batch.before}):
        hours[minute // HOUR * HOUR, kind, name, outcome] += count
    session.run_rows("add_hours", [(*key, count) for key, count in sorted(hours.items())])
    session.run("forget_hours", {"before": batch.hours_before})
    session.run("forget_processes", {"before": batch.before})


def tallies(session: Session, since: int, until: int, step: int) -> list[Tally]:
    """Return the counts of minutes, and of hours that are older, that began in a time, oldest first; added up by steps of so many milliseconds."""
    rows = session.run("tallies_between", {"since": since, "until": until, "step": step})
    return [value_of(Tally, row) for row in rows]


def processes(session: Session) -> list[Process]:
    """Return the processes, latest start first."""
    return [value_of(Process, row) for row in session.run("list_processes", {})]


# ---------------------------------------------------------------- the claims of short callback tokens


_TOKEN_COLUMNS = ("source", "token_id", "ref", "format", "issued_at", "expires_at", "expect_by")
_token_row = attrgetter(*_TOKEN_COLUMNS)


def add_tokens(session: Session, claims: Sequence[TokenClaims]) -> list[None]:
    """Write the claims of new short tokens, each with a time at which it expires."""
    rows = [_token_row(one) for one in claims]
    session.run_rows(
        "insert_tokens", [(*row[:3], msgspec.json.encode(row[3]).decode(), *row[4:]) for row in rows]
    )
    return [None] * len(rows)


def token_claims(session: Session, bare: TokenClaims) -> TokenClaims | None:
    """Return the claims of a short token, whose URL holds only the row's id; None if it is unknown or expired and removed."""
    rows = session.run("token_claims", {"id": bare.token_id})
    if not rows:
        return None
    found = dict(zip(_TOKEN_COLUMNS, rows[0], strict=True))
    found["format"] = msgspec.json.decode(found["format"])
    return TokenClaims(**found, job_secret=bare.job_secret, secret=bare.secret)
