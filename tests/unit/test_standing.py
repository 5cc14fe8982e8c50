"""What kubectl shows of IPPools and BGPPeers."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from cni.ipam.block import Block, BlockState
from routing.controller.standing import standing
from routing.datastore.snapshot import (
    BGPPeerResource,
    IPPoolResource,
    Meta,
    NodeResource,
    NodeStatusResource,
    Password,
    PeerReport,
    Problem,
    SecretKeyRef,
    Snapshot,
)

TOR = ip_address("192.0.2.254")
POOL = IPPoolResource(Meta("four", generation=3), ip_network("10.0.0.0/24"), 26)
PEER = BGPPeerResource(Meta("tor", generation=7), TOR, 64512)
NODES = tuple(NodeResource(Meta(f"n{i}", labels={"rack": f"r{i % 2}"})) for i in range(6))
WORLD = Snapshot(pools=(POOL,), nodes=NODES, peers=(PEER,), in_sync=True)


def report(node, state="Established", reason="", name="tor"):
    """A node's, with one session."""
    return NodeStatusResource(
        Meta(node), peers=(PeerReport(name, TOR, 64512, state, reason=reason),)
    )


def conditions(status):
    """Type to (status, reason)."""
    return {c.type: (c.status.value, c.reason) for c in status.conditions}


def message(status, kind="Ready"):
    """A condition's sentence."""
    return next(c.message for c in status.conditions if c.type == kind)


def test_a_peer_that_is_up_on_all_its_nodes_is_ready():
    """6/6, with the generation that was looked at."""
    status = standing(WORLD, [], [report(n.meta.name) for n in NODES])["BGPPeer", "tor"]

    assert status.columns == {"nodes": 6, "established": "6/6"}
    assert conditions(status) == {
        "Ready": ("True", "Established"),
        "Established": ("True", "Established"),
        "NoMatchingNode": ("False", "AsItShouldBe"),
        "Conflicting": ("False", "AsItShouldBe"),
        "MissingSecret": ("False", "AsItShouldBe"),
    }
    assert {c.observed_generation for c in status.conditions} == {7}


def test_sessions_that_are_down_are_named_with_their_reasons():
    """The first three; a node that has not reported counts as one."""
    reports = [report("n0"), report("n1", "Idle", "hold timer expired (4/0)"), report("n2")]
    status = standing(WORLD, [], [*reports, report("stranger")])["BGPPeer", "tor"]

    assert status.columns["established"] == "2/6"
    assert conditions(status)["Ready"] == ("False", "NotEstablished")
    assert message(status) == (
        "n1: hold timer expired (4/0); n3: not reported; n4: not reported; and 1 more"
    )


def test_a_peer_of_no_node_and_a_password_that_is_not_there():
    """Each has its condition, and Ready says the first."""
    lonely = replace(PEER, node_selector="rack == 'r9'")
    status = standing(replace(WORLD, peers=(lonely,)), [], [])["BGPPeer", "tor"]
    assert (status.columns["nodes"], status.columns["established"]) == (0, "0/0")
    assert conditions(status)["Ready"] == ("False", "NoMatchingNode")

    nobody = replace(PEER, peer_ip=None, asn=None, peer_selector="role == 'rr'")
    status = standing(replace(WORLD, peers=(nobody,)), [], [])["BGPPeer", "tor"]
    assert conditions(status)["NoMatchingNode"] == ("True", "NoMatchingNode")
    assert "peerSelector" in message(status, "NoMatchingNode")

    ref = SecretKeyRef("bgp", "tor")
    secret = replace(WORLD, peers=(replace(PEER, password=ref, node="n1"),))
    status = standing(secret, [], [])["BGPPeer", "tor"]
    assert conditions(status)["MissingSecret"] == ("True", "MissingSecret")
    assert "'bgp' has no usable key 'tor'" in message(status)
    found = replace(secret, passwords={ref: Password("x")})
    assert conditions(standing(found, [], [])["BGPPeer", "tor"])["MissingSecret"][0] == "False"


@pytest.mark.parametrize("name", ["a-twin", "zz-twin"])
def test_of_two_with_one_address_the_younger_conflicts_whatever_it_is_called(name):
    """Where both are for a node; the snapshot has the older one first."""
    twin = replace(PEER, meta=Meta(name), node="n1")
    found = standing(replace(WORLD, peers=(PEER, twin)), [], [])
    assert conditions(found["BGPPeer", name])["Ready"] == ("False", "Conflicting")
    assert "older BGPPeer 'tor' too, which is used on n1" in message(found["BGPPeer", name])
    assert conditions(found["BGPPeer", "tor"])["Conflicting"][0] == "False"

    apart = standing(
        replace(WORLD, peers=(replace(PEER, node="n2"), twin)), [], []
    )  # fmt: skip
    assert conditions(apart["BGPPeer", name])["Conflicting"][0] == "False"


def test_a_pool_counts_its_blocks():
    """And is exhausted when all are claimed, by whomever."""
    blocks = [
        Block(cidr, "four", "n1", BlockState.CONFIRMED) for cidr in POOL.cidr.subnets(new_prefix=26)
    ]
    some = standing(replace(WORLD, blocks=tuple(blocks[:3])), [], [])["IPPool", "four"]
    full = standing(replace(WORLD, blocks=tuple(blocks)), [], [])["IPPool", "four"]

    assert some.columns == {"blockSize": 26, "blocks": 3}
    assert conditions(some)["Ready"] == ("True", "BlocksAvailable")
    assert conditions(full)["Ready"] == ("False", "Exhausted")
    assert message(full) == "all 4 blocks (/26) of 10.0.0.0/24 are claimed"


@pytest.mark.parametrize(
    ("pool", "problems", "why"),
    [
        (replace(POOL, disabled=True), [], "Disabled"),
        (replace(POOL, node_selector="rack == 'r9'"), [], "NoMatchingNode"),
        (
            replace(POOL, disabled=True),
            [Problem("IPPool", "four", "overlaps IPPool 'older'", "Overlapping")],
            "Overlapping",
        ),
    ],
)
def test_a_pool_that_gives_nothing_says_why(pool, problems, why):
    """One that overlaps is disabled for that, and is not called disabled."""
    status = standing(replace(WORLD, pools=(pool,)), problems, [])["IPPool", "four"]

    assert conditions(status)["Ready"] == ("False", why)


def test_what_cannot_be_read_is_not_ready_and_says_whether_it_is_used_on():
    """Last good or never read: the object alone looks the same to who reads it."""
    problems = [
        Problem("IPPool", "four", "spec.vxlanMode: cannot be"),
        Problem("BGPPeer", "new", "spec.peerIP: is no address"),
        Problem("BGPFilter", "f", "has no status of ours"),
    ]
    found = standing(WORLD, problems, [])

    assert conditions(found["IPPool", "four"])["Ready"] == ("False", "Malformed")
    assert message(found["IPPool", "four"]) == (
        "spec.vxlanMode: cannot be; what it said before is used on"
    )
    assert found["IPPool", "four"].columns == {"blockSize": 26, "blocks": 0}
    assert message(found["BGPPeer", "new"]) == "spec.peerIP: is no address; it is not used"
    assert ("BGPFilter", "f") not in found
