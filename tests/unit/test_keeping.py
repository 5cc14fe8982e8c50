"""What an agent knows better than the store's last word: its own node, its own blocks."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from cni.ipam.block import Block, BlockState
from routing.datastore.keeping import with_held_blocks, with_own_node
from routing.datastore.snapshot import Meta, NodeResource, Snapshot

OWN = Block(ip_network("10.244.1.0/26"), "pods", "n1", BlockState.CONFIRMED, "7", "u-1")
OTHER = Block(ip_network("10.244.2.0/26"), "pods", "n2", BlockState.CONFIRMED, "8", "u-2")
MARKED = replace(OWN, state=BlockState.PENDING_DELETION, resource_version="9")
N1 = NodeResource(Meta("n1"), (ip_address("192.0.2.1"),), 64601)
N2 = NodeResource(Meta("n2"), (ip_address("192.0.2.2"),))
BOTH = Snapshot(nodes=(N1, N2), blocks=(OWN, OTHER), in_sync=True)


def test_a_node_that_was_deleted_by_mistake_serves_on():
    """Its Node is as it was, for as long as it has a block; nobody else's is kept."""
    without = replace(BOTH, nodes=())
    kept = with_own_node(without, node="n1", before=BOTH)
    assert kept.nodes == (N1,)
    assert replace(kept, nodes=()) == without
    again = with_own_node(without, node="n1", before=kept)
    assert again.nodes == (N1,)
    marked = replace(without, blocks=(MARKED, OTHER))
    assert with_own_node(marked, node="n1", before=kept).nodes == (N1,)
    gone = replace(without, blocks=(OTHER,))
    assert with_own_node(gone, node="n1", before=kept) == gone


def test_a_node_that_is_there_is_as_the_store_says():
    """Also when it changed; and one that was never seen is not invented."""
    moved = replace(BOTH, nodes=(replace(N1, asn=1), N2))
    assert with_own_node(moved, node="n1", before=BOTH) is moved
    without = replace(BOTH, nodes=(N2,))
    assert with_own_node(without, node="n1", before=Snapshot()) is without


def test_a_block_taken_back_is_not_withdrawn_by_an_older_snapshot():
    """What the allocator holds is what it saw in an answer of the store itself."""
    taken_back = replace(OWN, resource_version="10")
    old = replace(BOTH, blocks=(MARKED, OTHER))
    assert with_held_blocks(old, node="n1", held=[taken_back]).blocks == (taken_back, OTHER)
    assert with_held_blocks(BOTH, node="n1", held=[OWN]) is BOTH


def test_blocks_that_are_not_held_are_as_the_store_says():
    """One on its way out goes; another node's is another node's, whatever was held."""
    old = replace(BOTH, blocks=(MARKED, OTHER))
    assert with_held_blocks(old, node="n1", held=[]) is old
    lost = replace(BOTH, blocks=(replace(OWN, node="n2"), OTHER))
    assert with_held_blocks(lost, node="n1", held=[OWN]) is lost
    assert with_held_blocks(replace(BOTH, blocks=()), node="n1", held=[OWN]).blocks == ()
