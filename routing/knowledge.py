"""Knowledge: what this agent believes of the cluster: the store, its own doings, and its cache.

The loop asks it to read once a pass, and works from ``snapshot``. While the store is away that is
the last one, out of sync: nothing is deleted or withdrawn on its word. An agent that starts while
the store is away recalls the last one from the node's disk, and its blocks with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import structlog

from cni.ipam.block import Block
from routing.datastore.cache import SnapshotCache
from routing.datastore.keeping import with_held_blocks, with_own_node
from routing.datastore.snapshot import Datastore, Snapshot, StoreError

log = structlog.get_logger("routing.knowledge")


class OwnBlocks(Protocol):
    """What is asked of cni/ipam/allocator.py."""

    def restore(self, blocks: Sequence[Block]) -> None:
        """Takes this node's CONFIRMED blocks of a last known list into use, without the store."""

    async def refresh(self, blocks: Sequence[Block] | None = None) -> None:
        """Takes the store's blocks as the new truth of who owns what."""

    def blocks(self) -> Sequence[tuple[Block, int, int, int]]:
        """(block, used, cooling, free) of each CONFIRMED block of ours."""


class Knowledge:
    """One agent's view of the cluster.

    Attributes:
        snapshot: the last one known; ``in_sync`` only when the store gave it at the last read.
        error: why the store cannot be read at present, or None.
        is_recalled: whether ``snapshot`` is from the cache of an agent before this one.
    """

    def __init__(
        self, *, node: str, store: Datastore, blocks: OwnBlocks, cache: SnapshotCache | None = None
    ) -> None:
        self._node = node
        self._store = store
        self._blocks = blocks
        self._cache = cache
        self.snapshot = Snapshot()
        self.error: str | None = "not read yet"
        self.is_recalled = False
        self._is_node_missing = False

    def recall(self) -> bool:
        """Starts from the cache, if there is one; before the first read, and before any ADD."""
        found = None if self._cache is None else self._cache.load()
        if found is None:
            return False
        self.snapshot, self.is_recalled = found, True
        self._blocks.restore(found.blocks)
        log.info("last_known_recalled", blocks=len(found.blocks), peers=len(found.peers))
        return True

    async def read(self) -> str | None:
        """Reads the store. Returns why it could not be read, or None; never raises for that."""
        try:
            found = await self._store.snapshot()
            await self._blocks.refresh(found.blocks)
        except (StoreError, OSError) as error:
            self.error = str(error)
            self.snapshot = replace(self.snapshot, in_sync=False)
            return self.error
        held = [block for block, *_ in self._blocks.blocks()]
        kept = with_own_node(found, node=self._node, before=self.snapshot)
        self._tell_of_missing_node(is_missing=kept is not found)
        self.snapshot = with_held_blocks(kept, node=self._node, held=held)
        self.error, self.is_recalled = None, False
        if self._cache is not None:
            self._cache.save(self.snapshot)
        return None

    @property
    def problems(self) -> list[str]:
        """What an operator should look into, one sentence each."""
        found = [] if self._cache is None else self._cache.problems
        if self._is_node_missing:
            found.append(
                f"Node {self._node} is gone from the store: this node serves on as it was last "
                "known while it has blocks; create the Node again, or stop this agent"
            )
        return found

    def _tell_of_missing_node(self, *, is_missing: bool) -> None:
        if is_missing and not self._is_node_missing:
            log.error("own_node_is_missing", node=self._node)
        self._is_node_missing = is_missing
