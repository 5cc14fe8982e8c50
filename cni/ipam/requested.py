"""Addresses a runtime names itself: which pool gives one, and why one is refused. Pure.

A requested address is given by the same rules as any other: from an enabled pool that selects the
node, from a block the node owns, nobody holds it, and nobody has just let go of it. Each refusal
names the address and the one rule that stands in its way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cni.attachment import Address, Attachment
from cni.ipam.block import Block
from cni.ipam.pool import IPPool, Prefix


class AddressRefused(Exception):
    """A requested address is not given; one sentence, the address and the rule.

    ``retry_after_s`` is when the rule will not stand in the way any more, or None when only
    somebody's doing will change that.
    """

    def __init__(
        self, address: Address, reason: str, *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(f"the requested address {address} {reason}")
        self.address = address
        self.retry_after_s = retry_after_s


def pool_of(address: Address, pools: Iterable[IPPool], *, node: str) -> IPPool:
    """The pool that may give ``address`` to a pod of ``node``.

    Raises:
        AddressRefused: it is in no pool, or in one that gives this node nothing.
    """
    reason = "is in no IPPool"
    for pool in sorted(pools, key=lambda pool: pool.name):
        if address.version != pool.version or address not in pool.cidr:
            continue
        if pool.disabled:
            reason = f"is in IPPool {pool.name}, which is disabled"
        elif not pool.node_selected:
            reason = f"is in IPPool {pool.name}, which does not select node {node}"
        else:
            return pool
    raise AddressRefused(address, reason)


def refuse_other_nodes(address: Address, cidr: Prefix, blocks: Iterable[Block]) -> None:
    """Refuses when a block of the store stands where block ``cidr`` would be claimed.

    Raises:
        AddressRefused: naming the block and its node.
    """
    for block in blocks:
        if block.cidr.version == cidr.version and block.cidr.overlaps(cidr):
            raise AddressRefused(address, f"is in block {block.cidr} of node {block.node}")


def refuse_change(
    attachment: Attachment, held: Sequence[Address], requested: Iterable[Address]
) -> None:
    """Refuses when an attachment that has its addresses asks for others.

    Raises:
        AddressRefused: the first that it does not hold.
    """
    for address in requested:
        if address not in held:
            holds = ", ".join(map(str, held))
            raise AddressRefused(address, f"cannot be given to {attachment}, which has {holds}")
