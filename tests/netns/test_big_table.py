"""A table of 100,000 routes through what a kernel does to drivers: each ends with what is wanted.

The tables are compared as bytes, on a driver that has seen nothing of what went before.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from bgp.nlri import Nlri
from routing.fib import KernelFib
from routing.route_diff import diff_routes
from routing.route_table import Hops, RouteTable, hops_of, key_of
from routing.routes import NextHop
from tests.fakes.netns import Fabric, Namespace, wait_until

pytestmark = pytest.mark.netns

COUNT = 100_000
NEAR = hops_of([NextHop("up0", ip_address("192.0.2.2"))])
BOTH = hops_of([*NEAR, NextHop("up1", ip_address("198.51.100.2"))])
OFF_LINK = hops_of([NextHop("up0", ip_address("203.0.113.9"))])
BASE = int(ip_address("10.0.0.0"))


def nlri(index: int) -> Nlri:
    return b"\x1a" + (BASE + 64 * index).to_bytes(4, "big")


def table(hops: Hops, count: int = COUNT) -> RouteTable:
    return RouteTable(grouped={nlri(index): hops for index in range(count)})


@pytest.fixture(scope="module")
def host() -> Iterator[Namespace]:
    with Fabric() as fabric:
        host, peer = fabric.namespace("big"), fabric.namespace("far")
        for ifname, own in (("up0", "192.0.2.1/24"), ("up1", "198.51.100.1/24")):
            fabric.join((host, ifname), (peer, ifname))
            host.ip(f"addr add {own} dev {ifname}")
        yield host


async def bring(fib: KernelFib, wanted: RouteTable) -> list[str]:
    """One step of the loop: read, compare, apply; what failed."""
    delta, _ = diff_routes(wanted, await fib.read(), lambda _: None)
    return [f"{each.key.prefix}: {each.error}" for each in await fib.apply(delta)]


async def held(host: Namespace) -> RouteTable:
    """What the kernel holds, by a driver that has not looked yet."""
    fib = KernelFib(netns_fd=host.fd)
    found = await fib.read()
    await fib.close()
    return found


async def test_each_refused_route_is_named_and_no_other_suffers(host: Namespace):
    """Foreign routes in ours' place, next hops off link, among 100,000; then they make room."""
    fib = KernelFib(netns_fd=host.fd)
    taken = {nlri(index) for index in range(0, COUNT, 9973)}
    host.ip_batch([f"route add blackhole {key_of(n).prefix} proto 12 metric 1032" for n in taken])
    wanted = table(NEAR)
    astray = {nlri(index) for index in range(5, COUNT, 9973)}
    wanted.grouped.update(dict.fromkeys(astray, OFF_LINK))
    failures = await bring(fib, wanted)
    assert {each.split(":")[0] for each in failures} == {str(key_of(n).prefix) for n in astray}
    assert len(failures) == len(astray)
    assert fib.contested().keys() == {key_of(n) for n in taken}
    assert all("held by protocol 12 (bird)" in each for each in fib.contested().values())
    rest = {n: hops for n, hops in wanted.grouped.items() if n not in astray}
    assert (await held(host)).grouped == rest
    # In the way of a replacement, too.
    moved = RouteTable(grouped=dict.fromkeys(wanted.grouped, BOTH))
    assert await bring(fib, moved) == []
    assert await held(host) == moved
    assert fib.contested().keys() == {key_of(n) for n in taken}
    host.ip_batch([f"route del blackhole {key_of(n).prefix} proto 12 metric 1032" for n in taken])
    assert await bring(fib, moved) == []
    assert await held(host) == moved
    assert len(host.ip_json("route show proto 132 metric 1031")) == len(taken)
    assert await fib.retreat(0) is None
    assert host.ip("route show proto 132 metric 1031") == ""
    assert await held(host) == moved
    await fib.close()


async def test_a_flap_takes_all_and_all_are_back(host: Namespace):
    """The kernel drops every route over a link that goes down and says nothing of them."""
    fib = KernelFib(netns_fd=host.fd)
    assert await bring(fib, table(NEAR)) == []
    host.ip("link set up0 down")
    assert len(await held(host)) == 0
    host.ip("link set up0 up")
    wait_until(lambda: "LOWER_UP" in host.ip("link show up0"))
    async with asyncio.timeout(10):
        assert "link" in await fib.changed()
    assert await bring(fib, table(NEAR)) == []
    assert await held(host) == table(NEAR)
    await fib.close()


async def test_a_dump_while_others_change_routes_is_of_one_moment(host: Namespace):
    """The kernel says that a dump was interrupted; half a table would be taken for the whole."""
    fib = KernelFib(netns_fd=host.fd)
    assert await bring(fib, table(NEAR)) == []
    stop = threading.Event()

    def disturb() -> None:
        places = [f"blackhole 100.64.{i}.0/24 proto 4" for i in range(200)]
        while not stop.is_set():
            for verb in ("add", "del"):
                host.ip_batch([f"route {verb} {place}" for place in places])

    other = threading.Thread(target=disturb)
    other.start()
    try:
        for _ in range(3):
            assert await held(host) == table(NEAR)
    finally:
        stop.set()
        other.join()
    await fib.close()


async def test_lost_events_end_the_belief(host: Namespace):
    """ENOBUFS on a full table: what went unheard is found by looking."""
    fib = KernelFib(netns_fd=host.fd, event_buffer_bytes=1 << 16)
    assert await bring(fib, table(NEAR)) == []
    before = await fib.read()
    assert await fib.read() is before, "believed"
    host.ip_batch([f"route del {key_of(nlri(index)).prefix} metric 1032" for index in range(5000)])
    async with asyncio.timeout(10):
        assert await fib.changed() == "overflow"
    assert len(await fib.read()) == COUNT - 5000
    assert await bring(fib, table(NEAR)) == []
    assert await held(host) == table(NEAR)
    await fib.close()


WRITER = """
import asyncio, os, sys
from tests.netns.test_big_table import BOTH, KernelFib, bring, table

async def main():
    fib = KernelFib(netns_fd=os.open(sys.argv[1], os.O_RDONLY))
    print("ready", flush=True)
    await bring(fib, table(BOTH))
    print("done", flush=True)

asyncio.run(main())
"""


async def test_a_death_in_the_middle_is_finished_by_the_next(host: Namespace):
    """Killed while it moves 100,000 routes: some are moved; the next driver moves the rest."""
    fib = KernelFib(netns_fd=host.fd)
    assert await bring(fib, RouteTable()) == []
    writer = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs here meanwhile
        [sys.executable, "-c", WRITER, f"/proc/self/fd/{host.fd}"],
        stdout=subprocess.PIPE, pass_fds=[host.fd],
    )  # fmt: skip
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        # Its first routes are there: it is in the middle.
        wait_until(lambda: host.ip(f"route show {key_of(nlri(0)).prefix}"))
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        if writer.stdout is not None:
            writer.stdout.close()
    assert 0 < len(await held(host)) <= COUNT
    assert await bring(fib, table(BOTH)) == []
    assert await held(host) == table(BOTH)
    assert await bring(fib, RouteTable()) == []
    assert ip_network("10.0.0.0/26") not in {key.prefix for key in await held(host)}
    await fib.close()
