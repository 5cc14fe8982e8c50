"""Our values to the lines that ExaBGP 5.0 takes, in its API and in its file. Pure.

Only numbers, and addresses in digits, ever stand in a line: every word is made here, from a typed
value that is checked here, because ExaBGP would take a line break in a community for a command.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from bgp.paths import Address, Advertisement, Family, Prefix

SHOW_NEIGHBORS = "show neighbor json"
SHOW_CONFIGURATION = "show neighbor configuration"
SHOW_ATTEMPTS = "show slash32"
"""Of the tuned ExaBGP alone: what attempts to open a session came to."""
SHOW_MARKS = "show slash32-marks"
"""What SHOW_CONFIGURATION is asked for, of a tuned ExaBGP (exabgp_habits.py): one mark a line."""
REPLAY = "slash32-replay"
"""For the bridge, which answers it itself: what peers have announced, as the lines that said so."""
SHOW_ADJ_RIB_OUT = "show adj-rib out json"
RELOAD = "reload"
RESET = "reset"
"""Throws away every command of ours that ExaBGP has read and not answered. Has no answer itself."""
PROBE_ZERO = "#"
PROBE_ONE = "version"
"""Two commands that are answered at once and differently; a row of them spells a number."""

MAX_PREPEND = 32
"""More makes no router choose differently, and AS_PATH has a length that peers refuse."""

_COMMUNITY = re.compile(r"[0-9]{1,5}:[0-9]{1,5}\Z")
_LARGE_COMMUNITY = re.compile(r"[0-9]{1,10}:[0-9]{1,10}:[0-9]{1,10}\Z")


class ProtocolError(ValueError):
    """A line that is not ExaBGP's language, or a value that its language cannot say."""


def announce(peer: Address, advertisement: Advertisement, *, prepend_asn: int | None = None) -> str:
    """The line that announces ``advertisement`` to ``peer`` and to nobody else.

    Args:
        peer: the session's other end.
        advertisement: what.
        prepend_asn: our ASN on that session when it is external; None when it is internal, where
            nobody may touch AS_PATH (RFC 4271 section 5.1.2) and ``prepend`` has no effect.

    Raises:
        ProtocolError: a value cannot be said; nothing of a user's words gets into the line.
    """
    return f"neighbor {plain(peer)} announce route {route(advertisement, prepend_asn=prepend_asn)}"


def route(advertisement: Advertisement, *, prepend_asn: int | None = None) -> str:
    """What follows ``route`` in a command and in the file; the arguments are those of announce.

    Raises:
        ProtocolError: a value cannot be said.
    """
    prefix, next_hop = advertisement.prefix, advertisement.next_hop
    if next_hop is not None and next_hop.version == 4 and prefix.version == 6:
        raise ProtocolError(f"next hop {next_hop} cannot carry {prefix}: it is of another family")
    words = [str(prefix), "next-hop", "self" if next_hop is None else plain(next_hop)]
    prepend = _number(advertisement.prepend, f"{prefix}: prepend", MAX_PREPEND)
    if prepend and prepend_asn is not None:
        asn = str(_number(prepend_asn, f"{prefix}: local ASN", 2**32 - 1))
        # ExaBGP sends a path that is given as it is, without adding our ASN.
        words += ["as-path", "[", *[asn] * (prepend + 1), "]"]
    if advertisement.med is not None:
        words += ["med", str(_number(advertisement.med, f"{prefix}: med", 2**32 - 1))]
    if advertisement.local_pref is not None:
        value = _number(advertisement.local_pref, f"{prefix}: local_pref", 2**32 - 1)
        words += ["local-preference", str(value)]
    if advertisement.communities:
        words += ["community", "[", *map(_community, advertisement.communities), "]"]
    if advertisement.large_communities:
        words += ["large-community", "["]
        words += [*map(_large_community, advertisement.large_communities), "]"]
    return " ".join(words)


def withdraw(peer: Address, prefix: Prefix) -> str:
    """The line that withdraws ``prefix`` from ``peer``."""
    return f"neighbor {plain(peer)} withdraw route {prefix}"


def end_of_rib(peers: Sequence[Address], family: Family) -> str:
    """The line that sends End-of-RIB (RFC 4724 section 2) to each of ``peers``, at least one."""
    # The comma is a word of its own, or ExaBGP takes it for a part of the address.
    return f"{' , '.join(f'neighbor {plain(p)}' for p in peers)} announce eor {family.value}"


def route_refresh(peer: Address, family: Family) -> str:
    """The line that asks ``peer`` to send ``family`` again (RFC 2918)."""
    return f"neighbor {plain(peer)} announce route-refresh {family.value}"


def plain(address: Address) -> str:
    """``address`` in digits. A scope would be free text in a command line.

    Raises:
        ProtocolError: it has one.
    """
    if getattr(address, "scope_id", None) is not None:
        raise ProtocolError(f"address {str(address)!r}: a scope has no meaning between machines")
    return str(address)


def _number(value: int, field: str, highest: int) -> int:
    if type(value) is not int or not 0 <= value <= highest:
        raise ProtocolError(f"{field} {value!r}: must be 0 to {highest}")
    return value


def _community(value: str) -> str:
    if _COMMUNITY.match(value) and all(int(half) <= 0xFFFF for half in value.split(":")):
        return value
    raise ProtocolError(f"community {value!r:.80}: two numbers up to 65535 with : between")


def _large_community(value: str) -> str:
    if _LARGE_COMMUNITY.match(value) and all(int(part) < 2**32 for part in value.split(":")):
        return value
    raise ProtocolError(f"large community {value!r:.80}: three numbers of 32 bits with : between")
