"""What every provider adapter must do, told by its golden folder. `test_providers.py` runs it over each provider."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from msgspec import structs

from receiver.core.callback import MemoryBody, VerifiedCallback
from receiver.core.errors import CallbackRejected, MalformedCallback
from receiver.core.event import EVENT_TYPES, EventDraft
from receiver.providers import PushProvider, adapters
from tests.support.golden import Case, Request, tokens


def make(case: Case) -> PushProvider:
    """Return the adapter that a case is sent to."""
    adapter = adapters()[case.provider].create(case.source, tokens())
    assert isinstance(adapter, PushProvider)
    return adapter


def proof_headers(case: Case) -> set[str]:
    """Return the headers of a request that carry a proof: those that the adapter itself would sign with, and its secret ones."""
    adapter = make(case)
    return {name.lower() for name in adapter.sign(b"", now=0)} | adapter.secret_headers


def prove(provider: PushProvider, request: Request, received_at: int) -> VerifiedCallback:
    """Admit and verify one request, as the web layer would."""
    admission = provider.admit(request.head(received_at))
    body = MemoryBody(request.body)
    assert body.size <= admission.body_limit
    return provider.verify(admission, body)


def as_expected(draft: EventDraft) -> dict[str, Any]:
    """Return a draft as expected.toml spells it: what is None is left out, and that it is late, which no adapter says."""
    fields: dict[str, Any] = msgspec.to_builtins(draft)
    for name in ("provider_data", "document", "late", "content"):
        del fields[name]
    return {name: _without_none(value) for name, value in fields.items() if value is not None}


def _without_none(value: Any) -> Any:
    return (
        {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value
    )


def check_accepted(case: Case) -> None:
    """The proofs hold, and the draft is the expected one."""
    provider = make(case)
    proved = prove(provider, case.request, case.received_at)
    assert proved.proofs == set(case.expected["accepted"]["proofs"])
    draft = provider.normalize(proved)
    assert as_expected(draft) == case.expected["event"]
    assert draft.type in EVENT_TYPES
    if draft.audio is None:
        assert (draft.document == case.request.body) is case.expected["accepted"]["body_kept_as_sent"]
    else:
        assert draft.document is None
        assert draft.provider_data == case.expected["provider_data"]


def check_parked(case: Case) -> None:
    """The proofs hold, and it is not understood: that ends in `MalformedCallback`, with an identity to park it under."""
    provider = make(case)
    proved = prove(provider, case.request, case.received_at)
    assert proved.proofs == set(case.expected["parked"]["proofs"])
    with pytest.raises(MalformedCallback) as caught:
        provider.normalize(proved)
    assert type(caught.value) is MalformedCallback
    assert provider.fallback_key(proved) == case.expected["parked"]["fallback_key"]


def check_rejected(case: Case) -> None:
    """It is refused where expected, by the expected error, naming the setting to look at."""
    expected = case.expected["rejected"]
    provider = make(case)
    head, body = case.request.head(case.received_at), MemoryBody(case.request.body)
    if expected["at"] == "admit":
        with pytest.raises(CallbackRejected) as caught:
            provider.admit(head)
    else:
        admission = provider.admit(head)
        with pytest.raises(CallbackRejected) as caught:
            provider.verify(admission, body)
    assert type(caught.value).__name__ == expected["error"]
    assert caught.value.status == expected["status"]
    assert caught.value.setting == expected["setting"]


def check_same_twice(case: Case) -> None:
    """Sent again half a minute later, it has the same identity: that is what makes it a duplicate."""
    provider = make(case)
    first = prove(provider, case.request, case.received_at)
    again = structs.replace(first, head=structs.replace(first.head, received_at=case.received_at + 30_000))
    drafts = [provider.normalize(callback) for callback in (first, again)]
    assert len({(draft.idempotency_key, draft.second_key) for draft in drafts}) == 1
    assert 0 < len(drafts[0].idempotency_key) <= 200


def refused_variants(case: Case) -> Iterator[tuple[str, Request]]:
    """Yield what nobody may get through with: each proof header twice, or the callback with another source's token."""
    for name in proof_headers(case) - {"dg-project-id"}:  # it names the account, and proves nothing
        if any(key.lower() == name for key, _ in case.request.headers):
            yield f"{name} twice", case.request.with_header(name, case.request.value(name))
    foreign = tokens().issue("some-other-source")
    yield "a foreign token", replace(case.request, target=f"/callbacks/{case.request.source}/{foreign}")
    yield "a made-up token", replace(case.request, target=f"/callbacks/{case.request.source}/abc")


def check_variants_refused(case: Case) -> None:
    """An accepted callback is refused with a doubled proof header, and with a token that is not this source's."""
    provider = make(case)
    for what, request in refused_variants(case):
        try:
            provider.admit(request.head(case.received_at))
        except CallbackRejected:
            continue
        pytest.fail(f"admitted with {what}")


def check_unproved(case: Case) -> None:
    """An accepted callback without its token and without any proof header is refused, unless the body alone proves it."""
    provider = make(case)
    request = replace(case.request, target=f"/callbacks/{case.request.source}")
    for name in proof_headers(case):
        request = request.without(name)
    if request.headers == case.request.headers:
        request = replace(request, body=b"{}")
    with pytest.raises(CallbackRejected):
        prove(provider, request, case.received_at)


def check_keeps_secrets(case: Case) -> None:
    """No configured secret, and no token, is in what is kept or said of the callback."""
    provider = make(case)
    fields = adapters()[case.provider].Settings.model_fields
    secret = {name for name, field in fields.items() if "SecretStr" in repr(field.annotation)}
    values = [value for name, value in case.settings.items() if name in secret]
    secrets = [text for value in values for text in texts(value) if len(text) >= 8]
    secrets += [case.request.token] if case.request.token else []
    try:
        draft = provider.normalize(prove(provider, case.request, case.received_at))
    except (CallbackRejected, MalformedCallback) as error:
        told = repr(error) + error.message + getattr(error, "setting", "")
    else:
        told = repr(draft)
    assert not [secret for secret in secrets if secret in told]


def texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [text for item in value for text in texts(item)] if isinstance(value, list) else []
