"""How many refused requests wait in memory to be written."""

from __future__ import annotations

from collections.abc import Sequence

from receiver.core.callback import Head, MemoryBody, TokenClaims
from receiver.core.errors import CallbackRejected
from receiver.core.event import Rejection
from receiver.core.observe import CallbackReport, Observers
from receiver.engine.rejections import KEPT, REQUEST_BYTES, Rejections
from tests.support.memory import MemoryStore

HEAD = Head(source="made", method="POST", headers=(), received_at=1)
OURS = TokenClaims(source="made", token_id="t")


def add(rejections: Rejections, claims: TokenClaims | None = OURS, size: int = 1) -> None:
    body = MemoryBody(b"x" * size)
    rejections.add(HEAD, CallbackRejected("no"), CallbackReport(method="POST"), claims, body)


class Counting(MemoryStore):
    """A store that notes how many requests it is given each time, also when it is out."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[int] = []

    async def reject(self, rejections: Sequence[Rejection], *, keep: int) -> None:
        self.given.append(sum(one.request is not None for one in rejections))
        await super().reject(rejections, keep=keep)


async def test_few_requests_wait_and_none_while_the_store_is_out() -> None:
    store = Counting()
    rejections = Rejections(store, Observers([]))
    for _ in range(25):
        add(rejections)
    for _ in range(2):  # the store is not open
        await rejections.flush()
    for _ in range(25):
        add(rejections)
    await store.open()
    await rejections.flush()
    assert store.given == [20, 0, 20]
    kept = await store.rejections("made", limit=100)
    assert (len(kept), sum(one.request_kept for one in kept)) == (50, 20)


async def test_only_short_requests_over_urls_of_this_source_are_kept() -> None:
    store = MemoryStore()
    await store.open()
    rejections = Rejections(store, Observers([]))
    add(rejections, None)
    add(rejections, TokenClaims(source="other", token_id="t"))
    add(rejections, size=REQUEST_BYTES + 1)
    add(rejections, size=REQUEST_BYTES)
    await rejections.flush()
    kept = await store.rejections("made", limit=9)
    assert sum(one.request_kept for one in kept) == 1


async def test_what_strangers_send_within_a_second_pushes_out_nothing_with_a_token_of_ours() -> None:
    store = MemoryStore()
    await store.open()
    rejections = Rejections(store, Observers([]))
    add(rejections)
    for _ in range(KEPT + 1):
        add(rejections, None)
    await rejections.flush()
    kept = await store.rejections("made", limit=KEPT + 9)
    assert sum(one.request_kept for one in kept) == 1
