"""Import policy: which learned paths may be used, default deny (RFC 8212 in spirit). Pure.

A path is used only when no rule has a reason against it. Each refusal has a token, which views and
metrics show, and a sentence; docs/policy.md has the table. The order of the rules is the order of
that table: what a prefix is, then what the path says, then the operator's filters, then next hops,
owners and limits, which look at all paths together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from ipaddress import ip_network

from bgp.paths import Path
from routing.datastore.snapshot import IPPoolResource, LimitAction, Snapshot
from routing.filters import Direction, Filters
from routing.links import LinkState, local_addresses
from routing.next_hops import Resolver
from routing.prefix_table import PrefixTable
from routing.routes import Address, Prefix
from routing.topology import SessionIntent, SessionKind

WARN_PERCENT = 75
MAX_PREFIX = "max-prefix"

MARTIANS: tuple[Prefix, ...] = tuple(
    map(
        ip_network,
        (
            *("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.0.0.0/29"),
            *("224.0.0.0/4", "240.0.0.0/4"),
            *("::/96", "::ffff:0.0.0.0/96", "100::/64", "fe80::/10", "fec0::/10", "ff00::/8"),
        ),
    )
)
"""What no routing table of ours may lead anywhere (RFC 6890): not even when importAllow has it."""

Reason = tuple[str, str]


@dataclass(frozen=True, slots=True)
class RejectedPath:
    """A learned path that is not used; ``reason`` is a token, ``detail`` a sentence."""

    path: Path
    reason: str
    detail: str


class ImportPolicy:
    """The rules that judge one path at a time.

    Args:
        snapshot: pools, what is allowed beyond them, filters.
        own_blocks: the confirmed blocks of this node.
        sessions: those configured, by peer address.
        links: this node's interfaces.
        resolver: what those links reach.
        own_asn: this node's ASN, whatever it shows to single peers.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        own_blocks: Iterable[Prefix],
        sessions: Mapping[Address, SessionIntent],
        links: Mapping[str, LinkState],
        resolver: Resolver,
        own_asn: int | None,
    ) -> None:
        self._resolver = resolver
        self._bgp = snapshot.bgp
        self._allowed = frozenset(snapshot.bgp.import_allow)
        self._own_blocks = PrefixTable((prefix, None) for prefix in own_blocks)
        self._pools: PrefixTable[IPPoolResource] = PrefixTable(
            (pool.cidr, pool) for pool in snapshot.pools
        )
        self._martians = PrefixTable((prefix, None) for prefix in MARTIANS)
        self._connected = PrefixTable(
            (address.network, link.ifname) for link in links.values() for address in link.addresses
        )
        self._sessions = sessions
        self._own_addresses = local_addresses(links)
        self._own_asn = own_asn
        self._filters = Filters(snapshot)

    def is_in_pool(self, prefix: Prefix) -> bool:
        """Whether ``prefix`` is inside an IPPool: what blocks are made of."""
        return next(self._pools.covering(prefix), None) is not None

    def judge(self, path: Path) -> Reason | None:
        """Why ``path`` may not be used, as (token, sentence); None when it may."""
        session = self._sessions.get(path.peer)
        if session is None:
            return "no-such-peer", f"{path.peer} is not a configured peer of this node"
        return (
            self.judge_prefix(path.prefix)
            or self._judge_origin(path, session)
            or self._judge_filters(path, session)
            or self._judge_next_hop(path.next_hop, session)
        )

    def judge_prefix(self, prefix: Prefix) -> Reason | None:
        """Why ``prefix`` may not be used, whoever says what of it; None when it may."""
        for martian, _ in self._martians.covering(prefix):
            return "martian", f"{prefix} is inside {martian}, which is not routed"
        for block, _ in self._own_blocks.covering(prefix):
            return "own-block", f"{prefix} is inside our own block {block}"
        if prefix in self._allowed:
            return None
        if prefix.prefixlen == 0:
            return "default-route", f"the default route {prefix} is not in importAllow"
        for network, ifname in self._connected.covering(prefix):
            if network.prefixlen < network.max_prefixlen or prefix == network:
                return (
                    "connected-network",
                    f"{prefix} is inside {network}, which {ifname} is connected to",
                )
        for _, pool in self._pools.covering(prefix):
            if prefix.prefixlen > pool.block_size and not self._bgp.export_pod_routes:
                return (
                    "too-long",
                    f"{prefix} is longer than a block (/{pool.block_size}) of {pool.meta.name!r}",
                )
            return None
        for pool_cidr, pool in self._pools.inside(prefix):
            return "too-short", f"{prefix} is wider than IPPool {pool.meta.name!r} ({pool_cidr})"
        return "not-in-pool", f"{prefix} is in no IPPool and not in importAllow"

    def _judge_origin(self, path: Path, session: SessionIntent) -> Reason | None:
        own = {session.local_asn} if self._own_asn is None else {session.local_asn, self._own_asn}
        times = sum(1 for asn in path.as_path if asn in own)
        if times > session.allowed_local_asns:
            told = ", ".join(str(asn) for asn in sorted(own.intersection(path.as_path)))
            most = session.allowed_local_asns
            return "as-loop", f"our ASN {told} is in the AS path {times} times, allowed are {most}"
        if path.originator_id is not None and path.originator_id == session.router_id:
            return "own-originator", f"a reflector sent back what {path.originator_id} announced"
        if session.router_id in path.cluster_list:
            return "own-cluster", f"our router id {session.router_id} is in the CLUSTER_LIST"
        if session.is_ebgp and (not path.as_path or path.as_path[0] != session.remote_asn):
            first = path.as_path[0] if path.as_path else "nothing"
            return "first-as", f"the AS path begins with {first}, the peer is {session.remote_asn}"
        return None

    def _judge_filters(self, path: Path, session: SessionIntent) -> Reason | None:
        if not session.filters:
            return None
        verdict = self._filters.judge(
            session.filters,
            Direction.IMPORT,
            path.prefix,
            communities=frozenset(path.communities) | frozenset(path.large_communities),
            as_path=path.as_path,
        )
        return None if verdict.reason is None else (verdict.reason, verdict.detail)

    def _judge_next_hop(self, next_hop: Address, session: SessionIntent) -> Reason | None:
        if next_hop in self._own_addresses:
            return "next-hop-self", f"next hop {next_hop} is an address of this node"
        if is_one_hop(session) and self._resolver.connected(next_hop) is None:
            # RFC 4271 section 5.1.3: over one hop of eBGP it is on the shared subnet.
            return "next-hop-off-link", f"next hop {next_hop} is on no connected link that is up"
        return None


def is_one_hop(session: SessionIntent) -> bool:
    """Whether its next hops must be on a link of ours."""
    return (
        session.kind is SessionKind.ROUTER
        and session.is_ebgp
        and session.multihop_ttl is None
        and session.ttl_security_hops in (None, 1)
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """What max-prefix makes of the accepted paths.

    Attributes:
        rejected: beyond the limit, in prefix order.
        to_close: peers whose session is to be closed, with the reason.
        problems: warnings and what was done, a sentence each.
    """

    rejected: tuple[RejectedPath, ...] = ()
    to_close: Mapping[Address, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def within_limits(
    received: Mapping[Address, int],
    accepted: Sequence[Path],
    sessions: Mapping[Address, SessionIntent],
) -> Limits:
    """Holds every peer to its maxPrefixes, by what it sends and not by what we accept of it.

    With StopInstalling, the first so many of the *accepted* paths in order of prefix stay: the same
    ones whatever the order they came in, and junk that was refused anyhow does not crowd them out.
    """
    rejected: list[RejectedPath] = []
    to_close: dict[Address, str] = {}
    problems: list[str] = []
    for address, session in sessions.items():
        limit, count = session.max_prefixes, received.get(address, 0)
        if limit is None or count * 100 < limit * WARN_PERCENT:
            continue
        said = f"peer {session.name} {address} sends {count} prefixes, maxPrefixes is {limit}"
        if count <= limit:
            problems.append(f"{said}: {WARN_PERCENT} % are reached")
        elif session.limit_action is LimitAction.WARN:
            problems.append(said)
        else:
            is_closing = session.limit_action is LimitAction.CLOSE
            mine = sorted((p for p in accepted if p.peer == address), key=_prefix_order)
            detail = limit_detail(address, count, limit)
            beyond = mine if is_closing else mine[limit:]
            rejected += [RejectedPath(path, MAX_PREFIX, detail) for path in beyond]
            if is_closing:
                to_close[address] = f"it sent {count} prefixes, maxPrefixes is {limit}"
                problems.append(f"{said}: the session is closed")
            else:
                problems.append(f"{said}: what is beyond is not installed")
    return Limits(tuple(rejected), to_close, tuple(problems))


def limit_detail(peer: Address, count: int, limit: int | None) -> str:
    """Why a path is beyond a limit; the same for all of a peer's."""
    return f"{peer} sends {count} prefixes, maxPrefixes is {limit}"


def without(paths: Iterable[Path], rejected: Iterable[RejectedPath]) -> list[Path]:
    """``paths`` that are not among ``rejected``."""
    gone: Set[tuple[Address, Prefix]] = {(r.path.peer, r.path.prefix) for r in rejected}
    return [path for path in paths if (path.peer, path.prefix) not in gone] if gone else list(paths)


def _prefix_order(path: Path) -> tuple[int, int, int]:
    prefix = path.prefix
    return prefix.version, int(prefix.network_address), prefix.prefixlen
