"""What a proof of a source without code is made over, and what is told of one that does not hold."""

from __future__ import annotations

import base64
import gzip
import hmac
import json
from typing import Any

import pytest

from receiver.core.callback import MemoryBody
from receiver.core.errors import CallbackRejected
from receiver.core.event import EventDraft
from receiver.providers.custom import CustomProvider
from receiver.settings.model import SourceSettings
from tests.support.golden import tokens
from tests.support.sources import NOW, SECRET, head, source, verdict

SIGNED: dict[str, Any] = {
    "kind": "hmac",
    "header": "x-signature",
    "message": "{timestamp}.{body}",
    "timestamp": {"from": "header:x-time"},
}
BODY = b'{"id": "1"}'


def signed(message: bytes, at: int = NOW // 1000) -> tuple[tuple[str, str], ...]:
    digest = hmac.digest(SECRET.encode(), b"%d.%b" % (at, message), "sha256").hex()
    return ("x-signature", digest), ("x-time", str(at))


def test_a_signature_is_made_over_the_body_as_it_was_sent() -> None:
    """A body whose coding was undone is kept and read without it."""
    made = source(proof=[SIGNED])
    body = MemoryBody(BODY)
    body.wire = MemoryBody(gzip.compress(BODY))
    callback = made.verify(made.admit(head(*signed(body.wire.load()))), body)
    assert made.normalize(callback).job_id == "1"
    with pytest.raises(CallbackRejected):
        made.verify(made.admit(head(*signed(BODY))), body)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (signed(BODY, NOW // 1000 - 301), "header:x-time is 301 s old"),
        ((("x-signature", "no hex"), ("x-time", "1705315845")), "holds no signature in hex"),
        (signed(b"another"), "fits no secret"),
        (signed(BODY, NOW), 'set unit = "ms"'),
    ],
)
def test_the_signed_message_is_shown_whatever_is_wrong_with_the_proof(
    lines: tuple[tuple[str, str], ...], why: str
) -> None:
    """Who writes a recipe sees whether the message is right, also when a captured request is long past."""
    (verdict,) = source(proof=[SIGNED]).examine(head(*lines), MemoryBody(BODY))
    assert why in verdict.reason
    assert verdict.signed == dict(lines)["x-time"].encode() + b"." + BODY


@pytest.mark.parametrize(("said", "meant"), [("utf8", "base64"), ("base64", "utf8"), ("base64", "hex")])
def test_a_secret_that_is_spelled_otherwise_is_told(said: str, meant: str) -> None:
    secret = "ab" * 16
    key = {"utf8": secret.encode(), "base64": base64.b64decode(secret), "hex": bytes.fromhex(secret)}[meant]
    made = source(
        secrets=[secret],
        proof=[{"kind": "hmac", "header": "x-signature", "no_clock": True, "secret_encoding": said}],
    )
    line = ("x-signature", hmac.digest(key, BODY, "sha256").hex())
    (verdict,) = made.examine(head(line), MemoryBody(BODY))
    assert verdict.reason.endswith(f'with secret_encoding = "{meant}" it does')


def test_a_proof_by_the_head_alone_is_decided_before_the_body() -> None:
    """Of alternatives, one that holds is enough: the others are not looked at again."""
    by_head, by_body = {"kind": "same", "at": "header:x-secret"}, {**SIGNED, "alternative": "either"}
    made = source(proof=[by_body, {**by_head, "alternative": "either"}])
    assert made.admit(head()).held
    assert made.verify(made.admit(head()), MemoryBody(BODY)).proofs == {"same"}
    assert not source(proof=[by_head, SIGNED]).admit(head(*signed(BODY))).held


@pytest.mark.parametrize("name", ["task_id", "taskId"])
def test_a_task_of_kie_is_signed_by_either_of_its_names(name: str) -> None:
    """https://docs.kie.ai/common-api/webhook-verification: models differ in how they spell it."""
    stamp = str(NOW // 1000)
    digest = hmac.digest(SECRET.encode(), f"t1.{stamp}".encode(), "sha256")
    lines = ("x-webhook-signature", base64.b64encode(digest).decode()), ("x-webhook-timestamp", stamp)
    made = CustomProvider.create(
        SourceSettings.model_validate(
            {"name": "x", "recipe": "kie", "secrets": [SECRET], "require_token": False}
        ),
        tokens(),
    )
    body = json.dumps({"data": {name: "t1", "callbackType": "text"}}).encode()
    assert isinstance(verdict(made, head(*lines), body), EventDraft)
    assert str(verdict(made, head(*lines), body.replace(b"t1", b"t2"))).startswith("refused: ")
