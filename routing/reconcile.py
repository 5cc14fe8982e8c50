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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import structlog

from bgp.paths import Family, PeerStatus, SessionState
from cni.attach import HostRouteError
from cni.attachment import Attachment
from cni.edge import Edge, EdgeError
from cni.ipam.block import Block, BlockStoreError
from cni.podlink import PodLink
from cni.wiring import ObservedLink
from routing.datastore.snapshot import Datastore, Snapshot, StoreError
from routing.delta import Delta, Failure, diff
from routing.desired import AdvertisementKey, Desired, Inputs, desired, host_prefix
from routing.fib import Fib
from routing.links import LinkState
from routing.routes import Address, NextHop, Prefix, Route, RouteKey, RouteKind
from routing.speaking import SpeakerFace
from routing.telemetry import RepeatFilter

log = structlog.get_logger("routing.reconcile")

BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 10.0
STORE_OUT_OF_SYNC = "store-out-of-sync"
"""The gate that is closed while the store cannot be read."""
REPAIRS_AT_ONCE = 20
COALESCE_S = 0.005
"""How long a pass waits after the first kick, so that a burst of events is one pass."""


class PodLinks(Protocol):
    """What the loop needs of cni.wiring."""

    def read(self) -> list[ObservedLink]:
        """Every pod link of ours, from the kernel."""

    def repair(self, link: PodLink) -> list[str]:
        """Mends the host end; says what it mended."""


class Blocks(Protocol):
    """What the loop needs of cni.ipam.allocator."""

    async def refresh(self, blocks: Sequence[Block] | None = None) -> None:
        """Takes the store's blocks as the new truth of who owns what."""

    async def release_empty_blocks(self) -> Sequence[Prefix]:
        """One step towards giving back blocks nobody uses; those that are gone now."""


@dataclass(frozen=True, slots=True)
class Held:
    """Something the loop would delete or withdraw, and the gate that is closed."""

    what: str
    gate: str


@dataclass(slots=True)
class PassReport:
    """What the last pass believed and did; the CLI prints this."""

    desired: Desired = field(default_factory=Desired)
    actual: Mapping[RouteKey, Route] = field(default_factory=dict)
    links: Mapping[str, LinkState] = field(default_factory=dict)
    pods: tuple[ObservedLink, ...] = ()
    failures: tuple[Failure[str], ...] = ()
    held: tuple[Held, ...] = ()
    finished_at_s: float | None = None
    passes: int = 0

    @property
    def has_learned_routes(self) -> bool:
        """Whether a route learned by BGP is kept, from a path that may be stale or, by a new agent,
        until a peer has spoken. One that is held for the store's sake alone says nothing: its
        session may be gone."""
        return RouteKind.REMOTE in self.desired.kinds.values() or any(
            held.gate != STORE_OUT_OF_SYNC for held in self.held
        )


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
    ) -> None:
        self._node = node
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
        self._snapshot = Snapshot()
        self._store_error: str | None = "not read yet"
        self._sources: dict[Address, Address] = {}
        self._end_of_rib_sent: dict[tuple[Address, Family], float] = {}
        self._was_complete: set[Address] = set()
        self._ensured: dict[RouteKey, Route] = {}
        """Pod routes written since the last pass looked; it sees them from then on."""
        self._repair_due = True
        self._resync_due_s = clock() + resync_s
        self._repeats = RepeatFilter()
        self._pass_done = asyncio.Condition()
        self._in_pass = False
        self.report = PassReport()
        self.edge_error: str | None = "not looked at yet"
        """Why the rules at the pod's edge do not hold at present, or None."""

    @property
    def snapshot(self) -> Snapshot:
        """The last snapshot the store gave; ``in_sync`` is False while the store is away."""
        return self._snapshot

    @property
    def store_error(self) -> str | None:
        """Why the store cannot be read at present, or None."""
        return self._store_error

    def kick(self, reason: str) -> None:
        """Asks for a pass. Callable at any moment from the loop's thread; never blocks."""
        log.debug("kicked", reason=reason)
        self._kicked.set()

    async def run(self) -> None:
        """Passes for ever: at each kick, after a failure's back-off, and at every resync."""
        failures_in_row = 0
        while True:
            wait_s = max(0.0, self._resync_due_s - self._clock())
            if failures_in_row:
                ceiling_s = min(BACKOFF_FIRST_S * 2 ** (failures_in_row - 1), BACKOFF_MAX_S)
                wait_s = min(wait_s, ceiling_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            try:
                # Not wait_for: Python 3.11's loses a cancellation that meets the result, and the
                # agent would then ignore SIGTERM.
                async with asyncio.timeout(wait_s):
                    await self._kicked.wait()
                await asyncio.sleep(COALESCE_S)
            except TimeoutError:
                pass
            self._kicked.clear()
            failed = await self.run_pass()
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

    async def _pass(self) -> bool:
        failures: list[Failure[str]] = []
        held: list[Held] = []
        await self._ensure_edge(failures)
        await self._read_store(failures)
        try:
            self._ensured.clear()
            actual = await self._fib.read()
            links = await self._fib.links()
            pods = tuple(self._pod_links.read())
        except Exception as error:
            # Without a read-back nothing may be concluded, let alone deleted.
            log.exception("kernel_read_failed", error=str(error))
            return True
        wanted = desired(await self._inputs(pods, links))
        # Once complete is enough: a session that fails later takes its routes with it at once, and
        # a peer that is new has left nothing in the kernel.
        self._was_complete |= {a for a in wanted.peers if self._speaker.is_complete(a)}
        await self._apply(wanted, actual, failures, held)
        # By the clock, not by a quiet spell: on a busy node there is none.
        is_resync = self._clock() >= self._resync_due_s
        if self._repair_due or is_resync:
            self._repair_due = False
            await self._repair_links(pods, failures)
        if is_resync:
            self._resync_due_s = self._clock() + self._resync_s
            await self._release_empty_blocks(failures)
        self._remember(wanted, actual, links, pods, failures, held)
        return bool(failures)

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
        if not self._snapshot.in_sync:
            return
        try:
            for cidr in await self._blocks.release_empty_blocks():
                log.info("block_released", block=str(cidr))
        except BlockStoreError as error:
            failures.append(Failure("blocks", "release", str(error)))

    async def look(self) -> PassReport:
        """The last pass's report with the tables as they are wanted and found now; changes nothing.

        Pods come and go without a pass, and a person who asks must not be told of a pod that has
        just gone that its route is missing.
        """
        actual = await self._fib.read()
        links = await self._fib.links()
        pods = tuple(self._pod_links.read())
        wanted = desired(await self._inputs(pods, links))
        return replace(self.report, desired=wanted, actual=actual, links=links, pods=pods)

    # -- reading ---------------------------------------------------------------------------

    async def _read_store(self, failures: list[Failure[str]]) -> None:
        try:
            self._snapshot = await self._store.snapshot()
            self._store_error = None
            await self._blocks.refresh(self._snapshot.blocks)
        except (StoreError, OSError) as error:
            # Last-known-good stays, but nothing is deleted or withdrawn on its word.
            self._store_error = str(error)
            self._snapshot = _out_of_sync(self._snapshot)
            failures.append(Failure("store", "read", str(error)))

    async def _inputs(
        self, pods: tuple[ObservedLink, ...], links: Mapping[str, LinkState]
    ) -> Inputs:
        for peer in self._snapshot.peers:
            if peer.peer_ip is None:
                continue
            source = peer.source_address or await self._fib.source_for(peer.peer_ip)
            if source is not None:
                # A peer whose route is gone for a moment keeps its source: taking the session out
                # of the configuration at every link flap would lose graceful restart.
                self._sources[peer.peer_ip] = source
        return Inputs(
            node=self._node,
            snapshot=self._snapshot,
            pod_addresses={pod.ifname: pod.record.addresses for pod in pods},
            paths=self._speaker.paths().values(),
            links=links,
            peer_sources=self._sources,
        )

    # -- applying --------------------------------------------------------------------------

    async def _apply(
        self,
        wanted: Desired,
        actual: Mapping[RouteKey, Route],
        failures: list[Failure[str]],
        held: list[Held],
    ) -> None:
        def gate(key: RouteKey, route: Route) -> bool:
            reason = self._closed_gate(route, wanted)
            if reason is not None:
                held.append(Held(f"route {key.prefix}", reason))
            return reason is None

        delta = diff(wanted.routes, actual, gate)
        failed = await self._apply_fib(Delta(delta.create, delta.replace, {}), failures)
        if self._may_write_bgp():
            await self._apply_peers(wanted, failures)
            await self._apply_adj_rib_out(wanted, failed, failures, held)
        # An ADD may have written one anew since this pass looked: a link rebuilt, say.
        stale = {k: route for k, route in delta.delete.items() if k not in self._ensured}
        await self._apply_fib(Delta({}, {}, stale), failures)

    async def _apply_fib(
        self, delta: Delta[RouteKey, Route], failures: list[Failure[str]]
    ) -> set[RouteKey]:
        if not delta:
            return set()
        failed = await self._fib.apply(delta)
        keys = {failure.key for failure in failed}
        for key, route in delta.create.items():
            if key not in keys:
                log.info("route_created", prefix=str(key.prefix), next_hops=_hops_text(route))
        for key, (old, new) in delta.replace.items():
            if key not in keys:
                log.info(
                    "route_replaced",
                    prefix=str(key.prefix),
                    old=_hops_text(old),
                    next_hops=_hops_text(new),
                )
        for key, route in delta.delete.items():
            if key not in keys:
                log.info("route_deleted", prefix=str(key.prefix), next_hops=_hops_text(route))
        failures.extend(
            Failure(f"route {failure.key.prefix}", failure.operation, failure.error)
            for failure in failed
        )
        return keys

    async def _apply_peers(self, wanted: Desired, failures: list[Failure[str]]) -> None:
        try:
            await self._speaker.set_peers(wanted.peers)
        except Exception as error:
            log.exception("peers_not_set", error=str(error))
            failures.append(Failure("peers", "set", str(error)))

    async def _apply_adj_rib_out(
        self,
        wanted: Desired,
        failed_routes: set[RouteKey],
        failures: list[Failure[str]],
        held: list[Held],
    ) -> None:
        if not self._speaker.is_connected:
            return
        actual = {
            key: value
            for key, value in (await self._speaker.adj_rib_out()).items()
            if key[0] in wanted.peers
        }
        # A block whose own route is not in the kernel is not announced: it would attract traffic
        # that this node sends back up its default route.
        ready = {
            key: value
            for key, value in wanted.advertisements.items()
            if RouteKey(key[1]) not in failed_routes
        }

        def gate(key: AdvertisementKey, _value: object) -> bool:
            if key in wanted.advertisements or self._snapshot.in_sync:
                return key not in wanted.advertisements
            held.append(Held(f"announcement {key[1]} to {key[0]}", STORE_OUT_OF_SYNC))
            return False

        delta = diff(ready, actual, gate)
        not_sent: set[AdvertisementKey] = set()
        if delta:
            for failure in await self._speaker.apply(delta):
                not_sent.add(failure.key)
                peer, prefix = failure.key
                failures.append(Failure(f"{prefix} to {peer}", failure.operation, failure.error))
            for key in [*delta.create, *delta.replace]:
                if key not in not_sent:
                    log.info("announced", peer=str(key[0]), prefix=str(key[1]))
            for key in delta.delete:
                if key not in not_sent:
                    log.info("withdrawn", peer=str(key[0]), prefix=str(key[1]))
        unfinished = {key[0] for key in wanted.advertisements if key not in ready}
        await self._send_end_of_rib(wanted, unfinished | {key[0] for key in not_sent}, failures)

    async def _send_end_of_rib(
        self, wanted: Desired, unfinished: set[Address], failures: list[Failure[str]]
    ) -> None:
        """End-of-RIB once per session and family, after all our routes of that session."""
        if not self._snapshot.in_sync:
            return
        sessions: Mapping[Address, PeerStatus] = self._speaker.sessions()
        for address, peer in wanted.peers.items():
            status = sessions.get(address)
            if status is None or status.state is not SessionState.ESTABLISHED:
                continue
            if address in unfinished:
                continue
            for family in peer.families:
                if self._end_of_rib_sent.get((address, family)) == status.since_s:
                    continue
                try:
                    await self._speaker.send_end_of_rib(address, family)
                except Exception as error:
                    failures.append(Failure(f"End-of-RIB to {address}", "send", str(error)))
                    break
                self._end_of_rib_sent[address, family] = status.since_s
                log.info("end_of_rib_sent", peer=str(address), family=family.value)

    # -- gates -----------------------------------------------------------------------------

    def _may_write_bgp(self) -> bool:
        """Peers and announcements follow from the store; without it they stay as they are."""
        return self._snapshot.in_sync

    def _closed_gate(self, route: Route, wanted: Desired) -> str | None:
        """Why ``route`` may not be deleted now, or None."""
        if not self._snapshot.in_sync:
            return STORE_OUT_OF_SYNC
        if route.is_blackhole or all(hop.gateway is None for hop in route.next_hops):
            return None
        if not self._speaker.is_connected:
            return "speaker-not-connected" if self._within_restart_time(wanted) else None
        missing = [str(a) for a in wanted.peers if a not in self._was_complete]
        if missing and self._within_restart_time(wanted):
            return f"no-end-of-rib-from-{missing[0]}"
        return None

    def _within_restart_time(self, wanted: Desired) -> bool:
        longest_s = max((p.graceful_restart_s for p in wanted.peers.values()), default=0)
        return self._clock() - self._started_at_s < longest_s

    # -- HostRoutes, for ADD, DEL and CHECK ------------------------------------------------

    async def ensure(self, link: PodLink) -> None:
        """Returns once the pod's host routes are in the kernel.

        Raises:
            HostRouteError: the kernel refused; the sentence names the holder of the prefix.
        """
        routes = pod_routes(link)
        with _as_host_route_error(link.host_ifname):
            await self._refuse_taken(routes)
            await self._refuse_overruled(link)
            failed = await self._fib.apply(Delta(create=routes))
        if failed:
            raise HostRouteError("; ".join(f"{f.key.prefix}: {f.error}" for f in failed))
        self._ensured.update(routes)

    async def _refuse_taken(self, routes: Mapping[RouteKey, Route]) -> None:
        """The driver brings a route of ours to what is wanted; here that would take the address
        from a pod that has it. The last pass knows enough to ask the kernel only then."""
        known = self._ensured
        if not any(
            known.get(key, self.report.actual.get(key, route)) != route
            for key, route in routes.items()
        ):
            return
        actual = await self._fib.read()
        for key, route in routes.items():
            found = actual.get(key, route)
            if found != route:
                raise HostRouteError(f"{key.prefix} is routed already: {_hops_text(found)}")

    async def _refuse_overruled(self, link: PodLink) -> None:
        """A route to this very address that has another metric or table holds another key: the
        kernel would take ours and go on using that one, or this pod would get what is another's."""
        for address in link.addresses:
            holder = await self._fib.holder_of(address)
            if holder is not None and holder != link.host_ifname:
                raise HostRouteError(f"{address} is routed already: dev {holder}")

    async def forget(self, attachment: Attachment, addresses: tuple[Address, ...]) -> None:
        """Returns once no route of ours leads to any of ``addresses``.

        The kernel takes a route along with its link, but not one that somebody has pointed
        elsewhere, and the address may be another pod's soon. One message an address, no dump.

        Raises:
            HostRouteError: the kernel kept one.
        """
        over = _routes_over(attachment.host_ifname, addresses)
        with _as_host_route_error(attachment.host_ifname):
            failed = await self._fib.apply(Delta({}, {}, over))
        if failed:
            raise HostRouteError("; ".join(f"{f.key.prefix}: {f.error}" for f in failed))

    async def check(self, link: PodLink) -> list[str]:
        """What is wrong with the host routes of ``link``."""
        with _as_host_route_error(link.host_ifname):
            actual = await self._fib.read()
        differences = []
        for key, route in pod_routes(link).items():
            found = actual.get(key)
            if found is None:
                differences.append(f"host route {key.prefix} dev {link.host_ifname} is missing")
            elif found != route:
                differences.append(
                    f"host route {key.prefix}: expected dev {link.host_ifname}, "
                    f"found {_hops_text(found)}"
                )
        return differences

    # -- the rest --------------------------------------------------------------------------

    async def _repair_links(
        self, pods: tuple[ObservedLink, ...], failures: list[Failure[str]]
    ) -> None:
        for number, pod in enumerate(pods):
            if number % REPAIRS_AT_ONCE == 0:
                # A thousand links take 55 ms; no ADD shall wait for all of them.
                await asyncio.sleep(0)
            link = PodLink(
                attachment=pod.record.attachment,
                addresses=pod.record.addresses,
                mtu_bytes=pod.mtu_bytes,
                pod=pod.record.pod,
            )
            try:
                for mended in self._pod_links.repair(link):
                    log.warning("pod_link_repaired", link=pod.ifname, what=mended)
                    self._kicked.set()
            except Exception as error:
                failures.append(Failure(f"link {pod.ifname}", "repair", str(error)))

    def _remember(
        self,
        wanted: Desired,
        actual: Mapping[RouteKey, Route],
        links: Mapping[str, LinkState],
        pods: tuple[ObservedLink, ...],
        failures: list[Failure[str]],
        held: list[Held],
    ) -> None:
        keys = set()
        for failure in failures:
            key = f"{failure.operation} {failure.key}"
            keys.add(key)
            held_back = self._repeats.admit(key, failure.error)
            if held_back is not None:
                log.warning(
                    "pass_failure",
                    what=failure.key,
                    operation=failure.operation,
                    error=failure.error,
                    repeated=held_back,
                )
        for rejection in wanted.rejected:
            key = f"rejected {rejection.path.peer} {rejection.path.prefix}"
            keys.add(key)
            if self._repeats.admit(key, rejection.reason) is not None:
                log.info(
                    "path_rejected",
                    peer=str(rejection.path.peer),
                    prefix=str(rejection.path.prefix),
                    reason=rejection.reason,
                )
        self._repeats.retain(keys)
        self.report = PassReport(
            desired=wanted,
            actual=actual,
            links=links,
            pods=pods,
            failures=tuple(failures),
            held=tuple(held),
            finished_at_s=self._clock(),
            passes=self.report.passes + 1,
        )


def _out_of_sync(snapshot: Snapshot) -> Snapshot:
    return replace(snapshot, in_sync=False)


def _hops_text(route: Route) -> str:
    if route.is_blackhole:
        return "blackhole"
    return " ".join(
        f"via {hop.gateway} dev {hop.ifname}" if hop.gateway else f"dev {hop.ifname}"
        for hop in route.next_hops
    )


@contextmanager
def _as_host_route_error(ifname: str) -> Iterator[None]:
    """A kernel that does not answer is no bug of ours, which another error would be taken for."""
    try:
        yield
    except OSError as error:
        raise HostRouteError(f"routes over {ifname}: {error.strerror or error}") from error


def pod_routes(link: PodLink) -> dict[RouteKey, Route]:
    """The host routes one pod link needs: a /32 or /128 to its host end for each address."""
    return _routes_over(link.host_ifname, link.addresses)


def _routes_over(ifname: str, addresses: tuple[Address, ...]) -> dict[RouteKey, Route]:
    keys = [RouteKey(host_prefix(address)) for address in addresses]
    return {key: Route(key, (NextHop(ifname),)) for key in keys}
