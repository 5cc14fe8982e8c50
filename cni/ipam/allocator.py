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

What this deliberately does not do: withdraw routes (the hub does, between the two phases of a
block's release), or keep a record of assignments (the kernel's pod links are that).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog

from cni.attachment import Address, Attachment
from cni.ipam.block import Block, BlockState, BlockStore, BlockStoreError
from cni.ipam.claims import Claims
from cni.ipam.cooldown import CooldownFile
from cni.ipam.pool import IPPool, Prefix
from cni.ipam.requested import AddressRefused, pool_of, refuse_change, refuse_other_nodes
from cni.ipam.usage import BlockUsage

log = structlog.get_logger("cni.ipam")

CLAIM_ATTEMPTS_MAX = 64
"""Creates tried in one claim. Each failure means another node took that very CIDR a moment ago."""
OUTSIDE_RESTING_MAX = 4096
"""Resting addresses remembered that are in no block of ours (yet); the oldest go first."""
FAMILIES = (4, 6)


class NoAddress(Exception):
    """No address can be given; the sentence says which family, why, and when one will be free.

    ``retry_after_s`` is when the next resting address is free, or None when waiting is no help.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AddressConflict(Exception):
    """An address to be adopted is held by another attachment, or the attachment holds others."""


@dataclass(slots=True)
class _Owned:
    """A CONFIRMED block of this node as last seen in the store, and its use."""

    block: Block
    usage: BlockUsage
    was_empty: bool = False
    """Whether the last release_empty_blocks() saw it empty."""


class Allocator:
    """The addresses of one node. All methods are called from one event loop's thread.

    Args:
        node: this node's name, as blocks carry it.
        store: where blocks are claimed.
        pools: gives the pools as they are now, in any order.
        clock: monotonic seconds.
        cooldown_s: how long a released address rests before it is given out again.
        cooldown_file: where releases are noted for the next agent, or None for nowhere.
    """

    def __init__(
        self,
        node: str,
        store: BlockStore,
        pools: Callable[[], Sequence[IPPool]],
        clock: Callable[[], float],
        cooldown_s: float = 30.0,
        cooldown_file: str | None = None,
    ) -> None:
        self._node = node
        self._claims = Claims(node, store)
        self._pools = pools
        self._clock = clock
        self._cooldown_s = cooldown_s
        self._owned: dict[Prefix, _Owned] = {}
        self._lost: dict[Prefix, str] = {}
        self._unconfirmed: dict[Prefix, str] = {}
        self._leaving: dict[Prefix, Block] = {}
        self._listed_cidrs: set[Prefix] = set()
        self._addresses: dict[Attachment, tuple[Address, ...]] = {}
        self._holders: dict[Address, Attachment] = {}
        self._outside_s: dict[Address, float] = {}
        self._announced: set[Attachment] = set()
        """Whose release is noted in the journal already."""
        self._locks = {version: asyncio.Lock() for version in FAMILIES}
        self._store_fault = ""
        self._journal = (
            CooldownFile(cooldown_file, cooldown_s=cooldown_s) if cooldown_file else None
        )
        if self._journal is not None:
            now_s = clock()
            for address, age_s in self._journal.read().items():
                self._rest_outside(address, now_s - age_s)

    # -- what CNI asks for -----------------------------------------------------------------

    async def assign(
        self, attachment: Attachment, requested: tuple[Address, ...] = ()
    ) -> tuple[Address, ...]:
        """One address of each family that has an enabled pool for this node, IPv4 first.

        The same attachment gets the same answer until it is released, asked at once or later.
        Claims a block when none of ours has room; otherwise the store is not asked.

        Args:
            attachment: who gets them.
            requested: addresses it must be, at most one of a family; families not named get any.

        Raises:
            NoAddress: no pool is enabled for this node, or a family is exhausted.
            AddressRefused: a requested address cannot be given; nothing was.
            BlockStoreError: a block is needed and the store cannot be used.
        """
        while True:
            held = self._addresses.get(attachment)
            if held is not None:
                refuse_change(attachment, held, requested)
                return held
            missing = self._assign_from_owned(attachment, requested)
            if missing is None:
                continue
            wanted = next((each for each in requested if each.version == missing), None)
            async with self._locks[missing]:
                # Others claimed while this one waited: usually there is room now.
                if attachment in self._addresses:
                    continue
                if wanted is not None:
                    await self._claim_block_of(wanted)
                elif not self._has_room(missing):
                    await self._claim(missing)

    def announce_release(self, attachment: Attachment) -> None:
        """Notes for the next agent that these addresses are about to be released.

        Between the end of a link and ``release`` the kernel says nothing of them any more; an
        agent killed there would be followed by one that gives them out at once. When the release
        does not come, the link stays, and ``adopt`` takes precedence over the note.
        """
        addresses = self._addresses.get(attachment)
        if addresses and self._journal is not None:
            self._journal.append(addresses)
            self._announced.add(attachment)

    def release(self, attachment: Attachment) -> tuple[Address, ...]:
        """Takes the addresses back, to rest for the cool-down; () when it held none."""
        is_noted = attachment in self._announced
        self._announced.discard(attachment)
        addresses = self._addresses.pop(attachment, ())
        now_s = self._clock()
        for address in addresses:
            del self._holders[address]
            owned = self._owned_of(address)
            if owned is not None:
                owned.usage.release(address, now_s)
            else:
                self._rest_outside(address, now_s)
        if addresses and self._journal is not None and not is_noted:
            self._journal.append(addresses)
        return addresses

    def resting(self) -> list[Address]:
        """Every address in cool-down, inside a block of ours or not, in address order."""
        now_s = self._clock()
        found = list(self._outside_s)
        for owned in self._owned.values():
            found += owned.usage.resting(now_s)
        return sorted(found, key=lambda address: (address.version, int(address)))

    def adopt(self, attachment: Attachment, addresses: tuple[Address, ...]) -> None:
        """Notes what the kernel's journal says is in use, inside a block of ours or not.

        Raises:
            AddressConflict: another attachment holds one of them, or this one holds others;
                nothing was noted.
        """
        held = self._addresses.get(attachment)
        if held is not None and set(held) != set(addresses):
            raise AddressConflict(
                f"{attachment} holds {_listed(held)} and cannot hold {_listed(addresses)} as well"
            )
        for address in addresses:
            holder = self._holders.get(address)
            if holder is not None and holder != attachment:
                raise AddressConflict(
                    f"{address} is held by {holder}; {attachment} cannot hold it as well"
                )
        if addresses:
            self._hold(attachment, tuple(sorted(addresses, key=lambda a: a.version)))

    def holder(self, address: Address) -> Attachment | None:
        """Who holds the address, whether or not it is in a block of ours."""
        return self._holders.get(address)

    def addresses(self, attachment: Attachment) -> tuple[Address, ...]:
        """What the attachment holds, IPv4 first; () for nothing."""
        return self._addresses.get(attachment, ())

    def shortage(self, store_error: str | None = None) -> str | None:
        """Why an assign would find no address now, from memory; None when it would find one.

        A block counts as obtainable while the blocks last listed leave one of a pool's out.

        Args:
            store_error: why the store cannot be used, if the caller knows: no block can be had.
        """
        families = self._families()
        if not families:
            return self._no_pool()
        for version in families:
            if self._has_room(version):
                continue
            if all(_is_full(pool, self._listed_cidrs) for pool in self._claimable(version)):
                return str(self._exhausted(version))
            fault = store_error or self._store_fault
            if fault:
                return (
                    f"no IPv{version} address is free in this node's blocks, and no block can be "
                    f"claimed: {fault}"
                )
        return None

    # -- what the hub asks for -------------------------------------------------------------

    def attachments(self) -> list[Attachment]:
        """Everybody who holds an address, in order."""
        return sorted(self._addresses)

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
            self._listed_cidrs = {block.cidr for block in blocks}
            if self._agrees(blocks):
                return
        async with self._locks[4], self._locks[6]:
            try:
                await self._take_over(await self._claims.list(), FAMILIES)
            except BlockStoreError as error:
                if blocks is None:
                    raise
                self._store_fault = str(error)
                log.warning("block_refresh_failed", error=str(error))

    async def release_empty_blocks(self) -> list[Prefix]:
        """Gives back blocks that nobody uses, one step a call; call it after a pass.

        First call: the block is seen empty (nothing used, nothing resting). Second: it is marked
        PENDING_DELETION, so that the hub's next pass withdraws it. Third: it is deleted. One
        block of each pool stays, unless the pool gives this node no addresses any more.

        Returns:
            The blocks that were deleted in this call.

        Raises:
            BlockStoreError: the store cannot be used; what was done stays done.
        """
        async with self._locks[4], self._locks[6]:
            deleted = [cidr for cidr in list(self._leaving) if await self._delete(cidr)]
            for owned in self._surplus():
                # Asked again: an assign may have run while the last one was being marked.
                if not owned.usage.used:
                    await self._mark_for_deletion(owned)
            return deleted

    def blocks(self) -> list[tuple[Block, int, int, int]]:
        """(block, used, cooling, free) of each CONFIRMED block of ours, in address order."""
        now_s = self._clock()
        return [
            (o.block, len(o.usage.used), o.usage.cooling(now_s), o.usage.free(now_s))
            for o in sorted(self._owned.values(), key=_block_order)
        ]

    def problems(self) -> list[str]:
        """What an operator should look into, one sentence each; [] when all is well."""
        found = []
        for cidr, reason in sorted(self._lost.items(), key=lambda item: str(item[0])):
            used = sum(1 for address in self._holders if _contains(cidr, address))
            if used:
                found.append(
                    f"block {cidr} {reason}, but {used} of its addresses are in use here: "
                    "they are served on, and no new ones are given"
                )
        found += [
            f"block {cidr} is not confirmed: {why}" for cidr, why in self._unconfirmed.items()
        ]
        if self._store_fault:
            found.append(f"the block store cannot be used: {self._store_fault}")
        return found

    # -- assigning -------------------------------------------------------------------------

    def _assign_from_owned(
        self, attachment: Attachment, requested: tuple[Address, ...]
    ) -> int | None:
        """Assigns from owned blocks, all families or none. Returns a family that needs a block.

        Raises:
            NoAddress: no pool is enabled for this node.
            AddressRefused: a requested address cannot be given.
        """
        now_s = self._clock()
        families = self._families()
        if not families:
            raise NoAddress(self._no_pool())
        chosen: dict[int, Address] = {each.version: each for each in requested}
        lacking: list[int] = [
            each.version for each in requested if not self._may_give(each, attachment)
        ]
        for version in families:
            if version in chosen:
                continue
            found = next((a for o in self._usable(version) if (a := o.usage.peek(now_s))), None)
            if found is None:
                lacking.append(version)
            else:
                chosen[version] = found
        if lacking:
            return lacking[0]
        self._hold(attachment, tuple(chosen[version] for version in families))
        return None

    def _may_give(self, address: Address, attachment: Attachment) -> bool:
        """Whether a requested address can be given now; False when its block is not ours yet.

        Raises:
            AddressRefused: it cannot be given.
        """
        pool = pool_of(address, self._pools(), node=self._node)
        holder = self._holders.get(address)
        if holder is not None:
            raise AddressRefused(address, f"is in use by {holder}")
        owned = self._owned_of(address)
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

    def _families(self) -> list[int]:
        """The IP versions that have an enabled pool for this node."""
        return sorted({p.version for p in self._pools() if p.node_selected and not p.disabled})

    def _no_pool(self) -> str:
        return f"no IPPool is enabled for node {self._node}"

    def _usable(self, version: int) -> list[_Owned]:
        """Owned blocks new addresses may come from: selected pools first, then by pool and CIDR."""
        pools = {p.name: p for p in self._pools() if p.version == version and not p.disabled}
        return sorted(
            (o for o in self._owned.values() if _pool_holds(pools.get(o.block.pool), o.block.cidr)),
            key=lambda o: (not pools[o.block.pool].node_selected, o.block.pool, *_block_order(o)),
        )

    def _has_room(self, version: int) -> bool:
        now_s = self._clock()
        return any(owned.usage.peek(now_s) is not None for owned in self._usable(version))

    def _hold(self, attachment: Attachment, addresses: tuple[Address, ...]) -> None:
        self._addresses[attachment] = addresses
        for address in addresses:
            self._holders[address] = attachment
            self._outside_s.pop(address, None)
            owned = self._owned_of(address)
            if owned is not None:
                owned.usage.adopt(address, attachment)
                owned.was_empty = False

    def _owned_of(self, address: Address) -> _Owned | None:
        return next(
            (o for cidr, o in self._owned.items() if _contains(cidr, address)),
            None,
        )

    def _rest_outside(self, address: Address, released_s: float) -> None:
        self._outside_s.pop(address, None)
        self._outside_s[address] = released_s
        while len(self._outside_s) > OUTSIDE_RESTING_MAX:
            del self._outside_s[next(iter(self._outside_s))]

    # -- claiming --------------------------------------------------------------------------

    async def _claim(self, version: int) -> None:
        """Returns when an own block of the family has room, claiming one if need be.

        Raises:
            NoAddress: every block of the usable pools is taken.
            BlockStoreError: the store cannot be used, or too many claims were lost to others.
        """
        blocks = await self._claims.list()
        await self._take_over(blocks, (version,))
        taken = self._listed_cidrs = {block.cidr for block in blocks}
        if self._has_room(version):
            return
        attempts = 0
        for pool in self._claimable(version):
            if _is_full(pool, taken):
                continue
            # The walk is bounded: it skips at most the blocks just listed.
            for cidr in pool.candidate_blocks(self._node):
                if cidr in taken:
                    continue
                taken.add(cidr)
                attempts += 1
                if attempts > CLAIM_ATTEMPTS_MAX:
                    raise BlockStoreError(
                        f"{CLAIM_ATTEMPTS_MAX} IPv{version} blocks in a row were claimed by other "
                        "nodes first; try again"
                    )
                block = await self._claims.claim(cidr, pool.name)
                if block is not None:
                    self._own(block)
                    return
        raise self._exhausted(version)

    async def _claim_block_of(self, address: Address) -> None:
        """Returns when the block of a requested address is ours, claiming it if need be.

        Raises:
            AddressRefused: no pool gives it, or another node has its block.
            BlockStoreError: the store cannot be used.
        """
        blocks = await self._claims.list()
        await self._take_over(blocks, (address.version,))
        if self._owned_of(address) is not None:
            return
        pool = pool_of(address, self._pools(), node=self._node)
        ours = next(
            (b for b in blocks if b.node == self._node and _contains(b.cidr, address)), None
        )
        if ours is not None:
            # On its way out, and wanted again; or never confirmed.
            block = await self._claims.confirm(ours)
        else:
            refuse_other_nodes(address, pool.block_of(address), blocks)
            block = await self._claims.claim(pool.block_of(address), pool.name)
        if block is None:
            raise AddressRefused(
                address, f"is in block {pool.block_of(address)}, which another node has just taken"
            )
        self._own(block)

    def _claimable(self, version: int) -> list[IPPool]:
        return sorted(
            (
                p
                for p in self._pools()
                if p.version == version and p.node_selected and not p.disabled
            ),
            key=lambda pool: pool.name,
        )

    def _exhausted(self, version: int) -> NoAddress:
        now_s = self._clock()
        names = ", ".join(pool.name for pool in self._claimable(version)) or "none"
        waits = [
            wait_s
            for owned in self._usable(version)
            if (wait_s := owned.usage.next_free_s(now_s)) is not None
        ]
        count = len(self._usable(version))
        text = (
            f"no IPv{version} address is free: this node's {count} block(s) are full and every "
            f"block of its pools ({names}) is taken"
        )
        if not waits:
            return NoAddress(text)
        return NoAddress(
            f"{text}; the next address comes out of cool-down in {min(waits):.1f} s",
            retry_after_s=min(waits),
        )

    # -- what the store says ---------------------------------------------------------------

    def _agrees(self, blocks: Iterable[Block]) -> bool:
        """Whether a list says of our own blocks just what we hold."""
        ours = {block.cidr: block for block in blocks if block.node == self._node}
        held = {cidr: owned.block for cidr, owned in self._owned.items()} | self._leaving
        return ours == held and not self._store_fault

    async def _take_over(self, blocks: Sequence[Block], families: Sequence[int]) -> None:
        """Makes the view of our own blocks what the store says, and confirms what is PENDING.

        Only for families whose lock the caller holds: a claim that runs in the other one may have
        finished after this list was read, and its new block must not be taken for lost.
        """
        self._store_fault = ""
        listed = {block.cidr: block for block in blocks if block.cidr.version in families}
        mine = [cidr for cidr in (*self._owned, *self._leaving) if cidr.version in families]
        for cidr in mine:
            block = listed.get(cidr)
            if block is None:
                self._lose(cidr, "is gone from the store")
            elif block.node != self._node:
                self._lose(cidr, f"belongs to node {block.node} now")
        for cidr in [cidr for cidr in self._unconfirmed if cidr.version in families]:
            del self._unconfirmed[cidr]
        for block in listed.values():
            if block.node == self._node:
                await self._take_over_one(block)
        self._forget_unused_losses()

    async def _take_over_one(self, block: Block) -> None:
        in_use = any(_contains(block.cidr, address) for address in self._holders)
        if block.state is BlockState.CONFIRMED:
            self._own(block)
        elif block.state is BlockState.PENDING_DELETION and not in_use:
            self._lose(block.cidr, "is being given back")
            self._leaving[block.cidr] = block
        else:
            # Our own claim, cut short; or a release, cut short, of a block that is in use again.
            if block.cidr in self._owned:
                self._lose(block.cidr, "is not confirmed any more")
            try:
                confirmed = await self._claims.confirm(block)
            except BlockStoreError as error:
                self._unconfirmed[block.cidr] = str(error)
                log.warning("block_unconfirmed", block=str(block.cidr), error=str(error))
            else:
                if confirmed is not None:
                    self._own(confirmed)

    def _own(self, block: Block) -> None:
        """Takes a CONFIRMED block of ours into use, with what is known of its addresses."""
        self._lost.pop(block.cidr, None)
        self._leaving.pop(block.cidr, None)
        self._unconfirmed.pop(block.cidr, None)
        owned = self._owned.get(block.cidr)
        if owned is not None:
            owned.block = block
            return
        usage = BlockUsage(block.cidr, self._cooldown_s)
        for address, attachment in self._holders.items():
            if _contains(block.cidr, address):
                usage.adopt(address, attachment)
        for address in [a for a in self._outside_s if _contains(block.cidr, a)]:
            usage.rest(address, self._outside_s.pop(address))
        self._owned[block.cidr] = _Owned(block, usage)
        log.info("block_owned", block=str(block.cidr), pool=block.pool, used=len(usage.used))

    def _lose(self, cidr: Prefix, reason: str) -> None:
        """Stops assigning from a block; what is in use or resting in it stays known."""
        self._leaving.pop(cidr, None)
        owned = self._owned.pop(cidr, None)
        if owned is None:
            return
        for address, released_s in owned.usage.resting(self._clock()).items():
            self._rest_outside(address, released_s)
        self._lost[cidr] = reason
        if owned.usage.used:
            log.error(
                "block_lost_in_use", block=str(cidr), reason=reason, used=len(owned.usage.used)
            )

    def _forget_unused_losses(self) -> None:
        for cidr in list(self._lost):
            if not any(_contains(cidr, address) for address in self._holders):
                del self._lost[cidr]

    # -- giving back -----------------------------------------------------------------------

    def _surplus(self) -> list[_Owned]:
        """Blocks empty at this look and the last, beyond the one kept for each pool."""
        now_s = self._clock()
        claimable = {pool.name for version in FAMILIES for pool in self._claimable(version)}
        kept: dict[str, int] = {}
        for owned in self._owned.values():
            kept[owned.block.pool] = kept.get(owned.block.pool, 0) + 1
        surplus = []
        for owned in sorted(self._owned.values(), key=_block_order, reverse=True):
            is_empty = not owned.usage.used and not owned.usage.cooling(now_s)
            was_empty, owned.was_empty = owned.was_empty, is_empty
            floor = 1 if owned.block.pool in claimable else 0
            if is_empty and was_empty and kept[owned.block.pool] > floor:
                kept[owned.block.pool] -= 1
                surplus.append(owned)
        return surplus

    async def _mark_for_deletion(self, owned: _Owned) -> None:
        # Out of use before the first await: an assign that runs meanwhile must not find it. When
        # the answer is in doubt it stays out of use until a refresh has seen what it is.
        cidr = owned.block.cidr
        del self._owned[cidr]
        marked = await self._claims.mark(owned.block)
        if marked is not None:
            self._leaving[cidr] = marked

    async def _delete(self, cidr: Prefix) -> bool:
        """Deletes a block that is PENDING_DELETION. False when it is not to be deleted now."""
        block = self._leaving.pop(cidr)
        if any(_contains(cidr, address) for address in self._holders):
            return False
        try:
            return await self._claims.delete(block)
        except BlockStoreError:
            self._leaving[cidr] = block
            raise


def _contains(cidr: Prefix, address: Address) -> bool:
    return cidr.version == address.version and address in cidr


def _block_order(owned: _Owned) -> tuple[int, int]:
    return (owned.block.cidr.version, int(owned.block.cidr.network_address))


def _pool_holds(pool: IPPool | None, cidr: Prefix) -> bool:
    """Whether the block lies in the pool it names; one that does not is never assigned from."""
    return (
        pool is not None
        and cidr.version == pool.version
        and cidr.prefixlen >= pool.cidr.prefixlen
        and cidr.network_address in pool.cidr
    )


def _is_full(pool: IPPool, taken: set[Prefix]) -> bool:
    """Whether every block of the pool is taken, without walking it block by block."""
    inside = sum(
        1 for cidr in taken if cidr.prefixlen == pool.block_size and _pool_holds(pool, cidr)
    )
    return inside >= pool.block_count


def _listed(addresses: Iterable[Address]) -> str:
    return ", ".join(str(address) for address in addresses)
