"""What a router must know to speak with our nodes, from the resources alone. Pure.

One ``RouterSide`` per address that BGPPeers name, with the nodes that speak to it. Nothing secret
is in it: of a password only which Secret has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_network

from routing.datastore.selector import Selector
from routing.datastore.snapshot import (
    BGPPeerResource,
    NodeResource,
    Prefix,
    SecretKeyRef,
    Snapshot,
)
from routing.routes import Address
from routing.topology import SessionIntent, SessionKind, sessions_for

MAX_PREFIXES = 100
"""What one node may announce, per family: five times the blocks it may own by default. Beyond it
somebody announces what is not theirs, and the router closes the session."""


@dataclass(frozen=True, slots=True)
class Span:
    """Prefixes inside ``network`` whose lengths are ``low`` to ``high``."""

    network: Prefix
    low: int
    high: int

    @property
    def version(self) -> int:
        return self.network.version


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Nodes with one AS number, by their addresses of the session's family, ascending."""

    asn: int
    addresses: tuple[Address, ...]

    @property
    def listen_range(self) -> Prefix:
        """The smallest network that has them all."""
        return covering(self.addresses)


@dataclass(frozen=True, slots=True)
class RouterSide:
    """One router's part. ``accepted`` and ``sent`` are the only routes in each direction."""

    peer: str
    address: Address
    asn: int
    port: int
    groups: tuple[NodeGroup, ...]
    accepted: tuple[Span, ...]
    sent: tuple[Span, ...]
    hold_time_s: int
    restart_time_s: int
    password: SecretKeyRef | None = None
    ttl_security_hops: int | None = None
    multihop_ttl: int | None = None
    is_node_passive: bool = False
    """The nodes wait for the router, so it must know each by its address."""
    node_port: int = 179
    extended_next_hop: bool = False
    listen_range: Prefix | None = None
    """Laid down by the operator; None: what covers the nodes there are."""

    @property
    def versions(self) -> tuple[int, ...]:
        """Of IP, as far as there is anything to exchange."""
        return tuple(v for v in (4, 6) if any(s.version == v for s in (*self.accepted, *self.sent)))

    @property
    def keepalive_s(self) -> int:
        return max(1, self.hold_time_s // 3)

    def range_of(self, group: NodeGroup) -> Prefix:
        """Whose connections the router takes as this group's."""
        return self.listen_range or group.listen_range

    def is_internal(self, group: NodeGroup) -> bool:
        """iBGP: the router is a route reflector, and the nodes its clients."""
        return group.asn == self.asn

    @property
    def placeholder(self) -> str:
        """What stands where the operator writes the password: no password, and easy to find."""
        if self.password is None:
            return ""
        return f"REPLACE-WITH-SECRET-{self.password.name}-{self.password.key}"

    @property
    def router_id(self) -> IPv4Address | None:
        return self.address if isinstance(self.address, IPv4Address) else None


def router_sides(
    snapshot: Snapshot, *, rack: Selector | None = None, peer: str | None = None
) -> list[RouterSide]:
    """The routers that the nodes speak to, in the order of their addresses.

    Args:
        snapshot: the resources.
        rack: only the nodes whose labels it matches.
        peer: only this BGPPeer.
    """
    # Whether a Secret is there is no matter here, and no password of it may get any further.
    stripped = replace(
        snapshot, peers=tuple(replace(each, password=None) for each in snapshot.peers)
    )
    resources = {each.meta.name: each for each in snapshot.peers}
    found: dict[Address, list[tuple[NodeResource, SessionIntent]]] = {}
    for node in sorted(snapshot.nodes, key=lambda each: each.meta.name):
        if rack is not None and not rack.matches(node.meta.labels):
            continue
        for intent in sessions_for(stripped, node.meta.name).sessions:
            if intent.kind is not SessionKind.ROUTER or intent.resource is None:
                continue
            if peer is None or intent.resource == peer:
                found.setdefault(intent.address, []).append((node, intent))
    return [
        _side(snapshot, resources[str(sessions[0][1].resource)], sessions)
        for _, sessions in sorted(found.items(), key=lambda item: (item[0].version, int(item[0])))
    ]


def _side(
    snapshot: Snapshot,
    resource: BGPPeerResource,
    sessions: list[tuple[NodeResource, SessionIntent]],
) -> RouterSide:
    first = sessions[0][1]
    return RouterSide(
        peer=resource.meta.name,
        address=first.address,
        asn=first.remote_asn,
        port=first.port,
        groups=tuple(_groups(sessions)),
        accepted=tuple(_accepted(snapshot)),
        sent=tuple(_sent(snapshot)),
        hold_time_s=first.hold_time_s,
        restart_time_s=first.graceful_restart_s,
        password=resource.password,
        ttl_security_hops=first.ttl_security_hops,
        multihop_ttl=first.multihop_ttl,
        is_node_passive=first.is_passive,
        node_port=first.listen_port,
        extended_next_hop=first.extended_next_hop,
    )


def _groups(sessions: list[tuple[NodeResource, SessionIntent]]) -> Iterator[NodeGroup]:
    by_asn: dict[int, set[Address]] = {}
    for node, intent in sessions:
        own = intent.source_address or next(
            (a for a in node.addresses if a.version == intent.address.version), None
        )
        if own is not None:
            by_asn.setdefault(intent.local_asn, set()).add(own)
    for asn in sorted(by_asn):
        yield NodeGroup(asn, tuple(sorted(by_asn[asn], key=int)))


def _accepted(snapshot: Snapshot) -> Iterator[Span]:
    """Blocks of pools, their aggregates, and pods' own addresses where they are announced."""
    for pool in sorted(snapshot.pools, key=lambda each: (each.cidr.version, int(each.cidr[0]))):
        if pool.disable_bgp_export:
            continue
        longest = pool.cidr.max_prefixlen
        yield Span(
            pool.cidr,
            pool.cidr.prefixlen if snapshot.bgp.aggregate else pool.block_size,
            longest if snapshot.bgp.export_pod_routes else pool.block_size,
        )


def _sent(snapshot: Snapshot) -> Iterator[Span]:
    """What nodes accept: the other nodes' blocks, and exactly what importAllow names."""
    for prefix in snapshot.bgp.import_allow:
        yield Span(prefix, prefix.prefixlen, prefix.prefixlen)
    yield from _accepted(snapshot)


def covering(addresses: Sequence[Address]) -> Prefix:
    """The smallest network with all of these addresses, of one family and at least one."""
    lowest, highest = min(map(int, addresses)), max(map(int, addresses))
    bits = (lowest ^ highest).bit_length()
    first = type(addresses[0])(lowest >> bits << bits)
    return ip_network(f"{first}/{first.max_prefixlen - bits}")
