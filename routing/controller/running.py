"""The controller: what one of several does for the whole cluster. The network works without it.

It takes back what nodes that are gone have left (``blocks.py``), and writes how IPPools and
BGPPeers stand (``standing.py``). Any number may run; the one that is elected works, and two that
work at once do no harm.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from routing.controller.blocks import GRACE_S, BlockCollector
from routing.controller.election import Election
from routing.controller.standing import Key, malformed_among, standing
from routing.datastore.snapshot import (
    Datastore,
    EventNote,
    NodeStatusResource,
    NotFound,
    ResourceStatus,
    Snapshot,
    StatusBoard,
    StoreError,
)

log = structlog.get_logger("routing.controller")

LEASE = "slash32-controller"
LOOK_EVERY_S = 15.0


class Controller:
    """One candidate.

    Args:
        store: where everything is.
        board: where statuses and Events are written.
        election: whether this candidate works.
        clock: monotonic seconds.
        grace_s: see BlockCollector.
    """

    def __init__(
        self,
        store: Datastore,
        board: StatusBoard,
        election: Election,
        *,
        clock: Callable[[], float] = time.monotonic,
        grace_s: float = GRACE_S,
    ) -> None:
        self._store = store
        self._board = board
        self._election = election
        self._blocks = BlockCollector(store, clock=clock, grace_s=grace_s)
        self._written: dict[Key, ResourceStatus] = {}
        self._malformed: frozenset[tuple[str, str, str]] = frozenset()

    async def run(self, every_s: float = LOOK_EVERY_S) -> None:
        """Looks for ever."""
        while True:
            await self.look()
            await asyncio.sleep(every_s)

    async def look(self) -> None:
        """One look, when elected; what fails is logged and done at the next one."""
        if not self._election.is_elected:
            # Another one has written since, and has watched nodes that we have not.
            self._blocks.forget()
            self._written.clear()
            self._malformed = frozenset()
            return
        try:
            snapshot = await self._store.snapshot()
            reports = [
                each
                for each in await self._store.list("NodeStatus")
                if isinstance(each, NodeStatusResource)
            ]
            events = await self._blocks.look(
                snapshot, reports, is_elected=lambda: self._election.is_elected
            )
            await self._tell([*events, *self._news_of_malformed()])
            await self._write(snapshot, reports)
        except StoreError as error:
            log.warning("look_failed", error=str(error))

    def _news_of_malformed(self) -> list[EventNote]:
        """What cannot be read now and could at the last look, or for another reason."""
        before = self._malformed
        found = malformed_among(self._store.problems())
        self._malformed = frozenset((each.kind, each.name, each.text) for each in found)
        return [
            EventNote(each.kind, each.name, "Malformed", each.text)
            for each in found
            if (each.kind, each.name, each.text) not in before
        ]

    async def _tell(self, events: Iterable[EventNote]) -> None:
        for event in events:
            try:
                await self._board.note_event(event)
            except StoreError as error:
                log.warning("event_not_written", reason=event.reason, error=str(error))

    async def _write(self, snapshot: Snapshot, reports: list[NodeStatusResource]) -> None:
        wanted = standing(snapshot, self._store.problems(), reports)
        for key, status in wanted.items():
            if self._written.get(key) == status:
                continue
            if not self._election.is_elected:
                return
            try:
                await self._board.set_status(*key, status)
            except NotFound:
                continue
            self._written[key] = status
        for key in self._written.keys() - wanted.keys():
            del self._written[key]


async def run_controller(
    kubeconfig: Path | None, *, identity: str, grace_s: float = GRACE_S
) -> None:
    """Runs one candidate on the Kubernetes API until SIGTERM or SIGINT.

    Raises:
        StoreError: there is no usable configuration.
    """
    from routing.controller.kubernetes_leases import KubernetesLeases
    from routing.datastore.kubernetes import DEFAULT_NAMESPACE, KubernetesStore

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    store = await KubernetesStore.open(kubeconfig, reporter=identity)
    try:
        election = Election(
            KubernetesLeases(store.server, namespace=DEFAULT_NAMESPACE),
            name=LEASE,
            identity=identity,
            clock=time.monotonic,
        )
        controller = Controller(store, store, election, grace_s=grace_s)
        log.info("controller_started", identity=identity)
        async with asyncio.TaskGroup() as tasks:
            workers = [tasks.create_task(election.run()), tasks.create_task(controller.run())]
            await stop.wait()
            for worker in workers:
                worker.cancel()
    finally:
        await store.close()
    log.info("controller_stopped", identity=identity)
