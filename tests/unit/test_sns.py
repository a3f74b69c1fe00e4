"""SNS: whose certificate is fetched, when a subscription is confirmed, and where results lie."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

from receiver.core.callback import Head, MemoryBody
from receiver.core.errors import CallbackRejected, PickupRefused
from receiver.core.fetch import Failed, FetchResponse, KeysNeeded
from receiver.core.work import OutcomeKind
from receiver.providers.sns import SnsProvider, in_s3
from receiver.settings.model import SourceSettings
from tests.support.golden import tokens

NOW = 1_705_315_845_000
TOPIC = "arn:aws:sns:us-east-1:123456789012:speech"
HOST = "https://sns.us-east-1.amazonaws.com"
CERTIFICATE = f"{HOST}/SimpleNotificationService-1.pem"
KEY = rsa.generate_private_key(65537, 2048)
CONFIRM = {
    "Type": "SubscriptionConfirmation",
    "Token": "t",
    "SubscribeURL": f"{HOST}/?Action=ConfirmSubscription&Token=t",
}


def pem(key: Any = KEY, *, years: tuple[int, int] = (2023, 2124)) -> bytes:
    """Return a certificate of a key, signed by itself."""
    first, last = (datetime(year, 1, 1, tzinfo=UTC) for year in years)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    built = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(x509.Name([]))
    built = built.public_key(key.public_key()).serial_number(7).not_valid_before(first).not_valid_after(last)
    return built.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


def message(**fields: str) -> bytes:
    """Return a message as SNS posts it, rightly signed."""
    whole = {
        "Type": "Notification",
        "MessageId": "m-1",
        "TopicArn": TOPIC,
        "Message": "{}",
        "Timestamp": "2024-01-15T10:50:44Z",
        "SignatureVersion": "2",
        "SigningCertURL": CERTIFICATE,
        **fields,
    }
    kind = ("Subject",) if whole["Type"] == "Notification" else ("SubscribeURL", "Token")
    names = sorted({"Message", "MessageId", "Timestamp", "TopicArn", "Type", *kind} & set(whole))
    text = "".join(f"{name}\n{whole[name]}\n" for name in names).encode()
    whole["Signature"] = base64.b64encode(KEY.sign(text, padding.PKCS1v15(), hashes.SHA256())).decode()
    return json.dumps(whole).encode()


class Answers:
    """Stands for the way out: notes what is fetched."""

    def __init__(self, *answers: FetchResponse | Failed) -> None:
        self.asked: list[str] = []
        self._answers: Iterator[FetchResponse | Failed] = iter(answers)

    async def ask(self, url: str, *, headers: Any) -> FetchResponse | Failed:
        self.asked.append(url)
        return next(self._answers)

    async def download(self, url: str, **_: Any) -> Failed:
        raise AssertionError("a proof downloads nothing")

    def stream(self, url: str, **_: Any) -> Any:
        raise AssertionError("a proof streams nothing")


def source(**options: Any) -> SnsProvider:
    table = {"name": "aws", "provider": "sns", "topics": [TOPIC], **options}
    return SnsProvider.create(SourceSettings.model_validate(table), tokens())


def proved(made: SnsProvider, body: bytes, now: int = NOW, peer: str = "203.0.113.7") -> Any:
    lines = (("x-amz-sns-message-type", "Notification"),)
    head = Head(source="aws", method="POST", headers=lines, received_at=now, peer=peer)
    return made.verify(made.admit(head), MemoryBody(body))


async def fetched(
    made: SnsProvider, body: bytes, answers: Answers, now: int = NOW, peer: str = "203.0.113.7"
) -> bool:
    """Have the key fetched that a message needs; return whether it came."""
    with pytest.raises(KeysNeeded) as needed:
        proved(made, body, now, peer)
    return await needed.value.fetch(answers, now)


async def test_a_certificate_is_fetched_once_a_day() -> None:
    made, answers = source(), Answers(*[FetchResponse(status=200, headers={}, body=pem())] * 2)
    assert await fetched(made, message(), answers)
    for number in range(3):
        assert proved(made, message(MessageId=f"m-{number}")).proofs == {"signature"}
    assert answers.asked == [CERTIFICATE]
    later = NOW + 25 * 3600 * 1000
    assert await fetched(made, message(Timestamp="2024-01-16T11:50:44Z"), answers, later)
    assert proved(made, message(Timestamp="2024-01-16T11:50:44Z"), later).proofs == {"signature"}


@pytest.mark.parametrize(
    "url",
    [
        "http://sns.us-east-1.amazonaws.com/a.pem",
        "https://sns.us-east-1.amazonaws.com:444/a.pem",
        "https://sns.us-east-1.amazonaws.com@example.com/a.pem",
        "https://x@sns.us-east-1.amazonaws.com/a.pem",
        "https://sns.us-east-1.amazonaws.com.example.com/a.pem",
        "https://sns.eu-west-1.amazonaws.com/a.pem",
        "https://bucket.s3.us-east-1.amazonaws.com/a.pem",
        "https://169.254.169.254/a.pem",
        "https://[::1/a.pem",
        f"{HOST}/a.pem?x=.pem",
        f"{HOST}/?Action=GetTopicAttributes",
        "",
    ],
)
def test_no_other_certificate_is_fetched(url: str) -> None:
    with pytest.raises(CallbackRejected, match="no certificate of the topic's region's own host"):
        proved(source(), message(SigningCertURL=url))


async def test_urls_that_strangers_make_up_do_not_make_for_a_storm() -> None:
    """Who makes them up keeps nobody else's from being fetched; many together cause a fetch a second at most."""
    good, none = FetchResponse(status=200, headers={}, body=pem()), FetchResponse(status=404, headers={})
    made, answers = source(), Answers(*[none] * 5, good, *[none] * 54)
    for number in range(20):
        assert not await fetched(made, message(SigningCertURL=f"{HOST}/{number}.pem"), answers)
    assert len(answers.asked) == 5
    assert await fetched(made, message(), answers, peer="198.51.100.4")
    assert proved(made, message()).proofs == {"signature"}
    for number in range(80):
        made_up = message(SigningCertURL=f"{HOST}/{number}.pem")
        assert not await fetched(made, made_up, answers, peer=f"203.0.113.{number}")
    assert len(answers.asked) == 60


async def test_urls_that_strangers_make_up_do_not_keep_a_known_certificate_from_being_fetched_again() -> None:
    good, none = FetchResponse(status=200, headers={}, body=pem()), FetchResponse(status=404, headers={})
    made, answers = source(), Answers(good, *[none] * 5, none, good)
    assert await fetched(made, message(), answers)
    later = NOW + 25 * 3600 * 1000
    fresh = message(Timestamp="2024-01-16T11:50:44Z")
    for number in range(20):
        made_up = message(Timestamp="2024-01-16T11:50:44Z", SigningCertURL=f"{HOST}/{number}.pem")
        assert not await fetched(made, made_up, answers, later)
    assert not await fetched(made, fresh, answers, later)
    assert await fetched(made, fresh, answers, later)
    assert proved(made, fresh, later).proofs == {"signature"}


@pytest.mark.parametrize(
    "answer",
    [
        FetchResponse(status=200, headers={}, body=b"<html>"),
        FetchResponse(status=200, headers={}, body=pem(ed25519.Ed25519PrivateKey.generate())),
        FetchResponse(status=302, headers={"location": "https://example.com/a.pem"}, body=pem()),
        Failed(kind=OutcomeKind.BLOCKED, detail="no"),
    ],
)
async def test_what_is_no_certificate_proves_nothing(answer: FetchResponse | Failed) -> None:
    assert not await fetched(source(), message(), Answers(answer))


async def test_a_certificate_that_has_expired_proves_nothing() -> None:
    made = source()
    old = FetchResponse(status=200, headers={}, body=pem(years=(2010, 2020)))
    assert await fetched(made, message(), Answers(old))
    with pytest.raises(CallbackRejected, match="no certificate"):
        proved(made, message())


@pytest.mark.parametrize("field", ["Message", "MessageId", "Timestamp", "Subject"])
def test_a_changed_field_is_refused(field: str) -> None:
    made = source(certificate=pem().decode())
    body = json.loads(message(Subject="s"))
    assert proved(made, json.dumps(body).encode())
    body[field] = "2024-01-15T10:50:43Z" if field == "Timestamp" else body[field] + "x"
    with pytest.raises(CallbackRejected, match="signature is not one of this message"):
        proved(made, json.dumps(body).encode())


def test_a_subscription_is_confirmed_only_after_the_proof_and_at_the_regions_host() -> None:
    made = source(certificate=pem().decode())
    head = Head(source="aws", method="POST", headers=(), received_at=NOW)
    body = message(**CONFIRM)
    assert made.handshake(head, body, proved=False) is None
    reply = made.handshake(head, body, proved=True)
    assert reply is not None
    assert reply.confirm == CONFIRM["SubscribeURL"]
    assert made.handshake(head, message(), proved=True) is None
    for elsewhere in (
        "https://example.com/",
        "http://sns.us-east-1.amazonaws.com/",
        "https://169.254.169.254/",
    ):
        assert made.handshake(head, message(**CONFIRM | {"SubscribeURL": elsewhere}), proved=True) is None


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("s3://bucket/a/b.mp3", "s3://bucket/a/b.mp3"),
        ("https://s3.us-east-1.amazonaws.com/bucket/a%20b.mp3", "s3://bucket/a b.mp3"),
        ("https://bucket.s3.eu-west-1.amazonaws.com/a.mp3", "s3://bucket/a.mp3"),
        ("https://s3-us-west-2.amazonaws.com/bucket/a.mp3", "s3://bucket/a.mp3"),
        ("https://s3.amazonaws.com.example.com/bucket/a.mp3", None),
        ("https://example.com/bucket/a.mp3", None),
        ("http://s3.us-east-1.amazonaws.com/bucket/a.mp3", None),
        ("https://[::1", None),
    ],
)
def test_a_place_in_s3_is_understood_in_each_spelling(text: str, place: str | None) -> None:
    assert in_s3(text) == place


def test_a_job_or_a_place_can_be_handed_over() -> None:
    made = source(transcripts="s3://bucket/done/")
    assert made.lookup("call-1", {}).target == "s3://bucket/done/call-1.json"
    assert made.lookup("s3://other/a.mp3", {}).job_id is None
    with pytest.raises(PickupRefused, match="s3://bucket/key"):
        source().lookup("call-1", {})
