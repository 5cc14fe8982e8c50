"""Which of the kernel's news are worth a pass at once, which can wait, and who hears of a DEL."""

from __future__ import annotations

import asyncio
import os
from ipaddress import ip_network

import pytest

from routing.fib import POD_LINK, KernelFib
from tests.fakes.netns import Fabric

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]

POD = "s32aaaaaaaaaaaa"
PREFIX = ip_network("10.244.1.5/32")


async def reasons_until(fib: KernelFib, wanted: str) -> set[str]:
    """Everything told up to ``wanted``."""
    seen: set[str] = set()
    async with asyncio.timeout(10):
        while wanted not in seen:
            seen |= set((await fib.changed()).split("+"))
    return seen


async def test_a_pod_link_that_comes_and_goes_is_no_hurry_and_is_announced_gone():
    """ADD and DEL, in both families, tell nothing but pod-link; an operator's change is told."""
    gone: list[str] = []
    with Fabric() as fabric:
        node, pod = fabric.namespace("node"), fabric.namespace("pod")
        node.ip("link set lo up")
        fib = KernelFib(netns_fd=node.fd, on_link_gone=gone.append)
        try:
            node.ip(f"link add {POD} type veth peer name eth0 netns {pod.name}")
            node.ip(f"addr add fe80::1/64 dev {POD} nodad")
            node.ip(f"link set {POD} up")
            pod.ip("link set eth0 up")
            assert await reasons_until(fib, POD_LINK) == {POD_LINK}
            node.ip(f"route add {PREFIX} dev {POD} proto 132 metric 1032")
            assert "route" in await reasons_until(fib, "route")
            node.ip(f"-6 route add fd44::5/128 dev {POD} proto 132 metric 1032")
            assert "route" in await reasons_until(fib, "route")
            node.ip(f"link del {POD}")
            assert await reasons_until(fib, POD_LINK) == {POD_LINK}
            assert gone == [POD]
        finally:
            await fib.close()


async def test_an_uplink_is_a_hurry():
    """Its flap takes every route over it."""
    with Fabric() as fabric:
        node, other = fabric.namespace("node"), fabric.namespace("other")
        fabric.join((node, "uplink0"), (other, "there"))
        fib = KernelFib(netns_fd=node.fd)
        try:
            node.ip("link set uplink0 down")
            assert "link" in await reasons_until(fib, "link")
            node.ip("addr add 192.0.2.1/31 dev uplink0")
            assert "address" in await reasons_until(fib, "address")
        finally:
            await fib.close()
