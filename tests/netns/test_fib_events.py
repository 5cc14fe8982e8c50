"""Which of the kernel's news are worth a pass at once, which can wait, and who hears of a DEL."""

from __future__ import annotations

import asyncio
import os
from ipaddress import ip_network

import pytest

from cni import netlink as nl
from cni.netlink_socket import NetlinkSocket
from routing.delta import Delta
from routing.event_filter import event_filter
from routing.fib import KernelFib
from routing.routes import Route, RouteKey
from tests.fakes.netns import Fabric, Namespace

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


async def test_a_pod_link_that_comes_and_goes_is_no_news_but_one_that_goes_down_is():
    """ADD and DEL, in both families, ask for no pass; a flap does; every end is announced."""
    gone: list[str] = []
    with Fabric() as fabric:
        node, pod = fabric.namespace("node"), fabric.namespace("pod")
        fib = KernelFib(netns_fd=node.fd, on_link_gone=gone.append)
        try:
            add(node, pod)
            node.ip(f"link del {POD}")
            add(node, pod)
            # An event of a kind that is told marks the end of those that are not.
            node.ip("link set lo down")
            assert await reasons_until(fib, "link") <= {"link", "address"}
            assert gone == [POD]
            node.ip(f"link set {POD} down")
            assert "pod-link" in await reasons_until(fib, "pod-link")
            node.ip(f"route add 198.51.100.0/24 dev {POD} proto 132 metric 1032", check=False)
            node.ip(f"link set {POD} up")
            node.ip(f"route add {PREFIX} dev {POD} proto 132 metric 1032")
            assert "route" in await reasons_until(fib, "route")
        finally:
            await fib.close()


async def test_a_pod_link_that_goes_down_and_up_again_at_once_is_news():
    """Its routes went with the flap, and the kernel tells of no IPv4 route that it takes so."""
    with Fabric() as fabric:
        node, pod = fabric.namespace("node"), fabric.namespace("pod")
        fib = KernelFib(netns_fd=node.fd)
        try:
            add(node, pod)
            node.ip("link set lo down")
            await reasons_until(fib, "link")
            node.ip_batch([f"link set {POD} down", f"link set {POD} up"])
            assert "pod-link" in await reasons_until(fib, "pod-link")
        finally:
            await fib.close()


@pytest.mark.parametrize("prefix", ["10.244.9.0/26", "fd44::/122"])
async def test_a_key_that_somebody_takes_over_is_read_anew(prefix: str):
    """`ip route replace` takes our route away and announces only its own."""
    with Fabric() as fabric:
        node = fabric.namespace("node")
        fib = KernelFib(netns_fd=node.fd)
        try:
            key = RouteKey(ip_network(prefix))
            ours = Route(key, ())
            assert await fib.apply(Delta({key: ours})) == []
            assert await fib.read() == {key: ours}
            node.ip(f"route replace blackhole {prefix} metric 1032 proto 99")
            assert await fib.read() == {}
            node.ip(f"route del blackhole {prefix} metric 1032 proto 99")
            assert await fib.apply(Delta({key: ours})) == []
            assert await fib.read() == {key: ours}
        finally:
            await fib.close()


def add(node: Namespace, pod: Namespace) -> None:
    """What an ADD does, by the same messages."""
    node.ip(f"link add {POD} type veth peer name eth0 netns {pod.name}")
    node.ip(f"addr add fe80::1/64 dev {POD} nodad")
    node.ip(f"link set {POD} up")
    pod.ip("link set eth0 up")


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


async def test_what_an_add_stirs_up_is_not_even_queued():
    """The kernel's filter: reading it cost a third of the ADD. The control hears all of it."""
    groups = (
        nl.RTNLGRP_LINK,
        nl.RTNLGRP_IPV4_IFADDR,
        nl.RTNLGRP_IPV4_ROUTE,
        nl.RTNLGRP_IPV6_IFADDR,
    )
    with Fabric() as fabric:
        node, pod = fabric.namespace("node"), fabric.namespace("pod")
        own_ports = [4711]
        with (
            NetlinkSocket(
                netns_fd=node.fd, groups=groups, event_filter=event_filter(own_ports)
            ) as ours,
            NetlinkSocket(netns_fd=node.fd, groups=groups) as control,
        ):
            add(node, pod)
            assert len(control.events(max_datagrams=100)[0]) >= 3
            assert ours.events(max_datagrams=100) == ([], False)
            # A route by another hand, and the end of the link, are heard.
            node.ip(f"route add {PREFIX} dev {POD} proto 132 metric 1032")
            node.ip(f"link set {POD} down")
            node.ip(f"link del {POD}")
            kinds = [event.kind for event in ours.events(max_datagrams=100)[0]]
            assert kinds == [nl.RTM_NEWROUTE, nl.RTM_NEWLINK, nl.RTM_DELLINK]
            # That it goes down because it is removed is no news beside that it is removed.
            add(node, pod)
            control.events(max_datagrams=100)
            node.ip(f"link del {POD}")
            kinds = [event.kind for event in ours.events(max_datagrams=100)[0]]
            assert kinds == [nl.RTM_DELLINK]
            told = [event.kind for event in control.events(max_datagrams=100)[0]]
            assert nl.RTM_NEWLINK in told[: told.index(nl.RTM_DELLINK)]
