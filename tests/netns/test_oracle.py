"""The oracle's eyes: leaks planted in a real kernel and in a real address book are seen there."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest

from cni.attachment import Attachment
from cni.podlink import PodLink
from lab.oracle import Living, examine
from routing.control import ControlServer
from tests.fakes.netns import Fabric, Namespace, fabric

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

WHO = Attachment("slash32", "c0ffee", "eth0")
LINK = PodLink(WHO, (ip_address("10.1.0.1"), ip_address("fd00::1")), 1500)
HOST = WHO.host_ifname


@dataclass
class World:
    """A node with one sound pod, made with ``ip`` alone."""

    fabric: Fabric
    node: Namespace
    pod: Namespace

    @property
    def living(self) -> Living:
        """The pod as its runtime knows it."""
        return Living(WHO, f"/run/netns/{self.pod.name}")

    def findings(self, *, alive: bool = True, run_dir: Path | None = None) -> list[str]:
        """What the oracle says."""
        living = [self.living] if alive else []
        return examine(f"/run/netns/{self.node.name}", alive=living, run_dir=run_dir)


@pytest.fixture
def world() -> Iterator[World]:
    """Two namespaces, the pod wired and routed in both families."""
    with fabric() as made:
        node, pod = made.namespace("node"), made.namespace("pod")
        node.ip_batch(
            [
                f"link add {HOST} group 29490 type veth peer name eth0 netns {pod.name}",
                f"link set {HOST} alias {LINK.alias} up",
                f"address add fe80::1/64 dev {HOST} nodad",
                "route add 169.254.1.1/32 dev lo proto 132 metric 1032",
                "route add blackhole 10.1.0.0/26 proto 132 metric 1032",
                f"route add 10.1.0.1/32 dev {HOST} proto 132 metric 1032",
                f"route add fd00::1/128 dev {HOST} proto 132 metric 1032",
            ]
        )
        pod.ip_batch(
            [
                "link set eth0 up",
                "address add 10.1.0.1/32 dev eth0",
                "address add fd00::1/128 dev eth0 nodad",
                "route add 169.254.1.1 dev eth0 scope link",
                "route add default via 169.254.1.1",
                "route add default via fe80::1 dev eth0",
            ]
        )
        yield World(made, node, pod)


def test_a_sound_node_and_an_empty_one_have_no_findings(world: World) -> None:
    """The gateway's route, the block's black hole and link-local addresses are no leaks."""
    assert world.findings() == []
    empty = world.fabric.namespace("empty")
    assert examine(f"/run/netns/{empty.name}", alive=[]) == []


PLANTED = [
    ("node", f"link set {HOST} down", f"link {HOST} of {WHO} is down"),
    ("node", f"link del {HOST}", f"missing link: sandbox {WHO} is alive and has none"),
    ("node", "route del 10.1.0.1/32", f"missing route 10.1.0.1 dev {HOST}"),
    ("node", "-6 route del fd00::1/128", f"missing route fd00::1 dev {HOST}"),
    ("node", "route add 10.1.0.7/32 dev lo proto 132 metric 1032", "orphan route 10.1.0.7 dev lo"),
    (
        "node",
        "-6 route add fd00::7/128 dev lo proto 132 metric 1032",
        "orphan route fd00::7 dev lo",
    ),
    (
        "node",
        f"route add 10.1.0.7/32 dev {HOST} proto 132 metric 1032",
        f"stale route 10.1.0.7 dev {HOST}",
    ),
    ("node", "route add 10.1.0.1/32 dev lo", "duplicate route 10.1.0.1"),
    ("node", "address add 10.1.0.1/32 dev lo", "duplicate address 10.1.0.1"),
    ("node", "link add s32x group 29490 type veth peer name y", "half-made link s32x"),
    ("pod", "address del 10.1.0.1/32 dev eth0", "missing address 10.1.0.1"),
    ("pod", "address add 10.1.0.9/32 dev eth0", "stale address 10.1.0.9"),
    ("pod", "route del default", "missing default route by 169.254.1.1"),
    ("pod", "-6 route del default", "missing default route by fe80::1"),
    ("pod", "link set eth0 name eth9", "missing interface"),
]


@pytest.mark.parametrize(
    ("where", "command", "expected"), PLANTED, ids=[f"{each[0]}: {each[1]}" for each in PLANTED]
)
def test_what_is_planted_in_the_kernel_is_seen(
    world: World, where: str, command: str, expected: str
) -> None:
    """Each command breaks one thing, which may show at several places."""
    (world.node if where == "node" else world.pod).ip(command)

    assert any(text.startswith(expected) for text in world.findings())


def test_an_orphan_link_and_a_namespace_that_is_gone_are_seen(world: World) -> None:
    """A sandbox the runtime has forgotten; one it believes alive that is not."""
    assert world.findings(alive=False) == [f"orphan link {HOST}: no sandbox {WHO} is alive"]
    world.pod.close()
    found = world.findings()
    assert any(text.startswith("missing namespace") for text in found)


async def test_the_book_is_read_and_an_agent_that_is_away_is_a_finding(
    world: World, tmp_path: Path
) -> None:
    """Otherwise a book that nobody read would look sound."""
    found = await asyncio.to_thread(world.findings, run_dir=tmp_path)
    assert len(found) == 1
    assert found[0].startswith("the address book cannot be read")

    async def addresses() -> list[dict[str, object]]:
        return [
            {
                "network": "slash32",
                "container_id": "dead",
                "ifname": "eth0",
                "addresses": ["10.1.0.2"],
            }
        ]

    async def blocks() -> list[dict[str, object]]:
        return [{"block": "10.1.0.0/26", "used": 2}, {"block": "10.1.0.64/26", "used": None}]

    control = ControlServer(tmp_path / "agent.sock", {"addresses": addresses, "blocks": blocks})
    await control.start()
    try:
        found = await asyncio.to_thread(world.findings, run_dir=tmp_path)
    finally:
        await control.close()
    assert found == [
        "allocated without a link: slash32/dead/eth0 holds 10.1.0.2",
        f"link without allocation: {WHO} has 10.1.0.1, fd00::1",
        "block 10.1.0.0/26 counts 2 used addresses, and 1 of it are held",
    ]
