"""What the agent's HTTP server answers, by path."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from cni.attach import Unready
from routing.metrics.observing import CONTENT_TYPE, Scrape
from routing.web.server import METRICS_PATH, Reply

STUCK_S = 300.0
"""A pass ends well within this whatever the network does; later the loop hangs."""


def pages(
    *,
    scrape: Scrape,
    readiness: Callable[[], Unready | None],
    last_pass_s: Callable[[], float],
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Callable[[], Awaitable[Reply]]]:
    """The metrics and the two probes.

    Args:
        last_pass_s: when the last pass ended, or when the agent started if none has.
    """

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

    return {METRICS_PATH: metrics, "/healthz": healthz, "/readyz": readyz}
