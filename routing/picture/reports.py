"""Reports for a Picture: from an agent's own views, and from NodeStatus in the store. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from routing.datastore.snapshot import NodeStatusResource
from routing.picture.model import Observed, Report

Row = dict[str, Any]


def from_views(peers: Sequence[Row], blocks: Sequence[Row], status: Row) -> tuple[str, Report]:
    """(node, report) from the rows of routing/view.py.

    Findings about peers and routes' details are left to the sessions' own problems.
    """
    node = str(status["node"])
    return node, Report(
        sessions=tuple(
            Observed(
                address=row["peer"],
                state=row["state"],
                name=row["name"],
                asn=row["asn"],
                received=row["received"],
                accepted=row["accepted"],
                announced=row["advertised"],
                since_s=row["since_s"],
                reason=row["reason"],
            )
            for row in peers
        ),
        source="its agent",
        pods=status["pods"],
        use={
            row["block"]: (row["used"], row["used"] + row["cooling"] + row["free"])
            for row in blocks
            if row["used"] is not None
        },
        findings=tuple(each for each in status["findings"] if not each.startswith("peer ")),
    )


def from_status(resource: NodeStatusResource) -> Report:
    """What a node last wrote about itself."""
    return Report(
        sessions=tuple(
            Observed(
                address=str(peer.address),
                state=peer.state,
                name=peer.name,
                asn=peer.asn,
                received=peer.received,
                accepted=peer.accepted,
                announced=peer.advertised,
                reason=peer.reason,
            )
            for peer in resource.peers
        ),
        source=f"its NodeStatus of {resource.observed_at or 'unknown time'}",
        pods=resource.routes.get("pod"),
    )
