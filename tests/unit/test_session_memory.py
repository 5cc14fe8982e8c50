"""What is remembered of sessions: our end through a flap, closings, how far a drain has come."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface
from typing import Any

import pytest

from routing.datastore.snapshot import (
    BGPConfigurationResource,
    BGPPeerResource,
    LimitAction,
    Meta,
    NodeResource,
    Snapshot,
)
from routing.drain import DRAIN_WAIT_S, DrainPhase, drain_phase, next_change_s
from routing.links import LinkState
from routing.session_memory import CLOSED_FOR_S, SessionMemory
from routing.topology import sessions_for

TOR, TOR2 = ip_address("172.30.0.0"), ip_address("172.30.1.0")
OWN, OWN2 = ip_address("172.30.0.1"), ip_address("172.30.1.1")


def links(*, up1: bool = True, own2: str = "172.30.1.1/31") -> dict[str, LinkState]:
    return {
        "up0": LinkState("up0", 1, True, 1500, (ip_interface("172.30.0.1/31"),)),
        "up1": LinkState("up1", 2, up1, 1500, (ip_interface(own2),)),
    }


def topology(*peers: BGPPeerResource):
    snapshot = Snapshot(
        nodes=(NodeResource(Meta("n1"), (OWN,), 64601),),
        peers=peers or (BGPPeerResource(Meta("tor2"), TOR2, 64512),),
        bgp=BGPConfigurationResource(Meta("default")),
    )
    return sessions_for(snapshot, "n1")


class Kernel:
    """Answers as the kernel would: an address on a link that is up."""

    def __init__(self, memory: SessionMemory) -> None:
        self.memory = memory
        self.now_s = 0.0

    def step(self, wanted=None, *, on=None, **changes: Any):
        wanted, on = wanted or topology(), on or links()
        asked = {}
        for address in self.memory.to_ask(wanted, on):
            for link in on.values():
                for own in link.addresses:
                    if link.is_up and address in own.network:
                        asked[address] = own.ip
        values = {
            "links": on,
            "asked": asked,
            "settled": (),
            "used": (),
            "is_drained": False,
            "announces": True,
            "now_s": self.now_s,
        }
        return self.memory.step(wanted, **(values | changes))


@pytest.fixture
def kernel() -> Kernel:
    return Kernel(SessionMemory())


def test_a_flap_does_not_change_our_end(kernel):
    """up1 down: the node's first address is on a link that is up, and would reset the session."""
    assert kernel.step().sources == {TOR2: OWN2}
    assert kernel.step(on=links(up1=False)).sources == {TOR2: OWN2}


def test_a_peer_that_was_never_reachable_and_is_off_link_has_the_nodes_address(kernel):
    """And the right one as soon as its link is there: nothing was up that could be reset."""
    assert kernel.step(on=links(up1=False)).sources == {TOR2: OWN}
    assert kernel.step().sources == {TOR2: OWN2}


def test_an_address_that_is_gone_is_no_end_any_more(kernel):
    """The link was renumbered while down."""
    kernel.step()
    moved = kernel.step(on=links(up1=False, own2="172.30.9.1/31"))
    assert moved.sources == {TOR2: OWN}


def test_what_a_peer_resource_lays_down_counts_at_once(kernel):
    """sourceAddress changed while the link is down."""
    kernel.step()
    laid = topology(BGPPeerResource(Meta("tor2"), TOR2, 64512, source_address=OWN))
    assert kernel.step(laid, on=links(up1=False)).sources == {TOR2: OWN}


def test_a_peer_that_is_gone_is_forgotten(kernel):
    """No session lingers that nobody replaces."""
    kernel.step()
    assert kernel.step(topology(BGPPeerResource(Meta("a"), TOR2, 1, node="other"))).sources == {}


def limited(limit: int):
    peer = BGPPeerResource(
        Meta("tor2"), TOR2, 64512, max_prefixes=limit, limit_action=LimitAction.CLOSE
    )
    return topology(peer)


def test_a_closed_peer_stays_closed_for_a_while(kernel):
    """Closed it sends nothing, and a pass without memory would open it again at once."""
    kernel.step(limited(5))
    kernel.memory.close({TOR2: "it sent 6"}, limited(5).sessions, 0.0)
    assert kernel.memory.next_change_s(0.0) == CLOSED_FOR_S
    kernel.now_s = CLOSED_FOR_S - 1
    assert kernel.step(limited(5)).closed == {TOR2: "it sent 6"}
    kernel.now_s = CLOSED_FOR_S
    assert kernel.step(limited(5)).closed == {}


def test_a_new_limit_opens_a_closed_peer(kernel):
    """The operator has looked at it."""
    kernel.step(limited(5))
    kernel.memory.close({TOR2: "it sent 6"}, limited(5).sessions, 0.0)
    assert kernel.step(limited(50)).closed == {}


def test_a_drain_goes_through_its_phases(kernel):
    """Say so, wait, withdraw, wait, close; and back at once."""
    phases = []
    for kernel.now_s in (0.0, DRAIN_WAIT_S - 0.1, DRAIN_WAIT_S, 2 * DRAIN_WAIT_S):
        phases.append(kernel.step(is_drained=True).phase)
    assert phases == [
        DrainPhase.SHUTTING,
        DrainPhase.SHUTTING,
        DrainPhase.WITHDRAWN,
        DrainPhase.CLOSED,
    ]
    assert kernel.step(is_drained=False).phase is DrainPhase.SERVING


def test_an_agent_that_finds_its_node_drained_leaves_it_so(kernel):
    """Nothing is announced: the agent before it was done. It must not announce all once more."""
    assert kernel.step(is_drained=True, announces=None).phase is DrainPhase.SHUTTING
    assert kernel.step(is_drained=True, announces=False).phase is DrainPhase.CLOSED


def test_an_agent_that_restarts_in_the_middle_of_a_drain_begins_it_anew(kernel):
    """Routes are announced still; the clock starts when somebody can be told."""
    kernel.step(is_drained=True, announces=None)
    kernel.now_s = 100.0
    assert kernel.step(is_drained=True, announces=True).phase is DrainPhase.SHUTTING
    assert kernel.memory.next_change_s(100.0) == DRAIN_WAIT_S


def test_the_clock_of_a_drain():
    """When the loop must wake without an event."""
    assert next_change_s(None) is None
    assert next_change_s(4.0, 10.0) == 6.0
    assert next_change_s(14.0, 10.0) == 6.0
    assert next_change_s(20.0, 10.0) is None
    assert drain_phase(None) is DrainPhase.SERVING
