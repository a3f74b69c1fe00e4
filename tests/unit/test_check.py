"""The numbered findings of `receiver check`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from receiver.app.check import all_codes, check, check_file
from receiver.core.errors import Finding
from receiver.core.webhook import new_webhook_secret
from receiver.settings.load import parse

SECRET = new_webhook_secret()
GOOD = f"""
public_url = "https://hooks.example.com"
[sources.deepgram]
provider = "deepgram"
basic = ["dg:correct-horse"]
[destinations.app]
url = "https://app.example.com/hooks"
secrets = ["{SECRET}"]
"""


def findings(text: str, tmp_path: Path) -> list[Finding]:
    return check(parse(f"data = '{tmp_path}/data'\n{text}", {}, lambda _: ""))


def codes(text: str, tmp_path: Path) -> list[str]:
    return [finding.code for finding in findings(text, tmp_path)]


def test_good_settings_have_no_finding(tmp_path: Path) -> None:
    assert findings(GOOD, tmp_path) == []
    assert not (tmp_path / "data").exists(), "a check makes nothing"


def swapped(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


APP = '"https://app.example.com/hooks"'
HOOKS = '"https://hooks.example.com"'
KEY = 'api_key = "0123456789abcdef"\n'
DEAPI = f'[sources.deapi]\nprovider = "deapi"\nsecrets = ["0123456789abcdef"]\n{KEY}'
DEEPDUB = f'[sources.deepdub]\nprovider = "deepdub"\n{KEY}'
PLAYHT = f'[sources.playht]\nprovider = "playht"\nuser_id = "somebody"\n{KEY}'
TOKENS = '[tokens]\nsecrets = ["token-secret-0123456789"]\n'
POSTGRES = '[store]\nurl = "postgresql://app:secret-word@db.example.com/receiver"\n'
S3 = '[blobs]\nurl = "s3://bucket/prefix"\nregion = "us-east-1"\n'
SUBMIT = """
[sources.speech]
provider = "deepgram"
require_token = true
api_key = "dg-0123456789abcdef"
submit = true
[submit]
listen = "127.0.0.1:8090"
[[submit.tokens]]
name = "crm"
secrets = ["rcvsub0123456789012345678901234567890"]
sources = ["speech"]
"""
SNS = '[sources.sns]\nprovider = "sns"\n'
TOPIC = 'topics = ["arn:aws:sns:us-east-1:123456789012:speech"]\n'
BUCKET_KEY = 'access_key_id = "AKIA0123456789"\nsecret_access_key = "0123456789abcdef"\n'
PUBSUB = '[sources.push]\nprovider = "pubsub"\naudience = "a"\n'
CASES: dict[str, tuple[str, str]] = {
    "E501": (GOOD + TOKENS + SNS, "sources.sns.topics"),
    "E504": (GOOD + TOKENS + SNS + 'topics = ["speech"]\n' + BUCKET_KEY, "sources.sns.topics"),
    "W501": (GOOD + TOKENS + SNS + TOPIC, "sources.sns.access_key_id"),
    "E601": (GOOD + TOKENS + PUBSUB, "sources.push.service_account"),
    "E604": (
        GOOD + TOKENS + PUBSUB + 'service_account = "x@y.iam.gserviceaccount.com"\nnonsense = 1\n',
        "sources.push.nonsense",
    ),
    "E002": (swapped('provider = "deepgram"', 'provider = "deepgam"'), "sources.deepgram.provider"),
    "E003": (swapped(HOOKS, '"hooks.example.com"'), "public_url"),
    "E004": (swapped(HOOKS, '"https://hooks.example.com:9000"'), "public_url"),
    "E005": (swapped(HOOKS, '"https://my_hooks.example.com"'), "public_url"),
    "E006": (
        swapped(HOOKS, '"http://hooks.example.com"')
        + '[sources.deapi]\nprovider = "deapi"\nsecrets = ["0123456789abcdef"]',
        "public_url",
    ),
    "E008": (GOOD + '[store]\nurl = "mysql://db"', "store.url"),
    "E009": (GOOD + 'ca_file = "/nowhere/ca.pem"', "destinations.app.ca_file"),
    "E101": (swapped('basic = ["dg:correct-horse"]', ""), "sources.deepgram.basic"),
    "E102": (
        swapped('provider = "deepgram"', 'provider = "deepgram"\nrequire_dg_token = true'),
        "sources.deepgram.dg_token",
    ),
    "E103": (
        swapped('provider = "deepgram"', 'provider = "deepgram"\nrequire_callback_secret = true'),
        "sources.deepgram.callback_secrets",
    ),
    "E104": (swapped('basic = ["dg:correct-horse"]', 'basic = ["no colon"]'), "sources.deepgram.basic"),
    "E201": (GOOD + '[sources.deapi]\nprovider = "deapi"', "sources.deapi.secrets"),
    "E204": (GOOD + '[sources.deapi]\nprovider = "deapi"\nsecret = "x"', "sources.deapi.secret"),
    "E010": (
        swapped('provider = "deepgram"', 'provider = "deepgram"\nca_file = "/nowhere/ca.pem"'),
        "sources.deepgram.ca_file",
    ),
    "E019": (GOOD + POSTGRES + S3, "tokens.secrets"),
    "E021": (GOOD + S3 + 'sse_kms_key_id = "alias/audio"', "blobs.sse_kms_key_id"),
    "E022": (GOOD + '[blobs]\nkey = "{source}/{name}.mp3"', "blobs.key"),
    "E023": (
        GOOD + SUBMIT + '[sources.other]\nprovider = "deepgram"\nrequire_token = true\nsubmit = true',
        "sources.other.submit",
    ),
    "E024": (GOOD + SUBMIT.replace('["speech"]', '["nobody"]'), "submit.tokens[0].sources"),
    "E301": (GOOD + '[sources.deepdub]\nprovider = "deepdub"', "sources.deepdub.api_key"),
    "E304": (GOOD + DEEPDUB + 'region = "moon"', "sources.deepdub.region"),
    "E401": (GOOD + '[sources.playht]\nprovider = "playht"', "sources.playht.api_key"),
    "E404": (GOOD + PLAYHT + 'mode = "guess"', "sources.playht.mode"),
    "W001": (swapped(f"public_url = {HOOKS}", ""), "public_url"),
    "W002": (GOOD.partition("[destinations.app]")[0], "destinations"),
    "W003": (swapped(f'secrets = ["{SECRET}"]', ""), "destinations.app.secrets"),
    "W004": (swapped(APP, '"http://app.example.com/hooks"'), "destinations.app.url"),
    "W005": (swapped(APP, '"https://10.0.0.7/hooks"'), "destinations.app.allow"),
    "W007": (swapped(HOOKS, '"http://hooks.example.com"'), "public_url"),
    "W008": (swapped(HOOKS, '"http://127.0.0.1:8080"'), "public_url"),
    "W009": (
        f'public_url = {HOOKS}\n[destinations.app]\nurl = {APP}\nsecrets = ["{SECRET}"]',
        "sources",
    ),
    "W010": (GOOD + 'events = ["speach.*"]', "destinations.app.events"),
    "W026": (GOOD + 'events = ["destination.*"]', "sources.deepgram"),
    "W011": (GOOD + '[[api.tokens]]\nname = "app"\nsecret = "guess-me"', "api.tokens"),
    "W012": (GOOD + DEEPDUB + 'base_url = "http://127.0.0.1:9901/api/v1"', "sources.deepdub.allow"),
    "W024": (GOOD + SUBMIT.replace("listen", "url").replace('"127', '"http://127'), "submit.listen"),
    "W015": (GOOD + POSTGRES + TOKENS, "blobs.url"),
    "W016": (GOOD + S3 + 'endpoint_url = "http://s3.example.com:8333"', "blobs.endpoint_url"),
    "W019": (GOOD + '[retention]\nevents = "30d"', "retention.events"),
    "W022": (GOOD + TOKENS.replace('"]', '", "token-secret-9876543210"]'), "tokens.secrets"),
    "W101": (
        swapped('basic = ["dg:correct-horse"]', 'dg_token = "id"\nrequire_dg_token = true'),
        "sources.deepgram.dg_token",
    ),
    "W102": (
        swapped('basic = ["dg:correct-horse"]', 'callback_secrets = ["s"]'),
        "sources.deepgram.callback_secrets",
    ),
    "W103": (swapped("dg:correct-horse", "dg:correct_horse"), "sources.deepgram.basic"),
    "W201": (
        GOOD + '[sources.deapi]\nprovider = "deapi"\nrequire_token = true',
        "sources.deapi.secrets",
    ),
    "W202": (GOOD + '[sources.deapi]\nprovider = "deapi"\nsecrets = ["short"]', "sources.deapi.secrets"),
    "W203": (GOOD + DEAPI + 'api_url = "http://api.deapi.ai"', "sources.deapi.api_url"),
    "W301": (GOOD + DEEPDUB + 'base_url = "http://restapi.deepdub.ai/api/v1"', "sources.deepdub.base_url"),
    "W401": (
        GOOD + '[sources.playht]\nprovider = "playht"\napi_key = "0123456789abcdef"',
        "sources.playht.user_id",
    ),
    "W402": (GOOD + PLAYHT + 'base_url = "http://api.play.ht/api/v2"', "sources.playht.base_url"),
    "W403": (GOOD + PLAYHT + 'result_hosts = ["*"]', "sources.playht.result_hosts"),
}


ASKED = {
    "E012",
    "E013",
    "E014",
    "E015",
    "E016",
    "E017",
    "E018",
    "E020",
    "W013",
    "W014",
    "W017",
    "W018",
    "W020",
}
"""What only the database or the bucket can tell: tests/flow/test_cli_check.py."""


@pytest.mark.parametrize("code", CASES)
def test_each_mistake_has_its_code_and_names_its_setting(code: str, tmp_path: Path) -> None:
    text, where = CASES[code]
    found = findings(text, tmp_path)
    assert [(f.code, f.where) for f in found] == [(code, where)]
    assert not found[0].message.startswith(f"{where}: "), "the setting stands beside it already"


def test_every_code_there_is_has_a_case() -> None:
    elsewhere = {"E001", "E007", "E011", "W006", "W021", "W023", "W025"}
    elsewhere |= ASKED | {
        code for code in all_codes() if code[1] == "9"
    }  # the custom provider's: tests/unit/custom
    assert set(CASES) | elsewhere == set(all_codes())


@pytest.mark.parametrize("source", [DEAPI, DEEPDUB, PLAYHT])
def test_good_sources_that_are_asked_have_no_finding(source: str, tmp_path: Path) -> None:
    assert codes(GOOD + source, tmp_path) == []


@pytest.mark.parametrize("setting", ["api_url", "base_url"])
def test_a_private_address_that_is_allowed_may_be_asked(setting: str, tmp_path: Path) -> None:
    source = DEAPI if setting == "api_url" else DEEPDUB
    allowed = f'{setting} = "http://127.0.0.1:9901"\nallow = ["127.0.0.0/8"]'
    assert codes(GOOD + source + allowed, tmp_path) == []


def test_a_result_at_a_private_address_needs_leave_too(tmp_path: Path) -> None:
    source = """[sources.thin]
        provider = "custom"
        api_key = "key-0123456789"
        result.speech = {from = "get", url = "http://127.0.0.1:9901/{job}", hosts = ["127.0.0.1"], auth = "bearer"}
        """
    assert codes(GOOD + source, tmp_path) == ["W012"]
    assert codes(GOOD + source + 'allow = ["127.0.0.0/8"]', tmp_path) == []


def test_an_address_that_is_no_url_is_one_finding(tmp_path: Path) -> None:
    assert codes(GOOD + DEEPDUB + 'base_url = "http://[::1"', tmp_path) == ["E304"]


def test_good_settings_of_many_machines_have_no_finding(tmp_path: Path) -> None:
    more = 'endpoint_url = "http://127.0.0.1:8333"\nsse = "aws:kms"\nsse_kms_key_id = "alias/audio"\n'
    assert codes(GOOD + POSTGRES + TOKENS + S3 + more, tmp_path) == []


@pytest.mark.parametrize(
    ("setting", "code", "where"),
    [
        ('[store]\nurl = "postgresql://app:secret-word@[::1/db"\n', "E008", "store.url"),
        ('[blobs]\nurl = "s3://"\n', "E008", "blobs.url"),
        ('[blobs]\nurl = "gs://bucket"\n', "E008", "blobs.url"),
        ('[store]\nurl = "sqlite:///:memory:"\n', "E008", "store.url"),
        (S3 + 'ca_file = "/nowhere/ca.pem"\n', "E021", "blobs.ca_file"),
    ],
)
def test_a_place_of_many_machines_that_cannot_be_used_is_found(
    setting: str, code: str, where: str, tmp_path: Path
) -> None:
    more = "" if "[blobs]" in setting else S3
    found = findings(GOOD + TOKENS + more + setting, tmp_path)
    assert (code, where) in [(f.code, f.where) for f in found]
    assert not any(f.message.startswith(f"{f.where}: ") for f in found)
    assert "secret-word" not in repr(found)


@pytest.mark.parametrize(
    ("package", "settings", "extra"),
    [
        ("psycopg", POSTGRES + S3, "postgres"),
        ("boto3", S3, "s3"),
        ("botocore", '[destinations.q]\nkind = "sns"\ntopic = "arn:aws:sns:eu-west-3:1:t"\n', "aws"),
        ("nats", '[destinations.q]\nkind = "nats"\nurl = "nats://n"\nsubject = "s"\n', "nats"),
        ("aio_pika", '[destinations.q]\nkind = "rabbitmq"\nurl = "amqp://r"\nqueue = "q"\n', "rabbitmq"),
    ],
)
def test_an_extra_that_is_not_installed_is_named(
    package: str, settings: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiver.app.check.find_spec", lambda name: None if name == package else object())
    [found] = findings(GOOD + TOKENS + settings, tmp_path)
    by_path = f"(pip install '/path/to/receiver[{extra}]')"
    assert (found.code, found.fix) == ("E011", f"install receiver with its extra [{extra}] {by_path}")


def test_findings_tell_no_secret(tmp_path: Path) -> None:
    for text, _ in CASES.values():
        said = repr(findings(text, tmp_path))
        for secret in (
            SECRET,
            "correct-horse",
            "correct_horse",
            "0123456789abcdef",
            "no colon",
            "guess-me",
            "secret-word",
        ):
            assert secret not in said


def test_what_stops_serve_comes_first(tmp_path: Path) -> None:
    text = swapped('basic = ["dg:correct-horse"]', "").replace(f'secrets = ["{SECRET}"]', "")
    assert codes(text, tmp_path) == ["E101", "W003"]


def test_a_data_folder_that_cannot_be_made_is_found(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file is in the way")
    found = findings(GOOD, tmp_path)
    assert [finding.code for finding in found] == ["E007"]
    assert str(tmp_path / "data") in found[0].message


def test_a_data_folder_in_which_nothing_can_be_made_is_found_whatever_its_mode_says() -> None:
    found = check(parse(f"data = '/proc/receiver'\n{GOOD}", {}, lambda _: ""))
    assert [(finding.code, finding.where) for finding in found] == [("E007", "data")]
    assert "in /proc: " in found[0].message


def test_looking_whether_a_folder_can_be_written_leaves_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert findings(GOOD, tmp_path) == []
    assert list((tmp_path / "data").iterdir()) == []


def test_a_disk_that_is_nearly_full_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.statvfs(tmp_path)
    full = os.statvfs_result((found.f_bsize, 4096, 1_000_000, 10_000, 10_000, *tuple(found)[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    told = findings(GOOD, tmp_path)
    assert [(one.code, one.where) for one in told] == [("W023", "data")], "once for one disk"
    assert "only 39 MiB are free" in told[0].message


@pytest.mark.parametrize(("audio", "expected"), [("30d", []), ("4w", []), ("31d", ["W019"]), ("never", [])])
def test_an_age_of_events_that_audio_overrules_is_found(
    audio: str, expected: list[str], tmp_path: Path
) -> None:
    """`never` leaves audio to the bucket's own rules, and events go as they are told."""
    text = f'[retention]\nevents = "30d"\naudio = "{audio}"'
    assert codes(GOOD + text, tmp_path) == expected


@pytest.mark.parametrize(
    "setting",
    ['data = ["transcript", "audio.secs"]', 'where = {"provider" = "x", "audio.duration" = {min = 1}}'],
)
def test_a_field_that_no_event_has_is_found(setting: str, tmp_path: Path) -> None:
    (found,) = findings(GOOD + setting, tmp_path)
    assert (found.code, found.where) == ("W010", f"destinations.app.{setting.partition(' ')[0]}")
    assert "audio." in found.message


def test_fields_of_the_provider_may_be_asked_for(tmp_path: Path) -> None:
    assert codes(GOOD + 'data = ["provider_data.request_id", "audio.url"]', tmp_path) == []


@pytest.mark.parametrize("pattern", ["deapi", "deep?", "x*"])
def test_a_destination_that_waits_for_no_source_is_found(pattern: str, tmp_path: Path) -> None:
    assert codes(GOOD + f'sources = ["{pattern}"]', tmp_path) == ["W010"]


def test_an_allowed_private_destination_is_fine_without_tls(tmp_path: Path) -> None:
    text = swapped(APP, '"http://10.0.0.7/hooks"') + 'allow = ["10.0.0.0/8"]'
    assert codes(text, tmp_path) == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("port = ", "TOML"),
        ("[server]\nprt = 1", "server.prt"),
        ("[server]\nport = 99999", "server.port"),
        ('[destinations.app]\nurl = "https://a"\nretry = "often"', "retry"),
        ("[sources.my_source]\nprovider = 'deepgram'", "my_source"),
        ('[sources.deepgram]\nbasic = ["dg:env:UNSET"]\nprovider = "deepgram"', "UNSET"),
    ],
)
def test_unreadable_settings_are_one_finding_that_names_the_setting(
    text: str, named: str, tmp_path: Path
) -> None:
    file = tmp_path / "receiver.toml"
    file.write_text(text)
    _, found = check_file(str(file), {})
    assert [finding.code for finding in found if finding.fatal] == ["E001"]
    assert named in f"{found[0].where}: {found[0].message}"


def test_all_that_is_wrong_is_told_at_once_in_a_row_each_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "receiver.toml"
    file.write_text(
        f"data = '{tmp_path}/data'\n[server]\nprot = 1\nlog = 'loud'\n{GOOD[GOOD.index('[sources') :]}"
        "sources = ['deepgrm']\n[sources.deapi]\nprovider = 'deapy'\n"
    )
    file.chmod(0o600)
    _, found = check_file(str(file), {})
    rows = {(one.code, one.where): one.fix for one in found}
    assert rows == {
        ("E001", "server.prot"): "did you mean port?",
        ("E001", "server.log"): "",
        ("E002", "sources.deapi.provider"): "did you mean deapi?",
        ("W001", "public_url"): all_codes()["W001"].fix,
        ("W010", "destinations.app.sources"): "did you mean deepgram?",
    } | {key: fix for key, fix in rows.items() if key == ("E001", "server.log")}


def test_a_value_in_quotes_from_outside_is_told(tmp_path: Path) -> None:
    file = tmp_path / "receiver.toml"
    file.write_text(f"data = '{tmp_path}/data'\n{GOOD.replace('dg:correct-horse', 'env:PAIR')}")
    file.chmod(0o600)
    _, found = check_file(str(file), {"PAIR": '"dg:correct-horse"'})
    assert [(one.code, one.where) for one in found] == [("W021", "sources.deepgram.basic")]
    assert "correct-horse" not in repr(found)


def test_a_missing_file_is_a_finding(tmp_path: Path) -> None:
    _, found = check_file(str(tmp_path / "none.toml"), {})
    assert [finding.code for finding in found] == ["E001"]


@pytest.mark.parametrize(
    ("mode", "literal", "expected"),
    [(0o644, True, ["W006"]), (0o600, True, []), (0o644, False, []), (0o640, True, ["W006"])],
)
def test_secrets_that_others_can_read_are_found(
    mode: int, literal: bool, expected: list[str], tmp_path: Path
) -> None:
    text = GOOD
    environ: dict[str, Any] = {}
    if not literal:
        timed = '{secret = "env:APP", until = "2030-01-01T00:00:00Z"}'
        text = text.replace("dg:correct-horse", "dg:env:DG").replace(f'"{SECRET}"', timed)
        environ = {"DG": "correct-horse", "APP": SECRET}
    file = tmp_path / "receiver.toml"
    file.write_text(f"data = '{tmp_path}/data'\n{text}")
    os.chmod(file, mode)
    _, found = check_file(str(file), environ)
    assert [finding.code for finding in found] == expected


def test_a_key_that_callbacks_carry_goes_to_no_url_of_the_callers(tmp_path: Path) -> None:
    file = tmp_path / "receiver.toml"
    passing = PLAYHT + 'submit = true\nown_callback = "pass"\n'
    file.write_text(GOOD + passing + SUBMIT.replace("[submit]", '[submit]\nurl = "http://r.internal"'))
    told = [(one.where, one.message) for one in check_file(str(file), {})[1] if one.code == "E023"]
    assert [where for where, _ in told] == ["sources.playht.submit"]
    assert "carry the account's key" in told[0][1]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://app:secret-word@db.example.com/receiver", ["W006"]),
        ("postgresql://db.example.com/receiver?user=app&password=secret-word", ["W006"]),
        ("postgresql://db.example.com/receiver", []),
    ],
)
def test_a_database_password_that_others_can_read_is_found(
    url: str, expected: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "receiver.toml"
    tokens = TOKENS.replace("token-secret-0123456789", "env:TOKEN_SECRET")
    text = GOOD.replace("dg:correct-horse", "dg:env:DG").replace(SECRET, "env:APP")
    file.write_text(f"data = '{tmp_path}/data'\n{text}[store]\nurl = \"{url}\"\n{tokens}{S3}")
    os.chmod(file, 0o644)
    environ = {"DG": "correct-horse", "APP": SECRET, "TOKEN_SECRET": "token-secret-0123456789"}
    _, found = check_file(str(file), environ)
    assert [finding.code for finding in found] == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://app:secret-word@app.example.com/hooks", ["W006"]),
        ("https://app.example.com/hooks?tenant=4&access_token=secret-word", ["W006"]),
        ("https://app.example.com/hooks?apiKey=secret-word", ["W006"]),
        ("https://app.example.com/hooks?v=1&sig=secret-word", ["W006"]),
        ("https://app.example.com/hooks?client-secret=secret-word", ["W006"]),
        ("https://app.example.com/hooks?tenant=4&keyword=design", []),
        ("https://app.example.com/@hooks", []),
        ("env:APP_URL", []),
    ],
)
def test_a_url_with_credentials_that_others_can_read_is_found(
    url: str, expected: list[str], tmp_path: Path
) -> None:
    text = GOOD.replace("dg:correct-horse", "dg:env:DG").replace(SECRET, "env:APP")
    text = text.replace(APP, f'"{url}"')
    file = tmp_path / "receiver.toml"
    file.write_text(f"data = '{tmp_path}/data'\n{text}")
    environ = {"DG": "correct-horse", "APP": SECRET, "APP_URL": "https://app:secret-word@app.example.com"}
    for mode, found in ((0o644, expected), (0o600, [])):
        file.chmod(mode)
        told = check_file(str(file), environ)[1]
        assert [finding.code for finding in told] == found
        assert "secret-word" not in repr(told)
