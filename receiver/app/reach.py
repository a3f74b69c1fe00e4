"""Asks the services that the settings name, PostgreSQL, S3 and queues, whether they can be used: `receiver check`, and each start."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from receiver.app.check import finding
from receiver.core.clock import wall_clock
from receiver.core.findings import Finding
from receiver.outbound.destinations import Destination, kind_of
from receiver.settings import load
from receiver.settings.model import DestinationSettings, Settings
from receiver.storage.blobs.s3_options import S3Options

PATIENCE = 8.0
"""Seconds after which no answer is an answer."""


def reach(settings: Settings, *, clock: Callable[[], int] = wall_clock) -> list[Finding]:
    """Return what PostgreSQL, S3 and queues say, what stops `serve` first; nothing for embedded parts. Waits `PATIENCE` at most.

    The settings are to be such that `check` found nothing fatal. S3 is tried with a small object, which is deleted again.
    """
    probes: list[_Probe] = []
    if load.postgres_url(settings) is not None:
        probes.append(_Probe(lambda: _postgres(settings, clock), "store.url", silent="E012", broken="E018"))
    if load.on_s3(settings):
        probes.append(_Probe(lambda: _s3(settings), "blobs.url", silent="W017", broken="E020"))
    for name, destination in settings.destinations.items():
        if kind_of(destination).probe is not Destination.probe:
            ask, where = partial(_taking, destination), f"destinations.{name}"
            probes.append(_Probe(ask, where, silent="W025", broken="W025"))
    for probe in probes:
        probe.join(PATIENCE)
    return sorted((f for probe in probes for f in probe.findings), key=lambda finding: not finding.fatal)


class _Probe(threading.Thread):
    """Ask one service in a thread that ends with the process if there is never an answer."""

    def __init__(self, ask: Callable[[], Iterable[Finding]], where: str, *, silent: str, broken: str) -> None:
        super().__init__(daemon=True)
        self._ask, self._where, self._broken = ask, where, broken
        self.findings = [finding(silent, where, f"it did not answer within {PATIENCE:g} s")]
        self.start()

    def run(self) -> None:
        try:
            self.findings = list(self._ask())
        except Exception as error:  # a bug of ours must not pass for silence, nor for a traceback
            message = f"asking it failed ({type(error).__name__})"
            fix = "look at the settings; please report it"
            self.findings = [finding(self._broken, self._where, message, fix)]


def unreached(findings: Iterable[Finding]) -> bool:
    """Tell whether nothing stops the start but what may pass: an outage, or a clock that is not yet set after a boot."""
    return all(finding.code in {"E012", "E017"} for finding in findings if finding.fatal)


def _postgres(settings: Settings, clock: Callable[[], int]) -> Iterator[Finding]:
    from receiver.storage.store.postgres_probe import probe

    for trouble in probe(load.postgres_url(settings) or "", clock):
        yield finding(trouble.code, "store.url", trouble.message, trouble.fix)


def _taking(settings: DestinationSettings) -> Iterator[Finding]:
    async def ask() -> str | None:
        destination = kind_of(settings)(settings)
        await destination.open()
        try:
            return await destination.probe()
        finally:
            await destination.close()

    if trouble := asyncio.run(ask()):
        yield finding("W025", f"destinations.{settings.name}", trouble)


def _s3(settings: Settings) -> Iterator[Finding]:
    from receiver.storage.blobs.s3_probe import probe

    for trouble in probe(S3Options.of(settings.blobs)):
        code = "E020" if trouble.fatal else "W018"
        if trouble.outage:
            code = "W017"
        fix = f"grant {trouble.permission} (deploy/iam-policy.json)" if trouble.permission else None
        yield finding(code, "blobs.url", trouble.message, fix)
        if trouble.outage:
            return
