"""A: addresses while the Kubernetes API refuses, forgets to answer, lags, or is paused for.

The API is the lab's double, in this process; nodes are hammer.py's. No namespaces are needed.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from random import Random

from cni.attachment import Attachment
from cni.ipam.allocator import Allocator
from cni.ipam.block import BlockState
from cni.ipam.choice import NoAddress
from lab.apiserver.schema import load_schemas
from lab.apiserver.server import ApiDouble
from lab.apiserver.state import KINDS, Key, State
from lab.build import PROJECT_DIR
from lab.chaos.hammer import PACE, History, doubled, hammer, read_history
from lab.chaos.rows import Row, Stage, Verdict
from routing.controller.blocks import GRACE_S, WRITES_MAX, BlockCollector
from routing.controller.running import LOOK_EVERY_S
from routing.datastore.kubernetes import KubernetesStore
from routing.datastore.snapshot import (
    IPPoolResource,
    Meta,
    NodeResource,
    NodeStatusResource,
    Snapshot,
    StoreError,
)

NODES = 12
SNAPSHOT_DEADLINE_S = 60.0
HAMMERED_S = 15.0
ROUNDS_MAX = 4
"""Of the control: two nodes must meet by chance."""
ENDURANCE_S = 600.0
ENDURANCE_NODES = 20
PAUSE_S = 5.0
POOL = ip_network("10.244.0.0/23")
BLOCK_SIZE = 29
"""64 blocks of 8: a node with twenty pods has three, and gives some back all the time."""
MANY_NODES = 150
PODS_EACH = 11
FLAT_MIB = 8.0
"""A list of 150 blocks and its garbage; a leak of a kilobyte a look and block is twice that."""
_BLOCKS = next(kind for kind in KINDS if kind.kind == "Block")
_NODES = next(kind for kind in KINDS if kind.kind == "Node")

Fields = dict[str, object]


@asynccontextmanager
async def _servers(*lags_s: float) -> AsyncIterator[tuple[list[ApiDouble], list[Path]]]:
    """API servers before one state, each so far behind; and a kubeconfig for each."""
    state = State(load_schemas())
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s32-hammer-")))
        servers, kubeconfigs = [], []
        for number, lag_s in enumerate(lags_s):
            server = ApiDouble(state)
            server.lag_s = lag_s
            await server.start()
            stack.push_async_callback(server.stop)
            servers.append(server)
            kubeconfigs.append(server.write_kubeconfig(directory / f"kubeconfig{number}"))
        yield servers, kubeconfigs


async def _put_pool(kubeconfig: Path, cidr: str, block_size: int) -> None:
    store = await KubernetesStore.open(kubeconfig)
    try:
        await store.create(IPPoolResource(Meta("chaos"), ip_network(cidr), block_size))
    finally:
        await store.close()


def _judge(verdict: Verdict, histories: Sequence[History]) -> None:
    """0 held twice, 0 leaked, and enough happened to say so."""
    pods = sum(len(history.held) for history in histories)
    refused = sum(history.refused for history in histories)
    twice = doubled(histories)
    unknown = [f"{h.node}: {text}" for h in histories for text in h.unknown]
    verdict.note(
        f"{len(histories)} nodes, {pods} addresses held, {refused} ADDs refused, "
        f"{len(twice)} doubled, {len(unknown)} blocks that their node does not know"
    )
    # Of time enough for hundreds; a machine that has other things to do must not fail here.
    verdict.must(pods > 5 * len(histories), f"only {pods} addresses were held at all")
    verdict.must(not twice, f"held twice: {twice[:2]}")
    verdict.must(not unknown, f"leaked: {unknown[:3]}")


def _hammered(
    prepare: Callable[[ApiDouble], None], *, lags_s: Sequence[float] = (0.0,)
) -> Callable[[object, Verdict], None]:
    """An experiment: nodes hammer servers that were prepared so."""

    async def histories(verdict: Verdict) -> list[History]:
        async with _servers(*lags_s) as (servers, kubeconfigs):
            await _put_pool(kubeconfigs[0], str(POOL), BLOCK_SIZE)
            for server in servers:
                prepare(server)
            nodes = [
                hammer(kubeconfigs[n % len(kubeconfigs)], f"node-{n}",
                       duration_s=HAMMERED_S, seed=n)
                for n in range(NODES)
            ]  # fmt: skip
            found = await asyncio.gather(*nodes)
            writes = sum(
                number
                for server in servers
                for (verb, what), number in server.calls.items()
                if what == "blocks" and verb in {"create", "update", "delete"}
            )
            verdict.note(f"{writes} writes of blocks")
        return list(found)

    def run(_world: object, verdict: Verdict) -> None:
        _judge(verdict, asyncio.run(histories(verdict)))

    return run


def without_comparing(_world: object, verdict: Verdict) -> None:
    """Control: a server that takes every write must give addresses out twice."""

    async def histories() -> list[History]:
        async with _servers(0.0) as ((server,), (kubeconfig,)):
            await _put_pool(kubeconfig, "10.244.0.0/26", BLOCK_SIZE)
            server.state.compares = False
            # Slow, or two would seldom come between a look and a write.
            server.fault(verb="create", resource="blocks", slow_s=0.2, times=1_000_000)
            nodes = [
                hammer(kubeconfig, f"node-{n}", duration_s=HAMMERED_S / 3, seed=n)
                for n in range(NODES)
            ]
            return list(await asyncio.gather(*nodes))

    twice: list[str] = []
    for _ in range(ROUNDS_MAX):
        twice += doubled(asyncio.run(histories()))
        if twice:
            break
    verdict.note(f"{len(twice)} addresses held twice")
    verdict.must(bool(twice), "must double, and did not")


def _conflicts(server: ApiDouble) -> None:
    for verb in ("create", "update", "delete"):
        server.fault(verb=verb, resource="blocks", status=409, share=0.5, times=1_000_000)


def _cut_after_commit(server: ApiDouble) -> None:
    for verb in ("create", "update", "delete"):
        server.fault(verb=verb, resource="blocks", after_commit=True, share=0.3, times=1_000_000)


def _nothing(_server: ApiDouble) -> None:
    """Lag is a server's own."""


async def _first_snapshot(store: KubernetesStore) -> Snapshot:
    """32 stores that list at once may need longer than one of them waits for itself."""
    async with asyncio.timeout(SNAPSHOT_DEADLINE_S):
        while True:
            with suppress(StoreError):
                return await store.snapshot()
            await asyncio.sleep(0.1)


def claimed_at_once(_world: object, verdict: Verdict) -> None:
    """32 nodes want a block at once through the Kubernetes API; the pool has 16."""

    async def ask(kubeconfig: Path, number: int) -> str | None:
        store = await KubernetesStore.open(kubeconfig, pace=PACE)
        try:
            pools = (await _first_snapshot(store)).pools_for(f"node-{number}")
            allocator = Allocator(f"node-{number}", store, lambda: pools, time.monotonic)
            return str((await allocator.assign(_attachment(number)))[0])
        except NoAddress:
            return None
        finally:
            await store.close()

    async def outcome() -> tuple[list[str | None], list[tuple[str, str, bool]]]:
        async with _servers(0.0, 0.0, 2.0) as (servers, kubeconfigs):
            await _put_pool(kubeconfigs[0], "10.244.0.0/22", 26)
            given = await asyncio.gather(*(ask(kubeconfigs[n % 2], n) for n in range(32)))
            blocks = servers[0].state.list(_BLOCKS, "")
            return list(given), [
                (b["spec"]["cidr"], b["spec"]["affinity"], b["spec"]["state"] == "confirmed")
                for b in blocks
            ]

    given, blocks = asyncio.run(outcome())
    served = [address for address in given if address]
    strangers = [
        f"node-{number} has {address}"
        for number, address in enumerate(given)
        if address
        and (str(ip_network(f"{address}/26", strict=False)), f"host:node-{number}", True)
        not in blocks
    ]
    verdict.note(
        f"{len(served)} nodes served, {given.count(None)} told that the pool is exhausted, "
        f"{len(blocks)} blocks, {sum(b[2] for b in blocks)} confirmed"
    )
    verdict.must(len(set(served)) == len(served), "an address was given twice")
    verdict.must(not strangers, f"outside their blocks: {strangers[:2]}")
    verdict.must(len(blocks) == 16 and all(b[2] for b in blocks), "not 16 confirmed blocks")
    verdict.must(len({b[1] for b in blocks}) == 16, "a node has two blocks")
    verdict.must(len(served) == 16, f"{len(served)} served, 16 owed")


def paused_processes(_world: object, verdict: Verdict) -> None:
    """Twenty processes behind three API servers of which one lags, for ten minutes; now and then
    one of them stands still for five seconds, as under a hypervisor."""

    async def histories() -> tuple[list[History], int]:
        async with _servers(0.0, 0.0, 2.0) as (_, kubeconfigs):
            await _put_pool(kubeconfigs[0], str(POOL), BLOCK_SIZE)
            nodes = [_process(kubeconfigs[n % 3], n) for n in range(ENDURANCE_NODES)]
            try:
                pauses = await _pause(nodes)
                texts = await asyncio.gather(
                    *(asyncio.to_thread(node.communicate, timeout=120.0) for node in nodes)
                )
            finally:
                for node in nodes:
                    node.kill()
                    node.wait()
            crashed = [words.strip()[-300:] for text, words in texts if not text]
            verdict.must(not crashed, f"{len(crashed)} nodes crashed: {crashed[:1]}")
            return [read_history(text) for text, _ in texts if text], pauses

    found, pauses = asyncio.run(histories())
    verdict.note(f"{ENDURANCE_S:.0f} s, {pauses} pauses of {PAUSE_S:.0f} s")
    verdict.must(pauses >= ENDURANCE_S / PAUSE_S / 2, f"only {pauses} pauses")
    _judge(verdict, found)


def _process(kubeconfig: Path, number: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lab.chaos.hammer", "--kubeconfig", str(kubeconfig)]
    command += ["--node", f"node-{number}", "--seed", str(number), "--seconds", str(ENDURANCE_S)]
    return subprocess.Popen(
        command, cwd=PROJECT_DIR, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


async def _pause(nodes: Sequence[subprocess.Popen[str]]) -> int:
    """Stops one after another until the time is over; how often."""
    random = Random(9)  # noqa: S311 - choices of a test
    end_s, pauses = time.monotonic() + ENDURANCE_S - PAUSE_S, 0
    while time.monotonic() < end_s:
        victim = random.choice(nodes)
        victim.send_signal(signal.SIGSTOP)
        await asyncio.sleep(PAUSE_S)
        victim.send_signal(signal.SIGCONT)
        pauses += 1
    return pauses


def all_nodes_deleted(_world: object, verdict: Verdict) -> None:
    """150 nodes with eleven addresses each; then all Node objects go. The clock is the row's, and
    one look follows another as in the controller."""

    async def outcome() -> Reclaimed:
        async with _servers(0.0) as ((server,), (kubeconfig,)):
            await _put_pool(kubeconfig, "10.244.0.0/16", 26)
            store = await KubernetesStore.open(kubeconfig)
            clock = _Clock()
            try:
                claimed = await _fill(store)
                collector = BlockCollector(store, clock=clock)
                await _look(store, collector)
                untouched = len(server.state.list(_BLOCKS, ""))
                for number in range(MANY_NODES):
                    server.state.delete(Key(_NODES, "", f"node-{number}"), {})
                async with asyncio.timeout(SNAPSHOT_DEADLINE_S):
                    while (await store.snapshot()).nodes:
                        await store.changed()
                return await _reclaimed(server, store, collector, clock, claimed, untouched)
            finally:
                await store.close()

    found = asyncio.run(outcome())
    verdict.note(
        f"{found.claimed} blocks of {MANY_NODES * PODS_EACH} addresses claimed, {found.left} left "
        f"after {found.took_s / GRACE_S:.3f} times the grace time (one look of "
        f"{LOOK_EVERY_S:.0f} s is {LOOK_EVERY_S / GRACE_S:.3f}), {found.early} gone before it; "
        f"{found.of_blocks} writes of blocks, {found.of_reports} of NodeStatuses, at most "
        f"{found.most} in one look; memory grew by {found.grown_mib:.1f} MiB"
    )
    verdict.must(found.claimed == MANY_NODES, f"only {found.claimed} blocks were claimed")
    verdict.must(found.untouched == MANY_NODES, "the control within: touched while nodes lived")
    verdict.must(found.left == 0, f"{found.left} blocks were not taken back")
    verdict.must(found.early == 0, f"{found.early} blocks were gone before two grace times")
    # From the deletion to the look that sees it, and what the watch brings a look later.
    owed_s = 2 * GRACE_S + 2 * LOOK_EVERY_S
    verdict.must(found.took_s <= owed_s, f"took {found.took_s:.0f} s, owed {owed_s:.0f} s")
    verdict.must(found.of_blocks == 2 * MANY_NODES, f"{found.of_blocks} writes, two for each owed")
    verdict.must(found.of_reports <= MANY_NODES, f"{found.of_reports} removals of NodeStatuses")
    verdict.must(found.most <= WRITES_MAX, f"{found.most} writes in one look")
    verdict.must(found.grown_mib < FLAT_MIB, f"memory grew by {found.grown_mib:.1f} MiB")


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """What came of it. ``early``: gone when two grace times were not over; ``most``: writes in one
    look; ``grown_mib``: resident memory at the end, less that before the first look."""

    claimed: int
    untouched: int
    left: int
    early: int
    took_s: float
    of_blocks: int
    of_reports: int
    most: int
    grown_mib: float


async def _reclaimed(
    server: ApiDouble,
    store: KubernetesStore,
    collector: BlockCollector,
    clock: _Clock,
    claimed: int,
    untouched: int,
) -> Reclaimed:
    before_kib, begun_s = _resident_kib(), clock.now_s
    server.calls.clear()
    early = most = 0
    while server.state.list(_BLOCKS, "") and clock.now_s - begun_s < 3 * GRACE_S:
        written = _writes(server, "blocks") + _writes(server, "nodestatuses")
        await _look(store, collector)
        now = _writes(server, "blocks") + _writes(server, "nodestatuses")
        most = max(most, now - written)
        if clock.now_s - begun_s < 2 * GRACE_S:
            early = claimed - len(server.state.list(_BLOCKS, ""))
        clock.now_s += LOOK_EVERY_S
    took_s = clock.now_s - LOOK_EVERY_S - begun_s
    await _look(store, collector)
    return Reclaimed(
        claimed=claimed,
        untouched=untouched,
        left=len(server.state.list(_BLOCKS, "")),
        early=early,
        took_s=took_s,
        of_blocks=_writes(server, "blocks"),
        of_reports=_writes(server, "nodestatuses"),
        most=most,
        grown_mib=(_resident_kib() - before_kib) / 1024,
    )


def _writes(server: ApiDouble, what: str) -> int:
    return sum(server.calls[verb, what] for verb in ("create", "update", "patch", "delete"))


def _resident_kib() -> int:
    gc.collect()
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0])


class _Clock:
    """Moved by the row."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def _fill(store: KubernetesStore) -> int:
    """Nodes and their addresses; how many blocks were claimed for them."""
    pools = (await store.snapshot()).pools_for("node-0")
    for number in range(MANY_NODES):
        address = ip_address(f"172.30.{number}.1")
        await store.create(NodeResource(Meta(f"node-{number}"), (address,)))
        await store.put_node_status(NodeStatusResource(Meta(f"node-{number}")))
        allocator = Allocator(f"node-{number}", store, lambda: pools, time.monotonic)
        for pod in range(PODS_EACH):
            await allocator.assign(_attachment(number * 100 + pod))
    blocks = await store.list_blocks()
    return sum(block.state is BlockState.CONFIRMED for block in blocks)


async def _look(store: KubernetesStore, collector: BlockCollector) -> None:
    statuses = [s for s in await store.list("NodeStatus") if isinstance(s, NodeStatusResource)]
    snapshot = await store.snapshot()
    await collector.look(snapshot, statuses)


def _attachment(number: int) -> Attachment:
    return Attachment("slash32", f"{number:064x}", "eth0")


_NO = Stage.NO_LAB

ROWS = [
    Row("A0", "control: an API that compares nothing (whoever writes last wins)",
        "must give addresses to two nodes", _NO, without_comparing, is_quick=True),
    Row("A1b", "32 nodes claim at once from a pool of 16 blocks, Kubernetes API",
        "16 confirmed blocks, 16 nodes served, 16 refused, 0 doubled", _NO, claimed_at_once,
        control="A0", is_quick=True),
    Row("A4", "every second write of a block answered 409", "0 doubled, 0 leaked", _NO,
        _hammered(_conflicts), control="A0", is_quick=True),
    Row("A5", "every third write of a block is done and never answered",
        "0 doubled, 0 leaked", _NO, _hammered(_cut_after_commit), control="A0"),
    Row("A6", "three API servers before one state, two of them 2 s and 10 s behind",
        "0 doubled, 0 leaked", _NO, _hammered(_nothing, lags_s=(0.0, 2.0, 10.0)), control="A0"),
    Row("A9", f"{ENDURANCE_NODES} processes, pauses of {PAUSE_S:.0f} s, three API servers, "
        f"{ENDURANCE_S / 60:.0f} min of ADD and DEL", "no address held twice at any moment", _NO,
        paused_processes, control="A0"),
    Row("A13", f"{MANY_NODES} nodes with {PODS_EACH} addresses each, all deleted",
        "all blocks back within two grace times and two looks, none before; two writes for each "
        f"block, {WRITES_MAX} at most in one look; memory flat (under {FLAT_MIB:.0f} MiB)", _NO,
        all_nodes_deleted),
]  # fmt: skip
