"""Writes docs/openapi.json, docs/asyncapi.json, docs/schemas/ and docs/receiver.d.ts: `python -m tests.docs.schemas`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from receiver.core.event import EVENT_TYPES
from receiver.web.api.descriptions import asyncapi, event_schema, openapi

DOCS = Path(__file__).resolve().parents[2] / "docs"


def documents() -> dict[Path, str]:
    """Return what the files hold, by their places."""
    found: dict[str, Any] = {"openapi.json": openapi(), "asyncapi.json": asyncapi()}
    found |= {f"schemas/{one}.json": event_schema(one) for one in EVENT_TYPES}
    texts = {DOCS / name: json.dumps(one, indent=1, ensure_ascii=False) + "\n" for name, one in found.items()}
    return texts | {DOCS / "receiver.d.ts": typescript()}


# ---------------------------------------------------------------- TypeScript


def typescript() -> str:
    """Return the types of events and of what the API takes and gives."""
    components = openapi()["components"]["schemas"]
    lines = ["// Written by tests/docs/schemas.py from the schemas that serve.", ""]
    for name, schema in components.items():
        lines += [f"export type {_name(name)} = {_type(schema)};", ""]
    types = "\n".join(f'  | {{ type: "{one}"; timestamp: string; data: EventData }}' for one in EVENT_TYPES)
    return "\n".join(lines) + f"\nexport type Event =\n{types};\n"


def _name(component: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in component.split("_"))


def _type(schema: Mapping[str, Any]) -> str:
    """Return a schema as a TypeScript type; what is not told apart there (formats, bounds) is left out."""
    if "$ref" in schema:
        return _name(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_type(one) for one in schema["anyOf"]))
    if "enum" in schema:
        return " | ".join(json.dumps(one) for one in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        return f"Array<{_type(schema['items'])}>" if "items" in schema else "unknown[]"
    if kind == "object" and "properties" in schema:
        required = schema.get("required", ())
        fields = [
            f"{name}{'' if name in required else '?'}: {_type(one)}"
            for name, one in schema["properties"].items()
        ]
        return "{ " + "; ".join(fields) + " }"
    if kind == "object":
        of = schema.get("additionalProperties")
        return f"Record<string, {_type(of) if isinstance(of, dict) else 'unknown'}>"
    return {
        "string": "string",
        "integer": "number",
        "number": "number",
        "boolean": "boolean",
        "null": "null",
    }.get(str(kind), "unknown")


if __name__ == "__main__":
    for place, text in documents().items():
        place.parent.mkdir(exist_ok=True)
        place.write_text(text, "utf-8")
