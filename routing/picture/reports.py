"""A node's report for a Picture, from the rows that its agent (or its NodeStatus) gives. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from routing.picture.model import Observed, Report

Row = dict[str, Any]


def from_views(peers: Sequence[Row], blocks: Sequence[Row], status: Row) -> Report:
    """From the rows of ``slash32 peers``, ``blocks`` and ``status`` (routing/view.py).

    Findings about peers are left out: the sessions say the same themselves.
    """
    at = status.get("reported_at")
    return Report(
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
        source="its agent" if at is None else f"its NodeStatus of {at or 'unknown time'}",
        pods=status["pods"],
        use={
            row["block"]: (row["used"], row["used"] + row["cooling"] + row["free"])
            for row in blocks
            if row["used"] is not None
        },
        findings=tuple(each for each in status["findings"] if not each.startswith("peer ")),
    )
