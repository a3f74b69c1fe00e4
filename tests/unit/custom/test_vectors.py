"""Requests with a secret, a clock and a verdict, made by the providers' own libraries or published by them.

`python -m tests.sdks.oracles` has nine of those libraries judge them anew, and the golden examples of their recipes as well.

Sources: OpenAI's, Replicate's, Retell's, Telnyx's, Twilio's, Plivo's, LiveKit's and Vonage's public libraries, ElevenLabs' library,
the Standard Webhooks specification's tests, Slack's and GitHub's documentation; the others are our own, after the providers' pages.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from receiver.core.callback import Head, MemoryBody
from receiver.core.errors import CallbackRejected, MalformedCallback
from receiver.core.event import EventDraft
from receiver.core.fetch import Failed, Fetch, FetchResponse
from receiver.providers.custom import CustomProvider
from receiver.settings.model import SourceSettings
from tests.support.golden import tokens

VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "vectors.json").read_text("utf-8"))
RENAMED = {"azure": "azure-speech"}
"""Recipes by the names that the vectors have for them."""
UNSHIPPED: dict[str, dict[str, Any]] = {
    "twilio256": {
        "recipe": "twilio",
        "proof": [
            {
                "kind": "hmac",
                "header": "X-Twilio-Signature",
                "message": "{url}{form.sorted}",
                "url_ports": "any",
                "no_clock": True,
            }
        ],
    },
    "twilio_json": {
        "proof": [
            {
                "kind": "hmac",
                "algorithm": "sha1",
                "header": "X-Twilio-Signature",
                "message": "{url}",
                "url_ports": "any",
                "no_clock": True,
            },
            {"kind": "digest", "at": "query:bodySHA256"},
        ],
        "event": {"family": "transcript", "job": "transcript_sid"},
    },
    "vonage": {
        "proof": [
            {
                "kind": "jwt",
                "prefix": "Bearer ",
                "algorithms": ["HS256"],
                "body_hash": "payload_hash",
            }
        ],
        "event": {"family": "speech", "job": "recording_uuid"},
        "result": {"from": "link", "at": "recording_url", "hosts": ["api.nexmo.com"]},
    },
    "slackform": {
        "body": "form",
        "proof": [
            {
                "kind": "hmac",
                "header": "X-Slack-Signature",
                "prefix": "v0=",
                "message": "v0:{timestamp}:{body}",
                "timestamp": {"from": "header:X-Slack-Request-Timestamp"},
            }
        ],
        "event": {"family": "media"},
    },
    "github_like": {
        "body": "raw",
        "proof": [{"kind": "hmac", "preset": "github-like"}],
        "event": {"family": "media"},
    },
    "aircall": {
        "proof": [{"kind": "same", "at": "field:token"}],
        "event": {"family": "speech", "job": "data.id", "state": "event", "completed": ["call.ended"]},
        "result": {"from": "link", "at": "data.recording", "hosts": ["*"]},
    },
    "pubsub": {
        "proof": [
            {
                "kind": "jwt",
                "prefix": "Bearer ",
                "algorithms": ["HS256"],
                "audience": "https://hooks.example.com/callbacks/google",
                "claims": {
                    "iss": ["https://accounts.google.com", "accounts.google.com"],
                    "email": "pusher@p.iam.gserviceaccount.com",
                    "email_verified": True,
                },
            }
        ],
        "unwrap": [{"at": "message.data", "as": "base64-json"}],
        "event": {"family": "transcript", "job": "name"},
    },
    "speechify": {
        "proof": [
            {
                "alternative": "signature",
                "kind": "hmac",
                "header": "Speechify-Signature",
                "split": ",",
                "element": "v0",
                "message": "{timestamp}.{body}",
                "timestamp": {"from": "element:t"},
            },
            {
                "alternative": "signature",
                "kind": "hmac",
                "header": "X-Speechify-Signature",
                "message": "{timestamp}.{body}",
                "timestamp": {"from": "header:X-Speechify-Timestamp"},
            },
        ],
        "event": {
            "family": "transcript",
            "job": "conversation.id",
            "state": "event",
            "completed": ["conversation.completed"],
        },
    },
}


class Published(Fetch):
    """Stands at the address of a provider's keys."""

    def __init__(self, key: str) -> None:
        self.key = key

    async def ask(self, url: str, *, headers: Any) -> FetchResponse:
        keys = [{"kty": "OKP", "crv": "Ed25519", "x": self.key, "kid": "1"}]
        return FetchResponse(status=200, headers={}, body=json.dumps({"keys": keys}).encode())

    async def download(self, url: str, **_: Any) -> Failed:
        raise AssertionError("a proof downloads nothing")

    def stream(self, url: str, **_: Any) -> Any:
        raise AssertionError("a proof streams nothing")


async def adapter(vector: dict[str, Any]) -> CustomProvider:
    """Return the adapter of a vector's recipe."""
    name = vector["recipe"]
    options = UNSHIPPED.get(name, {"recipe": RENAMED.get(name, name)}) | {"require_token": False}
    published = name == "fal"
    secrets = [] if published else vector["secrets"]
    made = CustomProvider.create(
        SourceSettings.model_validate({"name": "x", "provider": "custom", "secrets": secrets, **options}),
        tokens(),
    )
    for keys in made.trust.keys.values():
        key = (
            base64.urlsafe_b64encode(base64.urlsafe_b64decode(vector["secrets"][0] + "="))
            .decode()
            .rstrip("=")
        )
        assert await keys.fetch(Published(key), vector["now"] * 1000)
    return made


def judged(made: CustomProvider, vector: dict[str, Any], body: bytes) -> EventDraft | str | None:
    """Return the draft of a request, why it was parked, or None when it was refused."""
    head = Head(
        source="x",
        method=vector["method"],
        headers=tuple(vector["headers"].items()),
        received_at=vector["now"] * 1000,
        query=vector["url"].partition("?")[2],
        url=vector["url"],
    )
    try:
        callback = made.verify(made.admit(head), MemoryBody(body))
    except CallbackRejected:
        return None
    try:
        return made.normalize(callback)
    except MalformedCallback as error:
        return error.message


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
async def test_each_published_request_has_its_verdict(vector: dict[str, Any]) -> None:
    draft = judged(await adapter(vector), vector, vector["body"].encode())
    assert ("refused" if draft is None else "accepted") == vector["expected"]
    expected = vector["event"]
    if expected:
        assert isinstance(draft, EventDraft)
        kind, value = expected.get("result", (None, None))
        said = {"type": draft.type, "job": draft.job_id, "ref": draft.ref}
        assert {name: str(expected[name]) for name in said if name in expected}.items() <= said.items()
        if kind in ("link", "get"):
            assert draft.remote is not None
            assert draft.remote.url == value
        elif kind == "text":
            assert draft.transcript is not None
            assert draft.transcript.text == value


COVERED = [
    v
    for v in VECTORS
    if v["expected"] == "accepted"
    and v["recipe"] not in ("assemblyai", "aircall", "kie", "pubsub", "sarvam", "speechmatics")
]
"""Those whose proof covers the body."""


@pytest.mark.parametrize("vector", COVERED, ids=lambda vector: vector["name"])
async def test_any_flipped_byte_of_a_covered_body_is_refused(vector: dict[str, Any]) -> None:
    made, body = await adapter(vector), vector["body"].encode()
    for at in range(len(body)):
        changed = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        if vector["recipe"].startswith("twilio") and vector["recipe"] != "twilio_json":
            break  # what is signed is the form's fields, not their spelling
        assert judged(made, vector, changed) is None, at
    assert judged(made, vector, body + b"x") is None
