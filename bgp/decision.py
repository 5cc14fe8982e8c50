"""The decision process (RFC 4271 section 9.1.2.2) with equal-cost multipath. Pure.

Import policy and the next hop's validity come before, in the hub: every path given here may win.

Each step keeps a set and compares with the best of it, so the order of the input cannot matter.
That includes MED, which compares only routes of the same neighbouring AS: done pair by pair it
depends on the order in which pairs meet, done group by group it does not ("deterministic MED").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from bgp.paths import Address, Path, Peer, Prefix

DEFAULT_LOCAL_PREF = 100
GRACEFUL_SHUTDOWN = "65535:0"
"""Well-known community (RFC 8326 section 5): this path is about to go, any other is better."""
MAX_MULTIPATH = 16


def best_paths(
    paths: Iterable[Path], peers: Mapping[Address, Peer], *, max_paths: int = MAX_MULTIPATH
) -> Mapping[Prefix, tuple[Path, ...]]:
    """For each prefix the best paths, all equally good.

    Args:
        paths: candidates, at most one for each (peer, prefix), in any order. A path of a peer that
            is not in ``peers`` does not take part.
        peers: the configured sessions; they tell external from internal.
        max_paths: how many of the equally good to keep: those of the lowest peer addresses.

    Returns:
        At least one path for each prefix that has a candidate, in order of peer address.
    """
    candidates: dict[Prefix, list[Path]] = {}
    for path in paths:
        if path.peer in peers:
            candidates.setdefault(path.prefix, []).append(path)
    return {
        prefix: tuple(sorted(_best(group, peers), key=_by_peer)[:max_paths])
        for prefix, group in candidates.items()
    }


def _best(paths: list[Path], peers: Mapping[Address, Peer]) -> list[Path]:
    if len(paths) == 1:
        return paths

    def preference(path: Path) -> int:
        if GRACEFUL_SHUTDOWN in path.communities:
            # Whoever sends it: from another AS as LOCAL_PREF 0 (section 4.2), and a router of our
            # own AS has set that itself.
            return 0
        # LOCAL_PREF from another AS must be ignored (section 5.1.5).
        if peers[path.peer].is_ebgp or path.local_pref is None:
            return -DEFAULT_LOCAL_PREF
        return -path.local_pref

    paths = _lowest(paths, preference)
    paths = _lowest(paths, lambda path: path.as_path_length)
    paths = _lowest(paths, lambda path: path.origin.value)
    paths = _lowest_med(paths)
    return _lowest(paths, lambda path: 0 if peers[path.peer].is_ebgp else 1)


def _lowest(paths: list[Path], cost: Callable[[Path], int]) -> list[Path]:
    best = min(cost(path) for path in paths)
    return [path for path in paths if cost(path) == best]


def _lowest_med(paths: list[Path]) -> list[Path]:
    """Step c: within each neighbouring AS the lowest MED; an absent one is zero."""
    lowest: dict[int | None, int] = {}
    for path in paths:
        neighbor = _neighbor_as(path)
        lowest[neighbor] = min(lowest.get(neighbor, 2**32), path.med or 0)
    return [path for path in paths if (path.med or 0) == lowest[_neighbor_as(path)]]


def _neighbor_as(path: Path) -> int | None:
    """The AS the route came from; None is our own."""
    return path.as_path[0] if path.as_path else None


def _by_peer(path: Path) -> tuple[int, int]:
    return path.peer.version, int(path.peer)
