"""A Delta of routes, sorted by how the kernel is told: routes of a group by the thousand, others
one by one. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from bgp.nlri import Nlri, nlri_of
from routing.delta import Delta
from routing.route_table import Hops, Replacements, RouteTable, hops_of, is_grouped, is_ours, key_of
from routing.routes import Route, RouteKey


@dataclass(slots=True)
class Work:
    """What is to be done. ``group``, ``regroup`` and ``ungroup`` are to create, replace and delete
    routes whose next hops are a group; the others are all the rest."""

    create: Mapping[RouteKey, Route] = field(default_factory=dict)
    replace: Mapping[RouteKey, tuple[Route, Route]] = field(default_factory=dict)
    delete: Mapping[RouteKey, Route] = field(default_factory=dict)
    group: Mapping[Nlri, Hops] = field(default_factory=dict)
    regroup: Mapping[Nlri, tuple[Hops, Hops]] = field(default_factory=dict)
    ungroup: Mapping[Nlri, Hops] = field(default_factory=dict)

    @classmethod
    def of(cls, delta: Delta[RouteKey, Route]) -> Work:
        """The work that ``delta`` is."""
        create, delete = RouteTable.of(delta.create), RouteTable.of(delta.delete)
        replace = _replacements(delta.replace)
        return cls(
            create.single,
            replace.single,
            delete.single,
            create.grouped,
            replace.grouped,
            delete.grouped,
        )

    def __len__(self) -> int:
        return sum(map(len, self._parts()))

    def _parts(self) -> Iterator[Collection[object]]:
        yield from (self.create, self.replace, self.delete)
        yield from (self.group, self.regroup, self.ungroup)

    def put_into(self, table: RouteTable, failed: Collection[RouteKey]) -> None:
        """Makes ``table`` say what the kernel does after this, but for what ``failed``."""
        without = {nlri_of(key.prefix) for key in failed if is_ours(key)}
        # Lists, for whoever deletes all that was read hands us the very table.
        for key, route in list(self.create.items()):
            if key not in failed:
                table.put(route)
        for key, (_old, new) in list(self.replace.items()):
            if key not in failed:
                table.put(new)
        for key in list(self.delete):
            if key not in failed:
                table.drop(key)
        grouped = table.grouped
        if not without:
            grouped.update(self.group)
            grouped.update([(nlri, new) for nlri, (_old, new) in self.regroup.items()])
        else:
            grouped.update([(n, hops) for n, hops in self.group.items() if n not in without])
            grouped.update([(n, new) for n, (_, new) in self.regroup.items() if n not in without])
        for nlri in list(self.ungroup):
            if nlri not in without:
                grouped.pop(nlri, None)
        self._unsingle(table)

    def _unsingle(self, table: RouteTable) -> None:
        """No key is in both parts of a table."""
        touched = {*self.group, *self.regroup, *self.ungroup} if table.single else ()
        if len(touched) < len(table.single):
            for nlri in touched:
                table.single.pop(key_of(nlri), None)
        elif touched:
            for key in list(table.single):
                if is_ours(key) and nlri_of(key.prefix) in touched:
                    del table.single[key]


def _replacements(replace: Mapping[RouteKey, tuple[Route, Route]]) -> Replacements:
    if isinstance(replace, Replacements):
        return replace
    found = Replacements()
    for key, (old, new) in replace.items():
        if is_ours(key) and is_grouped(old.next_hops, new.next_hops):
            found.grouped[nlri_of(key.prefix)] = hops_of(old.next_hops), hops_of(new.next_hops)
        else:
            found.single[key] = old, new
    return found
