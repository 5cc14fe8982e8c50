"""What is counted around the Fib port, with the real loop over a fake kernel."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

from bgp.paths import Origin, Path
from cni.ipam.block import Block, BlockState
from routing.datastore.snapshot import (
    BGPConfigurationResource,
    BGPPeerResource,
    BlockResource,
    IPPoolResource,
    Meta,
    NodeResource,
)
from routing.links import LinkState
from routing.metrics.fib_tally import FibTally
from routing.reconcile import Reconciler
from routing.routes import METRIC, PROTOCOL, NextHop
from tests.fakes.blocks import FakeBlocks
from tests.fakes.edge import FakeEdge
from tests.fakes.kernel import FakeFib, FakeWiring
from tests.fakes.speaker import FakeSpeaker, FakeWorld
from tests.fakes.store import FakeDatastore

TOR = ip_address("172.30.0.0")
BLOCK = ip_network("10.244.1.0/26")
REMOTE = ip_network("10.244.2.0/26")


class Node:
    """A loop whose Fib is counted, and an UPDATE that comes when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.kernel = FakeFib(
            {
                "lo": LinkState("lo", 1, True, 65536, (ip_interface("127.0.0.1/8"),)),
                "uplink0": LinkState("uplink0", 2, True, 1500, (ip_interface("172.30.0.1/31"),)),
            }
        )
        store = FakeDatastore(
            IPPoolResource(Meta("pods"), ip_network("10.244.0.0/16"), 26),
            NodeResource(Meta("n1"), (ip_address("172.30.0.1"),), asn=64601),
            BGPPeerResource(Meta("tor"), TOR, 64512),
            BGPConfigurationResource(Meta("default")),
            BlockResource(Meta("10-244-1-0-26"), Block(BLOCK, "pods", "n1", BlockState.CONFIRMED)),
        )
        self.world = FakeWorld()
        self.speaker = FakeSpeaker(self.world, clock=lambda: self.now_s)
        self.tally = FibTally(lambda: self.now_s)
        self.loop = Reconciler(
            node="n1",
            store=store,
            fib=self.tally.around(self.kernel),
            speaker=self.speaker,
            pod_links=FakeWiring(),
            blocks=FakeBlocks(),
            edge=FakeEdge(),
            clock=lambda: self.now_s,
        )

    async def started(self) -> Node:
        await self.speaker.start()
        await self.loop.run_pass()
        self.world.up(TOR)
        await self.loop.run_pass()
        return self

    def update(self, prefix: str) -> None:
        """An UPDATE arrives, as the agent's on_change tells."""
        self.world.send(Path(TOR, ip_network(prefix), TOR, (64512,), 1, Origin.IGP))
        self.tally.heard_update()


async def test_changes_are_counted_by_what_came_of_them():
    """The gateway and the block at the start."""
    node = await Node().started()
    assert node.tally.changes == {("create", "ok"): 2}
    assert node.tally.installed == 2
    assert node.tally.drift == {}


async def test_an_update_is_timed_to_the_kernels_acknowledgement():
    """From its arrival, however long the pass was in coming."""
    node = await Node().started()
    node.update("10.244.2.0/26")
    node.now_s += 0.03
    await node.loop.run_pass()
    histogram = node.tally.update_to_kernel.read()[()]
    assert histogram.count == 1
    assert abs(histogram.sum_s - 0.03) < 1e-9
    await node.loop.run_pass()
    assert node.tally.update_to_kernel.read()[()].count == 1


async def test_an_update_that_changes_no_route_is_not_timed():
    """And does not make a later one look slow."""
    node = await Node().started()
    node.update("192.0.2.0/24")  # in no pool: rejected
    await node.loop.run_pass()
    node.now_s += 500.0
    await node.loop.run_pass()
    node.update("10.244.2.0/26")
    node.now_s += 0.01
    await node.loop.run_pass()
    histogram = node.tally.update_to_kernel.read()[()]
    assert histogram.count == 1
    assert histogram.sum_s < 1.0


async def test_a_route_somebody_removed_is_drift_when_it_is_put_back():
    """And only then: a first installation is none."""
    node = await Node().started()
    node.update("10.244.2.0/26")
    await node.loop.run_pass()
    assert node.tally.drift == {}
    del node.kernel.table[REMOTE, METRIC]
    await node.loop.run_pass()
    assert node.tally.drift == {"create": 1}
    await node.loop.run_pass()
    assert node.tally.drift == {"create": 1}


async def test_a_route_somebody_bent_is_drift_when_it_is_bent_back():
    """A change that BGP asked for is none."""
    node = await Node().started()
    node.update("10.244.2.0/26")
    await node.loop.run_pass()
    node.kernel.table[REMOTE, METRIC] = (PROTOCOL, (NextHop("uplink0", ip_address("172.30.0.9")),))
    await node.loop.run_pass()
    assert node.tally.drift == {"replace": 1}


async def test_a_route_that_goes_and_comes_with_bgp_is_no_drift():
    """Deleted by us, created by us."""
    node = await Node().started()
    for _ in range(2):
        node.update("10.244.2.0/26")
        await node.loop.run_pass()
        node.world.unsend(TOR, REMOTE)
        await node.loop.run_pass()
    assert node.tally.drift == {}
    assert node.tally.changes["delete", "ok"] == 2
