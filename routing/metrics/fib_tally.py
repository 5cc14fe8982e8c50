"""Counts what passes through the Fib port: changes, drift that was repaired, UPDATE to kernel.

Around the port and not inside the driver or the loop: neither carries anything for it. The cost is
one look at each change, and nothing for what does not change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar, cast

from bgp.nlri import Nlri, nlri_of
from cni.timings import Delegate, Timings
from routing.delta import Delta, Failure
from routing.fib import Fib
from routing.route_table import Replacements, RouteTable
from routing.route_work import Work
from routing.routes import Route, RouteKey

F = TypeVar("F")

FAILED = "failed"
OK = "ok"


class FibTally:
    """What one Fib has done since the agent started.

    Attributes:
        changes: (operation, ok or failed) -> how many routes.
        drift: operation -> how many routes were brought back that we had put there and somebody
            else had removed or changed.
        installed: how many routes of ours the kernel holds.
        update_to_kernel: seconds from the first UPDATE that a pass learned of to the kernel's
            acknowledgement of the routes that follow from it; the key is ().
        applying: seconds one batch of changes took; the key is ().
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.changes: dict[tuple[str, str], int] = {}
        self.drift: dict[str, int] = {}
        self.installed = 0
        self.update_to_kernel = Timings()
        self.applying = Timings()
        self._heard_s: float | None = None
        self._in_pass_s: float | None = None
        self._table = RouteTable()
        """The table as the driver last gave it. It lives on: what we change, it shows."""
        self._before = RouteTable()
        """The one before, as it was last: what was in it and is wanted again, others took."""
        self._is_mine = True
        self._undone: set[RouteKey | Nlri] = set()
        """What we ourselves have deleted or replaced since the present table was read."""

    def heard_update(self) -> None:
        """An UPDATE changed the Adj-RIB-In; the first since the last pass looked counts."""
        if self._heard_s is None:
            self._heard_s = self._clock()

    def around(self, fib: F) -> F:
        """``fib`` with ``read`` and ``apply`` counted."""
        return cast(F, _Watched(cast(Fib, fib), self))

    # -- what _Watched tells --------------------------------------------------------------------

    def has_read(self, routes: Mapping[RouteKey, Route]) -> None:
        """A pass begins with this: what was heard before is in it, what comes later is not."""
        if routes is not self._table:
            # Another Fib than the kernel's may answer with a table that does not live on.
            self._is_mine = not isinstance(routes, RouteTable)
            self._before, self._table = self._table, RouteTable.of(routes)
            self._undone = set()
        self.installed = len(routes)
        self._in_pass_s, self._heard_s = self._heard_s, None

    def has_applied(
        self,
        delta: Delta[RouteKey, Route],
        failures: Sequence[Failure[RouteKey]],
        duration_s: float,
    ) -> None:
        """A batch is done; ``failures`` are those of its changes that did not happen."""
        self.applying.observe((), duration_s)
        if len(delta) == 1 and not failures and not delta.replace and self._in_pass_s is None:
            self._has_done_one(delta)
            return
        failed = Counter(failure.operation for failure in failures)
        for operation, tried in (
            ("create", delta.create),
            ("replace", delta.replace),
            ("delete", delta.delete),
        ):
            self._count(operation, OK, len(tried) - failed[operation])
            self._count(operation, FAILED, failed[operation])
        failed_keys = {failure.key for failure in failures}
        self._count_drift(delta, failed_keys)
        if self._is_mine:
            Work.of(delta).put_into(self._table, failed_keys)
        self.installed = len(self._table)
        if self._in_pass_s is not None and len(failures) < len(delta) and _is_remote(delta):
            self.update_to_kernel.observe((), self._clock() - self._in_pass_s)
            self._in_pass_s = None

    def _has_done_one(self, delta: Delta[RouteKey, Route]) -> None:
        """What ``has_applied`` comes to for a pod's route, which every ADD and DEL brings."""
        for key, route in delta.create.items():
            self._count("create", OK, 1)
            if key not in self._undone and self._before.find(key) == route:
                self.drift["create"] = self.drift.get("create", 0) + 1
            if self._is_mine:
                self._table.put(route)
        for key in delta.delete:
            self._count("delete", OK, 1)
            self._undone.add(key)
            if self._is_mine:
                self._table.drop(key)
        self.installed = len(self._table)

    def _count_drift(self, delta: Delta[RouteKey, Route], failed: set[RouteKey]) -> None:
        """What was so, as far as we knew, and nobody of us has undone."""
        spared = self._undone | failed | {nlri_of(key.prefix) for key in failed}
        for operation, wanted in (("create", delta.create), ("replace", delta.replace)):
            number = sum(place not in spared for place in _as_before(self._before, wanted))
            if number:
                self.drift[operation] = self.drift.get(operation, 0) + number
        for routes in (delta.delete, delta.replace):
            if isinstance(routes, RouteTable | Replacements):
                self._undone.update(routes.single, routes.grouped)
            else:
                self._undone.update(routes)

    def _count(self, operation: str, result: str, number: int) -> None:
        if number:
            key = operation, result
            self.changes[key] = self.changes.get(key, 0) + number


def _as_before(
    before: RouteTable, wanted: Mapping[RouteKey, Route | tuple[Route, Route]]
) -> Iterator[RouteKey | Nlri]:
    """What of ``wanted`` ``before`` has, and just so."""
    singles: Mapping[RouteKey, Route | tuple[Route, Route]] = wanted
    was = before.grouped.get
    if isinstance(wanted, RouteTable):
        singles = wanted.single
        yield from [nlri for nlri, hops in wanted.grouped.items() if was(nlri) is hops]
    elif isinstance(wanted, Replacements):
        singles = wanted.single
        yield from [nlri for nlri, (_, hops) in wanted.grouped.items() if was(nlri) is hops]
    for key, route in singles.items():
        if before.get(key) == (route[1] if isinstance(route, tuple) else route):
            yield key


def _is_remote(delta: Delta[RouteKey, Route]) -> bool:
    """Whether a route through a gateway is among the changes."""
    for routes in (delta.create, delta.delete):
        if any(hop.gateway is not None for route in routes.values() for hop in route.next_hops):
            return True
    return any(
        hop.gateway is not None for _, new in delta.replace.values() for hop in new.next_hops
    )


class _Watched(Delegate):
    """A Fib that tells a FibTally what it does."""

    def __init__(self, fib: Fib, tally: FibTally) -> None:
        super().__init__(fib)
        self._fib = fib
        self._tally = tally

    async def read(self) -> Mapping[RouteKey, Route]:
        routes = await self._fib.read()
        self._tally.has_read(routes)
        return routes

    async def apply(self, delta: Delta[RouteKey, Route]) -> list[Failure[RouteKey]]:
        began_s = self._tally._clock()
        failures = await self._fib.apply(delta)
        self._tally.has_applied(delta, failures, self._tally._clock() - began_s)
        return failures
