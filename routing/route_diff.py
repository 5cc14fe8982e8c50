"""What turns the kernel's routes into those that are wanted. Pure.

The laws are those of ``delta.diff``; apart from it because the many routes are compared as a whole
(tests/property/test_route_diff.py holds the two against each other).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bgp.nlri import Nlri, nlri_of
from routing.delta import Delta
from routing.route_table import Hops, Replacements, RouteTable, is_ours, key_of
from routing.routes import Route, RouteKey

Gate = Callable[[Route], str | None]
"""Why a route may not be deleted now, or None. It asks no more than whether a route leads to
gateways: of all that do, one is shown to it."""


@dataclass(frozen=True, slots=True)
class HeldRoutes:
    """Routes that would be deleted, and the gate that is closed: (key, gate) of single ones, and
    the many with theirs."""

    single: Sequence[tuple[RouteKey, str]] = ()
    grouped: Sequence[Nlri] = ()
    gate: str = ""

    def __bool__(self) -> bool:
        return bool(self.single or self.grouped)


def diff_routes(
    desired: RouteTable, actual: RouteTable, gate: Gate
) -> tuple[Delta[RouteKey, Route], HeldRoutes]:
    """The change that turns ``actual`` into ``desired``, and what is not deleted.

    Returns:
        A Delta of RouteTables and Replacements, and what the gate keeps.
    """
    create, replace, delete = RouteTable(), Replacements(), RouteTable()
    was_of = actual.grouped.get
    # Many change from the same to the same: what was compared just now is not compared again.
    before: Hops | None = None
    after: Hops | None = None
    change: tuple[Hops, Hops] | None = None
    for nlri, hops in desired.grouped.items():
        was = was_of(nlri)
        if was is hops:
            continue
        if was is None:
            create.grouped[nlri] = hops
            continue
        if was is not before or hops is not after:
            before, after = was, hops
            change = None if was == hops else (was, hops)
        if change is not None:
            replace.grouped[nlri] = change
    held_single: list[tuple[RouteKey, str]] = []
    for key, route in actual.single.items():
        wanted = desired.single.get(key)
        if wanted is None and is_ours(key):
            # Learned once with next hops of its own (a kernel without nexthop objects), or a pod's
            # address that is another node's now.
            place = nlri_of(key.prefix)
            if place in create.grouped:
                wanted = Route(key, create.grouped.pop(place))
        if wanted is None:
            reason = gate(route)
            if reason is None:
                delete.single[key] = route
            else:
                held_single.append((key, reason))
        elif wanted != route:
            replace.single[key] = route, wanted
    gone = actual.grouped.keys() - desired.grouped.keys()
    for key, route in desired.single.items():
        if key in actual.single:
            continue
        place = nlri_of(key.prefix)
        if place in gone and is_ours(key):
            gone.discard(place)
            replace.single[key] = Route(key, actual.grouped[place]), route
        else:
            create.single[key] = route
    reason = gate(_sample(gone, actual.grouped)) if gone else None
    if reason is not None:
        return Delta(create, replace, delete), HeldRoutes(held_single, sorted(gone), reason)
    delete.grouped = {nlri: actual.grouped[nlri] for nlri in gone}
    return Delta(create, replace, delete), HeldRoutes(held_single)


def _sample(nlris: set[Nlri], grouped: Mapping[Nlri, Hops]) -> Route:
    nlri = next(iter(nlris))
    return Route(key_of(nlri), grouped[nlri])
