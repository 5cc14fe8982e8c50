"""FRR, as ``vtysh`` reads it; SONiC's BGP is an FRR too."""

from __future__ import annotations

from routing.torconfig.side import MAX_PREFIXES, NodeGroup, RouterSide
from routing.torconfig.wording import NAME, group_name, heading, prefix_lists, route_maps


def render(side: RouterSide) -> str:
    """For ``vtysh -f`` or frr.conf."""
    return "\n".join([*heading(side, mark="!"), *body(side), ""])


def body(side: RouterSide) -> list[str]:
    """Everything but the heading."""
    lines = [
        *prefix_lists(side),
        *route_maps(side, indent=" "),
        f"router bgp {side.asn}",
        *([f" bgp router-id {side.router_id}"] if side.router_id else []),
        " no bgp default ipv4-unicast",
        " bgp graceful-restart",
        # Our kernel, and FRR's, forward while bgpd is away; without it nodes drop its routes.
        " bgp graceful-restart preserve-fw-state",
    ]
    for group in side.groups:
        lines += _group(side, group)
    for version in side.versions:
        lines.append(f" address-family ipv{version} unicast")
        lines.append("  maximum-paths 64")
        for group in side.groups:
            name = group_name(side, group)
            lines += [
                f"  neighbor {name} activate",
                f"  neighbor {name} route-map {NAME}-IN in",
                f"  neighbor {name} route-map {NAME}-OUT out",
                f"  neighbor {name} maximum-prefix {MAX_PREFIXES} 75",
            ]
            if side.is_internal(group):
                lines.append(f"  neighbor {name} route-reflector-client")
        lines.append(" exit-address-family")
    return [*lines, "exit"]


def _group(side: RouterSide, group: NodeGroup) -> list[str]:
    name = group_name(side, group)
    lines = [
        f" neighbor {name} peer-group",
        f" neighbor {name} remote-as {group.asn}",
        f" neighbor {name} timers {side.keepalive_s} {side.hold_time_s}",
        f" neighbor {name} advertisement-interval 0",
    ]
    if side.placeholder:
        lines.append(f" neighbor {name} password {side.placeholder}")
    if side.ttl_security_hops is not None:
        lines.append(f" neighbor {name} ttl-security hops {side.ttl_security_hops}")
    elif side.multihop_ttl is not None and not side.is_internal(group):
        lines.append(f" neighbor {name} ebgp-multihop {side.multihop_ttl}")
    if side.extended_next_hop:
        lines.append(f" neighbor {name} capability extended-nexthop")
    if not side.is_node_passive:
        return [*lines, f" bgp listen range {side.range_of(group)} peer-group {name}"]
    for address in group.addresses:
        lines.append(f" neighbor {address} peer-group {name}")
        if side.node_port != 179:
            lines.append(f" neighbor {address} port {side.node_port}")
    return lines
