"""The allocator, asked for certain addresses, and asked whether it could give any at all."""

import asyncio
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from cni.ipam.allocator import NoAddress
from cni.ipam.block import Block, BlockState, BlockStoreError
from cni.ipam.pool import IPPool
from cni.ipam.requested import AddressRefused
from tests.fakes.allocation import V4, V6, World, confirmed, pod

FAR4, FAR6 = ip_address("10.0.0.201"), ip_address("fd00::c9")
"""In the pools, and not in the first block of any node of these tests."""


def block_of(address):
    """The block of an address, as the pools of these tests are cut."""
    return (V4 if address.version == 4 else V6).block_of(address)


async def refused(allocator, attachment, *requested) -> AddressRefused:
    """The refusal of such a request, after which the attachment holds nothing."""
    with pytest.raises(AddressRefused) as caught:
        await allocator.assign(attachment, requested)
    assert allocator.addresses(attachment) == ()
    return caught.value


# -- granted -----------------------------------------------------------------------------------


async def test_a_requested_address_is_given_from_the_very_block_it_is_in():
    """That block is claimed, in two phases as any other, and no other one."""
    world = World(V4)
    allocator = world.allocator()

    assert await allocator.assign(pod(1), (FAR4,)) == (FAR4,)

    assert [b.cidr for b in confirmed(world.store)] == [block_of(FAR4)]
    assert allocator.holder(FAR4) == pod(1)


async def test_a_family_that_is_not_named_gets_an_ordinary_address():
    """IPv4 first in the answer, whichever was asked for."""
    world = World(V4, V6)
    allocator = world.allocator()

    v4, v6 = await allocator.assign(pod(1), (FAR6,))

    assert (v4.version, v6) == (4, FAR6)
    assert await allocator.assign(pod(2), (FAR4, FAR6 + 1)) == (FAR4, FAR6 + 1)


async def test_a_requested_address_in_an_owned_block_needs_no_store():
    """As every assignment inside owned blocks."""
    world = World(V4)
    allocator = world.allocator()
    (first,) = await allocator.assign(pod(1))
    world.store.fail_next("*", times=9)

    assert await allocator.assign(pod(2), (first + 2,)) == (first + 2,)


async def test_ordinary_addresses_flow_round_a_requested_one():
    """It is taken once, and given out again only after its rest."""
    world = World(replace(V4, cidr=ip_network("10.0.0.0/30")), cooldown_s=5)
    allocator = world.allocator()
    await allocator.assign(pod(9), (ip_address("10.0.0.1"),))
    others = [(await allocator.assign(pod(n)))[0] for n in range(3)]
    allocator.release(pod(9))
    world.clock.now_s += 5

    assert [str(each) for each in others] == ["10.0.0.0", "10.0.0.2", "10.0.0.3"]
    assert await allocator.assign(pod(4)) == (ip_address("10.0.0.1"),)


async def test_asking_again_for_what_is_held_is_the_same_answer():
    """Also with less named, and after an agent's restart."""
    world = World(V4, V6)
    first = await world.allocator().assign(pod(1), (FAR4, FAR6))
    successor = world.allocator()
    successor.adopt(pod(1), first)

    assert await successor.assign(pod(1), (FAR4,)) == first
    assert await successor.assign(pod(1)) == first


async def test_a_block_on_its_way_out_is_kept_for_an_address_asked_from_it():
    """Marked for deletion, not deleted yet: it is confirmed again."""
    world = World(V4)
    allocator = world.allocator()
    await allocator.assign(pod(1))
    await allocator.assign(pod(2), (FAR4,))
    allocator.release(pod(2))
    world.clock.now_s += 30
    while block_of(FAR4) in [b.cidr for b in confirmed(world.store)]:
        await allocator.release_empty_blocks()

    assert await allocator.assign(pod(3), (FAR4,)) == (FAR4,)
    assert block_of(FAR4) in [b.cidr for b in confirmed(world.store)]
    assert await allocator.release_empty_blocks() == []


async def test_a_claim_that_was_cut_short_is_finished_for_the_address_asked_from_it():
    """PENDING and ours: the address's own block, found in the store."""
    world = World(V4)
    await world.store.create_block(Block(block_of(FAR4), V4.name, "node-a", BlockState.PENDING))

    assert await world.allocator().assign(pod(1), (FAR4,)) == (FAR4,)


# -- refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("192.0.2.1", "is in no IPPool"),
        ("10.0.1.0", "is in no IPPool"),
        ("10.9.0.1", "is in IPPool b-off, which is disabled"),
        ("10.8.0.1", "is in IPPool c-far, which does not select node node-a"),
        ("fd00::1", "is in no IPPool"),
        ("224.0.0.1", "is in no IPPool"),
    ],
)
async def test_an_address_that_no_pool_of_this_node_has_is_refused(address, said):
    """One sentence: the address and the rule. The store is not even asked."""
    world = World(
        V4,
        IPPool("b-off", ip_network("10.9.0.0/24"), 26, disabled=True),
        IPPool("c-far", ip_network("10.8.0.0/24"), 26, node_selected=False),
    )

    error = await refused(world.allocator(), pod(1), ip_address(address))

    assert str(error) == f"the requested address {address} {said}"
    assert error.retry_after_s is None
    assert world.store.blocks == []


async def test_an_address_in_another_nodes_block_is_refused_and_claims_nothing():
    """Which block, and whose."""
    world = World(V4)
    await world.allocator("node-b").assign(pod(1), (FAR4,))

    error = await refused(world.allocator(), pod(2), FAR4 + 1)

    assert str(error) == "the requested address 10.0.0.202 is in block 10.0.0.200/30 of node node-b"
    assert confirmed(world.store) == []


async def test_an_address_in_use_is_refused_and_names_its_holder():
    """Also one that the kernel's journal knows and no block of ours holds."""
    world = World(V4)
    allocator = world.allocator()
    await allocator.assign(pod(1), (FAR4,))
    allocator.adopt(pod(2), (FAR4 + 9,))

    assert str(pod(1)) in str(await refused(allocator, pod(3), FAR4))
    assert "is in use by" in str(await refused(allocator, pod(3), FAR4 + 9))


async def test_an_attachment_that_has_its_addresses_cannot_ask_for_others():
    """It keeps what it has."""
    world = World(V4)
    allocator = world.allocator()
    held = await allocator.assign(pod(1))

    with pytest.raises(AddressRefused, match=rf"which has {held[0]}"):
        await allocator.assign(pod(1), (FAR4,))

    assert allocator.addresses(pod(1)) == held


async def test_a_resting_address_is_refused_to_all_but_who_let_go_of_it():
    """Routers and clients remember its last pod, and nobody else's memory is its own."""
    world = World(V4, cooldown_s=30)
    allocator = world.allocator()
    await allocator.assign(pod(1), (FAR4,))
    allocator.release(pod(1))
    world.clock.now_s += 10

    error = await refused(allocator, pod(2), FAR4)

    assert "rests for 20.0 s" in str(error)
    assert error.retry_after_s == 20.0
    assert await allocator.assign(pod(1), (FAR4,)) == (FAR4,)
    allocator.release(pod(1))
    world.clock.now_s += 30
    assert await allocator.assign(pod(2), (FAR4,)) == (FAR4,)


async def test_a_rest_that_an_earlier_agent_began_holds(tmp_path):
    """Its file does not say who let go, so everybody waits."""
    world = World(V4, cooldown_file=str(tmp_path / "cooldown"))
    first = world.allocator()
    await first.assign(pod(1), (FAR4,))
    first.release(pod(1))

    assert (await refused(world.allocator(), pod(1), FAR4)).retry_after_s is not None


async def test_a_refusal_of_one_family_leaves_the_other_alone():
    """Never half assigned."""
    world = World(V4, V6)
    allocator = world.allocator()
    await allocator.assign(pod(1), (FAR4, FAR6))

    await refused(allocator, pod(2), FAR4 + 1, FAR6)
    await refused(allocator, pod(2), FAR4, FAR6 + 1)

    assert await allocator.assign(pod(2), (FAR4 + 1, FAR6 + 1)) == (FAR4 + 1, FAR6 + 1)


async def test_no_ordinary_address_left_for_the_other_family_leaves_the_requested_one_free():
    """The same, with the other cause."""
    world = World(V4, IPPool("a-v6", ip_network("fd00::/127"), 127))
    allocator = world.allocator()
    for number in range(2):
        await allocator.assign(pod(number))

    with pytest.raises(NoAddress, match="no IPv6 address is free"):
        await allocator.assign(pod(5), (FAR4,))

    assert allocator.holder(FAR4) is None


async def test_a_block_that_names_another_pool_gives_no_requested_address():
    """Nor does it give any other; the sentence says which pool it is of."""
    world = World(V4)
    allocator = world.allocator()
    await allocator.assign(pod(1), (FAR4,))
    world.pools[0] = replace(V4, name="renamed")

    error = await refused(allocator, pod(2), FAR4 + 1)

    assert "is in block 10.0.0.200/30 of IPPool a-v4, not renamed" in str(error)


async def test_a_claim_lost_in_the_last_moment_is_a_refusal():
    """Another node was first, between our look and our create."""
    world = World(V4)
    world.store.conflict_next("create_block")

    error = await refused(world.allocator(), pod(1), FAR4)

    assert "which another node has just taken" in str(error)


async def test_a_store_that_fails_gives_nothing_and_takes_nothing():
    """The next try finds whatever came of the first."""
    world = World(V4)
    allocator = world.allocator()
    world.store.fail_next("list_blocks")

    with pytest.raises(BlockStoreError):
        await allocator.assign(pod(1), (FAR4,))

    assert allocator.addresses(pod(1)) == ()
    assert await allocator.assign(pod(1), (FAR4,)) == (FAR4,)


async def test_of_many_that_ask_for_one_address_at_once_one_gets_it():
    """And every pod of the fifty beside them gets another."""
    world = World(V4)
    allocator = world.allocator()

    outcomes = await asyncio.gather(
        *(allocator.assign(pod(n), (FAR4,)) for n in range(10)),
        *(allocator.assign(pod(n)) for n in range(10, 60)),
        return_exceptions=True,
    )

    given = [each[0] for each in outcomes if isinstance(each, tuple)]
    assert given.count(FAR4) == 1
    assert len(set(given)) == len(given) == 51
    assert sum(isinstance(each, AddressRefused) for each in outcomes) == 9


# -- could it give any -------------------------------------------------------------------------


async def test_nothing_is_short_while_a_block_has_room_or_another_can_be_had():
    """Before the first claim, with room, and full with blocks left to claim."""
    world = World(V4)
    allocator = world.allocator()
    await allocator.refresh([])

    assert allocator.shortage() is None
    for number in range(4):
        await allocator.assign(pod(number))
        assert allocator.shortage() is None


async def test_a_node_with_no_pool_is_short_of_everything():
    """None at all, all disabled, or none that selects it."""
    world = World(replace(V4, disabled=True), replace(V6, node_selected=False))

    assert world.allocator().shortage() == "no IPPool is enabled for node node-a"


async def test_a_family_whose_blocks_are_all_taken_is_short_and_says_until_when():
    """Full here and claimed elsewhere; an address that rests comes back by itself."""
    world = World(replace(V4, cidr=ip_network("10.0.0.0/29")), V6, cooldown_s=30)
    allocator, other = world.allocator(), world.allocator("node-b")
    await other.assign(pod(99))
    for number in range(4):
        await allocator.assign(pod(number))

    shortage = allocator.shortage()
    assert shortage is not None
    assert "no IPv4 address is free" in shortage
    assert "cool-down" not in shortage
    allocator.release(pod(0))
    assert "cool-down in 30.0 s" in (allocator.shortage() or "")
    world.clock.now_s += 30
    assert allocator.shortage() is None


async def test_a_block_another_node_gives_back_ends_the_shortage():
    """At the next snapshot, without asking the store."""
    world = World(replace(V4, cidr=ip_network("10.0.0.0/29")))
    allocator, other = world.allocator(), world.allocator("node-b")
    await other.assign(pod(99))
    for number in range(4):
        await allocator.assign(pod(number))
    assert allocator.shortage() is not None

    await allocator.refresh([b for b in world.store.blocks if b.node == "node-a"])

    assert allocator.shortage() is None


async def test_without_the_store_a_full_node_is_short_and_one_with_room_is_not():
    """Blocks of ours need no store; a further one does."""
    world = World(V4)
    allocator = world.allocator()
    for number in range(4):
        await allocator.assign(pod(number))
        assert (allocator.shortage("cannot open x.db") is None) == (number < 3)

    assert allocator.shortage("cannot open x.db") == (
        "no IPv4 address is free in this node's blocks, and no block can be claimed: "
        "cannot open x.db"
    )
