"""Console logins that were ended early. A running login exists only in the browser's cookie."""

from __future__ import annotations

from receiver.storage.store.statements import Each, Session, Value, clean

KEPT_MS = 24 * 3600 * 1000
"""How long an ended login is remembered: longer than any login lasts."""


@Each
def end(session: Session, subject: str, *, now: int) -> None:
    """End a login, named by its id, or all of a token's until now, named `all:` and the token's name."""
    session.run("forget_ended_logins", {"before": now - KEPT_MS})
    session.run("end_login", {"subject": clean(subject), "at": now})


def ended(session: Session, login_id: str, name: str, issued_at: int) -> bool:
    """Tell whether a login was ended, by itself or with all of its token's."""
    params: dict[str, Value] = {"id": login_id, "everywhere": clean(everywhere(name)), "issued_at": issued_at}
    return bool(session.run("ended_login", params))


def everywhere(name: str) -> str:
    """Return the subject of all logins by one token."""
    return f"all:{name}"
