"""BlockCollector: what nodes that are gone have left behind is taken back.

A thin edge around ``absence.py``, which decides. Every write is a compare-and-swap on the version
that was judged, so two collectors at once, or one that works from an old list, lose a race and do
nothing. Before anything is written for a node, the store itself is asked once more for its Node.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace

import structlog

from cni.ipam.block import Block, BlockConflict, BlockState, BlockStoreError
from routing.controller.absence import (
    Gone,
    Memory,
    after_our_write,
    judge,
    seen_alive,
)
from routing.datastore.resources import block_name
from routing.datastore.snapshot import (
    Conflict,
    Datastore,
    EventNote,
    NodeStatusResource,
    NotFound,
    Snapshot,
    StoreError,
)

log = structlog.get_logger("routing.controller")

GRACE_S = 900.0
WRITES_MAX = 200
"""Writes of one look, so that a data centre that goes away is no storm of requests."""

LifeSign = Callable[[str, Sequence[Block]], Awaitable[str | None]]
"""Asked about a node and its blocks just before something is written: why it lives after all, such
as "it has 3 pods", or None. Raises StoreError when that cannot be known."""


class BlockCollector:
    """Takes back the blocks of nodes that are gone, and removes their NodeStatus.

    Args:
        store: where blocks are.
        clock: monotonic seconds.
        grace_s: how long a node must have shown no life before its blocks are marked, and how long
            a block must have been marked before it is deleted. Several times as long as agents
            take between two reports.
        life_signs: further ways to find out that a node lives.
    """

    def __init__(
        self,
        store: Datastore,
        *,
        clock: Callable[[], float],
        grace_s: float = GRACE_S,
        life_signs: Sequence[LifeSign] = (),
    ) -> None:
        self._store = store
        self._clock = clock
        self._grace_s = grace_s
        self._life_signs = life_signs
        self._memory = Memory()
        self._writes = 0

    def forget(self) -> None:
        """Starts to count anew; for one that is not elected any more, and does not look."""
        self._memory = Memory()

    async def look(
        self,
        snapshot: Snapshot,
        statuses: Iterable[NodeStatusResource],
        is_elected: Callable[[], bool] = lambda: True,
    ) -> list[EventNote]:
        """One look, and what follows from it. Returns what people should be told.

        What could not be written is tried again at the next look.

        Args:
            snapshot: what the store holds; one that is out of sync proves nothing.
            statuses: every NodeStatus.
            is_elected: asked before each node.
        """
        if not snapshot.in_sync:
            return []
        reports = {status.meta.name: status for status in statuses}
        self._memory, gone = judge(
            nodes={node.meta.name for node in snapshot.nodes},
            blocks=snapshot.blocks,
            heartbeats={
                name: f"{status.observed_at} {status.meta.resource_version}"
                for name, status in reports.items()
            },
            before=self._memory,
            now_s=self._clock(),
            grace_s=self._grace_s,
        )
        events: list[EventNote] = []
        self._writes = 0
        for each in gone:
            if self._writes >= WRITES_MAX or not is_elected():
                break
            try:
                if await self._is_gone(each):
                    await self._take_back(each, reports.get(each.node), events)
            except (StoreError, BlockStoreError) as error:
                log.warning("node_not_collected", node=each.node, error=str(error))
        return events

    async def _is_gone(self, gone: Gone) -> bool:
        """The last question before something is written."""
        blocks = (*gone.mark, *gone.delete, *gone.later)
        try:
            await self._store.get("Node", gone.node)
        except NotFound:
            pass
        else:
            self._memory = seen_alive(self._memory, gone.node)
            return False
        for ask in self._life_signs:
            sign = await ask(gone.node, blocks)
            if sign is not None:
                log.warning("node_without_object_lives", node=gone.node, sign=sign)
                self._memory = seen_alive(self._memory, gone.node)
                return False
        return True

    async def _take_back(
        self, gone: Gone, report: NodeStatusResource | None, events: list[EventNote]
    ) -> None:
        for block in gone.mark:
            if self._writes < WRITES_MAX:
                await self._mark(block, gone, events)
        for block in gone.delete:
            if self._writes < WRITES_MAX:
                await self._delete(block, events)
        if report is not None and not gone.mark and not gone.later:
            await self._remove_report(report)

    async def _mark(self, block: Block, gone: Gone, events: list[EventNote]) -> None:
        self._writes += 1
        try:
            marked = await self._store.update_block(
                replace(block, state=BlockState.PENDING_DELETION)
            )
        except BlockConflict:
            return
        self._memory = after_our_write(self._memory, marked, self._clock())
        log.warning("block_of_gone_node_marked", block=str(block.cidr), node=block.node)
        events.append(
            EventNote(
                "Block",
                block_name(block.cidr),
                "NodeGone",
                f"node {block.node} has no Node object and has shown no sign of life for "
                f"{gone.silent_s:.0f} s: block {block.cidr} is given back unless its agent takes "
                f"it back within {self._grace_s:.0f} s",
            )
        )

    async def _delete(self, block: Block, events: list[EventNote]) -> None:
        self._writes += 1
        try:
            await self._store.delete_block(block)
        except BlockConflict:
            return
        log.warning("block_of_gone_node_deleted", block=str(block.cidr), node=block.node)
        events.append(
            EventNote(
                "IPPool",
                block.pool,
                "BlockReclaimed",
                f"block {block.cidr} of node {block.node}, which is gone, is free again",
                is_warning=False,
            )
        )

    async def _remove_report(self, report: NodeStatusResource) -> None:
        self._writes += 1
        meta = report.meta
        try:
            await self._store.delete(
                "NodeStatus",
                meta.name,
                resource_version=meta.resource_version or None,
                uid=meta.uid or None,
            )
        except (NotFound, Conflict):
            return
        log.info("report_of_gone_node_removed", node=meta.name)
