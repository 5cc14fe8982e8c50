"""LocalStore: the Datastore in one SQLite file, shared by the processes of one machine.

Every method is one transaction: rules are checked inside it, against the state it would leave, and
an error rolls all of it back. The resource version is one counter for the whole store, bumped by
every write, so a version never comes back, not even for a resource deleted and made again.

Methods are async to keep the protocol, but the SQLite calls run inline: a read takes well under a
millisecond, a commit about ten (its fsyncs), and agents commit only to claim a block or give one
back. The one wait that can be long, for another process's lock, is not inside SQLite (its busy
handler would stop the event loop, and the BGP session with it): the transaction is tried again
every 10 ms for up to 5 s.

Watching is asking ``PRAGMA data_version``, which counts commits, whenever the file is touched, and
every second besides; every 0.1 s where no hints can be had.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from routing.datastore.database import Busy, Database
from routing.datastore.file_watch import FileWatch
from routing.datastore.preconditions import (
    Key,
    already_exists,
    check_preconditions,
    named,
    not_found,
)
from routing.datastore.resources import (
    from_document,
    kind_of,
    spec_of,
    to_document,
    with_meta,
)
from routing.datastore.rules import check_deleted, check_written
from routing.datastore.snapshot import (
    Applied,
    BlockResource,
    InvalidResource,
    IPPoolResource,
    NotFound,
    Problem,
    Resource,
    Snapshot,
    StoreError,
    snapshot_of,
)
from routing.datastore.stored_blocks import StoredBlocks

log = logging.getLogger("routing.datastore")

POLL_S = 0.1
"""How often changed() looks where nobody tells it that the file was touched."""
SLOW_POLL_S = 1.0
"""And where it is told: a hint that was missed costs that much."""
BUSY_TIMEOUT_S = 5.0
BUSY_RETRY_S = 0.01

T = TypeVar("T")
Resources = list[Resource]
Pools = list[IPPoolResource]

_COLUMNS = "kind, name, uid, resource_version, generation, document"


class LocalStore(StoredBlocks):
    """A Datastore in one file. Use an instance from one thread only.

    Args:
        path: the file; its directory must exist.
        create: whether a missing file is made. A command that only reads says False, so that a
            mistyped path is an error and not an empty cluster.
        busy_timeout_s: how long to wait for another process's write.

    Raises:
        StoreError: the file is missing, broken, not ours or of a newer schema; it is unchanged.
    """

    def __init__(
        self, path: str | Path, *, create: bool = True, busy_timeout_s: float = BUSY_TIMEOUT_S
    ) -> None:
        self._path = Path(path)
        self._busy_timeout_s = busy_timeout_s
        self._database = Database(self._path, create=create)
        self._parsed: dict[Key, tuple[tuple[Any, ...], Resource]] = {}
        self._own_writes = 0
        self._seen: object = None
        self._watch = FileWatch(self._path)

    async def close(self) -> None:
        """Gives the file back; may be called twice."""
        self._watch.close()
        self._database.close()

    # -- reading ---------------------------------------------------------------------------

    async def snapshot(self) -> Snapshot:
        """Everything, of one moment.

        Raises:
            StoreError: the file cannot be read, or holds something that cannot.
        """

        def read(connection: sqlite3.Connection) -> tuple[Resources, object]:
            return list(self._rows(connection)), self._mark()

        resources, self._seen = await self._read(read)
        self._forget_parsed_except({_key(resource) for resource in resources})
        return snapshot_of(resources)

    async def changed(self) -> None:
        """Returns when something was written since the last snapshot(), at once if so already.

        Raises:
            StoreError: the file cannot be read any more (not at once, so that a caller that only
                asks again does not spin).
        """
        busy_s = BUSY_RETRY_S
        while self._seen is not None:
            has_hints = self._watch.arm()
            try:
                if self._mark() != self._seen:
                    return
            except Busy:
                # Between a writer's first page and its commit: of the commit no hint comes.
                await asyncio.sleep(busy_s)
                busy_s = min(2 * busy_s, POLL_S)
                continue
            except StoreError:
                await asyncio.sleep(POLL_S)
                raise
            if has_hints:
                await self._watch.hint(SLOW_POLL_S)
            else:
                await asyncio.sleep(POLL_S)

    def problems(self) -> Sequence[Problem]:
        """None: what breaks a rule does not get in here."""
        return ()

    async def get(self, kind: str, name: str) -> Resource:
        """One resource.

        Raises:
            NotFound: there is none.
            StoreError: the file cannot be read.
        """
        return await self._read(lambda connection: self._existing(connection, (kind, name)))

    async def list(self, kind: str) -> Resources:
        """All resources of a kind, by name.

        Raises:
            StoreError: the file cannot be read.
        """
        return await self._read(lambda connection: list(self._rows(connection, kind)))

    # -- writing ---------------------------------------------------------------------------

    async def create(self, resource: Resource) -> Resource:
        """Stores a new resource under a new uid.

        Raises:
            AlreadyExists: its kind and name are taken.
            InvalidResource: a rule forbids it.
            StoreError: the file cannot be written.
        """
        key = _key(resource)

        def work(connection: sqlite3.Connection) -> Resource:
            if self._find(connection, key) is not None:
                raise already_exists(key)
            return self._put(connection, None, resource)

        return await self._write(work)

    async def update(self, resource: Resource) -> Resource:
        """Replaces a resource whose resource version (and uid, if given) still match.

        Equal content is left as it is, version and all.

        Raises:
            NotFound: there is none.
            Conflict: it changed since it was read.
            InvalidResource: a rule forbids it.
            StoreError: the file cannot be written.
        """
        key = _key(resource)
        meta = resource.meta

        def work(connection: sqlite3.Connection) -> Resource:
            old = self._existing(connection, key)
            check_preconditions(old.meta, key, meta.resource_version, meta.uid or None)
            return self._put(connection, old, resource)

        return await self._write(work)

    async def delete(
        self, kind: str, name: str, *, resource_version: str | None = None, uid: str | None = None
    ) -> None:
        """Deletes a resource.

        Raises:
            NotFound: there is none.
            Conflict: a precondition that was given does not hold.
            InvalidResource: a rule forbids it.
            StoreError: the file cannot be written.
        """
        key = (kind, name)

        def work(connection: sqlite3.Connection) -> None:
            old = self._existing(connection, key)
            check_preconditions(old.meta, key, resource_version, uid)
            self._remove(connection, [old])

        await self._write(work)

    async def apply(self, resources: Sequence[Resource]) -> Sequence[Applied]:
        """Creates or updates all of them, or none, judged by the state they would leave.

        A resource with a resource version or a uid is only applied to that very version or object.

        Raises:
            NotFound: one names a version or uid, and is not there.
            Conflict: one names a version or uid that is not the stored one.
            InvalidResource: a rule forbids one.
            StoreError: the file cannot be written.
        """

        def work(connection: sqlite3.Connection) -> Sequence[Applied]:
            pairs = []
            for resource in resources:
                key, meta = _key(resource), resource.meta
                old = self._find(connection, key)
                if old is None and (meta.resource_version or meta.uid):
                    raise NotFound(f"{named(key)} is not there, yet a version of it was given")
                if old is not None:
                    check_preconditions(
                        old.meta, key, meta.resource_version or None, meta.uid or None
                    )
                pairs.append((old, self._put(connection, old, resource, is_checked=False)))
            for old, new in pairs:
                check_written(old, new, pools=lambda: self._pools(connection))
            return [Applied(new, _outcome(old, new)) for old, new in pairs]

        return await self._write(work)

    async def delete_all(self, keys: Sequence[Key]) -> None:
        """Deletes all of them, or none, judged by the state that would be left.

        Raises:
            NotFound: one is not there.
            InvalidResource: a rule forbids one.
            StoreError: the file cannot be written.
        """
        await self._write(
            lambda connection: self._remove(
                connection, [self._existing(connection, key) for key in keys]
            )
        )

    # -- transactions ----------------------------------------------------------------------

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def once() -> T:
            with self._database.reading() as connection:
                return work(connection)

        return await self._until_not_busy(once)

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def once() -> T:
            with self._database.writing() as connection:
                result = work(connection)
            self._own_writes += 1
            return result

        return await self._until_not_busy(once)

    async def _until_not_busy(self, once: Callable[[], T]) -> T:
        deadline_s = time.monotonic() + self._busy_timeout_s
        while True:
            try:
                return once()
            except Busy as error:
                if time.monotonic() >= deadline_s:
                    raise StoreError(f"{error}, for {self._busy_timeout_s:g} s already") from None
            await asyncio.sleep(BUSY_RETRY_S)

    def _mark(self) -> object:
        """What differs after any commit: whose file, others' commits, ours."""
        version = self._database.data_version()
        return (self._database.identity, version, self._own_writes)

    # -- rows ------------------------------------------------------------------------------

    def _rows(self, connection: sqlite3.Connection, kind: str | None = None) -> Iterator[Resource]:
        where, values = ("", ()) if kind is None else ("WHERE kind = ?", (kind,))
        query = f"SELECT {_COLUMNS} FROM resource {where} ORDER BY kind, name"  # noqa: S608
        for row in connection.execute(query, values):
            yield self._resource(row)

    def _find(self, connection: sqlite3.Connection, key: Key) -> Resource | None:
        query = f"SELECT {_COLUMNS} FROM resource WHERE kind = ? AND name = ?"  # noqa: S608
        row = connection.execute(query, key).fetchone()
        return None if row is None else self._resource(row)

    def _existing(self, connection: sqlite3.Connection, key: Key) -> Resource:
        found = self._find(connection, key)
        if found is None:
            raise not_found(key)
        return found

    def _pools(self, connection: sqlite3.Connection) -> Pools:
        return [r for r in self._rows(connection, "IPPool") if isinstance(r, IPPoolResource)]

    def _resource(self, row: tuple[Any, ...]) -> Resource:
        """The row's resource. Parsing is cached by the whole row: a rolled-back version number may
        come again with other content."""
        key = (row[0], row[1])
        cached = self._parsed.get(key)
        if cached is not None and cached[0] == row:
            return cached[1]
        _, _, uid, version, generation, text = row
        try:
            stored = from_document(json.loads(text), is_stored=True)
        except (ValueError, RecursionError, AttributeError, InvalidResource) as error:
            raise StoreError(f"store {self._path}: {named(key)} cannot be read: {error}") from None
        resource = with_meta(stored, resource_version=str(version), uid=uid, generation=generation)
        self._parsed[key] = (row, resource)
        return resource

    def _forget_parsed_except(self, keys: set[Key]) -> None:
        for key in [key for key in self._parsed if key not in keys]:
            del self._parsed[key]

    def _put(
        self,
        connection: sqlite3.Connection,
        old: Resource | None,
        new: Resource,
        *,
        is_checked: bool = True,
    ) -> Resource:
        """Writes one row and returns the resource as stored; equal content is not written."""
        if old is not None and _content(old) == _content(new):
            return old
        row = connection.execute("UPDATE counter SET value = value + 1 RETURNING value").fetchall()
        generation = 1
        if old is not None:
            generation = old.meta.generation + (spec_of(old) != spec_of(new))
        stored = with_meta(
            new,
            resource_version=str(row[0][0]),
            uid=_new_uid() if old is None else old.meta.uid,
            generation=generation,
        )
        connection.execute(
            f"INSERT OR REPLACE INTO resource ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608
            (
                *_key(stored),
                stored.meta.uid,
                row[0][0],
                generation,
                json.dumps(_content(stored)),
            ),
        )
        if is_checked:
            check_written(old, stored, pools=lambda: self._pools(connection))
        return stored

    def _remove(self, connection: sqlite3.Connection, resources: Sequence[Resource]) -> None:
        for resource in resources:
            connection.execute("DELETE FROM resource WHERE kind = ? AND name = ?", _key(resource))
        connection.execute("UPDATE counter SET value = value + 1")
        for resource in resources:
            check_deleted(
                resource,
                blocks=lambda: (
                    r for r in self._rows(connection, "Block") if isinstance(r, BlockResource)
                ),
            )


def _new_uid() -> str:
    """A UUID with the time (RFC 9562, version 7); of two BGPPeers the older counts."""
    moment_ms = time.time_ns() // 1_000_000 & (1 << 48) - 1
    # Of a random one all but its first 48 bits and the version; the variant is the same.
    rest = uuid.uuid4().int & (1 << 76) - 1
    return str(uuid.UUID(int=moment_ms << 80 | 7 << 76 | rest))


def _key(resource: Resource) -> Key:
    return (kind_of(resource), resource.meta.name)


def _content(resource: Resource) -> dict[str, Any]:
    """The document without what the store itself decides; with the passwords of a Secret, for the
    file (mode 0600) is where they are kept."""
    bare = with_meta(resource, resource_version="", uid="", generation=0)
    return to_document(bare, with_secrets=True)


def _outcome(old: Resource | None, new: Resource) -> str:
    if old is None:
        return "created"
    is_same = old.meta.resource_version == new.meta.resource_version
    return "unchanged" if is_same else "configured"
