"""Export policy: exactly our blocks, as each peer is to have them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network
from typing import Any

import pytest

from cni.ipam.block import Block, BlockState
from routing.datastore.snapshot import (
    BGPConfigurationResource,
    BGPFilterResource,
    ExportAttributes,
    FilterAction,
    FilterRule,
    IPPoolResource,
    MatchOperator,
    Meta,
    PrefixAdvertisement,
    Snapshot,
)
from routing.drain import DrainPhase
from routing.export_policy import Export, Speaking, export
from routing.links import LinkState
from routing.routes import RouteKey
from routing.topology import SessionIntent, SessionKind

TOR, TOR6 = ip_address("172.30.0.0"), ip_address("fd00::")
OWN, OWN6 = ip_address("172.30.0.1"), ip_address("fd00::1")
LINKS = {
    "up0": LinkState(
        "up0",
        1,
        True,
        1500,
        (ip_interface("172.30.0.1/31"), ip_interface("fe80::1/64"), ip_interface("fd00::1/127")),
    ),
    "up1": LinkState("up1", 2, True, 1500, (ip_interface("172.30.1.1/31"),)),
}
CONFIGURATION = BGPConfigurationResource(Meta("default"))
SNAPSHOT = Snapshot(
    pools=(
        IPPoolResource(Meta("v4"), ip_network("10.244.0.0/16"), 26),
        IPPoolResource(Meta("v6"), ip_network("fd44::/112"), 122),
        IPPoolResource(Meta("hidden"), ip_network("10.245.0.0/16"), 26, disable_bgp_export=True),
    ),
    bgp=CONFIGURATION,
    in_sync=True,
)


def block(cidr: str, pool: str = "v4") -> Block:
    return Block(ip_network(cidr), pool, "n1", BlockState.CONFIRMED)


def session(address=TOR, own=OWN, **changes: Any) -> Speaking:
    values: dict[str, Any] = {
        "name": "tor",
        "kind": SessionKind.ROUTER,
        "address": address,
        "remote_asn": 64512,
        "local_asn": 64601,
        "router_id": IPv4Address("172.30.0.1"),
    }
    return Speaking(SessionIntent(**(values | changes)), own)


def exported(
    *blocks: Block,
    sessions: tuple[Speaking, ...] = (session(),),
    snapshot: Snapshot = SNAPSHOT,
    pods: tuple[str, ...] = (),
    phase: DrainPhase = DrainPhase.SERVING,
) -> Export:
    return export(snapshot, blocks, [ip_address(p) for p in pods], sessions, LINKS, phase)


def told(result: Export, peer=TOR) -> dict[str, Any]:
    return {
        str(prefix): ad
        for (address, prefix), ad in result.advertisements.items()
        if address == peer
    }


def test_exactly_the_blocks_are_announced_and_no_pod():
    """Their own routes must be in the kernel before."""
    result = exported(block("10.244.1.0/26"), block("10.244.9.0/26"), pods=("10.244.1.5",))
    assert set(told(result)) == {"10.244.1.0/26", "10.244.9.0/26"}
    key = ip_network("10.244.1.0/26")
    assert result.backing[key] == {RouteKey(key)}


def test_pods_are_announced_where_the_cluster_asks_for_it():
    """Not those of a pool that is not exported, nor what is in no pool."""
    snapshot = replace(SNAPSHOT, bgp=replace(CONFIGURATION, export_pod_routes=True))
    result = exported(
        block("10.244.1.0/26"), snapshot=snapshot, pods=("10.244.1.5", "10.245.0.5", "192.0.2.7")
    )
    assert set(told(result)) == {"10.244.1.0/26", "10.244.1.5/32"}


def test_a_pool_that_is_not_exported_is_announced_to_nobody():
    """disableBGPExport."""
    assert set(told(exported(block("10.244.1.0/26"), block("10.245.1.0/26", "hidden")))) == {
        "10.244.1.0/26"
    }


def test_blocks_that_fill_a_supernet_go_as_one():
    """Backed by every block in it; another block beside it stays alone."""
    result = exported(block("10.244.1.0/26"), block("10.244.1.64/26"), block("10.244.2.0/26"))
    assert set(told(result)) == {"10.244.1.0/25", "10.244.2.0/26"}
    assert result.backing[ip_network("10.244.1.0/25")] == {
        RouteKey(ip_network(p)) for p in ("10.244.1.0/26", "10.244.1.64/26")
    }
    plain = replace(SNAPSHOT, bgp=replace(CONFIGURATION, aggregate=False))
    kept = exported(block("10.244.1.0/26"), block("10.244.1.64/26"), snapshot=plain)
    assert set(told(kept)) == {"10.244.1.0/26", "10.244.1.64/26"}


def test_two_pools_are_not_one_supernet():
    """What is between them may be another's tomorrow, and each has a policy of its own."""
    pools = (
        IPPoolResource(Meta("a"), ip_network("10.244.0.0/25"), 26),
        IPPoolResource(Meta("b"), ip_network("10.244.0.128/25"), 26),
    )
    blocks = [
        block(f"10.244.0.{n}/26", pool) for n, pool in ((0, "a"), (64, "a"), (128, "b"), (192, "b"))
    ]
    result = exported(*blocks, snapshot=replace(SNAPSHOT, pools=pools))
    assert set(told(result)) == {"10.244.0.0/25", "10.244.0.128/25"}


def filters(*rules: FilterRule) -> Snapshot:
    return replace(SNAPSHOT, filters=(BGPFilterResource(Meta("f"), export_v4=rules),))


def test_a_filter_for_one_peer_is_for_that_peer():
    """The other gets everything."""
    reject = FilterRule(
        FilterAction.REJECT, operator=MatchOperator.IN, cidr=ip_network("10.244.1.0/24")
    )
    other = ip_address("172.30.1.0")
    result = exported(
        block("10.244.1.0/26"),
        block("10.244.2.0/26"),
        sessions=(session(filters=("f",)), session(other, ip_address("172.30.1.1"))),
        snapshot=filters(reject),
    )
    assert set(told(result)) == {"10.244.2.0/26"}
    assert set(told(result, other)) == {"10.244.1.0/26", "10.244.2.0/26"}


def test_a_rule_for_blocks_of_one_size_keeps_the_blocks():
    """The supernet would not pass it, so it is not made."""
    only_blocks = (
        FilterRule(
            FilterAction.ACCEPT,
            operator=MatchOperator.IN,
            cidr=ip_network("10.244.0.0/16"),
            min_length=26,
            max_length=26,
        ),
        FilterRule(FilterAction.REJECT),
    )
    result = exported(
        block("10.244.1.0/26"),
        block("10.244.1.64/26"),
        sessions=(session(filters=("f",)),),
        snapshot=filters(*only_blocks),
    )
    assert set(told(result)) == {"10.244.1.0/26", "10.244.1.64/26"}


def test_a_filter_that_is_missing_lets_nothing_out_and_is_told_of():
    """Fail closed."""
    result = exported(block("10.244.1.0/26"), sessions=(session(filters=("gone",)),))
    assert told(result) == {}
    assert "no BGPFilter 'gone'" in result.problems[0]


def test_attributes_of_peer_prefix_and_filter_add_up():
    """Communities and prepends are added; of MED the last one counts."""
    snapshot = replace(
        filters(FilterRule(FilterAction.ACCEPT, set_attributes=ExportAttributes(med=9, prepend=1))),
        bgp=replace(
            CONFIGURATION,
            prefix_advertisements=(
                PrefixAdvertisement(ip_network("10.244.0.0/16"), ("65000:300",), ("65000:1:2",)),
            ),
        ),
    )
    peer = session(
        filters=("f",), export=ExportAttributes(communities=("65000:4",), med=5, prepend=2)
    )
    (ad,) = told(exported(block("10.244.1.0/26"), sessions=(peer,), snapshot=snapshot)).values()
    assert ad.communities == ("65000:4", "65000:300")
    assert ad.large_communities == ("65000:1:2",)
    assert (ad.med, ad.prepend, ad.local_pref) == (9, 3, None)


def test_local_pref_stays_within_the_as():
    """RFC 4271 section 5.1.5."""
    wish = ExportAttributes(local_pref=200)
    for remote_asn, expected in ((64512, None), (64601, 200)):
        peer = session(export=wish, remote_asn=remote_asn)
        (ad,) = told(exported(block("10.244.1.0/26"), sessions=(peer,))).values()
        assert ad.local_pref == expected


@pytest.mark.parametrize("remote_asn", [64512, 64601])
def test_a_node_that_is_leaving_says_so_with_everything_it_announces(remote_asn):
    """RFC 8326: the community, and LOCAL_PREF 0 for those within the AS who do not know it."""
    (ad,) = told(
        exported(
            block("10.244.1.0/26"),
            sessions=(session(remote_asn=remote_asn),),
            phase=DrainPhase.SHUTTING,
        )
    ).values()
    assert "65535:0" in ad.communities
    assert ad.local_pref == (None if remote_asn == 64512 else 0)


@pytest.mark.parametrize("phase", [DrainPhase.WITHDRAWN, DrainPhase.CLOSED])
def test_a_node_that_has_left_announces_nothing(phase):
    """Everything is withdrawn before a session closes."""
    assert exported(block("10.244.1.0/26"), phase=phase).advertisements == {}


def test_the_other_family_has_a_next_hop_of_its_own():
    """Over IPv4 to a router: an IPv6 address on the link they share, never link-local."""
    six = block("fd44::40/122", "v6")
    assert told(exported(six))["fd44::40/122"].next_hop == OWN6
    nowhere = exported(six, sessions=(session(own=ip_address("172.30.1.1")),))
    assert told(nowhere) == {}
    assert "no global IPv6 address" in nowhere.problems[0]


def test_towards_a_node_the_next_hop_is_the_nodes_address():
    """Which the other end resolves like any other; it need not be on the link."""
    mine = (ip_address("10.0.0.1"), ip_address("fd99::1"))
    peer = session(kind=SessionKind.MESH, node_addresses=mine)
    ad = told(exported(block("fd44::40/122", "v6"), sessions=(peer,)))["fd44::40/122"]
    assert ad.next_hop == mine[1]


def test_ipv4_goes_with_an_ipv6_next_hop_where_the_peer_takes_it():
    """RFC 8950; without it there is no IPv4 next hop on this session's link, and it is told."""
    bare = {"up0": replace(LINKS["up0"], addresses=(ip_interface("fd00::1/127"),))}
    for extended in (True, False):
        peer = session(TOR6, OWN6, extended_next_hop=extended)
        result = export(SNAPSHOT, [block("10.244.1.0/26")], [], [peer], bare)
        assert (len(result.advertisements), len(result.problems)) == (
            (1, 0) if extended else (0, 1)
        )
