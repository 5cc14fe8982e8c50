"""K: a pod's own wire: its host end, its MTU, its settings, and who had its address before."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from lab import namespaces, runtime
from lab.chaos.plugin import COOLDOWN_S, code_of, pools
from lab.chaos.rows import Row, Stage, Verdict
from lab.chaos.world import World

RESYNC_S = 30.0
JUMBO_BYTES, USUAL_BYTES = 9000, 1500
HEADERS_BYTES = 28
"""IPv4 and ICMP, which ping does not count."""
PORT = 5300
SERVICE = "203.0.113.77"
SYSCTLS = {"rp_filter": "0", "proxy_arp": "0", "forwarding": "0", "accept_redirects": "1"}

_SENDER = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 40053))
while True:
    try:
        s.sendto(b"x", (sys.argv[1], int(sys.argv[2])))
    except OSError:
        pass
    time.sleep(0.02)
"""
_RECEIVER = """
import signal, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", int(sys.argv[1])))
def end(*_):
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
while True:
    s.recv(64)
    sys.stdout.write("x")
    sys.stdout.flush()
"""
_SERVER = """
import socket
s = socket.create_server(("", 5301))
print("ready", flush=True)
c, _ = s.accept()
n = 0
while data := c.recv(65536):
    n += len(data)
print(n, flush=True)
"""
_CLIENT = """
import socket, sys
s = socket.create_connection((sys.argv[1], 5301), 10)
s.sendall(b"x" * 1000000)
"""


# -- K7 ----------------------------------------------------------------------------------------


def host_end_flaps(world: World, verdict: Verdict) -> None:
    """A pod's host end goes down and up; then it is renamed while it is up, and while down."""
    pod = world.pod_on("node1")
    address, host_end = world.address_of(pod), host_end_of(world)
    routes = world.own_routes("node1")

    def is_back() -> bool:
        return world.own_routes("node1") == routes and world.reaches("client", address)

    worst_s, told = 0.0, []
    for what, commands in {
        "down and up": (("{end}", "down"), ("{end}", "up")),
        "renamed": (("{end}", "name", "chaos0"),),
        "renamed while down": (("{end}", "down"), ("{end}", "name", "chaos0"), ("chaos0", "up")),
    }.items():
        for words in commands:
            # By its index: the agent may have put the name right between two of them.
            done = [word.format(end=host_end) for word in words]
            world.run("node1", "ip", "link", "set", "dev", *done, ok=(0, 1, 2))
        took_s = world.wait(is_back, f"the pod's routes, {what}")
        told.append(f"{what}: {took_s:.2f} s")
        worst_s = max(worst_s, took_s)
    world.settled()
    verdict.note(f"routes, name and pod back after {', '.join(told)}")
    verdict.must(worst_s <= 2.0, f"back only after {worst_s:.2f} s")
    verdict.must(host_end_of(world) == host_end, "the link does not have its name again")


def host_end_of(world: World) -> str:
    """The host end of node1's first pod."""
    address = world.address_of(world.pod_on("node1"))
    found = json.loads(world.run("node1", "ip", "-j", "route", "show", address))
    return str(found[0]["dev"])


# -- K9 ----------------------------------------------------------------------------------------


def sysctls_flipped(world: World, verdict: Verdict) -> None:
    """Somebody's sysctl tool writes other values to a pod's host end."""
    host_end = host_end_of(world)
    for name, value in SYSCTLS.items():
        world.run("node1", "sysctl", "-qw", f"net.ipv4.conf.{host_end}.{name}={value}")
    world.run("node1", "sysctl", "-qw", f"net.ipv6.conf.{host_end}.accept_ra=2")

    def wrong() -> list[str]:
        found = [
            name
            for name, bad in SYSCTLS.items()
            if world.run("node1", "sysctl", "-n", f"net.ipv4.conf.{host_end}.{name}").strip() == bad
        ]
        accept_ra = f"net.ipv6.conf.{host_end}.accept_ra"
        return found + (["accept_ra"] if world.run("node1", "sysctl", "-n", accept_ra)[0] == "2"
                        else [])  # fmt: skip

    first = wrong()
    back_s = world.wait(lambda: not wrong(), "the sysctls", deadline_s=2 * RESYNC_S + 10)
    told_s = world.wait(lambda: bool(world.events("PodLinkRepaired")), "the Event")
    event = world.events("PodLinkRepaired")[0]
    known = world.ask("node1", "history", "--state-dir", str(world.lab.paths.state_dir("node1")))
    noted = [e for e in known or [] if e["kind"] == "link" and e["action"] == "repaired"]
    world.settled()
    verdict.note(
        f"{len(first)} settings put right after {back_s:.0f} s; Event after {told_s:.0f} s more: "
        f"{event!r}"
    )
    verdict.must(len(first) == len(SYSCTLS) + 1, f"only {first} could be set wrong")
    verdict.must(back_s <= 60.0, f"only after {back_s:.0f} s")
    verdict.must(len(noted) >= len(first), f"the journal has {len(noted)} of {len(first)}")


# -- K12 ---------------------------------------------------------------------------------------


def address_reused(world: World, verdict: Verdict) -> None:
    """A flow that was translated to a pod's address outlives the pod; then another pod gets that
    address. A pool of one address makes sure that it does."""
    plugin = world.lab.runtime_of("node1")
    other = world.pod_on("node1")
    world.apply(pools(lab_v4="!10.244.0.0/16/26", one="10.96.1.0/32/32"))
    with ExitStack() as stack:
        old, old_netns = stack.enter_context(world.extra_pod("node1", "k12a"))
        new, new_netns = stack.enter_context(world.extra_pod("node1", "k12b"))
        world.wait(lambda: code_of(plugin.status) is None, "STATUS with the new pool")
        address = _ipv4_of(plugin.add(old))
        world.run("tor1", "ip", "route", "add", SERVICE, "via", "172.30.0.1")
        stack.callback(world.run, "tor1", "ip", "route", "del", SERVICE)
        _translate(world, address)
        stack.callback(world.run, "node1", "nft", "delete", "table", "ip", "chaos")
        first = stack.enter_context(_receiver(old_netns))
        stack.enter_context(_sender(world))
        world.wait(lambda: _count(first) > 10, "the flow at the old pod")
        before = len(_tracked(world, address))
        _translate(world, world.address_of(other))
        # Control: the rule says another pod by now, and the flow's entry still says the old one.
        stuck_from = _count(first)
        world.for_seconds(0.5)
        stuck = _count(first) - stuck_from
        moved = stack.enter_context(_receiver(other.namespace))
        plugin.delete(old)
        world.wait(lambda: _count(moved) > 10, "the flow at the other pod")
        world.wait(
            lambda: code_of(lambda: plugin.add(new)) is None,
            "the address again",
            deadline_s=COOLDOWN_S + 30,
        )
        again = namespaces.ip_json(new_netns, "-4", "addr", "show", "dev", "eth0")
        given = str(again[0]["addr_info"][0]["local"])
        after = len(_tracked(world, address))
        third = stack.enter_context(_receiver(new_netns))
        world.for_seconds(3.0)
        hits = _count(third)
        plugin.delete(new)
    verdict.note(
        f"{before} entries of {address} while its pod lived, {stuck} datagrams to it after the "
        f"rule had changed; at the new pod's ADD {after} entries, then {hits} datagrams in 3 s"
    )
    verdict.must(given == address, f"the new pod has {given}")
    verdict.must(before > 0 and stuck > 0, "control: the flow was not tied to the address")
    verdict.must(after == 0, f"{after} connections of the old pod were left")
    verdict.must(hits == 0, f"{hits} datagrams of the old pod's flow hit the new one")


def _ipv4_of(result: Any) -> str:
    return next(a for a in runtime.addresses_in(result) if "." in a)


def _translate(world: World, address: str) -> None:
    """A service's rule on node1, as kube-proxy would write it: it replaces the one before."""
    rules = (
        "table ip chaos {}\ndelete table ip chaos\ntable ip chaos { chain pre { "
        "type nat hook prerouting priority -100; "
        f"ip daddr {SERVICE} udp dport {PORT} dnat to {address}\n}}\n}}\n"
    )
    namespaces.run(["nft", "-f", "-"], namespace=world.lab.plan.namespace_of("node1"), stdin=rules)


def _tracked(world: World, address: str) -> list[str]:
    lines = world.run("node1", "cat", "/proc/net/nf_conntrack").splitlines()
    return [line for line in lines if f"={address} " in line]


@contextmanager
def _running(namespace: str, script: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-I", "-S", "-c", script, *arguments]
    process = subprocess.Popen(
        namespaces.enter(namespace, argv), stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


@contextmanager
def _receiver(namespace: str) -> Iterator[list[Any]]:
    """A UDP receiver; ``_count`` says how many datagrams it has had."""
    with _running(namespace, _RECEIVER, str(PORT)) as process:
        assert process.stdout is not None  # noqa: S101 - it was started with one
        process.stdout.readline()
        os.set_blocking(process.stdout.fileno(), False)
        yield [process, 0]


def _count(receiver: list[Any]) -> int:
    receiver[1] += len(receiver[0].stdout.read() or b"")
    return int(receiver[1])


def _sender(world: World) -> Any:
    return _running(world.lab.plan.client.namespace, _SENDER, SERVICE, str(PORT))


# -- K13 ---------------------------------------------------------------------------------------


def mtus(world: World, verdict: Verdict) -> None:
    """Pods of 1500 and of 9000 bytes over uplinks of 9000, then pods of 9000 over 1500."""
    with ExitStack() as stack:
        small, large = {}, {}
        for node in ("node1", "node2"):
            small[node] = stack.enter_context(_pod(world, node, "k13s", USUAL_BYTES))
            large[node] = stack.enter_context(_pod(world, node, "k13l", JUMBO_BYTES))
        with _uplinks(world, JUMBO_BYTES):
            _largest(verdict, "pods 1500 over 9000", small, USUAL_BYTES)
            _largest(verdict, "pods 9000 over 9000", large, JUMBO_BYTES)
            _transfer(verdict, "9000 to 1500 over 9000", large["node1"], small["node2"])
        _largest(verdict, "pods 1500 over 1500", small, USUAL_BYTES)
        near, far = large["node1"], large["node2"]
        told = _ping(near[0], far[1], JUMBO_BYTES - HEADERS_BYTES, "do", count=2)
        verdict.must("mtu = 1500" in told or "mtu=1500" in told,
                     f"nobody told the pod of the smaller MTU: {told!r}")  # fmt: skip
        learned = namespaces.run(["ip", "route", "get", far[1]], namespace=near[0])
        verdict.must("mtu 1500" in learned, f"the pod has not learned it: {learned!r}")
        _fits(verdict, "pods 9000 over 1500", near, far, USUAL_BYTES)
        whole = _ping(near[0], far[1], JUMBO_BYTES - HEADERS_BYTES, "dont")
        verdict.must("1 received" in whole, "a packet of 9000 in fragments does not pass")
        _transfer(verdict, "9000 to 9000 over 1500", near, far)
    verdict.note("pods 9000 over 1500: the sender is told 1500, and keeps to it")


Wired = tuple[str, str]
"""A pod's namespace and its IPv4 address."""


@contextmanager
def _pod(world: World, node: str, tag: str, mtu_bytes: int) -> Iterator[Wired]:
    network = runtime.load_network(world.lab.paths.cni_conf(node))
    conf = tuple({**each, "mtu": mtu_bytes} for each in network.plugins)
    plugin = runtime.Runtime(
        replace(network, plugins=conf),
        bin_dirs=[world.lab.paths.cni_bin(node)],
        results_dir=world.lab.paths.cni_results(node),
        namespace=world.machine(node).namespace,
    )
    with world.extra_pod(node, tag) as (sandbox, namespace):
        address = _ipv4_of(plugin.add(sandbox))
        yield namespace, address
        plugin.delete(sandbox)


@contextmanager
def _uplinks(world: World, mtu_bytes: int) -> Iterator[None]:
    """Both ends of the uplinks of node1 and node2 at another MTU."""

    def put(size: int) -> None:
        for node in ("node1", "node2"):
            for near, far in world.lab.plan.links_of(world.machine(node)):
                world.run(node, "ip", "link", "set", near.ifname, "mtu", str(size))
                world.run(far.machine.name, "ip", "link", "set", far.ifname, "mtu", str(size))

    put(mtu_bytes)
    try:
        yield
    finally:
        put(USUAL_BYTES)


def _largest(verdict: Verdict, what: str, pods: dict[str, Wired], mtu_bytes: int) -> None:
    _fits(verdict, what, pods["node1"], pods["node2"], mtu_bytes)


def _fits(verdict: Verdict, what: str, near: Wired, far: Wired, mtu_bytes: int) -> None:
    """The largest packet that needs no fragments passes; one more byte does not."""
    largest = mtu_bytes - HEADERS_BYTES
    fits = _ping(near[0], far[1], largest, "do")
    more = _ping(near[0], far[1], largest + 1, "do")
    verdict.note(f"{what}: {largest} bytes of payload pass")
    verdict.must("1 received" in fits, f"{what}: {largest} bytes do not pass")
    verdict.must("1 received" not in more, f"control: {what}: {largest + 1} bytes pass too")


def _ping(namespace: str, address: str, size: int, fragments: str, *, count: int = 1) -> str:
    argv: Sequence[str] = ["ping", "-n", "-c", str(count), "-i", "0.2", "-W", "1", "-M", fragments,
                           "-s", str(size), address]  # fmt: skip
    done = subprocess.run(
        namespaces.enter(namespace, argv), capture_output=True, text=True, check=False
    )
    return re.sub(r"\s+", " ", done.stdout + done.stderr)


def _transfer(verdict: Verdict, what: str, near: Wired, far: Wired) -> None:
    """A megabyte over TCP."""
    with _running(far[0], _SERVER) as server:
        assert server.stdout is not None  # noqa: S101 - it was started with one
        server.stdout.readline()
        argv = [sys.executable, "-I", "-S", "-c", _CLIENT, far[1]]
        namespaces.run(argv, namespace=near[0])
        arrived = int(server.stdout.readline() or b"0")
    verdict.must(arrived == 1_000_000, f"{what}: {arrived} of 1000000 bytes over TCP")


_ONE = Stage.ONE_TOR

ROWS = [
    Row("K7", "a pod's host end goes down and up; is renamed, up and down",
        "routes, name and pod back within 2 s", _ONE, host_end_flaps, is_quick=True),
    Row("K9", "sysctls of a pod's link flipped by a tool (and accept_ra)",
        "put right within 60 s, Event and journal", Stage.KUBERNETES, sysctls_flipped),
    Row("K12", "an address is used again while a flow translated to it goes on",
        "0 connections of it at ADD, 0 datagrams to the new pod (control: the flow sticks before)",
        _ONE, address_reused, leaves_lab=False),
    Row("K13", "uplinks of MTU 9000 with pods of 1500 and 9000; of 1500 with pods of 9000",
        "the largest packet passes, one more byte does not; the sender learns the path's MTU", _ONE,
        mtus, is_quick=True),
]  # fmt: skip
