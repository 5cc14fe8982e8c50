"""The last hour's changes, as the log told them; bounded, in memory.

A page wants to show what has just happened, and the log has a line for every change. It is kept
here as it passes, after secrets were hidden. A journal on disk can stand in its place: whoever
shows the lines needs ``since`` alone.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

KEEP_S = 3600.0
KEEP_LINES = 2000
SHOWN_KEYS_MAX = 12
TEXT_MAX_CHARACTERS = 400
_NO_DETAIL = frozenset({"event", "level", "timestamp", "logger", "exception", "exc_info"})


@dataclass(frozen=True, slots=True)
class Line:
    """One change. ``at_s`` is Unix time; ``detail`` the keys and values."""

    at_s: float
    level: str
    event: str
    detail: str = ""


class Recent(Protocol):
    """Where a page gets what happened lately."""

    def since(self, at_s: float) -> list[Line]:
        """What happened since then (Unix time), newest first."""


class RecentLines(logging.Handler):
    """Keeps what passes: a processor of structlog, and a handler for the standard library."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__(logging.INFO)
        self._clock = clock
        self._lines: deque[Line] = deque(maxlen=KEEP_LINES)

    def __call__(
        self, _logger: object, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """For structlog: keeps the line and passes it on."""
        keys = [key for key in event if key not in _NO_DETAIL][:SHOWN_KEYS_MAX]
        detail = " ".join(f"{key}={event[key]}" for key in keys)
        self._keep(str(event.get("level", method)), str(event.get("event", "")), detail)
        return event

    def emit(self, record: logging.LogRecord) -> None:
        """For the standard library: ``event key=value ...``, as our leaves write it."""
        event, _, detail = record.getMessage().partition(" ")
        self._keep(record.levelname.lower(), event, detail)

    def _keep(self, level: str, event: str, detail: str) -> None:
        self._lines.append(Line(self._clock(), level, event, detail[:TEXT_MAX_CHARACTERS]))

    def since(self, at_s: float) -> list[Line]:
        """What happened since then, newest first, an hour at most."""
        oldest_s = max(at_s, self._clock() - KEEP_S)
        return [line for line in reversed(self._lines) if line.at_s >= oldest_s]
