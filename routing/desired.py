"""The heart: what this node's tables should say, computed from everything it knows. Pure.

No I/O and no clock. ``desired(inputs)`` is called on every pass with whole inputs and returns
whole tables; nothing here remembers the previous answer. What becomes of a learned path is
``learning.py``'s, and ``remote.py`` asks it once for all prefixes that are alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network

from bgp.adj_rib import Offers
from bgp.nlri import nlri_of
from bgp.paths import Advertisement, Path, Peer
from cni.ipam.block import Block
from cni.podlink import GATEWAY_V4
from routing.datastore.snapshot import Snapshot
from routing.drain import DrainPhase
from routing.export_policy import AdvertisementKey, Export, Speaking, export
from routing.import_policy import RejectedPath
from routing.learning import Rules, own_blocks
from routing.links import LinkState
from routing.next_hops import KernelRoute
from routing.ownership import OwnershipConflict
from routing.remote import (
    BestPaths,
    Decided,
    Decisions,
    RejectedPaths,
    Remote,
    conflicts_of,
    refused_of,
)
from routing.route_table import RouteTable
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
from routing.topology import AbsentPeer, SessionIntent, Topology

ANEW_MAX = 1000
"""Prefixes that are decided on again for who only looks, where the rules have just changed. 40,000
with attributes of their own take seconds, without an answer for anybody else; and whoever asks ten
times a second would have them all again each time. A pass that decides by these rules is on its
way, and does it in parts."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything the heart may look at.

    Attributes:
        pod_addresses: host interface to its pod's addresses.
        topology: the sessions that ``snapshot`` asks for.
        offers: the Adj-RIB-In: what each peer says of each prefix.
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
    offers: Offers
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
        best: the best paths of each prefix that has any; ``rejected`` what is not used, and why.
        remote: what these two, and the routes to other nodes, are made of; ``decided`` what is
            true of all that was learned together.
        backing: the routes that must be in the kernel before a prefix may be announced.
        absent: peers that should have a session and have none, and why.
        to_close: peers that exceed maxPrefixes so that their session must end, and why. They are
            in no table already.
        conflicts: blocks that somebody announces who does not own them.
    """

    routes: Mapping[RouteKey, Route] = field(default_factory=RouteTable)
    kinds: Mapping[RouteKey, RouteKind] = field(default_factory=dict)
    peers: Mapping[Address, Peer] = field(default_factory=dict)
    sessions: Mapping[Address, SessionIntent] = field(default_factory=dict)
    absent: tuple[AbsentPeer, ...] = ()
    advertisements: Mapping[AdvertisementKey, Advertisement] = field(default_factory=dict)
    backing: Mapping[Prefix, frozenset[RouteKey]] = field(default_factory=dict)
    best: Mapping[Prefix, tuple[Path, ...]] = field(default_factory=dict)
    rejected: Sequence[RejectedPath] = ()
    remote: Remote = field(default_factory=Remote)
    decided: Decided = field(default_factory=Decided)
    to_close: Mapping[Address, str] = field(default_factory=dict)
    conflicts: tuple[OwnershipConflict, ...] = ()
    problems: tuple[str, ...] = ()
    phase: DrainPhase = DrainPhase.SERVING


def desired(
    inputs: Inputs, before: Decisions | None = None, *, last: Desired | None = None
) -> Desired:
    """What every table of this node should hold.

    Args:
        before: the decisions of an earlier call, to be used again where the rules are the same.
        last: the answer to an earlier call, for who only looks; what it says of all that was
            learned is said again, and ``inputs.offers`` are not looked at, where the rules are the
            same or more than ANEW_MAX prefixes were learned.
    """
    problems: list[str] = list(inputs.topology.problems)
    blocks = own_blocks(inputs.snapshot.blocks, inputs.node)
    sessions, peers, absent = _sessions(inputs, problems)
    decisions = _decisions(inputs, blocks, sessions, peers, before)
    remote, learned = (
        (last.remote, last.decided)
        if last is not None and _is_still_said(last, decisions)
        else _learned(decisions, inputs.offers)
    )
    problems += learned.problems
    conflicts = conflicts_of(remote.outcomes)
    problems += dict.fromkeys(map(str, conflicts))
    for address, reason in learned.to_close.items():
        # By other rules than those it was learned by, it may be gone already.
        if address in sessions:
            absent.append(AbsentPeer(sessions.pop(address), f"closed: {reason}"))
            peers.pop(address)

    routes: dict[RouteKey, Route] = {}
    kinds: dict[RouteKey, RouteKind] = {}

    def want(prefix: Prefix, next_hops: Iterable[NextHop], kind: RouteKind) -> None:
        # The first kind to name a prefix keeps it.
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
    grouped = {n: o.hops for n, o in remote.outcomes.items() if o.hops is not None}
    # Local truth is laid down before remote news.
    for key in routes:
        grouped.pop(nlri_of(key.prefix), None)
    table = RouteTable(routes, grouped)
    exported = _export(inputs, blocks, sessions, peers)
    return Desired(
        routes=table,
        kinds=RouteKinds(kinds, table),
        peers=peers,
        sessions=sessions,
        absent=tuple(absent),
        advertisements=exported.advertisements,
        backing=exported.backing,
        best=BestPaths(remote.outcomes),
        rejected=RejectedPaths(remote),
        remote=remote,
        decided=learned,
        to_close=learned.to_close,
        conflicts=conflicts,
        problems=(*problems, *exported.problems),
        phase=inputs.phase,
    )


def _is_still_said(last: Desired, decisions: Decisions) -> bool:
    by = last.remote.decisions
    return by is decisions or (by is not None and len(last.remote.outcomes) > ANEW_MAX)


def _learned(decisions: Decisions, offers: Offers) -> tuple[Remote, Decided]:
    learned = decisions.all(offers)
    remote = Remote(learned.outcomes, refused_of(learned.outcomes, offers), decisions)
    # The outcomes are the remote's from here on, and change with it.
    return remote, replace(learned, outcomes={})


def decisions_of(inputs: Inputs, before: Decisions | None = None) -> Decisions:
    """Those that ``desired`` decides by, for whoever has them get ready first."""
    sessions, peers, _ = _sessions(inputs, [])
    blocks = own_blocks(inputs.snapshot.blocks, inputs.node)
    return _decisions(inputs, blocks, sessions, peers, before)


def _decisions(
    inputs: Inputs,
    blocks: Iterable[Block],
    sessions: Mapping[Address, SessionIntent],
    peers: Mapping[Address, Peer],
    before: Decisions | None,
) -> Decisions:
    rules = Rules(
        inputs.snapshot,
        inputs.node,
        tuple(block.cidr for block in blocks),
        dict(sessions),
        dict(peers),
        inputs.links,
        inputs.kernel_routes,
    )
    return before if before is not None and before.rules.is_like(rules) else Decisions(rules)


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


class RouteKinds(Mapping[RouteKey, RouteKind]):
    """What each route is for: of those that were learned there are too many to say it of each."""

    def __init__(self, local: Mapping[RouteKey, RouteKind], routes: RouteTable) -> None:
        self._local = local
        self._routes = routes

    def __getitem__(self, key: RouteKey) -> RouteKind:
        kind = self._local.get(key)
        if kind is None and key not in self._routes:
            raise KeyError(key)
        return kind or RouteKind.REMOTE

    def __iter__(self) -> Iterator[RouteKey]:
        return iter(self._routes)

    def __len__(self) -> int:
        return len(self._routes)

    def counts(self) -> Counter[str]:
        """How many there are of each."""
        counts = Counter(kind.value for kind in self._local.values())
        remote = len(self._routes.grouped)
        return counts + Counter({RouteKind.REMOTE.value: remote})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return dict(self.items()) == dict(other.items())

    __hash__ = None  # type: ignore[assignment]


def kind_counts(desired: Desired) -> Counter[str]:
    """How many routes of each kind are wanted."""
    if isinstance(desired.kinds, RouteKinds):
        return desired.kinds.counts()
    return Counter(kind.value for kind in desired.kinds.values())
