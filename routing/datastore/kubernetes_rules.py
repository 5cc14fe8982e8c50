"""What no schema can forbid, found when the objects are there already. Pure.

Whoever writes with kubectl is not asked about other objects. Two pools that overlap would give one
address twice; so of two that do, only the older one gives out blocks until somebody mends it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from routing.datastore.rules import check_written
from routing.datastore.snapshot import BlockResource, InvalidResource, IPPoolResource, Problem


def separate(
    pools: Iterable[tuple[str, IPPoolResource]],
) -> tuple[list[IPPoolResource], list[Problem]]:
    """The pools with those disabled that overlap an older one.

    Args:
        pools: each with its creation time (text that sorts); of one second, the name decides. All
            nodes see the same times, so all disable the same pool.
    """
    kept: list[IPPoolResource] = []
    problems: list[Problem] = []
    for _, pool in sorted(pools, key=lambda each: (each[0], each[1].meta.name)):
        older = next(
            (
                other
                for other in kept
                if other.cidr.version == pool.cidr.version and other.cidr.overlaps(pool.cidr)
            ),
            None,
        )
        if older is not None:
            text = (
                f"IPPool {pool.meta.name!r}: spec.cidr = {str(pool.cidr)!r}: overlaps IPPool "
                f"{older.meta.name!r} ({older.cidr}), which is older; no blocks are taken from it"
            )
            problems.append(Problem("IPPool", pool.meta.name, text, reason="Overlapping"))
            pool = replace(pool, disabled=True)
        kept.append(pool)
    return sorted(kept, key=lambda pool: pool.meta.name), problems


def stray_blocks(blocks: Iterable[BlockResource], pools: Sequence[IPPoolResource]) -> list[Problem]:
    """The blocks that are none of their pool's. They stay: pods may live in them."""
    problems = []
    for block in blocks:
        try:
            check_written(None, block, pools=lambda: pools)
        except InvalidResource as error:
            problems.append(Problem("Block", block.meta.name, str(error), reason="NotOfItsPool"))
    return problems
