"""One run of `receiver simulate`: which source is played, what is sent or served, and how it is printed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import typer
from msgspec import Struct

from receiver.cli.opening import load, made_store, newest, provider_settings, read_file, source_of, tokens_of
from receiver.cli.options import seconds
from receiver.cli.output import clean, print_json, warn
from receiver.cli.pickups import event_type_of, ordered
from receiver.core.clock import wall_clock
from receiver.core.errors import UsageError
from receiver.web.views import view

if TYPE_CHECKING:
    import httpx2

    from receiver.core.work import Pickup
    from receiver.demo.serving import Callback, CallbackAttempt, Provider, RequestRecord
    from receiver.settings.model import Settings, SourceSettings
    from receiver.storage.store.store import Store

_LOCAL = ("127.0.0.1", "localhost")
_POLL_SECONDS = 0.2
"""Between two looks into the store."""
_NEVER_SECONDS = 5.0
"""The deadline of a pickup whose result never comes, unless another is given."""
_NO_EVENT = "no event came: is `receiver serve` or `receiver work` running, with these settings?"


class Tries(NamedTuple):
    """How often a callback is tried that is not taken."""

    waits: Sequence[float]
    """Seconds that the provider waits between its tries."""
    attempts: int | None
    """None is as many as the provider makes, or one where a refusal is wanted."""
    scale: float = 1.0


class Simulation(Struct):
    """One run of `simulate`: which source is played, how long, and how it is printed."""

    settings: Settings
    source: SourceSettings
    timeout: float
    as_json: bool
    requests: list[dict[str, Any]] = []
    """The printed requests: method, path and status; never a query or a header."""

    @classmethod
    def of(
        cls,
        ctx: typer.Context,
        provider: str,
        name: str | None,
        polled: type[Provider] | None = None,
        *,
        timeout: str = "60s",
        as_json: bool,
    ) -> Simulation:
        """Return the run for a source of this provider: the one of this name, or the only one.

        Without any, the command ends; of a provider that is `polled` it shows the settings that are missing.
        """
        settings = load(ctx)
        known = any(source.provider == provider for source in settings.sources.values())
        if polled is not None and name is None and not known:
            raise _refuse(f'no source has provider = "{provider}"', polled, provider)
        return cls(settings, source_of(settings, provider, name), seconds(timeout), as_json)

    def say(self, text: str) -> None:
        """Print a line, unless JSON is to be printed."""
        if not self.as_json:
            typer.echo(clean(text))

    # ------------------------------------------------------------ calling back

    def callback_url(
        self,
        url: str | None,
        format: dict[str, Any],
        *,
        ref: str | None,
        wrong: bool = False,
        job_secret: bool = False,
    ) -> str:
        """Return the callback URL to call: `url` as it is if it is one, else made as `callback-url` does."""
        from receiver.core import urls
        from receiver.settings.load import public_base

        if url is not None and "/callbacks/" in url:
            return url
        base = url or public_base(self.settings.model_copy(update={"public_url": None}))
        basic = newest(self.source, "basic") if self.source.provider == "deepgram" else None
        issue = tokens_of(self.settings).issue
        token = issue(self.source.name, ref=ref, format=format, job_secret=job_secret)
        if wrong and basic:
            basic = f"somebody:{secrets.token_hex(8)}"
        elif wrong:
            token = token[::-1]
        return urls.compose(base, self.source.name, token=token, basic=basic)

    def document(self, product: str, file: Path | None) -> dict[str, Any]:
        """Return the document that Deepgram sends: the one in the file, or the product's result."""
        from receiver.demo import deepgram

        if file is None:
            secret = newest(self.source, "callback_secrets")
            return deepgram.result(product, now=wall_clock(), callback_secret=secret)
        try:
            document = json.loads(read_file(file))
        except ValueError:
            raise UsageError(f"{file} is not JSON") from None
        if not isinstance(document, dict):
            raise UsageError(f"{file} is not a JSON object")
        return document

    def deapi_secret(self, url: str, *, job_secret: bool, wrong: bool) -> str:
        """Return what deAPI signs with. Raises `UsageError` when the source has no secret."""
        if wrong:
            return secrets.token_hex(32)
        if job_secret:
            return tokens_of(self.settings).job_secrets(urlsplit(url).path.rpartition("/")[2])[0]
        secret = newest(self.source, "secrets")
        if secret is None:
            raise UsageError(f"sources.{self.source.name}.secrets is empty: add one, or use --job-secret")
        return secret

    def send(
        self,
        callbacks: Iterable[tuple[str, Callable[[], Callback]]],
        tries: Tries,
        ca_file: str | None,
        *,
        refused: bool,
        events_of: Sequence[str] = (),
    ) -> None:
        """Send each callback until it is taken, and print each try as it is made.

        Ends with status 0 when the last try of each label was taken, or `refused`, as it should be; and when the events
        came that the answers to `events_of` (labels) name.
        """
        from receiver.demo.serving import send_until_accepted, waits_of

        attempts = tries.attempts or (1 if refused else None)
        waits = waits_of(tries.waits, attempts=attempts, scale=tries.scale)
        last: dict[str, CallbackAttempt] = {}
        lines, came = [], True
        with _client(ca_file) as client:
            for label, make in callbacks:
                for attempt in send_until_accepted(client, make, label=label, waits=waits):
                    last[label] = attempt
                    lines.append({"label": label, "try": attempt.number, "status": attempt.status})
                    lines[-1] |= {"answer": attempt.answer, "seconds": round(attempt.seconds, 3)}
                    status, took = attempt.status or "---", f"{attempt.seconds * 1000:.0f} ms"
                    self.say(f"{label}  try {attempt.number}  {status}  {took}  {attempt.answer}")
                    if label in events_of and attempt.accepted:
                        came &= self._came(attempt)
        if self.as_json:
            print_json(lines)
        if not all(
            attempt.status in (401, 403) if refused else attempt.accepted for attempt in last.values()
        ):
            raise typer.Exit(1)
        if not came:
            warn(_NO_EVENT)
            raise typer.Exit(1)

    def _came(self, attempt: CallbackAttempt) -> bool:
        """Tell whether the event came that an answer names; one that the journal keeps has no name yet."""
        from receiver.demo.stage import answer_of

        event_id = answer_of(attempt).get("event_id")

        async def wait(event_id: str) -> bool:
            async with made_store(self.settings) as store:
                return await self._event_type(store, event_id) is not None

        return event_id is None or asyncio.run(wait(event_id))

    async def _event_type(self, store: Store, event_id: str) -> str | None:
        """Wait for an event, print it and return its type; None when it does not come in time."""
        until = time.monotonic() + self.timeout
        while True:
            event_type = await event_type_of(store, event_id)
            if event_type is not None:
                self.say(f"{event_id}  {event_type}")
            if event_type is not None or time.monotonic() >= until:
                return event_type
            await asyncio.sleep(_POLL_SECONDS)

    # ------------------------------------------------------------ being polled

    def port_and_key(self, provider: type[Provider], *, polled: bool = True) -> tuple[int, str]:
        """Return the port of this machine at which a source looks for the provider, and the key that it sends.

        Where nothing is `polled`, the port may be any (0) and there may be no key (""). Ends the command when the settings
        lead elsewhere; raises `UsageError` without a key.
        """
        from receiver.core.errors import AddressBlocked
        from receiver.outbound.guard import Guard, listed

        options, (setting, path) = provider_settings(self.source), provider.address
        where, parts = f"sources.{self.source.name}", urlsplit(getattr(options, setting) or "")
        local = parts.hostname in _LOCAL
        if (polled or local) and not (
            local and parts.scheme == "http" and parts.port and parts.path.rstrip("/") == path
        ):
            reason = f"{where}.{setting} is not this machine's http://127.0.0.1:PORT{path}"
            raise _refuse(reason, provider, self.source.name)
        try:
            Guard(self.source.allow).check("127.0.0.1", "127.0.0.1")
        except AddressBlocked:
            raise _refuse(f"{where}.allow does not have 127.0.0.1", provider, self.source.name) from None
        if not listed("127.0.0.1", getattr(options, "result_hosts", ("*",))):
            raise _refuse(f"{where}.result_hosts does not have 127.0.0.1", provider, self.source.name)
        if polled and options.api_key is None:
            raise UsageError(f"{where}.api_key is not set: the simulated provider takes any")
        key = options.api_key.get_secret_value() if options.api_key else ""
        return (parts.port or 0) if local else 0, key

    def pickup(self, job_id: str, ref: str | None, deadline: str | None, *, never: bool) -> Pickup:
        """Return the pickup of a job, as `receiver pickup` makes it."""
        limit = seconds(deadline) if deadline else (_NEVER_SECONDS if never else None)
        return ordered(self.settings, self.source.name, job_id, ref=ref, deadline_seconds=limit, format={})

    def pick_up(self, provider: Provider, port: int, pickup: Pickup, *, failure: bool) -> None:
        """Hand a pickup over, answer receiver's requests, and end with status 0 when its event is as it should be."""
        with self.served(provider, port):
            ended, event_type = asyncio.run(self._added(pickup))
        if self.as_json:
            print_json({"requests": self.requests, "pickup": view(ended), "event_type": event_type})
        if event_type is None:
            warn(_NO_EVENT)
        if event_type != ("speech.failed" if failure else "speech.completed"):
            raise typer.Exit(1)

    async def _added(self, pickup: Pickup) -> tuple[Pickup, str | None]:
        """Add a pickup; return how it ended, and the type of its event: None when that does not come in time."""
        async with made_store(self.settings) as store:
            added, _ = await store.add_pickup(pickup)
            self.say(f"handed over: {added.id}, to become {added.event_id}")
            event_type = await self._event_type(store, added.event_id)
            return await store.pickup(added.id), event_type

    @contextlib.contextmanager
    def served(self, provider: Provider, port: int) -> Iterator[str]:
        """Serve a provider on a port of this machine (0: a free one), and print each request that it answers.

        Raises `UsageError` when the port is taken.
        """
        from receiver.demo.serving import served

        provider.on_answer = self._print_request
        with contextlib.ExitStack() as stack:
            try:
                base = stack.enter_context(served(provider.app, port=port))
            except OSError:
                taken = f"port {port} is taken by another program, perhaps another simulate: end it"
                raise UsageError(taken) from None
            yield base

    def _print_request(self, request: RequestRecord) -> None:
        self.requests.append({"method": request.method, "path": request.path, "status": request.status})
        self.say(f"{request.method} {request.path}  {request.status}")


def _refuse(reason: str, provider: type[Provider], name: str) -> typer.Exit:
    """Print what is missing in the settings and return the end of the command, to be raised."""
    warn(f"receiver: {reason}. With these settings (and receiver started anew) it can be played:")
    warn(f"[sources.{name}]")
    for setting, value in provider.settings().items():
        warn(f"{setting} = {json.dumps(value)}")
    return typer.Exit(2)


def _client(ca_file: str | None) -> httpx2.Client:
    from receiver.demo.serving import open_client

    try:
        return open_client(ca_file)
    except OSError:  # ssl.SSLError is one
        raise UsageError(f"{ca_file} cannot be read, or holds no certificates in PEM form") from None
