"""How many examples a property is tried with."""

from __future__ import annotations

import os

EXPLORING = os.environ.get("HYPOTHESIS_PROFILE") == "explore"
_MORE = 40


def examples(quick: int) -> int:
    """Return `quick`, or forty times as many where new examples are looked for (HYPOTHESIS_PROFILE=explore)."""
    return quick * _MORE if EXPLORING else quick
