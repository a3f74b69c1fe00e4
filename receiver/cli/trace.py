"""`trace`: what became of a job."""

from __future__ import annotations

from typing import Annotated

import typer
from msgspec import to_builtins

from receiver.cli.options import AsJson, OfSource, ask, load_to_look
from receiver.cli.output import clean, print_json, print_table
from receiver.core.clock import wall_clock
from receiver.core.errors import NotFound
from receiver.core.explain import Cause
from receiver.web.views import JobShown, job_shown


def trace(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A ref, a job id of the provider's, or an event (evt_…).")],
    source: OfSource = None,
    as_json: AsJson = False,
) -> None:
    """Tell what became of a job. From its callback to each attempt, with the time of every step."""
    from receiver.engine.jobs import gather

    settings = load_to_look(ctx)
    found = job_shown(ask(settings, lambda store: gather(store, settings, name, source, now=wall_clock())))
    if found.cause is Cause.UNKNOWN:
        raise NotFound(found.sentence)
    if as_json:
        print_json(to_builtins(found))
        return
    typer.echo(clean(found.sentence))
    if found.steps:
        print_table(("time", "after", "what", "detail"), _rows(found), empty="", wide=True)


def _rows(found: JobShown) -> list[tuple[str, str, str, str]]:
    from datetime import datetime

    times = [datetime.fromisoformat(step.at) for step in found.steps]
    return [
        (step.at, f"{(time - times[0]).total_seconds():.3f} s", step.what, step.detail)
        for step, time in zip(found.steps, times, strict=True)
    ]
