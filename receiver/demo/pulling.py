"""The steps of the demo that show the pull road: results that are fetched, asked for, or missed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from receiver.core import callback_urls
from receiver.core.clock import wall_clock
from receiver.demo.stage import NotAsPromised, Stage
from receiver.demo.standins import deapi
from receiver.demo.standins.children import Line
from receiver.demo.standins.sending import Callback

_WITHIN_SECONDS = 2


def same_audio(line: Line, audio: bytes) -> dict[str, Any]:
    """Return what the application says of the audio it fetched, which must be `audio`."""
    heard: dict[str, Any] = line["audio"] or {}
    if heard.get("sha256") != hashlib.sha256(audio).hexdigest():
        raise NotAsPromised("the audio that the application fetched is not the provider's")
    return heard


def deapi_story(stage: Stage, ref: str, *, expired: bool = False) -> list[str]:
    """Let deAPI call back with processing and completed; return the events' ids. With `expired` the link is dead on arrival."""
    host = stage.cast.deapi
    url = callback_urls.compose(stage.base, "deapi", token=stage.tokens.issue("deapi", ref=ref))
    job_id = host.add()
    job = deapi.Job(url, stage.deapi_secret, id=job_id, result_url=host.link(stage.cast.deapi_base, job_id))
    if expired:
        host.expire()
    ids = []
    for event in ("processing", "completed"):
        now = wall_clock()
        callback = job.callback(event, job.body(event, now=now), now=now)
        ids.append(stage.recorded(callback, f"speech.{event}"))
    return ids


def expired_link(stage: Stage, audio: bytes) -> None:
    """The link of deAPI is dead on arrival; a fresh one is asked for."""
    stage.title("deAPI calls back, and its link has expired")
    event_id = deapi_story(stage, "order-45", expired=True)[-1]
    same_audio(stage.got(event_id), audio)
    asked = [f"{one.method} {one.path.rpartition('/')[0]}/…" for one in stage.cast.deapi.asked[-3:]]
    stage.good(f"receiver asked: {', '.join(asked)}")
    stage.good("a fresh link from deAPI's API; the key went there and nowhere else; delivered with the audio")


def deepdub(stage: Stage, audio: bytes) -> None:
    """Deepdub has a URL that is 404 until the audio is ready."""
    stage.title("Deepdub does not call back: the application hands over the URL it was given")
    wanted = {"targetText": "Hello", "model": "dd-etts-3.2", "voicePromptId": "voice", "locale": "en-US"}
    submit = f"{stage.cast.deepdub_base}/tts/retroactive"
    url = _posted(stage, submit, wanted, {"x-api-key": stage.cast.api_key})["url"]
    made = stage.ask("pickup", "deepdub", url, "--ref", "order-46")
    stage.promised(made["event_id"], "speech.completed")
    stage.good("receiver pickup deepdub https://… --ref order-46")
    same_audio(stage.got(made["event_id"]), audio)
    answers = len(stage.cast.deepdub.fetches)
    stage.good(f"asked {answers} times ({answers - 1} × 404: not yet), then delivered like any other event")


def playht(stage: Stage, audio: bytes) -> None:
    """PlayHT tells its progress as a stream of events."""
    stage.title("PlayHT tells how far it is as a stream: the application hands over the job's id")
    cast = stage.cast
    headers = {"authorization": f"Bearer {cast.api_key}", "x-user-id": cast.user_id}
    wanted = {"text": "Hello", "voice": "voice"}
    job_id = _posted(stage, f"{cast.playht_base}/tts", wanted, headers)["id"]
    made = stage.ask("pickup", "playht", job_id, "--ref", "order-47")
    stage.promised(made["event_id"], "speech.completed")
    same_audio(stage.got(made["event_id"]), audio)
    stage.good("the stream was followed to its end, the file fetched, and the event delivered")


def overdue(stage: Stage, deepgram: Callable[..., Callback], audio: bytes) -> None:
    """A callback that was expected does not come in time, and comes later."""
    stage.title(f"A callback that should have come within {_WITHIN_SECONDS} seconds does not")
    words = ("deepgram", "--ref", "order-48", "--expect-within", f"{_WITHIN_SECONDS}s")
    token = stage.ask("callback-url", *words, RECEIVER__PUBLIC_URL="https://hooks.example.test")["token"]
    stage.got_type("callback.overdue", ref="order-48")
    stage.good("the application is told: callback.overdue")
    event_id = stage.recorded(deepgram(stage, "order-48", audio, token=token), "speech.completed")
    same_audio(stage.got(event_id), audio)
    if not stage.ask("events", event_id)["data"]["late"]:
        raise NotAsPromised("the late callback is not marked late")
    stage.good('it comes all the same, counts, and says "late": true')


def _posted(stage: Stage, url: str, body: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    """Submit a job as the application does, and return the provider's answer."""
    headers = {"accept": "application/json"} | headers
    answer: dict[str, Any] = stage.client.post(url, json=body, headers=headers).json()
    return answer
