"""cni.turns: one at a time for each attachment, in the order of asking, and nothing left behind."""

import asyncio

import pytest

from cni.attachment import Attachment
from cni.turns import Turns

ONE, OTHER = Attachment("net", "c1", "eth0"), Attachment("net", "c2", "eth0")
DEADLINE_S = 5.0


async def test_turns_of_one_attachment_come_in_order_and_others_do_not_wait():
    """The entry lives as long as somebody wants it."""
    turns, seen = Turns(), []
    gate = asyncio.Event()

    async def work(name: str, attachment: Attachment) -> None:
        async with turns.of(attachment):
            seen.append(name)
            await gate.wait()
        seen.append(f"{name} ended")

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        for name in ("a", "b", "c"):
            tasks.create_task(work(name, ONE))
        tasks.create_task(work("other", OTHER))
        await asyncio.sleep(0)
        assert seen == ["a", "other"]
        gate.set()
    assert [each for each in seen if "other" not in each and "ended" not in each] == ["a", "b", "c"]
    assert seen.index("a ended") < seen.index("b ended") < seen.index("c ended")
    assert len(turns) == 0


@pytest.mark.parametrize("has_come", [False, True])
async def test_a_turn_that_is_cancelled_is_passed_on(has_come: bool):
    """Before it came, and in the very moment it came."""
    turns, seen = Turns(), []

    async def work(name: str) -> None:
        async with turns.of(ONE):
            seen.append(name)

    async with asyncio.timeout(DEADLINE_S):
        await turns.take(ONE)
        second, third = asyncio.create_task(work("second")), asyncio.create_task(work("third"))
        await asyncio.sleep(0)
        if has_come:
            turns.give(ONE)
            second.cancel()
        else:
            second.cancel()
            await asyncio.sleep(0)
            turns.give(ONE)
        await third
        with pytest.raises(asyncio.CancelledError):
            await second
    assert seen == ["third"]
    assert len(turns) == 0


async def test_an_error_gives_the_turn_back():
    """Whatever happens inside."""
    turns = Turns()
    with pytest.raises(KeyError):
        async with turns.of(ONE):
            raise KeyError
    assert len(turns) == 0
