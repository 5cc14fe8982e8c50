"""A real headless Chromium, driven by the DevTools protocol over aiohttp; no driver package.

What the page does wrong is collected: script errors, console errors, violations of its policy.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--remote-debugging-port=0",
)  # fmt: skip
START_DEADLINE_S = 40.0
CALL_DEADLINE_S = 30.0


def find_chromium() -> str | None:
    """The program, or None (Debian package chromium)."""
    return shutil.which("chromium")


class Tab:
    """One page of a running Chromium."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()
        self.complaints: list[str] = []
        self.complained = asyncio.Event()
        self.requested: list[str] = []

    async def read(self) -> None:
        """Sorts what Chromium says, until the connection ends."""
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                self._waiting.pop(told["id"]).set_result(told)
                continue
            params = told.get("params", {})
            match told.get("method"):
                case "Page.loadEventFired":
                    self._loaded.set()
                case "Runtime.exceptionThrown":
                    self._complain(str(params["exceptionDetails"].get("text")))
                case "Log.entryAdded" if params["entry"]["level"] == "error":
                    self._complain(params["entry"]["text"])
                case "Network.requestWillBeSent":
                    self.requested.append(params["request"]["url"])
                case _:
                    pass

    def _complain(self, text: str) -> None:
        self.complaints.append(text)
        self.complained.set()

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One DevTools command."""
        number = next(self._ids)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(CALL_DEADLINE_S):
            told = await answer
        if "error" in told:
            raise RuntimeError(f"{method}: {told['error']}")
        result: dict[str, Any] = told["result"]
        return result

    async def open(self, url: str, *, width: int, height: int = 900, script: bool = True) -> None:
        """Loads a page at a size, with or without JavaScript."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        await self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self._loaded.clear()
        await self.call("Page.navigate", url=url)
        async with asyncio.timeout(CALL_DEADLINE_S):
            await self._loaded.wait()

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        told = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return told["result"].get("value")

    async def until(self, expression: str, *, deadline_s: float = 20.0) -> None:
        """Returns when the expression is true in the page."""
        async with asyncio.timeout(deadline_s):
            while not await self.evaluate(expression):  # noqa: ASYNC110 - the page has no event
                await asyncio.sleep(0.1)

    async def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        size = (await self.call("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        told = await self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(told["data"]))


@asynccontextmanager
async def chromium(program: str) -> AsyncIterator[Tab]:
    """A Chromium with a profile of its own, ended on the way out."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            program,
            *FLAGS,
            f"--user-data-dir={profile}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(START_DEADLINE_S):
                port = await _port(Path(profile) / "DevToolsActivePort")
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as listing:
                    tabs = [t for t in await listing.json() if t["type"] == "page"]
                async with session.ws_connect(
                    tabs[0]["webSocketDebuggerUrl"], max_msg_size=1 << 27
                ) as socket:
                    tab = Tab(socket)
                    reading = asyncio.create_task(tab.read())
                    try:
                        for domain in ("Page", "Runtime", "Log", "Network"):
                            await tab.call(f"{domain}.enable")
                        yield tab
                    finally:
                        reading.cancel()
                        await asyncio.gather(reading, return_exceptions=True)
        finally:
            process.kill()
            await process.wait()


async def _port(file: Path) -> int:
    while True:
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        await asyncio.sleep(0.1)
