"""C and A: the CNI executable and what it is given, through the runtime's side, in a lab."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from lab import namespaces, runtime
from lab.chaos.claiming import claim_at_once
from lab.chaos.rows import Row, Stage, Verdict
from lab.chaos.world import World
from lab.waiting import in_parallel

AT_ONCE = 50
TRY_AGAIN_LATER = 11
CANNOT_ADD = 50


def repeated_deletes(world: World, verdict: Verdict) -> None:
    """ADD, three DELs, a DEL without its namespace, a DEL of what was never added."""
    plugin = world.lab.runtime_of("node1")
    with world.extra_pod("node1", "c1") as (sandbox, _):
        plugin.add(sandbox)
        for _attempt in range(3):
            plugin.delete(sandbox)
    with world.extra_pod("node1", "c1b") as (sandbox, namespace):
        plugin.add(sandbox)
        namespaces.delete(namespace)
        plugin.delete(sandbox, netns_is_gone=True)
    with world.extra_pod("node1", "c1c") as (sandbox, _):
        plugin.delete(sandbox)
    verdict.note("6 DELs, each succeeded")


def added_twice(world: World, verdict: Verdict) -> None:
    """The same ADD again: the same addresses, never two."""
    plugin = world.lab.runtime_of("node1")
    with world.extra_pod("node1", "c2") as (sandbox, namespace):
        first = runtime.addresses_in(plugin.add(sandbox))
        try:
            second = runtime.addresses_in(plugin.add(sandbox))
        except runtime.PluginFailed as error:
            second = first
            verdict.note(f"the second ADD is refused: {error}")
        inside = namespaces.ip_json(namespace, "-4", "addr", "show", "dev", "eth0")
        count = len(inside[0]["addr_info"])
        plugin.delete(sandbox)
    verdict.note(f"{first} twice, {count} IPv4 address inside")
    verdict.must(first == second, f"{first}, then {second}")
    verdict.must(count == 1, f"{count} IPv4 addresses inside the pod")


def agent_away(world: World, verdict: Verdict) -> None:
    """No agent: ADD says 11 at once, STATUS 50, DEL succeeds and is done when the agent is back."""
    plugin = world.lab.runtime_of("node1")
    with world.extra_pod("node1", "c5") as (sandbox, _), ExitStack() as late:
        plugin.add(sandbox)
        other, _ = late.enter_context(world.extra_pod("node1", "c5b"))
        world.kill("agent-node1")
        begun_s = time.monotonic()
        add_code = _code(lambda: plugin.add(other))
        took_s = time.monotonic() - begun_s
        status_code = _code(plugin.status)
        plugin.delete(sandbox)
        world.start_agent("node1")
        world.wait(lambda: world.is_healthy("node1"), "the agent")
        left = [row for row in world.ask("node1", "pods") if sandbox.container_id in str(row)]
    verdict.note(f"ADD: code {add_code} after {took_s:.2f} s; STATUS: {status_code}; DEL replayed")
    verdict.must(add_code == TRY_AGAIN_LATER, f"ADD answered {add_code}")
    verdict.must(took_s <= 1.0, f"ADD took {took_s:.2f} s")
    verdict.must(status_code == CANNOT_ADD, f"STATUS answered {status_code}")
    verdict.must(not left, "the recorded DEL was not done")


def _code(call: Callable[[], object]) -> int | None:
    """The CNI error code of a call that should be refused; None when it is not."""
    try:
        call()
    except runtime.PluginFailed as error:
        return error.code
    return None


def many_at_once(world: World, verdict: Verdict) -> None:
    """Fifty ADDs at once on one node, then fifty DELs."""
    plugin = world.lab.runtime_of("node1")
    with ExitStack() as pods:
        sandboxes = [
            pods.enter_context(world.extra_pod("node1", f"a{n:02d}"))[0] for n in range(AT_ONCE)
        ]
        begun_s = time.monotonic()
        results = in_parallel(plugin.add, sandboxes, at_once=AT_ONCE)
        took_s = time.monotonic() - begun_s
        addresses = [a for result in results for a in runtime.addresses_in(result)]
        in_parallel(plugin.delete, sandboxes, at_once=AT_ONCE)
    verdict.note(f"{AT_ONCE} pods, {len(set(addresses))} addresses, {took_s:.1f} s in all")
    verdict.must(len(addresses) == len(set(addresses)), "an address was given twice")
    verdict.must(took_s <= 60.0, f"took {took_s:.0f} s")


def claimed_at_once(_world: object, verdict: Verdict) -> None:
    """32 nodes want a block at once; the pool has 16."""
    with tempfile.TemporaryDirectory() as directory:
        outcome = claim_at_once(Path(directory) / "store.db", nodes=32, blocks=16)
    verdict.note(
        f"{outcome.served} nodes served, {outcome.refused} told that the pool is exhausted, "
        f"{outcome.blocks} blocks, {outcome.confirmed} confirmed, {outcome.doubled} doubled"
    )
    verdict.must(outcome.doubled == 0, f"{outcome.doubled} addresses or blocks doubled")
    verdict.must(outcome.blocks == 16, f"{outcome.blocks} of 16 blocks were claimed")
    verdict.must(outcome.confirmed == outcome.blocks, "a block is not confirmed")
    verdict.must(outcome.served + outcome.refused == 32, "a node got neither block nor refusal")


_ONE = Stage.ONE_TOR

ROWS = [
    Row("A1", "32 nodes claim at once from a pool of 16 blocks",
        "16 confirmed blocks, 16 nodes served, 16 refused, 0 doubled", Stage.NO_LAB,
        claimed_at_once, is_quick=True),
    Row("C1", "DEL repeated, without namespace, never added", "every DEL succeeds, nothing left",
        _ONE, repeated_deletes, is_quick=True),
    Row("C2", "ADD twice", "the same addresses, one of each family", _ONE, added_twice,
        is_quick=True),
    Row("C5", "the agent is away", "ADD 11 within 1 s, STATUS 50, DEL done later", _ONE,
        agent_away, is_quick=True),
    Row("C11", f"{AT_ONCE} ADDs at once", "all within 60 s, no address twice", _ONE, many_at_once),
]  # fmt: skip
