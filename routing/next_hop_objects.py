"""The kernel's nexthop objects and groups that are ours, and the messages that change them.

Routes with a gateway do not carry it: they name a *group*, and the group its members. So one
message moves every route of a group, a hundred thousand in 30 ms, which is what turning away from a
dead next hop takes. A route always names a group, of one member too: a group cannot become a single
object later.

Ours is what has our protocol number and an id of our range; nothing else is read, changed or
removed, and an id that somebody else has taken is left out. Deleting an object flushes the routes
that use it, so only groups that no route of anybody uses are removed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, AF_UNSPEC

from cni import netlink as nl
from cni.netlink import Request, attribute, attribute_u32
from cni.netlink_socket import NetlinkSocket
from routing.routes import PROTOCOL, NextHop, next_hop_order
from routing.rtmessage import RTA_NH_ID

FIRST_ID = 0x5332_0000
LAST_ID = 0x5332_FFFF
"""65,536 of the 32-bit ids, far from where people and other programs begin to count."""

RTNLGRP_NEXTHOP = 32
RTM_NEWNEXTHOP, RTM_DELNEXTHOP, RTM_GETNEXTHOP = 104, 105, 106
NHA_ID, NHA_GROUP, NHA_OIF, NHA_GATEWAY = 1, 2, 5, 6
NHMSG = struct.Struct("=BBBxI")
"""family, scope, protocol, flags."""
_MEMBER = struct.Struct("=IBBH")
"""id, weight - 1, reserved."""

IndexOf = Callable[[str], int | None]
NameOf = Callable[[int], str | None]
Member = tuple[int, bytes]
"""(interface index, packed gateway)."""


class NoNextHop(ValueError):
    """A group cannot be made; the sentence says which next hop and why."""


@dataclass(slots=True)
class _Tables:
    """What the kernel holds of ours, and every id of our range that is taken."""

    members: dict[Member, int]
    groups: dict[int, frozenset[int]]
    taken: set[int]


def _read(socket: NetlinkSocket) -> _Tables:
    tables = _Tables({}, {}, set())
    for body in socket.dump(RTM_GETNEXTHOP, NHMSG.pack(AF_UNSPEC, 0, 0, 0)):
        _family, _scope, protocol, _flags = NHMSG.unpack_from(body)
        parts = nl.attributes(body, NHMSG.size)
        number = nl.u32(parts[NHA_ID])
        if not FIRST_ID <= number <= LAST_ID:
            continue
        tables.taken.add(number)
        if protocol != PROTOCOL:
            continue
        if NHA_GROUP in parts:
            value = parts[NHA_GROUP]
            tables.groups[number] = frozenset(
                _MEMBER.unpack_from(value, at)[0] for at in range(0, len(value), _MEMBER.size)
            )
        elif NHA_OIF in parts and NHA_GATEWAY in parts:
            tables.members[nl.u32(parts[NHA_OIF]), parts[NHA_GATEWAY]] = number
    return tables


class NextHopObjects:
    """One look at the kernel's objects, and the changes made since. Made anew for every pass.

    Args:
        socket: changes are done through it, at once.

    Raises:
        NetlinkError: the objects cannot be read; EOPNOTSUPP where the kernel has none (before 5.3).
    """

    def __init__(self, socket: NetlinkSocket) -> None:
        self._socket = socket
        self._tables = _read(socket)
        self._next_id = FIRST_ID

    def group_of(self, hops: tuple[NextHop, ...], index_of: IndexOf) -> int:
        """The id of a group with exactly these members, made where there is none.

        Raises:
            NoNextHop: an interface does not exist, or the kernel refuses a member or the group.
        """
        members = frozenset(self._member(hop, index_of) for hop in hops)
        for number, held in self._tables.groups.items():
            if held == members:
                return number
        return self._set_group(self._free_id(), members, nl.NLM_F_CREATE | nl.NLM_F_EXCL)

    def rewrite(
        self, old: tuple[NextHop, ...], new: tuple[NextHop, ...], index_of: IndexOf
    ) -> bool:
        """Makes every group that leads to ``old`` lead to ``new``, and every route with it.

        Returns whether there was any.

        Raises:
            NoNextHop: as ``group_of``; what was not reached leads to ``old`` still.
        """
        before = self._known(old, index_of)
        members = frozenset(self._member(hop, index_of) for hop in new)
        numbers = [n for n, held in self._tables.groups.items() if held == before]
        for number in numbers:
            self._set_group(number, members, nl.NLM_F_CREATE | nl.NLM_F_REPLACE)
        return bool(numbers)

    def abandon(self, gateways: Collection[bytes]) -> int:
        """Takes next hops out of every group that has others besides. Returns how many groups."""
        dead = {n for (_, gateway), n in self._tables.members.items() if gateway in gateways}
        changed = 0
        for number, held in list(self._tables.groups.items()):
            if held & dead and held - dead:
                self._set_group(number, held - dead, nl.NLM_F_CREATE | nl.NLM_F_REPLACE)
                changed += 1
        return changed

    def hops(self, name_of: NameOf) -> dict[int, tuple[NextHop, ...]]:
        """Where each group leads; without those of which an interface is gone."""
        by_id: dict[int, NextHop] = {}
        for (ifindex, gateway), number in self._tables.members.items():
            name = name_of(ifindex)
            if name is not None:
                by_id[number] = NextHop(name, ip_address(gateway))
        return {
            number: tuple(sorted((by_id[each] for each in held), key=next_hop_order))
            for number, held in self._tables.groups.items()
            if held <= by_id.keys()
        }

    def remove_unused(self, used: Collection[int]) -> None:
        """Removes the groups that are not in ``used``, then members that no group has."""
        unused = [number for number in self._tables.groups if number not in used]
        for number in unused:
            self._delete(number)
            del self._tables.groups[number]
        needed = frozenset().union(*self._tables.groups.values())
        for member, number in list(self._tables.members.items()):
            if number not in needed:
                self._delete(number)
                del self._tables.members[member]

    def groups(self) -> frozenset[int]:
        """The ids of our groups."""
        return frozenset(self._tables.groups)

    # -- inside --------------------------------------------------------------------------------

    def _known(self, hops: Iterable[NextHop], index_of: IndexOf) -> frozenset[int]:
        """The members of ``hops`` that exist; one that does not leads to no group."""
        return frozenset(self._tables.members.get(_key(hop, index_of), 0) for hop in hops)

    def _member(self, hop: NextHop, index_of: IndexOf) -> int:
        key = _key(hop, index_of)
        known = self._tables.members.get(key)
        if known is not None:
            return known
        number = self._free_id()
        family = AF_INET if len(key[1]) == 4 else AF_INET6
        body = NHMSG.pack(family, 0, PROTOCOL, 0) + attribute_u32(NHA_ID, number)
        body += attribute_u32(NHA_OIF, key[0]) + attribute(NHA_GATEWAY, key[1])
        flags = nl.NLM_F_CREATE | nl.NLM_F_EXCL
        (refusal,) = self._socket.execute([Request(RTM_NEWNEXTHOP, flags, body)])
        if refusal is not None:
            raise NoNextHop(f"next hop {hop.gateway} on {hop.ifname}: {refusal}")
        self._tables.members[key] = number
        return number

    def _set_group(self, number: int, members: frozenset[int], flags: int) -> int:
        body = NHMSG.pack(AF_UNSPEC, 0, PROTOCOL, 0) + attribute_u32(NHA_ID, number)
        value = b"".join(_MEMBER.pack(member, 0, 0, 0) for member in sorted(members))
        body += attribute(NHA_GROUP, value)
        (refusal,) = self._socket.execute([Request(RTM_NEWNEXTHOP, flags, body)])
        if refusal is not None:
            raise NoNextHop(f"a group of {len(members)} next hops: {refusal}")
        self._tables.groups[number] = members
        return number

    def _delete(self, number: int) -> None:
        body = NHMSG.pack(AF_UNSPEC, 0, 0, 0) + attribute_u32(NHA_ID, number)
        self._socket.execute([Request(RTM_DELNEXTHOP, 0, body)])
        self._tables.taken.discard(number)

    def _free_id(self) -> int:
        while self._next_id in self._tables.taken:
            self._next_id += 1
        if self._next_id > LAST_ID:
            raise NoNextHop(f"all {LAST_ID - FIRST_ID + 1} ids of next hops are taken")
        self._tables.taken.add(self._next_id)
        return self._next_id


def _key(hop: NextHop, index_of: IndexOf) -> Member:
    ifindex = index_of(hop.ifname)
    if ifindex is None:
        raise NoNextHop(f"interface {hop.ifname} does not exist")
    if hop.gateway is None:
        raise NoNextHop(f"a next hop on {hop.ifname} without a gateway")
    return ifindex, hop.gateway.packed


def id_of(body: bytes) -> int | None:
    """The nexthop id in a route message."""
    value = nl.attributes(body, nl.RTMSG.size).get(RTA_NH_ID)
    return None if value is None else nl.u32(value)
