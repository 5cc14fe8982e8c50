"""Blocks of path attributes as bytes (RFC 4271 section 4.3) to the words that judge them. Pure.

A block is what an UPDATE says of all its prefixes: attributes one after the other. Most are of the
plain few, which are read and judged in one go; for all others there are ExaBGP's words, and
judgement.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from struct import unpack_from
from typing import Any

from bgp.judgement import Attributes
from bgp.nlri import BadNlri
from bgp.paths import Origin

EXTENDED_LENGTH = 0x10
MP_REACH, MP_UNREACH = 14, 15
_SEGMENTS = {1: "as-set", 2: "as-sequence"}
_ORIGINS = {b"\0": Origin.IGP, b"\1": Origin.EGP, b"\2": Origin.INCOMPLETE}
_SEQUENCE_OF = [bytes((2, count)) for count in range(256)]
"""The head of an AS_SEQUENCE of so many."""


def common_attributes(parts: Iterable[bytes], is_ebgp: bool) -> tuple[Attributes, bytes] | None:
    """The attributes in ``parts``, each whole ones, and the NEXT_HOP among them or nothing; where
    they are the plain few that most paths have, and sound. A fifth of what ``split_block``,
    ``words_of`` and ``judge_attributes`` take; their words on all others are the last ones."""
    origin: Origin | None = None
    as_path: tuple[int, ...] = ()
    hop = b""
    med = local_pref = None
    for part in parts:
        offset, size = 0, len(part)
        while offset < size:
            if offset + 3 > size or part[offset] & EXTENDED_LENGTH:
                return None
            kind = part[offset + 1]
            start = offset + 3
            offset = start + part[offset + 2]
            value = part[start:offset]
            if kind == 2:
                # One AS_SEQUENCE, and not an empty one.
                count = len(value) // 4
                if as_path or not count or value[:2] != _SEQUENCE_OF[count & 0xFF]:
                    return None
                if len(value) != 2 + 4 * count:
                    return None
                as_path = unpack_from(f">{count}I", value, 2)
            elif kind == 1:
                if origin is not None:
                    return None
                origin = _ORIGINS.get(value)
            elif kind == 3:
                if hop or not value:
                    return None
                hop = value
            elif kind in (4, 5) and len(value) == 4:
                if kind == 4 and med is None:
                    med = int.from_bytes(value, "big")
                elif kind == 5 and local_pref is None:
                    local_pref = int.from_bytes(value, "big")
                else:
                    return None
            else:
                return None
        if offset != size:
            return None
    if origin is None or not as_path:
        return None
    return Attributes(origin, as_path, len(as_path), med, local_pref, ()), hop


def numbers_of(part: bytes) -> tuple[int, int] | None:
    """Where the AS numbers of the AS_PATH in ``part`` are, which ``common_attributes`` has read:
    one AS_SEQUENCE. None: it has none."""
    offset, size = 0, len(part)
    while offset < size:
        start = offset + 3
        end = start + part[offset + 2]
        if part[offset + 1] == 2:
            return start + 2, end
        offset = end
    return None


def attributes_in(block: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each path attribute."""
    offset, size = 0, len(block)
    while offset < size:
        head = 4 if block[offset] & EXTENDED_LENGTH else 3
        if offset + head > size:
            raise BadNlri("a path attribute cut short")
        end = offset + head + int.from_bytes(block[offset + 2 : offset + head], "big")
        if end > size:
            raise BadNlri("a path attribute cut short")
        yield block[offset + 1], block[offset + head : end]
        offset = end


@dataclass(frozen=True, slots=True)
class BlockParts:
    """An attribute block: without the two of RFC 4760 (``plain``), those two, and what stands
    before and after MP_REACH_NLRI."""

    plain: bytes
    reach: bytes | None
    unreach: bytes | None
    before: bytes
    after: bytes


def split_block(block: bytes) -> BlockParts:
    plain = before = after = b""
    multiprotocol: dict[int, bytes] = {}
    offset = 0
    for kind, value in attributes_in(block):
        end = offset + (4 if block[offset] & EXTENDED_LENGTH else 3) + len(value)
        if kind in (MP_REACH, MP_UNREACH):
            multiprotocol[kind] = value
            if kind == MP_REACH:
                before, after = block[:offset], block[end:]
        else:
            plain += block[offset:end]
        offset = end
    return BlockParts(
        plain, multiprotocol.get(MP_REACH), multiprotocol.get(MP_UNREACH), before, after
    )


def words_of(block: bytes) -> dict[str, Any]:
    """The attributes in the words of ExaBGP's JSON, which is what judge_attributes reads."""
    words: dict[str, Any] = {}
    for kind, value in attributes_in(block):
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
            # Each once (RFC 8092 section 5), as ExaBGP has them.
            words["large-community"] = [list(each) for each in sorted({*_numbers(value, 4, 3)})]
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
