"""What the agent's HTTP server answers, by path."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from cni.attach import Unready
from routing.metrics.families import Observation
from routing.metrics.observing import CONTENT_TYPE, Scrape
from routing.web import live
from routing.web.recent import KEEP_S, Line, Recent
from routing.web.server import METRICS_PATH, Reply

HTML = "text/html; charset=utf-8"

STUCK_S = 300.0
"""A pass ends well within this whatever the network does; later the loop hangs."""


def pages(
    *,
    observe: Callable[[], Observation],
    recent: Recent,
    readiness: Callable[[], Unready | None],
    last_pass_s: Callable[[], float],
    clock: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
) -> dict[str, Callable[[], Awaitable[Reply]]]:
    """The metrics, the two probes, the live page and what it fetches.

    Args:
        recent: what happened lately.
        last_pass_s: when the last pass ended, or when the agent started if none has.
    """

    scrape = Scrape(observe)

    async def events() -> list[Line]:
        # A file's end, in a thread: a disk that is slow must not hold an ADD up.
        return await asyncio.to_thread(recent.since, wall() - KEEP_S)

    async def page() -> Reply:
        text = live.page(observe(), await events())
        return Reply(text.encode(), HTML, policy=live.page_policy())

    async def content() -> Reply:
        return Reply(live.content(observe(), await events()).encode(), HTML)

    async def metrics() -> Reply:
        return Reply(scrape.text(), CONTENT_TYPE)

    async def healthz() -> Reply:
        # Never on BGP or the store: killing an agent because a router is down helps nobody.
        age_s = clock() - last_pass_s()
        if age_s > STUCK_S:
            return Reply(f"no pass has ended for {age_s:.0f} s\n".encode(), status=503)
        return Reply(b"ok\n")

    async def readyz() -> Reply:
        unready = readiness()
        if unready is not None:
            return Reply(f"{unready.code}: {unready.reason}\n".encode(), status=503)
        return Reply(b"ok\n")

    return {
        "/": page,
        "/live": content,
        METRICS_PATH: metrics,
        "/healthz": healthz,
        "/readyz": readyz,
    }
