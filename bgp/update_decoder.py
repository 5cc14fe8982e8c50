"""UPDATEs as bytes (RFC 4271 section 4.3, RFC 4760) to our values. Pure.

Only what ExaBGP's own decoder has passed comes here: the tuned ExaBGP hands on UPDATEs whose
attributes it knows undecoded (exabgp_hotpath.py). So this reads exactly what a route is made of,
judges it by the same rules as what ExaBGP decoded (judgement.py), and is compared with ExaBGP's
decoder on whatever passes it (tests/property/test_exabgp_hotpath.py). Four-byte AS numbers only:
ExaBGP decodes the rest itself.

An attribute block is judged once and remembered: a table of 100,000 routes has a few hundred.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any

from bgp.exabgp_commands import ProtocolError
from bgp.judgement import Attributes, judge_attributes, judge_path
from bgp.paths import Address, EndOfRib, Event, Family, Path, Prefix, Rejection, Update

MAX_REMEMBERED = 20_000
"""Attribute blocks; beyond, all are forgotten and judged again as they come."""

_SEGMENTS = {1: "as-set", 2: "as-sequence"}
_EXTENDED_LENGTH = 0x10
_MP_REACH, _MP_UNREACH = 14, 15
_FAMILIES = {b"\x00\x01\x01": Family.IPV4, b"\x00\x02\x01": Family.IPV6}


class UpdateDecoder:
    """Remembers attribute blocks. One for all peers."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[bool, bytes], Attributes | str] = {}
        self._next_hops: dict[tuple[int, bytes], Address | str] = {}

    def decode(self, peer: Address, raw: bytes, *, is_ebgp: bool) -> Iterator[Event]:
        """The events of several UPDATEs, each after its length as in its header (19 + body).

        Raises:
            ProtocolError: a length leads out of the bytes.
        """
        offset, size = 0, len(raw)
        while offset < size:
            end = offset + int.from_bytes(raw[offset : offset + 2], "big") - 17
            if end > size or end < offset + 6:
                raise ProtocolError(f"{peer}: an UPDATE of {end - offset} bytes at {offset}")
            yield self._update(peer, raw[offset + 2 : end], is_ebgp)
            offset = end

    def _update(self, peer: Address, body: bytes, is_ebgp: bool) -> Event:
        start = 4 + int.from_bytes(body[:2], "big")
        end = start + int.from_bytes(body[start - 2 : start], "big")
        if end > len(body):
            raise ProtocolError(f"{peer}: an UPDATE whose fields exceed its {len(body)} bytes")
        gone = list(_prefixes(body, 2, start - 2, Family.IPV4))
        block, hops = body[start:end], b""
        announced = list(_prefixes(body, end, len(body), Family.IPV4))
        found = self._blocks.get((is_ebgp, block))
        if found is None:
            plain, reach, unreach = _split(peer, block)
            if unreach is not None:
                family = _FAMILIES.get(unreach[:3])
                if family is None:
                    return Update(peer, rejected=(Rejection(None, "unknown-family"),))
                gone += _prefixes(unreach, 3, len(unreach), family)
                if not gone and not announced and not plain:
                    return EndOfRib(peer, family)
            if reach is not None:
                return self._reach(peer, plain, reach, announced, gone, is_ebgp)
            found = self._judge(plain, is_ebgp)
            if unreach is None:
                self._remember(is_ebgp, block, found)
        if not announced:
            if not gone:
                return EndOfRib(peer, Family.IPV4)
            return self._routes(peer, [], b"", found, gone)
        hops = next((value for kind, value in _attributes(peer, block) if kind == 3), b"")
        return self._routes(peer, announced, hops, found, gone)

    def _reach(
        self,
        peer: Address,
        plain: bytes,
        reach: bytes,
        announced: list[Prefix | Rejection],
        gone: list[Prefix | Rejection],
        is_ebgp: bool,
    ) -> Event:
        family = _FAMILIES.get(reach[:3])
        if family is None or len(reach) < 5 + reach[3]:
            return Update(peer, rejected=(Rejection(None, "unknown-family"),))
        hops = reach[4 : 4 + reach[3]]
        prefixes = list(_prefixes(reach, 5 + reach[3], len(reach), family))
        found = self._blocks.get((is_ebgp, plain))
        if found is None:
            found = self._judge(plain, is_ebgp)
            self._remember(is_ebgp, plain, found)
        event = self._routes(peer, prefixes, hops, found, gone)
        if announced:
            # Both fields in one message: RFC 7606 forbids it, and nobody sends it.
            own = next((value for kind, value in _attributes(peer, plain) if kind == 3), b"")
            other = self._routes(peer, announced, own, found, [])
            return Update(
                peer,
                event.announced + other.announced,
                event.withdrawn,
                event.rejected + other.rejected,
            )
        return event

    def _routes(
        self,
        peer: Address,
        prefixes: list[Prefix | Rejection],
        hops: bytes,
        found: Attributes | str,
        gone: list[Prefix | Rejection],
    ) -> Update:
        announced: list[Path] = []
        rejected = [each for each in (*prefixes, *gone) if isinstance(each, Rejection)]
        withdrawn = tuple(each for each in gone if not isinstance(each, Rejection))
        good = (
            [each for each in prefixes if not isinstance(each, Rejection)] if rejected else prefixes
        )
        if isinstance(found, str):
            rejected += [Rejection(prefix, found) for prefix in good]  # type: ignore[arg-type]
            return Update(peer, (), withdrawn, tuple(rejected))
        origin, as_path, length = found.origin, found.as_path, found.as_path_length
        for prefix in good:
            hop = self._next_hop(peer, prefix, hops, found)  # type: ignore[arg-type]
            if isinstance(hop, str):
                rejected.append(Rejection(prefix, hop))  # type: ignore[arg-type]
                continue
            announced.append(
                Path(
                    peer,
                    prefix,  # type: ignore[arg-type]
                    hop,
                    as_path,
                    length,
                    origin,
                    found.med,
                    found.local_pref,
                    found.communities,
                    found.large_communities,
                    found.originator_id,
                    found.cluster_list,
                )
            )
        return Update(peer, tuple(announced), withdrawn, tuple(rejected))

    def _next_hop(
        self, peer: Address, prefix: Prefix, hops: bytes, found: Attributes
    ) -> Address | str:
        key = prefix.version, hops
        known = self._next_hops.get(key)
        if known is None:
            size = 4 if len(hops) == 4 else 16
            texts: list[object] = [
                str(ip_address(hops[at : at + size])) for at in range(0, len(hops), size)
            ]
            judged = judge_path(peer, prefix, texts or [None], found)
            known = judged.reason if isinstance(judged, Rejection) else judged.next_hop
            if len(self._next_hops) >= MAX_REMEMBERED:
                self._next_hops.clear()
            self._next_hops[key] = known
        return known

    def _judge(self, block: bytes, is_ebgp: bool) -> Attributes | str:
        return judge_attributes(_words(block), is_ebgp=is_ebgp)

    def _remember(self, is_ebgp: bool, block: bytes, found: Attributes | str) -> None:
        if len(self._blocks) >= MAX_REMEMBERED:
            self._blocks.clear()
        self._blocks[is_ebgp, block] = found


def _attributes(peer: object, block: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each path attribute."""
    offset, size = 0, len(block)
    while offset < size:
        head = 4 if block[offset] & _EXTENDED_LENGTH else 3
        if offset + head > size:
            raise ProtocolError(f"{peer}: a path attribute cut short")
        end = offset + head + int.from_bytes(block[offset + 2 : offset + head], "big")
        if end > size:
            raise ProtocolError(f"{peer}: a path attribute cut short")
        yield block[offset + 1], block[offset + head : end]
        offset = end


def _split(peer: Address, block: bytes) -> tuple[bytes, bytes | None, bytes | None]:
    """(the attributes without the two of RFC 4760, MP_REACH_NLRI, MP_UNREACH_NLRI)."""
    plain = b""
    multiprotocol: dict[int, bytes] = {}
    offset = 0
    for kind, value in _attributes(peer, block):
        end = offset + (4 if block[offset] & _EXTENDED_LENGTH else 3) + len(value)
        if kind in (_MP_REACH, _MP_UNREACH):
            multiprotocol[kind] = value
        else:
            plain += block[offset:end]
        offset = end
    return plain, multiprotocol.get(_MP_REACH), multiprotocol.get(_MP_UNREACH)


def _prefixes(data: bytes, start: int, end: int, family: Family) -> Iterator[Prefix | Rejection]:
    make: type[IPv4Network] | type[IPv6Network]
    make, size = (IPv4Network, 4) if family is Family.IPV4 else (IPv6Network, 16)
    bits = size * 8
    offset = start
    while offset < end:
        length = data[offset]
        stop = offset + 1 + ((length + 7) >> 3)
        if length > bits or stop > end:
            raise ProtocolError(f"a prefix of {length} bits at {offset} of {end}")
        number = int.from_bytes(data[offset + 1 : stop], "big") << (
            bits - ((stop - offset - 1) << 3)
        )
        if number & ((1 << (bits - length)) - 1):
            yield Rejection(make((number, length), strict=False), "host-bits")
        else:
            yield make((number, length))
        offset = stop


def _words(block: bytes) -> dict[str, Any]:
    """The attributes in the words of ExaBGP's JSON, which is what judge_attributes reads."""
    words: dict[str, Any] = {}
    for kind, value in _attributes("", block):
        if kind == 1:
            words["origin"] = {b"\0": "igp", b"\1": "egp", b"\2": "incomplete"}.get(value, "?")
        elif kind == 2:
            path = _as_path(value)
            if path:
                words["as-path"] = path
        elif kind == 4:
            words["med"] = int.from_bytes(value, "big")
        elif kind == 5:
            words["local-preference"] = int.from_bytes(value, "big")
        elif kind == 8:
            words["community"] = [list(pair) for pair in sorted(_numbers(value, 2, 2))]
        elif kind == 9:
            words["originator-id"] = str(ip_address(value)) if len(value) == 4 else "?"
        elif kind == 10:
            words["cluster-list"] = [str(ip_address(value[i : i + 4])) for i in _every(value, 4)]
        elif kind == 32:
            words["large-community"] = [list(each) for each in sorted(_numbers(value, 4, 3))]
    return words


def _as_path(value: bytes) -> dict[str, Any]:
    segments: dict[str, Any] = {}
    offset = 0
    while offset + 2 <= len(value):
        end = offset + 2 + 4 * value[offset + 1]
        numbers = [int.from_bytes(value[i : i + 4], "big") for i in range(offset + 2, end, 4)]
        segments[str(len(segments))] = {
            "element": _SEGMENTS.get(value[offset], "other"),
            "value": numbers,
        }
        offset = end
    return segments


def _numbers(value: bytes, size: int, count: int) -> Iterator[tuple[int, ...]]:
    for start in _every(value, size * count):
        yield tuple(
            int.from_bytes(value[start + i * size : start + (i + 1) * size], "big")
            for i in range(count)
        )


def _every(value: bytes, size: int) -> range:
    return range(0, len(value) - size + 1, size)
