"""ExaBGP starts with no agent there: what a router and a packet notice of it.

A router with graceful restart pings an address in our block every 10 ms, its kernel's route changes
are recorded. Agent and ExaBGP are killed together; ExaBGP starts alone, long before the agent. The
control, without graceful restart, must lose packets, or the zero would say nothing.
"""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path

import pytest

from tests.fakes.bgp_world import Routers, wait_until, why_not
from tests.netns.test_speaker_exabgp import AgentProcess, start_exabgp

pytestmark = [
    pytest.mark.netns,
    pytest.mark.exabgp,
    pytest.mark.bird,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

BLOCK = ip_network("10.244.1.64/26")
POD = "10.244.1.65"
INTERVAL_S = 0.01


@dataclass
class Seen:
    """What the router noticed."""

    sent: int = 0
    received: int = 0
    route_events: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        return self.sent - self.received


@contextmanager
def watching(netns: str) -> Iterator[Seen]:
    """Pings POD from ``netns`` and records the changes of its IPv4 routes."""
    seen = Seen()
    enter = ["ip", "netns", "exec", netns]
    monitor = subprocess.Popen(
        ["ip", "-n", netns, "-4", "-o", "monitor", "route"], stdout=subprocess.PIPE, text=True
    )
    ping = subprocess.Popen(
        [*enter, "ping", "-n", "-i", str(INTERVAL_S), POD], stdout=subprocess.PIPE, text=True
    )
    try:
        assert ping.stdout is not None
        # It has answered once, so its handler of SIGINT is there as well.
        first = [ping.stdout.readline(), ping.stdout.readline()]
        assert "bytes from" in first[1], first
        yield seen
    finally:
        ping.send_signal(signal.SIGINT)
        text, _ = ping.communicate(timeout=10)
        monitor.terminate()
        events, _ = monitor.communicate(timeout=10)
    counts = re.search(r"(\d+) packets transmitted, (\d+) received", text)
    assert counts is not None, text
    seen.sent, seen.received = int(counts[1]), int(counts[2])
    seen.route_events = [line for line in events.splitlines() if str(BLOCK) in line]


class Node:
    """An agent and an ExaBGP, killed together, started apart."""

    def __init__(self, routers: Routers, directory: Path, *, graceful_restart_s: int) -> None:
        self.routers = routers
        self.agent = AgentProcess(
            directory,
            routers.peer(1),
            announce=[str(BLOCK)],
            graceful_restart_s=graceful_restart_s,
        )
        self._exabgp: subprocess.Popen[bytes] | None = None
        subprocess.run(
            ["ip", "-n", routers.node, "addr", "add", f"{POD}/32", "dev", "lo"],
            check=True,
            timeout=10,
        )

    def start_exabgp(self) -> None:
        self._exabgp = start_exabgp(self.routers, self.agent.conf)

    def kill_all(self) -> None:
        self.agent.kill()
        process, self._exabgp = self._exabgp, None
        if process is not None:
            process.kill()
            process.wait()

    def die_and_start_exabgp_alone(self) -> None:
        """Returns when the router has a new session and an UPDATE on it."""
        sessions, bird = self.sessions(), self.routers.birds[1]
        self.kill_all()
        self.start_exabgp()
        wait_until(lambda: self.sessions() > sessions, what="a session, no agent")
        updates = bird.log().rpartition("State changed to up")[0].count("Got UPDATE")
        wait_until(lambda: bird.log().count("Got UPDATE") > updates, what="the block")

    def sessions(self) -> int:
        return self.routers.birds[1].sessions_so_far("node")

    def settle(self) -> None:
        self.routers.birds[1].start()
        self.agent.start()
        wait_until(self.agent.conf.exists, what="the configuration")
        self.start_exabgp()
        wait_until(self.is_announced, what="announced")
        # A route that the file does not have yet would be gone with this ExaBGP.
        wait_until(lambda: str(BLOCK) in self.agent.conf.read_text(), what="in the file")

    def is_announced(self) -> bool:
        shown = subprocess.run(
            ["ip", "-n", self.routers.namespace(1), "route", "show", str(BLOCK)],
            check=True, capture_output=True, text=True, timeout=10,
        )  # fmt: skip
        return shown.stdout != ""


@pytest.fixture
def routers(tmp_path: Path) -> Iterator[Routers]:
    made = Routers(tmp_path, programs_kernel=True)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("deaths", [1, 2], ids=["once", "twice in a row"])
def test_exabgp_alone_keeps_every_packet(routers: Routers, tmp_path: Path, deaths: int) -> None:
    """Agent and ExaBGP killed: 0 lost, 0 route events; End-of-RIB comes when the agent does.

    Twice in a row is the case that graceful restart does not forgive: what is still stale at the
    second loss is dropped (RFC 4724 section 4.2). Our routes are not, for the file announced them.
    """
    node = Node(routers, tmp_path, graceful_restart_s=120)
    bird = routers.birds[1]
    try:
        node.settle()
        with watching(routers.namespace(1)) as seen:
            for _ in range(deaths):
                node.die_and_start_exabgp_alone()
            ends = bird.log().count("Got END-OF-RIB")
            node.agent.start()
            wait_until(lambda: bird.log().count("Got END-OF-RIB") > ends, what="End-of-RIB")
            wait_until(lambda: node.agent.report()["up"], what="the agent knows")
        assert seen.sent > 20
        assert (seen.lost, seen.route_events) == (0, [])
        assert node.agent.report()["changed"] == 0
        assert node.is_announced()
    finally:
        node.kill_all()


def test_without_graceful_restart_packets_are_lost(routers: Routers, tmp_path: Path) -> None:
    """The control: the same deaths are seen by the same probes."""
    node = Node(routers, tmp_path, graceful_restart_s=0)
    try:
        node.settle()
        with watching(routers.namespace(1)) as seen:
            sessions = node.sessions()
            node.kill_all()
            wait_until(lambda: not node.is_announced(), what="the route is gone")
            node.start_exabgp()
            wait_until(lambda: node.sessions() > sessions, what="a session, no agent")
            wait_until(node.is_announced, what="announced by the file alone")
        assert seen.lost > 0
        assert len(seen.route_events) >= 2
    finally:
        node.kill_all()
