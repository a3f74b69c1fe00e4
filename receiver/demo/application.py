"""The sample application: a destination that checks signatures and fetches the audio. Runs as `python -m receiver.demo.application`.

It shows all that an application has to do: check the three Standard Webhooks headers over the raw body, answer 2xx once
the event is safe, and drop an event whose `webhook-id` it has seen. It prints one JSON line for each request.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from receiver.core.webhook import verify
from receiver.demo.serving import authorities, served

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request


class SampleApp:
    """Takes events; `say` is given what each was."""

    def __init__(self, secret: str, say: Callable[[dict[str, Any]], None]) -> None:
        self._secret = secret
        self._say = say
        self._seen: set[str] = set()
        self.routes = [Route("/hooks", self.take, methods=["POST"])]

    async def take(self, request: Request) -> Response:
        """Answer 204 for a signed event, 401 for anything else."""
        body = await request.body()
        if not verify(self._secret, request.headers, body, now=time.time()):
            self._say({"got": "unsigned"})
            return Response("the signature does not fit", status_code=401)
        event = json.loads(body)
        data, event_id = event["data"], request.headers["webhook-id"]
        line = {
            "got": "event",
            "event_id": event_id,
            "type": event["type"],
            "ref": data["ref"],
            "job_id": data["job_id"],
            "seen_before": event_id in self._seen,
            "audio": await _fetch(data["audio"]),
        }
        self._seen.add(event_id)
        self._say(line)
        return Response(status_code=204)


async def _fetch(audio: dict[str, Any] | None) -> dict[str, Any] | None:
    """Fetch the stored audio of an event and compare it with what the event says."""
    if audio is None:
        return None
    async with httpx2.AsyncClient(verify=authorities(), timeout=10, trust_env=False) as client:
        try:
            response = await client.get(audio["url"])
        except httpx2.HTTPError as error:
            where = urlsplit(audio["url"]).netloc
            return {"fetched": False, "why": f"{where} cannot be reached ({type(error).__name__})"}
    content = response.content
    return {
        "fetched": response.status_code == 200,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "as_promised": hashlib.sha256(content).hexdigest() == audio["sha256"],
        "duration_seconds": audio["duration_seconds"],
    }


def main() -> None:
    """Listen on 127.0.0.1 until stopped. The secret comes in the environment as SAMPLE_APP_SECRET."""
    parser = argparse.ArgumentParser(prog="receiver.demo.application", description="The sample application.")
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    secret = os.environ.get("SAMPLE_APP_SECRET", "")
    if not secret:
        sys.exit("SAMPLE_APP_SECRET is not set: give the destination's whsec_… secret")

    def say(line: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # in the server's thread as well
    with served(Starlette(routes=SampleApp(secret, say).routes), port=port) as base:
        say({"got": "ready", "port": urlsplit(base).port})
        signal.sigwait(ends)


if __name__ == "__main__":
    main()
