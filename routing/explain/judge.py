"""explain: a case in, a report out. Pure."""

from __future__ import annotations

from routing.explain.announcing import add_control_plane, add_ownership
from routing.explain.case import Case
from routing.explain.forwarding import add_forwarding, add_probes, add_way_back
from routing.explain.steps import Chain, Report


def explain(case: Case, *, probed: bool = False) -> Report:
    """The whole chain of one packet, in the order of cause and effect."""
    chain = Chain()
    add_ownership(chain, case)
    add_control_plane(chain, case)
    add_forwarding(chain, case)
    add_way_back(chain, case)
    if probed:
        add_probes(chain, case)
    source = case.source_pod
    name = f"pod {source.name} ({case.source})" if source else case.origin.node
    target = case.target_pod
    there = f"pod {target.name} ({case.destination})" if target else case.destination
    return Report(case.subject, name, there, tuple(chain))
