"""Which pools serve an assignment, by rule and by name; and the allocator that is given names."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from cni.ipam.allocator import NoAddress
from cni.ipam.block import BlockStoreError
from cni.ipam.choice import ANY_POOL, assignable, claimable, families_of, no_pool
from cni.ipam.pool import IPPool
from routing.datastore.snapshot import IPPoolResource, Meta, NodeResource, Snapshot
from tests.fakes.allocation import V4, V6, World, pod

EDGE = IPPool("edge", ip_network("10.9.0.0/30"), 31, is_manual=True)
"""A manual pool of two blocks of two addresses."""
NAMED = (("edge",), ())


def names(pools) -> list[str]:
    return [pool.name for pool in pools]


def chosen(*pools, named=()) -> list[str]:
    return names(claimable(pools, version=4, names=named, node="n"))


# -- the rules -----------------------------------------------------------------------------


def test_unasked_a_manual_pool_gives_nothing():
    """Neither a block nor a family of its own."""
    assert chosen(EDGE, V4) == ["a-v4"]
    assert families_of([EDGE]) == []
    assert families_of([EDGE], NAMED) == [4]


def test_names_are_tried_in_the_order_given_and_each_once():
    """Not in order of name, as unasked pools are."""
    assert chosen(V4, EDGE, named=("edge", "a-v4", "edge")) == ["edge", "a-v4"]


@pytest.mark.parametrize(
    ("pool", "text"),
    [
        (None, "there is no IPPool 'edge'"),
        (replace(V6, name="edge"), "'edge' is asked for by name for IPv4, but is fd00::/120"),
        (replace(EDGE, disabled=True), "IPPool 'edge' is disabled"),
        (replace(EDGE, node_selected=False), "IPPool 'edge' does not select node n"),
    ],
)
def test_a_pool_that_cannot_be_used_is_refused_by_name(pool, text):
    """One sentence says which pool and what is the matter with it."""
    with pytest.raises(NoAddress, match=text):
        chosen(*filter(None, [V4, pool]), named=("edge",))


def test_one_list_serves_nodes_that_have_pools_of_their_own():
    """What is not for this node is passed over while another name serves; a slip never is."""
    far = replace(EDGE, name="far", node_selected=False)

    assert chosen(EDGE, far, named=("far", "edge")) == ["edge"]
    with pytest.raises(NoAddress, match="no IPPool 'edeg'"):
        chosen(EDGE, named=("edeg", "edge"))


def test_unasked_a_block_of_a_pool_that_left_us_is_still_used_but_last():
    """It is ours; a pool that is named must select the node."""
    left = replace(V4, name="a-left", node_selected=False)
    ours = replace(V4, name="b")

    assert names(assignable([left, ours], version=4, names=(), node="n")) == ["b", "a-left"]
    with pytest.raises(NoAddress, match="does not select"):
        assignable([left], version=4, names=("a-left",), node="n")


def test_the_sentence_of_a_node_without_pools_tells_of_those_that_must_be_named():
    """An operator who made only manual pools reads why nothing comes of them."""
    assert no_pool([], node="n") == "no IPPool is enabled for node n"
    assert "edge only for pods that name it" in no_pool([EDGE], node="n")


def test_a_pool_that_selects_namespaces_must_be_named():
    """The allocator does not know a pod's namespace; it must not give what may be another's."""
    resource = IPPoolResource(Meta("p"), ip_network("10.0.0.0/24"), 26)
    snapshot = Snapshot(
        pools=(
            replace(resource, meta=Meta("all")),
            replace(resource, meta=Meta("manual"), is_manual=True),
            replace(resource, meta=Meta("some"), namespace_selector="team == 'a'"),
        ),
        nodes=(NodeResource(Meta("n")),),
    )

    assert {p.name: p.is_manual for p in snapshot.pools_for("n")} == {
        "all": False,
        "manual": True,
        "some": True,
    }


# -- the allocator -------------------------------------------------------------------------


async def test_a_named_pool_gives_the_address_and_the_other_family_is_unasked():
    """IPv4 from the pool named, IPv6 from any."""
    world = World(V4, V6, EDGE)

    v4, v6 = await world.allocator().assign(pod(1), (), NAMED)

    assert v4 in EDGE.cidr
    assert v6 in V6.cidr


async def test_a_pod_that_names_nothing_never_gets_an_address_of_a_manual_pool():
    """Not even where this node has a block of it with room, and the others are full."""
    world = World(replace(V4, cidr=ip_network("10.0.0.0/30")), EDGE)
    allocator = world.allocator()
    await allocator.assign(pod(0), (), NAMED)
    for number in range(1, 5):
        await allocator.assign(pod(number))

    with pytest.raises(NoAddress, match=r"every block of its pools \(a-v4\) is taken"):
        await allocator.assign(pod(5))


async def test_blocks_we_own_come_before_blocks_to_be_claimed():
    """In the order of naming in each; so the store is not needed while any of them has room."""
    world = World(V4, EDGE)
    allocator = world.allocator()
    await allocator.assign(pod(1))
    world.store.fail_next("*", times=9)

    (address,) = await allocator.assign(pod(2), (), (("edge", "a-v4"), ()))

    assert address in V4.cidr


async def test_the_next_pool_serves_when_the_first_is_exhausted():
    """Four addresses of the one, then the other."""
    world = World(V4, EDGE)
    allocator = world.allocator()
    asked = (("edge", "a-v4"), ())

    given = [(await allocator.assign(pod(n), (), asked))[0] for n in range(5)]

    assert [address in EDGE.cidr for address in given] == [True] * 4 + [False]


async def test_an_attachment_that_has_its_address_keeps_it_whatever_is_named_now():
    """An annotation that is edited moves no pod."""
    world = World(V4, EDGE)
    allocator = world.allocator()

    first = await allocator.assign(pod(1), (), NAMED)

    assert await allocator.assign(pod(1)) == first
    assert await allocator.assign(pod(1), (), (("no-such",), ())) == first


async def test_an_address_of_a_manual_pool_may_be_requested():
    """Naming an address names its pool."""
    world = World(EDGE)
    wanted = ip_address("10.9.0.2")

    assert await world.allocator().assign(pod(1), (wanted,)) == (wanted,)


async def test_pods_that_name_a_pool_at_once_share_its_blocks():
    """Four pods, two blocks: no block is claimed for nothing."""
    world = World(V4, EDGE)
    allocator = world.allocator()
    world.store.slow_next("create_block", 5)

    given = await asyncio.gather(*(allocator.assign(pod(n), (), NAMED) for n in range(4)))

    assert len({address for (address,) in given}) == 4
    assert world.store.calls["create_block"] == 2


async def test_a_refusal_by_name_holds_nothing():
    """All families or none."""
    world = World(V4, V6)
    allocator = world.allocator()

    with pytest.raises(NoAddress):
        await allocator.assign(pod(1), (), ((), ("nowhere",)))

    assert allocator.addresses(pod(1)) == ()
    assert allocator.attachments() == []


async def test_an_empty_block_of_a_manual_pool_goes_back_to_the_last():
    """Others need it: the pool is small, and this node may never name it again."""
    world = World(V4, EDGE, cooldown_s=0)
    allocator = world.allocator()
    await allocator.assign(pod(1), (), NAMED)
    allocator.release(pod(1))

    for _ in range(3):
        await allocator.release_empty_blocks()

    assert [b.pool for b in world.store.blocks] == []


async def test_status_counts_pools_that_must_be_named_where_there_are_no_others():
    """A cluster whose pools all select namespaces is not a broken one."""
    world = World(EDGE)
    allocator = world.allocator()

    assert allocator.shortage() is None
    with pytest.raises(NoAddress, match="without being named"):
        await allocator.assign(pod(1))

    world.pools = [replace(EDGE, disabled=True)]
    assert allocator.shortage() == "no IPPool is enabled for node node-a"


async def test_an_exhausted_pool_is_told_where_somebody_asked_and_until_it_gives_again():
    """A pool that other nodes have shared out is no trouble of a node that wants nothing of it."""
    world = World(V4, EDGE)
    allocator, other = world.allocator(), world.allocator("node-b")
    for number in range(4):
        await other.assign(pod(number), (), NAMED)
    await allocator.refresh(world.store.blocks)
    assert allocator.exhausted_pools() == {}

    with pytest.raises(NoAddress):
        await allocator.assign(pod(9), (), NAMED)
    assert list(allocator.exhausted_pools()) == ["edge"]
    assert "(edge) is taken" in allocator.exhausted_pools()["edge"]

    await allocator.refresh(world.store.blocks[:1])
    assert allocator.exhausted_pools() == {}


async def test_a_pool_that_is_gone_is_not_told_of_any_more():
    """Its name may be another pool's tomorrow."""
    world = World(V4, EDGE)
    allocator = world.allocator()
    for number in range(4):
        await allocator.assign(pod(number), (), NAMED)
    with pytest.raises(NoAddress):
        await allocator.assign(pod(9), (), NAMED)

    world.pools = [V4]

    assert allocator.exhausted_pools() == {}


async def test_the_store_s_failure_is_no_refusal_by_name():
    """Whoever asks again may get it."""
    world = World(V4, EDGE)
    world.store.fail_next("list_blocks")

    with pytest.raises(BlockStoreError):
        await world.allocator().assign(pod(1), (), NAMED)


async def test_no_names_is_any_pool():
    """The default of assign."""
    world = World(V4)

    assert await world.allocator().assign(pod(1), (), ANY_POOL)
