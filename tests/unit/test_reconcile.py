"""The loop, on fakes with failure switches: order, gates, ownership, one End-of-RIB a session."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from structlog.testing import capture_logs

from bgp.paths import Origin, Path
from bgp.speaker import BgpFailure
from cni.attach import HostRouteError
from cni.attachment import Attachment
from cni.edge import EdgeError
from cni.ipam.block import Block, BlockState
from cni.podlink import PodLink
from routing.changes import changes
from routing.datastore.snapshot import (
    BGPConfigurationResource,
    BGPPeerResource,
    BlockResource,
    IPPoolResource,
    Meta,
    NodeResource,
)
from routing.links import LinkState
from routing.reconcile import Reconciler
from routing.report import STORE_OUT_OF_SYNC, PassReport
from routing.routes import METRIC, PROTOCOL, NextHop, RouteKey
from tests.fakes.bgp_world import eventually
from tests.fakes.blocks import FakeBlocks
from tests.fakes.edge import FakeEdge
from tests.fakes.kernel import FakeFib, FakeWiring
from tests.fakes.speaker import FakeSpeaker, FakeWorld
from tests.fakes.store import FakeDatastore

TOR = ip_address("172.30.0.0")
BLOCK = ip_network("10.244.1.0/26")
REMOTE = ip_network("10.244.2.0/26")
DEFAULT = ip_network("0.0.0.0/0")


class Node:
    """One reconciler over fakes, with a clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.fib = FakeFib(
            {
                "lo": LinkState("lo", 1, True, 65536, (ip_interface("127.0.0.1/8"),)),
                "uplink0": LinkState("uplink0", 2, True, 1500, (ip_interface("172.30.0.1/31"),)),
                "s32pod": LinkState("s32pod", 3, True, 1500, ()),
            }
        )
        self.store = FakeDatastore(
            IPPoolResource(Meta("pods"), ip_network("10.244.0.0/16"), 26),
            NodeResource(Meta("n1"), (ip_address("172.30.0.1"),), asn=64601),
            BGPPeerResource(Meta("tor"), TOR, 64512),
            BGPConfigurationResource(Meta("default"), import_allow=(DEFAULT,)),
            BlockResource(Meta("10-244-1-0-26"), Block(BLOCK, "pods", "n1", BlockState.CONFIRMED)),
        )
        self.world = FakeWorld()
        self.wiring = FakeWiring()
        self.edge = FakeEdge()
        self.restart()

    def restart(self) -> None:
        """A new agent process: nothing remembered, everything read back."""
        self.blocks = FakeBlocks()
        self.speaker = FakeSpeaker(self.world, clock=lambda: self.now_s)
        self.loop = Reconciler(
            node="n1",
            store=self.store,
            fib=self.fib,
            speaker=self.speaker,
            pod_links=self.wiring,
            blocks=self.blocks,
            edge=self.edge,
            clock=lambda: self.now_s,
        )

    async def started(self) -> Node:
        """Converged: session up, one remote block and a default route learned."""
        await self.speaker.start()
        await self.loop.run_pass()
        self.world.send(path("10.244.2.0/26"))
        self.world.send(path("0.0.0.0/0"))
        self.world.up(TOR)
        await self.loop.run_pass()
        await self.loop.run_pass()
        return self

    def prefixes(self) -> set[str]:
        """Ours in the kernel."""
        return {
            str(prefix) for (prefix, _), (protocol, _) in self.fib.table.items() if protocol == 132
        }

    @property
    def neighbor(self):
        return self.world.neighbor(TOR)


def path(prefix: str) -> Path:
    return Path(TOR, ip_network(prefix), TOR, (64512,), 1, Origin.IGP)


@pytest.fixture
def node() -> Node:
    return Node()


async def test_a_node_converges_from_nothing(node: Node):
    """Gateway, block, remote block and default route in the kernel; the block announced."""
    await node.started()
    assert node.prefixes() == {"169.254.1.1/32", str(BLOCK), str(REMOTE), str(DEFAULT)}
    assert set(node.neighbor.holds) == {BLOCK}
    assert node.loop.report.failures == ()


async def test_a_second_pass_changes_nothing(node: Node):
    """Level-triggered and idempotent: the neighbour hears nothing more."""
    await node.started()
    heard, table = list(node.neighbor.heard), dict(node.fib.table)
    await node.loop.run_pass()
    assert node.neighbor.heard == heard
    assert node.fib.table == table


async def test_end_of_rib_comes_once_a_session_and_after_our_routes(node: Node):
    """A helper sweeps our stale routes at End-of-RIB: what is not there by then is lost."""
    await node.started()
    words = [line.split()[0] for line in node.neighbor.heard]
    assert words[0] == "announce"
    assert words[1:]
    assert all("end" in line.lower() for line in node.neighbor.heard[1:])
    once = len(node.neighbor.heard)
    await node.loop.run_pass()
    assert len(node.neighbor.heard) == once
    node.now_s += 50
    node.world.down(TOR)
    await node.loop.run_pass()
    node.world.up(TOR)
    await node.loop.run_pass()
    assert len(node.neighbor.heard) > once


async def test_a_block_whose_route_failed_is_not_announced(node: Node):
    """It would attract traffic that this node sends back up its default route."""
    await node.speaker.start()
    node.fib.add_foreign(BLOCK, protocol=3)
    node.fib.add_foreign(BLOCK, protocol=3, metric=1031)
    node.world.up(TOR)
    await node.loop.run_pass()
    assert await node.loop.run_pass()
    assert node.neighbor.holds == {}
    assert not any("end" in line.lower() for line in node.neighbor.heard)
    assert any("10.244.1.0/26" in failure.key for failure in node.loop.report.failures)
    assert node.fib.table[BLOCK, 1032][0] == 3


async def test_a_store_that_is_away_deletes_and_withdraws_nothing(node: Node):
    """Last-known-good stays in the kernel and with the neighbour; held things name their gate."""
    await node.started()
    node.store.remove("Block", next(r.meta.name for r in await node.store.list("Block")))
    node.store.fail_next("snapshot", times=3)
    for _ in range(3):
        assert await node.loop.run_pass()
    assert str(BLOCK) in node.prefixes()
    assert set(node.neighbor.holds) == {BLOCK}
    assert "unreachable" in (node.loop.store_error or "")
    await node.loop.run_pass()
    assert str(BLOCK) not in node.prefixes()
    assert node.neighbor.holds == {}


async def test_an_agent_that_never_saw_the_store_touches_no_route(node: Node):
    """Killed, restarted, store away: the kernel and the neighbour keep all they have."""
    await node.started()
    before, held = node.prefixes(), dict(node.neighbor.holds)
    node.restart()
    await node.speaker.start()
    node.store.fail_next("snapshot", times=2)
    await node.loop.run_pass()
    await node.loop.run_pass()
    assert node.prefixes() == before
    assert node.neighbor.holds == held
    assert {h.gate for h in node.loop.report.held} == {"store-out-of-sync"}


async def test_learned_routes_wait_for_end_of_rib_after_a_restart(node: Node):
    """A new agent has no paths yet; the kernel keeps the old routes until the peer said all."""
    await node.started()
    node.world.down(TOR)
    node.neighbor.sends.pop(DEFAULT)
    node.restart()
    await node.speaker.start()
    await node.loop.run_pass()
    assert {str(REMOTE), str(DEFAULT)} <= node.prefixes()
    node.world.up(TOR, end_of_rib=False)
    await node.loop.run_pass()
    assert {str(REMOTE), str(DEFAULT)} <= node.prefixes()
    assert {h.gate for h in node.loop.report.held} == {f"no-end-of-rib-from-{TOR}"}
    node.world.end_of_rib(TOR)
    await node.loop.run_pass()
    assert str(REMOTE) in node.prefixes()
    assert str(DEFAULT) not in node.prefixes()


async def test_a_peer_that_says_all_while_a_pass_computes_loses_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch
):
    """Agent and speaker start together: the session is read back after a pass has looked at its
    paths, and before it looks at its gates. That pass may not go by what it has not seen."""
    await node.started()
    node.world.down(TOR)
    node.restart()
    await node.speaker.start()
    ways_to = node.fib.ways_to

    async def after_the_paths_were_taken(destinations):
        if not node.neighbor.is_up:
            node.world.up(TOR)
        return await ways_to(destinations)

    monkeypatch.setattr(node.fib, "ways_to", after_the_paths_were_taken)
    await node.loop.run_pass()
    assert node.neighbor.is_up
    assert {str(REMOTE), str(DEFAULT)} <= node.prefixes()
    await node.loop.run_pass()
    assert {str(REMOTE), str(DEFAULT)} <= node.prefixes()
    assert not node.loop.report.held


async def test_a_peer_that_never_comes_back_is_not_waited_for_for_ever(node: Node):
    """After the restart time its routes go."""
    await node.started()
    node.world.down(TOR)
    node.restart()
    await node.speaker.start()
    await node.loop.run_pass()
    assert str(REMOTE) in node.prefixes()
    node.now_s += 121
    await node.loop.run_pass()
    assert str(REMOTE) not in node.prefixes()


async def test_a_session_that_ends_takes_its_routes_at_once(node: Node):
    """The gate is for the time after a start, not for every failure later."""
    await node.started()
    node.world.down(TOR)
    await node.loop.run_pass()
    assert node.prefixes() == {"169.254.1.1/32", str(BLOCK)}


async def test_learned_routes_count_while_they_are_kept(node: Node):
    """For STATUS: wanted ones, and those a new agent keeps until its peer has spoken."""
    seen = [node.loop.report.has_learned_routes]
    await node.started()
    seen.append(node.loop.report.has_learned_routes)
    node.restart()
    await node.speaker.start()
    await node.loop.run_pass()
    seen.append(node.loop.report.has_learned_routes)
    node.world.down(TOR)
    node.now_s += 121
    await node.loop.run_pass()
    await node.loop.run_pass()
    seen.append(node.loop.report.has_learned_routes)
    assert seen == [False, True, True, False]


async def test_a_route_held_for_the_stores_sake_is_no_sign_of_life(node: Node):
    """Its session is gone; only that the store is away keeps it in the kernel."""
    await node.started()
    node.world.down(TOR)
    node.store.fail_next("snapshot")
    await node.loop.run_pass()
    assert str(REMOTE) in node.prefixes()
    assert {h.gate for h in node.loop.report.held} == {STORE_OUT_OF_SYNC}
    assert not node.loop.report.has_learned_routes


async def test_forget_deletes_ours_wherever_it_leads_and_nothing_else(node: Node):
    """One delete an address; a refusal of the kernel is told."""
    link = pod_link()
    prefix = ip_network("10.244.1.5/32")
    node.fib.table[prefix, METRIC] = (PROTOCOL, (NextHop("lo"),))
    node.fib.add_foreign(prefix, protocol=4, metric=7)
    node.fib.fail_next("delete", OSError(16, "busy"))
    with pytest.raises(HostRouteError, match=r"10\.244\.1\.5/32: .*busy"):
        await node.loop.forget(link.attachment, link.addresses)
    await node.loop.forget(link.attachment, ())
    assert (prefix, METRIC) in node.fib.table
    await node.loop.forget(link.attachment, link.addresses)
    await node.loop.forget(link.attachment, link.addresses)
    assert list(node.fib.table) == [(prefix, 7)]


async def test_foreign_routes_are_never_touched(node: Node):
    """Other protocol, same prefix and metric: named, and ours in front; another metric: nothing."""
    node.fib.add_foreign(REMOTE, protocol=4)
    node.fib.add_foreign(ip_network("192.0.2.0/24"), protocol=4, metric=5)
    await node.started()
    assert node.fib.table[REMOTE, 1032][0] == 4
    assert node.fib.table[REMOTE, 1031][0] == 132
    assert node.fib.table[ip_network("192.0.2.0/24"), 5][0] == 4
    assert not node.loop.report.failures
    assert "protocol 4" in node.loop.report.contested[RouteKey(REMOTE)]


async def test_a_contested_route_is_logged_once_and_tried_again_after_a_failure(node: Node):
    """However often the other program writes its own; and again when it is another's."""
    node.fib.add_foreign(REMOTE, protocol=4)
    with capture_logs() as logged:
        await node.started()
        for _ in range(5):
            node.fib.add_foreign(REMOTE, protocol=4)
            assert not await node.loop.run_pass()
        assert [e["prefix"] for e in logged if e["event"] == "route_contested"] == [str(REMOTE)]
        node.fib.add_foreign(REMOTE, protocol=12)
        await node.loop.run_pass()
    assert len([e for e in logged if e["event"] == "route_contested"]) == 2
    node.fib.delete(REMOTE)
    node.fib.fail_next("retreat", OSError(5, "no"))
    assert await node.loop.run_pass()
    assert not await node.loop.run_pass()
    assert node.loop.report.contested == {}
    assert node.fib.table[REMOTE, 1031][0] == 132


@pytest.mark.parametrize("what", ["read", "links"])
async def test_a_kernel_that_cannot_be_read_changes_nothing(node: Node, what: str):
    """No read-back, no conclusions."""
    await node.started()
    before, heard = dict(node.fib.table), list(node.neighbor.heard)
    node.world.unsend(TOR, REMOTE)
    node.fib.fail_next(what, OSError(5, "no"))
    assert await node.loop.run_pass()
    assert (node.fib.table, node.neighbor.heard) == (before, heard)
    assert not await node.loop.run_pass()
    assert str(REMOTE) not in node.prefixes()


async def test_one_failing_route_stops_no_other(node: Node):
    """It is named, and the next pass brings it."""
    node.fib.fail_next("create", OSError(12, "no memory"))
    await node.speaker.start()
    assert await node.loop.run_pass()
    assert [f.operation for f in node.loop.report.failures] == ["create"]
    await node.started()
    assert not node.loop.report.failures


@pytest.mark.parametrize("operation", ["announce", "withdraw"])
async def test_what_exabgp_refuses_is_tried_again(node: Node, operation: str):
    """One refusal is a failure of the pass; the next pass brings what is wanted."""
    await node.started()
    more = ip_network("10.244.9.0/26")
    if operation == "withdraw":
        node.store.remove("Block", next(r.meta.name for r in await node.store.list("Block")))
    else:
        await node.store.create_block(Block(more, "pods", "n1", BlockState.CONFIRMED))
    node.speaker.fail_next(operation, BgpFailure("refused"))
    assert await node.loop.run_pass()
    assert set(node.neighbor.holds) == {BLOCK}
    assert not await node.loop.run_pass()
    assert set(node.neighbor.holds) == (set() if operation == "withdraw" else {BLOCK, more})


async def test_a_lost_link_keeps_the_session_in_the_configuration(node: Node):
    """A flap must not take the peer out of ExaBGP: graceful restart would be lost with it."""
    await node.started()
    node.fib.set_link("uplink0", is_up=False)
    await node.loop.run_pass()
    assert TOR in node.world.configured
    node.fib.set_link("uplink0", is_up=True)
    await node.loop.run_pass()
    assert str(REMOTE) in node.prefixes()


def pod_link() -> PodLink:
    return PodLink(Attachment("net", "c" * 64, "eth0"), (ip_address("10.244.1.5"),), 1500)


async def test_ensure_writes_the_pod_route_without_a_pass(node: Node):
    """ADD waits for the kernel's word, not for the loop."""
    link = pod_link()
    node.fib.state[link.host_ifname] = LinkState(link.host_ifname, 9, True, 1500, ())
    await node.loop.ensure(link)
    await node.loop.ensure(link)
    assert "10.244.1.5/32" in node.prefixes()
    assert await node.loop.check(link) == []
    node.fib.delete(ip_network("10.244.1.5/32"))
    assert await node.loop.check(link) == [
        f"host route 10.244.1.5/32 dev {link.host_ifname} is missing"
    ]


async def test_a_pass_under_way_does_not_delete_what_ensure_has_just_written(
    node: Node, monkeypatch: pytest.MonkeyPatch
):
    """The pass saw the old link's route and no link; meanwhile an ADD rebuilt both."""
    await node.started()
    link, key = pod_link(), RouteKey(ip_network("10.244.1.5/32"))
    node.fib.state[link.host_ifname] = LinkState(link.host_ifname, 9, True, 1500, ())
    await node.loop.ensure(link)
    set_peers = node.speaker.set_peers

    async def meanwhile(peers):
        node.fib.delete(key.prefix)
        await node.loop.ensure(link)
        await set_peers(peers)

    with monkeypatch.context() as patch:
        patch.setattr(node.speaker, "set_peers", meanwhile)
        await node.loop.run_pass()
    assert str(key.prefix) in node.prefixes()
    await node.loop.run_pass()
    assert str(key.prefix) not in node.prefixes()


async def test_ensure_says_who_holds_the_address(node: Node):
    """Another route to the same address: refused, not replaced."""
    link = pod_link()
    node.fib.state[link.host_ifname] = LinkState(link.host_ifname, 9, True, 1500, ())
    node.fib.add_foreign(ip_network("10.244.1.5/32"), protocol=4)
    node.fib.add_foreign(ip_network("10.244.1.5/32"), protocol=4, metric=1031)
    with pytest.raises(HostRouteError, match=r"10\.244\.1\.5/32"):
        await node.loop.ensure(link)
    other = RouteKey(ip_network("10.244.1.5/32"))
    node.fib.table[other.prefix, other.metric] = (132, (NextHop("s32pod"),))
    node.fib.fail_next("delete", OSError(16, "busy"), times=9)
    await node.loop.run_pass()
    with pytest.raises(HostRouteError, match="s32pod"):
        await node.loop.ensure(link)


async def test_ensure_refuses_an_address_that_the_kernel_sends_elsewhere(node: Node):
    """A better metric, or the address on the node itself: ours would be written and not used."""
    link = pod_link()
    node.fib.state[link.host_ifname] = LinkState(link.host_ifname, 9, True, 1500, ())
    node.fib.add_foreign(ip_network("10.244.1.5/32"), 4, 0, ifname="s32pod")
    with pytest.raises(HostRouteError, match=r"10\.244\.1\.5 is routed already: dev s32pod"):
        await node.loop.ensure(link)
    assert "10.244.1.5/32" not in node.prefixes()
    node.fib.delete(ip_network("10.244.1.5/32"), 0)
    own = LinkState("lo", 1, True, 65536, (ip_interface("10.244.1.5/32"),))
    node.fib.state["lo"] = own
    with pytest.raises(HostRouteError, match="dev lo"):
        await node.loop.ensure(link)
    node.fib.state["lo"] = replace(own, addresses=())
    await node.loop.ensure(link)


@pytest.mark.parametrize("verb", ["ensure", "forget", "check"])
async def test_a_kernel_that_does_not_answer_is_a_host_routes_error(node: Node, verb: str):
    """CNI tells its runtime which part failed; any other exception would be taken for a bug."""
    link = pod_link()
    node.fib.fail_next("read" if verb == "check" else "apply", OSError(105, "no buffer space"))
    of_what = (link.attachment, link.addresses) if verb == "forget" else (link,)
    with pytest.raises(HostRouteError, match=f"{link.host_ifname}: no buffer space"):
        await getattr(node.loop, verb)(*of_what)


async def test_kicks_coalesce_and_cancellation_ends_the_loop(node: Node):
    """Many kicks, few passes; SIGTERM in the middle of them is not lost."""
    await node.started()
    before = node.loop.report.passes
    running = asyncio.create_task(node.loop.run())
    for _ in range(200):
        node.loop.kick("test")
    await node.loop.next_pass()
    assert 1 <= node.loop.report.passes - before <= 5
    node.loop.kick("test")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_busy_node_is_resynchronised_by_the_clock(node: Node):
    """Empty blocks are looked at every resync, however many kicks come in between; not oftener."""
    await node.started()
    assert node.blocks.release_calls == 0
    for _ in range(10):
        node.now_s += 2.9
        await node.loop.run_pass()
    assert node.blocks.release_calls == 0
    node.now_s += 2
    await node.loop.run_pass()
    await node.loop.run_pass()
    assert node.blocks.release_calls == 1
    node.store.fail_next("snapshot")
    node.now_s += 31
    await node.loop.run_pass()
    assert node.blocks.release_calls == 1


async def test_the_pods_edge_is_kept_whatever_else_fails(node: Node):
    """Rules that somebody flushed are back after a pass, also while the store is away."""
    await node.started()
    assert node.loop.edge_error is None
    node.edge.flush()
    node.store.fail_next("snapshot")
    await node.loop.run_pass()
    assert node.edge.ensure() == []
    node.edge.fail_next("ensure", EdgeError("no nft"))
    assert await node.loop.run_pass()
    assert node.loop.edge_error == "no nft"


# -- the short way for UPDATEs ---------------------------------------------------------------


async def test_an_update_takes_the_short_way_and_a_pass_finds_nothing_left(node: Node):
    """The route is there, the report knows it, the store was not read; and it is the same table."""
    await node.started()
    passes, reads = node.loop.report.passes, len(node.blocks.seen)
    running = asyncio.create_task(node.loop.run())
    try:
        node.world.send(path("10.244.3.0/26"))
        node.world.unsend(TOR, REMOTE)
        node.loop.kick(f"bgp:update:{TOR}")
        await eventually(lambda: "10.244.3.0/26" in node.prefixes(), what="the new route")
        await eventually(lambda: str(REMOTE) not in node.prefixes(), what="the old one is gone")
        assert (node.loop.report.passes, len(node.blocks.seen)) == (passes, reads)
        assert RouteKey(ip_network("10.244.3.0/26")) in node.loop.report.desired.routes
        assert RouteKey(REMOTE) not in node.loop.report.desired.routes
    finally:
        running.cancel()
    table = dict(node.fib.table)
    short = node.loop.report.desired
    await node.loop.run_pass()
    assert node.fib.table == table
    assert node.loop.report.desired.routes == short.routes
    assert node.loop.report.desired.best == short.best


async def test_a_table_that_comes_whole_is_learned_in_parts(
    node: Node, monkeypatch: pytest.MonkeyPatch
):
    """No part is left out, and it stays a short way."""
    monkeypatch.setattr("routing.reconcile.LEARNED_AT_ONCE", 2)
    await node.started()
    passes = node.loop.report.passes
    many = {f"10.244.{number}.0/26" for number in range(3, 10)}
    running = asyncio.create_task(node.loop.run())
    try:
        for each in many:
            node.world.send(path(each))
        node.loop.kick(f"bgp:update:{TOR}")
        await eventually(lambda: many <= node.prefixes(), what="all routes")
        assert node.loop.report.passes == passes
    finally:
        running.cancel()


async def test_a_loss_between_two_parts_is_not_undone_by_the_next(
    node: Node, monkeypatch: pytest.MonkeyPatch
):
    """What the rest of the parts says is of before the loss: only a whole pass can tell."""
    monkeypatch.setattr("routing.reconcile.LEARNED_AT_ONCE", 1)
    await node.started()
    passes = node.loop.report.passes
    written: list[str] = []
    apply = node.fib.apply

    async def apply_and_lose(delta):
        written.extend(str(key.prefix) for key in delta.create)
        failures = await apply(delta)
        if len(written) == 1:
            node.world.down(TOR)
            node.loop.kick(f"bgp:session_down:{TOR}")
        return failures

    monkeypatch.setattr(node.fib, "apply", apply_and_lose)
    running = asyncio.create_task(node.loop.run())
    try:
        for number in range(3, 10):
            node.world.send(path(f"10.244.{number}.0/26"))
        node.loop.kick(f"bgp:update:{TOR}")
        await eventually(lambda: node.loop.report.passes > passes, what="a whole pass")
        assert len(written) == 1, written
    finally:
        running.cancel()


async def test_whatever_else_has_happened_makes_a_whole_pass(node: Node):
    """A kick from the store or the kernel beside the UPDATE's."""
    await node.started()
    passes = node.loop.report.passes
    running = asyncio.create_task(node.loop.run())
    try:
        node.world.send(path("10.244.3.0/26"))
        node.loop.kick(f"bgp:update:{TOR}")
        node.loop.kick("store")
        await eventually(lambda: node.loop.report.passes > passes, what="a whole pass")
        assert "10.244.3.0/26" in node.prefixes()
    finally:
        running.cancel()


async def test_the_short_way_is_in_the_journal_as_a_pass_is(node: Node):
    """What came and went, each with its reason; and the next whole pass does not say it again."""
    told: list[tuple[str, str]] = []

    def note(before: PassReport, after: PassReport) -> None:
        entries = changes(before, after, {}, {})
        told.extend((entry["action"], entry.get("prefix", "")) for entry in entries)

    await node.started()
    node.loop._on_report = note
    running = asyncio.create_task(node.loop.run())
    try:
        node.world.send(path("10.244.3.0/26"))
        node.world.send(path("198.51.100.0/24"))
        node.world.unsend(TOR, REMOTE)
        node.loop.kick(f"bgp:update:{TOR}")
        await eventually(lambda: len(told) >= 3, what="three entries")
    finally:
        running.cancel()
    assert sorted(told) == [
        ("created", "10.244.3.0/26"),
        ("deleted", str(REMOTE)),
        ("rejected", "198.51.100.0/24"),
    ]
    await node.loop.run_pass()
    assert len(told) == 3


async def test_what_fails_on_the_short_way_is_told_and_retried_by_a_whole_pass(node: Node):
    """A refusal of the kernel must not be lost with the short cut."""
    await node.started()
    passes = node.loop.report.passes
    node.fib.fail_next("create", OSError("disturbed"))
    running = asyncio.create_task(node.loop.run())
    try:
        node.world.send(path("10.244.3.0/26"))
        node.loop.kick(f"bgp:update:{TOR}")
        await eventually(lambda: node.loop.report.passes > passes, what="a whole pass")
        assert "10.244.3.0/26" in node.prefixes()
    finally:
        running.cancel()


async def test_a_next_hop_that_went_with_its_session_is_left_before_anything_else(node: Node):
    """Even when the pass then fails to read the kernel: traffic must not wait for that."""
    other = ip_address("172.30.0.9")
    await node.started()
    node.fib.table[REMOTE, METRIC] = (
        PROTOCOL,
        (NextHop("uplink0", TOR), NextHop("uplink0", other)),
    )
    node.speaker.take_lost_next_hops()
    node.world.down(TOR)
    node.fib.fail_next("read", OSError("disturbed"))
    assert await node.loop.run_pass()
    assert node.fib.table[REMOTE, METRIC][1] == (NextHop("uplink0", other),)


async def test_a_lost_session_is_turned_away_from_while_a_pass_is_under_way(node: Node):
    """To what another peer says, of worse preference; no pass is waited for."""
    tor2, other = ip_address("172.30.1.0"), ip_address("172.30.1.9")
    node.fib.state["uplink1"] = LinkState(
        "uplink1", 4, True, 1500, (ip_interface("172.30.1.1/24"),)
    )
    await node.started()
    await node.store.create(BGPPeerResource(Meta("tor2"), tor2, 64512))
    await node.loop.run_pass()
    node.world.up(tor2)
    for prefix in (REMOTE, DEFAULT):
        node.world.neighbor(tor2).sends[prefix] = Path(
            tor2, prefix, other, (64512, 64999), 2, Origin.IGP
        )
    await node.loop.run_pass()
    assert node.fib.table[REMOTE, METRIC][1] == (NextHop("uplink0", TOR),), "the shorter path"
    node.speaker.take_lost_peers()
    node.speaker.take_lost_next_hops()
    watching = asyncio.create_task(node.loop.watch_losses())
    try:
        node.world.down(TOR)
        node.loop.kick(f"bgp:session_down:{TOR}")
        await eventually(
            lambda: node.fib.table[REMOTE, METRIC][1] == (NextHop("uplink1", other),),
            what="the other next hop, without a pass",
        )
    finally:
        watching.cancel()
