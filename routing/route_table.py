"""A table of routes: the few that are values, and the many that only have a next hop. Pure.

To everybody it is a mapping of RouteKey to Route. Inside, a route that leads to gateways is an
entry of ``grouped``, its destination's bytes (``bgp.nlri``) to its next hops; pods' routes and
blackholes are in ``single`` as they are. A hundred thousand learned routes share a few tuples of
next hops, are compared by identity, and become values only where somebody looks at them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bgp.nlri import Nlri, nlri_of, prefix_of
from routing.routes import METRIC, TABLE_MAIN, NextHop, Route, RouteKey, next_hop_order

Hops = tuple[NextHop, ...]

_KNOWN_MAX = 65_536
_known: dict[Hops, Hops] = {}


def hops_of(hops: Iterable[NextHop]) -> Hops:
    """These next hops in their order, and mostly the one object for them."""
    ordered = tuple(sorted(hops, key=next_hop_order))
    if len(_known) >= _KNOWN_MAX:
        # Two objects for the same next hops are equal still, only slower to compare.
        _known.clear()
    return _known.setdefault(ordered, ordered)


def is_grouped(*hops: Hops) -> bool:
    """Whether routes with these next hops name a group: they have gateways, all of them."""
    return all(each and all(hop.gateway is not None for hop in each) for each in hops)


def key_of(nlri: Nlri) -> RouteKey:
    """The key of an entry of ``grouped``."""
    return RouteKey(prefix_of(nlri))


@dataclass(slots=True, eq=False)
class RouteTable(Mapping[RouteKey, Route]):
    """Routes by key. ``grouped`` ones have our metric in the main table; no key is in both."""

    single: dict[RouteKey, Route] = field(default_factory=dict)
    grouped: dict[Nlri, Hops] = field(default_factory=dict)

    @classmethod
    def of(cls, routes: Mapping[RouteKey, Route]) -> RouteTable:
        """``routes``, each where it belongs."""
        if isinstance(routes, RouteTable):
            return routes
        table = cls()
        for key, route in routes.items():
            if is_ours(key) and is_grouped(route.next_hops):
                table.grouped[nlri_of(key.prefix)] = hops_of(route.next_hops)
            else:
                table.single[key] = route
        return table

    def __getitem__(self, key: RouteKey) -> Route:
        route = self.find(key)
        if route is None:
            raise KeyError(key)
        return route

    def find(self, key: RouteKey) -> Route | None:
        """The route of ``key``, or None. A mapping's own ``get`` raises and catches an error first;
        every ADD asks twice for what is not there."""
        route = self.single.get(key)
        if route is None and self.grouped and is_ours(key):
            hops = self.grouped.get(nlri_of(key.prefix))
            return None if hops is None else Route(key, hops)
        return route

    def __iter__(self) -> Iterator[RouteKey]:
        yield from list(self.single)
        for nlri in list(self.grouped):
            yield key_of(nlri)

    def __len__(self) -> int:
        return len(self.single) + len(self.grouped)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, RouteTable):
            return self.single == other.single and self.grouped == other.grouped
        if isinstance(other, Mapping):
            return dict(self.items()) == dict(other.items())
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def copy(self) -> RouteTable:
        """The same routes, apart from what becomes of these."""
        return RouteTable(dict(self.single), dict(self.grouped))

    def only(self, nlris: Collection[Nlri]) -> RouteTable:
        """The routes of these destinations."""
        table = RouteTable(grouped={n: self.grouped[n] for n in nlris if n in self.grouped})
        if len(table.grouped) < len(nlris):
            # Learned routes are among the single ones on a kernel without nexthop objects.
            wanted = set(nlris)
            for key, route in self.single.items():
                if is_ours(key) and nlri_of(key.prefix) in wanted:
                    table.single[key] = route
        return table

    def put(self, route: Route) -> None:
        """Adds or replaces one."""
        self.drop(route.key)
        if is_ours(route.key) and is_grouped(route.next_hops):
            self.grouped[nlri_of(route.key.prefix)] = hops_of(route.next_hops)
        else:
            self.single[route.key] = route

    def drop(self, key: RouteKey) -> None:
        """Removes one, if it is there."""
        if self.single.pop(key, None) is None and self.grouped and is_ours(key):
            self.grouped.pop(nlri_of(key.prefix), None)


def is_ours(key: RouteKey) -> bool:
    """Whether ``key`` has the metric and table that all routes of ours have."""
    return key.metric == METRIC and key.table == TABLE_MAIN


@dataclass(slots=True, eq=False)
class Replacements(Mapping[RouteKey, tuple[Route, Route]]):
    """(old, new) of routes whose next hops change, by key."""

    single: dict[RouteKey, tuple[Route, Route]] = field(default_factory=dict)
    grouped: dict[Nlri, tuple[Hops, Hops]] = field(default_factory=dict)

    def __getitem__(self, key: RouteKey) -> tuple[Route, Route]:
        both = self.single.get(key)
        if both is not None:
            return both
        old, new = self.grouped[nlri_of(key.prefix)]
        return Route(key, old), Route(key, new)

    def __iter__(self) -> Iterator[RouteKey]:
        yield from self.single
        for nlri in self.grouped:
            yield key_of(nlri)

    def __len__(self) -> int:
        return len(self.single) + len(self.grouped)


def differing(before: Mapping[RouteKey, Route], after: Mapping[RouteKey, Route]) -> list[RouteKey]:
    """The keys of which the two tables say different things."""
    if not (isinstance(before, RouteTable) and isinstance(after, RouteTable)):
        return [k for k in {**before, **after} if before.get(k) != after.get(k)]
    singles = {**before.single, **after.single}
    found = [k for k in singles if before.single.get(k) != after.single.get(k)]
    found += [key_of(n) for n in grouped_differing(before.grouped, after.grouped)]
    return list(dict.fromkeys(found))


def grouped_differing(before: Mapping[Nlri, Hops], after: Mapping[Nlri, Hops]) -> Sequence[Nlri]:
    """The same for the many."""
    if before is after:
        return []
    get = before.get
    found: list[Nlri] = []
    # By identity first: nothing of a table that did not change is looked at twice.
    last: tuple[Hops | None, Hops] | None = None
    differs = False
    for nlri, hops in after.items():
        was = get(nlri)
        if was is hops:
            continue
        if last is None or was is not last[0] or hops is not last[1]:
            last, differs = (was, hops), was != hops
        if differs:
            found.append(nlri)
    return [*found, *(before.keys() - after.keys())]
