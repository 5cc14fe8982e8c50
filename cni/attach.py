"""The CNI verbs: allocate, wire, route, answer; and undo in reverse when a step fails.

Invariants:
  * One attachment is worked on by one verb at a time; different attachments never wait for each
    other here.
  * An ADD that fails leaves no link, no host route and no address. What its undoing could not undo
    is logged and travels with the error as notes.
  * The pod end comes up after the host route is in the kernel, so a pod never sends into the void.
  * A DEL takes route and link first, then the address: an address is free only when nothing can
    use it any more. It needs neither the store nor the namespace.
  * An ADD that repeats gets the same answer.

The kernel and the datastore are behind the three protocols below. This module raises what it and
they raise; server.py turns that into CNI errors, in one place.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from cni.answer import Attached, as_promised, differences_from_previous
from cni.asked import Asked, Pools, join
from cni.attachment import Address, Attachment
from cni.conntrack import Conntrack, ConntrackError
from cni.departures import Departures
from cni.eager import bounded
from cni.errors import CniError, Code, shown
from cni.netns import is_network_namespace, is_same_namespace, own_netns
from cni.observed import ObservedLink
from cni.podlink import PodLink
from cni.removers import Removers
from cni.result import Result
from cni.spec import Command, NetConf, Request
from cni.turns import Turns
from cni.wiring_errors import LinkExists, PodInterfaceExists, WiringError
from cni.wish import PodWishes, WishRefused

log = logging.getLogger(__name__)

VERB_DEADLINE_S = 25.0
"""The plugin waits for 30 s, and kubelet two minutes at least: so our sentence comes first."""

ADDRESS_ATTEMPTS = 3
"""How many addresses one ADD tries when the host already routes them elsewhere."""

REMOVER_THREADS = 64
"""Removing a link sleeps 16-20 ms in the kernel (RCU), without CPU; that many overlap, and
what finds no thread waits that long for one: a node that is drained deletes its pods at once."""


class Wiring(Protocol):
    """Makes, reads back and removes pod links (cni/wiring.py). Blocking; ``remove`` for 20 ms."""

    def create(self, link: PodLink, netns_fd: int) -> int:
        """The host half, and the pod end born down in its namespace; the host end's ifindex."""

    def configure_pod(self, link: PodLink, netns_fd: int) -> str:
        """The pod half, once the host route is in place; the pod end's MAC."""

    def remove(self, host_ifname: str, is_announced: Callable[[], bool] = ...) -> bool:
        """Removes a link of ours and returns when it is gone; False when there was none.

        Once ``is_announced`` says that the caller knows, how it ended is nobody's question.
        """

    def read(self) -> list[ObservedLink]:
        """Every link of ours."""

    def check(self, link: PodLink, netns_fd: int) -> list[str]:
        """What differs from ``link`` on either side, one sentence each."""

    def repair(self, link: PodLink) -> list[str]:
        """Mends the host side; what it mended."""


class HostRouteError(Exception):
    """A pod's host route could not be put in place; the sentence names who holds the prefix."""


class HostRoutes(Protocol):
    """The node's routes to its pods (routing/reconcile.py)."""

    async def ensure(self, link: PodLink) -> None:
        """Returns once every address of ``link`` is routed to its host end. Idempotent.

        Raises:
            HostRouteError: the prefix is held by something else, or the kernel refused.
        """

    async def forget(self, attachment: Attachment, addresses: tuple[Address, ...]) -> None:
        """The attachment's link is gone or going: returns once no route of ours leads to any of
        ``addresses``. None at all is success.

        Raises:
            HostRouteError: the kernel kept one.
        """

    async def check(self, link: PodLink) -> list[str]:
        """What is wrong with the routes of ``link``, one sentence each."""


class AddressAllocator(Protocol):
    """The node's address book (cni/ipam/allocator.py)."""

    async def assign(
        self,
        attachment: Attachment,
        requested: tuple[Address, ...] = (),
        *,
        pools: Pools = ((), ()),
    ) -> tuple[Address, ...]:
        """One address of each family that has a pool, ``requested`` among them and the others
        from ``pools`` where it names some; the same ones when asked again."""

    def announce_release(self, attachment: Attachment) -> None:
        """Notes where the next agent finds it that the link is about to go; nothing is free yet."""

    def release(self, attachment: Attachment) -> tuple[Address, ...]:
        """Frees them, into cool-down; () when it held none."""

    def addresses(self, attachment: Attachment) -> tuple[Address, ...]:
        """What it holds."""

    def attachments(self) -> Iterable[Attachment]:
        """Everybody who holds an address."""


@dataclass(frozen=True, slots=True)
class Unready:
    """Why no ADD can be served: ``code`` is 50, or 51 when pods that run suffer too."""

    code: int
    reason: str


@dataclass(slots=True)
class _Undoing:
    """How far an ADD has come, and so what has to be undone when it fails.

    ``routed`` is empty until the host route is known to be ours: before that, a route to an
    address of ours may be somebody else's.
    """

    attachment: Attachment
    may_have_link: bool = False
    may_have_route: bool = False
    routed: tuple[Address, ...] = ()


def describe_netns(netns_fd: int) -> str | None:
    """What is wrong with ``netns_fd`` as a pod's namespace, or None.

    Anything can be behind CNI_NETNS. The wiring refuses too, but by then an address has been
    assigned, and would rest for the cool-down.
    """
    if not is_network_namespace(netns_fd):
        return "is not a network namespace"
    home_fd = own_netns()
    try:
        if is_same_namespace(netns_fd, home_fd):
            return "is the namespace of the host itself"
    finally:
        os.close(home_fd)
    return None


class Attacher:
    """The verbs of one node.

    Args:
        mtu_bytes: what a pod link gets when the network configuration names no MTU.
        readiness: what STATUS answers; called at every STATUS, must answer from memory.
        examine_netns: what is wrong with a namespace's descriptor, or None.
        deadline_s: seconds one verb may take.
        departures: where the kernel's word that a link is gone arrives.
        conntrack: forgets the connections of an address before it is anybody's again; None on a
            host that tracks none.
        wishes: who knows the pods' annotations; None where pods have none.
    """

    def __init__(
        self,
        *,
        wiring: Wiring,
        host_routes: HostRoutes,
        allocator: AddressAllocator,
        mtu_bytes: Callable[[], int],
        readiness: Callable[[], Unready | None],
        examine_netns: Callable[[int], str | None] = describe_netns,
        deadline_s: float = VERB_DEADLINE_S,
        departures: Departures | None = None,
        conntrack: Conntrack | None = None,
        wishes: PodWishes | None = None,
    ) -> None:
        self._wiring = wiring
        self._host_routes = host_routes
        self._allocator = allocator
        self._mtu_bytes = mtu_bytes
        self._readiness = readiness
        self._examine_netns = examine_netns
        self._deadline_s = deadline_s
        self._departures = departures or Departures()
        self._conntrack = conntrack
        self._wishes = wishes
        self._turns = Turns()
        self._removers = Removers(REMOVER_THREADS)

    async def handle(self, request: Request, netns_fd: int | None) -> Attached | None:
        """Does what ``request`` asks; what an ADD has achieved, None for the other verbs.

        Args:
            request: parsed and validated.
            netns_fd: the pod's namespace, open; None when the plugin could not open it. The
                caller keeps it open until this returns, and closes it.

        Raises:
            CniError: the verb was refused, or CHECK and GC found something.
            TimeoutError: the deadline passed; an ADD has been undone.
            NoAddress, BlockStoreError, HostRouteError, WiringError: what failed underneath.
        """
        return await bounded(self._handle(request, netns_fd), self._deadline_s)

    async def _handle(self, request: Request, netns_fd: int | None) -> Attached | None:
        match request.command:
            case Command.ADD:
                return await self._add(request, netns_fd)
            case Command.DEL:
                await self.detach(_attachment_of(request))
            case Command.CHECK:
                await self._check(request, netns_fd)
            case Command.STATUS:
                self._status()
            case Command.GC:
                await self._collect(request.netconf)
            case Command.VERSION:
                raise CniError(
                    Code.INVALID_ENVIRONMENT, "CNI_COMMAND VERSION is the plugin's to answer"
                )
        return None

    async def close(self) -> None:
        """Waits for the removals under way and ends their threads."""
        await asyncio.to_thread(self._removers.close)

    # -- ADD -------------------------------------------------------------------------------

    async def _add(self, request: Request, netns_fd: int | None) -> Attached:
        attachment = _attachment_of(request)
        fd = self._usable_netns(request, netns_fd)
        # Before the turn is taken: whoever knows may ask elsewhere first, and no DEL waits for it.
        asked = await self._asked(request)
        async with self._turns.of(attachment):
            if self._allocator.addresses(attachment):
                answer = await self._repeat(request, asked, fd)
                if answer is not None:
                    return answer
            try:
                return await self._wire_some_address(request, asked, fd)
            except LinkExists as error:
                if not error.is_ours:
                    raise
                # This very attachment's, by its name, but not in the address book: the addresses
                # in its alias were somebody else's when the agent started.
                log.warning("unknown_link_rebuilt attachment=%s error=%s", attachment, error)
                await self._remove(attachment)
            return await self._wire_some_address(request, asked, fd)

    async def _asked(self, request: Request) -> Asked:
        """What the runtime and the pod's annotations ask for.

        Raises:
            CniError: 7, an annotation is refused, or contradicts the runtime.
        """
        pod = request.pod
        if self._wishes is None or pod is None:
            return Asked(request.requested.addresses)
        try:
            wish = await self._wishes.wish(pod.namespace, pod.name, pod.uid)
        except WishRefused as error:
            raise CniError(Code.INVALID_CONFIG, str(error)) from None
        return join(request.requested, wish)

    async def _assign(self, attachment: Attachment, asked: Asked) -> tuple[Address, ...]:
        if asked.pools is None:
            return await self._allocator.assign(attachment, asked.addresses)
        return await self._allocator.assign(attachment, asked.addresses, pools=asked.pools)

    async def _wire_some_address(self, request: Request, asked: Asked, netns_fd: int) -> Attached:
        """``_wire``, with another address when the host already routes the first one elsewhere.

        Wherever such a route comes from, its address is in use. ``_wire`` has released ours into
        cool-down, so the allocator gives another one.
        """
        refused: list[str] = []
        while True:
            try:
                return await self._wire(request, asked, netns_fd)
            except HostRouteError as error:
                refused.append(str(error))
                log.warning(
                    "address_in_use attachment=%s attempt=%d error=%s",
                    request.attachment,
                    len(refused),
                    error,
                )
                if len(refused) == ADDRESS_ATTEMPTS:
                    raise
            except Exception as error:
                for each in refused:
                    error.add_note(f"an address was given up before: {each}")
                raise

    async def _repeat(self, request: Request, asked: Asked, netns_fd: int) -> Attached | None:
        """The answer to an ADD of an attachment that has its link already, else None.

        What can be mended in place is: a pod may be running on it. A link that is still wrong
        then is taken away, and the caller wires it anew with the same addresses.
        """
        attachment = _attachment_of(request)
        # Refuses, before anything is touched, when other addresses are asked for this time.
        await self._assign(attachment, asked)
        observed = next(
            (each for each in self._wiring.read() if each.record.attachment == attachment), None
        )
        if observed is None:
            return None
        link = self._link(request, observed.record.addresses)
        if link.addresses == self._allocator.addresses(attachment):
            try:
                for mended in self._wiring.repair(link):
                    log.warning("pod_link_repaired attachment=%s what=%s", attachment, mended)
                await self._host_routes.ensure(link)
                mac = self._wiring.configure_pod(link, netns_fd)
                differences = self._wiring.check(link, netns_fd)
            except (WiringError, HostRouteError) as error:
                mac, differences = "", [str(error)]
            if not differences:
                log.info("add_repeated attachment=%s", attachment)
                return Attached(request, link, mac)
            log.warning(
                "pod_link_rebuilt attachment=%s differences=%s", attachment, "; ".join(differences)
            )
        await self._remove(attachment)
        # The link took its routes along; one that leads elsewhere is for ensure to refuse.
        await self._host_routes.forget(attachment, ())
        return None

    async def _wire(self, request: Request, asked: Asked, netns_fd: int) -> Attached:
        """Allocates, wires and routes; whatever fails, all of it is undone."""
        undo = _Undoing(_attachment_of(request))
        try:
            link = self._link(request, await self._assign(undo.attachment, asked))
            undo.may_have_link = True
            try:
                self._wiring.create(link, netns_fd)
            except (LinkExists, PodInterfaceExists):
                # Nothing was made, and what is there may be somebody's living link.
                undo.may_have_link = False
                raise
            undo.may_have_route = True
            await self._host_routes.ensure(link)
            undo.routed = link.addresses
            mac = self._wiring.configure_pod(link, netns_fd)
        except BaseException as error:
            await self._undo(undo, error)
            raise
        _log_later(
            "pod_attached attachment=%s pod=%s addresses=%s link=%s",
            undo.attachment,
            request.pod or "-",
            _Listed(link.addresses),
            link.host_ifname,
        )
        return Attached(request, link, mac)

    async def _undo(self, undo: _Undoing, error: BaseException) -> None:
        """In reverse; what fails here is told with ``error``, and stops no other undoing."""
        if undo.may_have_route:
            with _telling("forget", error):
                await self._host_routes.forget(undo.attachment, undo.routed)
        if undo.may_have_link:
            with _telling("remove", error):
                await self._remove(undo.attachment)
                undo.may_have_link = False
        # An address whose link may live on is not free: it waits for the runtime's DEL.
        if not undo.may_have_link:
            with _telling("release", error):
                await self._release(undo.attachment)

    def _link(self, request: Request, addresses: tuple[Address, ...]) -> PodLink:
        return PodLink(
            attachment=_attachment_of(request),
            addresses=addresses,
            mtu_bytes=request.netconf.mtu_bytes or self._mtu_bytes(),
            pod=request.pod,
            mac=request.requested.mac,
        )

    def _usable_netns(self, request: Request, netns_fd: int | None) -> int:
        """The namespace's descriptor.

        Raises:
            CniError: 3 it could not be opened, 4 it is no namespace a pod can be wired into.
        """
        if netns_fd is None:
            raise CniError(
                Code.UNKNOWN_CONTAINER, f"CNI_NETNS {shown(request.netns)} cannot be opened"
            )
        wrong = self._examine_netns(netns_fd)
        if wrong is not None:
            raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_NETNS {shown(request.netns)} {wrong}")
        return netns_fd

    # -- DEL, CHECK, STATUS, GC ------------------------------------------------------------

    async def detach(self, attachment: Attachment) -> tuple[Address, ...]:
        """Takes an attachment's routes and link away, then its addresses; what was released.

        Raises:
            WiringError, HostRouteError: the kernel kept something; nothing was given back.
        """
        async with self._turns.of(attachment):
            # Killed after the link is gone, we would leave nobody who knows of its addresses.
            self._allocator.announce_release(attachment)
            # Not after the link: its remover holds the kernel's lock on for a while after the
            # announcement, and whoever has anything to say about a route then waits for it.
            await self._host_routes.forget(attachment, self._allocator.addresses(attachment))
            removed = await self._remove(attachment)
            released = await self._release(attachment)
        if removed or released:
            _log_later(
                "pod_detached attachment=%s link_removed=%s released=%s",
                attachment,
                removed,
                _Listed(released),
            )
        return released

    async def release_linkless(self, attachment: Attachment) -> tuple[Address, ...]:
        """Gives back what an attachment holds that has no link any more; () when it has one.

        For cni/collect.py. Nobody else works on the attachment meanwhile.

        Raises:
            WiringError: the links could not be read.
            HostRouteError: the kernel kept a route.
        """
        async with self._turns.of(attachment):
            if any(each.record.attachment == attachment for each in self._wiring.read()):
                return ()
            await self._host_routes.forget(attachment, self._allocator.addresses(attachment))
            return await self._release(attachment)

    async def _check(self, request: Request, netns_fd: int | None) -> None:
        attachment = _attachment_of(request)
        fd = self._usable_netns(request, netns_fd)
        previous = request.netconf.prev_result or Result()
        async with self._turns.of(attachment):
            addresses = self._allocator.addresses(attachment)
            differences = [] if addresses else [f"no address is assigned to {attachment}"]
            if addresses:
                link = as_promised(previous, self._link(request, addresses))
                differences += [
                    f"address {each} was asked for and is not assigned to {attachment}"
                    for each in request.requested.addresses
                    if each not in addresses
                ]
                differences += differences_from_previous(previous, link)
                differences += self._wiring.check(link, fd)
                differences += await self._host_routes.check(link)
        if differences:
            raise CniError(
                Code.CHECK_FOUND_DIFFERENCES,
                f"CHECK of {attachment}: {differences[0]}",
                "; ".join(differences),
            )

    def _status(self) -> None:
        unready = self._readiness()
        if unready is not None:
            raise CniError(Code(unready.code), unready.reason)

    async def _collect(self, netconf: NetConf) -> None:
        """Removes every attachment of this network that the runtime does not name."""
        valid = netconf.valid_attachments
        if valid is None:
            raise CniError(Code.INVALID_CONFIG, "cni.dev/valid-attachments is missing")
        known = {each.record.attachment for each in self._wiring.read()}
        known.update(self._allocator.attachments())
        stale = sorted(each for each in known - valid if each.network == netconf.name)
        if stale:
            log.info("gc_removes network=%s attachments=%d", netconf.name, len(stale))
        # All at once: the removals sleep in the kernel, and one that fails stops no other.
        outcomes = await asyncio.gather(
            *(self.detach(each) for each in stale), return_exceptions=True
        )
        failures = [
            f"{attachment}: {outcome}"
            for attachment, outcome in zip(stale, outcomes, strict=True)
            if isinstance(outcome, BaseException)
        ]
        if failures:
            raise CniError(
                Code.GC_INCOMPLETE,
                f"GC of network {netconf.name} could not remove {len(failures)} of "
                f"{len(stale)} stale attachments",
                "; ".join(failures),
            )

    # -- steps -----------------------------------------------------------------------------

    async def _remove(self, attachment: Attachment) -> bool:
        """Returns when the kernel says the link is gone; see cni/departures.py."""
        name = attachment.host_ifname
        try:
            with self._departures.expect(name) as gone:
                # In the loop's next turn, when this has come to wait: a thread that begins while
                # we still run takes turns with us at the interpreter's lock.
                work = partial(self._departures.settle, gone, self._wiring.remove, name)
                asyncio.get_running_loop().call_soon(self._removers.submit, work)
                return await gone
        except LinkExists as error:
            # A foreign link of that name: there is none of ours, and a DEL of nothing succeeds.
            log.warning("foreign_link_left_alone attachment=%s error=%s", attachment, error)
            return False

    async def _release(self, attachment: Attachment) -> tuple[Address, ...]:
        """Into cool-down, with nothing left that names the address: a UDP entry outlives its pod
        for minutes and would lead its old peers to the next holder."""
        if self._conntrack is not None and not self._conntrack.is_empty():
            for address in self._allocator.addresses(attachment):
                try:
                    # In a thread: where 100,000 connections are tracked it takes 0.3 s.
                    await asyncio.to_thread(self._conntrack.flush, address)
                except ConntrackError as error:
                    log.warning("connections_not_forgotten address=%s error=%s", address, error)
        return self._allocator.release(attachment)


def _attachment_of(request: Request) -> Attachment:
    if request.attachment is None:
        raise CniError(Code.INVALID_ENVIRONMENT, f"{request.command.value} names no container")
    return request.attachment


class _Listed:
    """Addresses in a log line, as text only when the line is written."""

    def __init__(self, addresses: tuple[Address, ...]) -> None:
        self._addresses = addresses

    def __str__(self) -> str:
        return ",".join(str(each) for each in self._addresses) or "-"


def _log_later(line: str, *values: object) -> None:
    """Writes an info line in the loop's next turn: the runtime need not wait for it."""
    asyncio.get_running_loop().call_soon(partial(log.info, line, *values))


@contextmanager
def _telling(step: str, error: BaseException) -> Iterator[None]:
    """A failure of one step of undoing: noted on ``error``, and no more than that."""
    try:
        yield
    except Exception as failure:
        log.exception("undo_failed step=%s", step)
        error.add_note(f"undoing it, {step} failed: {failure}")
