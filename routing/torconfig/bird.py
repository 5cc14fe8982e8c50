"""BIRD 2: to be included in bird.conf, beside its router id, device and kernel protocols."""

from __future__ import annotations

from routing.routes import Address
from routing.torconfig.side import MAX_PREFIXES, NodeGroup, RouterSide, Span
from routing.torconfig.wording import group_name, heading, of_version

NAME = "slash32"
NOTES = ("Include it in bird.conf, beside `router id`, `protocol device` and `protocol kernel`.",)


def render(side: RouterSide) -> str:
    """For ``include``."""
    lines = heading(side, mark="#", notes=NOTES)
    for direction, spans in (("in", side.accepted), ("out", side.sent)):
        for version in side.versions:
            lines += _filter(f"{NAME}_{direction}{version}", of_version(spans, version))
    for group in side.groups:
        name = group_name(side, group, base=NAME).replace("-", "_")
        if side.is_node_passive:
            for number, address in enumerate(group.addresses, 1):
                lines += _protocol(side, group, f"{name}_{number}", address)
        else:
            lines += _protocol(side, group, name, None)
    return "\n".join([*lines, ""])


def _filter(name: str, spans: list[Span]) -> list[str]:
    sets = ", ".join(f"{span.network}{{{span.low},{span.high}}}" for span in spans)
    test = [f"  if net ~ [ {sets} ] then accept;"] if spans else []
    return [f"filter {name} {{", *test, "  reject;", "}"]


def _protocol(side: RouterSide, group: NodeGroup, name: str, address: Address | None) -> list[str]:
    lines = [f"protocol bgp {name} {{", f"  local {side.address} as {side.asn};"]
    if address is None:
        lines.append(f"  neighbor range {side.range_of(group)} as {group.asn};")
        lines.append(f'  dynamic name "{name}_";')
    else:
        port = "" if side.node_port == 179 else f" port {side.node_port}"
        lines.append(f"  neighbor {address}{port} as {group.asn};")
    lines += [
        f"  hold time {side.hold_time_s};",
        f"  keepalive time {side.keepalive_s};",
        "  graceful restart on;",
        f"  graceful restart time {side.restart_time_s};",
    ]
    if side.placeholder:
        lines.append(f'  password "{side.placeholder}";')
    if side.ttl_security_hops is not None:
        lines.append("  ttl security on;")
        if side.ttl_security_hops > 1:
            lines.append(f"  multihop {side.ttl_security_hops};")
    elif side.multihop_ttl is not None and not side.is_internal(group):
        lines.append(f"  multihop {side.multihop_ttl};")
    if side.is_internal(group):
        lines.append("  rr client;")
    for version in side.versions:
        extended = " extended next hop on;" if version == 4 and side.extended_next_hop else ""
        lines += [
            f"  ipv{version} {{",
            f"    import filter {NAME}_in{version}; export filter {NAME}_out{version};",
            f"    import limit {MAX_PREFIXES} action restart;{extended}",
            "  };",
        ]
    return [*lines, "}"]
