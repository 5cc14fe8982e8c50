"""Controllers on the API: one of several works, another takes over, and kubectl shows it."""

from __future__ import annotations

import asyncio
import copy
from ipaddress import ip_address, ip_network

import pytest

from cni.ipam.block import Block, BlockState
from lab.apiserver.server import ApiDouble
from lab.apiserver.state import KINDS, Key
from routing.controller.election import Election, LeaseConflict, LeaseError
from routing.controller.kubernetes_leases import KubernetesLeases
from routing.controller.running import Controller
from routing.datastore.kubernetes import DEFAULT_NAMESPACE, KubernetesStore
from routing.datastore.snapshot import (
    BGPPeerResource,
    IPPoolResource,
    Meta,
    NodeResource,
    NodeStatusResource,
    PeerReport,
)

TOR = ip_address("192.0.2.254")
POOLS = next(kind for kind in KINDS if kind.kind == "IPPool")
EVENTS = next(kind for kind in KINDS if kind.prefix.startswith("/apis/events"))
REPORT = NodeStatusResource(
    Meta("node-a"),
    observed_at="2026-11-26T10:00:00Z",
    peers=(PeerReport("tor", TOR, 64512, "Established"),),
)


class Clock:
    """Moved by the test."""

    now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
async def api(tmp_path):
    """The double, up."""
    double = ApiDouble()
    await double.start()
    yield double
    await double.stop()


class Candidate:
    """One controller with its own store."""

    def __init__(self, store, name, clock):
        self.store = store
        self.leases = KubernetesLeases(store.server, namespace=DEFAULT_NAMESPACE)
        self.election = Election(self.leases, name="c", identity=name, clock=clock)
        self.controller = Controller(store, store, self.election, clock=clock)


@pytest.fixture
async def candidates(api, tmp_path):
    """Two of them, and their clock."""
    clock = Clock()
    kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
    stores = [await KubernetesStore.open(kubeconfig, reporter=name) for name in ("one", "two")]
    yield (
        clock,
        *(
            Candidate(store, name, clock)
            for store, name in zip(stores, ("one", "two"), strict=True)
        ),
    )
    for store in stores:
        await store.close()


async def test_one_is_elected_and_another_takes_over(api, candidates):
    """By compare-and-swap on the lease; at once when it was given back, else after its time."""
    clock, one, two = candidates
    assert await one.election.step()
    assert not await two.election.step()
    clock.now_s += 14
    await one.election.step()
    clock.now_s += 9
    assert not await two.election.step()

    await one.election.resign()
    assert await two.election.step()
    clock.now_s += 16
    assert not await one.election.step()
    clock.now_s += 16
    assert await one.election.step()
    assert not two.election.is_elected
    lease = await one.leases.get("c")
    assert lease is not None
    assert (lease.holder, lease.transitions) == ("one", 2)
    with pytest.raises(LeaseConflict):
        await two.leases.create(lease)
    await api.down()
    with pytest.raises(LeaseError):
        await two.leases.get("c")


async def test_the_elected_one_writes_how_things_stand_and_takes_back_blocks(api, candidates):
    """The other writes nothing. What is written already is not written again."""
    clock, one, two = candidates
    store = one.store
    await store.create(IPPoolResource(Meta("four"), ip_network("10.0.0.0/24"), 26))
    await store.create(NodeResource(Meta("node-a")))
    await store.create(BGPPeerResource(Meta("tor"), TOR, 64512))
    gone = await store.create_block(
        Block(ip_network("10.0.0.0/26"), "four", "gone", BlockState.CONFIRMED)
    )
    await store.put_node_status(REPORT)
    await one.election.step()
    await two.election.step()

    await two.controller.look()
    assert api.calls["patch", "bgppeers/status"] == 0
    for _ in range(3):
        await one.controller.look()
    assert api.calls["patch", "bgppeers/status"] == 1
    status = await store.get_status("BGPPeer", "tor")
    assert status.columns == {"nodes": 1, "established": "1/1"}
    assert {c.type: c.status.value for c in status.conditions}["Ready"] == "True"
    assert (await store.get_status("IPPool", "four")).columns["blocks"] == 1

    for _ in range(2):
        clock.now_s += 901
        await one.election.step()
        await one.controller.look()
        await one.controller.look()
    assert gone.cidr not in {block.cidr for block in await store.list_blocks()}
    assert (await store.get_status("IPPool", "four")).columns["blocks"] == 0


async def test_what_cannot_be_read_gets_a_condition_and_one_event(api, candidates):
    """And is ready again when it can be."""
    _, one, _ = candidates
    await one.store.create(IPPoolResource(Meta("four"), ip_network("10.0.0.0/24"), 26))
    await one.store.create(NodeResource(Meta("node-a")))
    await one.election.step()
    pool = api.state.list(POOLS, "")[0]
    good = copy.deepcopy(pool)

    async def look_until(reason):
        async with asyncio.timeout(20):
            while True:
                await one.controller.look()
                status = await one.store.get_status("IPPool", "four")
                ready = {c.type: c for c in status.conditions}.get("Ready")
                if ready is not None and ready.reason == reason:
                    return ready
                await asyncio.sleep(0.02)

    await look_until("BlocksAvailable")
    pool = api.state.list(POOLS, "")[0]
    spec = {**pool["spec"], "vxlanMode": "Always"}
    api.state.replace(Key(POOLS, "", "four"), {**pool, "spec": spec})
    ready = await look_until("Malformed")
    assert "vxlanMode" in ready.message
    await one.controller.look()
    events = [e for e in api.state.list(EVENTS, "default") if e["reason"] == "Malformed"]
    assert [("vxlanMode" in e["note"], e.get("series")) for e in events] == [(True, None)]
    pool = api.state.list(POOLS, "")[0]
    api.state.replace(Key(POOLS, "", "four"), {**pool, "spec": good["spec"]})
    await look_until("BlocksAvailable")


async def test_a_look_that_fails_is_done_at_the_next_one(api, candidates):
    """The API refuses, or is away: logged, and nothing is lost."""
    _, one, _ = candidates
    await one.store.create(NodeResource(Meta("node-a")))
    await one.store.create(BGPPeerResource(Meta("tor"), TOR, 64512))
    await one.election.step()
    api.fault(verb="patch", resource="bgppeers/status", status=500)
    await one.controller.look()
    assert (await one.store.get_status("BGPPeer", "tor")).columns == {}

    await one.controller.look()
    assert (await one.store.get_status("BGPPeer", "tor")).columns["established"] == "0/1"
