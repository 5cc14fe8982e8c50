"""Leases in a file beside the embedded store: all candidates are processes of one machine.

The file is advice, as every lease is: what cannot be read is no lease, and two that are elected at
once do no harm. It is rewritten in place, under its own lock, so that the lock stays with it.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path

from routing.controller.election import Lease, LeaseConflict, LeaseError

LOCK_TRIES = 20
LOCK_RETRY_S = 0.01
FILE_MAX_BYTES = 1 << 16


class FileLeases:
    """Every lease in one file. Its directory must exist."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def get(self, name: str) -> Lease | None:
        """The lease as stored. Raises LeaseError."""
        async with self._locked() as file:
            return _load(file).get(name)

    async def create(self, lease: Lease) -> Lease:
        """Stores a new lease. Raises LeaseConflict, LeaseError."""
        async with self._locked() as file:
            leases = _load(file)
            if lease.name in leases:
                raise LeaseConflict(f"lease {lease.name} is there already")
            return _store(file, leases, replace(lease, version="1"))

    async def update(self, lease: Lease) -> Lease:
        """Replaces a lease of that very version. Raises LeaseConflict, LeaseError."""
        async with self._locked() as file:
            leases = _load(file)
            found = leases.get(lease.name)
            if found is None or found.version != lease.version:
                raise LeaseConflict(f"lease {lease.name} was written by another process")
            return _store(file, leases, replace(lease, version=str(int(found.version) + 1)))

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[int]:
        """The open file under its lock. Not a blocking wait: a stopped process may hold it."""
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise LeaseError(f"{self._path}: {error.strerror}") from None
        try:
            await self._lock(file)
            yield file
        except OSError as error:
            raise LeaseError(f"{self._path}: {error.strerror}") from None
        finally:
            os.close(file)

    async def _lock(self, file: int) -> None:
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await asyncio.sleep(LOCK_RETRY_S)
            else:
                return
        raise LeaseError(f"{self._path} is locked by another process")


def _load(file: int) -> dict[str, Lease]:
    """The leases of the file; none when it is empty or not ours."""
    try:
        rows = json.loads(os.pread(file, FILE_MAX_BYTES, 0))
        leases = [Lease(**row) for row in rows]
        return {each.name: each for each in leases if each.version.isdecimal()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _store(file: int, leases: dict[str, Lease], lease: Lease) -> Lease:
    rows = [asdict(each) for each in (leases | {lease.name: lease}).values()]
    raw = json.dumps(rows).encode()
    # Longer first, cut afterwards: killed in between, the file is no JSON and so no lease.
    os.pwrite(file, raw, 0)
    os.ftruncate(file, len(raw))
    return lease
