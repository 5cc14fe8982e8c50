"""Writes one Work of routes into the kernel: batches for the many, one by one where it must look.

Three rules keep foreign routes safe, for the kernel keys a route by (table, destination, metric)
whatever its protocol: create is exclusive, and what holds a key is looked up; replace looks at the
holders of its keys first; delete carries our protocol and metric. A key that somebody else holds
is left to them, and our route goes in front of it (fronts.py).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from socket import AF_INET

from bgp.nlri import Nlri, nlri_of
from cni import netlink as nl
from cni.netlink import NetlinkError, Request
from cni.netlink_socket import NetlinkSocket
from routing.delta import Failure
from routing.next_hop_objects import NextHopObjects, NoNextHop, id_of
from routing.route_table import Hops, is_grouped, key_of
from routing.route_work import Work
from routing.routes import METRIC, PROTOCOL, Route, RouteKey, in_front, in_place
from routing.rtmessage import (
    Holder,
    UnknownInterface,
    delete_route,
    dump_body,
    grouped_routes,
    new_route,
    parse_holder,
    place_of,
)


class RouteWriter:
    """One apply: a cache of interface indexes, and the failures so far.

    Args:
        foreign: the destinations of others' routes with our metric, where they are known.
        fronts: the ordinary places of our routes that stand in front of them.
    """

    def __init__(
        self,
        socket: NetlinkSocket,
        families: Collection[int],
        foreign: frozenset[Nlri] | None = None,
        fronts: Collection[RouteKey] = (),
    ) -> None:
        self.foreign = foreign
        self.behind: dict[RouteKey, str | None] = {}
        """What has been written in front, by ordinary place, and whose is behind it."""
        self._fronts = frozenset(fronts)
        self._socket = socket
        self._families = families
        self._indexes: dict[str, int | None] = {}
        self._failures: list[Failure[RouteKey]] = []
        self._objects: NextHopObjects | None = None
        self._groups: dict[Hops, int | NoNextHop] = {}

    def apply(
        self, work: Work, moved: Mapping[Hops, Hops], unused: Collection[int]
    ) -> list[Failure[RouteKey]]:
        """Does all of it, going on past failures, which it returns.

        Args:
            moved: next hops of which every single route turns to the same others.
            unused: our groups that no route of ours names.

        Raises:
            OSError: the socket failed, or the table could not be read to look up a holder.
        """
        # One by one an ADD's route and a DEL's come here; what is empty must cost nothing.
        if (
            work.group
            or work.regroup
            or any(is_grouped(new.next_hops) for _old, new in work.replace.values())
        ):
            # A kernel without them (before 5.3) refuses, and every route carries its next hops.
            with suppress(NetlinkError):
                self._objects = NextHopObjects(self._socket)
                self._remove_groups(unused)
        done = {id(old) for old, new in moved.items() if self._move(old, new)}
        if work.group:
            self._group(work.group)
        if work.create:
            self._create(work.create, "create")
        if work.regroup:
            self._regroup({n: new for n, (old, new) in work.regroup.items() if id(old) not in done})
        if work.replace:
            self._replace({key: new for key, (_old, new) in work.replace.items()})
        if work.ungroup:
            self._ungroup(work.ungroup)
        if work.delete:
            self._delete(work.delete)
        return self._failures

    # -- the many ----------------------------------------------------------------------------

    def _group(self, routes: Mapping[Nlri, Hops]) -> None:
        flags = nl.NLM_F_CREATE | nl.NLM_F_EXCL
        held: dict[RouteKey, Route] = {}
        for nlri, refusal in self._send_grouped(routes, "create", flags):
            if refusal.errno == errno.EEXIST:
                route = Route(key_of(nlri), routes[nlri])
                held[route.key] = route
            else:
                self._fail(key_of(nlri), "create", refusal)
        self._create_over(held, "create")

    def _regroup(self, routes: Mapping[Nlri, Hops]) -> None:
        """NLM_F_REPLACE takes whoever is there, so those that others hold are found out first."""
        if self.foreign is None:
            self.foreign = self._find_foreign()
        guarded = self.foreign.intersection(routes)
        if self._fronts:
            guarded |= {nlri_of(key.prefix) for key in self._fronts}.intersection(routes)
        self._replace({key_of(nlri): Route(key_of(nlri), routes[nlri]) for nlri in guarded})
        rest = {n: hops for n, hops in routes.items() if n not in guarded} if guarded else routes
        flags = nl.NLM_F_CREATE | nl.NLM_F_REPLACE
        for nlri, refusal in self._send_grouped(rest, "replace", flags):
            self._fail(key_of(nlri), "replace", refusal)

    def _ungroup(self, routes: Mapping[Nlri, Hops]) -> None:
        if self._fronts:
            self._delete_fronts([key for key in self._fronts if nlri_of(key.prefix) in routes])
        for nlri, refusal in self._send_packed(routes, nl.RTM_DELROUTE, 0, lambda _hops: 0):
            if refusal.errno != errno.ESRCH:
                self._fail(key_of(nlri), "delete", refusal)

    def _send_grouped(
        self, routes: Mapping[Nlri, Hops], operation: str, flags: int
    ) -> Iterable[tuple[Nlri, NetlinkError]]:
        """Writes routes; the refusals. What has no group is a failure already, or, on a kernel
        without nexthop objects, is written with its own next hops."""
        if self._objects is None:
            values = {key_of(nlri): Route(key_of(nlri), hops) for nlri, hops in routes.items()}
            return [(nlri_of(k.prefix), e) for k, e in self._send(values, operation, flags)]

        def group_of(hops: Hops) -> int | None:
            try:
                return self._group_of(hops)
            except NoNextHop as error:
                for nlri, each in routes.items():
                    if each is hops:
                        self._fail(key_of(nlri), operation, error)
                return None

        return self._send_packed(routes, nl.RTM_NEWROUTE, flags, group_of)

    def _send_packed(
        self,
        routes: Mapping[Nlri, Hops],
        kind: int,
        flags: int,
        group_of: Callable[[Hops], int | None],
    ) -> Iterable[tuple[Nlri, NetlinkError]]:
        # By identity: hashing next hops takes longer than writing the route.
        alike: dict[tuple[int, int, int], tuple[Hops, list[Nlri]]] = {}
        for nlri, hops in routes.items():
            key = id(hops), len(nlri), nlri[0]
            found = alike.get(key)
            if found is None:
                alike[key] = hops, [nlri]
            else:
                found[1].append(nlri)
        refused: list[tuple[Nlri, NetlinkError]] = []
        groups: dict[int, int | None] = {}
        for (identity, _, _), (hops, nlris) in alike.items():
            if identity not in groups:
                groups[identity] = group_of(hops)
            group = groups[identity]
            if group is None:
                continue
            messages, size = grouped_routes(nlris, kind, flags, group)
            refusals = self._socket.execute_packed(messages, size)
            refused += [(nlris[place], refusal) for place, refusal in refusals.items()]
        return refused

    def _find_foreign(self) -> frozenset[Nlri]:
        """The destinations of others' routes with our metric, from a dump of the whole table."""
        found: set[Nlri] = set()
        for family in self._families:
            body = dump_body(family, protocol=0)
            for other in self._socket.dump_routes(body, keep=lambda each: each[5] != PROTOCOL):
                holder = parse_holder(other)
                _version, packed, length = holder.place
                if holder.metric == METRIC:
                    found.add(bytes((length,)) + packed)
        return frozenset(found)

    # -- groups ------------------------------------------------------------------------------

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

    def _move(self, old: Hops, new: Hops) -> bool:
        """Every route that leads to ``old`` at once; False when they must be moved one by one."""
        if self._objects is None:
            return False
        try:
            return self._objects.rewrite(old, new, self._index_of)
        except NoNextHop:
            return False

    def _group_of(self, hops: Hops) -> int:
        """The group for these next hops; 0 when the route carries them itself.

        Raises:
            NoNextHop: there is none and none can be made.
        """
        if self._objects is None or not is_grouped(hops):
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
        self._create_over(held, operation)

    def _create_over(self, held: Mapping[RouteKey, Route], operation: str) -> None:
        """Of keys that somebody holds: ours are brought to what is wanted, others' are failures."""
        if not held:
            return
        # What vanished between the refusal and the look-up is the next pass's business.
        ours, gone, fronted = self._triage(held, operation)
        for key in gone:
            self._fail(key, operation, NetlinkError(errno.EEXIST, "and is gone again"))
        name_of = self._socket.ifname
        different = {k: want for k, (want, there) in ours.items() if there.route(name_of) != want}
        self._overwrite(different, operation)
        self._put_in_front(fronted, operation)

    def _replace(self, routes: Mapping[RouteKey, Route]) -> None:
        ours, gone, fronted = self._triage(routes, "replace")
        self._put_in_front(fronted, "replace")
        self._overwrite({key: route for key, (route, _there) in ours.items()}, "replace")
        # The device of the old route went away between the read and now, and the route with it.
        self._create(gone, "replace")

    def _triage(
        self, routes: Mapping[RouteKey, Route], operation: str
    ) -> tuple[
        dict[RouteKey, tuple[Route, Holder]],
        dict[RouteKey, Route],
        dict[RouteKey, tuple[Route, Holder | None, Holder | None]],
    ]:
        """Looks up who holds these keys: (we do, nobody does, ours is or must be in front: with the
        holder in front and the foreign one behind). One that others hold both places of is a
        failure.

        Where several hold one key (``ip route append``) the kernel replaces the first.
        """
        ours: dict[RouteKey, tuple[Route, Holder]] = {}
        gone: dict[RouteKey, Route] = {}
        fronted: dict[RouteKey, tuple[Route, Holder | None, Holder | None]] = {}
        holders = self._holders(routes) if routes else {}
        for key, route in routes.items():
            holder, before = holders.get(key), holders.get(in_front(key))
            foreign = None if holder is None or holder.is_ours else holder
            if before is not None and before.is_ours:
                fronted[key] = (route, before, foreign)
            elif holder is None:
                gone[key] = route
            elif foreign is None:
                ours[key] = (route, holder)
            elif before is None:
                fronted[key] = (route, None, foreign)
            else:
                error = f"held by {foreign.words}, and by {before.words}"
                self._failures.append(Failure(key, operation, error))
        return ours, gone, fronted

    def _put_in_front(
        self, routes: Mapping[RouteKey, tuple[Route, Holder | None, Holder | None]], operation: str
    ) -> None:
        """Writes routes in front of their ordinary place, where no foreign one is."""
        name_of = self._socket.ifname
        made: dict[RouteKey, Route] = {}
        changed: dict[RouteKey, Route] = {}
        for key, (route, there, behind) in routes.items():
            want = Route(in_front(key), route.next_hops)
            self.behind[key] = None if behind is None else behind.words
            if there is None:
                made[want.key] = want
            elif there.route(name_of) != want:
                changed[want.key] = want
        before = len(self._failures)
        exclusive, over = nl.NLM_F_CREATE | nl.NLM_F_EXCL, nl.NLM_F_CREATE | nl.NLM_F_REPLACE
        for key, refusal in (
            *self._send(made, operation, exclusive),
            *self._send(changed, operation, over),
        ):
            self._fail(key, operation, refusal)
        for failure in self._failures[before:]:
            if in_front(failure.key) in made:
                self.behind.pop(failure.key, None)

    def retreat(self, routes: Mapping[RouteKey, Route]) -> set[RouteKey]:
        """Takes routes that stand in front back to their ordinary place: written there first, so
        that no packet is lost. Returns those that are back; the others' place is held again.

        Raises:
            OSError: the socket failed, or the table could not be read.
        """
        with suppress(NetlinkError):
            self._objects = NextHopObjects(self._socket)
        holders = self._holders(routes)
        free = {key: route for key, route in routes.items() if key not in holders}
        ours = {k: r for k, r in routes.items() if (h := holders.get(k)) and h.is_ours}
        refused = {k for k, _ in self._send(free, "create", nl.NLM_F_CREATE | nl.NLM_F_EXCL)}
        self._overwrite(ours, "replace")
        refused |= {failure.key for failure in self._failures}
        back = (free.keys() | ours.keys()) - refused
        self._delete_fronts(back)
        return back

    def strangers(self, keys: Collection[RouteKey]) -> dict[RouteKey, str | None]:
        """Who but us holds each of these keys, for people; None: nobody.

        Raises:
            NetlinkError: the kernel gave no consistent table.
        """
        holders = self._holders(keys)
        return {k: h.words if (h := holders.get(k)) and not h.is_ours else None for k in keys}

    def _delete_fronts(self, keys: Collection[RouteKey]) -> None:
        """Of these ordinary places, what is in front."""
        requests = [delete_route(in_front(key)) for key in keys]
        for key, outcome in zip(keys, self._socket.execute(requests), strict=True):
            if outcome is not None and outcome.errno != errno.ESRCH:
                self._fail(key, "delete", outcome)

    def _overwrite(self, routes: Mapping[RouteKey, Route], operation: str) -> None:
        for key, refusal in self._send(routes, operation, nl.NLM_F_CREATE | nl.NLM_F_REPLACE):
            self._fail(key, operation, refusal)

    def _delete(self, routes: Mapping[RouteKey, Route]) -> None:
        if self._fronts:
            self._delete_fronts([key for key in self._fronts if key in routes])
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
        """Who holds these keys and the places in front of them now, whatever the protocol; the
        first where there are several.

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
                if key is None or holder.tos != 0:
                    continue
                for place in (key, in_front(key)):
                    if holder.metric == place.metric:
                        found.setdefault(place, holder)
        return found

    def _index_of(self, ifname: str) -> int | None:
        if ifname not in self._indexes:
            self._indexes[ifname] = self._socket.ifindex(ifname)
        return self._indexes[ifname]

    def _fail(self, key: RouteKey, operation: str, error: Exception) -> None:
        self._failures.append(Failure(in_place(key), operation, str(error)))
