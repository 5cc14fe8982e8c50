"""FakeLeases: leases in a dict under compare-and-swap, with switches for what goes wrong."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace
from itertools import count

from routing.controller.election import Lease, LeaseConflict, LeaseError


class FakeLeases:
    """Switches: ``fail_next`` (nothing happens), ``lose_answer_next`` (it happens, nobody knows),
    ``is_away`` (every call fails)."""

    def __init__(self) -> None:
        self.stored: dict[str, Lease] = {}
        self.is_away = False
        self._versions = count(1)
        self._faults: deque[str] = deque()

    def fail_next(self, *, times: int = 1) -> None:
        """The next writes fail and change nothing."""
        self._faults.extend(["fail"] * times)

    def lose_answer_next(self) -> None:
        """The next write happens, and its caller is told that it failed."""
        self._faults.append("lost answer")

    async def get(self, name: str) -> Lease | None:
        await self._reach()
        return self.stored.get(name)

    async def create(self, lease: Lease) -> Lease:
        await self._reach()
        if lease.name in self.stored:
            raise LeaseConflict("is there already")
        return self._write(lease)

    async def update(self, lease: Lease) -> Lease:
        await self._reach()
        found = self.stored.get(lease.name)
        if found is None or found.version != lease.version:
            raise LeaseConflict("changed meanwhile")
        return self._write(lease)

    async def _reach(self) -> None:
        await asyncio.sleep(0)
        if self.is_away:
            raise LeaseError("fake leases: unreachable")

    def _write(self, lease: Lease) -> Lease:
        fault = self._faults.popleft() if self._faults else ""
        if fault == "fail":
            raise LeaseError("fake leases: refused")
        stored = replace(lease, version=str(next(self._versions)))
        self.stored[lease.name] = stored
        if fault:
            raise LeaseError("fake leases: timed out")
        return stored
