"""exabgp.conf from peers. Pure.

ExaBGP runs as root and starts the program its configuration names, so nothing a user can name may
reach the text. What is rendered is numbers, addresses in digits, and three paths of our own making;
each is checked here again, whoever called. A peer's name is not rendered at all.

The text carries a mark, a digest of itself, as each neighbour's description. ExaBGP's ``reload``
answers ``done`` before it has done anything and can be dropped without a word; the mark in
``show neighbor configuration`` is the only proof that a file was loaded. A description is no part
of what ExaBGP compares, so a new mark resets no session.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from bgp.paths import Address, Family, Peer

PROCESS_NAME = "agent"

MAX_PEERS = 1000
"""ExaBGP is one thread: at 1000 peers it takes 12 % of a core idle (measured)."""

_SAFE_PATH = re.compile(r"/[A-Za-z0-9._/+-]{1,4000}\Z")


class ConfError(ValueError):
    """A value that must not be written into exabgp.conf; the sentence names field and value."""


@dataclass(frozen=True, slots=True)
class Conf:
    """A rendered file and its mark."""

    text: str
    mark: str


def render(peers: Mapping[Address, Peer], *, python: str, bridge: str, socket_path: str) -> Conf:
    """The configuration that has exactly these sessions.

    Args:
        peers: by address. None is allowed: ExaBGP then runs idle and can be reloaded.
        python: interpreter for the bridge, absolute.
        bridge: bgp/bridge.py, absolute.
        socket_path: the agent's socket, absolute.

    Raises:
        ConfError: a value is out of its range; nothing is rendered.
    """
    if len(peers) > MAX_PEERS:
        raise ConfError(f"peers: {len(peers)}, limit {MAX_PEERS}")
    for what, path in (("python", python), ("bridge", bridge), ("socket", socket_path)):
        if not _SAFE_PATH.match(path):
            raise ConfError(f"{what} path {path!r}: only letters, digits and ._/+- are allowed")
    head = (
        "# Rendered by slash32; edits are overwritten.\n"
        f"process {PROCESS_NAME} {{\n"
        f"  run {python} -IS {bridge} {socket_path};\n"
        "  encoder json;\n"
        "}\n"
    )
    # Judged before sorted: what is not an address has no order.
    judged = {address: _body(address, peer) for address, peer in peers.items()}
    bodies = [judged[address] for address in sorted(judged, key=_in_order)]
    digest = hashlib.sha256("".join([head, *(text for pair in bodies for text in pair)]).encode())
    mark = f"slash32-{digest.hexdigest()[:16]}"
    neighbors = "".join(
        f'neighbor {name} {{\n  description "{mark}";\n{body}}}\n' for name, body in bodies
    )
    return Conf(head + neighbors, mark)


def _in_order(address: Address) -> tuple[int, int]:
    return address.version, int(address)


def _body(address: Address, peer: Peer) -> tuple[str, str]:
    """(peer address, everything inside its braces but the mark)."""
    if address != peer.address:
        raise ConfError(f"peer {peer.address}: filed under {address}")
    remote = _address(peer.address, "address")
    local = _address(peer.local_address, "local_address")
    if peer.address.version != peer.local_address.version:
        raise ConfError(f"peer {remote}: local_address {local} is of another family")
    if peer.address == peer.local_address:
        raise ConfError(f"peer {remote}: local_address is the same address")
    if type(peer.router_id) is not IPv4Address or int(peer.router_id) == 0:
        raise ConfError(f"peer {remote}: router_id {peer.router_id!r} is not an IPv4 address")
    hold = _number(peer.hold_time_s, f"peer {remote}: hold_time_s", 0, 65535)
    if hold in (1, 2):
        raise ConfError(f"peer {remote}: hold_time_s {hold}, 0 or 3 and more (RFC 4271 4.2)")
    local_asn = _number(peer.local_asn, f"peer {remote}: local_asn", 1, 2**32 - 2)
    remote_asn = _number(peer.remote_asn, f"peer {remote}: remote_asn", 1, 2**32 - 2)
    port = _number(peer.port, f"peer {remote}: port", 1, 65535)
    restart = _number(peer.graceful_restart_s, f"peer {remote}: graceful_restart_s", 0, 4095)
    # `graceful-restart 0` does not switch it off: ExaBGP puts the hold time in its place.
    restart_text = str(restart) if restart else "disable"
    return remote, (
        f"  router-id {peer.router_id};\n"
        f"  local-address {local};\n"
        f"  local-as {local_asn};\n"
        f"  peer-as {remote_asn};\n"
        f"  hold-time {hold};\n"
        f"  connect {port};\n"
        "  passive false;\n"
        "  group-updates true;\n"
        "  manual-eor true;\n"
        "  adj-rib-in true;\n"
        "  adj-rib-out true;\n"
        f"  family {{ {_families(peer, remote)} }}\n"
        f"  capability {{ graceful-restart {restart_text}; route-refresh enable; }}\n"
        f"  api {{ processes [ {PROCESS_NAME} ]; neighbor-changes; "
        "receive { parsed; update; refresh; notification; } }\n"
    )


def _families(peer: Peer, remote: str) -> str:
    families = peer.families
    if not families or not all(type(family) is Family for family in families):
        raise ConfError(f"peer {remote}: families {families!r}: at least one, each a Family")
    return " ".join(f"{family.value};" for family in Family if family in families)


def _address(value: Address, field: str) -> str:
    """Digits only. IPv6Address accepts any text at all behind a %, so a scope is refused."""
    if type(value) not in (IPv4Address, IPv6Address):
        raise ConfError(f"peer {field} {value!r} is not an address")
    if getattr(value, "scope_id", None) is not None:
        raise ConfError(f"peer {field} {str(value)!r}: an address with a scope is not supported")
    if value.is_unspecified or value.is_multicast:
        raise ConfError(f"peer {field} {value} is not the address of one machine")
    return str(value)


def _number(value: int, field: str, lowest: int, highest: int) -> int:
    if type(value) is not int or not lowest <= value <= highest:
        raise ConfError(f"{field} {value!r}: must be {lowest} to {highest}")
    return value
