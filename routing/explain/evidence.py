"""What nodes and the store say when they are asked about one packet. Pure values of JSON types.

Evidence travels between processes as JSON (codec.py), so addresses, prefixes and states are text
here, spelled as the kernel's and the standards' tools spell them. Nothing in it is a judgement:
that is what steps.py and its neighbours make of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from routing.routes import FRONT_METRIC

FORWARD, ARRIVAL, BACK = "forward", "arrival", "back"
"""Roles of lookups: towards the destination; of the packet that comes in from outside; of the
answer that goes out again."""


@dataclass(frozen=True, slots=True)
class Question:
    """A packet: from ``source`` (an address, None: whatever the node would choose) to
    ``destination``. ``probe`` asks for real packets too."""

    destination: str
    source: str | None = None
    probe: bool = False


@dataclass(frozen=True, slots=True)
class Hop:
    """One way out of a machine."""

    ifname: str
    gateway: str | None = None

    def __str__(self) -> str:
        return f"via {self.gateway} dev {self.ifname}" if self.gateway else f"dev {self.ifname}"


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """One entry of the kernel's table. ``protocol`` by number; ``is_ours`` by our two marks."""

    prefix: str
    kind: str
    protocol: int
    metric: int
    table: int
    hops: tuple[Hop, ...] = ()
    is_ours: bool = False

    def __str__(self) -> str:
        hops = ", ".join(map(str, self.hops)) or self.kind
        whose = "ours" if self.is_ours else f"protocol {self.protocol} metric {self.metric}"
        if self.is_ours and self.metric == FRONT_METRIC:
            whose = f"ours, in front, metric {self.metric}"
        table = "" if self.table == 254 else f" table {self.table}"
        return f"{self.prefix} {hops} ({whose}{table})"


@dataclass(frozen=True, slots=True)
class Lookup:
    """The kernel's own answer (RTM_GETROUTE) for one packet.

    Attributes:
        arrives_on: the interface the packet is taken to come in by; None: it starts here.
        error: the errno's name when the kernel would not send it, else "". Of a packet that comes
            in, kernels since 6.14 say EINVAL for whatever reason; before, EXDEV is rp_filter.
        towards_source: where a packet to ``source`` would leave, when one from it is refused.
        entry: the entry of the table that decides, where the kernel tells.
        mtu_bytes: path MTU the kernel has for it, when other than the link's.
    """

    role: str
    destination: str
    source: str | None = None
    arrives_on: str | None = None
    error: str = ""
    hop: Hop | None = None
    entry: KernelRoute | None = None
    preferred_source: str | None = None
    mtu_bytes: int | None = None
    towards_source: Hop | None = None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry of the neighbour table; ``state`` is "none" when there is no entry."""

    address: str
    ifname: str
    state: str
    mac: str | None = None


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """One interface."""

    ifname: str
    is_up: bool
    has_carrier: bool
    mtu_bytes: int


@dataclass(frozen=True, slots=True)
class SysctlFinding:
    """A sysctl (dotted) that is not what it must be; ``found`` None: there is none such."""

    name: str
    wanted: str
    found: str | None


@dataclass(frozen=True, slots=True)
class PodFacts:
    """A pod link of this node that holds an address of the question.

    Attributes:
        host_differences: what is wrong at the host end, besides ``sysctls`` and being down.
        inside: what is wrong in the pod's own namespace; None: it could not be looked at.
        gateway: the pod's neighbour entry for its gateway.
    """

    name: str
    address: str
    ifname: str
    host_ifname: str
    host: LinkFacts
    sysctls: tuple[SysctlFinding, ...] = ()
    host_differences: tuple[str, ...] = ()
    inside: tuple[str, ...] | None = None
    inside_mtu_bytes: int | None = None
    gateway: Neighbour | None = None


@dataclass(frozen=True, slots=True)
class TcpFacts:
    """Our connections with one peer: the states seen (SYN_SENT, ESTABLISHED ...), and how often a
    SYN of ours was sent again."""

    peer: str
    states: tuple[str, ...]
    syn_retransmits: int = 0


@dataclass(frozen=True, slots=True)
class Probe:
    """Real packets: ``size_bytes`` is the whole IP packet; not to be fragmented on the way."""

    destination: str
    size_bytes: int
    sent: int
    received: int
    words: str = ""


@dataclass(frozen=True, slots=True)
class KernelEvidence:
    """What one node's kernel says. ``covering``: every entry of any table that covers the
    destination or the source, most specific first."""

    lookups: tuple[Lookup, ...] = ()
    covering: tuple[KernelRoute, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    links: tuple[LinkFacts, ...] = ()
    pods: tuple[PodFacts, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    tcp: tuple[TcpFacts, ...] = ()
    addresses: tuple[str, ...] = ()
    probes: tuple[Probe, ...] = ()


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """One BGP session as its agent sees it; ``is_complete``: the peer has sent End-of-RIB."""

    peer: str
    name: str
    asn: int
    state: str
    reason: str = ""
    received: int = 0
    accepted: int = 0
    advertised: int = 0
    is_complete: bool = False
    has_password: bool = False
    local_asn: int = 0

    @property
    def is_established(self) -> bool:
        return self.state == "Established"


@dataclass(frozen=True, slots=True)
class PathFacts:
    """A path in Adj-RIB-In. ``verdict`` is best, not-best or rejected; ``reason`` a token."""

    peer: str
    prefix: str
    next_hop: str
    as_path: tuple[int, ...]
    verdict: str
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Announcement:
    """A prefix in Adj-RIB-Out."""

    peer: str
    prefix: str


@dataclass(frozen=True, slots=True)
class WantedRoute:
    """A route the agent wants; ``state`` is ok, missing or wrong, as it saw it."""

    prefix: str
    kind: str
    hops: tuple[Hop, ...]
    state: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class BlockFacts:
    """A block as the store (or, while it is away, an agent) has it."""

    cidr: str
    pool: str
    node: str
    state: str


@dataclass(frozen=True, slots=True)
class AgentEvidence:
    """What one node's agent believes of the prefixes around the question.

    ``waits``: what it holds back or failed at, a sentence each.
    """

    node: str
    version: str = ""
    store_error: str | None = None
    speaker_connected: bool = True
    problems: tuple[str, ...] = ()
    waits: tuple[str, ...] = ()
    sessions: tuple[SessionFacts, ...] = ()
    paths: tuple[PathFacts, ...] = ()
    advertised: tuple[Announcement, ...] = ()
    wanted: tuple[WantedRoute, ...] = ()
    blocks: tuple[BlockFacts, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeEvidence:
    """One node. A part that is None could not be had; its ``..._error`` says why.

    ``reported_sessions`` come from the node's NodeStatus in the store and may be old.
    """

    node: str
    agent: AgentEvidence | None = None
    agent_error: str = ""
    kernel: KernelEvidence | None = None
    kernel_error: str = ""
    reported_sessions: tuple[SessionFacts, ...] | None = None
    reported_at: str = ""

    @property
    def sessions(self) -> tuple[SessionFacts, ...] | None:
        return self.agent.sessions if self.agent is not None else self.reported_sessions


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """An IPPool."""

    name: str
    cidr: str
    block_size: int
    disabled: bool = False
    disable_bgp_export: bool = False


@dataclass(frozen=True, slots=True)
class ClusterEvidence:
    """What the store says. ``error``: why it could not be read; then the rest is an agent's."""

    pools: tuple[PoolFacts, ...] = ()
    blocks: tuple[BlockFacts, ...] = ()
    nodes: tuple[str, ...] = ()
    import_allow: tuple[str, ...] = ()
    error: str = ""
