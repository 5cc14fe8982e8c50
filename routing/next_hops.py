"""From the next hop a path names to the gateways the kernel can be given. Pure.

The kernel takes a gateway only on a connected link. A path through a route reflector names the
node that announced it, perhaps several routers away; such a next hop is resolved through the
longest route that covers it: another program's route in the kernel, or another path that is
accepted and resolved already. At most RECURSION_MAX times over, never by a default route
(everything would be reachable then), never by the path's own prefix, and always by the longest
prefix that is known, resolved or not: an answer that depended on what is installed would swing.
What cannot be resolved is held: each pass asks again, and a change in the kernel or of a path makes
a pass at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from bgp.paths import Path
from routing.links import LinkState
from routing.prefix_table import PrefixTable
from routing.routes import Address, NextHop, Prefix

RECURSION_MAX = 2
LOOK_UPS_MAX = 1000
"""Next hops off our links that one pass asks the kernel for; one takes it about 50 us."""
REMEMBERED_MAX = 10_000
"""Next hops of which it is remembered what link they are on; beyond, all are forgotten."""

Key = tuple[Address, Prefix]
Hops = frozenset[NextHop]
Best = Callable[[Iterable[Path]], Mapping[Prefix, tuple[Path, ...]]]

NOWHERE: Hops = frozenset()


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """Another program's route, as the kernel matched it for one address.

    A hop without a gateway says that the address is on that very link.
    """

    prefix_length: int
    hops: tuple[NextHop, ...]


class Resolver:
    """What the links and the kernel's other routes can reach, each next hop looked at once."""

    def __init__(
        self, links: Mapping[str, LinkState], kernel_routes: Mapping[Address, KernelRoute]
    ) -> None:
        self._links = links
        self._kernel_routes = kernel_routes
        # A node has a link for each pod, a cluster a next hop for each node: not each with each.
        networks: dict[Prefix, list[tuple[str, Address]]] = {}
        for ifname, link in links.items():
            for own in link.addresses if link.is_up else ():
                networks.setdefault(own.network, []).append((ifname, own.ip))
        self._networks = PrefixTable(networks.items())
        self._connected: dict[Address, str | None] = {}

    def connected(self, next_hop: Address) -> str | None:
        """The up link that ``next_hop`` is on; as ``links.connected_link`` says."""
        if next_hop not in self._connected:
            if len(self._connected) >= REMEMBERED_MAX:
                self._connected.clear()
            self._connected[next_hop] = self._find_connected(next_hop)
        return self._connected[next_hop]

    def _find_connected(self, next_hop: Address) -> str | None:
        for _, found in self._networks.covering_address(next_hop):
            for ifname, own in found:
                if own != next_hop:
                    return ifname
        return None

    def resolve(
        self,
        next_hop: Address,
        table: PrefixTable[Hops],
        *,
        but: Prefix,
        candidates: Callable[[], PrefixTable[None]],
    ) -> Hops:
        """The hops towards ``next_hop``, through ``table`` where the links do not have it; empty
        when there are none.

        Args:
            table: learned routes that are resolved already.
            but: the prefix that may not be used.
            candidates: all learned prefixes, made when they are asked for. One of them that is as
                long as the kernel's foreign route is waited for, not passed over: once it is
                installed the kernel shows it instead of the foreign one, and the answer would
                change with every pass.
        """
        link = self.connected(next_hop)
        if link is not None:
            return frozenset({NextHop(link, next_hop)})
        longest = next((p for p, _ in candidates().covering_address(next_hop) if p.prefixlen), None)
        foreign = self._foreign(next_hop)
        if foreign is not None and (longest is None or longest.prefixlen < foreign[0]):
            return foreign[1]
        for prefix, hops in table.covering_address(next_hop):
            if prefix == longest:
                return NOWHERE if prefix == but else hops
        return NOWHERE

    def _foreign(self, next_hop: Address) -> tuple[int, Hops] | None:
        route = self._kernel_routes.get(next_hop)
        if route is None or route.prefix_length == 0:
            return None
        # A multipath of another program may have a leg on a link that has just lost its carrier.
        hops = frozenset(
            NextHop(hop.ifname, hop.gateway or next_hop)
            for hop in route.hops
            if (link := self._links.get(hop.ifname)) is not None and link.is_up
        )
        return (route.prefix_length, hops) if hops else None


def resolve_all(
    paths: Sequence[Path], resolver: Resolver, best: Best
) -> tuple[dict[Key, Hops], list[Path]]:
    """The hops of each path by (peer, prefix), and the paths that lead nowhere now.

    Args:
        paths: accepted, apart from their next hops.
        best: the decision process; only a route that would be used carries another's next hop.
    """
    found: dict[Key, Hops] = {}
    reached: list[Path] = []
    waiting = list(paths)
    table: PrefixTable[Hops] = PrefixTable()

    @cache
    def candidates() -> PrefixTable[None]:
        return PrefixTable((path.prefix, None) for path in paths)

    for _ in range(RECURSION_MAX + 1):
        still: list[Path] = []
        progress = False
        for path in waiting:
            hops = resolver.resolve(path.next_hop, table, but=path.prefix, candidates=candidates)
            if hops:
                found[path.peer, path.prefix] = hops
                reached.append(path)
                progress = True
            else:
                still.append(path)
        waiting = still
        if not waiting or not progress:
            break
        table = PrefixTable(
            (prefix, frozenset().union(*(found[each.peer, prefix] for each in chosen)))
            for prefix, chosen in best(reached).items()
        )
    return found, waiting


def to_look_up(
    next_hops: Iterable[Address], links: Mapping[str, LinkState], first: Iterable[Address] = ()
) -> list[Address]:
    """Those of ``next_hops`` that are on no link of ours, at most LOOK_UPS_MAX of them.

    ``first`` are served first, so that a peer that makes up next hops crowds out its own.
    """
    resolver = Resolver(links, {})
    off_link = {each for each in set(next_hops) if resolver.connected(each) is None}
    preferred = off_link.intersection(first)
    rest = sorted(off_link - preferred, key=lambda each: (each.version, int(each)))
    ordered = [*sorted(preferred, key=lambda each: (each.version, int(each))), *rest]
    return ordered[:LOOK_UPS_MAX]
