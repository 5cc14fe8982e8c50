"""give_way: between two long steps, whatever has come in is dealt with first."""

from __future__ import annotations

import asyncio

TURNS = 6
"""Of the event loop: to be told of bytes, to read them, to wake who waits for them, who then sets
an event, to wake who waits for that, and one to spare. 0.1 ms in all when nothing has come."""


async def give_way() -> None:
    """Returns when what was there to be read has been read and acted upon.

    A single ``sleep(0)`` is not enough: its caller is in the queue before the loop even looks for
    what has come, and goes on before any of it. The loss of a router waited for every step of a
    whole pass over 100,000 routes, 0.3 s, instead of for one.
    """
    for _ in range(TURNS):
        await asyncio.sleep(0)
