"""The ownership guard: who announced a path, and whether the store says the block is theirs."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest

from bgp.paths import Origin, Path
from cni.ipam.block import Block, BlockState
from routing.datastore.snapshot import BGPPeerResource, Meta, NodeResource, Snapshot
from routing.ownership import Ownership, guard, one_origin
from routing.topology import SessionIntent, SessionKind

TOR, TOR2, RR = (ip_address(a) for a in ("172.30.0.0", "172.30.1.0", "192.0.2.9"))
BLOCK = ip_network("10.244.2.0/26")


def node(number: int, asn: int | None = None) -> NodeResource:
    return NodeResource(Meta(f"n{number}"), (ip_address(f"10.0.0.{number}"),), asn)


def block(cidr: str, owner: str, state: BlockState = BlockState.CONFIRMED) -> Block:
    return Block(ip_network(cidr), "v4", owner, state)


SNAPSHOT = Snapshot(
    nodes=(node(1, 64601), node(2, 64602), node(3, 64603)),
    blocks=(
        block("10.244.2.0/26", "n2"),
        block("10.244.2.64/26", "n2"),
        block("10.244.3.0/26", "n3"),
    ),
    in_sync=True,
)


def session(address, **changes: Any) -> SessionIntent:
    values: dict[str, Any] = {
        "name": "x",
        "kind": SessionKind.ROUTER,
        "address": address,
        "remote_asn": 64512,
        "local_asn": 64601,
        "router_id": IPv4Address("10.0.0.1"),
    }
    return SessionIntent(**(values | changes))


SESSIONS = {
    TOR: session(TOR),
    TOR2: session(TOR2),
    RR: session(RR, remote_asn=64601),
    ip_address("10.0.0.3"): session(
        ip_address("10.0.0.3"), kind=SessionKind.MESH, remote_asn=64603, remote_node="n3"
    ),
}


def ownership(snapshot: Snapshot = SNAPSHOT) -> Ownership:
    return Ownership(snapshot, SESSIONS)


def path(prefix="10.244.2.0/26", peer=TOR, *, as_path=(64512, 64602), **changes: Any) -> Path:
    plain = Path(peer, ip_network(prefix), peer, as_path, len(as_path), Origin.IGP)
    return replace(plain, **changes)


@pytest.mark.parametrize(
    ("told", "by"),
    [
        ({"n2"}, path()),
        ({"n2"}, path(peer=RR, as_path=(), originator_id=IPv4Address("10.0.0.2"))),
        ({"n3"}, path(peer=RR, as_path=(), next_hop=ip_address("10.0.0.3"))),
        ({"n3"}, path(peer=ip_address("10.0.0.3"), as_path=(64603,))),
        (None, path(as_path=(64512,))),
        (None, path(as_path=(64512, 65999))),
        (None, path(peer=RR, as_path=(), next_hop=ip_address("192.0.2.77"))),
    ],
)
def test_who_announced_is_told_by_what_the_path_carries(told, by):
    """Originator, next hop, origin AS, the session itself; else it is not known."""
    assert ownership().origin(by) == (None if told is None else frozenset(told))


def test_only_the_owner_is_believed_and_the_sentence_names_both():
    """n3 announces n2's block beside n2: one path remains."""
    mine, thief = path(), path(peer=TOR2, as_path=(64512, 64603))
    kept, refused = guard([thief, mine], ownership(), in_sync=True)
    assert kept == [mine]
    ((rejected, conflict),) = refused
    assert rejected == thief
    assert "of n2 is announced by n3" in str(conflict)


def test_a_thief_that_is_alone_is_not_believed_either():
    """Traffic for a block nobody serves is better lost than given away."""
    kept, refused = guard([path(as_path=(64512, 64603))], ownership(), in_sync=True)
    assert kept == []
    assert len(refused) == 1


def test_without_the_store_a_new_owner_may_be_one_we_have_not_heard_of():
    """The only path is used; beside the known owner's it is not."""
    thief, owner = path(as_path=(64512, 64603)), path(peer=TOR2)
    kept, refused = guard([thief], ownership(), in_sync=False)
    assert (kept, refused) == ([thief], [])
    kept, refused = guard([thief, owner], ownership(), in_sync=False)
    assert kept == [owner]
    assert len(refused) == 1


def test_a_more_specific_inside_anothers_block_is_the_same_theft():
    """A /27 would win every look-up."""
    kept, _ = guard([path("10.244.2.0/27", as_path=(64512, 64603))], ownership(), in_sync=True)
    assert kept == []


def test_an_aggregate_is_its_announcers_only_when_every_block_in_it_is():
    """10.244.2.0/25 is n2's; /23 would draw n3's block too."""
    whole, wider = path("10.244.2.0/25"), path("10.244.2.0/23")
    kept, _ = guard([whole, wider], ownership(), in_sync=True)
    assert kept == [whole]


def test_blocks_that_are_not_confirmed_guard_nothing():
    """A claim that is under way says nothing yet, and a prefix that is no block has no owner."""
    pending = replace(SNAPSHOT, blocks=(block("10.244.2.0/26", "n2", BlockState.PENDING),))
    thief = path(as_path=(64512, 64603))
    assert guard([thief], ownership(pending), in_sync=True)[0] == [thief]
    default = path("0.0.0.0/0", as_path=(64512,))
    assert guard([default], ownership(), in_sync=True)[0] == [default]


def test_an_as_number_that_several_share_clears_them_all():
    """One ASN for the rack: it cannot be told who, so the owner among them is enough."""
    shared = replace(SNAPSHOT, nodes=(node(1, 64601), node(2, 64602), node(3, 64602)))
    assert guard([path()], ownership(shared), in_sync=True)[1] == []


def test_a_local_asn_that_a_peer_is_shown_says_nothing_of_who():
    """localASNumber: any node may show it."""
    peers = (BGPPeerResource(Meta("p"), TOR, 64512, local_asn=64603),)
    hidden = ownership(replace(SNAPSHOT, peers=peers))
    assert hidden.origin(path(as_path=(64512, 64603))) is None


@pytest.mark.parametrize(
    "other",
    [
        path(peer=RR, as_path=()),
        path(peer=TOR2, as_path=(64512, 65999)),
    ],
)
def test_an_origin_that_is_no_nodes_is_never_used_beside_the_owner(other):
    """A router that announces a block statically: a fallback, not a second way."""
    kept, refused = guard([other, path()], ownership(), in_sync=True)
    assert (kept, [each for each, _ in refused]) == ([path()], [other])
    assert guard([other], ownership(), in_sync=True)[0] == [other]


def test_an_origin_that_may_be_hidden_is_used_beside_the_owner():
    """One ToR replaces AS numbers by its own (as-override), the other does not: both are ways."""
    hidden = path(peer=TOR2, as_path=(64512, 64512))
    assert guard([hidden, path()], ownership(), in_sync=True)[1] == []


def test_two_origin_as_numbers_are_not_used_side_by_side():
    """What the guard cannot judge, since no node has these numbers: the lower is kept, always."""
    one, other = path(as_path=(64512, 65002)), path(peer=TOR2, as_path=(64512, 65001))
    for chosen in ((one, other), (other, one)):
        best, conflicts = one_origin({BLOCK: chosen}, ownership(), [BLOCK])
        assert best[BLOCK] == (other,)
        assert "more than one origin" in str(conflicts[0])
    outside, none = one_origin({BLOCK: (one, other)}, ownership(), [])
    assert (outside[BLOCK], none) == ((one, other), [])


def test_one_origin_by_two_routers_is_a_multipath():
    """ECMP over both ToRs is the purpose of having two."""
    both = (path(), path(peer=TOR2))
    best, conflicts = one_origin({BLOCK: both}, ownership(), [BLOCK])
    assert (best[BLOCK], conflicts) == (both, [])
