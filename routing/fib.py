"""The kernel's forwarding table: reads back what is ours, applies a Delta, tells of changes.

Ours is what carries our protocol and our metric in the main table (routing/routes.py). The kernel
keys a route by (table, destination, metric) whatever its protocol, so three rules keep foreign
routes safe:
  * create is exclusive; when the key is held, its holder is looked up: ours is brought to what is
    wanted, a foreign one is a Failure that names it;
  * replace looks at the holders of its keys first, since NLM_F_REPLACE takes whoever is there;
  * delete carries our protocol and metric, and the kernel itself spares what does not match.

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
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from socket import AF_INET, AF_INET6, AF_UNSPEC
from typing import Protocol, TypeVar

from cni import netlink as nl
from cni.attachment import HOST_IFNAME_PREFIX
from cni.netlink import Event, NetlinkError, NetlinkSocket, Request
from routing.delta import Delta, Failure
from routing.event_filter import JUST_MADE, RTPROT_KERNEL, event_filter
from routing.links import Interface, LinkState
from routing.next_hop_objects import (
    RTM_DELNEXTHOP,
    RTNLGRP_NEXTHOP,
    NextHopObjects,
    NoNextHop,
    id_of,
)
from routing.next_hops import KernelRoute
from routing.routes import METRIC, PROTOCOL, TABLE_MAIN, Address, NextHop, Route, RouteKey
from routing.rtmessage import (
    Holder,
    UnknownInterface,
    delete_route,
    dump_body,
    key_of,
    new_route,
    parse_holder,
    parse_route,
    parse_way,
    place_of,
    protocol_name,
    slice_grouped,
)

__all__ = ["Fib", "FibClosed", "KernelFib", "LinkState"]

T = TypeVar("T")

INLINE_CHANGES = 200
"""Up to this many changes the loop's own thread does them: about 5 ms."""

INLINE_ROUTES = 1000
"""Tables that had at most this many entries when last read are read in the loop's own thread."""

EVENT_BUFFER_BYTES = 8 << 20
EVENT_DATAGRAMS_AT_ONCE = 256
"""How much of a flood one turn of the loop digests; the rest waits for the next."""

OVERFLOW = "overflow"

BELIEVED_S = 25.0
"""A table is dumped at least this often, whatever the kernel told or did not tell."""
OUR_METRIC = nl.ATTRIBUTE.pack(8, nl.RTA_PRIORITY) + METRIC.to_bytes(4, sys.byteorder)
"""As it stands in every announcement of a route that has it."""
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
_LINK_WANTED = frozenset({nl.IFLA_IFNAME, nl.IFLA_MTU})


class FibClosed(Exception):
    """The driver was closed while somebody waited for a change."""


class Fib(Protocol):
    """The port that routing/reconcile.py writes routes through."""

    async def read(self) -> dict[RouteKey, Route]:
        """Every route of ours, both families."""

    async def apply(self, delta: Delta[RouteKey, Route]) -> list[Failure[RouteKey]]:
        """Creates, replaces, deletes, in this order; goes on past failures and returns them."""

    async def abandon(self, gateways: Collection[Address]) -> int:
        """Takes dead next hops out of every route that has others besides; how many groups of
        routes that concerned."""

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
        self._mirror: dict[RouteKey, Route] | None = None
        """What the kernel holds, as far as it was told to us; None: to be dumped."""
        self._mirrored_at_s = 0.0
        self._is_disturbed = False
        self._changes = 0
        """How many deltas have been applied, for a dump that one of them overtook."""
        self._grouped: dict[bytes, Route] = {}
        self._groups: dict[int, tuple[NextHop, ...]] = {}
        self._unused: set[int] = set()
        self._unused_at = -1
        """After which delta these groups had no route of ours."""
        self._entries_last_read = 0
        self._parsed_links: dict[bytes, LinkState] = {}
        self._parsed: tuple[dict[bytes, Route], dict[int, str]] = ({}, {})
        self._reading_loop: asyncio.AbstractEventLoop | None = None
        self._is_listening = False
        self._pending: set[str] = set()
        self._has_pending = asyncio.Event()
        self._is_closed = False

    # -- the Fib -----------------------------------------------------------------------------

    async def read(self) -> dict[RouteKey, Route]:
        """Every route of ours, both families. Not to be changed by the caller.

        Raises:
            NetlinkError: the kernel gave no consistent table.
        """
        self._take_events()
        if self._mirror is not None and time.monotonic() - self._mirrored_at_s < BELIEVED_S:
            return self._mirror
        changes, started_s = self._changes, time.monotonic()
        self._mirror = None
        self._is_disturbed = False
        routes = await self._run(self._read, self._entries_last_read > INLINE_ROUTES)
        self._entries_last_read = len(routes)
        self._take_events()
        if changes == self._changes and not self._is_disturbed:
            self._mirror, self._mirrored_at_s = routes, started_s
        return routes

    async def apply(self, delta: Delta[RouteKey, Route]) -> list[Failure[RouteKey]]:
        """Creates, replaces, deletes, in this order.

        A route that cannot be made fails alone: the interface is missing, a gateway is not on
        link (one such next hop makes the kernel refuse the whole multipath), the key is held by a
        foreign route.

        Raises:
            OSError: the socket failed, or the table could not be read to look up a holder.
        """

        moved = self._whole_groups(delta)
        is_known = self._unused_at == self._changes and len(self._unused) > UNUSED_GROUPS
        unused = frozenset(self._unused) if is_known else frozenset()

        def work(socket: NetlinkSocket) -> list[Failure[RouteKey]]:
            return _Pass(socket, self._families).apply(delta, moved, unused)

        mirror, self._mirror = self._mirror, None
        self._is_disturbed = False
        self._changes += 1
        changes = self._changes
        # A replace reads the table first.
        reads_much = bool(delta.replace) and self._entries_last_read > INLINE_ROUTES
        failures = await self._run(work, reads_much or len(delta) > INLINE_CHANGES)
        is_alone = changes == self._changes
        self._changes += 1
        if mirror is not None and not failures and is_alone and not self._is_disturbed:
            routes = dict(mirror)
            routes.update(delta.create)
            routes.update((key, new) for key, (_old, new) in delta.replace.items())
            for key in delta.delete:
                routes.pop(key, None)
            self._mirror = routes
        return failures

    async def abandon(self, gateways: Collection[Address]) -> int:
        """Takes next hops that are dead out of every route that has others, in a message a group.

        Returns how many groups changed; a table that is read afterwards shows what came of it.

        Raises:
            OSError: the socket failed.
        """
        packed = frozenset(gateway.packed for gateway in gateways)
        try:
            changed = NextHopObjects(self._socket).abandon(packed)
        except (NetlinkError, NoNextHop):
            # What the next pass does one by one.
            changed = 0
        if changed:
            self._mirror = None
            self._changes += 1
        return changed

    def _whole_groups(
        self, delta: Delta[RouteKey, Route]
    ) -> dict[tuple[NextHop, ...], tuple[NextHop, ...]]:
        """Which next hops are replaced in every single route that has them, all by the same."""
        if len(delta.replace) < MANY_REPLACED or self._mirror is None:
            return {}
        going: dict[tuple[NextHop, ...], set[tuple[NextHop, ...]]] = {}
        count: Counter[tuple[NextHop, ...]] = Counter()
        for old, new in delta.replace.values():
            count[old.next_hops] += 1
            going.setdefault(old.next_hops, set()).add(new.next_hops)
        have = Counter(route.next_hops for route in self._mirror.values())
        return {
            old: next(iter(news))
            for old, news in going.items()
            if len(news) == 1 and count[old] == have[old] and _is_grouped(old, next(iter(news)))
        }

    async def links(self) -> dict[str, LinkState]:
        """Every interface by name, with its addresses.

        Raises:
            NetlinkError: the kernel gave no consistent table.
        """
        return await self._run(self._read_links, self._entries_last_read > INLINE_ROUTES)

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
        if has_overflowed or any(self._disturbs(event) for event in events):
            self._mirror, self._is_disturbed = None, True
        reasons = {reason for event in events if (reason := self._reason(event)) is not None}
        if has_overflowed:
            reasons.add(OVERFLOW)
        if reasons:
            self._pending |= reasons
            self._has_pending.set()

    def _disturbs(self, event: Event) -> bool:
        """Whether our routes may be others after ``event``: a link's go with it, unannounced, and
        so does one whose key another program takes over; that has its protocol and our metric."""
        if event.kind not in (nl.RTM_NEWROUTE, nl.RTM_DELROUTE):
            return True
        is_ours = len(event.body) >= nl.RTMSG.size and event.body[5] == PROTOCOL
        return is_ours or OUR_METRIC in event.body

    def _reason(self, event: Event) -> str | None:
        """Why ``event`` may concern us; None when it is our own doing or not about routing."""
        if event.kind in (nl.RTM_NEWLINK, nl.RTM_DELLINK):
            return self._link_reason(event)
        if event.kind in (nl.RTM_NEWADDR, nl.RTM_DELADDR):
            # Link-local addresses decide nothing here, and every IPv6 pod link brings one.
            is_local = len(event.body) > 3 and event.body[3] == nl.RT_SCOPE_LINK
            return None if is_local else "address"
        if event.kind == RTM_DELNEXTHOP:
            # The kernel tells nobody of the IPv4 routes that go with it.
            return None if event.port_id in self._own_ports else "route"
        if event.kind not in (nl.RTM_NEWROUTE, nl.RTM_DELROUTE):
            return None
        if event.port_id in self._own_ports or len(event.body) < nl.RTMSG.size:
            return None
        fields = nl.RTMSG.unpack_from(event.body)
        family, length, table, protocol, flags = (fields[i] for i in (0, 1, 4, 5, 8))
        # The local table, and what the kernel itself adds, follow links and addresses; clones are
        # path MTU and redirect caches.
        if table != TABLE_MAIN or flags & nl.RTM_F_CLONED or protocol == RTPROT_KERNEL:
            return None
        if event.port_id == 0 and protocol == PROTOCOL and length == 128 and family == AF_INET6:
            # The kernel itself took a pod's route with its link; the link's own news tell of it.
            return None
        return "route"

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

    def _read(self, socket: NetlinkSocket) -> dict[RouteKey, Route]:
        """Messages that are as they were last time are not parsed again, unless an interface got
        another name: at 10,000 routes that is 0.05 s against 0.2."""
        parsed, names = self._parsed
        if any(socket.ifname(ifindex) != name for ifindex, name in names.items()):
            parsed, names = {}, {}
        names = dict(names)

        def name_of(ifindex: int) -> str | None:
            if ifindex not in names:
                name = socket.ifname(ifindex)
                if name is None:
                    return None
                names[ifindex] = name
            return names[ifindex]

        seen: dict[bytes, Route] = {}
        grouped: dict[bytes, Route] = {}
        held = self._grouped
        groups = self._read_groups(socket, name_of)
        for family in self._families:
            for body in socket.dump_routes(dump_body(family, protocol=PROTOCOL)):
                sliced = slice_grouped(body)
                hops = groups.get(sliced[1]) if sliced is not None else None
                if sliced is not None and hops is not None:
                    place = sliced[0]
                    known = held.get(place)
                    if known is None:
                        known = Route(key_of(place), hops)
                    elif known.next_hops is not hops:
                        known = Route(known.key, hops)
                    grouped[place] = known
                    continue
                route = parsed.get(body) or parse_route(body, name_of)
                if route is not None:
                    seen[body] = route
        used = {hop.ifname for route in seen.values() for hop in route.next_hops}
        self._parsed = seen, {index: name for index, name in names.items() if name in used}
        self._grouped = grouped
        in_use = set(map(id, (route.next_hops for route in grouped.values())))
        self._unused = {number for number, hops in groups.items() if id(hops) not in in_use}
        self._unused_at = self._changes
        found = {route.key: route for route in seen.values()}
        found.update((route.key, route) for route in grouped.values())
        return found

    def _read_groups(
        self, socket: NetlinkSocket, name_of: Callable[[int], str | None]
    ) -> dict[int, tuple[NextHop, ...]]:
        try:
            fresh = NextHopObjects(socket).hops(name_of)
        except NetlinkError:
            # A kernel without them (before 5.3): every route carries its own next hops.
            return {}
        # The same object as last time where nothing changed, so that routes can be kept.
        self._groups = {
            number: hops if (hops := self._groups.get(number)) == new else new
            for number, new in fresh.items()
        }
        return self._groups

    def _read_links(self, socket: NetlinkSocket) -> dict[str, LinkState]:
        """As with routes, a link that is described as last time is not parsed again."""
        addresses = _read_addresses(socket)
        request = nl.IFINFOMSG.pack(AF_UNSPEC, 0, 0, 0, 0)
        request += nl.attribute_u32(nl.IFLA_EXT_MASK, nl.RTEXT_FILTER_SKIP_STATS)
        parsed = self._parsed_links
        seen = {
            body: parsed.get(body) or _parse_link(body)
            for body in socket.dump(nl.RTM_GETLINK, request)
        }
        self._parsed_links = seen
        return {
            link.ifname: replace(link, addresses=tuple(own))
            if (own := addresses.get(link.ifindex))
            else link
            for link in seen.values()
        }

    async def _run(self, work: Callable[[NetlinkSocket], T], is_big: bool) -> T:
        if is_big:
            return await asyncio.to_thread(work, self._bulk_socket)
        return work(self._socket)


class _Pass:
    """One apply: a cache of interface indexes, and the failures so far."""

    def __init__(self, socket: NetlinkSocket, families: Collection[int]) -> None:
        self._socket = socket
        self._families = families
        self._indexes: dict[str, int | None] = {}
        self._failures: list[Failure[RouteKey]] = []
        self._objects: NextHopObjects | None = None
        self._groups: dict[tuple[NextHop, ...], int | NoNextHop] = {}

    def apply(
        self,
        delta: Delta[RouteKey, Route],
        moved: Mapping[tuple[NextHop, ...], tuple[NextHop, ...]],
        unused: Collection[int],
    ) -> list[Failure[RouteKey]]:
        # One by one an ADD's route and a DEL's come here; what is empty must cost nothing.
        hops = {route.next_hops for route in delta.create.values()}
        hops |= {new.next_hops for _old, new in delta.replace.values()}
        if any(_is_grouped(each) for each in hops):
            # A kernel without them (before 5.3) refuses, and every route carries its next hops.
            with suppress(NetlinkError):
                self._objects = NextHopObjects(self._socket)
                self._remove_groups(unused)
        done = {old for old, new in moved.items() if self._move(old, new)}
        if delta.create:
            self._create(delta.create, "create")
        if delta.replace:
            self._replace(
                {k: new for k, (old, new) in delta.replace.items() if old.next_hops not in done}
            )
        if delta.delete:
            self._delete(delta.delete)
        return self._failures

    def _remove_groups(self, unused: Collection[int]) -> None:
        """Those that no route of ours used a moment ago, and none of anybody else's now."""
        if self._objects is None or not unused:
            return
        used = self._objects.groups() - frozenset(unused)
        for family in self._families:
            for body in self._socket.dump_routes(dump_body(family, protocol=0)):
                number = id_of(body)
                if number is not None:
                    used |= {number}
        self._objects.remove_unused(used)

    def _move(self, old: tuple[NextHop, ...], new: tuple[NextHop, ...]) -> bool:
        """Every route that leads to ``old`` at once; False when they must be moved one by one."""
        if self._objects is None:
            return False
        try:
            return self._objects.rewrite(old, new, self._index_of)
        except NoNextHop:
            return False

    def _group_of(self, hops: tuple[NextHop, ...]) -> int:
        """The group for these next hops; 0 when the route carries them itself.

        Raises:
            NoNextHop: there is none and none can be made.
        """
        if self._objects is None or not _is_grouped(hops):
            return 0
        if hops not in self._groups:
            try:
                self._groups[hops] = self._objects.group_of(hops, self._index_of)
            except NoNextHop as error:
                self._groups[hops] = error
        found = self._groups[hops]
        if isinstance(found, NoNextHop):
            raise found
        return found

    def _create(self, routes: Mapping[RouteKey, Route], operation: str) -> None:
        held: dict[RouteKey, Route] = {}
        for key, refusal in self._send(routes, operation, nl.NLM_F_CREATE | nl.NLM_F_EXCL):
            if refusal.errno == errno.EEXIST:
                held[key] = routes[key]
            else:
                self._fail(key, operation, refusal)
        if not held:
            return
        # What vanished between the refusal and the look-up is the next pass's business.
        ours, gone = self._triage(held, operation)
        for key in gone:
            self._fail(key, operation, NetlinkError(errno.EEXIST, "and is gone again"))
        name_of = self._socket.ifname
        different = {k: want for k, (want, there) in ours.items() if there.route(name_of) != want}
        self._overwrite(different, operation)

    def _replace(self, routes: Mapping[RouteKey, Route]) -> None:
        ours, gone = self._triage(routes, "replace")
        self._overwrite({key: route for key, (route, _there) in ours.items()}, "replace")
        # The device of the old route went away between the read and now, and the route with it.
        self._create(gone, "replace")

    def _triage(
        self, routes: Mapping[RouteKey, Route], operation: str
    ) -> tuple[dict[RouteKey, tuple[Route, Holder]], dict[RouteKey, Route]]:
        """Looks up who holds these keys: (we do, nobody does). A foreign holder is a failure.

        Where several hold one key (``ip route append``) the kernel replaces the first.
        """
        ours: dict[RouteKey, tuple[Route, Holder]] = {}
        gone: dict[RouteKey, Route] = {}
        holders = self._holders(routes) if routes else {}
        for key, route in routes.items():
            holder = holders.get(key)
            if holder is None:
                gone[key] = route
            elif holder.is_ours:
                ours[key] = (route, holder)
            else:
                self._failures.append(
                    Failure(
                        key,
                        operation,
                        f"held by protocol {holder.protocol} ({protocol_name(holder.protocol)}) "
                        f"at metric {key.metric}",
                    )
                )
        return ours, gone

    def _overwrite(self, routes: Mapping[RouteKey, Route], operation: str) -> None:
        for key, refusal in self._send(routes, operation, nl.NLM_F_CREATE | nl.NLM_F_REPLACE):
            self._fail(key, operation, refusal)

    def _delete(self, routes: Mapping[RouteKey, Route]) -> None:
        keys = list(routes)
        for key, outcome in zip(
            keys, self._socket.execute([delete_route(key) for key in keys]), strict=True
        ):
            if outcome is not None and outcome.errno != errno.ESRCH:
                self._fail(key, "delete", outcome)

    def _send(
        self, routes: Mapping[RouteKey, Route], operation: str, flags: int
    ) -> Iterable[tuple[RouteKey, NetlinkError]]:
        """Sends what can be packed; the refusals. What cannot be packed is a failure already."""
        keys: list[RouteKey] = []
        requests: list[Request] = []
        for key, route in routes.items():
            try:
                group = self._group_of(route.next_hops)
                requests.append(new_route(route, self._index_of, flags, group=group))
            except (UnknownInterface, NoNextHop, ValueError) as error:
                self._fail(key, operation, error)
            else:
                keys.append(key)
        outcomes = self._socket.execute(requests)
        return [(k, o) for k, o in zip(keys, outcomes, strict=True) if o is not None]

    def _holders(self, keys: Collection[RouteKey]) -> dict[RouteKey, Holder]:
        """Who holds these keys now, whatever the protocol; the first where there are several.

        From a dump of the whole table: the kernel cannot be asked for one exact (prefix, metric).
        """
        wanted = {place_of(key): key for key in keys}
        lengths = {key.prefix.prefixlen for key in keys}
        found: dict[RouteKey, Holder] = {}
        for family in self._families:
            if not any(key.prefix.version == (4 if family == AF_INET else 6) for key in keys):
                continue
            for body in self._socket.dump_routes(dump_body(family, protocol=0)):
                if body[1] not in lengths:
                    continue
                holder = parse_holder(body)
                key = wanted.get(holder.place)
                if key is not None and holder.metric == key.metric and holder.tos == 0:
                    found.setdefault(key, holder)
        return found

    def _index_of(self, ifname: str) -> int | None:
        if ifname not in self._indexes:
            self._indexes[ifname] = self._socket.ifindex(ifname)
        return self._indexes[ifname]

    def _fail(self, key: RouteKey, operation: str, error: Exception) -> None:
        self._failures.append(Failure(key, operation, str(error)))


def _is_grouped(*hops: tuple[NextHop, ...]) -> bool:
    """Whether routes with these next hops name a group: they have gateways, all of them."""
    return all(each and all(hop.gateway is not None for hop in each) for each in hops)


def _look_up(socket: NetlinkSocket, destination: Address, *, flags: int) -> bytes | None:
    """The kernel's answer for a packet to ``destination``; None when it would not send it."""
    family = AF_INET if destination.version == 4 else AF_INET6
    body = nl.RTMSG.pack(family, destination.max_prefixlen, 0, 0, 0, 0, 0, 0, flags)
    body += nl.attribute(nl.RTA_DST, destination.packed)
    try:
        answer = socket.get(nl.RTM_GETROUTE, body)
    except NetlinkError as error:
        if error.errno in _UNROUTABLE:
            return None
        raise
    return answer if answer[7] in (nl.RTN_UNICAST, nl.RTN_LOCAL) else None


def _read_addresses(socket: NetlinkSocket) -> dict[int, list[Interface]]:
    addresses: dict[int, list[Interface]] = {}
    for body in socket.dump(nl.RTM_GETADDR, nl.IFADDRMSG.pack(AF_UNSPEC, 0, 0, 0, 0)):
        _family, length, _flags, _scope, ifindex = nl.IFADDRMSG.unpack_from(body)
        parts = nl.attributes(body, nl.IFADDRMSG.size)
        # On a point-to-point link ADDRESS is the other end; LOCAL is always ours where present.
        packed = parts.get(nl.IFA_LOCAL) or parts.get(nl.IFA_ADDRESS)
        if packed:
            own = ip_interface(f"{ip_address(packed)}/{length}")
            addresses.setdefault(ifindex, []).append(own)
    return addresses


def _parse_link(body: bytes) -> LinkState:
    """One RTM_NEWLINK body, without its addresses."""
    _family, _type, ifindex, flags, _change = nl.IFINFOMSG.unpack_from(body)
    parts = nl.attributes(body, nl.IFINFOMSG.size, wanted=_LINK_WANTED)
    return LinkState(
        ifname=nl.text(parts[nl.IFLA_IFNAME]),
        ifindex=ifindex,
        is_up=bool(flags & nl.IFF_UP and flags & nl.IFF_LOWER_UP),
        mtu_bytes=nl.u32(parts[nl.IFLA_MTU]),
    )
