"""Acts: noted before they are carried out, ended with their answer, listed."""

from __future__ import annotations

from functools import partial

from msgspec.structs import astuple

from receiver.core.audit import Act
from receiver.core.page import Page
from receiver.storage.store.listing import newest_first, page
from receiver.storage.store.statements import Each, Session, value_of


@Each
def begin(session: Session, act: Act) -> Act:
    """Note an act; return it, or the earlier one that has its key."""
    if session.run_rows("insert_acts", [astuple(act)]):
        return act
    rows = session.run(
        "list_acts", {"token": act.token, "key": act.key, "limit": 1}, "token = :token AND key = :key"
    )
    return value_of(Act, rows[0])


@Each
def end(session: Session, act_id: str, *, status: int, answer: bytes | None) -> None:
    """Note how an act was answered; the answer where it must be given again."""
    session.run("end_act", {"id": act_id, "status": status, "answer": answer})


_LISTING = newest_first("acts")


def acts(session: Session, token: str | None, after: str | None, limit: int) -> Page[Act]:
    """List acts, newest first."""
    others = {"token = :token": token}
    return page(session, _LISTING, {}, others, after=after, limit=limit, item=partial(value_of, Act))
