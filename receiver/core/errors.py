"""The whole error tree of receiver, and the findings about settings. A class's docstring is its default message.

ReceiverError
├── SenderError                  the sender's fault; engine/intake.py answers it with its status
│   ├── UnknownSource            404
│   ├── WrongMethod              405
│   ├── CallbackRejected         401
│   │   ├── ProofMissing         401
│   │   └── WrongSource          403
│   ├── BodyTooLarge             413
│   ├── UnknownCoding            415
│   ├── BodyTooSlow              408
│   └── BodyCutOff               400
├── MalformedCallback            proved, but not understood: it is parked, never refused
├── IgnoredCallback              proved, and the settings say that it is not kept: 200
├── Unavailable                  ours, and passing: the journal takes over
│   ├── StoreUnavailable
│   │   └── StoreUnusable        the settings or the database are wrong: only a person can mend it
│   ├── BlobsUnavailable
│   ├── KeysUnavailable          a provider's public keys cannot be fetched: 503
│   └── JournalUnavailable       nothing could keep it: 503, never 2xx
├── AddressBlocked               an outbound address that the guard refuses
├── SubmissionRefused            a submission that is not passed on, or whose outcome is not known
├── NotFound                     an id that the store does not hold
├── UsageError                   a command or a request of the API lacks something, or contradicts itself
│   └── PickupRefused            what was handed over for a pickup is not understood
└── ConfigError                  start-up: names the setting and what to do
    └── SettingsError            all that is wrong with the settings
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from msgspec import Struct


class ReceiverError(Exception):
    """receiver could not do this."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])

    @property
    def message(self) -> str:
        """The sentence a person reads; never holds a secret."""
        return str(self.args[0])


class SenderError(ReceiverError):
    """The request cannot be taken as it is."""

    status = 400
    label = "bad_request"
    """What names the kind of refusal in answers, log and metrics."""

    def __init_subclass__(cls, status: int | None = None, label: str | None = None) -> None:
        cls.status, cls.label = status or cls.status, label or cls.label


class UnknownSource(SenderError, status=404, label="unknown_source"):
    """No source has this name: compare the callback URL with the [sources.…] sections."""


class WrongMethod(SenderError, status=405, label="wrong_method"):
    """A callback comes by POST or PUT."""


class RejectionKind(StrEnum):
    """What a callback that was refused lacks."""

    MISSING = "missing"
    """A proof is not there."""
    MALFORMED = "malformed"
    """A proof has not the form that the provider gives it."""
    STALE = "stale"
    """The time of a signature is too far from the clock."""
    TOKEN = "token"  # noqa: S105 - the name of a kind
    """The URL's token is not one of ours, of another source, or has expired."""
    WRONG = "wrong"
    """A proof is there, well formed and fresh, and fits no secret: what a provider sends whose secret was changed."""
    UNKNOWN_SOURCE = "unknown_source"
    """The path names no source."""


class CallbackRejected(SenderError, status=401, label="rejected"):
    """The callback was not proved."""

    kind = RejectionKind.WRONG

    def __init__(
        self, message: str | None = None, *, setting: str = "", kind: RejectionKind | None = None
    ) -> None:
        super().__init__(message)
        if kind is not None:
            self.kind = kind
        self.setting = setting
        """The setting that an operator should look at, for example `sources.deapi.secrets`."""


class ProofMissing(CallbackRejected):
    """What would prove the callback is not in the request."""

    kind = RejectionKind.MISSING


class WrongSource(CallbackRejected, status=403, label="wrong_source"):
    """The callback token is valid, but it was issued for another source."""

    kind = RejectionKind.TOKEN


class BodyTooLarge(SenderError, status=413, label="too_large"):
    """The body is larger than this source accepts."""


class UnknownCoding(SenderError, status=415, label="unknown_coding"):
    """The body has a content coding that is not understood."""


class BodyTooSlow(SenderError, status=408, label="too_slow"):
    """The body did not arrive in the time this source gives it."""


class BodyCutOff(SenderError, status=400, label="cut_off"):
    """The connection ended before the body did: send it again."""


class MalformedCallback(ReceiverError):
    """The callback is proved, but not understood."""


class IgnoredCallback(ReceiverError):
    """The settings say to ignore callbacks like this one."""


class Unavailable(ReceiverError):
    """A part that keeps things is out for now."""


class StoreUnavailable(Unavailable):
    """The store cannot be written or read for now."""


class StoreUnusable(StoreUnavailable):
    """The store cannot be used with these settings."""


class BlobsUnavailable(Unavailable):
    """The blob store cannot be written or read for now."""


class KeysUnavailable(Unavailable):
    """The provider's public keys cannot be fetched now; send it again."""


class JournalUnavailable(Unavailable):
    """The journal cannot be written: nothing here can keep the callback."""


class AddressBlocked(ReceiverError):
    """The address is not public and not allowed by configuration."""


class SubmissionRefused(ReceiverError):
    """The submission is not passed on."""

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        """Seconds after which a repetition may succeed."""


class NotFound(ReceiverError):
    """Nothing has this id."""


class UsageError(ReceiverError):
    """What was asked for lacks something, or contradicts itself."""


class PickupRefused(UsageError):
    """Nothing can be picked up by that: hand over the URL or the job id that the provider gave."""


class ConfigError(ReceiverError):
    """The configuration cannot be used."""


class SettingsError(ConfigError):
    """Settings cannot be used, for one reason or several."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(". Also ".join(str(problem) for problem in problems))
        self.problems = problems


RESOURCE_ERRORS = (OSError, MemoryError)
"""Raised while this machine lacks something (descriptors, memory, a disk that answers): no bug, and no fault of the caller's."""
THREAD_ERRORS = (*RESOURCE_ERRORS, RuntimeError)
"""The same around work in a thread: Python raises `RuntimeError` when no thread can be started."""


def reason_of(error: BaseException) -> str:
    """Return one of `THREAD_ERRORS` in words for a person; never a path."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error) or type(error).__name__


# ---------------------------------------------------------------- what `receiver check` finds, and what is wrong with settings


class Code(Struct, frozen=True):
    """What one code of `receiver check` stands for."""

    title: str
    fix: str
    """What to do about it, in general; a finding may say it more closely. Empty where only its message can."""


class Finding(Struct, frozen=True):
    """One numbered result of `receiver check`; documented by its code in docs/configuration.md."""

    code: str
    """`E…` stops `serve`, `W…` does not."""
    where: str
    """The setting, for example `sources.deepgram.basic`."""
    message: str
    fix: str

    @property
    def fatal(self) -> bool:
        """True when `serve` refuses to start."""
        return self.code.startswith("E")


class Problem(Struct, frozen=True):
    """Why a setting cannot be used."""

    where: str
    """The setting, `server.port`, or the environment variable that alone speaks of it; empty for the whole file."""
    message: str
    fix: str = ""

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.where, self.message))) + (self.fix and f"; {self.fix}")


def install(extra: str) -> str:
    """Return what to do when an extra is missing; by path, as the public index has a stranger's package of our name."""
    return f"install receiver with its extra [{extra}] (pip install '/path/to/receiver[{extra}]')"
