"""GoBGP 3: a whole gobgpd.toml, since its policies are global and deny by default here."""

from __future__ import annotations

from routing.torconfig.side import MAX_PREFIXES, NodeGroup, RouterSide, Span
from routing.torconfig.wording import group_name, heading, of_version

NAME = "slash32"
NOTES = (
    "A whole file. The policies are the daemon's only ones: what they do not name is rejected,",
    "to and from any neighbor that is added beside these.",
)


NO_KEY_FOR_A_RANGE = (
    "GoBGP 3 takes no TCP-MD5 password for a range, so each node is named: one that is added to",
    "the cluster must be added here.",
)


def render(side: RouterSide) -> str:
    """For ``gobgpd -t toml -f``."""
    notes = (*NOTES, *(NO_KEY_FOR_A_RANGE if _are_named(side) and not side.is_node_passive else ()))
    lines = [
        *heading(side, mark="#", notes=notes, has_range=not _are_named(side)),
        "[global.config]",
        f"  as = {side.asn}",
        f'  router-id = "{side.router_id or "REPLACE-WITH-ROUTER-ID"}"',
        "[global.apply-policy.config]",
        f'  import-policy-list = ["{NAME}-in"]',
        '  default-import-policy = "reject-route"',
        f'  export-policy-list = ["{NAME}-out"]',
        '  default-export-policy = "reject-route"',
    ]
    directions = (("in", side.accepted), ("out", side.sent))
    for direction, spans in directions:
        for version in side.versions:
            lines += _prefix_set(f"{NAME}-{direction}{version}", of_version(spans, version))
    for direction, spans in directions:
        lines += _policy(direction, [v for v in side.versions if of_version(spans, v)])
    for group in side.groups:
        lines += _group(side, group)
    return "\n".join([*lines, ""])


def _prefix_set(name: str, spans: list[Span]) -> list[str]:
    if not spans:
        return []
    lines = ["[[defined-sets.prefix-sets]]", f'  prefix-set-name = "{name}"']
    for span in spans:
        lines += [
            "  [[defined-sets.prefix-sets.prefix-list]]",
            f'    ip-prefix = "{span.network}"',
            f'    masklength-range = "{span.low}..{span.high}"',
        ]
    return lines


def _policy(direction: str, versions: list[int]) -> list[str]:
    lines = ["[[policy-definitions]]", f'  name = "{NAME}-{direction}"']
    for version in versions:
        lines += [
            "  [[policy-definitions.statements]]",
            f'    name = "{NAME}-{direction}{version}"',
            "    [policy-definitions.statements.conditions.match-prefix-set]",
            f'      prefix-set = "{NAME}-{direction}{version}"',
            '      match-set-options = "any"',
            "    [policy-definitions.statements.actions]",
            '      route-disposition = "accept-route"',
        ]
    return lines


def _are_named(side: RouterSide) -> bool:
    return side.is_node_passive or side.password is not None


def _group(side: RouterSide, group: NodeGroup) -> list[str]:
    name = group_name(side, group, base=NAME)
    if not _are_named(side):
        return [
            "[[peer-groups]]",
            "  [peer-groups.config]",
            f'    peer-group-name = "{name}"',
            f"    peer-as = {group.asn}",
            *_settings(side, group, "peer-groups"),
            "[[dynamic-neighbors]]",
            "  [dynamic-neighbors.config]",
            f'    prefix = "{side.range_of(group)}"',
            f'    peer-group = "{name}"',
        ]
    lines: list[str] = []
    for address in group.addresses:
        lines += [
            "[[neighbors]]",
            "  [neighbors.config]",
            f'    neighbor-address = "{address}"',
            f"    peer-as = {group.asn}",
            *_settings(side, group, "neighbors"),
        ]
    return lines


def _settings(side: RouterSide, group: NodeGroup, table: str) -> list[str]:
    """Begins inside ``<table>.config``, where the password belongs."""
    lines = [f'    auth-password = "{side.placeholder}"'] if side.placeholder else []
    lines += [
        f"  [{table}.timers.config]",
        f"    hold-time = {side.hold_time_s}",
        f"    keepalive-interval = {side.keepalive_s}",
    ]
    if table == "neighbors":
        lines.append(f"  [{table}.transport.config]")
        lines.append(f'    local-address = "{side.address}"')
        if not side.is_node_passive:
            lines.append("    passive-mode = true")
        elif side.node_port != 179:
            lines.append(f"    remote-port = {side.node_port}")
    if side.ttl_security_hops is not None:
        lines += [
            f"  [{table}.ttl-security.config]",
            "    enabled = true",
            f"    ttl-min = {256 - side.ttl_security_hops}",
        ]
    elif side.multihop_ttl is not None and not side.is_internal(group):
        lines += [
            f"  [{table}.ebgp-multihop.config]",
            "    enabled = true",
            f"    multihop-ttl = {side.multihop_ttl}",
        ]
    if side.is_internal(group):
        lines += [
            f"  [{table}.route-reflector.config]",
            "    route-reflector-client = true",
            f'    route-reflector-cluster-id = "{side.router_id or "REPLACE-WITH-ROUTER-ID"}"',
        ]
    lines += [
        f"  [{table}.graceful-restart.config]",
        "    enabled = true",
        f"    restart-time = {side.restart_time_s}",
    ]
    for version in side.versions:
        lines += [
            f"  [[{table}.afi-safis]]",
            f"    [{table}.afi-safis.config]",
            f'      afi-safi-name = "ipv{version}-unicast"',
            f"    [{table}.afi-safis.mp-graceful-restart.config]",
            "      enabled = true",
            f"    [{table}.afi-safis.prefix-limit.config]",
            f"      max-prefixes = {MAX_PREFIXES}",
        ]
    return lines
