"""The live page as text: whole without JavaScript, escaped, and cheap."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from bgp.paths import PeerStatus, SessionState
from cni.ipam.block import Block, BlockState
from routing.datastore.snapshot import BGPPeerResource, IPPoolResource, Meta, NodeResource
from routing.journal import Journal, read_journal, read_journal_end
from routing.picture.heatmap import CELLS_MAX, FILL_MIN, to_heatmap
from routing.report import PassReport
from routing.web import live
from routing.web.pages import pages
from routing.web.recent import KEEP_S, JournalRecent, Line
from tests.fakes.observation import BLOCK, TOR1, TOR2, observation

POOL = IPPoolResource(Meta("pods"), ip_network("10.244.0.0/16"), 26)


def seen(**changes):
    """The fixture's node, with the configuration that its sessions come from."""
    base = observation()
    snapshot = replace(
        base.snapshot,
        nodes=(NodeResource(Meta("n1"), (TOR1 + 1,), asn=64601),),
        peers=(
            BGPPeerResource(Meta("tor1"), TOR1, 64512),
            BGPPeerResource(Meta("tor2"), TOR2, 64512),
        ),
        blocks=(BLOCK, Block(ip_network("10.244.9.0/26"), "pods", "n2", BlockState.CONFIRMED)),
    )
    return observation(**({"snapshot": snapshot} | changes))


def well():
    """Everything up and nothing refused."""
    base = observation()
    report = PassReport(
        desired=replace(base.report.desired, rejected=()), finished_at_s=999.0, passes=3
    )
    up = {
        peer: PeerStatus(peer, SessionState.ESTABLISHED, 400.0, routes_received=1,
                         routes_advertised=1)
        for peer in (TOR1, TOR2)
    }  # fmt: skip
    return seen(report=report, sessions=up)


EVENTS = [Line(1_700_000_000 - 65, "warning", "route_lost", "prefix=10.244.2.0/26 <b>")]


def test_a_healthy_node_says_so():
    """In one word."""
    text = live.page(well(), [])
    assert "● healthy" in text
    assert "Findings" not in text


def test_everything_is_in_the_page_itself():
    """Sessions, pools, routes, events: nothing waits for a script."""
    text = live.page(seen(), EVENTS)
    for part in (
        "✕ Findings:", "peer reset", "172.30.1.0", "pods", "2 of 1024 (/26)", "not-in-pool",
        "held by protocol 3", "store-out-of-sync", "route_lost", "65s ago",
    ):  # fmt: skip
        assert part in text, part
    assert "<b>" not in text.partition("route_lost")[2].partition("</td>")[2].partition("</td>")[0]


def test_what_is_fetched_is_what_is_in_place():
    """The page holds the same content that the script puts there."""
    assert live.content(seen(), EVENTS) in live.page(seen(), EVENTS)


def test_without_a_speaker_no_session_is_shown_as_up():
    """A memory is no session."""
    text = live.content(replace(well(), is_speaker_connected=False), [])
    assert "ExaBGP is not connected to the agent" in text
    assert "● Established" not in text


def test_only_its_own_script_may_run():
    """By hash; another one, an image or a frame may not."""
    policy = live.page_policy()
    assert "unsafe" not in policy
    assert policy.count("sha256-") == 2
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert " style=" not in live.page(seen(), EVENTS)


@pytest.mark.parametrize("path", ["/", "/live"])
async def test_the_pages_are_served(path: str):
    """With what happened in the last hour."""

    class Recent:
        def since(self, at_s: float) -> list[Line]:
            return [line for line in EVENTS if line.at_s >= at_s]

    served = pages(
        observe=seen, recent=Recent(), readiness=lambda: None, last_pass_s=lambda: 0.0,
        clock=lambda: 1.0, wall=lambda: 1_700_000_000.0,
    )  # fmt: skip
    reply = await served[path]()
    assert reply.content_type.startswith("text/html")
    assert b"route_lost" in reply.body


# -- the heat map --------------------------------------------------------------------------------


def test_blocks_are_told_apart_without_colour():
    """Ours framed and filled, another's solid, an unconfirmed one dashed, the rest free."""
    pending = Block(ip_network("10.244.2.0/26"), "pods", "n1", BlockState.PENDING)
    other = Block(ip_network("10.244.3.0/26"), "pods", "n2", BlockState.CONFIRMED)
    text = to_heatmap(POOL, [BLOCK, pending, other], {BLOCK.cidr: (32, 64)})
    assert text.count('class="own"') == 1
    assert text.count('class="use"') == 1
    assert text.count('class="pend"') == 1
    assert text.count('class="other"') == 1
    assert text.count("v14h-14z") == 1024 - 3
    assert "10.244.1.0/26 n1 confirmed, 32 of 64 addresses in use" in text


def test_use_is_a_height():
    """Half full is half a square; one address is to be seen too."""
    half = to_heatmap(POOL, [BLOCK], {BLOCK.cidr: (32, 64)})
    one = to_heatmap(POOL, [BLOCK], {BLOCK.cidr: (1, 64)})
    none = to_heatmap(POOL, [BLOCK], {BLOCK.cidr: (0, 64)})
    assert 'class="use"' in half
    assert 'height="7"/>' in half
    assert f'height="{FILL_MIN}"/>' in one
    assert 'height="0"/>' in none


@pytest.mark.parametrize(("cidr", "size"), [("10.0.0.0/8", 26), ("fd00::/64", 122)])
def test_a_huge_pool_is_drawn_coarser(cidr: str, size: int):
    """A square for many blocks; never more squares than a screen has."""
    network = ip_network(cidr)
    pool = IPPoolResource(Meta("big"), network, size)
    first = ip_network(f"{network.network_address}/{size}")
    text = to_heatmap(pool, [Block(first, "big", "n1", BlockState.CONFIRMED)], {first: (1, 64)})
    assert text.count("v14h-14z") == CELLS_MAX
    assert "each square is" in text
    assert "1 of" in text


def test_blocks_outside_the_pool_are_left_out():
    """Another pool has them."""
    assert 'class="own"' not in to_heatmap(
        IPPoolResource(Meta("other"), ip_network("10.245.0.0/16"), 26), [BLOCK], {}
    )
    assert "0 of 1 blocks" in to_heatmap(
        IPPoolResource(Meta("tiny"), ip_network("10.9.0.0/26"), 26), [], {}
    )


# -- what happened lately ------------------------------------------------------------------------


def test_the_last_hours_lines_outlive_the_agent(tmp_path: Path):
    """What one agent wrote, a page of the next one shows; newest first, what is older is not."""
    now_s = 10_000.0
    path = tmp_path / "journal"
    assert JournalRecent(path).since(0) == []
    journal = Journal(path, clock=lambda: now_s)
    journal.add({"kind": "agent", "action": "started"})
    now_s += 4000
    entry = {"kind": "session", "action": "down", "peer": "192.0.2.1", "reason": "hold timer"}
    journal.add(entry)
    journal.add({"kind": "route", "action": "created", "prefix": "10.0.0.0/8", "detail": "via x"})
    journal.close()
    assert JournalRecent(path).since(now_s - KEEP_S) == [
        Line(now_s, "info", "route created", "10.0.0.0/8; via x"),
        Line(now_s, "warning", "session down", "192.0.2.1; hold timer"),
    ]


def test_only_the_end_of_a_long_journal_is_read_across_its_two_files(tmp_path: Path):
    """A line that the cut goes through is none; the older file fills up what the newer lacks."""
    path = tmp_path / "journal"
    journal = Journal(path, clock=lambda: 1.0, max_bytes=4000)
    for number in range(100):
        journal.add({"kind": "route", "action": "created", "what": f"{number:03}"})
    journal.close()
    assert (tmp_path / "journal.1").exists()
    whole = [each["what"] for each in read_journal(path)]
    ends = [each["what"] for each in read_journal_end(path, max_bytes=1000)]
    assert 10 < len(ends) < len(whole)
    assert ends == whole[-len(ends) :]
    everything = [each["what"] for each in read_journal_end(path, max_bytes=1 << 20)]
    assert everything == whole


def test_a_journal_that_cannot_be_read_is_said(tmp_path: Path):
    """An empty table would be taken for peace."""
    (tmp_path / "journal").mkdir()
    (line,) = JournalRecent(tmp_path / "journal").since(0)
    assert "cannot be read" in line.detail
