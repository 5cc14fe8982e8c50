"""What dies comes back, and the packets do not notice: agent, ExaBGP, router, link, routes.

One small lab (two nodes, one BIRD, a pod each). While something is killed, one pod pings the other
every 10 ms; the kernel's and the router's route changes are recorded by ``ip monitor``.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from lab import build, namespaces, processes, routers, runtime, teardown
from lab.build import Lab
from lab.plan import Machine, Shape
from lab.processes import Process
from lab.waiting import Progress, wait_until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.netns,
    pytest.mark.bird,
    pytest.mark.exabgp,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
    pytest.mark.skipif(shutil.which("bird") is None, reason="the lab's routers run BIRD 2"),
]

log = logging.getLogger(__name__)

DEADLINE_S = 40.0
PING_INTERVAL_S = 0.01


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    """The lab, up and converged; taken down whatever happens."""
    lab = build.claim(f"r{os.getpid()}", Shape(nodes=2, tors=1, pods=1), progress=Progress())
    try:
        build.up(lab)
        yield lab
    finally:
        problems = teardown.down(lab)
    assert problems == []


def process(lab: Lab, name: str) -> Process:
    """The living process of that name."""
    return next(p for p in reversed(lab.record.processes) if p.name == name)


def kill(lab: Lab, name: str) -> None:
    """SIGKILL, and wait until it is gone; only ever a process of this lab."""
    victim = process(lab, name)
    os.kill(victim.pid, signal.SIGKILL)
    wait(lambda: not processes.is_alive(victim), f"{name} to be gone")


def machine(lab: Lab, name: str) -> Machine:
    """A node or a router."""
    return next(m for m in (*lab.plan.nodes, *lab.plan.tors) if m.name == name)


def wait(condition: Callable[[], bool], what: str) -> None:
    """Until ``condition`` holds."""
    wait_until(lambda: [] if condition() else [what], what=what, deadline_s=DEADLINE_S)


def ask(lab: Lab, node: str, view: str) -> Any:
    """A node's ``slash32 <view> -o json``; None while its agent is away."""
    namespace = lab.plan.namespace_of(node)
    done = subprocess.run(
        namespaces.enter(
            namespace,
            build.slash32_command(view, "--run-dir", str(lab.paths.run_dir(node)), "-o", "json"),
        ),
        env=build.environment(lab.paths),
        cwd=build.PROJECT_DIR,
        capture_output=True,
        text=True,
        check=False,
    )
    return json.loads(done.stdout) if done.returncode in {0, 1} and done.stdout else None


def healthy(lab: Lab, node: str) -> bool:
    """The agent answers and finds nothing wrong."""
    status = ask(lab, node, "status")
    return bool(status and status["healthy"])


def settled(lab: Lab) -> None:
    """Both nodes healthy, the router's sessions up."""
    wait(lambda: all(healthy(lab, n.name) for n in lab.plan.nodes), "healthy agents")


def own_routes(lab: Lab, node: str) -> set[str]:
    """Our routes in a node's kernel, as text."""
    namespace = lab.plan.namespace_of(node)
    found = set()
    for family in ("-4", "-6"):
        text = namespaces.run(
            namespaces.enter(namespace, ["ip", family, "route", "show", "proto", "132"])
        )
        found |= {" ".join(line.split()) for line in text.splitlines() if line.strip()}
    return found


@dataclass
class Watch:
    """What was observed while something was broken on purpose."""

    sent: int = 0
    received: int = 0
    route_events: dict[str, list[str]] = field(default_factory=dict)

    @property
    def lost(self) -> int:
        return self.sent - self.received


def catches_sigint(pid: int) -> bool:
    """Whether a process has a handler for SIGINT (proc(5), SigCgt)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGINT - 1) & 1)
    return False


@contextmanager
def watching(lab: Lab) -> Iterator[Watch]:
    """Pings pod to pod every 10 ms and records route changes on the nodes and the router."""
    watch = Watch()
    source, target = lab.plan.pods
    address = str(lab.addresses_of(target)[0])
    ping = subprocess.Popen(
        namespaces.enter(
            source.namespace, ["ping", "-n", "-q", "-i", str(PING_INTERVAL_S), address]
        ),
        stdout=subprocess.PIPE,
        text=True,
    )
    machines = {m.name: m.namespace for m in (*lab.plan.nodes, *lab.plan.tors)}
    monitors = {
        name: subprocess.Popen(
            namespaces.enter(namespace, ["ip", "-o", "monitor", "route"]),
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, namespace in machines.items()
    }
    try:
        # Before it has a handler of its own, SIGINT would end ping without its summary.
        wait(lambda: catches_sigint(ping.pid), "ping's signal handler")
        yield watch
    finally:
        ping.send_signal(signal.SIGINT)
        summary, _ = ping.communicate(timeout=10)
        for name, monitor in monitors.items():
            monitor.terminate()
            text, _ = monitor.communicate(timeout=10)
            # The kernel's own come whenever duplicate address detection ends.
            watch.route_events[name] = [
                line for line in text.splitlines() if line.strip() and "proto kernel" not in line
            ]
    counts = re.search(r"(\d+) packets transmitted, (\d+) received", summary)
    assert counts is not None, summary
    watch.sent, watch.received = int(counts[1]), int(counts[2])


def session_since(lab: Lab) -> list[str]:
    """The router's BGP sessions with the time of their last change."""
    text = routers.show_protocols(lab.paths, lab.plan.tors[0])
    return [line for line in text.splitlines() if " BGP " in line]


def test_a_killed_agent_is_not_noticed_by_anybody(world: Lab):
    """SIGKILL of the agent: no packet lost, no route event, no session touched; all remembered."""
    settled(world)
    routes, sessions = own_routes(world, "node1"), session_since(world)
    pods = ask(world, "node1", "pods")
    with watching(world) as watch:
        kill(world, "agent-node1")
        world.start_agent(machine(world, "node1"))
        wait(lambda: healthy(world, "node1"), "the new agent")
        # A pass after the first: what the first one held back would go now.
        wait(lambda: ask(world, "node1", "status")["last_pass_age_s"] is not None, "a pass")
    log.info("agent killed: %d of %d packets lost", watch.lost, watch.sent)
    assert watch.sent > 20
    assert watch.lost == 0
    assert watch.route_events == {"node1": [], "node2": [], "tor1": []}
    assert own_routes(world, "node1") == routes
    assert session_since(world) == sessions
    assert ask(world, "node1", "pods") == pods


def test_a_restarted_agent_gives_no_address_out_twice(world: Lab):
    """The kernel is the journal: a new pod gets an address that no living pod has."""
    settled(world)
    taken = {
        a for n in ("node1", "node2") for row in ask(world, n, "pods") for a in row["addresses"]
    }
    kill(world, "agent-node1")
    world.start_agent(machine(world, "node1"))
    wait(lambda: healthy(world, "node1"), "the new agent")
    namespace = f"{world.plan.pods[0].namespace}-x"
    namespaces.create([namespace])
    sandbox = replace(
        runtime.sandbox_of(world.plan.pods[0]),
        container_id="f" * 64,
        netns=str(namespaces.NETNS_DIR / namespace),
    )
    try:
        result = world.runtime_of("node1").add(sandbox)
        given = set(runtime.addresses_in(result))
        assert given
        assert not given & taken
    finally:
        world.runtime_of("node1").delete(sandbox)
        namespaces.delete(namespace)


def test_a_killed_exabgp_loses_no_packet(world: Lab):
    """SIGKILL of ExaBGP: graceful restart carries the traffic, and our routes stay throughout."""
    settled(world)
    routes = own_routes(world, "node1")
    victim = exabgp_pid(world, "node1")
    with watching(world) as watch:
        os.kill(victim, signal.SIGKILL)
        wait(lambda: exabgp_pid(world, "node1") not in {0, victim}, "a new ExaBGP")
        settled(world)
    log.info("ExaBGP killed: %d of %d packets lost", watch.lost, watch.sent)
    assert watch.lost == 0
    assert watch.route_events == {"node1": [], "node2": [], "tor1": []}
    assert own_routes(world, "node1") == routes


def exabgp_pid(lab: Lab, node: str) -> int:
    """The ExaBGP that a node's speaker runs, 0 when there is none at the moment."""
    conf = str(lab.paths.run_dir(node) / "exabgp.conf").encode()
    speaker = process(lab, f"speaker-{node}").pid
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == speaker and conf in command:
                return int(entry.name)
    return 0


def test_a_router_that_restarts_gets_everything_back(world: Lab):
    """BIRD killed and started: sessions, routes on both sides and traffic return."""
    settled(world)
    routes = own_routes(world, "node1")
    kill(world, "bird-tor1")
    world.start_router(machine(world, "tor1"))
    settled(world)
    wait(lambda: own_routes(world, "node1") == routes, "the same routes as before")
    with watching(world) as watch:
        wait(lambda: reaches(world), "the other pod")
    assert watch.received > 0


def reaches(lab: Lab) -> bool:
    """One ping from pod to pod."""
    source, target = lab.plan.pods
    done = subprocess.run(
        namespaces.enter(
            source.namespace, ["ping", "-c", "1", "-W", "1", str(lab.addresses_of(target)[0])]
        ),
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def flap_the_uplink(namespace: str) -> None:
    """Down and up."""
    # The kernel takes an IPv6 address off a link that goes down, unless told to keep it.
    namespaces.write_sysctls(namespace, {"net/ipv6/conf/uplink0/keep_addr_on_down": "1"})
    for state in ("down", "up"):
        namespaces.run(["ip", "link", "set", "uplink0", state], namespace=namespace)


def delete_routes(namespace: str, family: str) -> None:
    """Each of ours. ``ip route flush`` sends back what it read, and the kernel refuses a nexthop
    object and its gateway in one message."""
    shown = namespaces.run(
        ["ip", family, "route", "show", "proto", "132"], namespace=namespace
    ).splitlines()
    for line in shown:
        if line and not line[0].isspace():
            words = line.split()
            route = words[:2] if words[0] == "blackhole" else words[:1]
            command = ["ip", family, "route", "del", *route, "proto", "132", "metric", "1032"]
            namespaces.run(command, namespace=namespace, ok=(0, 2))


@pytest.mark.parametrize(
    ("what", "damage"),
    [
        ("link flap", flap_the_uplink),
        ("IPv4 deleted", lambda namespace: delete_routes(namespace, "-4")),
        ("IPv6 deleted", lambda namespace: delete_routes(namespace, "-6")),
    ],
)
def test_routes_that_somebody_removes_come_back(world: Lab, what, damage):
    """A flap of the uplink, all deleted by hand: the same again, foreign routes as they were."""
    settled(world)
    namespace = world.plan.namespace_of("node1")
    routes = own_routes(world, "node1")
    foreign = ["ip", "route", "add", "198.51.100.0/24", "dev", "lo", "metric", "77"]
    namespaces.run(namespaces.enter(namespace, foreign))
    try:
        damage(namespace)
        wait(lambda: own_routes(world, "node1") == routes, f"our routes after: {what}")
        settled(world)
        wait(lambda: reaches(world), "the other pod")
        shown = namespaces.run(
            namespaces.enter(namespace, ["ip", "route", "show", "198.51.100.0/24"])
        )
        assert "metric 77" in shown
    finally:
        foreign[2] = "del"
        namespaces.run(namespaces.enter(namespace, foreign))


def test_a_route_somebody_changed_is_put_right(world: Lab):
    """`ip route replace` over our key by another program: ours again, and the node says so."""
    settled(world)
    routes = own_routes(world, "node1")
    target = next(r for r in sorted(routes) if r.startswith("10.244.") and " via " in r)
    prefix = target.split()[0]
    namespace = world.plan.namespace_of("node1")
    namespaces.run(
        namespaces.enter(
            namespace, ["ip", "route", "del", prefix, "proto", "132", "metric", "1032"]
        )
    )
    wait(lambda: own_routes(world, "node1") == routes, f"{prefix} again")
    settled(world)


def test_a_pod_that_goes_leaves_nothing(world: Lab):
    """DEL: no link, no route, and the address rests before it is given out again."""
    settled(world)
    pod = world.plan.pods[0]
    before = ask(world, "node1", "pods")
    assert len(before) == 1
    world.runtime_of(pod.node).delete(runtime.sandbox_of(pod))
    assert ask(world, "node1", "pods") == []
    assert teardown.pod_leftovers(world.plan.nodes[0]) == []
    blocks = [b for b in ask(world, "node1", "blocks") if b["node"] == "node1"]
    assert all(b["cooling"] >= 1 for b in blocks)
    result = world.runtime_of(pod.node).add(runtime.sandbox_of(pod))
    world.pod_results[pod.name] = result
    assert not set(runtime.addresses_in(result)) & set(before[0]["addresses"])
    wait(lambda: reaches(world), "the other pod")
