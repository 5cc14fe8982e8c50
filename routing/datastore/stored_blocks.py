"""StoredBlocks: the IPAM's BlockStore, told by a Datastore's own four verbs.

One writing of it, for both stores promise the allocator the same thing in the same errors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from cni.ipam.block import Block
from routing.datastore.preconditions import block_errors, block_of
from routing.datastore.resources import block_name, block_resource
from routing.datastore.snapshot import Resource

Resources = list[Resource]
Blocks = list[Block]


class StoredBlocks(ABC):
    """Mixed into a store whose ``list`` holds every write that was acknowledged to anyone."""

    @abstractmethod
    async def list(self, kind: str) -> Resources:
        """Every resource of a kind."""

    @abstractmethod
    async def create(self, resource: Resource) -> Resource:
        """Stores a new resource."""

    @abstractmethod
    async def update(self, resource: Resource) -> Resource:
        """Replaces a resource of that very version."""

    @abstractmethod
    async def delete(
        self, kind: str, name: str, *, resource_version: str | None = None, uid: str | None = None
    ) -> None:
        """Deletes a resource, of that version and uid where they are given."""

    async def list_blocks(self) -> Blocks:
        """Every block. Raises BlockStoreError."""
        with block_errors():
            return [block_of(each) for each in await self.list("Block")]

    async def create_block(self, block: Block) -> Block:
        """Stores a new block. Raises BlockExists, BlockStoreError."""
        with block_errors():
            return block_of(await self.create(block_resource(block)))

    async def update_block(self, block: Block) -> Block:
        """Replaces a block of that very version. Raises BlockConflict, BlockStoreError."""
        with block_errors():
            return block_of(await self.update(block_resource(block)))

    async def delete_block(self, block: Block) -> None:
        """Deletes a block of that very version. Raises BlockConflict, BlockStoreError."""
        with block_errors():
            await self.delete(
                "Block",
                block_name(block.cidr),
                resource_version=block.resource_version,
                uid=block.uid or None,
            )
