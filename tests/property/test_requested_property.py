"""The address book under wishes: what STATUS foretells ADD finds, and no rule is ever broken."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from cni.attachment import Address, Attachment
from cni.ipam.allocator import NoAddress
from cni.ipam.pool import IPPool
from cni.ipam.requested import AddressRefused
from tests.fakes.allocation import World, pod

RAN = {"foretold": 0, "short": 0, "granted": 0, "refused": 0}
FLOOR = {"foretold": 300, "short": 60, "granted": 250, "refused": 250}

V4 = IPPool("four", ip_network("10.0.0.0/29"), 31)
V6 = IPPool("six", ip_network("fd00::/125"), 127)
EVERY = [*map(ip_address, V4.cidr), *map(ip_address, V6.cidr), ip_address("192.0.2.1")]

nodes = st.sampled_from(["node-a", "node-a", "node-b"])
wishes = st.lists(st.sampled_from(EVERY), max_size=2, unique_by=lambda address: address.version)
steps = st.lists(
    st.tuples(
        nodes,
        st.sampled_from(["assign", "assign", "release", "wait"]),
        st.integers(0, 6),
        wishes,
    ),
    min_size=4,
    max_size=25,
)
flags = st.booleans()


@settings(max_examples=300)
@given(steps=steps, four_off=flags, six_off=flags)
def test_status_foretells_add_and_every_address_obeys_the_rules(steps, four_off, six_off):
    """After each step: shortage() is None exactly when an assign without wishes succeeds."""
    asyncio.run(play(steps, replace(V4, disabled=four_off), replace(V6, disabled=six_off)))


async def play(steps, *pools: IPPool) -> None:
    """One history of two nodes."""
    world = World(*pools, cooldown_s=10)
    allocators = {name: world.allocator(name) for name in ("node-a", "node-b")}
    released: dict[Address, tuple[float, Attachment]] = {}
    for name, what, number, wanted in steps:
        allocator, attachment = allocators[name], pod(number + 10 * (name == "node-b"))
        if what == "wait":
            world.clock.now_s += 4
        elif what == "release":
            for address in allocator.release(attachment):
                released[address] = (world.clock.now_s, attachment)
        else:
            await ask(world, allocators, name, attachment, tuple(wanted), released)
        await foretell(world, allocators["node-a"])


async def ask(world, allocators, name, attachment, wanted, released) -> None:
    """An assign; what came of it is judged from outside."""
    allocator = allocators[name]
    before = allocator.addresses(attachment)
    others = [each for each in allocators.values() for _ in each.attachments()]
    taken = {a for each in others for holder in each.attachments() for a in each.addresses(holder)}
    try:
        given_now = await allocator.assign(attachment, wanted)
    except (AddressRefused, NoAddress):
        RAN["refused"] += 1
        assert allocator.addresses(attachment) == before
        return
    RAN["granted"] += 1
    enabled = sorted(p.version for p in world.pools if not p.disabled)
    assert set(wanted) <= set(given_now)
    if before:
        assert given_now == before
        return
    assert [each.version for each in given_now] == enabled
    assert not taken & set(given_now)
    for address in given_now:
        (block,) = [each for each in world.store.blocks if holds(each.cidr, address)]
        assert block.node == name
        at_s, by = released.get(address, (-100.0, None))
        assert world.clock.now_s >= at_s + world.cooldown_s or (by == attachment and wanted)


def holds(cidr, address) -> bool:
    """Whether the address is in the network, whatever their families."""
    return cidr.version == address.version and address in cidr


async def foretell(world, allocator) -> None:
    """What STATUS would say, and what an ADD then finds."""
    await allocator.refresh(world.store.blocks)
    shortage = allocator.shortage()
    RAN["foretold"] += 1
    probe = pod(99)
    try:
        await allocator.assign(probe)
    except NoAddress:
        RAN["short"] += 1
        assert shortage is not None
        return
    assert shortage is None
    # Given back as if it had never been: the probe must not use the node up.
    fresh = world.clock.now_s
    world.clock.now_s = fresh - world.cooldown_s
    allocator.release(probe)
    world.clock.now_s = fresh


def test_enough_cases_ran():
    """A property test that ran nothing proves nothing."""
    assert all(RAN[kind] >= floor for kind, floor in FLOOR.items()), RAN
