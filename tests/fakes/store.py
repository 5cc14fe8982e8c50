"""FakeDatastore: the Datastore in memory, with switches for everything that goes wrong with one.

It holds real state under real compare-and-swap; the contract suite runs on it and on LocalStore.

Switches, each for the next call(s) of one operation (``"*"`` is any):
    fail_next            nothing happens, StoreError
    conflict_next        nothing happens, Conflict (AlreadyExists for create)
    timeout_after_commit it happens, and StoreError says that nobody knows
    slow_next            the loop turns N times before it happens
    stale_reads          reads answer with the state before the last write(s)
    hold                 calls wait in ``held`` until ``Held.release()`` (for interleaving)
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from cni.ipam.block import Block
from routing.datastore.preconditions import (
    Key,
    already_exists,
    block_errors,
    block_of,
    check_preconditions,
    not_found,
)
from routing.datastore.resources import block_name, block_resource, kind_of, spec_of, with_meta
from routing.datastore.rules import check_deleted, check_written
from routing.datastore.snapshot import (
    AlreadyExists,
    BlockResource,
    Conflict,
    IPPoolResource,
    Problem,
    Resource,
    Snapshot,
    StoreError,
    snapshot_of,
)

State = dict[Key, Resource]
Resources = list[Resource]
Blocks = list[Block]

HISTORY_MAX = 50
"""Earlier states kept for stale reads."""

OPERATIONS = (
    "snapshot",
    "get",
    "list",
    "create",
    "update",
    "delete",
    "list_blocks",
    "create_block",
    "update_block",
    "delete_block",
)


@dataclass(slots=True)
class Fault:
    """What happens to one call. ``is_late``: it happens now, its answer is held once more."""

    error: Callable[[], StoreError] | None = None
    after_commit: bool = False
    turns: int = 0
    is_late: bool = False


@dataclass(slots=True)
class Held:
    """A call that waits: which operation, by whom, and the ways to let it go on."""

    operation: str
    caller: str
    gate: asyncio.Future[Fault]

    def release(self, fault: Fault | None = None) -> None:
        """Lets the call happen, with a fault if one is given."""
        if not self.gate.done():
            self.gate.set_result(fault or Fault())


class FakeDatastore:
    """A cluster's state in a dict. Calls are counted by operation in ``calls``."""

    def __init__(self, *resources: Resource) -> None:
        self.calls: dict[str, int] = defaultdict(int)
        self.held: list[Held] = []
        self.hold = False
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._state: State = {}
        self._history: deque[State] = deque(maxlen=HISTORY_MAX)
        self._stale: deque[int] = deque()
        self._versions = count(1)
        self._uids = count(1)
        self._written = 0
        self._seen: int | None = None
        self._changes = asyncio.Event()
        for resource in resources:
            self._insert(resource)

    # -- switches --------------------------------------------------------------------------

    def fail_next(self, operation: str, *, times: int = 1, error: str = "unreachable") -> None:
        """The next calls fail and change nothing."""
        for _ in range(times):
            self._arm(operation, Fault(lambda: StoreError(f"fake store: {error}")))

    def conflict_next(self, operation: str, *, times: int = 1) -> None:
        """The next calls lose a race: AlreadyExists for a create, Conflict otherwise."""
        kind = AlreadyExists if operation.startswith("create") else Conflict
        for _ in range(times):
            self._arm(operation, Fault(lambda: kind("fake store: somebody was faster")))

    def timeout_after_commit(self, operation: str, *, times: int = 1) -> None:
        """The next calls happen, but their answers are lost."""
        for _ in range(times):
            self._arm(
                operation, Fault(lambda: StoreError("fake store: timed out"), after_commit=True)
            )

    def slow_next(self, operation: str, turns: int) -> None:
        """The next call lets the event loop turn so many times before it happens."""
        self._arm(operation, Fault(turns=turns))

    def stale_reads(self, times: int, *, writes: int = 1) -> None:
        """The next reads answer with the state before the last so many writes."""
        self._stale.extend([writes] * times)

    def _arm(self, operation: str, fault: Fault) -> None:
        if operation != "*" and operation not in OPERATIONS:
            raise ValueError(f"no operation {operation!r}")
        self._faults[operation].append(fault)

    # -- the truth, for tests --------------------------------------------------------------

    @property
    def resources(self) -> Resources:
        """Everything stored, by kind and name."""
        return [self._state[key] for key in sorted(self._state)]

    @property
    def blocks(self) -> Blocks:
        """Every block stored."""
        return [r.block for r in self.resources if isinstance(r, BlockResource)]

    def remove(self, kind: str, name: str) -> None:
        """Takes a resource away without asking any rule, as an operator's accident would."""
        self._commit({key: r for key, r in self._state.items() if key != (kind, name)})

    def render(self) -> str:
        """The state as text, one resource a line, for failure messages."""
        return "\n".join(
            f"{kind_of(r)} {r.meta.name} v{r.meta.resource_version} {spec_of(r)}"
            for r in self.resources
        )

    # -- Datastore -------------------------------------------------------------------------

    async def snapshot(self) -> Snapshot:
        async with self._call("snapshot"):
            resources = self._read().values()
            self._seen = self._written
            return snapshot_of(resources)

    async def changed(self) -> None:
        while self._seen is not None and self._seen == self._written:
            self._changes.clear()
            await self._changes.wait()

    def problems(self) -> Sequence[Problem]:
        """None."""
        return ()

    async def get(self, kind: str, name: str) -> Resource:
        async with self._call("get"):
            return self._existing(self._read(), (kind, name))

    async def list(self, kind: str) -> Resources:
        async with self._call("list"):
            return self._listed(kind)

    async def create(self, resource: Resource) -> Resource:
        async with self._call("create"):
            return self._insert(resource)

    async def update(self, resource: Resource) -> Resource:
        async with self._call("update"):
            return self._replace(resource)

    async def delete(
        self, kind: str, name: str, *, resource_version: str | None = None, uid: str | None = None
    ) -> None:
        async with self._call("delete"):
            self._delete(kind, name, resource_version, uid)

    async def close(self) -> None:
        """Nothing is held open."""

    # -- BlockStore ------------------------------------------------------------------------

    async def list_blocks(self) -> Blocks:
        with block_errors():
            async with self._call("list_blocks"):
                return [r.block for r in self._listed("Block") if isinstance(r, BlockResource)]

    async def create_block(self, block: Block) -> Block:
        with block_errors():
            async with self._call("create_block"):
                return block_of(self._insert(block_resource(block)))

    async def update_block(self, block: Block) -> Block:
        with block_errors():
            async with self._call("update_block"):
                return block_of(self._replace(block_resource(block)))

    async def delete_block(self, block: Block) -> None:
        with block_errors():
            async with self._call("delete_block"):
                self._delete(
                    "Block", block_name(block.cidr), block.resource_version, block.uid or None
                )

    # -- inside ----------------------------------------------------------------------------

    def _call(self, operation: str) -> _Call:
        self.calls[operation] += 1
        return _Call(self, operation)

    def next_fault(self, operation: str) -> Fault:
        """The fault armed for this call, if any (used by the call itself)."""
        for name in (operation, "*"):
            if self._faults[name]:
                return self._faults[name].popleft()
        return Fault()

    def _read(self) -> State:
        if not self._stale:
            return self._state
        back = self._stale.popleft()
        return self._history[-min(back, len(self._history))] if self._history else self._state

    def _listed(self, kind: str) -> Resources:
        state = self._read()
        return [state[key] for key in sorted(state) if key[0] == kind]

    @staticmethod
    def _existing(state: State, key: Key) -> Resource:
        if key not in state:
            raise not_found(key)
        return state[key]

    def _insert(self, resource: Resource) -> Resource:
        key = (kind_of(resource), resource.meta.name)
        if key in self._state:
            raise already_exists(key)
        stored = with_meta(
            resource,
            resource_version=str(next(self._versions)),
            uid=f"uid-{next(self._uids)}",
            generation=1,
        )
        self._judge_and_commit(key, None, stored)
        return stored

    def _replace(self, resource: Resource) -> Resource:
        key = (kind_of(resource), resource.meta.name)
        old = self._existing(self._state, key)
        check_preconditions(
            old.meta, key, resource.meta.resource_version, resource.meta.uid or None
        )
        kept = old.meta
        same = with_meta(
            resource,
            resource_version=kept.resource_version,
            uid=kept.uid,
            generation=kept.generation,
        )
        if same == old:
            return old
        stored = with_meta(
            resource,
            resource_version=str(next(self._versions)),
            uid=kept.uid,
            generation=kept.generation + (spec_of(old) != spec_of(resource)),
        )
        self._judge_and_commit(key, old, stored)
        return stored

    def _delete(self, kind: str, name: str, resource_version: str | None, uid: str | None) -> None:
        old = self._existing(self._state, (kind, name))
        check_preconditions(old.meta, (kind, name), resource_version, uid)
        after = {key: r for key, r in self._state.items() if key != (kind, name)}
        check_deleted(
            old, blocks=lambda: [r for r in after.values() if isinstance(r, BlockResource)]
        )
        self._commit(after)

    def _judge_and_commit(self, key: Key, old: Resource | None, new: Resource) -> None:
        after = self._state | {key: new}
        check_written(
            old, new, pools=lambda: [r for r in after.values() if isinstance(r, IPPoolResource)]
        )
        self._commit(after)

    def _commit(self, after: State) -> None:
        self._history.append(self._state)
        self._state = after
        self._written += 1
        self._changes.set()


class _Call:
    """One call: waits if held, then applies its fault before or after the body."""

    def __init__(self, store: FakeDatastore, operation: str) -> None:
        self._store = store
        self._operation = operation
        self._fault = Fault()

    async def __aenter__(self) -> None:
        self._fault = self._store.next_fault(self._operation)
        if self._store.hold:
            given = await self._wait(self._operation)
            if given.error is not None or given.is_late:
                self._fault = given
        for _ in range(self._fault.turns):
            await asyncio.sleep(0)
        if self._fault.error is not None and not self._fault.after_commit:
            raise self._fault.error()

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if error is None and self._fault.is_late:
            await self._wait(f"{self._operation} answer")
        if error is None and self._fault.error is not None:
            raise self._fault.error()

    async def _wait(self, what: str) -> Fault:
        task = asyncio.current_task()
        caller = "" if task is None else task.get_name()
        held = Held(what, caller, asyncio.get_running_loop().create_future())
        self._store.held.append(held)
        try:
            return await held.gate
        finally:
            self._store.held.remove(held)
