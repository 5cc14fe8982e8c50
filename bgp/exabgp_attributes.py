"""RFC 7606 where ExaBGP 5.0.15 reads too leniently or refuses too hard. Loaded by exabgp_tuned.py.

ExaBGP's decoder hands on an ORIGIN of two octets as a sound one, and ends the session for an
ORIGINATOR_ID of three; tests/property/test_exabgp_attributes.py has the whole list. Here the path
attributes of an UPDATE are looked at before it decodes them: what RFC 7606 calls malformed is taken
out, and the UPDATE is marked as ExaBGP itself marks one, to be treated as a withdrawal of its
prefixes or as having lost an attribute. What it decodes is then sound, and what is left to it is
the rest: framing (sections 3 j and 4), the multiprotocol attributes, and types that we do not know.

It costs nothing on the hot path: an attribute block that has a mark is never *known good*
(exabgp_hotpath.py), and one that is known good is not looked at again.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

_MODULE = "exabgp.bgp.message.update.attribute.attributes"

FINGERPRINTS = {
    f"{_MODULE}:Attributes.parse": "5c6fd3aa6a92f530",
    f"{_MODULE}:Attributes._parse_one": "3a23a3ce12cfa67b",
    f"{_MODULE}:Attributes.unpack": "c458a61a25563c46",
    f"{_MODULE}:Attributes.add": "9439e3466cf06cdc",
    "exabgp.reactor.protocol:Protocol.read_message": "1266df3f50c763ff",
}
"""module:function to the first 16 digits of the SHA-256 of its source text."""

_EXTENDED_LENGTH = 0x10
_OPTIONAL_AND_TRANSITIVE = 0xC0
_WELL_KNOWN, _OPTIONAL, _OPTIONAL_TRANSITIVE = 0x40, 0x80, 0xC0
_SEGMENT_TYPES = frozenset({1, 2, 3, 4})
"""AS_SET, AS_SEQUENCE, and the confederation's of RFC 5065."""


class Verdict(NamedTuple):
    """On the path attributes of one UPDATE.

    Attributes:
        kept: those that are sound, and all that is not judged here.
        is_withdrawal: "treat-as-withdraw" (RFC 7606 section 2).
        has_lost: "attribute discard": one of them is not in ``kept``.
    """

    kept: bytes
    is_withdrawal: bool
    has_lost: bool


class _Rule(NamedTuple):
    """Of one attribute: its flags, what a sound value is, and whether an unsound one costs the
    routes or the attribute alone; ``is_internal``: from another AS it costs the attribute alone."""

    flags: int
    is_sound: Callable[[bytes, bool], bool]
    costs_routes: bool = True
    is_internal: bool = False


def _of_size(size: int) -> Callable[[bytes, bool], bool]:
    return lambda value, _asn4: len(value) == size


def _list_of(size: int) -> Callable[[bytes, bool], bool]:
    return lambda value, _asn4: len(value) > 0 and len(value) % size == 0


def _is_origin(value: bytes, _asn4: bool) -> bool:
    return len(value) == 1 and value[0] <= 2


def _is_as_path(value: bytes, asn4: bool) -> bool:
    """Whole segments of known types, none empty (RFC 7606 section 7.2)."""
    size, offset, width = len(value), 0, 4 if asn4 else 2
    while offset < size:
        if offset + 2 > size or value[offset] not in _SEGMENT_TYPES or not value[offset + 1]:
            return False
        offset += 2 + width * value[offset + 1]
    return offset == size


def _is_aggregator(value: bytes, asn4: bool) -> bool:
    return len(value) == (8 if asn4 else 6)


_RULES = {
    1: _Rule(_WELL_KNOWN, _is_origin),  # section 7.1
    2: _Rule(_WELL_KNOWN, _is_as_path),  # 7.2
    3: _Rule(_WELL_KNOWN, _of_size(4)),  # 7.3
    4: _Rule(_OPTIONAL, _of_size(4)),  # 7.4
    5: _Rule(_WELL_KNOWN, _of_size(4), is_internal=True),  # 7.5
    6: _Rule(_WELL_KNOWN, _of_size(0), costs_routes=False),  # 7.6
    7: _Rule(_OPTIONAL_TRANSITIVE, _is_aggregator, costs_routes=False),  # 7.7
    8: _Rule(_OPTIONAL_TRANSITIVE, _list_of(4)),  # 7.8
    9: _Rule(_OPTIONAL, _of_size(4), is_internal=True),  # 7.9
    10: _Rule(_OPTIONAL, _list_of(4), is_internal=True),  # 7.10
    16: _Rule(_OPTIONAL_TRANSITIVE, _list_of(8)),  # 7.14
    25: _Rule(_OPTIONAL_TRANSITIVE, _list_of(20)),  # 7.15
    32: _Rule(_OPTIONAL_TRANSITIVE, _list_of(12)),  # RFC 8092 section 6
    35: _Rule(_OPTIONAL_TRANSITIVE, _of_size(4)),  # RFC 9234 section 5
}
_FOUR_OCTET_TYPES = frozenset({17, 18})
"""AS4_PATH and AS4_AGGREGATOR: between speakers of four octets they mean nothing, and are discarded
(RFC 6793 section 6). ExaBGP would take the path for the real one."""


def judge(block: bytes, *, asn4: bool, is_ebgp: bool) -> Verdict:
    """The attributes of one UPDATE by RFC 7606 sections 3 and 7."""
    kept, is_withdrawal, has_lost = b"", False, False
    offset, size = 0, len(block)
    dropped: set[int] = set()
    seen: set[int] = set()
    while offset < size:
        head = 4 if block[offset] & _EXTENDED_LENGTH else 3
        if offset + head > size:
            break
        end = offset + head + int.from_bytes(block[offset + 2 : offset + head], "big")
        if end > size:
            break
        kind, value, whole = block[offset + 1], block[offset + head : end], block[offset:end]
        flags, offset = block[offset], end
        rule = _RULES.get(kind)
        if kind in seen:
            # Of several the first counts (section 3 g), also where it was no good.
            if kind not in dropped:
                kept += whole
            continue
        seen.add(kind)
        if asn4 and kind in _FOUR_OCTET_TYPES:
            has_lost = True
        elif rule is None:
            kept += whole
            continue
        elif (flags ^ rule.flags) & _OPTIONAL_AND_TRANSITIVE:
            is_withdrawal = True  # section 3 c
        elif rule.is_sound(value, asn4):
            kept += whole
            continue
        elif rule.costs_routes and not (rule.is_internal and is_ebgp):
            is_withdrawal = True
        else:
            has_lost = True
        dropped.add(kind)
    # What leads out of the block is ExaBGP's to refuse (section 4).
    return Verdict(kept + block[offset:], is_withdrawal, has_lost)


def install() -> None:
    """Puts ``judge`` before the decoder. Called once, with the fingerprints checked."""
    module = importlib.import_module(_MODULE)
    incoming = importlib.import_module("exabgp.bgp.message.direction").Direction.IN
    original = module.Attributes.parse

    def parse(self: Any, data: bytes, direction: Any, negotiated: Any) -> Any:
        if direction != incoming or negotiated is None:
            return original(self, data, direction, negotiated)
        is_ebgp = negotiated.local_as != negotiated.peer_as
        verdict = judge(bytes(data), asn4=bool(negotiated.asn4), is_ebgp=is_ebgp)
        found = original(self, verdict.kept, direction, negotiated)
        if verdict.is_withdrawal:
            found.add(module.TreatAsWithdraw())
        if verdict.has_lost:
            found.add(module.Discard())
        return found

    module.Attributes.parse = parse
