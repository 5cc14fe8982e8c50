"""The short way for UPDATEs: only the prefixes whose paths changed are learned again. Pure.

A whole pass computes every table from everything; an UPDATE of one prefix need not wait for it.
``relearn`` puts the changed prefixes through the very decisions a pass uses and says what becomes
of their routes, when nothing else can depend on them:

* nothing but paths has changed since the last pass (the caller sees to that);
* no next hop is reached through a learned route;
* nobody's standing to a limit on prefixes changes, and whom a limit holds sends what it sent;
* no block has a second claimant, which concerns more than its prefix.

Otherwise it declines, and there is a whole pass. One comes every resync in any case: it is the
truth, this is a short cut to the same answer (tests/property/test_update_lane.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bgp.adj_rib import Offers
from bgp.nlri import Nlri, nlri_of
from routing.desired import Desired
from routing.remote import Outcome
from routing.route_table import Hops, RouteTable, key_of
from routing.routes import Address


@dataclass(frozen=True, slots=True)
class Relearned:
    """What becomes of some prefixes: all about each, None where nothing is said of it any more;
    what is said of them; and where their routes lead, None where there is to be none. Prefixes of
    this node's own are not in the last."""

    outcomes: Mapping[Nlri, Outcome | None]
    said: Offers
    hops: Mapping[Nlri, Hops | None]


def relearn(last: Desired, changed: Offers, received: Mapping[Address, int]) -> Relearned | None:
    """Learns the prefixes in ``changed`` again.

    Args:
        last: what the last pass wanted, and what was relearned since.
        changed: each prefix with all that is said of it now, perhaps nothing.
        received: how many prefixes each peer sends in all.

    Returns:
        None when only a whole pass can tell.
    """
    if last.remote.decisions is None:
        return None
    if last.conflicts and not changed.keys().isdisjoint(
        nlri_of(conflict.prefix) for conflict in last.conflicts
    ):
        return None
    outcomes = last.remote.decisions.some(changed, received, last.remote)
    if outcomes is None:
        return None
    if any(each is not None and each.conflicts for each in set(outcomes.values())):
        return None
    single = RouteTable.of(last.routes).single
    if len(changed) < len(single):
        local = {nlri for nlri in changed if key_of(nlri) in single}
    else:
        local = {nlri_of(key.prefix) for key in single}
    hops = {
        nlri: None if outcome is None else outcome.hops
        for nlri, outcome in outcomes.items()
        if nlri not in local
    }
    return Relearned(outcomes, changed, hops)


def merge(last: Desired, news: Relearned) -> None:
    """Puts ``news`` into the tables of ``last``, in place: copying tables of 100,000 entries for
    one prefix is what this module is to avoid."""
    last.remote.put(news.outcomes, news.said)
    grouped = RouteTable.of(last.routes).grouped
    for nlri, hops in news.hops.items():
        if hops is None:
            grouped.pop(nlri, None)
        else:
            grouped[nlri] = hops
