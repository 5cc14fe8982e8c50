"""Which prefixes cannot be told apart by any rule: they share one decision. Pure.

Every rule that looks at a prefix compares it with prefixes of its own: pools, martians, what is
allowed or connected, our blocks, filters. Their ends cut the addresses into intervals; two prefixes
of one length within one interval are inside the same of them and equal to none that the other is
not. What remains is whose block a prefix is, which is looked up.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from bgp.nlri import V4_BYTES, Nlri, nlri_of
from routing.routes import Prefix

PrefixClass = tuple[int, str | None] | Nlri
"""An interval and length with the owner, or the prefix itself: it is like no other."""


_BEYOND = {
    5: [(1 << (32 - length)) - 1 for length in range(33)],
    17: [(1 << (128 - length)) - 1 for length in range(129)],
}
"""The host part of an address, by an Nlri's size and prefix length."""


class PrefixClasses:
    """The classes under one set of rules.

    Args:
        compared: every prefix that some rule compares with.
        owned: the confirmed blocks and their nodes.
    """

    def __init__(self, compared: Iterable[Prefix], owned: Iterable[tuple[Prefix, str]]) -> None:
        cuts: dict[int, set[int]] = {5: set(), 17: set()}
        for prefix in compared:
            size = V4_BYTES if prefix.version == 4 else 17
            start = int(prefix.network_address)
            cuts[size] |= {start, start + _BEYOND[size][prefix.prefixlen] + 1}
        self._cuts = {size: sorted(found) for size, found in cuts.items()}
        self._owners = {nlri_of(prefix): node for prefix, node in owned}
        lengths: dict[int, set[int]] = {5: set(), 17: set()}
        for nlri in self._owners:
            lengths[len(nlri)].add(nlri[0])
        self._lengths = {size: sorted(found, reverse=True) for size, found in lengths.items()}

    def of(self, nlri: Nlri) -> PrefixClass:
        """The class of a prefix."""
        size, length = len(nlri), nlri[0]
        cuts = self._cuts[size]
        start = int.from_bytes(nlri[1:], "big")
        at = bisect_right(cuts, start)
        if at < len(cuts) and cuts[at] <= start | _BEYOND[size][length]:
            return nlri
        # Intervals are counted for each family; the size's bit keeps the two apart.
        interval = at << 9 | (size & 16) << 4 | length
        lengths = self._lengths[size]
        if not lengths:
            return interval, None
        if lengths[0] == length == lengths[-1]:
            return interval, self._owners.get(nlri)
        return self._of_odd(nlri, interval)

    def alike(self, nlri: Nlri) -> tuple[int, Nlri, Nlri, bool]:
        """Which prefixes are of the class of ``nlri``: as many bytes, of them from which to which;
        and whether that is not so, for owners are looked up one by one."""
        size, length = len(nlri), nlri[0]
        if self._lengths[size]:
            return size, nlri, nlri, True
        cuts = self._cuts[size]
        start = int.from_bytes(nlri[1:], "big")
        beyond = _BEYOND[size][length]
        at = bisect_right(cuts, start)
        end = cuts[at] if at < len(cuts) else 1 << (size - 1) * 8
        if end <= start | beyond:
            return size, nlri, nlri, False
        first = cuts[at - 1] if at else 0
        head = nlri[:1]
        return (
            size,
            head + first.to_bytes(size - 1, "big"),
            head + (end - 1 - beyond).to_bytes(size - 1, "big"),
            False,
        )

    def _of_odd(self, nlri: Nlri, interval: int) -> PrefixClass:
        """Where blocks are not all as long as the prefix."""
        size, length = len(nlri), nlri[0]
        start = int.from_bytes(nlri[1:], "big")
        for of_block in self._lengths[size]:
            if of_block <= length:
                block = start & ~_BEYOND[size][of_block]
                owner = self._owners.get(bytes((of_block,)) + block.to_bytes(size - 1, "big"))
                if owner is not None:
                    return interval, owner
        # Blocks may lie inside it, of whomever.
        return (interval, None) if self._lengths[size][0] <= length else nlri
