"""What the tables should say, for the situations an operator meets."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from bgp.adj_rib import offers_of
from bgp.paths import Advertisement, Origin, Path
from cni.ipam.block import Block, BlockState
from routing.datastore.snapshot import (
    BGPConfigurationResource,
    BGPPeerResource,
    IPPoolResource,
    Meta,
    NodeResource,
    Snapshot,
)
from routing.desired import Inputs, desired
from routing.links import LinkState
from routing.routes import NextHop, Route, RouteKey, RouteKind
from routing.topology import router_id, sessions_for

TOR = ip_address("172.30.0.0")
OWN = ip_address("172.30.0.1")
TOR2 = ip_address("172.30.1.0")
OWN2 = ip_address("172.30.1.1")
POOL = ip_network("10.244.0.0/16")
POOL6 = ip_network("fd44::/112")


def links(up: bool = True) -> dict[str, LinkState]:
    return {
        "lo": LinkState("lo", 1, True, 65536, (ip_interface("127.0.0.1/8"),)),
        "uplink0": LinkState(
            "uplink0",
            2,
            up,
            1500,
            (
                ip_interface("172.30.0.1/31"),
                ip_interface("fd00::1/127"),
                ip_interface("fe80::2/64"),
            ),
        ),
        "uplink1": LinkState("uplink1", 3, True, 1500, (ip_interface("172.30.1.1/31"),)),
    }


def snapshot(**changes) -> Snapshot:
    values: dict[str, Any] = {
        "pools": (
            IPPoolResource(Meta("v4"), POOL, 26),
            IPPoolResource(Meta("v6"), POOL6, 122),
        ),
        "nodes": (NodeResource(Meta("n1", labels={"rack": "a"}), (OWN,), asn=64601),),
        "peers": (BGPPeerResource(Meta("tor"), TOR, 64512),),
        "blocks": (),
        "bgp": BGPConfigurationResource(
            Meta("default"), asn=64512, import_allow=(ip_network("0.0.0.0/0"),)
        ),
        "in_sync": True,
    }
    return Snapshot(**(values | changes))


def inputs(**changes) -> Inputs:
    values: dict[str, Any] = {
        "node": "n1",
        "snapshot": snapshot(),
        "pod_addresses": {},
        "paths": (),
        "links": links(),
        "peer_sources": {TOR: OWN, TOR2: OWN2},
    } | changes
    values["offers"] = offers_of(values.pop("paths"))
    topology = sessions_for(values["snapshot"], values["node"])
    return Inputs(**({"topology": topology} | values))


def path(prefix: str, *, peer=TOR, next_hop=TOR, as_path=(64512, 64602)) -> Path:
    return Path(
        peer=peer,
        prefix=ip_network(prefix),
        next_hop=ip_address(next_hop),
        as_path=as_path,
        as_path_length=len(as_path),
        origin=Origin.IGP,
    )


def block(cidr: str, node: str = "n1", state: BlockState = BlockState.CONFIRMED) -> Block:
    return Block(ip_network(cidr), "v4", node, state)


def route(prefix: str, *hops: NextHop) -> Route:
    key = RouteKey(ip_network(prefix))
    return Route(key, hops)


def test_a_pod_gets_a_host_route_for_each_address():
    """A /32 and a /128 to the host end of the pod's veth."""
    wanted = desired(
        inputs(pod_addresses={"s32aa": (ip_address("10.244.1.65"), ip_address("fd44::41"))})
    )
    assert wanted.routes[RouteKey(ip_network("10.244.1.65/32"))] == route(
        "10.244.1.65/32", NextHop("s32aa")
    )
    assert wanted.kinds[RouteKey(ip_network("fd44::41/128"))] is RouteKind.POD


def test_the_gateway_has_a_route_though_nothing_else_is_known():
    """Proxy-ARP must not depend on a default route, nor on BGP, nor on the store."""
    wanted = desired(inputs(snapshot=Snapshot()))
    assert set(wanted.routes) == {RouteKey(ip_network("169.254.1.1/32"))}


def test_a_confirmed_own_block_is_a_blackhole_and_is_announced():
    """Traffic to a free address of ours dies here instead of circling with the ToR."""
    wanted = desired(inputs(snapshot=snapshot(blocks=(block("10.244.1.64/26"),))))
    assert wanted.routes[RouteKey(ip_network("10.244.1.64/26"))].is_blackhole
    assert wanted.advertisements == {
        (TOR, ip_network("10.244.1.64/26")): Advertisement(ip_network("10.244.1.64/26"))
    }


@pytest.mark.parametrize(
    "other",
    [
        block("10.244.1.64/26", node="n2"),
        block("10.244.1.64/26", state=BlockState.PENDING),
        block("10.244.1.64/26", state=BlockState.PENDING_DELETION),
    ],
)
def test_a_block_that_is_not_confirmed_ours_is_neither_routed_nor_announced(other):
    """Two nodes announcing one block is half of all flows lost."""
    wanted = desired(inputs(snapshot=snapshot(blocks=(other,))))
    assert RouteKey(other.cidr) not in wanted.routes
    assert not wanted.advertisements


def test_an_ipv6_block_over_an_ipv4_session_names_an_ipv6_next_hop():
    """ "self" would be an IPv4 address in an IPv6 route; link-local is not offered either."""
    wanted = desired(inputs(snapshot=snapshot(blocks=(block("fd44::40/122"),))))
    assert wanted.advertisements[TOR, ip_network("fd44::40/122")].next_hop == ip_address("fd00::1")


def test_an_ipv6_block_is_withheld_with_a_reason_when_the_link_has_no_ipv6_address():
    """No wrong next hop; a sentence for the operator instead."""
    only = snapshot(
        blocks=(block("fd44::40/122"),), peers=(BGPPeerResource(Meta("tor2"), TOR2, 64512),)
    )
    wanted = desired(inputs(snapshot=only))
    assert not wanted.advertisements
    assert any("no global IPv6 address" in problem for problem in wanted.problems)


def test_equal_paths_from_two_routers_become_one_multipath_route():
    """ECMP over both ToRs, next hops in a fixed order."""
    both = snapshot(
        peers=(
            BGPPeerResource(Meta("tor"), TOR, 64512),
            BGPPeerResource(Meta("tor2"), TOR2, 64512),
        )
    )
    paths = (
        path("10.244.2.0/26", peer=TOR2, next_hop=TOR2),
        path("10.244.2.0/26"),
    )
    wanted = desired(inputs(snapshot=both, paths=paths))
    assert wanted.routes[RouteKey(ip_network("10.244.2.0/26"))] == route(
        "10.244.2.0/26", NextHop("uplink0", TOR), NextHop("uplink1", TOR2)
    )


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (path("192.0.2.0/24"), "not-in-pool"),
        (path("10.0.0.0/8"), "too-short"),
        (path("10.244.2.7/32"), "too-long"),
        (path("10.244.1.64/26"), "own-block"),
        (path("10.244.1.64/27"), "own-block"),
        (path("10.244.2.0/26", as_path=(64512, 64601, 64602)), "as-loop"),
        (path("10.244.2.0/26", next_hop=OWN), "next-hop-self"),
        (path("10.244.2.0/26", next_hop="198.51.100.1"), "next-hop-off-link"),
        (path("10.244.2.0/26", peer=ip_address("203.0.113.9")), "no-such-peer"),
        (path("::/0"), "default-route"),
        (path("169.254.0.0/20"), "martian"),
        (path("172.30.0.0/31"), "connected-network"),
        (path("10.244.2.0/26", as_path=(64999, 64602)), "first-as"),
    ],
)
def test_import_is_default_deny_and_says_why(bad, reason):
    """Every rule, one path each."""
    wanted = desired(inputs(snapshot=snapshot(blocks=(block("10.244.1.64/26"),)), paths=(bad,)))
    assert [r.reason for r in wanted.rejected] == [reason]
    assert RouteKind.REMOTE not in wanted.kinds.values()


def test_the_default_route_is_imported_only_because_it_is_allowed():
    """importAllow names it; without that it is refused like everything outside the pools."""
    default = path("0.0.0.0/0", as_path=(64512,))
    assert RouteKey(ip_network("0.0.0.0/0")) in desired(inputs(paths=(default,))).routes
    strict = snapshot(bgp=BGPConfigurationResource(Meta("default")))
    assert desired(inputs(snapshot=strict, paths=(default,))).rejected[0].reason == "default-route"


def test_a_next_hop_on_a_link_that_is_down_is_not_used():
    """The kernel would refuse it, and with it the good next hops of a multipath."""
    wanted = desired(inputs(links=links(up=False), paths=(path("10.244.2.0/26"),)))
    assert wanted.rejected[0].reason == "next-hop-off-link"


def test_peers_are_chosen_by_node_selector_or_for_all():
    """node xor nodeSelector; neither means every node."""
    peers = (
        BGPPeerResource(Meta("a"), ip_address("172.30.9.1"), 1, node="n2"),
        BGPPeerResource(Meta("b"), ip_address("172.30.9.2"), 2, node_selector="rack == 'b'"),
        BGPPeerResource(Meta("c"), TOR, 3, node_selector="rack == 'a'"),
        BGPPeerResource(Meta("d"), TOR2, 4),
    )
    wanted = desired(inputs(snapshot=snapshot(peers=peers)))
    assert {p.name for p in wanted.peers.values()} == {"c", "d"}
    assert wanted.peers[TOR].local_asn == 64601
    assert wanted.peers[TOR].local_address == OWN


def test_two_peers_of_one_address_have_one_winner_and_a_problem():
    """Deterministic: the older, which a snapshot has first."""
    peers = (BGPPeerResource(Meta("b"), TOR, 2), BGPPeerResource(Meta("a"), TOR, 1))
    wanted = desired(inputs(snapshot=snapshot(peers=peers)))
    assert wanted.peers[TOR].name == "b"
    assert any("'b', the older one, is used" in problem for problem in wanted.problems)


def test_a_peer_without_a_route_to_it_is_a_problem_not_a_session():
    """The operator reads which peer and why."""
    wanted = desired(inputs(peer_sources={}))
    assert not wanted.peers
    assert any("no route to 172.30.0.0" in problem for problem in wanted.problems)


def test_a_node_without_a_resource_has_no_peers_and_says_so():
    """Without an ASN nothing may be announced."""
    wanted = desired(inputs(node="n9"))
    assert not wanted.peers
    assert "no Node resource named 'n9'" in wanted.problems[0]


def test_an_ipv6_only_node_has_a_router_id():
    """32 bits, stable, never zero."""
    node = NodeResource(Meta("v6only"), (ip_address("fd00::5"),))
    assert router_id(node) == router_id(node)
    assert int(router_id(node)) != 0
