"""Refused callbacks: kept for a person to look at, and reported when several come in a row.

Each source, kind, and whether the URL carried a token of ours has its own list. So strangers' requests never push the
provider's own refused callbacks out of the list, nor hide their alarm.

A whole request is kept only if its URL carried a token of ours, so that no stranger can fill the store.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from msgspec import Struct
from msgspec.structs import replace

from receiver.core.callback import HEADERS, Body, Head, TokenClaims, is_plain
from receiver.core.errors import CallbackRejected, RejectionKind, StoreUnavailable, UnknownSource
from receiver.core.event import RejectedRequest, Rejection
from receiver.core.observe import CallbackReport, Observers
from receiver.storage.store.store import Store
from receiver.system.background import BackgroundPart

KEPT = 100
"""Rejections kept for each list: of one source, one kind, with or without a token of ours."""
REQUEST_BYTES = 64 * 1024
"""Longest body of a request that is kept."""
_REQUESTS = 20
"""Requests that wait to be written, at most."""
UNKNOWN = "unknown"
"""The source of rejections whose path names none."""
_ALERT_AFTER = 3
"""Rejections in a row that are reported: deAPI switches webhooks off after 10 failures."""
_ALERT_AGAIN_MS = 3_600_000
_ALERT_APART_MS = 30_000
"""Least time between two reports of one source and kind: strangers may send some between any two callbacks that are taken."""
_FLUSH_SECONDS = 1.0
_LAST_SECONDS = 1.0
_ERRORS = (RejectionKind.WRONG, RejectionKind.TOKEN, RejectionKind.STALE)
"""Kinds that point to a wrong secret or clock of a real provider: reported as an error, all others as a warning."""


class _Run(Struct):
    """Rejections of one kind since the source's last proved callback."""

    count: int = 0
    reported: bool = False


class Rejections(BackgroundPart):
    """Counts, reports and keeps rejections, those of each source and kind apart."""

    def __init__(self, store: Store, observer: Observers) -> None:
        super().__init__()
        self._store = store
        self._observer = observer
        self._runs: dict[str, dict[RejectionKind, _Run]] = {}
        self._reported_at: dict[tuple[str, RejectionKind], int] = {}
        self._unwritten: dict[tuple[str, RejectionKind, bool], deque[Rejection]] = {}
        """By source, kind, and whether the token is one of ours."""
        self._writing = asyncio.Lock()

    async def stop(self) -> None:
        """Write the last rejections. It waits for a second at most, so that a store outage does not delay the stop."""
        await super().stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                await self.flush()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            try:
                await self.flush()
            except Exception as error:
                self._observer.note("error", "rejections.flush_failed", error=type(error).__name__)

    def proved(self, source: str) -> None:
        """Reset the source's counts: one of its callbacks was proved."""
        self._runs.pop(source, None)

    def add(
        self,
        head: Head,
        error: CallbackRejected | UnknownSource,
        report: CallbackReport,
        claims: TokenClaims | None = None,
        body: Body | None = None,
    ) -> None:
        """Count a rejection, report it if it is one of several in a row, and keep it until `flush`.

        `claims` are those of the URL's token, if it is one of ours. `body` is None if it was not read.
        """
        source, kind, reason = head.source, RejectionKind.UNKNOWN_SOURCE, error.message
        if isinstance(error, CallbackRejected):
            kind = error.kind
            self._count(source, error, head.received_at)
        else:
            source, reason = UNKNOWN, f"{reason} (the path named {_shown(head.source)})"
        ring = (source, kind, claims is not None)
        waiting = self._unwritten.setdefault(ring, deque(maxlen=KEPT))
        waiting.append(
            Rejection(
                source=source,
                at=head.received_at,
                status=error.status,
                kind=kind.value,
                reason=reason,
                method=head.method,
                peer=head.peer,
                content_type=report.content_type,
                user_agent=(head.all("user-agent") or [""])[0][:200],
                token_id=claims.token_id if claims else None,
                ref=claims.ref if claims else None,
                setting=_setting(source, error),
                headers=_names(head),
                request=self._request(head, claims, body),
            )
        )

    def _request(self, head: Head, claims: TokenClaims | None, body: Body | None) -> RejectedRequest | None:
        """Return the request if it is kept: short, uncompressed, and with a token of ours for this source in its URL."""
        if claims is None or claims.source != head.source or body is None:
            return None
        if body.size > REQUEST_BYTES or body.wire is not None:
            return None
        waiting = sum(one.request is not None for ring in self._unwritten.values() for one in ring)
        if waiting >= _REQUESTS:
            return None
        return RejectedRequest(head=replace(head, claims=None), body=body.load())

    def _count(self, source: str, error: CallbackRejected, now: int) -> None:
        run = self._runs.setdefault(source, {}).setdefault(error.kind, _Run())
        run.count += 1
        since = now - self._reported_at.get((source, error.kind), 0)
        if run.count >= _ALERT_AFTER and since >= (_ALERT_AGAIN_MS if run.reported else _ALERT_APART_MS):
            run.reported, self._reported_at[source, error.kind] = True, now
            self._observer.note(
                "error" if error.kind in _ERRORS else "warning",
                "source.rejecting",
                source=source,
                kind=error.kind.value,
                in_a_row=run.count,
                look_at=_setting(source, error),
            )

    async def flush(self) -> None:
        """Write the rejections since the last call. This never runs while a callback waits for its answer."""
        async with self._writing:
            unwritten, self._unwritten = self._unwritten, {}
            if not unwritten:
                return
            try:
                # Cancelled by a stop or a reload, it is written all the same.
                await asyncio.shield(
                    self._store.reject([one for kept in unwritten.values() for one in kept], keep=KEPT)
                )
            except StoreUnavailable:  # the newest are worth most when there is not room for all
                for ring in unwritten.values():  # however long the outage is, requests take no more memory
                    ring.extend([replace(ring.popleft(), request=None) for _ in range(len(ring))])
                for key, newer in self._unwritten.items():
                    unwritten.setdefault(key, deque(maxlen=KEPT)).extend(newer)
                self._unwritten = unwritten


def _setting(source: str, error: CallbackRejected | UnknownSource) -> str:
    """Return the setting to look at for a failed check."""
    return (error.setting if isinstance(error, CallbackRejected) else "") or f"sources.{source}"


def _shown(name: str) -> str:
    """Return what a path named instead of a source, unless it is too long to be a name: then it may be a token."""
    return ascii(name) if len(name) <= 40 else f"{len(name)} characters"


def _names(head: Head) -> tuple[str, ...]:
    """Return the names of a request's headers, without those that may be a token themselves."""
    names = dict.fromkeys(name for name, _ in head.headers if is_plain(name))
    return tuple(names)[:HEADERS]
