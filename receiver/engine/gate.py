"""How much a lane does at once: for destinations, by what this process knows of their health."""

from __future__ import annotations

from typing import Generic, TypeVar

from receiver.core.destination_health import DestinationState, asks_for_less, is_failure
from receiver.core.work import Claimed, Outcome, OutcomeKind

C = TypeVar("C")


class Gate(Generic[C]):
    """One lane that always works at its full concurrency."""

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency

    def room(self, ahead: int, busy: int) -> int:
        """Return how many rows to claim, where so many wait ahead and so many attempts are under way."""
        return self.concurrency - ahead

    def lets(self, claim: C, busy: int, now: int) -> bool:
        """Tell whether a claimed row may be attempted now, beside so many others; else it is released."""
        return True


class DestinationGate(Gate[Claimed]):
    """One destination, as this process last heard of it: the store knows better, and refuses claims by what it knows.

    Attempts at once are halved by each answer that asks for less, and one more again for each that does not.
    """

    def __init__(self, name: str, concurrency: int, *, ahead: bool = True) -> None:
        """`ahead`: deliveries may be claimed before they can begin; not where the claim says when one may be sent."""
        super().__init__(concurrency)
        self.width = concurrency
        """Attempts at the same time, at present."""
        self._ahead = ahead
        self.learn(DestinationState(name=name))

    def learn(self, state: DestinationState) -> None:
        """Take over what the store says."""
        self.state = state
        self._stopped = state.stopped
        self._closed = self._stopped or state.opened_at is not None
        self._troubled = state.failures > 0 or state.opened_at is not None

    def note(self, outcome: Outcome) -> bool:
        """Adapt the width to the outcome of one attempt; tell whether the destination's state in the store may change by it."""
        failed = outcome.kind is not OutcomeKind.DELIVERED and is_failure(outcome)
        if failed and asks_for_less(outcome):
            self.width = max(1, self.width // 2)
        elif self.width < self.concurrency and not failed:
            self.width += 1
        return failed or self._troubled

    def room(self, ahead: int, busy: int) -> int:
        """Return how many deliveries to claim: at full width a batch ahead, else what may begin at once."""
        if self.width < self.concurrency or not self._ahead:
            return self.width - ahead - busy
        return self.concurrency - ahead

    def lets(self, claim: Claimed, busy: int, now: int) -> bool:
        """Tell whether a claimed delivery may be attempted, beside so many others."""
        if claim.probe:
            return not self._stopped
        return busy < self.width and not self._closed and self.state.held_until <= now

    def opens_at(self, due_at: int) -> int | None:
        """Return when something due at that time may be claimed; None when only a person can tell."""
        return None if self._stopped else max(due_at, self.state.held_until)
