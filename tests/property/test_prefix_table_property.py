"""PrefixTable answers as a walk over all entries would."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

from hypothesis import given
from hypothesis import strategies as st

from routing.links import LinkState, connected_link
from routing.next_hops import Resolver
from routing.prefix_table import PrefixTable
from routing.routes import Prefix

RAN = {"covering": 0, "inside": 0, "links": 0}


@st.composite
def prefixes(draw: st.DrawFn) -> Prefix:
    """Crowded into a corner of each family, so that they meet."""
    version = draw(st.sampled_from([4, 6]))
    size = 32 if version == 4 else 128
    length = draw(st.sampled_from([0, 1, size - 9, size - 8, size - 4, size - 1, size]))
    start = draw(st.integers(0, 511)) | draw(st.sampled_from([0, 1 << (size - 1)]))
    network = start >> (size - length) << (size - length)
    return ip_network(f"{ip_address(network) if version == 4 else _v6(network)}/{length}")


def _v6(number: int):
    from ipaddress import IPv6Address

    return IPv6Address(number)


@given(st.lists(prefixes(), max_size=12), prefixes())
def test_it_answers_as_a_walk_would(entries: list[Prefix], asked: Prefix) -> None:
    """What covers, longest first; what lies inside, in address order."""
    table = PrefixTable((each, str(each)) for each in entries)
    same = [each for each in set(entries) if each.version == asked.version]
    covering = sorted(
        (e for e in same if asked.subnet_of(e)),  # type: ignore[arg-type]
        key=lambda e: -e.prefixlen,
    )
    inside = sorted(
        (e for e in same if e.subnet_of(asked) and e.prefixlen > asked.prefixlen),  # type: ignore[arg-type]
        key=lambda e: (int(e.network_address), e.prefixlen),
    )
    RAN["covering"] += bool(covering)
    RAN["inside"] += bool(inside)
    assert list(table.covering(asked)) == [(e, str(e)) for e in covering]
    assert list(table.inside(asked)) == [(e, str(e)) for e in inside]
    address = asked.network_address
    assert [e for e, _ in table.covering_address(address)] == sorted(
        (e for e in same if address in e), key=lambda e: -e.prefixlen
    )


@given(st.lists(st.tuples(prefixes(), st.integers(0, 3), st.booleans()), max_size=8), prefixes())
def test_a_resolver_finds_the_link_that_a_walk_over_all_links_finds(
    nets: list[tuple[Prefix, int, bool]], asked: Prefix
) -> None:
    """Both say which link a next hop is on; one of them for thousands of next hops."""
    links: dict[str, LinkState] = {}
    for number, (prefix, host, is_up) in enumerate(nets):
        own = min(int(prefix.network_address) + host, int(prefix.broadcast_address))
        address = ip_interface(f"{type(prefix.network_address)(own)}/{prefix.prefixlen}")
        links[f"l{number}"] = LinkState(f"l{number}", number, is_up, 1500, (address,))
    next_hop = asked.network_address
    expected = connected_link(next_hop, links)
    RAN["links"] += expected is not None
    assert Resolver(links, {}).connected(next_hop) == expected


def test_enough_cases_ran() -> None:
    """A property test in which nothing ever matched proves nothing."""
    assert RAN["covering"] >= 30, RAN
    assert RAN["inside"] >= 15, RAN
    assert RAN["links"] >= 15, RAN
