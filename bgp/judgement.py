"""From what a peer claims to a Path, or to the reason why the claim is unusable. Pure.

The values come as ExaBGP's JSON spells them; nothing about their types is taken for granted. Each
judgement is of one route, so that one bad route does not cost its neighbours (RFC 7606).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

from bgp.paths import Address, Family, Origin, Path, Prefix, Rejection

NEXT_HOP_LINK_LOCAL = "next-hop-link-local"

_MAX_ASN = 2**32 - 1
_WELL_KNOWN_COMMUNITIES = {
    "no-export": "65535:65281",
    "no-advertise": "65535:65282",
    "no-export-subconfed": "65535:65283",
    "no-peer": "65535:65284",
    "blackhole": "65535:666",
}
_ORIGINS = {"igp": Origin.IGP, "egp": Origin.EGP, "incomplete": Origin.INCOMPLETE}


@dataclass(frozen=True, slots=True)
class Attributes:
    """The path attributes we use (RFC 4271 section 5)."""

    origin: Origin
    as_path: tuple[int, ...]
    as_path_length: int
    med: int | None
    local_pref: int | None
    communities: tuple[str, ...]
    large_communities: tuple[str, ...] = ()
    originator_id: IPv4Address | None = None
    cluster_list: tuple[IPv4Address, ...] = ()


def judge_path(
    peer: Address, prefix: Prefix, next_hops: list[object], attributes: Attributes
) -> Path | Rejection:
    """A Path by the first usable of ``next_hops`` (at least one), or why none is usable."""
    next_hop = judge_next_hop(next_hops, prefix)
    if isinstance(next_hop, str):
        return Rejection(prefix, next_hop)
    return Path(
        peer=peer,
        prefix=prefix,
        next_hop=next_hop,
        as_path=attributes.as_path,
        as_path_length=attributes.as_path_length,
        origin=attributes.origin,
        med=attributes.med,
        local_pref=attributes.local_pref,
        communities=attributes.communities,
        large_communities=attributes.large_communities,
        originator_id=attributes.originator_id,
        cluster_list=attributes.cluster_list,
    )


def judge_next_hop(next_hops: list[object], prefix: Prefix) -> Address | str:
    """The first usable of ``next_hops`` (at least one) for a prefix of this family, or the reason
    token of why none is."""
    reasons = []
    for candidate in next_hops:
        next_hop = _next_hop(candidate, prefix)
        if not isinstance(next_hop, str):
            return next_hop
        reasons.append(next_hop)
    # What is wrong with the address that should have been usable says more than the link-local's.
    telling = [reason for reason in reasons if reason != NEXT_HOP_LINK_LOCAL]
    return (telling or reasons)[0]


def _next_hop(value: object, prefix: Prefix) -> Address | str:
    """A next hop a router could have (RFC 4271 section 6.3), or the reason it is none."""
    if value in (None, "", "null", "no-nexthop"):
        return "no-next-hop"
    if not isinstance(value, str):
        return "next-hop-malformed"
    try:
        address = ip_address(value)
    except ValueError:
        return "next-hop-malformed"
    if getattr(address, "scope_id", None) is not None:
        return "next-hop-malformed"
    if address.version == 4 and prefix.version == 6:
        # The reverse is RFC 8950, and nothing that was not negotiated: in a plain UPDATE an IPv4
        # prefix has no room for such a next hop.
        return "next-hop-family"
    for reason, is_bad in (
        ("next-hop-unspecified", address.is_unspecified),
        ("next-hop-loopback", address.is_loopback),
        ("next-hop-multicast", address.is_multicast),
        (NEXT_HOP_LINK_LOCAL, address.is_link_local),
        ("next-hop-reserved", isinstance(address, IPv4Address) and address.is_reserved),
        ("next-hop-this-network", isinstance(address, IPv4Address) and int(address) < 2**24),
    ):
        if is_bad:
            return reason
    return address


def judge_attributes(raw: dict[str, Any], *, is_ebgp: bool) -> Attributes | str:
    """The attributes, or the reason token of the first that makes the routes unusable."""
    if any(_is_unknown_well_known(name) for name in raw):
        # RFC 4271 section 6.3 would end the session; ExaBGP passes it on. RFC 7606 spirit.
        return "well-known-unknown"
    if "origin" not in raw:
        return "origin-missing"
    origin = _ORIGINS.get(str(raw["origin"]).lower())
    if origin is None:
        return "origin-malformed"
    path = _as_path(raw.get("as-path"))
    if isinstance(path, str):
        return path
    as_path, length = path
    if is_ebgp and not as_path:
        # ExaBGP leaves an empty AS_PATH out; within one AS that is an ordinary route.
        return "as-path-missing"
    med = raw.get("med")
    if med is not None and not _is_uint32(med):
        return "med-malformed"
    local_pref = raw.get("local-preference")
    if local_pref is not None and not _is_uint32(local_pref):
        return "local-preference-malformed"
    communities = _communities(raw.get("community", []))
    if communities is None:
        return "community-malformed"
    large_communities = _large_communities(raw.get("large-community", []))
    if large_communities is None:
        return "large-community-malformed"
    originator_id = _router_id(raw["originator-id"]) if "originator-id" in raw else None
    if originator_id is None and "originator-id" in raw:
        return "originator-id-malformed"
    cluster_list = _cluster_list(raw.get("cluster-list", []))
    if cluster_list is None:
        return "cluster-list-malformed"
    if is_ebgp:
        # Attributes of one AS's inside: from another AS they are ignored (RFC 4456 section 8).
        originator_id, cluster_list = None, ()
    return Attributes(
        origin,
        as_path,
        length,
        med,
        local_pref,
        communities,
        large_communities,
        originator_id,
        cluster_list,
    )


def _is_unknown_well_known(name: str) -> bool:
    """Of an attribute that ExaBGP has no word for, ``attribute-0xTYPE-0xFLAGS``: not optional."""
    parts = name.split("-0x")
    if len(parts) != 3 or parts[0] != "attribute":
        return False
    try:
        return not int(parts[2], 16) & 0x80
    except ValueError:
        return False


def _as_path(value: object) -> tuple[tuple[int, ...], int] | str:
    """(flat AS numbers, length) where an AS_SET counts once; RFC 4271 section 9.1.2.2 a."""
    if value is None:
        return (), 0
    if not isinstance(value, dict):
        return "as-path-malformed"
    flat: list[int] = []
    length = 0
    try:
        segments = [value[key] for key in sorted(value, key=int)]
    except ValueError:
        return "as-path-malformed"
    for segment in segments:
        if not isinstance(segment, dict) or not isinstance(segment.get("value"), list):
            return "as-path-malformed"
        numbers = segment["value"]
        if not all(_is_uint32(number) for number in numbers):
            return "as-path-malformed"
        element = segment.get("element")
        if element == "as-set":
            length += 1 if numbers else 0
        elif element == "as-sequence":
            length += len(numbers)
        else:
            return "as-path-malformed"
        flat.extend(numbers)
    return tuple(flat), length


def _communities(value: object) -> tuple[str, ...] | None:
    """``a:b`` strings from [[a, b]] (events) or ["a:b", "no-export"] (dumps); None if neither."""
    if not isinstance(value, list):
        return None
    communities = []
    for entry in value:
        if isinstance(entry, list):
            halves = entry
        elif isinstance(entry, str):
            text = _WELL_KNOWN_COMMUNITIES.get(entry, entry)
            halves = [int(h) if h.isascii() and h.isdigit() else None for h in text.split(":")]
        else:
            return None
        if len(halves) != 2 or not all(_is_uint16(half) for half in halves):
            return None
        communities.append(f"{halves[0]}:{halves[1]}")
    return tuple(communities)


def _large_communities(value: object) -> tuple[str, ...] | None:
    """``a:b:c`` strings from [[a, b, c]] (events) or ["a:b:c"] (dumps); None if neither."""
    if not isinstance(value, list):
        return None
    communities = []
    for entry in value:
        if isinstance(entry, str):
            thirds = [int(t) if t.isascii() and t.isdigit() else None for t in entry.split(":")]
        else:
            thirds = entry if isinstance(entry, list) else []
        if len(thirds) != 3 or not all(_is_uint32(third) for third in thirds):
            return None
        communities.append(":".join(map(str, thirds)))
    return tuple(communities)


def _router_id(value: object) -> IPv4Address | None:
    try:
        return IPv4Address(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _cluster_list(value: object) -> tuple[IPv4Address, ...] | None:
    clusters = [_router_id(entry) for entry in value] if isinstance(value, list) else [None]
    known = tuple(cluster for cluster in clusters if cluster is not None)
    return known if len(known) == len(clusters) else None


def nlri_of(entry: object) -> object:
    """The prefix of an NLRI entry: {"nlri": "10.0.0.0/8"}, or the bare string (compact form)."""
    return entry.get("nlri") if isinstance(entry, dict) else entry


def judge_prefix(value: object, family: Family | None) -> Prefix | Rejection:
    """The prefix; a Rejection when it is none, is not of ``family``, or has host bits."""
    if family is None:
        return Rejection(None, "unknown-family")
    if not isinstance(value, str):
        return Rejection(None, "prefix-malformed")
    try:
        loose = ip_network(value, strict=False)
    except ValueError:
        return Rejection(None, "prefix-malformed")
    if Family.of(loose) is not family or "%" in value:
        return Rejection(None, "prefix-family")
    try:
        return ip_network(value)
    except ValueError:
        return Rejection(loose, "host-bits")


def _is_uint32(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_ASN


def _is_uint16(value: object) -> bool:
    return type(value) is int and 0 <= value <= 0xFFFF
