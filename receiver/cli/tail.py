"""`tail`: the events of a running receiver, on this screen and to a program on this machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from msgspec import Struct

from receiver.cli.opening import load_to_look
from receiver.cli.options import AsJson, OfSource, OfType, option
from receiver.cli.output import clean, warn
from receiver.core.errors import UsageError

if TYPE_CHECKING:
    import httpx2

_READ_SECONDS = 45.0
"""A stream that says nothing for so long is dead: it has a heartbeat."""
_FORWARD_SECONDS = 15.0
_PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Between attempts to connect again; the last for good."""


class StreamItem(Struct, frozen=True):
    """One event of the stream, or a gap in it."""

    kind: str
    """`event` or `gap`."""
    cursor: str
    body: bytes
    """The event as destinations get it."""


def tail(
    ctx: typer.Context,
    remote: Annotated[
        str | None, option("--remote", help="The receiver to follow; the one of the settings if left out.")
    ] = None,
    token: Annotated[
        str | None, option("--token", env="RECEIVER_API_TOKEN", help="A token of its API that may read.")
    ] = None,
    forward: Annotated[
        str | None, option("--forward", help="POST each event there: http://localhost:3000/hooks.")
    ] = None,
    secret: Annotated[
        str | None, option("--secret", help="Sign what is forwarded with this whsec_… secret.")
    ] = None,
    source: OfSource = None,
    type_: OfType = None,
    after: Annotated[
        str | None, option("--after", help="Begin after this cursor; 0.evt_0 is the beginning.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Follow the events of a running receiver. Ends with Ctrl-C; a connection that breaks is made again, and nothing is lost."""
    import httpx2

    from receiver.settings.load import own_base

    if not token:
        raise UsageError(
            "tail needs a token of the receiver's API with the scope read ([[api.tokens]] in its settings): give it by --token, or RECEIVER_API_TOKEN"
        )
    _refuse_wrong(secret)
    base = remote or own_base(load_to_look(ctx))
    query = {name: value for name, value in (("source", source), ("type", type_)) if value is not None}
    warn(f"following {base}: events appear as they are recorded; Ctrl-C ends")
    with httpx2.Client(timeout=_READ_SECONDS, headers={"authorization": f"Bearer {token}"}) as client:
        for item in follow(client, base.rstrip("/"), query, after=after, warn=warn):
            if item.kind == "gap":
                warn("events may have been removed before they could be read here")
                continue
            answer = _forwarded(forward, secret, item) if forward else ""
            _print(item, answer, as_json=as_json)


def _refuse_wrong(secret: str | None) -> None:
    from receiver.core.webhook import webhook_key

    try:
        webhook_key(secret) if secret else None
    except ValueError as error:
        raise UsageError(f"--secret: {error}") from None


def follow(
    client: httpx2.Client,
    base: str,
    query: dict[str, Any],
    *,
    after: str | None = None,
    warn: Callable[[str], object] = str,
) -> Iterator[StreamItem]:
    """Yield what a receiver's stream tells, for ever; a connection that breaks is made again after the last event.

    Raises `UsageError` for what trying again does not mend.
    """
    import httpx2

    failures = 0
    while True:
        headers, failed = {} if after is None else {"last-event-id": after}, ""
        try:
            with client.stream("GET", f"{base}/api/v1/stream", params=query, headers=headers) as answer:
                if answer.status_code < 500:
                    _insist(answer)
                    for item in parsed(answer.iter_lines()):
                        failures, after = 0, item.cursor or after
                        if item.body:
                            yield item
                else:
                    failed = f"status {answer.status_code}"
        except (httpx2.TransportError, httpx2.StreamError) as error:
            failed = type(error).__name__
        if failed and not failures:
            warn(f"the connection to {base} ended ({failed}): connecting again")
        time.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
        failures = failures + 1 if failed else 0


def _insist(answer: httpx2.Response) -> None:
    if answer.status_code != 200:
        answer.read()
        try:
            detail = msgspec.json.decode(answer.content)["detail"]
        except (msgspec.DecodeError, KeyError, TypeError):
            detail = "no receiver answers there"
        raise UsageError(f"{answer.status_code}: {detail}")


def parsed(lines: Iterator[str]) -> Iterator[StreamItem]:
    """Yield the events and gaps of a stream's lines, and, without a body, where it begins."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
            continue
        if "data" in fields or "id" in fields:
            body = fields.get("data", "").encode()
            yield StreamItem(fields.get("event", "event"), fields.get("id", ""), body)
        fields = {}


def _forwarded(url: str, secret: str | None, item: StreamItem) -> str:
    """POST an event as a destination gets it; return how that was answered."""
    import httpx2

    from receiver.core.webhook import sign, webhook_key

    event_id = msgspec.json.decode(item.body)["data"]["event_id"]
    keys = [webhook_key(secret)] if secret else []
    headers = {"content-type": "application/json"} | sign(keys, event_id, int(time.time()), item.body)
    try:
        answer = httpx2.post(url, content=item.body, headers=headers, timeout=_FORWARD_SECONDS)
    except httpx2.TransportError as error:
        return f"no answer: {str(error) or type(error).__name__}"
    unsigned = " (it was sent without a signature: give the application's secret by --secret)"
    return f"{answer.status_code}{unsigned if answer.status_code == 401 and not secret else ''}"


def _print(item: StreamItem, answer: str, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(item.body.decode() + "\n")
    else:
        event = msgspec.json.decode(item.body)
        data = event["data"]
        parts = [event["timestamp"], event["type"], data["source"], data["ref"] or "-", data["event_id"]]
        typer.echo(clean("  ".join([*parts, *([f"→ {answer}"] if answer else [])])))
    sys.stdout.flush()
