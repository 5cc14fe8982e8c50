"""What is believed of sessions: events, read-backs, staleness, completeness. No clock but ours."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from bgp.exabgp_api import SHUTTING_DOWN, NeighborState
from bgp.judgement import NEXT_HOP_LINK_LOCAL
from bgp.paths import (
    Address,
    Connected,
    EndOfRib,
    Family,
    GracefulRestart,
    Notification,
    Opened,
    Path,
    Prefix,
    RefreshEnd,
    Rejection,
    SessionDown,
    SessionState,
    SessionUp,
    SpeakerShutdown,
    Update,
)
from bgp.reasons import CLOSED_BY_US
from bgp.sessions import (
    END_OF_RIB_WAIT_S,
    MAX_REJECTIONS,
    QUIET_S,
    REFRESH_QUIET_S,
    RESTART_HOLD_S,
    RejectedRoute,
    Sessions,
)

ONE, TWO = ip_address("192.0.2.1"), ip_address("192.0.2.2")
US = ip_address("192.0.2.254")
A, B = ip_network("10.9.0.0/26"), ip_network("10.9.1.0/26")
SIX = ip_network("2001:db8:9::/64")
BOTH = frozenset(Family)


def path(peer: Address, prefix: Prefix, med: int | None = None) -> Path:
    return Path(peer, prefix, ip_address("2001:db8::1") if prefix == SIX else peer, med=med)


def state(
    peer: Address, *, duration_s: int = 1000, is_up: bool = True, families: frozenset[Family] = BOTH
) -> NeighborState:
    return NeighborState(peer, US, is_up, True, duration_s, families, True)


def read_back(
    sessions: Sessions,
    states: list[NeighborState],
    dump: list[Path | Rejection] | None = None,
    *,
    owner: Address = ONE,
    is_same: bool = True,
    now_s: float = 0.0,
) -> set[tuple[Address, Family]]:
    """A read-back during which nothing happened."""
    sessions.begin_read_back()
    entries = [(owner if isinstance(e, Rejection) else e.peer, e) for e in dump or []]
    return sessions.read_back(states, entries, is_same_exabgp=is_same, now_s=now_s)


def fresh(now_s: float = 0.0) -> Sessions:
    """Read back from an ExaBGP whose two sessions have not come up yet."""
    sessions = Sessions()
    read_back(sessions, [state(ONE, is_up=False), state(TWO, is_up=False)], now_s=now_s)
    return sessions


def test_only_up_is_established() -> None:
    """connected comes several times before a session, with a down after each."""
    sessions = fresh()
    for event in (Connected(ONE), SessionDown(ONE, "collision"), Connected(ONE)):
        assert sessions.event(event, 1.0) is None
        assert not sessions.is_established(ONE)
    assert sessions.event(SessionUp(ONE), 2.0) == f"session_up:{ONE}"
    status = sessions.statuses()[ONE]
    assert (status.state, status.since_s, status.flaps) == (SessionState.ESTABLISHED, 2.0, 0)


def test_a_session_that_ends_takes_its_paths_and_its_end_of_rib() -> None:
    """At once; the other peer's stay."""
    sessions = fresh()
    for peer in (ONE, TWO):
        sessions.event(SessionUp(peer), 1.0)
        sessions.event(Update(peer, (path(peer, A),)), 2.0)
        sessions.event(EndOfRib(peer, Family.IPV4), 2.0)
    assert sessions.event(SessionDown(ONE, "hold timer"), 3.0) == f"session_down:{ONE}"
    assert set(sessions.rib.paths()) == {(TWO, A)}
    status = sessions.statuses()[ONE]
    assert (status.flaps, status.last_reason, status.end_of_rib) == (1, "hold timer", set())
    assert sessions.statuses()[TWO].end_of_rib == {Family.IPV4}


# -- a peer restarts (RFC 4724 section 4.2) --------------------------------------------------------

OFFER = GracefulRestart(60, BOTH, BOTH)
BROKEN = "closing connection"


def restarting(offer: GracefulRestart | None = OFFER, reason: str = BROKEN) -> Sessions:
    """ONE, helped, has sent A and SIX, and its connection breaks at 10 s; TWO has sent B."""
    sessions = fresh()
    sessions.configure({ONE: US, TWO: US}, helped={ONE, TWO})
    for peer, prefixes in ((ONE, (A, SIX)), (TWO, (B,))):
        sessions.event(Opened(peer, offer), 1.0)
        sessions.event(SessionUp(peer), 1.0)
        sessions.event(Update(peer, tuple(path(peer, p) for p in prefixes)), 2.0)
    assert sessions.event(SessionDown(ONE, reason), 10.0) == f"session_down:{ONE}"
    return sessions


def back(sessions: Sessions, now_s: float, offer: GracefulRestart | None = OFFER) -> None:
    """ONE's session comes up again."""
    sessions.event(Opened(ONE, offer), now_s)
    sessions.event(SessionUp(ONE), now_s)


def kept(sessions: Sessions) -> set[Prefix]:
    return set(sessions.rib.table(ONE))


def ticks(sessions: Sessions, now_s: float) -> list[str]:
    """What the time alone changes for ONE."""
    return [reason for reason in sessions.tick(now_s) if str(ONE) in reason]


def test_a_restarting_peers_paths_are_kept_and_marked() -> None:
    """All of them, though the session is down; the other peer's are nobody's business."""
    sessions = restarting()
    assert kept(sessions) == {A, SIX}
    assert sessions.rib.stale(ONE) == {A, SIX}
    status = sessions.statuses()[ONE]
    assert (status.state, status.routes_stale) == (SessionState.IDLE, 2)
    assert not sessions.is_complete(ONE, 11.0)
    assert sessions.statuses()[TWO].routes_stale == 0


def test_end_of_rib_sweeps_what_a_restarted_peer_has_not_said_again() -> None:
    """Family by family; what it did say stays, and is stale no more."""
    sessions = restarting()
    back(sessions, 20.0)
    assert kept(sessions) == {A, SIX}
    sessions.event(Update(ONE, (path(ONE, A),)), 20.1)
    sessions.event(EndOfRib(ONE, Family.IPV4), 20.2)
    assert kept(sessions) == {A, SIX}
    assert sessions.rib.stale(ONE) == {SIX}
    sessions.event(EndOfRib(ONE, Family.IPV6), 20.3)
    assert kept(sessions) == {A}


def test_a_peer_that_does_not_come_back_in_its_own_restart_time_is_given_up() -> None:
    """60 s is what this one asked for; a failed attempt is no new lease."""
    sessions = restarting()
    sessions.event(SessionDown(ONE, BROKEN), 65.0)
    assert ticks(sessions, 69.9) == []
    assert kept(sessions) == {A, SIX}
    assert ticks(sessions, 70.0) == [f"stale_hold_over:{ONE}"]
    assert kept(sessions) == set()


def test_a_peer_that_is_back_has_longer_than_its_restart_time() -> None:
    """Its table may be large; it ends with End-of-RIB, with silence, or after the longest hold."""
    sessions = restarting()
    back(sessions, 69.0)
    for now_s in range(70, 189):
        # Never quiet, never at an end.
        sessions.event(Update(ONE, (path(ONE, A, now_s),)), float(now_s))
        ticks(sessions, float(now_s))
        assert kept(sessions) == {A, SIX}
    assert ticks(sessions, 69.0 + RESTART_HOLD_S) == [f"stale_hold_over:{ONE}"]
    assert kept(sessions) == {A}


def test_a_second_restart_before_end_of_rib_drops_what_was_stale() -> None:
    """What had been said again is kept for the second restart, and nothing else."""
    sessions = restarting()
    back(sessions, 20.0)
    sessions.event(Update(ONE, (path(ONE, A),)), 20.1)
    sessions.event(SessionDown(ONE, BROKEN), 21.0)
    assert kept(sessions) == {A}
    back(sessions, 30.0)
    sessions.event(SessionDown(ONE, BROKEN), 31.0)
    assert kept(sessions) == set()


@pytest.mark.parametrize(
    ("offer", "left"),
    [
        (None, set()),
        (GracefulRestart(60, BOTH, frozenset()), set()),
        (GracefulRestart(60, BOTH, frozenset({Family.IPV4})), {A}),
        (OFFER, {A, SIX}),
    ],
)
def test_a_peer_that_has_lost_its_forwarding_state_is_believed(
    offer: GracefulRestart | None, left: set[Prefix]
) -> None:
    """Its new OPEN says what its kernel still has; the rest would be a black hole."""
    sessions = restarting()
    back(sessions, 20.0, offer)
    assert kept(sessions) == left


@pytest.mark.parametrize("reason", ["notification sent (4,0)", "notification received (6,2)"])
def test_a_notification_is_no_restart(reason: str) -> None:
    """Nor is a hold timer: a dead router is found as fast as without graceful restart."""
    assert kept(restarting(reason=reason)) == set()


def test_only_what_was_negotiated_is_kept() -> None:
    """No capability, another family, or none of ours: gone at once."""
    assert kept(restarting(None)) == set()
    assert kept(restarting(GracefulRestart(60, frozenset({Family.IPV6}), BOTH))) == {SIX}
    sessions = fresh()
    sessions.configure({ONE: US})
    sessions.event(Opened(ONE, OFFER), 1.0)
    sessions.event(SessionUp(ONE), 1.0)
    sessions.event(Update(ONE, (path(ONE, A),)), 2.0)
    sessions.event(SessionDown(ONE, BROKEN), 3.0)
    assert kept(sessions) == set()


def test_an_agent_that_came_later_asks_exabgp_for_the_capability() -> None:
    """It has not seen the OPEN: all that was negotiated is kept, for the usual time."""
    for has_it in (True, False):
        sessions = Sessions()
        sessions.configure({ONE: US}, helped={ONE})
        reported = replace(state(ONE), has_graceful_restart=has_it)
        read_back(sessions, [reported], [path(ONE, A)])
        sessions.event(SessionDown(ONE, BROKEN), 10.0)
        assert kept(sessions) == ({A} if has_it else set())
        assert ticks(sessions, 10.0 + RESTART_HOLD_S - 0.1) == []
        ticks(sessions, 10.0 + RESTART_HOLD_S)
        assert kept(sessions) == set()


def test_a_session_that_we_reset_keeps_its_paths_whatever_the_peers_forwarding_state() -> None:
    """A changed password, say: we went away, not the peer."""
    sessions = restarting(reason=CLOSED_BY_US)
    assert sessions.rib.stale(ONE) == {A, SIX}
    back(sessions, 20.0, GracefulRestart(60, BOTH, frozenset()))
    assert kept(sessions) == {A, SIX}


def test_a_bridge_that_dies_while_a_peer_restarts_changes_nothing() -> None:
    """Neither with the session down, nor with it up again and not at its end."""
    sessions = restarting()
    sessions.lost(11.0)
    read_back(sessions, [state(ONE, is_up=False), state(TWO)], [path(TWO, B)], now_s=12.0)
    assert sessions.rib.stale(ONE) == {A, SIX}
    assert ticks(sessions, 69.9) == []
    back(sessions, 69.9)
    sessions.event(Update(ONE, (path(ONE, A),)), 70.0)
    sessions.lost(71.0)
    read_back(
        sessions, [state(ONE, duration_s=2), state(TWO)], [path(ONE, A), path(TWO, B)], now_s=72.0
    )
    assert sessions.rib.stale(ONE) == {SIX}


def test_a_notification_is_kept_for_people() -> None:
    """It changes nothing else."""
    sessions = fresh()
    assert sessions.event(Notification(ONE, "6/2 maintenance"), 1.0) is None
    assert sessions.event(Notification(None, "?"), 1.0) is None
    assert sessions.statuses()[ONE].last_reason == "6/2 maintenance"


def test_the_reason_is_what_the_peer_said_and_a_later_failure_does_not_hide_it() -> None:
    """Its shutdown text stands until something more telling happens."""
    sessions = fresh()
    sessions.event(SessionUp(ONE), 1.0)
    sessions.event(Notification(ONE, "6/2 cease: administrative shutdown: noon"), 2.0)
    sessions.event(SessionDown(ONE, "notification received (6,2)"), 2.0)
    said = "the peer said 6/2 cease: administrative shutdown: noon"
    assert sessions.statuses()[ONE].last_reason == said
    sessions.event(SessionDown(ONE, BROKEN), 3.0)
    assert sessions.statuses()[ONE].last_reason == said
    sessions.event(SessionDown(ONE, "notification sent (2,2)"), 4.0)
    assert "AS number" in sessions.statuses()[ONE].last_reason
    sessions.event(SessionUp(ONE), 5.0)
    sessions.event(SessionDown(ONE, "notification sent (4,0)"), 6.0)
    assert sessions.statuses()[ONE].last_reason == "we said 4/0 hold timer expired"
    sessions.event(SessionUp(ONE), 7.0)
    sessions.event(SessionDown(ONE, BROKEN), 8.0)
    assert sessions.statuses()[ONE].last_reason == "the connection broke"


def test_what_an_attempt_came_to_holds_until_the_session_is_up() -> None:
    """It stands before how the last session ended, and is news once."""
    sessions = fresh()
    sessions.event(SessionUp(ONE), 1.0)
    assert sessions.is_any_down()
    sessions.event(SessionUp(TWO), 1.0)
    assert not sessions.is_any_down()
    sessions.event(SessionDown(ONE, CLOSED_BY_US), 2.0)
    assert sessions.is_any_down()
    silent = {ONE: "no answer", TWO: "of before", ip_address("192.0.2.99"): "not ours"}
    assert sessions.note_attempts(silent) == [ONE]
    assert sessions.note_attempts(silent) == []
    status = sessions.statuses()[ONE]
    assert status.reason.startswith("no answer to our SYN")
    assert status.reason.endswith("before that: closed by us: the session's settings have changed")
    sessions.event(SessionDown(ONE, BROKEN), 3.0)
    assert sessions.statuses()[ONE].reason == status.reason
    assert sessions.note_attempts({}) == [ONE]
    assert sessions.statuses()[ONE].reason == status.last_reason
    sessions.note_attempts(silent)
    sessions.event(SessionUp(ONE), 4.0)
    assert sessions.statuses()[ONE].attempt == ""
    assert TWO not in sessions.note_attempts(silent)


def test_complete_means_end_of_rib_of_every_negotiated_family() -> None:
    """Families the peer does not speak are not waited for."""
    sessions = fresh()
    sessions.event(SessionUp(ONE), 1.0)
    sessions.event(EndOfRib(ONE, Family.IPV4), 1.1)
    assert not sessions.is_complete(ONE, 1.2)
    assert sessions.lacks_negotiated()
    sessions.correct_states([state(ONE, families=frozenset({Family.IPV4}))])
    assert not sessions.lacks_negotiated()
    assert sessions.is_complete(ONE, 1.2)
    sessions.event(SessionDown(ONE, "gone"), 2.0)
    assert not sessions.is_complete(ONE, 999.0)
    assert not sessions.is_complete(ip_address("192.0.2.99"), 999.0)


def test_an_old_and_quiet_session_is_complete_without_end_of_rib() -> None:
    """A peer need not send any; but while it talks or is young, we wait."""
    sessions = fresh()
    sessions.event(SessionUp(ONE), 0.0)
    sessions.correct_states([state(ONE)])
    assert not sessions.is_complete(ONE, END_OF_RIB_WAIT_S - 0.1)
    sessions.event(Update(ONE, (path(ONE, A),)), END_OF_RIB_WAIT_S)
    assert not sessions.is_complete(ONE, END_OF_RIB_WAIT_S + QUIET_S - 0.1)
    assert sessions.is_complete(ONE, END_OF_RIB_WAIT_S + QUIET_S)


def test_completion_by_time_alone_is_reported_once() -> None:
    """Nobody would look again otherwise."""
    sessions = fresh()
    sessions.event(SessionUp(ONE), 0.0)
    assert sessions.tick(1.0) == []
    assert sessions.tick(END_OF_RIB_WAIT_S + QUIET_S) == [f"complete:{ONE}"]
    assert sessions.tick(END_OF_RIB_WAIT_S + QUIET_S + 1) == []


def test_a_restarted_agent_believes_what_it_reads_back() -> None:
    """A session of old is up, its routes are there, and soon it counts as complete."""
    sessions = Sessions()
    again = read_back(sessions, [state(ONE, duration_s=500)], [path(ONE, A)], now_s=1000.0)
    assert again == set()
    status = sessions.statuses()[ONE]
    assert (status.since_s, status.routes_received) == (500.0, 1)
    assert sessions.local_address(ONE) == US
    assert not sessions.is_complete(ONE, 1000.0)
    assert sessions.is_complete(ONE, 1000.0 + QUIET_S)


def test_events_win_over_a_report_that_is_older() -> None:
    """For a prefix that an event touched while the dump was under way, the event stands."""
    sessions = Sessions()
    sessions.begin_read_back()
    sessions.event(Update(ONE, (path(ONE, A, med=7),), withdrawn=(B,)), 1.0)
    dump = [(ONE, path(ONE, A, med=1)), (ONE, path(ONE, B)), (ONE, path(ONE, SIX))]
    sessions.read_back([state(ONE)], dump, is_same_exabgp=True, now_s=2.0)
    assert sessions.rib.table(ONE) == {A: path(ONE, A, med=7), SIX: path(ONE, SIX)}


def test_a_session_that_ended_during_the_report_is_not_revived_by_it() -> None:
    """Nor are its routes, though the dump still had them."""
    sessions = Sessions()
    sessions.event(SessionUp(ONE), 0.0)
    sessions.begin_read_back()
    sessions.event(SessionDown(ONE, "gone"), 1.0)
    dump = [(ONE, path(ONE, A)), (TWO, path(TWO, A))]
    sessions.read_back([state(ONE), state(TWO)], dump, is_same_exabgp=True, now_s=2.0)
    assert not sessions.is_established(ONE)
    assert set(sessions.rib.paths()) == {(TWO, A)}


def test_a_session_that_came_up_during_the_report_keeps_what_it_sent() -> None:
    """The report of it being down is older."""
    sessions = Sessions()
    sessions.begin_read_back()
    sessions.event(SessionUp(ONE), 1.0)
    sessions.event(Update(ONE, (path(ONE, A),)), 1.1)
    sessions.read_back([state(ONE, is_up=False)], [], is_same_exabgp=True, now_s=2.0)
    assert sessions.is_established(ONE)
    assert set(sessions.rib.paths()) == {(ONE, A)}


def test_routes_of_a_session_that_is_down_are_not_believed() -> None:
    """ExaBGP lists them until the next session begins."""
    sessions = Sessions()
    read_back(sessions, [state(ONE, is_up=False)], [path(ONE, A)])
    assert sessions.rib.paths() == {}


def test_a_new_connection_to_the_same_exabgp_changes_nothing_that_did_not_change() -> None:
    """Same sessions, same End-of-RIBs; what was withdrawn meanwhile goes, what came is there."""
    sessions = fresh()
    sessions.event(SessionUp(ONE), 10.0)
    sessions.event(Update(ONE, (path(ONE, A), path(ONE, B))), 11.0)
    for family in Family:
        sessions.event(EndOfRib(ONE, family), 11.0)
    sessions.correct_states([state(ONE)])
    assert sessions.is_complete(ONE, 12.0)
    sessions.lost(20.0)
    assert len(sessions.rib.paths()) == 2
    assert not sessions.is_complete(ONE, 500.0)
    assert sessions.tick(21.0) == []
    read_back(sessions, [state(ONE, duration_s=12)], [path(ONE, A), path(ONE, SIX)], now_s=22.4)
    assert set(sessions.rib.table(ONE)) == {A, SIX}
    assert sessions.rib.stale(ONE) == frozenset()
    status = sessions.statuses()[ONE]
    assert (status.since_s, status.flaps) == (10.0, 0)
    assert sessions.is_complete(ONE, 22.4)


def test_a_flap_that_nobody_saw_is_counted_and_is_another_session() -> None:
    """Its age gives it away; End-of-RIB is then owed again in both directions."""
    sessions = fresh()
    sessions.event(SessionUp(ONE), 10.0)
    for family in Family:
        sessions.event(EndOfRib(ONE, family), 11.0)
    sessions.lost(20.0)
    read_back(sessions, [state(ONE, duration_s=5)], [path(ONE, A)], now_s=60.0)
    status = sessions.statuses()[ONE]
    assert (status.since_s, status.flaps, status.end_of_rib) == (55.0, 1, set())
    assert not sessions.is_complete(ONE, 61.0)


def test_a_session_lost_while_we_were_away_is_dropped() -> None:
    """ExaBGP lived, so it is the peer that went."""
    sessions = fresh()
    sessions.event(SessionUp(ONE), 10.0)
    sessions.event(Update(ONE, (path(ONE, A),)), 11.0)
    sessions.lost(20.0)
    read_back(sessions, [state(ONE, is_up=False)], [path(ONE, A)], now_s=22.0)
    assert sessions.rib.paths() == {}
    assert sessions.statuses()[ONE].flaps == 1


def learned_then_exabgp_died() -> Sessions:
    """Two routes were learned; another ExaBGP is here, its session not up yet."""
    sessions = fresh()
    sessions.event(SessionUp(ONE), 10.0)
    sessions.event(Update(ONE, (path(ONE, A), path(ONE, B), path(ONE, SIX))), 11.0)
    sessions.lost(20.0)
    sessions.exabgp_restarted(21.0)
    read_back(sessions, [state(ONE, is_up=False)], is_same=False, now_s=21.0)
    assert len(sessions.rib.stale(ONE)) == 3
    return sessions


def test_what_a_dead_exabgp_had_learned_stays_until_end_of_rib() -> None:
    """What the peer sends again stays for good; the rest goes with each family's End-of-RIB."""
    sessions = learned_then_exabgp_died()
    assert sessions.event(SessionDown(ONE, "refused"), 21.5) is None
    sessions.event(SessionUp(ONE), 22.0)
    sessions.event(Update(ONE, (path(ONE, A),)), 22.1)
    assert len(sessions.rib.paths()) == 3
    sessions.event(EndOfRib(ONE, Family.IPV4), 22.2)
    assert set(sessions.rib.table(ONE)) == {A, SIX}
    sessions.event(EndOfRib(ONE, Family.IPV6), 22.3)
    assert set(sessions.rib.table(ONE)) == {A}


def test_a_new_exabgp_found_with_its_session_up_does_not_lose_what_is_to_come() -> None:
    """What its dump does not list yet is stale, not gone."""
    sessions = fresh()
    sessions.event(SessionUp(ONE), 10.0)
    sessions.event(Update(ONE, (path(ONE, A), path(ONE, B))), 11.0)
    sessions.lost(20.0)
    sessions.exabgp_restarted(21.0)
    read_back(sessions, [state(ONE, duration_s=0)], [path(ONE, A)], is_same=False, now_s=21.0)
    assert set(sessions.rib.table(ONE)) == {A, B}
    assert sessions.rib.stale(ONE) == {B}
    sessions.event(EndOfRib(ONE, Family.IPV4), 22.0)
    assert set(sessions.rib.table(ONE)) == {A}


def test_stale_paths_do_not_outlive_the_hold() -> None:
    """Counted from the first loss, however often ExaBGP dies again."""
    sessions = learned_then_exabgp_died()
    sessions.lost(60.0)
    assert sessions.tick(20.0 + RESTART_HOLD_S - 0.1) == []
    assert sessions.tick(20.0 + RESTART_HOLD_S) == [f"stale_hold_over:{ONE}"]
    assert sessions.rib.paths() == {}


def test_an_exabgp_that_ends_in_good_order_is_a_lost_exabgp() -> None:
    """Its farewell reads like a lost session, and is not one."""
    sessions = fresh()
    sessions.event(SessionUp(ONE), 10.0)
    sessions.event(Update(ONE, (path(ONE, A),)), 11.0)
    sessions.event(SessionDown(ONE, SHUTTING_DOWN), 12.0)
    assert sessions.event(SpeakerShutdown(), 12.0) == "speaker_shutdown"
    assert sessions.rib.stale(ONE) == {A}
    assert not sessions.is_established(ONE)


def test_ipv6_routes_without_a_usable_next_hop_are_asked_for_again() -> None:
    """Until they have come the peer is not complete; its mark of the end settles it."""
    sessions = Sessions()
    dump: list[Path | Rejection] = [path(ONE, A), Rejection(SIX, NEXT_HOP_LINK_LOCAL)]
    assert read_back(sessions, [state(ONE)], dump) == {(ONE, Family.IPV6)}
    assert not sessions.is_complete(ONE, QUIET_S)
    assert sessions.rejections() == ()
    sessions.event(Update(ONE, (path(ONE, SIX),)), 1.0)
    assert sessions.event(RefreshEnd(ONE, Family.IPV6), 1.1) == f"refreshed:{ONE}"
    assert sessions.is_complete(ONE, 1.0 + QUIET_S)
    assert set(sessions.rib.table(ONE)) == {A, SIX}


def test_an_ipv6_route_we_know_is_kept_while_it_is_asked_for_again() -> None:
    """A reconnecting bridge does not cost IPv6 a second; what is not sent again goes."""
    sessions = Sessions()
    read_back(sessions, [state(ONE)], [path(ONE, SIX), path(ONE, A)], now_s=0.0)
    sessions.lost(5.0)
    dump: list[Path | Rejection] = [Rejection(SIX, NEXT_HOP_LINK_LOCAL), path(ONE, A)]
    assert read_back(sessions, [state(ONE, duration_s=1006)], dump, now_s=6.0) == {
        (ONE, Family.IPV6)
    }
    assert set(sessions.rib.table(ONE)) == {A, SIX}
    sessions.event(RefreshEnd(ONE, Family.IPV6), 7.0)
    assert set(sessions.rib.table(ONE)) == {A}


def test_a_refresh_without_a_mark_ends_when_the_peer_is_quiet() -> None:
    """RFC 2918 alone marks no end."""
    sessions = Sessions()
    read_back(sessions, [state(ONE)], [Rejection(SIX, NEXT_HOP_LINK_LOCAL)], now_s=0.0)
    sessions.event(Update(ONE, (path(ONE, SIX),)), 3.0)
    assert sessions.tick(3.0 + REFRESH_QUIET_S - 0.1) == []
    assert sessions.tick(3.0 + REFRESH_QUIET_S) == [f"complete:{ONE}"]


def test_peers_that_are_not_configured_are_not_heard() -> None:
    """A removed peer's last words, and its routes, are nobody's."""
    sessions = fresh()
    for peer in (ONE, TWO):
        sessions.event(SessionUp(peer), 1.0)
        sessions.event(Update(peer, (path(peer, A),)), 1.0)
    sessions.configure({ONE: US})
    assert set(sessions.statuses()) == {ONE}
    assert set(sessions.rib.paths()) == {(ONE, A)}
    assert sessions.event(Update(TWO, (path(TWO, B),)), 2.0) is None
    assert sessions.event(SessionUp(TWO), 2.0) is None
    read_back(sessions, [state(ONE), state(TWO)], [path(ONE, A), path(TWO, A)], now_s=3.0)
    assert set(sessions.rib.paths()) == {(ONE, A)}


def test_a_configured_peer_that_exabgp_does_not_know_is_idle() -> None:
    """It has not loaded the file yet."""
    sessions = Sessions()
    sessions.configure({ONE: US, TWO: US})
    read_back(sessions, [state(ONE)])
    assert sessions.statuses()[TWO].state is SessionState.IDLE


@pytest.mark.parametrize("reason", ["next-hop-loopback", "host-bits"])
def test_rejections_are_remembered_and_bounded(reason: str) -> None:
    """The last ones, from updates and from dumps."""
    sessions = fresh()
    sessions.event(SessionUp(ONE), 1.0)
    for _ in range(MAX_REJECTIONS + 5):
        sessions.event(Update(ONE, rejected=(Rejection(A, "other"),)), 1.0)
    read_back(sessions, [state(ONE)], [Rejection(B, reason)])
    assert len(sessions.rejections()) == MAX_REJECTIONS
    assert sessions.rejections()[-1] == RejectedRoute(ONE, B, reason)
