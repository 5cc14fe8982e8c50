"""Adj-RIB-In: one table per peer, folded from updates."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from weakref import ref

from bgp import adj_rib
from bgp.adj_rib import TABLE_FULL, AdjRibIn, AttributeSets
from bgp.paths import Family, Path, Rejection, Update

ONE, TWO = ip_address("192.0.2.1"), ip_address("192.0.2.2")
A, B, C = (ip_network(f"10.9.{n}.0/26") for n in range(3))
SIX = ip_network("2001:db8:9::/64")


def path(peer: object, prefix: object, med: int | None = None) -> Path:
    return Path(peer=peer, prefix=prefix, next_hop=peer, med=med)  # type: ignore[arg-type]


def test_the_offers_of_one_peer_are_those_of_a_copy_and_no_copy() -> None:
    """In whichever way they are looked at; and equal things are one object."""
    rib = AdjRibIn()
    assert dict(rib.offers()) == {}
    rib.apply(Update(ONE, (path(ONE, A), path(ONE, B))))
    rib.apply(Update(TWO, (path(TWO, C),)))
    two = {nlri: said for nlri, said in rib.offers().items() if said[0].peer == ONE}
    rib.drop(TWO)
    one = rib.offers()
    assert {**one} == dict(one.items()) == two
    assert list(one.values()) == [one[nlri] for nlri in one]
    assert len({id(said) for said in one.values()}) == 1
    assert (len(one), b"none" in one, one.get(b"none")) == (2, False, None)
    assert (len(one.items()), len(one.values())) == (2, 2)
    rib.apply(Update(ONE, withdrawn=(A,)))
    assert len(one) == 1, "it is the table itself"


def test_a_withdrawal_removes_only_that_peers_path() -> None:
    """The key is (peer, prefix); the other peer's path stays."""
    rib = AdjRibIn()
    rib.apply(Update(ONE, (path(ONE, A),)))
    rib.apply(Update(TWO, (path(TWO, A),)))
    assert rib.apply(Update(ONE, withdrawn=(A,))) == (True, ())
    assert rib.paths() == {(TWO, A): path(TWO, A)}


def test_announcing_again_replaces() -> None:
    """BGP's implicit withdraw."""
    rib = AdjRibIn()
    rib.apply(Update(ONE, (path(ONE, A),)))
    assert rib.apply(Update(ONE, (path(ONE, A, med=5),)))[0]
    assert rib.paths() == {(ONE, A): path(ONE, A, med=5)}


def test_the_same_again_is_no_change() -> None:
    """A route refresh must not wake the loop for nothing."""
    rib = AdjRibIn()
    rib.apply(Update(ONE, (path(ONE, A),)))
    assert rib.apply(Update(ONE, (path(ONE, A),))) == (False, ())
    assert rib.apply(Update(ONE, withdrawn=(B,))) == (False, ())


def test_a_prefix_both_withdrawn_and_announced_is_announced() -> None:
    """RFC 4271 section 4.3."""
    rib = AdjRibIn()
    rib.apply(Update(ONE, (path(ONE, A),), withdrawn=(A,)))
    assert rib.paths() == {(ONE, A): path(ONE, A)}


def test_a_rejected_route_takes_what_it_replaces_with_it() -> None:
    """The peer does not use the old path any more, and the new one is unusable."""
    rib = AdjRibIn()
    rib.apply(Update(ONE, (path(ONE, A), path(ONE, B))))
    rejection = Rejection(A, "next-hop-loopback")
    assert rib.apply(Update(ONE, rejected=(rejection,))) == (True, (rejection,))
    assert set(rib.paths()) == {(ONE, B)}


def test_a_full_table_rejects_what_is_new_and_keeps_what_it_has() -> None:
    """A flood of prefixes cannot push out the good ones, which can still change and go."""
    rib = AdjRibIn(max_paths_per_peer=2)
    rib.apply(Update(ONE, (path(ONE, A), path(ONE, B))))
    changed, rejections = rib.apply(Update(ONE, (path(ONE, C), path(ONE, A, med=7))))
    assert changed
    assert rejections == (Rejection(C, TABLE_FULL),)
    assert rib.table(ONE) == {A: path(ONE, A, med=7), B: path(ONE, B)}
    rib.apply(Update(TWO, (path(TWO, C),)))
    assert rib.count(TWO) == 1


def test_stale_paths_are_believed_until_the_sweep() -> None:
    """What was announced again stays; the rest goes, one family at a time."""
    rib = AdjRibIn()
    rib.apply(Update(ONE, (path(ONE, A), path(ONE, B), path(ONE, SIX))))
    rib.apply(Update(TWO, (path(TWO, A),)))
    rib.mark_stale(ONE)
    assert len(rib.paths()) == 4
    rib.apply(Update(ONE, (path(ONE, A),)))
    assert rib.stale(ONE) == {B, SIX}
    assert rib.sweep(ONE, Family.IPV4)
    assert set(rib.table(ONE)) == {A, SIX}
    assert rib.sweep(ONE)
    assert not rib.sweep(ONE)
    assert set(rib.paths()) == {(ONE, A), (TWO, A)}


def test_a_stale_path_that_is_withdrawn_is_gone() -> None:
    """It does not come back and is not swept twice."""
    rib = AdjRibIn()
    rib.apply(Update(ONE, (path(ONE, A),)))
    rib.mark_stale(ONE)
    rib.apply(Update(ONE, withdrawn=(A,)))
    assert rib.stale(ONE) == frozenset()
    assert not rib.sweep(ONE)


def test_replace_and_drop_are_of_one_peer() -> None:
    """A read-back replaces one table, a lost session drops one."""
    rib = AdjRibIn()
    rib.apply(Update(ONE, (path(ONE, A), path(ONE, B))))
    rib.apply(Update(TWO, (path(TWO, A),)))
    assert rib.replace(ONE, [path(ONE, B)])
    assert not rib.replace(ONE, [path(ONE, B)])
    assert rib.drop(TWO)
    assert not rib.drop(TWO)
    assert rib.paths() == {(ONE, B): path(ONE, B)}


def test_attributes_are_one_object_for_all_that_is_alike_and_forgotten_with_the_last() -> None:
    """The first of a kin stands for it and has no object besides itself."""
    sets = AttributeSets()
    first = sets.of(path(ONE, A, med=1))
    assert first is sets.of(path(ONE, B, med=1)) is first.kin
    other = replace(path(ONE, A, med=1), as_path=(65001, 4_200_000_000))
    member = sets.of(other)
    assert member is sets.of(other) is not first
    assert (member.kin, member.as_path) == (first, (65001, 4_200_000_000))
    assert member.path(A) == other
    assert sets.of(path(ONE, A, med=2)).kin is not first
    gone = ref(first)
    del first
    assert gone() is sets.of(path(ONE, C, med=1)), "its kin is still held"
    del member
    assert gone() is None


def test_attributes_whose_values_have_the_same_hash_are_told_apart(monkeypatch) -> None:
    """And each stays one object, whichever of them is forgotten first."""

    class Same(tuple[object, ...]):
        def __hash__(self) -> int:
            return 7

    content = adj_rib._content
    monkeypatch.setattr(adj_rib, "_content", lambda *of: Same(content(*of)))
    sets = AttributeSets()
    one, two = sets.of(path(ONE, A, med=1)), sets.of(path(ONE, A, med=2))
    assert (one.med, two.med) == (1, 2)
    assert sets.of(path(ONE, B, med=2)) is two
    del one
    assert sets.of(path(ONE, B, med=2)) is two
    three = sets.of(path(ONE, A, med=3))
    assert three.med == 3
    assert sets.of(path(ONE, B, med=2)) is two
