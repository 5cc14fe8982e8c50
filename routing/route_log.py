"""What the log says of routes written: each by itself, or the numbers when there are too many.

A daemon that deletes our routes every second has them written again every second. The first lines
say which routes; a thousand more say nothing new and hide what matters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

import structlog

from routing.delta import Delta
from routing.routes import Route, RouteKey, next_hops_text

log = structlog.get_logger("routing.reconcile")

LOGGED_ONE_BY_ONE = 100
"""Of a bigger change only the numbers are logged: a line a route takes longer than the route."""
LINES_EACH_S = 1.0
"""Beyond the first hundred; they are a hundred again after a hundred quiet seconds."""
SUM_EACH_S = 10.0


class RouteLog:
    """One agent's. ``clock`` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left = float(LOGGED_ONE_BY_ONE)
        self._at_s = clock()
        self._summed: Counter[str] = Counter()
        self._summed_at_s = float("-inf")

    def tell(self, delta: Delta[RouteKey, Route], failed: Collection[RouteKey]) -> None:
        """One change of the kernel's table; ``failed`` are keys that it refused."""
        now_s = self._clock()
        self._left = min(LOGGED_ONE_BY_ONE, self._left + (now_s - self._at_s) * LINES_EACH_S)
        self._at_s = now_s
        if len(delta) <= self._left:
            self._left -= len(delta)
            self._each(delta, failed)
            return
        self._summed["created"] += len(delta.create)
        self._summed["replaced"] += len(delta.replace)
        self._summed["deleted"] += len(delta.delete)
        self._summed["failed"] += len(failed)
        # One big change is told at once.
        self.flush(is_due=len(delta) > LOGGED_ONE_BY_ONE)

    def flush(self, *, is_due: bool = False) -> None:
        """Writes the sums, at most once in ``SUM_EACH_S`` but when they are due."""
        now_s = self._clock()
        if self._summed and (is_due or now_s - self._summed_at_s >= SUM_EACH_S):
            self._summed_at_s = now_s
            numbers = {
                what: self._summed[what] for what in ("created", "replaced", "deleted", "failed")
            }
            self._summed.clear()
            log.info("routes_changed", **numbers)

    @staticmethod
    def _each(delta: Delta[RouteKey, Route], failed: Collection[RouteKey]) -> None:
        for key, route in delta.create.items():
            if key not in failed:
                log.info("route_created", prefix=str(key.prefix), next_hops=next_hops_text(route))
        for key, (old, new) in delta.replace.items():
            if key not in failed:
                log.info(
                    "route_replaced",
                    prefix=str(key.prefix),
                    old=next_hops_text(old),
                    next_hops=next_hops_text(new),
                )
        for key, route in delta.delete.items():
            if key not in failed:
                log.info("route_deleted", prefix=str(key.prefix), next_hops=next_hops_text(route))
