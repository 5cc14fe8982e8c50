"""Nodes that add and delete pods against a Kubernetes API that misbehaves, and their history.

A hammered node is the agent's address side alone: the real store, the real allocator, blocks
claimed and given back, without a kernel. What each pod held, and when, is written down as it
happens; two that held one address at one moment, or a block that the store has and its node does
not know, are found in the history afterwards.

``python -m lab.chaos.hammer`` is one node in a process of its own, which can be paused; it prints
its history.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count, pairwise
from pathlib import Path

import structlog

from cni.attachment import Attachment
from cni.ipam.allocator import Allocator
from cni.ipam.block import Block, BlockState, BlockStoreError
from cni.ipam.choice import NoAddress
from routing.datastore.kubernetes import KubernetesStore
from routing.datastore.kubernetes_watch import Pace
from routing.datastore.snapshot import Snapshot, StoreError

PODS_MAX = 20
"""At once, on one node."""
COOLDOWN_S = 1.0
RELEASE_EVERY_S = 0.5
STEP_MAX_S = 0.05
END_DEADLINE_S = 60.0
PACE = Pace(backoff_first_s=0.05, backoff_max_s=1.0)


@dataclass(frozen=True, slots=True)
class Held:
    """A pod had an address from one moment to another (monotonic seconds of this machine)."""

    node: str
    pod: str
    address: str
    since_s: float
    until_s: float


@dataclass(slots=True)
class History:
    """What one node did. ``unknown``: blocks that the store has for it, and it does not know."""

    node: str
    held: list[Held] = field(default_factory=list)
    refused: int = 0
    unknown: list[str] = field(default_factory=list)


def doubled(histories: Iterable[History]) -> list[str]:
    """Each time that an address was held twice. Pure."""
    by_address: dict[str, list[Held]] = {}
    for history in histories:
        for held in history.held:
            by_address.setdefault(held.address, []).append(held)
    return [
        f"{address}: {one.node}/{one.pod} until {one.until_s:.3f}, {other.node}/{other.pod} since "
        f"{other.since_s:.3f}"
        for address, holders in by_address.items()
        for one, other in pairwise(sorted(holders, key=lambda held: held.since_s))
        if other.since_s < one.until_s
    ]


class HammeredNode:
    """One node; ``run`` it once.

    Args:
        node: its name.
        store: its own connection.
        seed: of its choices.
    """

    def __init__(self, node: str, store: KubernetesStore, *, seed: int) -> None:
        self.history = History(node)
        self._store = store
        self._random = random.Random(seed)  # noqa: S311 - choices of a test
        self._snapshot = Snapshot()
        self._numbers = count()
        self._living: dict[str, tuple[tuple[str, ...], float]] = {}
        self._allocator = Allocator(
            node,
            store,
            lambda: self._snapshot.pools_for(node),
            time.monotonic,
            cooldown_s=COOLDOWN_S,
        )

    async def run(self, duration_s: float) -> History:
        """Adds and deletes for so long, then deletes all and compares with the store."""
        following = asyncio.create_task(self._follow())
        try:
            end_s = time.monotonic() + duration_s
            while time.monotonic() < end_s:
                full = len(self._living) >= PODS_MAX
                if self._living and (full or self._random.random() < 0.45):
                    self._delete(self._random.choice(list(self._living)))
                else:
                    await self._add()
                await asyncio.sleep(self._random.uniform(0, STEP_MAX_S))
            for pod in list(self._living):
                self._delete(pod)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        await self._compare()
        return self.history

    async def _add(self) -> None:
        pod = f"{self.history.node}-{next(self._numbers)}"
        try:
            given = await self._allocator.assign(_attachment(pod))
        except (NoAddress, BlockStoreError):
            self.history.refused += 1
            return
        self._living[pod] = (tuple(str(address) for address in given), time.monotonic())

    def _delete(self, pod: str) -> None:
        addresses, since_s = self._living.pop(pod)
        # Before the release: from then on somebody else may have it.
        until_s = time.monotonic()
        self._allocator.release(_attachment(pod))
        self.history.held += [
            Held(self.history.node, pod, address, since_s, until_s) for address in addresses
        ]

    async def _follow(self) -> None:
        """As the agent does: every snapshot, and empty blocks given back now and then."""
        released_s = time.monotonic()
        while True:
            try:
                self._snapshot = await self._store.snapshot()
                await self._allocator.refresh(self._snapshot.blocks)
                if time.monotonic() - released_s >= RELEASE_EVERY_S:
                    released_s = time.monotonic()
                    await self._allocator.release_empty_blocks()
                async with asyncio.timeout(RELEASE_EVERY_S):
                    await self._store.changed()
            except TimeoutError:
                continue
            except (StoreError, BlockStoreError):
                await asyncio.sleep(0.1)

    async def _compare(self) -> None:
        """What the store has for this node must be what it knows, once it has looked."""
        end_s = time.monotonic() + END_DEADLINE_S
        while True:
            try:
                await self._allocator.refresh()
                of_ours = _of_node(await self._store.list_blocks(), self.history.node)
            except BlockStoreError:
                of_ours = None
            if of_ours is not None:
                known = {str(block.cidr) for block, *_ in self._allocator.blocks()}
                self.history.unknown = [
                    f"{block.cidr} {block.state.value}"
                    for block in of_ours
                    if block.state is not BlockState.PENDING_DELETION
                    and str(block.cidr) not in known
                ]
                if not self.history.unknown:
                    return
            if time.monotonic() >= end_s:
                return
            await asyncio.sleep(0.1)


def _of_node(blocks: Sequence[Block], node: str) -> list[Block]:
    return [block for block in blocks if block.node == node]


def _attachment(pod: str) -> Attachment:
    return Attachment("slash32", pod.encode().hex()[-64:].rjust(64, "0"), "eth0")


async def hammer(kubeconfig: Path, node: str, *, duration_s: float, seed: int) -> History:
    """One node against the API that a kubeconfig leads to."""
    store = await KubernetesStore.open(kubeconfig, pace=PACE)
    try:
        return await HammeredNode(node, store, seed=seed).run(duration_s)
    finally:
        await store.close()


def main() -> None:
    """One node in this process; its history as JSON at the end."""
    parser = argparse.ArgumentParser(description="a node that adds and deletes pods")
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--node", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    history = asyncio.run(
        hammer(asked.kubeconfig, asked.node, duration_s=asked.seconds, seed=asked.seed)
    )
    json.dump(asdict(history), sys.stdout)


def read_history(text: str) -> History:
    """What ``main`` printed."""
    fields = json.loads(text)
    held = [Held(**each) for each in fields.pop("held")]
    return History(**fields, held=held)


if __name__ == "__main__":
    main()
