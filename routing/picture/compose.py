"""From what the store says should be, and what nodes say is, to a Picture. Pure.

The sessions drawn are those the configuration asks for (routing/topology.py, as each node computes
them) and those a node has besides. A mismatch is where two sources that should agree do not:
configuration and session, the two ends of one session, blocks owned and blocks announced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from cni.ipam.block import Block, BlockState
from routing.datastore.snapshot import NodeResource, Snapshot
from routing.picture.model import (
    BlockChip,
    Node,
    Observed,
    Picture,
    Report,
    Router,
    Session,
    State,
)
from routing.topology import SessionIntent, SessionKind, node_asn, sessions_for

ROUTER_LABEL = "slash32.io/router"
"""On a BGPPeer: the router's name, where it has another address on each node's link."""

ESTABLISHED = "Established"
STARTING = frozenset({"Connect", "Active", "OpenSent", "OpenConfirm"})


def compose(
    snapshot: Snapshot,
    reports: Mapping[str, Report],
    *,
    title: str = "slash32",
    caption: str = "",
) -> Picture:
    """The whole cluster; what no report tells of is drawn as unknown.

    Args:
        reports: by node's name; a node that is not in the store is drawn too.
    """
    routers: dict[str, Router] = {}
    nodes = [
        _node(resource, snapshot, reports.get(resource.meta.name), routers)
        for resource in sorted(snapshot.nodes, key=lambda each: each.meta.name)
    ]
    known = {node.name for node in nodes}
    for name, report in sorted(reports.items()):
        if name not in known:
            nodes.append(_stranger(name, snapshot, report, routers))
            known.add(name)
    nodes = _compared(nodes)
    orphans = sorted({block.node for block in snapshot.blocks} - known)
    problems = tuple(
        f"{sum(block.node == name for block in snapshot.blocks)} blocks belong to {name!r}, "
        "which is no node"
        for name in orphans
    )
    return Picture(tuple(routers.values()), tuple(nodes), title, caption, problems)


def _node(
    resource: NodeResource,
    snapshot: Snapshot,
    report: Report | None,
    routers: dict[str, Router],
) -> Node:
    name = resource.meta.name
    topology = sessions_for(snapshot, name)
    seen = {each.address: each for each in (report.sessions if report else ())}
    sessions = [
        _session(name, intent, snapshot, report, seen.pop(str(intent.address), None), routers)
        for intent in topology.sessions
    ]
    sessions += [_unconfigured(name, each, routers) for each in seen.values()]
    blocks = _blocks(snapshot.blocks, name, report)
    problems = [*topology.problems, *_unannounced(blocks, sessions)]
    if report is not None:
        problems += [each for each in report.findings if each not in problems]
    return Node(
        name=name,
        asn=node_asn(snapshot, resource),
        addresses=tuple(map(str, resource.addresses)),
        blocks=blocks,
        sessions=tuple(sessions),
        source=report.source if report else "",
        pods=report.pods if report else None,
        problems=tuple(problems),
    )


def _stranger(name: str, snapshot: Snapshot, report: Report, routers: dict[str, Router]) -> Node:
    return Node(
        name=name,
        asn=0,
        addresses=(),
        blocks=_blocks(snapshot.blocks, name, report),
        sessions=tuple(_unconfigured(name, each, routers) for each in report.sessions),
        source=report.source,
        pods=report.pods,
        problems=("the store has no Node of this name", *report.findings),
    )


def _session(
    node: str,
    intent: SessionIntent,
    snapshot: Snapshot,
    report: Report | None,
    seen: Observed | None,
    routers: dict[str, Router],
) -> Session:
    address = str(intent.address)
    if intent.kind is SessionKind.ROUTER or intent.remote_node is None:
        remote = _router(_router_name(snapshot, intent.resource), intent, routers)
    else:
        remote = intent.remote_node
    problems: tuple[str, ...] = ()
    if report is not None and seen is None:
        problems = ("configured, and the node has no such session",)
    elif seen is not None:
        problems = tuple(_session_problems(seen, intent.remote_asn))
    return Session(
        node=node,
        name=intent.name,
        address=address,
        asn=intent.remote_asn,
        remote=remote,
        is_to_node=remote == intent.remote_node,
        state=_state(seen, is_heard=report is not None),
        seen=seen,
        problems=problems,
    )


def _session_problems(seen: Observed, asn: int) -> Iterable[str]:
    if seen.state != ESTABLISHED:
        yield seen.reason or f"is {seen.state}"
    elif seen.received > seen.accepted:
        yield f"{seen.received - seen.accepted} of {seen.received} prefixes received are rejected"
    if seen.asn and seen.asn != asn:
        yield f"the session is with AS {seen.asn}, the store says AS {asn}"


def _unconfigured(node: str, seen: Observed, routers: dict[str, Router]) -> Session:
    key = next((k for k, r in routers.items() if seen.address in r.addresses), seen.address)
    routers.setdefault(key, Router(key, seen.name or key, seen.asn, (seen.address,)))
    return Session(
        node=node,
        name=seen.name or seen.address,
        address=seen.address,
        asn=seen.asn,
        remote=key,
        is_to_node=False,
        state=_state(seen, is_heard=True),
        seen=seen,
        problems=("the store's configuration has no such session",),
    )


def _state(seen: Observed | None, *, is_heard: bool) -> State:
    if seen is None:
        return State.DOWN if is_heard else State.UNKNOWN
    if seen.state == ESTABLISHED:
        return State.UP
    return State.STARTING if seen.state in STARTING else State.DOWN


def _router_name(snapshot: Snapshot, resource: str | None) -> str | None:
    peer = next((each for each in snapshot.peers if each.meta.name == resource), None)
    return peer.meta.labels.get(ROUTER_LABEL) if peer else None


def _router(label: str | None, intent: SessionIntent, routers: dict[str, Router]) -> str:
    """The key of the router at the other end, which is added or gets one more address."""
    address = str(intent.address)
    key = label or address
    known = routers.get(key)
    if known is None:
        routers[key] = Router(key, label or intent.name, intent.remote_asn, (address,))
    elif address not in known.addresses:
        routers[key] = replace(known, addresses=(*known.addresses, address))
    return key


def _blocks(blocks: Iterable[Block], node: str, report: Report | None) -> tuple[BlockChip, ...]:
    use = report.use if report else {}
    mine = sorted(
        (block for block in blocks if block.node == node),
        key=lambda b: (b.cidr.version, int(b.cidr.network_address)),
    )
    return tuple(
        BlockChip(str(b.cidr), b.pool, b.state.value, *use.get(str(b.cidr), (None, None)))
        for b in mine
    )


def _unannounced(blocks: tuple[BlockChip, ...], sessions: Iterable[Session]) -> Iterable[str]:
    confirmed = [b for b in blocks if b.state == BlockState.CONFIRMED.value]
    if not confirmed:
        return
    for session in sessions:
        if session.seen is not None and session.state is State.UP and not session.seen.announced:
            yield f"none of its {len(confirmed)} blocks is announced to {session.name}"


def _compared(nodes: list[Node]) -> list[Node]:
    """The two ends of a session between nodes, side by side."""
    ends = {(s.node, s.remote): s for node in nodes for s in node.sessions if s.is_to_node}
    return [
        replace(node, sessions=tuple(_compared_session(s, ends) for s in node.sessions))
        for node in nodes
    ]


def _compared_session(session: Session, ends: Mapping[tuple[str, str], Session]) -> Session:
    other = ends.get((session.remote, session.node)) if session.is_to_node else None
    if other is None or session.seen is None or other.seen is None:
        return session
    problems = []
    if (session.state is State.UP) != (other.state is State.UP):
        problems.append(
            f"{session.node} says {session.seen.state}, {other.node} {other.seen.state}"
        )
    elif session.state is State.UP and session.seen.announced != other.seen.received:
        problems.append(
            f"{session.seen.announced} prefixes announced, {other.node} has {other.seen.received}"
        )
    return replace(session, problems=(*session.problems, *problems)) if problems else session
