"""Juniper Junos, as ``set`` commands."""

from __future__ import annotations

from routing.torconfig.side import MAX_PREFIXES, NodeGroup, RouterSide, Span
from routing.torconfig.wording import NAME, group_name, heading

GTSM_NOTE = (
    "GTSM: this sends with TTL 255; what comes with less than {lowest} is dropped by a firewall "
    "filter on the loopback, which is yours to write."
)


def render(side: RouterSide) -> str:
    """For ``load set``."""
    hops = side.ttl_security_hops
    notes = [] if hops is None else [GTSM_NOTE.format(lowest=256 - hops)]
    lines = heading(side, mark="#", notes=notes)
    for direction, spans in (("IN", side.accepted), ("OUT", side.sent)):
        policy = f"set policy-options policy-statement {NAME}-{direction}"
        for number, span in enumerate(spans, 1):
            lines += [
                f"{policy} term {number} from route-filter {span.network} {_lengths(span)}",
                f"{policy} term {number} then accept",
            ]
        lines.append(f"{policy} term rest then reject")
    lines += [
        "set policy-options policy-statement SLASH32-ECMP then load-balance per-packet",
        "set routing-options forwarding-table export SLASH32-ECMP",
        f"set routing-options autonomous-system {side.asn}",
        *([f"set routing-options router-id {side.router_id}"] if side.router_id else []),
        "set routing-options graceful-restart",
    ]
    for group in side.groups:
        lines += _group(side, group)
    return "\n".join([*lines, ""])


def _lengths(span: Span) -> str:
    if span.low == span.high == span.network.prefixlen:
        return "exact"
    return f"prefix-length-range /{span.low}-/{span.high}"


def _group(side: RouterSide, group: NodeGroup) -> list[str]:
    prefix = f"set protocols bgp group {group_name(side, group)}"
    internal = side.is_internal(group)
    words = [
        f"type {'internal' if internal else 'external'}",
        f"local-address {side.address}",
        *([] if internal else [f"peer-as {group.asn}"]),
        *([f"cluster {side.router_id or 'REPLACE-WITH-ROUTER-ID'}"] if internal else []),
        f"hold-time {side.hold_time_s}",
        f"graceful-restart restart-time {side.restart_time_s}",
        f"import {NAME}-IN",
        f"export {NAME}-OUT",
        "multipath",
    ]
    if side.placeholder:
        words.append(f'authentication-key "{side.placeholder}"')
    if side.ttl_security_hops is not None:
        words.append("ttl 255")
    elif side.multihop_ttl is not None and not internal:
        words.append(f"multihop ttl {side.multihop_ttl}")
    for version in side.versions:
        family = f"family inet{'6' if version == 6 else ''} unicast"
        words += [
            f"{family} prefix-limit maximum {MAX_PREFIXES}",
            f"{family} prefix-limit teardown 75 idle-timeout 1",
        ]
        if version == 4 and side.extended_next_hop:
            words.append(f"{family} extended-nexthop")
    if side.is_node_passive:
        words += [f"neighbor {address}" for address in group.addresses]
    else:
        words.append(f"allow {side.range_of(group)}")
    return [f"{prefix} {word}" for word in words]
