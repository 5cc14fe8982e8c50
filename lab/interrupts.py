"""Signals that end a command, noticed where the command can be left, and nowhere else.

A handler that raises does so between any two instructions: also within Popen, after the child was
forked and before anybody holds it, and that child then writes into a directory that is just being
removed. So the handler only remembers, and ``check`` raises: before a program is run, and while
something is waited for. From there on cleaning up is a ``finally`` like any.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """The command was asked to end. Not an Exception: no handler on the way may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@dataclass(slots=True)
class _Asked:
    """The first signal that came; ``is_over`` once ``check`` shall not raise for it (any more)."""

    number: int | None = None
    is_over: bool = False


_asked = _Asked()


def check() -> None:
    """A place where the command may be left; does nothing in other threads than the main one.

    Raises:
        Interrupted: a signal has come since ``interruptible`` began; once only, so that what
            cleans up is not interrupted itself.
    """
    if _asked.number is None or _asked.is_over:
        return
    if threading.current_thread() is threading.main_thread():
        _asked.is_over = True
        raise Interrupted(_asked.number)


def shield() -> None:
    """From here on the command is cleaning up, and a signal only asks for patience."""
    _asked.is_over = True


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it a first signal is remembered for ``check``; later ones only ask for patience.

    Handlers and not SIG_IGN: a program started while a signal is ignored ignores it for ever.
    """
    global _asked
    asked = _asked = _Asked()

    def on_signal(number: int, frame: FrameType | None) -> None:
        del frame
        if asked.number is None and not asked.is_over:
            asked.number = number
        else:
            print("slash32: cleaning up, please wait", file=sys.stderr, flush=True)

    previous = {number: signal.signal(number, on_signal) for number in _NUMBERS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _asked = _Asked()
