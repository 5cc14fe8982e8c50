"""Asked: what an ADD has to grant, from the runtime's request and the pod's annotations. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cni.attachment import Address
from cni.errors import CniError, Code
from cni.requested import Requested
from cni.wish import NO_WISH, PodWish

Pools = tuple[tuple[str, ...], tuple[str, ...]]
"""Names of IPv4 pools and of IPv6 pools, in order of preference."""


@dataclass(frozen=True, slots=True)
class Asked:
    """``addresses``: at most one of each family, IPv4 first. ``pools`` None: any."""

    addresses: tuple[Address, ...] = ()
    pools: Pools | None = None


def join(requested: Requested, wish: PodWish) -> Asked:
    """What both ask for together.

    Raises:
        CniError: 7, they ask for different addresses of one family.
    """
    if wish is NO_WISH:
        return Asked(requested.addresses)
    addresses = {each.version: each for each in requested.addresses}
    for address in wish.addresses:
        other = addresses.setdefault(address.version, address)
        if other != address:
            raise CniError(
                Code.INVALID_CONFIG,
                f"the pod's annotations ask for {address}, and the runtime asks for {other}; "
                f"a pod gets one IPv{address.version} address",
            )
    pools = (wish.pools_v4, wish.pools_v6)
    return Asked(
        tuple(addresses[version] for version in sorted(addresses)),
        pools if any(pools) else None,
    )
