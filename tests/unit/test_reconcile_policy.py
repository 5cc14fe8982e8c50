"""The loop and the policy together, on fakes: recursion, hand-over, drain, limits, owners."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from bgp.paths import Origin, Path
from cni.ipam.block import Block, BlockState
from routing.datastore.snapshot import (
    BGPConfigurationResource,
    BGPPeerResource,
    BlockResource,
    LimitAction,
    Meta,
    NodeResource,
)
from routing.drain import DRAIN_WAIT_S, DrainPhase
from routing.handover import SETTLE_S
from routing.links import LinkState
from routing.remote import Decisions
from routing.routes import NextHop
from tests.unit.test_reconcile import BLOCK, DEFAULT, REMOTE, TOR, Node, path

GATEWAY = ip_address("172.30.0.0")
FAR = ip_address("10.0.0.2")
RR = ip_address("192.0.2.9")


@pytest.fixture
def node() -> Node:
    return Node()


def hops(node: Node, prefix=REMOTE) -> tuple[NextHop, ...] | None:
    found = node.fib.table.get((prefix, 1032))
    return None if found is None else found[1]


async def put(node: Node, resource: Any) -> None:
    """Creates or replaces."""
    kind = type(resource).__name__.removesuffix("Resource")
    node.store.remove(kind, resource.meta.name)
    await node.store.create(resource)


def reflector(**changes: Any) -> BGPPeerResource:
    return BGPPeerResource(Meta("rr"), **({"peer_ip": RR, "asn": 64601} | changes))


def reflected(prefix: str = "10.244.2.0/26", peer=RR, **changes: Any) -> Path:
    return replace(Path(peer, ip_network(prefix), FAR, (), 0, Origin.IGP), **changes)


async def with_reflector(node: Node) -> None:
    node.store.remove("BGPPeer", "tor")
    await node.store.create(reflector(source_address=ip_address("172.30.0.1")))
    await node.speaker.start()
    await node.loop.run_pass()
    node.world.up(RR)
    node.world.send(reflected())
    await node.loop.run_pass()


async def test_a_next_hop_behind_a_router_is_used_as_soon_as_there_is_a_route_to_it(node: Node):
    """Held with its reason until then, and held again when the route goes."""
    await with_reflector(node)
    assert hops(node) is None
    assert [r.reason for r in node.loop.report.desired.rejected] == ["next-hop-unreachable"]
    node.fib.add_foreign(
        ip_network("10.0.0.0/24"), protocol=4, metric=5, ifname="uplink0", gateway=GATEWAY
    )
    await node.loop.run_pass()
    assert hops(node) == (NextHop("uplink0", GATEWAY),)
    await node.loop.run_pass()
    assert hops(node) == (NextHop("uplink0", GATEWAY),)
    node.fib.delete(ip_network("10.0.0.0/24"), 5)
    await node.loop.run_pass()
    assert hops(node) is None


async def test_old_sessions_end_only_when_the_new_ones_carry_everything(node: Node):
    """ToR to reflector in one change of the store: at no pass is the route away."""
    await node.started()
    node.fib.add_foreign(
        ip_network("10.0.0.0/24"), protocol=4, metric=5, ifname="uplink0", gateway=GATEWAY
    )
    node.store.remove("BGPPeer", "tor")
    await node.store.create(reflector(source_address=ip_address("172.30.0.1")))
    await node.loop.run_pass()
    assert set(node.world.configured) == {TOR, RR}
    node.world.up(RR, end_of_rib=False)
    node.world.send(reflected())
    node.world.send(reflected("0.0.0.0/0", next_hop=ip_address("172.30.0.0")))
    await node.loop.run_pass()
    assert TOR in node.world.configured
    node.world.end_of_rib(RR)
    await node.loop.run_pass()
    await node.loop.run_pass()
    assert TOR in node.world.configured, "not before the far ends have had a moment"
    node.now_s += SETTLE_S
    await node.loop.run_pass()
    assert set(node.world.configured) == {RR}
    assert hops(node) == (NextHop("uplink0", GATEWAY),)
    assert hops(node, DEFAULT) is not None


async def test_control_a_change_in_two_steps_loses_the_route(node: Node):
    """Break before make: the peer is removed, and only then is there another; its sessions are not
    to be kept for that while."""
    await node.started()
    await put(node, BGPConfigurationResource(Meta("default"), keep_last_peers_s=0))
    node.store.remove("BGPPeer", "tor")
    await node.loop.run_pass()
    assert set(node.world.configured) == set()
    await node.loop.run_pass()
    assert hops(node) is None


async def test_the_only_peer_is_kept_for_a_while_when_it_is_deleted(node: Node):
    """Most likely nobody meant it; another that comes meanwhile takes over without a gap."""
    await node.started()
    was = hops(node)
    node.store.remove("BGPPeer", "tor")
    await node.loop.run_pass()
    assert set(node.world.configured) == {TOR}
    assert hops(node) == was
    assert node.loop.last_peers is not None
    assert node.loop.snapshot.peers == ()

    await node.store.create(reflector(source_address=ip_address("172.30.0.1")))
    await node.loop.run_pass()
    assert set(node.world.configured) == {TOR, RR}
    assert node.loop.last_peers is None


async def test_a_drained_node_says_so_withdraws_and_closes(node: Node):
    """In this order, each after a wait; what it learned stays until the session closes."""
    await node.started()
    mine = NodeResource(Meta("n1"), (ip_address("172.30.0.1"),), asn=64601)
    await put(node, replace(mine, is_drained=True))
    await node.loop.run_pass()
    assert "65535:0" in node.neighbor.holds[BLOCK].communities
    node.now_s += DRAIN_WAIT_S
    await node.loop.run_pass()
    assert node.neighbor.holds == {}
    assert hops(node) is not None
    node.now_s += DRAIN_WAIT_S
    await node.loop.run_pass()
    assert set(node.world.configured) == set()
    assert node.loop.report.desired.phase is DrainPhase.CLOSED
    await put(node, mine)
    await node.loop.run_pass()
    assert set(node.world.configured) == {TOR}
    node.world.up(TOR)
    await node.loop.run_pass()
    assert set(node.neighbor.holds) == {BLOCK}


async def test_an_agent_that_restarts_on_a_drained_node_leaves_it_drained(node: Node):
    """It does not announce everything once more."""
    await node.started()
    mine = NodeResource(Meta("n1"), (ip_address("172.30.0.1"),), asn=64601, is_drained=True)
    await put(node, mine)
    for _ in range(3):
        await node.loop.run_pass()
        node.now_s += DRAIN_WAIT_S
    node.restart()
    heard = list(node.neighbor.heard)
    await node.speaker.start()
    await node.loop.run_pass()
    assert set(node.world.configured) == set()
    assert node.neighbor.heard == heard


@pytest.mark.parametrize("action", [LimitAction.STOP_INSTALLING, LimitAction.CLOSE])
async def test_a_peer_that_sends_too_much_is_bounded(node: Node, action: LimitAction):
    """Stop: the lowest prefix stays. Close: the session ends, and stays so in the next pass."""
    await put(node, BGPPeerResource(Meta("tor"), TOR, 64512, max_prefixes=2, limit_action=action))
    await node.started()
    node.world.send(path("10.244.3.0/26"))
    await node.loop.run_pass()
    await node.loop.run_pass()
    stays = action is LimitAction.STOP_INSTALLING
    assert hops(node, ip_network("10.244.3.0/26")) is None
    assert (hops(node, DEFAULT) is not None) is stays
    assert (TOR in node.world.configured) is stays
    assert any("maxPrefixes is 2" in p for p in node.loop.report.desired.problems)
    told = [each.reason for each in node.loop.report.desired.absent]
    assert [("closed" in reason) for reason in told] == ([] if stays else [True])


async def test_a_block_that_another_owns_is_not_taken_from_a_thief(node: Node):
    """The store says n2; AS 64603 is n3's. The owner's path is used when it comes."""
    for number, asn in ((2, 64602), (3, 64603)):
        await node.store.create(
            NodeResource(Meta(f"n{number}"), (ip_address(f"172.30.0.{2 * number}"),), asn=asn)
        )
    owned = Block(REMOTE, "pods", "n2", BlockState.CONFIRMED)
    await node.store.create(BlockResource(Meta("10-244-2-0-26"), owned))
    await node.speaker.start()
    await node.loop.run_pass()
    node.world.up(TOR)
    node.world.send(replace(path(str(REMOTE)), as_path=(64512, 64603), as_path_length=2))
    await node.loop.run_pass()
    assert hops(node) is None
    assert [r.reason for r in node.loop.report.desired.rejected] == ["not-owner"]
    assert any("of n2 is announced by n3" in p for p in node.loop.report.desired.problems)
    node.world.send(replace(path(str(REMOTE)), as_path=(64512, 64602), as_path_length=2))
    await node.loop.run_pass()
    assert hops(node) == (NextHop("uplink0", TOR),)


async def test_a_link_flap_does_not_touch_the_session(node: Node):
    """Our end of it stays; ExaBGP would reset a session whose end changes."""
    node.fib.state["uplink1"] = LinkState(
        "uplink1", 9, True, 1500, (ip_interface("172.30.1.1/31"),)
    )
    tor2 = ip_address("172.30.1.0")
    await node.store.create(BGPPeerResource(Meta("tor2"), tor2, 64512))
    await node.started()
    before = node.world.configured[tor2]
    node.fib.set_link("uplink1", is_up=False)
    await node.loop.run_pass()
    assert node.world.configured[tor2] == before


async def test_the_mesh_needs_no_peer_resources(node: Node):
    """nodeToNodeMeshEnabled and another Node are enough."""
    node.store.remove("BGPPeer", "tor")
    await node.store.create(NodeResource(Meta("n2"), (ip_address("172.30.0.0"),), asn=64602))
    await put(node, BGPConfigurationResource(Meta("default"), mesh_enabled=True))
    await node.speaker.start()
    await node.loop.run_pass()
    (peer,) = node.world.configured.values()
    assert (peer.name, peer.remote_asn, peer.is_passive) == ("mesh/n2", 64602, False)
    assert [each.name for each in node.loop.peer_names] == ["mesh/n2"]


async def test_who_only_looks_has_nothing_decided_again(node, monkeypatch):
    """With 50,000 prefixes it takes the better part of a second, for each who asks; where the
    rules have changed since the last pass, it is decided on."""
    await node.started()
    await node.loop.run_pass()
    with monkeypatch.context() as nobody:
        nobody.delattr(Decisions, "all")
        seen = await node.loop.look()
    assert REMOTE in seen.desired.best
    assert seen.desired.routes == node.loop.report.desired.routes
    node.fib.state.clear()
    with monkeypatch.context() as many:
        many.setattr("routing.desired.ANEW_MAX", 0)
        many.delattr(Decisions, "all")
        seen = await node.loop.look()
    assert REMOTE in seen.desired.best, "of many, what the last pass said; the next is on its way"
    assert REMOTE not in (await node.loop.look()).desired.best
