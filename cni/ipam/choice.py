"""Which pools an assignment may draw from, and in what order. Pure.

Two kinds of asking. Unasked: every pool that is enabled, selects the node and is not manual, by
name. Named: the pools named, in the order of naming. Naming a pool that is not there, or is of the
other family, is a mistake and refused; naming one that is disabled or not for this node is not,
while another of the names serves: one list may then do for pods on racks that have pools of their
own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from cni.attachment import Address
from cni.ipam.pool import IPPool, Prefix

FAMILIES = (4, 6)
Names = tuple[str, ...]
"""Pools by name, in the order to try them; () for any that needs no naming."""
NamesByFamily = tuple[Names, Names]
"""For IPv4 and for IPv6."""
ANY_POOL: NamesByFamily = ((), ())


class NoAddress(Exception):
    """No address can be given; the sentence says which family, why, and when one will be free.

    ``retry_after_s`` is when the next resting address is free, or None when waiting is no help.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def names_for(version: int, names: NamesByFamily) -> Names:
    """The names given for one family."""
    return names[FAMILIES.index(version)]


def is_claimable(pool: IPPool) -> bool:
    """Whether this node may take blocks of the pool."""
    return pool.node_selected and not pool.disabled


def families_of(
    pools: Iterable[IPPool], names: NamesByFamily = ANY_POOL, requested: Iterable[Address] = ()
) -> list[int]:
    """The IP versions an assignment has to give an address of, in order."""
    unasked = {pool.version for pool in pools if is_claimable(pool) and not pool.is_manual}
    named = {version for version in FAMILIES if names_for(version, names)}
    return sorted(unasked | named | {address.version for address in requested})


def claimable(pools: Iterable[IPPool], *, version: int, names: Names, node: str) -> list[IPPool]:
    """The pools to take a block of the family from, in the order to try them.

    Raises:
        NoAddress: a pool named is not there or of the other family, or none named can be used.
    """
    if not names:
        return sorted(
            (p for p in pools if p.version == version and is_claimable(p) and not p.is_manual),
            key=lambda pool: pool.name,
        )
    known = {pool.name: pool for pool in pools}
    unusable: list[str] = []
    found: list[IPPool] = []
    for name in dict.fromkeys(names):
        pool = known.get(name)
        if pool is None:
            raise NoAddress(f"there is no IPPool {name!r}, which is asked for by name")
        if pool.version != version:
            raise NoAddress(
                f"IPPool {name!r} is asked for by name for IPv{version}, but is {pool.cidr}"
            )
        if pool.disabled:
            unusable.append(f"IPPool {name!r} is disabled")
        elif not pool.node_selected:
            unusable.append(f"IPPool {name!r} does not select node {node}")
        else:
            found.append(pool)
    if not found:
        raise NoAddress(
            f"no pool that is asked for by name can give an IPv{version} address: "
            + "; ".join(unusable)
        )
    return found


def assignable(pools: Iterable[IPPool], *, version: int, names: Names, node: str) -> list[IPPool]:
    """The pools whose blocks, where we own some, addresses may come from, in order.

    Unasked, that includes pools which do not select this node any more, last: a block we still own
    is ours to use. A pool that is named must select it.

    Raises:
        NoAddress: as ``claimable``.
    """
    if names:
        return claimable(pools, version=version, names=names, node=node)
    return sorted(
        (p for p in pools if p.version == version and not p.disabled and not p.is_manual),
        key=lambda pool: (not pool.node_selected, pool.name),
    )


def no_pool(pools: Sequence[IPPool], *, node: str) -> str:
    """The sentence for a node that no pool gives addresses to unasked."""
    named = sorted(pool.name for pool in pools if is_claimable(pool) and pool.is_manual)
    if not named:
        return f"no IPPool is enabled for node {node}"
    return (
        f"no IPPool is enabled for node {node} without being named: "
        f"{', '.join(named)} only for pods that name it or whose namespace it selects"
    )


def contains(cidr: Prefix, address: Address) -> bool:
    """Whether an address lies in a prefix of its own family."""
    return cidr.version == address.version and address in cidr


def pool_holds(pool: IPPool, cidr: Prefix) -> bool:
    """Whether the block lies in the pool it names; one that does not is never assigned from."""
    return (
        cidr.version == pool.version
        and cidr.prefixlen >= pool.cidr.prefixlen
        and cidr.network_address in pool.cidr
    )


def is_full(pool: IPPool, taken: Collection[Prefix]) -> bool:
    """Whether every block of the pool is taken, without walking it block by block."""
    inside = sum(
        1 for cidr in taken if cidr.prefixlen == pool.block_size and pool_holds(pool, cidr)
    )
    return inside >= pool.block_count
