"""R and O: the Kubernetes API gone, slow, silent or of another opinion, and the nodes under it.

The API is the lab's double (lab/apiserver), on loopback of every node. What it is made to do is
what a real one has done to somebody: it dies, its packets vanish, its watches fall silent, it has
forgotten the past, its definitions are removed.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from lab import runtime
from lab.chaos.rows import Row, Stage, Verdict
from lab.chaos.watch import Flow
from lab.chaos.world import World, zero
from lab.plan import API_PORT, LabFailure

AWAY_S = 600.0
DETECT_S = 70.0
SLOW_LIST_S = 10.0
MANY = 1_000_000
WRITING = frozenset({"create", "update", "patch", "delete"})
FOLLOWED = ("watch", "ippools")
SPREAD_MIN_S = 0.2
"""Of four clients that each wait for some random part of up to half a minute."""
BUSIEST_MAX = 40
"""Requests in a tenth of a second: one client opens about ten watches at once."""
POOLS = "/apis/slash32.io/v1/ippools"
PEERS = "/apis/slash32.io/v1/bgppeers"
TRY_AGAIN_LATER = 11

Document = dict[str, Any]


def _is_told(world: World) -> bool:
    return len(world.store_errors()) == len(world.nodes)


@contextmanager
def _api_away(world: World) -> Iterator[None]:
    """No API server; returns when every agent says so, and ends when every agent has it again."""
    world.lab.stop_api()
    try:
        world.wait(lambda: _is_told(world), "agents without the API")
        yield
    finally:
        world.lab.stop_api(is_back=True)
    world.wait(lambda: not world.store_errors(), "agents with the API")


def _restart(world: World, *names: str) -> None:
    """Kills processes together and starts them again, the speaker first."""
    for name in names:
        if name.startswith("speaker-"):
            world.kill_speaker(name.removeprefix("speaker-"))
        else:
            world.kill(name)
    for name in sorted(names, reverse=True):
        node = name.partition("-")[2]
        start = world.start_speaker if name.startswith("speaker-") else world.start_agent
        start(node)
    for name in names:
        node = name.partition("-")[2]
        world.wait(lambda node=node: answers(world, node), f"the agent of {node}")  # type: ignore[misc]
        world.wait(lambda node=node: world.is_up_at("tor1", node), "the session")  # type: ignore[misc]


def answers(world: World, node: str) -> bool:
    with suppress(LabFailure):
        return bool(world.lab.ask(node, "status"))
    return False


def _advertises(world: World, node: str) -> bool:
    with suppress(LabFailure):
        told = {str(row["prefix"]) for row in world.lab.ask(node, "advertised")}
        return set(world.blocks_of(node)) <= told
    return False


def _blocks(world: World) -> set[str]:
    return {block for node in world.nodes for block in world.blocks_of(node)}


def agent_restarts_without_api(world: World, verdict: Verdict) -> None:
    """No API, an agent killed, started again; then a pod comes and goes."""
    routes = {node: world.own_routes(node) for node in world.nodes}
    sessions = world.session_lines("tor1")
    with _api_away(world):
        with world.watching() as watch:
            world.kill("agent-node2")
            world.start_agent("node2")
            world.wait(lambda: answers(world, "node2"), "the new agent")
            world.for_seconds(2.0)
        told = [text for text in world.store_errors() if text.startswith("node2")]
        with world.extra_pod("node2", "r9") as (sandbox, _):
            given = runtime.addresses_in(world.lab.runtime_of("node2").add(sandbox))
            address = next(a for a in given if ":" not in a)
            far = world.pod_on("node3").name
            world.wait(lambda: world.reaches(far, address), f"{address}, added meanwhile")
        kept = {node: world.own_routes(node) for node in world.nodes}
    world.settled()
    verdict.note(f'told: "{told[0] if told else ""}"; a pod came and went')
    zero(world, verdict, watch)
    verdict.must(bool(told), "the new agent does not say that the API is away")
    verdict.must(kept == routes, "other routes than before")
    verdict.must(world.session_lines("tor1") == sessions, "a session was touched")


def _restarted(world: World) -> tuple[float, float]:
    """Agent and speaker of node1 killed and started, alone on their node. Seconds from that start
    until the router has got the node's blocks again, and until the agent has taken them over."""
    blocks = len(world.blocks_of("node1"))
    world.kill("agent-node1")
    world.kill_speaker("node1")
    before = _updates_from(world, "node1")
    began_s = time.monotonic()
    world.start_speaker("node1")
    world.start_agent("node1")
    world.wait(lambda: _updates_from(world, "node1") >= before + blocks, "announcements")
    heard_s = time.monotonic() - began_s
    world.wait(lambda: _advertises(world, "node1"), "the agent")
    return heard_s, time.monotonic() - began_s


def _updates_from(world: World, node: str) -> int:
    """How many routes a BIRD has got from a node since it was configured, repeated ones too."""
    text = world.birdc("tor1", "show", "protocols", "all", node)
    return sum(int(found) for found in re.findall(r"Import updates:\s+(\d+)", text))


def _faulty(*faults: Document) -> Callable[[World, Verdict], None]:
    """An experiment: agent and speaker of a node restart while the API is faulty like that."""

    def run(world: World, verdict: Verdict) -> None:
        for fault in faults:
            world.api("/-/fault", {"times": MANY, **fault})
        try:
            with world.watching() as watch:
                heard_s, agent_s = _restarted(world)
                world.wait(lambda: world.is_up_at("tor1", "node1"), "the session")
                world.wait(lambda: not world.store_errors(), "the API, in spite of its faults")
                world.for_seconds(2.0)
        finally:
            world.api("/-/clear", {})
        world.settled()
        verdict.note(
            f"at the router {heard_s:.1f} s after the start of agent and speaker; the agent had "
            f"taken them over after {agent_s:.1f} s"
        )
        zero(world, verdict, watch)
        verdict.must(heard_s <= 2.0, f"announced only after {heard_s:.1f} s")

    return run


def ten_minutes_away(world: World, verdict: Verdict) -> None:
    """No API for ten minutes. Meanwhile pods die and start, and agents and speakers are killed,
    alone and together; one pod of before is deleted, one that came meanwhile stays."""
    blocks, end_s = _blocks(world), time.monotonic() + AWAY_S
    come, gone, kills = 0, 0, 0
    with ExitStack() as pods:
        early, _ = pods.enter_context(world.extra_pod("node1", "o1early"))
        world.lab.runtime_of("node1").add(early)
        late, _ = pods.enter_context(world.extra_pod("node2", "o1late"))
        with world.watching() as watch:
            with _api_away(world):
                world.lab.runtime_of("node1").delete(early)
                late_given = runtime.addresses_in(world.lab.runtime_of("node2").add(late))
                gone, come = gone + 1, come + 1
                while time.monotonic() < end_s:
                    node = world.nodes[kills % 3]
                    with world.extra_pod(node, f"o1-{kills}") as (sandbox, _):
                        world.lab.runtime_of(node).add(sandbox)
                        _restart(world, *_victims(node, kills))
                        kills += 1
                    come, gone = come + 1, gone + 1
                    world.for_seconds(min(20.0, max(0.0, end_s - time.monotonic())))
                returned_s = time.monotonic()
            world.for_seconds(5.0)
            recent = world.api("/-/recent")
            since_s = time.monotonic() - returned_s
        world.settled()
        after = _blocks(world)
        far = world.pod_on("node3").name
        still = [a for a in late_given if ":" not in a and world.reaches(far, a)]
        world.lab.runtime_of("node2").delete(late)
    verdict.note(f"{AWAY_S / 60:.0f} min, {kills} kills, {come} ADDs, {gone} DELs")
    _returned(verdict, [(since_s - ago_s, *what) for ago_s, *what in recent if ago_s < since_s])
    verdict.must(watch.lost == 0, str(watch))
    events = [
        line for line in watch.events_on(*world.nodes, *world.tors) if "s32" not in line
    ]  # fmt: skip
    verdict.note(f"{watch}, {len(events)} route events but those of pods")
    verdict.must(not events, f"route events: {events[:3]}")
    verdict.must(blocks == after, f"other blocks than before: {sorted(blocks ^ after)}")
    verdict.must(bool(still), "the pod that came meanwhile is not reached afterwards")


def _victims(node: str, turn: int) -> tuple[str, ...]:
    both = (f"agent-{node}", f"speaker-{node}")
    return (both[:1], both[1:], both)[turn // 3 % 3]


def _returned(verdict: Verdict, requests: list[tuple[Any, ...]]) -> None:
    """How everybody came back: not at once. ``requests``: seconds after the API was back, verb,
    resource, name."""
    times = sorted(at_s for at_s, *_ in requests)
    busiest = max((sum(at <= each < at + 0.1 for each in times) for at in times), default=0)
    writes = sum(verb in WRITING for _, verb, *_ in requests)
    # Each of them follows the pools: three agents and the controller.
    first = [at_s for at_s, verb, what, _ in sorted(requests) if (verb, what) == FOLLOWED][:4]
    spread_s = first[-1] - first[0] if first else 0.0
    verdict.note(
        f"then {len(first)} clients came back, the last {spread_s:.1f} s after the first; "
        f"{len(times)} requests in {times[-1] if times else 0:.0f} s, {writes} of them writes, "
        f"{busiest} at most in a tenth of a second"
    )
    verdict.must(len(first) == 4, f"{len(first)} clients were seen to come back")
    verdict.must(spread_s >= SPREAD_MIN_S, f"all came back within {spread_s:.2f} s")
    verdict.must(busiest <= BUSIEST_MAX, f"{busiest} requests within a tenth of a second")


_BLACK_HOLE = (
    "table inet chaos {\n"
    "  chain in { type filter hook input priority -400; "
    f"tcp dport {API_PORT} drop; tcp sport {API_PORT} drop; }}\n}}\n"
)


def black_hole(world: World, verdict: Verdict) -> None:
    """Every packet between node1's agent and the API is dropped without a sign."""
    agent = world.process("agent-node1").pid
    with world.watching() as watch:
        world.run("node1", "sh", "-c", f"nft -f - <<'END'\n{_BLACK_HOLE}END")
        try:
            cpu_s, began_s = _cpu_s(agent), time.monotonic()
            told_s = world.wait(lambda: _has_error(world), "the agent to notice", 2 * DETECT_S)
            world.for_seconds(max(0.0, 30.0 - told_s))
            share = (_cpu_s(agent) - cpu_s) / (time.monotonic() - began_s)
        finally:
            world.run("node1", "nft", "delete", "table", "inet", "chaos")
        back_s = world.wait(lambda: not world.store_errors(), "the API again")
    world.settled()
    verdict.note(
        f"noticed after {told_s:.0f} s, back {back_s:.0f} s after the packets passed again, "
        f"{100 * share:.1f} % of a core meanwhile"
    )
    zero(world, verdict, watch)
    verdict.must(told_s <= DETECT_S, f"noticed only after {told_s:.0f} s")
    verdict.must(share < 0.1, f"{100 * share:.0f} % of a core")


def _has_error(world: World) -> bool:
    return any(text.startswith("node1:") for text in world.store_errors())


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))


def peer(name: str, address: str) -> Document:
    """A router that is not there, of every node."""
    return {
        "apiVersion": "slash32.io/v1", "kind": "BGPPeer", "metadata": {"name": name},
        "spec": {"peerIP": address, "asNumber": 64999},
    }  # fmt: skip


def _knowing(world: World, name: str) -> list[str]:
    """The nodes that have a session of that name, up or not."""
    return [
        node for node in world.nodes
        if name in {row["name"] for row in world.lab.ask(node, "peers")}
    ]  # fmt: skip


def past_is_forgotten(world: World, verdict: Verdict) -> None:
    """Watches without bookmarks fall silent, a peer comes, the log is compacted; and again when
    it goes: each time 410 is the answer, and everything is listed again."""
    sessions = world.session_lines("tor1")
    world.api("/-/bookmarks", {"on": False})
    with world.watching() as watch:
        world.api("/-/silent", {"on": True})
        world.api(PEERS, peer("new", "192.0.2.77"))
        world.api("/-/compact", {})
        unheard = not _knowing(world, "new")
        world.api("/-/silent", {"on": False})
        heard_s = world.wait(lambda: len(_knowing(world, "new")) == 3, "the new peer")
        world.api("/-/silent", {"on": True})
        world.api(f"{PEERS}/new", method="DELETE")
        world.api("/-/compact", {})
        world.api("/-/silent", {"on": False})
        gone_s = world.wait(lambda: not _knowing(world, "new"), "the peer's end")
    world.api("/-/bookmarks", {"on": True})
    world.settled()
    verdict.note(f"known {heard_s:.1f} s and {gone_s:.1f} s after the 410")
    zero(world, verdict, watch)
    verdict.must(unheard, "the control within this row: a silent watch told of a change")
    verdict.must(world.session_lines("tor1") == sessions, "a session was touched")


def silent_watch(world: World, verdict: Verdict) -> None:
    """Watches stay open and say nothing, not even that they end."""
    with world.watching() as watch:
        world.api("/-/silent", {"on": True})
        try:
            world.api(PEERS, peer("unheard", "192.0.2.78"))
            heard_s = world.wait(
                lambda: len(_knowing(world, "unheard")) == 3, "the peer", 2 * DETECT_S
            )
        finally:
            world.api("/-/silent", {"on": False})
    world.api(f"{PEERS}/unheard", method="DELETE")
    world.settled()
    verdict.note(f"known to all nodes after {heard_s:.0f} s of silence")
    zero(world, verdict, watch)
    verdict.must(heard_s <= DETECT_S, f"only after {heard_s:.0f} s")


def definitions_removed(world: World, verdict: Verdict) -> None:
    """Somebody deletes the definitions of IPPool and BGPPeer; an object becomes unreadable; all is
    put back."""
    with world.watching() as watch:
        world.api("/-/missing", {"plurals": ["ippools", "bgppeers"]})
        told_s = world.wait(lambda: _is_told(world), "agents to tell", DETECT_S)
        world.for_seconds(3.0)
        world.api("/-/missing", {"plurals": []})
        world.wait(lambda: not world.store_errors(), "the API again", DETECT_S)
        # The definition takes it (Calico has the field), and we cannot be that.
        world.api(f"{POOLS}/lab-v4", {"spec": {"vxlanMode": "Always"}}, method="PATCH")
        problem_s = world.wait(lambda: tells_of(world, "vxlanMode"), "the findings")
        condition_s = world.wait(lambda: "Malformed" in _conditions(world, "lab-v4"), "condition")
        world.wait(lambda: bool(world.events("Malformed")), "the Event")
        with world.extra_pod("node1", "o5") as (sandbox, _):
            given = runtime.addresses_in(world.lab.runtime_of("node1").add(sandbox))
            world.lab.runtime_of("node1").delete(sandbox)
        world.api(f"{POOLS}/lab-v4", {"spec": {"vxlanMode": None}}, method="PATCH")
        world.wait(lambda: "Malformed" not in _conditions(world, "lab-v4"), "no condition")
        world.settled()
    verdict.note(
        f"told after {told_s:.1f} s; the unreadable object named after {problem_s:.1f} s, its "
        f'condition after {condition_s:.0f} s more, Event: "{world.events("Malformed")[0]}"; a pod '
        f"had {given[0]} of it"
    )
    events = [e for e in watch.events_on(*world.nodes, *world.tors) if " dev s32" not in e]
    verdict.note(f"{watch}, {len(events)} route events but those of the pod")
    verdict.must(watch.lost == 0, str(watch))
    verdict.must(not events, f"route events: {events[:3]}")
    verdict.must(any("10.244." in a for a in given), f"the last good pool gave {given}")


def _conditions(world: World, pool: str) -> str:
    return str(world.api(f"{POOLS}/{pool}").get("status", {}).get("conditions"))


def tells_of(world: World, text: str, *, node: str = "") -> bool:
    """Whether every node, or that one, has a finding with a text in it."""
    with suppress(LabFailure):
        asked = [node] if node else world.nodes
        findings = [world.lab.ask(each, "status")["findings"] for each in asked]
        return all(any(text in finding for finding in each) for each in findings)
    return False


def node_made_again(world: World, verdict: Verdict) -> None:
    """A Node object is deleted and made again, with another uid, while its agent runs."""
    path, blocks = "/api/v1/nodes/node3", _blocks(world)
    before = world.api(path)
    with world.watching(*world.flows(), _flow_to(world, "node3")) as watch:
        world.api(path, method="DELETE")
        told_s = world.wait(
            lambda: tells_of(world, "is gone from the store", node="node3"), "the agent to tell"
        )
        world.for_seconds(3.0)
        metadata = {k: before["metadata"].get(k) for k in ("name", "labels", "annotations")}
        world.api("/api/v1/nodes", {**before, "metadata": metadata})
        world.api(f"{path}/status", {"status": before.get("status", {})}, method="PATCH")
        world.settled()
    after = world.api(path)["metadata"]["uid"]
    verdict.note(f"told after {told_s:.1f} s")
    zero(world, verdict, watch)
    verdict.must(after != before["metadata"]["uid"], "the Node has its old uid")
    verdict.must(_blocks(world) == blocks, "other blocks than before")


def _flow_to(world: World, node: str) -> Flow:
    return Flow(f"to {node}", world.lab.plan.client.namespace,
                world.address_of(world.pod_on(node)))  # fmt: skip


def refused_claims(world: World, verdict: Verdict) -> None:
    """For 30 s every write of a block is answered 409, and a node needs one: ADD says 11, and gets
    its address when it is over."""
    plugin = world.lab.runtime_of("node1")
    world.apply(_pools(lab=False, spare=True))
    codes: list[int | None] = []
    try:
        world.wait(lambda: _code_of_status(plugin) is None, "STATUS")
        for verb in ("create", "update"):
            world.api("/-/fault", {"verb": verb, "resource": "blocks", "status": 409,
                                   "reason": "Conflict", "times": MANY})  # fmt: skip
        with world.extra_pod("node1", "a4") as (sandbox, _):
            end_s, slowest_s = time.monotonic() + 30.0, 0.0
            while time.monotonic() < end_s:
                began_s = time.monotonic()
                codes.append(_code_of(plugin, sandbox))
                slowest_s = max(slowest_s, time.monotonic() - began_s)
                world.for_seconds(2.0)
            world.api("/-/clear", {})
            world.wait(lambda: _code_of(plugin, sandbox) is None, "an ADD that succeeds")
            plugin.delete(sandbox)
    finally:
        world.api("/-/clear", {})
        world.apply(_pools(lab=True, spare=False))
    verdict.note(f"{len(codes)} ADDs answered {sorted(map(str, set(codes)))}, slowest "
                 f"{slowest_s:.1f} s; then one succeeded")  # fmt: skip
    verdict.must(set(codes) == {TRY_AGAIN_LATER}, f"answered {codes}")
    verdict.must(slowest_s <= 30.0, f"an ADD took {slowest_s:.0f} s")


def _code_of(plugin: runtime.Runtime, sandbox: runtime.Sandbox) -> int | None:
    try:
        plugin.add(sandbox)
    except runtime.PluginFailed as error:
        return error.code
    return None


def _code_of_status(plugin: runtime.Runtime) -> int | None:
    try:
        plugin.status()
    except runtime.PluginFailed as error:
        return error.code
    return None


def _pools(*, lab: bool, spare: bool) -> str:
    """The IPv4 pool of the lab and another, each enabled or not."""
    return "---\n".join(
        "apiVersion: slash32.io/v1\nkind: IPPool\n"
        f"metadata: {{name: {name}}}\n"
        f"spec: {{cidr: {cidr}, blockSize: 26, disabled: {str(not is_on).lower()}}}\n"
        for name, cidr, is_on in (
            ("lab-v4", "10.244.0.0/16", lab),
            ("spare", "10.96.0.0/24", spare),
        )
    )


_K8S = Stage.KUBERNETES

ROWS = [
    Row("R9", "no API, the agent killed and started again", "0 lost, 0 route events, sessions "
        "untouched, told; a pod can be added", _K8S, agent_restarts_without_api, control="R0",
        is_quick=True),
    Row("R10", f"agent and speaker start while the API needs {SLOW_LIST_S:.0f} s for each list",
        "announced within 2 s of the start, 0 lost, 0 route events", _K8S,
        _faulty({"verb": "list", "slow_s": SLOW_LIST_S}), control="R0"),
    Row("R10b", "the same while it refuses 30 % of all requests (429, 500)",
        "announced within 2 s of the start, 0 lost, 0 route events", _K8S,
        _faulty({"status": 429, "share": 0.15, "retry_after_s": 0.5},
                {"status": 500, "share": 0.15}), control="R0"),
    Row("A4b", "for 30 s every write of a block answered 409, and a block is needed",
        "ADD says 11 (try again), then succeeds; nothing leaks", _K8S, refused_claims,
        leaves_lab=False),
    Row("O1", f"no API for {AWAY_S / 60:.0f} min; pods come and go; agents and speakers are "
        "killed, alone and together", "0 lost, 0 leaked, 0 doubled, no route event but pods' own; "
        f"clients come back over {SPREAD_MIN_S} s at least", _K8S, ten_minutes_away, control="R0"),
    Row("O2", "all packets between an agent and the API dropped without a sign",
        f"noticed within {DETECT_S:.0f} s, 0 lost, under 10 % of a core", _K8S, black_hole,
        control="R0"),
    Row("O3", "watches without bookmarks, the past forgotten (410)",
        "listed again, 0 lost, 0 route events, sessions untouched", _K8S, past_is_forgotten,
        control="R0", is_quick=True),
    Row("O4", "watches that stay open and say nothing", f"listed again within {DETECT_S:.0f} s, "
        "0 lost", _K8S, silent_watch, control="R0"),
    Row("O5", "definitions deleted; an object that cannot be read",
        "last good kept and used, told by status, condition and Event, 0 lost, 0 route events but "
        "the pod's", _K8S, definitions_removed, control="R0",
        is_quick=True),
    Row("A12", "a Node object deleted and made again (another uid) under its agent",
        "told, blocks kept, 0 lost, 0 route events", _K8S, node_made_again, control="R0"),
]  # fmt: skip
