"""Make before break: old sessions end only when the new ones carry everything. Pure.

When a topology changes (mesh to route reflectors, one pair of routers to another), the sessions
that go and those that come are in one change of the store. Ending the old ones at once would leave
a gap of seconds: TCP, OPEN, all routes, End-of-RIB. So a peer that is no longer wanted *lingers*
until every new peer is settled (it has sent all it has, and has all of ours), what the old ones
taught us is covered by others, and a moment more: the far ends change over too, and what we told a
route reflector has still to reach them. It lingers LINGER_MAX_S at most.

A peer that goes while none comes is meant to go: it ends at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from bgp.paths import Path
from routing.prefix_table import PrefixTable
from routing.routes import Address
from routing.topology import SessionIntent

LINGER_MAX_S = 60.0
SETTLE_S = 5.0
"""How long everything must have been in place before the old sessions end."""


@dataclass(frozen=True, slots=True)
class Lingering:
    """A session that is wanted no more; ``since_s`` it is."""

    session: SessionIntent
    since_s: float


@dataclass(frozen=True, slots=True)
class Handover:
    """What has to be remembered from pass to pass.

    Attributes:
        wanted: the sessions wanted by the last change; None before the first.
        lingering: old ones that are kept.
        awaited: new ones that are not settled, and since when they are wanted. One that has not
            come after LINGER_MAX_S is not coming: nothing waits for it any more.
        settled_since_s: since when nothing has been awaited, while something lingers.
    """

    wanted: Mapping[Address, SessionIntent] | None = None
    lingering: Mapping[Address, Lingering] = field(default_factory=dict)
    awaited: Mapping[Address, float] = field(default_factory=dict)
    settled_since_s: float | None = None

    def step(
        self,
        wanted: Mapping[Address, SessionIntent],
        settled: Iterable[Address],
        *,
        is_covered: bool,
        now_s: float,
    ) -> Handover:
        """The state after a pass found that ``wanted`` is wanted now.

        Args:
            settled: peers that have sent all they have and have got all of ours.
            is_covered: whether all that lingering peers taught us is known from others as well.
        """
        if self.wanted is None:
            return Handover(dict(wanted))
        new = wanted.keys() - self.wanted.keys() - self.lingering.keys()
        arrived = frozenset(settled)
        awaited = {
            address: since_s
            for address, since_s in {**dict.fromkeys(new, now_s), **self.awaited}.items()
            if address in wanted and address not in arrived and now_s - since_s < LINGER_MAX_S
        }
        lingering = {
            address: each for address, each in self.lingering.items() if address not in wanted
        }
        if awaited or lingering:
            gone = self.wanted.keys() - wanted.keys()
            lingering |= {a: Lingering(self.wanted[a], now_s) for a in gone}
        lingering = {
            address: each
            for address, each in lingering.items()
            if now_s - each.since_s < LINGER_MAX_S
        }
        if not lingering:
            return Handover(dict(wanted), awaited=awaited)
        if awaited or not is_covered:
            return Handover(dict(wanted), lingering, awaited)
        since_s = now_s if self.settled_since_s is None else self.settled_since_s
        if now_s - since_s >= SETTLE_S:
            return Handover(dict(wanted))
        return Handover(dict(wanted), lingering, awaited, since_s)

    def next_change_s(self, now_s: float) -> float | None:
        """In how many seconds the clock alone ends something; None is never."""
        ends = [each.since_s + LINGER_MAX_S for each in self.lingering.values()]
        if self.settled_since_s is not None:
            ends.append(self.settled_since_s + SETTLE_S)
        return max(0.0, min(ends) - now_s) if ends else None


def is_covered(used: Iterable[Path], lingering: Iterable[Address]) -> bool:
    """Whether the prefixes of ``used`` paths would all have a way, perhaps through a wider one,
    without the peers ``lingering``."""
    old = frozenset(lingering)
    if not old:
        return True
    taught, others = set(), []
    for path in used:
        if path.peer in old:
            taught.add(path.prefix)
        else:
            others.append((path.prefix, None))
    table = PrefixTable(others)
    return all(next(table.covering(prefix), None) is not None for prefix in taught)
