"""The heart: what this node's tables should say, computed from everything it knows. Pure.

No I/O and no clock. ``desired(inputs)`` is called on every pass with whole inputs and returns
whole tables; nothing here remembers the previous answer.

The order of a learned path's way: import policy (one path at a time), max-prefix, owners, next
hops, the decision process, one origin. What falls out has a reason token (docs/policy.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network

from bgp.decision import best_paths
from bgp.paths import Advertisement, Path, Peer
from cni.ipam.block import Block, BlockState
from cni.podlink import GATEWAY_V4
from routing.datastore.snapshot import Snapshot
from routing.drain import DrainPhase
from routing.export_policy import AdvertisementKey, Export, Speaking, export
from routing.import_policy import ImportPolicy, RejectedPath, within_limits, without
from routing.links import LinkState
from routing.next_hops import KernelRoute, Resolver, resolve_all
from routing.ownership import NOT_OWNER, Ownership, OwnershipConflict, guard, one_origin
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
from routing.topology import AbsentPeer, SessionIntent, Topology, find_node, node_asn

NEXT_HOP_UNREACHABLE = "next-hop-unreachable"


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything the heart may look at.

    Attributes:
        pod_addresses: host interface to its pod's addresses.
        topology: the sessions that ``snapshot`` asks for.
        peer_sources: our end of each session by peer address (absent: no way to the peer).
        lingering: sessions that are asked for no more and kept for a while (make before break).
        closed: peers whose session is kept closed, and why.
        kernel_routes: other programs' routes towards next hops that are on no link of ours.
        phase: how far this node has left the network.
    """

    node: str
    snapshot: Snapshot
    pod_addresses: Mapping[str, tuple[Address, ...]]
    topology: Topology
    paths: Iterable[Path]
    links: Mapping[str, LinkState]
    peer_sources: Mapping[Address, Address]
    lingering: Mapping[Address, SessionIntent] = field(default_factory=dict)
    closed: Mapping[Address, str] = field(default_factory=dict)
    kernel_routes: Mapping[Address, KernelRoute] = field(default_factory=dict)
    phase: DrainPhase = DrainPhase.SERVING


@dataclass(frozen=True, slots=True)
class Desired:
    """One mapping per table, keyed as that table is keyed, and what could not be wanted.

    Attributes:
        peers: the sessions as the speaker takes them; ``sessions`` has their intents.
        backing: the routes that must be in the kernel before a prefix may be announced.
        absent: peers that should have a session and have none, and why.
        to_close: peers that exceed maxPrefixes so that their session must end, and why. They are
            in no table already.
        conflicts: blocks that somebody announces who does not own them.
    """

    routes: Mapping[RouteKey, Route] = field(default_factory=dict)
    kinds: Mapping[RouteKey, RouteKind] = field(default_factory=dict)
    peers: Mapping[Address, Peer] = field(default_factory=dict)
    sessions: Mapping[Address, SessionIntent] = field(default_factory=dict)
    absent: tuple[AbsentPeer, ...] = ()
    advertisements: Mapping[AdvertisementKey, Advertisement] = field(default_factory=dict)
    backing: Mapping[Prefix, frozenset[RouteKey]] = field(default_factory=dict)
    best: Mapping[Prefix, tuple[Path, ...]] = field(default_factory=dict)
    rejected: tuple[RejectedPath, ...] = ()
    to_close: Mapping[Address, str] = field(default_factory=dict)
    conflicts: tuple[OwnershipConflict, ...] = ()
    problems: tuple[str, ...] = ()
    phase: DrainPhase = DrainPhase.SERVING


def desired(inputs: Inputs) -> Desired:
    """What every table of this node should hold."""
    problems: list[str] = list(inputs.topology.problems)
    blocks = own_blocks(inputs.snapshot.blocks, inputs.node)
    sessions, peers, absent = _sessions(inputs, problems)
    learned = learn(inputs, blocks, sessions, peers)
    problems += learned.problems
    for address, reason in learned.to_close.items():
        absent.append(AbsentPeer(sessions.pop(address), f"closed: {reason}"))
        peers.pop(address)

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
    for prefix, paths in learned.best.items():
        key = RouteKey(prefix)
        if key not in routes:
            routes[key] = remote_route(prefix, paths, learned)
            kinds[key] = RouteKind.REMOTE
    exported = _export(inputs, blocks, sessions, peers)
    return Desired(
        routes=routes,
        kinds=kinds,
        peers=peers,
        sessions=sessions,
        absent=tuple(absent),
        advertisements=exported.advertisements,
        backing=exported.backing,
        best=learned.best,
        rejected=learned.rejected,
        to_close=learned.to_close,
        conflicts=learned.conflicts,
        problems=(*problems, *exported.problems),
        phase=inputs.phase,
    )


def own_blocks(blocks: Iterable[Block], node: str) -> list[Block]:
    """The confirmed blocks of ``node``, in address order; nothing else is routed or announced."""
    mine = [b for b in blocks if b.node == node and b.state is BlockState.CONFIRMED]
    return sorted(mine, key=lambda b: (b.cidr.version, int(b.cidr.network_address)))


def _sessions(
    inputs: Inputs, problems: list[str]
) -> tuple[dict[Address, SessionIntent], dict[Address, Peer], list[AbsentPeer]]:
    """The sessions that shall be open, by peer address; and what cannot be, with the reason."""
    if inputs.phase is DrainPhase.CLOSED:
        return {}, {}, []
    wanted = {intent.address: intent for intent in inputs.topology.sessions}
    sessions: dict[Address, SessionIntent] = {}
    peers: dict[Address, Peer] = {}
    absent = list(inputs.topology.unconfigured)
    for address, intent in {**inputs.lingering, **wanted}.items():
        if address in inputs.closed:
            absent.append(AbsentPeer(intent, f"closed: {inputs.closed[address]}"))
            problems.append(f"peer {intent.name} {address} is closed: {inputs.closed[address]}")
            continue
        source = inputs.peer_sources.get(address)
        if source is None:
            absent.append(AbsentPeer(intent, "no route to it"))
            problems.append(f"peer {intent.name}: no route to {address}")
            continue
        sessions[address] = intent
        peers[address] = intent.peer(source)
    return sessions, peers, absent


@dataclass(frozen=True, slots=True)
class Learned:
    """What remains of what peers said, and what became of the rest."""

    best: Mapping[Prefix, tuple[Path, ...]]
    hops: Mapping[tuple[Address, Prefix], frozenset[NextHop]]
    rejected: tuple[RejectedPath, ...]
    to_close: Mapping[Address, str]
    conflicts: tuple[OwnershipConflict, ...]
    problems: tuple[str, ...]


def remote_route(prefix: Prefix, chosen: Iterable[Path], learned: Learned) -> Route:
    """The route that the best paths of a prefix make."""
    hops = frozenset().union(*(learned.hops[path.peer, prefix] for path in chosen))
    return Route(RouteKey(prefix), tuple(sorted(hops, key=next_hop_order)))


def learn(
    inputs: Inputs,
    blocks: list[Block],
    sessions: Mapping[Address, SessionIntent],
    peers: Mapping[Address, Peer],
) -> Learned:
    """Default deny: a path is used only when no rule has a reason against it."""
    this_node = find_node(inputs.snapshot, inputs.node)
    own_asn = None if this_node is None else node_asn(inputs.snapshot, this_node)
    own_prefixes = [block.cidr for block in blocks]
    resolver = Resolver(inputs.links, inputs.kernel_routes)
    policy = ImportPolicy(inputs.snapshot, own_prefixes, sessions, inputs.links, resolver, own_asn)
    received: Counter[Address] = Counter()
    accepted: list[Path] = []
    rejected: list[RejectedPath] = []
    for path in inputs.paths:
        received[path.peer] += 1
        reason = policy.judge(path)
        if reason is None:
            accepted.append(path)
        else:
            rejected.append(RejectedPath(path, *reason))

    limits = within_limits(received, accepted, sessions)
    rejected += limits.rejected
    accepted = without(accepted, limits.rejected)

    ownership = Ownership(inputs.snapshot, sessions)
    accepted, refused = guard(accepted, ownership, in_sync=inputs.snapshot.in_sync)
    rejected += [RejectedPath(path, NOT_OWNER, str(conflict)) for path, conflict in refused]

    def decide(candidates: Iterable[Path]) -> Mapping[Prefix, tuple[Path, ...]]:
        return best_paths(candidates, peers)

    hops, waiting = resolve_all(accepted, resolver, decide)
    rejected += [
        RejectedPath(
            path,
            NEXT_HOP_UNREACHABLE,
            f"no route to next hop {path.next_hop} now; it is used as soon as there is one",
        )
        for path in waiting
    ]
    candidates = [path for path in accepted if (path.peer, path.prefix) in hops]
    chosen = decide(candidates)
    shared = [prefix for prefix, paths in chosen.items() if len(paths) > 1]
    best, doubled = one_origin(chosen, ownership, filter(policy.is_in_pool, shared))
    conflicts = (*(conflict for _, conflict in refused), *doubled)
    return Learned(
        best=best,
        hops=hops,
        rejected=tuple(rejected),
        to_close=limits.to_close,
        conflicts=conflicts,
        problems=(*limits.problems, *dict.fromkeys(str(conflict) for conflict in conflicts)),
    )


def _export(
    inputs: Inputs,
    blocks: list[Block],
    sessions: Mapping[Address, SessionIntent],
    peers: Mapping[Address, Peer],
) -> Export:
    return export(
        inputs.snapshot,
        blocks,
        [address for addresses in inputs.pod_addresses.values() for address in addresses],
        [Speaking(intent, peers[address].local_address) for address, intent in sessions.items()],
        inputs.links,
        inputs.phase,
    )
