"""The way of a learned path: import policy, limits, owners, next hops, the decision, one origin.
Pure.

``Learner`` is the rules of one moment, made once and asked often. What falls out has a reason token
(docs/policy.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from bgp.decision import best_paths
from bgp.paths import Path, Peer
from cni.ipam.block import Block, BlockState
from routing.datastore.snapshot import Snapshot
from routing.filters import compared_asns, compared_prefixes
from routing.import_policy import (
    MARTIANS,
    ImportPolicy,
    RejectedPath,
    is_one_hop,
    within_limits,
    without,
)
from routing.links import LinkState
from routing.next_hops import KernelRoute, Resolver, resolve_all
from routing.ownership import NOT_OWNER, Ownership, OwnershipConflict, guard, one_origin
from routing.routes import Address, NextHop, Prefix
from routing.topology import SessionIntent, find_node, node_asn

NEXT_HOP_UNREACHABLE = "next-hop-unreachable"


@dataclass(frozen=True, slots=True)
class Learned:
    """What remains of what peers said, and what became of the rest."""

    best: Mapping[Prefix, tuple[Path, ...]]
    hops: Mapping[tuple[Address, Prefix], frozenset[NextHop]]
    rejected: tuple[RejectedPath, ...]
    to_close: Mapping[Address, str]
    conflicts: tuple[OwnershipConflict, ...]
    problems: tuple[str, ...]

    def next_hops(self, prefix: Prefix) -> frozenset[NextHop]:
        """Where the best paths of a prefix lead."""
        chosen = self.best.get(prefix, ())
        return frozenset().union(*(self.hops[path.peer, prefix] for path in chosen))


@dataclass(frozen=True, slots=True)
class Rules:
    """All that decides what becomes of a learned path, but for the paths themselves.

    Attributes:
        own_blocks: the confirmed blocks of ``node``.
        sessions: those that are open or shall be, by peer address; ``peers`` as the speaker takes
            them.
        kernel_routes: other programs' routes towards next hops that are on no link of ours.
    """

    snapshot: Snapshot
    node: str
    own_blocks: tuple[Prefix, ...]
    sessions: Mapping[Address, SessionIntent]
    peers: Mapping[Address, Peer]
    links: Mapping[str, LinkState]
    kernel_routes: Mapping[Address, KernelRoute]

    def is_like(self, other: Rules) -> bool:
        """Whether both decide alike; True means so, False that it was not found."""
        return (
            (self.snapshot is other.snapshot or self.snapshot == other.snapshot)
            and self.own_blocks == other.own_blocks
            and self.sessions == other.sessions
            and self.peers == other.peers
            and self.kernel_routes == other.kernel_routes
            and list(self._deciding_links()) == list(other._deciding_links())
        )

    def _deciding_links(self) -> Iterator[tuple[object, ...]]:
        """What of links decides. Those of pods come and go, have no address and lead nowhere else;
        a foreign route may lead over a link that has none, too."""
        led = {hop.ifname for route in self.kernel_routes.values() for hop in route.hops}
        for link in self.links.values():
            if link.addresses or link.ifname in led:
                yield link.ifname, link.is_up, link.addresses

    def compared_prefixes(self) -> Iterator[Prefix]:
        """Every prefix that some rule compares a learned one with, blocks of others apart."""
        yield from MARTIANS
        yield from self.own_blocks
        yield from self.snapshot.bgp.import_allow
        yield from (pool.cidr for pool in self.snapshot.pools)
        yield from (own.network for link in self.links.values() for own in link.addresses)
        yield from compared_prefixes(self.snapshot)

    def compared_asns(self) -> Iterator[int]:
        """Every AS number that some rule compares those of a learned path with. Of all others a
        rule may ask only which are the same."""
        snapshot = self.snapshot
        yield snapshot.bgp.asn
        yield from (node_asn(snapshot, node) for node in snapshot.nodes)
        yield from (peer.local_asn for peer in snapshot.peers if peer.local_asn is not None)
        for session in self.sessions.values():
            yield from (session.local_asn, session.remote_asn)
        yield from compared_asns(snapshot)

    def owned(self) -> Iterator[tuple[Prefix, str]]:
        """The confirmed blocks and their nodes."""
        return (
            (block.cidr, block.node)
            for block in self.snapshot.blocks
            if block.state is BlockState.CONFIRMED
        )


class Learner:
    """What ``rules`` make of paths."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        snapshot, sessions = rules.snapshot, rules.sessions
        this_node = find_node(snapshot, rules.node)
        own_asn = None if this_node is None else node_asn(snapshot, this_node)
        self._resolver = Resolver(rules.links, rules.kernel_routes)
        self._policy = ImportPolicy(
            snapshot, rules.own_blocks, sessions, rules.links, self._resolver, own_asn
        )
        self._ownership = Ownership(snapshot, sessions)

    def is_near(self, peer: Address, next_hop: Address) -> bool:
        """Whether no route but a link's has a say in where ``next_hop`` is."""
        session = self.rules.sessions.get(peer)
        return (
            session is None
            # Over one hop of eBGP the policy refuses what is on no link.
            or is_one_hop(session)
            or self._resolver.connected(next_hop) is not None
        )

    def refuses_prefix(self, prefix: Prefix) -> bool:
        """Whether the import policy is against a prefix, whoever says what of it."""
        return self._policy.judge_prefix(prefix) is not None

    def accepts(self, path: Path) -> bool:
        """Whether the import policy alone has nothing against a path."""
        return self._policy.judge(path) is None

    def learn(
        self, paths: Iterable[Path], received: Mapping[Address, int] | None = None
    ) -> Learned:
        """Default deny: a path is used only when no rule has a reason against it.

        Args:
            paths: those to judge, together.
            received: how many each peer sends in all; None: what is in ``paths``.
        """
        accepted: list[Path] = []
        rejected: list[RejectedPath] = []
        count: Counter[Address] = Counter()
        for path in paths:
            count[path.peer] += 1
            reason = self._policy.judge(path)
            if reason is None:
                accepted.append(path)
            else:
                rejected.append(RejectedPath(path, *reason))

        limits = within_limits(
            count if received is None else received, accepted, self.rules.sessions
        )
        rejected += limits.rejected
        accepted = without(accepted, limits.rejected)

        ownership = self._ownership
        accepted, refused = guard(accepted, ownership, in_sync=self.rules.snapshot.in_sync)
        rejected += [RejectedPath(path, NOT_OWNER, str(conflict)) for path, conflict in refused]

        def decide(candidates: Iterable[Path]) -> Mapping[Prefix, tuple[Path, ...]]:
            return best_paths(candidates, self.rules.peers)

        hops, waiting = resolve_all(accepted, self._resolver, decide)
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
        best, doubled = one_origin(chosen, ownership, filter(self._policy.is_in_pool, shared))
        conflicts = (*(conflict for _, conflict in refused), *doubled)
        return Learned(
            best=best,
            hops=hops,
            rejected=tuple(rejected),
            to_close=limits.to_close,
            conflicts=conflicts,
            problems=limits.problems,
        )


def own_blocks(blocks: Iterable[Block], node: str) -> list[Block]:
    """The confirmed blocks of ``node``, in address order; nothing else is routed or announced."""
    mine = [b for b in blocks if b.node == node and b.state is BlockState.CONFIRMED]
    return sorted(mine, key=lambda b: (b.cidr.version, int(b.cidr.network_address)))
