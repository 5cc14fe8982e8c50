"""The kernel's forwarding table: reads back what is ours, applies a Delta, tells of changes.

Ours is what carries our protocol and our metric in the main table (routing/routes.py); how foreign
routes are kept safe is route_writer.py's.

Routes with gateways name a nexthop group of ours (next_hop_objects.py), so that many routes that
all go the same other way take one message.

A table that nobody has touched is not dumped again: the kernel tells of every route, link and
address that another hand changes, and what it told is looked at before every answer.

Everything here works in the network namespace the driver was made in or for. Small exchanges are
done inline (one route: 50 us); big ones in a thread, on a socket of their own, so that the loop
never waits for a table.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from ipaddress import ip_address
from socket import AF_INET, AF_INET6
from typing import Protocol, TypeVar

from bgp.nlri import Nlri
from cni import netlink as nl
from cni.attachment import HOST_IFNAME_PREFIX
from cni.netlink import Event, NetlinkError, Request
from cni.netlink_socket import NetlinkSocket
from routing.delta import Delta, Failure
from routing.event_filter import JUST_MADE, event_filter
from routing.event_meaning import disturbs, reason_of
from routing.fronts import Fronts
from routing.link_reading import LinkReader
from routing.links import LinkState
from routing.next_hop_objects import (
    RTNLGRP_NEXTHOP,
    NextHopObjects,
    NoNextHop,
)
from routing.next_hops import KernelRoute
from routing.route_table import Hops, RouteTable, hops_of
from routing.route_work import Work
from routing.route_writer import RouteWriter
from routing.routes import (
    Address,
    Route,
    RouteKey,
)
from routing.rtmessage import (
    delete_route,
    new_pod_route,
    parse_way,
)
from routing.table_reading import TableReader

__all__ = ["Fib", "FibClosed", "KernelFib", "LinkState"]

T = TypeVar("T")

INLINE_CHANGES = 200
"""Up to this many changes the loop's own thread does them: about 5 ms."""

FEW = 2
"""What one pod needs: nobody else's change comes in between."""

INLINE_ROUTES = 1000
"""Tables that had at most this many entries when last read are read in the loop's own thread."""

EVENT_BUFFER_BYTES = 8 << 20
EVENT_DATAGRAMS_AT_ONCE = 256
"""How much of a flood one turn of the loop digests; the rest waits for the next."""

OVERFLOW = "overflow"

BELIEVED_S = 25.0
"""A table is dumped at least this often, whatever the kernel told or did not tell."""
MANY_REPLACED = 500
"""From here on it is worth finding out whether whole groups move."""
UNUSED_GROUPS = 16
"""So many may lie about; each is there again at once when its next hops come back."""

EVENT_PAUSE_S = 0.02
"""One ADD stirs up ten events; each would wake the loop by itself."""

DOWN_PAUSE_S = 0.1

_GROUPS = (
    nl.RTNLGRP_LINK,
    nl.RTNLGRP_IPV4_IFADDR,
    nl.RTNLGRP_IPV4_ROUTE,
    nl.RTNLGRP_IPV6_IFADDR,
    nl.RTNLGRP_IPV6_ROUTE,
    RTNLGRP_NEXTHOP,
)
_UNROUTABLE = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES, errno.EAGAIN}
)
_NAME_WANTED = frozenset({nl.IFLA_IFNAME})


class FibClosed(Exception):
    """The driver was closed while somebody waited for a change."""


class Fib(Protocol):
    """The port that routing/reconcile.py writes routes through."""

    async def read(self) -> Mapping[RouteKey, Route]:
        """Every route of ours, both families; ``apply`` may change the very answer."""

    async def apply(self, delta: Delta[RouteKey, Route]) -> list[Failure[RouteKey]]:
        """Creates, replaces, deletes, in this order; goes on past failures and returns them."""

    async def abandon(self, gateways: Collection[Address]) -> int:
        """Takes dead next hops out of every route that has others besides; how many groups of
        routes that concerned."""

    async def turn(self, moves: Mapping[Hops, Hops]) -> int:
        """Makes every route that leads to the one lead to the other, where that is a message for
        all of them; how many next hops were turned."""

    def contested(self) -> Mapping[RouteKey, str]:
        """Routes that are in the kernel in front of another program's, which holds their place;
        and a sentence that names it."""

    async def retreat(self, after_s: float) -> float | None:
        """Takes routes whose place has been free for ``after_s`` back there. In how many seconds
        the next one is due; None: none stands in front of nobody."""

    async def links(self) -> dict[str, LinkState]:
        """Every interface by name."""

    async def source_for(self, destination: Address) -> Address | None:
        """The source address the kernel would use towards ``destination``; None: unroutable."""

    async def ways_to(self, destinations: Collection[Address]) -> dict[Address, KernelRoute]:
        """Other programs' routes towards ``destinations``, as the kernel matches them; what our
        own routes cover, or none does, is left out."""

    async def holder_of(self, destination: Address) -> str | None:
        """Where a route to this very address leads, by whichever rule, table and metric the
        kernel goes: an interface, or "several interfaces". None when only wider ones match."""

    async def changed(self) -> str:
        """Waits until the kernel's routes, links or addresses changed by another hand than ours.

        The answer is for people, except that "overflow" says events were lost.
        """

    async def close(self) -> None:
        """Frees what the driver holds."""


class KernelFib:
    """The Fib of one network namespace.

    Args:
        netns_fd: the namespace; None is the calling thread's. Not kept.
        event_buffer_bytes: room for events nobody has read yet; beyond it "overflow" is told.
        on_link_gone: called with the name of each link that the kernel announces gone.
        is_awaited: whether somebody waits for the next event, so that no pause is made.

    Raises:
        OSError: no netlink socket can be had.
    """

    def __init__(
        self,
        *,
        netns_fd: int | None = None,
        event_buffer_bytes: int = EVENT_BUFFER_BYTES,
        on_link_gone: Callable[[str], None] = lambda _ifname: None,
        is_awaited: Callable[[], bool] = lambda: False,
    ) -> None:
        self._on_link_gone = on_link_gone
        self._is_awaited = is_awaited
        self._pause: asyncio.TimerHandle | None = None
        self._down: dict[int, asyncio.TimerHandle] = {}
        """Pod links that went down a moment ago, by ifindex."""
        self._families = [AF_INET]
        if os.path.exists("/proc/sys/net/ipv6"):
            self._families.append(AF_INET6)
        with ExitStack() as stack:
            self._socket = stack.enter_context(NetlinkSocket(netns_fd=netns_fd))
            self._bulk_socket = stack.enter_context(
                NetlinkSocket(netns_fd=netns_fd, receive_buffer_bytes=8 << 20)
            )
            self._own_ports = frozenset({self._socket.port_id, self._bulk_socket.port_id})
            self._event_socket = stack.enter_context(
                NetlinkSocket(
                    netns_fd=netns_fd,
                    groups=_GROUPS,
                    receive_buffer_bytes=event_buffer_bytes,
                    event_filter=event_filter(self._own_ports),
                )
            )
            self._stack = stack.pop_all()
        self._table = RouteTable()
        """What the kernel held when it was dumped, and what we have changed since."""
        self._is_believed = False
        """Whether nothing else can have changed; if not, it is dumped again."""
        self._foreign: frozenset[Nlri] | None = None
        """The destinations of others' routes with our metric; None: to be found out."""
        self._fronts = Fronts()
        self._mirrored_at_s = 0.0
        self._is_disturbed = False
        self._changes = 0
        """How many deltas have been applied, for a dump that one of them overtook."""
        self._unused: set[int] = set()
        self._unused_at = -1
        """After which delta these groups had no route of ours."""
        self._entries_last_read = 0
        self._link_reader = LinkReader()
        self._reader = TableReader(self._families)
        self._reading_loop: asyncio.AbstractEventLoop | None = None
        self._is_listening = False
        self._pending: set[str] = set()
        self._has_pending = asyncio.Event()
        self._is_closed = False

    # -- the Fib -----------------------------------------------------------------------------

    async def read(self) -> RouteTable:
        """Every route of ours, both families. Not to be changed by the caller, but by ``apply``:
        who wants to know later what was there now takes a copy.

        Raises:
            NetlinkError: the kernel gave no consistent table.
        """
        self._take_events()
        if self._is_believed and time.monotonic() - self._mirrored_at_s < BELIEVED_S:
            return self._table
        changes, started_s = self._changes, time.monotonic()
        self._is_believed, self._foreign = False, None
        self._is_disturbed = False
        reading = await self._run(self._reader.read, self._entries_last_read > INLINE_ROUTES)
        routes = reading.table
        self._entries_last_read = len(routes)
        self._unused, self._unused_at = reading.unused, changes
        self._take_events()
        self._table = routes
        self._fronts.set(reading.fronts, time.monotonic())
        if changes == self._changes and not self._is_disturbed:
            self._is_believed, self._mirrored_at_s = True, started_s
        return routes

    async def apply(self, delta: Delta[RouteKey, Route]) -> list[Failure[RouteKey]]:
        """Creates, replaces, deletes, in this order.

        A route that cannot be made fails alone: the interface is missing, a gateway is not on
        link (one such next hop makes the kernel refuse the whole multipath), others hold the key
        and the place in front of it.

        Raises:
            OSError: the socket failed, or the table could not be read to look up a holder.
        """
        if len(delta) <= FEW and self._apply_few(delta):
            return []
        if delta.delete is self._table:
            # All that was read: what others add meanwhile is not meant.
            delta = Delta(delta.create, delta.replace, self._table.copy())
        work = Work.of(delta)
        moved = self._whole_groups(work)
        is_known = self._unused_at == self._changes and len(self._unused) > UNUSED_GROUPS
        unused = frozenset(self._unused) if is_known else frozenset()

        foreign, fronts = self._foreign, frozenset(self._fronts)

        def do(socket: NetlinkSocket) -> tuple[list[Failure[RouteKey]], RouteWriter]:
            one = RouteWriter(socket, self._families, foreign, fronts)
            return one.apply(work, moved, unused), one

        was_believed, self._is_believed = self._is_believed, False
        self._is_disturbed = False
        self._changes += 1
        changes, table = self._changes, self._table
        # A replace reads the table first.
        reads_much = bool(work.replace) or (bool(work.regroup) and foreign is None)
        reads_much = reads_much and self._entries_last_read > INLINE_ROUTES
        failures, writer = await self._run(do, reads_much or len(work) > INLINE_CHANGES)
        is_alone = changes == self._changes
        self._changes += 1
        # Into the very table that was read, believed or not: a copy of 100,000 entries for each
        # pod's route would take longer than the kernel does.
        work.put_into(table, {failure.key for failure in failures})
        for key, behind in writer.behind.items():
            self._fronts.put(key, behind, time.monotonic())
        for key in [key for key in self._fronts if table.find(key) is None]:
            self._fronts.drop(key)
        if was_believed and not failures and is_alone and not self._is_disturbed:
            self._is_believed, self._foreign = True, writer.foreign
        return failures

    def contested(self) -> Mapping[RouteKey, str]:
        """As of the last read and what was applied since."""
        return self._fronts.contested()

    async def retreat(self, after_s: float) -> float | None:
        """Takes routes whose place has been free for ``after_s`` back there.

        Raises:
            OSError: the socket failed, or the table could not be read.
        """
        due, next_s = self._fronts.due(after_s, time.monotonic())
        routes = {key: route for key in due if (route := self._table.find(key)) is not None}
        if not routes:
            return next_s
        self._changes += 1
        changes = self._changes

        def do(socket: NetlinkSocket) -> set[RouteKey]:
            return RouteWriter(socket, self._families, fronts=routes).retreat(routes)

        back = await self._run(do, self._entries_last_read > INLINE_ROUTES)
        if changes != self._changes or len(back) < len(routes):
            # Somebody else's hand, or an ADD's: looked at anew.
            self._is_believed = False
        self._changes += 1
        for key in back:
            self._fronts.drop(key)
        return next_s

    def _apply_few(self, delta: Delta[RouteKey, Route]) -> bool:
        """An ADD's routes or a DEL's, in one exchange. False: not all of it could be done, and the
        long way, which may repeat what was done, finds out why."""
        if delta.replace or (delta.create and delta.delete):
            return False
        created, deleted = dict(delta.create), list(delta.delete)
        if self._fronts and any(key in self._fronts for key in (*created, *deleted)):
            return False
        requests: list[Request] = []
        for key, route in created.items():
            if len(route.next_hops) != 1 or route.next_hops[0].gateway is not None:
                return False
            ifindex = self._socket.ifindex(route.next_hops[0].ifname)
            if ifindex is None:
                return False
            requests.append(new_pod_route(key, ifindex))
        requests += map(delete_route, deleted)
        was_believed, self._is_believed = self._is_believed, False
        # As if it had begun and ended: a dump or a delta under way in a thread is overtaken.
        self._changes += 2
        is_gone = errno.ESRCH if deleted else 0
        if any(each and each.errno != is_gone for each in self._socket.execute(requests)):
            return False
        for route in created.values():
            self._table.put(route)
        for key in deleted:
            self._table.drop(key)
        self._is_believed = was_believed
        return True

    async def abandon(self, gateways: Collection[Address]) -> int:
        """Takes next hops that are dead out of every route that has others, in a message a group.

        Returns how many groups changed; a table that is read afterwards shows what came of it.

        Raises:
            OSError: the socket failed.
        """
        packed = frozenset(gateway.packed for gateway in gateways)
        moves: dict[Hops, Hops] = {}
        try:
            objects = NextHopObjects(self._socket)
            before = objects.hops(self._socket.ifname)
            changed = objects.abandon(packed)
            after = objects.hops(self._socket.ifname)
            moves = {hops_of(before[n]): hops_of(h) for n, h in after.items() if before[n] != h}
        except (NetlinkError, NoNextHop):
            # What the next pass does one by one.
            self._is_believed = False
            return 0
        self._note_turned(moves)
        return changed

    async def turn(self, moves: Mapping[Hops, Hops]) -> int:
        """Rewrites the groups that lead to the one, so that all their routes lead to the other.

        Raises:
            OSError: the socket failed.
        """
        done: dict[Hops, Hops] = {}
        if not moves:
            return 0
        try:
            objects = NextHopObjects(self._socket)
            for old, new in moves.items():
                if objects.rewrite(old, new, self._socket.ifindex):
                    done |= {old: new}
        except (NetlinkError, NoNextHop):
            # What the next pass does one by one.
            self._is_believed = False
        self._note_turned(done)
        return len(done)

    def _note_turned(self, moves: Mapping[Hops, Hops]) -> None:
        if not moves:
            return
        self._changes += 1
        by_identity = {id(old): new for old, new in moves.items()}
        grouped = self._table.grouped
        for nlri, hops in grouped.items():
            if id(hops) in by_identity:
                grouped[nlri] = by_identity[id(hops)]

    def _whole_groups(self, work: Work) -> dict[Hops, Hops]:
        """Which next hops are replaced in every single route that has them, all by the same."""
        if len(work.regroup) < MANY_REPLACED or not self._is_believed:
            return {}
        # By identity: hashing as many next hops takes longer than the kernel needs for the routes.
        going: dict[int, tuple[Hops, Hops]] = {}
        split: set[int] = set()
        for old, new in work.regroup.values():
            if going.setdefault(id(old), (old, new))[1] is not new:
                split.add(id(old))
        for number in split:
            del going[number]
        # From the end: of a table that is replaced as it comes, what is still to come is there.
        for nlri, hops in reversed(self._table.grouped.items()):
            if id(hops) in going and nlri not in work.regroup:
                del going[id(hops)]
                if not going:
                    break
        return dict(going.values())

    async def links(self) -> dict[str, LinkState]:
        """Every interface by name, with its addresses.

        Raises:
            NetlinkError: the kernel gave no consistent table.
        """
        return await self._run(self._link_reader.read, self._entries_last_read > INLINE_ROUTES)

    async def source_for(self, destination: Address) -> Address | None:
        """The kernel's choice of source towards ``destination``; None when it is unroutable."""
        answer = _look_up(self._socket, destination, flags=0)
        if answer is None:
            return None
        source = nl.attributes(answer, nl.RTMSG.size).get(nl.RTA_PREFSRC)
        return ip_address(source) if source else None

    async def ways_to(self, destinations: Collection[Address]) -> dict[Address, KernelRoute]:
        """Other programs' routes towards ``destinations``; ours, and what has none, is left out.

        Raises:
            NetlinkError: the kernel refused the question.
        """

        def work(socket: NetlinkSocket) -> dict[Address, KernelRoute]:
            found = {}
            for destination in destinations:
                answer = _look_up(socket, destination, flags=nl.RTM_F_FIB_MATCH)
                way = None if answer is None else parse_way(answer, socket.ifname)
                if way is not None:
                    found[destination] = way
            return found

        return await self._run(work, len(destinations) > INLINE_CHANGES)

    async def holder_of(self, destination: Address) -> str | None:
        """Where a route to this very address leads; None when only wider ones match."""
        answer = _look_up(self._socket, destination, flags=nl.RTM_F_FIB_MATCH)
        if answer is None or answer[1] != destination.max_prefixlen:
            return None
        parts = nl.attributes(answer, nl.RTMSG.size)
        if nl.RTA_MULTIPATH in parts:
            return "several interfaces"
        return self._socket.ifname(nl.u32(parts[nl.RTA_OIF])) if nl.RTA_OIF in parts else None

    async def changed(self) -> str:
        """Waits for a change by another hand; "overflow", or what changed, joined by "+".

        Events since the driver was made count, also those before the first call. One waiter gets
        each change.

        Raises:
            FibClosed: the driver was closed meanwhile.
        """
        if self._reading_loop is None and not self._is_closed:
            self._reading_loop = asyncio.get_running_loop()
            self.listen()
        while not self._pending:
            if self._is_closed:
                raise FibClosed("the FIB driver was closed")
            self._has_pending.clear()
            await self._has_pending.wait()
        pending, self._pending = self._pending, set()
        return OVERFLOW if OVERFLOW in pending else "+".join(sorted(pending))

    async def close(self) -> None:
        """Stops listening, waits for an exchange under way, closes. Closing twice is harmless."""
        if self._is_closed:
            return
        self._is_closed = True
        for timer in [self._pause, *self._down.values()]:
            if timer is not None:
                timer.cancel()
        if self._reading_loop is not None:
            self._reading_loop.remove_reader(self._event_socket.fileno())
        self._has_pending.set()
        await asyncio.to_thread(self._stack.close)

    # -- events ------------------------------------------------------------------------------

    def listen(self) -> None:
        """Ends the pause after the last events, for who waits for the next one."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._reading_loop is not None and not self._is_closed and not self._is_listening:
            self._is_listening = True
            self._reading_loop.add_reader(self._event_socket.fileno(), self._on_events)

    def _on_events(self) -> None:
        if self._reading_loop is not None and not self._is_awaited():
            self._reading_loop.remove_reader(self._event_socket.fileno())
            self._is_listening = False
            self._pause = self._reading_loop.call_later(EVENT_PAUSE_S, self.listen)
        self._take_events()

    def _take_events(self) -> None:
        """Digests what the kernel has told so far."""
        if self._is_closed:
            return
        events, has_overflowed = self._event_socket.events(max_datagrams=EVENT_DATAGRAMS_AT_ONCE)
        if has_overflowed or any(disturbs(event) for event in events):
            self._is_believed, self._is_disturbed, self._foreign = False, True, None
        reasons = {reason for event in events if (reason := self._reason(event)) is not None}
        if has_overflowed:
            reasons.add(OVERFLOW)
        if reasons:
            self._pending |= reasons
            self._has_pending.set()

    def _reason(self, event: Event) -> str | None:
        """Why ``event`` may concern us; None when it is our own doing or not about routing."""
        if event.kind in (nl.RTM_NEWLINK, nl.RTM_DELLINK):
            return self._link_reason(event)
        return reason_of(event, self._own_ports)

    def _link_reason(self, event: Event) -> str | None:
        """A pod link that comes or goes is ADD's and DEL's doing and complete by itself; one that
        goes down has lost its route."""
        parts = nl.attributes(event.body, nl.IFINFOMSG.size, wanted=_NAME_WANTED)
        name = nl.text(parts.get(nl.IFLA_IFNAME, b""))
        if event.kind == nl.RTM_DELLINK:
            self._on_link_gone(name)
        if not name.startswith(HOST_IFNAME_PREFIX):
            return "link"
        ifindex, flags, change = nl.IFINFOMSG.unpack_from(event.body)[2:5]
        suspicion = self._down.pop(ifindex, None)
        if suspicion is not None:
            suspicion.cancel()
            if event.kind == nl.RTM_NEWLINK and flags & nl.IFF_UP:
                # Down and up again within the pause: it stays, and its routes went with the flap.
                self._tell_down(ifindex)
        has_gone_down = change & nl.IFF_UP and change != JUST_MADE and not flags & nl.IFF_UP
        if has_gone_down and event.kind == nl.RTM_NEWLINK and self._reading_loop is not None:
            # A link that is being removed goes down first; it is only news when it stays.
            self._down[ifindex] = self._reading_loop.call_later(
                DOWN_PAUSE_S, self._tell_down, ifindex
            )
        return None

    def _tell_down(self, ifindex: int) -> None:
        self._down.pop(ifindex, None)
        self._pending.add("pod-link")
        self._has_pending.set()

    # -- reading -----------------------------------------------------------------------------

    async def _run(self, work: Callable[[NetlinkSocket], T], is_big: bool) -> T:
        if is_big:
            return await asyncio.to_thread(work, self._bulk_socket)
        return work(self._socket)


def _look_up(socket: NetlinkSocket, destination: Address, *, flags: int) -> bytes | None:
    """The kernel's answer for a packet to ``destination``; None when it would not send it."""
    family = AF_INET if destination.version == 4 else AF_INET6
    body = nl.RTMSG.pack(family, destination.max_prefixlen, 0, 0, 0, 0, 0, 0, flags)
    body += nl.attribute(nl.RTA_DST, destination.packed)
    answer = socket.get(nl.RTM_GETROUTE, body, absent=_UNROUTABLE)
    return answer if answer and answer[7] in (nl.RTN_UNICAST, nl.RTN_LOCAL) else None
