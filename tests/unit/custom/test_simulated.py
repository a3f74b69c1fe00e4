"""What `receiver simulate custom` sends is believed by the source, recipe by recipe, and is of a new job each time."""

from __future__ import annotations

import pytest

from receiver.core.errors import UsageError
from receiver.core.event import EventDraft
from receiver.demo.custom import Player, request_of
from receiver.providers.custom import CustomProvider
from receiver.providers.custom.language import recipe_example, recipes
from receiver.settings.load import own_settings
from receiver.settings.model import SourceSettings
from tests.support.golden import tokens
from tests.support.sources import NOW, SECRET, head, verdict

KEYED = {"fal", "telnyx"}
"""Those whose provider signs with a key of its own."""
URL = "https://hooks.example.com/callbacks/x"


def settings(**options: object) -> SourceSettings:
    return SourceSettings.model_validate({"name": "x", "provider": "custom", **options})


def played(source: SourceSettings, raw: bytes) -> EventDraft | str:
    made = CustomProvider.create(source, tokens())
    token = tokens().issue("x")
    options = own_settings(CustomProvider.Settings, source)
    sent = Player(options).play(request_of(raw, "x", f"{URL}/{token}", options.body, NOW))
    came = head(*sent.head.headers, query=sent.head.query, method=sent.head.method, token=token)
    return verdict(made, came, sent.body)


@pytest.mark.parametrize("name", sorted(set(recipes()) - KEYED))
def test_a_recipes_example_is_played(name: str) -> None:
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" if name not in ("zoom",) else SECRET
    source = settings(recipe=name, secrets=[secret])
    first, second = (played(source, recipe_example(name)) for _ in range(2))
    assert isinstance(first, EventDraft), first
    assert isinstance(second, EventDraft)
    assert first.type.endswith(".completed")
    assert first.idempotency_key != second.idempotency_key


@pytest.mark.parametrize("name", sorted(KEYED))
def test_a_proof_that_only_the_provider_can_make_is_told(name: str) -> None:
    with pytest.raises(UsageError, match="only the provider has"):
        played(
            settings(recipe=name, secrets=["A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="]),
            recipe_example(name),
        )


@pytest.mark.parametrize(
    "proof",
    [
        {"kind": "basic"},
        {"kind": "same", "at": "query:key", "prefix": "k-"},
        {"kind": "same", "at": "field:secret"},
        {"kind": "hmac", "header": "x-s", "algorithm": "sha1", "no_clock": True},
        {
            "kind": "hmac",
            "header": "x-s",
            "timestamp": {"from": "header:x-t"},
            "message": "{timestamp}{body}",
        },
        {
            "kind": "hmac",
            "header": "x-s",
            "timestamp": {"from": "query:t"},
            "message": "{url}{body}",
        },
        {"kind": "hmac", "header": "x-s", "preset": "stripe-like", "prefix": "p "},
        {
            "kind": "jwt",
            "algorithms": ["HS256"],
            "prefix": "Bearer ",
            "audience": "a",
            "claims": {"iss": ["i"]},
        },
        {"kind": "digest", "at": "header:x-d"},
    ],
    ids=lambda proof: "-".join(map(str, (proof["kind"], proof.get("at", ""), len(proof)))),
)
def test_each_kind_of_proof_can_be_made(proof: dict[str, object]) -> None:
    source = settings(
        secrets=["user:example-secret-0123456789abcdef"],
        proof=[proof],
        event={"family": "media", "job": "id"},
        require_token=False,
    )
    raw = b'POST /callbacks/x HTTP/1.1\ncontent-type: application/json\n\n{"id":"1","secret":""}'
    assert isinstance(played(source, raw), EventDraft), played(source, raw)
