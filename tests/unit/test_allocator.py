"""The allocator: claims, assignment, release, adoption, and what it does when the store fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
from ipaddress import ip_address, ip_network

import pytest

from cni.attachment import Attachment
from cni.ipam.allocator import AddressConflict, Allocator, NoAddress
from cni.ipam.block import Block, BlockState, BlockStoreError
from cni.ipam.cooldown import CooldownFile
from cni.ipam.pool import IPPool
from routing.datastore.resources import block_name
from routing.datastore.snapshot import IPPoolResource, Meta, StoreError
from tests.fakes.store import FakeDatastore, Fault

V4 = IPPool("a-v4", ip_network("10.0.0.0/24"), 30)
V6 = IPPool("a-v6", ip_network("fd00::/120"), 126)


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class World:
    """A store with pools, a clock, and allocators of any node on them."""

    def __init__(self, *pools: IPPool, cooldown_s: float = 30.0, cooldown_file=None) -> None:
        self.pools = list(pools)
        self.clock = Clock()
        self.cooldown_s = cooldown_s
        self.cooldown_file = cooldown_file
        self.store = FakeDatastore(
            *(IPPoolResource(Meta(p.name), p.cidr, p.block_size) for p in pools)
        )

    def allocator(self, node: str = "node-a") -> Allocator:
        return Allocator(
            node,
            self.store,
            lambda: self.pools,
            self.clock,
            cooldown_s=self.cooldown_s,
            cooldown_file=self.cooldown_file,
        )


def pod(number: int) -> Attachment:
    return Attachment("net", f"container{number}", "eth0")


async def until(condition) -> None:
    """Waits for a condition, two seconds at most."""
    async with asyncio.timeout(2):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def release_until(store: FakeDatastore, condition) -> None:
    """Lets every held call happen until a condition holds, two seconds at most."""
    async with asyncio.timeout(2):
        while not condition():
            for held in list(store.held):
                held.release()
            await asyncio.sleep(0)


def confirmed(store: FakeDatastore, node: str = "node-a") -> list[Block]:
    return [b for b in store.blocks if b.node == node and b.state is BlockState.CONFIRMED]


# -- claiming ------------------------------------------------------------------------------


async def test_the_first_address_comes_from_a_confirmed_block_of_the_first_candidate():
    """Two phases, one block, its first address."""
    world = World(V4)

    (address,) = await world.allocator().assign(pod(1))

    (block,) = world.store.blocks
    assert block.state is BlockState.CONFIRMED
    assert block.cidr == next(V4.candidate_blocks("node-a"))
    assert address == block.cidr.network_address


async def test_a_pod_gets_one_address_of_each_family_ipv4_first():
    """Dual stack is two blocks and two addresses."""
    world = World(V6, V4)

    addresses = await world.allocator().assign(pod(1))

    assert [a.version for a in addresses] == [4, 6]
    assert sorted(b.pool for b in world.store.blocks) == ["a-v4", "a-v6"]


async def test_the_same_attachment_gets_the_same_answer():
    """ADD is idempotent, one after the other or all at once."""
    world = World(V4, V6)
    allocator = world.allocator()

    answers = await asyncio.gather(*(allocator.assign(pod(1)) for _ in range(20)))

    assert set(answers) == {await allocator.assign(pod(1))}
    assert allocator.blocks()[0][1] == 1


async def test_fifty_pods_at_once_get_fifty_addresses_from_as_few_blocks_as_hold_them():
    """One claim at a time: 50 addresses in blocks of 4 take 13 blocks, not more."""
    world = World(V4)
    allocator = world.allocator()
    world.store.slow_next("create_block", 5)

    answers = await asyncio.gather(*(allocator.assign(pod(i)) for i in range(50)))

    assert len({address for answer in answers for address in answer}) == 50
    assert len(world.store.blocks) == 13
    assert world.store.calls["create_block"] == 13


async def test_two_nodes_that_walk_into_each_other_share_the_pool():
    """Every block has one owner and every address one holder."""
    world = World(IPPool("small", ip_network("10.0.0.0/28"), 30))
    a, b = world.allocator("node-a"), world.allocator("node-b")

    answers = await asyncio.gather(*((a, b)[i % 2].assign(pod(i)) for i in range(16)))

    assert len({answer[0] for answer in answers}) == 16
    assert len(world.store.blocks) == 4


async def test_a_candidate_that_another_node_took_a_moment_ago_is_passed_over():
    """BlockExists is an answer, not a fault."""
    world = World(V4)
    world.store.conflict_next("create_block", times=3)

    (address,) = await world.allocator().assign(pod(1))

    walk = list(V4.candidate_blocks("node-a"))
    assert address in walk[3]


async def test_a_create_without_an_answer_does_not_take_another_nodes_block():
    """The look after a timeout finds a block of that CIDR: whose, is what counts."""
    world = World(V4)
    allocator = world.allocator()
    cidr = next(V4.candidate_blocks("node-a"))
    world.store.hold = True
    adding = asyncio.create_task(allocator.assign(pod(1)))
    await until(lambda: any(h.operation == "list_blocks" for h in world.store.held))
    world.store.held[0].release()
    await until(lambda: any(h.operation == "create_block" for h in world.store.held))
    mine = world.store.held[0]
    world.store.hold = False
    theirs = await world.store.create_block(Block(cidr, "a-v4", "node-b", BlockState.PENDING))

    mine.release(Fault(lambda: StoreError("timed out")))
    with pytest.raises(BlockStoreError, match="timed out"):
        await adding

    assert world.store.blocks == [theirs]
    assert allocator.blocks() == []


async def test_losing_every_race_is_an_error_that_says_so():
    """The walk is bounded; the caller tries again later."""
    world = World(IPPool("big", ip_network("10.0.0.0/16"), 26))
    world.store.conflict_next("create_block", times=64)

    with pytest.raises(BlockStoreError, match="64 IPv4 blocks in a row were claimed by other"):
        await world.allocator().assign(pod(1))


async def test_pools_are_used_by_name_and_own_blocks_before_new_ones():
    """A block with room is used up before a pool earlier in the alphabet gets a claim."""
    second = IPPool("b", ip_network("10.1.0.0/24"), 30)
    world = World(second)
    allocator = world.allocator()
    await allocator.assign(pod(1))
    first = IPPool("a", ip_network("10.2.0.0/24"), 30)
    await world.store.create(IPPoolResource(Meta("a"), first.cidr, first.block_size))
    world.pools.append(first)

    rest = [await allocator.assign(pod(i)) for i in range(2, 6)]

    assert [a in second.cidr for (a,) in rest] == [True, True, True, False]
    assert rest[3][0] in first.cidr


async def test_a_disabled_pool_gives_no_new_addresses_and_keeps_those_in_use():
    """Its blocks stay; new pods go elsewhere."""
    world = World(V4, IPPool("b", ip_network("10.1.0.0/24"), 30))
    allocator = world.allocator()
    (old,) = await allocator.assign(pod(1))
    world.pools[0] = IPPool("a-v4", V4.cidr, V4.block_size, disabled=True)

    (new,) = await allocator.assign(pod(2))

    assert old in V4.cidr
    assert new in world.pools[1].cidr
    assert allocator.holder(old) == pod(1)


async def test_no_pool_for_this_node_is_said_in_those_words():
    """Neither a disabled pool nor one for other nodes is asked."""
    world = World(
        IPPool("a", V4.cidr, 30, disabled=True),
        IPPool("b", ip_network("10.1.0.0/24"), 30, node_selected=False),
    )

    with pytest.raises(NoAddress, match="no IPPool is enabled for node node-a"):
        await world.allocator().assign(pod(1))
    assert world.store.blocks == []


async def test_a_pod_is_never_half_assigned():
    """IPv6 exhausted: no IPv4 address is consumed, and the sentence names the family."""
    world = World(V4, IPPool("tiny", ip_network("fd00::/128"), 128))
    allocator = world.allocator()
    await allocator.assign(pod(1))

    with pytest.raises(NoAddress, match=r"no IPv6 address is free: .*\(tiny\) is taken"):
        await allocator.assign(pod(2))

    assert allocator.addresses(pod(2)) == ()
    assert [(b.pool, used) for b, used, _, _ in allocator.blocks()] == [("a-v4", 1), ("tiny", 1)]


# -- crash, loss, doubt --------------------------------------------------------------------


async def test_a_claim_cut_short_is_finished_by_the_next_refresh():
    """A PENDING block of ours is found and confirmed; nothing leaks."""
    world = World(V4)
    world.store.fail_next("update_block")
    with pytest.raises(BlockStoreError):
        await world.allocator().assign(pod(1))
    assert [b.state for b in world.store.blocks] == [BlockState.PENDING]

    successor = world.allocator()
    await successor.refresh()

    assert [b.state for b in world.store.blocks] == [BlockState.CONFIRMED]
    await successor.assign(pod(1))
    assert len(world.store.blocks) == 1


async def test_the_next_assign_finishes_it_too():
    """Without waiting for a refresh, and without a second block."""
    world = World(V4)
    allocator = world.allocator()
    world.store.fail_next("update_block")
    with pytest.raises(BlockStoreError):
        await allocator.assign(pod(1))

    await allocator.assign(pod(1))

    assert len(world.store.blocks) == 1


@pytest.mark.parametrize("operation", ["create_block", "update_block"])
async def test_a_write_whose_answer_was_lost_does_not_leak_a_block(operation):
    """After a timeout the store is read again, and what is ours is used."""
    world = World(V4)
    world.store.timeout_after_commit(operation)

    (address,) = await world.allocator().assign(pod(1))

    assert len(confirmed(world.store)) == 1
    assert address in world.store.blocks[0].cidr


async def test_a_block_whose_confirmation_was_not_seen_gives_no_address():
    """Confirmed or not, nobody knows: the error is passed on."""
    world = World(V4)
    allocator = world.allocator()
    world.store.timeout_after_commit("update_block")
    # list_blocks: the claim's first look works, the one after the timeout does not.
    world.store.slow_next("list_blocks", 0)
    world.store.fail_next("list_blocks")

    with pytest.raises(BlockStoreError):
        await allocator.assign(pod(1))

    assert allocator.blocks() == []
    assert allocator.addresses(pod(1)) == ()


async def test_a_conflict_while_confirming_is_read_again_and_tried_again():
    """Something labelled our PENDING block; that must not cost the claim."""
    world = World(V4)
    world.store.conflict_next("update_block", times=2)

    await world.allocator().assign(pod(1))

    assert len(confirmed(world.store)) == 1


async def test_a_pending_block_that_cannot_be_confirmed_is_left_and_named():
    """refresh() with a snapshot never raises; problems() tells."""
    world = World(V4)
    cidr = next(V4.candidate_blocks("node-a"))
    await world.store.create_block(Block(cidr, "a-v4", "node-a", BlockState.PENDING))
    allocator = world.allocator()
    world.store.fail_next("update_block", error="read-only")

    await allocator.refresh(world.store.blocks)

    assert allocator.blocks() == []
    assert allocator.problems() == [f"block {cidr} is not confirmed: fake store: read-only"]
    await allocator.refresh(world.store.blocks)
    assert (len(allocator.blocks()), allocator.problems()) == (1, [])


async def test_assigning_works_with_the_store_away_while_blocks_have_room():
    """The store is asked only when a block is needed."""
    world = World(V4)
    allocator = world.allocator()
    await allocator.assign(pod(1))
    world.store.fail_next("*", times=10)

    for number in (2, 3, 4):
        await allocator.assign(pod(number))
    with pytest.raises(BlockStoreError, match="unreachable"):
        await allocator.assign(pod(5))

    assert allocator.addresses(pod(5)) == ()


async def test_a_snapshot_older_than_a_claim_does_not_take_the_block_away():
    """A list is a hint; where it differs the store itself is read."""
    world = World(V4)
    allocator = world.allocator()
    older = (await world.store.snapshot()).blocks
    await allocator.assign(pod(1))

    await allocator.refresh(older)

    assert len(allocator.blocks()) == 1
    assert allocator.problems() == []


async def test_a_snapshot_that_agrees_costs_no_read():
    """A pass every 30 s on a hundred nodes need not list everything twice."""
    world = World(V4)
    allocator = world.allocator()
    await allocator.assign(pod(1))
    before = world.store.calls["list_blocks"]

    await allocator.refresh((await world.store.snapshot()).blocks)

    assert world.store.calls["list_blocks"] == before


async def test_a_store_that_fails_during_a_refresh_leaves_the_view_and_is_named():
    """With a snapshot it is a problem to show; asked to read, it is raised."""
    world = World(V4)
    allocator = world.allocator()
    await allocator.assign(pod(1))
    world.store.fail_next("list_blocks", times=2)

    await allocator.refresh([])
    assert len(allocator.blocks()) == 1
    assert allocator.problems() == ["the block store cannot be used: fake store: unreachable"]
    with pytest.raises(BlockStoreError):
        await allocator.refresh()
    await allocator.refresh()
    assert allocator.problems() == []


async def test_a_block_that_vanished_is_served_on_and_named():
    """No new address from it, the old one stays, an operator is told."""
    world = World(V4)
    allocator = world.allocator()
    (address,) = await allocator.assign(pod(1))
    (block,) = world.store.blocks
    world.store.remove("Block", block_name(block.cidr))

    await allocator.refresh()

    assert allocator.holder(address) == pod(1)
    assert allocator.problems() == [
        f"block {block.cidr} is gone from the store, but 1 of its addresses are in use here: "
        "they are served on, and no new ones are given"
    ]
    allocator.release(pod(1))
    assert allocator.problems() == []


async def test_a_block_that_belongs_to_another_node_now_gives_nothing():
    """The next address comes from a block that is ours."""
    world = World(V4)
    allocator = world.allocator()
    (address,) = await allocator.assign(pod(1))
    (block,) = world.store.blocks
    world.store.remove("Block", block_name(block.cidr))
    await world.store.create_block(Block(block.cidr, "a-v4", "node-b", BlockState.CONFIRMED))

    await allocator.refresh()
    (other,) = await allocator.assign(pod(2))

    assert "belongs to node node-b now" in allocator.problems()[0]
    assert other not in block.cidr
    assert allocator.holder(address) == pod(1)


async def test_a_block_that_came_back_goes_on_where_it_was():
    """Holders and rests are known again; nothing is given out twice."""
    world = World(V4)
    allocator = world.allocator()
    (first,) = await allocator.assign(pod(1))
    (second,) = await allocator.assign(pod(2))
    allocator.release(pod(2))
    (block,) = world.store.blocks
    world.store.remove("Block", block_name(block.cidr))
    await allocator.refresh()
    await world.store.create_block(Block(block.cidr, "a-v4", "node-a", BlockState.CONFIRMED))

    await allocator.refresh()

    given = [(await allocator.assign(pod(i)))[0] for i in (3, 4)]
    assert first not in given
    assert second not in given
    assert allocator.problems() == []


# -- release and cool-down -----------------------------------------------------------------


async def test_everything_resting_and_nothing_to_claim_names_the_wait():
    """NoAddress says in how many seconds to come again."""
    world = World(IPPool("tiny", ip_network("10.0.0.0/31"), 31))
    allocator = world.allocator()
    (first,) = await allocator.assign(pod(1))
    await allocator.assign(pod(2))
    allocator.release(pod(1))
    world.clock.now_s += 10

    with pytest.raises(NoAddress, match=r"comes out of cool-down in 20\.0 s") as caught:
        await allocator.assign(pod(3))

    assert caught.value.retry_after_s == 20
    world.clock.now_s += 20
    assert await allocator.assign(pod(3)) == (first,)


async def test_a_release_gives_back_all_and_a_second_one_nothing():
    """DEL may come twice, and for pods that never were."""
    world = World(V4, V6)
    allocator = world.allocator()
    addresses = await allocator.assign(pod(1))

    assert allocator.release(pod(1)) == addresses
    assert allocator.release(pod(1)) == ()
    assert allocator.release(pod(9)) == ()
    assert all(allocator.holder(address) is None for address in addresses)
    assert [(used, cooling) for _, used, cooling, _ in allocator.blocks()] == [(0, 1), (0, 1)]


async def test_a_killed_agents_releases_still_rest(tmp_path):
    """The successor reads the cool-down file and does not hand the address out at once."""
    world = World(
        IPPool("tiny", ip_network("10.0.0.0/31"), 31), cooldown_file=str(tmp_path / "cooldown")
    )
    first = world.allocator()
    (address,) = await first.assign(pod(1))
    first.release(pod(1))

    successor = world.allocator()
    await successor.refresh()

    (other,) = await successor.assign(pod(2))
    assert other != address
    with pytest.raises(NoAddress, match="comes out of cool-down in"):
        await successor.assign(pod(3))
    world.clock.now_s += 30
    assert await successor.assign(pod(3)) == (address,)


async def test_an_agent_killed_between_the_links_end_and_the_release_leaves_a_note(tmp_path):
    """The kernel says nothing of the address any more; the note makes it rest all the same."""
    world = World(
        IPPool("tiny", ip_network("10.0.0.0/31"), 31), cooldown_file=str(tmp_path / "cooldown")
    )
    first = world.allocator()
    (address,) = await first.assign(pod(1))
    first.announce_release(pod(1))
    assert first.addresses(pod(1)) == (address,)

    successor = world.allocator()
    assert successor.resting() == [address]
    await successor.refresh()
    assert successor.resting() == [address]
    assert await successor.assign(pod(2)) != (address,)


async def test_an_announced_release_that_did_not_come_frees_nothing(tmp_path):
    """The link stayed: the kernel's journal takes precedence over the note."""
    world = World(V4, cooldown_file=str(tmp_path / "cooldown"))
    first = world.allocator()
    held = await first.assign(pod(1))
    first.announce_release(pod(1))

    successor = world.allocator()
    successor.adopt(pod(1), held)
    await successor.refresh()
    assert successor.resting() == []
    world.clock.now_s += 60
    assert await successor.assign(pod(2)) != held


async def test_an_announced_release_is_noted_once(tmp_path):
    """A DEL writes to the file once, as without the announcement; a pod without addresses never."""
    path = tmp_path / "cooldown"
    allocator = World(V4, V6, cooldown_file=str(path)).allocator()
    allocator.announce_release(pod(1))
    assert not path.exists()
    await allocator.assign(pod(1))
    allocator.announce_release(pod(1))
    noted = path.read_text()
    assert len(noted.splitlines()) == 3

    assert len(allocator.release(pod(1))) == 2
    assert path.read_text() == noted
    await allocator.assign(pod(1))
    allocator.release(pod(1))
    assert len(path.read_text().splitlines()) == 5


# -- adoption ------------------------------------------------------------------------------


async def test_a_restarted_agent_knows_every_allocation():
    """adopt() of the kernel's journal, then refresh(): nothing is given out twice."""
    world = World(V4, V6)
    first = world.allocator()
    live = {pod(i): await first.assign(pod(i)) for i in range(6)}

    successor = world.allocator()
    for attachment, addresses in live.items():
        successor.adopt(attachment, addresses)
    await successor.refresh()

    assert await successor.assign(pod(3)) == live[pod(3)]
    new = await successor.assign(pod(7))
    assert not {a for held in live.values() for a in held} & set(new)


async def test_an_address_outside_our_blocks_is_remembered_and_never_given_out():
    """Even when its block becomes ours later."""
    world = World(V4)
    allocator = world.allocator()
    stray = next(V4.candidate_blocks("node-a")).network_address

    allocator.adopt(pod(9), (stray,))

    assert allocator.holder(stray) == pod(9)
    assert allocator.addresses(pod(9)) == (stray,)
    assert (await allocator.assign(pod(1)))[0] == stray + 1


async def test_an_address_is_not_adopted_for_two():
    """Neither for a second holder, nor a second address for the same; nothing is noted."""
    world = World(V4)
    allocator = world.allocator()
    allocator.adopt(pod(1), (ip_address("10.0.0.1"),))

    allocator.adopt(pod(1), (ip_address("10.0.0.1"),))
    with pytest.raises(AddressConflict, match=r"10\.0\.0\.1 is held by net/container1/eth0"):
        allocator.adopt(pod(2), (ip_address("fd00::1"), ip_address("10.0.0.1")))
    with pytest.raises(AddressConflict, match=r"holds 10\.0\.0\.1 and cannot hold 10\.0\.0\.2"):
        allocator.adopt(pod(1), (ip_address("10.0.0.2"),))

    assert allocator.holder(ip_address("fd00::1")) is None
    assert allocator.addresses(pod(2)) == ()


# -- giving blocks back --------------------------------------------------------------------


async def three_blocks(world: World, allocator: Allocator) -> None:
    """Fills two blocks and a bit, then releases everything and lets it rest to the end."""
    for number in range(9):
        await allocator.assign(pod(number))
    for number in range(9):
        allocator.release(pod(number))
    world.clock.now_s += 31


async def test_empty_blocks_are_given_back_in_two_phases_after_two_looks():
    """Seen, marked (the hub withdraws), deleted; one block of the pool stays."""
    world = World(V4)
    allocator = world.allocator()
    await three_blocks(world, allocator)

    assert await allocator.release_empty_blocks() == []
    assert len(confirmed(world.store)) == 3
    assert await allocator.release_empty_blocks() == []
    assert sorted(b.state.value for b in world.store.blocks) == [
        "confirmed",
        "pendingDeletion",
        "pendingDeletion",
    ]
    assert len(await allocator.release_empty_blocks()) == 2
    assert len(world.store.blocks) == 1
    assert await allocator.release_empty_blocks() == []
    assert len(world.store.blocks) == 1


async def test_a_block_used_between_two_looks_stays():
    """Two observations: in use at one of them is in use."""
    world = World(V4)
    allocator = world.allocator()
    await three_blocks(world, allocator)
    await allocator.release_empty_blocks()
    for number in range(9):
        await allocator.assign(pod(number))

    await allocator.release_empty_blocks()

    assert len(confirmed(world.store)) == 3


async def test_a_resting_address_keeps_its_block():
    """Another node must not get it before the cool-down is over."""
    world = World(V4)
    allocator = world.allocator()
    for number in range(5):
        await allocator.assign(pod(number))
    for number in range(5):
        allocator.release(pod(number))

    for _ in range(4):
        await allocator.release_empty_blocks()

    assert len(confirmed(world.store)) == 2


async def test_a_disabled_pool_gets_all_its_blocks_back():
    """Or it could never be deleted."""
    world = World(V4)
    allocator = world.allocator()
    await allocator.assign(pod(1))
    allocator.release(pod(1))
    world.clock.now_s += 31
    world.pools[0] = IPPool("a-v4", V4.cidr, V4.block_size, disabled=True)

    for _ in range(3):
        await allocator.release_empty_blocks()

    assert world.store.blocks == []


async def test_a_marked_block_gives_no_addresses_and_a_late_list_does_not_revive_it():
    """From the mark on it is not ours to use; once deleted, stale answers are known as such."""
    world = World(V4)
    allocator = world.allocator()
    await three_blocks(world, allocator)
    await allocator.release_empty_blocks()
    await allocator.release_empty_blocks()
    marked = {b.cidr for b in world.store.blocks if b.state is BlockState.PENDING_DELETION}
    stale = list(world.store.blocks)

    for number in range(4):
        (address,) = await allocator.assign(pod(number))
        assert not any(address in cidr for cidr in marked)
    await allocator.release_empty_blocks()
    # Two blocks were marked and deleted: four writes ago both were CONFIRMED.
    world.store.stale_reads(1, writes=4)
    await allocator.refresh(stale)

    assert {b.cidr for b, *_ in allocator.blocks()}.isdisjoint(marked)


async def test_a_marked_block_that_is_in_use_after_all_is_not_deleted():
    """A link that was found late holds one of its addresses: the block is confirmed again."""
    world = World(V4)
    allocator = world.allocator()
    await three_blocks(world, allocator)
    await allocator.release_empty_blocks()
    await allocator.release_empty_blocks()
    first, _ = [b.cidr for b in world.store.blocks if b.state is BlockState.PENDING_DELETION]

    allocator.adopt(pod(1), (first.network_address,))
    await allocator.release_empty_blocks()
    await allocator.refresh(world.store.blocks)

    assert {b.cidr: b.state for b in world.store.blocks}[first] is BlockState.CONFIRMED
    assert allocator.problems() == []


async def test_a_claim_of_one_family_does_not_lose_a_block_of_the_other():
    """A list that was read before the other family's claim ended says nothing about it."""
    world = World(V4, V6)
    allocator = world.allocator()
    six_only = [IPPool("a-v4", V4.cidr, V4.block_size, disabled=True), V6]
    world.store.hold = True
    of_four = asyncio.create_task(allocator.assign(pod(1)))
    await until(lambda: world.store.held)
    world.pools[:] = six_only
    world.store.held[0].release(Fault(is_late=True))
    await until(lambda: world.store.held[0].operation == "list_blocks answer")
    late = world.store.held[0]

    of_six = asyncio.create_task(allocator.assign(pod(2)))
    while not of_six.done():
        for held in [held for held in world.store.held if held is not late]:
            held.release()
        await asyncio.sleep(0)
    world.pools[:] = [V4, V6]
    late.release()
    await until(lambda: any(h.operation == "create_block" for h in world.store.held))
    assert [block.pool for block, *_ in allocator.blocks()] == ["a-v6"]
    assert allocator.problems() == []
    await release_until(world.store, of_four.done)

    assert [a.version for a in of_six.result()] == [6]
    assert [a.version for a in of_four.result()] == [4, 6]
    assert of_four.result()[1] == of_six.result()[0] + 1
    assert len(world.store.blocks) == 2


async def test_a_release_cut_short_is_gone_on_with_by_the_successor():
    """PENDING_DELETION and empty: deleted. In use again after all: confirmed again."""
    world = World(V4)
    allocator = world.allocator()
    await three_blocks(world, allocator)
    await allocator.release_empty_blocks()
    await allocator.release_empty_blocks()
    first, second = [b.cidr for b in world.store.blocks if b.state is BlockState.PENDING_DELETION]

    successor = world.allocator()
    successor.adopt(pod(1), (first.network_address,))
    await successor.refresh()
    await successor.release_empty_blocks()

    states = {b.cidr: b.state for b in world.store.blocks}
    assert states[first] is BlockState.CONFIRMED
    assert second not in states
    assert successor.problems() == []


async def test_a_block_that_is_being_marked_gives_no_address():
    """From the moment the mark is on its way, not from when it is known to have arrived."""
    world = World(V4)
    allocator = world.allocator()
    for number in range(5):
        await allocator.assign(pod(number))
    for number in range(5):
        allocator.release(pod(number))
    world.clock.now_s += 31
    await allocator.release_empty_blocks()
    world.store.hold = True
    giving_back = asyncio.create_task(allocator.release_empty_blocks())
    await until(lambda: world.store.held)

    adding = [asyncio.create_task(allocator.assign(pod(number))) for number in range(8)]
    await release_until(world.store, lambda: giving_back.done() and all(t.done() for t in adding))

    blocks = confirmed(world.store)
    assert len(blocks) == 2
    assert all(any(task.result()[0] in block.cidr for block in blocks) for task in adding)


async def test_a_block_that_gets_a_pod_while_another_is_marked_stays():
    """The store is slow to mark the first; meanwhile pods fill the blocks that are left."""
    world = World(V4)
    allocator = world.allocator()
    await three_blocks(world, allocator)
    await allocator.release_empty_blocks()
    world.store.hold = True
    giving_back = asyncio.create_task(allocator.release_empty_blocks())
    await until(lambda: world.store.held)

    given = [(await allocator.assign(pod(i)))[0] for i in range(8)]
    await release_until(world.store, giving_back.done)

    assert len(confirmed(world.store)) == 2
    assert all(any(a in b.cidr for b in confirmed(world.store)) for a in given)


@pytest.mark.parametrize("operation", ["update_block", "delete_block"])
@pytest.mark.parametrize("fault", ["fail_next", "conflict_next", "timeout_after_commit"])
async def test_faults_while_giving_back_end_in_the_same_state(operation, fault):
    """Whatever happens once, some calls later only the kept block is there, and none is lost."""
    world = World(V4)
    allocator = world.allocator()
    await three_blocks(world, allocator)
    getattr(world.store, fault)(operation)

    for _ in range(8):
        with contextlib.suppress(BlockStoreError):
            await allocator.release_empty_blocks()
        await allocator.refresh((await world.store.snapshot()).blocks)

    assert len(world.store.blocks) == 1
    assert [b for b, *_ in allocator.blocks()] == world.store.blocks
    assert allocator.problems() == []


# -- the cool-down file --------------------------------------------------------------------


def journal(path, clock, *, boot_id="boot-1", cooldown_s=30.0) -> CooldownFile:
    return CooldownFile(str(path), cooldown_s=cooldown_s, clock=clock, boot_id=boot_id)


def test_the_file_gives_ages_back_and_is_private(tmp_path):
    """Oldest first, what has rested enough left out, mode 0600."""
    clock = Clock()
    path = tmp_path / "cooldown"
    writer = journal(path, clock)
    writer.append([ip_address("10.0.0.1")])
    clock.now_s += 25
    writer.append([ip_address("fd00::2"), ip_address("10.0.0.3")])
    clock.now_s += 10

    assert journal(path, clock).read() == {ip_address("fd00::2"): 10, ip_address("10.0.0.3"): 10}
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_a_killed_writer_left_does_not_pile_up(tmp_path):
    """Killed between writing the new file and putting it in its place, again and again."""
    path = tmp_path / "cooldown"
    (tmp_path / "cooldown.tmp").write_text("slash32-cooldown 1 boot-1\n990.0 10.0")
    writer = journal(path, Clock())
    writer.append([ip_address("10.0.0.1")])

    assert [each.name for each in tmp_path.iterdir()] == ["cooldown"]
    assert journal(path, Clock()).read() == {ip_address("10.0.0.1"): 0}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff\xfe garbage",
        b"slash32-cooldown 1 another-boot\n900.0 10.0.0.1\n",
        b"slash32-cooldown 1 boot-1\n990.0 10.0.0.999\nnan 10.0.0.1\n2000.0 10.0.0.1\n\n",
        b"slash32-cooldown 1 boot-1\n990.0 10.0.0.1",
        b"x" * (1 << 21),
    ],
)
def test_garbage_costs_some_cool_down_and_no_more(tmp_path, content):
    """Nothing is believed, nothing raised, and the file works again afterwards."""
    path = tmp_path / "cooldown"
    path.write_bytes(content)
    clock = Clock()

    first = journal(path, clock)
    assert first.read() == {}
    first.append([ip_address("10.0.0.7")])

    assert journal(path, clock).read() == {ip_address("10.0.0.7"): 0}


def test_the_file_stays_small(tmp_path):
    """Ten thousand releases of one address are not ten thousand lines."""
    clock = Clock()
    path = tmp_path / "cooldown"
    writer = journal(path, clock, cooldown_s=1)
    for _ in range(10_000):
        clock.now_s += 1
        writer.append([ip_address("10.0.0.1")])

    assert len(path.read_text().splitlines()) <= 2050


@pytest.mark.parametrize("place", ["missing/cooldown", "directory", "link", "pipe"])
def test_a_place_that_cannot_be_written_is_no_reason_to_fail(tmp_path, place):
    """A directory, a pipe, a link to somebody's file: the agent goes on and leaves it alone."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to(victim)
    os.mkfifo(tmp_path / "pipe")
    clock = Clock()

    note = journal(tmp_path / place, clock)
    assert note.read() == {}
    note.append([ip_address("10.0.0.1")])
    note.append([ip_address("10.0.0.2")])

    assert victim.read_text() == "precious"
