"""Of a pass's report only what may have changed, for the journal. Pure.

The journal is written in a thread of its own, a moment later, and the tables of a report live on:
what is handed to it must be small and must stay as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from bgp.nlri import Nlri
from routing.desired import RouteKinds
from routing.remote import BestPaths, RejectedPaths, Remote
from routing.report import HeldList, PassReport
from routing.route_diff import HeldRoutes
from routing.route_table import Hops, RouteTable, grouped_differing

TOLD_MAX = 2000
"""Prefixes that the journal is shown at once; of what is beyond, how many."""
TOLD_EACH_S = 50.0
"""And so many each second after that: a table that arrives is hundreds of passes in a row, and
writing each route down takes longer than the route."""


def changed_in(before: PassReport, after: PassReport) -> Sequence[Nlri]:
    """The learned prefixes of which the two say different things, or of which the kernel did."""
    old, new = RouteTable.of(before.desired.routes), RouteTable.of(after.desired.routes)
    found = RouteTable.of(after.actual)
    changed = dict.fromkeys(grouped_differing(old.grouped, new.grouped))
    changed.update(dict.fromkeys(grouped_differing(found.grouped, new.grouped)))
    otherwise = after.desired.remote.refuses_otherwise_than(before.desired.remote)
    changed.update(dict.fromkeys(otherwise))
    return list(changed)


class Allowance:
    """How many prefixes the journal may be shown now: TOLD_MAX, and TOLD_EACH_S once they are."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left = float(TOLD_MAX)
        self._at_s = clock()

    def take(self, nlris: Collection[Nlri]) -> list[Nlri]:
        """Those of ``nlris`` that may be shown."""
        now_s = self._clock()
        self._left = min(TOLD_MAX, self._left + (now_s - self._at_s) * TOLD_EACH_S)
        self._at_s = now_s
        few = list(islice(nlris, int(self._left)))
        self._left -= len(few)
        return few


def part_of(report: PassReport, nlris: Sequence[Nlri], *, is_all_single: bool = True) -> PassReport:
    """One report with these of what was learned; and with this node's own, or without."""
    desired = report.desired
    wanted, actual = RouteTable.of(desired.routes), RouteTable.of(report.actual)
    if not is_all_single:
        wanted, actual = RouteTable(grouped=wanted.grouped), RouteTable(grouped=actual.grouped)
    remote = Remote(decisions=desired.remote.decisions)
    outcomes = desired.remote.outcomes
    remote.put({nlri: outcomes.get(nlri) for nlri in nlris}, desired.remote.refused)
    routes = RouteTable(wanted.single, _some(wanted.grouped, nlris))
    local = {key: kind for key in wanted.single if (kind := desired.kinds.get(key)) is not None}
    held = report.held
    if isinstance(held, HeldList) and held.routes.grouped:
        kept = set(nlris).intersection(held.routes.grouped)
        many = HeldRoutes(held.routes.single, list(kept), held.routes.gate)
        held = HeldList(held.others, many)
    return replace(
        report,
        desired=replace(
            desired,
            routes=routes,
            kinds=RouteKinds(local, routes),
            best=BestPaths(remote.outcomes),
            rejected=RejectedPaths(remote),
            remote=remote,
        ),
        actual=RouteTable(dict(actual.single), _some(actual.grouped, nlris)),
        held=held,
    )


def _some(table: Mapping[Nlri, Hops], nlris: Sequence[Nlri]) -> dict[Nlri, Hops]:
    return {nlri: table[nlri] for nlri in nlris if nlri in table}
