"""A store with pools, a clock that a test sets, and allocators of any node on them."""

from __future__ import annotations

import asyncio
from ipaddress import ip_network

from cni.attachment import Attachment
from cni.ipam.allocator import Allocator
from cni.ipam.block import Block, BlockState
from cni.ipam.pool import IPPool
from routing.datastore.snapshot import IPPoolResource, Meta
from tests.fakes.store import FakeDatastore

V4 = IPPool("a-v4", ip_network("10.0.0.0/24"), 30)
V6 = IPPool("a-v6", ip_network("fd00::/120"), 126)


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class World:
    """A store with pools, a clock, and allocators of any node on them."""

    def __init__(self, *pools: IPPool, cooldown_s: float = 30.0, cooldown_file=None) -> None:
        self.pools = list(pools)
        self.clock = Clock()
        self.cooldown_s = cooldown_s
        self.cooldown_file = cooldown_file
        self.store = FakeDatastore(
            *(IPPoolResource(Meta(p.name), p.cidr, p.block_size) for p in pools)
        )

    def allocator(self, node: str = "node-a") -> Allocator:
        return Allocator(
            node,
            self.store,
            lambda: self.pools,
            self.clock,
            cooldown_s=self.cooldown_s,
            cooldown_file=self.cooldown_file,
        )


def pod(number: int) -> Attachment:
    return Attachment("net", f"container{number}", "eth0")


async def until(condition) -> None:
    """Waits for a condition, two seconds at most."""
    async with asyncio.timeout(2):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def release_until(store: FakeDatastore, condition) -> None:
    """Lets every held call happen until a condition holds, two seconds at most."""
    async with asyncio.timeout(2):
        while not condition():
            for held in list(store.held):
                held.release()
            await asyncio.sleep(0)


def confirmed(store: FakeDatastore, node: str = "node-a") -> list[Block]:
    return [b for b in store.blocks if b.node == node and b.state is BlockState.CONFIRMED]
