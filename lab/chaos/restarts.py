"""R: restart, upgrade, failover. Probes from the client and from pods, every 8 ms."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field

from lab import namespaces, runtime
from lab.chaos.rows import Row, Stage, Verdict
from lab.chaos.watch import Watch
from lab.chaos.world import World, zero

DOWN_S = 3.0
LOST_S = (4.0, 7.0)
RESTART_TIME_S = 120
SHORT_RESTART_TIME_S = 20
TOO_LONG_S = 30.0
GR_ON = f"graceful restart on; graceful restart time {RESTART_TIME_S};"
CRASHES = 20


def _replace_speaker(world: World, node: str, *, down_s: float) -> float:
    """Killed, ``down_s`` later another; how long the router was without the session."""
    begun_s = time.monotonic()
    world.kill_speaker(node)
    world.for_seconds(down_s)
    world.start_speaker(node)
    world.wait(lambda: world.is_up_at("tor1", node), "the session")
    back_s = time.monotonic() - begun_s
    world.settled()
    return back_s


def no_graceful_restart(world: World, verdict: Verdict) -> None:
    """Control: without graceful restart at the router, a dead speaker costs packets."""
    with world.bird_edited("tor1", (GR_ON, "graceful restart off;")):
        world.birdc("tor1", "restart", "node1")
        world.settled()
        with world.watching() as watch:
            back_s = _replace_speaker(world, "node1", down_s=DOWN_S)
    verdict.note(f"{watch}, {len(watch.events_on('tor1'))} route events at the router")
    must_lose(verdict, watch, back_s)
    verdict.must(len(watch.events_on("tor1")) >= 2, "must take the routes away and set them again")


LOST = f"{LOST_S[0]:g} to {LOST_S[1]:g} s"
"""What a control of graceful restart must lose, in words."""


def must_lose(verdict: Verdict, watch: Watch, back_s: float) -> None:
    """The control has shown what is lost without graceful restart.

    ``back_s``: for how long the router was without the session. On a machine that is too busy to
    start a speaker in time that bounds the loss, and a second for the routes.
    """
    least_s, most_s = LOST_S[0], max(LOST_S[1], back_s + 1.0)
    verdict.must(least_s <= watch.longest_gap_s <= most_s, f"must lose {LOST}: {watch}")


def speaker_killed(world: World, verdict: Verdict) -> None:
    """Supervisor and ExaBGP killed, away for DOWN_S."""
    routes = world.own_routes("node1")
    with world.watching() as watch:
        _replace_speaker(world, "node1", down_s=DOWN_S)
    zero(world, verdict, watch)
    verdict.must(world.own_routes("node1") == routes, "node1 has other routes than before")


def exabgp_killed(world: World, verdict: Verdict) -> None:
    """ExaBGP alone killed; its supervisor starts another."""
    with world.watching() as watch:
        old = world.kill_exabgp("node1")
        world.wait(lambda: world.exabgp_pid("node1") not in {0, old}, "a new ExaBGP")
        world.settled()
    zero(world, verdict, watch)


def speaker_terminated(world: World, verdict: Verdict) -> None:
    """SIGTERM, as at a rollout."""
    with world.watching() as watch:
        pid = world.exabgp_pid("node1")
        world.send("speaker-node1", signal.SIGTERM)
        gone_s = world.wait(lambda: not os.path.exists(f"/proc/{pid}"), "ExaBGP to end")
        world.kill("speaker-node1")
        world.start_speaker("node1")
        world.settled()
    verdict.note(f"ended after {gone_s:.1f} s")
    verdict.must(gone_s < 2.0, f"took {gone_s:.1f} s to end")
    zero(world, verdict, watch)


def both_killed(world: World, verdict: Verdict) -> None:
    """Agent and speaker killed together; the speaker comes back 2 s before the agent."""
    with world.watching() as watch:
        world.kill("agent-node1")
        _speaker_without_agent(world)
        world.start_agent("node1")
        world.settled()
    zero(world, verdict, watch)


def both_killed_twice(world: World, verdict: Verdict) -> None:
    """Both killed; the new speaker killed again a second later; only then an agent."""
    with world.watching() as watch:
        world.kill("agent-node1")
        _speaker_without_agent(world, down_s=0.0)
        _speaker_without_agent(world, down_s=0.0)
        world.start_agent("node1")
        world.settled()
    zero(world, verdict, watch)


def speaker_crash_loop(world: World, verdict: Verdict) -> None:
    """ExaBGP killed five times, each time as soon as it runs."""
    with world.watching() as watch:
        for _ in range(5):
            old = world.exabgp_pid("node1")
            with suppress(ProcessLookupError):
                os.kill(old, signal.SIGKILL)
            world.wait(
                lambda old=old: world.exabgp_pid("node1") not in {0, old},  # type: ignore[misc]
                "another ExaBGP",
            )
        world.settled()
    zero(world, verdict, watch)


def _speaker_without_agent(world: World, *, down_s: float = 1.0) -> None:
    """Killed, started again; returns when the router has it Established."""
    world.kill_speaker("node1")
    world.for_seconds(down_s)
    world.start_speaker("node1")
    world.wait(lambda: world.is_up_at("tor1", "node1"), "the session, without an agent")
    world.for_seconds(1.0)


def agent_killed_often(world: World, verdict: Verdict) -> None:
    """The agent killed twenty times as soon as it answers."""
    sessions = world.session_lines("tor1")
    with world.watching() as watch:
        for _ in range(CRASHES):
            world.kill("agent-node1")
            world.start_agent("node1")
            world.wait(lambda: world.ask("node1", "status") is not None, "the agent")
        world.settled()
    zero(world, verdict, watch)
    verdict.must(world.session_lines("tor1") == sessions, "a session was touched")


def speaker_away_too_long(world: World, verdict: Verdict) -> None:
    """Down for longer than the restart time: the router withdraws when it is over, not before, and
    exactly the time beyond it is lost."""
    blocks = set(world.blocks_of("node1"))
    with world.peer_edited("node1", "tor1", {"maxRestartTime": f"{SHORT_RESTART_TIME_S}s"}):
        world.settled()
        with world.watching(world.flows()[0]) as watch:
            begun_s = time.monotonic()
            world.kill_speaker("node1")
            world.wait(
                lambda: not blocks & world.routes_at("tor1"),
                "the router to withdraw",
                deadline_s=SHORT_RESTART_TIME_S + 30,
            )
            held_s = time.monotonic() - begun_s
            world.for_seconds(TOO_LONG_S - held_s)
            down_s = time.monotonic() - begun_s
            world.start_speaker("node1")
            back_s = world.wait(lambda: blocks <= world.routes_at("tor1"), "the routes")
        world.settled()
    world.settled()
    owed_s = down_s - SHORT_RESTART_TIME_S
    verdict.note(
        f"away for {down_s:.1f} s: withdrawn after {held_s:.1f} s, back {back_s:.1f} s after the "
        f"start, {watch}"
    )
    verdict.must(
        SHORT_RESTART_TIME_S - 1 <= held_s <= SHORT_RESTART_TIME_S + 1,
        f"withdrawn after {held_s:.1f} s, the restart time is {SHORT_RESTART_TIME_S} s",
    )
    verdict.must(back_s <= 3.0, f"back only after {back_s:.1f} s")
    # One second either way as above; and until it is back nothing can arrive.
    verdict.must(
        owed_s - 1 <= watch.longest_gap_s <= owed_s + back_s + 1,
        f"lost {watch.longest_gap_s:.1f} s; {owed_s:.1f} s were beyond the restart time",
    )


def rolling_upgrade(world: World, verdict: Verdict) -> None:
    """Every node in turn: agent and speaker end by SIGTERM and start anew; next when ready."""
    with world.watching() as watch:
        for node in world.nodes:
            world.kill(f"agent-{node}", signal.SIGTERM)
            world.kill_speaker(node, signal.SIGTERM)
            world.start_speaker(node)
            world.start_agent(node)
            world.settled()
    zero(world, verdict, watch)


def router_restarts(world: World, verdict: Verdict) -> None:
    """The router's BIRD killed, away for DOWN_S; it told us of graceful restart: what it taught us
    is kept."""
    routes = world.own_routes("node2")
    with world.watching() as watch:
        world.kill("bird-tor1")
        world.for_seconds(DOWN_S)
        kept = world.own_routes("node2")
        world.start_router("tor1", is_restart=True)
        world.settled()
        world.wait(lambda: world.own_routes("node2") == routes, "the same routes")
    ours = [line for line in watch.events_on(*world.nodes) if "proto bird" not in line]
    verdict.note(f"{len(routes & kept)} of {len(routes)} routes kept; {len(ours)} route events")
    verdict.note(str(watch))
    verdict.must(watch.lost == 0, str(watch))
    verdict.must(kept == routes, f"routes lost meanwhile: {sorted(routes - kept)[:3]}")
    verdict.must(not ours, f"route events on nodes: {ours[:3]}")


def router_restarts_without_gr(world: World, verdict: Verdict) -> None:
    """Without graceful restart the learned routes go with the session."""
    with world.bird_edited("tor1", (GR_ON, "graceful restart off;")):
        world.birdc("tor1", "restart", "all")
        world.settled()
        learned = _learned(world, "node2")
        world.kill("bird-tor1")
        gone_s = world.wait(lambda: not _learned(world, "node2"), "learned routes to go")
        world.start_router("tor1")
        world.settled()
    verdict.note(f"{len(learned)} learned routes gone after {gone_s:.2f} s")
    verdict.must(bool(learned), "there were no learned routes")
    verdict.must(gone_s <= 1.0, f"gone only after {gone_s:.2f} s")


def router_comes_back_with_less(world: World, verdict: Verdict) -> None:
    """It returns without one node's blocks: exactly those go, at its End-of-RIB."""
    missing = set(world.blocks_of("node1"))
    before = _learned_prefixes(world, "node2")
    path = world.lab.paths.bird_conf("tor1")
    original = path.read_text()
    try:
        world.kill("bird-tor1")
        # The node's own session goes with its block of configuration.
        head, found, tail = original.partition("protocol bgp node1 from")
        verdict.must(bool(found), "the router's configuration has no node1")
        path.write_text(head + "protocol bgp node1 from" + tail.replace("}", "disabled;\n}", 1))
        world.start_router("tor1", is_restart=True)
        world.wait(lambda: _is_complete(world, "node2"), "End-of-RIB")
        gone_s = world.wait(
            lambda: not missing & _learned_prefixes(world, "node2"), "the missing blocks to go"
        )
        left = _learned_prefixes(world, "node2")
        verdict.note(
            f"{len(before - left)} of {len(before)} prefixes removed, {gone_s:.2f} s after "
            "End-of-RIB at the latest"
        )
        verdict.must(gone_s <= 1.0, f"only {gone_s:.2f} s after End-of-RIB")
        verdict.must(before - left == missing & before, f"removed: {sorted(before - left)}")
    finally:
        path.write_text(original)
        world.birdc("tor1", "configure")
    world.settled()


def _is_complete(world: World, node: str) -> bool:
    """Whether the router's session is up again and nothing of before it is waited for."""
    rows = world.lab.ask(node, "peers")
    return all(row["state"] == "Established" and not row["stale"] for row in rows) and bool(rows)


@dataclass
class _Reboot:
    """What a node had before and after."""

    blocks: set[str]
    files: int
    stale: list[str]
    """Rows of pods of before that hold an address as soon as the agent answers."""
    kept: set[str] = field(default_factory=set)
    new: str = ""


def node_reboots(world: World, verdict: Verdict) -> None:
    """Everything of node1 that lives in memory is gone: processes, pods, links, routes, /run; the
    kernel has another boot id. Then it comes back, and its pods as new sandboxes."""
    found = _rebooted(world, boot_id="00000000-1111-2222-3333-444444444444")
    verdict.note(
        f"{found.files} files of before; blocks {sorted(found.kept)}; a new pod has {found.new}"
    )
    verdict.must(not found.stale, "a pod of before the reboot still holds its address")
    verdict.must(found.kept == found.blocks, f"other blocks: {sorted(found.kept ^ found.blocks)}")


def node_did_not_reboot(world: World, verdict: Verdict) -> None:
    """Control: processes, routes and /run are gone and nothing else: boot id and pods are those of
    before, and the old pod must be seen to hold its address."""
    found = _rebooted(world, boot_id=None)
    verdict.note(f"{len(found.stale)} pods of before hold an address")
    verdict.must(bool(found.stale), "must hold the address of the pod of before")


def _rebooted(world: World, *, boot_id: str | None) -> _Reboot:
    blocks, plugin = set(world.blocks_of("node1")), world.lab.runtime_of("node1")
    old = world.pod_on("node1")
    files = {p.name: p.read_bytes() for p in world.lab.paths.state_dir("node1").iterdir()}
    world.kill("agent-node1")
    world.kill_speaker("node1")
    if boot_id is not None:
        namespaces.delete(old.namespace)
    world.delete_own_routes("node1")
    for link in namespaces.ip_json(world.machine("node1").namespace, "link", "show"):
        if boot_id is not None and link["ifname"].startswith("s32"):
            world.run("node1", "ip", "link", "del", link["ifname"], ok=(0, 1))
    run_dir = world.lab.paths.run_dir("node1")
    for path in run_dir.iterdir():
        if path.is_file() or path.is_socket():
            path.unlink()
    wrapper = []
    if boot_id is not None:
        file = world.lab.paths.programs / "boot_id"
        file.write_text(f"{boot_id}\n")
        mount = f'mount --bind {file} /proc/sys/kernel/random/boot_id && exec "$@"'
        wrapper = ["unshare", "--mount", "--", "sh", "-c", mount, "sh"]
    world.start_speaker("node1")
    world.lab.start_agent(world.machine("node1"), wrapper=wrapper)
    world.wait(lambda: world.ask("node1", "pods") is not None, "the agent")
    held = [str(row) for row in world.ask("node1", "pods") or []]
    found = _Reboot(blocks, len(files), [row for row in held if old.container_id in row])
    with world.extra_pod("node1", "r12") as (sandbox, _):
        world.wait(lambda: _added(plugin, sandbox), "a pod")
        given = next(a for a in runtime.addresses_in(plugin.kept_result(sandbox) or {}) if a)
        far = world.pod_on("node2").name
        world.wait(lambda: world.reaches(far, given), "the new pod")
        held = [str(row) for row in world.lab.ask("node1", "pods")]
        if boot_id is not None:
            found.stale += [row for row in held if old.container_id in row]
        found.kept, found.new = set(world.blocks_of("node1")), given
        plugin.delete(sandbox)
    if boot_id is None:
        world.settled()
        return found
    # The runtime's DEL for the sandbox of before, as kubelet sends it.
    plugin.delete(runtime.sandbox_of(old), netns_is_gone=True)
    namespaces.create([old.namespace])
    plugin.add(runtime.sandbox_of(old))
    world.wait(lambda: world.is_healthy("node1"), "a healthy node")
    return found


def _added(plugin: runtime.Runtime, sandbox: runtime.Sandbox) -> bool:
    with suppress(runtime.PluginFailed):
        plugin.add(sandbox)
        return True
    return False


def downgrade(world: World, verdict: Verdict) -> None:
    """What a newer version left: a cache of a newer format; then this version starts."""
    cache = world.lab.paths.state_dir("node1") / "snapshot"
    with world.watching() as watch:
        world.kill("agent-node1")
        world.kill_speaker("node1")
        found = cache.read_bytes()
        head, _, rest = found.partition(b" ")
        cache.write_bytes(head + b" 99" + rest[rest.index(b" ") :])
        world.start_speaker("node1")
        world.start_agent("node1")
        world.settled()
    renewed = cache.read_bytes().split(b" ", 2)[1]
    verdict.note(f"the cache is of format {renewed.decode()} again")
    zero(world, verdict, watch)
    verdict.must(renewed == rest.split(b" ", 1)[0], "the cache was not replaced")


FUTURE = {"spec": {"ofALaterVersion": {"deep": [1, "two"]}, "alsoLater": True}}
KINDS = ("ippools", "bgppeers", "bgpconfigurations", "blocks")


def unknown_fields(world: World, verdict: Verdict) -> None:
    """Fields of a newer version in every object of the API, the agent's cache of it and its format
    too; then this version starts, agent and speaker."""
    cache = world.lab.paths.state_dir("node1") / "snapshot"
    objects = [
        f"/apis/slash32.io/v1/{kind}/{item['metadata']['name']}"
        for kind in KINDS
        for item in world.api(f"/apis/slash32.io/v1/{kind}")["items"]
    ]
    world.api("/-/newer", {"on": True})
    with world.watching() as watch:
        world.kill("agent-node1")
        world.kill_speaker("node1")
        for path in objects:
            world.api(path, FUTURE, method="PATCH")
        found = cache.read_bytes()
        head, _, rest = found.partition(b" ")
        cache.write_bytes(head + b" 99" + rest[rest.index(b" ") :])
        world.start_speaker("node1")
        world.start_agent("node1")
        world.settled()
    there = [path for path in objects if "ofALaterVersion" in str(world.api(path))]
    verdict.note(f"{len(there)} objects with unknown fields")
    verdict.must(there == objects, f"control: the API kept them in {len(there)} objects only")
    verdict.must(bool(objects), "there are no objects")
    zero(world, verdict, watch)


def _learned(world: World, node: str) -> set[str]:
    return {line for line in world.own_routes(node) if " via " in f" {line} "}


def _learned_prefixes(world: World, node: str) -> set[str]:
    return {line.split()[0] for line in _learned(world, node)}


_ONE = Stage.ONE_TOR

ROWS = [
    Row("R0", f"control: no graceful restart, speaker killed, {DOWN_S:g} s away",
        f"must lose {LOST} and take the router's routes away", _ONE,
        no_graceful_restart, is_quick=True),
    Row("R1", f"speaker killed, {DOWN_S:g} s away, BIRD", "0 lost, 0 route events", _ONE,
        speaker_killed, control="R0", is_quick=True),
    Row("R1b", "ExaBGP killed, its supervisor starts another", "0 lost, 0 route events", _ONE,
        exabgp_killed, control="R0", is_quick=True),
    Row("R4", "speaker ends by SIGTERM", "ends within 2 s; 0 lost, 0 route events", _ONE,
        speaker_terminated, control="R0", is_quick=True),
    Row("R5", "agent and speaker killed, speaker back alone", "0 lost, 0 route events", _ONE,
        both_killed, control="R0", is_quick=True),
    Row("R5b", "the same, the speaker twice in a row", "0 lost, 0 route events", _ONE,
        both_killed_twice, control="R0", is_quick=True),
    Row("R6", "ExaBGP in a crash loop: five times", "0 lost, 0 route events", _ONE,
        speaker_crash_loop, control="R0", is_quick=True),
    Row("R7", f"agent killed {CRASHES} times", "0 lost, 0 route events, sessions untouched", _ONE,
        agent_killed_often, control="R0"),
    Row("R8", f"speaker away for {TOO_LONG_S:g} s, restart time {SHORT_RESTART_TIME_S} s",
        "withdrawn when it is over (± 1 s), back within 3 s of the start; lost: what is beyond the "
        "restart time, ± 1 s", _ONE, speaker_away_too_long),
    Row("R12", "a node reboots: pods, links, routes, /run and boot id are gone",
        "nothing of before holds an address, blocks kept, new pods reached, 0 doubled", _ONE,
        node_reboots, control="R12a", leaves_lab=False),
    Row("R12a", "control: agent, speaker, routes and /run gone, no reboot: pods and boot id stay",
        "must find the address of before still held", _ONE, node_did_not_reboot),
    Row("R14", "downgrade: the cache is of a newer format", "starts, 0 lost, 0 route events", _ONE,
        downgrade, control="R0", is_quick=True),
    Row("R14b", "downgrade: unknown fields in every object of the Kubernetes API, a newer cache",
        "starts, ignores them, 0 lost, 0 route events", Stage.KUBERNETES, unknown_fields,
        control="R0"),
    Row("R13", "rolling upgrade of three nodes", "0 lost, 0 route events", _ONE, rolling_upgrade,
        control="R0"),
    Row("R16", "the router restarts, with graceful restart",
        "every learned route kept, 0 route events on nodes, 0 lost", _ONE, router_restarts,
        control="R17", is_quick=True),
    Row("R17", "the router restarts, without graceful restart",
        "learned routes gone within 1 s of the session's end", _ONE, router_restarts_without_gr),
    Row("R18", "the router comes back with fewer prefixes",
        "exactly the missing ones go, within 1 s of End-of-RIB", _ONE, router_comes_back_with_less,
        is_quick=True),
]  # fmt: skip
