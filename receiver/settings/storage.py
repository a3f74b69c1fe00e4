"""The settings of what keeps things: store, blobs, journal, retention."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from receiver.core.retention import Retention, age

MIB = 1024 * 1024


class Section(BaseModel):
    """A frozen section that knows its settings and refuses others."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class StoreSettings(Section):
    """[store]"""

    url: SecretStr | None = None
    """`sqlite:///relative/path`, `sqlite:////absolute/path`, `postgresql://…`; None is `receiver.db` in the data folder."""


class BlobSettings(Section):
    """[blobs]"""

    url: str | None = None
    """`file:///absolute/path`, `s3://bucket/prefix`; None is `blobs` in the data folder."""
    link_seconds: int = Field(default=3600, ge=1, le=7 * 86400)
    """How long a link in an event lasts; made afresh at every attempt."""
    key: str = "{source}/{year}/{month}/{day}/{name}"
    """Where an object lies: a template that ends with `{name}`."""
    endpoint_url: str | None = None
    """S3: another store that speaks it; None is Amazon's."""
    link_endpoint_url: str | None = None
    """S3: where links in events lead, when applications reach the store by another address than receiver does."""
    region: str | None = None
    """S3: None is what boto3 finds in environment or profile."""
    addressing: Literal["auto", "path", "virtual"] = "auto"
    """S3: the bucket in the path or in the host name; `auto` is the path with `endpoint_url`."""
    checksums: Literal["when_supported", "when_required"] = "when_supported"
    """S3: `when_required` for older stores that refuse the newer checksum headers."""
    sse: Literal["AES256", "aws:kms"] | None = None
    """S3: encryption at rest, asked for with every object."""
    sse_kms_key_id: str | None = None
    """S3: the key for `aws:kms`; None is the account's own."""
    storage_class: str | None = None
    """S3: for example `STANDARD_IA`; None is the bucket's own. Not one that has to be restored before it is read."""
    ca_file: str | None = None
    """S3: more certificate authorities to trust for `endpoint_url` (PEM)."""
    timeout_seconds: float = Field(default=5.0, gt=0, le=60)
    """S3: the longest silence of the store within one request."""
    connections: int = Field(default=16, ge=1, le=256)
    """S3: requests under way at once, in one process."""

    @field_validator("storage_class")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value in ("GLACIER", "DEEP_ARCHIVE"):
            raise ValueError(
                "audio in an archive cannot be read or linked to: choose another, like GLACIER_IR"
            )
        return value


class JournalSettings(Section):
    """[journal]"""

    path: str | None = None
    """A folder on a local disk; None is `journal` in the data folder."""
    max_bytes: int = Field(default=10 * 1024 * MIB, ge=0)
    """Past this the journal takes no more, and callbacks are answered 503."""


class RetentionSettings(Section):
    """[retention]: how long each class is kept: `30d`, `12h`, `2w`, or `never`."""

    bodies: str = "30d"
    """The kept bodies of callbacks."""
    attempts: str = "30d"
    """The attempts of what has ended."""
    audio: str = "90d"
    """Audio and other results; `never` leaves them to the bucket's own rules."""
    dead_letters: str = "90d"
    events: str = "90d"
    """Events with all that belongs to them; at least two days, and as long as audio and dead letters."""
    sweep_seconds: float = Field(default=300.0, ge=1, le=86_400)
    """Time between two sweeps of one process."""

    @field_validator("bodies", "attempts", "audio", "dead_letters", "events")
    @classmethod
    def _age(cls, value: str) -> str:
        age(value)
        return value

    @property
    def kept(self) -> Retention:
        """The same in seconds; None is never."""
        return Retention(
            bodies=age(self.bodies),
            attempts=age(self.attempts),
            audio=age(self.audio),
            dead_letters=age(self.dead_letters),
            events=age(self.events),
            sweep_seconds=self.sweep_seconds,
        )
