"""Callbacks that were proved but not yet recorded: fsynced on local disk, and later passed on as they came.

An entry is two files named by the callback's identity: `STEM.body`, the bytes, and `STEM.json`, written last and so the
entry's commit. A provider that sends the callback again while the store is out finds it kept already.

Several processes of a machine may have the folder open: one drains at a time, and names change under a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import math
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from receiver.core.callback import Head, TokenClaims, VerifiedCallback
from receiver.core.errors import RESOURCE_ERRORS, THREAD_ERRORS, JournalUnavailable, Unavailable, reason_of
from receiver.core.observe import Observers
from receiver.system.files import FileBody, keep_body, make_folder, sync_folder, write_file

_ALWAYS_SECRET = frozenset(("authorization", "proxy-authorization", "cookie", "x-api-key"))
"""Headers that no provider has to name."""
_OUTAGE_AFTER = 3
"""Entries refused in a row that make an outage; fewer may be refused for what they are."""
_QUICK_TRIES = 3
"""Tries after which an entry waits although it may be an outage, or after a bug, which is reported no more."""
_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 600.0
"""Seconds until an entry is tried again that was refused for what it is; doubled at each refusal."""
_LEFTOVER_SECONDS = 3600

_DRAINING = ".draining"
"""Locked (by flock, which ends with the process) by the one process that drains; whoever changes names locks the folder itself."""

T = TypeVar("T")
Handle = Callable[[VerifiedCallback], Awaitable[object]]
"""Normalizes and records a callback; raises `Unavailable`, or one of `RESOURCE_ERRORS`, while that is not possible."""


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
        self.kept = asyncio.Event()
        """Set when an entry was added."""
        self.refused = ""
        """Why the last drain left something, in a sentence; empty when nothing was refused."""

    @property
    def depth(self) -> int:
        """How many callbacks wait."""
        return len(self._entries)

    @property
    def oldest_age_seconds(self) -> float:
        """How long the oldest one has waited."""
        if not self._entries:
            return 0.0
        oldest = min(entry.received_at for entry in self._entries.values())
        return max(0, self._clock() - oldest) / 1000

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
            elif kind == "json":
                with contextlib.suppress(FileNotFoundError):
                    self._entries[stem] = entry_at(self._folder / name)

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
        held = sum(entry.size for entry in self._entries.values())
        if held + callback.body.size > self._max_bytes:
            raise JournalUnavailable("the journal is full: raise journal.max_bytes or mend the store")
        meta = _meta(callback, reason, secret_headers)
        await _in_thread(partial(self._keep, stem, meta, callback))
        self._entries[stem] = entry_of(stem, meta)
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

    async def drain(self, handle: Handle) -> int:
        """Pass every entry to `handle` and remove those it took; return their number. `refused` says why some are left.

        Oldest first. An entry that was refused goes behind the others, so that one that no store will ever take (too
        large for it, say), or that cannot be read, holds up none. Refused while others are taken, it waits longer each
        time. Several refusals in a row are an outage, and end the drain. Raises `Unavailable` when no entry was taken. An
        entry whose bytes changed on disk is moved to `damaged/`. Does nothing while another process drains the folder.
        """
        try:
            with _locked(self._folder / _DRAINING, wait=False):
                return await self._pass_on(handle)
        except BlockingIOError:
            return 0
        except THREAD_ERRORS as error:
            raise unavailable(error) from None

    async def _pass_on(self, handle: Handle) -> int:
        done = 0
        refused: list[tuple[Entry, Unavailable]] = []
        self.refused = ""
        for entry in sorted(self._entries.values(), key=_turn):
            if self._elapsed() < entry.not_before:
                continue
            try:
                callback = await self._restore(entry)
                if callback is None:
                    continue
                await handle(callback)
            except (Unavailable, *RESOURCE_ERRORS) as error:
                refused.append((entry, self._refusal(entry, error)))
                if len(refused) == _OUTAGE_AFTER:
                    break
                continue
            except Exception as error:  # a bug or a poison entry must not stop the others
                self._failed(entry, type(error).__name__)
                continue
            self._put_off(refused, alone=True)
            refused.clear()
            await asyncio.to_thread(self._remove, entry.stem)
            self._entries.pop(entry.stem, None)
            done += 1
            self._report()
        self._put_off(refused, alone=done > 0)
        if refused and not done:
            raise refused[-1][1]
        return done

    def _refusal(self, entry: Entry, error: BaseException) -> Unavailable:
        if isinstance(error, Unavailable):
            return error
        entry.tries += 1  # perhaps it is this one that takes more memory than there is
        return unavailable(error, entry=entry.stem)

    def _failed(self, entry: Entry, error: str) -> None:
        entry.tries += 1
        if entry.tries >= _QUICK_TRIES:
            entry.not_before = self._elapsed() + _LONGEST_PAUSE
        if entry.tries <= _QUICK_TRIES or error != entry.why:
            self._observer.note("error", "journal.entry_failed", entry=entry.stem, error=error)
        entry.why = error

    def _put_off(self, refused: list[tuple[Entry, Unavailable]], *, alone: bool) -> None:
        """Report why entries are left, each reason once; `alone`: others were taken meanwhile, so it is no outage."""
        for entry, error in refused:
            entry.tries += alone
            pause = 0.0
            if alone or entry.tries > _QUICK_TRIES:
                pause = min(math.ldexp(_FIRST_PAUSE, min(entry.tries - 1, 10)), _LONGEST_PAUSE)
            # Also without a pause it goes behind those that were refused before it.
            entry.not_before = self._elapsed() + pause
            if not any(error.message == known.why for known in self._entries.values()):
                name = "journal.entry_refused" if alone else "journal.drain_stopped"
                self._observer.note(
                    "warning", name, entry=entry.stem, source=entry.source, error=error.message
                )
            self.refused = entry.why = error.message

    async def _restore(self, entry: Entry) -> VerifiedCallback | None:
        """Return the kept callback, None when it is gone or damaged. Raises `JournalUnavailable` when it cannot be read now."""
        try:
            callback = await asyncio.to_thread(restored, self._folder, entry.stem)
            if callback is None:
                self._observer.note("error", "journal.entry_damaged", entry=entry.stem, source=entry.source)
        except FileNotFoundError:  # another process of this machine drained it
            callback = None
        except THREAD_ERRORS as error:
            raise unavailable(error, entry=entry.stem) from None
        if callback is None:
            self._entries.pop(entry.stem, None)
        return callback

    def _remove(self, stem: str) -> bool:
        """Remove an entry; return whether it is gone."""
        # The commit goes first: a body without one is swept at the next start.
        with _locked(self._folder):
            for suffix in ("json", "body"):
                with contextlib.suppress(OSError):
                    (self._folder / f"{stem}.{suffix}").unlink()
        return not (self._folder / f"{stem}.json").exists()

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
                callback = await self._restore(entry)
                if callback is not None:
                    await asyncio.to_thread(look, entry.stem, callback)
            except JournalUnavailable as error:
                (unreadable or failed.append)(error.message)
            except RESOURCE_ERRORS as error:
                (unreadable or failed.append)(unavailable(error, entry=entry.stem).message)
        if failed:
            raise JournalUnavailable("; ".join(failed))

    async def remove(self, stems: Iterable[str]) -> int:
        """Remove entries for good; return how many were there. Raises `JournalUnavailable`."""
        count = 0
        for stem in stems:
            if not await _in_thread(partial(self._remove, stem), entry=stem):
                raise JournalUnavailable(f"the journal's entry {stem} cannot be removed")
            count += self._entries.pop(stem, None) is not None
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


def look(folder: str) -> list[Entry]:
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
    size: int
    sha256: str
    reason: str


def _meta(callback: VerifiedCallback, reason: str, secret_headers: frozenset[str]) -> bytes:
    secret = secret_headers | _ALWAYS_SECRET
    headers = tuple(pair for pair in callback.head.headers if pair[0] not in secret)
    commit = _Commit(
        head=msgspec.structs.replace(callback.head, headers=headers, token=None, url="", claims=None),
        claims=callback.claims,
        proofs=tuple(sorted(callback.proofs)),
        size=callback.body.size,
        sha256=callback.body.sha256,
        reason=reason,
    )
    return msgspec.json.encode(commit)


def _commit(meta: bytes) -> _Commit | None:
    try:
        return msgspec.json.decode(meta, type=_Commit)
    except msgspec.MsgspecError:
        return None


def _turn(entry: Entry) -> tuple[bool, float, int]:
    """Return what entries are sorted by: untried ones first, the oldest before the others."""
    return bool(entry.why), entry.not_before, entry.received_at


UNREADABLE = "unreadable: "
"""Beginning of the reason of an entry whose commit could not be read."""
_ADVICE = "; make it writable, or name another with data or journal.path"


@dataclass(slots=True)
class Entry:
    """One kept callback, as the folder shows it."""

    stem: str
    received_at: int
    size: int
    source: str
    reason: str
    tries: int = 0
    """How often it was not taken for a reason of its own, not for an outage."""
    not_before: float = 0.0
    """When it may be tried again, in seconds of `Journal`'s `elapsed`."""
    why: str = ""
    """Why it was not taken the last time."""


def entry_at(commit: Path) -> Entry:
    """Return the entry of a commit file, also when it cannot be read now. Raises `FileNotFoundError`."""
    try:
        return entry_of(commit.stem, commit.read_bytes())
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
    return Entry(stem, commit.head.received_at, commit.size, commit.head.source, commit.reason)


def restored(folder: Path, stem: str) -> VerifiedCallback | None:
    """Return a kept callback; None when its bytes changed on disk, after moving it to `damaged/`.

    Raises `FileNotFoundError` when it is gone, `OSError` when it cannot be read or moved.
    """
    body_path, path = folder / f"{stem}.body", folder / f"{stem}.json"
    commit = _commit(path.read_bytes())
    try:
        body = FileBody.read(str(body_path))
    except FileNotFoundError:
        path.stat()  # gone as well: another process of this machine drained it just now
        body = None
    if commit is not None and body is not None and commit.sha256 == body.sha256:
        return VerifiedCallback(
            head=commit.head, claims=commit.claims, proofs=frozenset(commit.proofs), body=body
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
