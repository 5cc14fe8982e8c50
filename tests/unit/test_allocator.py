"""The allocator: claims, assignment, release, adoption, and what it does when the store fails."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address, ip_network

import pytest

from cni.ipam.allocator import AddressConflict, NoAddress
from cni.ipam.block import Block, BlockState, BlockStoreError
from cni.ipam.pool import IPPool
from routing.datastore.resources import block_name
from routing.datastore.snapshot import IPPoolResource, Meta, StoreError
from tests.fakes.allocation import V4, V6, World, confirmed, pod, until
from tests.fakes.store import Fault

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
