"""Many nodes that claim blocks from one store at once, each with a connection of its own."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_network
from pathlib import Path
from threading import Barrier

from cni.attachment import Attachment
from cni.ipam.allocator import Allocator
from cni.ipam.block import Block, BlockState
from cni.ipam.choice import NoAddress
from cni.ipam.pool import IPPool
from routing.datastore.local import LocalStore
from routing.datastore.snapshot import IPPoolResource, Meta

BLOCK_SIZE = 26


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the nodes came to, and what the store holds afterwards."""

    served: int
    refused: int
    blocks: int
    confirmed: int
    doubled: int


def claim_at_once(path: Path, *, nodes: int, blocks: int) -> Outcome:
    """``nodes`` allocators ask for one address each, at once, from a pool of ``blocks`` blocks."""
    length = BLOCK_SIZE - (blocks - 1).bit_length()
    pool = IPPool(name="chaos", cidr=IPv4Network(f"10.244.0.0/{length}"), block_size=BLOCK_SIZE)
    asyncio.run(_with_pool(path, pool))
    start = Barrier(nodes)

    async def ask(number: int) -> str | None:
        store = LocalStore(path)
        try:
            allocator = Allocator(f"node-{number}", store, lambda: (pool,), time.monotonic)
            await asyncio.to_thread(start.wait, 60)
            given = await allocator.assign(Attachment("slash32", f"{number:064x}", "eth0"))
            return str(given[0])
        except NoAddress:
            return None
        finally:
            await store.close()

    with ThreadPoolExecutor(max_workers=nodes) as threads:
        given = list(threads.map(lambda number: asyncio.run(ask(number)), range(nodes)))
    return outcome_of(given, asyncio.run(_blocks_in(path)))


def outcome_of(given: Sequence[str | None], held: Sequence[Block]) -> Outcome:
    """What the nodes came to: ``given`` is each node's address, or None for refused. Pure."""
    addresses = Counter(address for address in given if address)
    cidrs = Counter(block.cidr for block in held)
    owner = {block.cidr: block.node for block in held}
    strangers = sum(
        1
        for number, address in enumerate(given)
        if address
        and owner.get(ip_network(f"{address}/{BLOCK_SIZE}", strict=False)) != f"node-{number}"
    )
    return Outcome(
        served=sum(1 for address in given if address),
        refused=given.count(None),
        blocks=len(held),
        confirmed=sum(block.state is BlockState.CONFIRMED for block in held),
        doubled=sum(n - 1 for n in (*addresses.values(), *cidrs.values())) + strangers,
    )


async def _with_pool(path: Path, pool: IPPool) -> None:
    store = LocalStore(path)
    try:
        await store.apply([IPPoolResource(Meta(pool.name), pool.cidr, pool.block_size)])
    finally:
        await store.close()


async def _blocks_in(path: Path) -> tuple[Block, ...]:
    store = LocalStore(path)
    try:
        return (await store.snapshot()).blocks
    finally:
        await store.close()
