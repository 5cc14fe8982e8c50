"""The level-triggered loop: kick, coalesce, read, compute, diff, apply in safe order, back off.

One task runs passes; it is the only writer of the FIB and of the Adj-RIB-Out. A kick carries no
data, so losing or repeating one is harmless. A pass never raises: what failed is collected, and
the next pass tries again after a jittered back-off.

Order of reading: the FIB first, pod links after it. A route that ADD writes between the two has a
link that the second read sees; read the other way round, the pass would take the new pod's route
for an orphan and delete it.

Order of applying: create and replace routes, announce, End-of-RIB, withdraw, delete routes.
Traffic is attracted only once it can be delivered, and refused only once it is no longer attracted.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from itertools import islice
from typing import Protocol

import structlog

from bgp.adj_rib import Offers
from cni.attachment import Attachment
from cni.edge import Edge, EdgeError
from cni.ipam.block import Block, BlockStoreError
from cni.observed import ObservedLink
from cni.podlink import PodLink
from routing.announcer import Announcer
from routing.datastore.cache import SnapshotCache
from routing.datastore.snapshot import Datastore, Snapshot, StoreError
from routing.deletion_gate import deletion_gate
from routing.delta import Delta, Failure
from routing.desired import Desired, Inputs, decisions_of, desired
from routing.fib import Fib
from routing.give_way import give_way
from routing.host_routes import HostRoutes
from routing.knowledge import Knowledge
from routing.last_peers import LastPeers
from routing.link_repair import LinkRepair, PodLinks
from routing.links import LinkState
from routing.next_hops import to_look_up
from routing.part import Allowance, changed_in, part_of
from routing.pass_log import PassLog
from routing.report import HeldList, PassReport
from routing.route_diff import diff_routes
from routing.route_log import RouteLog
from routing.route_table import RouteTable
from routing.routes import Address, Prefix, Route, RouteKey
from routing.session_memory import SessionMemory
from routing.speaking import SpeakerFace
from routing.topology import PeerName, find_node, sessions_for
from routing.update_lane import merge, relearn

log = structlog.get_logger("routing.reconcile")

LEARNED_AT_ONCE = 16_384
"""Prefixes that a short pass learns and writes before it goes on to the next."""
BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 10.0
READ_INLINE_MAX = 100
UPDATE_KICK = "bgp:update:"
NO_RULE = ("bgp:end_of_rib:", "bgp:complete:", "bgp:refreshed:")
"""Kicks that change nothing of what becomes of a path."""
LOSS_KICKS = ("bgp:session_down:", "bgp:swept:", "bgp:stale_hold_over:")
"""Kicks with which a peer's whole table may have gone."""
LOSSES_MAX = 4
"""Sessions that may end while a pass computes before it goes on all the same."""
COALESCE_S = 0.005
"""How long a pass waits after the first kick, so that a burst of events is one pass."""
LAST_PEERS_LATE_S = 0.1
"""How long after the end of last peers' time a pass comes for it: their clock is another one."""
FRONT_HOLD_S = 10.0
"""How long a route of ours stays in front after its ordinary place is free: who has taken it once
may take it again, and each time is a gap."""
QUIET_S = 0.02
"""After so long without a pass the next one is no burst's."""


class Blocks(Protocol):
    """What the loop needs of cni.ipam.allocator."""

    async def refresh(self, blocks: Sequence[Block] | None = None) -> None:
        """Takes the store's blocks as the new truth of who owns what."""

    async def release_empty_blocks(self) -> Sequence[Prefix]:
        """One step towards giving back blocks nobody uses; those that are gone now."""

    def restore(self, blocks: Sequence[Block]) -> None:
        """Takes this node's CONFIRMED blocks of a last known list into use."""

    def blocks(self) -> Sequence[tuple[Block, int, int, int]]:
        """(block, used, cooling, free) of each CONFIRMED block of ours."""


class Reconciler:
    """Owns the loop. ``ensure``, ``forget`` and ``check`` are the HostRoutes port of cni.attach."""

    def __init__(
        self,
        *,
        node: str,
        store: Datastore,
        fib: Fib,
        speaker: SpeakerFace,
        pod_links: PodLinks,
        blocks: Blocks,
        edge: Edge,
        clock: Callable[[], float],
        resync_s: float = 30.0,
        on_report: Callable[[PassReport, PassReport], None] = lambda _before, _after: None,
        on_mended: Callable[[str, str], None] = lambda _ifname, _what: None,
        cache: SnapshotCache | None = None,
    ) -> None:
        self._node = node
        self._on_report = on_report
        self._edge = edge
        self._store = store
        self._fib = fib
        self._speaker = speaker
        self._pod_links = pod_links
        self._blocks = blocks
        self._clock = clock
        self._resync_s = resync_s
        self._started_at_s = clock()
        self._kicked = asyncio.Event()
        self._has_lost = asyncio.Event()
        self._losses = 0
        self._reasons: set[str] = set()
        self._knowledge = Knowledge(node=node, store=store, blocks=blocks, cache=cache)
        self._sessions = SessionMemory()
        self._was_complete: set[Address] = set()
        self._announcer = Announcer(speaker)
        self._host_routes = HostRoutes(fib, lambda: self.report.actual)
        self._repair_due = True
        self._link_repair = LinkRepair(pod_links, on_mended)
        self._resync_due_s = clock() + resync_s
        self._retreat_due_s: float | None = None
        self._ended_at_s = clock()
        self._pass_log = PassLog()
        self._route_log = RouteLog(clock)
        self._allowance = Allowance(clock)
        self._pass_done = asyncio.Condition()
        self._in_pass = False
        self._next_hops: frozenset[Address] = frozenset()
        """Those that were named when the last pass looked."""
        self.report = PassReport()
        self.edge_error: str | None = "not looked at yet"
        """Why the rules at the pod's edge do not hold at present, or None."""
        self.store_read_at_s: float | None = None
        """When the store was last read, or None when it never was."""

    @property
    def snapshot(self) -> Snapshot:
        """The last snapshot the store gave; ``in_sync`` is False while the store is away."""
        return self._knowledge.snapshot

    @property
    def store_error(self) -> str | None:
        """Why the store cannot be read at present, or None."""
        return self._knowledge.error

    @property
    def peer_names(self) -> Sequence[PeerName]:
        """The peers this node should have, as the last pass knew them."""
        return self._sessions.plan.topology.names

    def recall(self) -> bool:
        """Starts from what was last known, if the node's disk has it; before the first pass."""
        return self._knowledge.recall()

    @property
    def knowledge_problems(self) -> Sequence[str]:
        """What is wrong with what this node knows, one sentence each."""
        return self._knowledge.problems

    @property
    def last_peers(self) -> LastPeers | None:
        """What is kept of peers that the store has no more, or None."""
        return self._knowledge.last_peers

    def kick(self, reason: str) -> None:
        """Asks for a pass. Callable at any moment from the loop's thread; never blocks."""
        log.debug("kicked", reason=reason)
        self._reasons.add(reason)
        self._kicked.set()
        if reason.startswith(LOSS_KICKS):
            self._losses += 1
            self._has_lost.set()

    async def run(self) -> None:
        """Passes for ever: at each kick, after a failure's back-off, and at every resync."""
        failures_in_row = 0
        while True:
            wait_s = max(0.0, self._resync_due_s - self._clock())
            turn_s = self._sessions.next_change_s(self._clock())
            if turn_s is not None:
                wait_s = min(wait_s, turn_s)
            if self._retreat_due_s is not None:
                wait_s = min(wait_s, max(0.0, self._retreat_due_s - self._clock()))
            if self.last_peers is not None:
                wait_s = min(wait_s, self.last_peers.left_s + LAST_PEERS_LATE_S)
            if failures_in_row:
                ceiling_s = min(BACKOFF_FIRST_S * 2 ** (failures_in_row - 1), BACKOFF_MAX_S)
                wait_s = min(wait_s, ceiling_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            try:
                # Not wait_for: Python 3.11's loses a cancellation that meets the result, and the
                # agent would then ignore SIGTERM.
                async with asyncio.timeout(wait_s):
                    await self._kicked.wait()
                # After a quiet spell an UPDATE need not wait for others.
                is_quiet = self._clock() - self._ended_at_s > QUIET_S
                if not (is_quiet and all(r.startswith(UPDATE_KICK) for r in self._reasons)):
                    await asyncio.sleep(COALESCE_S)
            except TimeoutError:
                pass
            self._kicked.clear()
            reasons, self._reasons = self._reasons, set()
            updates = {reason for reason in reasons if reason.startswith(UPDATE_KICK)}
            others = reasons - updates
            if not failures_in_row and all(reason.startswith(NO_RULE) for reason in others):
                # The routes first; the rest is about gates and End-of-RIB, and can wait.
                was_short = await self._short_pass(bool(updates))
                self._ended_at_s = self._clock()
                if was_short and not others:
                    continue
            failed = await self.run_pass()
            self._ended_at_s = self._clock()
            failures_in_row = min(failures_in_row + 1, 16) if failed else 0

    async def watch_kernel(self) -> None:
        """Turns kernel changes into kicks, for ever."""
        while True:
            reason = await self._fib.changed()
            self._repair_due = True
            self.kick(f"kernel:{reason}")

    async def watch_store(self) -> None:
        """Turns store changes into kicks, for ever."""
        while True:
            try:
                await self._store.changed()
            except StoreError as error:
                log.debug("store_watch_failed", error=str(error))
                await asyncio.sleep(1.0)
            # changed() speaks of what the last snapshot did not see; without a pass in between it
            # would return for ever, at once.
            self.kick("store")
            await self.next_pass()

    async def run_pass(self) -> bool:
        """One pass. Returns whether anything failed; never raises for a part that fails."""
        self._in_pass = True
        try:
            return await self._pass()
        finally:
            self._in_pass = False
            async with self._pass_done:
                self._pass_done.notify_all()

    async def _short_pass(self, has_updates: bool) -> bool:
        """Only the prefixes that UPDATEs have changed, where nothing else has; update_lane.py.

        Returns False when it takes a whole pass.
        """
        is_resync = self._clock() >= self._resync_due_s
        if not has_updates or not self.report.passes or is_resync or self._repair_due:
            return False
        changed = self._speaker.take_changes()
        if changed is None:
            return False
        # A table that comes whole would be in memory four times more while it is worked on.
        rest, losses = iter(changed.items()), self._losses
        while some := dict(islice(rest, LEARNED_AT_ONCE)):
            # What has been turned away from meanwhile must not be turned back.
            if losses != self._losses or not await self._relearn(some):
                return False
        return True

    async def _relearn(self, changed: Offers) -> bool:
        """These prefixes. Returns False when it takes a whole pass."""
        last = self.report.desired
        news = relearn(last, changed, self._speaker.received())
        if news is None:
            return False
        try:
            actual = await self._fib.read()
        except Exception as error:
            log.exception("kernel_read_failed", error=str(error))
            return False
        told = self._allowance.take(news.outcomes)
        before = part_of(self.report, told, is_all_single=False)
        merge(last, news)
        after = part_of(replace(self.report, actual=actual), told, is_all_single=False)
        delta, held = diff_routes(
            RouteTable(grouped={n: hops for n, hops in news.hops.items() if hops is not None}),
            RouteTable.of(actual).only(news.hops.keys()),
            self._gate(last),
        )
        failures: list[Failure[str]] = []
        if delta:
            await self._apply_fib(self._without_ensured(delta), failures)
        if failures or held:
            # What did not happen is a whole pass's to tell of and to try again.
            self.kick("short_pass_incomplete")
        self.report = replace(self.report, actual=actual, finished_at_s=self._clock())
        self._on_report(before, replace(after, untold=len(news.outcomes) - len(told)))
        return True

    async def _pass(self) -> bool:
        failures: list[Failure[str]] = []
        held = HeldList()
        await self._leave_dead_next_hops()
        await self._ensure_edge(failures)
        await self._read_store(failures)
        try:
            self._host_routes.ensured.clear()
            live = RouteTable.of(await self._fib.read())
            # Of pods' routes a copy: an ADD or DEL from here on is in no list of pods that follows.
            actual = RouteTable(dict(live.single), live.grouped)
            links = await self._fib.links()
            pods = await self._read_pods()
        except Exception as error:
            # Without a read-back nothing may be concluded, let alone deleted.
            log.exception("kernel_read_failed", error=str(error))
            return True
        await self._plan_sessions(links)
        wanted = await self._wanted(pods, links)
        self._sessions.close(wanted.to_close, self._sessions.plan.topology.sessions, self._clock())
        found = await self._apply(wanted, actual, failures, held)
        # By the clock, not by a quiet spell: on a busy node there is none.
        is_resync = self._clock() >= self._resync_due_s
        if self._repair_due or is_resync:
            self._repair_due = False
            if await self._link_repair.repair(pods, failures, all_of_them=is_resync):
                self.kick("repaired")
        if is_resync:
            self._resync_due_s = self._clock() + self._resync_s
            await self._release_empty_blocks(failures)
        await self._retreat(failures)
        self._route_log.flush()
        before = self.report
        self._remember(wanted, found, links, pods, failures, held)
        await give_way()
        changed = changed_in(before, self.report)
        told = self._allowance.take(changed)
        after = replace(part_of(self.report, told), untold=len(changed) - len(told))
        self._on_report(part_of(before, told), after)
        # From here on it is the table that lives: a copy a pass would be a second table.
        self.report = replace(self.report, actual=live)
        return bool(failures)

    async def _wanted(
        self, pods: tuple[ObservedLink, ...], links: Mapping[str, LinkState]
    ) -> Desired:
        """The tables as they should be; of what is believed when this returns, not when it began:
        what has been turned away from meanwhile must not be turned back."""
        attempts = 0
        while True:
            attempts += 1
            losses = self._losses
            # Before the paths are looked at: a peer that says its last word while this computes is
            # complete, and what it said is not in these tables. An agent that started beside its
            # speaker deleted every learned route so, for a quarter of a second.
            complete = self._complete_now()
            self._speaker.take_changes()
            offers = self._speaker.offers()
            kin = {each.kin for said in set(offers.values()) for each in said}
            # By identity first: hashing an address takes longer than all the rest.
            named = {id(each.next_hop): each.next_hop for each in kin}
            self._next_hops = frozenset(named.values())
            inputs = await self._inputs(pods, links, offers, self._next_hops)
            # With 100,000 routes each takes a tenth of a second: ADDs have a turn in between, and
            # so has the loss of a router.
            await give_way()
            decisions = decisions_of(inputs, self.report.desired.remote.decisions)
            for _ in decisions.getting_ready(inputs.offers):
                await give_way()
            wanted = desired(inputs, decisions)
            await give_way()
            if losses == self._losses or attempts == LOSSES_MAX:
                # Once complete is enough: a session that fails later takes its routes with it at
                # once, and a peer that is new has left nothing in the kernel.
                self._was_complete |= complete & wanted.peers.keys()
                return wanted

    def _complete_now(self) -> set[Address]:
        planned = (intent.address for intent in self._sessions.plan.topology.sessions)
        peers = {*self.report.desired.peers, *planned}
        return {peer for peer in peers if self._speaker.is_complete(peer)}

    async def watch_losses(self) -> None:
        """Turns away from what went with a session at once, for ever: a pass that has begun, or
        must look at everything first, is not waited for."""
        while True:
            await self._has_lost.wait()
            self._has_lost.clear()
            await self._leave_dead_next_hops()

    async def _leave_dead_next_hops(self) -> None:
        """By groups: the tables follow when a pass has computed them.

        Where all that led to some next hops leads to the same others now, it is turned there. For
        what remains, a next hop that no path names any more is in no table that a pass can come to,
        and is taken out of where there are others.
        """
        peers, lost = self._speaker.take_lost_peers(), self._speaker.take_lost_next_hops()
        if not peers and not lost:
            return
        try:
            turned = await self._fib.turn(self.report.desired.remote.without(peers))
            changed = await self._fib.abandon(lost) if lost else 0
        except OSError as error:
            log.warning("next_hops_not_abandoned", error=str(error))
            return
        if turned or changed:
            log.warning(
                "next_hops_abandoned",
                next_hops=sorted(map(str, lost)),
                peers=sorted(map(str, peers)),
                groups=turned + changed,
            )

    async def next_pass(self) -> None:
        """Returns when a pass that began after this call has ended."""
        target = self.report.passes + (2 if self._in_pass else 1)
        self.kick("next_pass")
        async with self._pass_done:
            while self.report.passes < target:
                self.kick("next_pass")
                await self._pass_done.wait()

    async def _ensure_edge(self, failures: list[Failure[str]]) -> None:
        """What pods may not do, as firewall rules: one message when nothing has changed."""
        try:
            # In a thread: an nft that hangs must not keep BGP waiting.
            for mended in await asyncio.to_thread(self._edge.ensure):
                log.warning("edge_mended", what=mended)
            self.edge_error = None
        except EdgeError as error:
            self.edge_error = str(error)
            failures.append(Failure("edge", "ensure", str(error)))

    async def _release_empty_blocks(self, failures: list[Failure[str]]) -> None:
        """One step each resync; the pass after it withdraws what was marked (invariant 4)."""
        if not self.snapshot.in_sync:
            return
        try:
            for cidr in await self._blocks.release_empty_blocks():
                log.info("block_released", block=str(cidr))
        except BlockStoreError as error:
            failures.append(Failure("blocks", "release", str(error)))

    async def look(self) -> PassReport:
        """The last pass's report with the tables as they are wanted and found now; changes nothing.

        Pods come and go without a pass, and a person who asks must not be told of a pod that has
        just gone that its route is missing. What was learned is as the last pass, or UPDATE since,
        left it: to decide on 50,000 prefixes again for each who asks would leave time for nothing
        else.
        """
        actual = await self._fib.read()
        links = await self._fib.links()
        pods = await self._read_pods()
        last = self.report.desired
        inputs = await self._inputs(pods, links, {}, self._next_hops)
        decisions = decisions_of(inputs, last.remote.decisions)
        if decisions is not last.remote.decisions:
            inputs = replace(inputs, offers=self._speaker.offers())
        wanted = desired(inputs, decisions, last=last)
        contested = self._fib.contested()
        return replace(
            self.report,
            desired=wanted,
            actual=actual,
            links=links,
            pods=pods,
            contested=contested,
        )

    # -- reading ---------------------------------------------------------------------------

    async def _read_pods(self) -> tuple[ObservedLink, ...]:
        if len(self.report.pods) <= READ_INLINE_MAX:
            return tuple(self._pod_links.read())
        # A thousand take 10 ms, most of it inside the kernel: no ADD shall wait for that.
        return tuple(await asyncio.to_thread(self._pod_links.read))

    async def _read_store(self, failures: list[Failure[str]]) -> None:
        error = await self._knowledge.read()
        if error is None:
            self.store_read_at_s = self._clock()
        else:
            failures.append(Failure("store", "read", error))

    async def _plan_sessions(self, links: Mapping[str, LinkState]) -> None:
        """Once a pass, and not when somebody only looks: the plan depends on what was before."""
        topology = sessions_for(self._knowledge.peering, self._node)
        asked = {}
        for address in self._sessions.to_ask(topology, links):
            source = await self._fib.source_for(address)
            if source is not None:
                asked[address] = source
        node = find_node(self.snapshot, self._node)
        connected = self._speaker.is_connected
        last = self.report.desired
        self._sessions.step(
            topology,
            links=links,
            asked=asked,
            settled=[
                address
                for address in self._announcer.told_all(last.peers.values())
                if self._speaker.is_complete(address)
            ],
            used=(path for paths in last.best.values() for path in paths),
            is_drained=node is not None and node.is_drained,
            announces=bool(await self._speaker.adj_rib_out()) if connected else None,
            now_s=self._clock(),
        )

    async def _inputs(
        self,
        pods: tuple[ObservedLink, ...],
        links: Mapping[str, LinkState],
        offers: Offers,
        next_hops: Set[Address],
    ) -> Inputs:
        plan = self._sessions.plan
        in_use = self.report.desired.remote.next_hops()
        return Inputs(
            node=self._node,
            snapshot=self._knowledge.peering,
            pod_addresses={pod.ifname: pod.record.addresses for pod in pods},
            topology=plan.topology,
            offers=offers,
            links=links,
            peer_sources=plan.sources,
            lingering=plan.lingering,
            closed=plan.closed,
            kernel_routes=await self._fib.ways_to(to_look_up(next_hops, links, in_use)),
            phase=plan.phase,
        )

    # -- applying --------------------------------------------------------------------------

    async def _apply(
        self,
        wanted: Desired,
        actual: RouteTable,
        failures: list[Failure[str]],
        held: HeldList,
    ) -> RouteTable:
        """Returns the table as it was found; ``actual`` goes on to say what there is now."""
        delta, held.routes = diff_routes(RouteTable.of(wanted.routes), actual, self._gate(wanted))
        found = actual.copy() if delta else actual
        failed = await self._apply_fib(Delta(delta.create, delta.replace, {}), failures)
        if self._may_write_bgp():
            await self._announcer.set_peers(wanted, failures)
            await self._announcer.announce(
                wanted, failed, failures, held.others, in_sync=self.snapshot.in_sync
            )
        await self._apply_fib(self._without_ensured(Delta({}, {}, delta.delete)), failures)
        return found

    def _without_ensured(self, delta: Delta[RouteKey, Route]) -> Delta[RouteKey, Route]:
        """An ADD may have written a route anew since this pass looked: a link rebuilt, say."""
        stale = delta.delete
        ensured = self._host_routes.ensured
        if isinstance(stale, RouteTable) and any(key in ensured for key in stale.single):
            single = {k: route for k, route in stale.single.items() if k not in ensured}
            stale = RouteTable(single, stale.grouped)
        return Delta(delta.create, delta.replace, stale)

    async def _apply_fib(
        self, delta: Delta[RouteKey, Route], failures: list[Failure[str]]
    ) -> set[RouteKey]:
        if not delta:
            return set()
        failed = await self._fib.apply(delta)
        keys = {failure.key for failure in failed}
        failures.extend(
            Failure(f"route {failure.key.prefix}", failure.operation, failure.error)
            for failure in failed
        )
        self._route_log.tell(delta, keys)
        return keys

    async def _retreat(self, failures: list[Failure[str]]) -> None:
        """Routes that stand in front of nobody any more go back to their ordinary place."""
        try:
            left_s = await self._fib.retreat(FRONT_HOLD_S)
        except OSError as error:
            failures.append(Failure("routes", "retreat", str(error)))
            left_s = FRONT_HOLD_S
        self._retreat_due_s = None if left_s is None else self._clock() + left_s

    # -- gates -----------------------------------------------------------------------------

    def _may_write_bgp(self) -> bool:
        """Peers and announcements follow from the store; without it they stay as they are."""
        return self.snapshot.in_sync

    def _gate(self, wanted: Desired) -> Callable[[Route], str | None]:
        return deletion_gate(
            wanted,
            in_sync=self.snapshot.in_sync,
            is_connected=self._speaker.is_connected,
            was_complete=self._was_complete,
            age_s=self._clock() - self._started_at_s,
        )

    # -- HostRoutes, for ADD, DEL and CHECK ------------------------------------------------

    async def ensure(self, link: PodLink) -> None:
        """Returns once the pod's host routes are in the kernel. Raises HostRouteError."""
        await self._host_routes.ensure(link)

    async def forget(self, attachment: Attachment, addresses: tuple[Address, ...]) -> None:
        """Returns once no route of ours leads to any of ``addresses``. Raises HostRouteError."""
        await self._host_routes.forget(attachment, addresses)

    async def check(self, link: PodLink) -> list[str]:
        """What is wrong with the host routes of ``link``. Raises HostRouteError."""
        return await self._host_routes.check(link)

    # -- the rest --------------------------------------------------------------------------

    def _remember(
        self,
        wanted: Desired,
        actual: Mapping[RouteKey, Route],
        links: Mapping[str, LinkState],
        pods: tuple[ObservedLink, ...],
        failures: list[Failure[str]],
        held: HeldList,
    ) -> None:
        contested = self._fib.contested()
        self._pass_log.tell(wanted, self.report.desired.rejected, failures, contested)
        self.report = PassReport(
            desired=wanted,
            actual=actual,
            links=links,
            pods=pods,
            failures=tuple(failures),
            held=held,
            contested=contested,
            finished_at_s=self._clock(),
            passes=self.report.passes + 1,
        )
