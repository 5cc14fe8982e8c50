"""Import policy: one path for each reason token, and the paths next to it that pass."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network
from typing import Any

import pytest

from bgp.paths import Origin, Path
from routing.datastore.snapshot import (
    BGPConfigurationResource,
    BGPFilterResource,
    FilterAction,
    FilterRule,
    IPPoolResource,
    LimitAction,
    Meta,
    Snapshot,
)
from routing.import_policy import ImportPolicy, within_limits, without
from routing.links import LinkState
from routing.next_hops import Resolver
from routing.topology import SessionIntent, SessionKind

TOR = ip_address("172.30.0.0")
RR = ip_address("192.0.2.9")
OWN = ip_address("172.30.0.1")
OWN_ASN = 64601
OWN_ID = IPv4Address("172.30.0.1")
LINKS = {
    "lo": LinkState(
        "lo", 1, True, 65536, (ip_interface("127.0.0.1/8"), ip_interface("10.9.9.9/32"))
    ),
    "up0": LinkState("up0", 2, True, 1500, (ip_interface("172.30.0.1/31"),)),
    "lan": LinkState("lan", 3, True, 1500, (ip_interface("10.1.0.1/24"),)),
}
SNAPSHOT = Snapshot(
    pools=(
        IPPoolResource(Meta("v4"), ip_network("10.244.0.0/16"), 26),
        IPPoolResource(Meta("v6"), ip_network("fd44::/112"), 122),
    ),
    bgp=BGPConfigurationResource(
        Meta("default"),
        import_allow=(ip_network("198.51.100.0/24"), ip_network("224.0.0.0/8"), ip_network("::/0")),
    ),
    filters=(
        BGPFilterResource(
            Meta("no-lab"),
            import_v4=(FilterRule(FilterAction.REJECT, communities=("65000:13",)),),
        ),
    ),
    in_sync=True,
)


def session(address=TOR, **changes: Any) -> SessionIntent:
    values: dict[str, Any] = {
        "name": "tor",
        "kind": SessionKind.ROUTER,
        "address": address,
        "remote_asn": 64512,
        "local_asn": OWN_ASN,
        "router_id": OWN_ID,
    }
    return SessionIntent(**(values | changes))


IBGP = session(RR, name="rr", remote_asn=OWN_ASN)


def policy(
    *sessions: SessionIntent, snapshot: Snapshot = SNAPSHOT, links=LINKS, own=("10.244.1.64/26",)
) -> ImportPolicy:
    by_address = {each.address: each for each in sessions or (session(), IBGP)}
    blocks = [ip_network(each) for each in own]
    return ImportPolicy(snapshot, blocks, by_address, links, Resolver(links, {}), OWN_ASN)


def token(judged: tuple[str, str] | None) -> str | None:
    return None if judged is None else judged[0]


def path(prefix: str, **changes: Any) -> Path:
    plain = Path(TOR, ip_network(prefix), TOR, (64512, 64602), 2, Origin.IGP)
    return replace(plain, **changes)


def inside(prefix: str, **changes: Any) -> Path:
    """A path from the route reflector."""
    plain = Path(RR, ip_network(prefix), ip_address("192.0.2.2"), (), 0, Origin.IGP)
    return replace(plain, **changes)


REFUSED = [
    (path("10.244.2.0/26", peer=ip_address("203.0.113.1")), "no-such-peer"),
    (path("224.0.0.0/8"), "martian"),
    (path("127.0.0.0/16"), "martian"),
    (path("fe80::/64"), "martian"),
    (path("10.244.1.64/26"), "own-block"),
    (path("10.244.1.70/32"), "own-block"),
    (path("0.0.0.0/0"), "default-route"),
    (path("172.30.0.0/31"), "connected-network"),
    (path("10.1.0.128/25"), "connected-network"),
    (path("10.9.9.9/32"), "connected-network"),
    (path("10.244.2.0/27"), "too-long"),
    (path("10.244.2.7/32"), "too-long"),
    (path("10.0.0.0/8"), "too-short"),
    (path("198.51.100.0/25"), "not-in-pool"),
    (path("203.0.113.0/24"), "not-in-pool"),
    (path("10.244.2.0/26", as_path=(64512, OWN_ASN, 64602)), "as-loop"),
    (inside("10.244.2.0/26", originator_id=OWN_ID), "own-originator"),
    (inside("10.244.2.0/26", cluster_list=(IPv4Address("192.0.2.9"), OWN_ID)), "own-cluster"),
    (path("10.244.2.0/26", as_path=(64513, 64602)), "first-as"),
    (path("10.244.2.0/26", as_path=()), "first-as"),
    (path("10.244.2.0/26", next_hop=OWN), "next-hop-self"),
    (path("10.244.2.0/26", next_hop=ip_address("192.0.2.2")), "next-hop-off-link"),
]


@pytest.mark.parametrize(("refused", "reason"), REFUSED)
def test_each_rule_has_its_own_reason(refused, reason):
    """A token for metrics, a sentence that names the value for people."""
    judged = policy().judge(refused)
    assert judged is not None
    assert judged[0] == reason
    assert len(judged[1]) > 20


@pytest.mark.parametrize(
    "good",
    [
        path("10.244.2.0/26"),
        path("10.244.2.0/24"),
        path("10.244.0.0/16"),
        path("fd44::40/122"),
        path("198.51.100.0/24"),
        path("::/0"),
        path("10.244.2.0/26", next_hop=ip_address("10.1.0.7")),
        inside("10.244.2.0/26"),
        inside("10.244.2.0/26", originator_id=IPv4Address("172.30.0.3")),
    ],
)
def test_what_no_rule_is_against_is_used(good):
    """Blocks and aggregates of pools, exactly what importAllow has, a third router on the link."""
    assert policy().judge(good) is None


def test_importallow_cannot_open_what_is_ours_or_no_place():
    """A slip in one list must not send this node's own pods away."""
    allowed = replace(
        SNAPSHOT.bgp, import_allow=(ip_network("10.244.1.64/26"), ip_network("127.0.0.0/8"))
    )
    open_policy = policy(snapshot=replace(SNAPSHOT, bgp=allowed))
    assert [token(open_policy.judge(path(p))) for p in ("10.244.1.64/26", "127.0.0.0/8")] == [
        "own-block",
        "martian",
    ]


def test_allowas_in_counts_our_as_number_up_to_the_figure():
    """Racks of one ASN: 1 lets a path through that has ours once, not twice."""
    lenient = policy(session(allowed_local_asns=1))
    once = path("10.244.2.0/26", as_path=(64512, OWN_ASN))
    twice = path("10.244.2.0/26", as_path=(64512, OWN_ASN, OWN_ASN))
    assert lenient.judge(once) is None
    assert token(lenient.judge(twice)) == "as-loop"


def test_a_nodes_real_as_number_is_a_loop_even_behind_another_one():
    """localASN hides ours from one peer; what we announced to another still comes back here."""
    hidden = policy(session(local_asn=64999))
    assert token(hidden.judge(path("10.244.2.0/26", as_path=(64512, OWN_ASN)))) == "as-loop"
    assert token(hidden.judge(path("10.244.2.0/26", as_path=(64512, 64999)))) == "as-loop"


def test_pod_routes_are_accepted_only_where_the_cluster_announces_them():
    """exportPodRoutes: /32s travel then, and only then."""
    bgp = replace(SNAPSHOT.bgp, export_pod_routes=True)
    assert policy(snapshot=replace(SNAPSHOT, bgp=bgp)).judge(path("10.244.2.7/32")) is None


def test_a_next_hop_over_one_hop_of_ebgp_is_on_a_link_that_is_up():
    """With the link down the path waits; a session over several hops may name what it likes."""
    down = {**LINKS, "up0": replace(LINKS["up0"], is_up=False)}
    assert token(policy(links=down).judge(path("10.244.2.0/26"))) == "next-hop-off-link"
    far = path("10.244.2.0/26", next_hop=ip_address("192.0.2.2"))
    assert policy(session(multihop_ttl=4)).judge(far) is None
    assert token(policy(session(ttl_security_hops=1)).judge(far)) == "next-hop-off-link"


def test_a_peers_import_filters_are_asked():
    """By community here; a filter that is not there lets nothing in."""
    filtered = policy(session(filters=("no-lab",)))
    assert filtered.judge(path("10.244.2.0/26")) is None
    assert token(filtered.judge(path("10.244.2.0/26", communities=("65000:13",)))) == "filtered"
    gone = policy(session(filters=("gone",)))
    assert token(gone.judge(path("10.244.2.0/26"))) == "filter-missing"


# -- max-prefix --------------------------------------------------------------------------------


def limited(count: int, limit: int, action: LimitAction, *, accepted: int | None = None):
    paths = [path(f"10.244.{n}.0/26") for n in reversed(range(2, 2 + count))]
    peer = session(max_prefixes=limit, limit_action=action)
    kept = paths if accepted is None else paths[:accepted]
    return kept, within_limits(Counter({TOR: count}), kept, {TOR: peer})


@pytest.mark.parametrize(
    ("count", "words"), [(74, None), (75, "75 % are reached"), (100, "75 % are reached")]
)
def test_three_quarters_of_the_limit_are_told(count, words):
    """At 75 %, so that somebody can raise the limit before it hurts."""
    _, limits = limited(count, 100, LimitAction.STOP_INSTALLING)
    assert [words in p for p in limits.problems] == ([] if words is None else [True])
    assert not limits.rejected


def test_stop_installing_keeps_the_same_ones_whatever_the_order():
    """The lowest prefixes; what is beyond has a reason."""
    paths, limits = limited(5, 3, LimitAction.STOP_INSTALLING)
    assert {str(r.path.prefix) for r in limits.rejected} == {"10.244.5.0/26", "10.244.6.0/26"}
    assert {r.reason for r in limits.rejected} == {"max-prefix"}
    assert len(without(paths, limits.rejected)) == 3
    assert not limits.to_close


def test_junk_that_was_refused_anyhow_does_not_crowd_out_the_good():
    """The peer sends 5, 2 of them acceptable: both stay, and it is told all the same."""
    _, limits = limited(5, 3, LimitAction.STOP_INSTALLING, accepted=2)
    assert not limits.rejected
    assert limits.problems


def test_close_takes_every_path_of_the_peer_at_once():
    """No pass between the decision and the session's end uses them."""
    _, limits = limited(5, 3, LimitAction.CLOSE)
    assert len(limits.rejected) == 5
    assert "maxPrefixes is 3" in limits.to_close[TOR]


def test_warn_only_warns():
    """Everything is installed."""
    _, limits = limited(5, 3, LimitAction.WARN)
    assert not limits.rejected
    assert not limits.to_close
    assert "sends 5 prefixes" in limits.problems[0]


def test_every_reason_is_in_the_documents_table():
    """docs/policy.md is where an operator looks a token up."""
    from pathlib import Path as File

    text = (File(__file__).parents[2] / "docs" / "policy.md").read_text()
    others = {"filtered", "filter-missing", "max-prefix", "not-owner", "next-hop-unreachable"}
    for token in {reason for _, reason in REFUSED} | others:
        assert f"`{token}`" in text, token
