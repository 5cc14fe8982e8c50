"""BGPFilter: which routes a peer may give us, and which we give it. As in Calico v3. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from routing.datastore.fields import Fields, Malformed, parse_asn, parse_cidr
from routing.datastore.kinds.attributes import (
    COMMUNITIES_MAX,
    PREPEND_MAX,
    U32_MAX,
    parse_any_community,
    parted,
)
from routing.datastore.snapshot import (
    BGPFilterResource,
    ExportAttributes,
    FilterAction,
    FilterRule,
    MatchOperator,
    Meta,
    Prefix,
)

RULES_MAX = 256
AS_PATH_MAX = 32
OPERATIONS_MAX = 16
LENGTH_OPERATORS = (MatchOperator.IN, MatchOperator.NOT_IN)

NO_INTERFACE = "slash32 does not judge routes by interface; give cidr, communities or asPathPrefix"
NO_PEER_TYPE = "give the filter to those BGPPeers alone that it is for (spec.filters)"
NO_PRIORITY = "slash32 gives all its routes one metric; prefer paths with setLocalPreference"
NO_TRANSIT = (
    "slash32 announces its own routes alone and passes none of its peers' on, so the rule would "
    "never match; leave it out"
)
NO_IMPORT_OPERATIONS = "change what is announced, not what is learned: in export rules alone"
NO_REJECT_OPERATIONS = "a route that is rejected has no attributes to change"
OWN_ASN_ONLY = "slash32 prepends the node's own AS number alone: write prependASPath: {times: 2}"
CIDR_AND_OPERATOR = "cidr and matchOperator go together"
LENGTH_NEEDS_IN = "needs a cidr, and matchOperator In or NotIn"


def read(meta: Meta, spec: Fields) -> BGPFilterResource:
    """A BGPFilter from its document's spec. Raises InvalidResource."""
    return BGPFilterResource(
        meta=meta,
        export_v4=_rules(spec, "exportV4", version=4),
        import_v4=_rules(spec, "importV4", version=4),
        export_v6=_rules(spec, "exportV6", version=6),
        import_v6=_rules(spec, "importV6", version=6),
    )


def _rules(spec: Fields, key: str, *, version: int) -> tuple[FilterRule, ...]:
    is_export = key.startswith("export")
    return tuple(
        _rule(rule, version=version, is_export=is_export)
        for rule in spec.sections(key, at_most=RULES_MAX)
    )


def _rule(rule: Fields, *, version: int, is_export: bool) -> FilterRule:
    action = FilterAction(rule.choice("action", [each.value for each in FilterAction]))
    operator, cidr = _match(rule, version)
    low, high = _lengths(rule, version, operator)
    communities: tuple[str, ...] = ()
    if rule.has("communities"):
        match = rule.section("communities")
        communities = match.distinct("values", parse_any_community, at_most=COMMUNITIES_MAX)
        if not communities:
            raise match.error("values", [], "must have at least one community")
        match.done()
    rule.known("communities")
    as_path = tuple(
        rule.parsed(key, value, parse_asn)
        for key, value in rule.items("asPathPrefix", at_most=AS_PATH_MAX)
    )
    _check_source(rule, is_export=is_export)
    rule.never("interface", NO_INTERFACE)
    rule.never("peerType", NO_PEER_TYPE)
    rule.never("priority", NO_PRIORITY)
    operations = rule.sections("operations", at_most=OPERATIONS_MAX)
    if operations and not is_export:
        raise rule.error("operations", len(operations), NO_IMPORT_OPERATIONS)
    if operations and action is FilterAction.REJECT:
        raise rule.error("operations", len(operations), NO_REJECT_OPERATIONS)
    found = FilterRule(
        action=action,
        operator=operator,
        cidr=cidr,
        min_length=low,
        max_length=high,
        communities=communities,
        as_path_prefix=as_path,
        set_attributes=_attributes(operations),
    )
    rule.done()
    return found


def _match(rule: Fields, version: int) -> tuple[MatchOperator | None, Prefix | None]:
    def parse(value: object) -> Prefix:
        prefix = parse_cidr(value)
        if prefix.version != version:
            raise Malformed(f"must be of IPv{version}, as the list of rules it is in")
        return prefix

    cidr: Prefix | None = rule.optional("cidr", parse)
    operator = None
    if rule.has("matchOperator"):
        operator = MatchOperator(
            rule.choice("matchOperator", [each.value for each in MatchOperator])
        )
    rule.known("matchOperator")
    if (cidr is None) != (operator is None):
        missing = "cidr" if cidr is None else "matchOperator"
        raise rule.error(missing, None, CIDR_AND_OPERATOR)
    return operator, cidr


def _lengths(
    rule: Fields, version: int, operator: MatchOperator | None
) -> tuple[int | None, int | None]:
    highest = 32 if version == 4 else 128
    lengths = rule.section("prefixLength")
    low = lengths.optional_integer("min", low=0, high=highest)
    high = lengths.optional_integer("max", low=0, high=highest)
    lengths.done()
    if rule.has("prefixLength") and operator not in LENGTH_OPERATORS:
        raise rule.error("prefixLength", dict(lengths.values), LENGTH_NEEDS_IN)
    if low is not None and high is not None and low > high:
        raise lengths.error("min", low, f"must be at most max ({high})")
    return low, high


def _check_source(rule: Fields, *, is_export: bool) -> None:
    """RemotePeers: all that is imported was learned from a peer, and nothing that is exported."""
    if not rule.has("source"):
        rule.known("source")
        return
    source = rule.choice("source", ["RemotePeers"])
    if is_export:
        raise rule.error("source", source, NO_TRANSIT)


def _attributes(operations: list[Fields]) -> ExportAttributes:
    """What all operations say together; each says one thing."""
    communities: list[str] = []
    found = ExportAttributes()
    seen: set[str] = set()
    for operation in operations:
        if len(operation.values) != 1:
            raise operation.error("", sorted(operation.values), "must be exactly one operation")
        (name,) = operation.values
        operation.never("setPriority", NO_PRIORITY)
        for known in ("addCommunity", "setMED", "setLocalPreference", "prependASPath"):
            operation.known(known)
        operation.done()
        value = operation.section(name)
        if name == "addCommunity":
            community = value.parsed("value", value.take("value"), parse_any_community)
            if community in communities:
                raise value.error("value", community, "is added twice")
            communities.append(community)
        elif name in seen:
            raise operation.error(name, dict(value.values), "is given twice in one rule")
        elif name == "setMED":
            found = replace(found, med=value.integer("value", low=0, high=U32_MAX))
        elif name == "setLocalPreference":
            found = replace(found, local_pref=value.integer("value", low=0, high=U32_MAX))
        else:
            value.never("prefix", OWN_ASN_ONLY)
            found = replace(found, prepend=value.integer("times", low=1, high=PREPEND_MAX))
        seen.add(name)
        value.done()
    standard, large = parted(communities)
    return replace(found, communities=standard, large_communities=large)


def spec(resource: BGPFilterResource) -> dict[str, Any]:
    """The spec of the document that ``read`` reads back."""
    rules = {
        "exportV4": resource.export_v4,
        "importV4": resource.import_v4,
        "exportV6": resource.export_v6,
        "importV6": resource.import_v6,
    }
    return {key: [_rule_document(rule) for rule in some] for key, some in rules.items() if some}


def _rule_document(rule: FilterRule) -> dict[str, Any]:
    document: dict[str, Any] = {"action": rule.action.value}
    if rule.cidr is not None and rule.operator is not None:
        document |= {"cidr": str(rule.cidr), "matchOperator": rule.operator.value}
    lengths = {"min": rule.min_length, "max": rule.max_length}
    if any(each is not None for each in lengths.values()):
        document["prefixLength"] = {k: v for k, v in lengths.items() if v is not None}
    if rule.communities:
        document["communities"] = {"values": list(rule.communities)}
    if rule.as_path_prefix:
        document["asPathPrefix"] = list(rule.as_path_prefix)
    operations = _operations(rule.set_attributes)
    return document | {"operations": operations} if operations else document


def _operations(attributes: ExportAttributes) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"addCommunity": {"value": each}}
        for each in (*attributes.communities, *attributes.large_communities)
    ]
    if attributes.med is not None:
        found.append({"setMED": {"value": attributes.med}})
    if attributes.local_pref is not None:
        found.append({"setLocalPreference": {"value": attributes.local_pref}})
    if attributes.prepend:
        found.append({"prependASPath": {"times": attributes.prepend}})
    return found
