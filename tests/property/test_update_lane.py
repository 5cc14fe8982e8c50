"""The short way for UPDATEs comes to what a whole pass comes to, whatever peers say when."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from bgp.adj_rib import AdjRibIn, offers_of
from bgp.paths import Path, Update
from cni.ipam.block import Block, BlockState
from routing.datastore.snapshot import BGPPeerResource, LimitAction, Meta
from routing.desired import Desired, Inputs, desired
from routing.update_lane import merge, relearn
from tests.unit.test_desired import TOR, TOR2, inputs, path, snapshot

PREFIXES = (
    "10.244.2.0/26", "10.244.3.0/26", "10.244.1.64/26", "10.244.1.65/32", "0.0.0.0/0",
    "198.51.100.0/24", "10.244.4.0/24", "fd44::/122",
)  # fmt: skip
SNAPSHOT = snapshot(
    peers=(BGPPeerResource(Meta("tor"), TOR, 64512), BGPPeerResource(Meta("tor2"), TOR2, 64512)),
    blocks=(
        Block(ip_network("10.244.1.64/26"), "v4", "n1", BlockState.CONFIRMED),
        Block(ip_network("10.244.3.0/26"), "v4", "n3", BlockState.CONFIRMED),
    ),
)

hops = {TOR: "172.30.0.0", TOR2: "172.30.1.0"}
said = st.builds(
    lambda prefix, peer, asns, far: replace(
        path(prefix, peer=peer, next_hop="203.0.113.9" if far else hops[peer], as_path=asns),
        med=None,
    ),
    st.sampled_from([each for each in PREFIXES if ":" not in each]),
    st.sampled_from([TOR, TOR2]),
    st.sampled_from([(64512, 64602), (64512, 64603), (64512,), (64512, 64601), (64512, 1, 2)]),
    st.sampled_from([False] * 9 + [True]),
)
updates = st.builds(
    lambda announced, gone: [
        *(Update(each.peer, (each,)) for each in announced),
        *(Update(peer, withdrawn=(ip_network(prefix),)) for prefix, peer in gone),
    ],
    st.lists(said, max_size=5),
    st.lists(st.tuples(st.sampled_from(PREFIXES[:6]), st.sampled_from([TOR, TOR2])), max_size=3),
)
TAKEN = {"short": 0, "whole": 0}


def by_key(paths: Iterable[object]) -> set[str]:
    return {repr(each) for each in paths}


def beside_whole_passes(
    base: Inputs, rib: AdjRibIn, batches: Iterable[list[Update]]
) -> Iterator[tuple[Desired, Desired, bool]]:
    """After each batch: the tables kept the short way, those of a whole pass, and whether it was
    short at all; where it declined, the first are the second."""
    rib.take_changes()
    last = desired(replace(base, offers=rib.offers()))
    for batch in batches:
        for update in batch:
            rib.apply(update)
        changed = rib.take_changes()
        assert changed is not None
        news = relearn(last, changed, rib.counts())
        truth = desired(replace(base, offers=rib.offers()))
        if news is None:
            last = truth
        else:
            merge(last, news)
        yield last, truth, news is not None


def assert_same(last: Desired, truth: Desired) -> None:
    """Routes, best paths, and what is refused in any order."""
    assert last.routes == truth.routes
    assert last.best == truth.best
    assert by_key(last.rejected) == by_key(truth.rejected)


@settings(max_examples=200)
@given(st.lists(updates, min_size=1, max_size=5))
def test_the_short_way_comes_to_the_same_tables(rounds):
    """Routes, kinds, best paths and refusals; or it declines, and says so."""
    rib = AdjRibIn()
    base = inputs(snapshot=SNAPSHOT, pod_addresses={"s32a": (ip_address("10.244.1.65"),)})

    for last, truth, is_short in beside_whole_passes(base, rib, rounds):
        TAKEN["short" if is_short else "whole"] += 1
        assert_same(last, truth)
        assert last.kinds == truth.kinds
        assert last.conflicts == truth.conflicts


@settings(max_examples=150)
@given(st.lists(said, min_size=4, max_size=8), st.lists(updates, min_size=1, max_size=5))
def test_the_short_way_comes_to_the_same_tables_beside_a_limit(first, rounds):
    """A router beyond its limit, with attributes of each kind; it and another go on changing."""
    limited = BGPPeerResource(
        Meta("tor"), TOR, 64512, max_prefixes=2, limit_action=LimitAction.STOP_INSTALLING
    )
    other = BGPPeerResource(Meta("tor2"), TOR2, 64512, max_prefixes=4)
    rib = AdjRibIn()
    base = inputs(snapshot=replace(SNAPSHOT, peers=(limited, other)))
    for each in first:
        rib.apply(Update(each.peer, (each,)))

    one_by_one = [[update] for batch in rounds for update in batch]
    for last, truth, is_short in beside_whole_passes(base, rib, one_by_one):
        is_held = rib.counts().get(TOR, 0) > 2
        BESIDE["held" if is_held else "free"] += is_short
        assert_same(last, truth)


BESIDE = {"held": 0, "free": 0}


def test_the_short_way_was_taken_often():
    """Else the tests above have compared nothing."""
    assert TAKEN["short"] > 100, TAKEN
    assert BESIDE["held"] > 50, BESIDE


def test_beside_a_limit_only_what_changes_who_is_used_is_declined():
    """Attributes of one beyond it, and all that another says, are not; one prefix more is."""
    limited = BGPPeerResource(
        Meta("tor"), TOR, 64512, max_prefixes=2, limit_action=LimitAction.STOP_INSTALLING
    )
    other = BGPPeerResource(Meta("tor2"), TOR2, 64512)
    many = [path(f"10.244.{number}.0/26") for number in range(2, 7)]
    last = desired(inputs(snapshot=snapshot(peers=(limited, other)), paths=many))
    assert len(last.rejected) == 3
    sent = {TOR: 5, TOR2: 1}
    theirs = path("10.244.6.0/26", peer=TOR2, next_hop="172.30.1.0")
    news = relearn(last, offers_of([many[4], theirs]), sent)
    assert news is not None
    merge(last, news)
    assert {each.next_hop for each in last.best[theirs.prefix]} == {theirs.next_hop}
    assert len(last.rejected) == 3, "what is beyond stays beyond"
    assert relearn(last, offers_of([replace(many[0], med=7)]), sent) is not None
    assert relearn(last, offers_of([path("10.244.9.0/26")]), {TOR: 6}) is None
    assert relearn(last, offers_of([replace(many[4], as_path=(64512, 64601))]), sent) is None


def test_what_may_change_other_prefixes_is_declined():
    """A next hop off our links; a limit on a session; a table that was dropped."""
    rib = AdjRibIn()
    assert rib.take_changes() is None, "at first anything may have changed"
    multihop = BGPPeerResource(Meta("tor"), TOR, 64512, multihop_ttl=3)
    far = path("10.244.2.0/26", next_hop="203.0.113.9")
    near: Path = path("10.244.2.0/26")
    last = desired(inputs(snapshot=snapshot(peers=(multihop,))))
    assert relearn(last, offers_of([far]), {TOR: 1}) is None
    assert relearn(last, offers_of([near]), {TOR: 1}) is not None
    limited = BGPPeerResource(Meta("tor"), TOR, 64512, max_prefixes=5)
    last = desired(inputs(snapshot=snapshot(peers=(limited,))))
    assert relearn(last, offers_of([near]), {TOR: 5}) is None
    assert relearn(last, offers_of([near]), {TOR: 1}) is not None
    rib.apply(Update(TOR, (near,)))
    rib.take_changes()
    rib.drop(TOR)
    assert rib.take_changes() is None
    assert rib.take_lost_next_hops() == {near.next_hop}
    assert rib.take_lost_next_hops() == frozenset()


def test_a_next_hop_that_another_peer_still_names_is_not_lost():
    """A reflector and the router itself may both name it."""
    rib = AdjRibIn()
    rib.apply(Update(TOR, (path("10.244.2.0/26"),)))
    rib.apply(Update(TOR2, (path("10.244.3.0/26", peer=TOR2, next_hop=str(TOR)),)))
    rib.drop(TOR)
    assert rib.take_lost_next_hops() == frozenset()
