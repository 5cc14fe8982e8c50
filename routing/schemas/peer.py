"""The schema of BGPPeer. Pure."""

from __future__ import annotations

from routing.datastore.kinds.peer import (
    HOLD_TIME_MAX_S,
    HOLD_TIME_MIN_S,
    HOPS_MAX,
    LOCAL_ASNS_MAX,
    ONLY,
    PREFIXES_MAX,
    REFUSED,
    SOURCE_NONE,
    USE_NODE_IP,
)
from routing.datastore.snapshot import LimitAction
from routing.schemas.attributes import export_attributes, filters, password, restart_time
from routing.schemas.parts import (
    ADDRESS_MAX_CHARACTERS,
    ANY_TEXT,
    Schema,
    asn,
    choice,
    conditions,
    count,
    duration,
    flag,
    integer,
    mapping,
    name,
    only,
    refused,
    rule,
    ruled,
    selector,
    text,
)

_ENDPOINT = "[0-9A-Fa-f:.]{2,45}|\\[[0-9A-Fa-f:.]{2,45}\\]:[0-9]{1,5}|[0-9.]{7,15}:[0-9]{1,5}"
ENDPOINT_MAX_CHARACTERS = 53
_IS_BRACKETED = "self.matches('^\\\\[.*\\\\]:[0-9]+$')"
_IS_DOTTED = "self.matches('^[0-9.]+:[0-9]+$')"
_HOST = (
    f"({_IS_BRACKETED} ? self.substring(1, self.indexOf(']')) : "
    f"{_IS_DOTTED} ? self.split(':')[0] : self)"
)
_PORT = (
    f"({_IS_BRACKETED} ? int(self.split(']:')[1]) : {_IS_DOTTED} ? int(self.split(':')[1]) : 179)"
)
_USABLE = "({0}.isGlobalUnicast() || {0}.isLoopback())"
_IS_PEER_V6 = (
    "(self.peerIP.startsWith('[') || (isIP(self.peerIP) && ip(self.peerIP).family() == 6))"
)

SPEC: Schema = ruled(
    mapping(
        "Which router, and which nodes speak to it.",
        {
            "peerIP": ruled(
                text(
                    "The router's address, with a port if it is not 179: 192.0.2.1, "
                    "192.0.2.1:1790 or [2001:db8::1]:1790. Excludes peerSelector.",
                    at_most=ENDPOINT_MAX_CHARACTERS,
                    pattern=_ENDPOINT,
                ),
                rule(f"isIP({_HOST})", "must be an address, a.b.c.d:port or [v6]:port"),
                rule(
                    f"!isIP({_HOST}) || {_USABLE.format(f'ip({_HOST})')}",
                    "must not be an unspecified, multicast, broadcast or link-local address",
                ),
                rule(f"{_PORT} >= 1 && {_PORT} <= 65535", "the port must be from 1 to 65535"),
            ),
            "asNumber": asn("The router's AS number. Required beside peerIP, and only there."),
            "peerSelector": selector(
                "Nodes of this cluster to speak to instead of a router, such as route reflectors, "
                "over Node labels. Each has its own AS number. Excludes peerIP."
            ),
            "node": name("The one node that speaks to it. Excludes nodeSelector."),
            "nodeSelector": selector(
                "The nodes that speak to it, over Node labels. Excludes node. Without either: all."
            ),
            "localASNumber": asn(
                "Our AS number on these sessions. Default: the node's, else the cluster's."
            ),
            "sourceAddress": ruled(
                text(
                    f"The address we connect from: one of the node's, {USE_NODE_IP} (the node's "
                    f"own), or {SOURCE_NONE} (as the kernel chooses).",
                    at_most=ADDRESS_MAX_CHARACTERS,
                    default=USE_NODE_IP,
                ),
                rule(
                    f"self in ['{USE_NODE_IP}', '{SOURCE_NONE}'] || "
                    f"(isIP(self) && {_USABLE.format('ip(self)')})",
                    f"must be {USE_NODE_IP}, {SOURCE_NONE} or an address a host may have",
                ),
            ),
            "holdTime": duration(
                "After how long without a word a session is down. Default: three times "
                "keepaliveTime where that is given, else 9s.",
                (
                    "time != duration('0s')",
                    "must not be 0: a router that died would never be noticed",
                ),
                (
                    f"time == duration('0s') || (time >= duration('{HOLD_TIME_MIN_S}s') && "
                    f"time <= duration('{HOLD_TIME_MAX_S}s'))",
                    f"must be from {HOLD_TIME_MIN_S}s to {HOLD_TIME_MAX_S}s (RFC 4271)",
                ),
            ),
            "keepaliveTime": duration(
                "How often we say that we are there: a third of holdTime, always; "
                "so one of the two fields says both.",
                (
                    f"time >= duration('1s') && time <= duration('{HOLD_TIME_MAX_S // 3}s')",
                    f"must be from 1s to {HOLD_TIME_MAX_S // 3}s: it is a third of holdTime",
                ),
            ),
            "maxRestartTime": restart_time(
                "For how long the routes of a peer that restarts are kept, and how long we ask it "
                "to keep ours (RFC 4724)."
            ),
            "password": password("The session's password (TCP-MD5, RFC 2385)."),
            "ttlSecurity": integer(
                "GTSM (RFC 5082): at most this many hops away. Excludes multihopTTL.",
                low=1,
                high=HOPS_MAX,
            ),
            "multihopTTL": integer(
                "The TTL of our packets, for a router that is not on the node's link.",
                low=1,
                high=255,
            ),
            "numAllowedLocalASNumbers": integer(
                "How often our own AS number may stand in a path that we accept.",
                low=0,
                high=LOCAL_ASNS_MAX,
                default=0,
            ),
            "passive": flag("Whether we never connect, and only wait for it.", default=False),
            "filters": filters("BGPFilters for these sessions, applied in this order."),
            "maxPrefixes": integer("How many prefixes it may send us.", low=1, high=PREFIXES_MAX),
            "maxPrefixAction": choice(
                "What is done when it sends more. Needs maxPrefixes. Default: "
                f"{LimitAction.STOP_INSTALLING.value}.",
                [each.value for each in LimitAction],
            ),
            "export": export_attributes("What is written on all that is announced to it."),
            "extendedNextHop": flag(
                "Whether IPv4 prefixes may have IPv6 next hops (RFC 8950).", default=False
            ),
            **{key: refused(why, ANY_TEXT) for key, why in REFUSED.items()},
            **{key: only(allowed, why) for key, (allowed, why) in ONLY.items()},
        },
    ),
    rule(
        "!(has(self.peerIP) && has(self.peerSelector))",
        "peerIP and peerSelector exclude each other",
    ),
    rule("has(self.peerIP) || has(self.peerSelector)", "give peerIP or peerSelector"),
    rule("!has(self.peerIP) || has(self.asNumber)", "asNumber is required beside peerIP"),
    rule(
        "!has(self.peerSelector) || !has(self.asNumber)",
        "asNumber must be absent beside peerSelector: each node has its own",
    ),
    rule("!(has(self.node) && has(self.nodeSelector))", "node and nodeSelector exclude each other"),
    rule(
        "!(has(self.ttlSecurity) && has(self.multihopTTL))",
        "ttlSecurity and multihopTTL exclude each other",
    ),
    rule(
        "!has(self.maxPrefixAction) || has(self.maxPrefixes)", "maxPrefixAction needs maxPrefixes"
    ),
    rule(
        "!has(self.peerIP) || !has(self.sourceAddress) || !isIP(self.sourceAddress) || "
        f"{_IS_PEER_V6} == (ip(self.sourceAddress).family() == 6)",
        "sourceAddress must be of the family of peerIP",
    ),
    rule(
        "!has(self.keepaliveTime) || !has(self.holdTime) || "
        "duration(self.keepaliveTime) + duration(self.keepaliveTime) + "
        "duration(self.keepaliveTime) == duration(self.holdTime)",
        "keepaliveTime must be a third of holdTime",
    ),
)

STATUS: Schema = mapping(
    "What the nodes that speak to it report.",
    {
        "nodes": count("Nodes that should speak to it."),
        "established": text("Sessions up, of those that should be: 3/3.", at_most=21),
        "conditions": conditions(),
    },
)
