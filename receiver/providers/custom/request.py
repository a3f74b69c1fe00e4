"""A request as a recipe sees it: where a value is (references and paths), and the text that was signed (templates).

Nothing here is an expression: a reference names one value, a template joins texts, and neither can loop.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, quote, urlsplit

from pydantic import AfterValidator, BeforeValidator

from receiver.core.callback import Head
from receiver.core.errors import CallbackRejected, MalformedCallback, ProofMissing
from receiver.providers.custom.multipart import Part, parts_of
from receiver.providers.documents import Document, decode_object

BodyKind = Literal["json", "form", "multipart", "raw", "query"]
MAX_FIELDS = 1000
"""Fields of a query or form that are read; the request with more is refused."""
MAX_TEXT = 64 * 1024
"""Characters of a value that is compared, put into a template or into a URL."""
_INDEX = re.compile(r"\[([0-9]{1,4})\]")
_NAME = re.compile(r"(?:[^.\[\]\\{}]|\\.)+")
_KINDS = ("header", "query", "form", "element", "field")


class Request:
    """One request: its head and, once that was read, its body. Each part is decoded when it is first needed."""

    def __init__(self, head: Head, body: bytes | None, kind: BodyKind) -> None:
        self.head, self.body, self.kind = head, body, kind
        self.signatures: dict[int, Any] = {}
        """What a proof, by its `id`, read of its signature, so that it is read once."""
        self.secret = 0
        """The place of the source's secret that held last, counted from 1."""

    @cached_property
    def query(self) -> Mapping[str, list[str]]:
        """The fields of the URL's query."""
        return _fields(self.head.query)

    @cached_property
    def parts(self) -> Sequence[Part]:
        """The parts of a multipart body."""
        return parts_of(self._bytes(), self.head.media_type()[1].get("boundary", ""))

    @cached_property
    def form(self) -> Mapping[str, list[str]]:
        """The fields of a form, url-encoded or multipart."""
        if self.kind == "multipart":
            fields: dict[str, list[str]] = {}
            for part in self.parts:
                if part.is_field:
                    fields.setdefault(part.name, []).append(part.text())
            return fields
        return _fields(self._bytes().decode("latin-1"))

    @cached_property
    def document(self) -> Document:
        """The body as a document: JSON, or an object of a form's or the query's fields. Raises `MalformedCallback`."""
        match self.kind:
            case "json":
                return decode_object(self._bytes())
            case "form" | "multipart":
                return _single(self.form)
            case "query":
                return _single(self.query)
            case "raw":
                return {}

    def _bytes(self) -> bytes:
        if self.body is None:
            raise ProofMissing("the body is needed for this proof, and is not read yet")
        return self.body


def _single(fields: Mapping[str, list[str]]) -> Document:
    return {name: values[0] if len(values) == 1 else values for name, values in fields.items()}


def _fields(encoded: str) -> Mapping[str, list[str]]:
    try:
        pairs = parse_qsl(encoded, keep_blank_values=True, max_num_fields=MAX_FIELDS, encoding="utf-8")
    except ValueError:
        raise CallbackRejected(f"the query or form has more than {MAX_FIELDS} fields") from None
    fields: dict[str, list[str]] = {}
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    return fields


# ---------------------------------------------------------------- paths


def parse_path(text: str) -> tuple[str | int, ...]:
    r"""Return the steps of a path: names joined by dots, `[n]` for lists, `a\.b` for a name with a dot. Raises `ValueError`."""
    steps: list[str | int] = []
    at = 0
    while at < len(text):
        if found := _INDEX.match(text, at):
            steps.append(int(found[1]))
        else:
            at += text[at] == "." and bool(steps)
            found = _NAME.match(text, at)
            if found is None:
                raise ValueError(f'{text!r} is no path: write names joined by dots, like "data.items[0].url"')
            steps.append(re.sub(r"\\(.)", r"\1", found[0]))
        at = found.end()
    if not steps or not isinstance(steps[0], str):
        raise ValueError(f"{text!r} is no path: it begins with a name")
    return tuple(steps)


def follow(document: Any, steps: Iterable[str | int]) -> Any:
    """Return what stands at a path; None when it is not there. `[n]` into a text, and a name into a list, is not there."""
    for step in steps:
        if isinstance(step, str):
            document = document.get(step) if isinstance(document, dict) else None
        elif isinstance(document, list):
            document = document[step] if step < len(document) else None
        else:
            return None
    return document


def without(document: Any, steps: Sequence[str | int]) -> Any:
    """Return a document without what stands at a path; the document itself when nothing does."""
    return replaced(document, steps, remove=True)


def replaced(document: Any, steps: Sequence[str | int], value: Any = None, *, remove: bool = False) -> Any:
    """Return a document with another value at a path that is there."""
    step, *rest = steps
    inner = follow(document, (step,))
    if inner is None:
        return document
    new = replaced(inner, rest, value, remove=remove) if rest else value
    if isinstance(step, str):
        if remove and not rest:
            return {name: item for name, item in document.items() if name != step}
        return {**document, step: new}
    if remove and not rest:
        return [*document[:step], *document[step + 1 :]]
    return [*document[:step], new, *document[step + 1 :]]


# ---------------------------------------------------------------- references


@dataclass(frozen=True, slots=True)
class Reference:
    """Where one value is: `header:NAME`, `query:NAME`, `form:NAME`, `element:NAME`, or `field:PATH` in the document."""

    kind: str
    name: str
    steps: tuple[str | int, ...] = ()

    @property
    def in_body(self) -> bool:
        """True when the body must be read for it."""
        return self.kind in ("form", "field")

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"

    def value(
        self, request: Request, document: Any = None, elements: Mapping[str, list[str]] | None = None
    ) -> Any:
        """Return the value, None when it is not there. `document` is read in place of the request's own, if given.

        Raises `CallbackRejected` when a header, a query field or a form field comes twice.
        """
        match self.kind:
            case "header":
                return request.head.one(self.name)
            case "query":
                return self._only(request.query)
            case "form":
                return self._only(request.form)
            case "element":
                return self._only(elements or {})
        try:
            return follow(request.document if document is None else document, self.steps)
        except MalformedCallback as error:
            raise CallbackRejected(error.message) from None

    def _only(self, fields: Mapping[str, list[str]]) -> str | None:
        values = fields.get(self.name, [])
        if len(values) > 1:
            raise CallbackRejected(f"{self} came {len(values)} times; it may come once")
        return values[0] if values else None


def parse_reference(text: Any) -> Reference:
    """Return the reference that a text spells; without a kind it is a path into the document. Raises `ValueError`."""
    if isinstance(text, Reference):
        return text
    if not isinstance(text, str) or not text:
        raise ValueError('write where the value is, like "header:X-Name", "query:id" or "data.id"')
    kind, colon, name = text.partition(":")
    if not colon or kind not in _KINDS:
        kind, name = "field", text
    if not name:
        raise ValueError(f"{text!r} names nothing after the colon")
    if kind == "field":
        return Reference(kind, name, parse_path(name))
    return Reference(kind, name.lower() if kind == "header" else name)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else [value]


At = Annotated[Reference, BeforeValidator(parse_reference)]
"""Where one value is."""
Places = Annotated[tuple[At, ...], BeforeValidator(_listed)]
"""Where a value may be: the first place that has it counts."""
Words = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""Texts; a single one stands for a list of one."""


def first(places: Iterable[Reference], request: Request, document: Any) -> Any:
    """Return the value at the first place that has one; None when none has."""
    for place in places:
        value = place.value(request, document)
        if value is not None and value != "":
            return value
    return None


def as_text(value: Any) -> str | None:
    """Return a plain value as text, as JSON spells it; None for what is absent, an object or a list."""
    if isinstance(value, str):
        return value[:MAX_TEXT]
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, int | float) else None


# ---------------------------------------------------------------- templates


@dataclass(frozen=True, slots=True)
class Template:
    """Literal text with `{variable}`; `{{` is a brace. Nothing else is interpreted."""

    parts: tuple[str | Reference | None, ...]
    """Texts, references, and None where the timestamp stands."""

    @property
    def covers_body(self) -> bool:
        """True when it holds the whole body, or all fields of a form."""
        return any(isinstance(p, Reference) and p.kind in ("body", "form.sorted") for p in self.parts)

    @property
    def needs_body(self) -> bool:
        """True when it cannot be filled in before the body is read."""
        return any(
            isinstance(p, Reference) and (p.in_body or p.kind in ("body", "form.sorted")) for p in self.parts
        )

    def fill(
        self,
        request: Request,
        *,
        timestamp: str | None = None,
        elements: Mapping[str, list[str]] | None = None,
        url: str | None = None,
    ) -> bytes:
        """Return the message. Raises `ProofMissing` for a variable that the request does not have."""
        return b"".join([self._part(part, request, timestamp, elements, url) for part in self.parts])

    def _part(
        self,
        part: str | Reference | None,
        request: Request,
        timestamp: str | None,
        elements: Mapping[str, list[str]] | None,
        url: str | None,
    ) -> bytes:
        if isinstance(part, str):
            return part.encode()
        if part is None:
            value: str | None = timestamp
        elif part.kind in _COMPUTED:
            return _computed(part, request, url)
        else:
            value = as_text(part.value(request, None, elements))
        if value is None:
            raise ProofMissing(f"the request has no {part or 'timestamp'}, which the signed message holds")
        return value.encode("latin-1" if part is not None and part.kind == "header" else "utf-8", "replace")


_COMPUTED = ("body", "method", "url", "path", "form.sorted")
_DIGESTS = {
    "body.sha256": ("sha256", "hex"),
    "body.sha256.base64": ("sha256", "base64"),
    "body.md5.base64": ("md5", "base64"),
}


def _computed(part: Reference, request: Request, url: str | None) -> bytes:
    match part.kind:
        case "body":
            body = request.body or b""
            return body if part.name == "body" else _digest(part.name, body)
        case "method":
            return request.head.method.encode()
        case "url":
            return (url or request.head.url).encode("latin-1", "replace")
        case "path":
            return urlsplit(request.head.url).path.encode("latin-1", "replace")
    pairs = sorted((name, value) for name, values in request.form.items() for value in set(values))
    return "".join(name + value for name, value in pairs).encode()


def _digest(name: str, body: bytes) -> bytes:
    algorithm, encoding = _DIGESTS[name]
    digest = hashlib.new(algorithm, body, usedforsecurity=False)
    return digest.hexdigest().encode() if encoding == "hex" else base64.b64encode(digest.digest())


def parse_template(text: Any) -> Template:
    """Return the template that a text spells. Raises `ValueError` for a brace or a variable that means nothing."""
    if isinstance(text, Template):
        return text
    parts: list[str | Reference | None] = []
    for piece in re.findall(r"\{\{|\}\}|\{[^{}]*\}|[^{}]+|[{}]", text):
        if piece in ("{", "}"):
            raise ValueError(f"a brace in {text!r} is not closed; a brace itself is written twice")
        if piece[0] not in "{}" or piece in ("{{", "}}"):
            parts.append(piece[:1] if piece in ("{{", "}}") else piece)
        else:
            parts.append(_variable(piece[1:-1]))
    return Template(tuple(parts))


def _variable(name: str) -> Reference | None:
    if name == "timestamp":
        return None
    if name in _DIGESTS:
        return Reference("body", name)
    if name in _COMPUTED:
        return Reference(name, name)
    if name.partition(":")[0] in _KINDS and ":" in name:
        return parse_reference(name)
    known = "body, body.sha256, body.md5.base64, timestamp, method, url, path, form.sorted, header:, query:, field:, form:, element:"
    raise ValueError(f"{{{name}}} is no variable of a signed message; there are {known}")


MessageTemplate = Annotated[Template, BeforeValidator(parse_template)]
"""The text that was signed."""


@dataclass(frozen=True, slots=True)
class UrlTemplate:
    """A URL with `{job}` and `{path}` in it, each percent-encoded; a value that it begins with is a URL itself."""

    parts: tuple[str | Reference | None, ...]
    """Texts, places, and None where the job's id stands."""

    def fill(self, request: Request | None, document: Any, job: str | None) -> str | None:
        """Return the URL, None when a value is missing. Without a request, places are paths into `document`."""
        filled: list[str] = []
        for part in self.parts:
            if isinstance(part, str):
                filled.append(part)
                continue
            value: Any = job
            if part is not None:
                value = part.value(request, document) if request else follow(document, part.steps)
            text = as_text(value)
            if not text or text in (".", ".."):  # those would lead to another path
                return None
            filled.append(quote(text, safe="") if filled else text)
        return "".join(filled)


def parse_url_template(text: Any) -> UrlTemplate:
    """Return the template that a text spells. Raises `ValueError`."""
    if isinstance(text, UrlTemplate):
        return text
    if (
        not isinstance(text, str)
        or not re.match(r"https?://[^\s/{}]+(?:/|$)|\{", text)
        or re.search(r"\s", text)
    ):
        raise ValueError(
            'write it as "https://host/path/{job}", or begin with a value that is a whole URL: "{self}"'
        )
    parts: list[str | Reference | None] = []
    for piece in re.findall(r"\{[^{}]*\}|[^{}]+|[{}]", text):
        if piece in ("{", "}"):
            raise ValueError(f"a brace in {text!r} is not closed")
        parts.append(piece if piece[0] != "{" else None if piece == "{job}" else parse_reference(piece[1:-1]))
    return UrlTemplate(tuple(parts))


Url = Annotated[UrlTemplate, BeforeValidator(parse_url_template)]
"""A URL with values in it."""


def _hosts(value: tuple[str, ...]) -> tuple[str, ...]:
    for host in value:
        if host != "*" and not re.fullmatch(r"[a-z0-9-]+(?:\.[a-z0-9-]+)*|[0-9a-f:]+:[0-9a-f:.]*", host):
            raise ValueError(f'{host!r} is no host name in lower case, like "api.example.com"')
    return value


Hosts = Annotated[tuple[str, ...], AfterValidator(_hosts)]
"""Host names, each with all below it; `*` is any."""
