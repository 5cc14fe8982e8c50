"""Which sessions a node should have: routers, nodes by selector, the mesh, and who connects."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_interface
from typing import Any

import pytest

from routing.datastore.snapshot import (
    BGPConfigurationResource,
    BGPPeerResource,
    Meta,
    NodeResource,
    Password,
    SecretKeyRef,
    Snapshot,
)
from routing.links import LinkState
from routing.topology import (
    NODE_TTL,
    SessionIntent,
    SessionKind,
    Topology,
    router_id,
    sessions_for,
    source_of,
)

TOR = ip_address("192.0.2.1")
REF = SecretKeyRef("bgp", "key")


def node(number: int, *, asn: int | None = None, v6: bool = False, **labels: str) -> NodeResource:
    addresses: list[Any] = [ip_address(f"10.0.0.{number}")]
    if v6:
        addresses.append(ip_address(f"fd00::{number:x}"))
    return NodeResource(Meta(f"n{number}", labels=labels), tuple(addresses), asn)


NODES = tuple(node(number) for number in (9, 10, 100))


def cluster(*peers: BGPPeerResource, nodes=NODES, mesh: bool = False, **changes: Any) -> Snapshot:
    bgp = BGPConfigurationResource(Meta("default"), asn=64512, mesh_enabled=mesh, **changes)
    return Snapshot(nodes=nodes, peers=peers, bgp=bgp, in_sync=True)


def by_peer(topology: Topology) -> dict[str, SessionIntent]:
    return {str(intent.address): intent for intent in topology.sessions}


def test_the_mesh_is_every_other_node_and_the_lower_number_listens():
    """9 < 10 < 100 as numbers; as text 100 would come before 9."""
    snapshot = cluster(mesh=True)
    passive = {
        (mine.meta.name, peer): intent.is_passive
        for mine in NODES
        for peer, intent in by_peer(sessions_for(snapshot, mine.meta.name)).items()
    }
    assert passive == {
        ("n9", "10.0.0.10"): True,
        ("n9", "10.0.0.100"): True,
        ("n10", "10.0.0.9"): False,
        ("n10", "10.0.0.100"): True,
        ("n100", "10.0.0.9"): False,
        ("n100", "10.0.0.10"): False,
    }


def test_a_mesh_session_is_ibgp_within_an_as_and_ebgp_with_ttl_between_racks():
    """Per-node ASN: a session between two is external, and may cross routers."""
    nodes = (node(9), node(10, asn=65010))
    (intent,) = sessions_for(cluster(nodes=nodes, mesh=True), "n9").sessions
    assert (intent.local_asn, intent.remote_asn, intent.multihop_ttl) == (64512, 65010, NODE_TTL)
    assert intent.kind is SessionKind.MESH
    (inside,) = sessions_for(cluster(nodes=(node(9), node(10)), mesh=True), "n9").sessions
    assert not inside.is_ebgp
    assert inside.multihop_ttl is None


def test_an_ipv6_only_mesh_offers_ipv4_with_ipv6_next_hops():
    """RFC 8950: there is no other way to give an IPv4 block a next hop."""
    nodes = tuple(
        NodeResource(Meta(name), (ip_address(a),))
        for name, a in (("a", "fd00::1"), ("b", "fd00::2"))
    )
    (intent,) = sessions_for(cluster(nodes=nodes, mesh=True), "a").sessions
    assert intent.extended_next_hop
    assert intent.address == ip_address("fd00::2")


def test_nodes_without_a_common_family_are_a_problem_not_a_crash():
    """The others of the mesh stand."""
    nodes = (*NODES, NodeResource(Meta("six"), (ip_address("fd00::6"),)))
    topology = sessions_for(cluster(nodes=nodes, mesh=True), "n9")
    assert len(topology.sessions) == 2
    assert "'six' have no address of one family" in topology.problems[0]


def test_a_node_that_is_unknown_has_no_sessions_and_says_so():
    """Nothing can be chosen for it."""
    topology = sessions_for(cluster(mesh=True), "n77")
    assert topology.sessions == ()
    assert "no Node resource named 'n77'" in topology.problems[0]


def test_peers_of_a_rack_are_chosen_by_label():
    """nodeSelector; node by name; neither means all."""
    nodes = (node(9, rack="a"), node(10, rack="b"))
    snapshot = cluster(
        BGPPeerResource(Meta("a"), TOR, 1, node_selector="rack == 'a'"),
        BGPPeerResource(Meta("b"), TOR, 2, node_selector="rack == 'b'"),
        BGPPeerResource(Meta("named"), ip_address("192.0.2.7"), 3, node="n10"),
        BGPPeerResource(Meta("all"), ip_address("192.0.2.8"), 4),
        nodes=nodes,
    )
    names = {n: {s.name for s in sessions_for(snapshot, n).sessions} for n in ("n9", "n10")}
    assert names == {"n9": {"a", "all"}, "n10": {"b", "named", "all"}}


def test_a_broken_selector_costs_its_own_peer_only():
    """The store refuses it today; a cache of yesterday may hold it."""
    topology = sessions_for(
        cluster(
            BGPPeerResource(Meta("bad"), TOR, 1, node_selector="rack =="),
            BGPPeerResource(Meta("good"), TOR, 2),
        ),
        "n9",
    )
    assert [s.name for s in topology.sessions] == ["good"]
    assert "'bad'" in topology.problems[0]


def reflectors(**changes: Any) -> BGPPeerResource:
    return BGPPeerResource(Meta("rr"), node_selector="!has(rr)", peer_selector="has(rr)", **changes)


def test_a_peer_selector_makes_a_pair_seen_from_both_ends():
    """Clients peer with the reflectors only; a reflector with every client."""
    nodes = (node(9), node(10), node(1, rr="yes"), node(200, rr="yes"))
    snapshot = cluster(reflectors(), nodes=nodes)
    assert set(by_peer(sessions_for(snapshot, "n9"))) == {"10.0.0.1", "10.0.0.200"}
    assert set(by_peer(sessions_for(snapshot, "n1"))) == {"10.0.0.9", "10.0.0.10"}
    client, reflector = (
        by_peer(sessions_for(snapshot, "n9"))["10.0.0.1"],
        by_peer(sessions_for(snapshot, "n1"))["10.0.0.9"],
    )
    assert client.is_passive is not reflector.is_passive


def test_both_ends_of_a_pair_use_each_others_as_number():
    """localASN is shown by the end the BGPPeer is for; the other expects it."""
    nodes = (node(9), node(1, rr="yes", asn=65100))
    snapshot = cluster(reflectors(local_asn=65099), nodes=nodes)
    (client,) = sessions_for(snapshot, "n9").sessions
    (reflector,) = sessions_for(snapshot, "n1").sessions
    assert (client.local_asn, client.remote_asn) == (65099, 65100)
    assert (reflector.local_asn, reflector.remote_asn) == (65100, 65099)


def test_a_selected_pair_of_two_families_has_two_sessions():
    """One each, so that neither family depends on the other's addresses."""
    nodes = (node(9, v6=True), node(1, v6=True, rr="yes"))
    assert set(by_peer(sessions_for(cluster(reflectors(), nodes=nodes), "n9"))) == {
        "10.0.0.1",
        "fd00::1",
    }


def test_a_bgppeer_says_more_of_a_pair_than_the_mesh():
    """No second session with one address; the mesh has the rest."""
    nodes = (node(9), node(10), node(1, rr="yes"))
    topology = sessions_for(cluster(reflectors(), nodes=nodes, mesh=True), "n9")
    assert {s.name for s in topology.sessions} == {"rr/n1", "mesh/n10"}
    assert topology.problems == ()


def test_the_older_of_two_peers_with_one_address_is_used():
    """A snapshot has it first; its name is no matter, on every node alike. The other is told of."""
    for older, younger in (("b", "a"), ("a", "b")):
        topology = sessions_for(
            cluster(BGPPeerResource(Meta(older), TOR, 2), BGPPeerResource(Meta(younger), TOR, 1)),
            "n9",
        )
        assert [(s.name, s.remote_asn) for s in topology.sessions] == [(older, 2)]
        assert f"'{older}', the older one, is used" in topology.problems[0]


def test_sessions_are_in_the_order_of_names_whatever_was_made_first():
    """The order is a preference, and must not depend on when something was made again."""
    peers = [BGPPeerResource(Meta(n), ip_address(f"192.0.2.{i}"), i) for i, n in enumerate("cab")]
    topology = sessions_for(cluster(*peers, mesh=True), "n9")
    assert [s.name for s in topology.sessions] == ["a", "b", "c", "mesh/n10", "mesh/n100"]


def test_a_password_that_is_missing_means_no_session():
    """One without it would be up with whoever answers. It is a peer all the same."""
    peer = BGPPeerResource(Meta("tor"), TOR, 1, password=REF)
    topology = sessions_for(cluster(peer), "n9")
    assert topology.sessions == ()
    assert [name.name for name in topology.names] == ["tor"]
    assert "MissingSecret" in topology.problems[0]
    assert [(a.intent.address, a.reason[:13]) for a in topology.unconfigured] == [
        (TOR, "MissingSecret")
    ]


def test_a_password_is_on_the_session_and_in_no_text():
    """repr is what logs and tracebacks show."""
    peer = BGPPeerResource(Meta("tor"), TOR, 1, password=REF)
    known = Snapshot(nodes=NODES, peers=(peer,), passwords={REF: Password("s3cret")}, in_sync=True)
    (intent,) = sessions_for(known, "n9").sessions
    assert intent.password == "s3cret"
    assert "s3cret" not in repr(intent) + repr(intent.peer(ip_address("10.0.0.9")))


def test_what_a_bgppeer_says_reaches_the_speaker():
    """Every field of the session that a peer resource has."""
    peer = BGPPeerResource(
        Meta("tor"),
        TOR,
        65000,
        port=1790,
        local_asn=65001,
        hold_time_s=30,
        max_restart_time_s=60,
        ttl_security_hops=1,
        allowed_local_asns=2,
        is_passive=True,
        extended_next_hop=True,
    )
    (intent,) = sessions_for(cluster(peer), "n9").sessions
    made = intent.peer(ip_address("10.0.0.9"))
    assert (made.port, made.local_asn, made.remote_asn) == (1790, 65001, 65000)
    assert (made.hold_time_s, made.graceful_restart_s) == (30, 60)
    assert (made.ttl_security_hops, made.multihop_ttl) == (1, None)
    assert (made.allowed_local_asns, made.is_passive, made.listens) == (2, True, True)
    assert made.extended_next_hop


def links(**up: bool) -> dict[str, LinkState]:
    return {
        "up0": LinkState("up0", 1, up.get("up0", True), 1500, (ip_interface("10.0.0.9/24"),)),
        "up1": LinkState("up1", 2, up.get("up1", True), 1500, (ip_interface("192.0.2.0/31"),)),
    }


@pytest.mark.parametrize(
    ("peer", "found"),
    [
        (BGPPeerResource(Meta("off-link"), ip_address("198.51.100.1"), 1), "10.0.0.9"),
        (BGPPeerResource(Meta("own-link"), ip_address("10.0.0.1"), 1), "10.0.0.9"),
        (BGPPeerResource(Meta("other-link"), TOR, 1), None),
        (BGPPeerResource(Meta("free"), ip_address("10.0.0.1"), 1, is_source_free=True), None),
        (
            BGPPeerResource(Meta("laid-down"), TOR, 1, source_address=ip_address("10.0.0.9")),
            "10.0.0.9",
        ),
    ],
)
def test_our_end_is_the_nodes_address_unless_the_router_is_on_another_link(peer, found):
    """None: the kernel chooses, and finds the address on the router's own link."""
    (intent,) = sessions_for(cluster(peer), "n9").sessions
    assert source_of(intent, links()) == (None if found is None else ip_address(found))


def test_an_ipv6_only_node_has_a_router_id():
    """32 bits, stable, never zero."""
    only = NodeResource(Meta("v6only"), (ip_address("fd00::5"),))
    assert router_id(only) == router_id(only) != IPv4Address(0)
