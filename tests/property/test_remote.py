"""One decision for all prefixes of a kind is the decision for each of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from bgp.adj_rib import Offers, offers_of
from bgp.nlri import prefix_of
from bgp.paths import Path
from cni.ipam.block import Block, BlockState
from routing.datastore.snapshot import (
    BGPConfigurationResource,
    BGPFilterResource,
    BGPPeerResource,
    FilterAction,
    FilterRule,
    IPPoolResource,
    LimitAction,
    MatchOperator,
    Meta,
    NodeResource,
)
from routing.desired import Desired, desired
from routing.learning import Learner
from routing.links import LinkState
from routing.next_hops import KernelRoute
from routing.remote import (
    Decisions,
    Outcome,
    RejectedPaths,
    _received,
    counts_of,
    outcomes_of,
    paths_of,
)
from routing.routes import NextHop
from tests.unit.test_desired import TOR, TOR2, inputs, path, snapshot

FAR = ip_address("203.0.113.9")
FILTER = BGPFilterResource(
    Meta("odd"),
    import_v4=(
        FilterRule(
            FilterAction.REJECT,
            cidr=ip_network("10.244.9.0/26"),
            operator=MatchOperator.EQUAL,
        ),
        FilterRule(
            FilterAction.REJECT,
            cidr=ip_network("10.244.64.0/18"),
            operator=MatchOperator.IN,
            min_length=27,
            max_length=28,
        ),
        FilterRule(FilterAction.REJECT, as_path_prefix=(64512, 65009)),
    ),
)
PEERS = (
    BGPPeerResource(Meta("tor"), TOR, 64512, multihop_ttl=3, filters=("odd",)),
    BGPPeerResource(Meta("tor2"), TOR2, 64512),
)
SNAPSHOT = snapshot(
    nodes=(
        *snapshot().nodes,
        NodeResource(Meta("n3"), (ip_address("192.0.2.7"),), asn=64602),
    ),
    pools=(
        IPPoolResource(Meta("v4"), ip_network("10.244.0.0/16"), 26),
        IPPoolResource(Meta("small"), ip_network("10.245.0.0/24"), 28),
    ),
    peers=PEERS,
    filters=(FILTER,),
    bgp=BGPConfigurationResource(
        Meta("default"),
        asn=64601,
        import_allow=(ip_network("192.0.2.0/24"), ip_network("0.0.0.0/0")),
    ),
    blocks=(
        Block(ip_network("10.244.1.64/26"), "v4", "n1", BlockState.CONFIRMED),
        Block(ip_network("10.244.3.0/26"), "v4", "n3", BlockState.CONFIRMED),
        Block(ip_network("10.244.3.64/26"), "v4", "n1x", BlockState.CONFIRMED),
        Block(ip_network("10.245.0.16/28"), "small", "n3", BlockState.CONFIRMED),
    ),
)  # fmt: skip

# Around every border that a rule draws, and at random.
prefixes = st.one_of(
    st.sampled_from(
        [
            "10.244.1.64/26",
            "10.244.1.64/27",
            "10.244.1.0/24",
            "10.244.3.0/26",
            "10.244.3.64/26",
            "10.244.3.0/25",
            "10.244.0.0/16",
            "10.240.0.0/12",
            "10.245.0.0/24",
            "10.245.0.16/28",
            "10.245.0.32/28",
            "10.245.0.16/29",
            "10.244.9.0/26",
            "10.244.9.64/26",
            "10.244.64.0/27",
            "10.244.64.32/28",
            "10.244.128.0/27",
            "0.0.0.0/0",
            "172.30.0.0/31",
            "172.30.0.1/32",
            "172.30.0.0/24",
            "192.0.2.0/24",
            "192.0.2.0/25",
            "198.51.100.0/24",
            "169.254.7.0/24",
            "203.0.113.0/24",
            "203.0.0.0/16",
            "10.244.255.192/26",
        ]
    ),
    st.builds(
        lambda number, length: str(ip_network((0x0AF00000 | number, length), strict=False)),
        st.integers(0, 0xFFFFF),
        st.sampled_from([24, 25, 26, 27, 28, 30, 32]),
    ),
)
# Of nodes, of this one, of nobody's in some orders, and one that a filter names.
ASNS = [
    (64512, 64602),
    (64512, 64603),
    (64512,),
    (64512, 64601),
    (64999,),
    (64512, 65001),
    (64512, 65002),
    (64512, 65001, 65002),
    (64512, 65002, 65001),
    (64512, 65001, 65001),
    (64512, 65009),
]
hops = st.sampled_from([TOR, TOR, TOR, FAR, ip_address("10.244.200.1"), ip_address("172.30.0.1")])
said = st.builds(
    lambda prefix, peer, hop, asns, med: replace(
        path(prefix, peer=peer, next_hop=str(hop if peer == TOR else TOR2), as_path=asns), med=med
    ),
    prefixes,
    st.sampled_from([TOR, TOR2]),
    hops,
    st.sampled_from(ASNS),
    st.sampled_from([None, None, 5]),
)
paths = st.lists(said, max_size=40).map(
    lambda each: list({(one.peer, one.prefix): one for one in each}.values())
)
sound = st.lists(
    st.builds(
        lambda number, asns: path(f"10.244.{number}.0/26", as_path=asns),
        st.integers(10, 60),
        st.sampled_from(ASNS[:2] + ASNS[5:]),
    ),
    max_size=8,
    unique_by=lambda each: each.prefix,
)
kernel = st.sampled_from(
    [{}, {FAR: KernelRoute(24, (NextHop("uplink0", TOR),))}]
)  # fmt: skip


def told(outcome: Outcome) -> object:
    best = frozenset(outcome.best)
    return outcome.hops, best, sorted((str(peer), reason) for peer, reason, _ in outcome.rejected)


def one_by_one(wanted: Desired, offers: Offers) -> dict[bytes, Outcome]:
    decisions = wanted.remote.decisions
    assert decisions is not None
    learned = Learner(decisions.rules).learn(paths_of(offers), _received(offers))
    return outcomes_of(offers, learned)


@settings(max_examples=150, deadline=None)
@given(
    paths,
    kernel,
    st.sampled_from([None, 0, 3, 20]),
    st.sampled_from([None, None, 2, 5]),
    st.sampled_from(list(LimitAction)),
)
def test_kinds_of_prefixes_are_decided_as_each_of_them_is(
    all_paths: list[Path], routes, limit: int | None, other: int | None, action: LimitAction
):
    """Route, best paths, refusals with their sentences, conflicts: rules, far hops and limits."""
    peers = (
        replace(PEERS[0], max_prefixes=limit, limit_action=action),
        replace(PEERS[1], max_prefixes=other),
    )
    offers = offers_of(all_paths)
    given_now = inputs(snapshot=replace(SNAPSHOT, peers=peers), kernel_routes=routes)
    wanted = desired(replace(given_now, offers=offers))
    truth = one_by_one(wanted, offers)
    outcomes = wanted.remote.outcomes
    assert {n: told(each) for n, each in outcomes.items()} == {
        n: told(each) for n, each in truth.items()
    }
    sentences = {(r.path.prefix, r.path.peer): r.detail for r in RejectedPaths(wanted.remote)}
    assert sentences == {
        (prefix_of(n), peer): detail
        for n, outcome in truth.items()
        for peer, _, detail in outcome.rejected
    }
    conflicts = {str(c) for outcome in truth.values() for c in outcome.conflicts}
    assert {str(conflict) for conflict in wanted.conflicts} == conflicts


numbers = st.sampled_from(
    [
        (64512, 64602),
        (64512, 64601),
        (64512, 65009),
        (64512, 65001, 65001),
        *ASNS[5:7] * 2,
        (64999, 65001),
    ]
)
alike = st.dictionaries(st.integers(4, 9), st.tuples(numbers, st.none() | numbers), min_size=2)


@settings(max_examples=300, deadline=None)
@given(alike, st.booleans())
def test_as_numbers_that_no_rule_names_are_told_apart_where_that_matters(
    asns: dict[int, tuple[tuple[int, ...], tuple[int, ...] | None]], is_filtered: bool
):
    """Kinds that differ in nothing else share an answer: our ASN, a node's, a peer's, one that a
    filter names do not hide among them, nor does whether two paths have one origin."""
    # All of one length: inside a prefix of another may be a block, and it is like no other.
    blocks = tuple(
        Block(ip_network(f"10.244.{number}.0/26"), "v4", node, BlockState.CONFIRMED)
        for number, node in ((4, "n1x"), (5, "n1x"), (6, "n3"), (7, "n3"))
    )
    shown = BGPPeerResource(Meta("shown"), FAR, 64512, node="n3", local_asn=65002)
    there = replace(SNAPSHOT, blocks=blocks, peers=(*PEERS, shown))
    if not is_filtered:
        there = replace(there, filters=(), peers=(replace(PEERS[0], filters=()), PEERS[1], shown))
    offers = offers_of(
        path(f"10.244.{number}.0/26", peer=peer, next_hop=str(peer), as_path=each)
        for number, both in asns.items()
        for peer, each in zip((TOR, TOR2), both, strict=True)
        if each is not None
    )
    wanted = desired(replace(inputs(snapshot=there), offers=offers))
    truth = one_by_one(wanted, offers)
    outcomes = wanted.remote.outcomes
    assert {n: told(each) for n, each in outcomes.items()} == {
        n: told(each) for n, each in truth.items()
    }
    conflicts = {str(c) for outcome in truth.values() for c in outcome.conflicts}
    assert {str(conflict) for conflict in wanted.conflicts} == conflicts


@settings(max_examples=50, deadline=None)
@given(paths, paths)
def test_decisions_are_used_again_and_come_to_the_same(first: list[Path], second: list[Path]):
    """What was remembered from other tables does not show."""
    base = inputs(snapshot=SNAPSHOT)
    before = desired(replace(base, offers=offers_of(first)))
    offers = offers_of(second)
    again = desired(replace(base, offers=offers), before.remote.decisions)
    assert again.remote.decisions is before.remote.decisions
    fresh = desired(replace(base, offers=offers))
    assert again.routes == fresh.routes
    assert again.best == fresh.best
    assert sorted(map(str, again.rejected)) == sorted(map(str, fresh.rejected))


@settings(max_examples=100, deadline=None)
@given(st.one_of(paths, sound), st.sampled_from([0, 0, 1]))
def test_what_a_lost_peer_turns_is_what_its_loss_comes_to(all_paths: list[Path], knows_less: int):
    """Where next hops are turned at once, every route that had them would have been."""
    base = inputs(snapshot=SNAPSHOT)
    # Two routers say much the same, as they do in a rack; sometimes one knows more.
    heard = {(each.peer, each.prefix) for each in all_paths}
    all_paths = [
        *all_paths,
        *(
            replace(
                each, peer=TOR2, next_hop=TOR2, as_path=(*each.as_path, 64700), as_path_length=3
            )
            for each in all_paths[: len(all_paths) - knows_less]
            if each.peer == TOR and (TOR2, each.prefix) not in heard
        ),
    ]
    before = desired(replace(base, offers=offers_of(all_paths)))
    moves = before.remote.without({TOR})
    rest = [each for each in all_paths if each.peer != TOR]
    after = desired(replace(base, offers=offers_of(rest)))
    for nlri, outcome in before.remote.outcomes.items():
        if outcome.hops in moves:
            TURNED.append(nlri)
            assert after.remote.outcomes[nlri].hops == moves[outcome.hops]


TURNED: list[bytes] = []


def test_something_was_turned():
    """Else the test above has compared nothing."""
    assert len(TURNED) > 20


def test_other_rules_are_other_decisions():
    """A pool more, a link that is down: nothing is remembered."""
    base = inputs(snapshot=SNAPSHOT)
    before = desired(base).remote.decisions
    assert desired(base, before).remote.decisions is before
    wider = replace(SNAPSHOT, pools=SNAPSHOT.pools[:1])
    assert desired(replace(base, snapshot=wider), before).remote.decisions is not before
    down = {**base.links, "uplink0": replace(base.links["uplink0"], is_up=False)}
    assert desired(replace(base, links=down), before).remote.decisions is not before
    pod = {**base.links, "s32pod": LinkState("s32pod", 9, True, 1500)}
    assert desired(replace(base, links=pod), before).remote.decisions is before
    over = {FAR: KernelRoute(24, (NextHop("s32pod", TOR),))}
    led = desired(replace(base, links=pod, kernel_routes=over)).remote.decisions
    off = {**pod, "s32pod": LinkState("s32pod", 9, False, 1500)}
    again = replace(base, links=off, kernel_routes=over)
    assert desired(again, led).remote.decisions is not led


def flood(number: int, most: int | None) -> tuple[Desired, Offers]:
    """So many prefixes of one peer, each with attributes of its own: every third is too long for
    its pool, every fifth has our ASN in its path."""
    peers = (replace(PEERS[0], max_prefixes=most, filters=()), *PEERS[1:])
    all_paths = [
        replace(
            path(
                f"10.244.{n // 4}.{n % 4 * 64}/{32 if n % 3 == 0 else 26}",
                as_path=(64512, 64601 if n % 5 == 0 else 70_000 + n),
            ),
            med=n,
        )
        for n in range(40, 40 + number)
    ]
    given_now = inputs(snapshot=replace(SNAPSHOT, peers=peers))
    offers = offers_of(all_paths)
    return desired(replace(given_now, offers=offers)), offers


def test_what_is_refused_alike_is_one_object_whatever_its_attributes():
    """A hostile peer must not make the agent keep words about each of its prefixes; each is told
    its own all the same, and all come when the limit goes."""
    wanted, offers = flood(300, 20)
    all_paths = set(paths_of(offers))
    assert len(wanted.best) == 20
    outcomes = [each for each in wanted.remote.outcomes.values() if not each.best]
    assert len(outcomes) == 280
    assert len(set(outcomes)) <= 6, "by reason, not by prefix"
    reasons = Counter(each.reason for each in wanted.rejected)
    assert set(reasons) == {"too-long", "as-loop", "max-prefix"}
    assert reasons == {reason: n for (_, reason), n in counts_of(wanted.rejected).items()}
    for each in wanted.rejected:
        assert each.path in all_paths
        assert each.reason != "too-long" or str(each.path.prefix) in each.detail
    lifted, _ = flood(300, None)
    assert len(lifted.best) == 20 + reasons["max-prefix"]


def test_what_takes_long_can_be_found_out_in_parts(monkeypatch):
    """And comes to the same: what the policy accepts beside a limit, and every kind without."""
    for most in (20, None):
        wanted, offers = flood(60, most)
        assert wanted.remote.decisions is not None
        decisions = Decisions(wanted.remote.decisions.rules)
        with monkeypatch.context() as few:
            few.setattr("routing.limits.ASKED_AT_ONCE", 10)
            few.setattr("routing.remote.LEARNED_AT_ONCE", 10)
            assert len(list(decisions.getting_ready(offers))) >= 3
        with monkeypatch.context() as nobody:
            nobody.delattr(Learner, "accepts")
            decided = decisions.all(offers)
        assert {n: told(each) for n, each in decided.outcomes.items()} == {
            n: told(each) for n, each in wanted.remote.outcomes.items()
        }
