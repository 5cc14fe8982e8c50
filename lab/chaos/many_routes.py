"""Rows with a table as a large cluster has it: what a flap of the link or a death costs then."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, ip_network

from lab import namespaces
from lab.chaos.rows import Row, Stage, Verdict
from lab.chaos.world import World

POOL = "10.0.0.0/9"
"""131,072 blocks, and nothing of the lab's in it."""
FULL = 100_000
ROUTES_DEADLINE_S = 120.0
BACK_S = 2.0
_COUNT = "ip -4 route show proto 132 | grep -c ' via '"


@contextmanager
def announced(world: World, count: int) -> Iterator[int]:
    """tor1 announces so many blocks, and keeps them through a restart of its neighbour; how many
    learned routes node1's kernel has then."""
    default, told = "  route 0.0.0.0/0 unreachable;", "export where net ~ [ 0.0.0.0/0,"
    base = int(ip_network(POOL).network_address)
    routes = (f"  route {IPv4Address(base + 64 * n)}/26 unreachable;" for n in range(count))
    edits = (
        (default, "\n".join((default, *routes))),
        (told, f"{told} {POOL}{{26,26}},"),
    )
    world.apply(
        "apiVersion: slash32.io/v1\nkind: IPPool\nmetadata: {name: many}\n"
        f"spec: {{cidr: {POOL}, blockSize: 26, disabled: true}}\n"
    )
    few = learned(world)
    try:
        with world.bird_edited("tor1", *edits):
            yield few + count
        world.wait(lambda: learned(world) <= few, "the routes to go", ROUTES_DEADLINE_S)
    finally:
        world.delete("ippool", "many")


@contextmanager
def many_routes(world: World, count: int) -> Iterator[float]:
    """The same, once they are all there; the seconds that took."""
    with announced(world, count) as whole:
        yield until_learned(world, whole)


def until_learned(world: World, whole: int) -> float:
    """Waits for so many routes; the seconds it took."""
    return world.wait(lambda: learned(world) >= whole, f"{whole} routes", ROUTES_DEADLINE_S)


def learned(world: World) -> int:
    """Routes of ours in node1's kernel that lead to a router."""
    command = namespaces.enter(world.machine("node1").namespace, ["sh", "-c", _COUNT], cwd="/")
    # grep's status 1 is none at all.
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return int(done.stdout)


def flap(world: World, verdict: Verdict) -> None:
    """The only uplink goes down and up at once: the kernel drops every route, and tells of none."""
    world.run("node1", "sysctl", "-qw", "net.ipv6.conf.uplink0.keep_addr_on_down=1")
    with announced(world, FULL) as whole:
        took_s = until_learned(world, whole)
        world.run("node1", "ip", "link", "set", "uplink0", "down")
        dropped = learned(world)
        world.wait(lambda: not world.is_up_at("tor1", "node1"), "BIRD to see it")
        world.run("node1", "ip", "link", "set", "uplink0", "up")
        up_s = world.wait(lambda: world.is_up_at("tor1", "node1"), "the session")
        back_s = until_learned(world, whole)
        world.settled()
        kept = learned(world)
    verdict.note(
        f"{whole:,} routes {took_s:.1f} s after they were announced; {dropped} while the link was "
        f"down (the control within); session {up_s:.1f} s after it was up again, for BIRD ends it, "
        f"all routes {back_s:.2f} s later"
    )
    verdict.must(dropped == 0, f"the kernel kept {dropped} routes over a link that was down")
    verdict.must(back_s <= BACK_S, f"all again only {back_s:.2f} s after the session")
    verdict.must(kept >= whole, f"{whole - kept} were gone once the session was up again")


def death_in_the_middle(world: World, verdict: Verdict) -> None:
    """The agent is killed while it writes the table, and started again."""
    with world.watching() as watch, announced(world, FULL) as whole:
        world.wait(lambda: learned(world) >= whole // 100, "the first routes")
        world.kill("agent-node1")
        written = learned(world)
        world.start_agent("node1")
        back_s = until_learned(world, whole)
        world.settled()
    verdict.note(
        f"killed with {written:,} of {whole:,} routes written; all {back_s:.1f} s after the start; "
        f"{watch.lost} of {watch.sent} probes lost"
    )
    verdict.must(written < whole, "control: the table was written before the agent was killed")
    verdict.must(watch.lost == 0, f"{watch.lost} probes lost")


ROWS = [
    Row("L1b", f"the uplink goes down and up with {FULL:,} learned routes",
        f"all again within {BACK_S:g} s of the session", Stage.ONE_TOR, flap),
    Row("R7b", f"agent killed while it writes {FULL:,} routes, and started again",
        "all of them, 0 lost", Stage.ONE_TOR, death_in_the_middle, control="R0"),
]  # fmt: skip
