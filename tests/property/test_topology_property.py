"""Both ends of a session between nodes compute it from one snapshot, and must agree."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from routing.datastore.snapshot import (
    BGPConfigurationResource,
    BGPPeerResource,
    Meta,
    NodeResource,
    Snapshot,
)
from routing.topology import sessions_for

LABELS = st.dictionaries(st.sampled_from(["rr", "rack"]), st.sampled_from(["a", "b"]))
RAN = {"pairs": 0, "sessions": 0}
SELECTORS = st.sampled_from(["all()", "has(rr)", "!has(rr)", "rack == 'a'", "rr == 'a'"])


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    count = draw(st.integers(2, 6))
    hosts = draw(st.lists(st.integers(1, 254), min_size=count, max_size=count, unique=True))
    nodes = []
    for number, host in enumerate(hosts):
        families = draw(st.sampled_from([(4,), (6,), (4, 6)]))
        addresses = tuple(
            ip_address(f"10.0.0.{host}" if version == 4 else f"fd00::{host:x}")
            for version in families
        )
        asn = draw(st.sampled_from([None, 65001, 65002]))
        nodes.append(NodeResource(Meta(f"n{number}", labels=draw(LABELS)), addresses, asn))
    peers = tuple(
        BGPPeerResource(
            Meta(f"p{number}"),
            node_selector=draw(st.none() | SELECTORS),
            peer_selector=draw(SELECTORS),
            local_asn=draw(st.sampled_from([None, 65009])),
        )
        for number in range(draw(st.integers(0, 3)))
    )
    bgp = BGPConfigurationResource(Meta("default"), mesh_enabled=draw(st.booleans()))
    return Snapshot(nodes=tuple(nodes), peers=peers, bgp=bgp, in_sync=True)


@given(snapshots())
def test_two_nodes_agree_on_their_session(snapshot: Snapshot) -> None:
    """Who connects, the AS numbers, the addresses and the families; or that there is none."""
    sessions = {
        node.meta.name: {
            (intent.remote_node, intent.address): intent
            for intent in sessions_for(snapshot, node.meta.name).sessions
        }
        for node in snapshot.nodes
    }
    for one, other in combinations(snapshot.nodes, 2):
        there = {a: i for (n, a), i in sessions[one.meta.name].items() if n == other.meta.name}
        back = {a: i for (n, a), i in sessions[other.meta.name].items() if n == one.meta.name}
        RAN["pairs"] += 1
        RAN["sessions"] += len(there)
        assert len(there) == len(back)
        for address, intent in there.items():
            own = intent.source_address
            assert own is not None
            assert own in one.addresses
            answer = back[own]
            assert answer.source_address == address
            assert intent.is_passive is not answer.is_passive
            assert (intent.local_asn, intent.remote_asn) == (answer.remote_asn, answer.local_asn)
            assert intent.extended_next_hop is answer.extended_next_hop
            assert intent.port == answer.listen_port
            assert (intent.name.split("/")[0]) == (answer.name.split("/")[0])


def test_enough_cases_ran() -> None:
    """A property test that compared nothing proves nothing."""
    assert RAN["pairs"] >= 300, RAN
    assert RAN["sessions"] >= 100, RAN
