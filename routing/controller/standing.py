"""How IPPools and BGPPeers stand: the columns and conditions of ``kubectl get``. Pure.

What the cluster's objects say of each other, and what the agents report, summed up. Nothing is
decided by it; times are the board's business (a condition keeps its own while it stays as true).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from bgp.paths import SessionState
from routing.datastore.selector import Selector
from routing.datastore.snapshot import (
    BGPPeerResource,
    Condition,
    ConditionStatus,
    IPPoolResource,
    NodeResource,
    NodeStatusResource,
    PeerReport,
    Problem,
    ResourceStatus,
    Snapshot,
)

NAMED_MAX = 3
"""Nodes one sentence names; the others are counted."""

Key = tuple[str, str]
"""(kind, name)."""


def standing(
    snapshot: Snapshot, problems: Iterable[Problem], reports: Iterable[NodeStatusResource]
) -> dict[Key, ResourceStatus]:
    """The status of every IPPool and BGPPeer, also of those that cannot be read."""
    problems = list(problems)
    overlaps = {p.name: p.text for p in problems if p.reason == "Overlapping"}
    malformed = {(p.kind, p.name): p.text for p in malformed_among(problems)}
    reports = list(reports)
    outdone = _outdone(snapshot)
    found: dict[Key, ResourceStatus] = {}
    for pool in snapshot.pools:
        found["IPPool", pool.meta.name] = _pool(pool, snapshot, overlaps.get(pool.meta.name))
    for peer in snapshot.peers:
        found["BGPPeer", peer.meta.name] = _peer(
            peer, snapshot, reports, outdone.get(peer.meta.name)
        )
    for key, text in malformed.items():
        if key[0] in ("IPPool", "BGPPeer"):
            found[key] = _unread(text, found.get(key))
    return found


def malformed_among(problems: Iterable[Problem]) -> list[Problem]:
    """Resources that cannot be read as they are now."""
    return [problem for problem in problems if problem.reason == "Malformed"]


def _unread(text: str, last_good: ResourceStatus | None) -> ResourceStatus:
    """Not ready, whatever its last good version is; that one is used on, where there is one."""
    used = "it is not used" if last_good is None else "what it said before is used on"
    ready = Condition("Ready", ConditionStatus.FALSE, "Malformed", f"{text}; {used}")
    if last_good is None:
        return ResourceStatus({}, (ready,))
    others = (each for each in last_good.conditions if each.type != "Ready")
    return ResourceStatus(last_good.columns, (ready, *others))


def _pool(pool: IPPoolResource, snapshot: Snapshot, overlap: str | None) -> ResourceStatus:
    claimed = sum(block.pool == pool.meta.name for block in snapshot.blocks)
    in_all = 1 << (pool.block_size - pool.cidr.prefixlen)
    is_full = claimed >= in_all
    is_matched = any(_matches(pool.node_selector, node) for node in snapshot.nodes)
    full = f"all {in_all} blocks (/{pool.block_size}) of {pool.cidr} are claimed"
    wrong = {
        "Overlapping": overlap,
        "Disabled": "spec.disabled: no new block is claimed" if pool.disabled else None,
        "Exhausted": full if is_full else None,
        "NoMatchingNode": None if is_matched else f"no node matches {pool.node_selector!r}",
    }
    if overlap is not None:
        # Disabled for that alone (datastore/kubernetes_rules.py).
        wrong["Disabled"] = None
    room = f"{claimed} of {in_all} blocks (/{pool.block_size}) are claimed"
    return ResourceStatus(
        {"blockSize": pool.block_size, "blocks": claimed},
        (
            _ready(wrong, "BlocksAvailable", room, pool.meta.generation),
            *(
                _problem(kind, wrong[kind], pool.meta.generation)
                for kind in ("Overlapping", "Exhausted", "NoMatchingNode")
            ),
        ),
    )


def _outdone(snapshot: Snapshot) -> dict[str, str]:
    """BGPPeers that name an address which an older one names for the same nodes: name -> which."""
    by_address: dict[object, list[tuple[str, set[str]]]] = {}
    found: dict[str, str] = {}
    for peer in snapshot.peers:
        if peer.peer_ip is None:
            continue
        older = by_address.setdefault(peer.peer_ip, [])
        nodes = {node.meta.name for node in snapshot.nodes if _is_selected(peer, node)}
        for name, others in older:
            both = sorted(nodes & others)
            if both:
                found[peer.meta.name] = (
                    f"{peer.peer_ip} is named by the older BGPPeer {name!r} too, which is used on "
                    f"{_first_of(both)}"
                )
                break
        older.append((peer.meta.name, nodes))
    return found


def _first_of(nodes: Sequence[str]) -> str:
    rest = len(nodes) - NAMED_MAX
    return ", ".join(nodes[:NAMED_MAX]) + (f" and {rest} more" if rest > 0 else "")


def _peer(
    peer: BGPPeerResource,
    snapshot: Snapshot,
    reports: Sequence[NodeStatusResource],
    outdone: str | None,
) -> ResourceStatus:
    nodes = [node for node in snapshot.nodes if _is_selected(peer, node)]
    names = {node.meta.name for node in nodes}
    sessions = [
        (report.meta.name, session)
        for report in reports
        if report.meta.name in names
        for session in report.peers
        if session.name == peer.meta.name
    ]
    up = [node for node, session in sessions if session.state == SessionState.ESTABLISHED.value]
    silent = names - {node for node, _ in sessions}
    # With a peerSelector a node has a session with each of the nodes it names, or none.
    in_all = len(sessions) + (0 if peer.peer_selector is not None else len(silent))
    down = None
    if len(up) < in_all or not in_all:
        down = _down(sessions, silent if peer.peer_selector is None else ())
    where = peer.node or peer.node_selector or "all()"
    wrong = {
        "NoMatchingNode": _no_match(peer, snapshot) if nodes else f"no node matches {where!r}",
        "Conflicting": outdone,
        "MissingSecret": _missing_secret(peer, snapshot),
        "NotEstablished": down,
    }
    established = f"{len(up)}/{in_all}"
    generation = peer.meta.generation
    return ResourceStatus(
        {"nodes": len(nodes), "established": established},
        (
            _ready(wrong, "Established", f"{established} sessions are up", generation),
            Condition(
                "Established",
                ConditionStatus.TRUE if in_all and down is None else ConditionStatus.FALSE,
                "NotEstablished" if down is not None else "Established",
                down or f"{established} sessions are up",
                generation,
            ),
            *(
                _problem(kind, wrong[kind], generation)
                for kind in ("NoMatchingNode", "Conflicting", "MissingSecret")
            ),
        ),
    )


def _down(sessions: Sequence[tuple[str, PeerReport]], silent: Collection[str]) -> str:
    """Which sessions are not up and why, the first few by name."""
    told = [
        f"{node}: {session.reason or session.state}"
        for node, session in sorted(sessions, key=lambda each: each[0])
        if session.state != SessionState.ESTABLISHED.value
    ]
    told += [f"{node}: not reported" for node in sorted(silent)]
    if not told:
        return "no session is wanted by any node"
    rest = len(told) - NAMED_MAX
    return "; ".join(told[:NAMED_MAX]) + (f"; and {rest} more" if rest > 0 else "")


def _no_match(peer: BGPPeerResource, snapshot: Snapshot) -> str | None:
    selector = peer.peer_selector
    if selector is None or any(_matches(selector, node) for node in snapshot.nodes):
        return None
    return f"no node matches peerSelector {selector!r}"


def _missing_secret(peer: BGPPeerResource, snapshot: Snapshot) -> str | None:
    ref = peer.password
    if ref is None or ref in snapshot.passwords:
        return None
    return f"Secret {ref.name!r} has no usable key {ref.key!r}: no session is made without it"


def _is_selected(peer: BGPPeerResource, node: NodeResource) -> bool:
    if peer.node is not None:
        return peer.node == node.meta.name
    return peer.node_selector is None or _matches(peer.node_selector, node)


def _matches(selector: str, node: NodeResource) -> bool:
    return Selector.parse(selector).matches(node.meta.labels)


def _ready(
    wrong: Mapping[str, str | None], reason: str, message: str, generation: int
) -> Condition:
    """Ready, or not for the first thing that is wrong."""
    for why, text in wrong.items():
        if text is not None:
            return Condition("Ready", ConditionStatus.FALSE, why, text, generation)
    return Condition("Ready", ConditionStatus.TRUE, reason, message, generation)


def _problem(kind: str, text: str | None, generation: int) -> Condition:
    """A condition that is well when it is False."""
    if text is None:
        return Condition(kind, ConditionStatus.FALSE, "AsItShouldBe", "", generation)
    return Condition(kind, ConditionStatus.TRUE, kind, text, generation)
