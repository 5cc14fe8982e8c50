"""Schemas and readers judge alike: what kubectl is let through is what agents can use."""

from __future__ import annotations

import json

from hypothesis import given, settings

from routing.datastore.resources import from_document, to_document
from routing.datastore.snapshot import InvalidResource
from tests.fakes.structural import refusals
from tests.property.schemas_strategies import SCHEMAS, changed, own

CASES = {"own": 0, "changed": 0, "changed and taken": 0, "changed and refused": 0}
FLOOR = 150

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


@settings(max_examples=600, deadline=None)
@given(document=changed())
def test_what_is_taken_can_be_read_and_the_other_way_round(document):
    """A field or two changed, dropped or added anywhere."""
    CASES["changed"] += 1
    reason = None
    try:
        from_document(document)
    except InvalidResource as error:
        reason = str(error)
    said = refusals(SCHEMAS[document["kind"]], document)
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
