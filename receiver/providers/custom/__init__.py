"""Any provider, by settings instead of code: how a callback is proved, what it means, where its result is.

docs/sources.md describes the language. Recipes that ship with receiver lie in `recipes/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from msgspec.structs import replace

from receiver.core.callback import Admission, Body, Head, MemoryBody, Reply, VerifiedCallback
from receiver.core.errors import CallbackRejected, Code, Finding, MalformedCallback, ProofMissing
from receiver.core.event import EventDraft
from receiver.core.redaction import Redactor
from receiver.core.tokens import CallbackTokens
from receiver.providers import NO_PROOF, PushProvider
from receiver.providers.custom.collecting import Collecting
from receiver.providers.custom.language import Auth, CustomSettings, recipes
from receiver.providers.custom.meaning import Reading, Understood
from receiver.providers.proofs.base import Keyed, Trust
from receiver.providers.proofs.plain import AnyProof
from receiver.providers.proofs.request import BodyNeeded, Request, as_text
from receiver.providers.proofs.signatures import HmacProof
from receiver.providers.toolkit import reveal, revealed
from receiver.settings.model import SourceSettings
from receiver.settings.submitting import ProviderApi

if TYPE_CHECKING:
    from receiver.providers.public_keys.jwks import KeySet


_SHOWN = 300
"""Characters of a signed message that are shown."""
_OPEN_BODY = "the proof does not cover the body: whoever sees one callback can change the next"
_NO_KEY = "results are fetched with a key, and none is set"
_NO_REGION = (
    "nobody asks the provider whether it switched the webhook off: its address needs your account's region"
)
_SILENT = "nothing says where the audio is, so speech.completed comes without any"


class CustomProvider(Collecting, PushProvider):
    """One source that settings describe."""

    provider = "custom"
    Settings = CustomSettings
    codes: ClassVar = {
        "E904": Code("A custom source's setting is wrong", "copy the secret whole from the provider"),
        "E901": Code("A custom source has no proof", "add a [[proof]], or require_token = true"),
        "E902": Code("A custom source has no secret for its proof", 'add secrets = ["env:…"]'),
        "W901": Code("The body is not covered by a proof", "keep require_token = true"),
        "W902": Code(
            "A header's name has an underscore", "tell the proxy to pass such headers on, or it drops them"
        ),
        "W903": Code("A result is fetched without a key", 'add api_key = "env:…"'),
        "W905": Code(
            "A proof's time is not signed", "write {timestamp} where the provider has it in the message"
        ),
        "W906": Code("Speech without a place for its audio", "add [result]: body, base64, part, link or get"),
        "W907": Code("The provider cannot be asked about its webhook", 'add region = "…"'),
        "W904": Code("A recipe is experimental", "try it with `receiver try` before you rely on it"),
    }

    def __init__(self, settings: SourceSettings, options: CustomSettings, tokens: CallbackTokens) -> None:
        self._api_key = revealed(options.api_key)
        self._proof_secrets = reveal(options.secrets)
        self._users = tuple(u for p in options.proof if p.kind == "basic" for u in reveal(p.users))
        super().__init__(settings, options, tokens)
        where, shape = f"{self._where}.secrets", f"{self._where}.proof"
        self.trust = Trust(where, shape, shape, self._proof_secrets, _key_sets(options.proof))
        self.keeps_retrying = options.keeps_retrying
        self._groups = options.groups
        self._places = [place for proof in options.proof for place in proof.references]
        self.secret_headers = frozenset(place.name for place in self._places if place.kind == "header")
        self._token_required = options.token_required
        large = options.body == "multipart" or any(r.from_ == "body" for r in options.result.values())
        self._body_limit = settings.max_audio_bytes if large else settings.max_json_bytes
        self._reading = Reading(settings, options)
        self.watch_seconds = options.watch.every if options.watch and options.watched_at else None
        self.methods = options.methods
        self.handshake_methods = frozenset(m for h in options.handshake for m in h.taken_methods)

    def _secrets(self) -> tuple[str, ...]:
        passwords = (user.partition(":")[2] for user in self._users)
        return (
            *self._proof_secrets,
            *self._users,
            *passwords,
            self._api_key,
            self._api_key.partition(":")[2],
        )

    @classmethod
    def written_as(cls, provider: str) -> str:
        """Return how a source with a recipe of this name is written."""
        return f'write recipe = "{provider}"' if provider in recipes() else ""

    @classmethod
    def _judge(cls, where: str, options: CustomSettings) -> Iterator[Finding]:
        results = options.result.values()
        if options.event is None and not any(result.from_ == "get" for result in results):
            empty = "nothing says what a callback is proved by and what it means"
            yield cls._finding(
                "E901", where, "recipe", empty, 'add recipe = "NAME", or [[proof]] and [event]'
            )
            return
        secrets = reveal(options.secrets)
        for number, proof in enumerate(options.proof):
            for code, setting, message in proof.doubts(secrets):
                fix = f"{cls.codes[code].fix} to [{where}]" if code == "E902" else ""
                yield cls._finding(code, where, setting or f"proof[{number}]", message, fix)
        event, uncovered = options.event, not options.covered and {p.kind for p in options.proof} - {"token"}
        silent = options.result_of("speech").from_ in ("document", "text", "none")
        said = options.about.experimental if options.about else ""
        found = (
            (event and not (options.proof or options.token_required), "E901", "proof", NO_PROOF),
            (event and uncovered, "W901", "proof", _OPEN_BODY),
            (options.api_key is None and options.needs_api_key, "W903", "api_key", _NO_KEY),
            (event and event.family == "speech" and silent, "W906", "result", _SILENT),
            (options.api_key and options.watch and not options.watched_at, "W907", "region", _NO_REGION),
            (said, "W904", "recipe", said),
        )
        for applies, code, setting, message in found:
            if applies:
                yield cls._finding(code, where, setting, message)

    # ------------------------------------------------------------ proofs

    def admit(self, head: Head) -> Admission:
        """Check the token and what the head shows of each proof. Raises `CallbackRejected`, `WrongSource`, `KeysNeeded`."""
        claims = self._check_token(head, required=self._token_required)
        request, proofs = Request(head, None, self._options.body), {"token"} if claims else set[str]()
        for group in self._groups:
            held = _one_of(group, request, self.trust)
            if held:
                proofs.add(held)
            else:
                request.undecided.append(group)
        return Admission(
            head=head,
            claims=claims,
            proofs=frozenset(proofs),
            body_limit=self._body_limit,
            held=bool(proofs) and not request.undecided,
            read=request,
        )

    def verify(self, admission: Admission, body: Body) -> VerifiedCallback:
        """Check what the head alone could not decide. Raises `CallbackRejected`, `KeysNeeded`."""
        request = admission.read
        if request.undecided:
            request.arrived(body.load(), body.wire and body.wire.load())
        proofs = {_one_of(group, request, self.trust) for group in request.undecided}
        proved = replace(admission, proofs=admission.proofs | proofs, secret=request.secret)
        return self.believed(proved, body)

    def believed(self, admission: Admission, body: Body) -> VerifiedCallback:
        """Return the callback with the admission's proofs and without secrets, checking nothing."""
        head = admission.head
        if self._options.body == "query":
            # The query is what came: what is kept, and what tells two callbacks apart.
            body = MemoryBody(self._reading.query(admission.read or Request(head, None, self._options.body)))
        bare = head.without_secrets(self._reading.secret_fields)
        return super().believed(admission if bare is head else replace(admission, head=bare), body)

    def examine(self, head: Head, body: Body) -> Iterator[dict[str, Any]]:
        """Yield what each proof says of a request, for a person who writes a recipe. Raises `KeysNeeded`."""
        request = Request(head, body.load(), self._options.body)
        if self._token_required or head.token:
            reason = _refusal(lambda: self._check_token(head, required=True))
            yield {"proof": "token", "holds": not reason, "reason": reason, "signed": None}
        came = Redactor(self.came_as_proof(head, request.body))
        for proof in self._options.proof:
            message = None
            with suppress(CallbackRejected):
                message = proof.signed(request, self.trust)
            reason = _refusal(partial(proof.check, request, self.trust))
            if reason and isinstance(proof, HmacProof):
                spelling = proof.would_fit(request, self.trust)
                reason += f'; with secret_encoding = "{spelling}" it does' if spelling else ""
            clean = message and came.clean(self.redact(message)).decode("utf-8", "replace")[:_SHOWN]
            yield {"proof": proof.kind, "holds": not reason, "reason": reason, "signed": clean}

    def wanted_headers(self) -> list[tuple[str, list[tuple[str, ...]]]]:
        """Return the names of the headers that each proof needs."""
        return [(proof.kind, list(proof.wanted_headers)) for proof in self._options.proof]

    def came_as_proof(self, head: Head, body: bytes) -> list[str]:
        """Return what came with a request to prove it, right or wrong; from its body as well."""
        request = Request(head, body, self._options.body)
        found = super().came_as_proof(head, body)
        for place in self._places:
            with suppress(CallbackRejected):
                found += [as_text(place.value(request)) or ""]
        return found

    def handshake(self, head: Head, body: bytes, *, proved: bool) -> Reply | None:
        """Return the answer to a handshake, None when the request is none."""
        request = Request(head, body, self._options.body)
        secret = self._proof_secrets[-1] if self._proof_secrets else None
        for handshake in self._options.handshake:
            if proved or not handshake.needs_proof:
                reply: Reply | None = handshake.answer(request, secret)
                if reply is not None:
                    return reply
        return None

    # ------------------------------------------------------------ submissions

    def submit_api(self) -> ProviderApi | None:
        """Return what `[submission]` says; None without it."""
        table = self._options.submission
        if table is None:
            return None
        auth = Auth(header=table.header, prefix=table.prefixes[0])
        secret = self._proof_secrets[-1] if self._proof_secrets else ""
        return ProviderApi(table, auth.headers(self._api_key), secret)

    # ------------------------------------------------------------ meaning

    def normalize(self, callback: VerifiedCallback) -> EventDraft:
        """Return the draft. Raises `MalformedCallback`, or `IgnoredCallback` for what the settings say to ignore."""
        try:
            request, raw = self._reading.document(callback)
            document, raw = self._without_secrets(request.document, raw)
            bare, kept = self._without_signatures(document, raw)
            found = Understood(callback, request.reading(document), request.reading(bare), kept)
            return self._reading.draft(found)
        except CallbackRejected as error:  # proved, so what is odd about it now is no reason to refuse it
            raise MalformedCallback(error.message) from None


def _refusal(check: Callable[[], object]) -> str:
    """Return why a check refuses, "" when it does not."""
    try:
        check()
    except CallbackRejected as error:
        return error.message
    return ""


def _key_sets(proofs: Iterable[AnyProof]) -> Mapping[str, KeySet]:
    urls = {proof.jwks for proof in proofs if isinstance(proof, Keyed) and proof.jwks}
    if not urls:
        return {}
    from receiver.providers.public_keys.jwks import KeySet  # loads a cryptography library

    return {url: KeySet(url) for url in urls}


def _one_of(group: Iterable[AnyProof], request: Request, trust: Trust) -> str | None:
    """Return the kind of the first proof that holds, None where the body may tell. Raises the refusal that says most."""
    errors: list[CallbackRejected] = []
    undecided = False
    for proof in group:
        try:
            proof.check(request, trust)
        except BodyNeeded:
            undecided = True
        except CallbackRejected as error:
            errors.append(error)
        else:
            return proof.kind
    if undecided:
        return None
    raise next((error for error in errors if not isinstance(error, ProofMissing)), errors[0])
