"""What the CLI prints, as rows: desired, kernel and BGP joined into one verdict each. Pure.

Rows are plain dictionaries of JSON types, for this is the agent's edge towards people and jq. Keys
are stable; a key may be added, never renamed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import Any

from bgp.nlri import do_overlap, nlri_of
from bgp.path_table import PathTable, counts_by_peer
from bgp.paths import Path, PeerStatus, SessionState
from bgp.sessions import RejectedRoute
from cni.attachment import Address, Attachment, PodRef
from cni.ipam.block import Block, BlockState
from routing.desired import Desired, kind_counts
from routing.drain import DrainPhase
from routing.last_peers import LastPeers
from routing.remote import RejectedPaths, counts_of
from routing.route_table import RouteTable, differing
from routing.routes import Prefix, Route, RouteKey

Row = dict[str, Any]

ABSENT = "Absent"
"""The state of a peer that should have a session and is not configured."""


@dataclass(frozen=True, slots=True)
class PodView:
    """One pod link as read from the kernel."""

    attachment: Attachment
    pod: PodRef | None
    addresses: tuple[Address, ...]
    ifname: str
    is_up: bool
    mtu_bytes: int


@dataclass(frozen=True, slots=True)
class BlockUse:
    """How full one of our own blocks is."""

    used: int
    cooling: int
    free: int


@dataclass(frozen=True, slots=True)
class Belief:
    """Everything the rows are made of, taken at one moment ``now_s``.

    ``actual`` is a fresh read of our routes; ``advertised`` what the speaker announces.
    """

    now_s: float
    node: str
    version: str
    desired: Desired
    actual: Mapping[RouteKey, Route]
    sessions: Mapping[Address, PeerStatus]
    paths: Mapping[tuple[Address, Prefix], Path]
    advertised: frozenset[tuple[Address, Prefix]]
    blocks: Sequence[Block]
    usage: Mapping[Prefix, BlockUse]
    pods: Sequence[PodView]
    held: Sequence[tuple[str, str]]
    failures: Sequence[tuple[str, str, str]]
    store_error: str | None
    speaker_connected: bool
    last_pass_age_s: float | None
    store: str = ""
    ipam_problems: Sequence[str] = ()
    last_peers: LastPeers | None = None
    unusable: Sequence[RejectedRoute] = ()
    stale: Collection[tuple[Address, Prefix]] = ()
    """Paths believed although their session is gone, until it is back or the hold is over."""
    mended: Sequence[tuple[int, str]] = ()
    """What another hand did to pods' links and was put right: the newest, numbered from 1."""
    contested: Mapping[Prefix, str] = field(default_factory=dict)
    """Routes of ours in front of another program's of the same place; a sentence that names it."""
    degraded: Sequence[str] = ()
    """What does not work and stops no packet: directories that cannot be written."""


def peer_rows(belief: Belief) -> list[Row]:
    """One row a configured peer, and one for each that could not be configured or is kept closed:
    its ``state`` is Absent, and what only a session has is None."""
    received = counts_by_peer(belief.paths)
    rejected: Counter[Address] = Counter()
    for (refused_by, _), number in counts_of(belief.desired.rejected).items():
        rejected[refused_by] += number
    rows: list[Row] = []
    for address, peer in belief.desired.peers.items():
        status = belief.sessions.get(address)
        state = status.state if status else SessionState.IDLE
        sent = received.get(address, 0)
        rows.append(
            {
                "node": belief.node,
                "peer": str(address),
                "name": peer.name,
                "asn": peer.remote_asn,
                "local_asn": peer.local_asn,
                "local_address": str(peer.local_address),
                "state": state.value,
                "since_s": round(belief.now_s - status.since_s, 1) if status else None,
                "received": sent,
                # What came since the last pass is neither.
                "accepted": max(0, sent - rejected[address]),
                "stale": status.routes_stale if status else 0,
                "advertised": sum(1 for key in belief.advertised if key[0] == address),
                "flaps": status.flaps if status else 0,
                "hold_time_s": peer.hold_time_s,
                "reason": _peer_reason(belief, status),
            }
        )
    rows += [
        {
            "node": belief.node,
            "peer": str(absent.intent.address),
            "name": absent.intent.name,
            "asn": absent.intent.remote_asn,
            "local_asn": absent.intent.local_asn,
            "local_address": None,
            "state": ABSENT,
            "since_s": None,
            "received": 0,
            "accepted": 0,
            "advertised": 0,
            "flaps": 0,
            "hold_time_s": absent.intent.hold_time_s,
            "reason": absent.reason,
        }
        for absent in belief.desired.absent
    ]
    return rows


def _peer_reason(belief: Belief, status: PeerStatus | None) -> str:
    if not belief.speaker_connected:
        return "ExaBGP is not connected to the agent"
    if status is None:
        return "not in ExaBGP's configuration yet"
    if status.state is SessionState.ESTABLISHED:
        return ""
    if status.routes_stale:
        return f"{status.reason}; {status.routes_stale} routes kept (graceful restart)"
    return status.reason


def route_rows(belief: Belief) -> list[Row]:
    """One row a route: wanted ones with ok, missing or wrong; stray or held ones; rejected paths.

    ``wrong``: ours, but not as wanted. ``stray``: ours, not wanted, about to be deleted.
    ``held``: not wanted, but a gate keeps it.
    """
    wanted, found = belief.desired.routes, belief.actual
    rows = [_wanted_row(belief, key, route) for key, route in wanted.items()]
    rows += _unwanted_rows(belief, (key for key in found if key not in wanted))
    for rejection in belief.desired.rejected:
        path = rejection.path
        rows.append(
            {
                "node": belief.node,
                "prefix": str(path.prefix),
                "kind": "remote",
                "state": "rejected",
                "next_hops": [{"gateway": str(path.next_hop), "ifname": None}],
                "from": [str(path.peer)],
                "as_path": list(path.as_path),
                "reason": rejection.reason,
                "detail": f"{rejection.reason}: {rejection.detail}",
            }
        )
    rows += [_unusable_row(belief, each) for each in _unusable(belief)]
    return sorted(rows, key=lambda row: _prefix_order(row["prefix"]))


def narrowed(belief: Belief, text: str | None) -> Belief:
    """The same of one prefix (or address) only: of what contains it and what it contains. All rows
    of a table of 100,000 take a second and 100 MB; this asks none of them for more than its bytes.

    Raises:
        ValueError: ``text`` is no prefix.
    """
    if text is None:
        return belief
    asked = nlri_of(ip_network(text, strict=False))
    desired = belief.desired

    def concerned(prefix: Prefix) -> bool:
        return do_overlap(nlri_of(prefix), asked)

    def routes(table: Mapping[RouteKey, Route]) -> RouteTable:
        whole = RouteTable.of(table)
        return RouteTable(
            {key: route for key, route in whole.single.items() if concerned(key.prefix)},
            {n: hops for n, hops in whole.grouped.items() if do_overlap(n, asked)},
        )

    rejected = desired.rejected
    return replace(
        belief,
        desired=replace(
            desired,
            routes=routes(desired.routes),
            advertisements={k: v for k, v in desired.advertisements.items() if concerned(k[1])},
            rejected=rejected.only(lambda nlri: do_overlap(nlri, asked))
            if isinstance(rejected, RejectedPaths)
            else [each for each in rejected if concerned(each.path.prefix)],
        ),
        actual=routes(belief.actual),
        paths=belief.paths.overlapping(asked)
        if isinstance(belief.paths, PathTable)
        else {key: path for key, path in belief.paths.items() if concerned(key[1])},
        advertised=frozenset(key for key in belief.advertised if concerned(key[1])),
        unusable=[r for r in belief.unusable if r.prefix is not None and concerned(r.prefix)],
    )


def _unusable(belief: Belief) -> list[RejectedRoute]:
    """What peers sent that is no route at all, the last word on each prefix; a route that came
    since has replaced it."""
    last = {(each.peer, each.prefix): each for each in belief.unusable if each.prefix is not None}
    return [each for key, each in last.items() if key not in belief.paths]


def odd_routes(belief: Belief) -> list[Row]:
    """The rows of routes that are missing, wrong, stray or held, without making the others."""
    wanted, found = belief.desired.routes, belief.actual
    keys = [k for k in differing(wanted, found) if wanted.get(k) != found.get(k)]
    rows = [_wanted_row(belief, key, wanted[key]) for key in keys if key in wanted]
    rows += _unwanted_rows(belief, (key for key in keys if key not in wanted))
    return sorted(rows, key=lambda row: _prefix_order(row["prefix"]))


def _unwanted_rows(belief: Belief, keys: Iterable[RouteKey]) -> Iterator[Row]:
    held = dict(belief.held)
    for key in keys:
        gate = held.get(f"route {key.prefix}")
        state = "held" if gate else "stray"
        yield _route_row(belief, key.prefix, belief.actual[key], state, gate or "")


def _unusable_row(belief: Belief, route: RejectedRoute) -> Row:
    return {
        "node": belief.node,
        "prefix": str(route.prefix),
        "kind": "remote",
        "state": "rejected",
        "next_hops": [],
        "from": [str(route.peer)],
        "as_path": [],
        "reason": route.reason,
        "detail": f"{route.reason}: the UPDATE of {route.peer} is unusable for this prefix",
    }


def _prefix_order(prefix: str) -> tuple[int, bytes, int]:
    network = ip_network(prefix)
    return network.version, network.network_address.packed, network.prefixlen


def _wanted_row(belief: Belief, key: RouteKey, route: Route) -> Row:
    found = belief.actual.get(key)
    if found == route:
        return _route_row(belief, key.prefix, route, "ok", belief.contested.get(key.prefix, ""))
    failure = next(
        (f"{op}: {why}" for what, op, why in belief.failures if what == f"route {key.prefix}"), ""
    )
    if found is None:
        return _route_row(belief, key.prefix, route, "missing", failure)
    detail = failure or f"the kernel has {next_hops_text(found)}"
    return _route_row(belief, key.prefix, route, "wrong", detail)


def _route_row(belief: Belief, prefix: Prefix, route: Route, state: str, detail: str) -> Row:
    paths = belief.desired.best.get(prefix, ())
    kind = belief.desired.kinds.get(route.key)
    return {
        "node": belief.node,
        "prefix": str(prefix),
        "kind": kind.value if kind else "unknown",
        "state": state,
        "next_hops": [
            {"gateway": str(hop.gateway) if hop.gateway else None, "ifname": hop.ifname}
            for hop in route.next_hops
        ],
        "from": [str(path.peer) for path in paths],
        "as_path": list(paths[0].as_path) if paths else [],
        "detail": detail,
    }


def next_hops_text(route: Route) -> str:
    """A route's next hops as a person writes them."""
    if route.is_blackhole:
        return "blackhole"
    return ", ".join(
        f"via {hop.gateway} dev {hop.ifname}" if hop.gateway else f"dev {hop.ifname}"
        for hop in route.next_hops
    )


def block_rows(belief: Belief) -> list[Row]:
    """One row a block of the cluster; use and announcement are known for our own."""
    announced: dict[Prefix, list[str]] = {}
    for peer, prefix in belief.advertised:
        announced.setdefault(prefix, []).append(str(peer))
    rows = []
    for block in sorted(belief.blocks, key=lambda b: _prefix_order(str(b.cidr))):
        use = belief.usage.get(block.cidr)
        rows.append(
            {
                "block": str(block.cidr),
                "pool": block.pool,
                "node": block.node,
                "state": block.state.value,
                "used": use.used if use else None,
                "cooling": use.cooling if use else None,
                "free": use.free if use else None,
                "announced_to": sorted(announced.get(block.cidr, [])),
            }
        )
    return rows


def pod_rows(belief: Belief) -> list[Row]:
    """One row a pod link of this node; ``routed`` when each address leads to that very link."""
    routed = {
        (key.prefix.network_address, hop.ifname)
        for key, route in belief.actual.items()
        if key.prefix.prefixlen == key.prefix.max_prefixlen
        for hop in route.next_hops
    }
    return [
        {
            "node": belief.node,
            "namespace": pod.pod.namespace if pod.pod else None,
            "pod": pod.pod.name if pod.pod else None,
            "addresses": [str(address) for address in pod.addresses],
            "ifname": pod.attachment.ifname,
            "host_ifname": pod.ifname,
            "network": pod.attachment.network,
            "container_id": pod.attachment.container_id,
            "up": pod.is_up,
            "mtu_bytes": pod.mtu_bytes,
            "routed": all((address, pod.ifname) in routed for address in pod.addresses),
        }
        for pod in sorted(belief.pods, key=lambda p: (str(p.pod or ""), p.attachment))
    ]


def status_row(belief: Belief) -> Row:
    """The whole node on one screen; ``findings`` empty means healthy."""
    peers = peer_rows(belief)
    odd = odd_routes(belief)
    findings = list(_findings(belief, peers, odd))
    by_kind = kind_counts(belief.desired)
    lacking = [row for row in odd if row["state"] in {"missing", "wrong"}]
    by_kind.subtract(row["kind"] for row in lacking)
    mine = [b for b in belief.blocks if b.node == belief.node]
    return {
        "node": belief.node,
        "version": belief.version,
        "healthy": not findings,
        "findings": findings,
        "store": {"path": belief.store, "error": belief.store_error},
        "speaker_connected": belief.speaker_connected,
        "peers": {
            "configured": len(peers),
            "established": sum(1 for p in peers if p["state"] == SessionState.ESTABLISHED.value),
        },
        "routes": {
            "ok": len(belief.desired.routes) - len(lacking),
            "not_ok": sum(1 for row in odd if row["state"] != "held"),
            "held": sum(1 for row in odd if row["state"] == "held"),
            "rejected": sum(counts_of(belief.desired.rejected).values()) + len(_unusable(belief)),
            "by_kind": {kind: number for kind, number in by_kind.items() if number},
        },
        "blocks": {
            "confirmed": sum(1 for b in mine if b.state is BlockState.CONFIRMED),
            "pending": sum(1 for b in mine if b.state is not BlockState.CONFIRMED),
        },
        "addresses": {
            "used": sum(use.used for use in belief.usage.values()),
            "cooling": sum(use.cooling for use in belief.usage.values()),
            "free": sum(use.free for use in belief.usage.values()),
        },
        "pods": len(belief.pods),
        "drain": belief.desired.phase.value,
        "last_pass_age_s": belief.last_pass_age_s,
    }


def _findings(belief: Belief, peers: list[Row], routes: list[Row]) -> Iterable[str]:
    if belief.store_error is not None:
        yield f"store: {belief.store_error}"
    yield from belief.desired.problems
    yield from belief.ipam_problems
    yield from (f"Degraded: {sentence}" for sentence in belief.degraded)
    if belief.desired.phase is not DrainPhase.SERVING:
        yield f"this node is being drained: {belief.desired.phase.value}"
    if not belief.speaker_connected:
        yield "ExaBGP is not connected to the agent: is `slash32 speaker` running?"
    for row in peers:
        # Of an absent one the problems above have said why.
        if row["state"] not in (SessionState.ESTABLISHED.value, ABSENT):
            reason = f" ({row['reason']})" if row["reason"] else ""
            yield f"peer {row['peer']} is {row['state']}{reason}"
    for row in routes:
        if row["state"] in {"missing", "wrong"}:
            yield f"route {row['prefix']} is {row['state']}: {row['detail'] or 'being repaired'}"
    for prefix, holder in belief.contested.items():
        yield f"route {prefix} is {holder}"
    for what, operation, error in belief.failures:
        if not what.startswith("route ") and what != "store":
            yield f"{what}: {operation} failed: {error}"
    for pod in pod_rows(belief):
        if not pod["routed"]:
            yield f"pod {pod['namespace']}/{pod['pod']}: no host route for {pod['addresses']}"
