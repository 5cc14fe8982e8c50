"""L: links and peers that fail. Two nodes, two routers for what ECMP owes; one for the rest."""

from __future__ import annotations

import os
import signal

from lab.chaos.restarts import GR_ON
from lab.chaos.rows import Row, Stage, Verdict
from lab.chaos.world import World

HOLD_S = 9.0


def carrier_loss(world: World, verdict: Verdict) -> None:
    """The only uplink goes down for 3 s and comes back."""
    world.run("node1", "sysctl", "-qw", "net.ipv6.conf.uplink0.keep_addr_on_down=1")
    routes = world.own_routes("node1")
    blocks = set(world.blocks_of("node1"))
    with world.watching(world.flows()[0]) as watch:
        world.run("node1", "ip", "link", "set", "uplink0", "down")
        gone_s = world.wait(lambda: not blocks & world.routes_at("tor1"), "the router to withdraw")
        world.for_seconds(3.0)
        world.run("node1", "ip", "link", "set", "uplink0", "up")
        back_s = world.wait(
            lambda: world.reaches("client", world.address_of(world.pod_on("node1"))), "traffic"
        )
        world.wait(lambda: world.own_routes("node1") == routes, "all kernel routes")
    world.settled()
    verdict.note(f"withdrawn after {gone_s:.2f} s, traffic back after {back_s:.1f} s, {watch}")
    verdict.must(gone_s <= 1.0, f"withdrawn only after {gone_s:.2f} s")
    verdict.must(back_s <= 8.0, f"traffic back only after {back_s:.1f} s")


def silent_drop(world: World, verdict: Verdict) -> None:
    """Every packet of node1's link dropped without a sign; hold time 9 s."""
    blocks = set(world.blocks_of("node1"))
    with _dropping(world, "node1"):
        gone_s = world.wait(
            lambda: not blocks & world.routes_at("tor1"), "the router to withdraw", 30.0
        )
    world.settled()
    verdict.note(f"withdrawn after {gone_s:.1f} s")
    verdict.must(gone_s <= HOLD_S + 1.0, f"withdrawn only after {gone_s:.1f} s")


class _dropping:  # noqa: N801 - reads as a verb where it is used
    """A firewall rule that drops all that goes in or out by the uplink, while it lasts."""

    def __init__(self, world: World, node: str, share_percent: int = 100) -> None:
        self._world, self._node = world, node
        condition = "" if share_percent == 100 else f"numgen random mod 100 < {share_percent} "
        self._rules = (
            "table inet chaos {\n"
            "  chain in { type filter hook prerouting priority -400; "
            f'iifname "uplink0" {condition}drop; }}\n'
            "  chain out { type filter hook postrouting priority 400; "
            f'oifname "uplink0" {condition}drop; }}\n}}\n'
        )

    def __enter__(self) -> None:
        self._world.run(self._node, "sh", "-c", f"nft -f - <<'END'\n{self._rules}END")

    def __exit__(self, *_: object) -> None:
        self._world.run(self._node, "nft", "delete", "table", "inet", "chaos")


def lossy_link(world: World, verdict: Verdict) -> None:
    """A fifth of all packets lost both ways for 20 s: the session must hold."""
    before = world.session_lines("tor1")
    with _dropping(world, "node1", share_percent=20):
        world.for_seconds(20.0)
        after = world.session_lines("tor1")
    verdict.note("session held" if before == after else "session was lost")
    verdict.must(before == after, "the session did not survive")
    world.settled()


def one_of_two_routers_dies(world: World, verdict: Verdict) -> None:
    """ECMP: tor2 freezes and its links go down; flows by tor1 lose nothing."""

    def hops() -> list[int]:
        return [line.count("via ") for line in world.own_routes("node1") if " via " in line]

    both = hops()
    flows = world.flows()[1:2]
    with world.watching(*flows) as watch:
        for node in world.nodes:
            world.run("tor2", "ip", "link", "set", node, "down")
        single_s = world.wait(lambda: hops() == [1] * len(both), "one next hop everywhere")
        world.for_seconds(2.0)
    deleted = deletions(watch.route_events["node1"])
    for node in world.nodes:
        world.run("tor2", "ip", "link", "set", node, "up")
    world.wait(lambda: sorted(hops()) == sorted(both), "both next hops again")
    world.settled()
    verdict.note(f"one hop after {single_s:.2f} s, {watch}, {len(deleted)} whole routes deleted")
    verdict.must(bool(both) and all(count == 2 for count in both), f"hops before: {both}")
    verdict.must(single_s <= 2.0, f"the dead hop stayed for {single_s:.2f} s")
    verdict.must(not deleted, f"went as a whole: {deleted[:3]}")


def deletions(events: list[str]) -> list[str]:
    """The IPv4 routes that went as a whole; IPv6 reports each next hop as a route."""
    return [line for line in events if line.startswith("Deleted") and ":" not in line.split()[1]]


def wrong_asn(world: World, verdict: Verdict) -> None:
    """The router expects another ASN of node1: not up, the reason is told, others untouched."""
    others = [line for line in world.session_lines("tor1") if not line.startswith("node1")]
    with world.bird_edited("tor1", ("as 64601;", "as 64999;")):
        told_s = world.wait(lambda: bool(_reason(world, "node1")), "a reason in `slash32 peers`")
        reason = _reason(world, "node1")
    world.settled()
    verdict.note(f'told after {told_s:.1f} s: "{reason}"')
    verdict.must(told_s <= 15.0, f"told only after {told_s:.1f} s")
    verdict.must("AS" in reason.upper(), f"the reason does not name the ASN: {reason}")
    left = [line for line in world.session_lines("tor1") if not line.startswith("node1")]
    verdict.must(left == others, "another session was touched")


def _reason(world: World, node: str) -> str:
    rows = world.ask(node, "peers") or []
    rows = rows if isinstance(rows, list) else rows.get("peers", [])
    return next((str(row["reason"]) for row in rows if row.get("reason")), "")


def frozen_speaker(world: World, verdict: Verdict) -> None:
    """ExaBGP frozen for longer than the hold time: session lost, and all is well after."""
    blocks = set(world.blocks_of("node1"))
    pid = world.exabgp_pid("node1")
    with world.bird_edited("tor1", (GR_ON, "graceful restart off;")):
        world.birdc("tor1", "restart", "all")
        world.settled()
        pid = world.exabgp_pid("node1")
        os.kill(pid, signal.SIGSTOP)
        try:
            gone_s = world.wait(lambda: not blocks & world.routes_at("tor1"), "withdrawal", 30.0)
        finally:
            os.kill(pid, signal.SIGCONT)
        back_s = world.wait(lambda: blocks <= world.routes_at("tor1"), "the routes")
        world.settled()
    world.settled()
    verdict.note(f"withdrawn after {gone_s:.1f} s, back {back_s:.1f} s after it went on")
    verdict.must(gone_s <= HOLD_S + 1.5, f"withdrawn only after {gone_s:.1f} s")


_ONE = Stage.ONE_TOR

ROWS = [
    Row("L1", "uplink loses its carrier for 3 s", "withdrawn within 1 s, traffic back within 8 s",
        _ONE, carrier_loss, is_quick=True),
    Row("L2", "all packets silently dropped, hold time 9 s, graceful restart on",
        "withdrawn within 10 s", _ONE, silent_drop),
    Row("L5", "one of two routers dies (ECMP)", "one next hop within 2 s, no route goes whole",
        Stage.TWO_TORS, one_of_two_routers_dies),
    Row("L7", "20 % of packets lost both ways for 20 s", "the session holds", _ONE, lossy_link),
    Row("L8", "the router expects another ASN", "the reason told within 15 s, others untouched",
        _ONE, wrong_asn),
    Row("L9", "ExaBGP frozen beyond the hold time", "withdrawn within 10.5 s, whole again after",
        _ONE, frozen_speaker),
]  # fmt: skip
