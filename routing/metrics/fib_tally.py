"""Counts what passes through the Fib port: changes, drift that was repaired, UPDATE to kernel.

Around the port and not inside the driver or the loop: neither carries anything for it. The cost is
one look at each change, and nothing for what does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

from cni.timings import Delegate, Timings
from routing.delta import Delta, Failure
from routing.fib import Fib
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
        self._last_read: Mapping[RouteKey, Route] = {}
        self._base: Mapping[RouteKey, Route] = {}
        self._since: dict[RouteKey, Route | None] = {}

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
        self._last_read = routes
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
        failed = {failure.key for failure in failures}
        before, base = self._since, self._base
        if base is not self._last_read:
            self._base, self._since = self._last_read, {}
        created = {key: route for key, route in delta.create.items() if key not in failed}
        replaced = {key: new for key, (_, new) in delta.replace.items() if key not in failed}
        deleted = [key for key in delta.delete if key not in failed]
        for operation, done, tried in (
            ("create", created, delta.create),
            ("replace", replaced, delta.replace),
            ("delete", deleted, delta.delete),
        ):
            self._count(operation, OK, len(done))
            self._count(operation, FAILED, len(tried) - len(done))
        for operation, done in (("create", created), ("replace", replaced)):
            # It was so, as far as we knew, and nobody of us has undone it.
            again = sum(before.get(k, base.get(k)) == route for k, route in done.items())
            if again:
                self.drift[operation] = self.drift.get(operation, 0) + again
        self._since.update(created)
        self._since.update(replaced)
        self._since.update(dict.fromkeys(deleted))
        self.installed += len(created) - len(deleted)
        if self._in_pass_s is not None and self._is_remote(created, replaced, deleted, delta):
            self.update_to_kernel.observe((), self._clock() - self._in_pass_s)
            self._in_pass_s = None

    def _count(self, operation: str, result: str, number: int) -> None:
        if number:
            key = operation, result
            self.changes[key] = self.changes.get(key, 0) + number

    @staticmethod
    def _is_remote(
        created: Mapping[RouteKey, Route],
        replaced: Mapping[RouteKey, Route],
        deleted: Sequence[RouteKey],
        delta: Delta[RouteKey, Route],
    ) -> bool:
        gone = (delta.delete[key] for key in deleted)
        return any(
            hop.gateway is not None
            for routes in (created.values(), replaced.values(), gone)
            for route in routes
            for hop in route.next_hops
        )


class _Watched(Delegate):
    """A Fib that tells a FibTally what it does."""

    def __init__(self, fib: Fib, tally: FibTally) -> None:
        super().__init__(fib)
        self._fib = fib
        self._tally = tally

    async def read(self) -> dict[RouteKey, Route]:
        routes = await self._fib.read()
        self._tally.has_read(routes)
        return routes

    async def apply(self, delta: Delta[RouteKey, Route]) -> list[Failure[RouteKey]]:
        began_s = self._tally._clock()
        failures = await self._fib.apply(delta)
        self._tally.has_applied(delta, failures, self._tally._clock() - began_s)
        return failures
