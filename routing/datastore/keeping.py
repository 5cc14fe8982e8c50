"""What an agent believes beyond the store's last word about itself. Pure.

The store is right about everybody else. About its own node an agent knows two things better: what
it has just written (a snapshot may come from a watch that is a moment behind), and that the node
lives, although somebody has deleted its Node object.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from cni.ipam.block import Block
from routing.datastore.snapshot import Snapshot


def with_own_node(snapshot: Snapshot, *, node: str, before: Snapshot) -> Snapshot:
    """The snapshot with the Node of ``node`` as it was ``before``, if it is gone and still serves.

    Without its Node a node has no peers, so that its pods would be cut off by one mistaken
    ``kubectl delete node``. It serves while a block of its own is in the store: the cluster's
    collector takes those back from nodes that show no life, and a living one renews its claim.
    """
    if any(each.meta.name == node for each in snapshot.nodes):
        return snapshot
    own = [each for each in before.nodes if each.meta.name == node]
    if not own or not any(block.node == node for block in snapshot.blocks):
        return snapshot
    return replace(snapshot, nodes=(*snapshot.nodes, *own))


def with_held_blocks(snapshot: Snapshot, *, node: str, held: Iterable[Block]) -> Snapshot:
    """The snapshot with the blocks of ``node`` as its allocator holds them.

    An agent that finds its block marked for deletion while pods use it takes it back at once; a
    pass that still goes by the older snapshot would withdraw the block from the routers.
    """
    ours = {block.cidr: block for block in held}
    blocks = tuple(
        ours.get(block.cidr, block) if block.node == node else block for block in snapshot.blocks
    )
    return snapshot if blocks == tuple(snapshot.blocks) else replace(snapshot, blocks=blocks)
