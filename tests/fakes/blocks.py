"""FakeBlocks: the allocator as the loop sees it, without any block of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cni.ipam.block import Block
from routing.routes import Prefix


@dataclass
class FakeBlocks:
    """Remembers what it was refreshed with."""

    seen: list[Sequence[Block] | None] = field(default_factory=list)
    release_calls: int = 0

    async def refresh(self, blocks: Sequence[Block] | None = None) -> None:
        self.seen.append(blocks)

    async def release_empty_blocks(self) -> list[Prefix]:
        self.release_calls += 1
        return []

    def restore(self, blocks: Sequence[Block]) -> None:
        self.seen.append(blocks)

    def blocks(self) -> list[tuple[Block, int, int, int]]:
        return []
