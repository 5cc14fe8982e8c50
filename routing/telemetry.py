"""Structured logs: one line per change, JSON in a pod, readable on a terminal.

Event names are static, everything that varies is a key. Never a secret, stdin or environment.
"""

from __future__ import annotations

import logging
import sys

import structlog


def configure_logging(*, level: str, style: str) -> None:
    """Sets up structlog and the standard library's logging to write one stream on stderr.

    Args:
        level: a logging level's name, such as ``info``.
        style: ``json`` or ``console``.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # Leaves log through the standard library, so that they need no structlog.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared)
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)


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
