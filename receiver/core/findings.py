"""What `receiver check` finds: a code, the setting, what is wrong and what to do about it."""

from __future__ import annotations

from msgspec import Struct


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
