"""Security at the pod's edge: the nftables rules a node owes itself, as a value. Pure.

Two tables, wholly ours: ``inet slash32`` and ``arp slash32``. The rules match the name that all
host ends share ("s32*"), so nothing changes when a pod comes or goes, and a link is covered before
it exists. The sysctls of the host ends (cni/hostend.py) protect too; these rules hold when an
administrator has turned those off, and IPv6 has no rp_filter at all.

No rule looks at connection state: a ``ct`` expression would switch conntrack on for the whole host.

What nft is given is text; what it reports back is JSON (libnftables-json(5)). Both are made from
the same value, so ``differences`` compares what is with what is owed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from cni.errors import shown
from cni.podlink import GATEWAY_V4

POD_LINKS = "s32*"
"""Attachment.host_ifname begins so; nft matches it as a prefix."""

BGP_PORT = 179
DHCPV6_CLIENT_PORT = 546

MISSING = "missing"
"""What ``fib ... oif`` finds where no route leads back through that interface."""

_ROUTERS_WORDS = ("nd-router-advert", "nd-redirect")
"""Messages only a router may send."""

_RAW_PRIORITY = -300
"""Before conntrack (-200): a spoofed packet leaves no connection entry."""

_FILTER_PRIORITY = 0


class EdgeError(Exception):
    """The rules could not be read or put in place; one sentence for the operator."""


class Edge(Protocol):
    """Keeps the rules of one node in the kernel (cni/edge_nft.py). Blocking, for milliseconds."""

    def ensure(self) -> list[str]:
        """Returns once the rules are in the kernel; what it mended, [] when all was right.

        Raises:
            EdgeError: they are not, or it cannot be known. Pods must not be wired then.
        """

    def close(self) -> None:
        """Frees what it holds. The rules stay."""


class ListingError(ValueError):
    """What nft printed is not a listing of one table."""


@dataclass(frozen=True, slots=True)
class Match:
    """One condition. ``subject`` as nft writes it: ``iifname``, ``tcp dport``, ``fib ...``.

    ``value`` is what it must equal; a tuple is one of several.
    """

    subject: str
    value: str | int | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """``name`` is the rule's comment in the kernel; ``verdict`` as nft writes it."""

    name: str
    matches: tuple[Match, ...]
    verdict: str


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain of type filter with policy accept: other tables go on deciding."""

    name: str
    hook: str
    priority: int
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table that is ours alone."""

    family: str
    name: str
    chains: tuple[Chain, ...]

    def __str__(self) -> str:
        return f"{self.family} {self.name}"


def _pod_rule(name: str, *matches: Match, verdict: str = "drop") -> Rule:
    return Rule(name, (Match("iifname", POD_LINKS), *matches), verdict)


PREROUTING = Chain(
    "prerouting",
    "prerouting",
    _RAW_PRIORITY,
    (
        # A pod may send from what the host routes to it, and nothing else: strict reverse path,
        # both families. The kernel lets :: through to multicast, for duplicate address detection.
        _pod_rule("spoofed-source", Match("fib saddr . iif oif", MISSING)),
        # 0.0.0.0 to broadcast is let through for DHCP, which no pod of ours needs.
        _pod_rule("no-source", Match("ip saddr", "0.0.0.0")),  # noqa: S104 - not a bind
        # The gateway's route leads to loopback, for proxy-ARP's sake. A packet to it would come in
        # there, be forwarded there again, and so on until its TTL ends: 254 times for one.
        Rule(
            "gateway-loop",
            (
                Match("iifname", "lo"),
                Match("ip daddr", str(GATEWAY_V4)),
                Match("fib daddr type", "unicast"),
            ),
            "drop",
        ),
    ),
)

INPUT = Chain(
    "input",
    "input",
    _FILTER_PRIORITY,
    (
        _pod_rule("router-or-redirect-v6", Match("icmpv6 type", _ROUTERS_WORDS)),
        _pod_rule("redirect-v4", Match("icmp type", "redirect")),
        # By destination: a client takes an answer from any source port (RFC 8415, section 7.2).
        _pod_rule("dhcpv6-answer", Match("udp dport", DHCPV6_CLIENT_PORT)),
        # Reset, so that a connection fails at once instead of hanging.
        _pod_rule("bgp", Match("tcp dport", BGP_PORT), verdict="reject with tcp reset"),
    ),
)

ARP = Chain(
    "input",
    "input",
    _FILTER_PRIORITY,
    (
        _pod_rule(
            "gateway",
            Match("arp operation", "request"),
            Match("arp daddr ip", str(GATEWAY_V4)),
            verdict="accept",
        ),
        # The pod's answers to the host's own questions. Unasked, they can only refresh what the
        # host knows already (arp_accept is 0), and only for this link.
        _pod_rule("answer", Match("arp operation", "reply"), verdict="accept"),
        # Otherwise proxy_arp answers for every address the host has a route to.
        _pod_rule("other-arp"),
    ),
)

OWED = (
    Table("inet", "slash32", (PREROUTING, INPUT)),
    Table("arp", "slash32", (ARP,)),
)
"""Everything a node owes itself."""


# -- what nft is given -------------------------------------------------------------------------


def apply_script(tables: Iterable[Table] = OWED) -> str:
    """For ``nft -f``: empties and refills our tables and no others, in one transaction."""
    return "".join(f"{_forget(table)}{_table_text(table)}" for table in tables)


def remove_script(tables: Iterable[Table] = OWED) -> str:
    """For ``nft -f``: our tables are gone, whether they were there or not."""
    return "".join(map(_forget, tables))


def _forget(table: Table) -> str:
    """Adding first makes deleting succeed where there was none."""
    return f"add table {table}\ndelete table {table}\n"


def _table_text(table: Table) -> str:
    chains = "".join(map(_chain_text, table.chains))
    return f"table {table} {{\n{chains}}}\n"


def _chain_text(chain: Chain) -> str:
    rules = "".join(f"    {_rule_text(rule)}\n" for rule in chain.rules)
    head = f"type filter hook {chain.hook} priority {chain.priority}; policy accept;"
    return f"  chain {chain.name} {{\n    {head}\n{rules}  }}\n"


def _rule_text(rule: Rule) -> str:
    matches = " ".join(f"{each.subject} {_value_text(each.value)}" for each in rule.matches)
    return f'{matches} {rule.verdict} comment "{rule.name}"'


def _value_text(value: str | int | tuple[str, ...]) -> str:
    if isinstance(value, tuple):
        return "{ " + ", ".join(value) + " }"
    return f'"{value}"' if value == POD_LINKS else str(value)  # the asterisk wants quotes


# -- what nft reports --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listing:
    """One table as nft reports it, each object as canonical JSON without its handle.

    Attributes:
        table: the table itself, with its flags if it has any.
        chains: by name.
        rules: by chain, in order.
        names: the comments of those rules, "" where there is none.
        others: sets, maps and whatever else; none of it is ours.
    """

    table: str
    chains: Mapping[str, str] = field(default_factory=dict)
    rules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    others: tuple[str, ...] = ()


def listing(text: str) -> Listing:
    """What ``nft -j list table`` printed.

    Raises:
        ListingError: it is not JSON, or not a listing of one table.
    """
    try:
        objects = json.loads(text)["nftables"]
        return _listing_of(each for each in objects if "metainfo" not in each)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ListingError(f"not a listing of a table: {shown(text)}") from error


def owed_listing(table: Table) -> Listing:
    """What nft reports when the kernel holds ``table``."""
    return _listing_of(_table_objects(table))


def _listing_of(objects: Iterable[Mapping[str, Any]]) -> Listing:
    tables: list[str] = []
    chains: dict[str, str] = {}
    rules: dict[str, list[str]] = {}
    names: dict[str, list[str]] = {}
    others: list[str] = []
    for each in objects:
        ((kind, body),) = each.items()
        canonical = _canonical(body)
        if kind == "table":
            tables.append(canonical)
        elif kind == "chain":
            chains[body["name"]] = canonical
        elif kind == "rule":
            rules.setdefault(body["chain"], []).append(canonical)
            names.setdefault(body["chain"], []).append(body.get("comment", ""))
        else:
            others.append(f"{kind} {canonical}")
    (table,) = tables
    return Listing(
        table,
        chains,
        {chain: tuple(each) for chain, each in rules.items()},
        {chain: tuple(each) for chain, each in names.items()},
        tuple(others),
    )


def _canonical(body: Mapping[str, Any]) -> str:
    """Handles are the kernel's numbers, new at every apply."""
    return json.dumps({k: v for k, v in body.items() if k != "handle"}, sort_keys=True)


def _table_objects(table: Table) -> Iterator[dict[str, Any]]:
    yield {"table": {"family": table.family, "name": table.name}}
    place = {"family": table.family, "table": table.name}
    for chain in table.chains:
        head = {"type": "filter", "hook": chain.hook, "prio": chain.priority, "policy": "accept"}
        yield {"chain": {**place, "name": chain.name, **head}}
        for rule in chain.rules:
            body = {"chain": chain.name, "comment": rule.name, "expr": _expressions(rule)}
            yield {"rule": {**place, **body}}


def _expressions(rule: Rule) -> list[dict[str, Any]]:
    matches = [
        {"match": {"op": "==", "left": _subject_json(each.subject), "right": _value_json(each)}}
        for each in rule.matches
    ]
    word, _, reason = rule.verdict.partition(" with ")
    return [*matches, {word: {"type": reason} if reason else None}]


def _subject_json(subject: str) -> dict[str, Any]:
    first, _, rest = subject.partition(" ")
    if not rest:
        return {"meta": {"key": first}}
    if first == "fib":
        *flags, result = rest.replace(" . ", " ").split()
        return {"fib": {"result": result, "flags": flags}}
    return {"payload": {"protocol": first, "field": rest}}


def _value_json(match: Match) -> Any:
    if isinstance(match.value, tuple):
        return {"set": list(match.value)}
    return False if match.value == MISSING else match.value


# -- comparing ---------------------------------------------------------------------------------


def differences(table: Table, owed: Listing, found: Listing | None) -> list[str]:
    """What is not as ``owed``, one sentence each; [] when nothing differs."""
    if found is None:
        return [f"nftables table {table} was missing"]
    wrong: list[str] = []
    if found.table != owed.table:
        wrong.append(f"nftables table {table} was changed: {shown(found.table)}")
    for name in owed.chains.keys() & found.chains.keys():
        wrong += _chain_differences(f"chain {name} of nftables table {table}", name, owed, found)
    wrong += [
        f"chain {name} of nftables table {table} was missing"
        for name in owed.chains.keys() - found.chains.keys()
    ]
    # A foreign name may hold anything; ours are words.
    wrong += [
        f"chain {shown(name)} of nftables table {table} is foreign"
        for name in found.chains.keys() - owed.chains.keys()
    ]
    wrong += [f"nftables table {table} held a foreign {shown(each)}" for each in found.others]
    return sorted(wrong)


def _chain_differences(what: str, name: str, owed: Listing, found: Listing) -> Iterator[str]:
    if found.chains[name] != owed.chains[name]:
        yield f"{what} was changed: {shown(found.chains[name])}"
    wanted, there = owed.rules.get(name, ()), found.rules.get(name, ())
    lost = [
        comment
        for comment, rule in zip(owed.names.get(name, ()), wanted, strict=True)
        if rule not in there
    ]
    foreign = [rule for rule in there if rule not in wanted]
    yield from (f"{what} lacked its rule {comment}" for comment in lost)
    yield from (f"{what} held a foreign rule {shown(rule)}" for rule in foreign)
    if not lost and not foreign and there != wanted:
        yield f"{what} held its rules in another order, or twice"


def is_same_shape(table: Table, found: Listing | None) -> bool:
    """Whether ``found`` has the chains and, by name and order, the rules of ``table``.

    Another version of nft may word a rule's JSON differently. What it reports right after it
    applied our text is then what is right, provided its shape is.
    """
    owed = owed_listing(table)
    return (
        found is not None
        and not found.others
        and (found.table, found.chains, found.names) == (owed.table, owed.chains, owed.names)
    )
