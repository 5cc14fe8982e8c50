"""What a node's agent reports for people: its NodeStatus, and Events of what they must know. Pure.

The report is made of what the agent's own views show, so that ``kubectl get nodestatuses`` and
``slash32 status`` cannot tell two stories. Events are news: what is so now and was not at the last
look. A board limits their rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from bgp.paths import SessionState
from routing.datastore.snapshot import (
    DEGRADED,
    Condition,
    ConditionStatus,
    EventNote,
    Meta,
    NodeStatusResource,
    PeerReport,
)
from routing.remote import counts_of, examples_of
from routing.routes import Address
from routing.view import Belief, Row, odd_routes, peer_rows, status_row

TEXT_MAX_CHARACTERS = 1024
TOLD_MAX = 3
"""Things one sentence names; the others are counted."""


def node_status(
    belief: Belief, *, unready: str | None, now: datetime, before: NodeStatusResource | None
) -> NodeStatusResource:
    """The node's NodeStatus.

    Args:
        unready: why CNI STATUS refuses, or None.
        now: the time of day, UTC.
        before: the last report, whose conditions keep their time while they stay as true.
    """
    peers, status = peer_rows(belief), status_row(belief)
    kept = {each.type: each for each in before.conditions} if before is not None else {}
    conditions = tuple(
        _timed(each, kept.get(each.type), now) for each in _conditions(belief, peers, unready)
    )
    by_kind = status["routes"]["by_kind"]
    return NodeStatusResource(
        meta=Meta(belief.node),
        version=belief.version,
        observed_at=_text(now),
        peers=tuple(_peer(belief, row, now) for row in peers),
        routes={kind: by_kind.get(kind, 0) for kind in ("pod", "block", "remote")},
        addresses={
            "used": status["addresses"]["used"],
            "resting": status["addresses"]["cooling"],
            "free": status["addresses"]["free"],
        },
        conditions=conditions,
    )


def essence(status: NodeStatusResource) -> object:
    """What of a report is worth a write of its own; the rest waits for the next heartbeat.

    Counters move with every pod and every route, and mean little to who looks once a minute.
    """
    return (
        status.version,
        [(each.name, each.address, each.state, each.reason) for each in status.peers],
        [(each.type, each.status, each.reason) for each in status.conditions],
    )


def _conditions(belief: Belief, peers: list[Row], unready: str | None) -> Iterator[Condition]:
    yield _condition("Ready", unready, "Serving", "NotReady")
    wrong = [
        f"route {row['prefix']} is {row['state']}: {row['detail'] or 'being repaired'}"
        for row in odd_routes(belief)
        if row["state"] in {"missing", "wrong"}
    ]
    in_sync = _condition("FIBInSync", _listed(wrong), "AsWanted", "RoutesDiffer")
    contested = _listed([f"route {prefix} is {who}" for prefix, who in belief.contested.items()])
    if not wrong and contested:
        in_sync = replace(
            in_sync, reason="InFrontOfOthers", message=contested[:TEXT_MAX_CHARACTERS]
        )
    yield in_sync
    down = [
        f"{row['name']} ({row['peer']}): {row['reason'] or row['state']}"
        for row in peers
        if row["state"] != SessionState.ESTABLISHED.value
    ]
    yield _condition("Established", _listed(down), "AllSessionsUp", "SessionsDown")
    kept = None if belief.last_peers is None else str(belief.last_peers)
    yield _condition("PeersConfigured", kept, "AsTheStoreSays", "LastPeersKept")
    degraded = _listed(list(belief.degraded))
    if degraded is None:
        yield Condition(DEGRADED, ConditionStatus.FALSE, "DisksWritable")
    else:
        text = degraded[:TEXT_MAX_CHARACTERS]
        yield Condition(DEGRADED, ConditionStatus.TRUE, "DiskNotWritable", text)


def _condition(kind: str, wrong: str | None, well: str, ill: str) -> Condition:
    if wrong is None:
        return Condition(kind, ConditionStatus.TRUE, well)
    return Condition(kind, ConditionStatus.FALSE, ill, wrong[:TEXT_MAX_CHARACTERS])


def _listed(sentences: list[str]) -> str | None:
    if not sentences:
        return None
    rest = len(sentences) - TOLD_MAX
    return "; ".join(sentences[:TOLD_MAX]) + (f"; and {rest} more" if rest > 0 else "")


def _timed(condition: Condition, before: Condition | None, now: datetime) -> Condition:
    is_same = before is not None and before.status is condition.status
    return replace(condition, changed_at=before.changed_at if before and is_same else _text(now))


def _peer(belief: Belief, row: Row, now: datetime) -> PeerReport:
    address = ip_address(row["peer"])
    since_s = row["since_s"]
    counts = counts_of(belief.desired.rejected)
    rejected = sum(number for (peer, _), number in counts.items() if peer == address)
    return PeerReport(
        name=_resource_of(belief, address) or str(row["name"]),
        address=address,
        asn=row["asn"],
        state=row["state"],
        since="" if since_s is None else _text(now - timedelta(seconds=since_s)),
        reason=str(row["reason"])[:TEXT_MAX_CHARACTERS],
        received=row["received"],
        accepted=row["accepted"],
        rejected=rejected,
        advertised=row["advertised"],
    )


def _resource_of(belief: Belief, address: Address) -> str | None:
    """The BGPPeer that a session is of; None for the mesh's."""
    intent = belief.desired.sessions.get(address)
    return None if intent is None else intent.resource


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# -- Events --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Noticed:
    """What was so at the last look: sessions that were up, and what was told already."""

    up: frozenset[Address] = frozenset()
    conflicts: frozenset[str] = frozenset()
    starved: frozenset[str] = frozenset()
    rejections: frozenset[tuple[Address, str]] = frozenset()
    has_last_peers: bool = False
    mended: int = 0
    degraded: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class News:
    """What to remember for the next look, and what to tell."""

    noticed: Noticed
    events: tuple[EventNote, ...] = field(default=())


def news(belief: Belief, starved: Mapping[str, str], before: Noticed) -> News:
    """What is so now and was not before.

    Args:
        starved: pools that a pod was refused an address of: name -> the refusal.
        before: what the last look returned; an empty one tells of no session that is down, for
            nobody saw it up.
    """
    events: list[EventNote] = []
    rows = {ip_address(row["peer"]): row for row in peer_rows(belief)}
    for address in sorted(before.up, key=str):
        row = rows.get(address)
        if row is not None and row["state"] != SessionState.ESTABLISHED.value:
            why = row["reason"] or f"the session is {row['state']}"
            events.append(_of_peer(belief, address, "PeerDown", f"session is down: {why}"))
    conflicts = {
        **{f"conflict {each.prefix}": str(each) for each in belief.desired.conflicts},
        **{what: f"{what}: {why}" for what, _, why in belief.failures if what.startswith("route ")},
        **{f"route {p} {who}": f"route {p} is {who}" for p, who in belief.contested.items()},
    }
    events += [
        EventNote("Node", belief.node, "RouteConflict", text)
        for what, text in sorted(conflicts.items())
        if what not in before.conflicts
    ]
    mended = [(number, text) for number, text in belief.mended if number > before.mended]
    if mended:
        # One for all: a tool that sweeps /proc/sys changes five things of each of a hundred links.
        more = f" (and {len(mended) - 1} more)" if len(mended) > 1 else ""
        text = f"put right what another hand had changed: {mended[0][1]}{more}"
        events.append(EventNote("Node", belief.node, "PodLinkRepaired", text))
    events += [
        EventNote("IPPool", pool, "PoolExhausted", f"{belief.node}: {text}")
        for pool, text in sorted(starved.items())
        if pool not in before.starved
    ]
    if belief.last_peers is not None and not before.has_last_peers:
        events.append(EventNote("Node", belief.node, "LastPeersKept", str(belief.last_peers)))
    events += [
        EventNote("Node", belief.node, "DiskNotWritable", sentence)
        for sentence in belief.degraded
        if sentence not in before.degraded
    ]
    rejected = examples_of(belief.desired.rejected)
    events += [
        _of_peer(
            belief,
            address,
            "RouteRejected",
            f"{each.path.prefix} is not used: {reason}: {each.detail}",
        )
        for (address, reason), each in rejected.items()
        if (address, reason) not in before.rejections
    ]
    noticed = Noticed(
        up=frozenset(
            a for a, row in rows.items() if row["state"] == SessionState.ESTABLISHED.value
        ),
        conflicts=frozenset(conflicts),
        starved=frozenset(starved),
        # Once told is told: a route that comes and goes is the same news all day.
        rejections=before.rejections | rejected.keys(),
        has_last_peers=belief.last_peers is not None,
        mended=mended[-1][0] if mended else before.mended,
        degraded=frozenset(belief.degraded),
    )
    return News(noticed, tuple(events))


def _of_peer(belief: Belief, address: Address, reason: str, text: str) -> EventNote:
    resource = _resource_of(belief, address)
    sentence = f"{belief.node} with {address}: {text}"
    if resource is None:
        return EventNote("Node", belief.node, reason, sentence)
    return EventNote("BGPPeer", resource, reason, sentence)
