"""Peers that are gone all at once are kept for a while; one of several is not."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from routing.datastore.cache_format import decode, encode
from routing.datastore.snapshot import (
    BGPConfigurationResource,
    BGPFilterResource,
    BGPPeerResource,
    IPPoolResource,
    Meta,
    NodeResource,
    Password,
    SecretKeyRef,
    Snapshot,
)
from routing.last_peers import with_last_peers
from routing.topology import sessions_for

REF = SecretKeyRef("bgp", "key")
TORS = tuple(
    BGPPeerResource(
        Meta(name), ip_address(address), 64512, password=REF, filters=("only-pools",)
    )
    for name, address in (("tor1", "192.0.2.1"), ("tor2", "192.0.2.2"))
)  # fmt: skip
NODES = (
    NodeResource(Meta("n1", labels={"rack": "a"}), (ip_address("10.0.0.1"),), 64601),
    NodeResource(Meta("rr", labels={"role": "rr"}), (ip_address("10.0.0.9"),), 64601),
)
WHOLE = Snapshot(
    pools=(IPPoolResource(Meta("four"), ip_network("10.244.0.0/16"), 26),),
    nodes=NODES,
    peers=TORS,
    filters=(BGPFilterResource(Meta("only-pools")),),
    passwords={REF: Password("x")},
    in_sync=True,
)
RR = BGPPeerResource(Meta("to-rr"), node_selector="rack == 'a'", peer_selector="role == 'rr'")


def step(found, before=WHOLE, wall_s=1000.0, node="n1"):
    """(snapshot, kept) of one pass."""
    return with_last_peers(found, before, node=node, wall_s=wall_s)


def names(snapshot, node="n1"):
    """The sessions of a node."""
    return [each.name for each in sessions_for(snapshot, node).sessions]


def test_all_gone_at_once_are_kept_for_ten_minutes_and_not_longer():
    """Whole: with passwords and filters; from pass to pass the same time runs."""
    empty = Snapshot(nodes=NODES, in_sync=True)
    kept, why = step(empty)
    assert names(kept) == ["tor1", "tor2"]
    assert (kept.filters, kept.passwords, kept.pools) == (
        WHOLE.filters, WHOLE.passwords, WHOLE.pools,
    )  # fmt: skip
    assert why.sessions == ("tor1", "tor2")
    assert "no BGPPeer any more" in str(why)
    assert "10 min 00 s" in str(why)

    later, why = step(empty, kept, wall_s=1599.0)
    assert names(later) == ["tor1", "tor2"]
    assert why.left_s == 1.0
    over, why = step(empty, later, wall_s=1600.0)
    assert (over, why) == (empty, None)
    assert step(empty, over, wall_s=1601.0) == (empty, None)


def test_the_time_outlives_the_agent():
    """The cache holds the peers and since when they are gone; a clock set back ends nothing."""
    empty = Snapshot(nodes=NODES, in_sync=True)
    kept, _ = step(empty)
    raw = encode(kept, node="n1", boot_id="b")
    recalled = replace(decode(raw, node="n1", boot_id="b"), passwords=kept.passwords)
    assert step(empty, recalled, wall_s=1300.0)[1].left_s == 300.0
    assert step(empty, recalled, wall_s=500.0)[1].left_s == 600.0


def test_one_of_several_goes_at_once_and_so_does_one_that_is_replaced():
    """What the store says is done where it leaves a peer."""
    one = replace(WHOLE, peers=TORS[:1])
    assert step(one) == (one, None)
    other = replace(WHOLE, peers=(replace(TORS[0], meta=Meta("new")),))
    assert step(other) == (other, None)
    meshed = replace(
        WHOLE, peers=(), bgp=BGPConfigurationResource(Meta("default"), mesh_enabled=True)
    )
    assert step(meshed) == (meshed, None)


def test_zero_seconds_say_that_it_is_meant():
    """Before, or while they are kept."""
    bgp = BGPConfigurationResource(Meta("default"), keep_last_peers_s=0)
    meant = Snapshot(nodes=NODES, in_sync=True, bgp=bgp)
    assert step(meant) == (meant, None)
    kept, _ = step(Snapshot(nodes=NODES, in_sync=True))
    assert step(meant, kept) == (meant, None)


def test_peers_that_are_back_end_it():
    """And a second accident has its own ten minutes."""
    empty = replace(WHOLE, peers=())
    kept, _ = step(empty)
    assert step(WHOLE, kept, wall_s=1500.0) == (WHOLE, None)
    assert step(empty, WHOLE, wall_s=1500.0)[1].left_s == 600.0


@pytest.mark.parametrize("node", ["n1", "rr"])
def test_a_selector_that_matches_no_node_any_more_keeps_its_sessions(node):
    """The label of the reflector goes in an upgrade, at both ends; also beside another peer."""
    before = replace(WHOLE, peers=(RR, *TORS))
    unlabelled = replace(NODES[1], meta=Meta("rr"))
    found = replace(before, nodes=(NODES[0], unlabelled))
    other = "to-rr/rr" if node == "n1" else "to-rr/n1"
    assert other not in names(found, node)
    kept, why = step(found, before, node=node)
    assert other in names(kept, node)
    assert "selector of BGPPeer to-rr" in str(why)

    gone = replace(before, nodes=NODES[:1])
    if node == "n1":
        assert other in names(step(gone, before)[0])


def test_a_changed_selector_and_a_moved_node_are_meant():
    """Somebody wrote the one; the other still matches elsewhere."""
    before = replace(WHOLE, peers=(RR, *TORS))
    edited = replace(before, peers=(replace(RR, peer_selector="role == 'x'"), *TORS))
    assert step(edited, before) == (edited, None)
    third = NodeResource(Meta("n3", labels={"rack": "a"}), (ip_address("10.0.0.3"),), 64601)
    moved = replace(before, nodes=(replace(NODES[0], meta=Meta("n1")), NODES[1], third))
    was = replace(before, nodes=(*NODES, third))
    assert step(moved, was) == (moved, None)


def test_a_node_that_never_had_a_peer_keeps_none():
    """And one whose store was not read yet."""
    empty = Snapshot(nodes=NODES, in_sync=True)
    assert step(empty, empty) == (empty, None)
    assert step(empty, Snapshot()) == (empty, None)
