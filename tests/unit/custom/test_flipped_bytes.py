"""Any flipped byte of what a recipe's proof covers is refused; where the body is not covered, the URL's token is demanded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

import pytest

from receiver.core.callback import MemoryBody
from receiver.core.errors import CallbackRejected
from receiver.providers.custom import CustomProvider
from receiver.providers.custom.language import CustomSettings, recipes
from receiver.providers.proofs.request import Reference
from receiver.providers.proofs.signatures import SignedProof
from receiver.settings.load import own_settings
from tests.support.golden import Case, Request, cases, tokens

CASES = {case.settings["recipe"]: case for case in cases("custom") if case.name.endswith("-completed")}
"""The example of each recipe."""


def options(case: Case) -> CustomSettings:
    made: CustomSettings = own_settings(CustomSettings, case.source)
    return made


COVERED = [name for name, case in CASES.items() if options(case).covered]


def is_refused(made: CustomProvider, case: Case, request: Request) -> bool:
    try:
        made.verify(made.admit(request.head(case.received_at)), MemoryBody(request.body))
    except CallbackRejected:
        return True
    return False


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def same(kind: str, first: bytes, second: bytes) -> bool:
    """Tell whether two bodies say the same: of a form its fields are signed, not how they are spelled."""
    if kind != "form":
        return False
    one, other = (parse_qsl(body.decode("latin-1"), keep_blank_values=True) for body in (first, second))
    return sorted(one) == sorted(other)


def test_each_recipe_has_an_example() -> None:
    assert set(CASES) == set(recipes())
    assert len(COVERED) >= 14


@pytest.mark.parametrize("name", COVERED)
def test_any_flipped_byte_of_the_body_is_refused(name: str) -> None:
    case = CASES[name]
    made = CustomProvider.create(case.source, tokens())
    assert not is_refused(made, case, case.request)
    body, kind = case.request.body, options(case).body
    for at in range(len(body)):
        changed = flipped(body, at)
        if not same(kind, body, changed):
            assert is_refused(made, case, replace(case.request, body=changed)), at
    for changed in (body + b"x", body[:-1], b""):
        assert is_refused(made, case, replace(case.request, body=changed))


@pytest.mark.parametrize("name", sorted(CASES))
def test_any_flipped_byte_of_a_signed_header_is_refused(name: str) -> None:
    """Ids and times that stand in headers of their own, where the message holds them."""
    case = CASES[name]
    made = CustomProvider.create(case.source, tokens())
    present = {key.lower() for key, _ in case.request.headers}
    for header in sorted(_signed_headers(options(case)) & present):
        value = case.request.value(header).encode()
        for at in range(len(value)):
            changed = case.request.without(header).with_header(header, flipped(value, at).decode("latin-1"))
            assert is_refused(made, case, changed), (header, at)


def _signed_headers(found: CustomSettings) -> set[str]:
    places: list[Any] = []
    for proof in found.proof:
        if isinstance(proof, SignedProof):
            places += proof.message.parts
            places += [proof.timestamp.from_] if proof.timestamp else []
    return {place.name for place in places if isinstance(place, Reference) and place.kind == "header"}


@pytest.mark.parametrize("name", sorted(set(CASES) - set(COVERED)))
def test_where_the_body_is_not_covered_the_token_is_demanded(name: str) -> None:
    case = CASES[name]
    assert options(case).token_required
    made = CustomProvider.create(case.source, tokens())
    bare = replace(case.request, target=f"/callbacks/{name}?{case.request.target.partition('?')[2]}")
    assert is_refused(made, case, bare)
