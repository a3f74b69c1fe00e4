"""A headless Chromium for the console's tests, where the machine has one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import axe_playwright_python
from playwright.async_api import Browser, Page, ViewportSize, async_playwright

from tests.support.patience import PATIENCE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LACKS = "no Chromium on this machine: the console is not tried in a browser (apt-get install chromium)"
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--in-process-gpu",
    "--renderer-process-limit=1",
    "--mute-audio",
    "--disable-dev-shm-usage",
    "--autoplay-policy=no-user-gesture-required",
)
PICTURES = os.environ.get("CONSOLEPICTURES")
"""A folder for pictures of the pages; none are made without it."""
_WCAG = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa")
_PUT = """async path => {
  const page = new DOMParser().parseFromString(await (await fetch(path)).text(), "text/html");
  document.title = page.title;
  document.body.replaceWith(document.adoptNode(page.body));
}"""
_PHONE, _DESK = ViewportSize(width=390, height=844), ViewportSize(width=1280, height=900)


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """Run the browser while the block lasts."""
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))
        try:
            yield running
        finally:
            await running.close()


class Watched:
    """A page, and whatever it complains of: errors, refused markup, dialogs, requests to elsewhere."""

    def __init__(self, page: Page, base: str) -> None:
        self.page = page
        self.base = base
        self.complaints: list[str] = []
        page.set_default_timeout(PATIENCE * 1000)
        page.on("console", lambda message: self._said(message))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self._asked(request.url))

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _asked(self, url: str) -> None:
        if not url.startswith((self.base, "data:", "blob:")):
            self.complaints.append(f"a request to {url}")

    async def open(self, path: str) -> None:
        """Go to a page of the console."""
        await self.page.goto(f"{self.base}/console{path}")

    async def until(self, condition: str) -> None:
        """Wait until a condition of the page, in JavaScript, holds; looked at whenever the page is drawn."""
        look = f"() => ({condition}) ? done() : requestAnimationFrame(look)"
        async with asyncio.timeout(PATIENCE):
            await self.page.evaluate(f"new Promise(done => {{ const look = {look}; look(); }})")

    async def offences(self, rules: Sequence[str] = (), *, without: Sequence[str] = ()) -> list[str]:
        """Return what axe-core finds that is serious: by WCAG 2.0 to 2.2, A and AA, or by these rules alone.

        `without` are selectors of what is not looked at.
        """
        if not await self.page.evaluate("'axe' in window"):
            await self.page.evaluate(_axe())
        only = {"type": "rule", "values": list(rules)} if rules else {"type": "tag", "values": list(_WCAG)}
        found = await self.page.evaluate(
            "([only, exclude]) => axe.run({ exclude }, { runOnly: only, resultTypes: ['violations'], elementRef: false })",
            [only, [[selector] for selector in without]],
        )
        return [
            f"{one['id']}: {one['nodes'][0]['html'][:200]}: {one['nodes'][0].get('failureSummary', '')[:300]}"
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ]

    @contextlib.asynccontextmanager
    async def unguarded(self) -> AsyncIterator[Watched]:
        """Yield another page of the same login, on which a test may put what the policy of ours would refuse."""
        context = self.page.context
        assert context.browser is not None
        other = await context.browser.new_context(
            storage_state=await context.storage_state(), bypass_csp=True, reduced_motion="reduce"
        )
        try:
            watched = Watched(await other.new_page(), self.base)
            await watched.page.set_viewport_size(_DESK)
            yield watched
        finally:
            await other.close()

    async def put(self, path: str) -> None:
        """Put the content of a page of the console in place of this one's: cheaper than to open it, for those who only look."""
        await self.page.evaluate(_PUT, f"{self.base}/console{path}")

    async def looked_at(self, name: str, *, without: Sequence[str] = ()) -> list[str]:
        """Return what is wrong with the page in light, in dark and on a phone, and keep pictures where they are wanted.

        All rules are tried in light; in dark those that colours can break, on a phone those that places can.
        """
        wrong = await self.offences(without=without)
        await self._picture(f"{name}-light")
        await self.page.emulate_media(color_scheme="dark")
        wrong += [f"dark: {one}" for one in await self.offences(["color-contrast"], without=without)]
        await self._picture(f"{name}-dark")
        await self.page.emulate_media(color_scheme="light")
        await self.page.set_viewport_size(_PHONE)
        await self.page.evaluate(
            "for (const menu of document.querySelectorAll('details.menu')) menu.open = false"
        )
        rules = ["target-size", "scrollable-region-focusable"]
        wrong += [f"phone: {one}" for one in await self.offences(rules, without=without)]
        wide = await self.page.evaluate("document.documentElement.scrollWidth")
        wrong += [f"{wide} wide on a phone"] if wide > _PHONE["width"] else []
        await self._picture(f"{name}-phone")
        await self.page.set_viewport_size(_DESK)
        return [f"{name}: {one}" for one in wrong]

    async def _picture(self, name: str) -> None:
        if PICTURES:
            await self.page.screenshot(path=Path(PICTURES, f"{name}.png"))


@cache
def _axe() -> str:
    folder = Path(axe_playwright_python.__file__).parent
    return next(folder.rglob("axe.min.js")).read_text("utf-8")
