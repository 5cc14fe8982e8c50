"""Election: which of several controllers does the work. A matter of economy, never of correctness.

A lease is a record that its holder renews. Who finds it unchanged for as long as it is good for
takes it over, by compare-and-swap. "For as long" is measured with one's own monotonic clock, from
when one first saw that very version: the times written in the record are for people, since clocks
of machines differ. A holder counts its term from before it asked for the renewal, and so ends it
before anybody else can have begun one, as long as clocks run equally fast.

All the same two may believe to be elected (a process stopped in mid-step and continued). So
whatever an elected controller does must be harmless when two do it: compare-and-swap everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

import structlog

log = structlog.get_logger("routing.controller")

DURATION_S = 15
"""How long a lease is good for after it was last seen to change; as Kubernetes' own components."""
TERM_SHARE = 2 / 3
"""The part of it during which the holder itself believes to be elected."""
STEP_S = 2.0
FOREIGN_DURATION_MAX_S = 300
"""A record that claims to be good for longer is not believed: it would stop the work for good."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Who holds what for how long.

    ``holder`` "" means nobody. ``transitions`` counts changes of hands. ``renewed_at`` is RFC 3339
    UTC, for people. ``version`` is opaque, what compare-and-swap compares; "" before it is stored.
    """

    name: str
    holder: str
    duration_s: int = DURATION_S
    transitions: int = 0
    renewed_at: str = ""
    version: str = ""


class LeaseError(Exception):
    """The lease could not be read or written; what it holds is unknown."""


class LeaseConflict(LeaseError):
    """Somebody else wrote it first (or it exists already, or is gone)."""


class Leases(Protocol):
    """Where leases are kept. All methods raise LeaseError."""

    async def get(self, name: str) -> Lease | None:
        """The lease as stored, or None."""

    async def create(self, lease: Lease) -> Lease:
        """Stores a new lease. Raises LeaseConflict when there is one."""

    async def update(self, lease: Lease) -> Lease:
        """Replaces the lease if its version still matches. Raises LeaseConflict."""


class Election:
    """One candidate.

    Args:
        leases: where the lease is.
        name: which lease.
        identity: this process, unlike any other and unlike its predecessor.
        clock: monotonic seconds.
        duration_s: what this candidate's lease is good for.
        wall: the time of day, for people.
    """

    def __init__(
        self,
        leases: Leases,
        *,
        name: str,
        identity: str,
        clock: Callable[[], float],
        duration_s: int = DURATION_S,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._leases = leases
        self._name = name
        self._identity = identity
        self._clock = clock
        self._duration_s = duration_s
        self._wall = wall
        self._seen: Lease | None = None
        self._seen_s = 0.0
        self._elected_until_s = float("-inf")
        self.fault: str | None = None
        """Why the lease cannot be had or read at present; None also when another one has it."""

    @property
    def is_elected(self) -> bool:
        """Whether this candidate may work now. To be asked again before each piece of work."""
        return self._clock() < self._elected_until_s

    @property
    def holder(self) -> str:
        """Who held the lease when it was last seen; "" for nobody."""
        return "" if self._seen is None else self._seen.holder

    async def run(self) -> None:
        """Steps for ever; gives the lease back when it is cancelled."""
        try:
            while True:
                await self.step()
                await asyncio.sleep(STEP_S * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
        finally:
            with contextlib.suppress(LeaseError, asyncio.CancelledError):
                await self.resign()

    async def step(self) -> bool:
        """Looks at the lease, takes or renews it if it may. Returns whether it is elected."""
        was_elected = self.is_elected
        asked_s = self._clock()
        try:
            found = await self._leases.get(self._name)
            if self._may_take(found):
                await self._take(found, asked_s)
            else:
                self._elected_until_s = float("-inf")
            self.fault = None
        except LeaseConflict as error:
            log.debug("lease_lost_to_another", reason=str(error))
            self.fault = None
        except LeaseError as error:
            # Still elected until the term is over, if it was: the record cannot have changed hands.
            self.fault = str(error)
        if self.is_elected != was_elected:
            log.info("elected" if self.is_elected else "not_elected", holder=self.holder)
        return self.is_elected

    async def resign(self) -> None:
        """Gives the lease back, so that nobody waits for its end.

        Raises:
            LeaseError: it was not given back, and ends by itself.
        """
        if not self.is_elected or self._seen is None:
            return
        self._elected_until_s = float("-inf")
        self._note(await self._leases.update(replace(self._seen, holder="")))

    def _may_take(self, found: Lease | None) -> bool:
        if found is None:
            self._seen = None
            return True
        if found != self._seen:
            self._note(found)
        if found.holder in ("", self._identity):
            return True
        good_for_s = min(found.duration_s, FOREIGN_DURATION_MAX_S)
        return self._clock() - self._seen_s >= good_for_s

    async def _take(self, found: Lease | None, asked_s: float) -> None:
        mine = Lease(
            self._name,
            self._identity,
            self._duration_s,
            renewed_at=self._wall().strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        )
        if found is None:
            self._note(await self._leases.create(mine))
        else:
            changes = found.holder != self._identity
            self._note(
                await self._leases.update(
                    replace(
                        mine, version=found.version, transitions=found.transitions + int(changes)
                    )
                )
            )
        self._elected_until_s = asked_s + self._duration_s * TERM_SHARE

    def _note(self, lease: Lease) -> None:
        self._seen, self._seen_s = lease, self._clock()
