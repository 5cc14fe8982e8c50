"""Allocator: gives each attachment of this node its addresses, from blocks the node owns.

How a node comes to own a block (``claims.py``): walk ``pool.candidate_blocks(node)``, create the
block PENDING (the CIDR is the key, so create is the lock), then update it to CONFIRMED by
compare-and-swap. Only a block whose confirmation was *seen* is assigned from. Whatever breaks in
between leaves a PENDING block of ours, which the next look at the store finds and confirms;
nothing leaks, and a create whose answer was lost is found the same way.

Invariants:
    * An address has at most one holder, and a holder at most one address of a family.
    * Assigning inside owned blocks needs no I/O and no await, so two tasks cannot meet in it, and
      it works while the store is away.
    * Never half assigned: every family has an address, or none is taken.
    * A list of blocks handed in (the agent's snapshot) is a hint, for it may be older than a claim
      made since. When it says anything else than we hold, the store itself is read, under the
      same locks that claims take.
    * A block that vanished or changed owner gives no new addresses; those in use are served on.
    * A pool that must be named (``IPPool.is_manual``) is never drawn from unasked.

What is where: ``choice.py`` which pools serve and in what order, ``holdings.py`` what we hold,
``claiming.py`` the walks that need the store. What this deliberately does not do: withdraw routes
(the hub does, between the two phases of a block's release), or keep a record of assignments (the
kernel's pod links are that).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from cni.attachment import Address, Attachment
from cni.ipam.block import Block, BlockState, BlockStore, BlockStoreError
from cni.ipam.choice import (
    ANY_POOL,
    FAMILIES,
    Names,
    NamesByFamily,
    NoAddress,
    assignable,
    claimable,
    families_of,
    is_claimable,
    is_full,
    names_for,
    no_pool,
)
from cni.ipam.claiming import Claiming
from cni.ipam.claims import Claims, no_record
from cni.ipam.cooldown import CooldownFile
from cni.ipam.holdings import AddressConflict, Holdings, OwnedBlock
from cni.ipam.pool import IPPool, Prefix
from cni.ipam.requested import AddressRefused, pool_of, refuse_change

__all__ = ["AddressConflict", "Allocator", "NoAddress"]

log = structlog.get_logger("cni.ipam")


class Allocator:
    """The addresses of one node. All methods are called from one event loop's thread.

    Args:
        node: this node's name, as blocks carry it.
        store: where blocks are claimed.
        pools: gives the pools as they are now, in any order.
        clock: monotonic seconds.
        cooldown_s: how long a released address rests before it is given out again.
        cooldown_file: where releases are noted for the next agent, or None for nowhere.
        give_up: takes a block off the record that ``restore`` is given from (``claims.py``).
    """

    def __init__(
        self,
        node: str,
        store: BlockStore,
        pools: Callable[[], Sequence[IPPool]],
        clock: Callable[[], float],
        cooldown_s: float = 30.0,
        cooldown_file: str | None = None,
        give_up: Callable[[Block], None] = no_record,
    ) -> None:
        self._node = node
        self._pools = pools
        self._clock = clock
        self._holdings = Holdings(clock, cooldown_s)
        self._claiming = Claiming(node, Claims(node, store, give_up), self._holdings, pools)
        self._announced: set[Attachment] = set()
        """Whose release is noted in the journal already."""
        self._seen_pools: Sequence[IPPool] = []
        self._seen_families: list[int] = []
        self._seen_assignable: dict[int, list[IPPool]] = {version: [] for version in FAMILIES}
        self._seen_blocks: dict[int, list[OwnedBlock]] = {}
        self._seen_changes = -1
        self._starved: dict[str, str] = {}
        """Pools that an assignment was refused for: name -> the refusal."""
        self._locks = {version: asyncio.Lock() for version in FAMILIES}
        self._journal = (
            CooldownFile(cooldown_file, cooldown_s=cooldown_s) if cooldown_file else None
        )
        if self._journal is not None:
            now_s = clock()
            for address, age_s in self._journal.read().items():
                self._holdings.rest_outside(address, now_s - age_s)

    # -- what CNI asks for -----------------------------------------------------------------

    async def assign(
        self,
        attachment: Attachment,
        requested: tuple[Address, ...] = (),
        pools: NamesByFamily = ANY_POOL,
    ) -> tuple[Address, ...]:
        """One address of each family that has an enabled pool for this node, IPv4 first.

        The same attachment gets the same answer until it is released, asked at once or later,
        whatever pools are named then. Claims a block when none of ours has room; otherwise the
        store is not asked.

        Args:
            attachment: who gets them.
            requested: addresses it must be, at most one of a family; families not named get any.
            pools: names of the pools to take the IPv4 and the IPv6 address from. Blocks we own are
                tried first, in that order of pools, then a block is claimed, in the same order: an
                address that is there needs no store. () is any pool that needs no naming; names
                for a family of which an address is requested count for nothing.

        Raises:
            NoAddress: no pool is enabled for this node, a pool named cannot be used, or a family
                is exhausted.
            AddressRefused: a requested address cannot be given; nothing was.
            BlockStoreError: a block is needed and the store cannot be used.
        """
        while True:
            held = self._holdings.addresses.get(attachment)
            if held is not None:
                refuse_change(attachment, held, requested)
                return held
            missing = self._assign_from_owned(attachment, requested, pools)
            if missing is None:
                continue
            wanted = next((each for each in requested if each.version == missing), None)
            names = names_for(missing, pools)
            async with self._locks[missing]:
                # Others claimed while this one waited: usually there is room now.
                if attachment in self._holdings.addresses:
                    continue
                if wanted is not None:
                    await self._claiming.claim_block_of(wanted)
                elif not self._has_room(missing, names):
                    await self._claim(missing, names)

    def announce_release(self, attachment: Attachment) -> None:
        """Notes for the next agent that these addresses are about to be released.

        Between the end of a link and ``release`` the kernel says nothing of them any more; an
        agent killed there would be followed by one that gives them out at once. When the release
        does not come, the link stays, and ``adopt`` takes precedence over the note.
        """
        addresses = self._holdings.addresses.get(attachment)
        if addresses and self._journal is not None:
            self._journal.append(addresses)
            self._announced.add(attachment)

    def release(self, attachment: Attachment) -> tuple[Address, ...]:
        """Takes the addresses back, to rest for the cool-down; () when it held none."""
        is_noted = attachment in self._announced
        self._announced.discard(attachment)
        addresses = self._holdings.release(attachment)
        if addresses and self._journal is not None and not is_noted:
            self._journal.append(addresses)
        return addresses

    def resting(self) -> list[Address]:
        """Every address in cool-down, inside a block of ours or not, in address order."""
        return self._holdings.resting()

    def adopt(self, attachment: Attachment, addresses: tuple[Address, ...]) -> None:
        """Notes what the kernel's journal says is in use, inside a block of ours or not.

        Raises:
            AddressConflict: another attachment holds one of them, or this one holds others;
                nothing was noted.
        """
        self._holdings.adopt(attachment, addresses)

    def holder(self, address: Address) -> Attachment | None:
        """Who holds the address, whether or not it is in a block of ours."""
        return self._holdings.holders.get(address)

    def addresses(self, attachment: Attachment) -> tuple[Address, ...]:
        """What the attachment holds, IPv4 first; () for nothing."""
        return self._holdings.addresses.get(attachment, ())

    # -- what the hub asks for -------------------------------------------------------------

    def attachments(self) -> list[Attachment]:
        """Everybody who holds an address, in order."""
        return sorted(self._holdings.addresses)

    def restore(self, blocks: Sequence[Block]) -> None:
        """Takes this node's CONFIRMED blocks of a last known list into use; the store is not asked.

        For an agent that starts while the store may be away, before anything is assigned. What of
        it is not so any more, the next ``refresh`` finds out.
        """
        self._claiming.listed_cidrs = {block.cidr for block in blocks}
        for block in blocks:
            if block.node == self._node and block.state is BlockState.CONFIRMED:
                self._holdings.own(block)

    async def refresh(self, blocks: Sequence[Block] | None = None) -> None:
        """Brings the view of our own blocks up to date, and confirms or revives what is ours.

        Args:
            blocks: a snapshot's blocks, as a hint: when they say what we hold anyway nothing is
                read. None reads the store.

        Raises:
            BlockStoreError: only without ``blocks``: the store cannot be read. With ``blocks`` a
                fault is shown by problems(), and the view stays as it was.
        """
        if blocks is not None:
            self._claiming.listed_cidrs = {block.cidr for block in blocks}
            if not self._claiming.fault and self._holdings.agrees(blocks, self._node):
                return
        async with self._locks[4], self._locks[6]:
            try:
                await self._claiming.look()
            except BlockStoreError as error:
                if blocks is None:
                    raise
                self._claiming.fault = str(error)
                log.warning("block_refresh_failed", error=str(error))

    async def release_empty_blocks(self) -> list[Prefix]:
        """Gives back blocks that nobody uses, one step a call; call it after a pass.

        First call: the block is seen empty (nothing used, nothing resting). Second: it is marked
        PENDING_DELETION, so that the hub's next pass withdraws it. Third: it is deleted. One
        block of each pool stays, unless the pool gives this node no addresses any more or must be
        named: such a pool is often small, and a node that had one pod of it would keep its block
        from all others.

        Returns:
            The blocks that were deleted in this call.

        Raises:
            BlockStoreError: the store cannot be used; what was done stays done.
        """
        async with self._locks[4], self._locks[6]:
            leaving = list(self._holdings.leaving)
            deleted = [cidr for cidr in leaving if await self._claiming.delete(cidr)]
            kept = {p.name for p in self._pools() if is_claimable(p) and not p.is_manual}
            for owned in self._holdings.surplus(kept):
                # Asked again: an assign may have run while the last one was being marked.
                if not owned.usage.used:
                    await self._claiming.mark_for_deletion(owned.block)
            return deleted

    def blocks(self) -> list[tuple[Block, int, int, int]]:
        """(block, used, cooling, free) of each CONFIRMED block of ours, in address order."""
        now_s = self._clock()
        return [
            (o.block, len(o.usage.used), o.usage.cooling(now_s), o.usage.free(now_s))
            for o in sorted(self._holdings.owned.values(), key=lambda owned: owned.order)
        ]

    def shortage(self, store_error: str | None = None) -> str | None:
        """Why an assign that names no pool would find no address now; None when it would find one.

        From memory: a block counts as obtainable while the blocks last listed leave one of a
        pool's out. On a node whose every pool must be named, an assign that names one may succeed,
        and that is enough.

        Args:
            store_error: why the store cannot be used, if the caller knows: no block can be had.
        """
        families = families_of(self._pools())
        if not families:
            is_any = any(is_claimable(pool) for pool in self._pools())
            return None if is_any else self._no_pool()
        for version in families:
            if self._has_room(version):
                continue
            pools = self._claimable(version)
            if all(is_full(pool, self._claiming.listed_cidrs) for pool in pools):
                return str(self._exhausted(version))
            fault = store_error or self._claiming.fault
            if fault:
                return (
                    f"no IPv{version} address is free in this node's blocks, and no block can be "
                    f"claimed: {fault}"
                )
        return None

    def exhausted_pools(self) -> dict[str, str]:
        """Pools that a pod was refused an address of and that still have none: name -> refusal.

        Only where somebody asked: that every block of a pool is taken, by nodes with room in them,
        is nobody's trouble.
        """
        for pool in self._pools():
            if pool.name in self._starved and self._can_give(pool):
                del self._starved[pool.name]
        known = {pool.name for pool in self._pools() if is_claimable(pool)}
        self._starved = {name: text for name, text in self._starved.items() if name in known}
        return dict(self._starved)

    def lost_blocks(self) -> dict[Prefix, str]:
        """Blocks not ours any more although their addresses are in use here, and why."""
        return self._holdings.losses()

    def problems(self) -> list[str]:
        """What an operator should look into, one sentence each; [] when all is well."""
        found = [
            f"block {cidr} {reason}, but {self._holdings.in_use(cidr)} of its addresses are in use "
            "here: they are served on, and no new ones are given"
            for cidr, reason in self._holdings.losses().items()
        ]
        found += [
            f"block {cidr} is not confirmed: {why}"
            for cidr, why in self._holdings.unconfirmed.items()
        ]
        if self._claiming.fault:
            found.append(f"the block store cannot be used: {self._claiming.fault}")
        return found

    # -- assigning -------------------------------------------------------------------------

    def _assign_from_owned(
        self, attachment: Attachment, requested: tuple[Address, ...], names: NamesByFamily
    ) -> int | None:
        """Assigns from owned blocks, all families or none. Returns a family that needs a block.

        Raises:
            NoAddress: no pool is enabled for this node, or a pool named cannot be used.
            AddressRefused: a requested address cannot be given.
        """
        families = self._families(names, requested)
        if not families:
            raise NoAddress(self._no_pool())
        chosen: dict[int, Address] = {each.version: each for each in requested}
        lacking: list[int] = [
            each.version for each in requested if not self._may_give(each, attachment)
        ]
        for version in families:
            if version in chosen:
                continue
            found = self._free(version, names_for(version, names))
            if found is None:
                lacking.append(version)
            else:
                chosen[version] = found
        if lacking:
            return lacking[0]
        self._holdings.hold(attachment, tuple(chosen[version] for version in families))
        return None

    def _may_give(self, address: Address, attachment: Attachment) -> bool:
        """Whether a requested address can be given now; False when its block is not ours yet.

        Raises:
            AddressRefused: it cannot be given.
        """
        pool = pool_of(address, self._pools(), node=self._node)
        holder = self._holdings.holders.get(address)
        if holder is not None:
            raise AddressRefused(address, f"is in use by {holder}")
        owned = self._holdings.block_of(address)
        if owned is None:
            return False
        if owned.block.pool != pool.name:
            raise AddressRefused(
                address,
                f"is in block {owned.block.cidr} of IPPool {owned.block.pool}, not {pool.name}",
            )
        rest_s = owned.usage.rest_s(address, attachment, self._clock())
        if rest_s > 0:
            raise AddressRefused(
                address,
                f"was released a moment ago and rests for {rest_s:.1f} s",
                retry_after_s=rest_s,
            )
        return True

    def _free(self, version: int, names: Names = ()) -> Address | None:
        """The address that blocks of ours would give next."""
        now_s = self._clock()
        for owned in self._blocks_for(version, names):
            address = owned.usage.peek(now_s)
            if address is not None:
                return address
        return None

    def _blocks_for(self, version: int, names: Names) -> list[OwnedBlock]:
        """Those of ours that an address may come from, in order; unasked, found out once for each
        change of pools and blocks."""
        pools = self._assignable(version, names)
        if names:
            return self._holdings.blocks_of(pools)
        if self._seen_changes != self._holdings.changes:
            self._seen_changes = self._holdings.changes
            self._seen_blocks.clear()
        blocks = self._seen_blocks.get(version)
        if blocks is None:
            blocks = self._seen_blocks[version] = self._holdings.blocks_of(pools)
        return blocks

    def _families(self, names: NamesByFamily, requested: tuple[Address, ...]) -> list[int]:
        pools = self._pools()
        if names != ANY_POOL or requested:
            return families_of(pools, names, requested)
        if pools != self._seen_pools:
            self._see(pools)
        return self._seen_families

    def _assignable(self, version: int, names: Names) -> list[IPPool]:
        pools = self._pools()
        if names:
            return assignable(pools, version=version, names=names, node=self._node)
        if pools != self._seen_pools:
            self._see(pools)
        return self._seen_assignable[version]

    def _see(self, pools: Sequence[IPPool]) -> None:
        """Works out what most ADDs ask of the pools, once for each change of them."""
        self._seen_pools = list(pools)
        self._seen_blocks.clear()
        self._seen_families = families_of(pools)
        self._seen_assignable = {
            version: assignable(pools, version=version, names=(), node=self._node)
            for version in FAMILIES
        }

    def _has_room(self, version: int, names: Names = ()) -> bool:
        return self._free(version, names) is not None

    def _can_give(self, pool: IPPool) -> bool:
        """Whether one pool has an address for this node, in a block of ours or to be claimed."""
        now_s = self._clock()
        return not is_full(pool, self._claiming.listed_cidrs) or any(
            owned.usage.peek(now_s) is not None for owned in self._holdings.blocks_of([pool])
        )

    def _claimable(self, version: int, names: Names = ()) -> list[IPPool]:
        return claimable(self._pools(), version=version, names=names, node=self._node)

    async def _claim(self, version: int, names: Names) -> None:
        """Returns when an own block of the pools asked for has room, claiming one if need be.

        Raises:
            NoAddress: every block of those pools is taken.
            BlockStoreError: the store cannot be used, or too many claims were lost to others.
        """
        pools = self._claimable(version, names)
        if not await self._claiming.claim_from(
            pools, version, lambda: self._has_room(version, names)
        ):
            refusal = self._exhausted(version, names)
            self._starved.update((pool.name, str(refusal)) for pool in pools)
            raise refusal

    def _exhausted(self, version: int, names: Names = ()) -> NoAddress:
        now_s = self._clock()
        pools = assignable(self._pools(), version=version, names=names, node=self._node)
        ours = self._holdings.blocks_of(pools)
        told = ", ".join(pool.name for pool in self._claimable(version, names)) or "none"
        waits = [wait_s for o in ours if (wait_s := o.usage.next_free_s(now_s)) is not None]
        text = (
            f"no IPv{version} address is free: this node's {len(ours)} block(s) are full and every "
            f"block of its pools ({told}) is taken"
        )
        if not waits:
            return NoAddress(text)
        return NoAddress(
            f"{text}; the next address comes out of cool-down in {min(waits):.1f} s",
            retry_after_s=min(waits),
        )

    def _no_pool(self) -> str:
        return no_pool(self._pools(), node=self._node)
