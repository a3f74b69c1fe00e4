"""Writes docs/openapi.json and docs/schemas/: `python -m tests.docs.schemas`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from receiver.core.event import EVENT_TYPES
from receiver.web.api.openapi import event_schema, openapi

DOCS = Path(__file__).resolve().parents[2] / "docs"


def documents() -> dict[Path, str]:
    """Return what the files hold, by their places."""
    found: dict[str, Any] = {"openapi.json": openapi()}
    found |= {f"schemas/{one}.json": event_schema(one) for one in EVENT_TYPES}
    return {DOCS / name: json.dumps(one, indent=1, ensure_ascii=False) + "\n" for name, one in found.items()}


if __name__ == "__main__":
    for place, text in documents().items():
        place.parent.mkdir(exist_ok=True)
        place.write_text(text, "utf-8")
