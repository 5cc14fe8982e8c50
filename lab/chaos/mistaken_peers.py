"""O: what the store says of peers is a mistake: selectors that match nobody, two of one
address, none at all.

The sessions that are there carry every pod's packets. What is wrong is told, in the object's own
conditions; what is there stays, for as long as it is likelier an accident than a wish.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress

from lab.chaos.control_plane import PEERS, answers, peer, tells_of
from lab.chaos.rows import Row, Stage, Verdict
from lab.chaos.world import World, zero
from lab.plan import LabFailure

LAST_GOOD_S = 600.0


def peers_of_nobody(world: World, verdict: Verdict) -> None:
    """A peer whose nodeSelector, and one whose peerSelector, matches no node."""
    sessions = world.session_lines("tor1")
    lonely = peer("lonely", "192.0.2.79")
    lonely["spec"]["nodeSelector"] = "rack == 'none'"
    friendless = peer("friendless", "192.0.2.80")
    friendless["spec"] = {"peerSelector": "role == 'nobody'"}
    with world.watching() as watch:
        said_s = {}
        for made in (lonely, friendless):
            name = made["metadata"]["name"]
            world.api(PEERS, made)
            said_s[name] = world.wait(
                lambda name=name: "NoMatchingNode" in _ready(world, name),  # type: ignore[misc]
                "the condition",
                180.0,
            )
        world.for_seconds(3.0)
    for name in said_s:
        world.api(f"{PEERS}/{name}", method="DELETE")
    world.settled()
    verdict.note(f"NoMatchingNode after {' and '.join(f'{s:.0f} s' for s in said_s.values())}")
    zero(world, verdict, watch)
    verdict.must(world.session_lines("tor1") == sessions, "a session was touched")


def twins(world: World, verdict: Verdict) -> None:
    """Two more peers with the address of node1's, one that sorts before it and one after, with
    another ASN and hold time; the agent is killed while they are there."""
    sessions = world.session_lines("tor1")
    (address,) = {str(row["peer"]) for row in world.lab.ask("node1", "peers")}
    names = ("aa-twin", "zz-twin")
    with world.watching() as watch:
        for name in names:
            twin = peer(name, address)
            twin["spec"] |= {"node": "node1", "holdTime": "30s"}
            world.api(PEERS, twin)
        told_s = world.wait(
            lambda: all(name in _node1_findings(world) for name in names), "the twins to be told"
        )
        said_s = world.wait(
            lambda: all("Conflicting" in _ready(world, name) for name in names),
            "the condition", 180.0,
        )  # fmt: skip
        world.kill("agent-node1")
        world.start_agent("node1")
        world.wait(lambda: all(name in _node1_findings(world) for name in names), "the new agent")
        world.for_seconds(3.0)
        used = {row["name"] for row in world.lab.ask("node1", "peers")}
    for name in names:
        world.api(f"{PEERS}/{name}", method="DELETE")
    world.settled()
    verdict.note(f"named after {told_s:.1f} s, Conflicting after {told_s + said_s:.0f} s; "
                 f"{', '.join(used)} is used throughout")  # fmt: skip
    zero(world, verdict, watch)
    verdict.must(used == {"node1-tor1"}, f"used is {used}")
    verdict.must(world.session_lines("tor1") == sessions, "a session was touched")


def _ready(world: World, name: str) -> str:
    conditions = world.api(f"{PEERS}/{name}").get("status", {}).get("conditions", [])
    return str([c for c in conditions if c["type"] == "Ready"])


def _node1_findings(world: World) -> str:
    with suppress(LabFailure):
        return str(world.lab.ask("node1", "status")["findings"])
    return ""


def all_peers_vanish(world: World, verdict: Verdict) -> None:
    """Every BGPPeer is deleted at once, as by a bad deployment; a minute later an agent is killed.
    The last good ones are kept for ten minutes, and then what the store says is done."""
    sessions = world.session_lines("tor1")
    with world.watching() as watch:
        deleted_s = {}
        for node in world.nodes:
            # Each node's time begins when its own is gone, some of a second before the next's.
            deleted_s[node] = time.monotonic()
            world.api(f"{PEERS}/{node}-tor1", method="DELETE")
        began_s = time.monotonic()
        told_s = world.wait(lambda: tells_of(world, "last good peers"), "agents to tell")
        condition_s = told_s + world.wait(
            lambda: "LastPeersKept" in _conditions_of(world, "node1"), "the condition"
        )
        events = world.api("/apis/events.k8s.io/v1/events")["items"]
        is_event = any(event.get("reason") == "LastPeersKept" for event in events)
        metric = _metric(world, "node1", "slash32_bgp_last_peers_kept")
        world.for_seconds(max(0.0, 60.0 - (time.monotonic() - began_s)))
        world.kill("agent-node1")
        world.start_agent("node1")
        world.wait(lambda: answers(world, "node1"), "the new agent")
        world.for_seconds(max(0.0, LAST_GOOD_S - 5.0 - (time.monotonic() - began_s)))
        untouched = world.session_lines("tor1") == sessions
    gone_s = {}
    for node in world.nodes:
        world.wait(lambda node=node: not _learned(world, node), "the routes to go")  # type: ignore[misc]
        gone_s[node] = time.monotonic() - deleted_s[node]
    verdict.note(
        f"told after {told_s:.1f} s, condition after {condition_s:.1f} s; kept for "
        f"{min(gone_s.values()):.1f} to {max(gone_s.values()):.1f} s"
    )
    zero(world, verdict, watch)
    verdict.must(untouched, "a session was touched")
    verdict.must(is_event, "there is no Event LastPeersKept")
    verdict.must(metric == 1.0, f"the metric is {metric}")
    verdict.must(min(gone_s.values()) >= LAST_GOOD_S, f"gone after {min(gone_s.values()):.1f} s")
    # The sessions end with their configuration, and the learned routes with them.
    verdict.must(max(gone_s.values()) <= LAST_GOOD_S + 10, f"kept for {max(gone_s.values()):.1f} s")


def _learned(world: World, node: str) -> list[str]:
    return [line for line in world.own_routes(node) if " via " in line]


def _conditions_of(world: World, node: str) -> str:
    with suppress(LabFailure):
        found = world.api(f"/apis/slash32.io/v1/nodestatuses/{node}").get("status", {})
        return str(found.get("conditions", []))
    return ""


_SCRAPE = """
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:9178/metrics", timeout=10).read().decode())
"""


def _metric(world: World, node: str, name: str) -> float | None:
    """A gauge without labels of a node's agent."""
    text = world.run(node, sys.executable, "-c", _SCRAPE)
    values = [line.split()[1] for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(values[0]) if values else None


_K8S = Stage.KUBERNETES

ROWS = [
    Row("O6", "a peer whose nodeSelector and one whose peerSelector matches no node",
        "condition NoMatchingNode, sessions untouched, 0 lost, 0 route events", _K8S,
        peers_of_nobody, control="R0"),
    Row("O6b", "every BGPPeer deleted at once; an agent killed a minute later",
        "the last good kept for 10 min (+10 s at most), told by status, condition, Event and "
        "metric; 0 lost, 0 route events, sessions untouched until then (controls: T0, O6c)", _K8S,
        all_peers_vanish, control="R0", leaves_lab=False),
    Row("O7", "two younger peers with the address of a third, sorting before and after it; the "
        "agent killed", "the older is used, the others Conflicting; session untouched, 0 lost, 0 "
        "route events", _K8S, twins, control="R0"),
]  # fmt: skip
