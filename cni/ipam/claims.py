"""Claims: how a node takes blocks from the store and gives them back, whatever the store does.

Every write is followed by a look when its answer is in doubt: a create or a confirmation that
timed out may have happened, and only the store knows. What the caller gets is therefore always
something that was *seen*: a CONFIRMED block of this node, or none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

import structlog

from cni.ipam.block import (
    Block,
    BlockConflict,
    BlockExists,
    BlockState,
    BlockStore,
    BlockStoreError,
)
from cni.ipam.pool import Prefix

log = structlog.get_logger("cni.ipam")

CONFIRM_ATTEMPTS_MAX = 4
"""Confirmations tried for one block; a conflict means something else wrote it in between."""
DELETED_UIDS_MAX = 1024
"""Blocks we deleted, remembered so that a late answer of the store cannot bring one back."""


def no_record(_block: Block) -> None:
    """For an agent that keeps no record of its blocks beside the store."""


class Claims:
    """One node's dealings with the block store.

    ``give_up`` returns once no record that a later agent of this node may start from has the block
    any more, and raises BlockStoreError when one still has. It is called before a block is deleted:
    afterwards another node may have it, and two would give out its addresses.
    """

    def __init__(
        self, node: str, store: BlockStore, give_up: Callable[[Block], None] = no_record
    ) -> None:
        self._node = node
        self._store = store
        self._give_up = give_up
        self._deleted_uids: deque[str] = deque(maxlen=DELETED_UIDS_MAX)

    async def list(self) -> list[Block]:
        """The store's blocks, without those we deleted (a late answer may still have them).

        Raises:
            BlockStoreError: the store cannot be read.
        """
        blocks = await self._store.list_blocks()
        return [block for block in blocks if block.uid not in self._deleted_uids]

    async def claim(self, cidr: Prefix, pool: str) -> Block | None:
        """Both phases for one CIDR: a CONFIRMED block of ours, or None when another node has it.

        Raises:
            BlockStoreError: the store cannot be used; a PENDING block of ours may be left.
        """
        try:
            created = await self._store.create_block(
                Block(cidr, pool, self._node, BlockState.PENDING)
            )
        except BlockExists:
            log.debug("block_taken", block=str(cidr))
            return None
        except BlockStoreError:
            found = await self._ours(cidr)
            if found is None:
                raise
            created = found
        return await self.confirm(created)

    async def confirm(self, block: Block) -> Block | None:
        """Makes a block of ours CONFIRMED. None when it is not ours any more.

        Raises:
            BlockStoreError: the confirmation was not seen; the block must not be used.
        """
        for _ in range(CONFIRM_ATTEMPTS_MAX):
            if block.state is BlockState.CONFIRMED:
                return block
            fault: BlockStoreError
            try:
                return await self._store.update_block(replace(block, state=BlockState.CONFIRMED))
            except BlockStoreError as error:
                fault = error
            found = await self._ours(block.cidr)
            if found is None:
                log.info("block_lost", block=str(block.cidr), reason=str(fault))
                return None
            if found == block and not isinstance(fault, BlockConflict):
                # Nothing was written: the store refuses or is away, and asking again is no help.
                raise fault
            block = found
        if block.state is BlockState.CONFIRMED:
            return block
        raise BlockConflict(
            f"block {block.cidr} changed {CONFIRM_ATTEMPTS_MAX} times while it was being confirmed"
        )

    async def mark(self, block: Block) -> Block | None:
        """Marks a block PENDING_DELETION. None when something else wrote it meanwhile.

        Raises:
            BlockStoreError: it may be marked or not.
        """
        try:
            marked = await self._store.update_block(
                replace(block, state=BlockState.PENDING_DELETION)
            )
        except BlockConflict:
            log.info("block_changed", block=str(block.cidr))
            return None
        log.info("block_leaving", block=str(block.cidr))
        return marked

    async def delete(self, block: Block) -> bool:
        """Deletes a marked block. False when something else wrote or deleted it meanwhile.

        Raises:
            BlockStoreError: it may be deleted or not.
        """
        self._give_up(block)
        try:
            await self._store.delete_block(block)
        except BlockConflict:
            return False
        self._deleted_uids.append(block.uid)
        log.info("block_released", block=str(block.cidr))
        return True

    async def _ours(self, cidr: Prefix) -> Block | None:
        blocks = await self.list()
        return next((b for b in blocks if b.cidr == cidr and b.node == self._node), None)
