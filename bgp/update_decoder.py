"""UPDATEs as bytes (RFC 4271 section 4.3, RFC 4760) to our values. Pure.

Only what ExaBGP's own decoder has passed comes here: the tuned ExaBGP hands on UPDATEs whose
attributes it knows undecoded (exabgp_hotpath.py). So this reads exactly what a route is made of,
judges it by the same rules as what ExaBGP decoded (judgement.py), and is compared with ExaBGP's
decoder on whatever passes it (tests/property/test_exabgp_hotpath.py). Four-byte AS numbers only:
ExaBGP decodes the rest itself.

An attribute block is judged once and remembered: a table of 100,000 routes has a few hundred. What
several UPDATEs say becomes one event, the last word on each prefix, for at one route an UPDATE an
object each is what a table's arrival would be spent on. UPDATEs of one size in a row are read by
columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address
from typing import cast

from bgp.adj_rib import AttributeSets
from bgp.attribute_blocks import (
    EXTENDED_LENGTH,
    MP_REACH,
    MP_UNREACH,
    BlockParts,
    attributes_in,
    common_attributes,
    split_block,
    words_of,
)
from bgp.exabgp_commands import ProtocolError
from bgp.judgement import Attributes, judge_attributes, judge_next_hop
from bgp.likeness import Likeness
from bgp.nlri import BadNlri, Nlri, has_host_bits, prefix_of, split
from bgp.paths import (
    Address,
    EndOfRib,
    Event,
    Family,
    PathAttributes,
    Rejection,
    RouteBatch,
)

MAX_REMEMBERED = 20_000
"""Attribute blocks; beyond, all are forgotten and judged again as they come."""

MANY = 8
"""UPDATEs of one route or few, from which on they are read by columns."""
RUN_MOST = 256
RUN_PREFIXES = 8
"""In each of them, at most: a node's blocks."""
LOOK_AGAIN_BYTES = 4096
"""Where there is no such run, so much is read one by one."""

_IPV6 = b"\x00\x02\x01"
_FAMILIES = {b"\x00\x01\x01": Family.IPV4, _IPV6: Family.IPV6}
_SAMPLES = {Family.IPV4: prefix_of(bytes(5)), Family.IPV6: prefix_of(bytes(17))}
"""A prefix of each family, to judge next hops by."""

_ONE_GONE_V4 = 11
"""Length, two lengths, and a prefix of five octets."""
_ONE_GONE_V6 = 23
"""An MP_UNREACH_NLRI with one prefix of 17 octets; one more with an extended length."""
_HOST_OCTET = bytes(0 if length <= 24 else 0xFF >> (length - 24) for length in range(33))
"""What of the last octet is beyond an IPv4 prefix of 25 bits or more, by its length."""

Judged = PathAttributes | str
"""What routes with some attributes and next hop become; or why they are refused."""


class _Batch:
    """What one peer's UPDATEs have said so far."""

    __slots__ = ("rejected", "routes")

    def __init__(self) -> None:
        self.routes: dict[Nlri, PathAttributes | None] = {}
        self.rejected: list[Rejection] = []

    def withdraw(self, nlris: list[Nlri]) -> None:
        self.routes.update(dict.fromkeys(nlris))

    def refuse(self, nlris: list[Nlri], reason: str) -> None:
        self.withdraw(nlris)
        self.rejected += [Rejection(prefix_of(nlri), reason) for nlri in nlris]

    def announce(self, nlris: list[Nlri], judged: Judged) -> None:
        if isinstance(judged, str):
            self.refuse(nlris, judged)
        else:
            self.routes.update(dict.fromkeys(nlris, judged))

    def announce_each(self, nlris: list[Nlri], judged: Sequence[Judged | None]) -> bool:
        """Each by its own, if all of them can be; whether so."""
        if not judged or set(map(type, judged)) != {PathAttributes}:
            return False
        self.routes.update(zip(nlris, cast(Sequence[PathAttributes], judged), strict=True))
        return True

    def taken(self, peer: Address) -> RouteBatch | None:
        """What is there, as an event; it begins anew."""
        if not self.routes and not self.rejected:
            return None
        event = RouteBatch(peer, self.routes, tuple(self.rejected))
        self.routes, self.rejected = {}, []
        return event


class _Source:
    """What is remembered of one peer.

    Attributes:
        plain: of blocks without the attributes of RFC 4760, whose own next hop counts.
        reach: of blocks with an MP_REACH_NLRI: (what is before it, its head, what follows).
        reach_at: where in the block it was found the last time: a guess.
        likeness: of both, but for AS numbers.
    """

    __slots__ = ("is_ebgp", "likeness", "peer", "plain", "reach", "reach_at")

    def __init__(self, peer: Address, is_ebgp: bool, attributes: AttributeSets) -> None:
        self.peer, self.is_ebgp = peer, is_ebgp
        self.plain: dict[bytes, Judged] = {}
        self.reach: dict[tuple[bytes, ...], Judged] = {}
        self.reach_at: int | None = None
        self.likeness = Likeness(attributes)

    def clear(self) -> None:
        # Emptied, not replaced: the loop that fills a batch holds on to one of them.
        self.plain.clear()
        self.reach.clear()
        self.likeness.clear()


def _end_of_alike(raw: bytes, offset: int, step: int, places: Iterable[int]) -> int:
    """Where as many UPDATEs in a row end as are of this size and have the same octets in these
    places, the first of which are its size; ``offset`` when they are few."""
    count = min((len(raw) - offset) // step, RUN_MOST)
    # Where an UPDATE ends as it says, the next begins: all that are of one size do.
    for place in places:
        column = raw[offset + place : offset + count * step : step]
        count = len(column) - len(column.lstrip(column[:1]))
    return offset + count * step if count >= MANY else offset


class UpdateDecoder:
    """Remembers attribute blocks. One for all peers.

    Args:
        attributes: who gives the one object for each set of attributes.
    """

    def __init__(self, attributes: AttributeSets | None = None) -> None:
        self._sets = attributes or AttributeSets()
        self._blocks: dict[tuple[bool, bytes], Attributes | str] = {}
        self._sources: dict[tuple[Address, bool], _Source] = {}
        self._hops: dict[tuple[bytes, bool], Address | str] = {}
        """Of next hops as they came, and whether for IPv4: the one to use, or why there is none."""
        self._remembered = 0

    def decode(self, peer: Address, raw: bytes, *, is_ebgp: bool) -> Iterator[Event]:
        """The events of several UPDATEs, each after its length as in its header (19 + body).

        Raises:
            ProtocolError: a length leads out of the bytes; what came before it is told first.
        """
        batch = _Batch()
        try:
            for end in self._decode(self._source(peer, is_ebgp), raw, batch):
                if (event := batch.taken(peer)) is not None:
                    yield event
                yield end
        except BadNlri as error:
            if (event := batch.taken(peer)) is not None:
                yield event
            raise ProtocolError(f"{peer}: {error}") from None
        if (event := batch.taken(peer)) is not None:
            yield event

    def _source(self, peer: Address, is_ebgp: bool) -> _Source:
        # Found once a line: an address is hashed in Python.
        found = self._sources.get((peer, is_ebgp))
        if found is None:
            found = self._sources[peer, is_ebgp] = _Source(peer, is_ebgp, self._sets)
        return found

    def _decode(self, source: _Source, raw: bytes, batch: _Batch) -> Iterator[EndOfRib]:
        """Fills ``batch``; yields where an End-of-RIB parts what is before and after it."""
        plain = source.plain
        offset, size, next_run_at = 0, len(raw), 0
        while offset < size:
            if offset >= next_run_at:
                ended = self._run(source, raw, offset, batch)
                if ended > offset:
                    offset = ended
                    continue
                # Looking in vain for every one would take longer than reading it.
                next_run_at = offset + LOOK_AGAIN_BYTES
            if size - offset < 6:
                raise BadNlri(f"{size - offset} bytes left at {offset}")
            end = offset + (raw[offset] << 8 | raw[offset + 1]) - 17
            if end > size or end < offset + 6:
                raise BadNlri(f"an UPDATE of {end - offset} bytes at {offset}")
            # A cluster's blocks: attributes, and prefixes of /25 or longer.
            stop = offset + 6 + (raw[offset + 4] << 8 | raw[offset + 5])
            if stop + 5 <= end and not raw[offset + 2] and not raw[offset + 3]:
                block = raw[offset + 6 : stop]
                judged = plain.get(block)
                if judged is None:
                    judged = self._new_plain(source, block)
                length = raw[stop]
                if judged.__class__ is PathAttributes and 25 <= length <= 32:
                    if stop + 5 == end:
                        if not raw[end - 1] & _HOST_OCTET[length]:
                            batch.routes[raw[stop:end]] = judged
                            offset = end
                            continue
                    elif not (end - stop) % 5:
                        nlris, odd = split(raw, stop, end, Family.IPV4)
                        if not odd:
                            batch.announce(nlris, judged)
                            offset = end
                            continue
            elif end - offset == _ONE_GONE_V4 and raw[offset + 2 : offset + 4] == b"\0\5":
                # Its withdrawal: no attributes.
                length = raw[offset + 4]
                is_host = raw[offset + 8] & _HOST_OCTET[length] if 25 <= length <= 32 else 1
                if not is_host and raw[end - 2 : end] == b"\0\0":
                    batch.routes[raw[offset + 4 : offset + 9]] = None
                    offset = end
                    continue
            elif (
                stop == end
                and not raw[offset + 2]
                and not raw[offset + 3]
                and self._one_v6(source, raw[offset + 6 : stop], batch)
            ):
                offset = end
                continue
            family = self._update(source, raw[offset + 2 : end], batch)
            if family is not None:
                yield EndOfRib(source.peer, family)
            offset = end

    def _run(self, source: _Source, raw: bytes, offset: int, batch: _Batch) -> int:
        """A cluster's blocks, one or few an UPDATE, as many in a row as are of one size with
        attributes of one size: column by column, not one by one, in a third of the time. Returns
        where those end; with whatever else there is it is none, or ends."""
        if offset + 6 > len(raw):
            return offset
        step = (raw[offset] << 8 | raw[offset + 1]) - 17
        stop = 6 + (raw[offset + 4] << 8 | raw[offset + 5])
        if step * MANY > len(raw) - offset or raw[offset + 2] or raw[offset + 3]:
            return offset
        prefixes, rest = divmod(step - stop, 5)
        if not rest and 1 <= prefixes <= RUN_PREFIXES:
            return self._run_v4(source, raw, offset, step, prefixes, batch)
        return self._run_v6(source, raw, offset, step, batch) if stop == step else offset

    def _run_v4(
        self, source: _Source, raw: bytes, offset: int, step: int, prefixes: int, batch: _Batch
    ) -> int:
        stop = step - 5 * prefixes
        places = range(stop, step, 5)
        end = _end_of_alike(raw, offset, step, (0, 1, 2, 3, 4, 5, *places))
        for place in places:
            length = raw[offset + place]
            lasts = raw[offset + place + 4 : end : step]
            if not 25 <= length <= 32 or has_host_bits(lasts, length):
                return offset
        starts = range(offset, end, step)
        blocks = [raw[at + 6 : at + stop] for at in starts]
        plain = source.plain
        judged = list(map(plain.get, blocks))
        if None in judged:
            judged = [
                plain.get(each) or self._new_plain(source, each) if known is None else known
                for each, known in zip(blocks, judged, strict=True)
            ]
        if prefixes == 1:
            nlris = [raw[at : at + 5] for at in range(offset + stop, end, step)]
        else:
            nlris = [raw[at + place : at + place + 5] for at in starts for place in places]
            judged = [each for each in judged for _ in places]
        return end if batch.announce_each(nlris, judged) else offset

    def _run_v6(self, source: _Source, raw: bytes, offset: int, step: int, batch: _Batch) -> int:
        place = 6 + (step if source.reach_at is None else source.reach_at)
        if place + 9 > step or raw[offset + place + 1] != MP_REACH:
            return offset
        if raw[offset + place] & EXTENDED_LENGTH:
            start, size = place + 4, raw[offset + place + 2] << 8 | raw[offset + place + 3]
        else:
            start, size = place + 3, raw[offset + place + 2]
        stop = start + size
        if stop > step or stop < start + 5:
            return offset
        nlri_at = start + 5 + raw[offset + start + 3]
        if nlri_at + 17 != stop:
            return offset
        fixed = (0, 1, 2, 3, 4, 5, place, place + 1, place + 2, place + 3, start + 3, nlri_at)
        end = _end_of_alike(raw, offset, step, fixed)
        length = raw[offset + nlri_at]
        if not 121 <= length <= 128 or has_host_bits(raw[offset + stop - 1 : end : step], length):
            return offset
        keys = [
            (raw[at + 6 : at + place], raw[at + start : at + nlri_at], raw[at + stop : at + step])
            for at in range(offset, end, step)
        ]
        known = source.reach
        judged = list(map(known.get, keys))
        if None in judged:
            judged = [
                known.get(key) or self._new_reach(source, key) if each is None else each
                for key, each in zip(keys, judged, strict=True)
            ]
        nlris = [raw[at : at + 17] for at in range(offset + nlri_at, end, step)]
        return end if batch.announce_each(nlris, judged) else offset

    def _new_plain(self, source: _Source, block: bytes) -> Judged | None:
        """What routes with attributes that are met for the first time become; None where it takes
        a longer look. Every node's block has a path of its own."""
        likeness = source.likeness
        judged: Judged | None = likeness.find(block)
        if judged is None:
            quick = common_attributes((block,), source.is_ebgp)
            if quick is None or not quick[1]:
                return None
            judged = self._judged(source.peer, quick[0], quick[1], Family.IPV4)
            if not isinstance(judged, str):
                likeness.learn(judged, block)
        self._remember()
        source.plain[block] = judged
        return judged

    def _new_reach(self, source: _Source, key: tuple[bytes, bytes, bytes]) -> Judged | None:
        """The same of attributes around an MP_REACH_NLRI."""
        before, head, after = key
        likeness = source.likeness
        judged: Judged | None = likeness.find(before, head, after)
        if judged is None:
            quick = (
                common_attributes((before, after), source.is_ebgp) if head[:3] == _IPV6 else None
            )
            if quick is None:
                return None
            judged = self._judged(source.peer, quick[0], head[4:-1], Family.IPV6)
            if not isinstance(judged, str):
                likeness.learn(judged, before, head, after)
        self._remember()
        source.reach[key] = judged
        return judged

    def _one_v6(self, source: _Source, block: bytes, batch: _Batch) -> bool:
        """An UPDATE of nothing but these attributes, when it announces by attributes that are known
        or withdraws one prefix; whether it was that."""
        if len(block) in (_ONE_GONE_V6, _ONE_GONE_V6 + 1) and block[1] == MP_UNREACH:
            place = len(block) - 17
            length = block[place]
            is_long = bool(block[0] & EXTENDED_LENGTH)
            said = block[2] << 8 | block[3] if is_long else block[2]
            if (
                said == 20
                and is_long == (len(block) != _ONE_GONE_V6)
                and block[place - 3 : place] == b"\0\2\1"
                and 121 <= length <= 128
                and not block[-1] & _HOST_OCTET[length - 96]
            ):
                batch.routes[block[place:]] = None
                return True
            return False
        at = len(block) if source.reach_at is None else source.reach_at
        if at + 9 > len(block) or block[at + 1] != MP_REACH:
            return False
        if block[at] & EXTENDED_LENGTH:
            start, size = at + 4, block[at + 2] << 8 | block[at + 3]
        else:
            start, size = at + 3, block[at + 2]
        stop = start + size
        nlris_at = start + 5 + block[start + 3]
        if stop > len(block) or nlris_at > stop:
            return False
        # A guess: what is before it is compared as a whole with what was found to be whole
        # attributes, so that a wrong one finds nothing.
        head = block[start:nlris_at]
        key = block[:at], head, block[stop:]
        judged = source.reach.get(key) or self._new_reach(source, key)
        if judged is None:
            return False
        length = block[nlris_at] if nlris_at < stop else 0
        if (
            stop - nlris_at == 17
            and 121 <= length <= 128
            and not isinstance(judged, str)
            and not block[stop - 1] & _HOST_OCTET[length - 96]
        ):
            batch.routes[block[nlris_at:stop]] = judged
            return True
        nlris, unsound = split(block, nlris_at, stop, _FAMILIES[head[:3]])
        batch.refuse(unsound, "host-bits")
        batch.announce(nlris, judged)
        return True

    def _update(self, source: _Source, body: bytes, batch: _Batch) -> Family | None:
        """One UPDATE into ``batch``; the family whose End-of-RIB it is."""
        start = 4 + int.from_bytes(body[:2], "big")
        end = start + int.from_bytes(body[start - 2 : start], "big")
        if end > len(body):
            raise BadNlri(f"an UPDATE whose fields exceed its {len(body)} bytes")
        gone, unsound = split(body, 2, start - 2, Family.IPV4)
        announced, odd = split(body, end, len(body), Family.IPV4)
        block = body[start:end]
        if not (block or gone or announced or unsound or odd):
            return Family.IPV4
        found = source.plain.get(block)
        reach: tuple[Judged, list[Nlri], list[Nlri]] | None = None
        if found is None:
            parts = split_block(block)
            if parts.unreach is not None:
                family = _FAMILIES.get(parts.unreach[:3])
                if family is None:
                    batch.rejected.append(Rejection(None, "unknown-family"))
                    return None
                more, worse = split(parts.unreach, 3, len(parts.unreach), family)
                if not any((gone, unsound, more, worse, announced, odd, parts.plain)):
                    return family
                gone, unsound = gone + more, unsound + worse
            attributes = self._attributes_of(parts.plain, source.is_ebgp)
            if parts.reach is not None:
                reach = self._reached(source, parts, attributes)
                if reach is None:
                    batch.rejected.append(Rejection(None, "unknown-family"))
                    return None
            hops = next((v for kind, v in attributes_in(parts.plain) if kind == 3), b"")
            found = self._judged(source.peer, attributes, hops, Family.IPV4)
            if parts.reach is None and parts.unreach is None:
                self._remember()
                source.plain[block] = found
        # Withdrawals first: a prefix in both fields is announced (RFC 4271 section 4.3).
        batch.withdraw(gone)
        for nlris in (unsound, odd, reach[2] if reach else []):
            batch.refuse(nlris, "host-bits")
        batch.announce(announced, found)
        if reach is not None:
            batch.announce(reach[1], reach[0])
        return None

    def _reached(
        self, source: _Source, parts: BlockParts, attributes: Attributes | str
    ) -> tuple[Judged, list[Nlri], list[Nlri]] | None:
        """What MP_REACH_NLRI says: (judged, prefixes, prefixes with host bits); None: of a family
        that we do not know."""
        reach = parts.reach or b""
        family = _FAMILIES.get(reach[:3])
        if family is None or len(reach) < 5 or len(reach) < 5 + reach[3]:
            return None
        head = reach[: 5 + reach[3]]
        judged = self._judged(source.peer, attributes, head[4:-1], family)
        if parts.unreach is None:
            self._remember()
            source.reach[parts.before, head, parts.after] = judged
            source.reach_at = len(parts.before)
        return (judged, *split(reach, len(head), len(reach), family))

    def _attributes_of(self, block: bytes, is_ebgp: bool) -> Attributes | str:
        found = self._blocks.get((is_ebgp, block))
        if found is None:
            found = judge_attributes(words_of(block), is_ebgp=is_ebgp)
            self._remember()
            self._blocks[is_ebgp, block] = found
        return found

    def _judged(
        self, peer: Address, attributes: Attributes | str, hops: bytes, family: Family
    ) -> Judged:
        if isinstance(attributes, str):
            return attributes
        key = hops, family is Family.IPV4
        hop = self._hops.get(key)
        if hop is None:
            # A router has one next hop for all its paths, or few.
            size = 4 if len(hops) == 4 else 16
            texts: list[object] = [
                str(ip_address(hops[at : at + size]))
                for at in range(0, len(hops), size)
                if at + size <= len(hops)
            ]
            hop = self._hops[key] = judge_next_hop(texts or [None], _SAMPLES[family])
            self._remember()
        return hop if isinstance(hop, str) else self._sets.judged(peer, hop, attributes)

    def _remember(self) -> None:
        self._remembered += 1
        if self._remembered > MAX_REMEMBERED:
            self._remembered = 0
            self._blocks.clear()
            self._hops.clear()
            for source in self._sources.values():
                source.clear()
