"""The schema of BGPFilter. Pure."""

from __future__ import annotations

from routing.datastore.kinds.attributes import (
    COMMUNITIES_MAX,
    PREPEND_MAX,
    U32_MAX,
)
from routing.datastore.kinds.bgpfilter import (
    AS_PATH_MAX,
    CIDR_AND_OPERATOR,
    LENGTH_NEEDS_IN,
    NO_IMPORT_OPERATIONS,
    NO_INTERFACE,
    NO_PEER_TYPE,
    NO_PRIORITY,
    NO_REJECT_OPERATIONS,
    NO_TRANSIT,
    OPERATIONS_MAX,
    OWN_ASN_ONLY,
    RULES_MAX,
)
from routing.datastore.snapshot import FilterAction, MatchOperator
from routing.schemas.attributes import any_community
from routing.schemas.parts import (
    ANY_INTEGER,
    ANY_OBJECT,
    ANY_TEXT,
    Schema,
    asn,
    choice,
    cidr,
    integer,
    listed,
    mapping,
    refused,
    rule,
    ruled,
)

_ONCE = "each operation but addCommunity may stand once in a rule, and no community twice"


def _value(description: str, inner: str) -> Schema:
    return mapping(description, {"value": integer(inner, low=0, high=U32_MAX)}, required=["value"])


def _operations() -> Schema:
    operation = ruled(
        mapping(
            "One change to a route that is announced.",
            {
                "addCommunity": mapping(
                    "Adds a community.",
                    {"value": any_community("The community, a:b or a:b:c.")},
                    required=["value"],
                ),
                "setMED": _value("Sets MULTI_EXIT_DISC.", "The figure."),
                "setLocalPreference": _value(
                    "Sets LOCAL_PREF, on iBGP sessions alone.", "The figure."
                ),
                "prependASPath": ruled(
                    mapping(
                        "Puts our own AS number before the path.",
                        {
                            "times": integer("How often.", low=1, high=PREPEND_MAX),
                            "prefix": refused(
                                OWN_ASN_ONLY,
                                {
                                    "type": "array",
                                    "maxItems": AS_PATH_MAX,
                                    "items": {"x-kubernetes-int-or-string": True},
                                },
                            ),
                        },
                    ),
                    rule("has(self.times)", "times is required"),
                ),
                "setPriority": refused(NO_PRIORITY, ANY_OBJECT),
            },
        )
        | {"minProperties": 1, "maxProperties": 1},
    )
    once = " && ".join(
        f"self.filter(each, has(each.{key})).size() <= 1"
        for key in ("setMED", "setLocalPreference", "prependASPath")
    )
    communities = "self.filter(each, has(each.addCommunity))"
    return ruled(
        listed(
            "What is changed on the routes that the rule accepts.",
            operation,
            at_most=OPERATIONS_MAX,
        ),
        rule(once, _ONCE),
        rule(
            f"{communities}.all(one, self.exists_one(other, has(other.addCommunity) && "
            "other.addCommunity.value == one.addCommunity.value))",
            _ONCE,
        ),
    )


def _rule(version: int, *, is_export: bool) -> Schema:
    highest = 32 if version == 4 else 128
    lengths = ruled(
        mapping(
            "Bounds for the length of the route's prefix, with In and NotIn.",
            {
                "min": integer("The shortest.", low=0, high=highest),
                "max": integer("The longest.", low=0, high=highest),
            },
        ),
        rule("!has(self.min) || !has(self.max) || self.min <= self.max", "min must be at most max"),
    )
    source = choice("RemotePeers, which is where all imported routes come from.", ["RemotePeers"])
    if is_export:
        source = refused(NO_TRANSIT, ANY_TEXT)
    operations = _operations()
    if not is_export:
        operations = ruled(
            listed(f"Must be empty: {NO_IMPORT_OPERATIONS}.", ANY_OBJECT, at_most=OPERATIONS_MAX),
            rule("self.size() == 0", NO_IMPORT_OPERATIONS),
        )
    schema = ruled(
        mapping(
            "A route must match all that is given; the first rule that matches decides, and what "
            "no rule matches is accepted.",
            {
                "action": choice("What is done.", [each.value for each in FilterAction]),
                "cidr": cidr("What the route's prefix is compared with.", version=version),
                "matchOperator": choice(
                    "How it is compared with cidr. Equal: the same. In: inside it, or the same. "
                    "NotEqual, NotIn: the opposite.",
                    [each.value for each in MatchOperator],
                ),
                "prefixLength": lengths,
                "communities": mapping(
                    "Communities that the route must carry.",
                    {
                        "values": listed(
                            "All of these.",
                            any_community("A community, a:b or a:b:c."),
                            at_least=1,
                            at_most=COMMUNITIES_MAX,
                            is_set=True,
                        )
                    },
                    required=["values"],
                ),
                "asPathPrefix": listed(
                    "The AS numbers that its path must begin with.",
                    asn("An AS number."),
                    at_most=AS_PATH_MAX,
                ),
                "source": source,
                "operations": operations,
                "interface": refused(NO_INTERFACE, ANY_TEXT),
                "peerType": refused(NO_PEER_TYPE, ANY_TEXT),
                "priority": refused(NO_PRIORITY, ANY_INTEGER),
            },
            required=["action"],
        ),
        rule("has(self.cidr) == has(self.matchOperator)", CIDR_AND_OPERATOR),
        rule(
            "!has(self.prefixLength) || "
            "(has(self.matchOperator) && self.matchOperator in ['In', 'NotIn'])",
            f"prefixLength {LENGTH_NEEDS_IN}",
        ),
    )
    if is_export:
        schema = ruled(
            schema,
            rule(
                "self.action != 'Reject' || !has(self.operations) || self.operations.size() == 0",
                NO_REJECT_OPERATIONS,
            ),
        )
    return schema


def _rules(description: str, version: int, *, is_export: bool) -> Schema:
    return listed(description, _rule(version, is_export=is_export), at_most=RULES_MAX)


SPEC: Schema = mapping(
    "Rules in order, for each direction and family. It says nothing by itself: BGPPeers and the "
    "BGPConfiguration name it.",
    {
        "exportV4": _rules("For IPv4 routes that we announce.", 4, is_export=True),
        "importV4": _rules("For IPv4 routes that we learn.", 4, is_export=False),
        "exportV6": _rules("For IPv6 routes that we announce.", 6, is_export=True),
        "importV6": _rules("For IPv6 routes that we learn.", 6, is_export=False),
    },
)
