"""What the dialects share: names, the words at the top, and the prefix lists of IOS's children."""

from __future__ import annotations

from collections.abc import Iterable

from routing.torconfig.side import NodeGroup, RouterSide, Span

NAME = "SLASH32"


def group_name(side: RouterSide, group: NodeGroup, *, base: str = NAME) -> str:
    """``base``, with the AS number behind it where there are several groups."""
    return base if len(side.groups) == 1 else f"{base}-{group.asn}"


def heading(
    side: RouterSide, *, mark: str, notes: Iterable[str] = (), has_range: bool | None = None
) -> list[str]:
    """Comment lines: for which router, for whom, and what is left to the operator.

    Args:
        side: whose.
        mark: begins a comment.
        notes: more lines.
        has_range: nodes are let in by a range; None: unless they wait for the router.
    """
    is_ranged = not side.is_node_passive if has_range is None else has_range
    nodes = sum(len(group.addresses) for group in side.groups)
    lines = [
        f"The router {side.address}, AS {side.asn} (BGPPeer {side.peer}); "
        f"{nodes} node{'' if nodes == 1 else 's'}. Made by slash32 tor-config.",
    ]
    if side.password is not None:
        lines.append(
            f"Write the password of Secret {side.password.name}, key {side.password.key}, where "
            f"{side.placeholder} stands."
        )
    if is_ranged and side.listen_range is None:
        lines.append(
            "The listen range covers the nodes there are; --listen-range gives it the rack's whole "
            "network."
        )
    lines += notes
    return [f"{mark} {line}" for line in lines]


def of_version(spans: Iterable[Span], version: int) -> list[Span]:
    """Those of one version of IP."""
    return [span for span in spans if span.version == version]


def bounds(span: Span) -> str:
    """`` ge 24 le 26``, empty for the network itself; ge must be longer than the network is."""
    length = span.network.prefixlen
    if span.low == span.high == length:
        return ""
    low = f" ge {span.low}" if span.low > length else ""
    return f"{low} le {span.high}"


def prefix_lists(side: RouterSide, *, indent: str = "", opened: bool = False) -> list[str]:
    """``ip prefix-list`` and ``ipv6 prefix-list`` for both directions.

    Args:
        side: whose.
        indent: before each entry, where a list is a block of its own (EOS).
        opened: the list is such a block, and its entries do not repeat its name.
    """
    lines: list[str] = []
    for direction, spans in (("IN", side.accepted), ("OUT", side.sent)):
        for version in side.versions:
            name = f"{NAME}-{direction}-V{version}"
            word = "ip" if version == 4 else "ipv6"
            entries = [
                f"seq {number * 10} permit {span.network}{bounds(span)}"
                for number, span in enumerate(of_version(spans, version), 1)
            ] or ["seq 10 deny ::/0 le 128" if version == 6 else "seq 10 deny 0.0.0.0/0 le 32"]
            if opened:
                lines += [f"{word} prefix-list {name}", *(f"{indent}{e}" for e in entries), "!"]
            else:
                lines += [f"{word} prefix-list {name} {entry}" for entry in entries]
    return lines


def route_maps(side: RouterSide, *, indent: str) -> list[str]:
    """A route-map for each direction: what the prefix lists have, and nothing else."""
    lines: list[str] = []
    for direction in ("IN", "OUT"):
        for number, version in enumerate(side.versions, 1):
            word = "ip" if version == 4 else "ipv6"
            lines += [
                f"route-map {NAME}-{direction} permit {number * 10}",
                f"{indent}match {word} address prefix-list {NAME}-{direction}-V{version}",
                "!",
            ]
    return lines
