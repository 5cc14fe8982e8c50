"""The decision process, step by step (RFC 4271 section 9.1.2.2)."""

from __future__ import annotations

import itertools
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network

import pytest

from bgp.decision import best_paths
from bgp.paths import Origin, Path, Peer

PREFIX = ip_network("10.9.0.0/26")
OTHER = ip_network("10.9.1.0/26")


def peer(number: int, remote_asn: int = 65000) -> Peer:
    return Peer(
        name=f"p{number}",
        address=ip_address(f"192.0.2.{number}"),
        remote_asn=remote_asn,
        local_asn=65001,
        local_address=ip_address("192.0.2.254"),
        router_id=IPv4Address("192.0.2.254"),
    )


PEERS = {
    p.address: p for p in (*(peer(n) for n in range(1, 30)), peer(101, 65001), peer(102, 65001))
}


def path(number: int, **changes: object) -> Path:
    address = ip_address(f"192.0.2.{number}")
    plain = Path(address, PREFIX, address, (65000,), 1, Origin.IGP)
    return replace(plain, **changes)  # type: ignore[arg-type]


def winners(*paths: Path, max_paths: int = 16) -> list[int]:
    """The last octets of the best paths' peers, the same for every order of the input."""
    results = {
        tuple(int(p.peer) & 255 for p in best_paths(order, PEERS, max_paths=max_paths)[PREFIX])
        for order in itertools.permutations(paths)
    }
    assert len(results) == 1
    return list(results.pop())


def test_one_candidate_is_the_best() -> None:
    """Whatever its attributes are."""
    assert winners(path(1, med=9, origin=Origin.INCOMPLETE)) == [1]


def test_no_candidate_no_entry() -> None:
    """And a path of an unknown peer is no candidate."""
    assert best_paths([], PEERS) == {}
    assert best_paths([path(1)], {}) == {}


def test_prefixes_do_not_compete() -> None:
    """Each has its own best."""
    both = best_paths([path(1), path(2, prefix=OTHER)], PEERS)
    assert {PREFIX: (path(1),), OTHER: (path(2, prefix=OTHER),)} == both


def test_a_higher_local_preference_wins_within_our_as() -> None:
    """It comes before everything else; absent means 100."""
    long = {"as_path": (7, 8, 9), "as_path_length": 3}
    assert winners(path(101, local_pref=200, **long), path(102)) == [101]
    assert winners(path(101, local_pref=99), path(102)) == [102]
    assert winners(path(101, local_pref=100), path(102)) == [101, 102]


def test_a_path_that_is_about_to_go_loses_against_every_other() -> None:
    """RFC 8326, on receipt: LOCAL_PREF 0, whatever else speaks for it, and used when alone."""
    leaving = path(1, communities=("65000:7", "65535:0"))
    longer = path(2, as_path=(65000, 65007, 65008), as_path_length=3)
    assert winners(leaving, longer) == [2]
    assert winners(leaving) == [1]
    inside = path(101, as_path=(), as_path_length=0, local_pref=1, communities=("65535:0",))
    assert winners(inside, path(102, as_path=(), as_path_length=0, local_pref=1)) == [102]


def test_local_preference_from_another_as_is_ignored() -> None:
    """RFC 4271 section 5.1.5: such a peer must not decide for us."""
    assert winners(path(1, local_pref=500), path(2)) == [1, 2]


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"as_path_length": 1}, {"as_path_length": 2}),
        ({"origin": Origin.IGP}, {"origin": Origin.EGP}),
        ({"origin": Origin.EGP}, {"origin": Origin.INCOMPLETE}),
        ({"med": None}, {"med": 1}),
        ({"med": 10}, {"med": 20}),
        ({"as_path_length": 1, "origin": Origin.INCOMPLETE}, {"as_path_length": 2}),
        ({"origin": Origin.IGP, "med": 50}, {"origin": Origin.EGP, "med": 0}),
    ],
)
def test_each_step_decides_before_the_next(
    better: dict[str, object], worse: dict[str, object]
) -> None:
    """Shorter AS path, then lower origin, then lower MED."""
    assert winners(path(2, **better), path(1, **worse)) == [2]


def test_med_compares_only_routes_of_one_neighbouring_as() -> None:
    """Another AS's MED is measured with another ruler."""
    assert winners(path(1, med=50), path(2, med=10, as_path=(65009,))) == [1, 2]


def test_med_does_not_depend_on_the_order_of_arrival() -> None:
    """The classic: compared pair by pair, each order has another winner."""
    paths = [
        path(1, med=10, as_path=(65000,)),
        path(2, med=0, as_path=(65009,)),
        path(3, med=5, as_path=(65000,)),
    ]
    assert winners(*paths) == [2, 3]


def test_external_wins_over_internal() -> None:
    """The step before equality; a route through another AS leaves ours sooner."""
    assert winners(path(101), path(2)) == [2]


def test_what_ties_is_shared_in_order_of_peer_address() -> None:
    """Numeric order: .9 comes before .10."""
    assert winners(path(10), path(9), path(21)) == [9, 10, 21]


def test_the_limit_keeps_the_lowest_peer_addresses() -> None:
    """Deterministic, so that two nodes with the same routes choose the same."""
    many = [path(n) for n in range(29, 0, -1)]
    best = best_paths(many, PEERS)[PREFIX]
    assert [int(p.peer) & 255 for p in best] == list(range(1, 17))
    assert winners(path(3), path(1), path(2), max_paths=2) == [1, 2]
