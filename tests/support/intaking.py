"""An open receiver without a socket, whose provider is of our own making and does as it is told."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from receiver.app.wiring import Ports, Receiver, build, open_receiver
from receiver.core.callback import Admission, Body, Head, VerifiedCallback
from receiver.core.errors import CallbackRejected, MalformedCallback
from receiver.core.event import AudioDraft, EventDraft
from receiver.engine.intake import Answer
from receiver.settings.load import parse
from tests.support.running import Seen

NOW = 1795222923456
SECRET = b"S3CRET-value"
MIB = 1024 * 1024


@dataclass
class Made:
    """The provider; `broken` names the step that has a bug."""

    broken: str = ""
    malformed: bool = False
    audio: AudioDraft | None = None
    retries: bool = True
    reject: str = ""
    limit: int = 100 * MIB
    drafts: list[EventDraft] = field(default_factory=list)
    short: list[Exception] = field(default_factory=list)
    """What reading the body raises in the step that is `broken`, one after the other; then nothing is broken."""
    provider: ClassVar[str] = "made"
    secret_headers: ClassVar[frozenset[str]] = frozenset()
    methods: ClassVar[tuple[str, ...]] = ("POST", "PUT")
    handshake_methods: ClassVar[frozenset[str]] = frozenset()

    def handshake(self, head: Head, body: bytes, *, proved: bool) -> None:
        return None

    @property
    def keeps_retrying(self) -> bool:
        return self.retries

    @property
    def source(self) -> str:
        return "made"

    def came_as_proof(self, head: Head, body: bytes) -> list[str]:
        return []

    def _step(self, name: str) -> None:
        if self.broken == name and self.short:
            error = self.short.pop()
            self.broken = self.broken if self.short else ""
            raise error
        if self.broken == name:
            raise KeyError(SECRET.decode())

    def admit(self, head: Head) -> Admission:
        self._step("admit")
        if self.reject:
            raise CallbackRejected("no", setting=self.reject)
        return Admission(head=head, claims=None, proofs=frozenset({"made"}), body_limit=self.limit)

    def verify(self, admission: Admission, body: Body) -> VerifiedCallback:
        self._step("verify")
        return self.believed(admission, body)

    def believed(self, admission: Admission, body: Body) -> VerifiedCallback:
        return VerifiedCallback(head=admission.head, claims=None, proofs=admission.proofs, body=body)

    def normalize(self, callback: VerifiedCallback) -> EventDraft:
        self._step("normalize")
        if self.malformed:
            raise MalformedCallback("nothing that is known")
        return EventDraft(
            type="speech.completed",
            idempotency_key=callback.body.sha256,
            occurred_at=NOW,
            audio=self.audio,
            document=None if self.audio else callback.body.load(),
        )

    def redact(self, body: bytes) -> bytes:
        return body.replace(SECRET, b"[redacted]")

    def fallback_key(self, callback: VerifiedCallback) -> str:
        return f"parked:{callback.body.sha256}"


class _Store:
    """Stands before the store and fails as it is told."""

    def __init__(self, inner: Any, failing: dict[str, Exception]) -> None:
        self._inner, self._failing = inner, failing

    def __getattr__(self, name: str) -> Any:
        if name in self._failing:
            raise self._failing[name]
        return getattr(self._inner, name)


@dataclass
class Up:
    """An open receiver without a socket."""

    receiver: Receiver
    seen: Seen
    failing: dict[str, Exception]
    folder: Path

    async def send(self, body: bytes = b'{"a":1}', *headers: tuple[str, str], method: str = "POST") -> Answer:
        pieces = [body[start : start + 65536] for start in range(0, len(body), 65536)] or [b""]
        messages = [
            {"type": "http.request", "body": piece, "more_body": n < len(pieces)}
            for n, piece in enumerate(pieces, 1)
        ]
        waiting = iter(messages)

        async def receive() -> MutableMapping[str, Any]:
            return next(waiting)

        head = Head(source="made", method=method, headers=headers, received_at=NOW, peer="192.0.2.1")
        return await self.receiver.intake.accept(head, receive)

    async def kept(self, answer: Answer) -> dict[str, Any]:
        event = await self.receiver.store.event(answer.payload["event_id"])
        data: dict[str, Any] = json.loads(event.data)
        return data | {"type": event.type, "blob_key": event.blob_key}


@contextlib.asynccontextmanager
async def opening(folder: Path, made: Made) -> AsyncIterator[Up]:
    """Open one over a folder."""
    failing: dict[str, Exception] = {}

    def shape(ports: Ports) -> Ports:
        ports.providers = {"made": made}  # type: ignore[dict-item]
        ports.store = _Store(ports.store, failing)  # type: ignore[assignment]
        return ports

    text = f"data = '{folder}/data'\n[sources.made]\nprovider = 'deepgram'\nrequire_token = true\n"
    seen = Seen()
    receiver = build(parse(text, {}, lambda name: ""), observers=[seen], clock=lambda: NOW, shape=shape)
    async with open_receiver(receiver, work=False):
        yield Up(receiver, seen, failing, folder)
