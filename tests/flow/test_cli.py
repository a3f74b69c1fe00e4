"""The command line through its front door: real processes where they run on, `main()` where it is quick."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx2
import pytest
import typer.main

from receiver import __main__ as cli
from receiver.cli.app import GROUPS
from receiver.core.tokens import CallbackTokens
from receiver.demo.stage import Child, clean_environment
from tests.support.clients import NO_AUTHORITIES
from tests.support.house import MAIN, PUBLIC, ForkedChild, House, build_house, receiver
from tests.support.ports import free_port


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of whoever runs the tests, and no receiver.toml of theirs."""
    for name in set(os.environ) - set(clean_environment(os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    built = build_house(tmp_path)
    yield built
    built.close()


def got(event_id: str) -> Callable[[dict[str, Any]], bool]:
    return lambda line: line.get("event_id") == event_id and line.get("got") == "event"


# ---------------------------------------------------------------- the whole story


def test_from_init_to_replay(house: House) -> None:
    """Callbacks come in, events go out; what died while the application was away is replayed."""
    assert house.run("check", "--json").items == []
    running = house.start("serve", "--port", "0")
    app = house.start_app()

    event_id = house.simulate("deepgram", "--ref", "order-42", "--method", "put", "--chunked")["event_id"]
    line = app.wait_for(got(event_id), seconds=60)
    assert line
    assert line["ref"] == "order-42"
    assert line["audio"]["as_promised"]
    assert house.run("events", "--ref", "order-42", "--json").items[0]["id"] == event_id
    shown = house.run("events", event_id, "--json").json
    sample = Path(__file__).resolve().parents[2] / "receiver" / "demo" / "samples" / "speech.mp3"
    words = [sys.executable, "-m", "receiver", "--config", house.config, "events", event_id, "--body"]
    assert subprocess.run(words, capture_output=True, check=True).stdout == sample.read_bytes()
    assert shown["data"]["audio"]["sha256"] == line["audio"]["sha256"]
    settled = running.wait_for(lambda line: line.get("event") == "attempt.delivered", seconds=60)
    assert settled
    delivery = house.run("deliveries", settled["delivery_id"], "--json").json
    assert (delivery["state"], delivery["event_id"]) == ("delivered", event_id)
    assert [(a["number"], a["outcome"], a["status"]) for a in delivery["attempts_made"]] == [
        (1, "delivered", 204)
    ]

    app.stop()
    lost = house.simulate("deapi", "--event", "failed", "--ref", "order-43")["event_id"]
    dead = running.wait_for(lambda line: line.get("state") == "dead", seconds=60)
    assert dead
    assert dead["event_id"] == lost
    app = house.start_app()
    assert house.run("replay", "--dead", "--dry-run").out.startswith("1 delivery would be replayed\n")
    refused = house.run("replay", "--dead")
    assert refused.status == 2
    assert "--yes" in refused.err
    done = house.run("replay", "--dead", "--destination", "app", "--since", "1h", "--yes", "--json").json
    assert done.pop("operations")
    assert done == {
        "found": 1,
        "replayed": 1,
        "added": 0,
        "left_alone": 0,
        "dry_run": False,
    }
    assert app.wait_for(got(lost), seconds=60)
    assert running.wait_for(lambda line: line.get("number") == 2, seconds=60), "attempts are never renumbered"

    assert house.run("replay", event_id, dead["delivery_id"], "--json").json["replayed"] == 2
    assert app.wait_for(got(event_id), seconds=60)

    assert running.stop() == 0
    said = [
        house.run(*words).out
        for words in (["check"], ["events"], ["events", event_id], ["deliveries"], ["rejections"])
    ]
    written = "".join(said) + (house.folder / "receiver.log").read_text()
    assert event_id in written
    assert not [secret for secret in house.secrets if secret in written]


def test_the_simulated_callbacks_are_what_the_providers_send(house: House) -> None:
    """Every product, error and disorder that the stand-ins play becomes the event it should."""
    house.start("serve", "--port", "0")
    assert house.run("deliveries").err == "no delivery fits\n"
    sample = Path(__file__).parents[1] / "golden/audio/speech.mulaw"
    stories: list[tuple[list[object], str]] = [
        (["deepgram", "--file", sample, "--format", "encoding=mulaw,container=none"], "speech.completed"),
        (["deepgram", "--content-type", "application/octet-stream"], "speech.completed"),
        (["deepgram", "--product", "listen"], "transcript.completed"),
        (["deepgram", "--product", "read"], "analysis.completed"),
        (["deepgram", "--product", "speak", "--error"], "speech.failed"),
        (["deapi", "--event", "processing"], "speech.processing"),
        (["deapi", "--job-type", "aud2txt", "--event", "completed"], "transcript.completed"),
        (["deapi", "--job-secret", "--event", "failed"], "speech.failed"),
    ]
    for words, event_type in stories:
        answer = house.simulate(*words)
        assert answer["status"] == "recorded", words
        assert house.run("events", answer["event_id"], "--json").json["type"] == event_type, words

    assert house.simulate("deepgram", "--duplicate")["status"] == "duplicate"
    late = house.simulate("deapi", "--out-of-order")["event_id"]
    shown = house.run("events", late, "--json").json
    assert shown["type"] == "speech.processing"
    assert shown["deliveries"] == [], "it came after the job had ended"


@pytest.mark.parametrize(("provider", "setting"), [("deepgram", "Basic"), ("deapi", "signature")])
def test_wrong_credentials_are_refused_and_listed(house: House, provider: str, setting: str) -> None:
    running = house.start("serve", "--port", "0")
    words = ["simulate", provider, "--wrong-credentials", "--attempts", "2", "--url", house.base, "--json"]
    said = house.run(*words, "--time-scale", "0")
    assert said.status == 0, "a refusal is what was asked for"
    assert {tried["status"] for tried in said.json} == {401}
    assert [tried["try"] for tried in said.json][:2] == [1, 2]
    assert running.stop() == 0, "what was refused is written before the end"
    listed = house.run("rejections", provider, "--json").items
    assert len(listed) == len(said.json)
    assert setting in listed[0]["reason"]
    assert " came" in house.run("try", provider, "--rejected").out, "a wrong proof is one that came"
    said = house.run("simulate", provider, "--wrong-credentials", "--url", f"http://127.0.0.1:{free_port()}")
    assert {line.split("  ")[1] for line in said.out.splitlines()} == {"try 1"}, "unless more are asked for"
    assert "there is no source 'other'" in house.run("rejections", "other", "--json").err


def test_intake_and_work_run_apart(house: House) -> None:
    """`serve --no-work` takes in, `work` relays what another process recorded."""
    house.start("serve", "--port", "0", "--no-work")
    base = house.base
    event_id = house.simulate("deepgram")["event_id"]
    app = house.start_app()
    house.start("work", "--port", "0")
    assert app.wait_for(got(event_id), seconds=60)
    assert httpx2.get(f"{house.base}/healthz", verify=NO_AUTHORITIES, trust_env=False).status_code == 200
    assert (
        httpx2.post(f"{house.base}/callbacks/deepgram", verify=NO_AUTHORITIES, trust_env=False).status_code
        == 404
    )
    assert house.base != base


def test_a_printed_callback_url_is_one_that_receiver_takes(house: House) -> None:
    house.start("serve", "--port", "0", "--no-work")
    printed = house.run("callback-url", "deepgram", "--ref", "order-7").out.strip()
    parts = urlsplit(printed)
    local = urlunsplit(
        parts._replace(scheme="http", netloc=f"{parts.netloc.rpartition('@')[0]}@{house.base[7:]}")
    )
    assert house.run("simulate", "deepgram", "--url", local, "--attempts", "1").status == 0
    assert house.run("events", "--json").items[0]["ref"] == "order-7"


# ---------------------------------------------------------------- serve


def test_the_link_that_serve_prints_in_an_empty_folder_opens_the_console_once(tmp_path: Path) -> None:
    log, words = tmp_path / "receiver.log", ["serve", "--port", "0"]
    child = ForkedChild("receiver", words, log=str(log), env=clean_environment(os.environ))
    try:
        assert child.wait_for(lambda line: line.get("event") == "receiver.ready", seconds=60), log.read_text()
        (link,) = re.findall(r"http://\S+once=\S+", log.read_text())
        for told in ("Your first event", "That link was used"):
            with httpx2.Client(verify=NO_AUTHORITIES, trust_env=False, follow_redirects=True) as client:
                assert told in client.get(link).text
    finally:
        child.stop()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_serve_finishes_the_request_under_way_and_ends_with_zero(
    house: House, signum: signal.Signals
) -> None:
    ready_file = house.folder / "ready.json"
    running = house.start("serve", "--port", "0", "--ready-file", str(ready_file))
    ready = json.loads(ready_file.read_text())
    assert (ready["pid"], ready["url"]) == (running.pid, house.base)
    printed = house.run("callback-url", "deepgram", "--json").json
    path = urlsplit(printed["url"]).path
    auth = httpx2.BasicAuth("deepgram", house.secrets[0])
    header = next(auth.auth_flow(httpx2.Request("GET", PUBLIC))).headers["authorization"]
    place = ("127.0.0.1", ready["port"])
    with socket.create_connection(place) as idle, socket.create_connection(place, timeout=20) as busy:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in idle.recv(4096)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {header}\r\nContent-Type: audio/mpeg\r\n"
        busy.sendall(f"{head}Content-Length: 6\r\n\r\nID3".encode())
        # The answered probe shows that the server is past reading what came before it.
        assert httpx2.get(f"{house.base}/healthz", verify=NO_AUTHORITIES, trust_env=False).status_code == 200
        os.kill(running.pid, signum)
        while _listens(place):
            pass
        busy.sendall(b"abc")
        assert busy.recv(4096).startswith(b"HTTP/1.1 200")
    assert running.stop() == 0
    assert running.lines[-1]["event"] == "receiver.stopped"
    assert not ready_file.exists()
    log = (house.folder / "receiver.log").read_text()
    assert "Traceback" not in log
    assert "Aborted" not in log


def _listens(place: tuple[str, int]) -> bool:
    try:
        socket.create_connection(place).close()
    except OSError:
        return False
    return True


def test_a_taken_port_is_told_before_anything_is_opened(house: House) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = house.run("serve", "--port", port)
    assert said.status == 1
    assert said.err == (
        f"receiver: port {port} on 127.0.0.1 is taken by another program: stop it, or choose another with --port\n"
    )
    assert not (house.folder / "data").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--host", "192.0.2.1"], "192.0.2.1 is not an address of this machine"),
        (["--host", "no such host"], "no such host cannot be listened on"),
        (["--no-work", "--no-intake"], "leave nothing to do"),
        (["--port", "70000"], "65535"),
    ],
)
def test_serve_tells_what_cannot_be(house: House, words: list[str], told: str) -> None:
    said = house.run("serve", "--port", "0", *words)
    assert said.status in (1, 2)
    assert told in said.err
    assert "Traceback" not in said.err


def test_fatal_findings_stop_serve(house: House) -> None:
    text = Path(house.config).read_text()
    Path(house.config).write_text(text.replace("basic = [", "#"))
    for command in ("serve", "work"):
        said = house.run(command)
        assert said.status == 2
        assert "error E101 sources.deepgram.basic" in said.err


def test_serve_runs_without_any_file(tmp_path: Path) -> None:
    child = Child(
        "receiver",
        ["serve"],
        log=str(tmp_path / "log"),
        env=clean_environment(os.environ) | {"PORT": "0", "RECEIVER__SERVER__LOG": "json"},
    )
    try:
        assert child.wait_for(lambda line: line.get("event") == "receiver.ready", seconds=60)
    finally:
        assert child.stop() == 0
    assert (tmp_path / "receiver-data").is_dir()


# ---------------------------------------------------------------- init and check


def test_init_writes_a_private_file_and_never_over_another(tmp_path: Path) -> None:
    said = receiver("init", "--public-url", PUBLIC)
    assert said.status == 0
    config = tmp_path / "receiver.toml"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    pair = tomllib.loads(config.read_text())["sources"]["deepgram"]["basic"][0]
    assert f"https://{pair}@hooks.example.com/callbacks/deepgram\n" in said.out, "the URL to register"
    assert receiver("check").out == "The settings are good.\n"

    before = config.read_bytes()
    said = receiver("init")
    assert said.status == 1
    assert "is there already" in said.err
    assert config.read_bytes() == before
    assert receiver("init", "--path", "other.toml").status == 0
    assert (tmp_path / "other.toml").read_bytes() != before, "secrets are fresh each time"
    found = receiver("--config", "other.toml", "check", "--json")
    assert found.status == 0
    assert [finding["code"] for finding in found.items] == ["W001"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--public-url", "https://my_hooks.example.com"], "underscore"),
        (["--public-url", "https://hooks.example.com:9000"], "port 9000"),
        (["--app-url", "app.example.com"], "destinations.app.url"),
        (["--path", "no/such/folder/receiver.toml"], "cannot be written"),
    ],
)
def test_init_refuses_what_would_not_work(tmp_path: Path, words: list[str], told: str) -> None:
    said = receiver("init", *words)
    assert said.status in (1, 2)
    assert told in said.err
    assert list(tmp_path.iterdir()) == []


def test_init_asks_for_no_address_that_it_was_given(tmp_path: Path) -> None:
    where = ("--path", str(tmp_path / "a.toml"))
    assert "2. Set [destinations.app] url" in receiver("init", "--path", str(tmp_path / "b.toml")).out
    told = receiver("init", *where, "--app-url", "https://app.example.com/hooks").out
    assert "2. Give the secret of [destinations.app] to https://app.example.com/hooks" in told


def test_check_prints_a_table_and_ends_with_two_when_fatal(tmp_path: Path) -> None:
    config = tmp_path / "receiver.toml"
    config.write_text('[sources.deepgram]\nprovider = "deepgram"\n')
    said = receiver("check")
    assert said.status == 2
    assert said.out.splitlines()[1].startswith("E101  sources.deepgram.basic  ")
    assert said.out.endswith("1 error, 2 warnings: receiver will not start with these settings\n")
    assert receiver("check", "--json").items[0]["fatal"] is True


def test_migrate_tells_what_it_applied(house: House) -> None:
    assert house.run("migrate", "--json").json["applied"]
    assert house.run("migrate").out == "nothing to apply: the tables are up to date\n"


# ---------------------------------------------------------------- callback-url


def test_a_callback_url_carries_what_was_asked(house: House) -> None:
    before = time.time() * 1000
    said = house.run(
        *("callback-url", "deepgram", "--ref", "order_42", "--expires", "2h"),
        *("--format", "product=speak,encoding=linear16,sample_rate=24000", "--json"),
    )
    claims = CallbackTokens([house.secrets[2]]).read(said.json["token"])
    assert claims
    assert (claims.source, claims.ref) == ("deepgram", "order_42")
    assert claims.format == {"product": "speak", "encoding": "linear16", "sample_rate": 24000}
    assert claims.expires_at
    assert 7_200_000 <= claims.expires_at - before < 7_260_000
    assert (
        said.json["url"]
        == f"https://deepgram:{house.secrets[0]}@hooks.example.com/callbacks/deepgram/" + (said.json["token"])
    )


def test_a_job_secret_is_the_one_that_receiver_checks(house: House) -> None:
    said = house.run("callback-url", "deapi", "--job-secret", "--json").json
    assert said["webhook_secret"] == CallbackTokens([house.secrets[2]]).job_secrets(said["token"])[0]
    assert said["url"] == f"{PUBLIC}/callbacks/deapi/{said['token']}"
    lines = house.run("callback-url", "deapi", "--job-secret").out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["webhook_url", "webhook_secret"]


def test_a_url_without_token_is_the_same_for_all_jobs(house: House) -> None:
    assert house.run("callback-url", "deapi", "--no-token").out == f"{PUBLIC}/callbacks/deapi\n"


@pytest.mark.parametrize(
    ("words", "change", "told"),
    [
        (["nobody"], ("", ""), "deapi, deepdub, deepgram"),
        (["deepgram"], (f'public_url = "{PUBLIC}"', ""), "public_url is not set"),
        (["deepgram"], ("hooks.example.com", "hooks.example.com:81"), "port 81"),
        (["deepgram"], ("hooks.example.com", "my_hooks.example.com"), "underscore"),
        (["deepgram"], ("deepgram:", "deep_gram:"), "underscore"),
        (["deapi"], ("https://hooks", "http://hooks"), "https"),
        (["deepgram", "--ref", "x" * 2000], ("", ""), "2048"),
        (["deepgram", "--job-secret"], ("", ""), "deAPI"),
        (["deepgram", "--no-token", "--ref", "a"], ("", ""), "--no-token"),
        (["deepgram", "--no-token"], ("# require_token", "require_token"), "require_token"),
        (["deepgram", "--expires", "soon"], ("", ""), "15m"),
        (["deepgram", "--format", "speed=2"], ("", ""), "sample_rate"),
        (["deepgram", "--expect-within", "soon"], ("", ""), "15m"),
        (["deepgram", "--expect-within", "0s"], ("", ""), "more than 0s"),
        (["deepgram", "--expect-within", "31d"], ("", ""), "30d"),
        (["deepgram", "--expect-within", "10m", "--no-token"], ("", ""), "--no-token"),
        (["deepgram", "--expect-within", "10m", "--expires", "9m"], ("", ""), "expires must"),
        (["deepdub"], ("", ""), "receiver pickup deepdub"),
    ],
)
def test_a_callback_url_that_would_not_work_is_refused_with_the_reason(
    house: House, words: list[str], change: tuple[str, str], told: str
) -> None:
    text = Path(house.config).read_text()
    assert change[0] in text
    Path(house.config).write_text(text.replace(*change))
    said = house.run("callback-url", *words)
    assert said.status == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert told in said.err
    assert not [secret for secret in house.secrets if secret in said.err]


# ---------------------------------------------------------------- lists


def test_lists_fit_80_columns_and_take_patterns(house: House) -> None:
    running = house.start("serve", "--port", "0")
    event_id = house.simulate("deepgram", "--ref", "order " * 20)["event_id"]
    tried = running.wait_for(lambda line: "delivery_id" in line, seconds=20)
    assert tried
    assert running.stop() == 0
    for words in (["events"], ["deliveries"], ["events", "--source", "deep*", "--type", "speech.*"]):
        lines = house.run(*words).out.splitlines()
        assert max(map(len, lines)) <= 80, words
        assert lines[1].startswith(("evt_", "dlv_")), "what to ask for next is whole"
    delivery = tried["delivery_id"]
    assert re.search(rf"{delivery} +\w+ +\d of \d+ ", house.run("deliveries").out)
    assert re.search(r"\n1 of \d+ +\d\d:\d\d:\d\d ", house.run("deliveries", delivery).out)
    assert re.search(r"\d{4}-\d\d-\d\dT", house.run("events", "--wide").out)
    shown = house.run("deliveries", "--destination", "a*", "--json").json
    assert ([one["id"] for one in shown["items"]], shown["next"]) == ([delivery], None)
    assert isinstance(house.run("deliveries", delivery, "--json").json["attempts"], int)
    assert len(house.run("deliveries", delivery, "--json").json["attempts_made"]) >= 1
    assert [one["id"] for one in house.run("events", "--json").items] == [event_id]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["events", "--source", "deepgrm"], "there is no source 'deepgrm'; did you mean deepgram?"),
        (["events", "--type", "speech.complete"], "did you mean speech.completed?"),
        (["events", "--type", "x*"], "there is no event type 'x*'; there is: "),
        (["deliveries", "--destination", "ap"], "there is no destination 'ap'; did you mean app?"),
        (["pickups", "--source", "deepdbu"], "did you mean deepdub?"),
        (["rejections", "nobody"], "there is no source 'nobody'; there is: deapi"),
        (["replay", "--type", "speech.complete", "--yes"], "did you mean speech.completed?"),
    ],
)
def test_a_filter_by_a_name_that_there_is_not_says_so(house: House, words: list[str], told: str) -> None:
    house.run("migrate")
    said = house.run(*words)
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert told in said.err
    wrong = json.loads(house.run(*words, "--json").err)
    assert wrong["status"] == 2
    assert told in wrong["error"]


# ---------------------------------------------------------------- manners


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["events"], "there is no store at"),
        (["pickups"], "there is no store at"),
        (["events", "--since", "yesterday"], "2h (ago)"),
        (["replay"], "--dead"),
        (["replay", "dlv_1", "--dead"], "--dead"),
        (["simulate", "deepgram", "--file", "none.mp3"], "cannot be read"),
        (["simulate", "deepgram", "--method", "get"], "post or put"),
        (["simulate", "deapi", "--source", "deepgram"], "of provider deepgram"),
    ],
)
def test_a_mistake_is_one_clear_line(house: House, words: list[str], told: str) -> None:
    said = house.run(*words)
    assert said.status in (1, 2)
    assert said.err.count("\n") == 1
    assert told in said.err


def test_an_unknown_id_is_told(house: House) -> None:
    house.run("migrate")
    for words in (
        ["events", "evt_none"],
        ["deliveries", "dlv_none"],
        ["pickups", "pku_none"],
        ["replay", "evt_none"],
        ["replay", "dlv_none"],
        ["trace", "nobody"],
    ):
        said = house.run(*words)
        assert said.status == 1, words
        assert (said.out, words[-1] in said.err) == ("", True)


def test_nobody_there_is_told_for_every_try(house: House) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    said = house.run("simulate", "deepgram", "--url", url, "--attempts", "3", "--time-scale", "0")
    assert said.status == 1
    assert [line.split("  ")[2] for line in said.out.splitlines()] == ["---"] * 3


def test_a_reader_that_goes_away_is_no_trouble(house: House) -> None:
    house.run("migrate")
    with subprocess.Popen(
        [*MAIN, "--config", house.config, "events", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) == 1


def test_ctrl_c_is_quiet(house: House) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    words = ["--config", house.config, "simulate", "deepgram", "--url", url, "--time-scale", "1"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a run in the background ignores it
    with subprocess.Popen(
        [*MAIN, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heard
    ) as process:
        assert process.stdout
        assert process.stderr
        assert b"try 1" in process.stdout.readline()
        while process.poll() is None:  # one that comes while an object is finalized is dropped by Python
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        assert process.wait() == 130
        assert process.stderr.read() == b""


@pytest.mark.parametrize("command", ["serve", "work"])
def test_with_a_json_log_what_stops_the_start_is_json_lines_too(tmp_path: Path, command: str) -> None:
    """Also of settings that cannot be read to their end, and where the port is taken."""
    path = tmp_path / "receiver.toml"
    text = f'data = "{tmp_path}/data"\npublic_url = "{PUBLIC}"\n[server]\nlog = "json"\n'
    text += '[tokens]\nsecrets = ["token-secret-0123456789"]\n'
    path.write_text(text + '[sources.deepgram]\nprovider = "deepgram"\nbasic = ["u:env:NOT_THERE"]\n')
    said = receiver("--config", path, command)
    line = json.loads(said.err.splitlines()[0])
    assert (said.status, line["event"], line["level"]) == (2, "receiver.finding", "error")
    assert (line["code"], line["setting"]) == ("E001", "sources.deepgram.basic")
    assert "NOT_THERE is not set" in line["message"]
    path.write_text(text)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        said = receiver("--config", path, command, "--port", taken.getsockname()[1])
    *found, last = [json.loads(line) for line in said.err.splitlines()]
    assert {one["code"] for one in found} == {"W002", "W006", "W009"}
    assert (said.status, last["event"], last["status"]) == (1, "receiver.failed", 1)
    assert "is taken by another program" in last["message"]


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_data_folder_that_cannot_be_used_is_told_before_anything_runs(
    house: House, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECEIVER__DATA", "/proc/receiver")
    said = house.run(command)
    assert said.status == 2
    assert "E007" in said.out + said.err
    assert "nothing can be made in /proc: No such file or directory" in said.out + said.err


def options(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Give every option of every command."""
    for param in command.params:
        if param.param_type_name == "option" and param.name not in ("help", "version"):
            yield path, param
    for name, sub in getattr(command, "commands", {}).items():
        yield from options(sub, (*path, name))


def test_every_flag_but_what_is_destroyed_is_also_an_environment_variable_and_says_so() -> None:
    seen = set()
    for path, param in options(typer.main.get_command(cli.app)):
        if "completion" in (param.name or ""):
            continue
        if path in (("erase",), ("replay",), ("renormalize",)) and param.name != "as_json":
            assert param.envvar is None
            continue
        assert str(param.envvar).startswith("RECEIVER_"), (path, param.name)
        assert param.show_envvar, (path, param.name)
        assert param.help
        seen.add(path)
    assert "RECEIVER_READY_FILE" in receiver("serve", "--help").out
    assert {path[0] for path in seen if path} == {*chain(*GROUPS.values())}


def test_a_flag_is_taken_from_the_environment(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECEIVER_CONFIG", house.config)
    monkeypatch.setenv("RECEIVER_JSON", "1")
    assert receiver("check").items == []


def test_help_starts_fast_since_it_loads_no_heavy_part() -> None:
    code = "import sys, receiver.__main__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {
        "aiohttp",
        "apsw",
        "httpx2",
        "pydantic",
        "starlette",
        "uvicorn",
        "prometheus_client",
        "asyncio.sslproto",
    }
    assert heavy & set(done.stdout.split()) <= {"asyncio.sslproto"}


def test_the_version_is_that_of_the_package() -> None:
    from receiver import __version__

    assert receiver("--version").out == f"{__version__}\n"


# ---------------------------------------------------------------- audio


def test_audio_tells_what_a_file_and_an_event_hold(house: House) -> None:
    running = house.start("serve", "--port", "0")
    event_id = house.simulate("deepgram")["event_id"]
    running.stop()
    told = house.run("audio", event_id, "--json").json
    assert (told["codec"], told["channels"], told["content_type"]) == ("mp3", 1, "audio/mpeg")
    assert told["event_says"]["duration_seconds"] == told["duration_seconds"]
    sample = Path(__file__).resolve().parents[2] / "receiver" / "demo" / "samples" / "speech.mp3"
    shown = house.run("audio", str(sample)).out
    assert "(by the first bytes)" in shown
    assert "(counted: " in shown
    assert "event_says" not in shown


def test_audio_of_raw_samples_needs_to_be_told_what_they_are(house: House, tmp_path: Path) -> None:
    path = tmp_path / "speech.raw"
    path.write_bytes(bytes(16000))
    assert house.run("audio", str(path), "--json").json["duration_seconds"] is None
    told = house.run("audio", str(path), "--content-type", "audio/l16;rate=8000", "--json").json
    assert (told["duration_seconds"], told["how"]["codec"]) == (1.0, "by the content type")


def test_audio_of_nothing_says_what_to_give(house: House, tmp_path: Path) -> None:
    said = house.run("audio", str(tmp_path / "gone.mp3"))
    assert said.status == 2
    assert "give a file, or the id of an event" in said.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["evnts"], "No such command 'evnts'"),
        (["events", "--nope"], "No such option: --nope"),
        (["events", "--limit", "many"], "'--limit'"),
        (["events", "--limit"], "--limit"),
        (["try"], "Missing argument"),
        (["deliveries", "--state", "odd"], "'--state'"),
        (["recipes", "one", "two"], "unexpected"),
    ],
)
def test_words_that_are_not_understood_are_told_as_json_where_json_was_asked_for(
    words: list[str], told: str
) -> None:
    said = receiver(*words)
    assert (said.status, said.out, told in said.err) == (2, "", True)
    said = receiver(*words, "--json")
    failure = json.loads(said.err)
    assert (said.status, said.out, failure["status"], told in failure["error"]) == (2, "", 2, True)
