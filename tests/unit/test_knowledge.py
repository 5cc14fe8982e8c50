"""What an agent believes: the store, its own doings, and what it knew before it was restarted."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network

import pytest

from cni.ipam.block import Block, BlockState
from routing.datastore.cache import SnapshotCache
from routing.datastore.snapshot import (
    BGPPeerResource,
    BlockResource,
    IPPoolResource,
    Meta,
    NodeResource,
)
from routing.knowledge import Knowledge
from tests.fakes.store import FakeDatastore

MINE = Block(ip_network("10.0.0.0/26"), "four", "node-a", BlockState.CONFIRMED)
THEIRS = replace(MINE, cidr=ip_network("10.0.0.64/26"), node="node-b")


@dataclass
class FakeBlocks:
    """The allocator's part: what it was told, and what it holds."""

    restored: list[Block] = field(default_factory=list)
    held: list[Block] = field(default_factory=list)

    def restore(self, blocks):
        self.restored += blocks

    async def refresh(self, blocks=None):
        self.held = [b for b in blocks or () if b.node == "node-a"]

    def blocks(self):
        return [(block, 0, 0, 64) for block in self.held]


@pytest.fixture
def store():
    """One pool, two nodes, a peer, a block each."""
    return FakeDatastore(
        IPPoolResource(Meta("four"), ip_network("10.0.0.0/24"), 26),
        NodeResource(Meta("node-a"), (ip_address("192.0.2.1"),), 64601),
        NodeResource(Meta("node-b"), (ip_address("192.0.2.2"),), 64602),
        BGPPeerResource(Meta("tor"), ip_address("192.0.2.254"), 64512),
        *(BlockResource(Meta(f"b{n}"), block) for n, block in enumerate((MINE, THEIRS))),
    )


def knowing(store, tmp_path, blocks=None, **more):
    """One agent's, with its cache."""
    cache = SnapshotCache(
        tmp_path / "snapshot", node="node-a", passwords_path=tmp_path / "passwords", boot_id="boot"
    )
    return Knowledge(node="node-a", store=store, blocks=blocks or FakeBlocks(), cache=cache, **more)


async def test_a_restart_while_the_store_is_away_starts_from_what_was_known(store, tmp_path):
    """Pools, peers and blocks are the same, out of sync; the first read that succeeds ends it."""
    before = knowing(store, tmp_path)
    assert await before.read() is None
    store.fail_next("snapshot", times=1)

    blocks = FakeBlocks()
    after = knowing(store, tmp_path, blocks)
    assert after.recall()
    assert blocks.restored == list(before.snapshot.blocks)
    assert "unreachable" in (await after.read() or "")
    assert after.snapshot == replace(before.snapshot, in_sync=False)
    assert after.is_recalled

    assert await after.read() is None
    assert after.snapshot == before.snapshot
    assert (after.is_recalled, after.error) == (False, None)


async def test_without_a_cache_there_is_nothing_to_start_from(store, tmp_path):
    """And a file of another node is no cache."""
    assert not knowing(store, tmp_path).recall()
    other = SnapshotCache(tmp_path / "snapshot", node="node-b", boot_id="boot")
    other.save(await store.snapshot())

    mine = knowing(store, tmp_path)
    assert not mine.recall()
    assert any("node-b" in each for each in mine.problems)


async def test_a_store_that_goes_away_leaves_the_last_word_out_of_sync(store, tmp_path):
    """Nothing is deleted on its word; the error says why."""
    knowledge = knowing(store, tmp_path)
    await knowledge.read()
    store.fail_next("snapshot", error="gone fishing")

    assert "gone fishing" in (await knowledge.read() or "")
    assert knowledge.error is not None
    assert not knowledge.snapshot.in_sync
    assert len(knowledge.snapshot.pools) == 1


async def test_a_node_deleted_by_mistake_serves_on_while_it_has_blocks(store, tmp_path):
    """Its addresses and ASN stay what they were, and an operator is told; not so without blocks."""
    knowledge = knowing(store, tmp_path)
    await knowledge.read()
    store.remove("Node", "node-a")

    await knowledge.read()
    assert [n.meta.name for n in knowledge.snapshot.nodes if n.asn == 64601] == ["node-a"]
    assert any("Node node-a is gone" in each for each in knowledge.problems)

    store.remove("Block", "b0")
    await knowledge.read()
    assert [n.meta.name for n in knowledge.snapshot.nodes] == ["node-b"]


async def test_what_we_hold_counts_more_than_an_older_snapshot(store, tmp_path):
    """A block that was taken back from deletion is not withdrawn for a watch that lags."""

    class Reviving(FakeBlocks):
        async def refresh(self, blocks=None):
            self.held = [replace(MINE, resource_version="newer")]

    knowledge = knowing(store, tmp_path, Reviving())
    await knowledge.read()

    versions = {b.node: b.resource_version for b in knowledge.snapshot.blocks}
    assert versions["node-a"] == "newer"
    assert versions["node-b"] != "newer"


async def test_the_last_peer_is_kept_through_a_restart_and_told(store, tmp_path):
    """The store has none any more; sessions are made of what was last good, blocks of the store."""
    now_s = [1000.0]
    before = knowing(store, tmp_path, wall=lambda: now_s[0])
    await before.read()
    store.remove("BGPPeer", "tor")
    await before.read()
    assert before.snapshot.peers == ()
    assert [p.meta.name for p in before.peering.peers] == ["tor"]
    assert any("last good peers (tor) are kept for 10 min" in each for each in before.problems)

    after = knowing(store, tmp_path, wall=lambda: now_s[0])
    assert after.recall()
    now_s[0] = 1599.0
    await after.read()
    assert [p.meta.name for p in after.peering.peers] == ["tor"]
    assert after.peering.blocks == after.snapshot.blocks
    now_s[0] = 1600.0
    await after.read()
    assert after.peering.peers == ()
    assert after.problems == []
