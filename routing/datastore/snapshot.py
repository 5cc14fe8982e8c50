"""Snapshot: all the agent knows of the cluster, as one immutable value; and the Datastore protocol.

A store is watched for *that* something changed, never for *what*: the agent takes a new snapshot
and computes everything again. A lost or doubled change notice is then harmless.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Protocol

from cni.ipam.block import Block, BlockStore
from cni.ipam.pool import IPPool

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Meta:
    """Kubernetes' ObjectMeta, as far as we use it."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    resource_version: str = ""
    uid: str = ""
    generation: int = 0


@dataclass(frozen=True, slots=True)
class IPPoolResource:
    """IPPool: cidr, blockSize, disabled, nodeSelector (Calico v3 meanings)."""

    meta: Meta
    cidr: Prefix
    block_size: int
    disabled: bool = False
    node_selector: str = "all()"


@dataclass(frozen=True, slots=True)
class NodeResource:
    """Node: its addresses (at most one of each family), and its ASN where it has one of its own."""

    meta: Meta
    addresses: tuple[Address, ...] = ()
    asn: int | None = None


@dataclass(frozen=True, slots=True)
class BGPPeerResource:
    """BGPPeer: which router, for which nodes. ``node`` xor ``node_selector``; neither means all."""

    meta: Meta
    peer_ip: Address
    asn: int
    port: int = 179
    node: str | None = None
    node_selector: str | None = None
    source_address: Address | None = None
    hold_time_s: int = 9
    max_restart_time_s: int = 120


@dataclass(frozen=True, slots=True)
class BGPConfigurationResource:
    """BGPConfiguration ``default``: the cluster's ASN, and what may be imported beyond pools.

    ``import_allow`` are prefixes accepted when announced exactly so, such as 0.0.0.0/0.
    """

    meta: Meta
    asn: int = 64512
    listen_port: int = 179
    import_allow: tuple[Prefix, ...] = ()


@dataclass(frozen=True, slots=True)
class BlockResource:
    """Block: the store's form of cni.ipam.block.Block; named after its CIDR (10-244-1-0-26)."""

    meta: Meta
    block: Block


Resource = (
    IPPoolResource | NodeResource | BGPPeerResource | BGPConfigurationResource | BlockResource
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything at one moment. ``in_sync`` False means: do not delete anything on its word."""

    pools: tuple[IPPoolResource, ...] = ()
    nodes: tuple[NodeResource, ...] = ()
    peers: tuple[BGPPeerResource, ...] = ()
    blocks: tuple[Block, ...] = ()
    bgp: BGPConfigurationResource = field(
        default_factory=lambda: BGPConfigurationResource(Meta("default"))
    )
    in_sync: bool = False

    def pools_for(self, node: str) -> list[IPPool]:
        """The pools as ``node``'s allocator sees them, in name order."""
        from routing.datastore.selector import Selector

        labels = next((n.meta.labels for n in self.nodes if n.meta.name == node), {})
        return [
            IPPool(
                name=pool.meta.name,
                cidr=pool.cidr,
                block_size=pool.block_size,
                disabled=pool.disabled,
                node_selected=Selector.parse(pool.node_selector).matches(labels),
            )
            for pool in sorted(self.pools, key=lambda p: p.meta.name)
        ]


class StoreError(Exception):
    """The store could not be read or written; the sentence says which store and why."""


class NotFound(StoreError):
    """No resource of that kind and name."""


class AlreadyExists(StoreError):
    """A resource of that kind and name is there already."""


class Conflict(StoreError):
    """The resource version (or uid) given is not the one stored."""


class InvalidResource(StoreError):
    """A resource breaks a rule. ``field`` is a path such as spec.cidr; nothing was stored."""

    def __init__(self, kind: str, name: str, field_path: str, value: object, rule: str) -> None:
        super().__init__(f"{kind} {name!r}: {field_path} = {value!r}: {rule}")
        self.kind = kind
        self.name = name
        self.field_path = field_path
        self.value = value
        self.rule = rule


class Datastore(BlockStore, Protocol):
    """The cluster's shared state. All methods raise StoreError (or a subclass)."""

    async def snapshot(self) -> Snapshot:
        """What the store holds now (in_sync True), or raises when that cannot be known."""

    async def changed(self) -> None:
        """Returns when the store may have changed since the last snapshot()."""

    async def get(self, kind: str, name: str) -> Resource:
        """One resource. Raises NotFound."""

    async def list(self, kind: str) -> list[Resource]:
        """All resources of a kind, by name."""

    async def create(self, resource: Resource) -> Resource:
        """Raises AlreadyExists, InvalidResource."""

    async def update(self, resource: Resource) -> Resource:
        """Compare-and-swap on meta.resource_version. Raises NotFound, Conflict, InvalidResource."""

    async def delete(
        self, kind: str, name: str, *, resource_version: str | None = None, uid: str | None = None
    ) -> None:
        """Raises NotFound; Conflict when a precondition given does not hold; InvalidResource when a
        rule forbids it (a pool that still has blocks)."""

    async def close(self) -> None:
        """Gives back what the store holds open."""
