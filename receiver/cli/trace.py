"""`trace`: what became of a job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from receiver.cli.opening import ask, load_to_look
from receiver.cli.options import AsJson, OfSource
from receiver.cli.output import clean, print_json, print_table
from receiver.core.clock import iso, wall_clock
from receiver.core.errors import NotFound
from receiver.core.explain import Cause, Step
from receiver.web.views import view


def trace(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A ref, a job id of the provider's, or an event (evt_…).")],
    source: OfSource = None,
    as_json: AsJson = False,
) -> None:
    """Tell what became of a job. From its callback to each attempt, with the time of every step."""
    from receiver.engine.jobs import gather
    from receiver.web.api.jobs import job_shown

    settings = load_to_look(ctx)
    found = job_shown(ask(settings, lambda store: gather(store, settings, name, source, now=wall_clock())))
    if found.cause is Cause.UNKNOWN:
        raise NotFound(found.sentence)
    if as_json:
        print_json(view(found))
        return
    typer.echo(clean(found.sentence))
    if found.steps:
        print_table(("time", "after", "what", "detail"), _rows(found.steps), empty="", wide=True)


def _rows(steps: Sequence[Step]) -> list[tuple[str, str, str, str]]:
    return [
        (iso(step.at), f"{(step.at - steps[0].at) / 1000:.3f} s", step.what, step.detail) for step in steps
    ]
