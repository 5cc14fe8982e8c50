"""Adj-RIB-In of every peer (RFC 4271 section 3.2), folded from events. Pure.

The key is (peer, prefix), for a withdraw names no next hop. An UPDATE that rejects a prefix removes
what the peer had said of it before: the old path is not what the peer uses any more, and keeping it
would be to invent a route (RFC 7606 section 2, treat-as-withdraw).

A path can be *stale*: still believed, because its session ended in a way that promises to come back
(RFC 4724 section 4.2), and gone at ``sweep`` unless the peer has announced it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from operator import attrgetter

from bgp.paths import Address, Family, Path, Prefix, Rejection, Update

MAX_PATHS_PER_PEER = 250_000
"""A peer that sends more is broken or hostile; what is beyond is rejected, what is held stays."""

TABLE_FULL = "table-full"


class AdjRibIn:
    """All peers' tables. Not thread-safe; one task folds events into it."""

    def __init__(self, *, max_paths_per_peer: int = MAX_PATHS_PER_PEER) -> None:
        self._tables: dict[Address, dict[Prefix, Path]] = {}
        self._stale: dict[Address, set[Prefix]] = {}
        self._limit = max_paths_per_peer
        self._changed: set[Prefix] | None = None
        """The prefixes with other paths than at the last ``take_changes``; None: any may be."""
        self._gone_hops: set[Address] = set()

    def take_changes(self) -> Mapping[Prefix, tuple[Path, ...]] | None:
        """Each prefix whose paths have changed since the last call, with all its paths now; None
        when a table was dropped, swept or replaced, or at first: look at everything then."""
        changed, self._changed = self._changed, set()
        if changed is None:
            return None
        tables = list(self._tables.values())
        return {
            prefix: tuple(path for table in tables if (path := table.get(prefix)) is not None)
            for prefix in changed
        }

    def take_lost_next_hops(self) -> frozenset[Address]:
        """The next hops that tables were dropped or swept with since the last call, and that no
        path names any more."""
        gone, self._gone_hops = self._gone_hops, set()
        for table in self._tables.values() if gone else ():
            gone -= _next_hops(table.values())
        return frozenset(gone)

    def _has_lost(self, paths: Iterable[Path]) -> None:
        self._changed = None
        self._gone_hops |= _next_hops(paths)

    def apply(self, update: Update) -> tuple[bool, tuple[Rejection, ...]]:
        """Folds one UPDATE in.

        Withdrawals first: a prefix in both fields is announced (RFC 4271 section 4.3).

        Returns:
            Whether any path changed, and every rejection: the update's own and, for paths beyond
            the limit, TABLE_FULL.
        """
        table = self._tables.setdefault(update.peer, {})
        stale = self._stale.get(update.peer, set())
        rejections = list(update.rejected)
        changed = False
        gone = [*update.withdrawn, *(r.prefix for r in update.rejected if r.prefix is not None)]
        announced = {path.prefix for path in update.announced}
        for prefix in gone:
            stale.discard(prefix)
            if prefix not in announced and table.pop(prefix, None) is not None:
                changed = True
                if self._changed is not None:
                    self._changed.add(prefix)
        for path in update.announced:
            if path.prefix not in table and len(table) >= self._limit:
                rejections.append(Rejection(path.prefix, TABLE_FULL))
                continue
            stale.discard(path.prefix)
            if table.get(path.prefix) != path:
                table[path.prefix] = path
                changed = True
                if self._changed is not None:
                    self._changed.add(path.prefix)
        return changed, tuple(rejections)

    def replace(self, peer: Address, paths: Iterable[Path]) -> bool:
        """Makes the peer's table exactly ``paths``, none of them stale. Returns if it changed."""
        before = self._tables.get(peer, {})
        self._stale.pop(peer, None)
        self._tables[peer] = {}
        self._changed = None
        self.apply(Update(peer, tuple(replace(path, peer=peer) for path in paths)))
        return self._tables[peer] != before

    def drop(self, peer: Address) -> bool:
        """The session is gone and its paths with it. Returns whether there were any."""
        self._stale.pop(peer, None)
        table = self._tables.pop(peer, {})
        self._has_lost(table.values())
        return bool(table)

    def mark_stale(self, peer: Address, prefixes: Iterable[Prefix] | None = None) -> None:
        """Keeps the peer's paths (None: all) until it has had the time to send them again."""
        table = self._tables.get(peer, {})
        wanted = table if prefixes is None else prefixes
        self._stale[peer] = {prefix for prefix in wanted if prefix in table}

    def sweep(self, peer: Address, family: Family | None = None) -> bool:
        """Forgets what is still stale (of one family). Returns whether anything went."""
        stale = self._stale.get(peer, set())
        going = {p for p in stale if family is None or Family.of(p) is family}
        stale -= going
        table = self._tables.get(peer, {})
        swept = [table.pop(prefix) for prefix in going if prefix in table]
        if swept:
            self._has_lost(swept)
        return bool(going)

    def peers(self) -> tuple[Address, ...]:
        """The peers that have a table, perhaps an empty one."""
        return tuple(self._tables)

    def table(self, peer: Address) -> dict[Prefix, Path]:
        """A copy of one peer's paths."""
        return dict(self._tables.get(peer, {}))

    def count(self, peer: Address) -> int:
        """How many paths the peer has."""
        return len(self._tables.get(peer, ()))

    def stale(self, peer: Address) -> frozenset[Prefix]:
        """The prefixes of the peer that await a new announcement or the sweep."""
        return frozenset(self._stale.get(peer, ()))

    def paths(self) -> Mapping[tuple[Address, Prefix], Path]:
        """A copy of everything, stale paths included: the caller may await while it looks."""
        return {
            (peer, prefix): path
            for peer, table in self._tables.items()
            for prefix, path in table.items()
        }


def _next_hops(paths: Iterable[Path]) -> set[Address]:
    """By identity first: hashing 100,000 addresses takes longer than moving as many routes."""
    return set({id(hop): hop for hop in map(_next_hop, paths)}.values())


_next_hop = attrgetter("next_hop")
