"""Writes one Work of routes into the kernel: batches for the many, one by one where it must look.

Three rules keep foreign routes safe, for the kernel keys a route by (table, destination, metric)
whatever its protocol: create is exclusive, and what holds a key is looked up; replace looks at the
holders of its keys first; delete carries our protocol and metric.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from socket import AF_INET

from bgp.nlri import Nlri, nlri_of
from cni import netlink as nl
from cni.netlink import NetlinkError, NetlinkSocket, Request
from routing.delta import Failure
from routing.next_hop_objects import NextHopObjects, NoNextHop, id_of
from routing.route_table import Hops, is_grouped, key_of
from routing.route_work import Work
from routing.routes import METRIC, PROTOCOL, Route, RouteKey
from routing.rtmessage import (
    Holder,
    UnknownInterface,
    delete_route,
    dump_body,
    grouped_routes,
    new_route,
    parse_holder,
    place_of,
    protocol_name,
)


class RouteWriter:
    """One apply: a cache of interface indexes, and the failures so far.

    Args:
        foreign: the destinations of others' routes with our metric, where they are known.
    """

    def __init__(
        self,
        socket: NetlinkSocket,
        families: Collection[int],
        foreign: frozenset[Nlri] | None = None,
    ) -> None:
        self.foreign = foreign
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
        self._replace({key_of(nlri): Route(key_of(nlri), routes[nlri]) for nlri in guarded})
        rest = {n: hops for n, hops in routes.items() if n not in guarded} if guarded else routes
        flags = nl.NLM_F_CREATE | nl.NLM_F_REPLACE
        for nlri, refusal in self._send_grouped(rest, "replace", flags):
            self._fail(key_of(nlri), "replace", refusal)

    def _ungroup(self, routes: Mapping[Nlri, Hops]) -> None:
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
