"""Three agents on a Kubernetes API that goes away: pods come and go, nothing else happens.

The API is the lab's double (lab/apiserver), on loopback of every node. Stopping it resets every
connection and refuses new ones, as an API server does whose process has died.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from lab import build, namespaces, runtime, teardown
from lab.chaos.world import World
from lab.plan import API_PORT, Shape
from lab.waiting import Progress

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.netns,
    pytest.mark.bird,
    pytest.mark.exabgp,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
    pytest.mark.skipif(shutil.which("bird") is None, reason="the lab's routers run BIRD 2"),
]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """The lab, up and converged; taken down whatever happens."""
    shape = Shape(nodes=3, tors=1, pods=1, store="kubernetes")
    lab = build.claim(f"k{os.getpid()}", shape, progress=Progress())
    try:
        build.up(lab)
        yield World(lab)
    finally:
        problems = teardown.down(lab)
    assert problems == []


def stored(world: World, kind: str) -> list[dict[str, object]]:
    """What ``slash32 get`` finds in the API."""
    text = namespaces.run(
        build.slash32_command("get", kind, "-o", "json"),
        namespace=world.lab.plan.client.namespace,
        env=build.environment(world.lab.paths),
    )
    return list(json.loads(text)["items"])


def store_errors(world: World) -> list[bool]:
    """For each node, whether its agent cannot reach the API."""
    rows = [world.ask(node, "status") for node in world.nodes]
    return [bool(row and row["store"]["error"]) for row in rows]


def test_the_cluster_works_on_the_api(world: World):
    """Every node claimed a block of each family there, and pods reach each other."""
    world.settled()

    owners = [block["spec"]["affinity"] for block in stored(world, "blocks")]  # type: ignore[index]
    assert sorted(owners) == sorted([f"host:{node}" for node in world.nodes] * 2)
    for node in world.nodes[1:]:
        assert world.reaches(world.pod_on(node).name, world.address_of(world.pod_on("node1")))


def objects(world: World, plural: str) -> list[dict[str, Any]]:
    """What the API has, statuses included."""
    url = f"http://127.0.0.1:{API_PORT}/apis/slash32.io/v1/{plural}"
    program = f"import urllib.request as u; print(u.urlopen({url!r}).read().decode())"
    text = namespaces.run(
        [sys.executable, "-c", program], namespace=world.lab.plan.client.namespace
    )
    return list(json.loads(text)["items"])


def ready(item: dict[str, Any]) -> str:
    """The status of the condition Ready, or ""."""
    found = item.get("status", {}).get("conditions", [])
    return next((str(c["status"]) for c in found if c["type"] == "Ready"), "")


def test_kubectl_shows_how_nodes_and_peers_and_pools_stand(world: World):
    """Agents report; the elected controller sums it up; all of it is ready."""
    for plural, count in (("nodestatuses", 3), ("bgppeers", 3), ("ippools", 2)):
        world.wait(
            lambda plural=plural, count=count: (  # type: ignore[misc]
                [ready(item) for item in objects(world, plural)] == ["True"] * count
            ),
            f"{plural} that are ready",
        )

    assert {item["status"]["established"] for item in objects(world, "bgppeers")} == {"1/1"}


def test_pods_come_and_go_and_agents_restart_while_the_api_is_away(world: World):
    """No route event, no session touched, no packet lost; on return nothing leaked or doubled."""
    world.settled()
    blocks = {block["metadata"]["name"] for block in stored(world, "blocks")}  # type: ignore[index]
    before = {node: world.own_routes(node) for node in world.nodes}
    sessions = world.session_lines("tor1")
    world.lab.stop_api()
    try:
        world.wait(lambda: all(store_errors(world)), "agents without the API")

        with world.watching() as watch:
            world.kill("agent-node2")
            world.start_agent("node2")
            world.wait(lambda: world.ask("node2", "status") is not None, "the new agent")
        assert {node: world.own_routes(node) for node in world.nodes} == before
        assert world.session_lines("tor1") == sessions
        assert watch.events_on(*world.nodes, "tor1") == []
        assert watch.lost == 0, str(watch)
        assert all(store_errors(world))

        for node, tag in (("node1", "a"), ("node2", "b")):
            with world.extra_pod(node, tag) as (sandbox, namespace):
                result = world.lab.runtime_of(node).add(sandbox)
                (address,) = [a for a in runtime.addresses_in(result) if ":" not in a]
                reaches = partial(world.reaches, world.pod_on("node3").name, address)
                world.wait(reaches, f"{address}, added while the API is away")
                assert namespaces.inode(namespace)
            # And is deleted again, the API still away.
            assert world.own_routes(node) == before[node]
    finally:
        world.lab.stop_api(is_back=True)

    world.wait(lambda: not any(store_errors(world)), "agents with the API")
    world.settled()
    assert world.at_rest() == []
    assert {b["metadata"]["name"] for b in stored(world, "blocks")} == blocks  # type: ignore[index]
    assert {node: world.own_routes(node) for node in world.nodes} == before
    assert world.session_lines("tor1") == sessions
