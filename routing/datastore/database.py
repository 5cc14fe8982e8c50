"""Database: the embedded store's file. Created whole, recognised before it is touched.

Rollback journal (``journal_mode=DELETE``), not WAL. With WAL the newest commits live in a second
file, found by its name only: move or replace the store while somebody has it open, and the old log
is replayed into the new file (seen here, with SQLite 3.40: a node of the old store appeared in the
new one). With DELETE the one file is the whole store whenever nobody is in mid-commit, so that it
can be copied, moved and removed as people do. The price is about three fsyncs a commit instead of
one, and that a commit waits for readers; claims are rare and reads take a millisecond.
``synchronous=FULL``: a claim that was acknowledged must survive a power cut, or two nodes may own
a block.

The file is never opened but through SQLite: closing any other descriptor of it would drop this
process's POSIX locks, and with them the protection of its other connections.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from routing.datastore.snapshot import StoreError

OPEN_TIMEOUT_S = 1.0
"""The same while the file is being opened; only a commit in progress stands in the way."""
APPLICATION_ID = 0x733332AA
"""In the file's header (SQLite file format, offset 68): this file is ours."""
SCHEMA_VERSION = 1
BUSY_INLINE_S = 0.01
"""How long SQLite itself waits for a lock, once open. Most are gone sooner; a longer wait is the
caller's, who need not stop the event loop for it."""

_SCHEMA = (
    """CREATE TABLE resource (
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        uid TEXT NOT NULL,
        resource_version INTEGER NOT NULL,
        generation INTEGER NOT NULL,
        document TEXT NOT NULL,
        PRIMARY KEY (kind, name)
    ) STRICT, WITHOUT ROWID""",
    "CREATE TABLE counter (value INTEGER NOT NULL) STRICT",
    "INSERT INTO counter VALUES (0)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


class Busy(StoreError):
    """Another process is writing; nothing was done, and it is worth trying again."""


class Database:
    """One connection to the store's file, opened again when the file was replaced.

    Args:
        path: the file; its directory must exist.
        create: whether a missing file is made.

    Raises:
        StoreError: it is missing, unreadable, not ours, or of a newer schema. It was not changed.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._identity = (0, 0)
        self._is_closed = False
        if create and not os.path.lexists(path):
            self._create()
        self._open()

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode of the open file: another file at the same path has others."""
        return self._identity

    def close(self) -> None:
        """Gives the connection back; may be called twice."""
        self._is_closed = True
        self._drop()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One read transaction: everything read in it is of one moment.

        Raises:
            StoreError: the file cannot be read.
        """
        with self._transaction("BEGIN DEFERRED") as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One write transaction, rolled back when the body raises.

        Raises:
            Busy: another process holds the write lock; nothing was done.
            StoreError: the file cannot be written.
        """
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    def data_version(self) -> int:
        """A number that changes when another connection has committed (PRAGMA data_version).

        Raises:
            StoreError: the file cannot be read.
        """
        with self._errors():
            return int(self._current().execute("PRAGMA data_version").fetchone()[0])

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._errors():
            connection = self._current()
            connection.execute(begin)
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise Busy(f"store {self._path}: another process is writing to it") from None
            raise StoreError(f"store {self._path}: {error}") from None

    def _current(self) -> sqlite3.Connection:
        """The connection, to the file that is at the path now.

        A deleted or replaced file lives on for those who have it open; they would go on agreeing
        with each other about a cluster nobody else sees.
        """
        if self._is_closed:
            raise StoreError(f"store {self._path}: is closed")
        if self._connection is None or self._identity_now() != self._identity:
            self._drop()
            self._open()
        if self._connection is None:
            raise StoreError(f"store {self._path}: is not open")
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _identity_now(self) -> tuple[int, int]:
        try:
            found = os.stat(self._path)
        except OSError as error:
            self._drop()
            reason = "does not exist" if isinstance(error, FileNotFoundError) else error.strerror
            raise StoreError(f"store {self._path}: {reason}") from None
        return (found.st_dev, found.st_ino)

    def _open(self) -> None:
        self._identity = self._identity_now()
        if not self._path.is_file():
            raise StoreError(f"store {self._path}: is not a regular file")
        with self._errors():
            self._recognise()
            connection = sqlite3.connect(
                _uri(self._path, "mode=rw"), uri=True, isolation_level=None, timeout=OPEN_TIMEOUT_S
            )
            try:
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA trusted_schema = OFF")
                connection.execute("SELECT value FROM counter").fetchone()
                connection.execute(f"PRAGMA busy_timeout = {int(BUSY_INLINE_S * 1000)}")
            except BaseException:
                connection.close()
                raise
            self._connection = connection

    def _recognise(self) -> None:
        """Reads the header only, as an immutable file: no lock, no journal, no side files."""
        connection = sqlite3.connect(_uri(self._path, "mode=ro&immutable=1"), uri=True)
        try:
            application_id = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise StoreError(f"store {self._path}: is not a slash32 store ({error})") from None
        finally:
            connection.close()
        if application_id != APPLICATION_ID:
            raise StoreError(f"store {self._path}: is not a slash32 store")
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"store {self._path}: was written by a newer slash32 (schema {version}; this one "
                f"knows {SCHEMA_VERSION})"
            )

    def _create(self) -> None:
        """Makes the file under another name and links it into place, whole or not at all.

        Of processes that race here one wins, and the others find its file; none ever sees half.
        """
        directory = self._path.parent
        if not directory.is_dir():
            raise StoreError(f"store {self._path}: directory {directory} does not exist")
        journal = f"{self._path}-journal"
        if os.path.lexists(journal) and not os.path.lexists(self._path):
            # SQLite would play it back into the new file.
            raise StoreError(
                f"store {self._path}: {journal} is left of a store that is gone; remove it first"
            )
        temporary = directory / f".{self._path.name}.{uuid.uuid4().hex}.new"
        try:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            with self._errors():
                _fill(temporary)
            with contextlib.suppress(FileExistsError):
                os.link(temporary, self._path)
            _sync_directory(directory)
        except OSError as error:
            raise StoreError(f"store {self._path}: cannot be created: {error.strerror}") from None
        finally:
            for suffix in ("", "-journal"):
                with contextlib.suppress(OSError):
                    os.unlink(f"{temporary}{suffix}")


def _fill(path: Path) -> None:
    connection = sqlite3.connect(_uri(path, "mode=rw"), uri=True, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN EXCLUSIVE")
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.execute("COMMIT")
    finally:
        connection.close()


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _uri(path: Path, parameters: str) -> str:
    return f"file:{quote(os.path.abspath(path))}?{parameters}"
