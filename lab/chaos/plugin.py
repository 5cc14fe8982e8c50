"""C and A: the CNI executable and what it is given, through the runtime's side, in a lab."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

from cni.attachment import Attachment
from cni.collect import GRACE_S
from cni.ipam.block import Block, BlockState
from lab import namespaces, runtime
from lab.chaos.claiming import claim_at_once, outcome_of
from lab.chaos.rows import Row, Stage, Verdict
from lab.chaos.world import World
from lab.plan import LabFailure
from lab.waiting import in_parallel

AT_ONCE = 110
MANY = 100
COOLDOWN_S = 30.0
LOOK_EVERY_S = 30.0
"""The agent's --resync, which the lab leaves as it is."""
LOOK_TAKES_S = 2.0
TRY_AGAIN_LATER = 11
CANNOT_ADD = 50


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
        count = _v4_inside(namespace)
        # The control: another pod has others, and a second address inside is counted.
        with world.extra_pod("node1", "c2b") as (other, _):
            others = runtime.addresses_in(plugin.add(other))
            plugin.delete(other)
        namespaces.run(["ip", "addr", "add", "10.244.255.3/32", "dev", "eth0"], namespace=namespace)
        planted = _v4_inside(namespace)
        plugin.delete(sandbox)
    verdict.note(
        f"{first} twice, {count} IPv4 address inside; control: another pod has {others[0]}, a "
        f"planted address is counted ({planted})"
    )
    verdict.must(not set(others) & set(first), "the control within: another pod has the same")
    verdict.must(planted == count + 1, f"the control within: {planted} inside after one more")
    verdict.must(first == second, f"{first}, then {second}")
    verdict.must(count == 1, f"{count} IPv4 addresses inside the pod")


def _v4_inside(namespace: str) -> int:
    inside = namespaces.ip_json(namespace, "-4", "addr", "show", "dev", "eth0")
    return len(inside[0]["addr_info"])


def agent_away(world: World, verdict: Verdict) -> None:
    """No agent: ADD says 11 at once, STATUS 50, DEL succeeds and is done when the agent is back."""
    plugin = world.lab.runtime_of("node1")
    with world.extra_pod("node1", "c5") as (sandbox, _), ExitStack() as late:
        plugin.add(sandbox)
        other, _ = late.enter_context(world.extra_pod("node1", "c5b"))
        world.kill("agent-node1")
        begun_s = time.monotonic()
        add_code = code_of(lambda: plugin.add(other))
        took_s = time.monotonic() - begun_s
        status_code = code_of(plugin.status)
        plugin.delete(sandbox)
        world.start_agent("node1")
        world.wait(lambda: world.is_healthy("node1"), "the agent")
        left = [row for row in world.ask("node1", "pods") if sandbox.container_id in str(row)]
    verdict.note(f"ADD: code {add_code} after {took_s:.2f} s; STATUS: {status_code}; DEL replayed")
    verdict.must(add_code == TRY_AGAIN_LATER, f"ADD answered {add_code}")
    verdict.must(took_s <= 1.0, f"ADD took {took_s:.2f} s")
    verdict.must(status_code == CANNOT_ADD, f"STATUS answered {status_code}")
    verdict.must(not left, "the recorded DEL was not done")


def code_of(call: Callable[[], object]) -> int | None:
    """The CNI error code of a call that should be refused; None when it is not."""
    try:
        call()
    except runtime.PluginFailed as error:
        return error.code
    return None


def _sentence(call: Callable[[], object]) -> str:
    try:
        call()
    except runtime.PluginFailed as error:
        return str(error)
    return ""


def many_at_once(count: int, *, slowest_s: float) -> Callable[[World, Verdict], None]:
    """An experiment: so many ADDs at once on one node, then as many DELs."""

    def run(world: World, verdict: Verdict) -> None:
        plugin = world.lab.runtime_of("node1")

        def add(sandbox: runtime.Sandbox) -> tuple[list[str], float]:
            begun_s = time.monotonic()
            return runtime.addresses_in(plugin.add(sandbox)), time.monotonic() - begun_s

        with ExitStack() as pods:
            sandboxes = [
                pods.enter_context(world.extra_pod("node1", f"a{n:02d}"))[0] for n in range(count)
            ]
            begun_s = time.monotonic()
            results = in_parallel(add, sandboxes, at_once=count)
            took_s = time.monotonic() - begun_s
            in_parallel(plugin.delete, sandboxes, at_once=count)
        addresses = [address for given, _ in results for address in given]
        worst_s = max(each_s for _, each_s in results)
        verdict.note(
            f"{count} pods, {len(set(addresses))} addresses, {took_s:.1f} s in all, the slowest "
            f"ADD {worst_s:.1f} s"
        )
        verdict.must(len(set(addresses)) == 2 * count, "an address was given twice")
        verdict.must(worst_s <= slowest_s, f"an ADD took {worst_s:.0f} s")

    return run


def pools(**enabled: str) -> str:
    """Pools by name, each ``cidr/blockSize`` with a ``!`` before what is disabled."""
    return "---\n".join(
        "apiVersion: slash32.io/v1\nkind: IPPool\n"
        f"metadata: {{name: {name.replace('_', '-')}}}\n"
        f"spec: {{cidr: {text.strip('!').rpartition('/')[0]}, "
        f"blockSize: {text.rpartition('/')[2]}, disabled: {str(text.startswith('!')).lower()}}}\n"
        for name, text in enabled.items()
    )


def exhausted(world: World, verdict: Verdict) -> None:
    """A pool of four addresses; the fifth pod; one pod goes."""
    plugin = world.lab.runtime_of("node1")
    world.apply(pools(lab_v4="!10.244.0.0/16/26", tiny="10.96.0.0/30/30"))
    with ExitStack() as pods:
        made = [pods.enter_context(world.extra_pod("node1", f"t{n}"))[0] for n in range(5)]
        world.wait(lambda: code_of(plugin.status) is None, "STATUS with the new pool")
        for sandbox in made[:4]:
            plugin.add(sandbox)
        refused = code_of(lambda: plugin.add(made[4]))
        world.wait(lambda: code_of(plugin.status) == CANNOT_ADD, "STATUS 50")
        told = _sentence(plugin.status)
        plugin.delete(made[0])
        begun_s = time.monotonic()
        world.wait(lambda: code_of(lambda: plugin.add(made[4])) is None, "an ADD that succeeds")
        back_s = time.monotonic() - begun_s
        for sandbox in made[1:]:
            plugin.delete(sandbox)
    verdict.note(
        f"the fifth ADD is refused with {refused}, STATUS 50; an address {back_s:.1f} s after "
        f"its pod went"
    )
    verdict.must(refused is not None, "a fifth address came out of four")
    verdict.must("tiny" in told, f"STATUS does not name the pool: {told}")
    verdict.must(COOLDOWN_S - 1 <= back_s <= COOLDOWN_S + 1.0, f"free after {back_s:.1f} s")


def link_without_del(world: World, verdict: Verdict) -> None:
    """A pod's link goes and no DEL ever comes. Its addresses are freed by the collector; those of a
    pod that lives, and of one whose link was away for a moment, are not."""
    plugin = world.lab.runtime_of("node1")
    grace_s, every_s = GRACE_S, LOOK_EVERY_S

    def holds(sandbox: runtime.Sandbox) -> bool:
        return sandbox.container_id in str(world.lab.ask("node1", "ipam")["holders"])

    with ExitStack() as pods:
        lost, _ = pods.enter_context(world.extra_pod("node1", "o14"))
        living, _ = pods.enter_context(world.extra_pod("node1", "o14b"))
        for sandbox in (lost, living):
            plugin.add(sandbox)
        had = holds(lost)
        name = Attachment(
            runtime.load_network(world.lab.paths.cni_conf("node1")).name,
            lost.container_id,
            runtime.IFNAME,
        ).host_ifname
        world.run("node1", "ip", "link", "delete", name)
        begun_s = time.monotonic()
        freed_s = world.wait(lambda: not holds(lost), "the addresses", grace_s + 2 * every_s + 10)
        world.for_seconds(max(0.0, grace_s + every_s + 1 - (time.monotonic() - begun_s)))
        is_kept = holds(living)
        plugin.delete(living)
    verdict.note(
        f"freed {freed_s:.1f} s after the link went (grace {grace_s:.0f} s, looked at every "
        f"{every_s:.0f} s); the living pod's kept: {is_kept}"
    )
    verdict.must(freed_s >= grace_s, f"early: after {freed_s:.1f} s")
    verdict.must(freed_s <= grace_s + every_s + LOOK_TAKES_S, f"late: after {freed_s:.1f} s")
    verdict.must(had, "the address book did not know the pod at all")
    verdict.must(is_kept, "a living pod lost its addresses")


def pool_taken_away(world: World, verdict: Verdict) -> None:
    """A pool in use is made smaller, deleted, disabled: the first two are refused, and its pods
    are served on."""
    plugin = world.lab.runtime_of("node1")
    refused = []
    with world.watching() as watch:
        attempts: tuple[Callable[[], str], ...] = (
            lambda: world.apply(pools(lab_v4="10.244.0.0/17/26")),
            lambda: world.delete("IPPool", "lab-v4"),
        )
        for attempt in attempts:
            try:
                attempt()
            except LabFailure as error:
                refused.append(str(error))
        world.apply(pools(lab_v4="!10.244.0.0/16/26"))
        world.for_seconds(3.0)
        with world.extra_pod("node1", "a11") as (sandbox, _):
            given = runtime.addresses_in(plugin.add(sandbox))
            plugin.delete(sandbox)
        world.apply(pools(lab_v4="10.244.0.0/16/26"))
        world.settled()
    verdict.note(f"{watch}; {len(refused)} of 2 refused; a new pod had {', '.join(given)}")
    verdict.must(watch.lost == 0, str(watch))
    verdict.must(len(refused) == 2, "a pool in use was made smaller or deleted")
    verdict.must(not any("10.244." in a for a in given), "a disabled pool gave an address")


def claimed_at_once(_world: object, verdict: Verdict) -> None:
    """32 nodes want a block at once; the pool has 16."""
    with tempfile.TemporaryDirectory() as directory:
        outcome = claim_at_once(Path(directory) / "store.db", nodes=32, blocks=16)
    verdict.note(
        f"{outcome.served} nodes served, {outcome.refused} told that the pool is exhausted, "
        f"{outcome.blocks} blocks, {outcome.confirmed} confirmed, {outcome.doubled} doubled"
    )
    block = Block(IPv4Network("10.244.0.0/26"), "chaos", "node-0", BlockState.CONFIRMED)
    planted = [
        outcome_of(["10.244.0.1", "10.244.0.1"], [block]).doubled,
        outcome_of(["10.244.0.1", None], [block, replace(block, node="node-1")]).doubled,
        outcome_of([None, "10.244.0.2"], [block]).doubled,
    ]
    verdict.note(f"control: an address twice, a block twice, a stranger's address: {planted}")
    verdict.must(all(planted), f"the control within: {planted} doubled where all are")
    verdict.must(outcome.doubled == 0, f"{outcome.doubled} addresses or blocks doubled")
    verdict.must(outcome.blocks == 16, f"{outcome.blocks} of 16 blocks were claimed")
    verdict.must(outcome.confirmed == outcome.blocks, "a block is not confirmed")
    verdict.must(outcome.served == 16, f"{outcome.served} nodes were served, 16 owed")
    verdict.must(outcome.refused == 16, f"{outcome.refused} nodes were refused, 16 owed")


_ONE = Stage.ONE_TOR

ROWS = [
    Row("A1", "32 nodes claim at once from a pool of 16 blocks",
        "16 confirmed blocks, 16 nodes served, 16 refused, 0 doubled (control within: planted ones "
        "are counted)", Stage.NO_LAB, claimed_at_once, is_quick=True),
    Row("C2", "ADD twice", "the same addresses, one of each family (control within: "
        "another pod's are others)", _ONE, added_twice,
        control="C0", is_quick=True),
    Row("C5", "the agent is away", "ADD 11 within 1 s, STATUS 50, DEL done later", _ONE,
        agent_away, control="C0", is_quick=True),
    Row("A2", f"{MANY} ADDs at once on one node", "the slowest within 5 s, no address twice", _ONE,
        many_at_once(MANY, slowest_s=5.0), control="C0"),
    Row("A10", "a pool of four addresses, five pods, one goes", "STATUS 50, the pool named; an "
        f"address {COOLDOWN_S:.0f} s (cool-down) after the pod went", _ONE, exhausted,
        control="C0", leaves_lab=False),
    Row("A11", "a pool in use made smaller, deleted, disabled",
        "refused, refused, no new address; 0 lost", _ONE, pool_taken_away, control="R0"),
    Row("O14", "a pod's link goes and no DEL comes, beside a pod that lives",
        f"freed after the grace time ({GRACE_S:.0f} s), not before, and within one look "
        f"({LOOK_EVERY_S:.0f} s); the other kept", _ONE, link_without_del, control="C0"),
    Row("C11", f"{AT_ONCE} ADDs at once", "all within 60 s, no address twice", _ONE,
        many_at_once(AT_ONCE, slowest_s=60.0), control="C0"),
]  # fmt: skip
