"""Snapshot: all the agent knows of the cluster, as one immutable value; and the Datastore protocol.

A store is watched for *that* something changed, never for *what*: the agent takes a new snapshot
and computes everything again. A lost or doubled change notice is then harmless.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Protocol, runtime_checkable

from cni.ipam.block import Block, BlockStore
from cni.ipam.pool import IPPool
from routing.printable import printable

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

    @property
    def created_ms(self) -> str:
        """When it was made, as 12 hex digits that sort, where the uid tells (RFC 9562, UUIDv7, as
        the embedded store gives); else "", which is before all others."""
        digits = self.uid.replace("-", "")
        return digits[:12] if len(digits) == 32 and digits[12] == "7" else ""


@dataclass(frozen=True, slots=True)
class IPPoolResource:
    """IPPool: cidr, blockSize, disabled, nodeSelector, ... (Calico v3 meanings).

    ``is_manual`` (assignmentMode: Manual): only for pods that name the pool.
    """

    meta: Meta
    cidr: Prefix
    block_size: int
    disabled: bool = False
    node_selector: str = "all()"
    namespace_selector: str = "all()"
    is_manual: bool = False
    disable_bgp_export: bool = False


@dataclass(frozen=True, slots=True)
class NodeResource:
    """Node: its addresses (at most one of each family), and its ASN where it has one of its own.

    ``is_drained``: the operator has asked it to withdraw everything (RFC 8326, then a withdrawal).
    """

    meta: Meta
    addresses: tuple[Address, ...] = ()
    asn: int | None = None
    is_drained: bool = False


@dataclass(frozen=True, slots=True)
class SecretKeyRef:
    """Where a password is: a key of a Secret in slash32's own namespace."""

    name: str
    key: str


class LimitAction(Enum):
    """What is done with a peer that sends more than ``max_prefixes``."""

    WARN = "Warn"
    STOP_INSTALLING = "StopInstalling"
    CLOSE = "Close"


@dataclass(frozen=True, slots=True)
class ExportAttributes:
    """What is written on a route that is announced. Communities as ``a:b``, large as ``a:b:c``.

    ``prepend``: how many times more our ASN stands in AS_PATH. ``local_pref``: iBGP only.
    """

    communities: tuple[str, ...] = ()
    large_communities: tuple[str, ...] = ()
    med: int | None = None
    local_pref: int | None = None
    prepend: int = 0


@dataclass(frozen=True, slots=True)
class BGPPeerResource:
    """BGPPeer: which router, for which nodes; ``peer_ip`` xor ``peer_selector``.

    ``node`` xor ``node_selector``; neither means all nodes. ``peer_selector`` names nodes of this
    cluster (route reflectors that run slash32 or carry a Node resource), at their own ASN when
    ``asn`` is None. ``source_address`` None: the node's own address (Calico's UseNodeIP) or, with
    ``is_source_free`` (Calico's None), whatever the kernel chooses.
    """

    meta: Meta
    peer_ip: Address | None = None
    asn: int | None = None
    port: int = 179
    node: str | None = None
    node_selector: str | None = None
    peer_selector: str | None = None
    source_address: Address | None = None
    is_source_free: bool = False
    local_asn: int | None = None
    hold_time_s: int = 9
    max_restart_time_s: int = 120
    password: SecretKeyRef | None = None
    ttl_security_hops: int | None = None
    """GTSM (RFC 5082): at most this many hops away. Excludes ``multihop_ttl``."""
    multihop_ttl: int | None = None
    """TTL of our packets on an eBGP session to a router that is not on the link."""
    allowed_local_asns: int = 0
    """numAllowedLocalASNumbers: how often our own ASN may stand in a received AS_PATH."""
    is_passive: bool = False
    filters: tuple[str, ...] = ()
    """Names of BGPFilters, applied in this order."""
    max_prefixes: int | None = None
    limit_action: LimitAction = LimitAction.STOP_INSTALLING
    export: ExportAttributes = ExportAttributes()
    extended_next_hop: bool = False
    """IPv4 with an IPv6 next hop (RFC 8950)."""


class FilterAction(Enum):
    """What a rule of a BGPFilter does with a route it matches."""

    ACCEPT = "Accept"
    REJECT = "Reject"


class MatchOperator(Enum):
    """How a rule's CIDR is compared with a route's prefix, as in Calico."""

    EQUAL = "Equal"
    NOT_EQUAL = "NotEqual"
    IN = "In"
    NOT_IN = "NotIn"


@dataclass(frozen=True, slots=True)
class FilterRule:
    """One rule; what is None (or empty) matches everything. First match decides, none accepts.

    ``min_length``/``max_length`` bound the prefix length inside ``cidr`` (In and NotIn only).
    ``set_attributes`` (export rules that accept) are added to the route.
    """

    action: FilterAction
    operator: MatchOperator | None = None
    cidr: Prefix | None = None
    min_length: int | None = None
    max_length: int | None = None
    communities: tuple[str, ...] = ()
    """The route must carry all of these (``a:b`` or ``a:b:c``)."""
    as_path_prefix: tuple[int, ...] = ()
    set_attributes: ExportAttributes = ExportAttributes()


@dataclass(frozen=True, slots=True)
class BGPFilterResource:
    """BGPFilter: ordered rules for each direction and family (Calico v3)."""

    meta: Meta
    export_v4: tuple[FilterRule, ...] = ()
    import_v4: tuple[FilterRule, ...] = ()
    export_v6: tuple[FilterRule, ...] = ()
    import_v6: tuple[FilterRule, ...] = ()


@dataclass(frozen=True, slots=True)
class PrefixAdvertisement:
    """Communities on what is announced from inside ``cidr`` (Calico's prefixAdvertisements)."""

    cidr: Prefix
    communities: tuple[str, ...] = ()
    large_communities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BGPConfigurationResource:
    """BGPConfiguration ``default``: the cluster's ASN, and what may be imported beyond pools.

    ``import_allow`` are prefixes accepted when announced exactly so, such as 0.0.0.0/0.
    ``mesh_enabled``: every node peers with every other of its ASN (iBGP) or of others (eBGP);
    nodeToNodeMeshEnabled, which an absent field of a present resource leaves on, as in Calico. With
    no BGPConfiguration at all there is no mesh.
    """

    meta: Meta
    asn: int = 64512
    listen_port: int = 179
    import_allow: tuple[Prefix, ...] = ()
    mesh_enabled: bool = False
    mesh_password: SecretKeyRef | None = None
    mesh_max_restart_time_s: int = 120
    mesh_filters: tuple[str, ...] = ()
    prefix_advertisements: tuple[PrefixAdvertisement, ...] = ()
    export_pod_routes: bool = False
    """Whether pods' /32 and /128 are announced beside the blocks. Off unless asked for."""
    aggregate: bool = True
    """Whether a whole supernet of blocks that this node owns is announced as one prefix."""
    keep_last_peers_s: int = 600
    """How long a node keeps its last peers when all are gone at once (last_peers.py)."""


@dataclass(frozen=True, slots=True)
class BlockResource:
    """Block: the store's form of cni.ipam.block.Block; named after its CIDR (10-244-1-0-26)."""

    meta: Meta
    block: Block


class Password:
    """A secret text that prints as stars, so that no log, view or traceback can show it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the one place that writes it into exabgp.conf."""
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Password) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Password(***)"

    __str__ = __repr__


@dataclass(frozen=True, slots=True)
class SecretResource:
    """A v1 Secret, as far as BGPPeers refer to it: key -> password."""

    meta: Meta
    passwords: Mapping[str, Password] = field(default_factory=dict)


class ConditionStatus(Enum):
    """As Kubernetes spells it."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


DEGRADED = "Degraded"
"""The type of the one condition that is bad when it is true, as Kubernetes names such a one."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A metav1.Condition. ``reason`` is a CamelCase token, ``message`` a sentence.

    ``changed_at`` is RFC 3339 UTC with seconds, set by whoever writes it: it moves only when
    ``status`` changes.
    """

    type: str
    status: ConditionStatus
    reason: str
    message: str = ""
    observed_generation: int = 0
    changed_at: str = ""

    @property
    def is_bad(self) -> bool:
        """Whether it tells of something wrong: Degraded by being true, others by being false."""
        bad = ConditionStatus.TRUE if self.type == DEGRADED else ConditionStatus.FALSE
        return self.status is bad


@dataclass(frozen=True, slots=True)
class PeerReport:
    """One session as its node sees it; ``since`` is RFC 3339 UTC."""

    name: str
    address: Address
    asn: int
    state: str
    since: str = ""
    reason: str = ""
    received: int = 0
    accepted: int = 0
    rejected: int = 0
    advertised: int = 0


@dataclass(frozen=True, slots=True)
class NodeStatusResource:
    """NodeStatus, named after its node: what the agent there reports, for people and controllers.

    ``routes`` counts by kind (pod, block, remote), ``addresses`` by use (used, resting, free).
    """

    meta: Meta
    version: str = ""
    observed_at: str = ""
    peers: tuple[PeerReport, ...] = ()
    routes: Mapping[str, int] = field(default_factory=dict)
    addresses: Mapping[str, int] = field(default_factory=dict)
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class ResourceStatus:
    """The status of an IPPool or BGPPeer: printer columns (camelCase keys) and conditions."""

    columns: Mapping[str, str | int] = field(default_factory=dict)
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class EventNote:
    """A Kubernetes Event to be: about which resource, a CamelCase reason, a sentence."""

    kind: str
    name: str
    reason: str
    message: str
    is_warning: bool = True


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a stored resource that is there all the same; ``text`` is a sentence.

    ``reason``: Malformed, Overlapping or NotOfItsPool.
    """

    kind: str
    name: str
    text: str
    reason: str = "Malformed"


Resource = (
    IPPoolResource
    | NodeResource
    | BGPPeerResource
    | BGPFilterResource
    | BGPConfigurationResource
    | BlockResource
    | NodeStatusResource
    | SecretResource
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything at one moment. ``in_sync`` False means: do not delete anything on its word.

    ``peers`` are in the order in which they were made, those of one moment by name: of two that
    name one address the older is used. ``passwords`` holds those that peers refer to and that
    exist; NodeStatus is never in here.
    ``peers_gone_at_s`` (Unix time): since when peers in here are last good ones (last_peers.py).
    """

    pools: tuple[IPPoolResource, ...] = ()
    nodes: tuple[NodeResource, ...] = ()
    peers: tuple[BGPPeerResource, ...] = ()
    filters: tuple[BGPFilterResource, ...] = ()
    blocks: tuple[Block, ...] = ()
    bgp: BGPConfigurationResource = field(
        default_factory=lambda: BGPConfigurationResource(Meta("default"))
    )
    passwords: Mapping[SecretKeyRef, Password] = field(default_factory=dict)
    in_sync: bool = False
    peers_gone_at_s: float | None = None

    def pools_for(self, node: str) -> list[IPPool]:
        """The pools as ``node``'s allocator sees them, in name order.

        A pool that selects namespaces is given to none unasked, as a manual one: whoever knows a
        pod's namespace names it (routing.datastore.kubernetes_pods).
        """
        from routing.datastore.selector import Selector

        labels = next((n.meta.labels for n in self.nodes if n.meta.name == node), {})
        return [
            IPPool(
                name=pool.meta.name,
                cidr=pool.cidr,
                block_size=pool.block_size,
                disabled=pool.disabled,
                node_selected=Selector.parse(pool.node_selector).matches(labels),
                is_manual=pool.is_manual or pool.namespace_selector not in ("", "all()"),
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
        # A field that we do not know has whatever name its writer gave it.
        super().__init__(printable(f"{kind} {name!r}: {field_path} = {value!r}: {rule}"))
        self.kind = kind
        self.name = name
        self.field_path = field_path
        self.value = value
        self.rule = rule


@dataclass(frozen=True, slots=True)
class Applied:
    """What apply() did with one resource: ``created``, ``configured`` or ``unchanged``."""

    resource: Resource
    outcome: str


def referred_secrets(
    peers: Iterable[BGPPeerResource], bgp: BGPConfigurationResource | None
) -> frozenset[SecretKeyRef]:
    """The passwords that peers and the mesh refer to; no other Secret is ever read."""
    found = {peer.password for peer in peers}
    if bgp is not None:
        found.add(bgp.mesh_password)
    return frozenset(ref for ref in found if ref is not None)


def snapshot_of(
    resources: Iterable[Resource], peers_created: Mapping[str, str] | None = None
) -> Snapshot:
    """A Snapshot in sync of everything a store holds at one moment.

    ``peers_created``: when each BGPPeer was made, as text that sorts; from its uid when not given.
    """
    ordered = sorted(resources, key=lambda resource: resource.meta.name)
    peers = tuple(
        sorted(
            (r for r in ordered if isinstance(r, BGPPeerResource)),
            key=lambda peer: (
                peer.meta.created_ms
                if peers_created is None
                else peers_created.get(peer.meta.name, "")
            ),
        )
    )
    configuration = next((r for r in ordered if isinstance(r, BGPConfigurationResource)), None)
    secrets = {r.meta.name: r.passwords for r in ordered if isinstance(r, SecretResource)}
    snapshot = Snapshot(
        pools=tuple(r for r in ordered if isinstance(r, IPPoolResource)),
        nodes=tuple(r for r in ordered if isinstance(r, NodeResource)),
        peers=peers,
        filters=tuple(r for r in ordered if isinstance(r, BGPFilterResource)),
        blocks=tuple(r.block for r in ordered if isinstance(r, BlockResource)),
        passwords={
            ref: secrets[ref.name][ref.key]
            for ref in referred_secrets(peers, configuration)
            if ref.key in secrets.get(ref.name, {})
        },
        in_sync=True,
    )
    return snapshot if configuration is None else replace(snapshot, bgp=configuration)


class Datastore(BlockStore, Protocol):
    """The cluster's shared state. All methods raise StoreError (or a subclass)."""

    async def snapshot(self) -> Snapshot:
        """What the store holds now (in_sync True), or raises when that cannot be known."""

    async def changed(self) -> None:
        """Returns when the store may have changed since the last snapshot()."""

    def problems(self) -> Sequence[Problem]:
        """What is wrong with stored resources, as of the last snapshot()."""

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


@runtime_checkable
class StatusBoard(Protocol):
    """Where what was found is written for people; a Datastore that has it is also one of these.

    Nothing of correctness rests on it. All methods raise StoreError (or a subclass).
    """

    async def put_node_status(self, status: NodeStatusResource) -> None:
        """Creates or replaces the NodeStatus of a node; only that node's agent writes it."""

    async def set_status(self, kind: str, name: str, status: ResourceStatus) -> None:
        """Replaces the status of an IPPool or BGPPeer, not its spec. Raises NotFound."""

    async def get_status(self, kind: str, name: str) -> ResourceStatus:
        """The status last set, or an empty one. Raises NotFound."""

    async def set_network_unavailable(self, node: str, why: str | None) -> None:
        """Sets the node's condition NetworkUnavailable; None is False, the network works."""

    async def note_event(self, event: EventNote) -> None:
        """Records an event for people; repeats of the same one are counted, not piled up."""
