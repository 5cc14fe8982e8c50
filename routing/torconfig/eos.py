"""Arista EOS."""

from __future__ import annotations

from routing.torconfig.side import MAX_PREFIXES, NodeGroup, RouterSide
from routing.torconfig.wording import NAME, group_name, heading, prefix_lists, route_maps


def render(side: RouterSide) -> str:
    """For ``configure``."""
    lines = [
        *heading(side, mark="!"),
        *prefix_lists(side, indent="   ", opened=True),
        *route_maps(side, indent="   "),
        *(line for group in side.groups for line in _peer_filter(side, group)),
        f"router bgp {side.asn}",
        *([f"   router-id {side.router_id}"] if side.router_id else []),
        f"   graceful-restart restart-time {side.restart_time_s}",
        "   graceful-restart",
        "   maximum-paths 64 ecmp 64",
    ]
    for group in side.groups:
        lines += _group(side, group)
    for version in side.versions:
        lines.append(f"   address-family ipv{version}")
        for group in side.groups:
            name = group_name(side, group)
            lines += [
                f"      neighbor {name} activate",
                f"      neighbor {name} route-map {NAME}-IN in",
                f"      neighbor {name} route-map {NAME}-OUT out",
            ]
            if version == 4 and side.extended_next_hop:
                lines.append(f"      neighbor {name} next-hop address-family ipv6 originate")
        lines.append("   !")
    return "\n".join([*lines, "!", ""])


def _peer_filter(side: RouterSide, group: NodeGroup) -> list[str]:
    if side.is_node_passive:
        return []
    name = group_name(side, group)
    return [f"peer-filter {name}", f"   10 match as-range {group.asn} result accept", "!"]


def _group(side: RouterSide, group: NodeGroup) -> list[str]:
    name = group_name(side, group)
    lines = [
        f"   neighbor {name} peer group",
        *([f"   neighbor {name} remote-as {group.asn}"] if side.is_node_passive else []),
        f"   neighbor {name} timers {side.keepalive_s} {side.hold_time_s}",
        f"   neighbor {name} graceful-restart",
        f"   neighbor {name} maximum-routes {MAX_PREFIXES} warning-limit 75 percent",
    ]
    if side.placeholder:
        lines.append(f"   neighbor {name} password 0 {side.placeholder}")
    if side.ttl_security_hops is not None:
        lines.append(f"   neighbor {name} ttl maximum-hops {side.ttl_security_hops - 1}")
    elif side.multihop_ttl is not None and not side.is_internal(group):
        lines.append(f"   neighbor {name} ebgp-multihop {side.multihop_ttl}")
    if side.is_internal(group):
        lines.append(f"   neighbor {name} route-reflector-client")
    if not side.is_node_passive:
        listen = f"bgp listen range {side.range_of(group)} peer-group {name} peer-filter {name}"
        return [*lines, f"   {listen}"]
    return lines + [f"   neighbor {address} peer group {name}" for address in group.addresses]
