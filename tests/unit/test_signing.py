"""Signing: published vectors, an independent library's verdict, and what must not verify."""

from __future__ import annotations

import base64
import re
import string
import time

import pytest
from standardwebhooks.webhooks import Webhook

from receiver.core.proofs import basic_credentials, hmac_sha256_hex, matching_place, same
from receiver.core.tokens import CallbackTokens, ObjectLinks
from receiver.core.webhook import new_webhook_secret, webhook_key
from receiver.core.webhook import sign as standard_webhook

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD, NEW = "an-older-token-secret", "a-newer-token-secret"


# ---------------------------------------------------------------- compares


def test_same_compares_any_characters() -> None:
    assert same("pass\u00e4\u20ac", "pass\u00e4\u20ac".encode())
    assert not same("\udc80", "\udc81")
    assert not same("", "a")


def test_the_place_of_what_matches_is_told_and_0_for_nothing() -> None:
    assert [matching_place(given, ["a", "b"]) for given in ("a", "b", "c", "", "ab")] == [
        1,
        2,
        0,
        0,
        0,
    ]
    assert not matching_place("", [])


# ---------------------------------------------------------------- Basic


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("Basic ZGc6cGE6c3M=", "dg:pa:ss"),
        ("basic ZGc6cGE6c3M=", "dg:pa:ss"),
        ("Basic  ZGc6cGE6c3M= ", "dg:pa:ss"),
        ("Basic " + base64.b64encode("\u00fc:\u00fc".encode()).decode(), "\u00fc:\u00fc"),
        ("Basic " + base64.b64encode("\u00fc:\u00fc".encode("latin-1")).decode(), "\u00fc:\u00fc"),
        ("Basic Og==", ":"),
        ("Basic ZGc=", None),
        ("Basic ZGc6cGE6c3M", None),
        ("Basic ZGc6cGE6c3M=x", None),
        ("Basic \u00e9", None),
        ("Basic", None),
        ("Bearer ZGc6cGE6c3M=", None),
        ("", None),
    ],
)
def test_basic_credentials(header: str, found: str | None) -> None:
    assert basic_credentials(header) == found


def test_hmac_of_a_deapi_callback() -> None:
    """The secret is used as it is, prefix and all."""
    body = b'{"event":"job.processing","delivery_id":"550e8400-e29b-41d4-a716-446655440000","timestamp":"2024-01-15T10:50:00.000Z","data":{"job_request_id":"123e4567-e89b-12d3-a456-426614174000","status":"processing","previous_status":"pending","job_type":"txt2audio","started_at":"2024-01-15T10:50:00.000Z"}}'
    digest = hmac_sha256_hex("whsec_local_test_0123456789abcdefghijkl", b"1705315845." + body)
    assert digest == "d6d9dac33238dabd17b78f47d058cc2f57cbbeb32ae83f27d3c23884347dfe72"


# ---------------------------------------------------------------- Standard Webhooks


def test_standard_webhook_makes_the_published_signature() -> None:
    headers = standard_webhook(
        [webhook_key(SECRET)], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_while_rotating_both_secrets_verify_with_the_reference_library() -> None:
    secrets = [new_webhook_secret(), new_webhook_secret()]
    body = b'{"type":"speech.completed"}'
    headers = standard_webhook([webhook_key(s) for s in secrets], "evt_1", int(time.time()), body)
    assert len(headers["webhook-signature"].split(" ")) == 2
    for secret in secrets:
        assert Webhook(secret).verify(body.decode(), headers) == {"type": "speech.completed"}


@pytest.mark.parametrize("size", [24, 32, 64])
def test_a_webhook_secret_may_have_24_to_64_bytes(size: int) -> None:
    assert webhook_key("whsec_" + base64.b64encode(b"k" * size).decode()) == b"k" * size


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        "whsec_short",
        "whsec_!!!!",
        "whsec_" + base64.b64encode(b"k" * 23).decode(),
        "whsec_" + base64.b64encode(b"k" * 65).decode(),
    ],
)
def test_another_webhook_secret_is_refused_with_what_to_write_and_without_itself(secret: str) -> None:
    with pytest.raises(ValueError, match="24 to 64 bytes") as caught:
        webhook_key(secret)
    assert not secret or secret == "whsec_" or secret not in str(caught.value)


# ---------------------------------------------------------------- callback tokens


def test_a_token_says_what_it_was_issued_with() -> None:
    tokens = CallbackTokens([NEW])
    token = tokens.issue(
        "deepgram",
        ref="bestellung-\u00e4",
        format={"encoding": "mulaw", "sample_rate": 8000},
        expires_at=5,
        job_secret=True,
    )
    claims = CallbackTokens([NEW]).read(token)
    assert claims
    assert (claims.source, claims.ref, claims.expires_at, claims.job_secret) == (
        "deepgram",
        "bestellung-\u00e4",
        5,
        True,
    )
    assert claims.format == {"encoding": "mulaw", "sample_rate": 8000}


def test_a_token_is_lower_case_letters_and_digits() -> None:
    """Deepgram refuses underscores in callback URLs."""
    tokens = CallbackTokens([NEW])
    for number in range(50):
        assert set(tokens.issue("deepgram", ref="_-_" * number)) <= set(
            string.ascii_lowercase + string.digits
        )


def test_each_token_is_new() -> None:
    tokens = CallbackTokens([NEW])
    issued = [tokens.issue("deepgram") for _ in range(100)]
    assert len(set(issued)) == 100
    ids = {claims.token_id for token in issued if (claims := tokens.read(token))}
    assert len(ids) == 100


def test_tokens_survive_rotation_until_their_secret_is_gone() -> None:
    token = CallbackTokens([OLD]).issue("deepgram")
    assert CallbackTokens([OLD, NEW]).read(token)
    assert CallbackTokens([NEW]).read(token) is None
    assert CallbackTokens([OLD]).read(CallbackTokens([OLD, NEW]).issue("deepgram")) is None


def test_a_token_changed_in_any_one_letter_is_not_ours() -> None:
    """The last letter may hold spare bits, which say nothing: then the same bytes are read."""
    tokens = CallbackTokens([NEW])
    token = tokens.issue("deepgram", ref="r")
    for place, letter in enumerate(token[:-1]):
        other = "a" if letter != "a" else "b"
        assert tokens.read(token[:place] + other + token[place + 1 :]) is None


@pytest.mark.parametrize(
    "token", ["", "a", "abc", "_" * 60, "\u00e9" * 60, "a" * 3000, "1" * 60, "a b", "A" * 56, "\u0661" * 56]
)
def test_other_texts_are_no_tokens(token: str) -> None:
    assert CallbackTokens([NEW]).read(token) is None


def test_a_cut_token_is_not_ours() -> None:
    tokens = CallbackTokens([NEW])
    token = tokens.issue("deepgram")
    assert [tokens.read(token[:end]) for end in range(len(token))] == [None] * len(token)


def test_an_object_link_is_no_callback_token() -> None:
    link = ObjectLinks([NEW]).issue("a/b.mp3", content_type="audio/mpeg", expires_at=9)
    assert CallbackTokens([NEW]).read(link) is None
    assert ObjectLinks([NEW]).read(CallbackTokens([NEW]).issue("deepgram")) is None


def test_a_longer_token_than_any_url_holds_is_not_read() -> None:
    """Whatever a hostile URL brings, only so much of it is decoded and checked."""
    tokens = CallbackTokens([NEW])
    longest = tokens.issue("deepgram", ref="r" * 1150)
    assert 1900 < len(longest) <= 2048
    assert tokens.read(longest) is not None
    longer = tokens.issue("deepgram", ref="r" * 1300)
    assert 2048 < len(longer) < 2 * 2048
    assert tokens.read(longer) is None


def test_only_so_many_tokens_are_remembered() -> None:
    """A token that was read is remembered, and many others displace it: memory stays bounded."""
    tokens = CallbackTokens([NEW])
    token = tokens.issue("deepgram")
    claims = tokens.read(token)
    assert tokens.read(token) is claims
    for _ in range(1024):
        tokens.read(tokens.issue("deepgram"))
    again = tokens.read(token)
    assert again == claims
    assert again is not claims


def test_tokens_need_a_secret() -> None:
    with pytest.raises(ValueError, match="at least one secret"):
        CallbackTokens([])


def test_job_secrets_are_of_the_token_and_newest_first() -> None:
    """What deAPI takes has 32 to 255 characters; after a rotation the job's earlier secret is still among them."""
    before, both = CallbackTokens([OLD]), CallbackTokens([OLD, NEW])
    token = before.issue("deapi", job_secret=True)
    assert before.job_secrets(token) == both.job_secrets(token)[1:]
    assert both.job_secrets(token)[0] == CallbackTokens([NEW]).job_secrets(token)[0]
    assert [len(secret) for secret in both.job_secrets(token)] == [64, 64]
    assert not set(both.job_secrets(token)) & set(both.job_secrets(before.issue("deapi")))


# ---------------------------------------------------------------- object links


def test_an_object_link_gives_back_what_it_was_made_for() -> None:
    link = ObjectLinks([OLD]).issue("audio/\u00e4/b.mp3", content_type="audio/mpeg", expires_at=1234)
    assert ObjectLinks([OLD, NEW]).read(link) == ("audio/\u00e4/b.mp3", "audio/mpeg", 1234)
    assert ObjectLinks([NEW]).read(link) is None
    assert ObjectLinks([OLD]).read(link[:-4] + "aaaa") is None


# ---------------------------------------------------------------- short callback tokens


@pytest.mark.parametrize("job_secret", [True, False])
def test_a_short_token_proves_whose_it_is_and_is_40_letters_and_digits(job_secret: bool) -> None:
    token, claims = CallbackTokens([OLD, NEW]).issue_short(
        "soniox", ref="r" * 500, expires_at=9, job_secret=job_secret
    )
    assert re.fullmatch("[a-z2-7]{40}", token)
    assert (claims.source, claims.ref, claims.expires_at) == ("soniox", "r" * 500, 9)
    read = CallbackTokens([OLD, NEW]).read_short("soniox", token)
    assert read
    assert (read.token_id, read.job_secret, read.secret, read.unread) == (
        claims.token_id,
        job_secret,
        2,
        True,
    )
    assert CallbackTokens([OLD, NEW]).read(token) is None
    assert CallbackTokens([NEW]).read_short("soniox", token)
    before, _ = CallbackTokens([OLD]).issue_short("soniox", expires_at=9)
    assert CallbackTokens([OLD, NEW]).read_short("soniox", before), "good for as long as its secret stays"


def test_a_short_token_is_of_one_source_and_one_secret_and_of_every_letter() -> None:
    tokens = CallbackTokens([NEW])
    token, _ = tokens.issue_short("soniox", expires_at=9)
    assert tokens.read_short("gladia", token) is None
    assert CallbackTokens([OLD]).read_short("soniox", token) is None
    for place, letter in enumerate(token):
        other = "a" if letter != "a" else "b"
        assert tokens.read_short("soniox", token[:place] + other + token[place + 1 :]) is None
    for text in ("", token[:-1], token + "a", "1" * 40, "_" * 40, "ä" * 40):
        assert tokens.read_short("soniox", text) is None
