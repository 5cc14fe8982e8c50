"""Why a session is down, in words an operator can act on. Pure.

ExaBGP says `notification sent (4,0)`, and `closing connection` to whatever goes wrong below BGP.
The words are those of RFC 4271 section 4.5, RFC 4486 and RFC 6608; a text that the peer's operator
has sent along (RFC 9003) is kept.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address

NOTIFIED = "notification"
"""How ExaBGP begins the reason of a session that a NOTIFICATION ended, sent or received."""

TEXT_MIN_OCTETS = 5
"""Fewer octets that happen to be letters are a number."""
HEX_MAX_OCTETS = 16

CLOSED_BY_US = "graceful restarted negotiated, closing without sending any notification"
"""The reason when the session's configuration changed, or somebody said `teardown`."""

BROKEN = "closing connection"
"""The reason when TCP broke, however it did."""

BEFORE = "; before that: "
"""Between what keeps a session down now and how the last one ended."""

_ATTEMPTS = {
    # The tokens are of exabgp_habits.py.
    "no answer": "no answer to our SYN (TCP-MD5 with another password drops it without a word; so "
    "does a filter, and a machine that is off)",
    "not acknowledged": "TCP opens, but nothing that we send is acknowledged (a TTL or a password "
    "that the kernel at one end does not accept, or a filter)",
    "no word": "TCP opens, but no word comes from the peer (a TTL or a password that our kernel "
    "does not accept, a filter, or nobody there who speaks BGP)",
}
_ENDS = {
    CLOSED_BY_US: "closed by us: the session's settings have changed",
    BROKEN: "the connection broke",
}

_IN_BRACKETS = re.compile(r"notification (sent|received) \((\d+),(\d+)\)\Z")

_CODES = {
    1: "message header error",
    2: "OPEN refused",
    3: "UPDATE refused",
    4: "hold timer expired",
    5: "state machine error",
    6: "cease",
}
_SUBCODES = {
    (1, 1): "connection not synchronised (TCP-MD5 or a middlebox?)",
    (1, 2): "bad message length",
    (1, 3): "bad message type",
    (2, 1): "unsupported version",
    (2, 2): "the peer's AS number is not the configured one",
    (2, 3): "bad BGP identifier (two routers with one router id?)",
    (2, 4): "unsupported optional parameter",
    (2, 6): "unacceptable hold time",
    (2, 7): "unsupported capability",
    (3, 1): "malformed attribute list",
    (3, 2): "unrecognised well-known attribute",
    (3, 3): "missing well-known attribute",
    (3, 4): "attribute flags",
    (3, 5): "attribute length",
    (3, 6): "invalid ORIGIN",
    (3, 8): "invalid NEXT_HOP",
    (3, 9): "optional attribute",
    (3, 10): "invalid network field",
    (3, 11): "malformed AS_PATH",
    (5, 1): "unexpected message in OpenSent",
    (5, 2): "unexpected message in OpenConfirm",
    (5, 3): "unexpected message in Established",
    (6, 1): "maximum number of prefixes reached",
    (6, 2): "administrative shutdown",
    (6, 3): "peer de-configured",
    (6, 4): "administrative reset",
    (6, 5): "connection rejected",
    (6, 6): "other configuration change",
    (6, 7): "connection collision resolution",
    (6, 8): "out of resources",
    (6, 9): "hard reset",
}


def notification_text(code: int, subcode: int, message: str = "", data: bytes = b"") -> str:
    """``6/2 cease: administrative shutdown: maintenance at noon``.

    Args:
        code, subcode: as in RFC 4271 section 4.5.
        message: what ExaBGP made of the data.
        data: the data themselves.
    """
    words = [_CODES.get(code, "unknown error"), _SUBCODES.get((code, subcode), "")]
    communication = re.fullmatch(r'Shutdown Communication: "(.*)"', message, re.DOTALL)
    words.append(communication[1] if communication else _data_text(code, subcode, data))
    return f"{code}/{subcode} " + ": ".join(word for word in words if word)


def _data_text(code: int, subcode: int, data: bytes) -> str:
    """What a NOTIFICATION carries, which ExaBGP shows as characters although it is numbers.

    RFC 4271 section 6.2 gives the OPEN errors no data but the version of (2, 1); routers send the
    value they refuse (BIRD the ASN in four octets, FRR in two). RFC 4486 section 4 defines (6, 1).
    """
    number = int.from_bytes(data, "big")
    match code, subcode, len(data):
        case _, _, 0:
            return ""
        case 2, 1, 2:
            return f"it speaks version {number}"
        case 2, 2, 2 | 4:
            return f"AS {number}"
        case 2, 3, 4:
            return str(IPv4Address(data))
        case 2, 6, 2:
            return f"{number} s"
        case 6, 1, 7:
            family = {1: "IPv4", 2: "IPv6"}.get(int.from_bytes(data[:2], "big"), "AFI ?")
            return f"{family}, at most {int.from_bytes(data[3:], 'big')}"
        case _:
            pass
    if len(data) >= TEXT_MIN_OCTETS and all(0x20 <= octet < 0x7F for octet in data):
        return data.decode("ascii")
    rest = len(data) - HEX_MAX_OCTETS
    return f"data 0x{data[:HEX_MAX_OCTETS].hex()}" + (f" and {rest} more" if rest > 0 else "")


def session_reason(reason: str, *, said: str = "") -> str:
    """ExaBGP's reason for a session's end, with what a NOTIFICATION in the session ``said``."""
    match = _IN_BRACKETS.fullmatch(reason)
    if match is None:
        return _ENDS.get(reason, reason)
    side = "we said" if match[1] == "sent" else "the peer said"
    if match[1] == "received" and said:
        return f"{side} {said}"
    return f"{side} {notification_text(int(match[2]), int(match[3]))}"


def is_telling(reason: str) -> bool:
    """Whether a failed attempt's reason may replace that of the session which ended before it."""
    return reason.startswith(NOTIFIED)


def reason_now(attempt: str, ended: str) -> str:
    """Why a session is down now.

    Args:
        attempt: what the last attempt to open it came to, in ExaBGP's word; empty when the peer
            answers.
        ended: how the session before it ended, or how the peer refused this one; may be empty.
    """
    if not attempt:
        return ended
    words = _ATTEMPTS.get(attempt, f"our attempts to connect fail: {attempt}")
    return f"{words}{BEFORE}{ended}" if ended else words


def is_silence(reason: str) -> bool:
    """Whether ``reason`` is that of an attempt that met none of the peer's words."""
    return reason.startswith(tuple(_ATTEMPTS.values()))
