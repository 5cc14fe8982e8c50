"""A node's last good peers, kept for a while when all of them are gone at once. Pure.

An empty set of peers, where there were some, is far more often an accident than a wish: a bad
deployment, definitions deleted with all their objects, a label that an upgrade removed so that no
selector matches a route reflector any more. Following it at once cuts every pod of the node off. So
the sessions stay as they last were for ``keepLastPeersFor`` (BGPConfiguration, 10 min unless said),
everybody is told, and then what the store says is done. 0s says that it is meant.

Two things count as gone at once:

  * this node had sessions and has no peer at all now: everything that its sessions were made of is
    kept (peers, filters, the configuration, nodes' labels; pools too when the store has none);
  * a BGPPeer is as it was, and its nodeSelector or peerSelector matches no node of the cluster any
    more: nobody has asked for its end.

One peer of several that is deleted goes at once, and so does one that other peers replace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from routing.datastore.selector import Selector, SelectorError
from routing.datastore.snapshot import BGPPeerResource, NodeResource, Resource, Snapshot
from routing.topology import Topology, sessions_for

NAMED_MAX = 3
R = TypeVar("R", bound=Resource)


@dataclass(frozen=True, slots=True)
class LastPeers:
    """What is kept, and for how long.

    Attributes:
        sessions: names of the sessions that are there for this reason alone.
        left_s: seconds until they go.
        why: what the store says, as half a sentence.
    """

    sessions: tuple[str, ...]
    left_s: float
    why: str

    def __str__(self) -> str:
        names = ", ".join(self.sessions[:NAMED_MAX])
        more = len(self.sessions) - NAMED_MAX
        names += f" and {more} more" if more > 0 else ""
        return (
            f"{self.why}: the last good peers ({names}) are kept for {_span(self.left_s)} more; "
            "put the resources back, or set keepLastPeersFor: 0s in BGPConfiguration default to "
            "let them go at once"
        )


def with_last_peers(
    found: Snapshot, before: Snapshot, *, node: str, wall_s: float
) -> tuple[Snapshot, LastPeers | None]:
    """The snapshot that sessions and policy are made of.

    Args:
        found: what the store says now.
        before: what this returned at the last pass, or what was recalled after a restart;
            ``peers_gone_at_s`` of it is since when something is kept.
        wall_s: Unix time.

    Returns:
        ``found`` itself and None when nothing has to be kept or its time is over.
    """
    if _is_same(found, before):
        # What almost every pass finds; to compare is cheaper than to compute sessions twice.
        return found, None
    hold_s = found.bgp.keep_last_peers_s
    since_s = wall_s if before.peers_gone_at_s is None else min(before.peers_gone_at_s, wall_s)
    left_s = hold_s - (wall_s - since_s)
    if left_s <= 0:
        return found, None
    now = sessions_for(found, node)
    was = sessions_for(before, node)
    if was.sessions and not now.names:
        kept, why = _everything(found, before), _why(found)
    else:
        lost = _matching_nothing(found, before)
        if not lost:
            return found, None
        kept, why = replace(found, nodes=_labelled_as(found, before)), _no_match(lost)
    again = sessions_for(kept, node)
    names = _only_in(again, now)
    if not names:
        return found, None
    return replace(kept, peers_gone_at_s=since_s), LastPeers(names, left_s, why)


def left_without_peers(before: Snapshot, after: Snapshot) -> tuple[str, ...]:
    """The nodes that have sessions by ``before`` and no peer by ``after``, in their order: those
    whose agents will keep what they have. Passwords are not looked at."""
    before, after = (
        replace(each, peers=tuple(replace(peer, password=None) for peer in each.peers))
        for each in (before, after)
    )
    return tuple(
        node.meta.name
        for node in after.nodes
        if sessions_for(before, node.meta.name).sessions
        and not sessions_for(after, node.meta.name).names
    )


def _is_same(found: Snapshot, before: Snapshot) -> bool:
    return before.peers_gone_at_s is None and (
        (found.peers, found.nodes, found.bgp) == (before.peers, before.nodes, before.bgp)
    )


def _only_in(kept: Topology, now: Topology) -> tuple[str, ...]:
    there = {each.address for each in now.names}
    return tuple(each.name for each in kept.sessions if each.address not in there)


def _everything(found: Snapshot, before: Snapshot) -> Snapshot:
    """``found`` with all that sessions and their policy are made of as it was."""
    return replace(
        found,
        peers=_overlaid(found.peers, before.peers),
        filters=_overlaid(before.filters, found.filters),
        nodes=_labelled_as(found, before),
        bgp=replace(before.bgp, keep_last_peers_s=found.bgp.keep_last_peers_s),
        pools=found.pools or before.pools,
        passwords={**before.passwords, **found.passwords},
    )


def _overlaid(below: Sequence[R], above: Sequence[R]) -> tuple[R, ...]:
    """Both by name; ``above`` where both have one."""
    by_name: dict[str, R] = {each.meta.name: each for each in (*below, *above)}
    return tuple(by_name.values())


def _labelled_as(found: Snapshot, before: Snapshot) -> tuple[NodeResource, ...]:
    """The nodes with their labels as they were; those that are gone as well."""
    known: Mapping[str, NodeResource] = {each.meta.name: each for each in before.nodes}
    present = {each.meta.name for each in found.nodes}
    relabelled = (
        replace(each, meta=replace(each.meta, labels=known[each.meta.name].meta.labels))
        if each.meta.name in known
        else each
        for each in found.nodes
    )
    return (*relabelled, *(each for each in before.nodes if each.meta.name not in present))


def _matching_nothing(found: Snapshot, before: Snapshot) -> list[BGPPeerResource]:
    """BGPPeers that are as they were, matched nodes and match none now."""
    known = {each.meta.name: each for each in before.peers}
    return [
        peer
        for peer in found.peers
        if peer.meta.name in known
        and replace(peer, meta=known[peer.meta.name].meta) == known[peer.meta.name]
        and not _has_match(peer, found.nodes)
        and _has_match(peer, before.nodes)
    ]


def _has_match(peer: BGPPeerResource, nodes: Sequence[NodeResource]) -> bool:
    """Whether each selector that the peer has matches some node."""
    try:
        return all(
            any(Selector.parse(text).matches(node.meta.labels) for node in nodes)
            for text in (peer.node_selector, peer.peer_selector)
            if text is not None
        )
    except SelectorError:
        return False


def _why(found: Snapshot) -> str:
    if not found.peers and not found.bgp.mesh_enabled:
        return "the store has no BGPPeer any more"
    return "no BGPPeer and no mesh gives this node a peer any more"


def _no_match(lost: Sequence[BGPPeerResource]) -> str:
    names = ", ".join(peer.meta.name for peer in lost[:NAMED_MAX])
    return f"no node matches the selector of BGPPeer {names} any more"


def _span(left_s: float) -> str:
    minutes, seconds = divmod(max(0, round(left_s)), 60)
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
