"""The Adj-RIB-In as a mapping of (peer, prefix) to Path; a Path is made where one is looked at.
Pure.

A hundred thousand Paths take 40 MB and most of a second; who counts them, or asks for one, needs
none of the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from bgp.nlri import Nlri, do_overlap, nlri_of, prefix_of
from bgp.paths import Address, Path, PathAttributes, Prefix

PathKey = tuple[Address, Prefix]


class PathTable(Mapping[PathKey, Path]):
    """A view: what changes in the tables changes in it, so look without awaiting in between."""

    def __init__(self, tables: Mapping[Address, Mapping[Nlri, PathAttributes]]) -> None:
        self._tables = tables

    def __getitem__(self, key: PathKey) -> Path:
        peer, prefix = key
        return self._tables[peer][nlri_of(prefix)].path(prefix)

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, tuple):
            return False
        peer, prefix = key
        return nlri_of(prefix) in self._tables.get(peer, ())

    def __iter__(self) -> Iterator[PathKey]:
        for peer, table in self._tables.items():
            for nlri in table:
                yield peer, prefix_of(nlri)

    def __len__(self) -> int:
        return sum(map(len, self._tables.values()))

    def counts(self) -> dict[Address, int]:
        """How many each peer has."""
        return {peer: len(table) for peer, table in self._tables.items()}

    def overlapping(self, asked: Nlri) -> PathTable:
        """Those whose prefix contains ``asked``, or is inside it; a copy."""
        return PathTable(
            {
                peer: {nlri: each for nlri, each in table.items() if do_overlap(nlri, asked)}
                for peer, table in self._tables.items()
            }
        )


def counts_by_peer(paths: Mapping[PathKey, Path]) -> Mapping[Address, int]:
    """How many of ``paths`` each peer has."""
    if isinstance(paths, PathTable):
        return paths.counts()
    return Counter(peer for peer, _ in paths)
