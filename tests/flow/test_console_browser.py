"""The console in a real browser: what an operator does there, under the policy that it is served with."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from receiver.core.work import DeliveryFilter
from tests.support.browser import CHROMIUM, LACKS, Watched, browser
from tests.support.running import Running, api_token, running, settings_text
from tests.support.sink import Answer, Sink

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason=LACKS),
]
TOKEN = "admin-token-of-some-length"
HOSTILE = "<img src=x onerror=alert(1)>\u202e'\"</script><script>alert(2)</script>{{7*7}}"
WORDS = [
    {
        "word": word,
        "punctuated_word": word,
        "start": k * 0.5,
        "end": k * 0.5 + 0.4,
        "confidence": 0.99 - k * 0.05,
    }
    for k, word in enumerate(["Good", "morning", "this", "is", "a", "call", "about", "the", "order"])
]


def _tone(seconds: float, hertz: int = 8000) -> bytes:
    """Return a stereo WAV file with a tone on the left that swells, and silence on the right."""
    count = int(seconds * hertz)
    samples = [int(12000 * (k / count) * math.sin(k * 0.3)) for k in range(count)]
    data = b"".join(struct.pack("<hh", sample, 0) for sample in samples)
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1, 2, hertz, 4 * hertz, 4, 16, b"data", len(data))  # fmt: skip
    return head + data


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def sink() -> AsyncIterator[Sink]:
    async with Sink() as one:
        yield one


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def up(tmp_path_factory: pytest.TempPathFactory, sink: Sink) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("browser")
    text = settings_text(
        folder, destination=sink.url, extra=api_token("ops", TOKEN), retry="{ schedule = [] }"
    )
    async with running(folder, text) as run:
        yield run


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def at(up: Running) -> AsyncIterator[Watched]:
    """Somebody who has logged in."""
    async with browser() as one:
        context = await one.new_context(
            viewport={"width": 1280, "height": 900}, timezone_id="Asia/Tokyo", reduced_motion="reduce"
        )
        page = await context.new_page()
        watched = Watched(page, up.base)
        await watched.open("/events")
        assert "/console/login" in page.url
        assert not await watched.looked_at("login")
        await page.fill("#token", TOKEN)
        await page.click("button")
        await page.wait_for_url("**/console/events")
        yield watched
        assert not watched.complaints


async def called(up: Running, ref: str, content: bytes | None = None, **body: Any) -> str:
    path = f"/callbacks/speech/{up.receiver.tokens.issue('speech', ref=ref)}"
    if content is None:
        answer = await up.client.post(path, json=body)
    else:
        answer = await up.client.post(path, content=content, headers={"content-type": "audio/wav"})
    event_id: str = answer.json()["event_id"]
    return event_id


async def test_an_event_arrives_while_one_looks_in_the_readers_own_zone(up: Running, at: Watched) -> None:
    await at.open("/events")
    await at.until("document.querySelector('[data-live-text]').textContent === 'live'")
    event_id = await called(up, "call-1", _tone(4))
    row = at.page.locator(f"[data-rows] a[href$='{event_id}']")
    await row.wait_for()
    event = await up.receiver.store.event(event_id)
    shown = await at.page.locator("[data-rows] time").first.text_content()
    assert shown is not None
    hour = (event.recorded_at // 3_600_000 + 9) % 24
    assert f"{hour:02d}:" in shown


async def test_its_audio_plays_with_a_waveform_and_a_word_that_is_clicked_is_heard(
    up: Running, at: Watched
) -> None:
    page = at.page
    words = [{"alternatives": [{"transcript": "Good morning", "confidence": 0.9, "words": WORDS}]}]
    document: dict[str, Any] = {"metadata": {"request_id": "r-words"}, "results": {"channels": words}}
    await called(up, "call-3", _tone(4))
    event_id = await called(up, "call-3", **document)
    await at.open(f"/events/{event_id}")
    await page.wait_for_selector("[data-lanes]:not([hidden])", timeout=90_000)
    drawn = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height / 2).data.filter((v, k) => k % 4 === 3 && v).length"
    assert await page.locator("canvas").evaluate(drawn) > 1000
    await page.click("[data-toggle]")
    await at.until("document.querySelector('audio').currentTime > 0.2")
    await page.click("[data-toggle]")
    await page.locator(".w", has_text="about").click()
    await at.until("document.querySelector('audio').currentTime >= 3.0")
    await at.until("document.querySelector('.w.now') !== null")
    await page.evaluate("document.querySelector('audio').pause()")
    assert await page.locator("[data-talk] .w.low").count() == 5
    await page.locator("[data-lanes]").press("Home")
    await at.until("document.querySelector('audio').currentTime < 0.1")
    assert await page.locator("[data-channels] button").count() == 2


async def test_a_dead_letter_is_replayed_and_delivered(up: Running, at: Watched, sink: Sink) -> None:
    sink.script.append(Answer(status=500, body=b"<h1>down</h1>"))
    event_id = await called(up, "call-2", err_code="Bad Request", err_msg="corrupt audio", request_id="r-2")
    (delivery,) = await up.receiver.store.deliveries(DeliveryFilter(event_id=event_id))
    await up.seen.until(lambda: any(one.delivery_id == delivery.id for one in up.seen.attempts))
    await at.open("/deliveries?state=dead")
    await at.page.check(f"input[value={delivery.id}]")
    await at.page.click("text=Replay 1 selected")
    await at.page.wait_for_selector("text=1 delivery is due again")
    await up.seen.until(lambda: sum(one.delivery_id == delivery.id for one in up.seen.attempts) == 2)
    await at.open(f"/events/{event_id}")
    await at.page.wait_for_selector("text=Delivered to app.")
    await at.page.click("text=attempt 1:")
    assert "<h1>down</h1>" in await at.page.locator("details[open] pre").inner_text()
    await at.page.click("summary:text-is('Replay …')")
    box = await at.page.locator("button:text-is('Replay')").bounding_box()
    assert box is not None
    assert box["height"] < 60


async def test_a_destination_is_paused_and_resumed(up: Running, at: Watched) -> None:
    await at.open("/destinations/app")
    await at.page.click("button:text-is('Pause')")
    await at.page.wait_for_selector("text=Paused: its deliveries wait")
    assert (await up.receiver.store.destinations(up.receiver.clock()))["app"].stopped
    await at.page.click("button:text-is('Resume')")
    await at.page.wait_for_selector("text=The destination is resumed")
    assert not (await up.receiver.store.destinations(up.receiver.clock()))["app"].stopped


async def test_a_page_of_another_site_cannot_use_the_console(up: Running, at: Watched) -> None:
    other = await at.page.context.new_page()
    action = f"{up.base}/console/destinations/app/pause"
    await other.goto(f"data:text/html,<form method=post action={action}><button>Win a prize</button></form>")
    async with other.expect_response(action) as answered:
        await other.click("button")
    assert (await answered.value).status == 403
    await other.close()


async def test_hostile_text_in_every_field_does_nothing_but_show(up: Running, at: Watched) -> None:
    await at.open("/events")
    await at.until("document.querySelector('[data-live-text]').textContent === 'live'")
    failed = await called(up, HOSTILE, err_code=HOSTILE, err_msg=HOSTILE, request_id="r-3")
    await at.page.locator(f"[data-rows] a[href$='{failed}']").wait_for()
    parked = await called(up, HOSTILE, what=HOSTILE)
    for path in ("/", f"/events/{failed}", f"/events/{parked}"):
        await at.open(path)
        assert "alert(1)" in await at.page.inner_text("body")
    assert not at.complaints


async def test_rows_are_walked_by_keys(up: Running, at: Watched) -> None:
    await called(up, "call-4", err_code="Bad Request", err_msg="no", request_id="r-4")
    await at.open("/events")
    await at.page.keyboard.press("j")
    href = await at.page.evaluate("document.activeElement.getAttribute('href')")
    await at.page.keyboard.press("Enter")
    await at.page.wait_for_url(f"**{href}")


async def test_no_page_has_a_serious_fault_of_accessibility_in_light_in_dark_or_on_a_phone(
    up: Running, at: Watched
) -> None:
    event_id = await called(up, "call-5 " + "of-a-very-long-name-" * 20, _tone(1))
    token = up.receiver.tokens.issue("deapi", ref="call-5")
    await up.client.post(f"/callbacks/deapi/{token}", json={"event": "job.completed"})
    await called(up, "call-5", what="nobody knows")
    await up.receiver.intake.rejections.flush()
    (refused,) = await up.receiver.store.rejections("deapi", limit=1)
    shell = (".side", "header.top", "#help")
    async with at.unguarded() as page:
        await page.open(f"/events/{event_id}")
        await page.page.wait_for_selector("[data-lanes]:not([hidden])")
        wrong = await page.looked_at("event")
        for path in (
            "/", "/events?limit=5", "/jobs", "/jobs?ref=call-5", "/pickups", "/rejections", "/parked", "/sources",
            "/sources/speech", "/deliveries?limit=5", "/operations", "/destinations", "/destinations/app", "/retention",
            "/erase?kind=ref&key=call-5", "/audit", "/find?q=nobody", f"/rejections/{refused.id}",
        ):  # fmt: skip
            await page.put(path)
            name = re.sub(r"\W+", "-", path).strip("-") or "overview"
            wrong += await page.looked_at(name, without=shell)
    assert not wrong, "\n".join(wrong)
