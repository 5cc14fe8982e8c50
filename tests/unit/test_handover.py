"""Make before break: when old sessions end, as a clock moves and new ones settle."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network

from bgp.paths import Path
from routing.handover import LINGER_MAX_S, SETTLE_S, Handover, is_covered
from routing.topology import SessionIntent, SessionKind

MESH = [ip_address(f"10.0.0.{n}") for n in (2, 3)]
RRS = [ip_address(f"192.0.2.{n}") for n in (1, 2)]


def intents(*addresses):
    return {
        a: SessionIntent(str(a), SessionKind.ROUTER, a, 65000, 65000, IPv4Address("10.0.0.1"))
        for a in addresses
    }


def step(state: Handover, *wanted, settled=(), covered=True, now_s=0.0) -> Handover:
    return state.step(intents(*wanted), settled, is_covered=covered, now_s=now_s)


def test_old_sessions_stay_until_the_new_ones_are_settled_and_a_moment_more():
    """Mesh to reflectors: up, then End-of-RIB both ways, then SETTLE_S."""
    state = step(step(Handover(), *MESH), *RRS, now_s=1.0)
    assert set(state.lingering) == set(MESH)
    state = step(state, *RRS, settled=RRS[:1], now_s=10.0)
    assert set(state.lingering) == set(MESH)
    assert set(state.awaited) == set(RRS[1:])
    state = step(state, *RRS, settled=RRS, now_s=12.0)
    assert set(state.lingering) == set(MESH)
    assert state.next_change_s(12.0) == SETTLE_S
    state = step(state, *RRS, settled=RRS, now_s=12.0 + SETTLE_S)
    assert state.lingering == {}


def test_what_the_old_ones_taught_us_must_be_known_from_others():
    """A reflector that is up and lacks one node's routes is not enough; nor for SETTLE_S."""
    state = step(step(Handover(), *MESH), *RRS, now_s=0.0)
    state = step(state, *RRS, settled=RRS, covered=True, now_s=1.0)
    state = step(state, *RRS, settled=RRS, covered=False, now_s=2.0)
    assert state.settled_since_s is None
    state = step(state, *RRS, settled=RRS, covered=True, now_s=3.0)
    assert set(step(state, *RRS, settled=RRS, now_s=1.0 + SETTLE_S).lingering) == set(MESH)
    assert step(state, *RRS, settled=RRS, now_s=3.0 + SETTLE_S).lingering == {}


def test_they_do_not_linger_for_ever():
    """New peers that never come up: the operator asked for the old ones to end."""
    state = step(step(Handover(), *MESH), *RRS, now_s=0.0)
    assert state.next_change_s(1.0) == LINGER_MAX_S - 1.0
    assert step(state, *RRS, now_s=LINGER_MAX_S).lingering == {}


def test_a_peer_that_goes_while_none_comes_ends_at_once():
    """It is meant to go. So is one whose successor has been there for long."""
    assert step(step(Handover(), *MESH), MESH[0]).lingering == {}
    state = step(step(Handover(), *MESH), *MESH, *RRS, now_s=0.0)
    state = step(state, *MESH, *RRS, settled=RRS, now_s=5.0)
    assert step(state, *RRS, settled=RRS, now_s=9.0).lingering == {}


def test_a_peer_that_never_came_keeps_no_other_from_going():
    """Down since long before: it is not what the operator replaces the other by."""
    state = step(step(Handover(), *MESH), *MESH, RRS[0], now_s=0.0)
    state = step(state, *MESH, RRS[0], now_s=LINGER_MAX_S + 1)
    assert step(state, MESH[0], RRS[0], now_s=LINGER_MAX_S + 2).lingering == {}


def test_a_peer_that_comes_back_lingers_no_more():
    """The operator changed their mind: it is simply wanted."""
    state = step(step(Handover(), *MESH), *RRS, now_s=0.0)
    state = step(state, *MESH, now_s=1.0)
    assert not set(state.lingering) & set(MESH)
    assert set(state.awaited) == set()


def test_the_first_pass_of_an_agent_finds_nothing_new():
    """Sessions that ExaBGP has had all along are not awaited."""
    state = step(Handover(), *MESH)
    assert (state.awaited, state.lingering) == ({}, {})


def test_covered_is_what_others_have_too_if_only_wider():
    """A default route by another peer is a way."""

    def path(peer, prefix: str) -> Path:
        return Path(peer, ip_network(prefix), peer)

    old = path(MESH[0], "10.244.1.0/26")
    assert not is_covered([old], MESH)
    assert is_covered([old, path(RRS[0], "10.244.1.0/26")], MESH)
    assert is_covered([old, path(RRS[0], "0.0.0.0/0")], MESH)
    assert not is_covered([old, path(MESH[1], "10.244.1.0/26")], MESH)
    assert is_covered([], MESH)
