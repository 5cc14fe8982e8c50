"""cni.eager: what never waits needs no task, what waits becomes one, and a deadline ends it."""

import asyncio
from contextvars import ContextVar

import pytest

from cni.eager import bounded, start

PLACE: ContextVar[str] = ContextVar("place", default="outside")
DEADLINE_S = 5.0


async def begun(coroutine, ended: list[str]) -> asyncio.Task[None] | None:
    """``start`` from a callback of the loop, where no task is current."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[asyncio.Task[None] | None] = loop.create_future()

    def call() -> None:
        assert asyncio.current_task() is None
        on_end = lambda: ended.append("end")  # noqa: E731
        done.set_result(start(coroutine, loop=loop, name="test", on_end=on_end))

    loop.call_soon(call)
    return await done


async def test_what_never_waits_has_ended_when_start_returns():
    """No task, no turn of the loop."""
    seen: list[str] = []

    async def work() -> None:
        seen.append("worked")

    assert await begun(work(), seen) is None
    assert seen == ["worked", "end"]


async def test_what_waits_goes_on_as_a_task_in_the_context_it_began_in():
    """And its end is told once, from the loop."""
    seen: list[str] = []
    gate = asyncio.get_running_loop().create_future()

    async def work() -> None:
        token = PLACE.set("inside")
        seen.append(await gate)
        seen.append(PLACE.get())
        PLACE.reset(token)  # raises in another context

    task = await begun(work(), seen)
    assert task is not None
    assert seen == []
    assert PLACE.get() == "outside"
    gate.set_result("came")
    async with asyncio.timeout(DEADLINE_S):
        await task
    assert seen == ["came", "inside", "end"]


async def test_an_error_is_the_tasks_and_the_end_is_told():
    """Whoever looks at the task finds it."""
    seen: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0)
        raise KeyError("broken")

    task = await begun(work(), seen)
    assert task is not None
    with pytest.raises(KeyError, match="broken"):
        await task
    await asyncio.sleep(0)  # a task's end is told in the loop's next turn
    assert seen == ["end"]


@pytest.mark.parametrize("has_task", [True, False])
async def test_a_deadline_cancels_what_waits_and_lets_it_tidy_up(has_task: bool):
    """With a task from the start and with one that had to be made."""
    seen: list[str] = []

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)
            seen.append("undone")

    async def serve() -> None:
        try:
            await bounded(work(), 0.01)
        except TimeoutError:
            seen.append("late")

    async with asyncio.timeout(DEADLINE_S):
        if has_task:
            await serve()
        else:
            task = await begun(serve(), [])
            assert task is not None
            await task
    assert seen == ["undone", "late"]


async def test_bounded_gives_the_result_waited_for_or_not():
    """By both ways."""

    async def at_once() -> int:
        return 1

    async def later() -> int:
        await asyncio.sleep(0)
        return 2

    assert await bounded(at_once(), DEADLINE_S) == 1
    assert await bounded(later(), DEADLINE_S) == 2


async def test_a_task_cancelled_before_the_deadline_began_to_run_is_undone_too():
    """The server closes between the first step and the loop's next turn."""
    seen: list[str] = []

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            seen.append("undone")
            raise

    async def serve() -> None:
        await bounded(work(), DEADLINE_S)

    task = await begun(serve(), seen)
    assert task is not None
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["undone", "end"]
