"""Prefixes as UPDATEs and netlink carry them: short byte strings, the keys of big tables. Pure.

An ``Nlri`` is one byte of length and the whole address: 5 bytes for IPv4, 17 for IPv6, so the two
never meet in one table. The UPDATE's own form (RFC 4271 section 4.3) leaves trailing octets out;
for the lengths of blocks, /25 and longer, the two are the same bytes. A table of 100,000 prefixes
as ``ip_network`` objects takes 70 MB and 0.1 s merely to be hashed once; as bytes 5 MB and 2 ms.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from bgp.paths import Family, Prefix

Nlri = bytes

V4_BYTES = 5
"""An IPv4 Nlri's length; an IPv6 one has 17."""

_HOST_BITS = [0xFF >> (length & 7) if length & 7 else 0 for length in range(129)]
"""What of the last octet sent is beyond the prefix, by prefix length."""
_CLEAN = {bits: bytes(octet for octet in range(256) if not octet & bits) for bits in _HOST_BITS}
"""The last octets that have no host bits set."""


class BadNlri(ValueError):
    """Bytes that are not a sequence of prefixes."""


def nlri_of(prefix: Prefix) -> Nlri:
    """The key of a prefix."""
    return bytes((prefix.prefixlen,)) + prefix.network_address.packed


def prefix_of(nlri: Nlri) -> Prefix:
    """The prefix of a key. A new object each time: for people, and for what is rare."""
    if len(nlri) == V4_BYTES:
        return IPv4Network((int.from_bytes(nlri[1:], "big"), nlri[0]))
    return IPv6Network((int.from_bytes(nlri[1:], "big"), nlri[0]))


def family_of(nlri: Nlri) -> Family:
    """Its address family."""
    return Family.IPV4 if len(nlri) == V4_BYTES else Family.IPV6


def do_overlap(one: Nlri, other: Nlri) -> bool:
    """Whether one of two prefixes contains the other, or both are the same."""
    size = len(one)
    if size != len(other):
        return False
    beyond = (size - 1) * 8 - min(one[0], other[0])
    return not (int.from_bytes(one[1:], "big") ^ int.from_bytes(other[1:], "big")) >> beyond


def has_host_bits(lasts: bytes, length: int) -> bool:
    """Whether any of the last octets sent of prefixes of this length has bits beyond it."""
    return bool(lasts.translate(None, _CLEAN[_HOST_BITS[length]]))


def split(data: bytes, start: int, end: int, family: Family) -> tuple[list[Nlri], list[Nlri]]:
    """The prefixes of an NLRI field (RFC 4271 section 4.3), in order.

    Returns:
        (sound, with host bits set); the second with their host bits cleared.

    Raises:
        BadNlri: a length exceeds the family's, or leads out of the field.
    """
    if start == end:
        return [], []
    size = 4 if family is Family.IPV4 else 16
    length = data[start]
    sent = (length + 7) >> 3
    if sent == size and length <= size * 8:
        # As a router packs blocks: all of one length, and as long in the message as in a table.
        step = size + 1
        count, rest = divmod(end - start, step)
        is_even = not rest and data[start:end:step].count(length) == count
        if is_even and not has_host_bits(data[start + size : end : step], length):
            return [data[at : at + step] for at in range(start, end, step)], []
    return _split_any(data, start, end, size)


def _split_any(data: bytes, start: int, end: int, size: int) -> tuple[list[Nlri], list[Nlri]]:
    sound: list[Nlri] = []
    unsound: list[Nlri] = []
    offset = start
    while offset < end:
        length = data[offset]
        sent = (length + 7) >> 3
        stop = offset + 1 + sent
        if length > size * 8 or stop > end:
            raise BadNlri(f"a prefix of {length} bits at {offset} of {end}")
        nlri = data[offset:stop] + bytes(size - sent)
        beyond = nlri[sent] & _HOST_BITS[length] if sent else 0
        if beyond:
            unsound.append(nlri[:sent] + bytes((nlri[sent] - beyond,)) + nlri[sent + 1 :])
        else:
            sound.append(nlri)
        offset = stop
    return sound, unsound
