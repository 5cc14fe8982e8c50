"""L: links and peers that fail. Two nodes, two routers for what ECMP owes; one for the rest."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from bgp.reasons import BEFORE
from lab import runtime
from lab.chaos.restarts import GR_ON
from lab.chaos.rows import Row, Stage, Verdict
from lab.chaos.watch import Flow
from lab.chaos.world import World
from lab.plan import LabFailure

HOLD_S = 9.0
SHORT_S = 3.9
"""What is owed at a hold time of 3 s."""
TIMERS = "hold time 9; keepalive time 3;"
SECRETS = ("Kx2-chaos-one", "Kx2-chaos-two")


def carrier_loss(world: World, verdict: Verdict) -> None:
    """The only uplink goes down for 3 s and comes back."""
    world.run("node1", "sysctl", "-qw", "net.ipv6.conf.uplink0.keep_addr_on_down=1")
    routes = world.own_routes("node1")
    blocks = set(world.blocks_of("node1"))
    with world.watching(world.flows()[0]) as watch:
        world.run("node1", "ip", "link", "set", "uplink0", "down")
        gone_s = world.wait(lambda: not blocks & world.routes_at("tor1"), "the router to withdraw")
        world.for_seconds(3.0)
        world.run("node1", "ip", "link", "set", "uplink0", "up")
        began_s = time.monotonic()
        world.wait(lambda: world.is_up_at("tor1", "node1"), "the session")
        up_s = time.monotonic()
        world.wait(lambda: world.own_routes("node1") == routes, "all kernel routes")
        whole_s = time.monotonic() - up_s
        world.wait(
            lambda: world.reaches("client", world.address_of(world.pod_on("node1"))), "traffic"
        )
        back_s = time.monotonic() - began_s
    world.settled()
    verdict.note(
        f"withdrawn after {gone_s:.2f} s; session up again after {up_s - began_s:.1f} s, all "
        f"kernel routes {whole_s:.2f} s later, traffic back after {back_s:.1f} s; {watch}"
    )
    verdict.must(gone_s <= 0.2, f"withdrawn only after {gone_s:.2f} s")
    verdict.must(back_s <= 5.0, f"traffic back only after {back_s:.1f} s")
    verdict.must(whole_s <= 2.0, f"all kernel routes only {whole_s:.2f} s after the session")
    verdict.must(watch.lost > 0, "the control within this row: nothing was lost at all")


def silent_drop(world: World, verdict: Verdict) -> None:
    """Every packet of node1's link dropped without a sign; hold time 9 s."""
    blocks = set(world.blocks_of("node1"))
    with _dropping(world, "node1"):
        gone_s = world.wait(
            lambda: not blocks & world.routes_at("tor1"), "the router to withdraw", 30.0
        )
    world.settled()
    verdict.note(f"withdrawn after {gone_s:.1f} s")
    verdict.must(gone_s <= HOLD_S + 0.5, f"withdrawn only after {gone_s:.1f} s")
    verdict.must(
        gone_s > SHORT_S, f"control of L3: withdrawn after {gone_s:.1f} s whatever the hold time"
    )


def silent_drop_on_one_leg(world: World, verdict: Verdict) -> None:
    """The link to one of two routers drops everything, for longer than the hold time: a flow by
    the other loses nothing, one by that link until the hold time is over, both ways."""
    with ExitStack() as pods:
        flows = _flows_by_one_router(world, pods, set(world.tors))
        victim, spared = world.tors
        link = f"uplink{world.tors.index(victim)}"
        with world.watching(*flows.values()) as watch:
            with _dropping(world, "node1", link=link):
                world.for_seconds(HOLD_S + 6.0)
            world.settled()
    hit, kept = (next(x for x in watch.losses if x.flow == flows[t].name) for t in world.tors)
    verdict.note(
        f"by {victim}: longest gap {hit.longest_gap_s:.2f} s of {HOLD_S + 6.0:g}; by {spared}: "
        f"{kept.lost} of {kept.sent} lost"
    )
    verdict.must(hit.longest_gap_s <= HOLD_S + 0.5, f"silent for {hit.longest_gap_s:.2f} s")
    verdict.must(
        hit.longest_gap_s > SHORT_S, f"the control within this row: {hit.longest_gap_s:.2f} s only"
    )
    verdict.must(kept.lost == 0, f"{kept.lost} lost by {spared}, whose link is sound")


def silent_drop_short(world: World, verdict: Verdict) -> None:
    """The same with a hold time of 3 s."""
    with world.bird_edited("tor1", (TIMERS, "hold time 3; keepalive time 1;")):
        world.birdc("tor1", "restart", "node1")
        world.settled()
        gone_s = _until_withdrawn(world)
    world.birdc("tor1", "restart", "node1")
    world.settled()
    verdict.note(f"withdrawn after {gone_s:.2f} s")
    verdict.must(gone_s <= SHORT_S, f"withdrawn only after {gone_s:.2f} s")


def silent_drop_either_way(world: World, verdict: Verdict) -> None:
    """Silent drop right after a keepalive, without graceful restart and with it."""
    took_s = {}
    for words in ("off", "on"):
        edits = [] if words == "on" else [(GR_ON, "graceful restart off;")]
        with world.bird_edited("tor1", *edits):
            world.birdc("tor1", "restart", "node1")
            world.settled()
            # From a keepalive on, or chance alone would make three seconds of difference.
            world.wait(lambda: _hold_timer_s(world) > HOLD_S - 0.5, "a keepalive")
            took_s[words] = _until_withdrawn(world)
        world.settled()
    difference_s = took_s["on"] - took_s["off"]
    verdict.note(f"withdrawn after {took_s['off']:.1f} s without, {took_s['on']:.1f} s with it")
    verdict.must(difference_s <= 1.0, f"graceful restart costs {difference_s:.1f} s")
    verdict.must(took_s["on"] <= HOLD_S + 0.5, f"withdrawn only after {took_s['on']:.1f} s")


def _hold_timer_s(world: World) -> float:
    found = re.search(r"Hold timer:\s+([\d.]+)/", world.birdc("tor1", "show", "protocols", "all",
                                                              "node1"))  # fmt: skip
    return float(found[1]) if found else 0.0


def _until_withdrawn(world: World) -> float:
    blocks = set(world.blocks_of("node1"))
    with _dropping(world, "node1"):
        return world.wait(lambda: not blocks & world.routes_at("tor1"), "withdrawal", 30.0)


class _dropping:  # noqa: N801 - reads as a verb where it is used
    """A firewall rule that drops all that goes in or out by the uplink, while it lasts."""

    def __init__(
        self, world: World, node: str, share_percent: int = 100, link: str = "uplink0"
    ) -> None:
        self._world, self._node = world, node
        condition = "" if share_percent == 100 else f"numgen random mod 100 < {share_percent} "
        self._rules = (
            "table inet chaos {\n"
            "  chain in { type filter hook prerouting priority -400; "
            f'iifname "{link}" {condition}drop; }}\n'
            "  chain out { type filter hook postrouting priority 400; "
            f'oifname "{link}" {condition}drop; }}\n}}\n'
        )

    def __enter__(self) -> None:
        self._world.run(self._node, "sh", "-c", f"nft -f - <<'END'\n{self._rules}END")

    def __exit__(self, *_: object) -> None:
        self._world.run(self._node, "nft", "delete", "table", "inet", "chaos")


def lossy_link(world: World, verdict: Verdict) -> None:
    """A fifth of all packets lost both ways for 20 s: the session must hold."""
    before = world.session_lines("tor1")
    with _dropping(world, "node1", share_percent=20):
        world.for_seconds(20.0)
        after = world.session_lines("tor1")
    verdict.note("session held" if before == after else "session was lost")
    verdict.must(before == after, "the session did not survive")
    world.settled()


def one_of_two_routers_dies(world: World, verdict: Verdict) -> None:
    """ECMP: a router's links go down; flows that go by the other, both ways, lose nothing."""

    def hops() -> list[int]:
        return [line.count("via ") for line in world.own_routes("node1") if " via " in line]

    both = hops()
    with ExitStack() as pods:
        ((spared, flow),) = _flows_by_one_router(world, pods).items()
        victim = next(tor for tor in world.tors if tor != spared)
        with world.watching(flow) as watch:
            for node in world.nodes:
                world.run(victim, "ip", "link", "set", node, "down")
            single_s = world.wait(lambda: hops() == [1] * len(both), "one next hop everywhere")
            world.for_seconds(2.0)
        for node in world.nodes:
            world.run(victim, "ip", "link", "set", node, "up")
        world.wait(lambda: sorted(hops()) == sorted(both), "both next hops again")
        deleted = deletions(watch.route_events["node1"])
    world.settled()
    verdict.note(
        f"one hop after {single_s:.2f} s, {watch} by {spared}, {len(deleted)} whole routes deleted"
    )
    verdict.must(bool(both) and all(count == 2 for count in both), f"hops before: {both}")
    verdict.must(single_s <= 1.0, f"the dead hop stayed for {single_s:.2f} s")
    verdict.must(watch.lost == 0, f"{watch} although the flow went by {spared}")
    verdict.must(not deleted, f"went as a whole: {deleted[:3]}")


def _flows_by_one_router(
    world: World, pods: ExitStack, tors: Iterable[str] = ()
) -> dict[str, Flow]:
    """A flow by each of ``tors`` (by any one, if none is named), from a pod of node2 to one of
    node1, that takes this router in both directions, as the kernels' hashes have it; pods are added
    until there is one."""
    far = world.pod_on("node2")
    source = world.address_of(far)
    found: dict[str, Flow] = {}
    for number in range(24):
        sandbox, _ = pods.enter_context(world.extra_pod("node1", f"by-{number}"))
        given = runtime.addresses_in(world.lab.runtime_of("node1").add(sandbox))
        target = next(each for each in given if ":" not in each)
        out = _uplink(world, "node2", target, source)
        if out == _uplink(world, "node1", source, target):
            tor = world.tors[int(out.removeprefix("uplink"))]
            found.setdefault(tor, Flow(f"by {tor}", far.namespace, target))
            if found.keys() >= set(tors):
                return found
    raise LabFailure(f"no flow takes {' or '.join(tors) or 'one router'} in both directions")


def _uplink(world: World, node: str, target: str, source: str) -> str:
    """The link by which a node forwards what its pod ``source`` sends to ``target``."""
    pod_link = re.search(r"dev (\S+)", world.run(node, "ip", "route", "show", source))
    assert pod_link is not None  # noqa: S101 - the pod has a route
    words = ("ip", "route", "get", target, "from", source, "iif", pod_link[1])
    found = re.search(r"via \S+ dev (\S+)", world.run(node, *words))
    assert found is not None  # noqa: S101 - nodes reach each other by routers alone
    return found[1]


def deletions(events: list[str]) -> list[str]:
    """The IPv4 routes that went as a whole; IPv6 reports each next hop as a route."""
    return [line for line in events if line.startswith("Deleted") and ":" not in line.split()[1]]


SESSION = "neighbor 172.30.0.1 as 64601;"
SILENT = r"no answer to our SYN"
SILENT_CAUSE = "peer-silent-syn"
UNACKNOWLEDGED = r"nothing that we send is acknowledged|no word comes|no answer to our SYN"
TOLD_S = 10.0
Refusal = tuple[str, str, dict[str, Any], str, str]
"""The fault, the router's words in place of SESSION, fields of our peer, words of the reason, and
what ``doctor`` and ``explain`` call it."""


def wrong_asn(world: World, verdict: Verdict) -> None:
    """The router expects another ASN and says so."""
    _refused(
        world,
        verdict,
        [("ASN", "neighbor 172.30.0.1 as 64999;", {}, r"AS 64601", "peer-wrong-asn")],
    )


def refused_in_silence(world: World, verdict: Verdict) -> None:
    """A password at the router alone, two passwords, a TTL of 255 expected: nobody answers."""
    keyed = {"password": {"secretKeyRef": {"name": "l8", "key": "password"}}}
    key = f'{SESSION}\n  password "{SECRETS[1]}";'
    either = f"peer-unacknowledged|{SILENT_CAUSE}"
    _refused(
        world,
        verdict,
        [
            ("one password", key, {}, SILENT, SILENT_CAUSE),
            ("two passwords", key, keyed, SILENT, SILENT_CAUSE),
            ("TTL", f"{SESSION}\n  ttl security on;", {}, UNACKNOWLEDGED, either),
        ],
    )


def _refused(world: World, verdict: Verdict, cases: list[Refusal]) -> None:
    """Each time no session, the reason in `slash32 peers` and in the node's condition, others
    untouched."""
    others = [line for line in world.session_lines("tor1") if not line.startswith("node1")]
    world.apply(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: l8}\n"
        f"stringData: {{password: {SECRETS[0]}}}\n"
    )
    for what, words, fields, pattern, cause in cases:
        with ExitStack() as stack:
            # Undone last: at its end all must be well again.
            stack.enter_context(world.bird_edited("tor1", (SESSION, words)))
            if fields:
                stack.enter_context(world.peer_edited("node1", "tor1", fields))
            world.birdc("tor1", "restart", "node1")
            # What is known at first is that it ended; why it does not come back is what is owed.
            begun_s = time.monotonic()
            refused_s = _until_told(world, pattern, what)
            told_s = time.monotonic() - refused_s
            world.wait(partial(_says, world, _established, pattern), f"the condition ({what})")
            condition_s = time.monotonic() - refused_s
            # And it stands: another attempt, another end of a hold time change nothing.
            world.for_seconds(max(0.0, begun_s + HOLD_S + 6.0 - time.monotonic()))
            reason = _reason(world, "node1")
            doctor = _doctor(world, "node1")
            is_up = world.is_up_at("tor1", "node1")
        world.birdc("tor1", "restart", "node1")
        world.settled()
        verdict.note(
            f'{what}: "{reason}" in `peers` after {told_s:.1f} s, in the condition after '
            f"{condition_s:.1f} s{_before(refused_s - begun_s)}"
        )
        verdict.must(not is_up, f"{what}: the session is up")
        verdict.must(condition_s <= TOLD_S, f"{what}: told only after {condition_s:.1f} s")
        now = reason.partition(BEFORE)[0]
        verdict.must(bool(re.search(pattern, now)), f"{what}: it did not stand: {reason}")
        verdict.must(bool(re.search(cause, doctor)), f"{what}: doctor says {doctor!r}")
        verdict.must(reason.isprintable() and reason.isascii(), f"{what}: {reason!r}")
    left = [line for line in world.session_lines("tor1") if not line.startswith("node1")]
    verdict.must(left == others, "another session was touched")


def _until_told(world: World, pattern: str, what: str) -> float:
    """Waits for the reason in `peers`; since when there has been no session, by the monotonic
    clock. BIRD asks for a TTL once it has accepted: now and then a session is up first, until its
    hold time is over, and before that there is nothing to tell."""
    up_s = [time.monotonic()]

    def is_told() -> bool:
        if _rows(world, "node1", "Established"):
            up_s[0] = time.monotonic()
        return _says(world, _reason, pattern)

    world.wait(is_told, f"the reason ({what})")
    return up_s[0]


def _before(up_s: float) -> str:
    return (
        f", of the end of a session that had come up once more for {up_s:.1f} s"
        if up_s > 0.1
        else ""
    )


def _says(world: World, where: Callable[[World, str], str], pattern: str) -> bool:
    """Whether node1 says so of what holds now, and not of how the session before it ended."""
    return bool(re.search(pattern, where(world, "node1").partition(BEFORE)[0]))


def _doctor(world: World, node: str) -> str:
    """What ``slash32 doctor`` says of the node's sessions."""
    rows = world.ask(node, "doctor", "--state-dir", str(world.lab.paths.state_dir(node))) or []
    return "; ".join(str(row["evidence"]) for row in rows if row["id"] == "sessions")


def _established(world: World, node: str) -> str:
    """The condition Established of a node's NodeStatus, as text."""
    with suppress(LabFailure):
        # Not there yet in the first seconds of a cluster.
        found = world.api(f"/apis/slash32.io/v1/nodestatuses/{node}").get("status", {})
        return str([c for c in found.get("conditions", []) if c["type"] == "Established"])
    return ""


def router_id_clash(world: World, verdict: Verdict) -> None:
    """A reflector has the router id of node1 (iBGP: RFC 6286 forbids it): no session, told."""

    def touched() -> list[str]:
        lines = [line for tor in world.tors for line in world.session_lines(tor)]
        return [line for line in lines if not line.startswith("node1 ")]

    others, head = touched(), "protocol bgp node1 from node {\n"
    own = world.machine("node1")
    (address,) = {near.ipv4 for near, _ in world.lab.plan.links_of(own)}
    with world.bird_edited("rr1", (head, f"{head}  router id {address};\n")):
        world.birdc("rr1", "restart", "node1")
        told_s = world.wait(lambda: "2/3" in _reason(world, "node1"), "the reason")
        reason, is_up = _reason(world, "node1"), world.is_up_at("rr1", "node1")
    world.settled()
    verdict.note(f'told after {told_s:.1f} s: "{reason}"')
    verdict.must(not is_up, "the session is up")
    verdict.must(told_s <= 10.0, f"told only after {told_s:.1f} s")
    verdict.must(touched() == others, "another session was touched")


def _reason(world: World, node: str) -> str:
    return next((str(row["reason"]) for row in _rows(world, node) if row.get("reason")), "")


def _rows(world: World, node: str, state: str = "") -> list[Any]:
    """What `peers` says of a node's sessions, of all or of those in one state."""
    rows = world.ask(node, "peers") or []
    rows = rows if isinstance(rows, list) else rows.get("peers", [])
    return [row for row in rows if not state or row.get("state") == state]


def frozen_speaker(world: World, verdict: Verdict) -> None:
    """ExaBGP frozen for longer than the hold time: session lost, and all is well after."""
    blocks = set(world.blocks_of("node1"))
    pid = world.exabgp_pid("node1")
    with world.bird_edited("tor1", (GR_ON, "graceful restart off;")):
        world.birdc("tor1", "restart", "all")
        world.settled()
        pid = world.exabgp_pid("node1")
        os.kill(pid, signal.SIGSTOP)
        try:
            gone_s = world.wait(lambda: not blocks & world.routes_at("tor1"), "withdrawal", 30.0)
        finally:
            os.kill(pid, signal.SIGCONT)
        back_s = world.wait(lambda: blocks <= world.routes_at("tor1"), "the routes")
        world.settled()
    world.settled()
    verdict.note(f"withdrawn after {gone_s:.1f} s, back {back_s:.1f} s after it went on")
    verdict.must(gone_s <= HOLD_S + 1.5, f"withdrawn only after {gone_s:.1f} s")


def peers_changed(world: World, verdict: Verdict) -> None:
    """A peer is added, gets another address, is removed; a session's password is set and rotated:
    no other session notices."""
    others = [line for line in world.session_lines("tor1") if not line.startswith("node1")]
    everything = world.session_lines("tor1") + world.session_lines("tor2")
    for address in ("192.0.2.77", "192.0.2.78"):
        world.apply(
            "apiVersion: slash32.io/v1\nkind: BGPPeer\nmetadata: {name: chaos}\n"
            f"spec: {{peerIP: {address}, asNumber: 64999}}\n"
        )
        world.wait(lambda a=address: _peer_addresses(world, "chaos") == {a}, "the peer")  # type: ignore[misc]
    world.delete("BGPPeer", "chaos")
    world.wait(lambda: not _peer_addresses(world, "chaos"), "the peer's end")
    untouched = world.session_lines("tor1") + world.session_lines("tor2")
    verdict.must(untouched == everything, "a session was touched by a peer that came and went")
    far = world.session_lines("tor2")
    session = "neighbor 172.30.0.1 as 64601;"
    for secret in SECRETS:
        name, before = secret[-3:], _line_of(world, "node1")
        began_s = time.monotonic()
        world.apply(
            f"apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\n"
            f"stringData: {{password: {secret}}}\n"
        )
        fields = {"password": {"secretKeyRef": {"name": name, "key": "password"}}}
        with (
            world.bird_edited("tor1", (session, f'{session}\n  password "{secret}";')),
            world.peer_edited("node1", "tor1", fields),
        ):
            world.wait(partial(_is_up_anew, world, before), "the session, anew")
            up_s = time.monotonic() - began_s
            world.settled()
            verdict.note(f"up again {up_s:.1f} s after a new password")
    world.settled()
    left = [line for line in world.session_lines("tor1") if not line.startswith("node1")]
    verdict.must(left == others and world.session_lines("tor2") == far, "another was touched")


def every_peer_changed(world: World, verdict: Verdict) -> None:
    """Control: a setting of every session at every node and router changes; what L10 compares must
    see all of them reset."""
    before = _up_lines(world)
    with ExitStack() as stack:
        for node in world.nodes:
            for tor in world.tors:
                stack.enter_context(world.peer_edited(node, tor, {"holdTime": "12s"}))
        world.wait(lambda: not before & _up_lines(world), "every session to be reset")
        world.wait(lambda: len(_up_lines(world)) == len(before), "every session, anew")
    world.settled()
    verdict.note(f"{len(before)} sessions, all seen to be reset")
    verdict.must(len(before) == len(world.nodes) * len(world.tors), f"{len(before)} sessions")


def _up_lines(world: World) -> set[str]:
    """Every Established session of a node at either router, with since when."""
    lines = {f"{tor}: {line}" for tor in world.tors for line in world.session_lines(tor)}
    return {line for line in lines if "Established" in line and ": node" in line}


def _line_of(world: World, node: str) -> str:
    """The router's session with a node and since when, once it is up."""
    lines = [line for line in world.session_lines("tor1") if line.startswith(f"{node} ")]
    return next((line for line in lines if "Established" in line), "")


def _is_up_anew(world: World, before: str) -> bool:
    return _line_of(world, "node1") not in {before, ""}


def _peer_addresses(world: World, name: str) -> set[str]:
    """Of the peer of that name, on every node."""
    return {
        str(row["peer"])
        for node in world.nodes
        for row in world.lab.ask(node, "peers")
        if row["name"] == name
    }


def own_address_changes(world: World, verdict: Verdict) -> None:
    """A node of a mesh gets another address; its Node says so."""
    _readdressed(world, verdict)


def own_address_changes_unheard(world: World, verdict: Verdict) -> None:
    """Control: the same while the agent of another node is frozen: there the next hop is stale."""
    world.send("agent-node3", signal.SIGSTOP)
    try:
        stale = _readdressed(world, verdict, but="node3")
    finally:
        world.send("agent-node3", signal.SIGCONT)
    verdict.note(f"with its agent frozen node3 has {', '.join(sorted(stale)) or 'no next hop'}")
    verdict.must(stale == {OLD_ADDRESS}, f"must have the old next hop, has {stale}")


OLD_ADDRESS, NEW_ADDRESS = "172.30.0.11", "172.30.0.111"


def _readdressed(world: World, verdict: Verdict, *, but: str = "") -> set[str]:
    """The next hops by which ``but`` reaches node1 when every other node has the new one."""
    old, new = OLD_ADDRESS, NEW_ADDRESS
    (block,) = [each for each in world.blocks_of("node1") if ":" not in each]

    def hops(node: str) -> set[str]:
        lines = [line for line in world.own_routes(node) if line.startswith(f"{block} ")]
        return set(re.findall(r"via (\S+)", " ".join(lines)))

    before = hops("node2")
    # Never both: the second of a subnet goes with the first (promote_secondaries is 0).
    world.run("node1", "ip", "addr", "del", f"{old}/24", "dev", "uplink0")
    world.run("node1", "ip", "addr", "add", f"{new}/24", "dev", "uplink0")
    world.apply(
        "apiVersion: slash32.io/v1\nkind: Node\nmetadata: {name: node1}\n"
        f"spec: {{addresses: [{new}, 'fd00:30::b']}}\n"
    )
    others = [node for node in world.nodes if node not in {"node1", but}]
    took_s = world.wait(lambda: all(hops(n) == {new} for n in others), "the new next hop")
    far = world.pod_on("node2").name
    world.wait(lambda: world.reaches(far, world.address_of(world.pod_on("node1"))), "traffic")
    verdict.note(f"the next hop of {', '.join(others)} is the new one after {took_s:.1f} s")
    verdict.must(before == {old}, f"the next hop was {before}")
    verdict.must(took_s <= 10.0, f"only after {took_s:.1f} s")
    return hops(but) if but else set()


_ONE = Stage.ONE_TOR

ROWS = [
    Row("L1", "uplink loses its carrier for 3 s", "withdrawn within 0.2 s, traffic back within "
        "5 s, all kernel routes within 2 s of the session", _ONE, carrier_loss, is_quick=True),
    Row("L2", "all packets silently dropped, hold time 9 s, graceful restart on",
        f"withdrawn within 9.5 s, and (control of L3) not before {SHORT_S} s", _ONE, silent_drop),
    Row("L2b", "all packets to one of two routers silently dropped (ECMP), hold time 9 s",
        "by that router at most 9.5 s lost (and, the control within, over 3.9), by the other 0",
        Stage.TWO_TORS, silent_drop_on_one_leg, control="R0"),
    Row("L5", "one of two routers dies (ECMP)", "one next hop within 1 s, no route goes whole, "
        "0 lost where the other is used", Stage.TWO_TORS, one_of_two_routers_dies, control="R0",
        is_quick=True),
    Row("L7", "20 % of packets lost both ways for 20 s", "the session holds", _ONE, lossy_link,
        control="L2"),
    Row("L8", "the router expects another ASN",
        "no session; reason and condition within 10 s, in words; others untouched",
        Stage.KUBERNETES, wrong_asn),
    Row("L8c", "a password at the router alone, two passwords, a TTL of 255 expected",
        "no session; reason and condition within 10 s, in words; others untouched",
        Stage.KUBERNETES, refused_in_silence),
    Row("L8b", "a route reflector has a node's router id", "no session, told within 10 s, others "
        "untouched", Stage.REFLECTORS, router_id_clash),
    Row("L9b", "ExaBGP frozen beyond the hold time", "withdrawn within 10.5 s, whole again after",
        _ONE, frozen_speaker),
    Row("L3", "all packets silently dropped, hold time 3 s", "withdrawn within 3.9 s", _ONE,
        silent_drop_short, control="L2"),
    Row("L4", "silently dropped right after a keepalive, graceful restart off and on",
        "on costs 1 s at most, withdrawn within 9.5 s", _ONE, silent_drop_either_way,
        control="R8"),
    Row("L10", "a peer comes, changes its address, goes; a password is set and rotated",
        "that session alone resets", Stage.TWO_TORS, peers_changed, control="L10a"),
    Row("L10a", "control: a setting of every peer changes", "must show every session reset",
        Stage.TWO_TORS, every_peer_changed),
    Row("L11", "a node's own address changes (mesh)",
        "its next hop is the new one everywhere within 10 s, and no other", Stage.MESH,
        own_address_changes, control="L11a", leaves_lab=False),
    Row("L11a", "control: the same while another node's agent is frozen",
        "must find the old next hop there", Stage.MESH, own_address_changes_unheard,
        leaves_lab=False),
]  # fmt: skip
