"""Structured logs: one line per change, JSON in a pod, readable on a terminal.

Event names are static, everything that varies is a key. Never a secret, stdin or environment.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from typing import TextIO

import structlog

from routing.printable import printable

SECRET_WORDS = ("password", "secret", "token", "stdin", "environ")
"""A key with one of these in its name has a value that is nobody's business."""


def configure_logging(*, level: str, style: str) -> None:
    """Sets up structlog and the standard library's logging to write one stream on stderr.

    Args:
        level: a logging level's name, such as ``info``.
        style: ``json`` or ``console``.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        hide_secrets,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, *renderers(style, colors=sys.stderr.isatty())],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # Which line of which thread of which process wrote it is in no line of ours; finding out costs
    # more than the line (the standard library's "Optimization" page).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    vars(logging)["_srcfile"] = None
    # Leaves log through the standard library, so that they need no structlog.
    root = logging.getLogger()
    root.handlers[:] = [LeafHandler(sys.stderr, LeafFormatter(style=style))]
    root.setLevel(number)


def renderers(style: str, *, colors: bool = False) -> list[structlog.typing.Processor]:
    """What makes the line of an event; the last of them returns it as text."""
    if style == "json":
        return [structlog.processors.JSONRenderer()]
    return [on_one_line, structlog.dev.ConsoleRenderer(colors=colors)]


def on_one_line(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Every text of an event printable; a traceback keeps its lines."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception":
            event[key] = printable(value)
    return event


def hide_secrets(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Stars for what must not be logged under any circumstances, by the name of its key.

    Nobody logs such a thing on purpose; this is for the one who spreads a whole object into a line.
    """
    for key in event:
        if any(word in key.lower() for word in SECRET_WORDS):
            event[key] = "***"
    return event


class LeafFormatter(logging.Formatter):
    """One line in the form of the structured ones, for records of the standard library.

    Not structlog's own bridge: a pod's ADD and DEL log a line each, and through the bridge those
    two lines cost 0.7 ms of CPU, as much as all the kernel does for the pod.
    """

    def __init__(self, *, style: str) -> None:
        super().__init__()
        self._is_json = style == "json"
        self._second = (0, "")

    def format(self, record: logging.LogRecord) -> str:
        """The line; a traceback follows it, or is a key of it."""
        trouble = self.formatException(record.exc_info) if record.exc_info else ""
        stamp, level, event = (
            self._stamp(record.created),
            record.levelname.lower(),
            record.getMessage(),
        )
        if self._is_json:
            line = {"event": event, "level": level, "timestamp": stamp, "logger": record.name}
            return json.dumps(line | ({"exception": trouble} if trouble else {}))
        return f"{stamp} [{level:<9}] {printable(event)}" + (f"\n{trouble}" if trouble else "")

    def _stamp(self, created_s: float) -> str:
        second = int(created_s)
        if self._second[0] != second:
            self._second = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
        return f"{self._second[1]}.{int((created_s - second) * 1e6):06d}Z"


class LeafHandler(logging.Handler):
    """Writes the lines, without filters, and each by one write: stderr flushes at a line's end.

    The standard library's, which flushes and locks again, costs a pod's line as much as its text.
    """

    def __init__(self, stream: TextIO, formatter: LeafFormatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._stream = stream
        self._lines = formatter
        self._writing = threading.Lock()

    def handle(self, record: logging.LogRecord) -> bool:
        """As the standard library's, without filters."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Never raises: who logs has something else to do."""
        try:
            line = f"{self._lines.format(record)}\n"
            with self._writing:
                self._stream.write(line)
        except Exception:
            self.handleError(record)


class RepeatFilter:
    """Lets a repeated line through when it changes, and counts what it held back.

    A failing pass fails again every second; the operator wants the first line, the change, and
    how often it came, not a flood. ``limit`` bounds the memory: the oldest key is forgotten.
    """

    def __init__(self, limit: int = 1024) -> None:
        self._seen: dict[str, tuple[str, int]] = {}
        self._limit = limit

    def admit(self, key: str, text: str) -> int | None:
        """How many identical lines were held back before this one, or None to hold it back."""
        previous = self._seen.pop(key, None)
        if previous is not None and previous[0] == text:
            self._seen[key] = (text, previous[1] + 1)
            return None
        self._seen[key] = (text, 0)
        if len(self._seen) > self._limit:
            self._seen.pop(next(iter(self._seen)))
        return previous[1] if previous else 0

    def retain(self, keys: set[str]) -> None:
        """Forgets every key not given: what stopped failing is news when it fails again."""
        self._seen = {key: value for key, value in self._seen.items() if key in keys}
