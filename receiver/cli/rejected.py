"""`try --rejected`: why a request was refused, by what is kept of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from receiver.cli.options import ask
from receiver.cli.output import print_fields
from receiver.core.errors import NotFound

if TYPE_CHECKING:
    from receiver.core.event import Rejection
    from receiver.providers import PushProvider
    from receiver.settings.model import Settings

_THERE = {True: "came", False: "did not come", None: "is not known to have come"}


def explain_rejected(settings: Settings, adapter: PushProvider, one: str | None) -> dict[str, Any]:
    """Return what is kept of a source's last rejection, or of the one with this id, and which headers each proof wanted.

    Raises `NotFound`.
    """
    from receiver.web.views import view

    found = ask(settings, lambda store: store.rejections(adapter.source, limit=1, one=one))
    if not found:
        which = "is kept" if one is None else f"has the id {one}: `receiver rejections --wide` lists them"
        raise NotFound(f"no rejection of the source {adapter.source} {which}")
    return {"rejection": view(found[0]), "proofs": list(proofs_wanted(adapter, found[0]))}


def print_rejected(explained: dict[str, Any]) -> None:
    """Print what `explain_rejected` returned."""
    kept = explained["rejection"]
    print_fields(
        [
            ("rejected", kept["at"]),
            ("id", kept["id"]),
            ("answer", f"{kept['status']}, {kept['kind']}"),
            ("reason", kept["reason"]),
            ("came with", ", ".join(kept["headers"]) or "headers whose names are not kept"),
            *((f"proof {proof['proof']}", _wanted(proof["headers"])) for proof in explained["proofs"]),
        ]
    )


def _wanted(headers: list[dict[str, Any]]) -> str:
    said = (f"{' or '.join(wanted['names'])} {_THERE[wanted['came']]}" for wanted in headers)
    return ", ".join(said) or "wants no header"


def proofs_wanted(adapter: PushProvider, kept: Rejection) -> Iterator[dict[str, Any]]:
    """Yield each proof of a source, and which of the headers that it wants came with a request that was rejected."""
    from receiver.providers.custom import CustomProvider

    if isinstance(adapter, CustomProvider):
        proofs = [proof for group in adapter.groups for proof in group]
        named: list[tuple[str, list[tuple[str, ...]]]] = [
            (proof.kind, list(proof.wanted_headers)) for proof in proofs
        ]
    else:
        places = tuple(sorted(adapter.secret_headers))
        named = [(adapter.provider, [places] if places else [])]
    for name, wanted in named:
        headers = [{"names": list(names), "came": _came(kept, names)} for names in wanted]
        yield {"proof": name, "headers": headers}


def _came(kept: Rejection, names: tuple[str, ...]) -> bool | None:
    """Tell whether one of these headers came; None where its name would not have been kept."""
    from receiver.core.callback import HEADERS, is_plain

    if set(names) & set(kept.headers):
        return True
    complete = 0 < len(kept.headers) < HEADERS and all(map(is_plain, names))
    return False if complete else None
