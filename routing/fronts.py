"""Routes of ours that stand in front of another program's. Pure.

The kernel keys a route by (table, destination, metric), so ``ip route replace`` with our metric
takes a route of ours away and holds its place. What is not ours is never touched; ours goes to the
metric before it, which the kernel prefers, and back when the place has been free for a while.

Tables of routes know only the ordinary place (``routes.in_place``): where the kernel has a route is
the driver's business alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from routing.routes import FRONT_METRIC, RouteKey


@dataclass(frozen=True, slots=True)
class Front:
    """One such route. ``behind`` names who holds its ordinary place; None since ``free_since_s``:
    nobody but us."""

    behind: str | None
    free_since_s: float


class Fronts:
    """All of one kernel's, by ordinary place. Clocks are given, in seconds."""

    def __init__(self) -> None:
        self._all: dict[RouteKey, Front] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, key: object) -> bool:
        return key in self._all

    def __iter__(self) -> Iterator[RouteKey]:
        return iter(self._all)

    def set(self, found: Mapping[RouteKey, str | None], now_s: float) -> None:
        """What the kernel holds now: place -> who is behind. A place that was free stays free
        since then."""
        self._all = {key: self._made(key, behind, now_s) for key, behind in found.items()}

    def put(self, key: RouteKey, behind: str | None, now_s: float) -> None:
        """One has been written."""
        self._all[key] = self._made(key, behind, now_s)

    def drop(self, key: RouteKey) -> None:
        """One is gone, or back in its place."""
        self._all.pop(key, None)

    def contested(self) -> dict[RouteKey, str]:
        """Place -> a sentence that names who holds it."""
        return {
            key: f"held by {front.behind}; ours is in front of it at metric {FRONT_METRIC}"
            for key, front in self._all.items()
            if front.behind is not None
        }

    def due(self, after_s: float, now_s: float) -> tuple[list[RouteKey], float | None]:
        """(places that have been free for ``after_s``, in how many seconds the next one is)."""
        free = {k: f.free_since_s + after_s for k, f in self._all.items() if f.behind is None}
        later = [at_s - now_s for at_s in free.values() if at_s > now_s]
        return [key for key, at_s in free.items() if at_s <= now_s], min(later, default=None)

    def _made(self, key: RouteKey, behind: str | None, now_s: float) -> Front:
        before = self._all.get(key)
        was_free = before is not None and before.behind is None and behind is None
        return Front(behind, before.free_since_s if before and was_free else now_s)
