"""Secrets, callback tokens and links that still work: taken out of whatever is kept, by every road and in every spelling."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from receiver.core.callback import Head, MemoryBody, VerifiedCallback
from receiver.core.redaction import Redactor
from receiver.core.tokens import CallbackTokens, ObjectLinks
from receiver.providers import deapi, deepgram, playht
from receiver.providers.toolkit import redacted, shown, unsigned, unsigned_bytes
from tests.support.callbacks import NOW, deapi_head, deapi_source, deepgram_head, deepgram_source
from tests.support.golden import source_settings, tokens

PLAYHT_KEY = "ak-unit-0123456789abcdef"
SECRET = "s3cret/of-ours"
SIGNED = "X-Amz-Signature=c0ffee00c0ffee00"
Source = deepgram.DeepgramProvider | deapi.DeapiProvider | playht.PlayhtProvider


# ---------------------------------------------------------------- callback tokens

OURS = CallbackTokens(["a-secret-of-16-characters"])
ISSUED = [
    OURS.issue("a"),
    OURS.issue("deepgram-of-the-second-account-in-frankfurt"),
    OURS.issue("dg", ref="order-4711", format={"product": "speak", "encoding": "mulaw"}),
    OURS.issue("da", ref="ä" * 200, expires_at=NOW, job_secret=True, expect_by=NOW),
]


def _spelled(token: str) -> str:
    return "".join(f"\\u{ord(char):04X}" for char in token)


@pytest.mark.parametrize("token", ISSUED, ids=len)
@pytest.mark.parametrize(
    "around",
    ["%s", "https://h.example.com/callbacks/dg/%s", r"\/callbacks\/dg\/%s", "%%2Fcallbacks%%2Fdg%%2F%s?x"],
)
def test_every_token_of_ours_is_known_by_its_shape(token: str, around: str) -> None:
    wanted = (around % "[redacted]").encode()
    for spelled in (token, token.upper(), _spelled(token), token[:-20]):
        assert Redactor(()).clean((around % spelled).encode()) == wanted


@pytest.mark.parametrize("token", ISSUED, ids=len)
def test_a_token_that_is_cleaned_piece_by_piece_leaves_nothing(token: str) -> None:
    redactor = Redactor(())
    for cut in range(1, len(token)):
        assert redactor.clean(redactor.clean(token[:cut].encode()) + token[cut:].encode()) == b"[redacted]"


def test_nothing_else_is_taken_for_a_token() -> None:
    """Neither links to stored objects, nor what only begins like a token, nor base32 of something else."""
    link = ObjectLinks(["a-secret-of-16-characters"]).issue(
        "k.mp3", content_type="audio/mpeg", expires_at=NOW
    )
    for other in (link, ISSUED[0][:40], ISSUED[0][1:], "a" * 200, "/callbacks/dg/" + "f" * 120):
        assert Redactor(()).clean(other.encode()) == other.encode()


def test_a_document_without_a_token_keeps_its_bytes() -> None:
    raw = rb'{ "a": "\u00e4 100 %41 pmrhgir2e" }'
    assert Redactor([SECRET]).clean_document(json.loads(raw), raw) is raw


def _playht_source() -> playht.PlayhtProvider:
    settings = source_settings("ph", {"provider": "playht", "api_key": PLAYHT_KEY, "user_id": "u123456"})
    return playht.PlayhtProvider.create(settings, tokens())


def _proved(source: Source, body: bytes, token: str) -> VerifiedCallback:
    if isinstance(source, deapi.DeapiProvider):
        head = deapi_head(body, token=token)
    elif isinstance(source, deepgram.DeepgramProvider):
        kind = "application/json" if body.startswith(b"{") else "text/plain"
        head = replace(deepgram_head(kind), token=token)
    else:
        headers = (("secret-key", PLAYHT_KEY),)
        head = Head(source="ph", method="POST", headers=headers, token=token, received_at=NOW)
    return source.verify(source.admit(head), MemoryBody(body))


ECHOES: list[tuple[Source, Any]] = [
    (deepgram_source(), "could not reach %s"),
    (deepgram_source(), {"err_code": "CALLBACK", "err_msg": "could not reach %s"}),
    (deepgram_source(), {"results": {"channels": []}, "metadata": {"extra": {"callback": "%s"}}}),
    (
        deapi_source(),
        {"event": "job.failed", "data": {"job_request_id": "j1", "error_message": "no answer from %s"}},
    ),
    (_playht_source(), {"id": "j1", "status": "error", "error_message": "no answer from %s"}),
]


@pytest.mark.parametrize(("source", "told"), ECHOES, ids=lambda value: getattr(value, "provider", None))
@pytest.mark.parametrize("slash", ["/", "\\/", "%2F"])
def test_a_token_is_told_by_no_road(source: Source, told: Any, slash: str) -> None:
    """Understood at once, understood from the journal (which keeps no token), or parked."""
    token = tokens().issue(source.source)
    text = told if isinstance(told, str) else json.dumps(told)
    body = text.replace("%s", f"https://h.example.com/callbacks/x/{token}".replace("/", slash)).encode()
    direct = _proved(source, body, token)
    journal = replace(direct, head=replace(direct.head, token=None))
    drafts = [source.normalize(callback) for callback in (direct, journal)]
    assert drafts[0] == drafts[1]
    for kept in (repr(drafts[1]), source.redact(body).decode(), source.redact(body[:-1]).decode()):
        assert token not in kept
        assert "[redacted]" in kept


# ---------------------------------------------------------------- links that still work


@pytest.mark.parametrize("source", [deapi_source(), _playht_source()], ids=lambda source: source.provider)
@pytest.mark.parametrize(
    "body",
    [
        b'{"url":"https://r.example.com/a.mp3?%b","id":7}',
        b'{"url":"https:\\/\\/r.example.com\\/a.mp3?%b\\u0026x=1","id":7}',
        b'{"url":"https:\\/\\/r.example.com\\/a.mp3\\u003F%b","id":7}',
        b'{"url":"\\u0068ttps://r.example.com/a.mp3?%b"}',
        b'{"a":"HTTPS://r.example.com/a.mp3?%b","a":"the second of its name"}',
        b'{"https://r.example.com/a.mp3?%b":1}',
        b'["https://r.example.com/a.mp3?%b"]',
        b"{'url': 'https://r.example.com/a.mp3?%b'}",
        b'{"url":"https:\\/\\/r.example.com\\/a.mp3?x=1\\u0026%b',
        b"[" * 500 + b'"https://r.example.com/a.mp3?%b"' + b"]" * 500,
        b'{"n":123456789,"url":"https://r.example.com/a.mp3?%b \xff"}',
        b"see https://r.example.com/a.mp3?%b",
    ],
)
def test_a_parked_callback_keeps_no_link_that_still_works(source: Source, body: bytes) -> None:
    kept = source.redact(body.replace(b"%b", SIGNED.encode()))
    assert b"Signature" not in kept
    assert b"?[redacted]" in kept


def test_what_is_json_stays_json_and_keeps_what_stands_beside_a_link() -> None:
    said = 'see "https://r.example.com/a?x=1&y=\U0001f600", https://r.example.com/b?\\n and \nhttp://c?d=e'
    document = {"said": said, "plain": "https://r.example.com/c", "asks": "is it https? yes", "n": 1.5}
    raw = json.dumps(document).replace("/", "\\/").encode()
    for kept in (unsigned_bytes(raw), redacted(Redactor(()), raw)):
        found = json.loads(kept)
        assert {**found, "said": ""} == {**document, "said": ""}
        assert found["said"].startswith(
            'see "https://r.example.com/a?[redacted]", https://r.example.com/b?[redacted]'
        )
        assert found["said"].endswith("and \nhttp://c?[redacted]")


def test_what_has_no_such_link_stays_as_it_is() -> None:
    document = {"a": ["https://r.example.com/x", "is it https? yes", 7, None]}
    assert unsigned(document) is document
    raw = rb'{ "a": "https:\/\/r.example.com\/x", "b": "\u00e4?" }'
    assert redacted(Redactor([SECRET]), raw) == raw


def test_a_secret_that_is_a_number_costs_no_error() -> None:
    """Taken out of a number, it leaves no JSON."""
    assert (
        redacted(Redactor(["1234567"]), b'{"n":12345678,"u":"http://a?b"}')
        == b'{"n":[redacted]8,"u":"http://a?[redacted]"}'
    )


# ---------------------------------------------------------------- spellings and cuts


@pytest.mark.parametrize(
    "spelled",
    [
        "s3cret%2Fof-ours",
        "s3cret%2fof%2Dours",
        "%733cret/of-our%73",
        r"s3cret\/of-ours",
        r"\u00733cret%2Fof-ours",
    ],
)
def test_a_secret_is_found_as_a_url_spells_it(spelled: str) -> None:
    redactor, raw = Redactor([SECRET]), f'{{"a":"https://u:{spelled}@h/"}}'.encode()
    wanted = b'{"a":"https://u:[redacted]@h/"}'
    assert redactor.clean(raw) == wanted
    assert redactor.clean_document(json.loads(raw), raw) == wanted


@pytest.mark.parametrize("left", range(6, len(SECRET)))
def test_a_secret_that_the_end_cuts_through_goes_as_well(left: int) -> None:
    redactor = Redactor([SECRET, "another-one", "aaaaaaaaaa"])
    assert redactor.clean_start(f"was {SECRET[:left]}".encode()) == b"was [redacted]"
    assert redactor.clean_start(b"was a" + b"a" * (left % 4 + 5)) == b"was [redacted]"
    assert (
        redactor.clean_start(f"{SECRET} was {SECRET[:left]}.".encode())
        == f"[redacted] was {SECRET[:left]}.".encode()
    )


def test_words_are_cut_when_nothing_is_left_to_hide() -> None:
    redactor = Redactor([SECRET])
    assert shown(redactor, "x" * 55 + SECRET, 60) == "x" * 55 + "[reda"
    assert (
        shown(redactor, f"s3cret\u200b/of-ours at https://h/x?{SIGNED}", 60)
        == "[redacted] at https://h/x?[redacted]"
    )
