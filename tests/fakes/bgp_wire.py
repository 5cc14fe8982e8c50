"""BGP messages as bytes, well made and otherwise (RFC 4271 section 4, RFC 4760)."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

MARKER = b"\xff" * 16
KEEPALIVE = MARKER + b"\x00\x13\x04"
END_OF_RIB = bytes(4)
END_OF_RIB_V6 = bytes.fromhex("00000006800f03000201")


def message(kind: int, body: bytes) -> bytes:
    """One message with its header."""
    return MARKER + (19 + len(body)).to_bytes(2, "big") + bytes([kind]) + body


def attribute(kind: int, value: bytes, flags: int = 0x40) -> bytes:
    """One path attribute; the length is extended where it must be."""
    if len(value) > 255:
        return bytes([flags | 0x10, kind]) + len(value).to_bytes(2, "big") + value
    return bytes([flags, kind, len(value)]) + value


def nlri(*prefixes: str) -> bytes:
    """Prefixes of either family as they stand in NLRI fields."""
    found = b""
    for each in map(ip_network, prefixes):
        size = (each.prefixlen + 7) // 8
        found += bytes([each.prefixlen]) + each.network_address.packed[:size]
    return found


def as_path(*asns: int, size: int = 4) -> bytes:
    """AS_PATH of one AS_SEQUENCE."""
    if not asns:
        return attribute(2, b"")
    return attribute(2, bytes([2, len(asns)]) + b"".join(a.to_bytes(size, "big") for a in asns))


def path_attributes(*asns: int, next_hop: str | None = "192.0.2.2", more: bytes = b"") -> bytes:
    """ORIGIN IGP, AS_PATH, NEXT_HOP and whatever else."""
    hop = b"" if next_hop is None else attribute(3, ip_address(next_hop).packed)
    return attribute(1, b"\x00") + as_path(*asns) + hop + more


def update(announced: bytes = b"", attributes: bytes = b"", withdrawn: bytes = b"") -> bytes:
    """The body of an UPDATE."""
    return (
        len(withdrawn).to_bytes(2, "big")
        + withdrawn
        + len(attributes).to_bytes(2, "big")
        + attributes
        + announced
    )


def reach(next_hops: bytes, prefixes: bytes, family: bytes = b"\x00\x02\x01") -> bytes:
    """MP_REACH_NLRI."""
    return attribute(14, family + bytes([len(next_hops)]) + next_hops + b"\0" + prefixes, 0x80)


def unreach(prefixes: bytes, family: bytes = b"\x00\x02\x01") -> bytes:
    """MP_UNREACH_NLRI."""
    return attribute(15, family + prefixes, 0x80)
