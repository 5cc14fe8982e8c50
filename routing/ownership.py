"""The ownership guard: only the node that the store confirms as a block's owner is believed. Pure.

BGP takes any announcement of a block for another way to the same place. Two nodes that announce one
block (a node restored from an old disk, a lab that got connected) would each get half of its flows,
and a pod that is stolen that way notices nothing. So who announced a path is told, where it can be,
from what the path carries, and a block's path from another than its owner is rejected.

Where it cannot be told, because routers in between show a common ASN and themselves as the next
hop, nothing is rejected; but paths from two origin ASNs are not used side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bgp.paths import Path
from cni.ipam.block import BlockState
from routing.datastore.snapshot import Snapshot
from routing.prefix_table import PrefixTable
from routing.routes import Address, Prefix
from routing.topology import SessionIntent, SessionKind, node_asn, router_id

NOT_OWNER = "not-owner"


@dataclass(frozen=True, slots=True)
class OwnershipConflict:
    """A block that somebody announces who does not own it.

    Attributes:
        owner: the node that the store confirms; "" when its path cannot be told from others.
        claimant: the node, or ``AS n`` when only that is known.
        peer: who told us.
    """

    prefix: Prefix
    owner: str
    claimant: str
    peer: Address

    def __str__(self) -> str:
        if not self.owner:
            return (
                f"{self.prefix} has more than one origin: {self.claimant}, learned from "
                f"{self.peer}, is not used"
            )
        return (
            f"{self.prefix} of {self.owner} is announced by {self.claimant}, learned from "
            f"{self.peer}; it is not used"
        )


class Ownership:
    """Who owns what, and how nodes are told by what a path carries."""

    def __init__(self, snapshot: Snapshot, sessions: Mapping[Address, SessionIntent]) -> None:
        self._sessions = sessions
        self._blocks = PrefixTable(
            (block.cidr, block.node)
            for block in snapshot.blocks
            if block.state is BlockState.CONFIRMED
        )
        self._by_router_id = {router_id(node): node.meta.name for node in snapshot.nodes}
        self._by_address = {
            address: node.meta.name for node in snapshot.nodes for address in node.addresses
        }
        by_asn: dict[int, set[str]] = {}
        for node in snapshot.nodes:
            by_asn.setdefault(node_asn(snapshot, node), set()).add(node.meta.name)
        # A node that shows an ASN of its choice to some peers, and a router whose ASN a node has
        # too: such an ASN says nothing of who announced.
        ambiguous = {peer.local_asn for peer in snapshot.peers} | {
            session.remote_asn
            for session in sessions.values()
            if session.kind is SessionKind.ROUTER and session.is_ebgp
        }
        self._ambiguous = ambiguous
        self._by_asn = {
            asn: frozenset(nodes) for asn, nodes in by_asn.items() if asn not in ambiguous
        }

    def owners(self, prefix: Prefix) -> frozenset[str]:
        """The confirmed owner of the block that ``prefix`` is in, or those of the blocks in it."""
        for _, node in self._blocks.covering(prefix):
            return frozenset({node})
        return frozenset(node for _, node in self._blocks.inside(prefix))

    def origin(self, path: Path) -> frozenset[str] | None:
        """The nodes one of which announced ``path``; None when that cannot be told."""
        if path.originator_id is not None and path.originator_id in self._by_router_id:
            return frozenset({self._by_router_id[path.originator_id]})
        if path.next_hop in self._by_address:
            return frozenset({self._by_address[path.next_hop]})
        if path.as_path and path.as_path[-1] in self._by_asn:
            return self._by_asn[path.as_path[-1]]
        session = self._sessions.get(path.peer)
        if session is None or session.remote_node is None or path.originator_id is not None:
            return None
        # Nodes pass nothing on, so what one says with no other AS in it is its own.
        if all(asn == session.remote_asn for asn in path.as_path):
            return frozenset({session.remote_node})
        return None

    def is_from_elsewhere(self, path: Path) -> bool:
        """Whether ``path`` shows an origin that is no node's: another AS, or a router of our own AS
        that speaks for itself. False where the origin may be hidden (as-override)."""
        if self.origin(path) is not None:
            return False
        session = self._sessions.get(path.peer)
        if session is None:
            return False
        if not path.as_path:
            return not session.is_ebgp
        return self.origin_asn(path) is not None and path.as_path[-1] not in self._ambiguous

    def claimant(self, path: Path) -> str:
        """Who announced ``path``, for a sentence."""
        origin = self.origin(path)
        if origin is not None and len(origin) == 1:
            return next(iter(origin))
        return f"AS {path.as_path[-1]}" if path.as_path else f"router {path.next_hop}"

    def origin_asn(self, path: Path) -> int | None:
        """The ASN the path came from; None when it is only the router's own, which may stand in
        the place of another (as-override, aggregation)."""
        session = self._sessions.get(path.peer)
        if session is None or not path.as_path:
            return None
        origin = path.as_path[-1]
        return None if origin == session.remote_asn and session.is_ebgp else origin


def guard(
    paths: Sequence[Path], ownership: Ownership, *, in_sync: bool
) -> tuple[list[Path], list[tuple[Path, OwnershipConflict]]]:
    """The paths that may be used, and those of others than the owner.

    Args:
        in_sync: whether the store was read just now. If not, a block may have a new owner that we
            have not heard of: its only path is used then, whoever it is from.

    A path of an origin that is no node's is used while the owner's is not there (a router may
    announce a block statically, on purpose), and never beside it.
    """
    kept: list[Path] = []
    elsewhere: list[Path] = []
    doubtful: list[Path] = []
    from_owner: set[Prefix] = set()
    for path in paths:
        owners = ownership.owners(path.prefix)
        origin = ownership.origin(path) if owners else None
        if origin is None and owners and ownership.is_from_elsewhere(path):
            elsewhere.append(path)
        # An aggregate is its announcer's only when every block in it is.
        elif origin is None or owners <= origin:
            kept.append(path)
            if origin is not None:
                from_owner.add(path.prefix)
        else:
            doubtful.append(path)
    refused = list(doubtful) if in_sync else []
    for path in elsewhere if in_sync else [*doubtful, *elsewhere]:
        (refused if path.prefix in from_owner else kept).append(path)
    return kept, [(path, _conflict(path, ownership)) for path in refused]


def _conflict(path: Path, ownership: Ownership) -> OwnershipConflict:
    owner = ", ".join(sorted(ownership.owners(path.prefix)))
    return OwnershipConflict(path.prefix, owner, ownership.claimant(path), path.peer)


def one_origin(
    best: Mapping[Prefix, tuple[Path, ...]],
    ownership: Ownership,
    is_guarded: Iterable[Prefix],
) -> tuple[dict[Prefix, tuple[Path, ...]], list[OwnershipConflict]]:
    """``best`` without multipaths over two origin ASNs, among the prefixes ``is_guarded``.

    The lowest ASN is kept: the choice must not depend on which path came first.
    """
    result = dict(best)
    conflicts: list[OwnershipConflict] = []
    for prefix in is_guarded:
        chosen = result.get(prefix, ())
        if len({path.as_path[-1:] for path in chosen}) < 2:
            continue
        origins = {(path.peer, path.prefix): ownership.origin_asn(path) for path in chosen}
        known = sorted({asn for asn in origins.values() if asn is not None})
        if len(known) < 2:
            continue
        kept: list[Path] = []
        dropped: list[Path] = []
        for path in chosen:
            origin = origins[path.peer, path.prefix]
            (kept if origin in (None, known[0]) else dropped).append(path)
        result[prefix] = tuple(kept)
        conflicts.extend(
            OwnershipConflict(prefix, "", ownership.claimant(path), path.peer) for path in dropped
        )
    return result, conflicts
