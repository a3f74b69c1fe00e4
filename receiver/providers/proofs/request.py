"""A request as a recipe sees it: where a value is (references and paths), and the text that was signed (templates).

Nothing here is an expression: a reference names one value, a template joins texts, and neither can loop.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import parse_qsl, quote, urlsplit

from pydantic import BeforeValidator

from receiver.core.callback import Head
from receiver.core.errors import CallbackRejected, MalformedCallback, ProofMissing
from receiver.providers.documents import Document, decode_object, encode
from receiver.system.multipart import Part, parts_of

BodyKind = Literal["json", "form", "multipart", "raw", "query"]
MAX_FIELDS = 1000
"""Fields of a query or form that are read; the request with more is refused."""
MAX_TEXT = 64 * 1024
"""Characters of a value that is compared, put into a template or into a URL."""
_INDEX = re.compile(r"\[([0-9]{1,4})\]")
_NAME = re.compile(r"(?:[^.\[\]\\{}]|\\.)+")
_KINDS = ("header", "query", "form", "element", "field")


Elements = Mapping[str, list[str]]
"""The entries of a header that is a list, by name."""
T = TypeVar("T")


class BodyNeeded(Exception):
    """A proof needs the body, which is not read yet."""


class Request:
    """One request, or an answer of a provider's: its head and, once that was read, its body, decoded when it is first needed."""

    def __init__(self, head: Head, body: bytes | None, kind: BodyKind, sent: bytes | None = None) -> None:
        """`sent` is the body as it was sent, where its content coding was undone: what is signed."""
        self.head, self.kind = head, kind
        self._body, self._sent = body, sent
        self._read: dict[int, Any] = {}
        self.undecided: list[Any] = []
        """The proofs that the head alone did not decide."""
        self.secret = 0
        """The place of the source's secret that held last, counted from 1."""

    @property
    def has_body(self) -> bool:
        """True once the body was read."""
        return self._body is not None

    @property
    def body(self) -> bytes:
        """The body. Raises `BodyNeeded`."""
        if self._body is None:
            raise BodyNeeded
        return self._body

    @property
    def signed(self) -> bytes:
        """The body as it was sent. Raises `BodyNeeded`."""
        return self.body if self._sent is None else self._sent

    def arrived(self, body: bytes, sent: bytes | None) -> None:
        """Take the body, which was read by now."""
        self._body, self._sent = body, sent

    def reading(self, document: Document) -> Request:
        """Return this request with another document."""
        if document is self.__dict__.get("document"):
            return self
        other = Request.__new__(Request)
        other.__dict__.update(self.__dict__, document=document)
        return other

    def once(self, reader: object, read: Callable[[], T]) -> T:
        """Return what `read` returns; it is called once for each reader, before the body came or after it."""
        if id(reader) not in self._read:
            self._read[id(reader)] = read()
        found: T = self._read[id(reader)]
        return found

    @cached_property
    def query(self) -> Elements:
        """The fields of the URL's query."""
        return _fields(self.head.query)

    @cached_property
    def parts(self) -> Sequence[Part]:
        """The parts of a multipart body."""
        return parts_of(self.body, self.head.media_type[1].get("boundary", ""))

    @cached_property
    def form(self) -> Elements:
        """The fields of a form, url-encoded or multipart."""
        if self.kind != "multipart":
            return _fields(self.body.decode("latin-1"))
        return by_name((part.name, part.text()) for part in self.parts if part.is_field)

    @cached_property
    def document(self) -> Document:
        """The body as a document: JSON, or an object of a form's or the query's fields. Raises `MalformedCallback`."""
        if self.kind == "json":
            return decode_object(self.body)
        if self.kind == "raw":
            return {}
        fields = self.query if self.kind == "query" else self.form
        return {name: values[0] if len(values) == 1 else values for name, values in fields.items()}


_NO_REQUEST = Request(Head(source="", method="GET", headers=(), received_at=0), b"", "raw")


def answered(document: Document) -> Request:
    """Return what is read like a request: a document that the provider answered with."""
    return _NO_REQUEST.reading(document)


def _fields(encoded: str) -> Elements:
    try:
        return by_name(parse_qsl(encoded, keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError:
        raise CallbackRejected(f"the query or form has more than {MAX_FIELDS} fields") from None


def by_name(pairs: Iterable[tuple[str, str]]) -> Elements:
    """Return the values of each name."""
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


def replaced(document: Any, steps: Sequence[str | int], value: Any = None) -> Any:
    """Return a document with another value at a path, or without it; the document itself when nothing is there."""
    step, *rest = steps
    inner = follow(document, (step,))
    new = replaced(inner, rest, value) if rest and inner is not None else value
    if inner is None or new is inner:
        return document
    changed = document.copy()
    if new is None:
        del changed[step]
    else:
        changed[step] = new
    return changed


# ---------------------------------------------------------------- references


@dataclass(frozen=True, slots=True)
class Reference:
    """Where one value is: `header:NAME`, `query:NAME`, `form:NAME`, `element:NAME`, or `field:PATH` in the document.

    In a template it may also be a variable without a name, whose kind tells all.
    """

    kind: str
    name: str = ""
    steps: tuple[str | int, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind

    @property
    def path(self) -> tuple[str | int, ...]:
        """Where the value stands in the request's document, if it does."""
        return self.steps or (self.name,)

    def value(self, request: Request, elements: Elements | None = None) -> Any:
        """Return the value, None when it is not there.

        Raises `CallbackRejected` when a header, a query field or a form field comes twice, and `BodyNeeded`.
        """
        if self.kind == "header":
            return request.head.one(self.name)
        try:
            if self.kind == "field":
                return follow(request.document, self.steps)
            fields = getattr(request, self.kind) if self.kind in ("query", "form") else elements or {}
        except MalformedCallback as error:
            raise CallbackRejected(error.message) from None
        values = fields.get(self.name, [])
        if len(values) > 1:
            raise CallbackRejected(f"{self} came {len(values)} times; it may come once")
        return values[0] if values else None


def parse_reference(text: Any) -> Reference:
    """Return the reference that a text spells; without a kind it is a path into the document. Raises `ValueError`."""
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


def listed(value: Any) -> Any:
    """Take a single value for a list of one."""
    return list(value) if isinstance(value, list | tuple) else [value]


At = Annotated[Reference, BeforeValidator(parse_reference)]
"""Where one value is."""
Places = Annotated[tuple[At, ...], BeforeValidator(listed)]
"""Where a value may be: the first place that has it counts."""
Words = Annotated[tuple[str, ...], BeforeValidator(listed)]
"""Texts; a single one stands for a list of one."""


def first(places: Iterable[Reference], request: Request) -> Any:
    """Return the value at the first place that has one; None when none has."""
    for place in places:
        value = place.value(request)
        if value is not None and value != "":
            return value
    return None


def as_text(value: Any) -> str | None:
    """Return a plain value as text, as JSON spells it; None for what is absent, an object or a list."""
    if value is None:  # the most frequent
        return None
    if isinstance(value, str):
        return value[:MAX_TEXT]
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, int | float) else None


def spelled(value: Any) -> str:
    """Return any value as text: a plain one, or an object or list as JSON; "" for what is absent."""
    return as_text(value) or (encode(value).decode() if value else "")


# ---------------------------------------------------------------- templates


def _sorted_form(request: Request) -> bytes:
    pairs = sorted((name, value) for name, values in request.form.items() for value in set(values))
    return "".join(name + value for name, value in pairs).encode()


_VARIABLES: Mapping[str, Callable[[Request], bytes]] = {
    "body": lambda request: request.signed,
    "body.sha256": lambda request: hashlib.sha256(request.signed).hexdigest().encode(),
    "body.sha256.base64": lambda request: base64.b64encode(hashlib.sha256(request.signed).digest()),
    "body.md5.base64": lambda request: base64.b64encode(
        hashlib.md5(request.signed, usedforsecurity=False).digest()
    ),
    "form.sorted": _sorted_form,
    "method": lambda request: request.head.method.encode(),
    "path": lambda request: urlsplit(request.head.url).path.encode("latin-1", "replace"),
}
"""Variables of a message that are made of the request."""
_GIVEN = ("timestamp", "url")
"""Those that the proof tells: where the time is, and how the URL is spelled."""
OF_BODY = ("body", "body.sha256", "body.sha256.base64", "body.md5.base64", "form.sorted")
"""Those that change with any byte of the body."""


@dataclass(frozen=True, slots=True)
class Template:
    """Literal text with `{variable}`; `{{` is a brace. Nothing else is interpreted."""

    parts: tuple[str | Reference, ...]

    @property
    def places(self) -> Iterable[Reference]:
        """Its variables."""
        return (part for part in self.parts if isinstance(part, Reference))

    def timed(self, place: Reference) -> Template:
        """Return the template with the place of the time for `{timestamp}`."""
        return Template(tuple(place if part == Reference("timestamp") else part for part in self.parts))

    def message(self, request: Request, elements: Elements, url: str) -> bytes:
        """Return the signed message. Raises `ProofMissing` for a variable that the request does not have, and `BodyNeeded`."""
        made: list[bytes] = []
        for part in self.parts:
            if isinstance(part, str):
                made.append(part.encode())
            elif part.kind in _VARIABLES:
                made.append(_VARIABLES[part.kind](request))
            else:
                value = url if part.kind == "url" else as_text(part.value(request, elements))
                if value is None:
                    raise ProofMissing(f"the request has no {part}, which the signed message holds")
                made.append(value.encode("latin-1" if part.kind in ("header", "url") else "utf-8", "replace"))
        return b"".join(made)

    def url(self, request: Request, job: str | None) -> str | None:
        """Return the URL, each value percent-encoded but one that it begins with; None when a value is missing."""
        filled: list[str] = []
        for part in self.parts:
            if isinstance(part, str):
                filled.append(part)
                continue
            text = as_text(job if part.kind == "job" else part.value(request))
            if not text or text in (".", ".."):  # those would lead to another path
                return None
            filled.append(quote(text, safe="") if filled else text)
        return "".join(filled)


def _parsed(text: str, variable: Callable[[str], Reference]) -> Template:
    parts: list[str | Reference] = []
    for piece in re.findall(r"\{\{|\}\}|\{[^{}]*\}|[^{}]+|[{}]", text):
        if piece in ("{", "}"):
            raise ValueError(f"a brace in {text!r} is not closed; a brace itself is written twice")
        if piece in ("{{", "}}"):
            parts.append(piece[0])
        else:
            parts.append(variable(piece[1:-1]) if piece[0] == "{" else piece)
    return Template(tuple(parts))


def parse_message(text: Any) -> Template:
    """Return the template of a message. Raises `ValueError` for a brace or a variable that means nothing."""
    return _parsed(text, _variable)


def _variable(name: str) -> Reference:
    if name in _VARIABLES or name in _GIVEN:
        return Reference(name)
    if name.partition(":")[0] in _KINDS and ":" in name:
        return parse_reference(name)
    known = ", ".join((*_VARIABLES, *_GIVEN, *(f"{kind}:NAME" for kind in _KINDS)))
    raise ValueError(f"{{{name}}} is no variable of a signed message; there are {known}")


def parse_url(text: Any) -> Template:
    """Return the template of a URL, with `{job}` and places in it. Raises `ValueError`."""
    if not isinstance(text, str) or not re.fullmatch(r"(?:https?://[^\s/{}]+(?:/\S*)?|\{\S*)", text):
        raise ValueError(
            'write it as "https://host/path/{job}", or begin with a value that is a whole URL: "{self}"'
        )
    return _parsed(text, lambda name: Reference(name) if name == "job" else parse_reference(name))


Message = Annotated[Template, BeforeValidator(parse_message)]
"""The text that was signed."""
Url = Annotated[Template, BeforeValidator(parse_url)]
"""A URL with `{job}` and other values in it."""
