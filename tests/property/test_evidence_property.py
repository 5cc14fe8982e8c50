"""Evidence of any content survives its journey as JSON between two nodes."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from routing.explain.codec import from_json, to_json
from routing.explain.evidence import ClusterEvidence, NodeEvidence

CASES = 60
ran = {"cases": 0}


@settings(max_examples=CASES, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.from_type(NodeEvidence), st.from_type(ClusterEvidence)))
def test_what_is_sent_is_what_is_read(evidence):
    """Through real JSON text, by the type's own annotations."""
    ran["cases"] += 1
    again = from_json(type(evidence), json.loads(json.dumps(to_json(evidence))))
    assert again == evidence


def test_enough_cases_ran():
    """A property that drew nothing proves nothing."""
    assert ran["cases"] >= CASES // 2
