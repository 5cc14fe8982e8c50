"""Blocks of nodes that are gone come back; those of nodes that live do not, whatever is deleted."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from cni.ipam.block import Block, BlockState
from routing.controller.blocks import BlockCollector
from routing.datastore.snapshot import (
    BlockResource,
    IPPoolResource,
    Meta,
    NodeResource,
    NodeStatusResource,
)
from tests.fakes.careless_store import CarelessDatastore
from tests.fakes.store import FakeDatastore

GRACE_S = 900.0
GONE = Block(ip_network("10.0.0.0/26"), "four", "gone", BlockState.CONFIRMED)
LIVING = Block(ip_network("10.0.0.64/26"), "four", "living", BlockState.CONFIRMED)


class Cluster:
    """A store, a collector, and a clock that the test moves."""

    def __init__(self, store: type[FakeDatastore] = FakeDatastore) -> None:
        self.now_s = 5000.0
        self.store = store(
            IPPoolResource(Meta("four"), ip_network("10.0.0.0/24"), 26),
            NodeResource(Meta("living"), (ip_address("192.0.2.2"),)),
            *(BlockResource(Meta(name), block) for name, block in (
                ("10-0-0-0-26", GONE), ("10-0-0-64-26", LIVING)
            )),
        )  # fmt: skip
        self.reports: dict[str, NodeStatusResource] = {}
        self.collector = BlockCollector(self.store, clock=lambda: self.now_s, grace_s=GRACE_S)
        self.events: list[str] = []

    def beat(self, node: str) -> None:
        """An agent's report."""
        self.reports[node] = NodeStatusResource(Meta(node), observed_at=f"at {self.now_s}")

    async def look(self, after_s: float = 0.0) -> dict[str, BlockState]:
        """One look, so much later; the blocks there are then, by node."""
        self.now_s += after_s
        snapshot = await self.store.snapshot()
        found = await self.collector.look(snapshot, self.reports.values())
        self.events += [event.reason for event in found]
        return {block.node: block.state for block in self.store.blocks}


@pytest.fixture
def cluster():
    """Of two nodes, one has no Node object any more."""
    return Cluster()


async def test_blocks_of_a_gone_node_are_marked_and_then_deleted(cluster):
    """One grace of silence, then another one marked; the other node's block is never touched."""
    confirmed = {"gone": BlockState.CONFIRMED, "living": BlockState.CONFIRMED}
    assert await cluster.look() == confirmed
    assert await cluster.look(GRACE_S - 1) == confirmed

    marked = await cluster.look(2)
    assert marked == confirmed | {"gone": BlockState.PENDING_DELETION}
    assert await cluster.look(GRACE_S - 1) == marked
    # Counted from when it was marked, not from the look after that.
    assert await cluster.look(1) == {"living": BlockState.CONFIRMED}
    assert cluster.events == ["NodeGone", "BlockReclaimed"]


async def test_a_node_that_reports_keeps_its_blocks_without_its_node_object(cluster):
    """Somebody deleted the Node by mistake; its agent still writes its NodeStatus."""
    for _ in range(10):
        cluster.beat("gone")
        found = await cluster.look(GRACE_S - 10)
        assert found["gone"] is BlockState.CONFIRMED
    assert cluster.events == []


async def test_a_report_that_stays_the_same_is_no_sign_of_life(cluster):
    """What was written by an agent that is gone; it is removed with the blocks."""
    cluster.beat("gone")
    await cluster.store.create(cluster.reports["gone"])
    await cluster.look()

    assert (await cluster.look(GRACE_S + 1))["gone"] is BlockState.PENDING_DELETION
    await cluster.look()
    await cluster.look(GRACE_S + 1)

    assert await cluster.store.list("NodeStatus") == []
    assert len(cluster.store.blocks) == 1


async def test_a_block_that_is_taken_back_is_a_sign_of_life(cluster):
    """The agent confirms a marked block that its pods use; everything is counted anew."""
    await cluster.look()
    await cluster.look(GRACE_S + 1)
    (marked,) = [b for b in cluster.store.blocks if b.node == "gone"]
    await cluster.store.update_block(replace(marked, state=BlockState.CONFIRMED))

    assert (await cluster.look(GRACE_S - 1))["gone"] is BlockState.CONFIRMED
    assert (await cluster.look(GRACE_S - 1))["gone"] is BlockState.CONFIRMED


async def back_in_between(cluster: Cluster, how: str) -> list[BlockState]:
    """A block comes back between the look that would delete it and the deletion: its node confirms
    it (another version), or makes it again (another uid). The states of that CIDR afterwards."""
    await cluster.look()
    await cluster.look(GRACE_S + 1)
    before = await cluster.store.snapshot()
    (marked,) = [b for b in cluster.store.blocks if b.node == "gone"]
    if how == "confirmed":
        await cluster.store.update_block(replace(marked, state=BlockState.CONFIRMED))
    else:
        await cluster.store.delete_block(marked)
        await cluster.store.create_block(GONE)
    cluster.now_s += GRACE_S + 1
    await cluster.collector.look(before, [])
    return [b.state for b in cluster.store.blocks if b.cidr == GONE.cidr]


@pytest.mark.parametrize("how", ["confirmed", "made again"])
async def test_a_block_that_comes_back_after_the_look_is_kept(how):
    """The deletion names version and uid of what was looked at, and the store compares."""
    assert await back_in_between(Cluster(), how) == [BlockState.CONFIRMED]


@pytest.mark.parametrize("how", ["confirmed", "made again"])
async def test_control_a_block_that_comes_back_is_lost_in_a_store_that_compares_nothing(how):
    """Without the comparison the same story must lose it, or the one above proves nothing."""
    assert await back_in_between(Cluster(CarelessDatastore), how) == []


async def test_a_node_object_that_comes_back_ends_it(cluster):
    """Also between the snapshot and the write: the store itself is asked once more."""
    await cluster.look()
    snapshot = await cluster.store.snapshot()
    await cluster.store.create(NodeResource(Meta("gone")))
    cluster.now_s += GRACE_S + 1

    assert await cluster.collector.look(snapshot, []) == []
    assert all(b.state is BlockState.CONFIRMED for b in cluster.store.blocks)


async def test_half_knowledge_and_lost_races_write_nothing(cluster):
    """A snapshot out of sync proves nothing; a block that changed meanwhile is left alone."""
    await cluster.look()
    cluster.now_s += GRACE_S + 1
    snapshot = await cluster.store.snapshot()
    await cluster.collector.look(replace(snapshot, in_sync=False), [])
    assert all(b.state is BlockState.CONFIRMED for b in cluster.store.blocks)
    cluster.store.conflict_next("update_block")
    assert await cluster.collector.look(snapshot, []) == []
    assert await cluster.collector.look(snapshot, [], is_elected=lambda: False) == []

    assert all(b.state is BlockState.CONFIRMED for b in cluster.store.blocks)


async def test_a_collector_that_has_just_been_elected_counts_from_then(cluster):
    """Times that another one, or another machine, wrote are no evidence."""
    await cluster.look()
    cluster.collector.forget()

    assert (await cluster.look(GRACE_S + 1))["gone"] is BlockState.CONFIRMED
