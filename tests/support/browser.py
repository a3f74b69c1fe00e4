"""A headless Chromium for the console's tests, where the machine has one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
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

    async def offences(self) -> list[str]:
        """Return what axe-core finds that is serious: WCAG 2.0 to 2.2, A and AA."""
        await self.page.evaluate(_axe())
        found = await self.page.evaluate(
            "axe.run({ runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa'], resultTypes: ['violations'] })"
        )
        return [
            f"{self.page.url}: {one['id']}: {one['nodes'][0]['html'][:200]}: {one['nodes'][0].get('failureSummary', '')[:300]}"
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ]

    async def pictures(self, name: str) -> None:
        """Keep pictures of the page: light, dark, and as a phone has it."""
        if not PICTURES:
            return
        for scheme in ("light", "dark"):
            await self.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            await self.page.screenshot(path=Path(PICTURES, f"{name}-{scheme}.png"))
        await self.page.emulate_media(color_scheme="light")
        await self.page.set_viewport_size(_PHONE)  # type: ignore[arg-type]  # a TypedDict that the library does not export
        await self.page.reload()  # a phone's menu is folded when the page begins
        await self.page.screenshot(path=Path(PICTURES, f"{name}-phone.png"))
        await self.page.set_viewport_size(_DESK)  # type: ignore[arg-type]  # as above


def _axe() -> str:
    folder = Path(axe_playwright_python.__file__).parent
    return next(folder.rglob("axe.min.js")).read_text("utf-8")
