"""exabgp.conf from peers. Pure.

ExaBGP runs as root and starts the program its configuration names, so nothing a user can name may
reach the text. What is rendered is numbers, addresses in digits, and three paths of our own making;
each is checked here again, whoever called. A peer's name is not rendered at all.

The text carries a mark, a digest of itself, as each neighbour's description. ExaBGP's ``reload``
answers ``done`` before it has done anything and can be dropped without a word; the mark in
``show neighbor configuration`` is the only proof that a file was loaded. A description is no part
of what ExaBGP compares, so a new mark resets no session.

The routes that we announce are written as well, so that an ExaBGP that starts while there is no
agent announces them (RFC 4724: the peers then keep them, restart upon restart). They are no part of
the mark: ExaBGP has them from the agent, and reads the file only when it starts or the peers
change. ``announced_in`` reads them back.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from bgp.advertising import AdvertisementKey, Unsayable, as_said_to
from bgp.exabgp_commands import ProtocolError, route
from bgp.paths import Address, Advertisement, Family, Peer

PROCESS_NAME = "agent"

MAX_PEERS = 1000
"""ExaBGP is one thread: at 1000 peers it takes 12 % of a core idle (measured)."""

MAX_PASSWORD_BYTES = 80
"""TCP_MD5SIG_MAXKEYLEN of the kernel."""

_SAFE_PATH = re.compile(r"/[A-Za-z0-9._/+-]{1,4000}\Z")


class ConfError(ValueError):
    """A value that must not be written into exabgp.conf; the sentence names field and value."""


@dataclass(frozen=True, slots=True)
class Conf:
    """A rendered file and its mark."""

    text: str
    mark: str


def render(
    peers: Mapping[Address, Peer],
    *,
    python: str,
    bridge: str,
    socket_path: str,
    announced: Mapping[AdvertisementKey, Advertisement] | None = None,
) -> Conf:
    """The configuration that has exactly these sessions.

    Args:
        peers: by address. None is allowed: ExaBGP then runs idle and can be reloaded.
        announced: the routes to announce; those of other peers, and what cannot be said, are left
            out.
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
    bodies = [(address, *judged[address]) for address in sorted(judged, key=_in_order)]
    digest = hashlib.sha256("".join([head, *(f"{n}{body}" for _, n, body in bodies)]).encode())
    mark = f"slash32-{digest.hexdigest()[:16]}"
    routes = _routes(peers, announced or {})
    neighbors = "".join(
        f'neighbor {name} {{\n  description "{mark}";\n{body}{routes.get(address, "")}}}\n'
        for address, name, body in bodies
    )
    return Conf(head + neighbors, mark)


def _routes(
    peers: Mapping[Address, Peer], announced: Mapping[AdvertisementKey, Advertisement]
) -> dict[Address, str]:
    lines: dict[Address, list[str]] = {}
    for (address, _), advertisement in announced.items():
        peer = peers.get(address)
        if peer is None:
            continue
        try:
            said = as_said_to(peer, advertisement)
            text = route(said, prepend_asn=peer.local_asn if peer.is_ebgp else None)
        except (Unsayable, ProtocolError):
            continue
        lines.setdefault(address, []).append(f"    route {text};\n")
    return {
        address: f"  static {{\n{''.join(sorted(texts))}  }}\n" for address, texts in lines.items()
    }


def announced_in(text: str) -> dict[AdvertisementKey, Advertisement]:
    """The routes in a file that ``render`` made; what cannot be read is passed over."""
    found: dict[AdvertisementKey, Advertisement] = {}
    address: Address | None = None
    for line in text.splitlines():
        words = line.rstrip(";").split()
        try:
            if words[:1] == ["neighbor"]:
                address = None
                address = ip_address(words[1])
            elif words[:1] == ["route"] and address is not None:
                advertisement = _read_route(words[1:])
                found[address, advertisement.prefix] = advertisement
        except (ValueError, LookupError):
            continue
    return found


def _read_route(words: list[str]) -> Advertisement:
    values: dict[str, list[str]] = {}
    rest = iter(words[1:])
    for name in rest:
        first = next(rest, "")
        values[name] = list(iter(lambda: next(rest, "]"), "]")) if first == "[" else [first]
    hop = values["next-hop"][0]
    return Advertisement(
        ip_network(words[0]),
        None if hop == "self" else ip_address(hop),
        communities=tuple(values.get("community", ())),
        large_communities=tuple(values.get("large-community", ())),
        med=int(values["med"][0]) if "med" in values else None,
        local_pref=int(values["local-preference"][0]) if "local-preference" in values else None,
        prepend=max(0, len(values.get("as-path", ())) - 1),
    )


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
        f"  passive {'true' if peer.is_passive else 'false'};\n"
        f"{_listen(peer, remote)}{_password(peer, remote)}{_ttl(peer, remote)}"
        "  group-updates true;\n"
        "  manual-eor true;\n"
        "  adj-rib-in false;\n"
        "  adj-rib-out true;\n"
        f"  family {{ {_families(peer, remote)} }}\n"
        f"{_next_hops(peer, remote)}"
        f"  capability {{ graceful-restart {restart_text}; route-refresh enable; }}\n"
        f"  api {{ processes [ {PROCESS_NAME} ]; neighbor-changes; "
        "receive { parsed; open; update; refresh; notification; } }\n"
    )


def _listen(peer: Peer, remote: str) -> str:
    if not peer.listens:
        if peer.is_passive:
            raise ConfError(f"peer {remote}: is_passive without listens: no session could come up")
        return ""
    return f"  listen {_number(peer.listen_port, f'peer {remote}: listen_port', 1, 65535)};\n"


def _password(peer: Peer, remote: str) -> str:
    """In Base64, for ExaBGP's quotes cannot hold a quote. Errors never show it."""
    if peer.password is None:
        return ""
    if type(peer.password) is not str:
        raise ConfError(f"peer {remote}: password is not text")
    key = peer.password.encode("utf-8", "surrogateescape")
    if not 1 <= len(key) <= MAX_PASSWORD_BYTES:
        raise ConfError(
            f"peer {remote}: password has {len(key)} bytes, allowed 1 to {MAX_PASSWORD_BYTES}"
        )
    if any(byte < 32 or byte == 127 for byte in key):
        # Above all the line break that an editor leaves at the end of a Secret's value.
        raise ConfError(f"peer {remote}: password has a control character or a line break")
    text = base64.b64encode(key).decode("ascii")
    return f'  md5-password "{text}";\n  md5-base64 true;\n'


def _ttl(peer: Peer, remote: str) -> str:
    hops, ttl = peer.ttl_security_hops, peer.multihop_ttl
    if hops is not None:
        if ttl is not None:
            raise ConfError(f"peer {remote}: ttl_security_hops and multihop_ttl exclude each other")
        lowest = 256 - _number(hops, f"peer {remote}: ttl_security_hops", 1, 254)
        return f"  incoming-ttl {lowest};\n  outgoing-ttl 255;\n"
    if ttl is not None:
        return f"  outgoing-ttl {_number(ttl, f'peer {remote}: multihop_ttl', 1, 255)};\n"
    # ExaBGP would send with the kernel's 64 to any router that has the address, however far away.
    return "  outgoing-ttl 1;\n" if peer.is_ebgp else ""


def _next_hops(peer: Peer, remote: str) -> str:
    if not peer.extended_next_hop:
        return ""
    if set(peer.families) != set(Family):
        # ExaBGP offers the capability only for families that it has.
        raise ConfError(f"peer {remote}: extended_next_hop needs the families ipv4 and ipv6")
    return "  nexthop { ipv4 unicast ipv6; }\n"


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
