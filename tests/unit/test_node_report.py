"""What a node reports: its NodeStatus, and what is news."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, ip_network

import pytest

from bgp.paths import PeerStatus, SessionState
from routing.datastore.resources import from_document, to_document
from routing.datastore.snapshot import ConditionStatus, StoreError
from routing.import_policy import RejectedPath
from routing.last_peers import LastPeers
from routing.node_report import Noticed, essence, news, node_status
from routing.ownership import OwnershipConflict
from routing.reporting import HEARTBEAT_S, Reporter
from routing.topology import SessionIntent, SessionKind
from routing.view import status_row
from tests.unit.test_view import REMOTE, TOR, belief, make_path

NOW = datetime(2026, 11, 26, 10, 0, 0, tzinfo=UTC)
DOWN = PeerStatus(TOR, SessionState.IDLE, since_s=95.0, last_reason="Hold Timer Expired (4/0)")


def seen(**changes):
    """A healthy node with a session of BGPPeer ``to-the-rack``."""
    intent = SessionIntent(
        "tor", SessionKind.ROUTER, TOR, 64512, 64601, IPv4Address("172.30.0.1"), "to-the-rack"
    )
    found = belief()
    fields = changes.pop("desired", {})
    desired = replace(found.desired, sessions={TOR: intent}, **fields)
    return replace(found, desired=desired, **changes)


def status(what, *, unready=None, now=NOW, before=None):
    """Its NodeStatus."""
    return node_status(what, unready=unready, now=now, before=before)


def true(report):
    """Condition types to whether they are true."""
    return {c.type: c.status is ConditionStatus.TRUE for c in report.conditions}


def test_a_healthy_node_reports_its_sessions_routes_and_addresses():
    """And the document reads back to the same."""
    report = status(seen())

    (peer,) = report.peers
    assert (peer.name, peer.state, peer.received, peer.accepted) == (
        "to-the-rack", "Established", 1, 1
    )  # fmt: skip
    assert peer.since == "2026-11-26T09:59:00Z"
    assert report.routes == {"pod": 1, "block": 1, "remote": 1}
    assert report.addresses == {"used": 1, "resting": 0, "free": 63}
    well = {"Ready", "FIBInSync", "Established", "PeersConfigured"}
    assert true(report) == {**dict.fromkeys(well, True), "Degraded": False}
    assert not any(c.is_bad for c in report.conditions)
    assert from_document(to_document(report)) == report


def test_what_is_wrong_is_a_condition_with_its_sentence():
    """A session down, a route missing, and why no pod can be added."""
    gone = {k: v for k, v in belief().actual.items() if k.prefix != REMOTE}
    report = status(seen(actual=gone, sessions={TOR: DOWN}), unready="no address is free")

    ill = {"Ready", "FIBInSync", "Established"}
    assert true(report) == {
        **dict.fromkeys(ill, False), "PeersConfigured": True, "Degraded": False
    }  # fmt: skip
    assert {c.type for c in report.conditions if c.is_bad} == ill
    text = {c.type: c.message for c in report.conditions}
    assert text["Ready"] == "no address is free"
    assert text["FIBInSync"].startswith("route 10.244.2.0/26 is missing")
    assert text["Established"] == "tor (172.30.0.0): Hold Timer Expired (4/0)"


def test_who_holds_our_place_behind_us_is_told_and_the_condition_stays_true():
    """One Event for each that comes, and none for what it does again."""
    what = seen(contested={REMOTE: "held by protocol 99 (unknown) at metric 1032"})
    (condition,) = (c for c in status(what).conditions if c.type == "FIBInSync")
    assert (condition.status.value, condition.reason) == ("True", "InFrontOfOthers")
    assert "protocol 99" in condition.message
    found = news(what, {}, Noticed())
    assert [(e.reason, "protocol 99" in e.message) for e in found.events] == [
        ("RouteConflict", True)
    ]
    assert news(what, {}, found.noticed).events == ()
    other = seen(contested={REMOTE: "held by protocol 98 (unknown) at metric 1032"})
    assert len(news(other, {}, found.noticed).events) == 1


def test_a_disk_that_cannot_be_written_degrades_and_takes_nothing_away():
    """Degraded is true with path and reason, Ready stays; the Event comes once each time."""
    sentence = "/var/lib/slash32 cannot be written: Read-only file system"
    ill = seen(degraded=[sentence])
    report = status(ill)
    assert true(report)["Degraded"]
    assert true(report)["Ready"]
    (bad,) = [c for c in report.conditions if c.is_bad]
    assert (bad.type, bad.reason, bad.message) == ("Degraded", "DiskNotWritable", sentence)
    assert status_row(ill)["findings"] == [f"Degraded: {sentence}"]
    assert status_row(seen())["findings"] == []

    told = news(ill, {}, Noticed())
    assert reasons(told) == [("DiskNotWritable", "Node", "n1")]
    again = news(ill, {}, told.noticed)
    assert reasons(again) == []
    assert reasons(news(ill, {}, news(seen(), {}, again.noticed).noticed)) != []


def test_a_condition_keeps_its_time_while_it_is_as_true():
    """However its sentence changes."""
    first = status(seen(sessions={TOR: DOWN}))
    again = status(
        seen(sessions={TOR: replace(DOWN, last_reason="Cease")}),
        now=NOW + timedelta(minutes=5),
        before=first,
    )
    up = status(seen(), now=NOW + timedelta(minutes=9), before=again)

    times = [
        next(c.changed_at for c in each.conditions if c.type == "Established")
        for each in (first, again, up)
    ]
    assert times == ["2026-11-26T10:00:00Z", "2026-11-26T10:00:00Z", "2026-11-26T10:09:00Z"]


def reasons(found):
    """Event reasons with whom they are about."""
    return [(event.reason, event.kind, event.name) for event in found.events]


def test_a_session_that_goes_down_is_news_once():
    """With the notification's text; one that was never up is none."""
    assert reasons(news(seen(sessions={TOR: DOWN}), {}, Noticed())) == []
    up = news(seen(), {}, Noticed())
    assert reasons(up) == []
    down = news(seen(sessions={TOR: DOWN}), {}, up.noticed)
    assert reasons(down) == [("PeerDown", "BGPPeer", "to-the-rack")]
    assert "n1 with 172.30.0.0" in down.events[0].message
    assert "Hold Timer Expired (4/0)" in down.events[0].message
    assert reasons(news(seen(sessions={TOR: DOWN}), {}, down.noticed)) == []


def test_what_another_hand_did_to_links_is_one_event_each_time():
    """A tool that sweeps over all links is one piece of news, not hundreds."""
    what = seen(mended=[(1, "sysctl a: expected 1, found 0"), (2, "sysctl b: expected 1, found 0")])
    found = news(what, {}, Noticed())
    assert reasons(found) == [("PodLinkRepaired", "Node", "n1")]
    assert found.events[0].message.endswith("sysctl a: expected 1, found 0 (and 1 more)")
    assert reasons(news(what, {}, found.noticed)) == []
    again = news(seen(mended=[(2, "b"), (3, "c")]), {}, found.noticed)
    assert again.events[0].message.endswith("changed: c")


def test_conflicts_exhausted_pools_and_rejected_routes_are_news():
    """Each once while it lasts; of rejected routes the first of each reason and peer."""
    other = make_path(ip_network("10.9.0.0/24"))
    what = seen(
        desired={
            "conflicts": (OwnershipConflict(REMOTE, "n2", "n3", TOR),),
            "rejected": (
                RejectedPath(make_path(), "not-in-pool", "10.244.2.0/26 is in no IPPool"),
                RejectedPath(other, "not-in-pool", "10.9.0.0/24 is in no IPPool"),
            ),
        },
        failures=[("route 10.244.1.5/32", "create", "held by protocol 3")],
    )
    found = news(what, {"four": "no IPv4 address is free"}, Noticed())

    assert reasons(found) == [
        ("RouteConflict", "Node", "n1"),
        ("RouteConflict", "Node", "n1"),
        ("PoolExhausted", "IPPool", "four"),
        ("RouteRejected", "BGPPeer", "to-the-rack"),
    ]
    assert "10.244.2.0/26 is not used: not-in-pool" in found.events[3].message
    assert reasons(news(what, {"four": "still"}, found.noticed)) == []
    calm = news(seen(), {}, found.noticed)
    again = news(what, {"four": "again"}, calm.noticed)
    assert [reason for reason, *_ in reasons(again)] == ["RouteConflict"] * 2 + ["PoolExhausted"]


def test_last_peers_are_a_condition_and_news_once():
    """With the time that is left, as `slash32 status` says it."""
    kept = LastPeers(("tor",), 540.0, "the store has no BGPPeer any more")
    report = status(seen(last_peers=kept))
    (condition,) = [c for c in report.conditions if c.type == "PeersConfigured"]
    assert (condition.status, condition.reason) == (ConditionStatus.FALSE, "LastPeersKept")
    assert "9 min 00 s" in condition.message
    told = news(seen(last_peers=kept), {}, Noticed())
    assert reasons(told) == [("LastPeersKept", "Node", "n1")]
    assert reasons(news(seen(last_peers=kept), {}, told.noticed)) == []


class Board:
    """Remembers what was written; fails when it is told to."""

    def __init__(self):
        self.reports, self.events, self.is_away = [], [], False
        self.conditions = []
        self.written = asyncio.Event()

    async def put_node_status(self, status):
        if self.is_away:
            raise StoreError("away")
        self.reports.append(status)
        self.written.set()

    async def set_network_unavailable(self, node, why):
        self.conditions.append((node, why))

    async def note_event(self, event):
        self.events.append(event)


class World:
    """A reporter, what its agent believes, and its clock."""

    def __init__(self):
        self.board, self.what, self.now_s = Board(), seen(), 0.0
        self.unready = None

        async def believed():
            return self.what

        self.reporter = Reporter(
            self.board,
            belief=believed,
            unready=lambda: self.unready,
            starved=dict,
            clock=lambda: self.now_s,
            wall=lambda: NOW + timedelta(seconds=self.now_s),
        )

    async def look(self, after_s):
        self.now_s += after_s
        await self.reporter.look()
        return len(self.board.reports)


@pytest.fixture
def world():
    """One node's."""
    return World()


async def test_a_report_is_written_on_change_and_as_a_sign_of_life(world):
    """Not for counters; and not the same again before the minute is over."""
    assert await world.look(0) == 1
    assert await world.look(5) == 1
    world.what = seen(sessions={TOR: DOWN})
    assert await world.look(5) == 2
    assert await world.look(5) == 2
    assert await world.look(HEARTBEAT_S) == 3
    assert essence(world.board.reports[1]) == essence(world.board.reports[2])
    assert world.board.reports[1].observed_at != world.board.reports[2].observed_at


async def test_the_nodes_condition_is_set_first_on_change_and_as_a_sign_of_life(world):
    """True with the reason while pods are not served, False when they are; never in between."""
    await world.look(0)
    await world.look(5)
    world.unready = "no BGP session is left"
    await world.look(5)
    await world.look(5)
    world.unready = None
    await world.look(5)
    assert [why for _, why in world.board.conditions] == [None, "no BGP session is left", None]
    await world.look(HEARTBEAT_S)
    assert len(world.board.conditions) == 4


async def test_a_look_that_stumbles_does_not_end_the_agent(world):
    """The kernel could not be read, say; the next look is as good as any."""
    looks = 0

    async def stumbles():
        nonlocal looks
        looks += 1
        if looks == 1:
            raise OSError("netlink")
        return world.what

    world.reporter._belief = stumbles
    running = asyncio.create_task(world.reporter.run(every_s=0.001))
    async with asyncio.timeout(5):
        await world.board.written.wait()
    running.cancel()

    assert looks >= 2


async def test_a_board_that_is_away_costs_nothing_but_the_report(world):
    """The next look writes what is so then."""
    world.board.is_away = True
    assert await world.look(0) == 0
    assert world.reporter.fault == "away"
    world.board.is_away = False
    assert await world.look(5) == 1
    assert world.reporter.fault is None
