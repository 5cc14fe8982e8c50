"""The rows the CLI prints: desired, kernel and BGP joined into one verdict each."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest

from bgp.adj_rib import AdjRibIn
from bgp.paths import Path, Peer, PeerStatus, SessionState, Update
from bgp.sessions import RejectedRoute
from cni.attachment import Attachment, PodRef
from cni.ipam.block import Block, BlockState
from routing.datastore.snapshot import BGPPeerResource, Meta
from routing.desired import Desired, desired
from routing.import_policy import RejectedPath
from routing.route_table import RouteTable
from routing.routes import NextHop, Route, RouteKey, RouteKind
from routing.topology import AbsentPeer, SessionIntent, SessionKind
from routing.view import (
    Belief,
    BlockUse,
    PodView,
    block_rows,
    narrowed,
    peer_rows,
    pod_rows,
    route_rows,
    status_row,
)
from routing.view_rib import advertised_rows, kernel_rows, path_rows
from tests.unit.test_desired import inputs, snapshot
from tests.unit.test_desired import path as learned

TOR = ip_address("172.30.0.0")
BLOCK = ip_network("10.244.1.0/26")
REMOTE = ip_network("10.244.2.0/26")


def make_route(prefix, *hops: NextHop) -> Route:
    return Route(RouteKey(prefix), hops)


def make_path(prefix=REMOTE, as_path=(64512, 64602)) -> Path:
    return Path(TOR, prefix, TOR, as_path, len(as_path))


def belief(**changes) -> Belief:
    pod_prefix = ip_network("10.244.1.5/32")
    routes = {
        r.key: r
        for r in (
            make_route(BLOCK),
            make_route(REMOTE, NextHop("uplink0", TOR)),
            make_route(pod_prefix, NextHop("s32abc")),
        )
    }
    values: dict[str, Any] = {
        "now_s": 100.0,
        "node": "n1",
        "version": "0",
        "desired": Desired(
            routes=routes,
            kinds={
                RouteKey(BLOCK): RouteKind.BLOCK,
                RouteKey(REMOTE): RouteKind.REMOTE,
                RouteKey(pod_prefix): RouteKind.POD,
            },
            peers={
                TOR: Peer(
                    "tor", TOR, 64512, 64601, ip_address("172.30.0.1"), IPv4Address("172.30.0.1")
                )
            },
            best={REMOTE: (make_path(),)},
        ),
        "actual": dict(routes),
        "sessions": {TOR: PeerStatus(TOR, SessionState.ESTABLISHED, since_s=40.0)},
        "paths": {(TOR, REMOTE): make_path()},
        "advertised": frozenset({(TOR, BLOCK)}),
        "blocks": [Block(BLOCK, "v4", "n1", BlockState.CONFIRMED)],
        "usage": {BLOCK: BlockUse(1, 0, 63)},
        "pods": [
            PodView(
                Attachment("net", "c1", "eth0"),
                PodRef("default", "web"),
                (ip_address("10.244.1.5"),),
                "s32abc",
                True,
                1500,
            )
        ],
        "held": [],
        "failures": [],
        "store_error": None,
        "speaker_connected": True,
        "last_pass_age_s": 0.1,
    }
    return Belief(**(values | changes))


def test_a_healthy_node_has_no_findings():
    """Everything wanted is there, the session is up."""
    row = status_row(belief())
    assert row["healthy"]
    assert row["findings"] == []
    assert row["routes"]["by_kind"] == {"block": 1, "pod": 1, "remote": 1}
    assert row["peers"] == {"configured": 1, "established": 1}


def test_a_missing_route_is_named_with_the_failure():
    """The reason the kernel gave stands in the row and in the findings."""
    gone = {k: v for k, v in belief().actual.items() if k.prefix != REMOTE}
    seen = belief(actual=gone, failures=[(f"route {REMOTE}", "create", "held by protocol 3")])
    row = next(r for r in route_rows(seen) if r["prefix"] == str(REMOTE))
    assert row["state"] == "missing"
    assert "held by protocol 3" in row["detail"]
    assert any("10.244.2.0/26 is missing" in f for f in status_row(seen)["findings"])


def test_a_route_in_front_of_anothers_is_ok_and_a_finding_that_names_it():
    """It works, and somebody writes into our place."""
    seen = belief(contested={REMOTE: "held by protocol 99 (unknown) at metric 1032; ours ..."})
    row = next(r for r in route_rows(seen) if r["prefix"] == str(REMOTE))
    assert row["state"] == "ok"
    assert "protocol 99" in row["detail"]
    (finding,) = status_row(seen)["findings"]
    assert finding.startswith("route 10.244.2.0/26 is held by protocol 99")
    assert status_row(seen)["routes"]["not_ok"] == 0


def test_a_wrong_route_shows_what_the_kernel_has():
    """Wanted and found side by side."""
    base = belief()
    other = dict(base.actual) | {RouteKey(REMOTE): make_route(REMOTE, NextHop("uplink1", TOR))}
    row = next(r for r in route_rows(belief(actual=other)) if r["prefix"] == str(REMOTE))
    assert row["state"] == "wrong"
    assert "dev uplink1" in row["detail"]


def test_an_unwanted_route_is_stray_or_held_by_its_gate():
    """Held is not a finding: the gate will open."""
    stale = make_route(ip_network("10.244.9.0/26"), NextHop("uplink0", TOR))
    actual = dict(belief().actual) | {stale.key: stale}
    stray = route_rows(belief(actual=actual))[-1]
    assert stray["state"] == "stray"
    held = route_rows(belief(actual=actual, held=[("route 10.244.9.0/26", "store-out-of-sync")]))
    assert (held[-1]["state"], held[-1]["detail"]) == ("held", "store-out-of-sync")


def test_a_rejected_path_is_a_row_with_its_reason():
    """The thing no peer shows."""
    bad = make_path(ip_network("192.0.2.0/24"))
    seen = belief(
        desired=replace(belief().desired, rejected=(RejectedPath(bad, "not-in-pool", "why"),)),
        paths={(TOR, REMOTE): make_path(), (TOR, bad.prefix): bad},
    )
    row = route_rows(seen)[-1]
    assert row["state"] == "rejected"
    assert (row["reason"], row["detail"]) == ("not-in-pool", "not-in-pool: why")
    peer = peer_rows(seen)[0]
    assert (peer["received"], peer["accepted"], peer["advertised"]) == (2, 1, 1)


def test_what_is_no_route_at_all_is_a_row_until_a_good_one_comes():
    """A missing ORIGIN, say: the last word of the peer on that prefix."""
    bad = ip_network("10.244.7.0/26")
    seen = belief(unusable=(RejectedRoute(TOR, bad, "origin-missing"),) * 2)
    rows = [row for row in route_rows(seen) if row["prefix"] == str(bad)]
    assert [(row["state"], row["reason"]) for row in rows] == [("rejected", "origin-missing")]
    mended = replace(seen, paths={**seen.paths, (TOR, bad): make_path(bad)})
    assert str(bad) not in {row["prefix"] for row in route_rows(mended)}


def test_a_peer_that_has_no_session_is_a_row_with_the_reason():
    """Closed for sending too much, a missing Secret, no route: `slash32 peers` tells it."""
    intent = SessionIntent(
        name="tor9",
        kind=SessionKind.ROUTER,
        address=ip_address("172.30.9.0"),
        remote_asn=64512,
        local_asn=64601,
        router_id=IPv4Address("172.30.0.1"),
    )
    closed = AbsentPeer(intent, "closed: it sent 9")
    problem = "peer tor9 172.30.9.0 is closed: it sent 9"
    seen = belief(desired=replace(belief().desired, absent=(closed,), problems=(problem,)))
    row = peer_rows(seen)[-1]
    assert (row["name"], row["state"], row["reason"]) == ("tor9", "Absent", "closed: it sent 9")
    assert [f for f in status_row(seen)["findings"] if "tor9" in f] == [problem]


def test_a_session_that_is_down_says_why():
    """In ExaBGP's words, or that ExaBGP itself is away."""
    down = belief(sessions={TOR: PeerStatus(TOR, SessionState.IDLE, last_reason="peer reset")})
    assert peer_rows(down)[0]["reason"] == "peer reset"
    assert "peer 172.30.0.0 is Idle (peer reset)" in status_row(down)["findings"]
    away = belief(sessions={}, speaker_connected=False)
    assert "ExaBGP is not connected" in peer_rows(away)[0]["reason"]


def test_blocks_show_use_for_ours_and_owner_for_others():
    """Use of another node's block is not ours to know."""
    other = Block(REMOTE, "v4", "n2", BlockState.CONFIRMED)
    rows = block_rows(belief(blocks=[*belief().blocks, other]))
    assert rows[0]["used"] == 1
    assert rows[0]["announced_to"] == ["172.30.0.0"]
    assert rows[1]["node"] == "n2"
    assert rows[1]["used"] is None


def test_a_pod_whose_route_leads_elsewhere_is_not_routed():
    """A /32 to another interface is worse than none."""
    key = RouteKey(ip_network("10.244.1.5/32"))
    wrong = dict(belief().actual) | {key: make_route(key.prefix, NextHop("s32other"))}
    assert pod_rows(belief(actual=wrong))[0]["routed"] is False
    assert any("no host route" in f for f in status_row(belief(actual=wrong))["findings"])
    assert pod_rows(belief())[0]["routed"] is True


def test_a_store_that_is_away_is_a_finding():
    """The node goes on, and says so."""
    assert "store: no such file" in status_row(belief(store_error="no such file"))["findings"]


def test_what_is_wrong_with_blocks_is_a_finding():
    """Such as a block that another node took over while its addresses are in use here."""
    sentence = "block 10.244.1.0/26 is now node-2's"
    assert sentence in status_row(belief(ipam_problems=[sentence]))["findings"]


def big_belief() -> Belief:
    """Learned routes as a pass makes them: good, junk, beyond a limit, wrong, gone, left over."""
    snapshot_ = snapshot(peers=(BGPPeerResource(Meta("tor"), TOR, 64512, max_prefixes=20),))
    rib = AdjRibIn()
    blocks = [learned(f"10.244.{n}.0/26") for n in range(10, 40)]
    junk = [learned(f"10.244.100.{n}/32") for n in range(9)]
    rib.apply(Update(TOR, (*blocks, *junk, learned("203.0.113.0/24"))))
    wanted = desired(replace(inputs(snapshot=snapshot_), offers=rib.offers()))
    actual = RouteTable.of(wanted.routes).copy()
    actual.drop(RouteKey(ip_network("10.244.12.0/26")))
    actual.put(make_route(ip_network("10.244.13.0/26"), NextHop("uplink1", TOR)))
    for number in (200, 201):
        actual.put(make_route(ip_network(f"10.244.{number}.0/26"), NextHop("uplink0", TOR)))
    return belief(
        desired=wanted,
        actual=actual,
        paths=rib.view(),
        held=[("route 10.244.200.0/26", "store-out-of-sync")],
        unusable=[RejectedRoute(TOR, ip_network("10.244.220.0/26"), "next-hop-missing")],
    )


def test_what_status_counts_is_what_the_rows_say():
    """It makes the rows of what is wrong, and of nothing else."""
    seen = big_belief()
    rows = route_rows(seen)
    told = Counter(row["state"] for row in rows)
    assert set(told) == {"ok", "missing", "wrong", "held", "stray", "rejected"}
    status = status_row(seen)["routes"]
    by_kind = Counter(row["kind"] for row in rows if row["state"] == "ok")
    assert status == {
        "ok": told["ok"],
        "not_ok": told["missing"] + told["wrong"] + told["stray"],
        "held": told["held"],
        "rejected": told["rejected"],
        "by_kind": by_kind,
    }
    peer = next(row for row in peer_rows(seen) if row["peer"] == str(TOR))
    assert (peer["received"], peer["accepted"]) == (40, 20)


@pytest.mark.parametrize(
    "asked",
    ["10.244.13.0/26", "10.244.12.7", "10.244.100.0/24", "10.244.0.0/16", "0.0.0.0/0",
     "10.0.0.0/30", "10.244.200.1", "10.244.220.0/26", "2001:db8::/32", "203.0.113.0/24",
     "10.244.39.0/26"],
)  # fmt: skip
def test_narrowed_is_the_same_rows_and_no_others(asked: str):
    """What one asks of one prefix does not depend on how the agent finds it."""
    seen = big_belief()
    wanted = ip_network(asked)
    narrow = narrowed(seen, asked)
    for rows in (route_rows, path_rows, advertised_rows, kernel_rows):
        assert rows(narrow) == [
            row
            for row in rows(seen)
            if (net := ip_network(row["prefix"])).version == wanted.version and net.overlaps(wanted)
        ]


def test_narrowed_by_nonsense_is_the_askers_error():
    """And by nothing is everything."""
    seen = belief()
    assert narrowed(seen, None) is seen
    with pytest.raises(ValueError, match="does not appear"):
        narrowed(seen, "nonsense")
