"""Which BGP sessions this node should have, with whom and on what terms. Pure.

Four sources, one list: a BGPPeer names a router by address, or nodes of this cluster by selector;
the node-to-node mesh is every other node; labels choose the nodes a BGPPeer is for. Both ends of a
session between nodes compute it from the same snapshot, so that they agree without asking:

  * a pair is a pair, whichever end a BGPPeer selects; the end it is *for* (node, nodeSelector) uses
    its localASN, the end it *names* (peerSelector) its asNumber;
  * the higher address connects and the lower listens, compared as numbers. Two connections at once
    would be resolved by the collision rules (RFC 4271 section 6.8), and a peer that keeps our
    routes for a graceful restart takes the second connection for that restart (RFC 4724 section 5);
  * a mesh session carries both families, over IPv4 where both nodes have it; a BGPPeer with
    peerSelector has a session for each family that both nodes have an address of.

Nothing listens unless somebody may connect: on the passive end only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from ipaddress import IPv4Address

from bgp.paths import Peer
from routing.datastore.selector import Selector, SelectorError
from routing.datastore.snapshot import (
    BGPPeerResource,
    ExportAttributes,
    LimitAction,
    NodeResource,
    SecretKeyRef,
    Snapshot,
)
from routing.links import LinkState, connected_link, link_of
from routing.routes import Address

BGP_PORT = 179
NO_ATTRIBUTES = ExportAttributes()
MESH_HOLD_TIME_S = 9
NODE_TTL = 64
"""TTL of eBGP packets between nodes: there are routers between racks."""


class SessionKind(Enum):
    """What is at the other end."""

    ROUTER = "router"
    """A router outside the cluster, by address."""
    NODE = "node"
    """A node that a BGPPeer selects or names by address."""
    MESH = "mesh"


@dataclass(frozen=True, slots=True)
class SessionIntent:
    """One wanted session, and the policy of its BGPPeer or of the mesh.

    Attributes:
        resource: the BGPPeer's name; None is the mesh.
        remote_node: the node at the other end, where it is one.
        source_address: our end, when it is laid down; None is for ``source_of`` to choose.
        node_addresses: this node's own, at most one of each family.
        filters: BGPFilters by name, in order.
        max_prefixes: what the peer may send; None is as much as it likes.
    """

    name: str
    kind: SessionKind
    address: Address
    remote_asn: int
    local_asn: int
    router_id: IPv4Address
    resource: str | None = None
    remote_node: str | None = None
    source_address: Address | None = None
    is_source_free: bool = False
    node_addresses: tuple[Address, ...] = ()
    port: int = BGP_PORT
    hold_time_s: int = MESH_HOLD_TIME_S
    graceful_restart_s: int = 120
    password: str | None = field(default=None, repr=False)
    ttl_security_hops: int | None = None
    multihop_ttl: int | None = None
    is_passive: bool = False
    listen_port: int = BGP_PORT
    allowed_local_asns: int = 0
    extended_next_hop: bool = False
    filters: tuple[str, ...] = ()
    max_prefixes: int | None = None
    limit_action: LimitAction = LimitAction.STOP_INSTALLING
    export: ExportAttributes = NO_ATTRIBUTES

    @property
    def is_ebgp(self) -> bool:
        return self.remote_asn != self.local_asn

    def peer(self, local_address: Address) -> Peer:
        """The session as the speaker takes it, from ``local_address``."""
        return Peer(
            name=self.name,
            address=self.address,
            remote_asn=self.remote_asn,
            local_asn=self.local_asn,
            local_address=local_address,
            router_id=self.router_id,
            port=self.port,
            hold_time_s=self.hold_time_s,
            graceful_restart_s=self.graceful_restart_s,
            password=self.password,
            ttl_security_hops=self.ttl_security_hops,
            multihop_ttl=self.multihop_ttl,
            is_passive=self.is_passive,
            listens=self.is_passive,
            listen_port=self.listen_port,
            allowed_local_asns=self.allowed_local_asns,
            extended_next_hop=self.extended_next_hop,
        )


@dataclass(frozen=True, slots=True)
class PeerName:
    """A peer this node should have a session with, whether or not it can be configured."""

    name: str
    address: Address


@dataclass(frozen=True, slots=True)
class AbsentPeer:
    """A session that is wanted and cannot be, and why."""

    intent: SessionIntent
    reason: str


@dataclass(frozen=True, slots=True)
class Topology:
    """``sessions`` in order of preference, no two with one address. ``names`` has those of
    ``sessions`` and the peers that cannot be configured: ``unconfigured`` says why."""

    sessions: tuple[SessionIntent, ...] = ()
    names: tuple[PeerName, ...] = ()
    problems: tuple[str, ...] = ()
    unconfigured: tuple[AbsentPeer, ...] = ()


def sessions_for(snapshot: Snapshot, node: str) -> Topology:
    """The sessions of ``node``: BGPPeers in name order, then the mesh.

    Of several BGPPeers with one address the oldest is used, whatever it is called: one that comes
    later must not reset a session that is up. A password that is referred to and missing means
    no session: one without it would be up with whoever answers.
    """
    this_node = find_node(snapshot, node)
    if this_node is None:
        return Topology(
            problems=(f"no Node resource named {node!r}: no peer can be chosen for this node",)
        )
    finding = _Finding(snapshot, this_node)
    for resource in snapshot.peers:
        finding.add_resource(resource)
    from_peers = sorted(finding.sessions, key=lambda intent: intent.resource or "")
    if snapshot.bgp.mesh_enabled:
        finding.add_mesh()
    from_mesh = (each for each in finding.sessions if each.kind is SessionKind.MESH)
    return Topology(
        (*from_peers, *from_mesh),
        tuple(finding.names.values()),
        tuple(finding.problems),
        tuple(finding.unconfigured),
    )


def find_node(snapshot: Snapshot, name: str) -> NodeResource | None:
    """The Node of that name."""
    return next((each for each in snapshot.nodes if each.meta.name == name), None)


def node_asn(snapshot: Snapshot, node: NodeResource) -> int:
    """The node's own ASN, or the cluster's."""
    return node.asn or snapshot.bgp.asn


def router_id(node: NodeResource) -> IPv4Address:
    """The node's first IPv4 address; on an IPv6-only node 32 bits hashed from its name.

    A BGP identifier must be unique in the AS and non-zero (RFC 6286), not an address.
    """
    for address in node.addresses:
        if isinstance(address, IPv4Address):
            return address
    digest = hashlib.sha256(node.meta.name.encode()).digest()
    return IPv4Address(int.from_bytes(digest[:4], "big") or 1)


def source_of(intent: SessionIntent, links: Mapping[str, LinkState]) -> Address | None:
    """Our end of the session, as far as that is not the kernel's choice (None).

    Between nodes it is the node's address, by which the other end knows us. Towards a router it is
    the node's address too, unless the router is on a link that does not carry it: with two uplinks
    each router knows us by our address on its own link, and a session over one hop (TTL 1) from
    another link's address would not come up.
    """
    if intent.source_address is not None:
        return intent.source_address
    own = _of_family(intent.node_addresses, intent.address.version)
    if intent.kind is not SessionKind.ROUTER:
        return own
    if own is None or intent.is_source_free:
        return None
    carrier = link_of(own, links)
    if carrier is None:
        return None
    towards = connected_link(intent.address, links)
    return own if towards in (None, carrier.ifname) else None


class _Finding:
    """Collects the sessions of one node."""

    def __init__(self, snapshot: Snapshot, this_node: NodeResource) -> None:
        self._snapshot = snapshot
        self._node = this_node
        self._asn = node_asn(snapshot, this_node)
        self._by_address: dict[Address, SessionIntent] = {}
        self._nodes_by_address = {
            address: node for node in snapshot.nodes for address in node.addresses
        }
        self.names: dict[Address, PeerName] = {}
        self.problems: list[str] = []
        self.unconfigured: list[AbsentPeer] = []

    @property
    def sessions(self) -> Iterable[SessionIntent]:
        return self._by_address.values()

    def add_resource(self, resource: BGPPeerResource) -> None:
        try:
            if resource.peer_selector is not None:
                found = list(self._with_selected(resource, resource.peer_selector))
            elif _is_for(resource, self._node):
                found = list(self._with_address(resource))
            else:
                return
        except SelectorError as error:
            self.problems.append(f"BGPPeer {resource.meta.name!r}: {error}")
            return
        for intent in found:
            self._add(intent, resource.password, f"BGPPeer {resource.meta.name!r}")

    def add_mesh(self) -> None:
        bgp = self._snapshot.bgp
        for other in sorted(self._snapshot.nodes, key=lambda each: each.meta.name):
            if other.meta.name == self._node.meta.name:
                continue
            if any(address in self._by_address for address in other.addresses):
                # A BGPPeer says more of this pair than the mesh does.
                continue
            pair = next(self._address_pairs(other), None)
            if pair is None:
                self.problems.append(
                    f"mesh: {self._node.meta.name!r} and {other.meta.name!r} have no address of "
                    "one family"
                )
                continue
            own, theirs = pair
            remote_asn = node_asn(self._snapshot, other)
            lacks_v4 = not (_of_family(self._node.addresses, 4) and _of_family(other.addresses, 4))
            intent = SessionIntent(
                name=f"mesh/{other.meta.name}",
                kind=SessionKind.MESH,
                address=theirs,
                remote_asn=remote_asn,
                local_asn=self._asn,
                router_id=router_id(self._node),
                remote_node=other.meta.name,
                source_address=own,
                node_addresses=self._node.addresses,
                port=bgp.listen_port,
                graceful_restart_s=bgp.mesh_max_restart_time_s,
                multihop_ttl=NODE_TTL if remote_asn != self._asn else None,
                is_passive=int(own) < int(theirs),
                listen_port=bgp.listen_port,
                # Without IPv4 on both there is no other way to give an IPv4 block a next hop.
                extended_next_hop=theirs.version == 6 and lacks_v4,
                filters=bgp.mesh_filters,
            )
            self._add(intent, bgp.mesh_password, "mesh")

    def _add(self, intent: SessionIntent, secret: SecretKeyRef | None, whose: str) -> None:
        first = self.names.get(intent.address)
        if first is not None:
            self.problems.append(
                f"Conflicting: {whose} names {intent.address} as {first.name!r} does; "
                f"{first.name!r}, the older one, is used"
            )
            return
        self.names[intent.address] = PeerName(intent.name, intent.address)
        if secret is not None:
            password = self._snapshot.passwords.get(secret)
            text = "" if password is None else password.reveal()
            if not text:
                missing = f"Secret {secret.name!r} has no key {secret.key!r}"
                self.unconfigured.append(AbsentPeer(intent, f"MissingSecret: {missing}"))
                self.problems.append(
                    f"MissingSecret: {whose}: {missing}; there is no session with {intent.address}"
                )
                return
            intent = replace(intent, password=text)
        self._by_address[intent.address] = intent

    # -- one BGPPeer -----------------------------------------------------------------------

    def _with_address(self, resource: BGPPeerResource) -> Iterator[SessionIntent]:
        address = resource.peer_ip
        if address is None:
            return
        other = self._nodes_by_address.get(address)
        asn = resource.asn
        if asn is None and other is not None:
            asn = node_asn(self._snapshot, other)
        if asn is None:
            self.problems.append(f"BGPPeer {resource.meta.name!r}: no asNumber for {address}")
            return
        own = _of_family(self._node.addresses, address.version)
        if other is None or own is None or other.meta.name == self._node.meta.name:
            yield self._from_resource(
                resource, address, remote_asn=asn, local_asn=resource.local_asn or self._asn
            )
            return
        yield self._from_resource(
            resource,
            address,
            remote_asn=asn,
            local_asn=resource.local_asn or self._asn,
            other=other,
            own=resource.source_address or own,
        )

    def _with_selected(self, resource: BGPPeerResource, text: str) -> Iterator[SessionIntent]:
        selector = Selector.parse(text)
        is_this_for, is_this_named = (
            _is_for(resource, self._node),
            selector.matches(self._node.meta.labels),
        )
        for other in sorted(self._snapshot.nodes, key=lambda each: each.meta.name):
            if other.meta.name == self._node.meta.name:
                continue
            is_forward = is_this_for and selector.matches(other.meta.labels)
            is_reverse = is_this_named and _is_for(resource, other)
            if not is_forward and not is_reverse:
                continue
            if is_forward and is_reverse:
                # Both ends are both; they must agree on who is the one the BGPPeer is for.
                is_forward = self._node.meta.name < other.meta.name
            own_asn = (resource.local_asn if is_forward else resource.asn) or self._asn
            their_asn = (resource.asn if is_forward else resource.local_asn) or node_asn(
                self._snapshot, other
            )
            pairs = list(self._address_pairs(other))
            if not pairs:
                self.problems.append(
                    f"BGPPeer {resource.meta.name!r}: {self._node.meta.name!r} and "
                    f"{other.meta.name!r} have no address of one family"
                )
            for own, theirs in pairs:
                yield self._from_resource(
                    resource, theirs, remote_asn=their_asn, local_asn=own_asn, other=other, own=own
                )

    def _from_resource(
        self,
        resource: BGPPeerResource,
        address: Address,
        *,
        remote_asn: int,
        local_asn: int,
        other: NodeResource | None = None,
        own: Address | None = None,
    ) -> SessionIntent:
        name = resource.meta.name
        port, is_passive, ttl = resource.port, resource.is_passive, resource.multihop_ttl
        if other is not None and own is not None:
            if resource.peer_ip is None:
                name = f"{name}/{other.meta.name}"
                if port == BGP_PORT:
                    port = self._snapshot.bgp.listen_port
                is_passive = False
            is_passive = is_passive or int(own) < int(address)
            if ttl is None and resource.ttl_security_hops is None and remote_asn != local_asn:
                ttl = NODE_TTL
        return SessionIntent(
            name=name,
            kind=SessionKind.ROUTER if other is None else SessionKind.NODE,
            address=address,
            remote_asn=remote_asn,
            local_asn=local_asn,
            router_id=router_id(self._node),
            resource=resource.meta.name,
            remote_node=None if other is None else other.meta.name,
            source_address=own if other is not None else resource.source_address,
            is_source_free=resource.is_source_free,
            node_addresses=self._node.addresses,
            port=port,
            hold_time_s=resource.hold_time_s,
            graceful_restart_s=resource.max_restart_time_s,
            ttl_security_hops=resource.ttl_security_hops,
            multihop_ttl=ttl,
            is_passive=is_passive,
            listen_port=self._snapshot.bgp.listen_port,
            allowed_local_asns=resource.allowed_local_asns,
            extended_next_hop=resource.extended_next_hop,
            filters=resource.filters,
            max_prefixes=resource.max_prefixes,
            limit_action=resource.limit_action,
            export=resource.export,
        )

    def _address_pairs(self, other: NodeResource) -> Iterator[tuple[Address, Address]]:
        """(our address, theirs) for each family both have, IPv4 first."""
        for version in (4, 6):
            own = _of_family(self._node.addresses, version)
            theirs = _of_family(other.addresses, version)
            if own is not None and theirs is not None:
                yield own, theirs


def _is_for(resource: BGPPeerResource, node: NodeResource) -> bool:
    """Whether the BGPPeer is for ``node``. Raises SelectorError."""
    if resource.node is not None:
        return resource.node == node.meta.name
    if resource.node_selector is not None:
        return Selector.parse(resource.node_selector).matches(node.meta.labels)
    return True


def _of_family(addresses: Iterable[Address], version: int) -> Address | None:
    return next((each for each in addresses if each.version == version), None)
