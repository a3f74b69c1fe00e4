"""What a proof of a source without code is made over, and what is told of one that does not hold."""

from __future__ import annotations

import base64
import gzip
import hmac
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding as KeyEncoding
from cryptography.hazmat.primitives.serialization import PublicFormat

from receiver.core.callback import MemoryBody
from receiver.core.errors import CallbackRejected
from receiver.core.event import EventDraft
from receiver.providers.custom import CustomProvider
from receiver.providers.proofs.base import decoded
from receiver.providers.proofs.signatures import _spellings
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


def _iso(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def _http(at: int) -> str:
    return format_datetime(datetime.fromtimestamp(at, UTC), usegmt=True)


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
        (signed(BODY, NOW // 1000 + 301), "header:x-time is 301 s ahead"),
        ((("x-signature", "no hex"), ("x-time", "1705315845")), "holds no signature in hex or base64"),
        (signed(b"another"), "fits no secret"),
        ((("x-time", str(NOW // 1000)),), "header:x-signature is missing"),
        ((signed(BODY)[0], ("x-time", "yesterday")), "header:x-time is no time: 'yesterday'"),
    ],
)
def test_the_signed_message_is_shown_whatever_is_wrong_with_the_proof(
    lines: tuple[tuple[str, str], ...], why: str
) -> None:
    """Who writes a recipe sees whether the message is right, also when a captured request is long past."""
    (verdict,) = source(proof=[SIGNED]).examine(head(*lines), MemoryBody(BODY))
    assert why in verdict["reason"]
    assert verdict["signed"] == dict(lines)["x-time"] + "." + BODY.decode()


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
    assert verdict["reason"].endswith(f'with secret_encoding = "{meant}" it does')


@pytest.mark.parametrize("secret", ["whsec_qrs=", "whsec_qrs", "qrs"])
def test_a_secret_is_taken_as_its_console_shows_it(secret: str) -> None:
    """With its prefix or without, base64 padded or not: libraries of Standard Webhooks differ in both."""
    at, key = str(NOW // 1000), b"\xaa\xbb"
    made = source(secrets=[secret], proof=[{"kind": "hmac", "preset": "standard-webhooks"}])
    digest = base64.b64encode(hmac.digest(key, f"id.{at}.".encode() + BODY, "sha256")).decode()
    lines = ("webhook-id", "id"), ("webhook-timestamp", at), ("webhook-signature", f"v1,{digest}")
    assert isinstance(verdict(made, head(*lines), BODY), EventDraft)


EC = ec.generate_private_key(ec.SECP256R1())


def test_a_public_key_may_be_given_as_pem() -> None:
    own = {"kind": "public-key", "algorithm": "ecdsa-p256", "header": "x-signature", "no_clock": True}
    pem = EC.public_key().public_bytes(KeyEncoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    signature = EC.sign(BODY, ec.ECDSA(hashes.SHA256())).hex()
    made = source(proof=[{**own, "keys": ["AAAA", f"\n{pem}"]}])
    assert isinstance(verdict(made, head(("x-signature", signature)), BODY), EventDraft)
    assert str(verdict(made, head(("x-signature", signature)), BODY + b" ")).startswith("refused: ")


@pytest.mark.parametrize(
    ("proof", "told"),
    [
        (SIGNED, False),
        (SIGNED | {"message": "{body}"}, True),
        (SIGNED | {"message": "{header:x-time}.{body}"}, False),
        (SIGNED | {"message": "{body}", "timestamp": None, "no_clock": True}, False),
    ],
)
def test_check_tells_of_a_time_that_anybody_could_renew(proof: dict[str, Any], told: bool) -> None:
    own = {
        "name": "x",
        "provider": "custom",
        "secrets": [SECRET],
        "proof": [proof],
        "event": {"family": "media"},
    }
    found = CustomProvider.findings(SourceSettings.model_validate(own))
    assert ("W905" in {one.code for one in found}) is told


@pytest.mark.parametrize("seconds", [-300, 300])
def test_the_time_of_signing_may_be_as_far_off_as_is_said(seconds: int) -> None:
    made = source(proof=[SIGNED])
    assert isinstance(verdict(made, head(*signed(BODY, NOW // 1000 + seconds)), BODY), EventDraft)


def test_a_time_without_a_zone_is_utc_wherever_receiver_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    made = source(proof=[SIGNED | {"timestamp": {"from": "header:x-time"}}])
    at = datetime.fromtimestamp(NOW / 1000, UTC).replace(tzinfo=None).isoformat()
    digest = hmac.digest(SECRET.encode(), f"{at}.".encode() + BODY, "sha256").hex()
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        said = verdict(made, head(("x-signature", digest), ("x-time", at)), BODY)
    time.tzset()
    assert isinstance(said, EventDraft), said


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ab01", b"\xab\x01"),
        ("AB01", b"\xab\x01"),
        ("ab 01", b""),
        ("+/8=", b"\xfb\xff"),
        ("+/8", b"\xfb\xff"),
        ("+ /8=", b""),
        ("+/8a+", b""),
        ("-_8", b"\xfb\xff"),
        ("-_8=", b"\xfb\xff"),
        ("", b""),
        ("\xbd=", b""),
    ],
)
def test_a_signature_shows_its_own_spelling(text: str, found: bytes) -> None:
    assert decoded(text) == found


@pytest.mark.parametrize("spell", [str, lambda at: str(at * 1000 + 7), _iso, _http])
def test_a_time_of_signing_shows_its_own_spelling(spell: Callable[[int], str]) -> None:
    made, at = source(proof=[SIGNED]), spell(NOW // 1000)
    digest = hmac.digest(SECRET.encode(), f"{at}.".encode() + BODY, "sha256")
    for text in (digest.hex(), base64.b64encode(digest).decode(), base64.urlsafe_b64encode(digest).decode()):
        assert isinstance(verdict(made, head(("x-signature", text), ("x-time", at)), BODY), EventDraft)
    late = spell(NOW // 1000 - 302)
    digest = hmac.digest(SECRET.encode(), f"{late}.".encode() + BODY, "sha256")
    refused = verdict(made, head(("x-signature", digest.hex()), ("x-time", late)), BODY)
    assert "s old" in str(refused)


def test_what_stands_around_a_signature_is_as_the_recipe_says() -> None:
    """Its prefix, the name of its header, how many stand in a list, and that each secret is good."""
    made = source(
        secrets=["another-secret-0123456789abcdef", SECRET, "the-newest-secret-0123456789abcdef"],
        proof=[SIGNED | {"header": "X-New", "also": ["X-Signature"], "prefix": "v1=", "split": ","}],
    )
    (_, digest), at = signed(BODY)
    good = f"v1={digest}"
    others = ",".join(["00" * 32] * 20)
    for lines, taken in (
        ([("x-new", good)], True),
        ([("x-signature", good)], True),
        ([("x-new", good), ("x-signature", "v1=00")], True),
        ([("x-new", "v1=00"), ("x-signature", good)], False),
        ([("x-new", f"v2={digest}")], False),
        ([("x-new", f"v1={others[:-65]}, {digest}")], True),
        ([("x-new", f"v1={others},{digest}")], False),
    ):
        assert isinstance(verdict(made, head(*lines, at), BODY), EventDraft) is taken, lines


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


@pytest.mark.parametrize(
    ("url", "also"),
    [
        ("https://a.example/x?y=1", "https://a.example:443/x?y=1"),
        ("https://a.example:443/x", "https://a.example/x"),
        ("http://a.example/x", "http://a.example:80/x"),
        ("https://a.example:8443/x", "https://a.example:8443/x"),
    ],
)
def test_a_signed_url_may_name_its_default_port_or_not(url: str, also: str) -> None:
    assert set(_spellings(url)) == {url, also}
