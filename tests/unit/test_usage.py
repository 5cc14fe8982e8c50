"""BlockUsage: longest unused first, cool-down before reuse."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from cni.attachment import Attachment
from cni.ipam.usage import AddressInUse, BlockUsage, NotInBlock


def pod(number: int) -> Attachment:
    return Attachment("net", f"container{number}", "eth0")


def addresses(*texts: str):
    return [ip_address(text) for text in texts]


def test_every_address_of_a_block_is_given_out_in_order():
    """The first and the last too: a /32 has no network or broadcast address."""
    usage = BlockUsage(ip_network("10.0.0.0/30"), cooldown_s=30)

    given = [usage.assign(pod(i), now_s=0) for i in range(5)]

    assert given == [*addresses("10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3"), None]
    assert usage.free(0) == 0
    assert usage.next_free_s(0) is None


def test_a_released_address_goes_to_the_tail_and_rests():
    """Fresh addresses first; then the one released first, not before its cool-down is over."""
    usage = BlockUsage(ip_network("10.0.0.0/30"), cooldown_s=30)
    for number in range(3):
        usage.assign(pod(number), now_s=0)
    usage.release(ip_address("10.0.0.2"), now_s=1)
    usage.release(ip_address("10.0.0.0"), now_s=2)

    assert usage.assign(pod(3), now_s=3) == ip_address("10.0.0.3")
    assert usage.assign(pod(4), now_s=3) is None
    assert (usage.cooling(3), usage.free(3), usage.next_free_s(3)) == (2, 0, 28)
    assert usage.assign(pod(4), now_s=30.999) is None
    assert usage.assign(pod(4), now_s=31) == ip_address("10.0.0.2")
    assert usage.assign(pod(5), now_s=31) is None
    assert usage.assign(pod(5), now_s=32) == ip_address("10.0.0.0")


def reused_at_once(cooldown_s: float) -> bool:
    """Whether an address released a moment ago goes to the next pod."""
    usage = BlockUsage(ip_network("10.0.0.0/32"), cooldown_s=cooldown_s)
    first = usage.assign(pod(1), now_s=0)
    usage.release(ip_address("10.0.0.0"), now_s=1)
    return usage.assign(pod(2), now_s=1.001) == first


def test_control_without_a_cool_down_an_address_is_given_out_again_at_once():
    """What the cool-down keeps from happening must happen without it."""
    assert reused_at_once(cooldown_s=0)
    assert not reused_at_once(cooldown_s=30)


def test_an_adopted_address_is_not_given_out_and_loses_its_rest():
    """What the kernel says is in use is in use, whatever was believed."""
    usage = BlockUsage(ip_network("10.0.0.0/31"), cooldown_s=30)
    usage.assign(pod(0), now_s=0)
    usage.release(ip_address("10.0.0.0"), now_s=0)

    usage.adopt(ip_address("10.0.0.0"), pod(1))

    assert usage.cooling(0) == 0
    assert usage.assign(pod(2), now_s=0) == ip_address("10.0.0.1")
    assert usage.assign(pod(3), now_s=100) is None


def test_adopting_twice_is_refused_only_for_another_attachment():
    """The same attachment may come again; a second holder may not."""
    usage = BlockUsage(ip_network("10.0.0.0/30"), cooldown_s=30)
    usage.adopt(ip_address("10.0.0.1"), pod(1))

    usage.adopt(ip_address("10.0.0.1"), pod(1))
    with pytest.raises(AddressInUse, match=r"10\.0\.0\.1 is held by net/container1/eth0"):
        usage.adopt(ip_address("10.0.0.1"), pod(2))


@pytest.mark.parametrize("outside", ["10.0.1.0", "::1"])
def test_a_foreign_address_is_refused(outside):
    """An address of another block, or family, is a mistake of the caller's."""
    usage = BlockUsage(ip_network("10.0.0.0/24"), cooldown_s=30)

    with pytest.raises(NotInBlock, match="is not in block"):
        usage.adopt(ip_address(outside), pod(1))
    with pytest.raises(NotInBlock):
        usage.rest(ip_address(outside), 0)


def test_rests_noted_out_of_order_are_sorted_by_time():
    """What an earlier agent released keeps its place in the queue."""
    usage = BlockUsage(ip_network("10.0.0.0/31"), cooldown_s=10)
    usage.rest(ip_address("10.0.0.0"), released_s=-2)
    usage.rest(ip_address("10.0.0.1"), released_s=-7)

    assert usage.assign(pod(1), now_s=3) == ip_address("10.0.0.1")
    assert usage.next_free_s(3) == 5


def test_a_rest_of_an_address_in_use_changes_nothing():
    """A stale note must not make a live pod's address free."""
    usage = BlockUsage(ip_network("10.0.0.0/32"), cooldown_s=0)
    usage.adopt(ip_address("10.0.0.0"), pod(1))

    usage.rest(ip_address("10.0.0.0"), released_s=-100)

    assert usage.assign(pod(2), now_s=0) is None


def test_releasing_what_is_not_in_use_says_so():
    """A second release must not move the address to the tail again."""
    usage = BlockUsage(ip_network("10.0.0.0/32"), cooldown_s=5)
    usage.assign(pod(1), now_s=0)

    assert usage.release(ip_address("10.0.0.0"), now_s=1)
    assert not usage.release(ip_address("10.0.0.0"), now_s=4)
    assert usage.next_free_s(4) == 2


def test_ipv6_blocks_work_the_same_at_the_bottom_of_the_number_space():
    """ip_address(small int) would be IPv4; blocks never make addresses that way."""
    usage = BlockUsage(ip_network("::100/127"), cooldown_s=0)

    assert usage.assign(pod(1), now_s=0) == ip_address("::100")
    assert usage.assign(pod(2), now_s=0) == ip_address("::101")
