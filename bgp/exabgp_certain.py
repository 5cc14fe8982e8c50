"""Which UPDATEs ExaBGP 5.0.15 need not decode even once. Loaded by exabgp_tuned.py.

exabgp_hotpath.py hands on UPDATEs whose attributes have passed ExaBGP's own decoder in this
session. The first of each kind still takes the long way: decoded in full, written as JSON, read as
JSON; 1 to 2 ms of CPU over the processes. In a cluster every node's block is a path of its own, so
that is most of what a table of some thousand routes costs.

Here an UPDATE is looked at, in a hundredth of that, for whether ExaBGP's decoder could do anything
but accept it as it stands. It could not, where each attribute is one of those below, once, with
exactly the flags of its RFC and a value of the one sound form; an MP_REACH_NLRI or
MP_UNREACH_NLRI is of a negotiated family, without ADD-PATH, its next hop of the family's size; and
the prefixes are whole (which exabgp_hotpath.py has seen). **Certain** is meant: whatever is
unusual, be it allowed or not (a PARTIAL bit, an extended community, an attribute that is there
twice, one of a type not listed), is left to the full decoder.

Which AS numbers stand in an AS_PATH is not looked at, here as in ExaBGP's decoder. So what has the
same octets as something certain, such numbers apart, is as certain, and that is found in a tenth of
the time (``Numbered``): most UPDATEs of a cluster differ in nothing else.

Nothing is replaced: ``Protocol`` gets two members that exabgp_hotpath.py asks if they are there.
None of ExaBGP's code is copied, nothing of ours is imported. The fingerprints are of every decoder
whose mind is read here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

_ATTRIBUTE = "exabgp.bgp.message.update.attribute"

FINGERPRINTS = {
    f"{_ATTRIBUTE}.attribute:Attribute._registry_key": "d2dea4bbb412dc8b",
    f"{_ATTRIBUTE}.attribute:Attribute.unpack": "5ee651e4a58ad828",
    f"{_ATTRIBUTE}.attributes:Attributes._parse_one": "3a23a3ce12cfa67b",
    f"{_ATTRIBUTE}.attributes:Attributes.reconcile_four_octet_as": "6439ca923ebc5fb0",
    f"{_ATTRIBUTE}.origin:Origin.unpack": "634e3f0155bb3a43",
    f"{_ATTRIBUTE}.aspath:ASPath._new_aspaths": "9fba0e0c3c899896",
    f"{_ATTRIBUTE}.aspath:ASPath.unpack": "baccee96470c60e7",
    f"{_ATTRIBUTE}.nexthop:NextHop.unpack": "6667ad6c387b9fb0",
    f"{_ATTRIBUTE}.med:MED.unpack": "0d1bd652400227f1",
    f"{_ATTRIBUTE}.localpref:LocalPreference.unpack": "3b706515e8d9df68",
    f"{_ATTRIBUTE}.atomicaggregate:AtomicAggregate.unpack": "5d0347ae566e6689",
    f"{_ATTRIBUTE}.aggregator:Aggregator.unpack": "142aa2967e281a6e",
    f"{_ATTRIBUTE}.community.initial.communities:Communities.unpack": "f8a131a66bfecbe9",
    f"{_ATTRIBUTE}.community.large.communities:LargeCommunities.unpack": "f987b8a05015b8d3",
    f"{_ATTRIBUTE}.originatorid:OriginatorID.unpack": "2b1be6e17cccc930",
    f"{_ATTRIBUTE}.clusterlist:ClusterList.unpack": "a98c1a7511db43d4",
    f"{_ATTRIBUTE}.mprnlri:MPRNLRI.unpack": "9096c8e9b92c315c",
    f"{_ATTRIBUTE}.mpurnlri:MPURNLRI.unpack": "3352a7bc8f3273ec",
    "exabgp.bgp.message.update:Update.unpack_message": "0dbbe84626d1243a",
    "exabgp.bgp.message.update.nlri.inet:INET.unpack_nlri": "f3a2f4e158406eae",
}
"""module:function to the first 16 digits of the SHA-256 of its source text."""

_WELL_KNOWN, _OPTIONAL, _OPTIONAL_TRANSITIVE = 0x40, 0x80, 0xC0
_EXTENDED_LENGTH = 0x10
_AS_PATH, _MP_REACH = 2, 14
_UPDATE_WITHDRAWS_NOTHING = b"\2\0\0"
_SIZE_AT, _HEAD_BYTES = 5, 7
"""Where, from a message's length on, the size of its attributes is and they begin, where it
withdraws nothing before them."""
_ONE_V6, _ALL_BUT_ONE_OCTET = 17, 120
"""Octets of an IPv6 prefix that is longer than that."""
NUMBERED_MOST = 1000
"""Messages that differ in more than AS numbers; beyond, a session's begin anew."""
_IPV4, _IPV6 = b"\x00\x01\x01", b"\x00\x02\x01"
_IPV6_HOPS = 16, 32
"""Octets: a global address, alone or before a link-local one (RFC 2545 section 3)."""

Shape = tuple[bytes, ...]
"""As exabgp_hotpath.py has them: (fields in use, attributes); or, with an attribute of RFC 4760,
(fields, attributes before it, its flags and type, its value without prefixes, those after)."""


def _of_size(size: int) -> Callable[[bytes], bool]:
    return lambda value: len(value) == size


def _list_of(size: int) -> Callable[[bytes], bool]:
    return lambda value: len(value) > 0 and not len(value) % size


def _is_origin(value: bytes) -> bool:
    return len(value) == 1 and value[0] <= 2


def _is_as_path(value: bytes) -> bool:
    """Whole segments, none empty, of AS_SET and AS_SEQUENCE; four octets an AS number."""
    size, offset = len(value), 0
    while offset + 2 <= size:
        if value[offset] not in (1, 2) or not value[offset + 1]:
            return False
        offset += 2 + 4 * value[offset + 1]
    return offset == size


_SOUND: dict[int, tuple[int, Callable[[bytes], bool]]] = {
    1: (_WELL_KNOWN, _is_origin),
    2: (_WELL_KNOWN, _is_as_path),
    3: (_WELL_KNOWN, _of_size(4)),
    4: (_OPTIONAL, _of_size(4)),
    5: (_WELL_KNOWN, _of_size(4)),
    6: (_WELL_KNOWN, _of_size(0)),
    7: (_OPTIONAL_TRANSITIVE, _of_size(8)),
    8: (_OPTIONAL_TRANSITIVE, _list_of(4)),
    9: (_OPTIONAL, _of_size(4)),
    10: (_OPTIONAL, _list_of(4)),
    32: (_OPTIONAL_TRANSITIVE, _list_of(12)),
}
"""The flags of each type, and what its value must be."""


def are_sound(attributes: bytes) -> bool:
    """Whether each is one of those above, once and whole, and exactly as it should be."""
    offset, size = 0, len(attributes)
    seen = 0
    while offset < size:
        if offset + 3 > size:
            return False
        flags, kind = attributes[offset], attributes[offset + 1]
        start = offset + 3
        end = start + attributes[offset + 2]
        if flags & _EXTENDED_LENGTH:
            if start >= size:
                return False
            flags ^= _EXTENDED_LENGTH
            end = start + 1 + (attributes[offset + 2] << 8 | attributes[start])
            start += 1
        rule = _SOUND.get(kind)
        if rule is None or end > size or seen >> kind & 1 or flags != rule[0]:
            return False
        if not rule[1](attributes[start:end]):
            return False
        seen |= 1 << kind
        offset = end
    return True


def is_certain(shape: Shape, hop_sizes: Mapping[bytes, Collection[int]]) -> bool:
    """Whether ExaBGP's decoder would have no remark on an UPDATE of this shape.

    Args:
        hop_sizes: how many octets the next hop in an MP_REACH_NLRI may have, of each family (AFI
            and SAFI) that was negotiated, without ADD-PATH.
    """
    if len(shape) == 2:
        return are_sound(shape[1])
    _fields, before, kind, head, after = shape
    sizes = hop_sizes.get(head[:3])
    if sizes is None or kind[0] & ~_EXTENDED_LENGTH != _OPTIONAL:
        return False
    if kind[1] == _MP_REACH and head[3] not in sizes:
        return False
    return are_sound(before + after)


def numbers_in(attributes: bytes) -> tuple[int, int] | None:
    """Where the AS numbers of these attributes, which are sound, begin and end: those of the only
    segment of their AS_PATH. None: it has none, or several, or there is no AS_PATH."""
    offset, size = 0, len(attributes)
    while offset < size:
        start = offset + 3
        length = attributes[offset + 2]
        if attributes[offset] & _EXTENDED_LENGTH:
            length = length << 8 | attributes[start]
            start += 1
        if attributes[offset + 1] == _AS_PATH:
            is_one = length > 2 and 2 + 4 * attributes[start + 1] == length
            return (start + 2, start + length) if is_one else None
        offset = start + length
    return None


class Numbered:
    """What was certain in one session, without its AS numbers.

    Messages are given from their length on. What must be the same includes the size of what the
    numbers stand in: other octets would else pass for numbers.
    """

    def __init__(self) -> None:
        self._places: dict[int, tuple[int, int]] = {}
        """Where the numbers are, by the size of the attributes, of messages whose prefixes are all
        behind these."""
        self._around: set[tuple[bytes, bytes]] = set()
        """Of such messages what is before the numbers, from the size of the attributes on, and what
        of these is after them."""
        self._places_v6: dict[int, tuple[int, int]] = {}
        """The same by the size of the message, where the only prefix is the last thing in it."""
        self._around_v6: set[tuple[bytes, bytes]] = set()
        """Of such messages all before the numbers, and all after them but the prefix."""

    def add(self, message: bytes, shape: Shape) -> None:
        """A message that is certain."""
        found = numbers_in(shape[1])
        if found is None or message[3:5] != b"\0\0":
            return
        if len(self._around) + len(self._around_v6) >= NUMBERED_MOST:
            self._around.clear()
            self._around_v6.clear()
        start, end = found[0] + _HEAD_BYTES, found[1] + _HEAD_BYTES
        if len(shape) == 2:
            stop = _HEAD_BYTES + len(shape[1])
            self._places[len(shape[1])] = start, end
            self._around.add((message[_SIZE_AT:start], message[end:stop]))
        elif shape[2][1] == _MP_REACH and shape[3][:3] == _IPV6:
            head_at = _HEAD_BYTES + len(shape[1]) + (4 if shape[2][0] & _EXTENDED_LENGTH else 3)
            is_one = head_at + len(shape[3]) + _ONE_V6 == len(message)
            if is_one and message[-_ONE_V6] > _ALL_BUT_ONE_OCTET:
                self._places_v6[len(message)] = start, end
                self._around_v6.add((message[:start], message[end:-_ONE_V6]))

    def prefixes_at(self, message: bytes) -> int:
        """Where its prefixes begin, of a message that is certain if these are whole; else 0."""
        if len(message) < _HEAD_BYTES or message[2:_SIZE_AT] != _UPDATE_WITHDRAWS_NOTHING:
            return 0
        size = message[_SIZE_AT] << 8 | message[_SIZE_AT + 1]
        stop = _HEAD_BYTES + size
        place = self._places.get(size)
        if place is not None and len(message) > stop:
            start, end = place
            is_same = (message[_SIZE_AT:start], message[end:stop]) in self._around
            return stop if is_same else 0
        place = self._places_v6.get(len(message))
        if place is None:
            return 0
        start, end = place
        is_same = (message[:start], message[end:-_ONE_V6]) in self._around_v6
        return len(message) - _ONE_V6 if is_same else 0


def install() -> None:
    """Gives ``Protocol`` the two. Called once, with the fingerprints checked."""
    module = importlib.import_module("exabgp.reactor.protocol")
    families = importlib.import_module("exabgp.protocol.family")
    afi, safi = families.AFI, families.SAFI

    def is_certainly_sound(self: Any, shape: Shape) -> bool:
        negotiated = self.negotiated
        hop_sizes = {}
        for code, family, sizes in (
            # With RFC 8950 an IPv4 route may have a next hop of either family.
            (_IPV4, afi.ipv4, (4, *_IPV6_HOPS) if negotiated.nexthop else (4,)),
            (_IPV6, afi.ipv6, _IPV6_HOPS),
        ):
            place = family, safi.unicast
            if place in negotiated.families and not negotiated.addpath.receive(*place):
                hop_sizes[code] = sizes
        return bool(negotiated.asn4) and is_certain(shape, hop_sizes)

    def numbered(self: Any) -> Numbered:
        found: Numbered | None = getattr(self, "_slash32_numbered", None)
        if found is None:
            found = self._slash32_numbered = Numbered()
        return found

    module.Protocol.slash32_is_certainly_sound = is_certainly_sound
    module.Protocol.slash32_numbered = property(numbered)
