"""What comes in between two steps is acted upon before the second."""

from __future__ import annotations

import asyncio
import socket

from routing.give_way import give_way


async def acted_after(pause) -> bool:
    """Whether bytes that came during a step have got through a stream and an event, as a session's
    loss does, by the end of the pause after it."""
    here, there = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=here)
    lost, acted = asyncio.Event(), asyncio.Event()

    async def read() -> None:
        await reader.readline()
        lost.set()

    async def act() -> None:
        await lost.wait()
        acted.set()

    tasks = [asyncio.create_task(read()), asyncio.create_task(act())]
    await asyncio.sleep(0)
    there.send(b"down\n")
    await pause()
    has_acted = acted.is_set()
    there.close()
    await asyncio.gather(*tasks)
    writer.close()
    return has_acted


async def test_what_has_come_is_acted_upon():
    """Through a reader's task and the one that waits for its event."""
    assert await acted_after(give_way)


async def test_one_turn_is_not_enough():
    """The control: the simpler thing goes on before any of it."""
    assert not await acted_after(lambda: asyncio.sleep(0))
