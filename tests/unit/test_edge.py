"""The edge's rules as a value: what nft is given, what it reports, what differs."""

import json
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni.attachment import Attachment
from cni.edge import (
    OWED,
    POD_LINKS,
    Listing,
    ListingError,
    Table,
    apply_script,
    differences,
    is_same_shape,
    listing,
    owed_listing,
    remove_script,
)
from tests.fakes.edge import FakeConntrack, FakeEdge, Flow

INET, ARP = OWED
METAINFO = {"metainfo": {"version": "1.0.6", "json_schema_version": 1}}


def printed(table: Table, change: Callable[[list[Any]], object] = lambda objects: None) -> str:
    """What nft would print, with handles, after ``change``."""
    listed = owed_listing(table)
    objects: list[Any] = [{"table": json.loads(listed.table)}]
    objects += [{"chain": json.loads(each)} for each in listed.chains.values()]
    objects += [{"rule": json.loads(each)} for rules in listed.rules.values() for each in rules]
    for handle, each in enumerate(objects):
        next(iter(each.values()))["handle"] = handle
    change(objects)
    return json.dumps({"nftables": [METAINFO, *objects]})


def wrong(change: Callable[[list[Any]], object]) -> list[str]:
    """What is said of the inet table after ``change``."""
    return differences(INET, owed_listing(INET), listing(printed(INET, change)))


@pytest.mark.parametrize("table", OWED, ids=str)
def test_a_table_as_owed_differs_in_nothing(table: Table) -> None:
    """Whatever its handles."""
    found = listing(printed(table))
    assert found == owed_listing(table)
    assert differences(table, owed_listing(table), found) == []
    assert is_same_shape(table, found)


def test_the_prefix_matches_every_host_end_and_little_else() -> None:
    """Attachment and the rules must not drift apart."""
    name = Attachment("net", "c0ffee", "eth0").host_ifname
    assert POD_LINKS.endswith("*")
    assert name.startswith(POD_LINKS[:-1])
    assert len(POD_LINKS) == 4


def test_every_rule_has_a_name_of_its_own() -> None:
    """What was mended is told by name."""
    names = [rule.name for table in OWED for chain in table.chains for rule in chain.rules]
    assert len(names) == len(set(names)) == 10


def test_the_script_touches_our_tables_only_and_in_one_go() -> None:
    """Deleting follows adding, so that it succeeds where there was nothing."""
    lines = apply_script().splitlines()
    assert lines[:3] == ["add table inet slash32", "delete table inet slash32", lines[2]]
    assert [line for line in lines if "table" in line] == [
        "add table inet slash32",
        "delete table inet slash32",
        "table inet slash32 {",
        "add table arp slash32",
        "delete table arp slash32",
        "table arp slash32 {",
    ]
    assert remove_script().splitlines() == [line for line in lines if " table " in line]


def test_no_rule_asks_for_connection_state() -> None:
    """A ``ct`` expression would switch conntrack on for the whole host."""
    words = apply_script().split()
    assert "fib" in words
    assert {"ct", "nat", "notrack", "flow"}.isdisjoint(words)


def test_a_missing_table_is_told_as_one() -> None:
    """Not as ten missing rules."""
    assert differences(ARP, owed_listing(ARP), None) == ["nftables table arp slash32 was missing"]
    assert not is_same_shape(ARP, None)


def test_a_sleeping_table_is_a_changed_one() -> None:
    """``flags dormant`` switches every rule off without touching one."""
    (said,) = wrong(lambda objects: objects[0]["table"].update(flags="dormant"))
    assert "dormant" in said


def test_chains_that_are_missing_changed_or_foreign_are_named() -> None:
    """A policy, a priority and a hook count."""
    is_input = lambda each: "chain" in each and each["chain"]["name"] == "input"  # noqa: E731

    def remove(objects: list[Any]) -> None:
        objects[:] = [each for each in objects if not is_input(each)]

    def change(objects: list[Any]) -> None:
        next(filter(is_input, objects))["chain"]["prio"] = 7

    def add(objects: list[Any], name: str = "mine") -> None:
        objects.append({"chain": {"family": "inet", "table": "slash32", "name": name}})

    assert wrong(remove) == ["chain input of nftables table inet slash32 was missing"]
    assert "chain input of nftables table inet slash32 was changed" in wrong(change)[0]
    assert wrong(add) == ['chain "mine" of nftables table inet slash32 is foreign']
    (said,) = wrong(lambda objects: add(objects, "a\nERROR all pods are gone"))
    assert len(said.splitlines()) == 1


def test_rules_that_are_missing_changed_foreign_or_moved_are_named() -> None:
    """In the order of the table; a changed rule is one missing and one foreign."""
    place = "chain input of nftables table inet slash32"
    of_input = lambda each: each.get("rule", {}).get("chain") == "input"  # noqa: E731

    def remove(objects: list[Any]) -> None:
        objects.remove(next(filter(of_input, objects)))

    def change(objects: list[Any]) -> None:
        next(filter(of_input, objects))["rule"]["expr"][0]["match"]["right"] = "eth*"

    def accept_first(objects: list[Any]) -> None:
        rule = {"family": "inet", "table": "slash32", "chain": "input", "expr": [{"accept": None}]}
        objects.insert(1, {"rule": rule})

    def swap(objects: list[Any]) -> None:
        first, second = [i for i, each in enumerate(objects) if of_input(each)][:2]
        objects[first], objects[second] = objects[second], objects[first]

    def double(objects: list[Any]) -> None:
        objects.append(next(filter(of_input, objects)))

    assert wrong(remove) == [f"{place} lacked its rule router-or-redirect-v6"]
    assert [each.partition(" rule ")[0] for each in wrong(change)] == [
        f"{place} held a foreign",
        f"{place} lacked its",
    ]
    assert wrong(accept_first)[0].startswith(f"{place} held a foreign rule")
    assert wrong(swap) == wrong(double) == [f"{place} held its rules in another order, or twice"]


def test_a_foreign_set_in_our_table_is_named() -> None:
    """The table is wholly ours."""
    (said,) = wrong(lambda objects: objects.append({"set": {"name": "x", "handle": 3}}))
    assert "foreign" in said
    assert "set" in said


def test_a_rule_worded_otherwise_keeps_the_shape_and_a_lost_one_does_not() -> None:
    """Another version of nft may word a rule differently; its name and place stay."""

    def reword(objects: list[Any]) -> None:
        objects[-1]["rule"]["expr"][0]["match"]["op"] = "in"

    reworded = listing(printed(INET, reword))
    assert differences(INET, owed_listing(INET), reworded) != []
    assert is_same_shape(INET, reworded)
    assert not is_same_shape(INET, listing(printed(INET, lambda objects: objects.pop())))


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[]", "null", "[" * 100_000, '{"nftables": 7}', '{"nftables": []}'),
        *('{"nftables": [{}]}', '{"nftables": [{"table": 1}]}', '{"nftables": [{"rule": {}}]}'),
    ],
)
def test_what_is_no_listing_is_refused(text: str) -> None:
    """With the beginning of it."""
    with pytest.raises(ListingError, match="not a listing"):
        listing(text)


def test_arbitrary_json_raises_only_its_own_error() -> None:
    """Counts the cases; fewer than 200 would prove little."""
    cases = 0
    leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
    words = st.sampled_from(["table", "chain", "rule", "set", "name", "chain", "comment", "expr"])
    values = st.recursive(
        leaves,
        lambda each: st.lists(each, max_size=3) | st.dictionaries(words, each, max_size=3),
        max_leaves=12,
    )

    @settings(max_examples=300)
    @given(st.lists(values, max_size=5))
    def run(objects: list[Any]) -> None:
        nonlocal cases
        cases += 1
        try:
            found = listing(json.dumps({"nftables": objects}))
        except ListingError:
            return
        assert isinstance(found, Listing)
        assert differences(INET, owed_listing(INET), found) != []

    run()
    assert cases >= 200


# -- the fakes ---------------------------------------------------------------------------------


def test_the_fake_edge_fails_when_told() -> None:
    """Once."""
    edge = FakeEdge()
    edge.fail_next("ensure", RuntimeError("no nft"))
    with pytest.raises(RuntimeError, match="no nft"):
        edge.ensure()
    assert len(edge.ensure()) == 2


def test_the_fake_conntrack_forgets_every_flow_of_an_address() -> None:
    """As opener, as answerer, and behind a translated destination."""
    one, other, service = (ip_address(f"10.1.0.{n}") for n in (1, 2, 3))
    conntrack = FakeConntrack()
    conntrack.flows = [
        Flow(one, other, other),
        Flow(other, service, one),
        Flow(other, service, other),
    ]
    assert conntrack.flush(one) == 2
    assert conntrack.flows == [Flow(other, service, other)]
