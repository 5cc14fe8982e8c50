"""Three nodes on one store, every store call stopped and let go by hand, against a naive model.

Each store call of each node waits until the machine releases it: as it is, refused, lost to a
race, or done with its answer lost. Agents are killed at any such point and come back with nothing
but the kernel's live set. The model is a dict: address -> who holds it.
"""

from __future__ import annotations

import asyncio
import re
import traceback
from collections.abc import Coroutine
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cni.attachment import Address, Attachment
from cni.ipam.allocator import Allocator, NoAddress
from cni.ipam.block import BlockState, BlockStoreError
from cni.ipam.choice import ANY_POOL, NamesByFamily, names_for
from cni.ipam.pool import IPPool
from routing.datastore.snapshot import (
    AlreadyExists,
    Conflict,
    IPPoolResource,
    Meta,
    StoreError,
)
from tests.fakes.careless_store import CarelessDatastore
from tests.fakes.store import FakeDatastore, Fault, Held

RAN = {
    "rules": 0,
    "assigned": 0,
    "released": 0,
    "crashed": 0,
    "faults": 0,
    "given_back": 0,
    "named": 0,
    "examples": 0,
}
FLOOR = {
    "rules": 2500,
    "assigned": 400,
    "released": 200,
    "crashed": 60,
    "faults": 200,
    "given_back": 40,
    "named": 40,
}

NODES = ("node-a", "node-b", "node-c")
COOLDOWN_S = 10.0
POOLS = [
    IPPool("four", ip_network("10.0.0.0/29"), 31),
    IPPool("six", ip_network("fd00::/125"), 127),
    IPPool("kept", ip_network("10.0.1.0/30"), 31, is_manual=True),
]
NAMED: list[NamesByFamily] = [ANY_POOL, ANY_POOL, (("kept",), ()), (("kept", "four"), ("six",))]
"""What pods name; an empty list is any pool that needs no naming."""
TURNS = 60
"""Turns of the loop after which every task waits at a store call or has ended."""

nodes = st.sampled_from(NODES)
pods = st.integers(0, 5)
writes = st.sampled_from(["create_block", "update_block", "update_block", "delete_block"])
hows = st.sampled_from(["fail", "conflict", "lost answer", "late answer"])


class Node:
    """One node's agent, and what its kernel remembers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.allocator: Allocator | None = None
        self.live: dict[Attachment, tuple[Address, ...]] = {}
        self.tasks: dict[asyncio.Task[Any], Attachment | None] = {}
        self.asked: dict[Attachment, list[NamesByFamily]] = {}

    def pod(self, number: int) -> Attachment:
        return Attachment("net", f"{self.name}-{number}", "eth0")


class IpamMachine(RuleBasedStateMachine):
    """The rules; each ends with the loop idle and the results compared with the model."""

    STORE: type[FakeDatastore] = FakeDatastore
    ADOPTS = True
    """What the allocators run on, and whether a new one reads the kernel; the controls plant a
    fault in each."""

    @initialize()
    def build(self) -> None:
        """A store with two pools of four blocks of two addresses, and three nodes."""
        RAN["examples"] += 1
        self.now_s = 0.0
        self.loop = asyncio.new_event_loop()
        self.store = self.STORE(
            *(IPPoolResource(Meta(p.name), p.cidr, p.block_size) for p in POOLS)
        )
        self.store.hold = True
        self.nodes = {name: Node(name) for name in NODES}
        self.holders: dict[Address, Attachment] = {}
        self.released_s: dict[Address, float] = {}
        self.owners: dict[str, str] = {}
        self.old_blocks = [self.store.blocks]
        for node in self.nodes.values():
            self.start(node)

    def start(self, node: Node) -> None:
        """A new agent: it has the kernel's live set, and asks the store."""
        node.allocator = Allocator(
            node.name, self.store, lambda: POOLS, lambda: self.now_s, cooldown_s=COOLDOWN_S
        )
        for attachment, addresses in node.live.items() if self.ADOPTS else ():
            node.allocator.adopt(attachment, addresses)
        self.spawn(node, node.allocator.refresh(), None)

    def spawn(self, node: Node, work: Coroutine[Any, Any, Any], pod: Attachment | None) -> None:
        node.tasks[self.loop.create_task(work, name=node.name)] = pod
        self.settle()

    def settle(self) -> None:
        """Runs until all wait, and takes what has ended."""

        async def turns() -> None:
            for _ in range(TURNS):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())
        for node in self.nodes.values():
            for task in [task for task in node.tasks if task.done()]:
                self.harvest(node, task, node.tasks.pop(task))

    def harvest(self, node: Node, task: asyncio.Task[Any], pod: Attachment | None) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            assert isinstance(error, NoAddress | BlockStoreError), repr(error)
        elif pod is not None:
            self.check_assigned(node, pod, task.result())
        elif isinstance(task.result(), list):
            RAN["given_back"] += len(task.result())

    def check_assigned(self, node: Node, pod: Attachment, addresses: tuple[Address, ...]) -> None:
        """What was given out is new, ours, confirmed, rested, and of both families."""
        if pod in node.live:
            assert addresses == node.live[pod]
            return
        RAN["assigned"] += 1
        assert any(self.is_as_named(addresses, names) for names in node.asked[pod])
        assert [address.version for address in addresses] == [4, 6]
        for address in addresses:
            assert address not in self.holders, f"{address} twice\n{self.store.render()}"
            owner = [
                block
                for block in self.store.blocks
                if block.cidr.version == address.version and address in block.cidr
            ]
            assert [(b.node, b.state) for b in owner] == [(node.name, BlockState.CONFIRMED)]
            if address in self.released_s:
                assert self.now_s - self.released_s[address] >= COOLDOWN_S
            self.holders[address] = pod
        node.live[pod] = addresses

    def is_as_named(self, addresses: tuple[Address, ...], names: NamesByFamily) -> bool:
        """Each address is in a pool that was named, or else in one that need not be."""
        for address in addresses:
            pool = next(p for p in POOLS if p.version == address.version and address in p.cidr)
            wanted = names_for(address.version, names)
            if pool.name not in wanted if wanted else pool.is_manual:
                return False
            RAN["named"] += bool(wanted)
        return True

    # -- rules -----------------------------------------------------------------------------

    @rule(
        name=nodes,
        numbers=st.lists(pods, min_size=1, max_size=4),
        names=st.sampled_from(NAMED),
    )
    def assign(self, name: str, numbers: list[int], names: NamesByFamily = ANY_POOL) -> None:
        """Pods are added at once, one perhaps twice, and perhaps with other names."""
        node = self.nodes[name]
        assert node.allocator is not None
        for pod in map(node.pod, numbers):
            node.asked.setdefault(pod, []).append(names)
            self.spawn(node, node.allocator.assign(pod, (), names), pod)

    @rule(name=nodes, number=pods)
    def release(self, name: str, number: int) -> None:
        """A pod goes; not while its ADD runs (the CNI server locks an attachment)."""
        node = self.nodes[name]
        pod = node.pod(number)
        assert node.allocator is not None
        if pod in node.tasks.values():
            return
        addresses = node.live.pop(pod, ())
        node.asked.pop(pod, None)
        assert node.allocator.release(pod) == addresses
        RAN["released"] += len(addresses)
        for address in addresses:
            del self.holders[address]
            self.released_s[address] = self.now_s

    @rule(name=nodes, age=st.integers(0, 15))
    def refresh(self, name: str, age: int) -> None:
        """The hub hands in a snapshot, perhaps an old one."""
        node = self.nodes[name]
        assert node.allocator is not None
        blocks = self.old_blocks[max(0, len(self.old_blocks) - 1 - age)]
        self.spawn(node, node.allocator.refresh(blocks), None)

    @rule(name=nodes)
    def give_back(self, name: str) -> None:
        """The hub asks for empty blocks to be released."""
        node = self.nodes[name]
        assert node.allocator is not None
        self.spawn(node, node.allocator.release_empty_blocks(), None)

    @precondition(lambda self: self.store.held)
    @rule(index=st.integers(0, 50), turns=st.integers(1, 12))
    def go_on(self, index: int, turns: int) -> None:
        """Store calls happen, in an order nobody chose."""
        for offset in range(turns):
            if self.store.held:
                self.let_go(self.store.held[(index + offset) % len(self.store.held)], Fault())

    @precondition(lambda self: self.store.held)
    @rule(name=nodes, calls=st.integers(1, 20))
    def run_ahead(self, name: str, calls: int) -> None:
        """One node's calls happen while the others wait."""
        for _ in range(calls):
            self.step(name)

    @precondition(lambda self: self.store.held)
    @rule(name=nodes, write=writes, how=hows, then=st.integers(0, 6))
    def stumble(self, name: str, write: str, how: str, then: int) -> None:
        """One node's calls happen up to some kind of write, which goes wrong."""
        for _ in range(12):
            held = self.step(name, stop_at=write)
            if held is not None:
                self.go_wrong_with(held, how)
                break
        for _ in range(then):
            self.step(name)

    def step(self, name: str, stop_at: str = "") -> Held | None:
        """Lets the node's first call happen; or returns it when it is what to stop at."""
        mine = [held for held in self.store.held if held.caller == name]
        if mine and mine[0].operation == stop_at:
            return mine[0]
        if mine:
            self.let_go(mine[0], Fault())
        return None

    @precondition(lambda self: self.store.held)
    @rule(index=st.integers(0, 50), how=hows)
    def go_wrong(self, index: int, how: str) -> None:
        """A store call fails, loses a race, or its caller learns of it later or never."""
        self.go_wrong_with(self.store.held[index % len(self.store.held)], how)

    def go_wrong_with(self, held: Held, how: str) -> None:
        RAN["faults"] += 1
        is_read = held.operation.startswith("list_blocks")
        if how == "late answer":
            self.let_go(held, Fault(is_late=True))
        elif how == "conflict" and not is_read:
            kind = AlreadyExists if held.operation == "create_block" else Conflict
            self.let_go(held, Fault(lambda: kind("raced")))
        else:
            self.let_go(held, Fault(lambda: StoreError("away"), after_commit=how == "lost answer"))

    @rule(name=nodes, dice=st.integers(0, 3))
    def crash(self, name: str, dice: int) -> None:
        """kill -9 at whatever point it is; the kernel's live set stays."""
        if dice:
            return
        RAN["crashed"] += 1
        node = self.nodes[name]
        for task in node.tasks:
            task.cancel()
        self.settle()
        # Without the cool-down file (which has its own clock) releases are forgotten.
        blocks = [block.cidr for block in self.store.blocks if block.node == name]
        for address in list(self.released_s):
            if any(address.version == c.version and address in c for c in blocks):
                del self.released_s[address]
        self.start(node)

    @rule(seconds=st.integers(1, 12))
    def wait(self, seconds: int) -> None:
        """Time passes."""
        self.now_s += seconds

    @invariant()
    def counted(self) -> None:
        """Each rule counts, so that the floor means something."""
        RAN["rules"] += 1

    @invariant()
    def every_block_has_one_owner(self) -> None:
        """A block never changes hands; giving it back and claiming it makes another (uid)."""
        if not hasattr(self, "store"):
            return
        for block in self.store.blocks:
            assert self.owners.setdefault(block.uid, block.node) == block.node
        if self.store.blocks != self.old_blocks[-1]:
            self.old_blocks.append(self.store.blocks)

    @invariant()
    def no_block_is_taken_for_lost(self) -> None:
        """Nobody takes a block away here, whatever an old list says."""
        for node in getattr(self, "nodes", {}).values():
            wrong = [p for p in node.allocator.problems() if "are in use here" in p]
            assert wrong == []

    @invariant()
    def holders_agree_with_the_model(self) -> None:
        """holder() and addresses() say what the model says."""
        for node in getattr(self, "nodes", {}).values():
            for pod, addresses in node.live.items():
                assert node.allocator.addresses(pod) == addresses
                assert all(node.allocator.holder(address) == pod for address in addresses)

    def let_go(self, held: Held, fault: Fault) -> None:
        held.release(fault)
        self.settle()

    def teardown(self) -> None:
        """Quiet again, everything heals: no block leaked, and every node can add a pod."""
        if not hasattr(self, "loop"):
            return
        try:
            self.finish()
            for node in self.nodes.values():
                for number in range(6):
                    self.release(node.name, number)
            self.now_s += COOLDOWN_S
            for _ in range(5):
                for node in self.nodes.values():
                    self.give_back(node.name)
                    self.finish()
                    self.refresh(node.name, 0)
                    self.finish()
            for name in NODES:
                self.assign(name, [0])
                self.finish()
            assert len(self.holders) == 2 * len(NODES), self.store.render()
            assert {b.state for b in self.store.blocks} == {BlockState.CONFIRMED}
            assert len(self.store.blocks) == 2 * len(NODES), self.store.render()
            assert not any(n.allocator and n.allocator.problems() for n in self.nodes.values())
        finally:
            for node in self.nodes.values():
                for task in node.tasks:
                    task.cancel()
            self.settle()
            self.loop.close()

    def finish(self) -> None:
        """Lets every call happen until nobody waits."""
        while any(node.tasks for node in self.nodes.values()):
            if self.store.held:
                self.store.held[0].release()
            self.settle()
        self.every_block_has_one_owner()


IpamMachine.TestCase.settings = settings(
    stateful_step_count=70, max_examples=max(150, settings().max_examples), deadline=None
)
TestIpamMachine = IpamMachine.TestCase


def test_enough_rules_ran():
    """A machine that only ever waited proves nothing."""
    ran = dict(RAN)
    assert {what: ran[what] for what in FLOOR if ran[what] < FLOOR[what]} == {}, ran


class OnACarelessStore(IpamMachine):
    """Of two nodes that claim one block, both get it."""

    STORE = CarelessDatastore


class WithoutAdoption(IpamMachine):
    """A new agent does not read which addresses pods have."""

    ADOPTS = False


@pytest.mark.parametrize(
    ("machine", "finding"),
    [(OnACarelessStore, r"twice|block\.node"), (WithoutAdoption, r"twice|allocator\.addresses")],
)
def test_control_a_planted_fault_is_found(machine: type[IpamMachine], finding: str):
    """The same machine must find it, or its silence about the allocator proves nothing."""
    ran = dict(RAN)
    own = settings(
        IpamMachine.TestCase.settings,
        phases=(Phase.generate,),
        report_multiple_bugs=False,
        print_blob=False,
    )
    with pytest.raises(AssertionError) as caught:
        run_state_machine_as_test(machine, settings=own)
    RAN.update(ran)
    # The machine's own end stumbles over the same fault, after the invariant did.
    told: list[str] = []
    error: BaseException | None = caught.value
    while error is not None:
        told.append("".join(traceback.format_exception(error, chain=False)))
        error = error.__context__
    assert re.search(finding, told[-1]), told[-1]
