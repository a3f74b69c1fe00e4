"""Amazon SNS, over HTTPS: what Transcribe (by an EventBridge rule) and Polly say of their jobs; results in S3.

https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html: each message is signed, over named fields in a
fixed order, with the key of a certificate whose URL stands in the message. That URL proves nothing by itself: only one of the
topic's region's own host is fetched, and only messages of the topics that the settings name are taken. A subscription is
confirmed by a GET of a URL in the message, after the signature held. SNS sends again for up to an hour
(https://docs.aws.amazon.com/sns/latest/dg/sns-message-delivery-retries.html). The events of Transcribe:
https://docs.aws.amazon.com/eventbridge/latest/ref/events-ref-transcribe.html; the task that Polly tells of:
https://docs.aws.amazon.com/polly/latest/dg/API_SynthesisTask.html.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar
from urllib.parse import SplitResult, quote, unquote, urlsplit

import msgspec
from msgspec.structs import replace
from pydantic import Field, SecretStr, field_validator

from receiver.core.callback import Admission, Body, Head, Reply, VerifiedCallback
from receiver.core.errors import (
    CallbackRejected,
    Code,
    Finding,
    IgnoredCallback,
    MalformedCallback,
    PickupRefused,
    RejectionKind,
)
from receiver.core.event import EventDraft, JobError, Stage
from receiver.core.fetch import Failed, Fetch, FetchResponse
from receiver.core.tokens import CallbackTokens
from receiver.core.work import Pickup
from receiver.providers import NO_PROOF, NO_REASON, PullProvider, PushProvider
from receiver.providers.documents import (
    Document,
    decode_object,
    epoch_ms,
    first_text,
    join_key,
    opaque_id,
    table,
)
from receiver.providers.pickups import Gone, Lookup, Result, collected
from receiver.providers.proofs.base import Trust, from_base64
from receiver.providers.proofs.request import Request
from receiver.providers.proofs.signatures import TimestampSettings
from receiver.providers.toolkit import refused, revealed
from receiver.settings.model import BaseUrl, Section, SourceSettings
from receiver.system.aws_signature import Credentials, Signature

_ARN = re.compile(r"arn:(aws|aws-cn|aws-us-gov):sns:([a-z0-9-]{3,30}):\d{12}:[\w.-]{1,256}", re.ASCII)
_CONFIRMATION = ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type")
_FIELDS = {
    "Notification": ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"),
    "SubscriptionConfirmation": _CONFIRMATION,
    "UnsubscribeConfirmation": _CONFIRMATION,
}
"""What is signed, by the type of the message, in this order; a `Subject` only where there is one."""
_HASHES = {"1": "sha1", "2": "sha256"}
_SIGNED_AT = TimestampSettings.model_validate({"from": "Timestamp", "tolerance": 2 * 3600})
"""It is the time of the first try."""
_S3 = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.*)", re.DOTALL)
_S3_HOST = re.compile(
    r"(?:(?P<bucket>[a-z0-9.-]+)\.)?s3[.-](?:(?P<region>[a-z0-9-]+)\.)?amazonaws\.com(?:\.cn)?"
)
_NO_BODY = hashlib.sha256(b"").hexdigest()
_STAGES = {"completed": "completed", "failed": "failed"} | dict.fromkeys(
    ("in_progress", "inprogress", "queued", "scheduled"), "processing"
)
"""Transcribe's and Polly's words for how a job stands."""


class SnsSettings(Section):
    """[sources.NAME] of provider `sns`."""

    topics: tuple[str, ...] = ()
    """The topics that are taken, by their ARNs."""
    require_token: bool = False
    """Refuse a callback whose URL carries no token of receiver's."""
    transcripts: str = Field("", pattern=r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/.*)?$")
    """Where Transcribe writes: `s3://bucket/prefix/`. A transcript's name is its job's, with `.json`."""
    access_key_id: str = ""
    """For reading results in S3; without it the event says where they lie."""
    secret_access_key: SecretStr | None = None
    """The key's secret."""
    endpoint_url: BaseUrl | None = None
    """Where S3 is, in place of Amazon's own host of the region."""
    bucket_region: str = ""
    """The region of the buckets, where it is another than the topic's."""
    certificate: str = ""
    """The certificate that signs, as PEM, for a machine without a way out; without it, that of `SigningCertURL` is fetched."""
    deadline_seconds: float = Field(3600, ge=1, le=30 * 86400)
    """How long a result is tried for."""

    @field_validator("certificate")
    @classmethod
    def _is_certificate(cls, value: str) -> str:
        from receiver.providers.public_keys.certificates import Certificates  # loads a cryptography library

        Certificates(value)
        return value


class Message(msgspec.Struct, frozen=True):
    """What SNS posts. Only these fields are decoded before the signature held."""

    Type: str
    MessageId: str
    TopicArn: str
    Message: str
    Timestamp: str
    SignatureVersion: str
    Signature: str
    SigningCertURL: str
    Subject: str | None = None
    Token: str | None = None
    SubscribeURL: str | None = None

    def signed(self) -> bytes:
        """Return the text that was signed."""
        fields = ((name, getattr(self, name)) for name in _FIELDS[self.Type])
        return "".join(f"{name}\n{value}\n" for name, value in fields if value is not None).encode()


class SnsProvider(PushProvider, PullProvider):
    """One source that SNS topics call."""

    provider = "sns"
    Settings = SnsSettings
    codes: ClassVar = {
        "E504": Code("An SNS source's setting is wrong", ""),
        "E501": Code("An SNS source names no topic", 'add topics = ["arn:aws:sns:…"]'),
        "W501": Code("Results in S3 are not read", "add access_key_id and secret_access_key"),
    }
    keeps_retrying = True
    fetches_keys = True
    small_documents = True
    methods = ("POST",)
    handshake_methods = frozenset(("POST",))

    def __init__(self, settings: SourceSettings, options: SnsSettings, tokens: CallbackTokens) -> None:
        from receiver.providers.public_keys.certificates import Certificates  # loads a cryptography library

        self._secret = revealed(options.secret_access_key)
        super().__init__(settings, options, tokens)
        topics = f"{self._where}.topics"
        self._trust = Trust(topics, topics, topics)
        self._certificates = Certificates(options.certificate)

    def _secrets(self) -> tuple[str, ...]:
        return (self._secret,)

    @classmethod
    def _judge(cls, where: str, options: SnsSettings) -> Iterator[Finding]:
        if not options.topics:
            yield cls._missing(
                "E501", where, "topics", f"{NO_PROOF}: any topic of anybody's is signed by SNS"
            )
            return
        for topic in options.topics:
            if not _ARN.fullmatch(topic):
                wrong = f"{topic[:100]!r} is no topic"
                yield cls._finding(
                    "E504", where, "topics", wrong, 'write it as "arn:aws:sns:us-east-1:123456789012:NAME"'
                )
        if not (options.access_key_id and revealed(options.secret_access_key)):
            unread = "results lie in S3, and nothing says with which key they are read"
            yield cls._finding("W501", where, "access_key_id", unread)

    # ------------------------------------------------------------ proofs

    def admit(self, head: Head) -> Admission:
        """Check the URL's token and that the head names a topic of ours. Raises `CallbackRejected`, `WrongSource`."""
        claims = self._check_token(head, required=self._options.require_token)
        if head.one("x-amz-sns-message-type") is None:
            raise self._trust.refusal(
                "the header x-amz-sns-message-type is missing: this is no message of SNS",
                RejectionKind.MISSING,
            )
        if head.one("x-amz-sns-rawdelivery") is not None:
            raise self._trust.refusal(
                "raw message delivery sends no signature: switch it off at the subscription"
            )
        return Admission(
            head=head,
            claims=claims,
            proofs=frozenset(("token",) if claims else ()),
            body_limit=self._json_limit,
            held=False,
        )

    def verify(self, admission: Admission, body: Body) -> VerifiedCallback:
        """Check the signature. Raises `CallbackRejected`, `KeysNeeded`."""
        message = self._message(body.load())
        region = self._region(message)
        _SIGNED_AT.check(Request(admission.head, body.load(), "json"), {}, self._trust)
        head = admission.head
        certificate = self._certificates.at(
            message.SigningCertURL, f"sns.{region}", head.received_at, head.peer
        )
        if certificate is None:
            raise self._trust.refusal("SigningCertURL is no certificate of the topic's region's own host")
        if not certificate.verifies(
            from_base64(message.Signature), message.signed(), _HASHES[message.SignatureVersion]
        ):
            raise self._trust.refusal("the signature is not one of this message")
        return replace(super().verify(admission, body), proofs=admission.proofs | {"signature"})

    def _message(self, raw: bytes) -> Message:
        try:
            message = msgspec.json.decode(raw, type=Message)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise self._trust.refusal("the body is no message of SNS", RejectionKind.MALFORMED) from None
        if message.Type not in _FIELDS or message.SignatureVersion not in _HASHES:
            raise self._trust.refusal(
                "the message has a type or a SignatureVersion that is not known", RejectionKind.MALFORMED
            )
        return message

    def _region(self, message: Message) -> str:
        found = _ARN.fullmatch(message.TopicArn)
        if found is None or message.TopicArn not in self._options.topics:
            raise self._trust.refusal("the message is of a topic that is not configured")
        return f"{found[2]}.amazonaws.com{'.cn' if found[1] == 'aws-cn' else ''}"

    def handshake(self, head: Head, body: bytes, *, proved: bool) -> Reply | None:
        """Return the answer that confirms a subscription, once its URL was fetched; only for a message that was proved."""
        if not proved:
            return None
        message = self._message(body)
        if message.Type != "SubscriptionConfirmation":
            return None
        parts, host = urlsplit(message.SubscribeURL or ""), f"sns.{self._region(message)}"
        if parts.scheme != "https" or parts.netloc != host:  # signed by SNS, so this has not been seen
            return None
        return Reply(
            body=b'{"status":"ok"}', content_type="application/json", confirm=message.SubscribeURL or ""
        )

    # ------------------------------------------------------------ meaning

    def normalize(self, callback: VerifiedCallback) -> EventDraft:
        """Return the draft of what a service says of a job. Raises `MalformedCallback`, `IgnoredCallback`."""
        try:
            message = self._message(callback.body.load())
        except CallbackRejected as error:
            raise MalformedCallback(error.message) from None
        if message.Type != "Notification":
            raise IgnoredCallback
        document = decode_object(message.Message.encode())
        document, raw = self._without_secrets(document, message.Message.encode())
        document, raw = self._without_signatures(document, raw)
        detail = table(document, "detail") or document
        job = opaque_id(first_text(detail, "TranscriptionJobName", "taskId", "TaskId"))
        word = first_text(detail, "TranscriptionJobStatus", "taskStatus", "TaskStatus") or ""
        stage = _STAGES.get(word.lower())
        if job is None or stage is None:
            raise MalformedCallback("the message tells of no job of Transcribe's or Polly's")
        type_ = f"{'transcript' if 'TranscriptionJobName' in detail else 'speech'}.{stage}"
        reason = first_text(detail, "FailureReason", "taskStatusReason", "TaskStatusReason") or NO_REASON
        told_at = epoch_ms(document.get("time")) or epoch_ms(message.Timestamp)
        said = {"topic": message.TopicArn, "status": word, **self._place(detail, job)}
        draft = EventDraft(
            type=type_,
            idempotency_key=join_key("id", message.MessageId),
            second_key=join_key("job", job, type_) if stage != "processing" else None,
            job_id=job,
            ref=callback.ref,
            occurred_at=told_at or callback.head.received_at,
            stage=Stage.PROGRESS if stage == "processing" else Stage.FINAL,
            error=JobError(message=reason) if stage == "failed" else None,
            provider_data=said,
            document=raw,
        )
        return self._with_result(draft, callback) if stage == "completed" else draft

    def _place(self, detail: Document, job: str) -> dict[str, str]:
        """Return where a job's result lies, as an `s3://` URL, when that is known."""
        if "TranscriptionJobName" in detail:
            folder = self._options.transcripts
            return {"output_uri": f"{folder}{job}.json"} if folder else {}
        found = in_s3(first_text(detail, "outputUri", "OutputUri") or "")
        return {"output_uri": found} if found else {}

    def _with_result(self, draft: EventDraft, callback: VerifiedCallback) -> EventDraft:
        place = draft.provider_data.get("output_uri")
        if not place or not self._reads_s3:
            return draft
        key = draft.second_key or draft.idempotency_key
        return replace(draft, remote=self._remote(key, place, callback))

    # ------------------------------------------------------------ results

    @property
    def _reads_s3(self) -> bool:
        return bool(self._options.access_key_id and self._secret)

    def lookup(self, text: str, format: Mapping[str, Any]) -> Lookup:
        """Understand where a result lies, `s3://bucket/key` or its https form, or a job of Transcribe's. Raises `PickupRefused`."""
        place = in_s3(text.strip())
        if place is None and self._options.transcripts and (job := opaque_id(text)):
            place = f"{self._options.transcripts}{job}.json"
            return Lookup(key=join_key("job", job, "transcript.completed"), job_id=job, target=place)
        if place is None:
            raise PickupRefused(
                "hand over where the result lies: s3://bucket/key (or set transcripts, for job names)"
            )
        return Lookup(key=join_key("s3", place), job_id=None, target=place)

    def can_ask(self, pickup: Pickup) -> bool:
        """Tell whether there is a place to read from, and a key."""
        return self._reads_s3 and pickup.target is not None

    def family(self, pickup: Pickup) -> str:
        """Return `transcript` or `speech`."""
        if pickup.draft is not None:
            return pickup.draft.type.partition(".")[0]
        return "transcript" if (pickup.target or "").endswith(".json") else "speech"

    async def collect(self, pickup: Pickup, fetch: Fetch, *, now: int) -> Result:
        """Read the object once."""
        place = _S3.fullmatch(pickup.target or "")
        if place is None or not self._reads_s3:
            return Gone(
                error=JobError(
                    code="invalid_id", message="nothing says where in S3 the result lies, or with which key"
                )
            )
        parts, region = self._object(place[1], place[2], pickup)
        headers = {"host": parts.netloc, "x-amz-content-sha256": _NO_BODY}
        key = Credentials(self._options.access_key_id, self._secret)
        signed = Signature(region, "s3").headers("GET", parts.path, headers, _NO_BODY, key)
        hosts, limit = [parts.hostname or ""], self._settings.max_audio_bytes
        answer = await fetch.download(parts.geturl(), hosts=hosts, limit=limit, headers=signed)
        if isinstance(answer, FetchResponse):
            hint = f": check {self._where}.access_key_id, and that it may read {place[1]}"
            return refused(answer, f"S3 answers {answer.status}{hint if answer.status == 403 else ''}")
        if isinstance(answer, Failed):
            return answer
        kind = answer.headers.get("content-type", "")
        return collected(pickup, self.family(pickup), answer.body, kind, now, document=None)

    def _object(self, bucket: str, key: str, pickup: Pickup) -> tuple[SplitResult, str]:
        """Return the URL of an object, and the region of its bucket."""
        topic = str(
            (pickup.draft.provider_data if pickup.draft else {}).get("topic", self._options.topics[0])
        )
        region, china = self._options.bucket_region or topic.split(":")[3], topic.startswith("arn:aws-cn:")
        base = self._options.endpoint_url or f"https://s3.{region}.amazonaws.com{'.cn' if china else ''}"
        return urlsplit(f"{base}/{bucket}/{quote(key, safe='/~')}"), region


def in_s3(place: str) -> str | None:
    """Return `s3://bucket/key` for that, or for the https URL of an object in S3; None for anything else."""
    if _S3.fullmatch(place):
        return place
    try:
        parts = urlsplit(place)
    except ValueError:
        return None
    found = _S3_HOST.fullmatch(parts.hostname or "") if parts.scheme == "https" else None
    if found is None:
        return None
    path = unquote(parts.path).lstrip("/")
    made = f"s3://{found['bucket']}/{path}" if found["bucket"] else f"s3://{path}"
    return made if _S3.fullmatch(made) else None
