"""Holdings: what this node holds of the address space, as it was last seen. Memory only.

Which blocks are ours, who has which address, which addresses rest. No I/O and no await, so two
tasks cannot meet in here, and nothing is ever half done.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import structlog

from cni.attachment import Address, Attachment
from cni.ipam.block import Block
from cni.ipam.choice import contains, pool_holds
from cni.ipam.pool import IPPool, Prefix
from cni.ipam.usage import BlockUsage

log = structlog.get_logger("cni.ipam")

OUTSIDE_RESTING_MAX = 4096
"""Resting addresses remembered that are in no block of ours (yet); the oldest go first."""


class AddressConflict(Exception):
    """An address to be adopted is held by another attachment, or the attachment holds others."""


@dataclass(slots=True)
class OwnedBlock:
    """A CONFIRMED block of this node as last seen in the store, and its use."""

    block: Block
    usage: BlockUsage
    was_empty: bool = False
    """Whether the last look for surplus blocks saw it empty."""

    @property
    def order(self) -> tuple[int, int]:
        """IPv4 first, then by address."""
        return (self.block.cidr.version, int(self.block.cidr.network_address))


class Holdings:
    """One node's blocks and addresses.

    Attributes:
        owned: CONFIRMED blocks of ours.
        leaving: blocks of ours that are PENDING_DELETION and unused.
        unconfirmed: blocks of ours that could not be confirmed, and why.
        addresses: what each attachment holds, IPv4 first.
        holders: the reverse, whether or not the address is in a block of ours.
    """

    def __init__(self, clock: Callable[[], float], cooldown_s: float) -> None:
        self._clock = clock
        self._cooldown_s = cooldown_s
        self.owned: dict[Prefix, OwnedBlock] = {}
        self.changes = 0
        """How often blocks have come or gone, for who remembers what ``blocks_of`` said."""
        self._in_order: dict[int, tuple[list[int], list[OwnedBlock]]] = {}
        self.leaving: dict[Prefix, Block] = {}
        self.unconfirmed: dict[Prefix, str] = {}
        self.addresses: dict[Attachment, tuple[Address, ...]] = {}
        self.holders: dict[Address, Attachment] = {}
        self._lost: dict[Prefix, str] = {}
        self._outside_s: dict[Address, float] = {}

    # -- addresses -------------------------------------------------------------------------

    def hold(self, attachment: Attachment, addresses: tuple[Address, ...]) -> None:
        """Gives free addresses to an attachment."""
        self.addresses[attachment] = addresses
        for address in addresses:
            self.holders[address] = attachment
            self._outside_s.pop(address, None)
            owned = self.block_of(address)
            if owned is not None:
                owned.usage.adopt(address, attachment)
                owned.was_empty = False

    def adopt(self, attachment: Attachment, addresses: tuple[Address, ...]) -> None:
        """Notes what is in use, inside a block of ours or not.

        Raises:
            AddressConflict: another attachment holds one of them, or this one holds others;
                nothing was noted.
        """
        held = self.addresses.get(attachment)
        if held is not None and set(held) != set(addresses):
            raise AddressConflict(
                f"{attachment} holds {_listed(held)} and cannot hold {_listed(addresses)} as well"
            )
        for address in addresses:
            holder = self.holders.get(address)
            if holder is not None and holder != attachment:
                raise AddressConflict(
                    f"{address} is held by {holder}; {attachment} cannot hold it as well"
                )
        if addresses:
            self.hold(attachment, tuple(sorted(addresses, key=lambda a: a.version)))

    def release(self, attachment: Attachment) -> tuple[Address, ...]:
        """Takes the addresses back, to rest from now; () when it held none."""
        addresses = self.addresses.pop(attachment, ())
        now_s = self._clock()
        for address in addresses:
            del self.holders[address]
            owned = self.block_of(address)
            if owned is not None:
                owned.usage.release(address, now_s)
            else:
                self.rest_outside(address, now_s)
        return addresses

    def rest_outside(self, address: Address, released_s: float) -> None:
        """Notes the rest of an address that is in no block of ours at present."""
        self._outside_s.pop(address, None)
        self._outside_s[address] = released_s
        while len(self._outside_s) > OUTSIDE_RESTING_MAX:
            del self._outside_s[next(iter(self._outside_s))]

    def resting(self) -> list[Address]:
        """Every address in cool-down, inside a block of ours or not, in address order."""
        now_s = self._clock()
        found = list(self._outside_s)
        for owned in self.owned.values():
            found += owned.usage.resting(now_s)
        return sorted(found, key=lambda address: (address.version, int(address)))

    # -- blocks ----------------------------------------------------------------------------

    def block_of(self, address: Address) -> OwnedBlock | None:
        """The block of ours an address is in."""
        starts, ordered = self._ordered(address.version)
        place = bisect_right(starts, int(address)) - 1
        if place >= 0 and contains(ordered[place].block.cidr, address):
            return ordered[place]
        # In none, mostly; or blocks of two sizes overlap, which nobody makes but a store may hold.
        return next((owned for owned in ordered if contains(owned.block.cidr, address)), None)

    def blocks_of(self, pools: Iterable[IPPool]) -> list[OwnedBlock]:
        """Our blocks of these pools: pool by pool as given, then in address order."""
        return [
            owned
            for pool in pools
            for owned in self._ordered(pool.version)[1]
            if owned.block.pool == pool.name and pool_holds(pool, owned.block.cidr)
        ]

    def _ordered(self, version: int) -> tuple[list[int], list[OwnedBlock]]:
        """Our blocks of a family in address order, and where each begins.

        Kept from call to call: every ADD and every DEL looks twice.
        """
        found = self._in_order.get(version)
        if found is None:
            blocks = sorted(
                (owned for owned in self.owned.values() if owned.block.cidr.version == version),
                key=lambda owned: owned.order,
            )
            starts = [int(owned.block.cidr.network_address) for owned in blocks]
            found = self._in_order[version] = (starts, blocks)
        return found

    def in_use(self, cidr: Prefix) -> int:
        """How many addresses of a prefix somebody holds."""
        return sum(1 for address in self.holders if contains(cidr, address))

    def agrees(self, blocks: Iterable[Block], node: str) -> bool:
        """Whether a list says of this node's blocks just what we hold."""
        ours = {block.cidr: block for block in blocks if block.node == node}
        held = {cidr: owned.block for cidr, owned in self.owned.items()} | self.leaving
        return ours == held

    def own(self, block: Block) -> None:
        """Takes a CONFIRMED block of ours into use, with what is known of its addresses."""
        self._lost.pop(block.cidr, None)
        self.leaving.pop(block.cidr, None)
        self.unconfirmed.pop(block.cidr, None)
        owned = self.owned.get(block.cidr)
        if owned is not None:
            owned.block = block
            self.changes += 1
            return
        usage = BlockUsage(block.cidr, self._cooldown_s)
        for address, attachment in self.holders.items():
            if contains(block.cidr, address):
                usage.adopt(address, attachment)
        for address in [a for a in self._outside_s if contains(block.cidr, a)]:
            usage.rest(address, self._outside_s.pop(address))
        self.owned[block.cidr] = OwnedBlock(block, usage)
        self._in_order.clear()
        self.changes += 1
        log.info("block_owned", block=str(block.cidr), pool=block.pool, used=len(usage.used))

    def disown(self, cidr: Prefix) -> OwnedBlock | None:
        """Takes a block out of use; None when it was not in use."""
        self._in_order.clear()
        self.changes += 1
        return self.owned.pop(cidr, None)

    def lose(self, cidr: Prefix, reason: str) -> None:
        """Stops assigning from a block; what is in use or resting in it stays known."""
        self.leaving.pop(cidr, None)
        owned = self.disown(cidr)
        if owned is None:
            return
        for address, released_s in owned.usage.resting(self._clock()).items():
            self.rest_outside(address, released_s)
        self._lost[cidr] = reason
        if owned.usage.used:
            log.error(
                "block_lost_in_use", block=str(cidr), reason=reason, used=len(owned.usage.used)
            )

    def forget_unused_losses(self) -> None:
        """A block that is gone and of which nobody here uses an address is no news any more."""
        for cidr in list(self._lost):
            if not self.in_use(cidr):
                del self._lost[cidr]

    def losses(self) -> dict[Prefix, str]:
        """Blocks not ours any more although their addresses are in use here, and why, in order."""
        return {
            cidr: reason
            for cidr, reason in sorted(self._lost.items(), key=lambda item: str(item[0]))
            if self.in_use(cidr)
        }

    def surplus(self, kept_pools: Collection[str]) -> list[OwnedBlock]:
        """Blocks empty at this look and the last, beyond the one kept for each of some pools."""
        now_s = self._clock()
        count: dict[str, int] = {}
        for owned in self.owned.values():
            count[owned.block.pool] = count.get(owned.block.pool, 0) + 1
        surplus = []
        for owned in sorted(self.owned.values(), key=lambda each: each.order, reverse=True):
            is_empty = not owned.usage.used and not owned.usage.cooling(now_s)
            was_empty, owned.was_empty = owned.was_empty, is_empty
            floor = 1 if owned.block.pool in kept_pools else 0
            if is_empty and was_empty and count[owned.block.pool] > floor:
                count[owned.block.pool] -= 1
                surplus.append(owned)
        return surplus


def _listed(addresses: Iterable[Address]) -> str:
    return ", ".join(str(address) for address in addresses)
