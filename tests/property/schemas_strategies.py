"""Strategies for documents with a field or two changed anywhere, for tests of schemas."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from routing.datastore.resources import to_document
from routing.schemas.definitions import DEFINITIONS, root_schema
from tests.property.resources_strategies import (
    blocks,
    configurations,
    filters,
    peers,
    pools,
    statuses,
)

SCHEMAS = {each.kind: root_schema(each) for each in DEFINITIONS}
own = st.one_of(pools(), peers(), filters, blocks(), configurations, statuses)
"""Resources of every kind that has a definition."""

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


def _places(schema: Any, value: Any) -> Iterator[tuple[Any, Any, Any]]:
    """(container, key, its schema) wherever in a document a value is or could be."""
    if isinstance(value, dict):
        for key in [*(schema.get("properties") or {}), *([] if value else ["zz"])]:
            yield value, key, schema
        for key, each in value.items():
            yield from _places((schema.get("properties") or {}).get(key, {}), each)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield value, index, schema
            yield from _places(schema.get("items") or {}, each)


unchanged = own.map(lambda each: json.loads(json.dumps(to_document(each))))
"""Documents as we write them."""


@st.composite
def changed(draw):
    """A document of a resource with one or two fields changed, dropped or added."""
    document = draw(unchanged)
    kind = document["kind"]
    top = "status" if kind == "NodeStatus" else "spec"
    document.setdefault(top, {})
    schema = SCHEMAS[kind]["properties"][top]
    for _ in range(draw(st.integers(1, 2))):
        places = list(_places(schema, document[top]))
        container, key, _ = places[draw(st.integers(0, len(places) - 1))]
        if isinstance(container, dict) and key in container and draw(st.booleans()):
            del container[key]
        else:
            container[key] = copy.deepcopy(draw(VALUES))
    return document
