"""The console: how long a session lasts, how a body is shown, and that no template switches escaping off."""

from __future__ import annotations

from pathlib import Path

import pytest

from receiver.settings.model import ApiToken
from receiver.web.console import sessions as logins
from receiver.web.console.rendering import pretty
from receiver.web.console.sessions import Sessions

ADMIN = "admin-token-of-some-length"


def test_a_session_ends_with_its_time_its_idleness_its_token_and_a_forged_cookie(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1_000_000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    token = ApiToken.model_validate({"name": "ops", "secret": ADMIN, "scopes": ("read", "admin")})
    sessions = Sessions([token], ["a-secret-of-some-length"], None)
    session = sessions.by_token(ADMIN)
    assert session is not None
    cookie = sessions.cookie(session)
    assert sessions.read(cookie) == session
    assert sessions.read(cookie[:-2] + "xx") is None
    assert Sessions([token], ["another-secret-of-ours"], None).read(cookie) is None
    other = token.model_copy(
        update={"secret": ApiToken.model_validate({"name": "x", "secret": "other"}).secret}
    )
    assert Sessions([other], ["a-secret-of-some-length"], None).read(cookie) is None
    now[0] += logins.IDLE_SECONDS + 1
    assert sessions.read(cookie) is None
    fresh = sessions.cookie(session)
    assert sessions.read(fresh) is not None
    now[0] = 1_000_000.0 + logins.SESSION_SECONDS + 1
    assert sessions.read(sessions.cookie(session)) is None


def test_templates_switch_no_escaping_off() -> None:
    folder = Path(logins.__file__).parent / "templates"
    for path in folder.glob("*.html"):
        text = path.read_text("utf-8")
        assert "|safe" not in text.replace(" ", "")
        assert "autoescape" not in text
        assert "style=" not in text


def test_a_body_is_shown_as_json_as_text_or_in_hex() -> None:
    assert pretty(b'{"a":1.0}') == '{\n  "a": 1.0\n}'
    assert pretty("zwölf\u202e".encode()) == "zwölf‹U+202E›"
    assert pretty(b"\xff\x00" * 4000).startswith("ff 00 ff 00 ")
