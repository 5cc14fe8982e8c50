"""Reporter: writes what this node reports, when it changes, and now and then as a sign of life.

For people, and for the cluster's collector, which believes a node alive while its report moves.
Nothing of the node's work waits for it: what cannot be written is written later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Protocol

import structlog

from routing.datastore.snapshot import EventNote, NodeStatusResource, StoreError
from routing.node_report import Noticed, essence, news, node_status
from routing.view import Belief

log = structlog.get_logger("routing.reporting")

LOOK_EVERY_S = 5.0
HEARTBEAT_S = 60.0


class Board(Protocol):
    """What is asked of a StatusBoard."""

    async def put_node_status(self, status: NodeStatusResource) -> None:
        """Creates or replaces the NodeStatus of a node. Raises StoreError."""

    async def set_network_unavailable(self, node: str, why: str | None) -> None:
        """Sets the node's condition; None: its network works. Raises StoreError."""

    async def note_event(self, event: EventNote) -> None:
        """Records an event for people. Raises StoreError."""


class Reporter:
    """One node's.

    Args:
        board: where reports and Events go.
        belief: what the agent believes now.
        unready: why CNI STATUS refuses, or None.
        starved: pools that a pod was refused an address of.
        clock: monotonic seconds.
        wall: the time of day.
    """

    def __init__(
        self,
        board: Board,
        *,
        belief: Callable[[], Awaitable[Belief]],
        unready: Callable[[], str | None],
        starved: Callable[[], Mapping[str, str]],
        clock: Callable[[], float],
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._board = board
        self._belief = belief
        self._unready = unready
        self._starved = starved
        self._clock = clock
        self._wall = wall
        self._written: NodeStatusResource | None = None
        self._written_s = float("-inf")
        self._condition: str | None = None
        """What the Node's condition was last set to."""
        self._noticed = Noticed()
        self.fault: str | None = None
        """Why the last report could not be written, or None."""

    async def run(self, every_s: float = LOOK_EVERY_S) -> None:
        """Looks for ever."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.look()
            except Exception:
                # A report is not worth an agent, whatever it stumbled over.
                log.exception("report_failed")

    async def look(self) -> None:
        """One look; writes what is due. Never raises for what cannot be written."""
        belief = await self._belief()
        found = news(belief, self._starved(), self._noticed)
        self._noticed = found.noticed
        unready = self._unready()
        status = node_status(belief, unready=unready, now=self._wall(), before=self._written)
        is_due = self._clock() - self._written_s >= HEARTBEAT_S
        try:
            if is_due or self._written is None or essence(status) != essence(self._written):
                await self._board.put_node_status(status)
                self._written, self._written_s = status, self._clock()
            if is_due or unready != self._condition:
                await self._board.set_network_unavailable(status.meta.name, unready)
                self._condition = unready
            for event in found.events:
                await self._board.note_event(event)
        except StoreError as error:
            if self.fault is None:
                log.warning("report_not_written", error=str(error))
            self.fault = str(error)
        else:
            self.fault = None
