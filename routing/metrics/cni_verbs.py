"""CNI requests by command and outcome, counted around the Verbs port of cni/server.py."""

from __future__ import annotations

import time
from collections.abc import Callable

from cni.server import Answer, Verbs, code_and_sentence
from cni.spec import Request
from cni.timings import OK, Timings

CANCELLED = "cancelled"

WIRING_PHASES = {
    "create": "create_link",
    "configure_pod": "configure_pod",
    "remove": "remove_link",
}
HOST_ROUTE_PHASES = {"ensure": "route", "forget": "unroute"}
ALLOCATOR_PHASES = {"assign": "assign", "release": "release"}


class TimedVerbs:
    """Verbs that are measured: the key is (command, ``ok`` or the error code's name)."""

    def __init__(
        self, verbs: Verbs, timings: Timings, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._verbs = verbs
        self._timings = timings
        self._clock = clock

    async def handle(self, request: Request, netns_fd: int | None) -> Answer | None:
        """Passes on what the verbs answer or raise."""
        began_s, outcome = self._clock(), CANCELLED
        try:
            result = await self._verbs.handle(request, netns_fd)
            outcome = OK
        except Exception as error:
            outcome = code_and_sentence(error)[0].name.lower()
            raise
        finally:
            self._timings.observe((request.command.value, outcome), self._clock() - began_s)
        return result

    async def close(self) -> None:
        """Ends what runs in the background."""
        await self._verbs.close()
