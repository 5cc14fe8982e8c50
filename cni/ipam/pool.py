"""IPPool: a range of pod addresses that nodes claim blocks from, and the order they try. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from cni.attachment import Address

Prefix = IPv4Network | IPv6Network

DEFAULT_BLOCK_SIZE_V4 = 26
DEFAULT_BLOCK_SIZE_V6 = 122


@dataclass(frozen=True, slots=True)
class IPPool:
    """A pool, as the allocator sees it. ``block_size`` is a prefix length, as in Calico.

    ``node_selected`` is whether this node may claim from the pool (the hub has already evaluated
    the selector); ``disabled`` stops new addresses while those in use stay. ``is_manual``: only for
    who names the pool, or an address in it.
    """

    name: str
    cidr: Prefix
    block_size: int
    disabled: bool = False
    node_selected: bool = True
    is_manual: bool = False

    @property
    def version(self) -> int:
        return self.cidr.version

    @property
    def block_count(self) -> int:
        return 1 << (self.block_size - self.cidr.prefixlen)

    def block_at(self, index: int) -> Prefix:
        """The index-th block of the pool, in address order."""
        width = self.cidr.max_prefixlen - self.block_size
        base = int(self.cidr.network_address) + (index << width)
        if isinstance(self.cidr, IPv4Network):
            return IPv4Network((base, self.block_size))
        return IPv6Network((base, self.block_size))

    def block_of(self, address: Address) -> Prefix:
        """The block that ``address``, which is inside the pool, belongs to."""
        width = self.cidr.max_prefixlen - self.block_size
        return self.block_at((int(address) - int(self.cidr.network_address)) >> width)

    def candidate_blocks(self, node: str) -> Iterator[Prefix]:
        """Every block once, from a place that depends on the node's name, then wrapping round.

        Different starting places make two nodes that need a block at once collide seldom;
        the store decides when they do.
        """
        seed = hashlib.sha256(f"{node}\0{self.cidr}".encode()).digest()
        start = int.from_bytes(seed[:8], "big") % self.block_count
        for step in range(self.block_count):
            yield self.block_at((start + step) % self.block_count)
