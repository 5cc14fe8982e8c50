"""The schema of BGPConfiguration. Pure."""

from __future__ import annotations

from routing.datastore.kinds.attributes import COMMUNITIES_MAX
from routing.datastore.kinds.configuration import (
    ADVERTISEMENTS_MAX,
    COMMUNITY_NAME_PATTERN,
    DEFAULT_ASN,
    IMPORT_ALLOW_MAX,
    INTERFACES_MAX,
    KEEP_LAST_PEERS_MAX_S,
    KEEP_LAST_PEERS_S,
    NAME,
    NAMED_COMMUNITIES_MAX,
    NO_SERVICES,
    ONLY,
    REFUSED,
    SERVICES,
)
from routing.schemas.attributes import (
    ANY_COMMUNITY_PATTERN,
    any_community,
    filters,
    password,
    restart_time,
)
from routing.schemas.parts import (
    ANY_INTEGER,
    ANY_OBJECT,
    ANY_TEXT,
    Schema,
    asn,
    cidr,
    duration,
    flag,
    integer,
    listed,
    mapping,
    only,
    refused,
    rule,
    ruled,
    text,
)

COMMUNITY_NAME_MAX_CHARACTERS = 128

_SERVICES_MAX = 64


def _services() -> Schema:
    return ruled(
        listed(f"{NO_SERVICES[0].upper()}{NO_SERVICES[1:]}.", ANY_OBJECT, at_most=_SERVICES_MAX),
        rule("self.size() == 0", NO_SERVICES),
    )


SPEC: Schema = mapping(
    "What all sessions have in common.",
    {
        "asNumber": asn(
            "The cluster's AS number; a Node may have one of its own.", default=DEFAULT_ASN
        ),
        "listenPort": integer("The TCP port of BGP on nodes.", low=1, high=65535, default=179),
        "nodeToNodeMeshEnabled": flag(
            "Whether every node has a session with every other.", default=True
        ),
        "nodeMeshPassword": password("The password of the sessions between nodes."),
        "nodeMeshMaxRestartTime": restart_time(
            "As a BGPPeer's maxRestartTime, for the sessions between nodes."
        ),
        "meshFilters": filters("BGPFilters for the sessions between nodes."),
        "importAllow": listed(
            "Prefixes that are accepted beside the pools' when a peer announces exactly them, "
            "such as 0.0.0.0/0.",
            cidr("A prefix."),
            at_most=IMPORT_ALLOW_MAX,
            is_set=True,
        ),
        "communities": listed(
            "Names for communities, to use in prefixAdvertisements.",
            mapping(
                "A name and what it stands for.",
                {
                    "name": text(
                        "The name.",
                        at_most=COMMUNITY_NAME_MAX_CHARACTERS,
                        pattern=COMMUNITY_NAME_PATTERN,
                    ),
                    "value": any_community("The community, a:b or a:b:c."),
                },
                required=["name", "value"],
            ),
            at_most=NAMED_COMMUNITIES_MAX,
            key="name",
        ),
        "prefixAdvertisements": listed(
            "Communities on what is announced, by where it lies.",
            mapping(
                "One range.",
                {
                    "cidr": cidr("What is announced from inside this range is meant."),
                    "communities": listed(
                        "The communities it gets.",
                        text(
                            "A community, a:b or a:b:c, or a name from communities. Agents refuse "
                            "a name that is not there.",
                            at_most=COMMUNITY_NAME_MAX_CHARACTERS,
                            pattern=f"{ANY_COMMUNITY_PATTERN}|{COMMUNITY_NAME_PATTERN}",
                        ),
                        at_least=1,
                        at_most=COMMUNITIES_MAX,
                        is_set=True,
                    ),
                },
                required=["cidr", "communities"],
            ),
            at_most=ADVERTISEMENTS_MAX,
            key="cidr",
        ),
        "exportPodRoutes": flag(
            "Whether each pod's /32 or /128 is announced beside its block.", default=False
        ),
        "aggregate": flag(
            "Whether blocks of one node that make up a larger prefix are announced as that.",
            default=True,
        ),
        "keepLastPeersFor": duration(
            "How long a node keeps its last peers when all of them are gone at once: deleted, or "
            "matched by no selector any more. 0s: they go at once.",
            (
                f"time <= duration('{KEEP_LAST_PEERS_MAX_S}s')",
                f"must be at most {KEEP_LAST_PEERS_MAX_S}s",
            ),
            default=f"{KEEP_LAST_PEERS_S}s",
        ),
        "ignoredInterfaces": listed(
            "Accepted and without meaning: slash32 announces no interface's networks.",
            text("A name.", at_most=1024),
            at_most=INTERFACES_MAX,
        ),
        **{key: _services() for key in SERVICES},
        **{
            key: refused(why, ANY_INTEGER if key.endswith("Priority") else ANY_TEXT)
            for key, why in REFUSED.items()
        },
        **{key: only(allowed, why) for key, (allowed, why) in ONLY.items()},
    },
) | {"default": {}}

ROOT_RULES = (rule(f"self.metadata.name == '{NAME}'", f"the name must be {NAME}"),)
