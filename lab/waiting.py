"""Waiting for a condition or for work, and telling a person what is waited for."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_futures
from typing import TextIO, TypeVar

from lab import interrupts
from lab.plan import LabFailure

POLL_S = 0.05

Item = TypeVar("Item")
Result = TypeVar("Result")


class Progress:
    """Prints one line per step, with the seconds since the start."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._start_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._start_s

    def say(self, text: str) -> None:
        print(f"[{self.elapsed_s:5.1f} s] {text}", file=self._stream, flush=True)


def wait_until(
    missing: Callable[[], list[str]], *, what: str, deadline_s: float, poll_s: float = POLL_S
) -> None:
    """Returns once ``missing()`` is empty.

    Args:
        missing: what is still lacking, a sentence each; may raise LabFailure to give up early.
        what: named in the failure.

    Raises:
        LabFailure: something was still missing after ``deadline_s``; names the first three.
    """
    end_s = time.monotonic() + deadline_s
    while lacking := missing():
        interrupts.check()
        if time.monotonic() >= end_s:
            some = "; ".join(lacking[:3])
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            raise LabFailure(f"{what}: not within {deadline_s:g} s: {some}{more}")
        time.sleep(poll_s)


def in_parallel(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    at_once: int,
    on_failure: Callable[[], None] = lambda: None,
) -> list[Result]:
    """What ``work`` returns for each item, in the items' order; several at a time.

    Whatever fails first, or a signal, ends it: what has not begun is not begun, ``on_failure`` is
    called to hurry up what has, and that is waited for.

    Raises:
        Exception: whatever ``work`` raised first.
        Interrupted: the command was asked to end.
    """
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            pending = set(futures)
            while pending:
                interrupts.check()
                done, pending = wait_for_futures(
                    pending, timeout=POLL_S, return_when=FIRST_EXCEPTION
                )
                for future in done:
                    future.result()
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            on_failure()
            raise
