"""Signals that end a command become an exception, so that cleaning up is a ``finally`` like any."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """The command was asked to end. Not an Exception: no handler on the way may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it the first signal raises Interrupted; later ones only ask for patience.

    Handlers and not SIG_IGN: a program started while a signal is ignored ignores it for ever.
    """
    was_asked = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal was_asked
        del frame
        if was_asked:
            print("slash32: cleaning up, please wait", file=sys.stderr, flush=True)
            return
        was_asked = True
        raise Interrupted(number)

    previous = {number: signal.signal(number, on_signal) for number in _NUMBERS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
