"""T: topologies and policy. Three nodes on one network, two route reflectors (BIRD) or none."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from lab import build, namespaces
from lab.chaos.rows import Row, Stage, Verdict
from lab.chaos.watch import Flow, Watch
from lab.chaos.world import World
from lab.plan import resources
from routing.datastore.resources import API_VERSION
from routing.drain import DRAIN_WAIT_S

HOLD_S = 9.0
STATIC_V4 = "template bgp node"
FAR_HOP = "203.0.113.9"
LABELS_KEPT_S = 60
FAR_PREFIX = "10.244.255.192/26"

Document = dict[str, Any]


# -- what the rows share -----------------------------------------------------------------------


def _document(kind: str, name: str, spec: Document, **meta: Any) -> Document:
    metadata = {"name": name, **meta}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


def _configuration(*, mesh: bool, **more: Any) -> Document:
    return _document("BGPConfiguration", "default", {"nodeToNodeMeshEnabled": mesh, **more})


def _reflectors(world: World) -> list[Document]:
    documents = resources(world.lab.plan, API_VERSION)
    return [each for each in documents if each["kind"] == "BGPPeer"]


def _apply(world: World, *documents: Document) -> None:
    """All in one change of the store."""
    world.apply(yaml.safe_dump_all(documents))


def _slash32(world: World, *arguments: str) -> str:
    return namespaces.run(build.slash32_command(*arguments), env=build.environment(world.lab.paths))


def _remove_reflectors(world: World) -> None:
    _slash32(world, "delete", "BGPPeer", *world.tors)


def _rows(world: World, node: str, view: str) -> list[Document]:
    found: list[Document] = world.lab.ask(node, view)
    return found


def _wait_sessions(world: World, wanted: Callable[[str], set[str]]) -> float:
    """Until each node has exactly the sessions it is to have, all Established."""

    def holds() -> bool:
        return all(
            {row["name"] for row in _rows(world, node, "peers")} == wanted(node)
            and all(row["state"] == "Established" for row in _rows(world, node, "peers"))
            for node in world.nodes
        )

    return world.wait(holds, "sessions")


def _mesh_of(world: World) -> Callable[[str], set[str]]:
    return lambda node: {f"mesh/{other}" for other in world.nodes if other != node}


def _flows(world: World) -> list[Flow]:
    """Each node's pod to the next node's, IPv4 and IPv6 by turns."""
    flows = []
    for number, node in enumerate(world.nodes):
        other = world.nodes[(number + 1) % len(world.nodes)]
        version = 4 if number % 2 == 0 else 6
        address = world.address_of(world.pod_on(other), version)
        flows.append(Flow(f"{node} to {other}", world.pod_on(node).namespace, address))
    return flows


def _zero(verdict: Verdict, watch: Watch) -> None:
    verdict.must(watch.sent > 100, f"only {watch.sent} probes were sent")
    verdict.must(watch.lost == 0, f"{watch}")


def _routes_to(world: World, node: str, prefix: str) -> list[str]:
    return [line for line in world.own_routes(node) if line.startswith(f"{prefix} ")]


@contextmanager
def _announced(world: World, tor: str, prefix: str, via: str) -> Iterator[None]:
    """A reflector announces a prefix of its own to the nodes; the other reflector is not told, for
    it would pass on one path alone, and that might be this one."""
    hop = (
        f"export filter {{ if source = RTS_STATIC then {{ bgp_next_hop = {via}; accept; }} "
        "if source = RTS_BGP then accept; reject; };"
    )
    route = f"protocol static announced {{ ipv4; route {prefix} blackhole; }}\n"
    with world.bird_edited(
        tor, (STATIC_V4, route + STATIC_V4), ("export where source = RTS_BGP;", hop)
    ):
        yield


# -- moving ------------------------------------------------------------------------------------


def mesh_to_reflectors(world: World, verdict: Verdict) -> None:
    """One change of the store; nobody but the nodes keeps the order."""
    _apply(world, _configuration(mesh=True))
    _remove_reflectors(world)
    _wait_sessions(world, _mesh_of(world))
    with world.watching(*_flows(world)) as watch:
        _apply(world, _configuration(mesh=False), *_reflectors(world))
        took_s = _wait_sessions(world, lambda _node: set(world.tors))
        world.settled()
    verdict.note(f"{watch}, old sessions ended after {took_s:.1f} s")
    _zero(verdict, watch)


def reflectors_to_mesh(world: World, verdict: Verdict) -> None:
    """The mesh first, the reflectors removed when it is up: the careful operator's two steps."""
    with world.watching(*_flows(world)) as watch:
        _apply(world, _configuration(mesh=True))
        _wait_sessions(world, lambda node: _mesh_of(world)(node) | set(world.tors))
        _remove_reflectors(world)
        _wait_sessions(world, _mesh_of(world))
        world.lab.wait_converged()
    _apply(world, _configuration(mesh=False), *_reflectors(world))
    world.settled()
    verdict.note(str(watch))
    _zero(verdict, watch)


def break_before_make(world: World, verdict: Verdict) -> None:
    """Control: the reflectors are removed, and only then is there a mesh; nothing is kept."""
    _apply(world, _configuration(mesh=False, keepLastPeersFor="0s"))
    with world.watching(*_flows(world)) as watch:
        _remove_reflectors(world)
        _wait_sessions(world, lambda _node: set())
        _apply(world, _configuration(mesh=True))
        _wait_sessions(world, _mesh_of(world))
        world.lab.wait_converged()
    _apply(world, _configuration(mesh=False), *_reflectors(world))
    world.settled()
    verdict.note(str(watch))
    verdict.must(watch.lost > 20, f"must lose, lost {watch.lost} probes")


def migration_and_control(world: World, verdict: Verdict) -> None:
    """Mesh to reflectors in one change; then the reflectors go, not kept: the control."""
    mesh_to_reflectors(world, verdict)
    control = Verdict()
    break_before_make(world, control)
    verdict.note(f"then without reflectors: {control.measured[0]}")
    verdict.must(not control.problems, f"the control: {'; '.join(control.problems)}")


def last_peers_until_a_mesh(world: World, verdict: Verdict) -> None:
    """The reflectors are removed; a while later there is a mesh. The last good ones bridge it."""
    with world.watching(*_flows(world)) as watch:
        _remove_reflectors(world)
        world.wait(lambda: all(_is_keeping(world, node) for node in world.nodes), "being told")
        world.for_seconds(5.0)
        _apply(world, _configuration(mesh=True))
        _wait_sessions(world, _mesh_of(world))
        world.lab.wait_converged()
    told = [_is_keeping(world, node) for node in world.nodes]
    _apply(world, _configuration(mesh=False), *_reflectors(world))
    world.settled()
    verdict.note(str(watch))
    _zero(verdict, watch)
    verdict.must(not any(told), "status still tells of last good peers")


def _is_keeping(world: World, node: str) -> bool:
    return "last good peers" in str(world.lab.ask(node, "status")["findings"])


def selector_matches_nothing(world: World, verdict: Verdict) -> None:
    """All nodes lose the label by which BGPPeers choose them, as in an upgrade. The sessions are
    kept for as long as is said; an agent that is killed meanwhile keeps to it; then they go."""
    nodes = [each for each in resources(world.lab.plan, API_VERSION) if each["kind"] == "Node"]
    labelled = [
        _document("Node", each["metadata"]["name"], each["spec"], labels={"bgp": "yes"})
        for each in nodes
    ]
    chosen = [
        _document("BGPPeer", each["metadata"]["name"],
                  {**each["spec"], "nodeSelector": "has(bgp)"})
        for each in _reflectors(world)
    ]  # fmt: skip
    kept = _configuration(mesh=False, keepLastPeersFor=f"{LABELS_KEPT_S}s")
    _apply(world, *labelled, *chosen, kept)
    world.settled()
    with world.watching(*_flows(world)) as watch:
        _apply(world, *nodes)
        began_s = time.monotonic()
        world.wait(lambda: all(_is_keeping(world, node) for node in world.nodes), "being told")
        world.kill("agent-node1")
        world.start_agent("node1")
        world.for_seconds(max(0.0, LABELS_KEPT_S - 10 - (time.monotonic() - began_s)))
    first = str(watch)
    with world.watching(*_flows(world)) as after:
        _wait_sessions(world, lambda _node: set())
        took_s = time.monotonic() - began_s
        world.for_seconds(2.0)
    _apply(world, *labelled, *_reflectors(world), _configuration(mesh=False))
    _wait_sessions(world, lambda _node: set(world.tors))
    _apply(world, *nodes)
    world.settled()
    verdict.note(f"{first} while they were kept; ended after {took_s:.0f} s, then {after}")
    _zero(verdict, watch)
    verdict.must(after.lost > 0, "the control within this row: nothing was lost when they went")
    verdict.must(LABELS_KEPT_S <= took_s <= LABELS_KEPT_S + 5, f"ended after {took_s:.0f} s")


def per_rack(world: World, verdict: Verdict) -> None:
    """Rack a speaks to one reflector, rack b to the other, by label; then all to both again."""
    first, second = world.tors
    racks = dict(zip(world.nodes, ("a", "b", "b"), strict=False))
    plain = [each for each in resources(world.lab.plan, API_VERSION) if each["kind"] == "Node"]
    labelled = [
        _document("Node", each["metadata"]["name"], each["spec"],
                  labels={"rack": racks[each["metadata"]["name"]]})
        for each in plain
    ]  # fmt: skip
    chosen = {first: "rack == 'a'", second: "rack == 'b'"}
    by_rack = [
        _document("BGPPeer", each["metadata"]["name"],
                  {**each["spec"], "nodeSelector": chosen[each["metadata"]["name"]]})
        for each in _reflectors(world)
    ]  # fmt: skip
    with world.watching(*_flows(world)) as watch:
        _apply(world, *labelled, *by_rack)
        _wait_sessions(world, lambda node: {first} if racks[node] == "a" else {second})
        world.lab.wait_converged()
        world.for_seconds(2.0)
        _apply(world, *_reflectors(world), *plain)
        world.settled()
    verdict.note(str(watch))
    _zero(verdict, watch)


# -- failures ----------------------------------------------------------------------------------


def one_reflector_dies(world: World, verdict: Verdict) -> None:
    """SIGKILL of one of two: everything is known from the other."""
    first = world.tors[0]
    with world.watching(*_flows(world)) as watch:
        world.kill(f"bird-{first}")
        world.for_seconds(3.0)
        world.start_router(first, is_restart=True)
        world.settled()
    verdict.note(str(watch))
    _zero(verdict, watch)


def mesh_speaker_dies(world: World, verdict: Verdict) -> None:
    """One node's ExaBGP killed in a mesh; it is both a restarting speaker and a helper."""
    with world.watching(*_flows(world)) as watch:
        world.kill_exabgp("node1")
        world.wait(lambda: world.exabgp_pid("node1") != 0, "a new ExaBGP")
        world.settled()
    verdict.note(str(watch))
    _zero(verdict, watch)


def mesh_agent_dies(world: World, verdict: Verdict) -> None:
    """One node's agent killed in a mesh."""
    with world.watching(*_flows(world)) as watch:
        world.kill("agent-node1")
        world.start_agent("node1")
        world.settled()
    events = watch.events_on(*world.nodes)
    verdict.note(f"{watch}, {len(events)} route events")
    _zero(verdict, watch)
    verdict.must(not events, f"route events: {'; '.join(events[:3])}")


def mesh_node_falls_silent(world: World, verdict: Verdict) -> None:
    """The switch drops all that goes to and comes from node1, without a sign."""
    (block,) = [each for each in world.blocks_of("node1") if ":" not in each]
    switch = world.lab.plan.switch
    assert switch is not None  # noqa: S101 - the stage has one
    world.run(switch.name, "ip", "link", "set", "node1", "nomaster")
    try:
        gone_s = world.wait(lambda: not _routes_to(world, "node2", block), "node2 to notice", 150.0)
    finally:
        world.run(switch.name, "ip", "link", "set", "node1", "master", namespaces.BRIDGE)
        world.run(switch.name, "ip", "link", "set", "node1", "up")
    back_s = world.wait(lambda: bool(_routes_to(world, "node2", block)), "the route")
    world.settled()
    verdict.note(f"the route went after {gone_s:.1f} s, and was back {back_s:.1f} s after the link")


# -- policy ------------------------------------------------------------------------------------


def stolen_block(world: World, verdict: Verdict) -> None:
    """A router announces a node's block beside the node: the owner's path alone is used."""
    (block,) = [each for each in world.blocks_of("node2") if ":" not in each]
    before = _routes_to(world, "node1", block)

    def told() -> bool:
        rows = [row for row in _rows(world, "node1", "routes") if row["prefix"] == block]
        return "not-owner" in {row.get("reason") for row in rows}

    with world.watching(*_flows(world)) as watch, _announced(world, "rr1", block, "172.30.0.1"):
        told_s = world.wait(told, "the rejection to be told")
        world.for_seconds(2.0)
        after = _routes_to(world, "node1", block)
        status = world.lab.ask("node1", "status")
    world.settled()
    verdict.note(f"{watch}, told after {told_s:.2f} s")
    _zero(verdict, watch)
    verdict.must(before == after, f"the route was {before}, is {after}")
    verdict.must(any(block in each for each in status["findings"]), "status does not tell of it")


def max_prefix(world: World, verdict: Verdict) -> None:
    """maxPrefixes 2 at one reflector that sends 4: bounded, then closed, then opened again."""
    peer = next(each for each in _reflectors(world) if each["metadata"]["name"] == "rr1")

    def limited(action: str) -> Document:
        spec = {**peer["spec"], "maxPrefixes": 2, "maxPrefixAction": action}
        return _document("BGPPeer", "rr1", spec)

    def rejected() -> bool:
        rows = _rows(world, "node1", "routes")
        return [row.get("reason") for row in rows].count("max-prefix") == 2

    def is_open() -> bool:
        rows = {row["name"]: row["state"] for row in _rows(world, "node1", "peers")}
        return rows.get("rr1") != "Absent"

    def is_up() -> bool:
        rows = {row["name"]: row for row in _rows(world, "node1", "peers")}
        return bool("rr1" in rows and rows["rr1"]["state"] == "Established")

    with world.watching(*_flows(world)) as watch:
        _apply(world, limited("StopInstalling"))
        stopped_s = world.wait(rejected, "two prefixes to be rejected")
        verdict.must(is_up(), "StopInstalling ended the session")
        _apply(world, limited("Close"))
        closed_s = world.wait(lambda: not is_open(), "the session to be closed")
        told = [each for each in world.lab.ask("node1", "status")["findings"] if "closed" in each]
        world.for_seconds(3.0)
        verdict.must(not is_open(), "the closed session was opened again")
        _apply(world, peer)
        opened_s = world.wait(is_up, "the session to be opened by a new limit")
    world.settled()
    verdict.note(
        f"{watch}, bounded after {stopped_s:.2f} s, closed after {closed_s:.2f} s, "
        f"open again {opened_s:.1f} s after the limit went"
    )
    _zero(verdict, watch)
    verdict.must(bool(told), "status does not tell of the closed session")


def next_hop_comes(world: World, verdict: Verdict) -> None:
    """A next hop that no route leads to: held; a route to it: in the kernel within a second."""

    def state() -> str:
        rows = [row for row in _rows(world, "node1", "routes") if row["prefix"] == FAR_PREFIX]
        return next((row.get("reason") or row["state"] for row in rows), "")

    route = ["ip", "route", "{}", "203.0.113.0/24", "via", "172.30.0.2", "proto", "static"]
    with _announced(world, "rr1", FAR_PREFIX, FAR_HOP):
        world.wait(lambda: state() == "next-hop-unreachable", "the path to be held")
        held = not _routes_to(world, "node1", FAR_PREFIX)
        begun_s = time.monotonic()
        world.run("node1", *(word.format("add") for word in route))
        world.wait(lambda: bool(_routes_to(world, "node1", FAR_PREFIX)), "the route")
        came_s = time.monotonic() - begun_s
        (found,) = _routes_to(world, "node1", FAR_PREFIX)
        begun_s = time.monotonic()
        world.run("node1", *(word.format("del") for word in route))
        world.wait(lambda: not _routes_to(world, "node1", FAR_PREFIX), "the route to go")
        went_s = time.monotonic() - begun_s
    world.settled()
    verdict.note(f"in the kernel after {came_s:.2f} s, gone after {went_s:.2f} s")
    verdict.must(held, "the path was used before there was a way")
    verdict.must(bool(re.search(r"via 172\.30\.0\.2 ", found)), f"the route is {found}")
    verdict.must(came_s <= 1.0, f"in the kernel only after {came_s:.2f} s")
    verdict.must(went_s <= 1.0, f"gone only after {went_s:.2f} s")


def drain(world: World, verdict: Verdict) -> None:
    """GRACEFUL_SHUTDOWN is seen by the reflectors, then a withdrawal, then no session; and back."""
    (block,) = [each for each in world.blocks_of("node1") if ":" not in each]

    def reflected() -> str:
        socket = str(world.lab.paths.bird_socket("rr1"))
        return namespaces.run(["birdc", "-s", socket, "show", "route", block, "all"], ok=(0, 1))

    others = [flow for flow in _flows(world) if "node1" not in flow.name]
    with world.watching(*others) as watch:
        _slash32(world, "node", "drain", "node1")
        shown_s = world.wait(lambda: "(65535,0)" in reflected(), "the community")
        gone_s = world.wait(lambda: "(65535,0)" not in reflected(), "the withdrawal")
        had_sessions = bool(_rows(world, "node1", "peers"))
        closed_s = world.wait(lambda: not _rows(world, "node1", "peers"), "no session")
        _slash32(world, "node", "undrain", "node1")
        world.settled()
    verdict.note(
        f"community after {shown_s:.1f} s, withdrawn {gone_s:.1f} s later, closed {closed_s:.1f} s "
        f"after that; between other nodes {watch}"
    )
    _zero(verdict, watch)
    verdict.must(had_sessions, "the sessions were closed before the withdrawal went round")
    verdict.must(gone_s >= DRAIN_WAIT_S - 2, f"withdrawn after {gone_s:.1f} s already")


def drain_before_two_routers(world: World, verdict: Verdict) -> None:
    """Both routers see GRACEFUL_SHUTDOWN before anything is withdrawn; until then nothing is lost,
    and of other nodes nothing at all. Then the node's pods are out of reach: the control."""
    (block,) = [each for each in world.blocks_of("node1") if ":" not in each]
    client = world.lab.plan.client.namespace
    away, near = (world.address_of(world.pod_on(node)) for node in world.nodes[:2])

    def seen(tor: str) -> bool:
        return "(65535,0)" in world.birdc(tor, "show", "route", block, "all", "protocol", "node1")

    with world.watching(Flow("to node2", client, near)) as others:
        with world.watching(Flow("to node1", client, away)) as watch:
            _slash32(world, "node", "drain", "node1")
            shown_s = world.wait(lambda: all(map(seen, world.tors)), "the community at both")
            world.for_seconds(max(0.0, DRAIN_WAIT_S - 4.0 - shown_s))
        gone_s = world.wait(
            lambda: not any(block in world.routes_at(tor) for tor in world.tors), "withdrawals"
        )
        had_sessions = len(_rows(world, "node1", "peers"))
        is_reached = world.reaches("client", away)
        world.wait(lambda: not _rows(world, "node1", "peers"), "no session")
    _slash32(world, "node", "undrain", "node1")
    world.settled()
    verdict.note(
        f"community at both after {shown_s:.1f} s, {watch} until then; withdrawn at both "
        f"{gone_s:.1f} s after that, with {had_sessions} sessions still up; of other nodes {others}"
    )
    _zero(verdict, watch)
    _zero(verdict, others)
    verdict.must(had_sessions == 2, "sessions were closed before the withdrawal")
    verdict.must(not is_reached, "the control within this row: the node's pod is still reached")


_RR, _MESH = Stage.REFLECTORS, Stage.MESH

ROWS = [
    Row("T0", "reflectors removed, then the mesh enabled", "loses (the control)",
        _RR, break_before_make, is_quick=True),
    Row("T1", "mesh to reflectors in one change of the store", "0 lost",
        _RR, mesh_to_reflectors, control="T0", is_quick=True),
    Row("T2", "reflectors to mesh, removed when the mesh is up", "0 lost",
        _RR, reflectors_to_mesh, control="T0"),
    Row("R15", "mesh to reflectors in one change of the store; then the reflectors removed",
        "0 lost; then loss (the control within)", _RR, migration_and_control, control="T0"),
    Row("R15b", "reflectors removed, 5 s later a mesh: the last good peers bridge it", "0 lost",
        _RR, last_peers_until_a_mesh, control="T0"),
    Row("O6c", f"nodes lose the label that BGPPeers select; keepLastPeersFor {LABELS_KEPT_S} s; an "
        "agent killed meanwhile", "0 lost while they are kept, told; then they go, and that loses",
        _RR, selector_matches_nothing, control="T0"),
    Row("T3", "peers by rack label, and back to all", "0 lost", _RR, per_rack, control="T0"),
    Row("T4", "one of two reflectors killed for 3 s", "0 lost",
        _RR, one_reflector_dies, control="T0"),
    Row("T5", "a router announces a node's block as well", "0 lost, same route, told",
        _RR, stolen_block, control="T0", is_quick=True),
    Row("T6", "a peer sends twice its maxPrefixes", "bounded or closed as asked, 0 lost",
        _RR, max_prefix, control="T0"),
    Row("T7", "a route to an unreachable next hop comes and goes", "within 1 s each",
        _RR, next_hop_comes, is_quick=True),
    Row("T8", "a node drained and put back",
        "community, 10 s, withdrawal, 10 s, sessions closed; others lose 0",
        _RR, drain, control="T0"),
    Row("R19", "a node drained, two routers",
        "0 lost while GRACEFUL_SHUTDOWN is told, then withdrawn at both, then closed; others 0 "
        "lost", Stage.TWO_TORS, drain_before_two_routers, control="R0"),
    Row("T10", "mesh: a node's agent killed", "0 lost, 0 route events",
        _MESH, mesh_agent_dies, control="T0"),
    Row("T11", "mesh: a node's ExaBGP killed", "0 lost", _MESH, mesh_speaker_dies, control="T0"),
    Row("T12", "mesh: a node falls silent (hold time 9 s, restart time 120 s)",
        "noticed; measured, see docs/topologies.md", _MESH, mesh_node_falls_silent),
]  # fmt: skip
