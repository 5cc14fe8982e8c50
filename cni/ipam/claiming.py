"""Claiming: the walks that make a block ours, and what the store's word does to our holdings.

Whoever calls holds the lock of the families concerned (allocator.py): two claims of one family at
once would take two blocks where one has room for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from cni.attachment import Address
from cni.ipam.block import Block, BlockState, BlockStoreError
from cni.ipam.choice import FAMILIES, contains, is_full
from cni.ipam.claims import Claims
from cni.ipam.holdings import Holdings
from cni.ipam.pool import IPPool, Prefix
from cni.ipam.requested import AddressRefused, pool_of, refuse_other_nodes

log = structlog.get_logger("cni.ipam")

CLAIM_ATTEMPTS_MAX = 64
"""Creates tried in one claim. Each failure means another node took that very CIDR a moment ago."""


class Claiming:
    """One node's walks over pools and blocks.

    Attributes:
        listed_cidrs: every block of the cluster as last listed, as a hint.
        fault: why the store could not be read when it was last asked to be, or "".
    """

    def __init__(
        self, node: str, claims: Claims, holdings: Holdings, pools: Callable[[], Sequence[IPPool]]
    ) -> None:
        self._node = node
        self._claims = claims
        self._holdings = holdings
        self._pools = pools
        self.listed_cidrs: set[Prefix] = set()
        self.fault = ""

    async def look(self, families: Sequence[int] = FAMILIES) -> list[Block]:
        """Reads the store and makes our holdings of these families what it says.

        Raises:
            BlockStoreError: the store cannot be read.
        """
        blocks = await self._claims.list()
        await self._take_over(blocks, families)
        return blocks

    async def claim_from(
        self, pools: Sequence[IPPool], version: int, has_room: Callable[[], bool]
    ) -> bool:
        """Returns when an own block has room, claiming one of ``pools``, in order, if need be.

        False when every block of them is taken.

        Raises:
            BlockStoreError: the store cannot be used, or too many claims were lost to others.
        """
        blocks = await self.look((version,))
        taken = self.listed_cidrs = {block.cidr for block in blocks}
        if has_room():
            return True
        attempts = 0
        for pool in pools:
            if is_full(pool, taken):
                continue
            # The walk is bounded: it skips at most the blocks just listed.
            for cidr in pool.candidate_blocks(self._node):
                if cidr in taken:
                    continue
                taken.add(cidr)
                attempts += 1
                if attempts > CLAIM_ATTEMPTS_MAX:
                    raise BlockStoreError(
                        f"{CLAIM_ATTEMPTS_MAX} IPv{version} blocks in a row were claimed by other "
                        "nodes first; try again"
                    )
                block = await self._claims.claim(cidr, pool.name)
                if block is not None:
                    self._holdings.own(block)
                    return True
        return False

    async def claim_block_of(self, address: Address) -> None:
        """Returns when the block of a requested address is ours, claiming it if need be.

        Raises:
            AddressRefused: no pool gives it, or another node has its block.
            BlockStoreError: the store cannot be used.
        """
        blocks = await self.look((address.version,))
        if self._holdings.block_of(address) is not None:
            return
        pool = pool_of(address, self._pools(), node=self._node)
        ours = next((b for b in blocks if b.node == self._node and contains(b.cidr, address)), None)
        if ours is not None:
            # On its way out, and wanted again; or never confirmed.
            block = await self._claims.confirm(ours)
        else:
            refuse_other_nodes(address, pool.block_of(address), blocks)
            block = await self._claims.claim(pool.block_of(address), pool.name)
        if block is None:
            raise AddressRefused(
                address, f"is in block {pool.block_of(address)}, which another node has just taken"
            )
        self._holdings.own(block)

    async def mark_for_deletion(self, block: Block) -> None:
        """The first of two steps of giving a block back; out of use from the start.

        Raises:
            BlockStoreError: it may be marked or not.
        """
        # Out of use before the first await: an assign that runs meanwhile must not find it. When
        # the answer is in doubt it stays out of use until a refresh has seen what it is.
        self._holdings.disown(block.cidr)
        marked = await self._claims.mark(block)
        if marked is not None:
            self._holdings.leaving[block.cidr] = marked

    async def delete(self, cidr: Prefix) -> bool:
        """The second step: deletes a marked block. False when it is not to be deleted now.

        Raises:
            BlockStoreError: it may be deleted or not.
        """
        block = self._holdings.leaving.pop(cidr)
        if self._holdings.in_use(cidr):
            return False
        try:
            return await self._claims.delete(block)
        except BlockStoreError:
            self._holdings.leaving[cidr] = block
            raise

    async def _take_over(self, blocks: Sequence[Block], families: Sequence[int]) -> None:
        """Makes the view of our own blocks what the store says, and confirms what is PENDING.

        Only for families whose lock the caller holds: a claim that runs in the other one may have
        finished after this list was read, and its new block must not be taken for lost.
        """
        self.fault = ""
        holdings = self._holdings
        listed = {block.cidr: block for block in blocks if block.cidr.version in families}
        mine = [c for c in (*holdings.owned, *holdings.leaving) if c.version in families]
        for cidr in mine:
            block = listed.get(cidr)
            if block is None:
                holdings.lose(cidr, "is gone from the store")
            elif block.node != self._node:
                holdings.lose(cidr, f"belongs to node {block.node} now")
        for cidr in [cidr for cidr in holdings.unconfirmed if cidr.version in families]:
            del holdings.unconfirmed[cidr]
        for block in listed.values():
            if block.node == self._node:
                await self._take_over_one(block)
        holdings.forget_unused_losses()

    async def _take_over_one(self, block: Block) -> None:
        holdings = self._holdings
        in_use = holdings.in_use(block.cidr) > 0
        if block.state is BlockState.CONFIRMED:
            holdings.own(block)
        elif block.state is BlockState.PENDING_DELETION and not in_use:
            holdings.lose(block.cidr, "is being given back")
            holdings.leaving[block.cidr] = block
        else:
            # Our own claim, cut short; or a release, cut short, of a block that is in use again.
            if block.cidr in holdings.owned:
                holdings.lose(block.cidr, "is not confirmed any more")
            try:
                confirmed = await self._claims.confirm(block)
            except BlockStoreError as error:
                holdings.unconfirmed[block.cidr] = str(error)
                log.warning("block_unconfirmed", block=str(block.cidr), error=str(error))
            else:
                if confirmed is not None:
                    holdings.own(confirmed)
