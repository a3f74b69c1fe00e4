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
from playwright.async_api import Browser, Page, async_playwright

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
_PHONE, _DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


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
        async with asyncio.timeout(20):
            await self.page.evaluate(f"new Promise(done => {{ const look = {look}; look(); }})")

    async def offences(self, rules: Sequence[str] = ()) -> list[str]:
        """Return what axe-core finds that is serious: by WCAG 2.0 to 2.2, A and AA, or by these rules alone."""
        if not await self.page.evaluate("'axe' in window"):
            await self.page.evaluate(_axe())
        only = {"type": "rule", "values": list(rules)} if rules else {"type": "tag", "values": list(_WCAG)}
        found = await self.page.evaluate(
            "only => axe.run({ runOnly: only, resultTypes: ['violations'] })", only
        )
        return [
            f"{self.page.url}: {one['id']}: {one['nodes'][0]['html'][:200]}: {one['nodes'][0].get('failureSummary', '')[:300]}"
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ]

    async def judge(self) -> None:
        """Give each page that is opened from now on what `looked_at` needs: dear for pages that nobody looks at so."""
        await self.page.add_init_script(_axe())

    async def looked_at(self, name: str) -> list[str]:
        """Return what is wrong with the page in light, in dark and on a phone, and keep pictures where they are wanted.

        All rules are tried in light; in dark those that colours can break, on a phone those that places can.
        """
        wrong = await self.offences()
        await self._picture(f"{name}-light")
        await self.page.emulate_media(color_scheme="dark")
        wrong += [f"dark: {one}" for one in await self.offences(["color-contrast"])]
        await self._picture(f"{name}-dark")
        await self.page.emulate_media(color_scheme="light")
        await self.page.set_viewport_size(_PHONE)  # type: ignore[arg-type]  # a TypedDict that the library does not export
        await self.page.evaluate(
            "for (const menu of document.querySelectorAll('details.menu')) menu.open = false"
        )
        wrong += [
            f"phone: {one}" for one in await self.offences(["target-size", "scrollable-region-focusable"])
        ]
        wide = await self.page.evaluate("document.documentElement.scrollWidth")
        wrong += [f"{self.page.url} is {wide} wide on a phone"] if wide > _PHONE["width"] else []
        await self._picture(f"{name}-phone")
        await self.page.set_viewport_size(_DESK)  # type: ignore[arg-type]  # as above
        return wrong

    async def _picture(self, name: str) -> None:
        if PICTURES:
            await self.page.screenshot(path=Path(PICTURES, f"{name}.png"))


@cache
def _axe() -> str:
    folder = Path(axe_playwright_python.__file__).parent
    return next(folder.rglob("axe.min.js")).read_text("utf-8")
