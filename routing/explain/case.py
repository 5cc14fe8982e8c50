"""The case: one packet, and every witness that could be heard. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from routing.explain.evidence import (
    BlockFacts,
    ClusterEvidence,
    KernelRoute,
    Lookup,
    NodeEvidence,
    PodFacts,
    PoolFacts,
)


def contains(prefix: str, address: str) -> bool:
    """Whether an address is in a prefix of its own family."""
    network, wanted = ip_network(prefix), ip_address(address)
    return network.version == wanted.version and wanted in network


@dataclass(frozen=True, slots=True)
class Case:
    """What ``explain`` judges.

    Attributes:
        subject: what was asked for, in the asker's words.
        destination: the address the packet goes to.
        has_pod: whether the destination should be a pod's (False: a prefix was asked about).
        source: the packet's source address, where it is known.
        origin: the node the packet starts on, or whose pod sends it.
        owner: the node that owns the destination's block; None: no node of ours does.
    """

    subject: str
    destination: str
    has_pod: bool
    source: str | None
    cluster: ClusterEvidence
    origin: NodeEvidence
    owner: NodeEvidence | None = None

    @property
    def is_local(self) -> bool:
        return self.owner is not None and self.owner.node == self.origin.node

    @property
    def pool(self) -> PoolFacts | None:
        """The narrowest IPPool that has the destination."""
        found = [p for p in self.cluster.pools if contains(p.cidr, self.destination)]
        return max(found, key=lambda p: ip_network(p.cidr).prefixlen, default=None)

    @property
    def block(self) -> BlockFacts | None:
        return block_of(self.cluster, self.destination)

    @property
    def source_pod(self) -> PodFacts | None:
        return pod_at(self.origin, self.source)

    @property
    def target_pod(self) -> PodFacts | None:
        return pod_at(self.owner, self.destination)


def block_of(cluster: ClusterEvidence, address: str) -> BlockFacts | None:
    """The block an address is in."""
    return next((b for b in cluster.blocks if contains(b.cidr, address)), None)


def pod_at(node: NodeEvidence | None, address: str | None) -> PodFacts | None:
    """The pod link of a node that holds an address."""
    if node is None or node.kernel is None:
        return None
    return next((pod for pod in node.kernel.pods if pod.address == address), None)


def lookup_of(node: NodeEvidence | None, role: str, destination: str | None) -> Lookup | None:
    """The first lookup of a node with this role towards ``destination``."""
    if node is None or node.kernel is None:
        return None
    return next(
        (e for e in node.kernel.lookups if e.role == role and e.destination == destination), None
    )


def routes_to(node: NodeEvidence, prefix: str) -> list[KernelRoute]:
    """The kernel's entries for exactly this prefix."""
    return [] if node.kernel is None else [r for r in node.kernel.covering if r.prefix == prefix]
