"""Which nodes are gone for good, and what may be done about their blocks. Pure.

A Node object that is missing proves nothing: somebody may have deleted it by mistake while its pods
run. So a node is gone only when its object was missing, and nothing changed that only a living
agent changes (its NodeStatus, any of its blocks), at every look of one whole ``grace_s``. Even then
its blocks are only marked; they are deleted when nobody has taken them back for another
``grace_s``. An agent takes a marked block back at its next pass, so a living node has two periods
and several passes to object.

Time is that of the one who looks; times written by other machines are compared for being different,
never for being old. A collector that has just started therefore starts to count anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from cni.ipam.block import Block, BlockState

Sign = tuple[str, ...]
"""Something that is different after a living agent did something."""


@dataclass(frozen=True, slots=True)
class Absent:
    """A node without a Node object: since when (s) without a new sign of life, and the signs."""

    since_s: float
    signs: frozenset[Sign]


@dataclass(frozen=True, slots=True)
class Memory:
    """What earlier looks saw. ``marked_s``: since when each version of a block was seen marked."""

    absent: Mapping[str, Absent] = field(default_factory=dict)
    marked_s: Mapping[Sign, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Gone:
    """A node that is gone: what to mark and what to delete now, and what is to be left for later.

    ``silent_s``: for how long it has shown no sign of life.
    """

    node: str
    silent_s: float
    mark: tuple[Block, ...] = ()
    delete: tuple[Block, ...] = ()
    later: tuple[Block, ...] = ()


def judge(
    *,
    nodes: Collection[str],
    blocks: Iterable[Block],
    heartbeats: Mapping[str, str],
    before: Memory,
    now_s: float,
    grace_s: float,
) -> tuple[Memory, list[Gone]]:
    """One look: what is to be remembered, and the nodes that are gone, in name order.

    Args:
        nodes: those that have a Node object.
        blocks: every block of the cluster.
        heartbeats: node -> something that differs whenever its agent has reported.
        before: what the last look returned.
    """
    owned: dict[str, list[Block]] = {}
    for block in blocks:
        owned.setdefault(block.node, []).append(block)
    missing = sorted((owned.keys() | heartbeats.keys()) - set(nodes))
    absent = {
        node: _absent(before.absent.get(node), _signs(node, owned, heartbeats), now_s)
        for node in missing
    }
    marked_s = {
        version_of(block): before.marked_s.get(version_of(block), now_s)
        for node in missing
        for block in owned.get(node, [])
        if block.state is BlockState.PENDING_DELETION
    }
    gone = []
    for node in missing:
        silent_s = now_s - absent[node].since_s
        if silent_s < grace_s:
            continue
        mine = owned.get(node, [])
        due = [b for b in mine if now_s - marked_s.get(version_of(b), now_s) >= grace_s]
        unmarked = [b for b in mine if b.state is not BlockState.PENDING_DELETION]
        later = [b for b in mine if b not in due and b not in unmarked]
        gone.append(Gone(node, silent_s, tuple(unmarked), tuple(due), tuple(later)))
    return Memory(absent, marked_s), gone


def after_our_write(memory: Memory, block: Block, now_s: float) -> Memory:
    """The memory after we have marked a block: what we did is no sign of its node's life, and it is
    marked from now on, not from the next look."""
    seen = memory.absent.get(block.node)
    if seen is None:
        return memory
    known = replace(seen, signs=seen.signs | {version_of(block)})
    return replace(
        memory,
        absent={**memory.absent, block.node: known},
        marked_s={**memory.marked_s, version_of(block): now_s},
    )


def seen_alive(memory: Memory, node: str) -> Memory:
    """The memory after something else showed that a node lives: it is counted anew."""
    return replace(memory, absent={n: a for n, a in memory.absent.items() if n != node})


def version_of(block: Block) -> Sign:
    """What differs after any write to a block."""
    return (str(block.cidr), block.uid, block.resource_version)


def _signs(
    node: str, owned: Mapping[str, Iterable[Block]], heartbeats: Mapping[str, str]
) -> frozenset[Sign]:
    beat = {(heartbeats[node],)} if node in heartbeats else set()
    return frozenset({version_of(block) for block in owned.get(node, [])} | beat)


def _absent(before: Absent | None, signs: frozenset[Sign], now_s: float) -> Absent:
    # Only what is new is a sign: that a block went is as likely somebody else's doing.
    if before is None or signs - before.signs:
        return Absent(now_s, signs)
    return Absent(before.since_s, signs)
