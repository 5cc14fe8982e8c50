"""Pools: the blocks they are cut into, and the order in which nodes try them."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import islice

import pytest

from cni.ipam.pool import IPPool


@pytest.mark.parametrize(
    ("cidr", "block_size", "count", "last"),
    [
        ("10.244.0.0/16", 26, 1024, "10.244.255.192/26"),
        ("10.0.0.0/26", 26, 1, "10.0.0.0/26"),
        ("10.0.0.0/30", 32, 4, "10.0.0.3/32"),
        ("fd00::/120", 122, 4, "fd00::c0/122"),
        ("fd00::/64", 122, 1 << 58, "fd00::ffff:ffff:ffff:ffc0/122"),
    ],
)
def test_a_pool_is_cut_into_blocks_in_address_order(cidr, block_size, count, last):
    """The number of blocks follows from the two lengths, and the last one ends the pool."""
    pool = IPPool("p", ip_network(cidr), block_size)

    assert pool.block_count == count
    assert pool.block_at(0).network_address == pool.cidr.network_address
    assert pool.block_at(count - 1) == ip_network(last)


def test_a_node_tries_every_block_once():
    """The walk wraps round and covers the pool, in the pool's own blocks."""
    pool = IPPool("p", IPv4Network("10.0.0.0/24"), 28)

    walk = list(pool.candidate_blocks("node-a"))

    assert sorted(walk) == list(IPv4Network("10.0.0.0/24").subnets(new_prefix=28))


def test_the_walk_is_the_same_every_time_and_other_nodes_start_elsewhere():
    """A node's first choice is stable; a hundred nodes have many first choices."""
    pool = IPPool("p", IPv4Network("10.244.0.0/16"), 26)

    first = {f"node-{i}": next(pool.candidate_blocks(f"node-{i}")) for i in range(100)}

    assert first["node-7"] == next(pool.candidate_blocks("node-7"))
    assert len(set(first.values())) > 80


def test_the_walk_of_an_endless_pool_starts_at_once():
    """A /64 has 2^58 blocks; the first ones come without making the others."""
    pool = IPPool("p", IPv6Network("fd44:10:244::/64"), 122)

    walk = list(islice(pool.candidate_blocks("node-a"), 3))

    assert len(set(walk)) == 3
    assert all(b.network_address in pool.cidr and b.prefixlen == 122 for b in walk)


def test_a_low_ipv6_block_stays_ipv6():
    """A small integer must not be read as an IPv4 address."""
    pool = IPPool("p", IPv6Network("100::/116"), 128)

    assert all(block.version == 6 for block in islice(pool.candidate_blocks("n"), 5))
