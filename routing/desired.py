"""The heart: what this node's tables should say, computed from everything it knows. Pure.

No I/O and no clock. ``desired(inputs)`` is called on every pass with whole inputs and returns
whole tables; nothing here remembers the previous answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from bgp.decision import best_paths
from bgp.paths import Advertisement, Path, Peer
from cni.ipam.block import Block, BlockState
from cni.podlink import GATEWAY_V4
from routing.datastore.selector import Selector
from routing.datastore.snapshot import BGPPeerResource, NodeResource, Snapshot
from routing.links import LinkState, connected_link, link_of, local_addresses
from routing.routes import (
    Address,
    NextHop,
    Prefix,
    Route,
    RouteKey,
    RouteKind,
    host_prefix,
    next_hop_order,
)

AdvertisementKey = tuple[Address, Prefix]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything the heart may look at.

    ``pod_addresses`` maps a host interface to its pod's addresses. ``peer_sources`` is the
    kernel's choice of source address for each peer (absent: no route to it).
    """

    node: str
    snapshot: Snapshot
    pod_addresses: Mapping[str, tuple[Address, ...]]
    paths: Iterable[Path]
    links: Mapping[str, LinkState]
    peer_sources: Mapping[Address, Address]


@dataclass(frozen=True, slots=True)
class RejectedPath:
    """A learned path that is not used; ``reason`` is a token, ``detail`` a sentence."""

    path: Path
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Desired:
    """One mapping per table, keyed as that table is keyed, and what could not be wanted.

    ``backing``: the routes that must be in the kernel before a prefix may be announced.
    """

    routes: Mapping[RouteKey, Route] = field(default_factory=dict)
    kinds: Mapping[RouteKey, RouteKind] = field(default_factory=dict)
    peers: Mapping[Address, Peer] = field(default_factory=dict)
    advertisements: Mapping[AdvertisementKey, Advertisement] = field(default_factory=dict)
    backing: Mapping[Prefix, frozenset[RouteKey]] = field(default_factory=dict)
    best: Mapping[Prefix, tuple[Path, ...]] = field(default_factory=dict)
    rejected: tuple[RejectedPath, ...] = ()
    problems: tuple[str, ...] = ()


def desired(inputs: Inputs) -> Desired:
    """What every table of this node should hold."""
    problems: list[str] = []
    this_node = _this_node(inputs, problems)
    blocks = own_blocks(inputs.snapshot.blocks, inputs.node)
    peers = _peers(inputs, this_node, problems)
    accepted, rejected = _import(inputs, blocks, peers)
    best = best_paths(accepted, peers)

    routes: dict[RouteKey, Route] = {}
    kinds: dict[RouteKey, RouteKind] = {}

    def want(prefix: Prefix, next_hops: Iterable[NextHop], kind: RouteKind) -> None:
        # The first kind to name a prefix keeps it: local truth is laid down before remote news.
        key = RouteKey(prefix)
        if key not in routes:
            routes[key] = Route(key, tuple(sorted(next_hops, key=next_hop_order)))
            kinds[key] = kind

    for ifname, addresses in inputs.pod_addresses.items():
        for address in addresses:
            want(host_prefix(address), [NextHop(ifname)], RouteKind.POD)
    for block in blocks:
        if block.cidr.prefixlen < block.cidr.max_prefixlen:
            want(block.cidr, (), RouteKind.BLOCK)
    # Proxy-ARP answers for the gateway only when the host itself has a route to it, and on a node
    # that learns its default route by BGP there is none until BGP is up (DESIGN.md, gateway).
    want(IPv4Network((GATEWAY_V4, 32)), [NextHop("lo")], RouteKind.GATEWAY)
    for prefix, paths in best.items():
        hops = {
            NextHop(link, path.next_hop)
            for path in paths
            if (link := connected_link(path.next_hop, inputs.links)) is not None
        }
        want(prefix, hops, RouteKind.REMOTE)
    return Desired(
        routes=routes,
        kinds=kinds,
        peers=peers,
        advertisements=_advertisements(blocks, peers, inputs.links, problems),
        backing={block.cidr: frozenset({RouteKey(block.cidr)}) for block in blocks},
        best=best,
        rejected=tuple(rejected),
        problems=tuple(problems),
    )


def own_blocks(blocks: Iterable[Block], node: str) -> list[Block]:
    """The confirmed blocks of ``node``, in address order; nothing else is routed or announced."""
    mine = [b for b in blocks if b.node == node and b.state is BlockState.CONFIRMED]
    return sorted(mine, key=lambda b: (b.cidr.version, int(b.cidr.network_address)))


def _this_node(inputs: Inputs, problems: list[str]) -> NodeResource | None:
    for node in inputs.snapshot.nodes:
        if node.meta.name == inputs.node:
            return node
    problems.append(f"no Node resource named {inputs.node!r}: no peer can be chosen for this node")
    return None


def _peers(
    inputs: Inputs, this_node: NodeResource | None, problems: list[str]
) -> dict[Address, Peer]:
    if this_node is None:
        return {}
    local_asn = this_node.asn or inputs.snapshot.bgp.asn
    peers: dict[Address, Peer] = {}
    for resource in peers_for(inputs.snapshot, inputs.node):
        if resource.peer_ip is None or resource.asn is None:
            continue
        if resource.peer_ip in peers:
            first = peers[resource.peer_ip].name
            problems.append(
                f"BGPPeer {resource.meta.name!r} names {resource.peer_ip} as {first!r} does; "
                f"{first!r} is used"
            )
            continue
        source = resource.source_address or inputs.peer_sources.get(resource.peer_ip)
        if source is None:
            problems.append(f"BGPPeer {resource.meta.name!r}: no route to {resource.peer_ip}")
            continue
        peers[resource.peer_ip] = Peer(
            name=resource.meta.name,
            address=resource.peer_ip,
            remote_asn=resource.asn,
            local_asn=local_asn,
            local_address=source,
            router_id=router_id(this_node),
            port=resource.port,
            hold_time_s=resource.hold_time_s,
            graceful_restart_s=resource.max_restart_time_s,
        )
    return peers


def peers_for(snapshot: Snapshot, node: str) -> list[BGPPeerResource]:
    """The peers that select ``node``, in name order, whether or not they can be reached."""
    this_node = next((each for each in snapshot.nodes if each.meta.name == node), None)
    if this_node is None:
        return []
    return sorted(
        (peer for peer in snapshot.peers if _selects(peer, this_node)),
        key=lambda peer: peer.meta.name,
    )


def router_id(node: NodeResource) -> IPv4Address:
    """The node's first IPv4 address; on an IPv6-only node 32 bits hashed from its name.

    A BGP identifier must be unique in the AS and non-zero (RFC 6286), not an address.
    """
    for address in node.addresses:
        if isinstance(address, IPv4Address):
            return address
    digest = hashlib.sha256(node.meta.name.encode()).digest()
    return IPv4Address(int.from_bytes(digest[:4], "big") or 1)


def _selects(peer: BGPPeerResource, node: NodeResource) -> bool:
    if peer.node is not None:
        return peer.node == node.meta.name
    if peer.node_selector is not None:
        return Selector.parse(peer.node_selector).matches(node.meta.labels)
    return True


def _import(
    inputs: Inputs, blocks: list[Block], peers: Mapping[Address, Peer]
) -> tuple[list[Path], list[RejectedPath]]:
    """Default deny: a path is used only when no rule has a reason against it."""
    own_networks = [block.cidr for block in blocks]
    own_addresses = local_addresses(inputs.links)
    accepted: list[Path] = []
    rejected: list[RejectedPath] = []
    for path in inputs.paths:
        verdict = (
            _judge_prefix(path.prefix, inputs.snapshot, own_networks)
            or _judge_path(path, peers)
            or _judge_next_hop(path.next_hop, inputs.links, own_addresses)
        )
        if verdict is None:
            accepted.append(path)
        else:
            rejected.append(RejectedPath(path, *verdict))
    return accepted, rejected


def _judge_prefix(prefix: Prefix, snapshot: Snapshot, own: list[Prefix]) -> tuple[str, str] | None:
    if prefix in snapshot.bgp.import_allow:
        return None
    for block in own:
        if block.version == prefix.version and prefix.subnet_of(block):  # type: ignore[arg-type]
            return "own-block", f"{prefix} is inside our own block {block}"
    for pool in snapshot.pools:
        if pool.cidr.version != prefix.version:
            continue
        if prefix.subnet_of(pool.cidr):  # type: ignore[arg-type]
            if prefix.prefixlen > pool.block_size:
                return (
                    "too-long",
                    f"{prefix} is longer than a block (/{pool.block_size}) of {pool.meta.name!r}",
                )
            return None
    return "not-in-pool", f"{prefix} is in no IPPool and not in importAllow"


def _judge_path(path: Path, peers: Mapping[Address, Peer]) -> tuple[str, str] | None:
    peer = peers.get(path.peer)
    if peer is None:
        return "no-such-peer", f"{path.peer} is not a configured peer of this node"
    if peer.local_asn in path.as_path:
        return "as-loop", f"our ASN {peer.local_asn} is in the AS path"
    return None


def _judge_next_hop(
    next_hop: Address, links: Mapping[str, LinkState], own_addresses: set[Address]
) -> tuple[str, str] | None:
    if next_hop in own_addresses:
        return "next-hop-self", f"next hop {next_hop} is an address of this node"
    if connected_link(next_hop, links) is None:
        return "next-hop-off-link", f"next hop {next_hop} is on no connected link that is up"
    return None


def _advertisements(
    blocks: list[Block],
    peers: Mapping[Address, Peer],
    links: Mapping[str, LinkState],
    problems: list[str],
) -> dict[AdvertisementKey, Advertisement]:
    wanted: dict[AdvertisementKey, Advertisement] = {}
    for peer in peers.values():
        for block in blocks:
            if block.cidr.version == peer.local_address.version:
                wanted[peer.address, block.cidr] = Advertisement(block.cidr)
                continue
            # The other family over this session: "self" would be an address of the wrong family.
            next_hop = _other_family_address(peer.local_address, links, block.cidr.version)
            if next_hop is None:
                problems.append(
                    f"{block.cidr} is not announced to {peer.address}: the link with "
                    f"{peer.local_address} has no global IPv{block.cidr.version} address"
                )
                continue
            wanted[peer.address, block.cidr] = Advertisement(block.cidr, next_hop)
    return wanted


def _other_family_address(
    address: Address, links: Mapping[str, LinkState], version: int
) -> Address | None:
    link = link_of(address, links)
    if link is None:
        return None
    return next(
        (a.ip for a in link.addresses if a.version == version and not a.ip.is_link_local), None
    )
