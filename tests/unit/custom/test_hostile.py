"""What a stranger may try on a source without code: each ends in a refusal or a parked callback, soon and without a traceback."""

from __future__ import annotations

import base64
import hmac
import json
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from receiver.core.event import EventDraft
from tests.support.sources import EVENT, NOW, SECRET, head, source, verdict

JWT = {"kind": "jwt", "header": "x-token", "algorithms": ["HS256"]}
KEY = rsa.generate_private_key(65537, 2048)


def hmac_of(message: str, **more: Any) -> dict[str, Any]:
    return {"kind": "hmac", "header": "x-signature", "no_clock": True, "message": message, **more}


def signature(message: bytes, secret: str = SECRET) -> str:
    return hmac.digest(secret.encode(), message, "sha256").hex()


# ---------------------------------------------------------------- templates


@pytest.mark.parametrize(
    "variable",
    ["header:x-id", "query:id", "field:a.b", "field:list[3]", "field:text[0]", "form:id", "element:k"],
)
def test_a_message_with_a_variable_that_is_missing_is_refused_and_not_signed_as_empty(variable: str) -> None:
    made = source(proof=[hmac_of("{body}{" + variable + "}")])
    body = b'{"id":"1","list":[1],"text":"abc"}'
    told = verdict(made, head(("x-signature", signature(body))), body)
    assert isinstance(told, str)
    assert told.startswith("refused: ")


@pytest.mark.parametrize("place", ["list", "object", "deep.er"])
def test_a_value_that_is_no_plain_one_is_missing_in_a_message(place: str) -> None:
    made = source(proof=[hmac_of("{field:" + place + "}")])
    body = json.dumps({"id": "1", "list": ["a"], "object": {"a": 1}, "deep": "x"}).encode()
    for message in (b"", b"a", b"['a']", b'["a"]', b"None", b"null"):
        assert str(verdict(made, head(("x-signature", signature(message))), body)).startswith("refused: ")


@pytest.mark.parametrize(
    "date", ["Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "Mon, 01 Jan 2020 00:00:00 +99999999999"]
)
def test_a_date_beyond_all_calendars_is_no_time(date: str) -> None:
    stamp = {"from": "header:x-date"}
    made = source(
        proof=[{"kind": "hmac", "header": "x-signature", "message": "{timestamp}{body}", "timestamp": stamp}]
    )
    told = verdict(made, head(("x-signature", signature(b"{}")), ("x-date", date)), b"{}")
    assert str(told).startswith("refused: ")


def test_a_header_or_a_field_that_comes_twice_is_refused() -> None:
    made = source(proof=[hmac_of("{header:x-id}{query:n}{body}")])
    body = b'{"id":"1"}'
    good = ("x-signature", signature(b"1" + b"2" + body))
    assert isinstance(verdict(made, head(good, ("x-id", "1"), query="n=2"), body), EventDraft)
    for lines, query in (
        ([good, good, ("x-id", "1")], "n=2"),
        ([good, ("x-id", "1"), ("x-id", "1")], "n=2"),
        ([good, ("x-id", "1"), ("x-id", "3")], "n=2"),
        ([good, ("x-id", "1")], "n=2&n=2"),
    ):
        assert str(verdict(made, head(*lines, query=query), body)).startswith("refused: ")


# ---------------------------------------------------------------- tokens


def token(claims: dict[str, Any], sign: Any, **header: Any) -> str:
    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    text = f"{part(json.dumps(header).encode())}.{part(json.dumps(claims).encode())}"
    return f"{text}.{part(sign(text.encode()))}"


def shared(text: bytes) -> bytes:
    return hmac.digest(SECRET.encode(), text, "sha256")


CLAIMS = {"exp": NOW // 1000 + 60}
PUBLIC = KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


@pytest.mark.parametrize(
    ("sign", "header", "claims"),
    [
        (lambda _: b"", {"alg": "none"}, CLAIMS),
        (lambda _: b"", {"alg": "None"}, CLAIMS),
        (shared, {"alg": "none"}, CLAIMS),
        (shared, {"alg": "HS512"}, CLAIMS),
        (shared, {"alg": ["HS256"]}, CLAIMS),
        (shared, {}, CLAIMS),
        (shared, {"alg": "HS256", "crit": ["b64"], "b64": False}, CLAIMS),
        (lambda text: hmac.digest(b"", text, "sha256"), {"alg": "HS256"}, CLAIMS),
        (lambda text: hmac.digest(PUBLIC, text, "sha256"), {"alg": "HS256"}, CLAIMS),
        (shared, {"alg": "HS256"}, {"exp": NOW // 1000 - 3600}),
        (shared, {"alg": "HS256"}, {"exp": NOW // 1000 + 60, "nbf": NOW // 1000 + 3600}),
        (shared, {"alg": "HS256"}, {"exp": "soon"}),
    ],
)
def test_a_token_that_is_unsigned_confused_or_out_of_time_is_refused(
    sign: Any, header: Any, claims: Any
) -> None:
    made = source(proof=[JWT])
    good = token(CLAIMS, shared, alg="HS256")
    assert isinstance(verdict(made, head(("x-token", good)), {"id": "1"}), EventDraft)
    told = verdict(made, head(("x-token", token(claims, sign, **header))), {"id": "1"})
    assert str(told).startswith("refused: the token in header:x-token")


@pytest.mark.parametrize("text", ["", ".", "..", "...", "a.b.c", "\xe9.\xe9.\xe9", "e30.e30.", "x" * 100_000])
def test_what_is_no_token_is_refused(text: str) -> None:
    told = verdict(source(proof=[JWT]), head(("x-token", text)), {"id": "1"})
    assert str(told).startswith("refused: the token in header:x-token")


@pytest.mark.parametrize(
    "wrong",
    [
        {"algorithms": ["HS256", "RS256"]},
        {"algorithms": ["HS256"], "jwks": "https://provider.example/keys"},
        {"algorithms": ["none"]},
        {"algorithms": []},
        {"algorithms": ["RS256"], "jwks": "http://provider.example/keys"},
    ],
)
def test_settings_that_would_let_tokens_be_confused_do_not_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="proof"):
        source(proof=[JWT | wrong])


# ---------------------------------------------------------------- bodies


def test_a_path_into_a_text_or_beyond_a_list_finds_nothing() -> None:
    for place in ("id[0]", "id.x", "list[1]", "list.x", "list[0][0]"):
        told = verdict(
            source(event={"family": "speech", "job": place}), head(), {"id": "abc", "list": ["abc"]}
        )
        assert told == f"parked: the job cannot be told: field:{place} is missing"


@pytest.mark.parametrize("kind", ["form", "query"])
def test_a_form_or_query_of_very_many_fields_is_refused_soon(kind: str) -> None:
    many = "&".join(f"f{number}=" for number in range(200_000))
    made = source(body=kind, proof=[{"kind": "same", "at": "query:key" if kind == "query" else "form:key"}])
    began = time.process_time()
    told = verdict(
        made, head(query=many if kind == "query" else ""), b"" if kind == "query" else many.encode()
    )
    assert told == "refused: the query or form has more than 1000 fields"
    assert time.process_time() - began < 1


def test_a_multipart_body_of_very_many_parts_is_refused_or_parked_soon() -> None:
    body = (
        b"".join(b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' for _ in range(50_000))
        + b"--b--\r\n"
    )
    made = source(body="multipart", event={"family": "speech", "job": "a"})
    began = time.process_time()
    told = verdict(made, head(("content-type", "multipart/form-data; boundary=b")), body)
    assert isinstance(told, str)
    assert time.process_time() - began < 1


def test_base64_that_is_longer_than_audio_may_be_is_not_decoded() -> None:
    made = source(result={"from": "base64", "at": "audio"}, max_audio_bytes=1000)
    told = verdict(made, head(), {"id": "1", "audio": "A" * 4_000})
    assert told == "parked: the base64 at field:audio is larger than max_audio_bytes"
    for wrong in ("AAA", "A A=", "\u00e9AAA", "====", "data:;base64,AAA"):
        assert verdict(made, head(), {"id": "1", "audio": wrong}) == "parked: field:audio is no base64"


@pytest.mark.parametrize("word", [".*", "(a+)+$", "completed|failed", "", "\0", "a" * 100_000])
def test_words_are_compared_as_text(word: str) -> None:
    made = source(event=EVENT | {"state": "s", "completed": ["(a+)+$x", ".*x"]})
    assert str(verdict(made, head(), {"id": "1", "s": word})).startswith("parked: the state")
