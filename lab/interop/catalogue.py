"""All cases, in the order of the table's rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lab.interop import cases, guards
from lab.interop.stand import Stand

Case = Callable[[Stand], str]

CASES: Mapping[str, tuple[str, Case]] = {
    "ipv4": ("IPv4", cases.ipv4),
    "ipv6": ("IPv6", cases.ipv6),
    "both": ("both over one session", cases.both),
    "md5": ("MD5, and its rotation", guards.md5),
    "wrong-md5": ("wrong MD5", guards.wrong_md5),
    "gtsm": ("GTSM", guards.gtsm),
    "gr-restarter": ("GR: we restart", cases.gr_restarter),
    "gr-helper": ("GR: the peer restarts", cases.gr_helper),
    "ecmp": ("ECMP, two ToRs", cases.ecmp),
    "communities": ("communities, large ones", guards.communities),
    "max-prefix": ("max-prefix, ours and the peer's", guards.max_prefix),
    "asn4": ("4-byte ASN", cases.four_byte_asn),
    "refresh": ("route refresh", cases.route_refresh),
    "hold": ("hold timer", cases.hold_timer),
    "shutdown": ("shutdown with text", cases.shutdown),
}
"""Short name -> (title in the table, the case)."""
