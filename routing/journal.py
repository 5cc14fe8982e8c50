"""The journal: every change with its reason, on this node's disk, bounded in size.

Lines of JSON, appended after the pass that made the change; two files of at most ``max_bytes``
each, the older one given up when the newer is full. It is for people: a journal that cannot be
written is told once and costs nothing else. Pods come and go without a pass, so theirs are noted
by the next one.

Comparing two passes takes tens of milliseconds at ten thousand routes, so it is done in a thread of
its own: no ADD and no UPDATE waits for it. A thread is not enough when a table arrives: two of them
take turns in one interpreter, and what is written about routes would take longer than the routes.
So what is about many waits for a moment in which no pass ends.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import structlog

from routing.changes import Entry, SessionMark, changes, marks_of
from routing.report import PassReport
from routing.routes import Address, RouteKey

log = structlog.get_logger("routing.journal")

MAX_BYTES = 4 << 20
"""About 20,000 entries a file."""
ENTRIES_AT_ONCE = 2000
"""What one pass may write; a full table that comes at once is summed up beyond it."""
MANY = 100
"""Prefixes; a note about fewer is written at once."""
CALM_S = 1.0
"""So long no pass has ended: what was arriving is there."""
CALM_WITHIN_S = 10.0
"""On a busy node there is no such moment."""


class Journal:
    """One agent's writer.

    Args:
        path: the newer file; the older has ``.1`` behind its name.
        clock: seconds since the epoch.
    """

    def __init__(
        self, path: Path, *, clock: Callable[[], float], max_bytes: int = MAX_BYTES
    ) -> None:
        self._path = path
        self._clock = clock
        self._max_bytes = max_bytes
        self._sessions: dict[Address, SessionMark] = {}
        self._problem: str | None = None
        self._noted_at_s = time.monotonic()
        self._is_closing = threading.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="journal")

    def note(self, before: PassReport, after: PassReport, sessions: Mapping[Address, Any]) -> None:
        """Has what one pass changed written soon, in order. Never raises."""
        was, self._sessions = self._sessions, marks_of(sessions)
        self._noted_at_s = time.monotonic()
        self._worker.submit(self._write, before, after, was, self._sessions, self._clock())

    def add(self, entry: Entry) -> None:
        """Has one entry that no pass made written, in order with theirs. Never raises."""
        self._worker.submit(self._keep, [entry], self._clock())

    def close(self) -> None:
        """Returns once all that was noted is written. Closing twice is harmless."""
        self._is_closing.set()
        self._worker.shutdown(wait=True)

    def _await_calm(self) -> None:
        now_s = time.monotonic()
        end_s = now_s + CALM_WITHIN_S
        while (due_s := min(self._noted_at_s + CALM_S, end_s)) > now_s:
            if self._is_closing.wait(due_s - now_s):
                return
            now_s = time.monotonic()

    def _write(
        self,
        before: PassReport,
        after: PassReport,
        was: Mapping[Address, SessionMark],
        marks: Mapping[Address, SessionMark],
        now_s: float,
    ) -> None:
        if max(len(before.desired.remote.outcomes), len(after.desired.remote.outcomes)) > MANY:
            self._await_calm()
        try:
            entries = [
                as_found(entry, before, after, was) for entry in changes(before, after, was, marks)
            ]
        except Exception as error:
            # A future would swallow it.
            log.exception("journal_failed", error=str(error))
            return
        if not entries:
            return
        left_out = max(0, len(entries) - ENTRIES_AT_ONCE) + after.untold
        if left_out:
            entries = entries[:ENTRIES_AT_ONCE]
            entries.append({"kind": "journal", "action": "left-out", "detail": str(left_out)})
        self._keep(entries, now_s)

    def _keep(self, entries: list[Entry], now_s: float) -> None:
        try:
            self._append([{"at": round(now_s, 3), **entry} for entry in entries])
            self._problem = None
        except OSError as error:
            reason = error.strerror or str(error)
            if reason != self._problem:
                self._problem = reason
                log.warning("journal_not_written", path=str(self._path), reason=reason)

    def _append(self, entries: list[Entry]) -> None:
        raw = "".join(f"{json.dumps(each, separators=(',', ':'))}\n" for each in entries).encode()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            os.write(descriptor, raw)
        finally:
            os.close(descriptor)
        if size + len(raw) > self._max_bytes:
            os.replace(self._path, _older(self._path))


def as_found(
    entry: Entry,
    before: PassReport,
    after: PassReport,
    sessions_before: Mapping[Address, SessionMark],
) -> Entry:
    """The entry, with the action ``found`` where a new agent met what was there already.

    An agent that starts knows nothing, and to it everything is new: a session that its predecessor
    left up, a route that the kernel held. To who asks what has changed, nothing has. Pure.
    """
    kind, action = entry["kind"], entry["action"]
    is_first = not before.passes
    if (kind, action) == ("session", "up"):
        is_found = ip_address(entry["peer"]) not in sessions_before
    elif (kind, action) == ("route", "created"):
        # A pod's route is written by its ADD, before any pass: there that is no sign.
        key = RouteKey(ip_network(entry["prefix"]))
        is_held = after.actual.get(key) == after.desired.routes.get(key)
        is_found = is_held and (is_first or entry.get("of") == "remote")
    else:
        is_found = is_first and (kind, action) == ("announcement", "announced")
    return {**entry, "action": "found"} if is_found else entry


def _older(path: Path) -> Path:
    return path.with_name(path.name + ".1")


END_BYTES = 256 << 10
"""About 1,200 entries: more than a page shows, and read in milliseconds."""


def read_journal_end(path: Path, *, max_bytes: int = END_BYTES) -> list[Entry]:
    """The newest entries, oldest first: what is in the last ``max_bytes`` of the journal.

    Raises:
        OSError: there is a journal and it cannot be read.
    """
    found: list[Entry] = []
    read: set[int] = set()
    for each in (path, _older(path)):
        try:
            with each.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino in read:
                    break  # The newer one became the older one since it was read.
                read.add(status.st_ino)
                size = status.st_size
                file.seek(max(0, size - max_bytes))
                lines = file.read(max_bytes).split(b"\n")
        except FileNotFoundError:
            continue
        # What the seek has cut in two parses as nothing, or is no object.
        found = [entry for line in lines if (entry := _parsed(line)) is not None] + found
        max_bytes -= min(size, max_bytes)
        if not max_bytes:
            break
    return found


def _parsed(line: bytes) -> Entry | None:
    try:
        entry = json.loads(line)
        return entry if isinstance(entry, dict) and float(entry["at"]) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def read_journal(path: Path, *, since: float = 0.0) -> Iterator[Entry]:
    """The entries from ``since`` (seconds since the epoch) on, oldest first.

    A line that was cut short by a crash is left out.

    Raises:
        OSError: there is a journal and it cannot be read.
    """
    for each in (_older(path), path):
        try:
            file = each.open("rb")
        except FileNotFoundError:
            continue
        with file:
            for line in file:
                entry = _parsed(line)
                if entry is not None and float(entry["at"]) >= since:
                    yield entry
