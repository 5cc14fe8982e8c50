"""What a page shows of the last hour: the end of the journal on disk (routing/journal.py).

The same that ``slash32 history`` tells, so that a restart of the agent takes nothing away. Only the
end of the file is read, for a page that somebody leaves open asks every few seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from routing.journal import read_journal_end

KEEP_S = 3600.0
TEXT_MAX_CHARACTERS = 400
_ALARMING = frozenset(
    {
        ("session", "down"), ("session", "flapped"), ("failure", "began"), ("path", "rejected"),
        ("route", "repaired"), ("address", "released"),
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One change. ``at_s`` is Unix time; ``detail`` what it concerns, and why."""

    at_s: float
    level: str
    event: str
    detail: str = ""


class Recent(Protocol):
    """Where a page gets what happened lately."""

    def since(self, at_s: float) -> list[Line]:
        """What happened since then (Unix time), newest first. May read a file."""


class JournalRecent:
    """From a node's journal.

    Args:
        path: the journal's newer file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def since(self, at_s: float) -> list[Line]:
        """What happened since then, newest first; one line that says so when it cannot be read."""
        try:
            entries = read_journal_end(self._path)
        except OSError as error:
            return [Line(at_s, "warning", "journal", f"cannot be read: {error.strerror}")]
        return [line_of(each) for each in reversed(entries) if float(each["at"]) >= at_s]


def line_of(entry: Mapping[str, Any]) -> Line:
    """An entry of the journal as a page's line."""
    kind, action = str(entry.get("kind", "")), str(entry.get("action", ""))
    subject = [str(entry[key]) for key in ("prefix", "what", "peer") if entry.get(key)]
    words = [" ".join(subject), *(str(entry[k]) for k in ("reason", "detail") if entry.get(k))]
    return Line(
        float(entry["at"]),
        "warning" if (kind, action) in _ALARMING else "info",
        f"{kind} {action}",
        "; ".join(word for word in words if word)[:TEXT_MAX_CHARACTERS],
    )
