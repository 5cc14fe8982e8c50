"""K: what else writes to a node's kernel, and what a pod's wire must stand."""

from __future__ import annotations

import json
import re
import time
from ipaddress import ip_network

from lab import namespaces, runtime
from lab.chaos.rows import Row, Stage, Verdict
from lab.chaos.watch import Flow
from lab.chaos.world import World
from lab.plan import MTU_BYTES

RESYNC_S = 30.0
SYSCTLS = {"rp_filter": "0", "proxy_arp": "0", "forwarding": "0", "accept_redirects": "1"}


def flushed(world: World, verdict: Verdict) -> None:
    """Every route of ours deleted, both families."""
    routes = world.own_routes("node1")
    world.delete_own_routes("node1")
    back_s = world.wait(lambda: world.own_routes("node1") == routes, "all our routes")
    world.settled()
    verdict.note(f"{len(routes)} routes back after {back_s:.2f} s")
    verdict.must(back_s <= 2.0, f"back only after {back_s:.2f} s")


def replaced(world: World, verdict: Verdict) -> None:
    """`ip route replace` takes over the key of one of our routes; then it is removed."""
    routes = world.own_routes("node1")
    target = _a_learned_prefix(world)
    foreign = ["blackhole", target, "metric", "1032", "proto", "99"]
    world.run("node1", "ip", "route", "replace", *foreign)
    told_s = world.wait(lambda: "99" in json.dumps(_findings(world, target)), "the intruder's name")
    held = [line for line in world.other_routes("node1") if f"{target} proto 99" in line]
    world.run("node1", "ip", "route", "del", *foreign)
    back_s = world.wait(lambda: world.own_routes("node1") == routes, f"{target} again")
    world.settled()
    verdict.note(f"named after {told_s:.2f} s; ours again {back_s:.2f} s after it was gone")
    verdict.must(bool(held), "a foreign route was removed: what is not ours is not touched")
    verdict.must(back_s <= 2.0, f"back only after {back_s:.2f} s")


def _findings(world: World, prefix: str) -> object:
    status = world.ask("node1", "status") or {}
    return [status.get("failures"), world.ask("node1", "routes", prefix), status]


def _a_learned_prefix(world: World) -> str:
    return next(
        line.split()[0]
        for line in sorted(world.own_routes("node1"))
        if line.startswith("10.244.") and " via " in line
    )


def deleted_every_second(world: World, verdict: Verdict) -> None:
    """A daemon that takes foreign routes away once a second, for 10 s."""
    routes = world.own_routes("node1")
    worst_s = 0.0
    for _ in range(10):
        world.delete_own_routes("node1")
        begun_s = time.monotonic()
        world.wait(lambda: world.own_routes("node1") == routes, "our routes")
        worst_s = max(worst_s, time.monotonic() - begun_s)
        world.for_seconds(max(0.0, 1.0 - (time.monotonic() - begun_s)))
    lines = world.lab.paths.log("agent-node1").read_text(errors="replace").count("\n")
    world.settled()
    verdict.note(f"back within {worst_s:.2f} s each time; agent's log has {lines} lines in all")
    verdict.must(worst_s <= 2.0, f"once only after {worst_s:.2f} s")


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
    """Routes of others, in all tables, before and after an agent's restart and a flush of ours."""
    commands = (
        "route add 198.51.100.0/24 dev lo metric 77 proto 99",
        "route add 203.0.113.0/24 dev lo table 300 proto 132",
        "route add blackhole 192.0.2.128/25 metric 1032 proto 99",
    )
    for command in commands:
        world.run("node1", "ip", *command.split())
    before = world.other_routes("node1")
    table300 = world.run("node1", "ip", "route", "show", "table", "300")
    world.kill("agent-node1")
    world.start_agent("node1")
    world.settled()
    world.delete_own_routes("node1")
    world.settled()
    after = world.other_routes("node1")
    verdict.must(before == after, f"changed: {sorted(before ^ after)[:3]}")
    verdict.must(
        table300 == world.run("node1", "ip", "route", "show", "table", "300"),
        "a route of another table with our protocol number was touched",
    )
    for command in commands:
        world.run("node1", "ip", *command.replace(" add ", " del ").split())
    verdict.note(f"{len(before)} routes of others the same, line by line")


def veth_flap(world: World, verdict: Verdict) -> None:
    """A pod's host end goes down and up; then it is renamed."""
    host_end = _host_end(world)
    routes = world.own_routes("node1")
    world.run("node1", "ip", "link", "set", host_end, "down")
    world.run("node1", "ip", "link", "set", host_end, "up")
    back_s = world.wait(lambda: world.own_routes("node1") == routes, "the pod's routes")
    world.settled()
    verdict.note(f"pod's routes back {back_s:.2f} s after the flap")
    verdict.must(back_s <= 2.0, f"back only after {back_s:.2f} s")


def _host_end(world: World) -> str:
    """The host end of node1's first pod."""
    address = world.address_of(world.pod_on("node1"))
    found = json.loads(world.run("node1", "ip", "-j", "route", "show", address))
    return str(found[0]["dev"])


def sysctls_flipped(world: World, verdict: Verdict) -> None:
    """Somebody's sysctl tool writes other values to a pod's host end."""
    host_end = _host_end(world)
    for name, value in SYSCTLS.items():
        world.run("node1", "sysctl", "-qw", f"net.ipv4.conf.{host_end}.{name}={value}")

    def wrong() -> list[str]:
        return [
            name
            for name, bad in SYSCTLS.items()
            if world.run("node1", "sysctl", "-n", f"net.ipv4.conf.{host_end}.{name}").strip() == bad
        ]

    first = wrong()
    back_s = world.wait(lambda: not wrong(), "the sysctls", deadline_s=2 * RESYNC_S + 10)
    world.settled()
    verdict.note(f"{len(first)} settings put right after {back_s:.0f} s")
    verdict.must(len(first) == len(SYSCTLS), f"only {first} could be set wrong")
    verdict.must(back_s <= 60.0, f"only after {back_s:.0f} s")


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
    world.settled()
    verdict.note(f"pod to pod on another node without any default route, {first} ms")
    verdict.must(ok, "pods do not reach each other without a default route on the node")


def _round_trip_ms(world: World, source: str, address: str) -> str:
    text = world.run(source, "ping", "-n", "-c", "1", "-W", "1", address, ok=(0, 1))
    found = re.search(r"time=([\d.]+)", text)
    return found[1] if found else "no answer"


def largest_packet(world: World, verdict: Verdict) -> None:
    """The largest packet that needs no fragments passes; one byte more does not."""
    near, far = world.pod_on("node1"), world.pod_on("node2")
    address = world.address_of(far)
    largest = MTU_BYTES - 28
    command = ["ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s"]
    fits = world.run(near.name, *command, str(largest), address, ok=(0, 1, 2))
    more = world.run(near.name, *command, str(largest + 1), address, ok=(0, 1, 2))
    verdict.note(f"{largest} bytes of payload pass at MTU {MTU_BYTES}")
    verdict.must("1 received" in fits, f"{largest} bytes do not pass")
    verdict.must("1 received" not in more, f"control: {largest + 1} bytes pass unfragmented too")


def no_loop(world: World, verdict: Verdict) -> None:
    """A packet to a free address of our block is dropped at the node, and burns no TTL."""
    block = next(b for b in world.blocks_of("node1") if "." in b)
    used = {str(a) for p in world.lab.plan.pods_on("node1") for a in world.lab.addresses_of(p)}
    free = next(str(a) for a in list(ip_network(block))[::-1] if str(a) not in used)

    rules = (
        "table inet chaos { chain out { type filter hook postrouting priority 400; "
        f'oifname "uplink0" ip daddr {free} counter\n}}\n}}\n'
    )
    world.run("node1", "nft", rules)
    try:
        world.run("client", "ping", "-n", "-c", "20", "-i", "0.01", "-W", "1", free, ok=(0, 1))
        shown = world.run("node1", "nft", "list", "table", "inet", "chaos")
    finally:
        world.run("node1", "nft", "delete", "table", "inet", "chaos")
    counted = re.search(r"counter packets (\d+)", shown)
    sent_back = int(counted[1]) if counted else -1
    verdict.note(f"20 probes to {free}, {sent_back} sent back to the router")
    verdict.must(sent_back == 0, f"{sent_back} packets went back to the router: a loop")


def address_reused(world: World, verdict: Verdict) -> None:
    """DEL, then ADDs until the address comes round again: no connection of the old pod is left."""
    with world.extra_pod("node1", "k12") as (sandbox, _):
        result = world.lab.runtime_of("node1").add(sandbox)
        address = next(a for a in runtime.addresses_in(result) if "." in a)
        flow = Flow("to the short-lived pod", world.lab.plan.client.namespace, address)
        with world.watching(flow) as watch:
            world.for_seconds(1.0)
        world.lab.runtime_of("node1").delete(sandbox)
    table = world.run("node1", "sh", "-c", "cat /proc/net/nf_conntrack 2>/dev/null || true")
    left = [line for line in table.splitlines() if address in line]
    verdict.note(f"{watch.sent} packets to {address}; {len(left)} connections left after DEL")
    verdict.must(watch.lost < watch.sent, "the pod was never reached")
    verdict.must(not left, f"left: {left[:2]}")


_ONE = Stage.ONE_TOR

ROWS = [
    Row("K1", "every route of ours deleted by hand", "all back within 2 s", _ONE, flushed,
        is_quick=True),
    Row("K2", "`ip route replace` over one of ours by another program",
        "the intruder named and left alone; ours within 2 s once it is gone", _ONE, replaced,
        is_quick=True),
    Row("K3", "a daemon deletes our routes every second for 10 s", "within 2 s each time", _ONE,
        deleted_every_second),
    Row("K4", "20,000 foreign route changes in a burst", "right within 10 s", _ONE,
        twenty_thousand_changes),
    Row("K5", "one of our routes replaced 1000 times under traffic", "0 lost", _ONE,
        replaced_in_place, control="R0"),
    Row("K6", "routes of others, over a restart and a flush of ours", "the same, line by line",
        _ONE, foreign_untouched, is_quick=True),
    Row("K7", "a pod's host end goes down and up", "its routes back within 2 s", _ONE, veth_flap,
        is_quick=True),
    Row("K9", "sysctls of a pod's link flipped by a tool", "put right within 60 s", _ONE,
        sysctls_flipped),
    Row("K10", "a node without a default route", "pods reach what is routed", _ONE,
        no_default_route),
    Row("K12", "an address is released", "no connection of it left", _ONE, address_reused),
    Row("K13", "the largest packet that needs no fragments", "passes, one more byte does not",
        _ONE, largest_packet, is_quick=True),
    Row("K14", "packets to a free address of our block", "dropped at the node, no loop", _ONE,
        no_loop, is_quick=True),
]  # fmt: skip
