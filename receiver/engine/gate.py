"""What one process knows of a destination's health, and how much it therefore sends at once."""

from __future__ import annotations

from receiver.core.destination import DestinationState, asks_for_less, is_failure
from receiver.core.work import Claimed, Outcome


class Gate:
    """One destination, as this process last heard of it: the store knows better, and refuses claims by what it knows.

    Attempts at once are halved by each answer that asks for less, and one more again for each that does not.
    """

    def __init__(self, name: str, concurrency: int, *, ahead: bool = True) -> None:
        """`ahead`: deliveries may be claimed before they can begin; not where the claim says when one may be sent."""
        self.state = DestinationState(name=name)
        self.width = concurrency
        """Attempts at the same time, at present."""
        self._concurrency = concurrency
        self._ahead = ahead

    def learn(self, state: DestinationState) -> bool:
        """Take over what the store says; return whether something changed."""
        changed, self.state = state != self.state, state
        return changed

    def note(self, outcome: Outcome) -> None:
        """Adapt the width to the outcome of one attempt."""
        if asks_for_less(outcome):
            self.width = max(1, self.width // 2)
        elif self.width < self._concurrency and not is_failure(outcome):
            self.width += 1

    def room(self, ahead: int, busy: int) -> int:
        """Return how many deliveries to claim: at full width a batch ahead, else what may begin at once."""
        if self.width < self._concurrency or not self._ahead:
            return self.width - ahead - busy
        return self._concurrency - ahead

    def lets(self, claim: Claimed, busy: int, now: int) -> bool:
        """Tell whether a claimed delivery may be attempted, beside so many others."""
        if claim.probe:
            return not self.state.stopped
        held = self.state.stopped or self.state.opened_at is not None or self.state.held_until > now
        return not held and busy < self.width

    def opens_at(self, due_at: int) -> int | None:
        """Return when something due at that time may be claimed; None when only a person can tell."""
        return None if self.state.stopped else max(due_at, self.state.held_until)
