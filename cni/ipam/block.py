"""Block: the unit of address space a node owns. Pure values; BlockUsage is added by the IPAM."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from cni.ipam.pool import Prefix


class BlockState(Enum):
    """Two-phase claim: only a CONFIRMED block is assigned from, routed or announced."""

    PENDING = "pending"
    CONFIRMED = "confirmed"
    PENDING_DELETION = "pendingDeletion"


@dataclass(frozen=True, slots=True)
class Block:
    """A block as the store holds it.

    ``node`` owns it. ``resource_version`` is opaque: it is what compare-and-swap compares, and
    empty on a block that was never stored. ``uid`` tells a block from a later one of the same CIDR.
    """

    cidr: Prefix
    pool: str
    node: str
    state: BlockState
    resource_version: str = ""
    uid: str = ""


class BlockStoreError(Exception):
    """The store could not be reached or gave no usable answer; what it holds is unknown."""


class BlockExists(BlockStoreError):
    """A block of that CIDR is there already: another node won the claim."""


class BlockConflict(BlockStoreError):
    """The block changed (or went) since it was read; read again before deciding."""


class BlockStore(Protocol):
    """What the allocator needs of the datastore. The CIDR is the key, so create is the lock."""

    async def list_blocks(self) -> list[Block]:
        """Every block of the cluster, read from the store itself (not from a cache)."""

    async def create_block(self, block: Block) -> Block:
        """Stores a new block and returns it with its resource version. Raises BlockExists."""

    async def update_block(self, block: Block) -> Block:
        """Replaces the block if its resource version still matches. Raises BlockConflict."""

    async def delete_block(self, block: Block) -> None:
        """Deletes the block if its resource version still matches. Raises BlockConflict."""
