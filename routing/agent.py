"""The node agent: builds everything once, runs it in one TaskGroup, and ends in good order.

Order of starting, each step resting on the one before: take the run directory's lock; read the
kernel's journal (which pods hold which address); read the store; run one pass; only then serve
CNI requests. An agent that has not yet looked must not give out an address.

Stopping leaves everything as it is: pods keep their wires, the kernel its routes, ExaBGP its
sessions. The next agent reads it all back.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import os
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import structlog

from bgp.speaker import Speaker
from cni.attach import Attacher, Unready
from cni.collect import Collector
from cni.conntrack import ConntrackError, KernelConntrack
from cni.departures import Departures
from cni.edge_nft import NftEdge
from cni.ipam.allocator import AddressConflict, Allocator
from cni.ipam.pool import IPPool
from cni.netns import Sysctls
from cni.server import CniServer
from cni.wiring import KernelWiring
from routing import host_before
from routing.control import ControlServer
from routing.datastore.cache import SnapshotCache
from routing.datastore.opening import open_store, pod_wishes
from routing.datastore.snapshot import Datastore, Snapshot, StatusBoard
from routing.disks import Disks
from routing.explain.about import about
from routing.explain.codec import to_json
from routing.fib import KernelFib
from routing.journal import Journal
from routing.lean_start import no_default_certificates
from routing.links import link_of
from routing.metrics.agent_metrics import AgentMetrics
from routing.metrics.families import Observation
from routing.readiness import Seen, probe, readiness
from routing.reconcile import Reconciler
from routing.releasing import Releases
from routing.reporting import Reporter
from routing.session_log import log_change
from routing.settings import Settings
from routing.view import (
    Belief,
    BlockUse,
    PodView,
    Row,
    block_rows,
    narrowed,
    peer_rows,
    pod_rows,
    route_rows,
    status_row,
)

if TYPE_CHECKING:
    from routing.web.server import WebServer
from routing.view_rib import advertised_rows, kernel_rows, path_rows

log = structlog.get_logger("routing.agent")

FALLBACK_MTU_BYTES = 1500
MENDED_KEPT = 64
"""Of what other hands did to pods' links, for the next report: it comes within seconds."""
SWITCH_INTERVAL_S = 0.0005
GC_THRESHOLD = 10_000
"""Objects that come before the collector looks for cycles: the default of 700 is three ADDs."""


class AlreadyRunning(Exception):
    """Another agent holds this run directory."""


async def run_agent(settings: Settings, *, version: str) -> None:
    """Runs the agent until SIGTERM or SIGINT.

    Raises:
        AlreadyRunning: another live agent has the run directory.
        StoreError: the embedded store cannot be opened at all.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with run_lock(settings):
        async with Agent.build(settings, version=version) as agent:
            await agent.run_until(stop)
    log.info("agent_stopped", node=settings.node)


@contextlib.contextmanager
def run_lock(settings: Settings) -> Iterator[None]:
    """Makes the directories (0700) and holds the run directory's lock.

    Raises:
        AlreadyRunning: another live agent holds it.
    """
    for directory in (settings.run_dir, settings.state_dir):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(settings.run_dir / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                f"another slash32 agent is running with {settings.run_dir}"
            ) from None
        yield
    finally:
        os.close(lock)


class Agent:
    """The parts of one agent, plugged together."""

    def __init__(self, settings: Settings, *, version: str, store: Datastore) -> None:
        self._settings = settings
        self._version = version
        self._store = store
        self._started_at_s = time.monotonic()
        self._metrics = AgentMetrics(node=settings.node, version=version, clock=time.monotonic)
        self._pools_of: tuple[Snapshot, list[IPPool]] | None = None
        self._wiring = KernelWiring(
            later=lambda work: asyncio.get_running_loop().call_soon(work),
            proc_sys_net=str(settings.proc_sys_net),
        )
        departures = Departures()
        self._fib = KernelFib(on_link_gone=departures.tell, is_awaited=departures.is_awaited)
        departures.on_expect = self._fib.listen
        self._edge = NftEdge()
        self._conntrack = KernelConntrack()
        cache = SnapshotCache(
            settings.snapshot_cache, node=settings.node, passwords_path=settings.password_cache
        )
        self._allocator = Allocator(
            settings.node,
            store,
            self._pools,
            time.monotonic,
            cooldown_s=settings.cooldown_s,
            cooldown_file=str(settings.cooldown_file),
            give_up=cache.give_up,
        )
        self._speaker = Speaker(
            socket_path=str(settings.bgp_socket),
            conf_path=str(settings.exabgp_conf),
            clock=time.monotonic,
            on_change=self._bgp_changed,
        )
        self._journal = Journal(settings.journal_file, clock=time.time)
        written = [settings.run_dir, settings.state_dir]
        written += [settings.store.parent] if settings.store is not None else []
        self._disks = Disks(written, on_change=lambda: self._loop.kick("disks"))
        self._mended: deque[tuple[int, str]] = deque(maxlen=MENDED_KEPT)
        self._loop = Reconciler(
            node=settings.node,
            store=store,
            fib=self._metrics.fib(self._fib),
            speaker=self._speaker,
            pod_links=self._wiring,
            blocks=self._allocator,
            edge=self._edge,
            clock=time.monotonic,
            resync_s=settings.resync_s,
            on_report=lambda before, after: self._journal.note(
                before, after, self._speaker.sessions()
            ),
            on_mended=self._note_mended,
            cache=cache,
        )
        self._wishes = pod_wishes(
            store, node=settings.node, pools=lambda: self._loop.snapshot.pools
        )
        self._attacher = Attacher(
            wiring=self._metrics.wiring(self._wiring),
            host_routes=self._metrics.host_routes(self._loop),
            allocator=self._metrics.allocator(self._allocator),
            mtu_bytes=self._mtu_bytes,
            readiness=self._readiness,
            departures=departures,
            conntrack=self._conntrack,
            examine_netns=self._wiring.examine,
            wishes=self._wishes,
        )
        self._collector = Collector(
            links=self._wiring,
            book=self._allocator,
            release=self._attacher.release_linkless,
            clock=time.monotonic,
            grace_s=settings.collect_grace_s,
        )
        self._cni = CniServer(str(settings.cni_socket), self._metrics.verbs(self._attacher))
        self._web: WebServer | None = None
        releases = Releases(
            node=settings.node,
            links=self._wiring,
            book=self._allocator,
            verbs=self._attacher,
            audit=self._journal.add,
        )
        self._control = ControlServer(
            settings.agent_socket,
            {
                "status": self._view(status_row),
                "peers": self._view(peer_rows),
                "blocks": self._view(block_rows),
                "pods": self._view(pod_rows),
                "addresses": self._holders,
                "nodes": self._nodes,
                "ipam": self._ipam,
            },
            {
                "routes": self._table(route_rows),
                "paths": self._table(path_rows),
                "advertised": self._table(advertised_rows),
                "kernel": self._table(kernel_rows),
                "about": self._about,
                "release": releases.answer,
            },
        )

    @classmethod
    @asynccontextmanager
    async def build(cls, settings: Settings, *, version: str) -> AsyncIterator[Agent]:
        """An agent whose files and sockets are closed again on the way out."""
        async with AsyncExitStack() as stack:
            store = await open_store(
                settings.store_name, kubeconfig=settings.kubeconfig, reporter=settings.node
            )
            stack.push_async_callback(store.close)
            agent = cls(settings, version=version, store=store)
            if agent._wishes is not None:
                stack.push_async_callback(agent._wishes.close)
            stack.push_async_callback(agent._fib.close)
            stack.callback(agent._wiring.close)
            stack.callback(agent._edge.close)
            stack.callback(agent._conntrack.close)
            stack.callback(agent._journal.close)
            stack.push_async_callback(agent._speaker.close)
            stack.push_async_callback(agent._control.close)
            stack.push_async_callback(agent._cni.close)
            if settings.http_port is not None:
                agent._web = agent._web_server(settings.http_port)
                stack.push_async_callback(agent._web.close)
            yield agent

    async def run_until(self, stop: asyncio.Event) -> None:
        """Starts in order, runs until ``stop`` is set."""
        with Sysctls() as sysctls:
            host_before.note(self._settings.state_dir, sysctls)
        for change in self._wiring.prepare_host():
            log.info("host_prepared", change=change)
        for ifname in self._wiring.remove_half_made():
            log.warning("half_made_link_removed", link=ifname)
        self._adopt()
        self._disks.look()
        await self._forget_connections()
        await self._control.start()
        if self._web is not None:
            await self._web.start()
        await self._speaker.start()
        self._loop.recall()
        # Its first pass takes everything for new: who reads the journal must see why.
        self._journal.add({"kind": "agent", "action": "started", "detail": self._version})
        await self._loop.run_pass()
        await self._cni.start()
        # What is alive now stays: the collector need not walk the libraries again at every ADD.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        # A thread that removes a link must not keep the loop waiting for the usual 5 ms.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        log.info("agent_started", node=self._settings.node, version=self._version)
        async with asyncio.TaskGroup() as tasks:
            workers = [
                tasks.create_task(self._loop.run()),
                tasks.create_task(self._loop.watch_kernel()),
                tasks.create_task(self._loop.watch_losses()),
                tasks.create_task(self._loop.watch_store()),
                tasks.create_task(self._collector.run(self._settings.resync_s)),
                tasks.create_task(self._disks.run()),
            ]
            if self._wishes is not None:
                self._wishes.start()
            if isinstance(self._store, StatusBoard):
                reporter = self._reporter(self._store)
                workers.append(tasks.create_task(reporter.run()))
            await stop.wait()
            for worker in workers:
                worker.cancel()

    def _reporter(self, board: StatusBoard) -> Reporter:
        def unready() -> str | None:
            found = self._readiness()
            return None if found is None else found.reason

        return Reporter(
            board,
            belief=self._belief,
            unready=unready,
            starved=self._allocator.exhausted_pools,
            clock=time.monotonic,
        )

    def _adopt(self) -> None:
        """The kernel is the journal: every live pod link holds its addresses."""
        for link in self._wiring.read():
            try:
                self._allocator.adopt(link.record.attachment, link.record.addresses)
            except AddressConflict as error:
                log.error("address_held_twice", link=link.ifname, error=str(error))

    async def _forget_connections(self) -> None:
        """Of addresses that rest: the agent before us may have been killed before it did."""
        for address in self._allocator.resting():
            try:
                await asyncio.to_thread(self._conntrack.flush, address)
            except ConntrackError as error:
                log.warning("connections_not_forgotten", address=str(address), error=str(error))

    def _bgp_changed(self, reason: str) -> None:
        self._metrics.bgp_changed(reason)
        log_change(reason, self._speaker.sessions)
        self._loop.kick(f"bgp:{reason}")

    def _web_server(self, port: int) -> WebServer:
        # Here and not above: aiohttp takes 0.2 s to import, which an agent without it need not pay.
        with no_default_certificates():
            from routing.web.pages import pages
            from routing.web.recent import JournalRecent
            from routing.web.server import WebServer

        def observe() -> Observation:
            return self._metrics.observe(
                loop=self._loop,
                speaker=self._speaker,
                allocator=self._allocator,
                cache_file=self._settings.snapshot_cache,
                is_ready=self._readiness() is None,
                writable=self._disks.is_writable,
            )

        def last_pass_s() -> float:
            finished_at_s = self._loop.report.finished_at_s
            return self._started_at_s if finished_at_s is None else finished_at_s

        return WebServer(
            pages(
                observe=observe,
                recent=JournalRecent(self._settings.journal_file),
                readiness=self._probe,
                last_pass_s=last_pass_s,
            ),
            port=port,
            metrics_address=self._settings.metrics_address,
        )

    def _pools(self) -> Sequence[IPPool]:
        """As the last snapshot has them; worked out once for each snapshot, not for each ADD."""
        snapshot = self._loop.snapshot
        if self._pools_of is None or self._pools_of[0] is not snapshot:
            self._pools_of = (snapshot, snapshot.pools_for(self._settings.node))
        return self._pools_of[1]

    def _mtu_bytes(self) -> int:
        """MTU of new pod links: as configured, or the smallest of the links that face peers."""
        if self._settings.mtu_bytes is not None:
            return self._settings.mtu_bytes
        links = self._loop.report.links
        sources = {peer.local_address for peer in self._loop.report.desired.peers.values()}
        if not sources:
            sources = {
                address
                for node in self._loop.snapshot.nodes
                if node.meta.name == self._settings.node
                for address in node.addresses
            }
        uplinks = [link for source in sources if (link := link_of(source, links))]
        return min((link.mtu_bytes for link in uplinks), default=FALLBACK_MTU_BYTES)

    def _readiness(self) -> Unready | None:
        """What CNI STATUS says, from memory."""
        return readiness(self._seen())

    def _probe(self) -> Unready | None:
        """What the readiness probe says, from memory."""
        return probe(
            self._seen(),
            age_s=time.monotonic() - self._started_at_s,
            kernel_errors=[
                f"{each.key}: {each.error}"
                for each in self._loop.report.failures
                if each.key.startswith("route ")
            ],
        )

    def _seen(self) -> Seen:
        snapshot, store_error = self._loop.snapshot, self._loop.store_error
        return Seen(
            unread_store=store_error if not snapshot.pools else None,
            shortage=self._allocator.shortage(store_error),
            edge_error=self._loop.edge_error,
            peers=self._loop.peer_names,
            sessions=self._speaker.sessions(),
            is_speaker_connected=self._speaker.is_connected,
            has_learned_routes=self._loop.report.has_learned_routes,
        )

    async def _holders(self) -> list[dict[str, Any]]:
        """The address book itself: who holds what, whether or not there is a link for it."""
        return [
            {
                "network": attachment.network,
                "container_id": attachment.container_id,
                "ifname": attachment.ifname,
                "addresses": [str(each) for each in self._allocator.addresses(attachment)],
            }
            for attachment in self._allocator.attachments()
        ]

    async def _nodes(self) -> dict[str, Any]:
        """Who else there is, as the last snapshot has it, for commands that ask all nodes."""
        return {
            "store": self._settings.store_name,
            "nodes": sorted(node.meta.name for node in self._loop.snapshot.nodes),
        }

    def _note_mended(self, ifname: str, what: str) -> None:
        self._journal.add(
            {"kind": "link", "action": "repaired", "what": ifname, "detail": what,
             "reason": "another hand changed it"}
        )  # fmt: skip
        number = self._mended[-1][0] + 1 if self._mended else 1
        self._mended.append((number, what))

    async def _ipam(self) -> dict[str, Any]:
        """Books, links and blocks of this node, for ``ipam check``."""
        belief = await self._belief()
        return {
            "node": belief.node,
            "blocks": block_rows(belief),
            "holders": await self._holders(),
            "pods": pod_rows(belief),
            "problems": list(belief.ipam_problems),
        }

    def _view(self, rows: Any) -> Any:
        async def answer() -> Any:
            return rows(await self._belief())

        return answer

    def _table(self, rows: Callable[[Belief], list[Row]]) -> Any:
        """A view of a table that may be large: all of it, or what concerns one ``prefix``."""

        async def answer(arguments: Mapping[str, Any]) -> Any:
            prefix = arguments.get("prefix")
            belief = await self._belief()
            return rows(narrowed(belief, None if prefix is None else str(prefix)))

        return answer

    async def _about(self, arguments: Mapping[str, Any]) -> Any:
        """What this agent knows of the prefixes around some addresses, for ``explain``."""
        return to_json(about(await self._belief(), [str(a) for a in arguments["addresses"]]))

    async def _belief(self) -> Belief:
        report = await self._loop.look()
        now_s = time.monotonic()
        return Belief(
            now_s=now_s,
            node=self._settings.node,
            version=self._version,
            desired=report.desired,
            actual=report.actual,
            sessions=self._speaker.sessions(),
            paths=self._speaker.path_table(),
            advertised=frozenset(await self._speaker.adj_rib_out())
            if self._speaker.is_connected
            else frozenset(),
            blocks=self._loop.snapshot.blocks,
            usage={
                block.cidr: BlockUse(used, cooling, free)
                for block, used, cooling, free in self._allocator.blocks()
            },
            pods=[
                PodView(
                    attachment=link.record.attachment,
                    pod=link.record.pod,
                    addresses=link.record.addresses,
                    ifname=link.ifname,
                    is_up=link.is_up,
                    mtu_bytes=link.mtu_bytes,
                )
                for link in report.pods
            ],
            held=[(held.what, held.gate) for held in report.held],
            contested={key.prefix: words for key, words in report.contested.items()},
            failures=[(f.key, f.operation, f.error) for f in report.failures],
            store_error=self._loop.store_error,
            speaker_connected=self._speaker.is_connected,
            last_pass_age_s=None
            if report.finished_at_s is None
            else round(now_s - report.finished_at_s, 3),
            store=self._settings.store_name,
            ipam_problems=[
                *self._allocator.problems(),
                *self._loop.knowledge_problems,
                *(problem.text for problem in self._store.problems()),
            ],
            last_peers=self._loop.last_peers,
            unusable=self._speaker.rejections(),
            stale=self._speaker.stale_paths(),
            mended=tuple(self._mended),
            degraded=self._disks.problems,
        )
