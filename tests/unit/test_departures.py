"""A DEL answers when the kernel announces the link gone, and by the remover's end otherwise."""

from __future__ import annotations

import asyncio

from cni.departures import Departures


async def test_everybody_who_waits_for_a_link_hears_that_it_is_gone():
    """Two verbs may wait for one name; another name is not their news."""
    departures = Departures()
    with departures.expect("s32a") as one, departures.expect("s32a") as two:
        departures.tell("s32b")
        assert not one.done()
        departures.tell("s32a")
        async with asyncio.timeout(1):
            await asyncio.gather(one, two)


async def test_news_nobody_waits_for_is_kept_for_nobody():
    """An old announcement must not answer for a later link of the same name."""
    departures = Departures()
    departures.tell("s32a")
    with departures.expect("s32a") as gone:
        assert not gone.done()
    departures.tell("s32a")
    assert departures._waiting == {}
