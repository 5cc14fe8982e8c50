"""Adj-RIB-In of every peer (RFC 4271 section 3.2), folded from events. Pure.

The key is (peer, prefix), for a withdraw names no next hop. An UPDATE that rejects a prefix removes
what the peer had said of it before: the old path is not what the peer uses any more, and keeping it
would be to invent a route (RFC 7606 section 2, treat-as-withdraw).

A table holds, by ``bgp.nlri`` keys, one of the few objects that say all but the prefix; a ``Path``
is made when somebody wants to look at one. The other way round 100,000 routes take 100 MB, and
comparing, hashing and copying them takes longer than the kernel takes to install them.

A path can be *stale*: still believed, because its session ended in a way that promises to come back
(RFC 4724 section 4.2), and gone at ``sweep`` unless the peer has announced it again.
"""

from __future__ import annotations

from collections.abc import (
    Collection,
    ItemsView,
    Iterable,
    Iterator,
    Mapping,
    Set,
    ValuesView,
)
from struct import pack
from typing import Any
from weakref import ref

from bgp.judgement import Attributes
from bgp.nlri import Nlri, family_of, nlri_of, prefix_of
from bgp.path_table import PathTable
from bgp.paths import (
    Address,
    Family,
    Path,
    PathAttributes,
    Prefix,
    Rejection,
    RouteBatch,
    Update,
)

MAX_PATHS_PER_PEER = 250_000
"""A peer that sends more is broken or hostile; what is beyond is rejected, what is held stays."""

TABLE_FULL = "table-full"

Offers = Mapping[Nlri, tuple[PathAttributes, ...]]
"""Prefixes with what each peer that has one says of it."""


_Content = tuple[object, ...]
"""All that attributes are made of but the AS numbers, addresses as numbers."""


class _Held(ref[PathAttributes]):
    """A reference that knows where it stands. A WeakValueDictionary's does, too; it is made and
    asked in twice the time, which every path of a cluster's table would pay."""

    __slots__ = ("place",)
    place: tuple[PathAttributes, bytes] | _Content | int


class AttributeSets:
    """Gives the one object for each set of attributes; forgets those that nobody holds."""

    def __init__(self) -> None:
        self._first: dict[int, _Held] = {}
        """The first of each kin by the hash of its values: the values themselves, and an object
        for them, are more than half of what attributes take that no other prefix has."""
        self._clashing: dict[_Content, _Held] = {}
        """Those whose hash another one has."""
        self._known: dict[tuple[PathAttributes, bytes], _Held] = {}
        """All others, by the first."""
        self._forget = self._forget_one
        """Bound once, not for each."""

    def of(self, path: Path, peer: Address | None = None) -> PathAttributes:
        """Those of ``path``, as said by ``peer`` (None: by the path's own)."""
        return self.judged(peer or path.peer, path.next_hop, path)

    def judged(
        self, peer: Address, next_hop: Address, attributes: Attributes | Path
    ) -> PathAttributes:
        """Those that ``peer`` sent with this next hop."""
        values = _content(peer, next_hop, attributes)
        place = hash(values)
        found = there = _held_by(self._first.get(place))
        if there is not None and _content(there.peer, there.next_hop, there) != values:
            found = None
        if found is None and self._clashing:
            found = _held_by(self._clashing.get(values))
        as_path = attributes.as_path
        numbers = pack(f">{len(as_path)}I", *as_path)
        if found is not None:
            return self.of_kin(found, numbers)
        first = PathAttributes(
            peer,
            next_hop,
            numbers,
            attributes.as_path_length,
            attributes.origin,
            attributes.med,
            attributes.local_pref,
            attributes.communities,
            attributes.large_communities,
            attributes.originator_id,
            attributes.cluster_list,
        )
        held = _Held(first, self._forget)
        if there is not None:
            self._clashing[values] = held
            held.place = values
        else:
            self._first[place] = held
            held.place = place
        return first

    def of_kin(self, kin: PathAttributes, as_numbers: bytes) -> PathAttributes:
        """Those that differ from ``kin``, the first of them, in having these AS numbers."""
        if kin.as_numbers == as_numbers:
            return kin
        key = kin, as_numbers
        held = self._known.get(key)
        known = None if held is None else held()
        if known is None:
            known = kin.with_numbers(as_numbers)
            held = self._known[key] = _Held(known, self._forget)
            held.place = key
        return known

    def _forget_one(self, held: _Held) -> None:
        table: dict[Any, _Held] = self._known
        if isinstance(held.place, int):
            table = self._first
        elif not isinstance(held.place[0], PathAttributes):
            table = self._clashing
        # It may have been made anew since.
        if table.get(held.place) is held:
            del table[held.place]


def _held_by(held: _Held | None) -> PathAttributes | None:
    return None if held is None else held()


def _content(
    peer: Address, next_hop: Address, attributes: Attributes | Path | PathAttributes
) -> _Content:
    originator_id = attributes.originator_id
    return (
        *plain_of(peer),
        *plain_of(next_hop),
        attributes.as_path_length,
        attributes.origin.value,
        attributes.med,
        attributes.local_pref,
        attributes.communities,
        attributes.large_communities,
        None if originator_id is None else int(originator_id),
        tuple(map(int, attributes.cluster_list)),
    )


def plain_of(address: Address) -> tuple[int, int]:
    """An address as numbers, for keys that are hashed often: its own hash is computed in Python,
    of its hexadecimal digits, every time."""
    return int(address), address.max_prefixlen


def offers_of(paths: Iterable[Path]) -> Offers:
    """What ``paths`` say, by prefix."""
    sets = AttributeSets()
    found: dict[Nlri, tuple[PathAttributes, ...]] = {}
    for path in paths:
        nlri = nlri_of(path.prefix)
        found[nlri] = (*found.get(nlri, ()), sets.of(path))
    return found


class AdjRibIn:
    """All peers' tables. Not thread-safe; one task folds events into it."""

    def __init__(
        self,
        *,
        max_paths_per_peer: int = MAX_PATHS_PER_PEER,
        attributes: AttributeSets | None = None,
    ) -> None:
        self._attributes = attributes or AttributeSets()
        self._tables: dict[Address, dict[Nlri, PathAttributes]] = {}
        self._stale: dict[Address, set[Nlri]] = {}
        self._limit = max_paths_per_peer
        self._changed: dict[Nlri, None] | None = None
        """The prefixes with other paths than at the last ``take_changes``; None: any may be. In the
        order they came, for whatever is done with them then walks through memory, and does not
        jump: at 100,000 that is half of the time."""
        self._gone_hops: set[Address] = set()
        self._gone_peers: set[Address] = set()

    # -- changes since the last look -----------------------------------------------------------

    def take_changes(self) -> Offers | None:
        """Each prefix whose paths have changed since the last call, with what is said of it now,
        perhaps nothing; None when a table was dropped, swept or replaced, or at first: look at
        everything then."""
        changed, self._changed = self._changed, {}
        return None if changed is None else self._offers(changed)

    def offers(self) -> Offers:
        """Every prefix with what is said of it. Of one peer's table a view, or there would be a
        second one for as long as somebody looks: do not await while going through it."""
        tables = [table for table in self._tables.values() if table]
        if len(tables) == 1:
            return _OneTable(tables[0])
        # One tuple for all prefixes of which the same is said: memory, and identity once more.
        alike: dict[tuple[PathAttributes, ...], tuple[PathAttributes, ...]] = {}
        found: dict[Nlri, tuple[PathAttributes, ...]] = {}
        for table in tables:
            for nlri, attributes in table.items():
                said = (*found.get(nlri, ()), attributes)
                found[nlri] = alike.setdefault(said, said)
        return found

    def _offers(self, nlris: Iterable[Nlri]) -> Offers:
        tables = list(self._tables.values())
        found: dict[Nlri, tuple[PathAttributes, ...]] = {}
        if len(tables) == 1:
            get = tables[0].get
            alone: dict[PathAttributes | None, tuple[PathAttributes, ...]] = {None: ()}
            for nlri in nlris:
                attributes = get(nlri)
                said = alone.get(attributes)
                if said is None and attributes is not None:
                    said = alone[attributes] = (attributes,)
                found[nlri] = said or ()
            return found
        alike: dict[tuple[PathAttributes, ...], tuple[PathAttributes, ...]] = {}
        for nlri in nlris:
            said = tuple([each for table in tables if (each := table.get(nlri)) is not None])
            found[nlri] = alike.setdefault(said, said)
        return found

    def take_lost_next_hops(self) -> frozenset[Address]:
        """The next hops that tables were dropped or swept with since the last call, and that no
        path names any more."""
        gone, self._gone_hops = self._gone_hops, set()
        for table in self._tables.values() if gone else ():
            gone -= _next_hops(table.values())
        return frozenset(gone)

    def take_lost_peers(self) -> frozenset[Address]:
        """The peers whose tables were dropped or swept away since the last call."""
        gone, self._gone_peers = self._gone_peers, set()
        return frozenset(peer for peer in gone if not self._tables.get(peer))

    def _has_lost(self, peer: Address, attributes: Iterable[PathAttributes]) -> None:
        self._changed = None
        self._gone_peers.add(peer)
        self._gone_hops |= _next_hops(attributes)

    # -- changing ------------------------------------------------------------------------------

    def apply(self, update: Update | RouteBatch) -> tuple[bool, tuple[Rejection, ...]]:
        """Folds what one or several UPDATEs say in.

        Withdrawals first: a prefix in both fields is announced (RFC 4271 section 4.3).

        Returns:
            Whether any path changed, and every rejection: the update's own and, for paths beyond
            the limit, TABLE_FULL.
        """
        batch = update if isinstance(update, RouteBatch) else self.batch_of(update)
        table = self._tables.setdefault(batch.peer, {})
        stale = self._stale.get(batch.peer)
        if stale:
            stale.difference_update(batch.routes)
        rejections = batch.rejected
        get, pop = table.get, table.pop
        changed: list[Nlri] = []
        is_near_limit = len(table) + len(batch.routes) > self._limit
        for nlri, attributes in batch.routes.items():
            if attributes is None:
                if pop(nlri, None) is not None:
                    changed.append(nlri)
            elif (known := get(nlri)) is not attributes:
                if is_near_limit and known is None and len(table) >= self._limit:
                    rejections += (Rejection(prefix_of(nlri), TABLE_FULL),)
                    continue
                table[nlri] = attributes
                changed.append(nlri)
        if self._changed is not None:
            self._changed.update(dict.fromkeys(changed))
        return bool(changed), rejections

    def batch_of(self, update: Update, peer: Address | None = None) -> RouteBatch:
        """One UPDATE, as said by ``peer`` (None: by its own), in the form of the tables."""
        routes: dict[Nlri, PathAttributes | None] = dict.fromkeys(map(nlri_of, update.withdrawn))
        for rejection in update.rejected:
            if rejection.prefix is not None:
                routes[nlri_of(rejection.prefix)] = None
        for path in update.announced:
            routes[nlri_of(path.prefix)] = self._attributes.of(path, peer)
        return RouteBatch(update.peer, routes, update.rejected)

    def replace(self, peer: Address, paths: Iterable[Path], *, keep: Collection[Nlri] = ()) -> bool:
        """Makes the peer's table exactly ``paths``, none of them stale, and what it held of
        ``keep``. Returns if it changed."""
        before = self._tables.get(peer, {})
        kept = {nlri: before[nlri] for nlri in keep if nlri in before}
        self._stale.pop(peer, None)
        self._tables[peer] = {}
        self._changed = None
        self.apply(self.batch_of(Update(peer, tuple(paths)), peer))
        self._tables[peer].update(kept)
        return self._tables[peer] != before

    def drop(self, peer: Address) -> bool:
        """The session is gone and its paths with it. Returns whether there were any."""
        self._stale.pop(peer, None)
        table = self._tables.pop(peer, {})
        self._has_lost(peer, table.values())
        return bool(table)

    def mark_stale(self, peer: Address, nlris: Iterable[Nlri] | None = None) -> None:
        """Keeps the peer's paths (None: all) until it has had the time to send them again."""
        table = self._tables.get(peer, {})
        self._stale[peer] = set(table) if nlris is None else {n for n in nlris if n in table}

    def sweep(self, peer: Address, family: Family | None = None) -> bool:
        """Forgets what is still stale (of one family). Returns whether anything went."""
        stale = self._stale.get(peer, set())
        going = {n for n in stale if family is None or family_of(n) is family}
        stale -= going
        self._forget(peer, going)
        return bool(going)

    def keep_families(self, peer: Address, families: Collection[Family]) -> None:
        """Forgets what the peer said of others, and that anything is stale."""
        self._stale.pop(peer, None)
        table = self._tables.get(peer, {})
        if not families and table:
            # The whole of it at once: the next hops that went with it are waited for.
            self._tables[peer] = {}
            self._has_lost(peer, table.values())
            return
        self._forget(peer, [nlri for nlri in table if family_of(nlri) not in families])

    def _forget(self, peer: Address, nlris: Iterable[Nlri]) -> None:
        table = self._tables.get(peer, {})
        gone = [found for nlri in nlris if (found := table.pop(nlri, None)) is not None]
        if gone:
            self._has_lost(peer, gone)

    # -- looking -------------------------------------------------------------------------------

    def peers(self) -> tuple[Address, ...]:
        """The peers that have a table, perhaps an empty one."""
        return tuple(self._tables)

    def table(self, peer: Address) -> dict[Prefix, Path]:
        """A copy of one peer's paths."""
        return dict(self._paths(peer))

    def _paths(self, peer: Address) -> Iterator[tuple[Prefix, Path]]:
        for nlri, attributes in self._tables.get(peer, {}).items():
            prefix = prefix_of(nlri)
            yield prefix, attributes.path(prefix)

    def count(self, peer: Address) -> int:
        """How many paths the peer has."""
        return len(self._tables.get(peer, ()))

    def counts(self) -> dict[Address, int]:
        """How many paths each peer has."""
        return {peer: len(table) for peer, table in self._tables.items()}

    def stale(self, peer: Address) -> frozenset[Prefix]:
        """The prefixes of the peer that await a new announcement or the sweep."""
        return frozenset(map(prefix_of, self._stale.get(peer, ())))

    def nlris(self, peer: Address) -> Set[Nlri]:
        """The peer's prefixes; a view."""
        return self._tables.get(peer, {}).keys()

    def stale_nlris(self, peer: Address) -> Set[Nlri]:
        """Those that are stale; not a copy."""
        return self._stale.get(peer, set())

    def has_stale(self) -> bool:
        """Whether anything of anybody is."""
        return any(self._stale.values())

    def stale_count(self, peer: Address) -> int:
        """How many they are."""
        return len(self._stale.get(peer, ()))

    def view(self) -> PathTable:
        """Everything, stale paths included; not a copy."""
        return PathTable(self._tables)

    def paths(self) -> Mapping[tuple[Address, Prefix], Path]:
        """A copy of everything, stale paths included: the caller may await while it looks."""
        return {(peer, prefix): path for peer in self._tables for prefix, path in self._paths(peer)}


class _Alone(dict[PathAttributes, tuple[PathAttributes, ...]]):
    """Of each attributes the one tuple of them alone."""

    def __missing__(self, attributes: PathAttributes) -> tuple[PathAttributes, ...]:
        said = self[attributes] = (attributes,)
        return said


class _OneTable(Mapping[Nlri, tuple[PathAttributes, ...]]):
    """What the only peer says, as offers."""

    def __init__(self, table: Mapping[Nlri, PathAttributes]) -> None:
        self._table = table
        self._alone = _Alone()

    def __getitem__(self, nlri: Nlri) -> tuple[PathAttributes, ...]:
        return self._alone[self._table[nlri]]

    def __contains__(self, nlri: object) -> bool:
        return nlri in self._table

    def __iter__(self) -> Iterator[Nlri]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def items(self) -> ItemsView[Nlri, tuple[PathAttributes, ...]]:
        """Each with what is said of it."""
        return _Items(self)

    def values(self) -> ValuesView[tuple[PathAttributes, ...]]:
        """What is said of each."""
        return _Values(self)

    def said(self) -> Iterator[tuple[PathAttributes, ...]]:
        """The same in a loop that is not Python's, which the classes for it are."""
        return map(self._alone.__getitem__, self._table.values())


class _Items(ItemsView[Nlri, tuple[PathAttributes, ...]]):
    def __init__(self, table: _OneTable) -> None:
        super().__init__(table)
        self._table = table

    def __iter__(self) -> Iterator[tuple[Nlri, tuple[PathAttributes, ...]]]:
        return zip(self._table, self._table.said(), strict=True)


class _Values(ValuesView[tuple[PathAttributes, ...]]):
    def __init__(self, table: _OneTable) -> None:
        super().__init__(table)
        self._table = table

    def __iter__(self) -> Iterator[tuple[PathAttributes, ...]]:
        return self._table.said()


def _next_hops(attributes: Iterable[PathAttributes]) -> set[Address]:
    return {kin.next_hop for kin in {each.kin for each in attributes}}
