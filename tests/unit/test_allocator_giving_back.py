"""The allocator gives blocks back: in two phases, after two looks, whatever fails in between."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace

import pytest

from cni.ipam.allocator import Allocator
from cni.ipam.block import BlockState, BlockStoreError
from cni.ipam.pool import IPPool, Prefix
from tests.fakes.allocation import V4, V6, World, confirmed, pod, release_until, until
from tests.fakes.store import Fault


async def three_blocks(world: World, allocator: Allocator) -> None:
    """Fills two blocks and a bit, then releases everything and lets it rest to the end."""
    for number in range(9):
        await allocator.assign(pod(number))
    for number in range(9):
        allocator.release(pod(number))
    world.clock.now_s += 31


async def two_marked(world: World, allocator: Allocator) -> list[Prefix]:
    """The same, and two looks later: one block stays, the two returned are marked."""
    await three_blocks(world, allocator)
    await allocator.release_empty_blocks()
    await allocator.release_empty_blocks()
    return [b.cidr for b in world.store.blocks if b.state is BlockState.PENDING_DELETION]


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
    marked = await two_marked(world, allocator)
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
    first, _ = await two_marked(world, allocator)

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
    first, second = await two_marked(world, allocator)

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


async def test_control_a_block_that_gets_a_pod_is_lost_when_nobody_looks_again(monkeypatch):
    """The same story with the allocator blind to its holders must mark a block under a pod."""
    world = World(V4)
    allocator = world.allocator()
    await three_blocks(world, allocator)
    await allocator.release_empty_blocks()
    world.store.hold = True
    look = allocator._holdings.surplus

    def seen_once(kept):
        nobody = SimpleNamespace(used={})
        return [SimpleNamespace(block=each.block, usage=nobody) for each in look(kept)]

    monkeypatch.setattr(allocator._holdings, "surplus", seen_once)
    giving_back = asyncio.create_task(allocator.release_empty_blocks())
    await until(lambda: world.store.held)

    given = [(await allocator.assign(pod(i)))[0] for i in range(8)]
    await release_until(world.store, giving_back.done)

    assert not all(any(a in b.cidr for b in confirmed(world.store)) for a in given)


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
