"""From an agent's belief to what it can tell about one packet. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address

from routing.explain.evidence import (
    AgentEvidence,
    Announcement,
    BlockFacts,
    Hop,
    PathFacts,
    SessionFacts,
    WantedRoute,
)
from routing.routes import Prefix, Route
from routing.view import Belief, Row, peer_rows, route_rows
from routing.view_rib import path_rows

_Covers = Callable[[Prefix], bool]
_AS_IN_THE_ROW = (
    *("peer", "name", "asn", "local_asn", "state", "reason"),
    *("received", "accepted", "advertised"),
)


def about(belief: Belief, addresses: Iterable[str]) -> AgentEvidence:
    """What the agent knows of every prefix that covers one of ``addresses``.

    Raises:
        ValueError: one of them is no IP address.
    """
    wanted = [ip_address(text) for text in addresses]

    def covers(prefix: Prefix) -> bool:
        return any(a.version == prefix.version and a in prefix for a in wanted)

    return AgentEvidence(
        node=belief.node,
        version=belief.version,
        store_error=belief.store_error,
        speaker_connected=belief.speaker_connected,
        problems=(*belief.desired.problems, *belief.ipam_problems),
        waits=(
            *(f"{what} is held: {gate}" for what, gate in belief.held),
            *(f"{what}: {operation} failed: {error}" for what, operation, error in belief.failures),
        ),
        sessions=tuple(_session(belief, row) for row in peer_rows(belief)),
        paths=tuple(_paths(belief, covers)),
        advertised=tuple(
            Announcement(str(peer), str(prefix))
            for peer, prefix in sorted(belief.advertised, key=str)
            if covers(prefix)
        ),
        wanted=tuple(_wanted(belief, covers)),
        blocks=tuple(
            BlockFacts(str(b.cidr), b.pool, b.node, b.state.value)
            for b in belief.blocks
            if covers(b.cidr)
        ),
    )


def _session(belief: Belief, row: Row) -> SessionFacts:
    address = ip_address(row["peer"])
    status, peer = belief.sessions.get(address), belief.desired.peers.get(address)
    return SessionFacts(
        **{key: row[key] for key in _AS_IN_THE_ROW},
        is_complete=bool(status and status.end_of_rib),
        has_password=bool(peer and peer.password),
    )


def _paths(belief: Belief, covers: _Covers) -> Iterator[PathFacts]:
    for row in path_rows(belief, (prefix for _, prefix in belief.paths if covers(prefix))):
        yield PathFacts(
            peer=row["from"],
            prefix=row["prefix"],
            next_hop=row["next_hop"],
            as_path=tuple(row["as_path"]),
            verdict=row["state"],
            reason=row["reason"],
            detail=row["detail"],
        )


def _wanted(belief: Belief, covers: _Covers) -> Iterator[WantedRoute]:
    rows = {row["prefix"]: row for row in route_rows(belief) if row["state"] != "rejected"}
    for key, route in belief.desired.routes.items():
        if not covers(key.prefix):
            continue
        row = rows[str(key.prefix)]
        yield WantedRoute(str(key.prefix), row["kind"], _hops(route), row["state"], row["detail"])


def _hops(route: Route) -> tuple[Hop, ...]:
    return tuple(
        Hop(hop.ifname, str(hop.gateway) if hop.gateway else None) for hop in route.next_hops
    )
