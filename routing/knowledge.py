"""Knowledge: what this agent believes of the cluster: the store, its own doings, and its cache.

The loop asks it to read once a pass, and works from ``snapshot``. While the store is away that is
the last one, out of sync: nothing is deleted or withdrawn on its word. An agent that starts while
the store is away recalls the last one from the node's disk, and its blocks with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import structlog

from cni.ipam.block import Block
from routing.datastore.cache import SnapshotCache
from routing.datastore.keeping import with_held_blocks, with_own_node
from routing.datastore.snapshot import Datastore, Snapshot, StoreError
from routing.last_peers import LastPeers, with_last_peers
from routing.topology import sessions_for

log = structlog.get_logger("routing.knowledge")

TOLD_EVERY_S = 60.0
"""How often the log says how long the last peers are kept still."""


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
        peering: what sessions and their policy are made of: ``snapshot``, or that with last peers.
        last_peers: what is kept of peers that the store has no more, or None.
        error: why the store cannot be read at present, or None.
        is_recalled: whether ``snapshot`` is from the cache of an agent before this one.
    """

    def __init__(
        self,
        *,
        node: str,
        store: Datastore,
        blocks: OwnBlocks,
        cache: SnapshotCache | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._node = node
        self._store = store
        self._blocks = blocks
        self._cache = cache
        self._wall = wall
        self.snapshot = self.peering = Snapshot()
        self.last_peers: LastPeers | None = None
        self._told_left_s = float("inf")
        self.error: str | None = "not read yet"
        self.is_recalled = False
        self._is_node_missing = False

    def recall(self) -> bool:
        """Starts from the cache, if there is one; before the first read, and before any ADD."""
        found = None if self._cache is None else self._cache.load()
        if found is None:
            return False
        self.snapshot = self.peering = found
        self.is_recalled = True
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
            self.peering = replace(self.peering, in_sync=False)
            return self.error
        held = [block for block, *_ in self._blocks.blocks()]
        kept = with_own_node(found, node=self._node, before=self.snapshot)
        self._tell_of_missing_node(is_missing=kept is not found)
        self.snapshot = with_held_blocks(kept, node=self._node, held=held)
        self.error, self.is_recalled = None, False
        self.peering, kept_peers = with_last_peers(
            self.snapshot, self.peering, node=self._node, wall_s=self._wall()
        )
        self._tell_of_last_peers(kept_peers)
        if self._cache is not None:
            # Not the store's bare word: an agent that is started meanwhile goes on as this one.
            self._cache.save(self.peering)
        return None

    @property
    def problems(self) -> list[str]:
        """What an operator should look into, one sentence each."""
        found = [] if self._cache is None else list(self._cache.problems)
        if self._is_node_missing:
            found.append(
                f"Node {self._node} is gone from the store: this node serves on as it was last "
                "known while it has blocks; create the Node again, or stop this agent"
            )
        if self.last_peers is not None:
            found = [*found, str(self.last_peers)]
        return found

    def _tell_of_last_peers(self, kept: LastPeers | None) -> None:
        before, self.last_peers = self.last_peers, kept
        if kept is not None:
            if before is None or self._told_left_s - kept.left_s >= TOLD_EVERY_S:
                log.warning("last_peers_kept", left_s=round(kept.left_s), detail=str(kept))
                self._told_left_s = kept.left_s
        elif before is not None:
            has_peers = bool(sessions_for(self.snapshot, self._node).names)
            log.warning(
                "last_peers_let_go",
                peers=before.sessions,
                because="there are peers again" if has_peers else "their time is over",
            )

    def _tell_of_missing_node(self, *, is_missing: bool) -> None:
        if is_missing and not self._is_node_missing:
            log.error("own_node_is_missing", node=self._node)
        self._is_node_missing = is_missing
