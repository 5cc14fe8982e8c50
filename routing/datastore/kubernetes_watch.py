"""Reflector: one collection of the API server, mirrored: list, then watch, for ever.

A watch is asked to end after ``watch_s``, and taken for dead when it has not after ``slack_s``
more: a connection can die without a word, and nothing else tells a quiet cluster from a dead one
(bookmarks come about once a minute, or never). What follows a death is a list, not a resumption.

A mirror is *stale* from the first failure until a watch is accepted again. It says so only after a
grace, so that an API server that restarts is no news; it never empties.

Writes of our own go into the mirror at once (``put``, ``forget``), so that a snapshot after a write
holds it. Which of two versions is the newer is told by comparing resource versions as numbers,
which Kubernetes documents for objects of one collection; where one is not a number, what the server
said last wins. A uid that was deleted never comes back, whatever list is still under way.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import structlog

from routing.datastore.kubernetes_client import ApiServer, Object, Refused, Unreachable
from routing.datastore.snapshot import InvalidResource, StoreError

log = structlog.get_logger("routing.datastore")

DELETED_UIDS_MAX = 4096

V = TypeVar("V")
"""What an object is read as."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How patient a reflector is. Seconds."""

    watch_s: float = 45.0
    slack_s: float = 15.0
    grace_s: float = 5.0
    """How long a failed watch is not worth a word."""
    backoff_first_s: float = 0.25
    backoff_max_s: float = 30.0
    sync_wait_s: float = 5.0
    """How long a first snapshot waits for the first lists."""
    absent_retry_s: float = 30.0
    """How often it is asked again for what is forbidden or not there."""


@dataclass(frozen=True, slots=True)
class Entry(Generic[V]):
    """One object of the mirror."""

    value: V
    uid: str
    version: str
    created: str
    """creationTimestamp, RFC 3339 UTC with seconds: sorts as text."""


class Mirror(Protocol):
    """What a store asks of any reflector, whatever it mirrors."""

    @property
    def is_listed(self) -> bool: ...

    def stale_reason(self) -> str | None: ...


class Reflector(Generic[V]):
    """Mirrors one collection. ``run`` it as a task.

    Args:
        server: where from.
        path: the collection, such as ``/apis/slash32.io/v1/blocks``.
        read: an object's value; InvalidResource leaves it out of the mirror (or at its last good
            value) and into ``problems``.
        on_change: called when something of the mirror (or its staleness) changed.
        field_selector: to mirror only some of the collection.
        content: what of a value is worth a change notice; all of it by default.
        is_namespaced: whether the mirror's names are ``namespace/name``.
        may_be_absent: whether 403 and 404 mean an empty mirror and not a failure.
    """

    def __init__(
        self,
        server: ApiServer,
        path: str,
        read: Callable[[Object], V],
        on_change: Callable[[], None],
        *,
        field_selector: str = "",
        content: Callable[[V], object] | None = None,
        may_be_absent: bool = False,
        is_namespaced: bool = False,
        pace: Pace | None = None,
    ) -> None:
        self._server = server
        self._path = path
        self._read = read
        self._on_change = on_change
        self._content = content or (lambda value: value)
        self._query: dict[str, str | int] = (
            {"fieldSelector": field_selector} if field_selector else {}
        )
        self._may_be_absent = may_be_absent
        self._is_namespaced = is_namespaced
        self._pace = pace or Pace()
        self._entries: dict[str, Entry[V]] = {}
        self._problems: dict[str, str] = {}
        self._deleted_uids: deque[str] = deque(maxlen=DELETED_UIDS_MAX)
        self._version = ""
        self._is_listed = False
        self._fault = ""
        self._fault_at_s = 0.0
        self._failures = 0

    @property
    def is_listed(self) -> bool:
        """Whether the collection was read at least once (or is known to be absent)."""
        return self._is_listed

    @property
    def fault(self) -> str:
        """Why the mirror does not follow the server just now; "" when it does."""
        return self._fault

    @property
    def entries(self) -> Mapping[str, Entry[V]]:
        """The mirror, by name."""
        return self._entries

    @property
    def problems(self) -> Mapping[str, str]:
        """What could not be read, by name: the reader's sentence."""
        return self._problems

    def stale_reason(self) -> str | None:
        """Why the mirror must not be believed, once the grace is over; None when it may be."""
        if not self._fault or time.monotonic() - self._fault_at_s < self._pace.grace_s:
            return None
        return f"{self._path}: {self._fault}, {time.monotonic() - self._fault_at_s:.0f} s ago"

    # -- our own writes --------------------------------------------------------------------

    def put(self, document: Object) -> None:
        """Takes in an object as the server returned it from a write of ours."""
        if self._take(document):
            self._on_change()

    def forget(self, name: str, uid: str) -> None:
        """Takes out an object that we deleted."""
        self._deleted_uids.append(uid)
        held = self._entries.get(name)
        if held is not None and held.uid == uid:
            del self._entries[name]
            self._problems.pop(name, None)
            self._on_change()

    # -- following the server --------------------------------------------------------------

    async def run(self) -> None:
        """Lists and watches until cancelled."""
        while True:
            try:
                if not self._version:
                    await self._list()
                began_s = time.monotonic()
                await self._watch()
                if time.monotonic() - began_s >= min(1.0, self._pace.watch_s / 2):
                    continue
                # Accepted, and ended at once: a server on its way out. Not stale, but no hot loop.
                await asyncio.sleep(self._backoff_s())
            except StoreError as error:
                await asyncio.sleep(self._failed(error))
            except Exception as error:
                # A reflector that ended would leave a mirror that looks current for ever.
                log.exception("kubernetes_reflector_stumbled", path=self._path)
                self._version = ""
                await asyncio.sleep(self._failed(StoreError(f"{type(error).__name__}: {error}")))

    async def _list(self) -> None:
        objects, version = await self._server.list(self._path, query=self._query)
        if not version.strip():
            raise Unreachable(f"{self._server.name}: {self._path}: a list without a version")
        before = self._entries, dict(self._problems)
        # What we wrote after the moment of this list is newer than the list.
        kept = {
            name: entry
            for name, entry in self._entries.items()
            if _is_newer(entry.version, version) and entry.uid not in self._deleted_uids
        }
        old, self._entries, self._problems = self._entries, {}, {}
        for document in objects:
            self._take(document, old)
        for name, entry in kept.items():
            if name not in self._entries:
                self._entries[name] = entry
        self._version = version
        is_news = not self._is_listed or self._known(before[0]) != self._known(self._entries)
        self._is_listed = True
        if is_news or before[1] != self._problems:
            self._on_change()

    async def _watch(self) -> None:
        query: dict[str, str | int] = {
            **self._query,
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            # Spread, or all agents of a cluster would ask again in the same second.
            "timeoutSeconds": max(1, round(self._pace.watch_s * random.uniform(0.9, 1.0))),  # noqa: S311
        }
        deadline_s = self._pace.watch_s + self._pace.slack_s
        is_accepted = False
        try:
            async with (
                asyncio.timeout(deadline_s),
                self._server.watch(self._path, query=query) as events,
            ):
                is_accepted = True
                self._recovered()
                await self._follow(events)
        except TimeoutError:
            self._version = ""
            said = "watch fell silent" if is_accepted else "watch was not answered"
            raise Unreachable(f"{self._server.name}: {said} for {deadline_s:g} s") from None

    async def _follow(self, events: AsyncIterator[Object]) -> None:
        async for event in events:
            document = event.get("object")
            metadata = document.get("metadata") if isinstance(document, dict) else None
            if not isinstance(document, dict) or not isinstance(metadata, dict):
                raise Unreachable(f"{self._server.name}: {self._path}: an event without an object")
            is_news = False
            match event.get("type"):
                case "ADDED" | "MODIFIED":
                    is_news = self._take(document)
                case "DELETED":
                    is_news = self._drop(self._name(metadata), str(metadata.get("uid")))
                case _:
                    pass
            self._version = str(metadata.get("resourceVersion") or self._version)
            self._failures = 0
            if is_news:
                self._on_change()

    def _recovered(self) -> None:
        if self._fault:
            log.info("kubernetes_watch_recovered", path=self._path)
            self._fault = ""
            self._on_change()

    def _failed(self, error: StoreError) -> float:
        """Notes a failure; says how many seconds to wait before the next try."""
        asked_s = 0.0
        if isinstance(error, Refused):
            asked_s = error.retry_after_s or 0.0
            if error.status == 410:
                # The server no longer knows the moment we stopped at. No failure: we list.
                self._version = ""
                self._failures += 1
                return self._backoff_s() if self._failures > 1 else 0.0
            if error.status in (403, 404) and self._may_be_absent:
                self._become_absent()
                return self._pace.absent_retry_s * random.uniform(0.8, 1.2)  # noqa: S311
            if error.status in (400, 403, 404):
                # A version the server calls invalid (it was restored from a backup) is not kept.
                self._version = ""
        if not self._fault:
            self._fault_at_s = time.monotonic()
            log.warning("kubernetes_watch_failed", path=self._path, reason=str(error))
            self._fault = str(error)
            self._on_change()
        self._fault = str(error)
        return max(asked_s, self._backoff_s())

    def _backoff_s(self) -> float:
        """The next wait: doubled each time, and anything from half of it, so that agents that
        failed together do not come back together."""
        self._failures = min(self._failures + 1, 30)
        whole_s = min(
            self._pace.backoff_max_s, self._pace.backoff_first_s * 2.0 ** (self._failures - 1)
        )
        return whole_s * random.uniform(0.5, 1.0)  # noqa: S311

    def _become_absent(self) -> None:
        is_news = bool(self._entries) or not self._is_listed or bool(self._fault)
        self._entries, self._problems, self._version = {}, {}, ""
        self._is_listed, self._fault = True, ""
        if is_news:
            self._on_change()

    # -- the mirror ------------------------------------------------------------------------

    def _take(self, document: Object, old: Mapping[str, Entry[V]] | None = None) -> bool:
        """Takes in an object; whether that was news. ``old``: where last good values are."""
        metadata: Any = document.get("metadata") or {}
        name, uid = self._name(metadata), str(metadata.get("uid"))
        version = str(metadata.get("resourceVersion"))
        held = (self._entries if old is None else old).get(name)
        if uid in self._deleted_uids:
            return False
        if held is not None and held.uid == uid and _is_newer(held.version, version):
            if old is not None:
                self._entries[name] = held
            return False
        try:
            value = self._read(document)
        except InvalidResource as error:
            is_news = self._problems.get(name) != str(error)
            if is_news:
                log.warning("kubernetes_object_invalid", path=self._path, reason=str(error))
            self._problems[name] = str(error)
            if held is not None and held.uid == uid:
                self._entries[name] = held
            else:
                is_news |= self._entries.pop(name, None) is not None
            return is_news
        had_problem = self._problems.pop(name, None) is not None
        created = str(metadata.get("creationTimestamp") or "")
        self._entries[name] = Entry(value, uid, version, created)
        return had_problem or held is None or held.uid != uid or self._differs(held, value)

    def _name(self, metadata: Mapping[str, Any]) -> str:
        name = str(metadata.get("name"))
        return f"{metadata.get('namespace')}/{name}" if self._is_namespaced else name

    def _drop(self, name: str, uid: str) -> bool:
        held = self._entries.get(name)
        if held is not None and held.uid != uid:
            return False
        # The answer to a write of ours may still be on its way, and would bring it back.
        self._deleted_uids.append(uid)
        had_problem = self._problems.pop(name, None) is not None
        return self._entries.pop(name, None) is not None or had_problem

    def _differs(self, held: Entry[V], value: V) -> bool:
        return self._content(held.value) != self._content(value)

    def _known(self, entries: Mapping[str, Entry[V]]) -> dict[str, tuple[str, object]]:
        return {name: (entry.uid, self._content(entry.value)) for name, entry in entries.items()}


def _is_newer(one: str, other: str) -> bool:
    """Whether the one resource version is newer than the other, as far as that can be told."""
    return one.isdecimal() and other.isdecimal() and int(one) > int(other)
