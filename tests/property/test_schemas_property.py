"""Schemas and readers judge alike: what kubectl is let through is what agents can use."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from routing.datastore.resources import from_document, to_document
from routing.datastore.snapshot import InvalidResource
from routing.schemas.definitions import DEFINITIONS, root_schema
from tests.fakes.structural import refusals
from tests.property.resources_strategies import (
    blocks,
    configurations,
    filters,
    peers,
    pools,
    statuses,
)

SCHEMAS = {each.kind: root_schema(each) for each in DEFINITIONS}
CASES = {"own": 0, "changed": 0, "changed and taken": 0, "changed and refused": 0}
FLOOR = 150
own = st.one_of(pools(), peers(), filters, blocks(), configurations, statuses)

ONLY_THE_READER_KNOWS = (
    "is not a selector",
    "must not be empty; write all()",
    "or a name from spec.communities",
)
"""No schema can parse a selector; and a name among 500 would cost more than a server allows."""


@settings(max_examples=200, deadline=None)
@given(resource=own)
def test_what_we_write_is_taken(resource):
    """An agent's own Block, a CLI's own BGPPeer."""
    CASES["own"] += 1
    document = json.loads(json.dumps(to_document(resource)))
    assert refusals(SCHEMAS[document["kind"]], document) == []


WORDS = """
    10.0.0.0/24 10.0.0.1/24 0.0.0.0/0 fd00::/64 ::ffff:10.0.0.0/104 127.0.0.0/8 192.0.2.1
    192.0.2.1:179 [fd00::1]:1790 fd00::1 fe80::1 224.0.0.1 0.0.0.0 0s 1s 3s 9s 27s 2m 1h 20h s 1.5s
    UseNodeIP None Auto Self all() has( a A a.b - no 1.10 0 0.0 64512 1.65536 1:1 1:1:1 65536:1
    4294967296:1:1 Equal In NotIn Accept Reject RemotePeers Never Always Workload Tunnel
    LoadBalancer Manual Warn host:n host: pending confirmed GracefulRestart NodeIP Info Enabled
    True Ready 2026-01-31T12:00:00Z 2026-01-31T12:00:00+01:00
"""
TEXTS = WORDS.split()
OTHERS: list[Any] = [
    *("", " ", "a\n", "x" * 300, 0, 1, 2, 8, 19, 20, 32, 33, 116, 128, 129, 254, 255, 256, -1),
    *(4095, 65535, 65536, 4294967295, 4294967296, 2**63 - 1, 10_000_001, True, False, 0.5),
    *([], {}, [1], ["a"], ["a", "a"], [{}], ["Workload"], {"value": 1}, {"value": "1:1"}),
    *([{"setMED": {"value": 1}}], [{"prependASPath": {"times": 2}}], {"values": ["1:1"]}),
    *({"min": 8, "max": 24}, {"min": 24, "max": 8}),
    {"secretKeyRef": {"name": "a", "key": "b"}},
]
VALUES = st.sampled_from([*TEXTS, *OTHERS])


def places(schema: Any, value: Any) -> Iterator[tuple[Any, Any, Any]]:
    """(container, key, its schema) wherever in a document a value is or could be."""
    if isinstance(value, dict):
        for key in [*(schema.get("properties") or {}), *([] if value else ["zz"])]:
            yield value, key, schema
        for key, each in value.items():
            yield from places((schema.get("properties") or {}).get(key, {}), each)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield value, index, schema
            yield from places(schema.get("items") or {}, each)


@settings(max_examples=400, deadline=None)
@given(resource=own, data=st.data())
def test_what_is_taken_can_be_read_and_the_other_way_round(resource, data):
    """A field or two changed, dropped or added anywhere."""
    document = copy.deepcopy(json.loads(json.dumps(to_document(resource))))
    kind = document["kind"]
    top = "status" if kind == "NodeStatus" else "spec"
    document.setdefault(top, {})
    schema = SCHEMAS[kind]["properties"][top]
    for _ in range(data.draw(st.integers(1, 2))):
        all_places = list(places(schema, document[top]))
        container, key, _ = all_places[data.draw(st.integers(0, len(all_places) - 1))]
        if isinstance(container, dict) and key in container and data.draw(st.booleans()):
            del container[key]
        else:
            container[key] = data.draw(VALUES)
    CASES["changed"] += 1
    reason = None
    try:
        from_document(document)
    except InvalidResource as error:
        reason = str(error)
    said = refusals(SCHEMAS[kind], document)
    CASES["changed and refused" if said else "changed and taken"] += 1
    if reason is None:
        assert said == []
    elif not any(words in reason for words in ONLY_THE_READER_KNOWS):
        assert said != [], reason


def test_enough_cases_ran():
    """A property test that ran nothing proves nothing."""
    assert CASES["own"] >= FLOOR, CASES
    assert CASES["changed and taken"] >= 50, CASES
    assert CASES["changed and refused"] >= FLOOR, CASES
