"""One at a time for each attachment; attachments never wait for each other.

A lock for every attachment would do, and costs an ADD as much as its parsing: hardly ever does
anybody wait. So an attachment has an entry only while somebody has its turn, and a queue only while
somebody waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

from cni.attachment import Attachment


class Turns:
    """Who works on which attachment. For one event loop's thread."""

    def __init__(self) -> None:
        self._taken: dict[Attachment, deque[asyncio.Future[None]]] = {}

    def of(self, attachment: Attachment) -> Turn:
        """For ``async with``: waits for the attachment's turn, first come first served."""
        return Turn(self, attachment)

    def __len__(self) -> int:
        return len(self._taken)

    async def take(self, attachment: Attachment) -> None:
        """Returns when it is the caller's turn, who must ``give`` it back."""
        waiting = self._taken.get(attachment)
        if waiting is None:
            self._taken[attachment] = deque()
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(attachment)  # it had come just now, and nobody would pass it on
            raise

    def give(self, attachment: Attachment) -> None:
        """The next one's turn."""
        waiting = self._taken[attachment]
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._taken[attachment]


class Turn:
    """One turn of one attachment, taken and given by ``async with``."""

    __slots__ = ("_attachment", "_turns")

    def __init__(self, turns: Turns, attachment: Attachment) -> None:
        self._turns = turns
        self._attachment = attachment

    async def __aenter__(self) -> None:
        await self._turns.take(self._attachment)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._turns.give(self._attachment)
