"""K: what else writes to a node's kernel, and what a pod's wire must stand."""

from __future__ import annotations

import json
import re
import signal
import time
from ipaddress import ip_network
from pathlib import Path

from lab import build, namespaces
from lab.chaos.rows import Row, Stage, Verdict
from lab.chaos.world import World

ROUNDS = 20
NOBODY = "198.51.100.9"
LINES_MAX = 140
"""A hundred routes one by one, a line a second more, and a sum now and then."""


def flushed(world: World, verdict: Verdict) -> None:
    """Every route of ours deleted, both families."""
    routes = world.own_routes("node1")
    world.delete_own_routes("node1")
    back_s = world.wait(lambda: world.own_routes("node1") == routes, "all our routes")
    world.settled()
    verdict.note(f"{len(routes)} routes back after {back_s:.2f} s")
    verdict.must(back_s <= 2.0, f"back only after {back_s:.2f} s")


def _a_learned_prefix(world: World) -> str:
    return next(
        line.split()[0]
        for line in sorted(world.own_routes("node1"))
        if line.startswith("10.244.") and " via " in line
    )


def deleted_every_second(world: World, verdict: Verdict) -> None:
    """A daemon that takes foreign routes away once a second, for 20 s."""
    routes = world.own_routes("node1")
    worst_s = 0.0
    before = _lines(world)
    for _ in range(ROUNDS):
        world.delete_own_routes("node1")
        begun_s = time.monotonic()
        world.wait(lambda: world.own_routes("node1") == routes, "our routes")
        worst_s = max(worst_s, time.monotonic() - begun_s)
        world.for_seconds(max(0.0, 1.0 - (time.monotonic() - begun_s)))
    lines = _lines(world) - before
    world.settled()
    explained, cured = _doctor(world, ""), _doctor(world, "[Network]\nManageForeignRoutes=no\n")
    verdict.note(
        f"{ROUNDS} times {len(routes)} routes, back within {worst_s:.2f} s each time; "
        f"{lines} lines in the agent's log; doctor: {explained[:90]!r}"
    )
    verdict.must(worst_s <= 2.0, f"once only after {worst_s:.2f} s")
    verdict.must(lines <= LINES_MAX, f"{lines} lines in the log, {LINES_MAX} are the most")
    verdict.must(ROUNDS * len(routes) > 1.5 * LINES_MAX, "too few routes for a limit to show")
    verdict.must("ManageForeignRoutes=yes" in explained, "doctor does not explain it")
    verdict.must(not cured, f"control: with the cure doctor still says {cured!r}")


def _lines(world: World) -> int:
    return world.lab.paths.log("agent-node1").read_text(errors="replace").count("\n")


def _doctor(world: World, networkd: str) -> str:
    """What ``doctor`` says of ManageForeignRoutes where systemd-networkd runs with that
    configuration: its directories are put in the way, in a mount namespace."""
    script = """
        mount -t tmpfs tmpfs /run/systemd && mkdir -p /run/systemd/netif/links &&
        mount -t tmpfs tmpfs /etc/systemd &&
        printf %s "$0" > /etc/systemd/networkd.conf && exec "$@"
    """
    made = [each for each in (Path("/run/systemd"), Path("/etc/systemd")) if not each.exists()]
    for each in made:
        each.mkdir()
    paths = world.lab.paths
    command = build.slash32_command(
        "doctor", "--run-dir", str(paths.run_dir("node1")),
        "--state-dir", str(paths.state_dir("node1")), "-o", "json",
    )  # fmt: skip
    try:
        told = namespaces.run(
            ["unshare", "--mount", "sh", "-c", script, networkd, *command],
            namespace=world.lab.plan.namespace_of("node1"),
            env=build.environment(paths),
            ok=(0, 1),
        )
    finally:
        for each in made:
            each.rmdir()
    evidence = [
        str(row["evidence"]) for row in json.loads(told) if "ManageForeignRoutes" in str(row)
    ]
    return evidence[0] if evidence else ""


def twenty_thousand_changes(world: World, verdict: Verdict) -> None:
    """20,000 foreign routes come and go: netlink's buffer overflows, nothing is missed."""
    routes = world.own_routes("node1")
    prefixes = [f"198.18.{i >> 6 & 255}.{(i & 63) << 2}/30" for i in range(10_000)]
    adds = "".join(f"route add {p} dev lo proto 99 metric 77\n" for p in prefixes)
    namespace = world.lab.plan.namespace_of("node1")
    namespaces.run(["ip", "-batch", "-"], namespace=namespace, stdin=adds, deadline_s=120.0)
    foreign = len([line for line in world.other_routes("node1") if "proto 99" in line])
    target = _a_learned_prefix(world)
    world.run("node1", "ip", "route", "del", target, "metric", "1032")
    world.run("node1", "ip", "route", "flush", "proto", "99")
    back_s = world.wait(lambda: world.own_routes("node1") == routes, f"{target} again")
    world.settled()
    verdict.note(f"{2 * foreign} changes; a route deleted among them is back after {back_s:.1f} s")
    verdict.must(foreign == len(prefixes), f"only {foreign} foreign routes were there")
    verdict.must(back_s <= 10.0, f"back only after {back_s:.1f} s")


def replaced_in_place(world: World, verdict: Verdict) -> None:
    """`ip route replace` of one of our routes with itself, 1000 times under traffic."""
    line = next(x for x in sorted(world.own_routes("node2")) if world.blocks_of("node1")[0] in x)
    prefix = line.split()[0]
    found = json.loads(world.run("node2", "ip", "-j", "-d", "route", "show", prefix))[0]
    gateway = found.get("gateway")
    if gateway is None:
        hop = json.loads(
            world.run("node2", "ip", "-j", "nexthop", "show", "id", str(found["nhid"]))
        )
        gateway = hop[0]["gateway"]
    command = f"route replace {prefix} via {gateway} proto 132 metric 1032\n"
    flow = world.flows()[1]
    with world.watching(flow) as watch:
        world.run("node2", "sh", "-c", f"yes '{command.strip()}' | head -n 1000 | ip -batch -")
        world.for_seconds(1.0)
    world.settled()
    verdict.note(str(watch))
    verdict.must(watch.lost == 0, str(watch))


def foreign_untouched(world: World, verdict: Verdict) -> None:
    """What others have in the kernel, before and after an agent's restart and a flush of ours. Some
    of it looks like ours: our metric, our protocol in another table."""
    commands = (
        "route add 198.51.100.0/24 dev lo metric 77 proto 99",
        "route add 203.0.113.0/24 dev lo table 300 proto 132",
        "route add blackhole 192.0.2.128/25 metric 1032 proto 99",
        "-6 route add 2001:db8:77::/64 dev lo metric 1032 proto 99",
        "rule add from 198.51.100.7 lookup 300 priority 7777",
        "nexthop add id 7777 blackhole proto 99",
    )
    for command in commands:
        world.run("node1", "ip", *command.split())
    world.run("node1", "nft", "add", "table", "inet", "somebody")

    def theirs() -> dict[str, str]:
        hops = world.run("node1", "ip", "nexthop", "show").splitlines()
        return {
            "routes": "\n".join(sorted(world.other_routes("node1"))),
            "table 300": world.run("node1", "ip", "route", "show", "table", "300"),
            "rules": world.run("node1", "ip", "rule") + world.run("node1", "ip", "-6", "rule"),
            "nexthops": "\n".join(hop for hop in hops if hop.startswith("id 7777 ")),
            "nftables": world.run("node1", "nft", "list", "table", "inet", "somebody"),
        }

    before = theirs()
    world.kill("agent-node1")
    world.start_agent("node1")
    world.settled()
    world.delete_own_routes("node1")
    world.settled()
    after = theirs()
    for what, text in before.items():
        verdict.must(bool(text.strip()), f"control: no {what} of others were there")
        verdict.must(after[what] == text, f"{what} of others changed: {after[what][:200]}")
    for command in commands[:-1]:
        world.run("node1", "ip", *command.replace(" add ", " del ").split())
    world.run("node1", "ip", "nexthop", "del", "id", "7777")
    world.run("node1", "nft", "add", "chain", "inet", "somebody", "changed")
    changed = theirs()
    blind = [what for what, text in before.items() if changed[what] == text]
    verdict.must(not blind, f"control: {blind} are the same although they were changed")
    world.run("node1", "nft", "delete", "table", "inet", "somebody")
    verdict.note(f"{', '.join(before)} of others the same, byte by byte")


def no_default_route(world: World, verdict: Verdict) -> None:
    """The router sends no default: pods still reach everything that is routed."""
    near, far = world.pod_on("node1"), world.pod_on("node2")
    edit = ("export where net ~ [ 0.0.0.0/0, ", "export where net ~ [ 192.0.2.255/32, ")
    with world.bird_edited("tor1", edit):
        world.wait(
            lambda: "default" not in world.run("node1", "ip", "-4", "route", "show"),
            "the default route to go",
        )
        ok = world.reaches(near.name, world.address_of(far))
        first = _round_trip_ms(world, near.name, world.address_of(far))
        unrouted = world.reaches(near.name, NOBODY)
    world.settled()
    verdict.note(f"pod to pod on another node without any default route, {first} ms")
    verdict.must(not unrouted, f"control: {NOBODY}, which nothing leads to, answers")
    verdict.must(ok, "pods do not reach each other without a default route on the node")


def _round_trip_ms(world: World, source: str, address: str) -> str:
    text = world.run(source, "ping", "-n", "-c", "1", "-W", "1", address, ok=(0, 1))
    found = re.search(r"time=([\d.]+)", text)
    return found[1] if found else "no answer"


def no_loop(world: World, verdict: Verdict) -> None:
    """A packet to a free address of our block is dropped at the node, and burns no TTL."""
    block = next(b for b in world.blocks_of("node1") if "." in b)
    used = {str(a) for p in world.lab.plan.pods_on("node1") for a in world.lab.addresses_of(p)}
    free = next(str(a) for a in list(ip_network(block))[::-1] if str(a) not in used)

    rules = (
        "table inet chaos { chain out { type filter hook postrouting priority 400; "
        f'oifname "uplink0" ip daddr {free} counter\n}}\n}}\n'
    )

    def sent_back() -> int:
        """Of 20 probes; more when a packet goes round and round."""
        world.run("node1", "nft", rules)
        try:
            world.run("client", "ping", "-n", "-c", "20", "-i", "0.01", "-W", "1", free, ok=(0, 1))
            shown = world.run("node1", "nft", "list", "table", "inet", "chaos")
        finally:
            world.run("node1", "nft", "delete", "table", "inet", "chaos")
        counted = re.search(r"counter packets (\d+)", shown)
        return int(counted[1]) if counted else -1

    looped = sent_back()
    # Control: without the block's route, and nobody to put it back, they loop.
    world.send("agent-node1", signal.SIGSTOP)
    try:
        world.run("node1", "ip", "route", "del", "blackhole", block, "metric", "1032")
        without = sent_back()
    finally:
        world.send("agent-node1", signal.SIGCONT)
    world.settled()
    verdict.note(
        f"20 probes to {free}, {looped} sent back to the router (control: {without} without the "
        "block's route)"
    )
    verdict.must(looped == 0, f"{looped} packets went back to the router: a loop")
    verdict.must(without > 20, f"control: only {without} went back without the block's route")


_ONE = Stage.ONE_TOR

ROWS = [
    Row("K1", "every route of ours deleted by hand", "all back within 2 s", _ONE, flushed,
        is_quick=True),
    Row("K3", f"a daemon deletes our routes every second for {ROUNDS} s",
        f"within 2 s each time, {LINES_MAX} lines of log at most, doctor explains it", _ONE,
        deleted_every_second),
    Row("K4", "20,000 foreign route changes in a burst", "right within 10 s", _ONE,
        twenty_thousand_changes),
    Row("K5", "one of our routes replaced 1000 times under traffic", "0 lost", _ONE,
        replaced_in_place, control="R0", is_quick=True),
    Row("K6", "routes, rules, nexthops and nftables of others, over a restart and a flush of ours",
        "the same, byte by byte", _ONE, foreign_untouched, is_quick=True),
    Row("K10", "a node without a default route", "pods reach what is routed", _ONE,
        no_default_route),
    Row("K14", "packets to a free address of our block", "dropped at the node, no loop", _ONE,
        no_loop, is_quick=True),
]  # fmt: skip
