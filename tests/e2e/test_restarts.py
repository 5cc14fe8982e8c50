"""What dies comes back, and the packets do not notice: agent, ExaBGP, router, link, routes.

One small lab (two nodes, one BIRD, a pod each), handled as the fault matrix handles its own
(``lab/chaos/``), whose quick rows are not repeated here.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator

import pytest

from lab import build, namespaces, runtime, teardown
from lab.chaos.world import World
from lab.plan import Shape
from lab.waiting import Progress

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.netns,
    pytest.mark.bird,
    pytest.mark.exabgp,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
    pytest.mark.skipif(shutil.which("bird") is None, reason="the lab's routers run BIRD 2"),
]

log = logging.getLogger(__name__)

NOTHING: dict[str, list[str]] = {"node1": [], "node2": [], "tor1": []}


@pytest.fixture(scope="module")
def lab() -> Iterator[World]:
    """The lab, up and converged; taken down whatever happens."""
    made = build.claim(f"r{os.getpid()}", Shape(nodes=2, tors=1, pods=1), progress=Progress())
    try:
        build.up(made)
        yield World(made)
    finally:
        problems = teardown.down(made)
    assert problems == []


@pytest.fixture
def world(lab: World) -> World:
    """Shared, and settled whatever the test before has left."""
    lab.settled()
    return lab


def restart_agent(world: World, node: str) -> None:
    """Killed, and another one that is whole."""
    world.kill(f"agent-{node}")
    world.start_agent(node)
    world.wait(lambda: world.is_healthy(node), "the new agent")


def reaches(world: World) -> bool:
    """One ping from pod to pod."""
    near, far = world.lab.plan.pods
    return world.reaches(near.name, world.address_of(far))


def test_a_killed_agent_is_not_noticed_by_anybody(world: World) -> None:
    """SIGKILL of the agent: no packet lost, no route event, no session touched; all remembered."""
    routes, sessions = world.own_routes("node1"), world.session_lines("tor1")
    pods = world.ask("node1", "pods")
    with world.watching() as watch:
        restart_agent(world, "node1")
        # A pass after the first: what the first one held back would go now.
        world.wait(lambda: world.ask("node1", "status")["last_pass_age_s"] is not None, "a pass")
    log.info("agent killed: %s", watch)
    assert watch.sent > 20
    assert watch.lost == 0
    assert watch.route_events == NOTHING
    assert world.own_routes("node1") == routes
    assert world.session_lines("tor1") == sessions
    assert world.ask("node1", "pods") == pods


def test_a_restarted_agent_gives_no_address_out_twice(world: World) -> None:
    """The kernel is the journal: a new pod gets an address that no living pod has."""
    taken = {a for n in world.nodes for row in world.ask(n, "pods") for a in row["addresses"]}
    restart_agent(world, "node1")
    with world.extra_pod("node1", "x") as (sandbox, _):
        given = set(runtime.addresses_in(world.lab.runtime_of("node1").add(sandbox)))
    assert given
    assert not given & taken


def test_a_killed_exabgp_loses_no_packet(world: World) -> None:
    """SIGKILL of ExaBGP: graceful restart carries the traffic, and our routes stay throughout."""
    routes = world.own_routes("node1")
    with world.watching() as watch:
        victim = world.kill_exabgp("node1")
        world.wait(lambda: world.exabgp_pid("node1") not in {0, victim}, "a new ExaBGP")
        world.settled()
    log.info("ExaBGP killed: %s", watch)
    assert watch.lost == 0
    assert watch.route_events == NOTHING
    assert world.own_routes("node1") == routes


def test_a_router_that_restarts_gets_everything_back(world: World) -> None:
    """BIRD killed and started: sessions, routes on both sides and traffic return."""
    routes = world.own_routes("node1")
    world.kill("bird-tor1")
    world.start_router("tor1")
    world.settled()
    world.wait(lambda: world.own_routes("node1") == routes, "the same routes as before")
    world.wait(lambda: reaches(world), "the other pod")


def test_a_flap_of_the_uplink_costs_nothing_that_stays(world: World) -> None:
    """The kernel drops every route over it; all are back, foreign routes as they were."""
    namespace = world.lab.plan.namespace_of("node1")
    routes = world.own_routes("node1")
    foreign = ["198.51.100.0/24", "dev", "lo", "metric", "77"]
    world.run("node1", "ip", "route", "add", *foreign)
    try:
        # The kernel takes an IPv6 address off a link that goes down, unless told to keep it.
        namespaces.write_sysctls(namespace, {"net/ipv6/conf/uplink0/keep_addr_on_down": "1"})
        for state in ("down", "up"):
            world.run("node1", "ip", "link", "set", "uplink0", state)
        world.wait(lambda: world.own_routes("node1") == routes, "our routes after the flap")
        world.settled()
        world.wait(lambda: reaches(world), "the other pod")
        assert "metric 77" in world.run("node1", "ip", "route", "show", "198.51.100.0/24")
    finally:
        world.run("node1", "ip", "route", "del", *foreign)


def test_one_route_that_somebody_deletes_comes_back(world: World) -> None:
    """One of a router's prefixes, by hand; the node is whole again by itself."""
    routes = world.own_routes("node1")
    target = next(r for r in sorted(routes) if r.startswith("10.244.") and " via " in r)
    prefix = target.split()[0]
    world.run("node1", "ip", "route", "del", prefix, "proto", "132", "metric", "1032")
    world.wait(lambda: world.own_routes("node1") == routes, f"{prefix} again")


def test_a_pod_that_goes_leaves_nothing(world: World) -> None:
    """DEL: no link, no route, and the address rests before it is given out again."""
    pod = world.pod_on("node1")
    plugin = world.lab.runtime_of("node1")
    (before,) = world.ask("node1", "pods")
    plugin.delete(runtime.sandbox_of(pod))
    assert world.ask("node1", "pods") == []
    assert teardown.pod_leftovers(world.machine("node1")) == []
    blocks = [b for b in world.ask("node1", "blocks") if b["node"] == "node1"]
    assert all(b["cooling"] >= 1 for b in blocks)
    result = plugin.add(runtime.sandbox_of(pod))
    world.lab.pod_results[pod.name] = result
    assert not set(runtime.addresses_in(result)) & set(before["addresses"])
    world.wait(lambda: reaches(world), "the other pod")
