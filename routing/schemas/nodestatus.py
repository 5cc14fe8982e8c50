"""The schema of NodeStatus. Pure."""

from __future__ import annotations

from routing.datastore.fields import ASN_MAX
from routing.datastore.kinds.status import (
    ADDRESS_USES,
    PEERS_MAX,
    ROUTE_KINDS,
    TEXT_MAX_CHARACTERS,
)
from routing.schemas.parts import (
    ADDRESS_MAX_CHARACTERS,
    Schema,
    conditions,
    count,
    integer,
    listed,
    mapping,
    moment,
    rule,
    ruled,
    text,
)

_ROUTES = {
    "pod": "Host routes of this node's pods.",
    "block": "Blocks of this node.",
    "remote": "Routes learned from BGP peers.",
}
_ADDRESSES = {
    "used": "Addresses that pods have.",
    "resting": "Addresses given back a moment ago, which are not given out again yet.",
    "free": "Addresses that this node's blocks have left.",
}

_PEER = mapping(
    "One BGP session.",
    {
        "name": text("The BGPPeer it comes from.", at_most=TEXT_MAX_CHARACTERS),
        "address": ruled(
            text("The router's address.", at_most=ADDRESS_MAX_CHARACTERS),
            rule(
                "isIP(self) && (ip(self).isGlobalUnicast() || ip(self).isLoopback())",
                "must be an address that a router may have",
            ),
        ),
        "asNumber": integer("The router's AS number.", low=1, high=ASN_MAX),
        "state": text("Established, or what lacks.", at_most=TEXT_MAX_CHARACTERS),
        "since": moment("Since when it has been so."),
        "reason": text("Why it is not up, or was last not.", at_most=TEXT_MAX_CHARACTERS),
        "received": count("Prefixes it has sent us."),
        "accepted": count("Those of them we accept."),
        "rejected": count("Those of them we do not."),
        "advertised": count("Prefixes we send it."),
    },
    required=["name", "address", "asNumber", "state"],
)

STATUS: Schema = mapping(
    "What the agent on this node sees. Written by it alone.",
    {
        "version": text("The agent's version.", at_most=TEXT_MAX_CHARACTERS),
        "observedAt": moment("When the agent last looked."),
        "established": text("Sessions up, of those configured: 2/3.", at_most=21),
        "peers": listed("The BGP sessions.", _PEER, at_most=PEERS_MAX),
        "routes": mapping(
            "How many routes the kernel holds, by what they are for.",
            {each: count(_ROUTES[each]) for each in ROUTE_KINDS},
        ),
        "addresses": mapping(
            "How many pod addresses, by use.",
            {each: count(_ADDRESSES[each]) for each in ADDRESS_USES},
        ),
        "conditions": conditions(),
    },
)
