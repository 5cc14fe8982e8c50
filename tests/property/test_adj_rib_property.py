"""Adj-RIB-In against replay, and the decision process against the order of its input."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from bgp.adj_rib import AdjRibIn
from bgp.decision import best_paths
from bgp.paths import Address, Family, Origin, Path, Peer, Prefix, Rejection, Update
from tests.property import hunted

CASES = 200
FLOOR = 150
PROFILE = hunted.cases(CASES)

PEERS = [ip_address(f"192.0.2.{n}") for n in (1, 2, 9, 10)]
PREFIXES = [ip_network(p) for p in ("0.0.0.0/0", "10.9.0.0/26", "10.9.1.0/26", "2001:db8::/64")]

prefixes = st.sampled_from(PREFIXES)
paths = st.builds(
    Path,
    peer=st.sampled_from(PEERS),
    prefix=prefixes,
    next_hop=st.sampled_from(PEERS),
    as_path=st.lists(st.sampled_from([65000, 65009]), max_size=2).map(tuple),
    as_path_length=st.integers(0, 2),
    origin=st.sampled_from(Origin),
    med=st.none() | st.integers(0, 2),
    local_pref=st.none() | st.integers(99, 101),
)


@st.composite
def updates(draw: st.DrawFn) -> Update:
    peer = draw(st.sampled_from(PEERS))
    announced = draw(st.lists(paths, max_size=3, unique_by=lambda p: p.prefix))
    return Update(
        peer,
        tuple(replace(path, peer=peer) for path in announced),
        tuple(draw(st.lists(prefixes, max_size=2))),
        tuple(Rejection(p, "x") for p in draw(st.lists(prefixes, max_size=1))),
    )


steps = st.one_of(
    updates(),
    st.tuples(st.just("stale"), st.sampled_from(PEERS)),
    st.tuples(st.just("sweep"), st.sampled_from(PEERS), st.none() | st.sampled_from(Family)),
    st.tuples(st.just("drop"), st.sampled_from(PEERS)),
)


class Naive:
    """The same tables as one flat list of facts, with nothing clever in it."""

    def __init__(self) -> None:
        self.facts: dict[tuple[Address, Prefix], tuple[Path, bool]] = {}

    def step(self, step: object) -> None:
        if isinstance(step, Update):
            for prefix in (*step.withdrawn, *(r.prefix for r in step.rejected)):
                if prefix is not None:
                    self.facts.pop((step.peer, prefix), None)
            for path in step.announced:
                self.facts[step.peer, path.prefix] = path, False
            return
        assert isinstance(step, tuple)
        what, peer = step[0], step[1]
        for (owner, prefix), (path, is_stale) in list(self.facts.items()):
            if owner != peer:
                continue
            if what == "stale":
                self.facts[owner, prefix] = path, True
            elif what == "drop" or (is_stale and step[2] in (None, Family.of(prefix))):
                del self.facts[owner, prefix]


def test_the_table_equals_a_naive_replay_of_everything() -> None:
    """After any sequence of updates, stale marks, sweeps and drops, at every step."""
    cases = 0

    @PROFILE
    @given(st.lists(steps, max_size=25))
    def run(sequence: list[object]) -> None:
        nonlocal cases
        cases += 1
        rib, naive = AdjRibIn(), Naive()
        for step in sequence:
            before = dict(rib.paths())
            if isinstance(step, Update):
                changed, rejections = rib.apply(step)
                assert changed == (dict(rib.paths()) != before)
                assert rejections == step.rejected
            else:
                assert isinstance(step, tuple)
                if step[0] == "stale":
                    rib.mark_stale(step[1])
                elif step[0] == "sweep":
                    rib.sweep(step[1], step[2])
                else:
                    rib.drop(step[1])
            naive.step(step)
            assert rib.paths() == {key: path for key, (path, _) in naive.facts.items()}
            for peer in PEERS:
                expected = {
                    p for (owner, p), (_, stale) in naive.facts.items() if stale and owner == peer
                }
                assert rib.stale(peer) == expected
                assert rib.count(peer) == sum(owner == peer for owner, _ in naive.facts)

    run()
    assert cases >= FLOOR


def peer_table() -> dict[Address, Peer]:
    """Two external and two internal sessions."""
    return {
        address: Peer(
            name=str(address),
            address=address,
            remote_asn=65000 if index < 2 else 65001,
            local_asn=65001,
            local_address=ip_address("192.0.2.254"),
            router_id=IPv4Address("192.0.2.254"),
        )
        for index, address in enumerate(PEERS)
    }


def test_the_best_paths_do_not_depend_on_the_order_of_the_candidates() -> None:
    """Nor on how often they are computed; MED is where this usually goes wrong."""
    cases = 0
    contested = 0

    @PROFILE
    @given(
        st.lists(paths, max_size=12, unique_by=lambda p: (p.peer, p.prefix)), st.integers(0, 10**6)
    )
    def run(candidates: list[Path], seed: int) -> None:
        nonlocal cases, contested
        cases += 1
        peers = peer_table()
        best = best_paths(candidates, peers)
        shuffled = list(candidates)
        random.Random(seed).shuffle(shuffled)
        assert best_paths(shuffled, peers) == best
        assert set(best) == {path.prefix for path in candidates}
        for prefix, chosen in best.items():
            contested += sum(path.prefix == prefix for path in candidates) > 1
            assert chosen
            assert set(chosen) <= set(candidates)
            # The losers are no use: without them the answer is the same.
            assert best_paths(chosen, peers)[prefix] == chosen

    run()
    assert cases >= FLOOR
    assert contested >= FLOOR
