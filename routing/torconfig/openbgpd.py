"""OpenBGPD: a whole bgpd.conf, or the part behind what is there already."""

from __future__ import annotations

from ipaddress import IPv4Network

from routing.torconfig.side import MAX_PREFIXES, NodeGroup, RouterSide, Span
from routing.torconfig.wording import group_name, heading

NAME = "slash32"
NOTES = ("On Linux it knows IPv6 next hops only on sessions over IPv6 (docs/interop.md).",)


ONLY_WHEN_IT_CONNECTS = (
    "On Linux it has a TCP-MD5 key only on connections that it opens itself: the BGPPeer must have",
    "`passive: true`, and each node is named here; one that is added must be added here too.",
)


def render(side: RouterSide) -> str:
    """For ``bgpd -f``."""
    notes = (*NOTES, *(ONLY_WHEN_IT_CONNECTS if side.password is not None else ()))
    lines = [
        *heading(side, mark="#", notes=notes, has_range=not _are_named(side)),
        f"AS {side.asn}",
        *([f"router-id {side.router_id}"] if side.router_id else []),
        *_prefix_set(f"{NAME}-in", side.accepted),
        *_prefix_set(f"{NAME}-out", side.sent),
        f'group "{NAME}" {{',
    ]
    for group in side.groups:
        lines += _group(side, group)
    return "\n".join(
        [
            *lines,
            "}",
            # The last rule that matches decides.
            f'deny from group "{NAME}"',
            f'allow from group "{NAME}" prefix-set "{NAME}-in"',
            f'deny to group "{NAME}"',
            f'allow to group "{NAME}" prefix-set "{NAME}-out"',
            "",
        ]
    )


def _prefix_set(name: str, spans: tuple[Span, ...]) -> list[str]:
    return [f'prefix-set "{name}" {{', *(f"  {_entry(span)}" for span in spans), "}"]


def _entry(span: Span) -> str:
    if span.low == span.high == span.network.prefixlen:
        return str(span.network)
    return f"{span.network} prefixlen {span.low} - {span.high}"


def _are_named(side: RouterSide) -> bool:
    return side.is_node_passive or side.password is not None


def _group(side: RouterSide, group: NodeGroup) -> list[str]:
    if _are_named(side):
        whom = [str(address) for address in group.addresses]
    else:
        whom = [_as_neighbor(side, group)]
    lines: list[str] = []
    for neighbor in whom:
        lines += [
            f"  neighbor {neighbor} {{",
            f"    remote-as {group.asn}",
            f'    descr "{group_name(side, group, base=NAME)}"',
            f"    local-address {side.address}",
            f"    holdtime {side.hold_time_s}",
            f"    holdtime min {min(3, side.hold_time_s) or 3}",
            *(f"    announce IPv{v} {'unicast' if v in side.versions else 'none'}" for v in (4, 6)),
            "    announce restart yes",
            f"    max-prefix {MAX_PREFIXES} restart 1",
        ]
        if side.placeholder:
            lines.append(f'    tcp md5sig password "{side.placeholder}"')
        if side.ttl_security_hops is not None:
            lines.append("    ttl-security yes")
        elif side.multihop_ttl is not None and not side.is_internal(group):
            lines.append(f"    multihop {side.multihop_ttl}")
        if side.is_internal(group):
            lines.append("    route-reflector")
        if side.is_node_passive and side.node_port != 179:
            lines.append(f"    port {side.node_port}")
        lines.append("  }")
    return lines


def _as_neighbor(side: RouterSide, group: NodeGroup) -> str:
    """A range of one is written as an address: it is then a neighbor like any other."""
    network = side.range_of(group)
    is_one = network.prefixlen == (32 if isinstance(network, IPv4Network) else 128)
    return str(network.network_address) if is_one else str(network)
