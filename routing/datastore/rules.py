"""Rules between resources, and between a resource and what it was. Pure.

A store writes inside a transaction, asks ``check_written`` or ``check_deleted`` with a view of the
state as it would be, and rolls back when one raises. So a batch is judged as a whole: a pool and
its blocks may come, or go, in one file and in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from routing.datastore.resources import spec_of
from routing.datastore.snapshot import (
    BlockResource,
    InvalidResource,
    IPPoolResource,
    Resource,
)

Pools = Callable[[], Iterable[IPPoolResource]]
Blocks = Callable[[], Iterable[BlockResource]]

_IMMUTABLE: dict[type, tuple[str, tuple[str, ...]]] = {
    IPPoolResource: ("IPPool", ("cidr", "blockSize")),
    BlockResource: ("Block", ("cidr", "pool", "affinity")),
}


def check_written(old: Resource | None, new: Resource, *, pools: Pools) -> None:
    """Judges one resource that was created (``old`` None) or updated.

    Args:
        pools: the pools as they would be, ``new`` among them if it is one.

    Raises:
        InvalidResource: an immutable field changed; the pool overlaps another; the block is not
            one of its pool's.
    """
    if old is not None:
        _check_immutable(old, new)
    if isinstance(new, IPPoolResource):
        _check_overlap(new, pools())
    elif isinstance(new, BlockResource):
        _check_block(new, pools())


def check_deleted(old: Resource, *, blocks: Blocks) -> None:
    """Judges one deletion.

    Args:
        blocks: the blocks as they would be.

    Raises:
        InvalidResource: the pool still has blocks.
    """
    if not isinstance(old, IPPoolResource):
        return
    left = [each for each in blocks() if each.block.pool == old.meta.name]
    if left:
        nodes = sorted({each.block.node for each in left})
        shown = ", ".join(nodes[:3]) + (", …" if len(nodes) > 3 else "")
        raise InvalidResource(
            "IPPool",
            old.meta.name,
            "spec.cidr",
            str(old.cidr),
            f"cannot be deleted while {len(left)} of its blocks are claimed (by {shown}); "
            "disable it and wait until they are given back",
        )


def _check_immutable(old: Resource, new: Resource) -> None:
    kind, fields = _IMMUTABLE.get(type(new), ("", ()))
    before, after = spec_of(old), spec_of(new)
    for field in fields:
        if before[field] != after[field]:
            raise InvalidResource(
                kind,
                new.meta.name,
                f"spec.{field}",
                after[field],
                f"cannot be changed (it is {before[field]!r}); create another {kind}",
            )


def _check_overlap(new: IPPoolResource, pools: Iterable[IPPoolResource]) -> None:
    for other in pools:
        if other.meta.name == new.meta.name or other.cidr.version != new.cidr.version:
            continue
        if other.cidr.overlaps(new.cidr):
            raise InvalidResource(
                "IPPool",
                new.meta.name,
                "spec.cidr",
                str(new.cidr),
                f"overlaps IPPool {other.meta.name!r} ({other.cidr})",
            )


def _check_block(new: BlockResource, pools: Iterable[IPPoolResource]) -> None:
    block = new.block
    pool = next((each for each in pools if each.meta.name == block.pool), None)
    if pool is None:
        raise InvalidResource("Block", new.meta.name, "spec.pool", block.pool, "no such IPPool")
    is_inside = (
        block.cidr.version == pool.cidr.version
        and block.cidr.prefixlen == pool.block_size
        and block.cidr.network_address in pool.cidr
    )
    if not is_inside:
        raise InvalidResource(
            "Block",
            new.meta.name,
            "spec.cidr",
            str(block.cidr),
            f"must be a /{pool.block_size} inside IPPool {pool.meta.name!r} ({pool.cidr})",
        )
