"""What a node must not have: the judge of "nothing leaks, nothing doubles".

Three books are compared: what the runtime believes alive, what the kernel has, and what the agent's
address book says. Every difference is one sentence. It reads the kernel through iproute2 and takes
aliases apart by itself: a judge that shares the code it judges shares its mistakes.

A finding is only worth something on a node at rest. Whoever asks while an ADD is under way waits
until nothing is found, with a deadline (``lab.waiting.wait_until``).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

from cni.attachment import Attachment
from lab import namespaces
from lab.namespaces import CommandFailed
from routing.control import Unreachable, ask

Address = IPv4Address | IPv6Address

LINK_GROUP = 0x7332
PROTOCOL = 132
GATEWAYS: Mapping[int, Address] = {4: IPv4Address("169.254.1.1"), 6: IPv6Address("fe80::1")}
"""By IP version; the node's route to the first is the node's, no pod's."""

_COMMANDS = "address show\nroute show table all\n"
"""Both families. With numbers: /etc/iproute2 may call 132 or 29490 anything."""

_TABLE_MAIN = "254"
_RTN_UNICAST = "1"
_SCOPE_GLOBAL = "0"


@dataclass(frozen=True, slots=True)
class Living:
    """One interface of a sandbox that the runtime believes alive; ``netns`` is a path."""

    attachment: Attachment
    netns: str


@dataclass(frozen=True, slots=True)
class Link:
    """One interface. ``alias`` is "" for none, ``group`` its IFLA_GROUP."""

    ifname: str
    alias: str = ""
    group: int = 0
    is_up: bool = True
    addresses: frozenset[Address] = frozenset()


@dataclass(frozen=True, slots=True)
class HostRoute:
    """A unicast route to one address. ``has_gateway``: it leads to another machine."""

    address: Address
    ifname: str
    protocol: int
    metric: int = 0
    has_gateway: bool = False


@dataclass(frozen=True, slots=True)
class Inside:
    """One namespace: its interfaces, its routes to single addresses, its default gateways."""

    links: tuple[Link, ...] = ()
    routes: tuple[HostRoute, ...] = ()
    defaults: frozenset[Address] = frozenset()


@dataclass(frozen=True, slots=True)
class Book:
    """The agent's address book, and how many addresses each of its blocks counts as used."""

    held: Mapping[Attachment, frozenset[Address]] = field(default_factory=dict)
    used: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that was looked at.

    Attributes:
        node: the node's namespace.
        pods: each living sandbox's namespace; None where it cannot be entered.
        book: None when no agent was asked.
        files: names of files that should not wait in the run directory.
    """

    node: Inside
    pods: Mapping[Living, Inside | None] = field(default_factory=dict)
    book: Book | None = None
    files: tuple[str, ...] = ()


def examine(netns: str, *, alive: Sequence[Living], run_dir: Path | None = None) -> list[str]:
    """Every finding about a node, one sentence each; [] when nothing leaks and nothing doubles.

    Args:
        netns: path of the node's network namespace.
        alive: what the runtime believes alive.
        run_dir: the agent's run directory, or None to leave the address book out.

    Raises:
        LabFailure: the node's namespace cannot be read.
    """
    pods: dict[Living, Inside | None] = {}
    for living in alive:
        try:
            pods[living] = look_inside(living.netns)
        except CommandFailed:
            pods[living] = None
    seen = Seen(look_inside(netns), pods)
    if run_dir is None:
        return judge(seen)
    seen = replace(seen, files=waiting_files(run_dir))
    try:
        return judge(replace(seen, book=read_book(run_dir)))
    except Unreachable as error:
        return [*judge(seen), f"the address book cannot be read: {error}"]


# -- looking -----------------------------------------------------------------------------------


def look_inside(netns: str) -> Inside:
    """The interfaces and main tables of a namespace, by one process.

    Raises:
        CommandFailed: it cannot be entered.
    """
    text = namespaces.run(
        ["nsenter", f"--net={netns}", "ip", "-N", "-d", "-j", "-batch", "-"], stdin=_COMMANDS
    )
    interfaces, routes = (json.loads(line) for line in text.splitlines() if line.strip())
    return Inside(
        links=tuple(_link(entry) for entry in interfaces),
        routes=tuple(_host_routes(_main(routes))),
        defaults=frozenset(_default_gateways(_main(routes))),
    )


def _main(routes: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    return (entry for entry in routes if entry.get("table", _TABLE_MAIN) == _TABLE_MAIN)


def _link(entry: Mapping[str, Any]) -> Link:
    return Link(
        ifname=entry["ifname"],
        alias=entry.get("ifalias", ""),
        group=int(entry.get("group", 0)),
        is_up="UP" in entry["flags"],
        addresses=frozenset(
            ip_address(own["local"])
            for own in entry.get("addr_info", [])
            if own["scope"] == _SCOPE_GLOBAL
        ),
    )


def _host_routes(entries: Iterable[Mapping[str, Any]]) -> Iterator[HostRoute]:
    for entry in entries:
        # iproute2 prints the route to a single address without its length.
        if entry["type"] != _RTN_UNICAST or entry["dst"] == "default" or "/" in entry["dst"]:
            continue
        for hop in entry.get("nexthops") or [entry]:
            yield HostRoute(
                address=ip_address(entry["dst"]),
                ifname=hop.get("dev", ""),
                protocol=int(entry["protocol"]),
                metric=int(entry.get("metric", 0)),
                has_gateway="gateway" in hop or "via" in hop,
            )


def _default_gateways(entries: Iterable[Mapping[str, Any]]) -> Iterator[Address]:
    for entry in entries:
        if entry["type"] == _RTN_UNICAST and entry["dst"] == "default" and "gateway" in entry:
            yield ip_address(entry["gateway"])


def read_book(run_dir: Path) -> Book:
    """The agent's address book, asked on its socket.

    Raises:
        Unreachable: no agent answers.
    """
    socket_path = run_dir / "agent.sock"
    return Book(
        held={
            Attachment(row["network"], row["container_id"], row["ifname"]): frozenset(
                ip_address(address) for address in row["addresses"]
            )
            for row in ask(socket_path, "addresses")
        },
        used={
            row["block"]: row["used"]
            for row in ask(socket_path, "blocks")
            if row["used"] is not None
        },
    )


def waiting_files(run_dir: Path) -> tuple[str, ...]:
    """Recorded deletions that nobody has done yet, and what a killed launcher left of one."""
    try:
        return tuple(sorted(path.name for path in (run_dir / "deleted").iterdir()))
    except FileNotFoundError:
        return ()


# -- judging -----------------------------------------------------------------------------------


def judge(seen: Seen) -> list[str]:
    """Every finding, one sentence each. Pure."""
    ours: dict[str, tuple[Attachment, frozenset[Address]]] = {}
    found = list(_link_findings(seen, ours))
    found += _pod_findings(seen, ours)
    found += _route_findings(seen, ours)
    found += _duplicates(seen, ours)
    found += _book_findings(seen, ours)
    found += [f"file left in deleted/: {name}" for name in seen.files]
    return found


Ours = Mapping[str, tuple[Attachment, frozenset[Address]]]
"""Interface name to what its alias says."""


def _link_findings(
    seen: Seen, ours: dict[str, tuple[Attachment, frozenset[Address]]]
) -> Iterator[str]:
    """Judges every link that may be ours; collects those that are in ``ours``."""
    alive = {living.attachment for living in seen.pods}
    for link in seen.node.links:
        if not link.alias.startswith("slash32|"):
            if link.group == LINK_GROUP:
                yield f"half-made link {link.ifname}: our group and no alias of ours"
            continue
        try:
            attachment, addresses = _alias_parts(link.alias)
        except ValueError:
            yield f"link {link.ifname} has an unreadable alias {link.alias!r}"
            continue
        ours[link.ifname] = (attachment, addresses)
        if attachment not in alive:
            yield f"orphan link {link.ifname}: no sandbox {attachment} is alive"
        if link.ifname != attachment.host_ifname:
            yield f"link {link.ifname} of {attachment} should be called {attachment.host_ifname}"
        if not link.is_up:
            yield f"link {link.ifname} of {attachment} is down"
    by_attachment: dict[Attachment, list[str]] = defaultdict(list)
    for ifname, (attachment, _) in ours.items():
        by_attachment[attachment].append(ifname)
    for attachment, names in by_attachment.items():
        if len(names) > 1:
            yield f"duplicate links of {attachment}: {', '.join(sorted(names))}"


def _alias_parts(alias: str) -> tuple[Attachment, frozenset[Address]]:
    """``slash32|1|network|container|ifname|v4|v6|pod``, "-" for no address.

    Raises:
        ValueError: it is not of that form.
    """
    _tag, version, network, container_id, ifname, *rest = alias.split("|", 7)
    if version != "1" or len(rest) != 3:
        raise ValueError(alias)
    addresses = frozenset(ip_address(text) for text in rest[:2] if text != "-")
    return Attachment(network, container_id, ifname), addresses


def _pod_findings(seen: Seen, ours: Ours) -> Iterator[str]:
    linked = dict(ours.values())
    for living, inside in seen.pods.items():
        who = living.attachment
        if who not in linked:
            yield f"missing link: sandbox {who} is alive and has none"
        if inside is None:
            yield f"missing namespace: {living.netns} of {who} cannot be entered"
            continue
        end = next((each for each in inside.links if each.ifname == who.ifname), None)
        if end is None:
            yield f"missing interface: {who} has no {who.ifname} in its namespace"
            continue
        if not end.is_up:
            yield f"interface {who.ifname} of {who} is down"
        wanted = linked.get(who, frozenset())
        yield from (
            f"missing address {a} in the pod of {who}" for a in _in_order(wanted - end.addresses)
        )
        yield from (
            f"stale address {a} in the pod of {who}" for a in _in_order(end.addresses - wanted)
        )
        for version in sorted({address.version for address in wanted}):
            if GATEWAYS[version] not in inside.defaults:
                yield f"missing default route by {GATEWAYS[version]} in the pod of {who}"


def _route_findings(seen: Seen, ours: Ours) -> Iterator[str]:
    """Routes of ours that lead to no pod, and pods that no route of ours leads to."""
    leads: set[tuple[str, Address]] = set()
    for route in seen.node.routes:
        if route.protocol != PROTOCOL or route.has_gateway or route.address == GATEWAYS[4]:
            continue
        leads.add((route.ifname, route.address))
        if route.ifname not in ours:
            yield f"orphan route {route.address} dev {route.ifname}: no link of ours"
        elif route.address not in ours[route.ifname][1]:
            yield f"stale route {route.address} dev {route.ifname}: that pod has another address"
    for ifname, (attachment, addresses) in ours.items():
        for address in _in_order(addresses):
            if (ifname, address) not in leads:
                yield f"missing route {address} dev {ifname} of {attachment}"


def _duplicates(seen: Seen, ours: Ours) -> Iterator[str]:
    """One address at two places: aliases, pods, ways of the node, the node itself."""
    places: dict[Address, set[str]] = defaultdict(set)
    for attachment, addresses in ours.values():
        for address in addresses:
            places[address].add(f"link of {attachment}")
    taken = set(places)
    for link in seen.node.links:
        for address in link.addresses & taken:
            places[address].add(f"the node's {link.ifname}")
    yield from _doubled(places, "duplicate address")
    inside: dict[Address, set[str]] = defaultdict(set)
    for living, pod in seen.pods.items():
        for link in pod.links if pod is not None else ():
            for address in link.addresses:
                inside[address].add(f"{link.ifname} of {living.attachment}")
    yield from _doubled(inside, "duplicate address inside pods")
    ways: dict[Address, set[str]] = defaultdict(set)
    for route in seen.node.routes:
        if route.address in taken:
            ways[route.address].add(f"dev {route.ifname} protocol {route.protocol}")
    yield from _doubled(ways, "duplicate route")


def _doubled(places: Mapping[Address, set[str]], what: str) -> Iterator[str]:
    for address in _in_order(places):
        if len(places[address]) > 1:
            yield f"{what} {address}: {', '.join(sorted(places[address]))}"


def _book_findings(seen: Seen, ours: Ours) -> Iterator[str]:
    if seen.book is None:
        return
    linked = dict(ours.values())
    for who, addresses in seen.book.held.items():
        if who not in linked:
            yield f"allocated without a link: {who} holds {_listed(addresses)}"
        elif linked[who] != addresses:
            yield (
                f"book and link of {who} differ: {_listed(addresses)} and {_listed(linked[who])}"
            )
    for who, addresses in linked.items():
        if who not in seen.book.held:
            yield f"link without allocation: {who} has {_listed(addresses)}"
    held = [address for addresses in seen.book.held.values() for address in addresses]
    yield from _doubled(_holders(seen.book), "duplicate allocation")
    for block, used in seen.book.used.items():
        count = sum(address in ip_network(block) for address in held)
        if used != count:
            yield f"block {block} counts {used} used addresses, and {count} of it are held"


def _holders(book: Book) -> dict[Address, set[str]]:
    holders: dict[Address, set[str]] = defaultdict(set)
    for who, addresses in book.held.items():
        for address in addresses:
            holders[address].add(str(who))
    return holders


def _in_order(addresses: Iterable[Address]) -> list[Address]:
    """IPv4 before IPv6, which Python does not compare."""
    return sorted(addresses, key=lambda address: (address.version, int(address)))


def _listed(addresses: Iterable[Address]) -> str:
    return ", ".join(str(address) for address in _in_order(addresses)) or "nothing"
