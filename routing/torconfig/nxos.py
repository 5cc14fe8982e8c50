"""Cisco NX-OS."""

from __future__ import annotations

from routing.torconfig.side import MAX_PREFIXES, NodeGroup, RouterSide
from routing.torconfig.wording import NAME, heading, prefix_lists, route_maps


def render(side: RouterSide) -> str:
    """For ``configure terminal``."""
    lines = [
        *heading(side, mark="!"),
        "feature bgp",
        *prefix_lists(side),
        *route_maps(side, indent="  "),
        f"router bgp {side.asn}",
        *([f"  router-id {side.router_id}"] if side.router_id else []),
        "  graceful-restart",
        f"  graceful-restart restart-time {side.restart_time_s}",
        *(
            line
            for version in side.versions
            for line in (f"  address-family ipv{version} unicast", "    maximum-paths 64")
        ),
    ]
    for group in side.groups:
        whom = (
            [str(address) for address in group.addresses]
            if side.is_node_passive
            else [str(side.range_of(group))]
        )
        for neighbor in whom:
            lines += _neighbor(side, group, neighbor)
    return "\n".join([*lines, ""])


def _neighbor(side: RouterSide, group: NodeGroup, neighbor: str) -> list[str]:
    lines = [
        f"  neighbor {neighbor}",
        f"    remote-as {group.asn}",
        f"    timers {side.keepalive_s} {side.hold_time_s}",
    ]
    if side.placeholder:
        lines.append(f"    password 0 {side.placeholder}")
    if side.ttl_security_hops is not None:
        lines.append(f"    ttl-security hops {side.ttl_security_hops}")
    elif side.multihop_ttl is not None and not side.is_internal(group):
        lines.append(f"    ebgp-multihop {side.multihop_ttl}")
    for version in side.versions:
        lines += [
            f"    address-family ipv{version} unicast",
            f"      route-map {NAME}-IN in",
            f"      route-map {NAME}-OUT out",
            f"      maximum-prefix {MAX_PREFIXES} 75 restart 1",
            *(["      route-reflector-client"] if side.is_internal(group) else []),
        ]
    return lines
