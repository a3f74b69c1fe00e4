"""The journal: proved callbacks on local disk, synced, that wait to be recorded after an outage.

An entry is two files named by the callback's identity: `STEM.body`, the bytes, and `STEM.json`, which is written last and
so commits the entry. A provider's retry during the outage finds its entry and adds none.

Several processes of a machine may share the folder: one drains at a time, and renames happen under a lock. `unavailable`
words the error of a full or broken disk, which engine/intake.py answers with 503.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import math
import os
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from receiver.core.callback import Head, TokenClaims, VerifiedCallback, is_secret_header
from receiver.core.errors import (
    RESOURCE_ERRORS,
    THREAD_ERRORS,
    JournalUnavailable,
    Unavailable,
    reason_of,
)
from receiver.core.observe import Observers
from receiver.system.body_buffer import FileBody, keep_body
from receiver.system.files import make_folder, open_file, sync_folder, write_file

_OUTAGE_AFTER = 3
"""Failures in a row that count as an outage. Fewer may be the fault of the entries themselves."""
_QUICK_TRIES = 3
"""Tries after which an entry waits even during a possible outage."""
_BATCH, _BATCH_BYTES = 32, 4 * 1024 * 1024
"""The most entries of one batch, and the most bytes, unless a single entry has more."""
_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 600.0
"""Seconds until the retry of an entry that itself is the cause of the failure; doubled at each failure."""
_LEFTOVER_SECONDS = 3600

_DRAINING = ".draining"
"""Locked (by flock, which ends with the process) by the one process that drains; whoever changes names locks the folder itself."""

T = TypeVar("T")
Handle = Callable[[VerifiedCallback], Awaitable[object]]
"""Normalizes and records a callback; raises `Unavailable`, or one of `RESOURCE_ERRORS`, while that is not possible."""

Able = Callable[["Entry"], bool]
"""Tells whether the settings have the source of an entry."""


class Journal:
    """A folder of kept callbacks; each machine has its own."""

    def __init__(
        self,
        folder: str,
        *,
        max_bytes: int,
        observer: Observers,
        clock: Callable[[], int],
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives the time of day in milliseconds, `elapsed` the seconds of a clock that nobody sets."""
        self._folder = Path(folder)
        self._max_bytes = max_bytes
        self._observer = observer
        self._clock = clock
        self._elapsed = elapsed
        self._entries: dict[str, Entry] = {}
        """Waiting entries by stem, oldest first."""
        self._held = 0
        """Total bytes of the waiting bodies."""
        self.kept = asyncio.Event()
        """Set when an entry was added."""
        self._missing: set[str] = set()
        """The sources of entries that the last drain left since there are no such sources."""
        self.refused = ""
        """The reason, in a sentence, why the last drain left entries; "" if it left none."""

    @property
    def depth(self) -> int:
        """How many callbacks wait."""
        return len(self._entries)

    @property
    def oldest_age_seconds(self) -> float:
        """How long the oldest one has waited."""
        first = next(iter(self._entries.values()), None)
        return max(0, self._clock() - first.received_at) / 1000 if first else 0.0

    async def open(self) -> None:
        """Make the folder and find what earlier processes left. Raises `JournalUnavailable`."""
        await _in_thread(self._open, folder=self._folder)
        for entry in self._entries.values():
            if entry.reason.startswith(UNREADABLE):
                self._observer.note("warning", "journal.entry_refused", entry=entry.stem, error=entry.reason)
        self._report()

    def _open(self) -> None:
        make_folder(self._folder)
        names = set(os.listdir(self._folder))
        for name in names:
            stem, _, kind = name.rpartition(".")
            # A body without a commit was never answered for. Young ones may belong to a live process of this machine.
            if kind in ("tmpb", "tmpj") or (kind == "body" and f"{stem}.json" not in names):
                path = self._folder / name
                with contextlib.suppress(OSError):  # it can be swept another time
                    if path.stat().st_mtime < self._clock() / 1000 - _LEFTOVER_SECONDS:
                        path.unlink()
        for entry in look(self._folder):
            self._add(entry)

    def _add(self, entry: Entry) -> None:
        self._entries[entry.stem] = entry
        self._held += entry.size

    def _forget(self, stem: str) -> bool:
        """Remove the entry from the list; return whether it was there."""
        entry = self._entries.pop(stem, None)
        self._held -= entry.size if entry else 0
        return entry is not None

    async def ping(self) -> None:
        """Check that an entry could be kept now. Raises `JournalUnavailable`."""
        await _in_thread(self._ping)

    def _ping(self) -> None:
        path = self._folder / f".ping-{os.getpid()}-{os.urandom(4).hex()}"
        try:
            write_file(path, b"ping")
        finally:
            path.unlink(missing_ok=True)

    async def keep(
        self,
        callback: VerifiedCallback,
        *,
        key: str,
        reason: str,
        secret_headers: frozenset[str] = frozenset(),
    ) -> None:
        """Keep a proved callback; returns after it is on disk. Raises `JournalUnavailable`.

        `key` is the callback's idempotency key: keeping it twice is harmless.
        """
        stem = hashlib.sha256(f"{callback.source}\0{key}".encode("utf-8", "replace")).hexdigest()[:40]
        if stem in self._entries:
            return
        if self._held + callback.body.size > self._max_bytes:
            raise JournalUnavailable("the journal is full: raise journal.max_bytes or mend the store")
        meta = _meta(callback, reason, secret_headers)
        await _in_thread(partial(self._keep, stem, meta, callback))
        self._add(entry_of(stem, meta))
        self._report()
        self.kept.set()

    def _keep(self, stem: str, meta: bytes, callback: VerifiedCallback) -> None:
        body, commit = self._folder / f"{stem}.body", self._folder / f"{stem}.json"
        # A writer's files are its own until the names are changed: two requests may keep one callback at once.
        temporary = f"{stem}.{os.urandom(4).hex()}.tmp"
        try:
            keep_body(callback.body, self._folder / f"{temporary}b")
            write_file(self._folder / f"{temporary}j", meta)
            with _locked(self._folder):
                os.rename(self._folder / f"{temporary}b", body)
                os.rename(self._folder / f"{temporary}j", commit)
            sync_folder(self._folder)
        finally:
            for suffix in "bj":
                (self._folder / f"{temporary}{suffix}").unlink(missing_ok=True)

    async def drain(self, handle: Handle, able: Able) -> int:
        """Pass every entry to `handle`, if it is able to take it, and remove those that it records; return their number.
        `refused` has the reason for the others.

        Oldest first, in batches of 1, 2, 4 and so on up to 32. A refused entry goes behind the others, so that one that no
        store accepts (for its size), or that cannot be read, never blocks the rest. If others succeed meanwhile, its wait
        grows at each refusal. Several refusals in a row count as an outage and end the drain. Raises `Unavailable` if no
        entry succeeded.

        An entry whose bytes changed on disk is moved to `damaged/`. Does nothing while another process drains the folder.
        """
        try:
            with _locked(self._folder / _DRAINING, wait=False):
                return await self._pass_on(handle, able)
        except BlockingIOError:
            return 0
        except THREAD_ERRORS as error:
            raise unavailable(error) from None

    async def _pass_on(self, handle: Handle, able: Able) -> int:
        done, most = 0, 1
        refused: list[tuple[Entry, Unavailable]] = []
        """By what may be an outage, until another entry is taken."""
        self._tell_missing(able)
        waiting = deque(sorted((e for e in self._entries.values() if able(e)), key=_turn))
        while batch := self._batch(waiting, most):
            passed = await self._pass_together(batch, handle, able)
            for entry, error in passed:
                if isinstance(error, Unavailable):
                    refused.append((entry, error))
                elif error is not None:
                    self._put_off(entry, error, alone=True)
            if taken := sum(error is None for _, error in passed):
                done += taken
                self._put_off_all(refused, alone=True)
                self._report()
            if len(refused) >= _OUTAGE_AFTER:
                break
            # Begun with one again after a refusal: in an outage few are tried.
            most = 1 if refused else min(2 * most, _BATCH)
        last = refused[-1][1] if refused and not done else None
        self._put_off_all(refused, alone=done > 0)
        if last is not None:
            raise last
        return done

    def _tell_missing(self, able: Able) -> None:
        """Tell which sources that entries belong to are not there, each once: their entries wait, untouched, until they are."""
        left = Counter(e.source for e in self._entries.values() if not able(e))
        for source in left.keys() - self._missing:
            self._observer.note("warning", "journal.source_missing", source=source, entries=left[source])
        self._missing = set(left)
        names = ", ".join(sorted(left))
        self.refused = f"no source is named {names} any more: put it back into the settings" if left else ""

    def _batch(self, waiting: deque[Entry], most: int) -> list[Entry]:
        """Take the next batch from `waiting`."""
        batch: list[Entry] = []
        size, now = 0, self._elapsed()
        while waiting and len(batch) < most and (not batch or size + waiting[0].size <= _BATCH_BYTES):
            entry = waiting.popleft()
            if now >= entry.not_before:
                batch.append(entry)
                size += entry.size
        return batch

    async def _pass_together(
        self, batch: list[Entry], handle: Handle, able: Able
    ) -> list[tuple[Entry, Exception | None]]:
        """Pass entries to `handle` concurrently, and remove those that it recorded.

        Returns why each was not recorded, None if it was; entries that are gone are left out.
        """
        found = zip(batch, await self._restore(batch), strict=True)
        # Only now it is known whose those are that could not be read before.
        there = [(entry, callback) for entry, callback in found if callback is not None and able(entry)]
        errors = await asyncio.gather(*(self._pass(entry, callback, handle) for entry, callback in there))
        passed = [(entry, error) for (entry, _), error in zip(there, errors, strict=True)]
        taken = [entry.stem for entry, error in passed if error is None]
        if taken:
            await asyncio.to_thread(self._remove, taken)
            for stem in taken:
                self._forget(stem)
        return passed

    async def _pass(
        self, entry: Entry, callback: VerifiedCallback | JournalUnavailable, handle: Handle
    ) -> Exception | None:
        if isinstance(callback, JournalUnavailable):
            return callback
        try:
            await handle(callback)
        except RESOURCE_ERRORS as error:
            entry.tries += 1  # perhaps it is this one that takes more memory than there is
            return unavailable(error, entry=entry.stem)
        except Exception as error:  # a bug or a poison entry must not stop the others
            return error
        return None

    def _put_off_all(self, refused: list[tuple[Entry, Unavailable]], *, alone: bool) -> None:
        for entry, error in refused:
            self._put_off(entry, error, alone=alone)
        refused.clear()

    def _put_off(self, entry: Entry, error: Exception, *, alone: bool) -> None:
        """Let an entry wait behind those that were put off before, and report why, each reason once.

        `alone`: this is no outage, since other entries are taken, or it is a bug. Then each wait is longer.
        """
        entry.tries += alone
        pause = 0.0
        if alone or entry.tries > _QUICK_TRIES:
            pause = min(math.ldexp(_FIRST_PAUSE, min(entry.tries - 1, 10)), _LONGEST_PAUSE)
        entry.not_before = self._elapsed() + pause
        bug = not isinstance(error, Unavailable)
        failed = f"the journal's entry {entry.stem} cannot be taken: {type(error).__name__}"
        why = failed if bug else str(error)
        if not any(why == known.why for known in self._entries.values()):
            fields = {"entry": entry.stem, "source": entry.source, "error": why}
            if bug:
                self._observer.note("error", "journal.entry_failed", **fields)
            else:
                name = "journal.entry_refused" if alone else "journal.drain_stopped"
                self._observer.note("warning", name, **fields)
        self.refused = entry.why = why

    async def _restore(self, batch: Sequence[Entry]) -> list[VerifiedCallback | JournalUnavailable | None]:
        """Return for each entry its callback, why it cannot be read now, or None when it is gone or damaged."""
        found: list[VerifiedCallback | JournalUnavailable | None] = []
        for entry, result in zip(batch, await asyncio.to_thread(self._look_up, batch), strict=True):
            if isinstance(result, VerifiedCallback):
                entry.source, entry.proofs = result.source, tuple(result.proofs)
                found.append(result)
            elif result is None or isinstance(result, FileNotFoundError):  # another process drained it
                if result is None:
                    fields = {"entry": entry.stem, "source": entry.source}
                    self._observer.note("error", "journal.entry_damaged", **fields)
                self._forget(entry.stem)
                found.append(None)
            else:
                found.append(unavailable(result, entry=entry.stem))
        return found

    def _look_up(self, batch: Iterable[Entry]) -> list[VerifiedCallback | BaseException | None]:
        found: list[VerifiedCallback | BaseException | None] = []
        for entry in batch:
            try:
                found.append(restored(self._folder, entry.stem))
            except THREAD_ERRORS as error:
                found.append(error)
        return found

    def _remove(self, stems: Collection[str]) -> list[str]:
        """Remove entries; return those that are still there."""
        # The commit goes first: a body without one is swept at the next start.
        with _locked(self._folder):
            for stem in stems:
                for suffix in ("json", "body"):
                    with contextlib.suppress(OSError):
                        (self._folder / f"{stem}.{suffix}").unlink()
        return [stem for stem in stems if (self._folder / f"{stem}.json").exists()]

    async def read(
        self,
        look: Callable[[str, VerifiedCallback], None],
        *,
        unreadable: Callable[[str], None] | None = None,
    ) -> None:
        """Pass every entry, with its stem, to `look`, which is called in a thread.

        For each entry that cannot be read, `unreadable` gets a sentence that names it. Without `unreadable`, raises
        `JournalUnavailable` at the end, so that no caller takes the readable entries for all of them.
        """
        failed: list[str] = []
        for entry in list(self._entries.values()):
            try:
                [callback] = await self._restore([entry])
                if isinstance(callback, JournalUnavailable):
                    (unreadable or failed.append)(callback.message)
                elif callback is not None:
                    await asyncio.to_thread(look, entry.stem, callback)
            except RESOURCE_ERRORS as error:
                (unreadable or failed.append)(unavailable(error, entry=entry.stem).message)
        if failed:
            raise JournalUnavailable("; ".join(failed))

    async def remove(self, stems: Iterable[str]) -> int:
        """Remove entries for good; return how many were there. Raises `JournalUnavailable`."""
        count = 0
        for stem in stems:
            if await _in_thread(partial(self._remove, [stem]), entry=stem):
                raise JournalUnavailable(f"the journal's entry {stem} cannot be removed")
            count += self._forget(stem)
        self._report()
        return count

    def being_drained(self) -> bool:
        """Return whether another process drains the folder at this moment."""
        try:
            with _locked(self._folder / _DRAINING, wait=False):
                return False
        except BlockingIOError:
            return True

    def _report(self) -> None:
        self._observer.journal(self.depth, self.oldest_age_seconds)


async def _in_thread(work: Callable[[], T], *, folder: Path | str = "", entry: str = "") -> T:
    """Return what `work` returns in a thread. Raises `JournalUnavailable`."""
    try:
        return await asyncio.to_thread(work)
    except THREAD_ERRORS as error:
        raise unavailable(error, folder, entry=entry) from None


def look(folder: Path | str) -> list[Entry]:
    """Return what waits in a journal's folder, oldest first; changes nothing. Raises `JournalUnavailable`."""
    entries = []
    try:
        for name in os.listdir(folder):
            if name.endswith(".json"):
                with contextlib.suppress(FileNotFoundError):  # drained just now
                    entries.append(entry_at(Path(folder, name)))
    except OSError as error:
        raise unavailable(error, folder) from None
    return sorted(entries, key=lambda entry: entry.received_at)


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock between processes. Raises `BlockingIOError` when another has it and we are not to wait."""
    folder = path.is_dir()
    # Never through a link: root, who drains by hand, would open to all what it leads to.
    flags = os.O_RDONLY if folder else os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW
    fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        # Readable for the service's user when root, who drains by hand, came first; the folder itself is private.
        with contextlib.suppress(PermissionError):
            if not folder:
                os.fchmod(fd, 0o644)  # whatever the umask
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(fd)


class _Commit(msgspec.Struct, frozen=True, kw_only=True):
    """A commit file: all of a callback but its bytes."""

    head: Head
    claims: TokenClaims | None
    proofs: tuple[str, ...]
    secret: int = 0
    size: int
    sha256: str
    reason: str


def _meta(callback: VerifiedCallback, reason: str, secret_headers: frozenset[str]) -> bytes:
    head = callback.head
    headers = tuple(pair for pair in head.headers if not is_secret_header(head, *pair, secret_headers))
    commit = _Commit(
        head=msgspec.structs.replace(head, headers=headers, token=None, url="", claims=None),
        claims=callback.claims,
        proofs=tuple(sorted(callback.proofs)),
        secret=callback.secret,
        size=callback.body.size,
        sha256=callback.body.sha256,
        reason=reason,
    )
    return msgspec.json.encode(commit)


def _commit(meta: bytes) -> _Commit | None:
    try:
        return msgspec.json.decode(meta, type=_Commit)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _turn(entry: Entry) -> tuple[bool, float, int]:
    """Return the sort key of entries: untried ones first, then by age."""
    return bool(entry.why), entry.not_before, entry.received_at


UNREADABLE = "unreadable: "
"""Beginning of the reason of an entry whose commit could not be read."""
_ADVICE = "; make it writable, or name another with data or journal.path"


class Entry(Struct):
    """One kept callback, as the folder shows it."""

    stem: str
    received_at: int
    size: int
    source: str
    reason: str
    proofs: tuple[str, ...] = ()
    tries: int = 0
    """How often the entry failed for a reason of its own, and not because of an outage."""
    not_before: float = 0.0
    """When the next try is due, in seconds of `Journal`'s `elapsed`."""
    why: str = ""
    """The reason for the last failure."""


def entry_at(commit: Path) -> Entry:
    """Return the entry of a commit file, also when it cannot be read now. Raises `FileNotFoundError`."""
    try:
        with open_file(commit) as file:
            return entry_of(commit.stem, file.read())
    except FileNotFoundError:
        raise
    except OSError as error:
        return Entry(commit.stem, _changed_at(commit), 0, "", UNREADABLE + reason_of(error))


def _changed_at(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.lstat().st_mtime_ns // 1_000_000
    return 0


def entry_of(stem: str, meta: bytes) -> Entry:
    """Return the entry whose commit file holds `meta`."""
    commit = _commit(meta)
    if commit is None:
        return Entry(stem, 0, len(meta), "", "damaged")
    return Entry(stem, commit.head.received_at, commit.size, commit.head.source, commit.reason, commit.proofs)


def restored(folder: Path, stem: str) -> VerifiedCallback | None:
    """Return a kept callback; None when its bytes changed on disk, after moving it to `damaged/`.

    Raises `FileNotFoundError` when it is gone, `OSError` when it cannot be read or moved.
    """
    body_path, path = folder / f"{stem}.body", folder / f"{stem}.json"
    with open_file(path) as file:
        commit = _commit(file.read())
    try:
        body = FileBody.read(str(body_path))
    except FileNotFoundError:
        path.stat()  # gone as well: another process of this machine drained it just now
        body = None
    if commit is not None and body is not None and commit.sha256 == body.sha256:
        return VerifiedCallback(
            head=commit.head,
            claims=commit.claims,
            proofs=frozenset(commit.proofs),
            secret=commit.secret,
            body=body,
        )
    aside = folder / "damaged"
    aside.mkdir(mode=0o700, exist_ok=True)
    for damaged in (body_path, path):
        with contextlib.suppress(FileNotFoundError):
            os.rename(damaged, aside / damaged.name)
    return None


def unavailable(error: BaseException, folder: Path | str = "", *, entry: str = "") -> JournalUnavailable:
    """Return the error for callers: with `folder` for a person at the machine, who may read its path; `entry` names one entry."""
    place, advice = (f" at {folder}", _ADVICE) if folder else ("", "")
    what = f"the journal's entry {entry}" if entry else f"the journal{place}"
    return JournalUnavailable(f"{what} cannot be used: {reason_of(error)}{advice}")
