"""A job's steps as a page shows them: attempts grouped by destination, long waits and long runs of attempts summed up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from receiver.core.explain import Step

_FOLDED = 12
"""Attempts at one destination that are shown; of more, the first and the last."""
_GAP_MS = 1000
_LOOKS = {
    "submitted": ("none", "out", "Submitted"),
    "issued": ("none", "out", "Its callback URL was made"),
    "callback": ("ok", "in", "Callback"),
    "recorded": ("ok", "box", "Recorded"),
    "rejected": ("bad", "lock", "Rejected"),
    "pickup": ("wait", "wait", "Pickup"),
    "fetched": ("bad", "dead", "Asked the provider"),
    "sent": ("bad", "dead", "Sent"),
    "next": ("wait", "wait", "Next"),
}
"""The meaning, the icon and the words of each step; of attempts those that failed."""
_WELL = {"delivered": ("ok", "ok"), "collected": ("ok", "ok"), "not_yet": ("wait", "again")}
"""The meaning and the icon of attempts by their outcome, where that is no failure."""


class Line(Struct, frozen=True):
    """One step, or how many were left out."""

    kind: str
    icon: str
    title: str
    step: Step | None = None
    seconds: float = 0
    """Since the first step."""
    gap: float = 0
    """Seconds in which nothing happened before it, where they are many."""


def timeline(steps: Sequence[Step]) -> list[tuple[str, list[Line]]]:
    """Return the steps of all that is not sent to a destination, then those of each destination."""
    groups: dict[str, list[Step]] = {"": []}
    for step in steps:
        groups.setdefault(step.to, []).append(step)
    began = min((step.at for step in steps), default=0)
    return [(to, _folded(list(_lines(group, began)))) for to, group in groups.items()]


def _lines(steps: Sequence[Step], began: int) -> Iterable[Line]:
    before = None
    for step in steps:
        kind, icon, title = _LOOKS[step.what]
        kind, icon = _WELL.get(step.outcome, (kind, icon))
        gap = step.at - before if before is not None else 0
        before = step.at
        yield Line(kind, icon, title, step, (step.at - began) / 1000, gap / 1000 if gap > _GAP_MS else 0)


def _folded(lines: list[Line]) -> list[Line]:
    sent = [line for line in lines if line.step and line.step.what == "sent"]
    left_out = sent[_FOLDED // 2 : -_FOLDED // 2] if len(sent) > _FOLDED else []
    if not left_out:
        return lines
    at = lines.index(left_out[0])
    told = Line("none", "none", f"{len(left_out)} attempts between")
    return [*lines[:at], told, *(line for line in lines[at:] if line not in left_out)]
