"""Three agents and a controller on a Kubernetes API: the lab's double (lab/apiserver).

What they do when it goes away is in the fault matrix: rows R9, R10 and O of lab/chaos.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from lab import build, namespaces, teardown
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
