"""What other languages read of the events is right: the TypeScript types fit every golden event, the AsyncAPI document its schema."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema_rs

from receiver.core import event_json
from receiver.core.callback import MemoryBody
from receiver.core.event import StoredBlob
from receiver.system.audio.formats import facts as audio_facts
from receiver.web.api.descriptions import asyncapi
from tests.contract.provider_suite import make, prove
from tests.docs.reading import ROOT
from tests.support.golden import Case, cases
from tests.support.toolchains import npm_packages

TYPESCRIPT, SPECS = "typescript@5.9.3", "@asyncapi/specs@6.11.1"


def _event(case: Case) -> dict[str, Any]:
    """Return the event that a golden request becomes, as an application gets it."""
    provider = make(case)
    draft = provider.normalize(prove(provider, case.request, case.received_at))
    part: dict[str, Any] = {}
    if (kept := draft.audio or draft.file) is not None:
        body = MemoryBody(case.request.body if draft.content is None else draft.content)
        kind = kept.content_type
        blob = StoredBlob(key="k", uri="file:///k", content_type=kind, size=body.size, sha256=body.sha256)
        if draft.file:
            part = {draft.file.part: blob}
        elif draft.audio:
            part = {"audio": (blob, audio_facts(body.load(), draft.audio))}
    data = event_json.compose(draft, event_id="evt_1", source="s", provider=case.provider, **part)
    return {"type": draft.type, "timestamp": "2026-11-21T01:02:03.456Z", "data": json.loads(data)}


def test_the_typescript_types_fit_every_golden_event(tmp_path: Path) -> None:
    """And refuse what is none."""
    compiler = npm_packages(TYPESCRIPT) / "node_modules" / ".bin" / "tsc"
    events = [_event(case) for case in cases() if case.verdict == "accepted"]
    types = json.dumps(str(ROOT / "docs" / "receiver"))
    lines = [f"import type {{ Event }} from {types};"]
    lines += [f"export const event{number}: Event = {json.dumps(one)};" for number, one in enumerate(events)]
    for wrong in (
        {"type": "speech.done"},
        {"timestamp": 1},
        {"data": events[0]["data"] | {"event_id": None}},
        {"data": events[0]["data"] | {"audio": {"uri": "x"}}},
    ):
        lines += [
            f"// @ts-expect-error\nexport const wrong{len(lines)}: Event = {json.dumps(events[0] | wrong)};"
        ]
    (tmp_path / "events.ts").write_text("\n".join(lines))
    words = [
        str(compiler),
        "--noEmit",
        "--strict",
        "--skipLibCheck",
        "--lib",
        "es2022",
        str(tmp_path / "events.ts"),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[:3000]


def test_the_asyncapi_document_is_one() -> None:
    folder = npm_packages(SPECS) / "node_modules" / "@asyncapi" / "specs" / "schemas"
    schema = json.loads((folder / "3.0.0.json").read_text("utf-8"))
    errors = jsonschema_rs.Draft7Validator(schema).iter_errors(json.loads(json.dumps(asyncapi())))
    assert [str(error)[:300] for error in errors] == []
