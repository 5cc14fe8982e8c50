"""BGPFilters: first match decides, none accepts, a missing filter refuses."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from routing.datastore.snapshot import (
    BGPFilterResource,
    ExportAttributes,
    FilterAction,
    FilterRule,
    MatchOperator,
    Meta,
    Snapshot,
)
from routing.filters import Direction, Filters

POOL = ip_network("10.244.0.0/16")


def rule(action=FilterAction.REJECT, **changes) -> FilterRule:
    return FilterRule(action, **changes)


def judge(prefix: str, *rules: FilterRule, direction=Direction.IMPORT, **facts):
    resource = BGPFilterResource(Meta("f"), import_v4=rules, export_v4=rules)
    return Filters(Snapshot(filters=(resource,))).judge(
        ["f"], direction, ip_network(prefix), **facts
    )


@pytest.mark.parametrize(
    ("operator", "matching", "other"),
    [
        (MatchOperator.EQUAL, "10.244.0.0/16", "10.244.0.0/26"),
        (MatchOperator.NOT_EQUAL, "10.244.0.0/26", "10.244.0.0/16"),
        (MatchOperator.IN, "10.244.3.0/26", "10.245.0.0/26"),
        (MatchOperator.NOT_IN, "10.245.0.0/26", "10.244.3.0/26"),
    ],
)
def test_a_prefix_is_compared_as_the_operator_says(operator, matching, other):
    """Calico's four."""
    only = rule(operator=operator, cidr=POOL)
    assert judge(matching, only).reason == "filtered"
    assert judge(other, only).reason is None


def test_lengths_bound_what_is_in():
    """10.244.0.0/16 le 26 ge 24."""
    only = rule(operator=MatchOperator.IN, cidr=POOL, min_length=24, max_length=26)
    assert judge("10.244.3.0/25", only).reason == "filtered"
    assert judge("10.244.0.0/23", only).reason is None
    assert judge("10.244.3.0/27", only).reason is None


def test_the_first_rule_that_matches_decides():
    """Order is the operator's."""
    accept = rule(FilterAction.ACCEPT, operator=MatchOperator.EQUAL, cidr=POOL)
    assert judge("10.244.0.0/16", accept, rule()).reason is None
    verdict = judge("10.244.1.0/26", accept, rule())
    assert verdict.reason == "filtered"
    assert "rule 2 (IPv4)" in verdict.detail


def test_communities_of_both_kinds_must_all_be_there():
    """And the AS path may be asked for its beginning."""
    only = rule(communities=("65000:1", "65000:1:1"), as_path_prefix=(64512, 64601))
    facts = {"communities": frozenset({"65000:1", "65000:1:1", "65000:2"})}
    assert judge("10.244.1.0/26", only, as_path=(64512, 64601, 64602), **facts).reason == "filtered"
    assert judge("10.244.1.0/26", only, as_path=(64512,), **facts).reason is None
    only_one = {"communities": frozenset({"65000:1"})}
    assert judge("10.244.1.0/26", only, as_path=(64512, 64601), **only_one).reason is None


def test_accepting_rules_set_attributes_on_export():
    """What the rule says is what the route carries."""
    attributes = ExportAttributes(med=5)
    set_med = rule(FilterAction.ACCEPT, set_attributes=attributes)
    assert judge("10.244.1.0/26", set_med, direction=Direction.EXPORT).attributes == attributes


def test_families_have_rules_of_their_own():
    """An IPv4 rule says nothing of IPv6."""
    assert judge("fd44::/122", rule()).reason is None


def test_a_filter_that_does_not_exist_refuses_everything():
    """What it was to keep out is not known."""
    verdict = Filters(Snapshot()).judge(["gone"], Direction.IMPORT, POOL)
    assert verdict.reason == "filter-missing"


def test_filters_are_asked_in_turn_until_one_decides():
    """The first accepts by a rule: the second is not asked; by no rule: it is."""
    first = BGPFilterResource(
        Meta("a"), import_v4=(rule(FilterAction.ACCEPT, operator=MatchOperator.EQUAL, cidr=POOL),)
    )
    second = BGPFilterResource(Meta("b"), import_v4=(rule(),))
    filters = Filters(Snapshot(filters=(first, second)))
    assert filters.judge(["a", "b"], Direction.IMPORT, POOL).reason is None
    assert filters.judge(["a", "b"], Direction.IMPORT, ip_network("10.244.1.0/26")).reason
