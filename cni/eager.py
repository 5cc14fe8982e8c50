"""Coroutines that seldom wait, run without a task until they do.

An ADD inside a block of ours and most other verbs never wait for anything: all they ask is the
kernel, and it answers inside the call. A task, two turns of the loop and a timer cost such a verb
as much as its parsing. So the first step of a coroutine is taken where its request was read; only
one that has to wait becomes a task, and only then does its deadline begin to run.

``asyncio.timeout`` and ``asyncio.current_task`` need a task. Code that runs here uses ``bounded``
instead of the one and does without the other.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")


def start(
    coroutine: Coroutine[Any, Any, None],
    *,
    loop: asyncio.AbstractEventLoop,
    name: str,
    on_end: Callable[[], None],
) -> asyncio.Task[None] | None:
    """Takes the first step; the task that takes the others, or None when there are none.

    The task must not be cancelled before the loop's next turn: a task that never began does not
    enter its coroutine, and this one has begun.

    Args:
        coroutine: raises nothing of its own accord.
        on_end: called once it has ended, however it did, before this returns or from the loop.
    """
    context = copy_context()
    try:
        waits_for = context.run(coroutine.send, None)
    except StopIteration:
        on_end()
        return None
    except BaseException:
        on_end()
        raise
    task = loop.create_task(_others(coroutine, waits_for), name=name, context=context)
    task.add_done_callback(lambda _task: on_end())
    return task


async def bounded(coroutine: Coroutine[Any, Any, T], deadline_s: float) -> T:
    """What ``coroutine`` returns; cancelled when it has waited for ``deadline_s``.

    Raises:
        TimeoutError: it was cancelled.
    """
    try:
        waits_for = coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    if asyncio.current_task() is None:
        try:
            await asyncio.sleep(0)  # from here on we are one
        except BaseException as error:
            # Whatever it has begun is its own to undo.
            return await _others(coroutine, error)
    async with asyncio.timeout(deadline_s):
        return await _others(coroutine, waits_for)


async def _others(coroutine: Coroutine[Any, Any, T], waits_for: Any) -> T:
    """Every step but the first.

    Args:
        waits_for: what the first step ended with, or an exception that ends the waiting.
    """
    return await _resumed(coroutine, waits_for)


@types.coroutine
def _resumed(coroutine: Coroutine[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    value: Any = None
    raised = waits_for if isinstance(waits_for, BaseException) else None
    # None waits for nothing but the loop's next turn, and that has come.
    is_first = raised is None and waits_for is not None
    while True:
        if is_first:
            is_first = False
        else:
            try:
                waits_for = coroutine.send(value) if raised is None else coroutine.throw(raised)
            except StopIteration as done:
                result: T = done.value
                return result
        raised = None
        try:
            value = yield waits_for
        except BaseException as error:
            raised = error
