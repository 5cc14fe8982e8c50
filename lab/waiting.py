"""Waiting for a condition, and telling a person what is waited for."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from lab.plan import LabFailure

POLL_S = 0.05


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
        if time.monotonic() >= end_s:
            some = "; ".join(lacking[:3])
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            raise LabFailure(f"{what}: not within {deadline_s:g} s: {some}{more}")
        time.sleep(poll_s)
