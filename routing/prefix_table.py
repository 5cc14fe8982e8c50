"""A table of prefixes of both families that is asked what covers, and what lies inside. Pure.

A dictionary for each length that occurs: a question costs one look-up a length, not a comparison
with each entry, of which a cluster has as many as nodes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from routing.routes import Address, Prefix

V = TypeVar("V")


class PrefixTable(Generic[V]):
    """Prefix to value; the last value given for a prefix counts."""

    def __init__(self, entries: Iterable[tuple[Prefix, V]] = ()) -> None:
        self._by_length: dict[int, dict[int, dict[int, tuple[Prefix, V]]]] = {4: {}, 6: {}}
        for prefix, value in entries:
            lengths = self._by_length[prefix.version]
            lengths.setdefault(prefix.prefixlen, {})[int(prefix.network_address)] = (prefix, value)
        self._lengths = {
            version: sorted(lengths, reverse=True) for version, lengths in self._by_length.items()
        }
        self._starts: dict[int, list[tuple[int, int]]] = {
            version: sorted(
                (start, length) for length, starts in lengths.items() for start in starts
            )
            for version, lengths in self._by_length.items()
        }

    def covering(self, prefix: Prefix) -> Iterator[tuple[Prefix, V]]:
        """The entries that contain ``prefix`` or equal it, the longest first."""
        return self._covering(
            prefix.version, int(prefix.network_address), prefix.prefixlen, prefix.max_prefixlen
        )

    def covering_address(self, address: Address) -> Iterator[tuple[Prefix, V]]:
        """The entries that contain ``address``, the longest first."""
        size = address.max_prefixlen
        return self._covering(address.version, int(address), size, size)

    def _covering(
        self, version: int, start: int, at_most: int, size: int
    ) -> Iterator[tuple[Prefix, V]]:
        for length in self._lengths[version]:
            if length <= at_most:
                drop = size - length
                found = self._by_length[version][length].get(start >> drop << drop)
                if found is not None:
                    yield found

    def inside(self, prefix: Prefix) -> Iterator[tuple[Prefix, V]]:
        """The entries that are longer than ``prefix`` and inside it, in address order."""
        starts = self._starts[prefix.version]
        first, last = int(prefix.network_address), int(prefix.broadcast_address)
        for index in range(bisect_left(starts, (first, 0)), len(starts)):
            start, length = starts[index]
            if start > last:
                return
            if length > prefix.prefixlen:
                yield self._by_length[prefix.version][length][start]
