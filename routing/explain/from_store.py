"""What the store knows of the cluster, as evidence. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from routing.datastore.snapshot import NodeStatusResource, PeerReport, Snapshot
from routing.explain.evidence import BlockFacts, ClusterEvidence, PoolFacts, SessionFacts

Reports = dict[str, tuple[str, tuple[SessionFacts, ...]]]


def reports_of(statuses: Iterable[NodeStatusResource]) -> Reports:
    """Each node's last report of its sessions, with when it was made."""
    return {s.meta.name: (s.observed_at, tuple(map(_session, s.peers))) for s in statuses}


def cluster_of(snapshot: Snapshot) -> ClusterEvidence:
    """A snapshot's pools, blocks and nodes."""
    return ClusterEvidence(
        pools=tuple(
            PoolFacts(p.meta.name, str(p.cidr), p.block_size, p.disabled, p.disable_bgp_export)
            for p in snapshot.pools
        ),
        blocks=tuple(
            BlockFacts(str(b.cidr), b.pool, b.node, b.state.value) for b in snapshot.blocks
        ),
        nodes=tuple(sorted(n.meta.name for n in snapshot.nodes)),
        import_allow=tuple(str(prefix) for prefix in snapshot.bgp.import_allow),
    )


def _session(peer: PeerReport) -> SessionFacts:
    return SessionFacts(
        peer=str(peer.address),
        name=peer.name,
        asn=peer.asn,
        state=peer.state,
        reason=peer.reason,
        received=peer.received,
        accepted=peer.accepted,
        advertised=peer.advertised,
    )
