"""explain: evidence in, steps out. Every fault by its token, nothing guessed without evidence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bgp.reasons import reason_now
from routing.explain.case import Case
from routing.explain.codec import MalformedEvidence, from_json, to_json
from routing.explain.evidence import (
    ARRIVAL,
    BACK,
    FORWARD,
    AgentEvidence,
    Announcement,
    BlockFacts,
    ClusterEvidence,
    Hop,
    KernelEvidence,
    KernelRoute,
    LinkFacts,
    Lookup,
    Neighbour,
    NodeEvidence,
    PathFacts,
    PodFacts,
    PoolFacts,
    Probe,
    SessionFacts,
    SysctlFinding,
    TcpFacts,
    WantedRoute,
)
from routing.explain.judge import explain
from routing.explain.picture import to_dot, to_svg
from routing.explain.reasons import cause_of
from routing.explain.steps import Verdict

A, B = "10.244.1.5", "10.244.2.9"
BLOCK_A, BLOCK_B = "10.244.1.0/26", "10.244.2.0/26"
TOR = "172.30.0.0"


def session(state: str = "Established", **changes: Any) -> SessionFacts:
    values: dict[str, Any] = {
        "peer": TOR, "name": "tor", "asn": 64512, "local_asn": 64601, "state": state,
        "received": 2, "accepted": 2, "advertised": 1, "is_complete": True,
    }  # fmt: skip
    return SessionFacts(**(values | changes))


def route(prefix: str, *hops: Hop, ours: bool = True, metric: int = 1032) -> KernelRoute:
    return KernelRoute(prefix, "unicast", 132 if ours else 4, metric, 254, hops, ours)


def agent(node: str, own: str, far: str) -> AgentEvidence:
    return AgentEvidence(
        node=node,
        sessions=(session(),),
        paths=(PathFacts(TOR, far, TOR, (64512, 64602), "best"),),
        advertised=(Announcement(TOR, own),),
        wanted=(WantedRoute(far, "remote", (Hop("uplink0", TOR),), "ok"),),
    )


def pod(name: str, address: str, veth: str) -> PodFacts:
    return PodFacts(
        name, address, "eth0", veth, LinkFacts(veth, True, True, 1500),
        inside=(), inside_mtu_bytes=1500, gateway=Neighbour("169.254.1.1", "eth0", "REACHABLE"),
    )  # fmt: skip


def node(name: str, own: str, far: str, here: str, there: str) -> NodeEvidence:
    """A healthy node whose pod ``here`` speaks with ``there``."""
    up = Hop("uplink0", TOR)
    remote = route(far, up)
    role = FORWARD if name == "node1" else BACK
    return NodeEvidence(
        name,
        agent=agent(name, own, far),
        kernel=KernelEvidence(
            lookups=(
                Lookup(role, there, here, "s32pod", hop=up, entry=remote),
                Lookup(ARRIVAL, here, there, "uplink0", hop=Hop("s32pod")),
            ),
            covering=(
                route(f"{here}/32", Hop("s32pod")),
                remote,
                KernelRoute(own, "blackhole", 132, 1032, 254, (), True),
            ),
            neighbours=(Neighbour(TOR, "uplink0", "REACHABLE", "aa:bb:cc:dd:ee:ff"),),
            links=(LinkFacts("uplink0", True, True, 1500), LinkFacts("s32pod", True, True, 1500)),
            pods=(pod(f"lab/{name}-pod", here, "s32pod"),),
            sysctls={"net.ipv4.conf.all.forwarding": "1", "net.ipv4.conf.all.rp_filter": "0"},
        ),
    )


def case(**changes: Any) -> Case:
    near = node("node1", BLOCK_A, BLOCK_B, A, B)
    far = node("node2", BLOCK_B, BLOCK_A, B, A)
    cluster = ClusterEvidence(
        pools=(PoolFacts("pods", "10.244.0.0/16", 26),),
        blocks=(
            BlockFacts(BLOCK_A, "pods", "node1", "confirmed"),
            BlockFacts(BLOCK_B, "pods", "node2", "confirmed"),
        ),
        nodes=("node1", "node2"),
    )
    values: dict[str, Any] = {
        "subject": B, "destination": B, "has_pod": True, "source": A, "cluster": cluster,
        "origin": near, "owner": far,
    }  # fmt: skip
    return Case(**(values | changes))


def with_kernel(evidence: NodeEvidence, **changes: Any) -> NodeEvidence:
    assert evidence.kernel is not None
    return replace(evidence, kernel=replace(evidence.kernel, **changes))


def with_agent(evidence: NodeEvidence, **changes: Any) -> NodeEvidence:
    assert evidence.agent is not None
    return replace(evidence, agent=replace(evidence.agent, **changes))


def with_pod(evidence: NodeEvidence, **changes: Any) -> NodeEvidence:
    assert evidence.kernel is not None
    return with_kernel(evidence, pods=(replace(evidence.kernel.pods[0], **changes),))


def near(**changes: Any) -> Case:
    return case(origin=with_kernel(case().origin, **changes))


def far(**changes: Any) -> Case:
    owner = case().owner
    assert owner is not None
    return case(owner=with_kernel(owner, **changes))


def near_lookup(**changes: Any) -> Case:
    kernel = case().origin.kernel
    assert kernel is not None
    first, *rest = kernel.lookups
    return near(lookups=(replace(first, **changes), *rest))


def far_arrival(error: str, sysctl: str = "", value: str = "") -> Case:
    owner = case().owner
    assert owner is not None
    assert owner.kernel is not None
    back, arrival = owner.kernel.lookups
    refused = replace(arrival, error=error, hop=None, towards_source=Hop("eth9"))
    sysctls = dict(owner.kernel.sysctls) | ({sysctl: value} if sysctl else {})
    return far(lookups=(back, refused), sysctls=sysctls)


def far_pod(**changes: Any) -> Case:
    owner = case().owner
    assert owner is not None
    return case(owner=with_pod(owner, **changes))


def near_pod(**changes: Any) -> Case:
    return case(origin=with_pod(case().origin, **changes))


def near_agent(**changes: Any) -> Case:
    return case(origin=with_agent(case().origin, **changes))


def far_agent(**changes: Any) -> Case:
    owner = case().owner
    assert owner is not None
    return case(owner=with_agent(owner, **changes))


def rejected(reason: str) -> Case:
    path = PathFacts(TOR, BLOCK_B, "192.0.2.77", (64512,), "rejected", reason, "a sentence")
    return near_agent(paths=(path,))


def covering(*routes: KernelRoute) -> tuple[KernelRoute, ...]:
    return (route(f"{A}/32", Hop("s32pod")), *routes)


FOREIGN = route(BLOCK_B, Hop("eth9"), ours=False, metric=5)
NARROWER = route(f"{B}/32", Hop("eth9"), ours=False, metric=5)
OURS = route(BLOCK_B, Hop("uplink0", TOR))

DOWN = LinkFacts("s32pod", False, False, 1500)
NO_CARRIER = LinkFacts("s32pod", True, False, 1500)
ASTRAY = route(f"{B}/32", Hop("lo"))

CASES: list[tuple[str, str, str, Case]] = [
    ("fib", "route-missing", "node1", near(covering=covering())),
    ("fib", "route-wrong", "node1", near(covering=covering(route(BLOCK_B, Hop("eth9"))))),
    ("fib", "foreign-route", "node1", near(covering=covering(FOREIGN))),
    ("fib", "foreign-route", "node1", near(covering=covering(FOREIGN, OURS))),
    ("lookup", "foreign-route", "node1", near_lookup(entry=FOREIGN, hop=Hop("eth9"))),
    ("lookup", "foreign-route", "node1", near_lookup(error="EINVAL", hop=None, entry=FOREIGN)),
    (
        "lookup", "foreign-route", "node1",
        replace(
            near_lookup(error="EINVAL", hop=None, entry=None),
            origin=with_kernel(
                near_lookup(error="EINVAL", hop=None, entry=None).origin,
                covering=covering(NARROWER, OURS),
            ),
        ),
    ),
    ("lookup", "no-route", "node1", near_lookup(error="ENETUNREACH", hop=None, entry=None)),
    ("lookup", "rp-filter", "node1", near_lookup(error="EXDEV", hop=None)),
    ("arrival", "rp-filter", "node2", far_arrival("EXDEV")),
    ("arrival", "rp-filter", "node2", far_arrival("EINVAL", "net.ipv4.conf.all.rp_filter", "1")),
    (
        "arrival", "forwarding-off", "node2",
        far_arrival("EINVAL", "net.ipv4.conf.uplink0.forwarding", "0"),
    ),
    (
        "source-sysctls", "proxy-arp-off", "node1 s32pod",
        near_pod(sysctls=(SysctlFinding("net.ipv4.conf.s32pod.proxy_arp", "1", "0"),)),
    ),
    (
        "target-sysctls", "rp-filter", "node2 s32pod",
        far_pod(sysctls=(SysctlFinding("net.ipv4.conf.s32pod.rp_filter", "1", "0"),)),
    ),
    (
        "source-sysctls", "sysctl", "node1 s32pod",
        near_pod(sysctls=(SysctlFinding("net.ipv6.conf.s32pod.accept_ra", "0", None),)),
    ),
    (
        "neighbour", "neighbour-failed", "node1",
        near(neighbours=(Neighbour(TOR, "uplink0", "FAILED"),)),
    ),
    ("target-link", "veth-down", "node2 s32pod", far_pod(host=DOWN)),
    ("source-link", "veth-down", "node1 s32pod", near_pod(host=NO_CARRIER)),
    (
        "target-link-settings", "link-changed", "node2 s32pod",
        far_pod(host_differences=("MAC address of s32pod: expected a, found b",)),
    ),
    ("target-host-route", "wrong-host-route", "node2", far(covering=(ASTRAY,))),
    ("target-host-route", "host-route-missing", "node2", far(covering=())),
    ("target-pod", "pod-changed", "pod lab/node2-pod", far_pod(inside=("address of eth0 ...",))),
    (
        "source-pod", "gateway-silent", "pod lab/node1-pod",
        near_pod(gateway=Neighbour("169.254.1.1", "eth0", "FAILED")),
    ),
    ("mtu", "mtu-too-small", "node1", near(links=(LinkFacts("uplink0", True, True, 1400),))),
    ("mtu", "mtu-too-small", "node1", near_lookup(mtu_bytes=1400)),
    ("back-mtu", "mtu-too-small", "node2", far(links=(LinkFacts("uplink0", True, True, 1400),))),
    ("holder", "no-such-pod", "node2", far(pods=())),
    ("announced", "block-not-announced", "node2", far_agent(advertised=())),
    ("accepted", "next-hop-off-link", "node1", rejected("next-hop-off-link")),
    ("accepted", "as-loop", "node1", rejected("as-loop")),
    ("received", "filtered-at-router", "router tor 172.30.0.0", near_agent(paths=())),
    (
        "received", "peer-sends-nothing", "node1",
        near_agent(paths=(), sessions=(session(received=0),)),
    ),
    (
        "received", "peer-sends-nothing", "router of node2",
        replace(near_agent(paths=()), owner=far_agent(sessions=(session(received=0),)).owner),
    ),
    ("receiving-sessions", "no-peers", "node1", near_agent(sessions=())),
    ("receiving-sessions", "speaker-down", "node1", near_agent(speaker_connected=False)),
    (
        "announcing-sessions", "peer-wrong-asn", "node2",
        far_agent(sessions=(session("Idle", reason="notification sent (2,2)"),)),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("step", "fault", "place", "given"), CASES)
def test_a_fault_is_the_first_wrong_step(step: str, fault: str, place: str, given: Case):
    """By token, at its place, with evidence and a remedy; the conclusion says all of it."""
    report = explain(given)
    first = report.first_wrong
    assert first is not None
    assert (first.id, first.fault, first.place) == (step, fault, place)
    assert first.evidence
    assert first.remedy
    assert report.conclusion == f"{fault} at {place}: {first.evidence}. Remedy: {first.remedy}"


def test_a_healthy_case_has_no_wrong_and_no_unknown_step():
    """The control of every fault above."""
    report = explain(case())
    assert {step.verdict for step in report.steps} == {Verdict.OK}
    assert report.conclusion == "everything on the way there and back is as it should be"


def test_a_route_that_is_never_used_is_told_with_whose_is_used():
    """The same prefix at a lower metric; its protocol, and how to remove it."""
    report = explain(near(covering=covering(FOREIGN, OURS)))
    first = report.first_wrong
    assert first is not None
    assert "never used: 10.244.2.0/26 dev eth9 (protocol 4 metric 5)" in first.evidence
    assert "ip route del 10.244.2.0/26 table 254 metric 5" in first.remedy


def test_a_route_in_front_of_anothers_is_well_and_says_whose_is_behind():
    """Ours is used."""
    front = route(BLOCK_B, Hop("uplink0", TOR), metric=1031)
    behind = route(BLOCK_B, Hop("eth9"), ours=False, metric=1032)
    report = explain(near(covering=covering(front, behind)))
    assert report.first_wrong is None
    (step,) = (s for s in report.steps if s.id == "fib")
    assert "ours, in front, metric 1031" in step.evidence
    assert "behind it, unused: 10.244.2.0/26 dev eth9 (protocol 4 metric 1032)" in step.evidence


@pytest.mark.parametrize(
    ("blocks", "fault"),
    [
        ((), "no-block"),
        ((BlockFacts(BLOCK_B, "pods", "node2", "pending"),), "block-not-confirmed"),
        ((BlockFacts(BLOCK_B, "pods", "node9", "confirmed"),), "owner-gone"),
    ],
)
def test_ownership_is_judged_first(blocks: tuple[BlockFacts, ...], fault: str):
    """An address nobody owns is the reason for everything after it."""
    first = explain(case(cluster=replace(case().cluster, blocks=blocks))).first_wrong
    assert first is not None
    assert first.fault == fault


def test_what_nobody_can_see_is_unknown_and_not_guessed():
    """A far node that does not answer: no verdict on it, and the report says which steps."""
    report = explain(case(owner=NodeEvidence("node2", agent_error="no way", kernel_error="no way")))
    assert report.first_wrong is None
    assert {step.place for step in report.unknown} == {"node2"}
    assert "not everything could be seen" in report.conclusion
    blind = explain(case(origin=NodeEvidence("node1", kernel_error="not root")))
    assert blind.first_wrong is None
    assert any("not root" in step.evidence for step in blind.unknown)


def test_without_a_store_an_agents_memory_of_blocks_serves():
    """--local, or the API down: the agent's blocks are judged, and it says whose word it is."""
    cluster = ClusterEvidence(blocks=case().cluster.blocks, error="not asked (--local)")
    report = explain(case(cluster=cluster))
    assert report.first_wrong is None
    assert report.steps[0].place == "an agent's memory"
    nothing = explain(case(cluster=ClusterEvidence(error="gone")))
    assert nothing.steps[0].verdict is Verdict.UNKNOWN


def test_a_node_known_by_its_report_alone_is_said_to_be_so():
    """NodeStatus in the store: old perhaps, and dated."""
    reported = NodeEvidence(
        "node2", agent_error="no way", kernel_error="no way",
        reported_sessions=(session("Idle", reason="(6,2) administrative shutdown"),),
        reported_at="2026-11-26T22:00:00Z",
    )  # fmt: skip
    first = explain(case(owner=reported)).first_wrong
    assert first is not None
    assert first.fault == "peer-shut-down"
    assert "as the node reported at 2026-11-26T22:00:00Z" in first.evidence


def test_one_session_of_two_down_is_told_and_is_not_the_fault():
    """The packet has another way; the sentence names the one that is down and why."""
    sessions = (session(), session("Idle", peer="172.30.1.0", name="tor2", reason="(6,2)"))
    report = explain(near_agent(sessions=sessions))
    assert report.first_wrong is None
    step = next(s for s in report.steps if s.id == "receiving-sessions")
    assert (
        "of 2 sessions 1 are down: 172.30.1.0 (the session was shut down by hand" in step.evidence
    )


def test_pods_of_one_node_need_no_router():
    """No session is asked about; the kernel's own decision is."""
    origin = case().origin
    kernel = origin.kernel
    assert kernel is not None
    other = "10.244.1.7"
    local = with_kernel(
        origin,
        pods=(*kernel.pods, pod("lab/other", other, "s32other")),
        covering=(*kernel.covering, route(f"{other}/32", Hop("s32other"))),
        lookups=(Lookup(FORWARD, other, A, "s32pod", hop=Hop("s32other")),),
    )
    given = case(destination=other, origin=local, owner=local)
    assert explain(given).first_wrong is None
    assert "received" not in {step.id for step in explain(given).steps}
    astray = with_kernel(local, lookups=(Lookup(FORWARD, other, A, hop=Hop("eth9")),))
    first = explain(case(destination=other, origin=astray, owner=astray)).first_wrong
    assert first is not None
    assert first.fault == "foreign-route"


def test_an_outside_address_is_judged_by_what_was_learned_for_it():
    """Not ours: no block, no pod; the path and the kernel's decision count."""
    default = route("0.0.0.0/0", Hop("uplink0", TOR))
    outside = case(
        destination="198.51.100.1", owner=None, has_pod=True,
        origin=with_agent(
            with_kernel(
                case().origin,
                covering=covering(default),
                lookups=(Lookup(FORWARD, "198.51.100.1", A, "s32pod", hop=Hop("uplink0", TOR),
                                entry=default),),
            ),
            paths=(PathFacts(TOR, "0.0.0.0/0", TOR, (64512,), "best"),),
            wanted=(WantedRoute("0.0.0.0/0", "remote", (Hop("uplink0", TOR),), "ok"),),
        ),
    )  # fmt: skip
    report = explain(outside)
    assert report.first_wrong is None, report.conclusion
    assert report.steps[0].evidence.endswith("it is not a pod's")
    assert [s.id for s in report.steps if s.id in ("received", "fib", "lookup")] == [
        "received", "fib", "lookup",
    ]  # fmt: skip


@pytest.mark.parametrize(("received", "fault"), [(3, None), (0, "probe-lost")])
def test_probes_are_the_last_word(received: int, fault: str | None):
    """A lost packet where everything looks right is a fault of its own."""
    given = near(probes=(Probe(B, 84, 3, received),))
    first = explain(given, probed=True).first_wrong
    assert (None if first is None else first.fault) == fault


@pytest.mark.parametrize(
    ("reason", "kernel", "fault"),
    [
        ("notification received (2,2) Bad Peer AS", None, "peer-wrong-asn"),
        ("the peer said 2/2 OPEN refused: the peer's AS number", None, "peer-wrong-asn"),
        ("the peer said 6/2 Cease", None, "peer-shut-down"),
        ("we said 4/0 Hold Timer Expired", None, "peer-silent"),
        ("... (6,5) connection rejected", None, "peer-rejects"),
        ("[Errno 111] Connection refused", None, "peer-refuses"),
        ("hold timer expired", None, "peer-silent"),
        ("something new", None, "peer-down"),
        (reason_now("no answer", "the peer said 6/6 cease"), None, "peer-silent-syn"),
        (reason_now("not acknowledged", "we said 4/0 hold timer"), None, "peer-unacknowledged"),
        (reason_now("no word", "the peer said 6/6 cease"), None, "peer-unacknowledged"),
        (reason_now("Connection refused", "hold timer expired"), None, "peer-refuses"),
        ("", KernelEvidence(tcp=(TcpFacts(TOR, ("SYN_SENT",), 4),)), "peer-silent-syn"),
        ("", KernelEvidence(tcp=(TcpFacts(TOR, ("SYN_SENT",), 0),)), "peer-down"),
        ("", KernelEvidence(neighbours=(Neighbour(TOR, "u", "FAILED"),)), "neighbour-failed"),
    ],
)
def test_what_a_dead_session_says_is_told_apart(reason: str, kernel, fault: str):
    """By the NOTIFICATION, by how TCP fails, by the neighbour entry."""
    cause = cause_of(session("Idle", reason=reason), kernel)
    assert cause.fault == fault
    assert cause.remedy
    if reason and fault not in {"peer-down", "peer-silent-syn", "peer-unacknowledged"}:
        assert reason in cause.sentence


def test_silence_is_newer_than_the_last_notification():
    """A session that was refused once and now meets silence: another key, not another ASN."""
    silent = KernelEvidence(tcp=(TcpFacts(TOR, ("SYN_SENT",), 4),))
    cause = cause_of(session("Idle", reason="notification received (2,2)"), silent)
    assert cause.fault == "peer-silent-syn"


def test_evidence_survives_json():
    """What one node sends is what another reads; unknown fields are let be, wrong types are not."""
    for evidence in (case().origin, NodeEvidence("x", reported_sessions=(session(),))):
        data = to_json(evidence)
        assert from_json(NodeEvidence, data) == evidence
        assert from_json(NodeEvidence, data | {"later": 1}) == evidence
    with pytest.raises(MalformedEvidence, match=r"evidence\.kernel\.pods\[0\]\.host"):
        from_json(NodeEvidence, {"node": "x", "kernel": {"pods": [{"name": "p", "host": 3}]}})
    with pytest.raises(MalformedEvidence, match="missing"):
        from_json(NodeEvidence, {})
    with pytest.raises(MalformedEvidence, match=r"an object was expected"):
        from_json(NodeEvidence, [])


def test_the_json_of_any_report_is_as_published():
    """docs/schemas/explain.json, for every fault."""
    from routing.cli.explain import document

    schema = json.loads((Path(__file__).parents[2] / "docs/schemas/explain.json").read_text())
    for given in (case(), *(each[3] for each in CASES)):
        jsonschema.validate(document(explain(given)), schema)


def test_pictures_hold_every_step_and_escape_what_is_odd():
    """SVG is well formed and loads nothing; DOT quotes."""
    from xml.etree import ElementTree

    report = explain(case(subject='<b>"&', origin=NodeEvidence('n"1', kernel_error="<x>")))
    svg = to_svg(report)
    root = ElementTree.fromstring(svg)  # noqa: S314  (ours)
    boxes = list(root.iter("{http://www.w3.org/2000/svg}rect"))
    assert len(boxes) == len(report.steps)
    assert "href" not in svg
    dot = to_dot(report)
    assert 'label="n\\"1"' in dot
    assert dot.count("[label=") == len(report.steps)


def test_a_peer_that_this_node_keeps_no_session_with_is_not_looked_for_on_the_wire():
    """Closed for sending too much: the reason is here, whatever the kernel shows."""
    cause = cause_of(session("Absent", reason="closed: it sent 9"), None)
    assert cause.fault == "peer-down"
    assert "closed: it sent 9" in cause.sentence
