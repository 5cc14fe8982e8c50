"""From an agent's belief to what it can tell about one packet. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
from routing.routes import Prefix, Route, RouteKey
from routing.view import Belief, Row, narrowed, peer_rows, route_rows
from routing.view_rib import path_rows

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
    narrow = [narrowed(belief, str(address)) for address in wanted]

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
        paths=tuple(_paths(narrow)),
        advertised=tuple(
            Announcement(str(peer), str(prefix))
            for peer, prefix in sorted(belief.advertised, key=str)
            if covers(prefix)
        ),
        wanted=tuple(_wanted(narrow)),
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


def _paths(narrow: Iterable[Belief]) -> Iterator[PathFacts]:
    rows = {(row["from"], row["prefix"]): row for each in narrow for row in path_rows(each)}
    for _, row in sorted(rows.items()):
        yield PathFacts(
            peer=row["from"],
            prefix=row["prefix"],
            next_hop=row["next_hop"],
            as_path=tuple(row["as_path"]),
            verdict=row["state"],
            reason=row["reason"],
            detail=row["detail"],
        )


def _wanted(narrow: Iterable[Belief]) -> Iterator[WantedRoute]:
    told: set[RouteKey] = set()
    for belief in narrow:
        rows = {row["prefix"]: row for row in route_rows(belief) if row["state"] != "rejected"}
        for key, route in belief.desired.routes.items():
            if key in told:
                continue
            told.add(key)
            row = rows[str(key.prefix)]
            yield WantedRoute(
                str(key.prefix), row["kind"], _hops(route), row["state"], row["detail"]
            )


def _hops(route: Route) -> tuple[Hop, ...]:
    return tuple(
        Hop(hop.ifname, str(hop.gateway) if hop.gateway else None) for hop in route.next_hops
    )
