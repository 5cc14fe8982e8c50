"""Reflectors and mesh on the real programs: sessions without a router, and moving without loss.

One lab with three nodes and two route reflectors (BIRD 2). The cluster moves to the mesh and back,
each in one change of the store, while pods ping each other every 10 ms.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from lab import build, flows, namespaces, teardown
from lab.build import Lab
from lab.plan import Address, Shape, resources
from lab.waiting import Progress, wait_until
from routing.datastore.resources import API_VERSION

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.netns,
    pytest.mark.bird,
    pytest.mark.exabgp,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
    pytest.mark.skipif(shutil.which("bird") is None, reason="the reflectors run BIRD 2"),
]

DEADLINE_S = 40.0


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    """The lab with its reflectors, up and converged."""
    shape = Shape(nodes=3, tors=2, pods=1, topology="rr")
    lab = build.claim(f"t{os.getpid()}", shape, progress=Progress())
    try:
        build.up(lab)
        yield lab
    finally:
        problems = teardown.down(lab)
    assert problems == []


def slash32(lab: Lab, *arguments: str, stdin: str = "") -> str:
    """The command, on the lab's store."""
    return namespaces.run(
        build.slash32_command(*arguments), env=build.environment(lab.paths), stdin=stdin
    )


def configuration(*, mesh: bool) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "BGPConfiguration",
        "metadata": {"name": "default"},
        "spec": {"nodeToNodeMeshEnabled": mesh},
    }


def apply(lab: Lab, documents: list[dict[str, Any]]) -> None:
    """All in one transaction."""
    slash32(lab, "apply", "-f", "-", stdin=yaml.safe_dump_all(documents))


def reflector_peers(lab: Lab) -> list[dict[str, Any]]:
    return [d for d in resources(lab.plan, API_VERSION) if d["kind"] == "BGPPeer"]


def remove_reflectors(lab: Lab) -> None:
    slash32(lab, "delete", "BGPPeer", *(tor.name for tor in lab.plan.tors))


def peers(lab: Lab) -> dict[str, set[str]]:
    """Node to the names of its established sessions."""
    return {
        node.name: {
            row["name"] for row in lab.ask(node.name, "peers") if row["state"] == "Established"
        }
        for node in lab.plan.nodes
    }


def wait_peers(lab: Lab, wanted: set[str], *, but: str = "") -> None:
    """Until each node has exactly these sessions; ``but`` + its own name is left out."""
    wait_until(
        lambda: [
            f"{node} has {sorted(found)}"
            for node, found in peers(lab).items()
            if found != wanted - {but + node}
        ],
        what="sessions",
        deadline_s=DEADLINE_S,
    )


def mesh_names(lab: Lab) -> set[str]:
    return {f"mesh/{node.name}" for node in lab.plan.nodes}


def pairs(lab: Lab) -> list[tuple[str, str, Address]]:
    """Each node's pod to the next node's, IPv4 and IPv6 by turns."""
    pods = list(lab.plan.pods)
    found = []
    for number, pod in enumerate(pods):
        other = pods[(number + 1) % len(pods)]
        address = lab.addresses_of(other)[number % 2]
        found.append((f"{pod.name}>{address}", pod.namespace, address))
    return found


def move(lab: Lab, what) -> list[flows.Loss]:
    """What pods lose while ``what`` is done."""
    with flows.flowing(pairs(lab)) as running:
        wait_until(lambda: [f.name for f in running if f.replies < 20], what="flows", deadline_s=10)
        what()
        lab.wait_converged()
        return flows.losses(running, ended_at_s=time.time())


def test_moving_to_the_mesh_and_back_loses_nothing_and_the_control_does(world: Lab):
    """Make before break, both ways, in two families; the same moves in two steps show a hole."""
    reflectors = {tor.name for tor in world.plan.tors}
    wait_peers(world, reflectors)

    def to_mesh() -> None:
        # Reflectors go only when the mesh is up: the store has both until then.
        apply(world, [configuration(mesh=True)])
        wait_peers(world, reflectors | mesh_names(world), but="mesh/")
        remove_reflectors(world)
        wait_peers(world, mesh_names(world), but="mesh/")

    def to_reflectors() -> None:
        # One transaction: nobody but the nodes themselves keeps the order.
        apply(world, [configuration(mesh=False), *reflector_peers(world)])
        wait_peers(world, reflectors)

    for step in (to_mesh, to_reflectors):
        lost = move(world, step)
        assert [str(each) for each in lost if each.lost] == []
        assert all(each.sent > 100 for each in lost)

    def break_before_make() -> None:
        remove_reflectors(world)
        wait_peers(world, set())
        apply(world, [configuration(mesh=True)])
        wait_peers(world, mesh_names(world), but="mesh/")

    assert any(each.lost > 5 for each in move(world, break_before_make))
    apply(world, [configuration(mesh=False), *reflector_peers(world)])
    wait_peers(world, reflectors)


def test_a_drained_node_leaves_the_others_and_comes_back(world: Lab):
    """GRACEFUL_SHUTDOWN is seen by the reflector, then nothing; then its sessions are closed."""
    node, tor = world.plan.nodes[0], world.plan.tors[0]
    (block,) = [b for b in world.blocks_of(node) if b.version == 4]

    def reflected() -> str:
        socket = str(world.paths.bird_socket(tor.name))
        command = ["birdc", "-s", socket, "show", "route", str(block), "all"]
        return namespaces.run(command, ok=(0, 1))

    def until(condition, what: str) -> None:
        wait_until(lambda: [] if condition() else [what], what=what, deadline_s=DEADLINE_S)

    slash32(world, "node", "drain", node.name)
    until(lambda: "(65535,0)" in reflected(), "the community at the reflector")
    until(lambda: "(65535,0)" not in reflected(), "the withdrawal at the reflector")
    assert world.ask(node.name, "status")["drain"] in ("withdrawn", "drained")
    until(lambda: world.ask(node.name, "peers") == [], "no session")
    slash32(
        world,
        *("node", "undrain", node.name, "--wait", "20"),
        *("--run-dir", str(world.paths.run_dir(node.name))),
    )
    world.wait_sessions()
    world.wait_converged()
