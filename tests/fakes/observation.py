"""A node's Observation for tests of metrics: one peer up, one down, one path rejected."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

from bgp.paths import Path, Peer, PeerStatus, SessionState
from cni.ipam.block import Block, BlockState
from cni.timings import Timings
from routing.datastore.snapshot import IPPoolResource, Meta, Snapshot
from routing.delta import Failure
from routing.desired import Desired
from routing.import_policy import RejectedPath
from routing.metrics.families import Observation
from routing.metrics.fib_tally import FibTally
from routing.report import Held, PassReport
from routing.routes import NextHop, Route, RouteKey, RouteKind

TOR1, TOR2 = ip_address("172.30.0.0"), ip_address("172.30.1.0")
BLOCK = Block(ip_network("10.244.1.0/26"), "pods", "n1", BlockState.CONFIRMED)
REMOTE = ip_network("10.244.2.0/26")
BAD = Path(TOR1, ip_network("192.0.2.0/24"), TOR1, (64512,), 1)


def peer(name: str, address: Any) -> Peer:
    return Peer(name, address, 64512, 64601, address + 1, IPv4Address("172.30.0.1"))


def route(prefix: Any, *hops: NextHop) -> Route:
    return Route(RouteKey(prefix), hops)


def observation(**changes: Any) -> Observation:
    """As the agent would see it; each field can be replaced."""
    routes = [route(BLOCK.cidr), route(REMOTE, NextHop("uplink0", TOR1))]
    tally = FibTally(lambda: 0.0)
    tally.changes = {("create", "ok"): 2, ("create", "failed"): 1}
    tally.drift = {"create": 3}
    tally.installed = 2
    tally.update_to_kernel.observe((), 0.004)
    requests, phases = Timings(), Timings()
    requests.observe(("ADD", "ok"), 0.012)
    requests.observe(("ADD", "no_address"), 0.001)
    phases.observe(("assign", "ok"), 0.0004)
    values: dict[str, Any] = {
        "now_s": 1000.0,
        "wall_s": 1_700_000_000.0,
        "version": "0.1.0",
        "python": "3.11.2",
        "node": "n1",
        "report": PassReport(
            desired=Desired(
                routes={r.key: r for r in routes},
                kinds={routes[0].key: RouteKind.BLOCK, routes[1].key: RouteKind.REMOTE},
                peers={TOR1: peer("tor1", TOR1), TOR2: peer("tor2", TOR2)},
                rejected=(RejectedPath(BAD, "not-in-pool", "why"),),
            ),
            failures=(
                Failure(f"route {REMOTE}", "create", "held by protocol 3 (boot) at metric 1032"),
            ),
            held=(Held("route 10.244.9.0/26", "store-out-of-sync"),),
            finished_at_s=990.0,
            passes=7,
        ),
        "snapshot": Snapshot(
            pools=(IPPoolResource(Meta("pods"), ip_network("10.244.0.0/16"), 26),), blocks=(BLOCK,)
        ),
        "sessions": {
            TOR1: PeerStatus(
                TOR1, SessionState.ESTABLISHED, 400.0, flaps=2, routes_received=2,
                routes_advertised=1,
            ),
            TOR2: PeerStatus(TOR2, SessionState.IDLE, 900.0, "peer reset"),
        },
        "is_speaker_connected": True,
        "unreadable_lines": 0,
        "fib": tally,
        "cni_requests": requests,
        "cni_phases": phases,
        "own_blocks": [(BLOCK, 5, 1, 58)],
        "store_read_at_s": 995.0,
        "writable": {"/run/slash32": True, "/var/lib/slash32": False},
    }  # fmt: skip
    return Observation(**(values | changes))
