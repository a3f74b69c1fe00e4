"""What every store must do about short callback tokens. The fixture `store` is given elsewhere."""

from __future__ import annotations

from receiver.core.callback import TokenClaims
from receiver.core.retention import Erasure, Prune, Subject, SubjectKind, Walk
from receiver.storage.store.store import Store
from tests.contract.store_suite import T0

CLAIMS = TokenClaims(
    source="speech",
    token_id="00" * 10,
    ref="order-ä",
    format={"encoding": "mulaw", "sample_rate": 8000},
    expires_at=T0 + 5,
    expect_by=T0 + 3,
)


class TokenSuite:
    """What a short token stands for is kept until it expires."""

    async def test_what_a_token_stands_for_is_read_again(self, store: Store) -> None:
        bare = TokenClaims(source="speech", token_id="01" * 10, expires_at=T0)
        for claims in (CLAIMS, bare):
            await store.add_token(claims)
            assert await store.token_claims(claims) == claims
        assert await store.token_claims(TokenClaims(source="speech", token_id="02" * 10)) is None

    async def test_what_has_expired_goes_and_what_has_not_stays(self, store: Store) -> None:
        await store.add_token(CLAIMS)
        for now, gone in ((T0 + 5, 0), (T0 + 6, 1)):
            assert (await store.prune(Prune(walk=Walk.TOKENS, before=now))).count == gone
        assert await store.token_claims(CLAIMS) is None

    async def test_an_erased_ref_is_in_no_token_and_the_token_stays(self, store: Store) -> None:
        await store.add_token(CLAIMS)
        for key, ref in (("another", "order-ä"), ("order-ä", None)):
            subject = Subject(kind=SubjectKind.REF, key=key)
            await store.erase(Erasure(subject=subject, tombstone_id="tmb_1", digest="d", now=T0))
            found = await store.token_claims(CLAIMS)
            assert found is not None
            assert found.ref == ref
