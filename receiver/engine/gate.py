"""How many attempts a lane runs at once. For destinations it adapts to the outcomes."""

from __future__ import annotations

from typing import Generic, TypeVar

from receiver.core.destinations import DestinationState, asks_for_less, is_failure
from receiver.core.work import Claimed, Outcome, OutcomeKind

C = TypeVar("C")


class Gate(Generic[C]):
    """One lane that always works at its full concurrency."""

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency

    def room(self, ahead: int, busy: int) -> int:
        """Return how many rows to claim. `ahead` claimed rows wait already, and `busy` attempts run."""
        return self.concurrency - ahead

    def lets(self, claim: C, busy: int, now: int) -> bool:
        """Tell whether a claimed row may be attempted now, beside `busy` running attempts; a refused row is released."""
        return True


class DestinationGate(Gate[Claimed]):
    """One destination's concurrency, by its state as this process last read it. The store has the newest state, and refuses
    claims by it.

    An answer that asks for less halves the concurrency; each other one adds 1, up to the setting.
    """

    def __init__(self, name: str, concurrency: int, *, ahead: bool = True) -> None:
        """With `ahead`, deliveries may be claimed before they can begin. False where the claim itself enforces order or rate."""
        super().__init__(concurrency)
        self.width = concurrency
        """Attempts at the same time, at present."""
        self._ahead = ahead
        self.learn(DestinationState(name=name))

    def learn(self, state: DestinationState) -> None:
        """Take over the destination's state from the store."""
        self.state = state
        self._stopped = state.stopped
        self._closed = self._stopped or state.opened_at is not None
        self._troubled = state.failures > 0 or state.opened_at is not None

    def note(self, outcome: Outcome) -> bool:
        """Adapt the concurrency to an outcome; tell whether the outcome may change the destination's state in the store."""
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
        """Tell whether a claimed delivery may be attempted now, beside `busy` running attempts."""
        if claim.probe:
            return not self._stopped
        return busy < self.width and not self._closed and self.state.held_until <= now

    def opens_at(self, due_at: int) -> int | None:
        """Return when a delivery that is due at that time may be claimed; None if a person has to act first."""
        return None if self._stopped else max(due_at, self.state.held_until)
