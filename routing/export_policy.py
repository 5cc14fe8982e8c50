"""Export policy: what this node announces to each peer, and with which attributes. Pure.

Announced are this node's confirmed blocks, except those of pools with disableBGPExport; pod
addresses too where BGPConfiguration asks for it. Nothing that was learned is ever announced, to
nobody: a node is no transit, whatever its filters say.

Blocks that fill a supernet are announced as that supernet, where a peer would get all of them with
the same attributes. Its filters are asked about the blocks *and* the supernet: a rule for blocks of
one size keeps the blocks. What is announced changes with every block claimed or given back then;
the announcer makes what is new before it withdraws what is old.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import collapse_addresses

from bgp.decision import GRACEFUL_SHUTDOWN
from bgp.paths import Advertisement
from cni.ipam.block import Block
from routing.datastore.snapshot import ExportAttributes, Snapshot
from routing.drain import DrainPhase
from routing.filters import Direction, Filters
from routing.links import LinkState, link_of
from routing.prefix_table import PrefixTable
from routing.routes import Address, Prefix, RouteKey, host_prefix
from routing.topology import SessionIntent, SessionKind

AdvertisementKey = tuple[Address, Prefix]


@dataclass(frozen=True, slots=True)
class Speaking:
    """One open session: what was wanted of it, and our end."""

    intent: SessionIntent
    local_address: Address


@dataclass(frozen=True, slots=True)
class Export:
    """``backing``: the routes that must be in the kernel before a prefix may be announced."""

    advertisements: Mapping[AdvertisementKey, Advertisement] = field(default_factory=dict)
    backing: Mapping[Prefix, frozenset[RouteKey]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def export(
    snapshot: Snapshot,
    blocks: Sequence[Block],
    pod_addresses: Iterable[Address],
    sessions: Iterable[Speaking],
    links: Mapping[str, LinkState],
    phase: DrainPhase = DrainPhase.SERVING,
) -> Export:
    """Our Adj-RIB-Out of all ``sessions``.

    Args:
        blocks: this node's confirmed blocks.
        pod_addresses: of its pods.
        phase: SHUTTING marks every announcement with GRACEFUL_SHUTDOWN (RFC 8326); later phases
            announce nothing.
    """
    if phase not in (DrainPhase.SERVING, DrainPhase.SHUTTING):
        return Export()
    hidden = {pool.meta.name for pool in snapshot.pools if pool.disable_bgp_export}
    shown = [block.cidr for block in blocks if block.pool not in hidden]
    pods = _pods(snapshot, pod_addresses) if snapshot.bgp.export_pod_routes else []
    exporting = _Exporting(snapshot, shown, links, phase)
    for session in sessions:
        exporting.add(session, pods)
    return Export(exporting.wanted, exporting.backing, tuple(exporting.problems))


def _pods(snapshot: Snapshot, addresses: Iterable[Address]) -> list[Prefix]:
    pools = PrefixTable((pool.cidr, pool) for pool in snapshot.pools)
    found = []
    for address in addresses:
        pool = next(pools.covering_address(address), None)
        if pool is not None and not pool[1].disable_bgp_export:
            found.append(host_prefix(address))
    return found


class _Exporting:
    """Collects what is announced, session by session."""

    def __init__(
        self,
        snapshot: Snapshot,
        blocks: list[Prefix],
        links: Mapping[str, LinkState],
        phase: DrainPhase,
    ) -> None:
        self._bgp = snapshot.bgp
        self._filters = Filters(snapshot)
        self._blocks = blocks
        self._pool_of = PrefixTable((pool.cidr, pool.cidr) for pool in snapshot.pools)
        self._links = links
        self._phase = phase
        self.wanted: dict[AdvertisementKey, Advertisement] = {}
        self.backing: dict[Prefix, frozenset[RouteKey]] = {}
        self.problems: list[str] = []

    def add(self, session: Speaking, pods: Iterable[Prefix]) -> None:
        intent = session.intent
        for name in self._filters.missing(intent.filters):
            self.problems.append(
                f"peer {intent.name} {intent.address}: there is no BGPFilter {name!r}; nothing is "
                "announced to it and nothing accepted from it"
            )
        judged = {
            prefix: attributes
            for prefix in self._blocks
            if (attributes := self._attributes(prefix, intent)) is not None
        }
        if self._bgp.aggregate:
            judged = self._aggregated(judged, intent)
        for prefix in pods:
            attributes = self._attributes(prefix, intent)
            if attributes is not None:
                judged.setdefault(prefix, attributes)
        next_hops: dict[int, Address | str | None] = {}
        for prefix, attributes in judged.items():
            if prefix.version not in next_hops:
                next_hops[prefix.version] = self._next_hop(session, prefix.version)
            next_hop = next_hops[prefix.version]
            if isinstance(next_hop, str):
                self.problems.append(f"{prefix} is not announced to {intent.address}: {next_hop}")
                continue
            self.wanted[intent.address, prefix] = _advertisement(prefix, next_hop, attributes)
            self.backing.setdefault(prefix, self._backing(prefix))

    def _attributes(self, prefix: Prefix, intent: SessionIntent) -> ExportAttributes | None:
        """What ``prefix`` carries to this peer; None when it is not to have it."""
        found = intent.export
        for each in self._bgp.prefix_advertisements:
            if each.cidr.version == prefix.version and prefix.subnet_of(each.cidr):  # type: ignore[arg-type]
                found = _and(
                    found,
                    ExportAttributes(
                        communities=each.communities, large_communities=each.large_communities
                    ),
                )
        verdict = self._filters.judge(
            intent.filters,
            Direction.EXPORT,
            prefix,
            communities=frozenset(found.communities) | frozenset(found.large_communities),
        )
        if verdict.reason is not None:
            return None
        found = _and(found, verdict.attributes)
        if self._phase is DrainPhase.SHUTTING:
            # LOCAL_PREF for routers within our AS that do not know the community (RFC 8326 4.2).
            found = _and(found, ExportAttributes(communities=(GRACEFUL_SHUTDOWN,), local_pref=0))
        if intent.is_ebgp and found.local_pref is not None:
            found = _replace_local_pref(found)
        return found

    def _aggregated(
        self, judged: Mapping[Prefix, ExportAttributes], intent: SessionIntent
    ) -> dict[Prefix, ExportAttributes]:
        alike: dict[tuple[object, ...], list[Prefix]] = {}
        for prefix, attributes in judged.items():
            pool = next(self._pool_of.covering(prefix), None)
            alike.setdefault((prefix.version, pool and pool[0], attributes), []).append(prefix)
        result: dict[Prefix, ExportAttributes] = {}
        for (_version, pool_cidr, _attributes), members in alike.items():
            attributes = judged[members[0]]
            if pool_cidr is None:
                result.update((prefix, attributes) for prefix in members)
                continue
            for whole in collapse_addresses(members):  # type: ignore[type-var]
                if whole in judged or self._attributes(whole, intent) == attributes:
                    result[whole] = attributes
                else:
                    parts = (p for p in members if p.subnet_of(whole))  # type: ignore[arg-type]
                    result.update((prefix, attributes) for prefix in parts)
        return result

    def _backing(self, prefix: Prefix) -> frozenset[RouteKey]:
        inside = [
            block
            for block in self._blocks
            if block.version == prefix.version and block.subnet_of(prefix)  # type: ignore[arg-type]
        ]
        return frozenset(RouteKey(each) for each in inside or [prefix])

    def _next_hop(self, session: Speaking, version: int) -> Address | str | None:
        """The next hop for a family: None is our end of the session, a text says why there is none.

        The other family over this session: our end would be an address of the wrong family, unless
        the peer takes IPv4 with an IPv6 next hop (RFC 8950). Towards a node it is the node's
        address, which is resolved like any other; a router wants one on the link it shares with us.
        """
        intent, own = session.intent, session.local_address
        if own.version == version or (version == 4 and intent.extended_next_hop):
            return None
        link = link_of(own, self._links)
        on_link = (
            []
            if link is None
            else [a.ip for a in link.addresses if a.version == version and not a.ip.is_link_local]
        )
        of_node = [each for each in intent.node_addresses if each.version == version]
        if intent.kind is SessionKind.ROUTER:
            # The first address of the link; the node's own is preferred when it is on it.
            found = [each for each in of_node if each in on_link] + on_link
        else:
            found = of_node + on_link
        return next(iter(found), f"the link with {own} has no global IPv{version} address")


def _and(first: ExportAttributes, second: ExportAttributes) -> ExportAttributes:
    """Both: communities and prepends add up, of the others ``second`` wins."""
    return ExportAttributes(
        communities=(*first.communities, *second.communities),
        large_communities=(*first.large_communities, *second.large_communities),
        med=first.med if second.med is None else second.med,
        local_pref=first.local_pref if second.local_pref is None else second.local_pref,
        prepend=first.prepend + second.prepend,
    )


def _replace_local_pref(attributes: ExportAttributes) -> ExportAttributes:
    """Without LOCAL_PREF, which must not leave the AS (RFC 4271 section 5.1.5)."""
    return ExportAttributes(
        communities=attributes.communities,
        large_communities=attributes.large_communities,
        med=attributes.med,
        prepend=attributes.prepend,
    )


def _advertisement(
    prefix: Prefix, next_hop: Address | None, attributes: ExportAttributes
) -> Advertisement:
    return Advertisement(
        prefix,
        next_hop,
        communities=_in_order(attributes.communities),
        large_communities=_in_order(attributes.large_communities),
        med=attributes.med,
        local_pref=attributes.local_pref,
        prepend=attributes.prepend,
    )


def _in_order(communities: Iterable[str]) -> tuple[str, ...]:
    """Each once, in the order of their numbers: a set has no order on the wire, and what is read
    back must equal what was said."""
    return tuple(sorted(set(communities), key=lambda each: [int(n) for n in each.split(":")]))
