"""Sans-I/O codec for ExaBGP 5.0's API: its lines to our values.

ExaBGP prints two kinds of lines on the same pipe. Events are JSON objects with an ``exabgp``
member. Everything else belongs to the answer of a command: any number of text lines, then a bare
``done`` or ``error``. Nothing in an answer says which command it answers; ``bgp.conversation``
pairs them.

What a peer sent is judged route by route: a route we cannot use becomes a ``Rejection`` with a
reason token and the rest of its UPDATE stands (the spirit of RFC 7606). Only a line that is not the
language at all raises, and it raises ``ProtocolError`` alone, whatever the bytes.

This module deliberately knows no policy: which prefixes are welcome is the hub's decision.
"""

from __future__ import annotations

from binascii import a2b_base64
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bgp.exabgp_commands import ProtocolError as ProtocolError
from bgp.json_fields import address_of, integer_of, json_of, list_of, object_of
from bgp.judgement import judge_attributes, judge_path, judge_prefix, nlri_of
from bgp.paths import (
    Address,
    Advertisement,
    Connected,
    EndOfRib,
    Event,
    Family,
    GracefulRestart,
    Notification,
    Opened,
    Path,
    Prefix,
    RefreshEnd,
    Rejection,
    SessionDown,
    SessionUp,
    SpeakerShutdown,
    Update,
)
from bgp.reasons import notification_text

MAX_LINE_BYTES = 4 * 1024 * 1024
"""An UPDATE has at most 64 KiB, about 1 MiB as JSON; a longer line is not ExaBGP's."""

MAX_REASON_CHARACTERS = 300
"""A shutdown communication has up to 255 bytes (RFC 9003 section 2)."""

TUNED = "tuned"
"""Hello's mode when ExaBGP runs with our changes (exabgp_tuned.py)."""

SHUTTING_DOWN = "stop, message [shutting down]"
"""The reason of a SessionDown that ExaBGP caused by ending itself, not the peer."""

GRACEFUL_RESTART = "64"
"""The capability's code (RFC 4724 section 3), as ExaBGP writes it."""

_FAMILIES = {family.value: family for family in Family}


# -- what a line can be ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """The bridge's first line on each connection. ``exabgp`` names one ExaBGP process for life.

    ``exabgp`` is its pid and its start time in clock ticks, so a reused pid is another process.
    """

    bridge_pid: int
    exabgp: tuple[int, int]
    mode: str = ""
    """``tuned``, or ``stock: `` and why; see exabgp_tuned.py."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The end of an answer: ``done``, or ``error`` when ``ok`` is False."""

    ok: bool


@dataclass(frozen=True, slots=True)
class Text:
    """A line of an answer; its meaning depends on the command."""

    text: str


@dataclass(frozen=True, slots=True)
class RawUpdates:
    """UPDATEs that the tuned ExaBGP hands on undecoded; bgp.update_decoder reads them."""

    peer: Address
    is_ebgp: bool
    raw: bytes


Line = Hello | Answered | Text | RawUpdates | tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class NeighborState:
    """One entry of ``show neighbor json``. ``duration_s`` counts whole seconds of being up."""

    peer: Address
    local_address: Address
    is_established: bool
    is_ebgp: bool
    duration_s: int
    families: frozenset[Family]
    has_route_refresh: bool
    has_graceful_restart: bool = False
    """The peer has sent the capability, for whatever families."""


# -- lines -------------------------------------------------------------------------------------


def decode(line: bytes) -> Line:
    """What one line (without its newline) from the bridge says.

    Returns:
        Hello, Answered, Text, RawUpdates, or the events of a JSON line: none, when the line is of a
        kind we did not ask for (ExaBGP may add some), never more than one UPDATE's worth.

    Raises:
        ProtocolError: the line is too long, not text, or an event that makes no sense.
    """
    if len(line) > MAX_LINE_BYTES:
        raise ProtocolError(f"line of {len(line)} bytes, limit {MAX_LINE_BYTES}")
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ProtocolError(f"line is not text: {error.reason} at byte {error.start}") from None
    if text == "done":
        return Answered(ok=True)
    if text == "error":
        return Answered(ok=False)
    # Answers to `show` begin with { too, but carry no marker; only a marker makes an event.
    if not text.startswith("{") or ('"exabgp"' not in text and '"slash32"' not in text):
        return Text(text)
    message = object_of(json_of(text), "line")
    if message.get("slash32") == "updates":
        return _raw_updates(message)
    if "slash32" in message:
        return _hello(message)
    if "exabgp" not in message:
        return Text(text)
    return _events(message)


def decode_neighbors(lines: Iterable[str]) -> tuple[NeighborState, ...]:
    """The answer to SHOW_NEIGHBORS.

    Raises:
        ProtocolError: it is not that answer.
    """
    states: list[NeighborState] = []
    for line in lines:
        entries = json_of(line)
        if not isinstance(entries, list):
            raise ProtocolError("show neighbor: not a list")
        states.extend(_neighbor_state(object_of(entry, "neighbor")) for entry in entries)
    return tuple(states)


def decode_attempts(lines: Iterable[str]) -> dict[Address, str]:
    """The answer to SHOW_ATTEMPTS: what the last attempt to open each session came to, if it is
    not up and its peer has said nothing.

    Raises:
        ProtocolError: it is not that answer.
    """
    found: dict[Address, str] = {}
    for line in lines:
        peers = object_of(object_of(json_of(line), "show slash32").get("peers"), "peers")
        for name, entry in peers.items():
            problem = object_of(entry, "peer").get("problem")
            if problem:
                found[address_of(name, "peer")] = _printable(problem)
    return found


def decode_replayed(lines: Iterable[str]) -> frozenset[Address]:
    """The text of the answer to REPLAY: whose routes have been told again, all of them.

    Raises:
        ProtocolError: it is not that answer.
    """
    words = " ".join(lines).split()
    if words[:1] != ["whole"]:
        raise ProtocolError(f"replay: {' '.join(words)[:80]!r}")
    return frozenset(address_of(word, "replayed peer") for word in words[1:])


def decode_adj_rib_out(line: str) -> tuple[Address, Advertisement]:
    """One line of the answer to SHOW_ADJ_RIB_OUT: the peer and what it is being told.

    Raises:
        ProtocolError: it is no such line.
    """
    peer, route = _dumped(line)
    nlri = object_of(route.get("nlri"), "nlri")
    prefix = judge_prefix(nlri.get("prefix"), _dumped_family(nlri))
    if isinstance(prefix, Rejection):
        raise ProtocolError(f"adj-rib out: prefix {nlri.get('prefix')!r}: {prefix.reason}")
    attributes = judge_attributes(
        # What we announce has no ORIGIN of its own before it is sent.
        {"origin": "igp", **object_of(route.get("attributes"), "attributes")},
        is_ebgp=False,
    )
    if isinstance(attributes, str):
        raise ProtocolError(f"adj-rib out: {prefix}: {attributes}")
    return peer, Advertisement(
        prefix,
        address_of(nlri.get("nexthop"), "nexthop"),
        communities=attributes.communities,
        large_communities=attributes.large_communities,
        med=attributes.med,
        local_pref=attributes.local_pref,
        # Nobody but `route` gives a path, and it gives our ASN once more than that.
        prepend=max(0, attributes.as_path_length - 1),
    )


def decode_configuration_marks(lines: Iterable[str]) -> frozenset[str]:
    """The descriptions in the answer to SHOW_CONFIGURATION: our mark of a loaded file."""
    marks = set()
    for line in lines:
        words = line.split()
        if len(words) == 2 and words[0] == "description":
            marks.add(words[1].strip('";'))
    return frozenset(marks)


# -- events ------------------------------------------------------------------------------------


def _hello(message: dict[str, Any]) -> Hello:
    return Hello(
        bridge_pid=integer_of(message.get("pid"), "pid"),
        exabgp=(
            integer_of(message.get("exabgp_pid"), "exabgp_pid"),
            integer_of(message.get("exabgp_start"), "exabgp_start"),
        ),
        mode=_printable(message.get("mode", "")),
    )


def _raw_updates(message: dict[str, Any]) -> RawUpdates:
    try:
        raw = a2b_base64(str(message.get("raw")), strict_mode=True)
    except ValueError as error:
        raise ProtocolError(f"raw updates: {error}") from None
    return RawUpdates(address_of(message.get("peer"), "peer"), message.get("ebgp") is True, raw)


def _events(message: dict[str, Any]) -> tuple[Event, ...]:
    kind = message.get("type")
    if kind == "notification" and "neighbor" not in message:
        # ExaBGP's own farewell has no neighbour; nothing else of this type comes without one.
        return (SpeakerShutdown(),) if message.get("notification") == "shutdown" else ()
    if kind not in ("state", "open", "update", "refresh", "notification"):
        return ()
    neighbor = object_of(message.get("neighbor"), "neighbor")
    if neighbor.get("direction", "receive") != "receive":
        return ()
    peer = address_of(object_of(neighbor.get("address"), "address").get("peer"), "peer")
    if kind == "state":
        return _state(peer, neighbor)
    if kind == "open":
        return (Opened(peer, _graceful_restart(object_of(neighbor.get("open"), "open"))),)
    if kind == "refresh":
        return _refresh(peer, object_of(neighbor.get("route-refresh"), "route-refresh"))
    if kind == "notification":
        return (Notification(peer, _notification_text(neighbor.get("notification"))),)
    return _update(peer, neighbor)


def _state(peer: Address, neighbor: dict[str, Any]) -> tuple[Event, ...]:
    state = neighbor.get("state")
    if state == "up":
        return (SessionUp(peer),)
    if state == "down":
        return (SessionDown(peer, _printable(neighbor.get("reason", ""))),)
    if state == "connected":
        return (Connected(peer),)
    raise ProtocolError(f"state {state!r} of {peer} is none we know")


def _graceful_restart(message: dict[str, Any]) -> GracefulRestart | None:
    capabilities = object_of(message.get("capabilities"), "capabilities")
    if GRACEFUL_RESTART not in capabilities:
        return None
    capability = object_of(capabilities[GRACEFUL_RESTART], "graceful restart")
    flags = object_of(capability.get("address-family-flags"), "address-family-flags")
    # ExaBGP has the names of its two flags crossed: a family's "restart" is the bit for preserved
    # forwarding state. There is one bit for each, so any flag at all is that one.
    known = {
        family: list_of(flag, "flags")
        for name, flag in flags.items()
        if (family := _FAMILIES.get(name.replace("/", " "))) is not None
    }
    return GracefulRestart(
        restart_time_s=integer_of(capability.get("time"), "restart time"),
        families=frozenset(known),
        preserved=frozenset(family for family, flag in known.items() if flag),
    )


def _refresh(peer: Address, refresh: dict[str, Any]) -> tuple[Event, ...]:
    family = _FAMILIES.get(f"{refresh.get('afi')} {refresh.get('safi')}")
    if family is None or refresh.get("subtype") != "end":
        return ()
    return (RefreshEnd(peer, family),)


def _notification_text(value: object) -> str:
    if not isinstance(value, dict):
        return _printable(value)
    code = integer_of(value.get("code"), "notification code")
    subcode = integer_of(value.get("subcode"), "notification subcode")
    message, data = str(value.get("message") or ""), _octets(value.get("data"))
    return _printable(notification_text(code, subcode, message, data))


def _octets(value: object) -> bytes:
    """``0x0000FC59`` as octets; b"" for anything else, for it is only for people."""
    if not isinstance(value, str) or not value.startswith("0x"):
        return b""
    try:
        return bytes.fromhex(value[2:])
    except ValueError:
        return b""


def _printable(value: object) -> str:
    """Free text of the peer's (RFC 9003), made safe for a terminal and a log line."""
    text = "".join(c if c.isprintable() else "?" for c in str(value))
    return text[:MAX_REASON_CHARACTERS]


def _update(peer: Address, neighbor: dict[str, Any]) -> tuple[Event, ...]:
    message = object_of(neighbor.get("message"), "message")
    if "eor" in message:
        eor = object_of(message["eor"], "eor")
        family = _FAMILIES.get(f"{eor.get('afi')} {eor.get('safi')}")
        return () if family is None else (EndOfRib(peer, family),)
    update = object_of(message.get("update"), "update")
    asn = object_of(neighbor.get("asn"), "asn")
    rejected: list[Rejection] = []
    announced = _announced(
        peer, update, is_ebgp=asn.get("local") != asn.get("peer"), rejected=rejected
    )
    withdrawn = _withdrawn(object_of(update.get("withdraw", {}), "withdraw"), rejected)
    return (Update(peer, announced, withdrawn, tuple(rejected)),)


def _withdrawn(families: dict[str, Any], rejected: list[Rejection]) -> tuple[Prefix, ...]:
    withdrawn: list[Prefix] = []
    for name, entries in families.items():
        family = _FAMILIES.get(name)
        if family is None:
            rejected.append(Rejection(None, "unknown-family"))
            continue
        for entry in list_of(entries, "withdraw"):
            prefix = judge_prefix(nlri_of(entry), family)
            if isinstance(prefix, Rejection):
                rejected.append(prefix)
            else:
                withdrawn.append(prefix)
    return tuple(withdrawn)


def _announced(
    peer: Address, update: dict[str, Any], *, is_ebgp: bool, rejected: list[Rejection]
) -> tuple[Path, ...]:
    # One prefix can stand under two next hops: the global and the link-local one of RFC 2545.
    next_hops: dict[Prefix, list[object]] = {}
    for name, by_next_hop in object_of(update.get("announce", {}), "announce").items():
        family = _FAMILIES.get(name)
        if family is None:
            rejected.append(Rejection(None, "unknown-family"))
            continue
        for next_hop, entries in object_of(by_next_hop, "announce").items():
            for entry in list_of(entries, "announce"):
                prefix = judge_prefix(nlri_of(entry), family)
                if isinstance(prefix, Rejection):
                    rejected.append(prefix)
                else:
                    next_hops.setdefault(prefix, []).append(next_hop)
    if not next_hops:
        return ()
    attributes = judge_attributes(
        object_of(update.get("attribute", {}), "attribute"), is_ebgp=is_ebgp
    )
    if isinstance(attributes, str):
        rejected.extend(Rejection(prefix, attributes) for prefix in next_hops)
        return ()
    announced = []
    for prefix, hops in next_hops.items():
        path = judge_path(peer, prefix, hops, attributes)
        if isinstance(path, Rejection):
            rejected.append(path)
        else:
            announced.append(path)
    return tuple(announced)


# -- answers -----------------------------------------------------------------------------------


def _neighbor_state(entry: dict[str, Any]) -> NeighborState:
    local, peer = object_of(entry.get("local"), "local"), object_of(entry.get("peer"), "peer")
    names = list_of(entry.get("families"), "families")
    capabilities = object_of(peer.get("capabilities", {}), "capabilities")
    return NeighborState(
        peer=address_of(peer.get("address"), "peer address"),
        local_address=address_of(local.get("address"), "local address"),
        # `state` says "down" in the first second of a session; `fsm` is right at once.
        is_established=entry.get("fsm") == "ESTABLISHED",
        is_ebgp=local.get("as") != peer.get("as"),
        duration_s=integer_of(entry.get("duration"), "duration"),
        families=frozenset(_FAMILIES[name] for name in names if name in _FAMILIES),
        has_route_refresh=bool(capabilities.get("route-refresh")),
        has_graceful_restart=bool(capabilities.get("graceful-restart")),
    )


def _dumped(line: str) -> tuple[Address, dict[str, Any]]:
    entry = object_of(json_of(line), "adj-rib line")
    peer = address_of(object_of(entry.get("peer"), "peer").get("address"), "peer")
    return peer, object_of(entry.get("route"), "route")


def _dumped_family(nlri: dict[str, Any]) -> Family | None:
    family = object_of(nlri.get("family"), "family")
    return _FAMILIES.get(f"{family.get('afi')} {family.get('safi')}")
