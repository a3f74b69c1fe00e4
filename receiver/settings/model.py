"""All settings, in their sections."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from receiver.core.destinations import SendingRules, rate
from receiver.core.errors import UsageError
from receiver.core.event_json import Fields, fields
from receiver.core.retention import Retention, age
from receiver.core.retry import RetryPolicy, policy
from receiver.core.routing import Route, checked_place, conditions
from receiver.core.urls import http_url

MIB = 1024 * 1024


class Section(BaseModel):
    """A frozen section that knows its settings and refuses others."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=True)
    manual: ClassVar[str] = "docs/configuration.md"
    """The page that tells of its settings."""


def judged_by(check: Callable[[Any], object]) -> AfterValidator:
    """Return a validator that leaves a value as it is; `check` raises `ValueError` with what to write instead."""

    def judge(value: Any) -> Any:
        check(value)
        return value

    return AfterValidator(judge)


Networks = tuple[Annotated[str, judged_by(ipaddress.ip_network)], ...]
"""Networks in CIDR notation."""
Age = Annotated[str, judged_by(age)]
"""`30d`, `12h`, `2w`, or `never`."""


def secret_of(characters: int, where: str = "") -> AfterValidator:
    """Return a validator of secrets that refuses those with fewer characters; `where` says how to get a longer one."""

    def check(value: SecretStr) -> None:
        if len(value.get_secret_value()) < characters:
            raise ValueError(f"each secret needs at least {characters} characters{where}")

    return judged_by(check)


def _trimmed_secret(value: SecretStr) -> SecretStr:
    return SecretStr(value.get_secret_value().strip())


def _base_url(value: str) -> str:
    http_url(value)
    return value.rstrip("/")


Trimmed = Annotated[str, AfterValidator(str.strip)]
"""A text without the spaces and line feeds that files and templates leave around it."""
BaseUrl = Annotated[str, AfterValidator(_base_url)]
"""An http(s) URL without credentials, query and fragment, and without a slash at its end."""


class StoreSettings(Section):
    """[store]"""

    url: Annotated[SecretStr, AfterValidator(_trimmed_secret)] | None = None
    """`sqlite:///relative/path`, `sqlite:////absolute/path`, `postgresql://…`; None is `receiver.db` in the data folder."""


class BlobSettings(Section):
    """[blobs]"""

    url: Trimmed | None = None
    """`file:///absolute/path`, `s3://bucket/prefix`; None is `blobs` in the data folder."""
    link_seconds: int = Field(default=3600, ge=1, le=7 * 86400)
    """How long a link in an event lasts; made afresh at every attempt."""
    key: str = "{source}/{year}/{month}/{day}/{name}"
    """Where an object lies: a template that ends with `{name}`."""
    cors_origins: tuple[str, ...] = ()
    """A folder: the origins (`https://app.example.com`) whose pages may read audio by its links; `*` is every one."""
    endpoint_url: BaseUrl | None = None
    """S3: another store that speaks it; None is Amazon's."""
    link_endpoint_url: BaseUrl | None = None
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
    """S3: requests under way at once, in one process: puts of short bodies, and as many of everything else."""

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not re.fullmatch(r"https?://[a-z0-9.\-\[\]:]+", origin):
                raise ValueError(
                    'write an origin as "https://app.example.com": scheme, host, and a port where needed'
                )
        return value

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

    bodies: Age = "30d"
    """The kept bodies of callbacks."""
    attempts: Age = "30d"
    """The attempts of what has ended."""
    audio: Age = "90d"
    """Audio and other results; `never` leaves them to the bucket's own rules."""
    dead_letters: Age = "90d"
    events: Age = "90d"
    """Events with all that belongs to them; at least two days, and as long as audio and dead letters."""
    sweep_seconds: float = Field(default=300.0, ge=1, le=86_400)
    """Time between two sweeps of one process."""

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


def _proxy(text: str) -> None:
    if text != "*":
        ipaddress.ip_network(text, strict=False)


class ServerSettings(Section):
    """[server]"""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    trusted_proxies: tuple[Annotated[str, judged_by(_proxy)], ...] = ("127.0.0.1", "::1")
    log: Literal["json", "console", "auto"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    max_callbacks: int = Field(default=1000, ge=1, le=100_000)
    """Callbacks under way at once in one process; one more is answered 503 before its body is read."""
    max_connections: int | None = Field(default=None, ge=1, le=1_000_000)
    """Connections open at once in one process; past it the longest idle is closed. None: what file descriptors allow, 10,000 at most."""
    stop_seconds: float = Field(default=10.0, gt=0, le=600)
    drain_seconds: float = Field(default=0.0, ge=0, le=600)
    """How long SIGTERM leaves the load balancer to look away: `/readyz/intake` says 503, callbacks are still taken."""
    ready_due_age_seconds: float = Field(default=900.0, gt=0)
    """`/readyz` fails when the oldest due delivery has waited longer than this."""


class ApiScope(StrEnum):
    """What a token of the API may do; none includes another."""

    READ = "read"
    OPERATE = "operate"
    """Hand over pickups, make callback URLs, replay, pause destinations."""
    ADMIN = "admin"
    """Remove data."""


class ApiToken(Section):
    """[[api.tokens]]: one holder of a token of the API, and what it may do."""

    name: str = Field(min_length=1, max_length=64)
    """Who holds it, as it is written into the audit. To change a secret, two tokens may have one name for a while."""
    secret: SecretStr | None = None
    sha256: str | None = None
    """The SHA-256 of the secret in hex, in its place."""
    scopes: tuple[ApiScope, ...] = Field(default=(ApiScope.READ,), min_length=1)

    @field_validator("sha256")
    @classmethod
    def _hexadecimal(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch("[0-9a-fA-F]{64}", value):
            raise ValueError("write the 64 hexadecimal digits that `printf %s TOKEN | sha256sum` prints")
        return value

    @model_validator(mode="after")
    def _one_secret(self) -> ApiToken:
        if (self.secret is None) == (self.sha256 is None):
            raise ValueError("give secret or sha256, one of them")
        return self

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the secret."""
        if self.secret is None:
            return bytes.fromhex(self.sha256 or "")
        return hashlib.sha256(self.secret.get_secret_value().encode()).digest()


class ApiSettings(Section):
    """[api]"""

    tokens: tuple[ApiToken, ...] = ()

    @field_validator("tokens")
    @classmethod
    def _told_apart(cls, value: tuple[ApiToken, ...]) -> tuple[ApiToken, ...]:
        if len({token.digest for token in value}) < len(value):
            raise ValueError("two tokens have the same secret: give each its own")
        return value


class ConsoleSettings(Section):
    """[console]: the web console. It is on where a token has the scope `admin`."""

    hosts: tuple[str, ...] = ()
    """Names beside addresses, `localhost` and the host of `public_url` under which browsers reach it."""


class TokenSettings(Section):
    """[tokens]: what signs callback tokens and object links; a list, newest last."""

    secrets: tuple[Annotated[SecretStr, secret_of(16)], ...] = ()
    signing: int | None = Field(default=None, ge=1)
    """The place in `secrets`, counted from 1, of the one that signs; None is the last. All are accepted."""

    @field_validator("signing")
    @classmethod
    def _there(cls, value: int | None, info: ValidationInfo) -> int | None:
        count = len(info.data.get("secrets", ()))
        if value is not None and value > count:
            raise ValueError(f"secrets has {count}: name the place of one of them, counted from 1")
        return value


def sorted_out(model: type[Section], table: Any) -> Any:
    """Return a table with whatever `model` does not know moved into its `options`."""
    if not isinstance(table, Mapping) or "options" in table:
        return table
    known = {name: value for name, value in table.items() if name in model.model_fields}
    return known | {"options": {name: value for name, value in table.items() if name not in known}}


Kind = Literal["submit", "upload", "read", "cancel"]
"""What an application may do at a provider."""
_MAKES_ONE = ": `receiver submit-token` makes one"


class SubmitToken(Section):
    """[[submit.tokens]]: an application that may submit jobs to providers through receiver."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9-]{0,62}$")
    """The application, in log and lists."""
    secrets: tuple[Annotated[SecretStr, secret_of(32, _MAKES_ONE)], ...] = Field(min_length=1)
    """Any of them is accepted; `receiver submit-token` makes one."""
    sources: tuple[str, ...] = Field(min_length=1)
    may: tuple[Kind, ...] = ("submit", "upload", "read")
    per_minute: int = Field(default=60, ge=1)
    """Submissions and uploads. This and the three others are counted over all processes."""
    reads_per_second: int = Field(default=10, ge=1)
    """Questions about jobs; ten times as many in ten seconds."""
    at_once: int = Field(default=8, ge=1)
    """Calls under way, in one process."""
    bytes_per_day: int = Field(default=20 * 1024 * MIB, ge=1)
    """Of bodies."""
    jobs_per_day: int = Field(default=5000, ge=1)


class SubmitSettings(Section):
    """[submit]: applications submit jobs to providers through receiver."""

    url: BaseUrl | None = None
    """How applications reach receiver, for URLs in providers' answers that lead back to it."""
    listen: str | None = Field(default=None, pattern=r"^[^\s]*:[0-9]{1,5}$")
    """`host:port` of a listener for submissions alone; None serves them beside callbacks."""
    hosts: Mapping[str, str] = Field(default_factory=dict)
    """Source by host name, for programs that cannot be given a path."""
    max_body_bytes: int = Field(default=2048 * MIB, ge=1)
    """Of what is passed through."""
    max_form_bytes: int = Field(default=512 * MIB, ge=1)
    """Of a multipart form in which the callback is set; it lies on disk meanwhile."""
    max_json_bytes: int = Field(default=8 * MIB, ge=1)
    """Of JSON in which the callback is set."""
    answer_seconds: float = Field(default=25.0, gt=0, le=600)
    """How long a provider may take to begin its answer."""
    idle_seconds: float = Field(default=30.0, gt=0, le=600)
    """Longest time between two pieces of a body, either way."""
    remember_seconds: float = Field(default=86_400.0, ge=600, le=30 * 86_400)
    """How long answers are kept for whoever repeats an `Idempotency-Key`."""
    at_once: int = Field(default=200, ge=1, le=10_000)
    """Calls of all applications under way at once in one process."""
    tokens: tuple[SubmitToken, ...] = ()

    @field_validator("tokens")
    @classmethod
    def _told_apart(cls, value: tuple[SubmitToken, ...]) -> tuple[SubmitToken, ...]:
        if len({token.name for token in value}) < len(value):
            raise ValueError("two tokens have the same name: a token may have several secrets")
        secrets = [secret.get_secret_value() for token in value for secret in token.secrets]
        if len(set(secrets)) < len(secrets):
            raise ValueError("two tokens have the same secret: give each its own")
        return value


class SourceSettings(Section):
    """[sources.NAME]: what every source has; `options` holds the provider's own settings."""

    name: str
    provider: str
    max_audio_bytes: int = Field(default=256 * MIB, ge=1, le=5 * 1024 * MIB)
    """S3 takes no more than 5 GiB in one request."""
    max_json_bytes: int = Field(default=32 * MIB, ge=1)
    body_seconds: float = Field(default=120.0, gt=0)
    """Longest time for a whole body."""
    idle_seconds: float = Field(default=10.0, gt=0)
    """Longest time between two pieces of a body."""
    budget_seconds: float = Field(default=6.0, gt=0)
    """Longest time for storing, once the body is here; past it the journal takes over."""
    attempt_seconds: float = Field(default=120.0, ge=1, le=3600)
    """Longest time for one attempt of a pickup, download included."""
    pickup_concurrency: int = Field(default=4, ge=1, le=256)
    """Pickups of this source under way at once, in one process."""
    allow: Networks = ()
    """Networks that are not public and that pickups may connect to all the same."""
    ca_file: str | None = None
    """More certificate authorities to trust in pickups (PEM)."""
    submit: bool = False
    """Applications may submit jobs to this source through receiver."""
    submit_expect_seconds: float | None = Field(default=None, gt=0, le=7 * 86_400)
    """How long a submitted job's callback may take before it is overdue; None is the provider's own."""
    own_callback: Literal["refuse", "pass"] = "refuse"
    """What becomes of a submission with a callback of the caller's own; passed on, it brings no event."""
    options: Mapping[str, Any] = Field(default_factory=dict, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _sort(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "recipe" in value:  # a recipe is of `custom`
            value = {"provider": "custom", **value}
        return sorted_out(cls, value)


Conditions = Annotated[Mapping[str, Any], judged_by(conditions)]
Places = tuple[Annotated[str, judged_by(checked_place)], ...]
Retry = Annotated[Any, judged_by(policy)]
RateText = Annotated[str, judged_by(rate)]


class DestinationSettings(Section):
    """[destinations.NAME]: what every destination has. `options` holds the settings of its kind, which the kind judges."""

    name: str
    kind: str = "http"
    """What it is: one of the modules of receiver/outbound/destinations/."""
    sources: tuple[str, ...] = ("*",)
    events: tuple[str, ...] = ("*",)
    where: Conditions = Field(default_factory=dict)
    """Conditions on fields of an event's data, by their place: a value, a list of values, or `{min = 1, max = 60}`."""
    data: Places | None = None
    """Fields of an event's data that are sent, by their place; None is all."""
    retry: Retry = "deepgram"
    timeout_seconds: float = Field(default=15.0, gt=0, le=120)
    concurrency: int = Field(default=64, ge=1, le=1024)
    breaker_failures: int = Field(default=10, ge=0, le=1_000_000)
    """Failed attempts in a row after which deliveries are held, and the destination is probed; 0 is never."""
    recover: Literal["auto", "off"] = "auto"
    """Whether deliveries that died while the destination failed are replayed once it works again."""
    rate: RateText | None = None
    """At most so many attempts over all processes: `10/s`, `600/min`; None is no limit."""
    ordered: bool | Literal["job", "ref"] = False
    """Send the events of one job (`true`, `"job"`), or with one ref, one after the other in the order of recording."""
    when_dead: Literal["skip", "hold"] = "skip"
    """With `ordered`: whether the later events of a job are sent when one has died, or wait until it is replayed."""
    options: Mapping[str, Any] = Field(default_factory=dict, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _sort(cls, value: Any) -> Any:
        return sorted_out(cls, value)

    @property
    def fields(self) -> Fields | None:
        """Which fields of an event's data it gets; None is all."""
        return None if self.data is None else fields(self.data)

    @property
    def route(self) -> Route:
        """Which events it gets."""
        return Route(self.name, self.sources, self.events, conditions(self.where))

    @property
    def rules(self) -> SendingRules:
        """What claims of its deliveries keep to."""
        order: Literal["job", "ref"] | None = None
        if self.ordered:
            order = "ref" if self.ordered == "ref" else "job"
        paced = rate(self.rate) if self.rate is not None else None
        return SendingRules(rate=paced, order=order, dead_block=self.when_dead == "hold")

    @property
    def policy(self) -> RetryPolicy:
        """The retry policy that `retry` names."""
        return policy(self.retry)


_LEFT_OUT: Any = Field(default={}, validate_default=True)
"""A section that is left out. The model of all settings makes its defaults, so that no section needs a validator of its own."""


class Settings(Section):
    """All settings."""

    public_url: str | None = None
    data: str = "receiver-data"
    """The data folder: store, audio, journal and the token secret lie there unless settings say otherwise."""
    server: ServerSettings = _LEFT_OUT
    store: StoreSettings = _LEFT_OUT
    blobs: BlobSettings = _LEFT_OUT
    journal: JournalSettings = _LEFT_OUT
    retention: RetentionSettings = _LEFT_OUT
    tokens: TokenSettings = _LEFT_OUT
    api: ApiSettings = _LEFT_OUT
    submit: SubmitSettings = _LEFT_OUT
    console: ConsoleSettings = _LEFT_OUT
    sources: Mapping[str, SourceSettings] = Field(default_factory=dict)
    destinations: Mapping[str, DestinationSettings] = Field(default_factory=dict)

    def source_named(self, name: str) -> SourceSettings:
        """Return a source. Raises `UsageError` naming those there are."""
        if name not in self.sources:
            known = ", ".join(sorted(self.sources)) or "none is configured"
            raise UsageError(f"there is no source {name[:100]!r}; there is: {known}")
        return self.sources[name]
