"""The settings of `provider = "custom"`, and the recipes that ship with receiver.

A recipe is a TOML file beside this one: the same settings, without secrets. What a source says itself counts more, table by table.
"""

from __future__ import annotations

import base64
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from receiver.providers.custom.handshakes import Handshake
from receiver.providers.proofs.plain import AnyProof
from receiver.providers.proofs.request import (
    At,
    BodyKind,
    Places,
    Request,
    Url,
    Words,
    as_text,
    first,
    listed,
)
from receiver.providers.toolkit import Hosts, SecretList
from receiver.settings.load import did_you_mean
from receiver.settings.model import Section
from receiver.settings.submitting import Submission

Family = Literal["speech", "transcript", "analysis", "media"]
FAMILIES: tuple[Family, ...] = ("speech", "transcript", "analysis", "media")


class About(Section):
    """`[about]` of a recipe: what a person has to know who registers receiver at the provider."""

    title: str
    """The provider, and what of it."""
    docs: str
    """The provider's page about its callbacks."""
    register_at: str
    """Where and how the callback URL is registered."""
    signed: str
    """What the proof covers, and what it does not."""
    retries: str
    """When the provider sends again, and when it stops or switches callbacks off."""
    experimental: str = ""
    """Why the recipe is not certain yet; "" when it was checked against the provider's own words or code."""


class Unwrap(Section):
    """`[[unwrap]]`: a document within the document, read in its place."""

    at: At
    """Where the inner document is, as text."""
    as_: Literal["json", "base64-json"] = Field("json", alias="as")
    """How it is spelled."""
    in_place: bool = False
    """True: it stays a field of the outer document. False: it is the document from here on."""


class Meaning(Section):
    """`[event]`: what the document says."""

    family: Family | None = None
    """What comes: the first part of the event's type."""
    family_at: Places = ()
    """Where a word tells the family."""
    families: Mapping[str, Family] = Field(default_factory=dict)
    """Family by the word at `family_at`; for other words `family` counts."""
    id: Places = ()
    """The provider's id of this callback, not of the job: the same id again is a duplicate, whatever its state. Without it the job and its state are the identity, or the content."""
    job: Places = ()
    """The job's id at the provider. Where it is named, a callback without it is parked."""
    ref: Places = ()
    """Your own words that the provider hands back; a callback token's `ref` counts more."""
    time: Places = ()
    """When it happened: ISO 8601, or seconds or milliseconds since 1970."""
    state: Places = ()
    """The word that says how the job stands; without it every callback is a completion."""
    completed: Words = ()
    """Words of a job that is done."""
    failed: Words = ()
    """Words of a job that failed."""
    processing: Words = ()
    """Words of a job that goes on."""
    ignored: Words = ()
    """Words of callbacks that are answered 200 and not kept."""
    otherwise: Literal["parked", "ignored"] = "parked"
    """What becomes of any other word."""
    error: Places = ()
    """What the provider says of a failure."""
    error_code: Places = ()
    """Its code of the failure."""
    keep: Places = ()
    """Fields for `provider_data`; without it, the plain fields of the document's first level."""
    drop: Places = ()
    """Fields that are removed before anything is kept."""

    @model_validator(mode="after")
    def _complete(self) -> Meaning:
        if self.family is None and not (self.family_at and self.families):
            raise ValueError('say what comes: family = "speech", "transcript", "analysis" or "media"')
        words = [*self.completed, *self.failed, *self.processing, *self.ignored]
        twice = {word for word in words if words.count(word) > 1}
        if twice:
            raise ValueError(f"a word stands in two lists: {', '.join(sorted(twice))}")
        if self.state and not self.completed:
            raise ValueError("state needs the words of a completion: completed = […]")
        if words and not self.state:
            raise ValueError("completed, failed, processing and ignored are words at state: say where it is")
        return self


_AUTH = {
    "none": {},
    "bearer": {"header": "authorization", "prefix": "Bearer "},
    "basic": {"header": "authorization", "prefix": "Basic "},
}


def _auth(value: Any) -> Any:
    return _AUTH.get(value, value) if isinstance(value, str) else value


class Auth(Section):
    """`auth`: how `api_key` is sent along: `none`, `bearer`, `basic`, or `{header = "X-Key", prefix = ""}`."""

    header: str = ""
    """The header that holds it."""
    prefix: str = ""
    """What stands before it; after `Basic ` it is base64."""

    def headers(self, key: str) -> Mapping[str, str]:
        """Return the headers that send a key; none without one."""
        if not (key and self.header):
            return {}
        sent = base64.b64encode(key.encode()).decode() if self.prefix == "Basic " else key
        return {self.header.lower(): self.prefix + sent}


class Question(Section):
    """`get`: what the provider's API is asked for."""

    hosts: Hosts = ()
    """Hosts that may be asked or fetched from, each with all below it; `*` is any public one."""
    auth: Annotated[Auth, BeforeValidator(_auth)] = Auth()
    """How `api_key` is sent along; a link gets no key unless this says so."""


class ResultSettings(Question):
    """`[result]`, or `[result.FAMILY]`: where the result is."""

    from_: Literal["document", "text", "base64", "link", "get", "body", "part", "none"] = Field(
        "document", alias="from"
    )
    """The whole document, a text in it, base64 in it, or behind a link. `get`: ask the provider's API. `body`: the callback's body is the result. `part`: a part of a multipart body. `none`: there is no result, only the event."""
    at: Places = ()
    """Where the text, the base64 or the link is; for `get`, where the URL is."""
    url: Url | None = None
    """The link or the URL, put together: `https://api.example.com/jobs/{job}/audio`."""
    name: str = ""
    """The part of a multipart body; "" is the first that is a file."""
    content_type: str = ""
    """What the bytes are, where neither they nor the sender say it."""
    content_type_at: Places = ()
    """Where the type of base64 bytes is told."""
    language: Places = ()
    """The language of a transcript."""
    not_yet: tuple[int, ...] = (202, 404, 425, 429)
    """Statuses of a `get` that say the result is not ready."""
    state: Places = ()
    """The word in the answer to a `get` that says how the job stands; without it 200 is a completion."""
    completed: Words = ()
    """Words of a job that is done."""
    failed: Words = ()
    """Words of a job that failed; any other says that it goes on."""
    error: Places = ()
    """What the answer says of a failure."""
    every: float = Field(10, ge=1, le=3600)
    """Seconds between two questions."""
    deadline: float = Field(86400, ge=1, le=30 * 86400)
    """Seconds after which a result is given up."""
    then: ResultSettings | None = None
    """Where the result is in the answer to a `get`: `document`, `text` (the answer is kept beside it), `base64`, `link`, or one more `get`. Without it the answer is the result."""

    @model_validator(mode="after")
    def _placed(self) -> ResultSettings:
        fetched = self.from_ in ("link", "get")
        if self.from_ in ("text", "base64") and not self.at:
            raise ValueError(f'from = "{self.from_}" needs at')
        if fetched and not self.at and self.url is None:
            raise ValueError(f'from = "{self.from_}" needs at or url')
        if fetched and not self.hosts:
            raise ValueError(f'from = "{self.from_}" needs hosts: the names that may be fetched from')
        if self.then is not None and (self.from_ != "get" or self.then.from_ in ("body", "part", "none")):
            raise ValueError(
                'then goes with from = "get"; its own from is document, text, base64, link or get'
            )
        return self

    def link(self, request: Request, job: str | None) -> str | None:
        """Return the URL that is asked or fetched, None where a value of it is missing."""
        return as_text(first(self.at, request)) if self.url is None else self.url.url(request, job)

    @property
    def steps(self) -> Iterator[ResultSettings]:
        """The table itself, and those of its `then`."""
        step: ResultSettings | None = self
        while step is not None:
            yield step
            step = step.then


class Watch(Question):
    """`[watch]`: what the provider says of its own webhook, for `source.failing` and `source.recovered`."""

    url: str = Field(pattern=r"^https?://[^\s/]+(/\S*)?$")
    """The provider's API that tells it, where `{region}` is the source's; asked with `api_key`, and not at all without one."""
    hosts: Hosts = Field(min_length=1)
    """Hosts that may be asked, each with all below it."""
    list: Places = ()
    """Where the answer has its list of webhooks; without it the answer is one webhook."""
    next: Places = ()
    """Where the answer has the link to the next page of its list; the first twenty pages are read."""
    callback_url: At
    """Where a webhook has the URL that it calls: those that do not call this source are left out."""
    state: Places = Field(min_length=1)
    """The word that says how a webhook stands."""
    failing: Words = Field(min_length=1)
    """Words of one that was switched off."""
    detail: Places = ()
    """What the provider says of the reason."""
    every: float = Field(900, ge=60, le=86400)
    """Seconds between two questions of one process."""


_RECIPES = resources.files(__package__) / "recipes"
WHOLE_DOCUMENT = ResultSettings.model_validate({})


class CustomSettings(Section):
    """[sources.NAME] of provider `custom`."""

    manual: ClassVar[str] = "docs/sources.md"

    recipe: str | None = None
    """One that ships with receiver: `receiver recipes` lists them. What stands beside it counts more."""
    secrets: SecretList = ()
    """What proves the caller: any of them fits; the last one signs handshakes."""
    api_key: SecretStr | None = None
    """For fetching results; goes to the hosts of `[result]` alone. For `auth = "basic"` it is `user:password`."""
    region: str = Field("", pattern=r"^[a-z0-9-]*$")
    """The region of your account at the provider, where the recipe's `[watch]` needs it."""
    keeps_retrying: bool = False
    """True: while the journal holds the copy the provider is answered 503, and calls again."""
    methods: tuple[Literal["POST", "PUT", "GET"], ...] = ("POST", "PUT")
    """How callbacks come."""
    body: BodyKind = "json"
    require_token: bool | None = None
    """Refuse a callback whose URL has no token of ours; by default, where no proof covers the body."""
    proof: Annotated[tuple[AnyProof, ...], BeforeValidator(listed)] = ()
    handshake: Annotated[tuple[Handshake, ...], BeforeValidator(listed)] = ()
    unwrap: Annotated[tuple[Unwrap, ...], BeforeValidator(listed)] = ()
    event: Meaning | None = None
    result: Mapping[str, ResultSettings] = Field(default_factory=dict)
    """By family; one for all stands under `*`."""
    submission: Submission | None = None
    watch: Watch | None = None
    about: About | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_recipe(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        name = value.get("recipe")
        if isinstance(name, str):
            if name not in recipes():
                near = did_you_mean(name, recipes()) or "`receiver recipes` lists them"
                raise ValueError(f"there is no recipe {name!r}; {near}")
            value = _merged(recipe(name), value)
        return value

    @field_validator("result", mode="before")
    @classmethod
    def _by_family(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value and not set(value) <= {*FAMILIES, "*"}:
            return {"*": value}
        return value

    @model_validator(mode="after")
    def _sensible(self) -> CustomSettings:
        if any(proof.kind == "address" for proof in self.proof) and all(
            p.kind == "address" for p in self.proof
        ):
            raise ValueError("proof: an address alone proves nobody; add another proof")
        return self

    def result_of(self, family: str) -> ResultSettings:
        """Return where results of a family are."""
        return self.result.get(family) or self.result.get("*") or WHOLE_DOCUMENT

    @property
    def groups(self) -> list[list[AnyProof]]:
        """The proofs in groups of which one must hold."""
        groups: dict[str, list[AnyProof]] = {}
        for number, proof in enumerate(self.proof):
            groups.setdefault(proof.alternative or f"\0{number}", []).append(proof)
        return [*groups.values()]

    @property
    def covered(self) -> bool:
        """True when a changed body would be refused."""
        return any(proof.covers_body for proof in self.proof)

    @property
    def needs_api_key(self) -> bool:
        """Whether a result is fetched with the provider's key."""
        return any(step.auth.header for result in self.result.values() for step in result.steps)

    @property
    def watched_at(self) -> str | None:
        """The URL that `[watch]` asks, None where nothing is asked or the key or the region is missing."""
        if self.watch is None or not self.api_key or ("{region}" in self.watch.url and not self.region):
            return None
        return self.watch.url.replace("{region}", self.region)

    @property
    def token_required(self) -> bool:
        """Whether a callback's URL must carry a token."""
        return not self.covered if self.require_token is None else self.require_token


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return both tables in one: tables are merged, anything else of `over` stands in place of `base`'s."""
    merged = dict(base)
    for name, value in over.items():
        known = merged.get(name)
        merged[name] = (
            _merged(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
        )
    return merged


@cache
def recipes() -> tuple[str, ...]:
    """Return the names of the recipes that ship with receiver."""
    files = (file.name for file in _RECIPES.iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml")))


@cache
def recipe(name: str) -> Mapping[str, Any]:
    """Return the settings of a recipe."""
    return tomllib.loads(_text(name))


def recipe_as_source(name: str) -> str:
    """Return a recipe as TOML of a source in receiver.toml, to begin one's own from."""
    own, _, tables = f"\n{_text(name)}".partition("\n[")
    below = re.sub(r"^(\[+)", rf"\g<1>sources.{name}.", f"[{tables}", flags=re.MULTILINE)
    options = CustomSettings.model_validate({"recipe": name})
    lines = [f"[sources.{name}]", 'provider = "custom"']
    lines += ['secrets = ["env:SECRET"]'] * any(proof.needs_secrets for proof in options.proof)
    lines += ['api_key = "env:API_KEY"'] * options.needs_api_key
    return "\n".join([*lines, own.lstrip(), below])


def recipe_of(options: CustomSettings) -> str | None:
    """Return the recipe of a source: the one it names, or the one of its title that it was printed from; None for another."""
    titles = {recipe(name)["about"]["title"]: name for name in recipes()} if options.about else {}
    return options.recipe or titles.get(options.about.title if options.about else "")


def recipe_example(name: str) -> bytes:
    """Return a request that a recipe takes for a completion, as it is sent; its proof is one of an example's secret."""
    return (_RECIPES / f"{name}.http").read_bytes()


def _text(name: str) -> str:
    return (_RECIPES / f"{name}.toml").read_text("utf-8")
