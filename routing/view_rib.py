"""Rows of the RIBs and of the kernel, for ``slash32 routes``: learned, advertised, kernel. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from bgp.decision import DEFAULT_LOCAL_PREF
from bgp.paths import Path, Peer
from routing.routes import Address
from routing.view import Belief, Row, next_hops_text


def path_rows(belief: Belief) -> list[Row]:
    """Adj-RIB-In: one row a path, with what became of it (best, not-best, rejected) and why."""
    refused = {(r.path.peer, r.path.prefix): r for r in belief.desired.rejected}
    rows = []
    for (peer, prefix), path in belief.paths.items():
        best = belief.desired.best.get(prefix, ())
        rejection = refused.get((peer, prefix))
        verdict, reason, detail = "not-best", "", ""
        if rejection is not None:
            verdict, reason, detail = "rejected", rejection.reason, rejection.detail
        elif path in best:
            verdict = "best"
        elif best:
            reason, detail = why_not_best(path, best[0], belief.desired.peers)
        rows.append(
            {
                "node": belief.node,
                "prefix": str(prefix),
                "from": str(peer),
                "next_hop": str(path.next_hop),
                "as_path": list(path.as_path),
                "local_pref": path.local_pref,
                "med": path.med,
                "communities": [*path.communities, *path.large_communities],
                "state": verdict,
                "reason": reason,
                "detail": detail,
                "stale": (peer, prefix) in belief.stale,
            }
        )
    return sorted(rows, key=lambda row: (str(row["prefix"]), str(row["from"])))


def why_not_best(path: Path, best: Path, peers: Mapping[Address, Peer]) -> tuple[str, str]:
    """(token, sentence): the first step of the decision (RFC 4271 section 9.1.2.2) it lost at."""

    def is_ebgp(each: Path) -> bool:
        peer = peers.get(each.peer)
        return peer is None or peer.is_ebgp

    def preference(each: Path) -> int:
        if is_ebgp(each) or each.local_pref is None:
            return DEFAULT_LOCAL_PREF
        return each.local_pref

    def neighbour_as(each: Path) -> int | None:
        return each.as_path[0] if each.as_path else None

    if preference(path) != preference(best):
        return "local-pref", f"LOCAL_PREF {preference(path)} against {preference(best)}"
    if path.as_path_length != best.as_path_length:
        return "as-path", f"AS path of {path.as_path_length} against {best.as_path_length}"
    if path.origin is not best.origin:
        return "origin", f"ORIGIN {path.origin.name} against {best.origin.name}"
    if neighbour_as(path) == neighbour_as(best) and (path.med or 0) != (best.med or 0):
        return "med", f"MED {path.med or 0} against {best.med or 0}"
    if is_ebgp(path) != is_ebgp(best):
        return "ibgp", "learned inside our AS, and another from outside it"
    return "not-chosen", "equally good, and beyond the number of paths that are used at once"


def advertised_rows(belief: Belief) -> list[Row]:
    """Adj-RIB-Out: what the speaker announces, and what is wanted and not announced."""
    rows = [
        {
            "node": belief.node,
            "prefix": str(prefix),
            "to": str(peer),
            "state": "announced" if (peer, prefix) in belief.desired.advertisements else "stray",
            "detail": "",
        }
        for peer, prefix in belief.advertised
    ]
    held = dict(belief.held)
    rows += [
        {
            "node": belief.node,
            "prefix": str(prefix),
            "to": str(peer),
            "state": "missing",
            "detail": held.get(f"announcement {prefix} to {peer}", ""),
        }
        for peer, prefix in belief.desired.advertisements
        if (peer, prefix) not in belief.advertised
    ]
    return sorted(rows, key=lambda row: (row["prefix"], row["to"]))


def kernel_rows(belief: Belief) -> list[Row]:
    """Our routes as the kernel holds them, wanted or not."""
    return [
        {
            "node": belief.node,
            "prefix": str(key.prefix),
            "next_hops": next_hops_text(route),
            "metric": key.metric,
            "table": key.table,
            "state": "ok" if belief.desired.routes.get(key) == route else "not-wanted",
        }
        for key, route in sorted(belief.actual.items(), key=lambda item: str(item[0].prefix))
    ]
